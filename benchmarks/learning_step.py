"""How long is a training round, beside the published loop's?

    python -m benchmarks.learning_step
    python -m benchmarks.learning_step --runs 1 --steps 1000

IPOT here and as published train the same network on the same minibatches in one process, one loop
after the other, in several runs. A round of the published loop is a plan by 50 iterations with
constant steps, as in its own script, and an update of the generator. A round of ours is a plan by
`num_proximal` iterations with growing steps and `updates_per_plan` updates. The table has the
median and the quartiles of a run's milliseconds, and the median of the runs' ratios.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.published import initialise, training_step
from benchmarks.table import machine, show, write_csv
from generative.process import unaffected
from generative.run_settings import settled
from learning_demo import Config as Settings
from learning_demo import Training

WARM_UP = 10  # steps that are not counted
PUBLISHED = 50  # iterations for a plan in the published script


@dataclass
class Config:
    """Settings of the benchmark."""

    data_type: str = "gaussian"  # target
    runs: int = 5  # of each loop
    steps: int = 50  # timed steps of a run
    output: str = "outputs/benchmarks/learning_step.csv"  # the table as CSV


@unaffected
def _ours(run: Training) -> None:
    run.objective.update()


def _published(run: Training) -> None:
    config, optimizer = run.config, run.objective.optimizer
    z, y = run.batches.noise(), run.batches.points()
    training_step(run.generator, optimizer, z, y, config.beta, PUBLISHED)


def milliseconds(step: Callable[[Training], None], settings: Settings, count: int) -> float:
    """The median time of `count` steps of a new run."""
    run, times = Training(*settled(settings)), []
    if step is _published:
        initialise(run.generator, run.batches.rng)
    for _ in range(WARM_UP + count):
        started = time.perf_counter()
        step(run)
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times[WARM_UP:]))


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    settings = Settings(data_type=config.data_type, device="cpu")
    steps = {
        f"ours, {settings.num_proximal} iterations": _ours,
        f"published loop, {PUBLISHED} iterations": _published,
    }
    times = {name: [] for name in steps}
    for _ in tqdm(range(config.runs), leave=False):
        for name, step in steps.items():
            times[name].append(milliseconds(step, settings, config.steps))
    *_, published = times.values()
    rows = []
    for name, spans in times.items():
        low, middle, high = np.percentile(spans, (25, 50, 75))
        rows.append(
            {
                "round": name,
                "ms, median": float(middle),
                "quartiles": f"{low:.1f} to {high:.1f}",
                "times as fast": float(np.median(np.divide(published, spans))),
            }
        )
    print(f"{machine()}\nbatch {settings.batchsize}, {torch.get_num_threads()} threads")
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
