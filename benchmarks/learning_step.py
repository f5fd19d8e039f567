"""How long is a training step, beside the published loop's?

    python -m benchmarks.learning_step

IPOT here and as published update the same generator on the same minibatches in one process, one
loop after the other. The table has the median and the quartiles of the milliseconds, and the ratio
of the medians.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.published import training_step
from benchmarks.table import machine, show, write_csv
from learning_demo import Config as Settings
from learning_demo import Training

WARM_UP = 10  # steps that are not counted


@dataclass
class Config:
    """Settings of the benchmark."""

    data_type: str = "gaussian"  # target
    steps: int = 100  # timed steps of each loop
    output: str = "outputs/benchmarks/learning_step.csv"  # the table as CSV


def _ours(run: Training) -> None:
    run.objective.update(run)


def _published(run: Training) -> None:
    config, optimizer = run.config, run.objective.optimizer
    z, y = run.noise(), run.points()
    training_step(run.generator, optimizer, z, y, config.beta, config.num_proximal)


def milliseconds(step: Callable[[Training], None], settings: Settings, count: int) -> list[float]:
    """Times of `count` steps of a new run."""
    run, times = Training(settings), []
    for _ in tqdm(range(WARM_UP + count), desc=step.__name__.strip("_"), leave=False):
        started = time.perf_counter()
        step(run)
        times.append(1e3 * (time.perf_counter() - started))
    return times[WARM_UP:]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    settings = Settings(data_type=config.data_type, device="cpu")
    steps = {"ours": _ours, "published loop": _published}
    times = {name: milliseconds(step, settings, config.steps) for name, step in steps.items()}
    rows = []
    for name, spans in times.items():
        low, middle, high = np.percentile(spans, (25, 50, 75))
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
