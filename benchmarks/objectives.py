"""Which objective to train a generator on: each on each target, for the same time.

    python -m benchmarks.objectives
    python -m benchmarks.objectives --objectives ipot --targets ring grid --seconds 120

Every cell of the table trains the same network (ot-cfm its velocity) from scratch for `seconds` of
wall-clock time on one thread, and is then measured. A cell that is in the output folder already is
not run again, so that a run that was stopped goes on where it was. On the line the distance is W1
to the law, its reference that of the training set; on the plane it is W2 to fresh samples, and the
reference the two-sample distance. The settings of the objectives that follow plans were tuned on
the mixture and on the grid, those of ot-cfm on the ring and on the grid. Those of the others are
their authors'.
"""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

from benchmarks.cells import run_cells
from benchmarks.table import machine, show, write_csv
from generative import plots
from generative.objectives import OBJECTIVES
from generative.process import unaffected
from generative.run_settings import settled
from generative.targets import TARGETS
from learning_demo import Config as Settings
from learning_demo import Training


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
    torch.set_num_threads(1)
    run = Training(*settled(settings(objective, target, seed, seconds)))
    found = {"objective": objective, "target": target, "seed": seed, "failed": ""}
    try:
        while run.done < 1:
            run.run_epoch()
            run.logged.clear()
    except ValueError as error:  # from the solver: samples are no longer finite
        found["failed"] = str(error)
    sample = run.sampler().sample
    x = sample(50000, seed + 3)
    found |= {"steps": run.epoch * run.config.steps_per_epoch, "seconds": round(run.spent, 1)}
    if not bool(x.isfinite().all()):
        found["failed"] = found["failed"] or "samples are not finite"
        return found
    metrics = run.metrics()
    found["distance"] = metrics[plots.headline(run.target)]
    found["reference"] = plots.reference_of(metrics, run.target)
    found |= {key: metrics[key] for key in ("modes", "modes_found") if key in metrics}
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


def draw_fits(config: Config, cells: list[dict], path: Path) -> None:
    """The first seed's fits: a row for each objective, a column for each target."""
    rows, columns = len(config.objectives), len(config.targets)
    figure = plt.figure(figsize=(2.6 * columns, 2.0 * rows), layout="constrained")
    panels = figure.subfigures(rows, columns, squeeze=False)
    for cell in cells:
        if cell["seed"] or "distance" not in cell:
            continue
        row = config.objectives.index(cell["objective"])
        column = config.targets.index(cell["target"])
        fit = plots.fit_plot(TARGETS[cell["target"]], panels[row, column])
        fit.show(np.asarray(cell["frame"]), "")
        (axes,) = panels[row, column].axes
        legend = axes.get_legend()
        handles = legend.legend_handles
        legend.remove()
        axes.set(xlabel="", ylabel="", xticks=[], yticks=[])
        ratio = cell["distance"] / cell["reference"]
        title = f"{cell['objective']}, {cell['target']}: {ratio:.1f}"
        axes.set_title(title, loc="left", fontsize=8)
    figure.suptitle(
        "Fits after equal time, and the distance to the target over its reference.\n"
        "The settings of ipot, ipot-exact and sinkhorn were tuned on mixture and grid, those of "
        "ot-cfm on ring and grid; the others' are their authors'.",
        fontsize=10,
    )
    labels = ["generated samples", "target"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    plots.save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    for objective, target in product(config.objectives, config.targets):
        settled(settings(objective, target, 0, config.seconds))
    cells, folder = all_cells(config)
    rows = table(cells)
    print(machine())
    show(rows)
    write_csv(rows, folder / "objectives.csv")
    draw_fits(config, cells, folder / "objectives.png")
    print(f"Written to {folder / 'objectives.png'}")


if __name__ == "__main__":
    main()
