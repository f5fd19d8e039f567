"""What `ipot` makes of each target at its defaults: a figure and a table.

    python -m benchmarks.gallery
    python -m benchmarks.gallery --seeds 3 --jobs 2
    python -m benchmarks.gallery --targets ring grid --epochs 100

Every run trains from scratch on one thread. A run whose result is already in the output folder is
not repeated. On the line the distance is W1 to the law, and the reference that of the training set;
on the plane it is W2 to fresh samples, and the reference the two-sample distance. The smallest and
the largest mode are the shares of samples there, in units of what is due to a mode. The figure
shows the first seed.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from benchmarks.cells import run_cells
from benchmarks.objectives import WIDTH, blank, draw_fit, fit_legend, trained
from benchmarks.table import machine, show, write_csv
from generative import plots
from generative.process import unaffected
from generative.run_settings import settled
from generative.targets import TARGETS
from learning_demo import Config as Settings

COLUMNS = 4  # of the figure


@dataclass
class Config:
    """Settings of the gallery."""

    targets: tuple[str, ...] = (
        *("uniform", "gaussian", "mixture", "ring"),
        *("grid", "moons", "swiss-roll", "checkerboard"),
    )
    seeds: int = 1  # runs of each
    epochs: int = 1000  # training rounds of each run
    jobs: int = 1  # runs at the same time, each on one thread
    output_dir: str = "outputs/benchmarks/gallery"  # cells, table and figure


def settings(target: str, seed: int, epochs: int) -> Settings:
    """The defaults."""
    return Settings(objective="ipot", data_type=target, seed=seed, epochs=epochs, device="cpu")


@unaffected
def run_cell(target: str, seed: int, epochs: int) -> dict:
    """Train and measure."""
    return {"target": target, "seed": seed} | trained(settings(target, seed, epochs))


def table(cells: list[dict]) -> list[dict]:
    """A row for each run that did not fail."""
    return [
        {
            "target": cell["target"],
            "seed": cell["seed"],
            "": plots.headline(TARGETS[cell["target"]]).upper(),
            "distance": cell["distance"],
            "reference": cell["reference"],
            "ratio": cell["distance"] / cell["reference"],
            **shares(cell),
            "seconds": cell["seconds"],
        }
        for cell in cells
        if "distance" in cell
    ]


def shares(cell: dict) -> dict:
    """Those of the modes, where there are any, over the smallest and the largest due."""
    due = TARGETS[cell["target"]].shares
    if due is None:
        return {"smallest mode": "", "largest mode": ""}
    return {
        "smallest mode": cell["smallest_mode"] / float(due.min()),
        "largest mode": cell["largest_mode"] / float(due.max()),
    }


def draw(cells: list[dict], path: Path) -> None:
    """The fits of the first seed, the target's name above each."""
    cells = [cell for cell in cells if cell["seed"] == 0]
    rows = -(-len(cells) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.3 + 1.9 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, cell in zip(panels, cells):
        blank(axes)
        axes.set_title(cell["target"], fontsize=10)
        draw_fit(axes, cell, COLUMNS)
    for axes in panels[len(cells) :]:
        axes.set_axis_off()
    fit_legend(figure)
    plots.save_small(figure, path)
    print(f"Written to {path}")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    for target in config.targets:
        settled(settings(target, 0, config.epochs))
    folder = Path(config.output_dir) / f"{config.epochs}_epochs"
    cells = {
        f"{target}_{seed}": (target, seed, config.epochs)
        for target, seed in product(config.targets, range(config.seeds))
    }
    cells = run_cells(run_cell, cells, folder, config.jobs)
    rows = table(cells)
    print(machine())
    show(rows)
    write_csv(rows, folder / "gallery.csv")
    draw(cells, folder / "gallery.png")


if __name__ == "__main__":
    main()
