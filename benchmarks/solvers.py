"""Time against certified gap: both solvers beside the paper's algorithm, POT, GeomLoss and OTT-JAX.

    python -m benchmarks.solvers
    python -m benchmarks.solvers --sizes 256 1024 --dimensions 2 --seeds 1
    python -m benchmarks.solvers --solvers exactot ot.emd --sizes 512 1024 2048 4096

Two Gaussian clouds with uniform weights, their means one standard deviation apart, squared distance
scaled to [0, 1]. `ipot` and `exactot` certify their gap themselves; that of the others is found off
the clock and in the same way: their plan is rounded to its marginals (upper bound), their
potentials are made feasible by c-transforms (lower bound), and the difference is divided by the
upper bound. `ot.emd` is exact, and so are its warm start (from Sinkhorn's potentials, which are on
the clock), its lazy form (without the cost matrix, from the points), and the assignments of SciPy
and lapx, which are for uniform weights. `ipot` and OTT-JAX run in float32, the others in
float64. Prints a table and the speed of `exactot` over `ot.emd`, also for random weights (median
over the seeds), and writes a CSV and a figure. GeomLoss and OTT-JAX take part where they are
installed (`pip install -r benchmarks/requirements.txt`). The solvers besides `exactot` and `ot.emd`
are run up to `others` points, or at all sizes if `solvers` names them, but not on larger problems
once they needed more than `limit` seconds.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import lap
import matplotlib.pyplot as plt
import numpy as np
import ot
import torch
import tyro
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

import exactot
import ipot
from benchmarks.published import algorithm_1
from benchmarks.table import machine, show, write_csv
from benchmarks.timing import milliseconds, rest
from generative.plots import save_figure

STYLES = {
    "ipot": ("#5fa8d3", "o"),
    "exactot, tol": ("#2f86c1", "s"),
    "exactot": ("#0b3c5d", "*"),
    "Algorithm 1": ("#94a3b8", "o"),
    "ot.emd": ("#111111", "*"),
    "ot.emd, warm": ("#6b7280", "P"),
    "ot.emd, lazy": ("#9ca3af", "X"),
    "SciPy": ("#ca8a04", "D"),
    "lapx": ("#65a30d", "v"),
    "ot.sinkhorn": ("#ea580c", "o"),
    "ot.batch": ("#fdba74", "s"),
    "GeomLoss": ("#15803d", "^"),
    "OTT-JAX": ("#a21caf", "^"),
}  # colour and marker
LINES = "#0b3c5d", "#2f86c1", "#ea580c", "#a21caf"  # colours of dimensions
COMPARED = 1024, (2, 16)  # points at most, and dimensions, of the panels with all solvers
SMALLEST = 1e-13  # gaps below are drawn here, and the axis says 0


@dataclass
class Config:
    """Settings of the benchmark."""

    sizes: tuple[int, ...] = (256, 512, 1024, 2048, 4096)  # points in each cloud
    dimensions: tuple[int, ...] = (1, 2, 16)  # of the clouds
    weights: tuple[str, ...] = ("uniform", "random")  # the solvers that are not exact get the first
    solvers: tuple[str, ...] = ()  # only these, by the names of the table; none for all
    others: int = 1024  # points up to which all take part, and not exactot and ot.emd alone
    seeds: int = 3  # clouds for the exact solvers up to n = 4096; the others get the first
    limit: float = 15  # seconds
    output_dir: str = "outputs/benchmarks"  # for solvers.csv and solvers.png


@dataclass(frozen=True)
class Problem:
    """Two clouds (n, d), weights (n,) and the cost (n, n) in [0, 1]."""

    x: np.ndarray
    y: np.ndarray
    a: np.ndarray
    b: np.ndarray
    C: np.ndarray


def problem(n: int, d: int, seed: int, weights: str) -> Problem:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    y[:, 0] += 1
    C = ot.dist(x, y)
    scale = C.max()
    a, b = np.ones((2, n)) if weights == "uniform" else rng.random((2, n))
    return Problem(x / scale**0.5, y / scale**0.5, a / a.sum(), b / b.sum(), C / scale)


def certified_gap(p: Problem, plan: np.ndarray, g: np.ndarray) -> float:
    """Relative gap of a plan, rounded, and the c-transforms of a dual variable."""
    value = float(np.sum(ipot.round_to_marginals(plan, p.a, p.b) * p.C))
    f = np.min(p.C - g, axis=1)
    bound = float(p.a @ f + p.b @ np.min(p.C - f[:, None], axis=0))
    return (value - bound) / value


def entropic(p: Problem, f: np.ndarray, g: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Plan of Sinkhorn's potentials, with its own columns, and the potential g."""
    log_plan = (f[:, None] + g - p.C) / eps
    plan = np.exp(log_plan - log_plan.max()) * p.a[:, None] * p.b
    return plan / plan.sum(), g


# Each solver: settings to try, and a function that makes (milliseconds, gap) of one.


def ipot_iterations(p: Problem, steps: int) -> tuple[float, float]:
    C, a, b = (z.astype(np.float32) for z in (p.C, p.a, p.b))
    span, found = milliseconds(lambda: ipot.solve(C, a, b, max_iter=steps))
    return span, float(found.gap / found.value)


def exactot_to(p: Problem, tol: float | None) -> tuple[float, float]:
    span, found = milliseconds(lambda: exactot.solve(p.C, p.a, p.b, tol=tol or 0.0))
    return span, float(found.gap / found.value)


def published(p: Problem, steps: int) -> tuple[float, float]:
    options = {"max_iter": steps, "with_loss": False}
    span, (plan, _) = milliseconds(lambda: algorithm_1(p.a, p.b, p.C, 0.05, **options))
    exact = exactot.solve(p.C, p.a, p.b)  # the algorithm has no potentials of its own
    return span, certified_gap(p, plan, exact.potentials[1])


def pot_emd(p: Problem, _: None) -> tuple[float, float]:
    span, _ = milliseconds(lambda: ot.emd(p.a, p.b, p.C, numItermax=2**31 - 1, log=True))
    return span, 0.0


def pot_warm(p: Problem, reg: float) -> tuple[float, float]:
    """From the potentials of Sinkhorn's algorithm, whose time counts."""
    options = {"method": "sinkhorn_log", "numItermax": 100, "stopThr": 1e-6, "warn": False}

    def run():
        log = ot.sinkhorn(p.a, p.b, p.C, reg, log=True, **options)[1]
        start = reg * log["log_u"], reg * log["log_v"]
        return ot.emd(p.a, p.b, p.C, numItermax=2**31 - 1, potentials_init=start)

    return milliseconds(run)[0], 0.0


def pot_lazy(p: Problem, _: None) -> tuple[float, float]:
    options = {"lazy": True, "max_iter": 2**31 - 1}
    return milliseconds(lambda: ot.solve_sample(p.x, p.y, p.a, p.b, **options))[0], 0.0


def scipy_assignment(p: Problem, _: None) -> tuple[float, float]:
    return milliseconds(lambda: linear_sum_assignment(p.C))[0], 0.0


def lapx(p: Problem, _: None) -> tuple[float, float]:
    return milliseconds(lambda: lap.lapjv(p.C))[0], 0.0


def pot_sinkhorn(p: Problem, reg: float) -> tuple[float, float]:
    options = {"method": "sinkhorn_log", "numItermax": 300, "stopThr": 1e-6, "warn": False}
    span, (plan, log) = milliseconds(lambda: ot.sinkhorn(p.a, p.b, p.C, reg, log=True, **options))
    return span, certified_gap(p, plan, reg * log["log_v"])


def pot_batch(p: Problem, steps: int) -> tuple[float, float]:
    M, a, b = (z[None] for z in (p.C, p.a, p.b))
    options = {"reg": 0.05, "method": "proximal", "max_iter": steps, "tol": 0.0}
    span, found = milliseconds(lambda: ot.batch.solve_batch(M, a=a, b=b, **options))
    exact = exactot.solve(p.C, p.a, p.b)  # it has no potentials of its own
    return span, certified_gap(p, np.asarray(found.plan[0]), exact.potentials[1])


def geomloss(p: Problem, blur: float) -> tuple[float, float]:
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", blur=blur, debias=False, potentials=True, backend="tensorized")
    a, x, b, y = (torch.from_numpy(z)[None] for z in (p.a, p.x, p.b, p.y))
    with torch.no_grad():
        span, (f, g) = milliseconds(lambda: loss(a, x, b, y))
    f, g = 2 * f.numpy().ravel(), 2 * g.numpy().ravel()  # its cost is half the squared distance
    return span, certified_gap(p, *entropic(p, f, g, 2 * blur**2))


def ott_jax(p: Problem, eps: float) -> tuple[float, float]:
    import jax
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    C, a, b = (jax.numpy.asarray(z, dtype="float32") for z in (p.C, p.a, p.b))
    solver = jax.jit(
        lambda C, a, b: sinkhorn.Sinkhorn(max_iterations=500)(
            linear_problem.LinearProblem(geometry.Geometry(C, epsilon=eps), a, b)
        )
    )
    jax.block_until_ready(solver(C, a, b).f)  # compilation is off the clock
    span, found = milliseconds(lambda: jax.block_until_ready(solver(C, a, b)))
    f, g = np.asarray(found.f, float), np.asarray(found.g, float)
    log_plan = (f[:, None] + g - p.C) / eps  # OTT's potentials carry the weights
    return span, certified_gap(p, np.exp(log_plan), g - eps * np.log(p.b))


SOLVERS: dict[str, tuple[Callable, tuple]] = {
    "ipot": (ipot_iterations, (10, 100, 1000)),
    "exactot, tol": (exactot_to, (1e-2, 1e-3, 1e-4)),
    "exactot": (exactot_to, (None,)),
    "Algorithm 1": (published, (10, 100)),
    "ot.emd": (pot_emd, (None,)),
    "ot.emd, warm": (pot_warm, (1e-2,)),
    "ot.emd, lazy": (pot_lazy, (None,)),
    "SciPy": (scipy_assignment, (None,)),
    "lapx": (lapx, (None,)),
    "ot.sinkhorn": (pot_sinkhorn, (1e-2, 1e-3)),
    "ot.batch": (pot_batch, (50,)),
    "GeomLoss": (geomloss, (0.05, 0.02)),
    "OTT-JAX": (ott_jax, (1e-2, 1e-3)),
}
MODULES = {"GeomLoss": "geomloss", "OTT-JAX": "ott"}
EXACT = ("exactot", "ot.emd")


def measure(config: Config) -> Iterator[dict]:
    """A row for each run that was made."""
    slow = set()
    unknown = set(config.solvers) - set(SOLVERS)
    if unknown:
        raise ValueError(f"solvers: got {sorted(unknown)}; accepts {', '.join(SOLVERS)}")
    names = [k for k in SOLVERS if k not in MODULES or importlib.util.find_spec(MODULES[k])]
    names = [k for k in names if not config.solvers or k in config.solvers]
    cells = [(d, n) for n in config.sizes for d in config.dimensions]
    for d, n in tqdm(cells, unit="cell"):
        for weights in config.weights:
            for seed in range(config.seeds if n <= 4096 else 1):
                p = problem(n, d, seed, weights)
                for name in names:
                    extra = seed > 0 or weights != config.weights[0]
                    left_out = extra or (n > config.others and not config.solvers)
                    if (name, d) in slow or (left_out and name not in EXACT):
                        continue
                    solver, settings = SOLVERS[name]
                    spent = 0.0
                    for setting in settings:
                        rest()
                        span, gap = shortest(solver, p, setting)
                        spent = max(spent, span / 1e3)
                        yield {
                            "d": d,
                            "n": n,
                            "weights": weights,
                            "seed": seed,
                            "solver": name,
                            "setting": setting or "",
                            "seconds": span / 1e3,
                            "gap": max(gap, 0.0),
                        }
                    if spent > config.limit and name not in EXACT:
                        slow.add((name, d))


def shortest(solver: Callable, p: Problem, setting: float | None) -> tuple[float, float]:
    """Of the runs of a solver, milliseconds and gap.

    Small problems repeat, so that the first call's set-up does not count; it does not matter to a
    run that takes a second.
    """
    runs = [solver(p, setting)]
    while len(p.a) <= 1024 and len(runs) < 3 and runs[-1][0] < 1000:
        runs.append(solver(p, setting))
    return min(runs)


def ratios(rows: list[dict]) -> list[dict]:
    """Time of ot.emd over that of exactot, median over the seeds."""
    times = {
        (r["d"], r["n"], r["weights"], r["seed"], r["solver"]): r["seconds"]
        for r in rows
        if r["solver"] in EXACT
    }
    table = []
    if {key[4] for key in times} != set(EXACT):
        return table
    for d, n, weights in dict.fromkeys(key[:3] for key in times):
        both = [
            (times[d, n, weights, key[3], "ot.emd"], seconds)
            for key, seconds in times.items()
            if key[:3] == (d, n, weights) and key[4] == "exactot"
        ]
        emd, ours = np.transpose(both)
        table.append(
            {
                "d": d,
                "n": n,
                "weights": weights,
                "ot.emd, ms": 1e3 * float(np.median(emd)),
                "exactot, ms": 1e3 * float(np.median(ours)),
                "ratio": float(np.median(emd / ours)),
            }
        )
    return table


def figure(rows: list[dict], table: list[dict], config: Config) -> plt.Figure:
    """Gap against seconds for all solvers at one size, the speed-up against n, and a legend."""
    most, dimensions = COMPARED
    n = max((n for n in config.sizes if n <= most), default=min(config.sizes))
    dimensions = [d for d in config.dimensions if d in dimensions] or config.dimensions[:1]
    first = [r for r in rows if r["seed"] == 0 and r["weights"] == config.weights[0]]
    count = len(dimensions) + bool(table) + 1
    shape = -(-count // 2), 2
    fig, axes = plt.subplots(*shape, figsize=(8.3, 3.1 * shape[0]), layout="constrained")
    *panels, key = axes.flat[:count]
    for d, axis in zip(dimensions, panels):
        gap_panel(axis, [r for r in first if (r["d"], r["n"]) == (d, n)])
        axis.set_title(f"d = {d}, n = {n:,}", loc="left", fontsize=10)
    if table:
        speed_panel(panels[-1], [r for r in table if r["weights"] == config.weights[0]])
    handles = {}
    for axis in panels[: len(dimensions)]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    handles = {name: handles[name] for name in STYLES if name in handles}
    key.legend(handles.values(), handles.keys(), loc="center", ncols=2, fontsize=9, frameon=False)
    for axis in axes.flat[count - 1 :]:
        axis.set_axis_off()
    return fig


def gap_panel(axis: plt.Axes, rows: list[dict]) -> None:
    """Gap against seconds, both logarithmic, a line for each solver."""
    for name, (color, marker) in STYLES.items():
        points = [(r["seconds"], max(r["gap"], SMALLEST)) for r in rows if r["solver"] == name]
        if points:
            size = 10 if marker == "*" else 6
            x, y = np.transpose(sorted(points))
            axis.loglog(x, y, color=color, marker=marker, markersize=size, label=name)
    axis.set(xlabel="seconds", ylabel="certified relative gap", ylim=(SMALLEST / 10, 10))
    axis.set_yticks(
        [1, 1e-3, 1e-6, 1e-9, SMALLEST], ["1", "1e-3", "1e-6", "1e-9", "0"], minor=False
    )
    _plain(axis)


def speed_panel(axis: plt.Axes, table: list[dict]) -> None:
    """How many times as fast as ot.emd exactot is, against n; a line for each dimension."""
    for d, color in zip(dict.fromkeys(r["d"] for r in table), cycle(LINES)):
        x, y = np.transpose([(r["n"], r["ratio"]) for r in table if r["d"] == d])
        axis.loglog(x, y, "o-", color=color, markersize=5, label=f"d = {d}")
    axis.axhline(1, color="0.3", linewidth=1, linestyle="--")
    sizes = sorted({r["n"] for r in table})
    axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    low, high = axis.get_ylim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="points in each cloud, n", ylabel="times as fast as ot.emd")
    axis.set_title("exactot beside ot.emd", loc="left", fontsize=10)
    axis.legend(loc="upper left", fontsize=9, frameon=False)
    _plain(axis)


def _plain(axis: plt.Axes) -> None:
    axis.tick_params(labelsize=9)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    rows = list(measure(config))
    print(machine())
    show([r for r in rows if r["seed"] == 0 and r["weights"] == config.weights[0]])
    table = ratios(rows)
    if table:
        print("\nTime of ot.emd over that of exactot.solve, median over the seeds")
        show(table)
    folder = Path(config.output_dir)
    write_csv(rows, folder / "solvers.csv")
    save_figure(figure(rows, table, config), folder / "solvers.png")
    print(f"See {folder / 'solvers.png'}")


if __name__ == "__main__":
    main()
