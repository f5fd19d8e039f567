"""How many sweeps does a certified gap take: growing steps beside the paper's constant ones.

    python -m benchmarks.steps

`ipot.solve` in float32 on clouds (those of `benchmarks.solvers`), on random histograms over a
square grid, and on the cosine distance of unit vectors in 64 dimensions that share a direction, as
word embeddings do. A gap is relative to the value. The table has the sweeps to three gaps with
constant and with growing steps, their ratio, and the ratio of the gaps after 200 sweeps; medians
over the seeds. Sweeps are counted in steps of 6 %. It takes half an hour, most of it for the
largest size.
"""

from dataclasses import dataclass

import numpy as np
import ot
import tyro
from tqdm import tqdm

import ipot
from benchmarks.solvers import problem
from benchmarks.table import machine, show, write_csv

GAPS = (1e-1, 1e-2, 1e-3)
KINDS = [f"d = {d}, {weights}" for d in (1, 2, 16) for weights in ("uniform", "random")]
KINDS += ["grid, random", "cosine, uniform"]


@dataclass
class Config:
    """Settings of the benchmark."""

    sizes: tuple[int, ...] = (128, 512, 2048)  # points on each side
    seeds: int = 3  # problems up to n = 512; larger sizes get the first
    most: int = 1000  # sweeps
    output: str = "outputs/benchmarks/steps.csv"  # the table as CSV


def problem_of_kind(kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cost (n, n) and weights (n,); a grid has the next smaller square number of bins."""
    rng = np.random.default_rng(seed)
    if kind == "grid, random":
        side = int(n**0.5)
        bins = np.stack(np.meshgrid(*2 * (np.arange(side),)), -1).reshape(-1, 2) / side
        a, b = rng.random((2, len(bins))) ** 4
        return ot.dist(bins), a / a.sum(), b / b.sum()
    if kind == "cosine, uniform":
        x, y = rng.standard_normal((2, n, 64)) + rng.standard_normal(64) / 2
        uniform = np.full(n, 1 / n)
        return ot.dist(x, y, metric="cosine"), uniform, uniform
    d, weights = kind.removeprefix("d = ").split(", ")
    p = problem(n, int(d), seed, weights)
    return p.C, p.a, p.b


def gaps(C: np.ndarray, a: np.ndarray, b: np.ndarray, counts: list[int], growing: bool) -> dict:
    """The relative gap after each number of sweeps, up to the one that closes the smallest gap."""
    C, a, b = (x.astype(np.float32) for x in (C, a, b))
    found = {}
    for count in counts:
        transport = ipot.solve(C, a, b, max_iter=count, growing=growing)
        found[count] = float(transport.gap / transport.value)
        if count >= 200 and min(found.values()) <= min(GAPS):
            break
    return found


def compare(kind: str, n: int, config: Config) -> dict:
    """A row of the table."""
    counts = {round(4 * 1.06**k) for k in range(95)}
    counts = sorted(count for count in counts | {200, config.most} if count <= config.most)
    sweeps, after_200 = [], []
    for seed in range(config.seeds if n <= 512 else 1):
        case = problem_of_kind(kind, n, seed)
        runs = [gaps(*case, counts, growing) for growing in (False, True)]
        first = [
            [min((t for t in run if run[t] <= gap), default=np.inf) for gap in GAPS] for run in runs
        ]
        sweeps.append(first)
        after_200.append([run.get(200, np.nan) for run in runs])
    row = {"problem": kind, "n": n}
    for gap, (constant, growing) in zip(GAPS, np.median(sweeps, 0).T):
        both = (f"{t:g}" if t < np.inf else f"> {config.most}" for t in (constant, growing))
        row[f"sweeps to {gap:g}"] = " / ".join(both)
        row[f"ratio, {gap:g}"] = float(growing / constant) if constant < np.inf else ""
    constant, growing = np.median(after_200, 0)
    row["gaps after 200"] = f"{constant:.1e} / {growing:.1e}"
    row["ratio"] = float(growing / constant)
    return row


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    cases = [(kind, n) for n in config.sizes for kind in KINDS]
    rows = [compare(*case, config) for case in tqdm(cases, leave=False)]
    print(f"{machine()}\nconstant / growing steps")
    show(rows)
    write_csv(rows, config.output)


if __name__ == "__main__":
    main()
