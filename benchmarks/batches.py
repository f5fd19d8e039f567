"""Many small problems: one call beside a loop of calls, and POT's ways.

    python -m benchmarks.batches

Pairs of Gaussian clouds in two dimensions, squared distance, float32. The table has the time of one
call for the whole batch, of one call a problem, and their ratio: for `ipot.solve` at a number of
iterations, and for `exactot.solve` at a certified gap, beside a loop of `ipot.solve` to that gap.
POT's batched solver follows, with the cost of its plan relative to the exact one. A sign in its
proximal method keeps that at the entropic plan of its `reg` (POT issue 842; mended in its
repository, not in release 0.9.7), so that it runs a second time with the sign mended here.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ot
import tyro

import exactot
import ipot
from benchmarks.table import machine, show, write_csv
from benchmarks.timing import milliseconds

MEDIAN = 3, np.median  # of the timed calls
WRONG, RIGHT = "-(C + inner_reg * log_T)", "-(C - inner_reg * log_T)"


@dataclass
class Config:
    """Settings of the benchmark."""

    batches: tuple[int, ...] = (256, 64)  # problems in a batch
    sizes: tuple[int, ...] = (64, 128)  # points in each cloud, for the batch of the same place
    iterations: tuple[int, ...] = (50, 200, 1000)  # of the plain iteration
    tol: float = 1e-3  # certified relative gap
    seed: int = 0  # of the clouds
    output: str = "outputs/benchmarks/batches.csv"  # the table as CSV


def costs(count: int, n: int, seed: int) -> np.ndarray:
    """Cost matrices (count, n, n)."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, count, n, 2))
    return np.stack([ot.dist(p, q + 0.7) for p, q in zip(x, y)]).astype(np.float32)


def proximal() -> Callable[..., dict]:
    """POT's proximal method with its sign as it should be."""
    found = ot.batch.proximal_bregman_log_plan_batch
    names = dict(vars(inspect.getmodule(found)))
    exec(inspect.getsource(found).replace(WRONG, RIGHT), names)
    return names[found.__name__]


def measure(count: int, n: int, config: Config) -> list[dict]:
    M = costs(count, n, config.seed)
    uniform = np.full(n, 1 / n)
    emd, exact = milliseconds(
        lambda: np.array([ot.emd2(uniform, uniform, C.astype(float)) for C in M]), *MEDIAN
    )

    def row(what: str, batch: float, loop: float | str, values: np.ndarray) -> dict:
        return {
            "batch": f"{count} x {n} x {n}",
            "what": what,
            "one call, ms": batch,
            "loop, ms": loop,
            "loop / one call": loop / batch if loop else "",
            "mean cost / exact - 1": float(np.mean(values / exact)) - 1,
        }

    rows = []
    for steps in config.iterations:
        batch, found = milliseconds(lambda steps=steps: ipot.solve(M, max_iter=steps), *MEDIAN)
        loop, _ = milliseconds(lambda steps=steps: [ipot.solve(C, max_iter=steps) for C in M])
        rows.append(row(f"ipot.solve, {steps} iterations", batch, loop, found.value))
    batch, found = milliseconds(lambda: exactot.solve(M, tol=config.tol), *MEDIAN)
    options = {"tol": config.tol, "max_iter": 10**5}
    loop, _ = milliseconds(lambda: [ipot.solve(C, **options) for C in M])
    rows.append(row(f"exactot.solve, gap {config.tol:g}", batch, loop, found.value))
    rows.append(row("loop of ot.emd, exact", emd, "", exact))
    weights = np.full((count, n), 1 / n, dtype=np.float32)
    batch, found = milliseconds(
        lambda: ot.batch.solve_batch(
            M, reg=0.05, a=weights, b=weights, method="proximal", max_iter=1000, tol=0.0
        )
    )
    values = np.sum(np.asarray(found.plan) * M, (1, 2))
    rows.append(row("ot.batch, proximal, reg 0.05, 1000 iterations", batch, "", values))
    mended = proximal()
    for steps in config.iterations:
        options = {"inner_reg": 0.05 * float(np.ptp(M)), "max_iter": steps, "tol": 0.0}
        batch, found = milliseconds(
            lambda options=options: mended(M, weights, weights, **options), *MEDIAN
        )
        values = np.sum(found["T"] * M, (1, 2))
        rows.append(row(f"ot.batch, proximal mended, {steps} iterations", batch, "", values))
    return rows


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    rows = []
    for count, n in zip(config.batches, config.sizes):
        rows += measure(count, n, config)
    print(machine())
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
