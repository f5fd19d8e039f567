"""How long is a training step, beside the published loop's?

    python -m benchmarks.learning_step

Both update the same generator on the same minibatches in one process, in turns of 25 steps of which
the first 5 are not counted: the threads of the other loop's library must go to sleep first. The
table gives the median and the quartiles of the milliseconds, and the ratio of the medians.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.published import training_step
from benchmarks.table import machine, show, write_csv
from learning_demo import Config as Training
from learning_demo import Training as Run
from learning_demo import transport_step

TURN, WARM_UP = 25, 5  # steps


@dataclass
class Config:
    """Settings of the benchmark."""

    data_type: str = "gaussian"  # target
    steps: int = 100  # steps of each loop, in turns of 25
    output: str = "outputs/benchmarks/learning_step.csv"  # the table as CSV


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    settings = Training(data_type=config.data_type, device="cpu")
    loops = {"published loop": Run(settings), "transport_step": Run(settings)}
    times: dict[str, list[float]] = {name: [] for name in loops}
    turns = tqdm(range(-(-config.steps // TURN)), unit="turn", leave=False)
    for turn in turns:
        for name, run in loops.items():
            for step in range(TURN):
                start = (turn * TURN + step) * settings.batchsize % 40000
                y = run.data[start : start + settings.batchsize]
                z = run.noise(settings.batchsize, run.rng)
                started = time.perf_counter()
                if name == "published loop":
                    training_step(
                        run.generator, run.optimizer, z, y, settings.beta, settings.num_proximal
                    )
                else:
                    transport_step(run.generator, run.optimizer, z, y, settings)
                if step >= WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - started))
    rows = []
    for name, milliseconds in times.items():
        low, middle, high = np.percentile(milliseconds, (25, 50, 75))
        ratio = np.median(times["published loop"]) / middle
        rows.append(
            {
                "step": name,
                "ms, median": float(middle),
                "quartiles": f"{low:.1f} to {high:.1f}",
                "times as fast": float(ratio),
            }
        )
    print(
        f"{machine()}\nbatch {settings.batchsize}, {settings.num_proximal} iterations, "
        f"{torch.get_num_threads()} threads"
    )
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
