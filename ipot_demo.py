"""How the proximal-point solver converges: IPOT beside Sinkhorn, the exact answer as the truth.

    python ipot_demo.py

Two problems: the one-dimensional pair of the IPOT paper (mixtures of two bumps on 100 bins) and
two clouds of 100 points in 64 dimensions. W is the exact value, by POT's linear program.

convergence.png  on the clouds, how far the cost of the rounded plan lies above W: IPOT, with the
                 constant steps of the paper, goes on whatever beta is; Sinkhorn stops at the bias
                 of its regularisation. A table says the same of both problems.
steps.png        growing steps beside constant ones, by the gap that each certifies
bracket.png      value and certified bound of growing steps closing on W, on the 1-D pair
plans.png        plans of constant steps under the exact one, as in figure 4 of the paper
"""

import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import ot
import tyro

import exactot
import ipot
from generative.display import has_window
from generative.plots import save_figure
from generative.runs import new_run_folder

IPOT_COLORS = ("#0b3c5d", "#2277b3", "#4a97cf")
SINKHORN_COLORS = ("#7c2d12", "#c2410c", "#e0731f")
WIDTH = 8.3  # inches; the README shows figures 830 pixels wide


@dataclass
class Config:
    """Settings; edit them here or override them on the command line."""

    betas: tuple[float, ...] = (0.01, 0.1, 1.0)  # IPOT's step, in units of the largest cost
    sweeps: int = 1  # Sinkhorn sweeps in one IPOT iteration (L)
    regs: tuple[float, ...] = (0.1, 0.01, 0.001)  # Sinkhorn's regularisation, in the same units
    iterations: int = 2000  # IPOT iterations, and Sinkhorn sweeps
    points: int = 100  # points in each 64-dimensional cloud
    seed: int = 0  # of the clouds
    output_dir: str = "outputs"  # a folder of its own is made in here
    show: bool = True  # show the figures where there is a display


@dataclass(frozen=True)
class Problem:
    """Weights (n,) and (m,), cost (n, m) scaled to a largest entry of 1, and the exact solution."""

    name: str
    a: np.ndarray
    b: np.ndarray
    M: np.ndarray
    exact_plan: np.ndarray
    W: float


def solved(name: str, a: np.ndarray, b: np.ndarray, M: np.ndarray) -> Problem:
    M = M / M.max()
    plan = ot.emd(a, b, M, numItermax=10**6)
    return Problem(name, a, b, M, plan, float(np.sum(plan * M)))


def paper_pair() -> Problem:
    """The paper's section 4.1: two mixtures of Gaussian bumps on 100 bins, squared distance."""
    x = np.arange(100.0)

    def mixture(*parts: tuple[float, float, float]) -> np.ndarray:
        p = sum(w * np.exp(-((x - mean) ** 2) / (2 * sd**2)) / sd for w, mean, sd in parts)
        return p / p.sum()

    a = mixture((0.5, 70, 9), (0.5, 35, 9))
    b = mixture((0.4, 60, 8), (0.6, 40, 6))
    return solved("1-D pair of the paper", a, b, (x[:, None] - x[None, :]) ** 2)


def cloud_pair(points: int, seed: int) -> Problem:
    """Two Gaussian clouds in 64 dimensions, their means one standard deviation apart."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((points, 64))
    y = rng.standard_normal((points, 64)) + 1 / 8
    uniform = np.full(points, 1 / points)
    return solved("64-dimensional clouds", uniform, uniform, ot.dist(x, y))


def ipot_gaps(
    problem: Problem, beta: float | None, sweeps: int, steps: np.ndarray, growing: bool = False
) -> np.ndarray:
    """Relative distance of the value above, and of the bound below, W; shape (2, steps)."""
    gaps = []
    for step in steps:
        options = {"beta": beta, "max_iter": int(step), "inner_iter": sweeps, "growing": growing}
        transport = ipot.solve(problem.M, problem.a, problem.b, **options)
        gaps.append((transport.value - problem.W, problem.W - transport.lower_bound))
    return np.abs(np.transpose(gaps)) / problem.W


def sinkhorn_gaps(problem: Problem, reg: float, steps: np.ndarray) -> np.ndarray:
    """Relative distance of the cost of Sinkhorn's plan, rounded as IPOT's is, above W."""
    gaps, start, done = [], None, 0
    for step in steps:
        plan, log = ot.sinkhorn(
            problem.a,
            problem.b,
            problem.M,
            reg,
            method="sinkhorn_log",
            numItermax=int(step - done),
            stopThr=0,
            warn=False,
            log=True,
            warmstart=start,
        )
        start, done = (log["log_u"], log["log_v"]), step
        gaps.append(
            np.sum(ipot.round_to_marginals(plan, problem.a, problem.b) * problem.M) - problem.W
        )
    return np.abs(gaps) / problem.W


def sinkhorn_curves(problem: Problem, config: Config, steps: np.ndarray) -> Iterator[tuple]:
    """For each regularisation its name, how to draw it, and its distances to W."""
    for reg, color in zip(config.regs, cycle(SINKHORN_COLORS)):
        look = {"color": color, "linestyle": "--"}
        yield f"Sinkhorn, reg {reg:g}", look, sinkhorn_gaps(problem, reg, steps)


def ipot_curves(problem: Problem, config: Config, steps: np.ndarray) -> Iterator[tuple]:
    """The same for each beta, with constant steps."""
    for beta, color in zip(config.betas, cycle(IPOT_COLORS)):
        look = {"color": color}
        yield f"IPOT, beta {beta:g}", look, ipot_gaps(problem, beta, config.sweeps, steps)[0]


def convergence_table(problems: list[Problem], config: Config) -> Iterator[str]:
    """Lines of a table: each method's distance to W, each time after ten times the iterations."""
    steps = np.unique(np.maximum(config.iterations // np.array([100, 10, 1]), 1))
    yield f"{'(cost - W) / W after iterations:':44s}" + "".join(f"{step:10d}" for step in steps)
    for problem in problems:
        for curves in (sinkhorn_curves, ipot_curves):
            for name, _, gaps in curves(problem, config, steps):
                yield f"{problem.name:24s}{name:20s}" + "".join(f"{gap:10.1e}" for gap in gaps)


def convergence_figure(problem: Problem, config: Config) -> plt.Figure:
    """Gap to W against iterations. On these axes linear convergence is a straight line."""
    steps = _iterations(config)
    curves = [*sinkhorn_curves(problem, config, steps), *ipot_curves(problem, config, steps)]
    figure = curves_figure(steps, curves)
    figure.axes[0].set(
        ylabel="(cost - W) / W",
        title=f"{problem.name}, L = {config.sweeps}; beta and reg in units of the largest cost",
    )
    return figure


def steps_figure(problem: Problem, config: Config) -> plt.Figure:
    """Certified gap of growing and of constant steps; Sinkhorn's plan has no certificate."""
    steps = _iterations(config)
    curves = list(sinkhorn_curves(problem, config, steps))
    for growing, name, color in zip((True, False), ("growing", "constant"), IPOT_COLORS):
        gaps = ipot_gaps(problem, None, 1, steps, growing).sum(0)
        curves.append((f"IPOT, {name} steps", {"color": color}, gaps))
    figure = curves_figure(steps, curves)
    figure.axes[0].set(
        ylabel="certified gap / W (Sinkhorn: distance to W)",
        title=f"{problem.name}: constant steps converge linearly, growing ones faster",
    )
    return figure


def curves_figure(steps: np.ndarray, curves: Iterable[tuple]) -> plt.Figure:
    """Curves on a logarithmic axis, each named at its end."""
    figure, panel = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    for _, look, gaps in curves:
        panel.semilogy(steps, gaps, linewidth=1.8, **look)
    panel.set(xlim=(0, steps[-1]), xlabel="iterations (Sinkhorn: sweeps)")
    panel.yaxis.set_major_formatter("{x:g}")  # an exponent would be too small to read
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    low, high = np.log(panel.get_ylim())
    place = -0.05
    for name, look, gaps in sorted(curves, key=lambda curve: curve[2][-1]):
        end = np.log(max(gaps[-1], np.exp(low)))  # a gap may be 0
        place = max((end - low) / (high - low), place + 0.05)  # clear of the label below
        panel.text(1.01, place, name, color=look["color"], va="center", transform=panel.transAxes)
    return figure


def bracket_figure(problem: Problem, config: Config) -> plt.Figure:
    """Value and certified bound closing on W; the exact solver needs none of these iterations."""
    steps = np.unique(np.geomspace(1, config.iterations, 100).astype(int))
    figure, panel = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    for beta, color in zip(config.betas, cycle(IPOT_COLORS)):
        value, bound = ipot_gaps(problem, beta, config.sweeps, steps, growing=True)
        panel.fill_between(steps, -bound, value, color=color, alpha=0.15, linewidth=0)
        panel.plot(steps, value, color=color, label=f"IPOT, beta {beta:g}")
        panel.plot(steps, -bound, color=color)
    exact = exactot.solve(problem.M, problem.a, problem.b)
    label = f"exactot.solve (gap {exact.gap / exact.value:.0e})"
    panel.axhline(exact.value / problem.W - 1, color="#c2410c", linewidth=1.2, label=label)
    panel.set(
        xscale="log",
        xlim=(1, max(steps[-1], 2)),
        xlabel="iterations",
        ylabel="(value or bound - W) / W",
        title=f"{problem.name}, growing steps: W lies between bound and value",
    )
    panel.set_yscale("symlog", linthresh=1e-3)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return figure


def plans_figure(problem: Problem, config: Config) -> plt.Figure:
    """Plans of the 1-D pair after more and more iterations, the exact plan drawn over them."""
    steps = sorted({min(step, config.iterations) for step in (1, 20, 200, config.iterations)})
    a, b, M = problem.a, problem.b, problem.M
    log_domain = {"method": "sinkhorn_log", "stopThr": 0, "warn": False}
    methods = {
        f"IPOT\nbeta {beta:g}": lambda step, beta=beta: ipot.ipot_WD(
            a, b, M, beta, max_iter=step, return_loss=False
        )
        for beta in config.betas
    }
    methods |= {
        f"Sinkhorn\nreg {reg:g}": lambda step, reg=reg: ot.sinkhorn(
            a, b, M, reg, numItermax=step, **log_domain
        )
        for reg in config.regs
    }
    side = min((WIDTH - 0.7) / len(methods), 2)
    figure, axes = plt.subplots(
        len(steps),
        len(methods),
        figsize=(0.7 + side * len(methods), 0.9 + side * len(steps)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    i, j = np.nonzero(problem.exact_plan > 1e-9)
    shades = plt.get_cmap("Blues", 10)  # few, for a small file
    for column, (name, method) in zip(axes.T, methods.items()):
        for panel, step in zip(column, steps):
            plan = method(step)
            # Each row of the plan over its largest entry, so that thin and wide plans both show.
            panel.imshow(plan / plan.max(1, keepdims=True), shades, interpolation="nearest")
            panel.plot(j, i, color="#c2410c", linewidth=0.9)
            panel.set(xticks=(0, 50), yticks=(0, 50))
        column[0].set_title(name, fontsize=10)
    for panel, step in zip(axes[:, 0], steps):
        panel.set_ylabel(f"{step} iteration{'s' if step > 1 else ''}")
    figure.suptitle("Plans of the 1-D pair (blue) and the exact plan (red line)", fontsize=12)
    figure.supxlabel("bin of the second mixture", fontsize=10)
    figure.supylabel("bin of the first mixture", fontsize=10)
    return figure


def _iterations(config: Config) -> np.ndarray:
    """Where a curve is looked at: some early iterations, and many at equal distances."""
    few, many = np.geomspace(1, config.iterations / 10, 20), np.linspace(1, config.iterations, 81)
    return np.unique(np.append(few, many).astype(int).clip(1))


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises
    ------
    ValueError
        With the field, what it got and what it accepts.
    """
    for name in ("betas", "regs"):
        values = getattr(config, name)
        if not values or not all(1e-9 < value < 1e9 for value in values):
            raise ValueError(
                f"{name}: got {values!r}; accepts one or more numbers from 1e-09 to 1e+09"
            )
    for name, low in (("sweeps", 1), ("iterations", 1), ("points", 2), ("seed", 0)):
        if getattr(config, name) < low:
            raise ValueError(f"{name}: got {getattr(config, name)}; accepts integers from {low} up")


def run(config: Config) -> Path:
    """Make the figures in a new folder and return it."""
    check(config)
    folder = new_run_folder(config.output_dir, "convergence")
    print(f"Writing to {folder}")
    pair, clouds = paper_pair(), cloud_pair(config.points, config.seed)
    for line in convergence_table([pair, clouds], config):
        print(line, flush=True)
    save_figure(convergence_figure(clouds, config), folder / "convergence.png")
    save_figure(steps_figure(clouds, config), folder / "steps.png")
    save_figure(bracket_figure(pair, config), folder / "bracket.png")
    save_figure(plans_figure(pair, config), folder / "plans.png")
    print(f"See convergence.png, steps.png, bracket.png and plans.png in {folder}")
    return folder


def main() -> None:
    config = tyro.cli(Config, description=textwrap.indent(__doc__, " "))  # tyro keeps such lines
    try:
        run(config)
    except ValueError as error:
        sys.exit(f"ipot_demo.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped")
    if config.show and has_window():
        plt.show()


if __name__ == "__main__":
    main()
