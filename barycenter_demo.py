"""Barycenters of densities, images and shapes, and colour transfer, IPOT beside Sinkhorn.

    python barycenter_demo.py                      five panels, under two minutes
    python barycenter_demo.py --panels line        one of line, images, shapes, clouds and colours

The barycenter q of histograms p_k minimises sum_k weights_k W(q, p_k). Sinkhorn's is blurred by
its regularisation, the debiased one less, IPOT's is not.

line     the pair of the published IPOT demo, with what each method's objective is above the
         proven optimum
images   nested ellipses and handwritten digits on a grid of pixels, without a cost matrix
shapes   what lies between four shapes: one call for all mixtures of them
clouds   the same for clouds of points, whose barycenters are points that move
colours  one picture in the colours of another, by plans for each channel and for whole colours
"""

import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import ot
import tyro
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree
from sklearn.datasets import load_digits, load_sample_images
from tqdm import tqdm

import exactot
import ipot
from generative.display import has_window
from generative.plots import save_gif, save_small
from generative.runs import new_run_folder

WIDTH = 8.3  # inches; the README shows figures 830 pixels wide
SHAPES = ("disc", "ring", "heart", "cross")


@dataclass
class Config:
    """Settings; edit them here or override them on the command line."""

    panels: tuple[str, ...] = ("line", "images", "shapes", "clouds", "colours")  # which to make
    weight: float = 0.5  # line: weight of the second histogram; the first one has the rest
    bins: int = 100  # line: bins of the histograms
    beta: float = 0.1  # line: step of Algorithm 2, in units of the largest cost
    iterations: int = 1000  # line: iterations of Algorithm 2; barycenter() takes a tenth
    reg: float = 0.001  # line: regularisation of both Sinkhorns, in the same units
    size: int = 64  # images and shapes: pixels on a side
    ellipses: int = 30  # images: pictures of nested ellipses
    digits: int = 12  # images: pictures of each handwritten digit
    image_reg: float = 0.004  # images: Sinkhorn's regularisation, for a side of length 1
    debiased_reg: float = 0.01  # images: debiased Sinkhorn's; where smaller, POT's underflows
    image_iterations: int = 120  # images and shapes: IPOT's iterations; Sinkhorn's take 500
    mixtures: int = 7  # shapes: mixtures along a side of the square
    points: int = 400  # clouds: points of each
    pixels: int = 1500  # colours: pixels of each picture that the plans are made for
    colour_reg: float = 0.01  # colours: Sinkhorn's regularisation, for channels from 0 to 1
    seed: int = 0  # of ellipses, places of digits, clouds and choice of pixels
    output_dir: str = "outputs"  # a folder of its own is made in here
    show: bool = True  # show the figures where there is a display


# ------------------------------------------------------------------------------------------ line


def published_pair(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms (bins, 2), each of mass 1, and the cost (bins, bins) with largest entry 1."""
    x = np.arange(bins) * 100 / bins

    def bump(mean: float, sd: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * sd**2))

    A = np.stack([bump(20, 5) + bump(40, 5), bump(60, 8)], axis=1)
    M = (x[:, None] - x[None, :]) ** 2
    return A / A.sum(0), M / M.max()


def line_barycenters(
    A: np.ndarray, M: np.ndarray, config: Config
) -> dict[str, tuple[np.ndarray, float]]:
    """For each method the barycenter (bins,), of mass 1, and the seconds it took."""
    weights = np.array([1 - config.weight, config.weight])
    reg, few = config.reg, max(config.iterations // 10, 1)
    methods = {
        "L2 (mean)": lambda: A @ weights,
        f"Sinkhorn, reg {reg:g}": lambda: ot.bregman.barycenter(
            A, M, reg, weights, method="sinkhorn_log", numItermax=2000, warn=False
        ),
        f"debiased Sinkhorn, reg {reg:g}": lambda: ot.bregman.barycenter_debiased(
            A, M, reg, weights=weights, method="sinkhorn_log", numItermax=2000, warn=False
        ),
        f"IPOT-WB, beta {config.beta:g}, {config.iterations} iterations": lambda: (
            ipot.ipot_barycenter(A, M, config.beta, weights, config.iterations)
        ),
        f"exactot.barycenter, {few} iterations": lambda: (
            exactot.barycenter(A, M, weights, max_iter=few).histogram
        ),
        "exactot.barycenter, exact": lambda: (
            exactot.barycenter(A, M, weights, exact=True).histogram
        ),
    }
    found = {}
    for name, method in tqdm(methods.items(), desc="line", leave=False):
        started = time.perf_counter()
        q = np.maximum(method(), 0)
        found[name] = (q / q.sum(), time.perf_counter() - started)
    return found


def objective(q: np.ndarray, A: np.ndarray, M: np.ndarray, weights: np.ndarray) -> float:
    """sum_k weights_k W(q, p_k), by POT's linear program."""
    return sum(w * ot.emd2(q, p / p.sum(), M, numItermax=10**6) for w, p in zip(weights, A.T))


def line_table(found: dict, A: np.ndarray, M: np.ndarray, config: Config) -> str:
    """Objective of each method, and how far above the proven lower bound it is, relative to it."""
    weights = np.array([1 - config.weight, config.weight])
    bound = float(exactot.barycenter(A, M, weights, exact=True).lower_bound)
    rows = [f"{'barycenter':40s} objective   certified gap   seconds"]
    for name, (q, seconds) in found.items():
        value = objective(q, A, M, weights)
        gap = max(value / bound - 1, 0.0)
        rows.append(f"{name:40s} {value:.6f}    {gap:13.1e}   {seconds:7.3f}")
    return "\n".join(rows)


def line_figure(found: dict, A: np.ndarray) -> Figure:
    """The inputs above; the barycenters below, magnified where Sinkhorn's is farthest off."""
    x = np.arange(len(A)) * 100 / len(A)
    fig, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.6), sharex=True, height_ratios=(1, 3), layout="constrained"
    )
    for p, color, name in zip(A.T, ("#475569", "#94a3b8"), ("first input", "second input")):
        top.fill_between(x, p, color=color, alpha=0.6, linewidth=0)
        top.text(x @ p, 0.002, name, ha="center")
    closer = bottom.inset_axes((0.68, 0.42, 0.32, 0.58))
    *curves, (exact, (filled, _)) = found.items()
    colors, styles = ("#94a3b8", "#ea580c", "#16a34a", "#5ea9dc", "#0b3c5d"), "-. - -- - :"
    for panel in (bottom, closer):
        for (name, (q, _)), color, style in zip(curves, colors, styles.split()):
            panel.plot(x, q, style, color=color, linewidth=2, label=name)
        panel.fill_between(x, filled, color="0.85", linewidth=0, label=exact, zorder=0)
    for panel in (top, bottom):
        panel.set_ylabel("mass in a bin")
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    bottom.set(xlim=(0, 100), xlabel="position")
    sinkhorn, ours = curves[1][1][0], curves[-1][1][0]
    k = np.argmax(abs(sinkhorn - ours))
    closer.set(
        xlim=(x[k] - 4, x[k] + 4), ylim=(0.75 * ours[k], 1.4 * ours[k]), xticks=[], yticks=[]
    )
    bottom.indicate_inset_zoom(closer, edgecolor="black")
    named = bottom.get_legend_handles_labels()
    fig.legend(*named, loc="outside lower center", ncols=2, frameon=False)
    return fig


def make_line(config: Config, folder: Path) -> None:
    A, M = published_pair(config.bins)
    found = line_barycenters(A, M, config)
    print(line_table(found, A, M, config))
    save_small(line_figure(found, A), folder / "barycenters.png")


# ---------------------------------------------------------------------------------------- images


def nested_ellipses(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures (size, size, count) of nested ellipses of random centre, axes and rotation."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    pictures = np.zeros((size, size, count))
    for k in range(count):
        cx, cy = rng.uniform(-0.12, 0.12, 2)
        angle = rng.uniform(0, np.pi)
        u = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
        v = np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)
        for smallest, largest in ((0.2, 0.35), (0.07, 0.15)):
            a, b = rng.uniform(smallest, largest, 2)
            outside = (np.hypot(u / a, v / b) - 1) * min(a, b)  # about the distance to the curve
            pictures[..., k] += np.exp(-((outside / 0.012) ** 2))
    return pictures


def scattered_digits(digit: int, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures (size, size, count) of a handwritten digit, each scaled and shifted at random."""
    data = load_digits()
    chosen = rng.choice(np.flatnonzero(data.target == digit), count, replace=False)
    pictures = np.zeros((size, size, count))
    for k, number in enumerate(chosen):
        side = int(size * rng.uniform(0.4, 0.65))
        scaled = ndimage.zoom(
            data.images[number], side / 8, order=3, grid_mode=True, mode="nearest"
        )
        row, column = rng.integers(0, size - len(scaled) + 1, 2)
        place = slice(row, row + len(scaled)), slice(column, column + len(scaled))
        pictures[(*place, k)] = scaled.clip(0) * (scaled > 2)
    return pictures


def image_barycenters(A: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """Barycenters (size, size) of pictures (size, size, K) by each method."""
    pictures = np.ascontiguousarray(np.moveaxis(A / A.sum((0, 1)), -1, 0))
    options = {"numItermax": 500, "warn": False}
    found = {
        "Sinkhorn": ot.bregman.convolutional_barycenter2d(pictures, config.image_reg, **options),
        "debiased": ot.bregman.convolutional_barycenter2d_debiased(
            pictures, config.debiased_reg, **options
        ),
        "IPOT": exactot.barycenter(
            A, grid=1 / (config.size - 1), max_iter=config.image_iterations
        ).histogram,
    }
    return {name: q / q.sum() for name, q in found.items()}


def sharpness(q: np.ndarray) -> tuple[float, float]:
    """Entropy in nats, smaller is sharper; total variation times the side, larger is sharper."""
    mass = q[q > 0]
    variation = abs(np.diff(q, axis=0)).sum() + abs(np.diff(q, axis=1)).sum()
    return float(-(mass * np.log(mass)).sum()), float(len(q) * variation)


def image_table(found: dict[str, dict[str, np.ndarray]]) -> str:
    rows = [f"{'pictures':12s} {'barycenter':12s} entropy   total variation"]
    for title, barycenters in found.items():
        for name, q in barycenters.items():
            entropy, variation = sharpness(q)
            rows.append(f"{title:12s} {name:12s} {entropy:7.3f}   {variation:15.1f}")
    return "\n".join(rows)


def image_figure(pictures: dict[str, np.ndarray], found: dict) -> Figure:
    """A column for each kind of pictures: one of them, and its barycenters."""
    shown = [{"one input": A[..., 0], **found[title]} for title, A in pictures.items()]
    fig, panels = plt.subplots(4, len(shown), figsize=(WIDTH, 3.4), layout="constrained")
    for column, title, images in zip(panels.T, pictures, shown):
        column[0].set_title(title, fontsize=10)
        for axes, image in zip(column, images.values()):
            axes.imshow(image, cmap="gray_r")
            axes.set(xticks=[], yticks=[])
    for axes, name in zip(panels[:, 0], shown[0]):
        axes.set_ylabel(name)
    return fig


def make_images(config: Config, folder: Path) -> None:
    rng = np.random.default_rng(config.seed)
    pictures = {"ellipses": nested_ellipses(config.ellipses, config.size, rng)}
    for k in range(10):
        pictures[f"digit {k}"] = scattered_digits(k, config.digits, config.size, rng)
    progress = tqdm(pictures.items(), desc="images", leave=False)
    found = {title: image_barycenters(A, config) for title, A in progress}
    print(image_table(found))
    save_small(image_figure(pictures, found), folder / "images.png")


# ---------------------------------------------------------------------------------------- shapes


def four_shapes(size: int) -> np.ndarray:
    """Pictures (size, size, 4) of a disc, a ring, a heart and a cross, softened at the edge."""
    y, x = -(np.mgrid[:size, :size] / (size - 1) - 0.5) * [[[2.6]], [[-2.6]]]
    radius = np.hypot(x, y)
    heart = (x**2 + (y + 0.1) ** 2 - 0.6) ** 3 - 1.6 * x**2 * (y + 0.1) ** 3
    cross = (np.minimum(abs(x), abs(y)) < 0.25) & (np.maximum(abs(x), abs(y)) < 0.95)
    shapes = (radius < 0.85, (radius < 1) & (radius > 0.62), heart < 0, cross)
    return np.stack([ndimage.gaussian_filter(shape.astype(float), 0.6) for shape in shapes], -1)


def corner_weights(count: int) -> np.ndarray:
    """Weights (count, count, 4) of the corners, bilinear over a square."""
    t = np.linspace(0, 1, count)
    side = np.stack([1 - t, t], 1)
    return (side[:, None, :, None] * side[None, :, None, :]).reshape(count, count, 4)


def around(count: int) -> Iterator[tuple[int, int]]:
    """The places on the border of a square, clockwise."""
    last = count - 1
    yield from ((0, k) for k in range(last))
    yield from ((k, last) for k in range(last))
    yield from ((last, last - k) for k in range(last))
    yield from ((last - k, 0) for k in range(last))


def make_shapes(config: Config, folder: Path) -> None:
    A, weights = four_shapes(config.size), corner_weights(config.mixtures)
    between = np.stack(
        [
            exactot.barycenter(
                A, weights=row, grid=1 / (config.size - 1), max_iter=config.image_iterations
            ).histogram
            for row in tqdm(weights, desc="shapes", leave=False)
        ]
    )
    brightness = between / between.max((-2, -1), keepdims=True)
    fig, axes = plt.subplots(figsize=(WIDTH, WIDTH), layout="constrained")
    axes.imshow(np.concatenate(np.concatenate(brightness, 1), 1), cmap="magma")
    places = config.size * (np.arange(config.mixtures) + 0.5)
    shares = [f"{share:.0%}" for share in np.linspace(0, 1, config.mixtures)]
    axes.set_xticks(places, shares)
    axes.set_yticks(places, shares)
    axes.set(
        xlabel="share of ring (above), cross (below)", ylabel="share of heart (left), cross (right)"
    )
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    save_small(fig, folder / "shapes.png")

    palette = plt.get_cmap("magma")(np.arange(64) / 63, bytes=True)[:, :3]
    frames = []
    for place in around(config.mixtures):
        frame = Image.fromarray((63 * brightness[place]).astype(np.uint8))
        frames.append(frame.resize((256, 256), Image.Resampling.BILINEAR))
        frames[-1].putpalette(palette.tobytes())
    durations = [600 if k % (config.mixtures - 1) == 0 else 120 for k in range(len(frames))]
    save_gif(frames, durations, folder / "shapes.gif")


# ---------------------------------------------------------------------------------------- clouds


def shape_clouds(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A cloud (count, 2) drawn from each of the four shapes, on the unit square."""
    size = 128
    shapes = np.moveaxis(four_shapes(size), -1, 0)
    clouds = []
    for shape in shapes:
        pixel = rng.choice(size**2, count, p=shape.ravel() / shape.sum())
        row, column = np.divmod(pixel, size) + rng.uniform(size=(2, count))
        clouds.append(np.stack((column, size - row), 1) / size)
    return clouds


def corner_path(corners: int, between: int) -> np.ndarray:
    """Weights from the first corner to the last by way of all others, `between` steps a leg."""
    place = np.linspace(0, corners - 1, between * (corners - 1) + 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(corners)), 0)


def make_clouds(config: Config, folder: Path) -> None:
    clouds = shape_clouds(config.points, np.random.default_rng(config.seed))
    path, points, frames = corner_path(len(clouds), 3), clouds[0], []
    for weights in tqdm(path, desc="clouds", leave=False):
        # Each starts from the one before, so that every point keeps its colour.
        points = exactot.free_support_barycenter(clouds, init=points, weights=weights).points
        frames.append(points)
    colour = np.arctan2(*(clouds[0] - 0.5).T)
    fig, panels = plt.subplots(3, 4, figsize=(WIDTH, 6.4), layout="constrained")
    for leg, row in enumerate(panels):
        row[0].set_ylabel(f"{SHAPES[leg]} + {SHAPES[leg + 1]}")
        for axes, frame in zip(row, frames[3 * leg :]):
            axes.scatter(*frame.T, c=colour, cmap="hsv", s=6, linewidths=0)
            axes.set(xlim=(0.08, 0.92), ylim=(0.08, 0.92), aspect="equal", xticks=[], yticks=[])
    for axes, share in zip(panels[0], np.linspace(0, 1, 4)):
        axes.set_title(f"{1 - share:.0%} + {share:.0%}", fontsize=10)
    save_small(fig, folder / "clouds.png")


# --------------------------------------------------------------------------------------- colours


def sample_pictures() -> tuple[np.ndarray, np.ndarray]:
    """A temple in China and a flower, (height, width, 3), channels from 0 to 1."""
    china, flower = load_sample_images().images
    return china / 255, flower / 255


def by_channel(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Each channel of the pixels (N, 3) given the distribution of the target's (M, 3).

    A plan between points on a line is monotone; to all pixels at once, not to a sample.
    """
    result = np.empty_like(source)
    for k in range(3):
        values, inverse = np.unique(source[:, k], return_inverse=True)
        other, counts = np.unique(target[:, k], return_counts=True)
        plan = exactot.solve_sample(
            values[:, None],
            other[:, None],
            np.bincount(inverse) / len(source),
            counts / len(target),
        ).sparse_plan
        result[:, k] = ((plan @ other) / plan.sum(1))[inverse]
    return result


def by_colour(
    source: np.ndarray, target: np.ndarray, plan: Callable, count: int, seed: int
) -> np.ndarray:
    """The pixels (N, 3) moved as the nearest of a sample is moved by its plan, on average."""
    rng = np.random.default_rng(seed)
    x = source[rng.choice(len(source), count, replace=False)]
    y = target[rng.choice(len(target), count, replace=False)]
    P = plan(x, y)
    shift = (P @ y) / P.sum(1, keepdims=True) - x
    distance, nearest = cKDTree(x).query(source, k=4)
    nearness = 1 / (distance + 1e-3)
    nearness /= nearness.sum(1, keepdims=True)
    return (source + np.einsum("ij,ijk->ik", nearness, shift[nearest])).clip(0, 1)


def make_colours(config: Config, folder: Path) -> None:
    def exact(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return exactot.solve_sample(x, y).plan

    def entropic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        uniform = np.full(len(x), 1 / len(x))
        return ot.sinkhorn(uniform, uniform, ot.dist(x, y), config.colour_reg, warn=False)

    sample = config.pixels, config.seed  # the same pixels for every method
    methods = {
        "IPOT, each channel": by_channel,
        "IPOT, RGB": lambda x, y: by_colour(x, y, exact, *sample),
        f"Sinkhorn, RGB, reg {config.colour_reg:g}": lambda x, y: by_colour(
            x, y, entropic, *sample
        ),
    }
    fig, panels = plt.subplots(2, 4, figsize=(WIDTH, 3.05), layout="constrained")
    pictures = sample_pictures()
    for row, subject, source, target in zip(panels, ("temple", "flower"), pictures, pictures[::-1]):
        results = {"original": source}
        for name, method in tqdm(methods.items(), desc="colours", leave=False):
            results[name] = method(source.reshape(-1, 3), target.reshape(-1, 3))
        for axes, result in zip(row, results.values()):
            axes.imshow(result.reshape(source.shape))
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(subject)
    for axes, name in zip(panels[0], results):
        axes.set_title(name, fontsize=10)
    # A palette would show.
    save_small(fig, folder / "colours.png", lambda x: x.point(lambda v: 5 * round(v / 5)))


# ------------------------------------------------------------------------------------------- run


PANELS = {
    "line": make_line,
    "images": make_images,
    "shapes": make_shapes,
    "clouds": make_clouds,
    "colours": make_colours,
}


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises
    ------
    ValueError
        With the field, what it got and what it accepts.
    """
    unknown = [name for name in config.panels if name not in PANELS]
    if unknown or not config.panels:
        raise ValueError(f"panels: got {config.panels}; accepts {', '.join(PANELS)}")
    if not 0 < config.weight < 1:
        raise ValueError(f"weight: got {config.weight}; accepts numbers between 0 and 1")
    for name in ("beta", "reg", "image_reg", "debiased_reg", "colour_reg"):
        if not 0 < getattr(config, name) < float("inf"):
            raise ValueError(f"{name}: got {getattr(config, name)}; accepts numbers above 0")
    lowest = {"iterations": 1, "bins": 10, "size": 16, "ellipses": 3, "digits": 1}
    lowest |= {"image_iterations": 1, "mixtures": 2, "points": 2, "pixels": 10, "seed": 0}
    for name, low in lowest.items():
        if getattr(config, name) < low:
            raise ValueError(f"{name}: got {getattr(config, name)}; accepts integers from {low} up")
    if config.digits > 174:
        raise ValueError(f"digits: got {config.digits}; accepts integers up to 174")


def run(config: Config) -> Path:
    """Print the tables, make the figures in a new folder and return the folder."""
    check(config)
    folder = new_run_folder(config.output_dir, "barycenter")
    print(f"Writing to {folder}")
    for name in config.panels:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="ot")  # of peers that have not converged
            PANELS[name](config, folder)
    print("See " + ", ".join(str(path) for path in sorted(folder.iterdir())))
    return folder


def main() -> None:
    config = tyro.cli(Config, description=textwrap.indent(__doc__, " "))  # tyro keeps such lines
    try:
        run(config)
    except ValueError as error:
        sys.exit(f"barycenter_demo.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped")
    if config.show and has_window():
        plt.show()


if __name__ == "__main__":
    main()
