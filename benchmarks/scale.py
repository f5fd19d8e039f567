"""Time, memory and gap of clouds against their number of points.

    OMP_NUM_THREADS=1 python -m benchmarks.scale
    OMP_NUM_THREADS=1 python -m benchmarks.scale --agree 2000

Each run has a process of its own, on one thread; its memory is the peak above what the interpreter
and its libraries take. `multiscale` is `exactot.solve_sample` as it is, `dense` the same without
`exactot.multiscale`, so that each sweep and each pricing reads all pairs. The peers are POT's
network simplex with a cost matrix and without one (`ot.emd`, `ot.emd lazy`), the assignments of
SciPy and lapx, and POT's BSP-OT, which is approximate and proves no gap. A solver is not run on
more points once it needed more than `limit` seconds. `excess` is by how much a value exceeds that
of `multiscale`, relative to it. The exponent of a solver's growth is that of the straight line
through its logarithms from 10,000 points on.

`--agree` solves as many random clouds both ways, in one to six dimensions, degenerate ones among
them, and prints the largest difference of the values, relative to the carried cost.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import lap
import matplotlib.pyplot as plt
import numpy as np
import ot
import tyro
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from tqdm import tqdm

import exactot
from benchmarks.cells import kept
from benchmarks.memory import measured
from benchmarks.table import machine, show, write_csv
from exactot import cells, columns, multiscale
from generative.plots import save_figure

COLORS = {"multiscale": "#0b3c5d", "dense": "#8cc4e8", "ot.emd": "#111111"}
COLORS |= {"ot.emd lazy": "#94a3b8", "SciPy": "#ea580c", "lapx": "#65a30d", "BSP-OT": "#a21caf"}
LARGE = 10_000  # points from which on growth is fitted


@dataclass
class Config:
    """Settings of the benchmark."""

    sizes: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 100_000, 300_000)  # points of each cloud
    dimensions: tuple[int, ...] = (2, 3)
    families: tuple[str, ...] = ("gauss",)  # see FAMILIES; or `all`
    weights: str = "uniform"  # or random
    metric: str = "sqeuclidean"  # of ours
    tol: float = 0.0  # of ours
    solvers: tuple[str, ...] = tuple(COLORS)
    seeds: int = 1
    limit: float = 100.0  # seconds
    agree: int = 0  # compare the two ways on so many random clouds instead
    output_dir: str = "outputs/benchmarks/scale"  # runs, table, figure


def gauss(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """One standard deviation apart."""
    return rng.standard_normal((n, d)), rng.standard_normal((n, d)) + np.eye(1, d)[0]


def ring(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """A uniform cube, and eight Gaussians on a circle around it."""
    angle, y = rng.integers(8, size=n) * np.pi / 4, 0.1 * rng.standard_normal((n, d))
    y[:, :2] += 2 * np.stack((np.cos(angle), np.sin(angle)), 1)
    return rng.uniform(-1, 1, (n, d)), y


def clusters(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """20 small Gaussians each, far apart and not as heavy as those that are near them."""
    centres, shares = 5 * rng.standard_normal((2, 20, d)), rng.dirichlet(np.ones(20), 2)
    of = [rng.choice(20, n, p=p) for p in shares]
    return tuple(c[k] + 0.1 * rng.standard_normal((n, d)) for c, k in zip(centres, of))


def pictures(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of a square grid, whose weights are two pictures."""
    side = round(n ** (1 / d))
    grid = np.stack(np.indices((side,) * d), -1).reshape(-1, d).astype(float)
    return grid, grid.copy()


def curve(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """A spiral, and a curved surface (in the plane a disc)."""
    t, angle = rng.uniform(0, 6, n), rng.uniform(0, 2 * np.pi, n)
    radius = np.sqrt(rng.random(n))
    x = np.stack((np.cos(t), np.sin(t), t / 6), 1)
    y = np.stack((radius * np.cos(angle), radius * np.sin(angle), radius**2), 1)
    return x[:, :d], y[:, :d]


def copies(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Each point is there ten times in the mean."""
    return tuple(z[rng.integers(1 + n // 10, size=n)] for z in gauss(rng, n, d))


def outlier(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = gauss(rng, n, d)
    x[0] = 1e6
    return x, y


FAMILIES = {
    each.__name__: each for each in (gauss, ring, clusters, pictures, curve, copies, outlier)
}


def problem(
    family: str, weights: str, n: int, d: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points and weights."""
    rng = np.random.default_rng(seed)
    x, y = FAMILIES[family](rng, n, d)
    a, b = np.ones(len(x)), np.ones(len(y))
    if family == "pictures":  # two lights on a dim ground
        unit = x / x.max()
        a, b = (0.05 + np.exp(-8 * ((unit - c) ** 2).sum(1)) for c in (0.3, 0.7))
    if weights == "random":
        a, b = a * rng.exponential(size=len(x)), b * rng.exponential(size=len(y))
    return x, y, a / a.sum(), b / b.sum()


@dataclass(frozen=True)
class Run:
    """A solver on a problem; a number of points makes it a call for :func:`measured`."""

    solver: str
    family: str
    weights: str
    d: int
    seed: int
    metric: str
    tol: float

    def __call__(self, n: int) -> tuple[float, float]:
        """The value, and the gap relative to it."""
        return SOLVERS[self.solver](self, *problem(self.family, self.weights, n, self.d, self.seed))

    def name(self, n: int) -> str:
        parts = self.solver, self.family, self.weights, self.d, self.metric, self.tol, n, self.seed
        return "_".join(str(part) for part in parts).replace(" ", "-")


def by_multiscale(run: Run, x, y, a, b) -> tuple[float, float]:
    found = exactot.solve_sample(x, y, a, b, metric=run.metric, tol=run.tol)
    return float(found.value), float(found.gap / abs(found.value))


def by_dense(run: Run, x, y, a, b) -> tuple[float, float]:
    multiscale.LARGE = {}
    return by_multiscale(run, x, y, a, b)


def by_emd(run: Run, x, y, a, b) -> tuple[float, float]:
    return float(ot.emd2(a, b, cdist(x, y, run.metric), numItermax=2**31 - 1)), 0.0


def by_lazy_emd(run: Run, x, y, a, b) -> tuple[float, float]:
    found = ot.solve_sample(x, y, a, b, metric=run.metric, lazy=True, max_iter=2**31 - 1)
    return float(found.value), 0.0


def by_scipy(run: Run, x, y, a, b) -> tuple[float, float]:
    M = cdist(x, y, run.metric)
    return float(M[linear_sum_assignment(M)].mean()), 0.0


def by_lapx(run: Run, x, y, a, b) -> tuple[float, float]:
    return float(lap.lapjv(cdist(x, y, run.metric))[0] / len(x)), 0.0


def by_bsp(run: Run, x, y, a, b) -> tuple[float, float]:
    return float(ot.bsp.compute_bspot_bijection(x, y)[0]), math.nan


SOLVERS: dict[str, Callable] = {
    "multiscale": by_multiscale,
    "dense": by_dense,
    "ot.emd": by_emd,
    "ot.emd lazy": by_lazy_emd,
    "SciPy": by_scipy,
    "lapx": by_lapx,
    "BSP-OT": by_bsp,
}
MATCHERS = "SciPy", "lapx", "BSP-OT"  # for uniform weights
MOST = {"ot.emd": 16_000, "ot.emd lazy": 10_000, "SciPy": 4000, "lapx": 4000}  # points


def can(run: Run, n: int) -> bool:
    """Whether a solver is for this."""
    uniform = run.weights == "uniform" and run.family != "pictures"
    exact = run.metric == "sqeuclidean" or run.solver != "BSP-OT"
    return (uniform or run.solver not in MATCHERS) and exact and n <= MOST.get(run.solver, n)


def line(run: Run, n: int) -> dict:
    """What a run of n points takes and finds."""
    seconds, megabytes, value, gap = measured(run, n, warm_up=2500)
    found = {"solver": run.solver, "clouds": run.family, "d": run.d, "n": n, "seed": run.seed}
    return found | {"seconds": seconds, "MB": megabytes, "value": value, "gap": gap}


def runs(config: Config, folder: Path) -> list[dict]:
    """A row for each run, kept in the folder and read from there if it is there already."""
    families = FAMILIES if config.families == ("all",) else config.families
    rows = []
    keys = [
        Run(solver, family, config.weights, d, seed, config.metric, config.tol)
        for family in families
        for d in config.dimensions
        for seed in range(config.seeds)
        for solver in config.solvers
    ]
    for run in tqdm(keys, unit="solver"):
        for n in config.sizes:
            if not can(run, n):
                break
            rows.append(kept(folder / f"{run.name(n)}.json", partial(line, run, n)))
            if rows[-1]["seconds"] > config.limit:
                break
    problem_of = itemgetter("clouds", "d", "n", "seed")
    ours = {problem_of(row): row["value"] for row in rows if row["solver"] == "multiscale"}
    return [
        row | {"excess": row["value"] / ours.get(problem_of(row), math.nan) - 1} for row in rows
    ]


def exponent(rows: list[dict]) -> float:
    """Of the growth of the seconds, from LARGE points on; NaN from fewer than two sizes."""
    large = [row for row in rows if row["n"] >= LARGE]
    if len({row["n"] for row in large}) < 2:
        return math.nan
    return float(
        np.polyfit(*np.log([[row[key] for row in large] for key in ("n", "seconds")]), 1)[0]
    )


def draw(rows: list[dict], path: Path) -> None:
    """Seconds against n, a panel for each dimension, and the memory where it is the plane's.

    The legend has a panel too.
    """
    dimensions = sorted({row["d"] for row in rows})
    solvers = dict.fromkeys(row["solver"] for row in rows)
    plane = min(dimensions, key=lambda d: abs(d - 2))
    panels = [(d, "seconds") for d in dimensions] + [(plane, "MB")]
    across = 2 if len(panels) < 4 else 3
    down = -(-(len(panels) + 1) // across)
    size = 8.3, 2.9 * down
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (d, key) in zip(axes.flat, panels):
        for solver in solvers:
            chosen = [row for row in rows if (row["solver"], row["d"]) == (solver, d)]
            if chosen:
                _line(axis, chosen, key, solver, solver)
        power = exponent([row for row in rows if (row["solver"], row["d"]) == ("multiscale", d)])
        title = f"d = {d}" if math.isnan(power) else f"d = {d}: multiscale n^{power:.2f}"
        axis.set_title(title if key == "seconds" else f"memory, d = {d}", fontsize=10)
        axis.set(xlabel="points in each cloud", ylabel=key)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    axes.flat[len(panels)].legend(lines.values(), lines.keys(), loc="center", frameon=False)
    save_figure(figure, path)


def _line(axis: plt.Axes, rows: list[dict], key: str, solver: str, label: str) -> None:
    sizes, least = sorted({row["n"] for row in rows}), 1.0 if key == "MB" else 1e-3
    medians = [np.median([max(row[key], least) for row in rows if row["n"] == n]) for n in sizes]
    axis.loglog(sizes, medians, "o-", color=COLORS[solver], label=label, markersize=4)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def disagreement(seed: int) -> float:
    """Of the two ways on a random problem: the difference of their values over the carried cost."""
    rng = np.random.default_rng(seed)
    d, n, m = int(rng.integers(1, 7)), *(int(500 ** rng.random()) + 1 for _ in range(2))
    x, y, a, b = problem(str(rng.choice(list(FAMILIES))), "uniform", 600, max(2, d), seed)
    x, y = (z[rng.permutation(len(z))[:k], :d] for z, k in ((x, n), (y, m)))
    a, b = (w[: len(z)] for w, z in ((a, x), (b, y)))
    if rng.random() < 0.5:
        a, b = (rng.exponential(size=len(z)) * (rng.random(len(z)) < 0.9) for z in (x, y))
        a[0] = b[0] = 1.0
    metric = str(rng.choice(["sqeuclidean", "euclidean", "cityblock"]))
    found = []
    for large in (dict.fromkeys(range(2, 7), 0), {}):
        multiscale.LARGE, cells.COARSE, columns.SMALL = large, 40, 0
        found.append(exactot.solve_sample(x, y, a / a.sum(), b / b.sum(), metric=metric))
        if d == 1:  # on the line the answer is a closed form; on the plane it is not
            x, y = (np.pad(z, ((0, 0), (0, 1))) for z in (x, y))
    carried = float((found[0].plan * cdist(x, y, metric)).sum())
    return abs(float(found[0].value - found[1].value)) / (carried or 1.0)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.agree:
        worst = max(tqdm(map(disagreement, range(config.agree)), total=config.agree))
        print(f"{config.agree} problems, largest difference {worst:.2g} of the carried cost")
        return
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = runs(config, folder)
    print(machine())
    show(rows)
    for key in dict.fromkeys((row["solver"], row["clouds"], row["d"]) for row in rows):
        chosen = [row for row in rows if (row["solver"], row["clouds"], row["d"]) == key]
        if not math.isnan(power := exponent(chosen)):
            print("{}, {}, d = {}: ".format(*key) + f"seconds grow as n^{power:.2f}")
    write_csv(rows, folder / "scale.csv")
    draw(rows, folder / "scale.png")
    print(f"Written to {folder / 'scale.png'}")


if __name__ == "__main__":
    main()
