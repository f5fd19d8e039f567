"""Barycenters: how far above the optimum, against time; and memory against the size of images.

    python -m benchmarks.barycenters

The first table: the published pair (n = 100, equal weights) and random instances (n = 60, two to
five inputs, random weights, some inputs smooth and some a few spikes), squared distance on a line,
largest cost 1. `above` is the objective of the histogram, by exact plans, minus the optimum. The
second: pictures of random ellipses on a grid, each run in a process of its own; `plans` is what the
K plans of Algorithm 2 alone would take.
"""

import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import ot
import tyro
from tqdm import tqdm

import exactot
import ipot
from barycenter_demo import nested_ellipses, objective, published_pair
from benchmarks.memory import measured
from benchmarks.published import algorithm_2
from benchmarks.table import machine, show, write_csv
from benchmarks.timing import milliseconds

PICTURES = 10


@dataclass
class Config:
    """Settings of the benchmark."""

    instances: int = 20  # random ones
    repeats: int = 3  # timed calls, of which the median counts
    program: bool = True  # POT's barycenter by linear programming too, seconds a call
    sizes: tuple[int, ...] = (32, 64, 128)  # sides of the images
    iterations: int = 100  # on images
    output: str = "outputs/benchmarks/barycenters.csv"  # the first table as CSV
    memory_output: str = "outputs/benchmarks/barycenter_memory.csv"  # the second


def instance(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histograms (n, K) of mass 1, cost (n, n), weights (K,)."""
    rng = np.random.default_rng(seed)
    count, x = rng.integers(2, 6), np.arange(n)
    A = np.zeros((n, count))
    for k in range(count):
        if rng.random() < 0.5:
            spikes = rng.choice(n, rng.integers(2, 8), replace=False)
            A[spikes, k] = rng.uniform(0.05, 1, len(spikes))
        else:
            centres, widths = rng.uniform(5, n - 5, (3, 1)), rng.uniform(1.5, 6, (3, 1))
            A[:, k] = rng.uniform(size=3) @ np.exp(-(((x - centres) / widths) ** 2) / 2) + 1e-4
    return A / A.sum(0), ((x[:, None] - x) / (n - 1)) ** 2, rng.dirichlet(np.ones(count))


def methods(config: Config) -> dict:
    """Functions of (A, M, weights) to histograms."""

    def iterations(count, A, M, weights):
        return exactot.barycenter(A, M, weights, max_iter=count).histogram

    def published(count, A, M, weights):
        with np.errstate(all="ignore"):
            return algorithm_2(A, M, 0.1, weights, count)

    def sinkhorn(function, reg, A, M, weights):
        return function(
            A, M, reg, weights=weights, method="sinkhorn_log", numItermax=2000, warn=False
        )

    found = {"barycenter, exact": lambda A, M, w: exactot.barycenter(A, M, w, exact=True).histogram}
    for count in (30, 100, 300, 1000):
        found[f"barycenter, {count} iterations"] = partial(iterations, count)
    found["ipot_barycenter, beta 0.1, 1000"] = lambda A, M, w: ipot.ipot_barycenter(A, M, 0.1, w)
    for count in (100, 1000):
        found[f"Algorithm 2, beta 0.1, {count}"] = partial(published, count)
    for reg in (1e-2, 1e-3):
        found[f"POT sinkhorn, reg {reg:g}"] = partial(sinkhorn, ot.bregman.barycenter, reg)
    for reg in (1e-2, 1e-3):
        found[f"POT debiased, reg {reg:g}"] = partial(sinkhorn, ot.bregman.barycenter_debiased, reg)
    found["POT debiased, reg 0.001, plain"] = lambda A, M, w: ot.bregman.barycenter_debiased(
        A, M, 1e-3, weights=w, numItermax=2000, warn=False
    )
    if config.program:
        found["POT lp.barycenter"] = lambda A, M, w: ot.lp.barycenter(A, M, w)
    return found


def accuracy(config: Config) -> list[dict]:
    A, M = published_pair(100)
    problems = [(A, M, np.full(2, 0.5)), *map(instance, range(config.instances))]
    best = [float(exactot.barycenter(*problem, exact=True).value) for problem in problems]
    rows = []
    for name, method in tqdm(methods(config).items(), unit="method"):
        times, above = [], []
        for problem, optimum in zip(problems, best):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                spent, q = milliseconds(partial(method, *problem), config.repeats, np.median)
            times.append(spent)
            q = np.maximum(q, 0)
            good = np.isfinite(q).all() and q.sum() > 0
            above.append(objective(q / q.sum(), *problem) - optimum if good else np.inf)
        failed = int(np.isinf(above[1:]).sum())
        rows.append(
            {
                "method": name,
                "pair, ms": times[0],
                "pair, above": _above(above[0]),
                "instances, ms": float(np.median(times[1:])),
                "median above": _above(np.median(above[1:])),
                "largest above": _above(max(above[1:])) if not failed else f"{failed} NaN",
            }
        )
    return rows


def _above(x: float) -> str:
    return "NaN" if np.isinf(x) else f"{max(x, 0):.1e}"


def ours(iterations: int, side: int) -> tuple[float, int]:
    A = nested_ellipses(PICTURES, side, np.random.default_rng(0))
    found = exactot.barycenter(A, grid=1 / (side - 1), max_iter=iterations)
    return float(found.gap / found.value), found.n_iter


def convolutional(iterations: int, side: int) -> tuple[float, int]:
    A = nested_ellipses(PICTURES, side, np.random.default_rng(0))
    pictures = np.moveaxis(A / A.sum((0, 1)), -1, 0)
    ot.bregman.convolutional_barycenter2d(pictures, 0.004, numItermax=iterations, warn=False)
    return float("nan"), iterations


def memory(config: Config) -> list[dict]:
    solvers = {
        "exactot.barycenter": partial(ours, config.iterations),
        "POT convolutional, reg 0.004": partial(convolutional, config.iterations),
    }
    rows = []
    for side in tqdm(config.sizes, unit="size"):
        for name, function in solvers.items():
            seconds, megabytes, gap, _ = measured(function, side, warm_up=16)
            rows.append(
                {
                    "images": f"{PICTURES} of {side} x {side}",
                    "solver": name,
                    "seconds": seconds,
                    "MB": megabytes,
                    "plans, MB": 8e-6 * PICTURES * side**4,
                    "certified gap": gap,
                }
            )
    return rows


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    rows, sizes = accuracy(config), memory(config)
    print(machine())
    show(rows)
    write_csv(rows, config.output)
    show(sizes)
    write_csv(sizes, config.memory_output)


if __name__ == "__main__":
    main()
