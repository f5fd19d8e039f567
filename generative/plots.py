"""Figures of the training script."""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from generative.batches import stream
from generative.generators import Sampler
from generative.runs import written_whole
from generative.targets import Target

GENERATED, TARGET = "#4c9fd0", "#c2410c"
BINS = 80
DOTS = 1500
SIDE = 8  # images in a row and in a column of a figure
SIZE = (7, 4.2)  # inches
WIDTH = 85  # letters of a title
SPACING = 1.15  # of the epochs of an animation's frames


def new_figure() -> Figure:
    """An empty figure, which pyplot never sees."""
    return Figure(figsize=SIZE, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the path's suffix names the format."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


def save_small(
    figure: Figure, path: Path, fewer: Callable = lambda image: image.quantize(64)
) -> None:
    """Write a PNG with fewer colours than the figure has: dots take a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    with written_whole(path) as temporary, Image.open(drawn) as image:
        fewer(image.convert("RGB")).save(temporary, optimize=True)


def picture(figure: Figure) -> np.ndarray:
    """What a figure looks like, (height, width, 3), whatever draws it on the screen."""
    canvas = figure.canvas
    try:
        drawn = FigureCanvasAgg(figure)
        drawn.draw()
        return np.asarray(drawn.buffer_rgba())[..., :3].copy()
    finally:
        figure.set_canvas(canvas)


def save_gif(images: Sequence[Image.Image], durations: Sequence[int], path: Path) -> None:
    """Write pictures as a GIF that starts again at its end; durations in milliseconds."""
    first, *rest = images
    with written_whole(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=list(durations), loop=0)


def length_unit(target: Target) -> float:
    """The length that figures count in: 1, or a power of ten where numbers would be long."""
    if target.shape:
        return 1.0
    width = max(high - low for low, high in target.window)
    return 1.0 if 1e-2 <= width < 1e5 else 10.0 ** math.floor(math.log10(width))


def _in_figure(shown: np.ndarray, target: Target) -> np.ndarray:
    """What figures show of the target, in a figure's coordinates.

    matplotlib cannot draw numbers that are very small or very large.
    """
    return shown / length_unit(target)


def _window(target: Target) -> list[np.ndarray]:
    """The target's window, in a figure's coordinates."""
    return list(_in_figure(np.array(target.window), target))


def _labels(target: Target) -> list[str]:
    """Names of the coordinates, with what turns the data's units into a figure's coordinates."""
    if target.projection is not None:
        labels = ["first principal component", "second"]
    else:
        names = ["x"] if target.dim == 1 else ["x1", "x2"]
        origins = np.broadcast_to(target.origin, target.dim).tolist()
        numbers = (str(origin).removesuffix(".0") for origin in origins)
        labels = [
            f"({name} - {number})".replace("- -", "+ ") if number != "0" else name
            for name, number in zip(names, numbers)
        ]
    unit = length_unit(target)
    return labels if unit == 1 else [f"{label} / {unit:g}" for label in labels]


def frame(samples: np.ndarray, target: Target) -> np.ndarray:
    """What a figure shows of samples (n, dim) in standard units.

    On the line their density in equal bins over the target's window, shape (BINS,), where what lies
    outside the window counts in the total; otherwise the first ones on the plane, shape (DOTS, 2).
    """
    if target.shape:
        return pixels(samples[: SIDE**2], target)
    if target.dim > 1:
        return _in_figure(target.shown(samples[:DOTS]), target).round(6)
    shown = _in_figure(target.shown(samples), target)
    counts, edges = np.histogram(shown, bins=BINS, range=_window(target)[0])
    return counts / (len(samples) * np.diff(edges))


def fit_plot(target: Target, figure: Figure | SubFigure) -> "FitPlot":
    """The figure of the fit, in an empty figure: pyplot's to show it, or one of its own.

    It is laid out once, as this takes longer than to draw it.
    """
    kind = ImageFitPlot if target.shape else FitPlot if target.dim == 1 else PlaneFitPlot
    plot = kind(target, figure)
    if isinstance(figure, Figure):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return plot


class FitPlot:
    """The target's density and, behind it, the histogram of generated samples."""

    def __init__(self, target: Target, figure: Figure | SubFigure):
        self.figure, self._axes = figure, figure.subplots()
        (window,) = _window(target)
        edges = np.linspace(*window, BINS + 1)
        x = np.linspace(*window, 600)
        unit = length_unit(target)
        density = unit * target.density(unit * x)
        self._bars = self._axes.stairs(
            np.zeros(BINS), edges, fill=True, color=GENERATED, label="generated samples"
        )
        self._axes.plot(x, density, color=TARGET, linewidth=2, label="target density")
        self._axes.set(xlim=window, ylim=(0, 1.6 * density.max()))
        self._axes.set(xlabel=_labels(target)[0], ylabel="density")
        self._title = _long_title(figure)
        self._axes.legend(loc="upper right", frameon=False)
        self._axes.spines[["top", "right"]].set_visible(False)

    def show(self, frame: np.ndarray, title: str) -> None:
        """Set what :func:`frame` gave, and the title."""
        self._bars.set_data(values=frame)
        self._title.set_text(title)


class PlaneFitPlot(FitPlot):
    """Generated samples over the target: circles of 3 standard deviations about the modes of a
    mixture, its density, or samples where that has no closed form.
    """

    def __init__(self, target: Target, figure: Figure | SubFigure):
        self.figure, self._axes = figure, figure.subplots()
        horizontal, vertical = _window(target)
        if target.centres is not None:
            for centre, sd in zip(target.centres, target.sd):
                circle = Circle(
                    centre, 3 * sd, fill=False, edgecolor=TARGET, linewidth=1.5, zorder=3
                )
                self._axes.add_patch(circle)
        elif target.density is not None:
            x = np.stack(
                np.meshgrid(np.linspace(*horizontal, 300), np.linspace(*vertical, 300)), -1
            )
            extent = (*horizontal, *vertical)
            colours = {"cmap": "Oranges", "alpha": 0.8}
            self._axes.imshow(
                target.density(x) ** 0.5, extent=extent, origin="lower", aspect="auto", **colours
            )
        else:
            y = frame(target.draw(DOTS, torch.Generator().manual_seed(0)).numpy(), target)
            self._axes.plot(*y.T, ".", color=TARGET, markersize=2, alpha=0.4)
        (self._dots,) = self._axes.plot([], [], ".", color=GENERATED, markersize=3, alpha=0.3)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=color, label=name)
            for color, name in ((GENERATED, "generated samples"), (TARGET, "target"))
        ]
        self._axes.set(xlim=horizontal, ylim=vertical, aspect="equal")
        xlabel, ylabel = _labels(target)
        self._axes.set(xlabel=xlabel, ylabel=ylabel)
        self._title = _long_title(figure)
        self._axes.legend(handles=handles, loc="upper right", fontsize=8)

    def show(self, frame: np.ndarray, title: str) -> None:
        self._dots.set_data(*np.asarray(frame).T)
        self._title.set_text(title)


def _long_title(figure: Figure | SubFigure, lines: int = 1) -> Text:
    """A title that may be wider than square axes, and hold a file's name with dollar signs."""
    return figure.suptitle("\n".join(" " * lines), x=0.01, ha="left", fontsize=11, parse_math=False)


class ImageFitPlot(FitPlot):
    """Generated images, and beside them some of the held-out ones."""

    def __init__(self, target: Target, figure: Figure | SubFigure):
        self.figure = figure
        self._title = _long_title(figure, lines=2)
        generated, real = figure.subplots(1, 2)
        empty = np.zeros((SIDE**2, *target.images.shape), np.uint8)
        self._image = _draw_images(generated, empty, SIDE)
        _draw_images(real, target.images.held_out[: SIDE**2], SIDE)
        generated.set_title("generated", fontsize=10)
        real.set_title("held out", fontsize=10)

    def show(self, frame: np.ndarray, title: str) -> None:
        self._image.set_data(tiled(np.asarray(frame, dtype=np.uint8)))
        parts = title.split(", ")  # between which alone lines may break
        title = ", ".join(part.replace(" ", "\u00a0") for part in parts)
        self._title.set_text(textwrap.fill(title, WIDTH))


def _draw_images(axes: Axes, images: np.ndarray, columns: int) -> AxesImage:
    """Draw images (n, h, w, c) on a sheet of this many columns."""
    axes.set_axis_off()
    sheet = tiled(images, columns)
    return axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def pixels(rows: np.ndarray, target: Target) -> np.ndarray:
    """Images (n, h, w, c) of uint8 from rows (n, c h w) in standard units."""
    entries = np.clip(target.in_data_units(rows), 0, 255).round().astype(np.uint8)
    return entries.reshape(-1, *target.shape).transpose(0, 2, 3, 1)


def tiled(images: np.ndarray, columns: int = SIDE) -> np.ndarray:
    """Images (n, h, w, c) row by row on one white sheet, (height, width, c) or, if c is 1,
    (height, width).
    """
    gap, rows = max(1, images.shape[1] // 16), -(-len(images) // columns)
    framed = np.pad(images, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=255)
    _, height, width, channels = framed.shape
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[: len(framed)] = framed
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return sheet[..., 0] if channels == 1 else sheet


def last_figures(run: Any, sampler: Sampler) -> dict[str, Figure]:
    """Those of a training at its end, by name; all but the fit."""
    target, seed = run.target, run.config.seed
    figures = {"curves": curves(run.history, run.yardstick.reference, target)}
    if target.images:
        figures["nearest"] = nearest(sampler, run.data, target, seed)
        figures["walk"] = walk(sampler, target, seed)
    elif target.dim == sampler.noise.dim == 2:
        figures["map"] = noise_map(sampler, target)
    return figures


@torch.no_grad()
def noise_map(sampler: Sampler, target: Target) -> Figure:
    """Where a generator of points on the plane takes a square grid in its noise."""
    lines = sampler.noise.square_grid().to(sampler.mean.device)
    lines = sampler(lines.flatten(0, 1)).view(lines.shape).cpu().numpy()
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    half = len(lines) // 2
    for k, line in enumerate(_in_figure(target.shown(lines), target)):
        axes.plot(*line.T, linewidth=0.8, color=GENERATED if k < half else TARGET, alpha=0.7)
    (xlim, ylim), (xlabel, ylabel) = _window(target), _labels(target)
    axes.set(xlim=xlim, ylim=ylim, xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.set_title("A square grid in the noise, and where the generator takes it", loc="left")
    return figure


def nearest(sampler: Sampler, data: Tensor, target: Target, seed: int) -> Figure:
    """Ten generated images, and below each of them the five nearest to it in the training set."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    x = sampler.sample(10, seed)
    found = torch.cdist(x.float(), data).topk(5, largest=False).indices
    rows = torch.cat((x[:, None].float(), data[found]), 1).transpose(0, 1)
    _sheet(figure, rows, target)
    title = "Generated images, and below each the nearest training images"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


@torch.no_grad()
def walk(sampler: Sampler, target: Target, seed: int) -> Figure:
    """Images on eight walks through the noise, from one draw of it to another."""
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    noise = sampler.noise.walks(8, 11, stream(seed, 8, sampler.mean.device))
    images = sampler(noise.flatten(0, 1)).unflatten(0, noise.shape[:2])
    _sheet(figure, images, target)
    title = "Eight walks through the noise, from left to right"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _sheet(figure: Figure, rows: Tensor, target: Target) -> None:
    """Draw images (rows, columns, c h w), in standard units, as they lie."""
    axes = figure.subplots()
    images = pixels(rows.flatten(0, 1).cpu().numpy(), target)
    _draw_images(axes, images, rows.shape[1])


def headline(target: Target) -> str:
    """The distance that titles and curves name first: w1 on the line, w2 on the plane, the Frechet
    distance of images.
    """
    return "frechet" if target.images else "w1" if target.dim == 1 else "w2"


def reference_of(found: dict, target: Target) -> float:
    """What that distance compares with: the training set's, or the two-sample distance."""
    name = headline(target)
    suffix = "_real" if target.images else "_data" if name + "_data" in found else "_two_sample"
    return found[name + suffix]


def verdict(found: dict, target: Target) -> str:
    """A distance and what it compares with, in words; both are in the data's units."""
    name, level = headline(target), f"{reference_of(found, target):.3g}"
    if target.images:
        words = [f"Frechet distance {found[name]:.3g} (real images {level})"]
        for share in ("precision", "recall", "coverage"):
            if share in found:
                words.append(f"{share} {found[share]:.2f} ({found[share + '_real']:.2f})")
        return ", ".join(words)
    distance = f"{name.upper()} {found[name]:.3g}"
    if name + "_data" in found:
        return f"{distance} to the law (its training set {level})"
    sd = found[name + "_two_sample_sd"]
    return f"{distance} to fresh samples (two-sample distance {level} ± {sd:.2g})"


def curves(history: Sequence[dict], reference: dict, target: Target) -> Figure:
    """Loss and distances to the target against epochs; `history` as in history.csv, `reference` as
    that of a yardstick.
    """
    unit, name = length_unit(target), headline(target)
    panels = 3 if target.images else 2
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    left, *rest = figure.subplots(1, panels)
    trained = [row for row in history if "loss" in row]
    losses = [row["loss"] for row in trained]
    left.plot([row["epoch"] for row in trained], losses, color=GENERATED)
    left.set_yscale(_scale(losses))  # a critic's may be negative
    left.set(title="Training loss", ylabel="loss in standard units")
    if target.images:
        first, last = rest
        _distances(first, history, {"frechet": "of generated images"}, 1.0)
        level = reference["frechet_real"]
        first.axhline(level, color=TARGET, linestyle=":", label="of training images")
        first.set(title="Frechet distance to held-out images", ylabel="in features")
        name = "w2"
    else:
        (last,) = rest
    to_law = name + "_data" in reference
    to = "to the law" if to_law else "to held-out images" if target.images else "to fresh samples"
    names = [name, "w2" if name == "w1" else "w1"]
    _distances(last, history, {name: f"{name.upper()} {to}" for name in names}, unit)
    level = reference[name + ("_data" if to_law else "_two_sample")] / unit
    label = f"{name.upper()} of the training set" if to_law else f"two-sample {name.upper()}"
    last.axhline(level, color=TARGET, linestyle=":", label=label)
    if not to_law:
        sd = reference[name + "_two_sample_sd"] / unit
        last.axhspan(level - sd, level + sd, color=TARGET, alpha=0.15, linewidth=0)
    last.set(title="W2 of pixels" if target.images else "Distance to the target")
    units = "grey levels" if target.images else "units of " + ("x" if unit == 1 else f"{unit:g}")
    last.set_ylabel(f"distance in {units}")
    for axes in (left, *rest):
        axes.set_xscale("symlog", linthresh=1)  # looks are spaced geometrically at first
        axes.set_xlim(0, max(1, history[-1]["epoch"]))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in rest:
        axes.set_yscale(_scale([y for line in axes.lines for y in line.get_ydata()]))
        axes.legend(frameon=False)
    return figure


def _distances(axes: Axes, history: Sequence[dict], labels: dict[str, str], unit: float) -> None:
    """Draw the columns of a history that are there; the first is the one to look at."""
    epochs = [row["epoch"] for row in history]
    for name, color in zip(labels, (GENERATED, "0.6")):
        if name in history[0]:
            distances = [row[name] / unit for row in history]
            axes.plot(epochs, distances, color=color, label=labels[name])


def _scale(values: Sequence[float]) -> str:
    """Of an axis."""
    return "log" if len(values) and min(values) > 0 else "linear"


def save_animation(
    frames: Sequence[np.ndarray],
    titles: Sequence[str],
    epochs: Sequence[int],
    target: Target,
    path: Path,
) -> None:
    """A GIF of the fit, 0.2 seconds for each frame and two for the last one.

    Its frames are spaced geometrically, as a generator learns most in the first epochs.
    """
    figure = Figure(figsize=SIZE, dpi=70, layout="constrained")
    plot = fit_plot(target, figure)
    images = []
    for k in geometric(epochs):
        plot.show(frames[k], titles[k])
        images.append(Image.fromarray(picture(figure)).quantize(32))
    save_gif(images, [200] * (len(images) - 1) + [2000], path)


def geometric(epochs: Sequence[int]) -> list[int]:
    """Places of the first and the last of rising numbers, and of some between that grow by a factor
    of SPACING or more.
    """
    kept = []
    for place, epoch in enumerate(epochs):
        if not kept or epoch >= SPACING * epochs[kept[-1]]:
            kept.append(place)
    last = len(epochs) - 1
    return kept if kept[-1] == last else [*kept, last]
