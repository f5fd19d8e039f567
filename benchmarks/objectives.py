"""Which objective to train a generator on: each on each target, for the same time.

    python -m benchmarks.objectives
    python -m benchmarks.objectives --objectives ipot --targets ring grid --seconds 120

Every cell of the table trains the same network (ot-cfm its velocity) from scratch for `seconds` of
wall-clock time on one thread, and is then measured. A cell that is in the output folder already is
not run again, so that a run that was stopped goes on where it was. On the line the distance is W1
to the law, its reference that of the training set; on the plane it is W2 to fresh samples, and the
reference the two-sample distance. The settings of the objectives that follow plans were tuned on
the mixture and on the grid, those of ot-cfm on the ring and on the grid. Those of the others are
their authors'. There are two figures of the fits: of all cells, and an excerpt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.cells import run_cells
from benchmarks.table import machine, show, write_csv
from generative import plots
from generative.objectives import OBJECTIVES
from generative.process import unaffected
from generative.run_settings import settled
from generative.targets import TARGETS, Target
from learning_demo import Config as Settings
from learning_demo import Training

WIDTH = 8.3  # inches of a figure: 830 pixels of a page, where 9 points are 12 pixels
HEIGHT = 0.75  # of a panel of fits, over its width
SIDES = np.array([-1, 1])
EXCERPT = ("ipot", "sinkhorn", "wgan-gp", "ot-cfm"), ("mixture", "grid", "moons")


@dataclass
class Config:
    """Settings of the benchmark."""

    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    targets: tuple[str, ...] = ("uniform", "gaussian", "mixture", "ring", "grid", "moons")
    seeds: int = 3  # runs of each
    seconds: float = 60.0  # of training for each run
    jobs: int = 1  # runs at the same time, each on one thread
    output_dir: str = "outputs/benchmarks/objectives"  # cells, table and figure


def settings(objective: str, target: str, seed: int, seconds: float) -> Settings:
    """Each objective's defaults, and the same network."""
    changes = {"data_type": target, "seed": seed, "seconds": seconds, "device": "cpu"}
    return Settings(objective=objective, **changes)


@unaffected
def run_cell(objective: str, target: str, seed: int, seconds: float) -> dict:
    """Train and measure."""
    found = {"objective": objective, "target": target, "seed": seed}
    return found | trained(settings(objective, target, seed, seconds))


def trained(config: Settings) -> dict:
    """What a training on one thread comes to, and what a figure shows of its samples."""
    torch.set_num_threads(1)
    run = Training(*settled(config))
    found = {"failed": ""}
    try:
        while run.done < 1:
            run.run_epoch()
            run.logged.clear()
    except ValueError as error:  # from the solver: samples are no longer finite
        found["failed"] = str(error)
    sample = run.sampler().sample
    x = sample(50000, config.seed + 3)
    found |= {"steps": run.epoch * run.config.steps_per_epoch, "seconds": round(run.spent, 1)}
    if not bool(x.isfinite().all()):
        found["failed"] = found["failed"] or "samples are not finite"
        return found
    metrics = run.metrics()
    found["distance"] = metrics[plots.headline(run.target)]
    found["reference"] = plots.reference_of(metrics, run.target)
    modes = "modes", "modes_found", "smallest_mode", "largest_mode"
    found |= {key: metrics[key] for key in modes if key in metrics}
    return found | {"frame": plots.frame(x.cpu().numpy(), run.target).tolist()}


def all_cells(config: Config) -> tuple[list[dict], Path]:
    """Those of the table, and the folder that keeps them."""
    cells = {
        "_".join(map(str, cell)): (*cell, config.seconds)
        for cell in product(config.objectives, config.targets, range(config.seeds))
    }
    folder = Path(config.output_dir) / f"{config.seconds:g}s"
    return run_cells(run_cell, cells, folder, config.jobs), folder


def table(cells: list[dict]) -> list[dict]:
    """A row for each objective and target: means over the seeds that did not fail, and the largest
    minus the smallest.
    """
    rows = []
    for objective, target in dict.fromkeys((c["objective"], c["target"]) for c in cells):
        group = [c for c in cells if (c["objective"], c["target"]) == (objective, target)]
        measured = [c for c in group if "distance" in c]
        distances = [c["distance"] for c in measured] or [math.nan]
        ratios = [c["distance"] / c["reference"] for c in measured] or [math.nan]
        modes = ""
        if any("modes" in c for c in measured):
            modes = f"{min(c['modes_found'] for c in measured)} of {measured[0]['modes']}"
        rows.append(
            {
                "objective": objective,
                "target": target,
                "distance": plots.headline(TARGETS[target]).upper(),
                "mean": float(np.mean(distances)),
                "spread": float(np.ptp(distances)),
                "over reference": float(np.mean(ratios)),
                "largest": float(np.max(ratios)),
                "modes, fewest": modes,
                "steps": round(np.mean([c["steps"] for c in group])),
                "seconds": float(np.mean([c["seconds"] for c in group])),
                "failed": sum(bool(c["failed"]) for c in group),
            }
        )
    return rows


def draw_fits(
    cells: list[dict], objectives: Sequence[str], targets: Sequence[str], path: Path
) -> None:
    """The first seed's fits: a row for each objective, a column for each target."""
    width = (WIDTH - 1.2) / len(targets)  # the heads of the rows take an inch
    size = WIDTH, 0.6 + len(objectives) * (HEIGHT * width + 0.04)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(objectives), len(targets), squeeze=False)
    for each in axes.flat:
        blank(each)
    for each, objective in zip(axes[:, 0], objectives):
        each.set_ylabel(objective, rotation=0, ha="right", va="center", fontsize=10)
    for each, target in zip(axes[0], targets):
        each.set_title(target, fontsize=10)
    for cell in cells:
        if cell["seed"] == 0 and cell["objective"] in objectives and cell["target"] in targets:
            place = objectives.index(cell["objective"]), targets.index(cell["target"])
            draw_fit(axes[place], cell, len(targets))
    fit_legend(figure)
    plots.save_small(figure, path)
    print(f"Written to {path}")


def blank(axes: Axes) -> None:
    """No ticks, and a frame that does not ask for attention."""
    axes.set(xticks=[], yticks=[], box_aspect=HEIGHT)
    axes.spines[:].set_color("0.85")


def draw_fit(axes: Axes, cell: dict, columns: int) -> None:
    """A cell's fit, in one of so many columns, and in a corner its distance over the reference."""
    words = "failed"
    if "distance" in cell:
        draw_samples(axes, TARGETS[cell["target"]], np.asarray(cell["frame"]), min(1, 4 / columns))
        ratio = cell["distance"] / cell["reference"]
        words = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    corner = {"xy": (1, 1), "xycoords": "axes fraction", "xytext": (-3, -3)}
    axes.annotate(
        words, **corner, textcoords="offset points", ha="right", va="top", fontsize=9, bbox=ground
    )


def draw_samples(axes: Axes, target: Target, frame: np.ndarray, size: float) -> None:
    """What :func:`generative.plots.frame` gave, beside the target; dots and circles of this size.

    The circles of modes are larger than the modes of ring and grid, which nobody would see.
    """
    if target.dim == 1:
        (window,) = target.window
        edges, x = np.linspace(*window, plots.BINS + 1), np.linspace(*window, 600)
        density = target.density(x)
        axes.stairs(frame, edges, fill=True, color=plots.GENERATED)
        axes.plot(x, density, color=plots.TARGET, linewidth=1.5)
        axes.set(xlim=window, ylim=(0, 1.6 * density.max()))
        return
    dots = {"marker": ".", "linestyle": "", "markeredgewidth": 0}
    if target.centres is not None:
        circles = {"marker": "o", "linestyle": "", "markersize": 8 * size, "markeredgewidth": 1.2}
        colours = {"markerfacecolor": "none", "markeredgecolor": plots.TARGET}
        axes.plot(*target.centres.T, **circles, **colours, zorder=3)
    elif target.density is not None:
        x = np.stack(np.meshgrid(*(np.linspace(*side, 300) for side in target.window)), -1)
        density = np.ma.masked_equal(target.density(x), 0)  # where there is none it stays white
        colours = {"cmap": "Oranges", "vmin": 0, "vmax": 2 * density.max()}
        axes.imshow(
            density, extent=np.ravel(target.window), origin="lower", aspect="auto", **colours
        )
    else:
        y = plots.frame(target.draw(plots.DOTS, torch.Generator().manual_seed(0)).numpy(), target)
        axes.plot(*y.T, **dots, color=plots.TARGET, markersize=4 * size, alpha=0.5)
    axes.plot(*frame.T, **dots, color=plots.GENERATED, markersize=3.5 * size, alpha=0.6)
    (left, right), (low, high) = target.window
    high += (1 - size) / 2 * (high - low)  # small panels need room for the number
    half = max(right - left, (high - low) / HEIGHT) / 2  # both units are equally long
    axes.set(xlim=(left + right) / 2 + half * SIDES, ylim=(low + high) / 2 + HEIGHT * half * SIDES)


def fit_legend(figure: Figure) -> None:
    """What the colours and the number in a panel mean, below all of them."""
    kinds = {"generated samples": plots.GENERATED, "target": plots.TARGET}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=name)
        for name, color in kinds.items()
    ]
    handles.append(Line2D([], [], linestyle="", label="number: distance over its reference"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    for objective, target in product(config.objectives, config.targets):
        settled(settings(objective, target, 0, config.seconds))
    cells, folder = all_cells(config)
    rows = table(cells)
    print(machine())
    show(rows)
    write_csv(rows, folder / "objectives.csv")
    draw_fits(cells, config.objectives, config.targets, folder / "objectives.png")
    few = [
        [name for name in names if name in run]
        for names, run in zip(EXCERPT, (config.objectives, config.targets))
    ]
    if all(few):
        draw_fits(cells, *few, folder / "excerpt.png")


if __name__ == "__main__":
    main()
