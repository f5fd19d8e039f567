"""How the proximal-point solver converges: IPOT beside Sinkhorn, with the exact answer as the
truth.

    python ipot_demo.py

Two problems: the one-dimensional pair of the IPOT paper (mixtures of two bumps on 100 bins) and two
clouds of 100 points in 64 dimensions. For each, the distance to the exact value W of POT's linear
program against iterations: the cost of the rounded plan, an upper bound, and the certified lower
bound. IPOT, with the constant steps of the paper, reaches W whatever beta is; Sinkhorn stops at the
bias of its regularisation. A second figure sets growing steps beside constant ones. A third shows
the two bounds of growing steps closing on W. A fourth lays the plans of constant steps over the
exact one, as in figure 4 of the paper.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import ot
import tyro
from tqdm import tqdm

import exactot
import ipot
from generative.display import has_window
from generative.plots import save_figure
from generative.runs import new_run_folder

IPOT_COLORS = ("#0b3c5d", "#2f86c1", "#8cc4e8")
SINKHORN_COLORS = ("#7c2d12", "#ea580c", "#fdba74")


@dataclass
class Config:
    """Settings; edit them here or override them on the command line."""

    betas: tuple[float, ...] = (0.01, 0.1, 1.0)  # IPOT's step, in units of the largest cost
    sweeps: tuple[int, ...] = (1, 5)  # Sinkhorn sweeps in one iteration (L); a row of panels each
    regs: tuple[float, ...] = (0.1, 0.01, 0.001)  # Sinkhorn's regularisation, in the same units
    iterations: int = 1000  # IPOT iterations, and Sinkhorn sweeps
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


def ipot_gaps(problem: Problem, beta: float, sweeps: int, steps: np.ndarray) -> np.ndarray:
    """Relative distance of the value above, and of the bound below, W; shape (2, steps)."""
    gaps = []
    for step in steps:
        options = {"beta": beta, "max_iter": int(step), "inner_iter": sweeps, "growing": False}
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


def convergence_figure(problems: list[Problem], config: Config) -> plt.Figure:
    """Gap to W against iterations: a column for each problem, a row for each number of sweeps.

    On these axes linear convergence is a straight line.
    """
    steps = _iterations(config, 11)
    figure, axes = plt.subplots(
        len(config.sweeps),
        len(problems),
        figsize=(11, 4 * len(config.sweeps)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    total = len(problems) * (len(config.sweeps) * len(config.betas) + len(config.regs))
    print(f"{'relative gap after ' + str(config.iterations) + ' iterations':44s} value     bound")
    with tqdm(total=total, unit="curve", leave=False) as progress:
        for column, problem in enumerate(problems):
            sinkhorn = [sinkhorn_gaps(problem, reg, steps) for reg in config.regs]
            progress.update(len(config.regs))
            for reg, gaps in zip(config.regs, sinkhorn):
                tqdm.write(f"{problem.name:24s} Sinkhorn reg {reg:<7g}{gaps[-1]:9.1e}")
            for row, sweeps in enumerate(config.sweeps):
                panel = axes[row, column]
                for beta, color in zip(config.betas, _colors(IPOT_COLORS, config.betas)):
                    value, bound = ipot_gaps(problem, beta, sweeps, steps)
                    progress.update()
                    tqdm.write(
                        f"{problem.name:24s} IPOT beta {beta:<5g} L {sweeps}"
                        f"  {value[-1]:9.1e} {bound[-1]:9.1e}"
                    )
                    panel.semilogy(steps, value, color=color, label=f"IPOT β = {beta:g}, value")
                    panel.semilogy(steps, bound, color=color, linestyle=":", label="   lower bound")
                for reg, gaps, color in zip(
                    config.regs, sinkhorn, _colors(SINKHORN_COLORS, config.regs)
                ):
                    panel.semilogy(
                        steps, gaps, color=color, linestyle="--", label=f"Sinkhorn reg = {reg:g}"
                    )
                panel.set(title=f"{problem.name}, L = {sweeps}", ylim=(1e-12, 30))
                panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("iterations")
    for panel in axes[:, 0]:
        panel.set_ylabel("|distance to W| / W")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def steps_figure(problem: Problem, config: Config) -> plt.Figure:
    """Certified gap of growing and of constant steps; Sinkhorn's plan has no certificate."""
    steps = _iterations(config, 41)
    figure, panel = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for growing, color in ((True, IPOT_COLORS[0]), (False, IPOT_COLORS[1])):
        gaps = []
        for step in steps:
            options = {"max_iter": int(step), "growing": growing}
            gaps.append(ipot.solve(problem.M, problem.a, problem.b, **options).gap / problem.W)
        label = f"IPOT, {'growing' if growing else 'constant'} steps: certified gap"
        panel.semilogy(steps, gaps, color=color, label=label)
    for reg, color in zip(config.regs, _colors(SINKHORN_COLORS, config.regs)):
        label = f"Sinkhorn reg = {reg:g}: distance to W"
        panel.semilogy(steps, sinkhorn_gaps(problem, reg, steps), "--", color=color, label=label)
    panel.set(
        xlabel="iterations",
        ylabel="relative gap",
        ylim=(1e-15, 30),
        title=f"{problem.name}: constant steps converge linearly, growing ones faster",
    )
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.1))
    return figure


def bracket_figure(problem: Problem, config: Config) -> plt.Figure:
    """Value and certified bound closing on W; the exact solver needs none of these iterations."""
    steps = np.unique(np.geomspace(1, config.iterations, 25).astype(int))
    figure, panel = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for beta, color in zip(config.betas, _colors(IPOT_COLORS, config.betas)):
        runs = [ipot.solve(problem.M, problem.a, problem.b, beta=beta, max_iter=k) for k in steps]
        low = [run.lower_bound / problem.W for run in runs]
        high = [run.value / problem.W for run in runs]
        panel.fill_between(steps, low, high, color=color, alpha=0.35, label=f"IPOT β = {beta:g}")
        panel.plot(steps, np.transpose((low, high)), color=color, linewidth=1)
    panel.axhline(1, color="#c2410c", linewidth=1.2, label="W, by linear programming")
    exact = exactot.solve(problem.M, problem.a, problem.b)
    label = f"exactot.solve: gap {exact.gap / exact.value:.0e}"
    panel.plot(1.5 * steps[-1], exact.value / problem.W, "k*", markersize=11, label=label)
    panel.set(
        xscale="log",
        ylim=(0.6, 1.6),
        xlabel="iterations",
        ylabel="cost / W",
        title=f"{problem.name}: W lies between bound and value",
    )
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=9)
    return figure


def plans_figure(problem: Problem, config: Config) -> plt.Figure:
    """Plans of the 1-D pair after more and more iterations, the exact plan drawn over them."""
    steps = sorted({min(step, config.iterations) for step in (1, 20, 200, config.iterations)})
    methods = [(f"IPOT β = {beta:g}", beta, None) for beta in config.betas]
    methods += [(f"Sinkhorn reg = {reg:g}", None, reg) for reg in config.regs]
    figure, axes = plt.subplots(
        len(methods),
        len(steps),
        figsize=(2.3 * len(steps) + 0.6, 2.3 * len(methods)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    i, j = np.nonzero(problem.exact_plan > 1e-9)
    for row, (name, beta, reg) in enumerate(methods):
        for column, step in enumerate(steps):
            if reg is None:
                plan = ipot.ipot_WD(
                    problem.a, problem.b, problem.M, beta, max_iter=step, return_loss=False
                )
            else:
                plan = ot.sinkhorn(
                    problem.a,
                    problem.b,
                    problem.M,
                    reg,
                    method="sinkhorn_log",
                    numItermax=step,
                    stopThr=0,
                    warn=False,
                )
            panel = axes[row, column]
            # Each row of the plan over its largest entry, so that thin and wide plans both show.
            panel.imshow(plan / plan.max(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
            panel.plot(j, i, color="#c2410c", linewidth=0.9)
            panel.set(xticks=[], yticks=[])
            if row == 0:
                panel.set_title(f"{step} iteration{'s' if step > 1 else ''}", fontsize=10)
        axes[row, 0].set_ylabel(name, fontsize=10)
    figure.suptitle("Plans of the 1-D pair (blue) and the exact plan (red line)", fontsize=12)
    return figure


def _iterations(config: Config, count: int) -> np.ndarray:
    """Where a curve is looked at: a few early iterations, and `count` at equal distances."""
    few, many = np.geomspace(1, config.iterations / 10, 8), np.linspace(1, config.iterations, count)
    return np.unique(np.append(few, many).astype(int).clip(1))


def _colors(palette: tuple[str, ...], values: tuple[float, ...]) -> list[str]:
    return [palette[k % len(palette)] for k in range(len(values))]


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
    if not config.sweeps or not all(value >= 1 for value in config.sweeps):
        raise ValueError(f"sweeps: got {config.sweeps!r}; accepts one or more integers from 1 up")
    for name, low in (("iterations", 1), ("points", 2), ("seed", 0)):
        if getattr(config, name) < low:
            raise ValueError(f"{name}: got {getattr(config, name)}; accepts integers from {low} up")


def run(config: Config) -> Path:
    """Make the figures in a new folder and return it."""
    check(config)
    folder = new_run_folder(config.output_dir, "convergence")
    print(f"Writing to {folder}")
    pair = paper_pair()
    problems = [pair, cloud_pair(config.points, config.seed)]
    save_figure(convergence_figure(problems, config), folder / "convergence.png")
    save_figure(steps_figure(problems[1], config), folder / "steps.png")
    save_figure(bracket_figure(pair, config), folder / "bracket.png")
    save_figure(plans_figure(pair, config), folder / "plans.png")
    print(f"See convergence.png, steps.png, bracket.png and plans.png in {folder}")
    return folder


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
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
