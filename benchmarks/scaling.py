"""How do updates a second grow with the processes, and when does the plan of the batch dominate?

    python -m benchmarks.scaling
    python -m benchmarks.scaling --objectives ipot-exact --sizes 512 2048

Generators of the target `ring` are trained by 1 and by 2 processes of one thread each. The last
table has updates a second (an update is a plan and the steps that follow it) and the part of the
time in which the first rank solves. From the measured constants the first tables compute, and do
not measure, up to 64 processes that have a core each:

    seconds(B, R) = solve(B) + steps * step(B / R) + log2(R) * (sharing(B) + steps * messages)

solve(B) grows as a power of B, step(b) as a line, through what one process measured. `messages` is
the extra time of a step in two processes, against one process with half the smallest batch, and
sharing(B), a line, what they took to gather a minibatch and to send its destinations.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.table import machine, show, write_csv
from generative import ranks
from generative.objectives import plan
from generative.process import unaffected
from generative.run_settings import settled
from learning_demo import Config as Settings
from learning_demo import Training

WARM_UP = 1  # updates that are not counted
RANKS = 1, 2, 4, 8, 16, 32, 64  # of the model
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Config:
    """Settings of the benchmark."""

    objectives: tuple[str, ...] = ("ipot", "ipot-exact")  # with plans
    sizes: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)  # minibatches of all processes
    seconds: float = 10.0  # of updates for each figure, at least one
    output: str = "outputs/benchmarks/scaling.csv"  # the measured table as CSV


class Clock:
    """Seconds that calls of functions have taken."""

    def __init__(self):
        self.seconds = 0.0

    def of(self, function, *args, **kwargs):
        started = time.perf_counter()
        found = function(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return found


@unaffected
def timed(objective: str, size: int, seconds: float) -> dict[str, float]:
    """Seconds of an update, of its plan on this rank, and of its steps, and how many steps."""
    settings = Settings(
        objective=objective, data_type="ring", batchsize=size, epochs=10**6, device="cpu"
    )
    run = Training(*settled(settings))
    solving, planning = Clock(), Clock()
    run.objective.of_patches = partial(solving.of, run.objective.of_patches)
    plan.of_all = partial(planning.of, ranks.of_all)
    count = started = 0
    while count < 1 + WARM_UP or ranks.agreed(time.perf_counter() - started) < seconds:
        if count == WARM_UP:
            solving.seconds = planning.seconds = 0.0
            started = time.perf_counter()
        run.objective.update()
        count += 1
    plan.of_all = ranks.of_all
    count -= WARM_UP
    whole = (time.perf_counter() - started) / count
    return {
        "update": whole,
        "solve": solving.seconds / count,
        "sharing": (planning.seconds - solving.seconds) / count,
        "step": (whole - planning.seconds / count) / run.objective.updates,
        "steps": run.objective.updates,
    }


def by_processes(world: int, objective: str, size: int, seconds: float) -> dict[str, float]:
    """What the first of `world` new processes measures."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
        path = Path(folder) / "found.json"
        words += ["-m", "benchmarks.scaling", "worker", objective, str(size), str(seconds)]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        found = subprocess.run([*words, str(path)], env=variables, capture_output=True, text=True)
        if found.returncode:
            sys.exit(found.stderr)
        return json.loads(path.read_text())


def worker(objective: str, size: str, seconds: str, path: str) -> None:
    """A process of :func:`by_processes`."""
    with ranks.joined(cuda=False):
        found = timed(objective, int(size), float(seconds))
        if ranks.rank() == 0:
            Path(path).write_text(json.dumps(found))


def model(measured: dict[tuple[int, int], dict[str, float]], sizes: tuple[int, ...]) -> list[dict]:
    """Rows of batches, of the computed updates a second and plan's share by processes."""
    one = {size: measured[size, 1] for size in sizes}
    solves, of_step = (np.array([one[size][name] for size in sizes]) for name in ("solve", "step"))
    power, factor = np.polyfit(np.log(sizes), np.log(solves), 1)
    slope, fixed = np.polyfit(sizes, of_step, 1, w=1 / of_step)
    fixed, least, steps = max(fixed, 0.0), sizes[0], one[sizes[0]]["steps"]
    messages = max(measured[least, 2]["step"] - (fixed + slope * least / 2), 0.0)
    shares = np.array([measured[size, 2]["sharing"] for size in sizes])
    each, once = np.polyfit(sizes, shares, 1, w=1 / shares)
    print(
        f"solve {np.exp(factor):.2g} s * B^{power:.2f}, step {1e3 * fixed:.2g} ms + "
        f"{1e6 * slope:.2g} us * b, messages {1e3 * messages:.2g} ms, "
        f"sharing {1e3 * once:.2g} ms + {1e6 * each:.2g} us * B, {steps} steps for a plan"
    )
    rows = []
    for size in (*sizes, *(sizes[-1] * 2**k for k in (1, 2))):
        row = {"batch": size}
        for world in RANKS:
            solve = np.exp(factor) * size**power
            step = steps * (fixed + slope * size / world)
            step += np.log2(world) * (max(once + each * size, 0.0) + steps * messages)
            row[f"{world}"] = f"{1 / (solve + step):.3g} ({solve / (solve + step):.0%})"
        row["solve, ms"], row["steps of 64, ms"] = 1e3 * float(solve), 1e3 * float(step)
        rows.append(row)
    return rows


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
        return
    config = tyro.cli(Config, description=__doc__)
    if len(config.sizes) < 2:
        raise ValueError(f"sizes: got {config.sizes}; accepts two or more")
    print(f"{machine()}, one thread in each process")
    rows = []
    for objective in config.objectives:
        measured = {}
        for size in tqdm(config.sizes, objective, leave=False):
            for world in (1, 2):
                found = by_processes(world, objective, size, config.seconds)
                measured[size, world] = found
            one, two = measured[size, 1], measured[size, 2]
            rows.append(
                {
                    "objective": objective,
                    "batch": size,
                    "1 process, updates/s": 1 / one["update"],
                    "plan": f"{one['solve'] / one['update']:.0%}",
                    "2 processes, updates/s": 1 / two["update"],
                    "their plan": f"{two['solve'] / two['update']:.0%}",
                    "sharing": f"{two['sharing'] / two['update']:.0%}",
                    "times as fast": one["update"] / two["update"],
                }
            )
        print(f"\n{objective}: computed updates a second (the plan's share of the time)")
        show(model(measured, config.sizes))
    print("\nMeasured")
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
