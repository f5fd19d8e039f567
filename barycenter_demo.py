"""Barycenters of two histograms: L2, Sinkhorn, debiased Sinkhorn and IPOT beside the exact one.

    python barycenter_demo.py

The inputs are those of the published IPOT demo, scaled to mass 1: two bumps, and one wider bump, on
100 bins with squared distance. The barycenter q minimises sum_k weights_k W(q, p_k). Sinkhorn's is
blurred by its regularisation; IPOT's and the debiased one are not. The exact one is a vertex of the
linear programme: among many barycenters as good to a few digits, a spiky one.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import ot
import tyro

import ipot
from generative.checkpoints import new_run_folder
from generative.plots import has_display, save_figure


@dataclass
class Config:
    """Settings; edit them here or override them on the command line."""

    weight: float = 0.5  # weight of the second histogram; the first one has the rest
    beta: float = 0.1  # IPOT's step, in units of the largest cost
    iterations: int = 1000  # IPOT iterations
    reg: float = 0.001  # regularisation of both Sinkhorn barycenters, in the same units
    bins: int = 100  # bins of the histograms; the exact barycenter takes minutes above 200
    output_dir: str = "outputs"  # a folder of its own is made in here
    show: bool = True  # show the figure where there is a display


def published_pair(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms (bins, 2), each of mass 1, and the cost (bins, bins) with largest entry 1."""
    x = np.arange(bins) * 100 / bins

    def bump(mean: float, sd: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * sd**2))

    A = np.stack([bump(20, 5) + bump(40, 5), bump(60, 8)], axis=1)
    M = (x[:, None] - x[None, :]) ** 2
    return A / A.sum(0), M / M.max()


def barycenters(
    A: np.ndarray, M: np.ndarray, config: Config
) -> dict[str, tuple[np.ndarray, float]]:
    """For each method the barycenter (bins,), of mass 1, and the seconds it took."""
    weights = np.array([1 - config.weight, config.weight])
    reg = config.reg
    methods = {
        "L2 (mean)": lambda: A @ weights,
        f"Sinkhorn, reg {reg:g}": lambda: ot.bregman.barycenter(
            A, M, reg, weights, method="sinkhorn_log", numItermax=2000, warn=False
        ),
        f"debiased Sinkhorn, reg {reg:g}": lambda: ot.bregman.barycenter_debiased(
            A, M, reg, weights=weights, method="sinkhorn_log", numItermax=2000, warn=False
        ),
        f"IPOT, beta {config.beta:g}": lambda: ipot.ipot_barycenter(
            A, M, config.beta, weights, config.iterations
        ),
        "exact (LP)": lambda: ot.lp.barycenter(A, M, weights),
    }
    found = {}
    for name, method in methods.items():
        started = time.perf_counter()
        q = np.maximum(method(), 0)
        found[name] = (q / q.sum(), time.perf_counter() - started)
    return found


def objective(q: np.ndarray, A: np.ndarray, M: np.ndarray, weight: float) -> float:
    """sum_k weights_k W(q, p_k), by POT's linear programme."""
    first, second = (ot.emd2(q, p / p.sum(), M, numItermax=10**6) for p in A.T)
    return (1 - weight) * first + weight * second


def table(found: dict, A: np.ndarray, M: np.ndarray, config: Config) -> str:
    """Objective of each method above the exact one's, relative; and its time."""
    values = {name: objective(q, A, M, config.weight) for name, (q, _) in found.items()}
    best = values["exact (LP)"]
    rows = [f"{'barycenter':32s} objective   above exact   seconds"]
    for name, (_, seconds) in found.items():
        above = "" if name == "exact (LP)" else f"{values[name] / best - 1:.1e}"
        rows.append(f"{name:32s} {values[name]:.6f}    {above:>11s}   {seconds:7.3f}")
    return "\n".join(rows)


def figure(found: dict, A: np.ndarray) -> plt.Figure:
    """The inputs above, the barycenters below."""
    x = np.arange(len(A)) * 100 / len(A)
    fig, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6.5), sharex=True, height_ratios=(1, 2), layout="constrained"
    )
    for p, color, name in zip(A.T, ("#475569", "#94a3b8"), ("first input", "second input")):
        top.fill_between(x, p, color=color, alpha=0.6, linewidth=0, label=name)
    top.set_title("Inputs", loc="left")
    styles = iter((("#94a3b8", "-."), ("#ea580c", "-"), ("#16a34a", "--"), ("#2f86c1", "-")))
    for name, (q, _) in found.items():
        if name == "exact (LP)":
            bottom.fill_between(x, q, color="0.85", linewidth=0, label=name, zorder=0)
        else:
            color, line = next(styles)
            bottom.plot(x, q, color=color, linestyle=line, linewidth=1.8, label=name)
    bottom.set_title("Barycenters", loc="left")
    bottom.set_xlabel("position")
    for panel in (top, bottom):
        panel.set_ylabel("mass in a bin")
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    return fig


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises
    ------
    ValueError
        With the field, what it got and what it accepts.
    """
    if not 0 < config.weight < 1:
        raise ValueError(f"weight: got {config.weight}; accepts numbers between 0 and 1")
    for name in ("beta", "reg"):
        if not 0 < getattr(config, name) < float("inf"):
            raise ValueError(f"{name}: got {getattr(config, name)}; accepts numbers above 0")
    for name, low in (("iterations", 1), ("bins", 10)):
        if getattr(config, name) < low:
            raise ValueError(f"{name}: got {getattr(config, name)}; accepts integers from {low} up")


def run(config: Config) -> Path:
    """Print the table, make the figure in a new folder and return the folder."""
    check(config)
    folder = new_run_folder(config.output_dir, "barycenter")
    print(f"Writing to {folder}")
    A, M = published_pair(config.bins)
    found = barycenters(A, M, config)
    print(table(found, A, M, config))
    save_figure(figure(found, A), folder / "barycenters.png")
    print(f"See {folder / 'barycenters.png'}")
    return folder


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    try:
        run(config)
    except ValueError as error:
        sys.exit(f"barycenter_demo.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped")
    if config.show and has_display():
        plt.show()


if __name__ == "__main__":
    main()
