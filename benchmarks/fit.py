"""How near does a training come to its target, and what does each part of it add?

    python -m benchmarks.fit
    python -m benchmarks.fit --targets mixture --seeds 3

Each row is a training with the default settings but for one change. On the line the distance is W1
to the law, and the reference that of the training set; on the plane it is W2 to fresh samples, and
the reference the two-sample distance. `smallest mode` is the share of samples in the mode that has
the least of its due. The times are those of the training alone, without figures.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
import tyro
from tqdm import tqdm

import learning_demo
from benchmarks.published import initialise
from benchmarks.table import machine, show, write_csv
from generative import plots
from generative.process import unaffected
from generative.run_settings import settled
from learning_demo import Config as Settings
from learning_demo import Generator, Training

CHANGES = {
    "defaults": {},
    "independent minibatches": {"stratified": False},
    "squared distances to destinations": {"huber": 1e6},
    "constant rate": {"lr": 2e-3, "lr_factor": 1.0},
    "one update on each plan": {"updates_per_plan": 1},
    "32 iterations for each plan": {"num_proximal": 32},
    "debiased": {"debiased": True},
    "exact plans": {"objective": "ipot-exact"},
    "exact plans, debiased": {"objective": "ipot-exact", "debiased": True},
    "random first map": {},
}


@dataclass
class Config:
    """Settings of the benchmark."""

    targets: tuple[str, ...] = ("mixture", "grid")
    changes: tuple[str, ...] = tuple(CHANGES)
    seeds: int = 1
    epochs: int = 1000  # training rounds
    output: str = "outputs/benchmarks/fit.csv"  # the table as CSV


class RandomFirst(Generator):
    """The generator with weights that are not mirrored, as in the published script."""

    def initialise(self, data: torch.Tensor, rng: torch.Generator) -> None:
        super().initialise(data, rng)
        initialise(self, rng)


@contextmanager
def generator_of(change: str):
    """The training script's generator for this change."""
    if change == "random first map":
        learning_demo.Generator = RandomFirst
    try:
        yield
    finally:
        learning_demo.Generator = Generator


@unaffected
def trained(change: str, target: str, seed: int, epochs: int) -> dict:
    """A row of the table."""
    config = Settings(data_type=target, seed=seed, epochs=epochs, **CHANGES[change])
    with generator_of(change):
        run = Training(*settled(config))
    started = time.perf_counter()
    while run.epoch < epochs:
        run.run_epoch()
        run.logged.clear()
    seconds = time.perf_counter() - started
    metrics, name = run.metrics(), plots.headline(run.target)
    reference = plots.reference_of(metrics, run.target)
    row = {
        "target": target,
        "change": change,
        "seed": seed,
        "distance": metrics[name],
        "reference": reference,
        "ratio": metrics[name] / reference,
        "smallest mode": "",
        "seconds": seconds,
    }
    if "modes" in metrics:
        row["smallest mode"] = metrics["modes"] * metrics["smallest_mode"]
    return row


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    cells = list(product(config.targets, config.changes, range(config.seeds)))
    for target, change, _ in cells:
        if change not in CHANGES:
            raise SystemExit(f"changes: got {change!r}; accepts {', '.join(CHANGES)}")
        settled(Settings(data_type=target, **CHANGES[change]))
    rows = [
        trained(change, target, seed, config.epochs)
        for target, change, seed in tqdm(cells, unit="run")
    ]
    print(machine())
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
