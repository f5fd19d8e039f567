"""Memory and time against the number of points: clouds without their cost matrix.

    python -m benchmarks.memory

Two Gaussian clouds in two dimensions, n points each, float64. Each run has a process of its own;
its memory is the peak above what the interpreter and its libraries take. `ot.emd` is POT's network
simplex, with the cost matrix and without one (lazy); SciPy and lapx assign.
"""

import math
import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass

import lap
import numpy as np
import ot
import tyro
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

import exactot
from benchmarks.table import machine, show, write_csv


@dataclass
class Config:
    """Settings of the benchmark."""

    sizes: tuple[int, ...] = (2000, 8000, 20000, 100000)  # points in each cloud
    dense: int = 8000  # the largest size for POT's solvers and with a cost matrix
    assigned: int = 2000  # the largest size for SciPy and lapx
    output: str = "outputs/benchmarks/memory.csv"  # the table as CSV


def clouds(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 2)), rng.standard_normal((n, 2)) + 0.7


def from_clouds(n: int) -> tuple[float, int]:
    found = exactot.solve_sample(*clouds(n))
    return float(found.gap / found.value), found.n_iter


def dense(n: int) -> tuple[float, int]:
    found = exactot.solve(ot.dist(*clouds(n)))
    return float(found.gap / found.value), found.n_iter


def emd(n: int) -> tuple[float, int]:
    ot.emd([], [], ot.dist(*clouds(n)), numItermax=2**31 - 1)
    return 0.0, 0


def lazy(n: int) -> tuple[float, int]:
    ot.solve_sample(*clouds(n), lazy=True, max_iter=2**31 - 1)
    return 0.0, 0


def scipy(n: int) -> tuple[float, int]:
    linear_sum_assignment(ot.dist(*clouds(n)))
    return 0.0, 0


def lapx(n: int) -> tuple[float, int]:
    lap.lapjv(ot.dist(*clouds(n)))
    return 0.0, 0


def _peak() -> float:
    """MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _run(function, n: int, warm_up: int, pipe) -> None:
    function(warm_up)  # libraries loaded, by the way that larger problems take too
    before, started = _peak(), time.perf_counter()
    gap, sweeps = function(n)
    pipe.send((time.perf_counter() - started, _peak() - before, gap, sweeps))


def measured(function, n: int, warm_up: int = 400) -> tuple[float, float, float, float]:
    """Seconds, megabytes, and the two numbers of a run in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, n, warm_up, sending))
    process.start()
    sending.close()
    result = receiving.recv()
    process.join()
    return result


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    solvers = {"exactot.solve_sample": from_clouds, "exactot.solve": dense, "ot.emd": emd}
    solvers |= {"ot.emd, lazy": lazy, "SciPy": scipy, "lapx": lapx}
    limits = {"exactot.solve_sample": math.inf, "SciPy": config.assigned, "lapx": config.assigned}
    rows = []
    for n in tqdm(config.sizes, unit="size"):
        for name, function in solvers.items():
            if n > limits.get(name, config.dense):
                continue
            seconds, megabytes, gap, _ = measured(function, n)
            rows.append({"n": n, "solver": name, "seconds": seconds, "MB": megabytes, "gap": gap})
    print(machine())
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
