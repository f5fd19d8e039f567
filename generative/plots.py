"""Figures of the training script."""

import math
from collections.abc import Sequence
from pathlib import Path

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

from generative.runs import written_whole
from generative.targets import Target

GENERATED, TARGET = "#4c9fd0", "#c2410c"
BINS = 80
DOTS = 1500
SIDE = 8  # images in a row and in a column of a figure
SIZE = (7, 4.2)  # inches


def new_figure() -> Figure:
    """An empty figure, which pyplot never sees."""
    return Figure(figsize=SIZE, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the path's suffix names the format."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


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
                circle = Circle(centre, 3 * sd, fill=False, edgecolor=TARGET, zorder=3)
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


def _long_title(figure: Figure | SubFigure) -> Text:
    """A title that may be wider than square axes, and hold a file's name with dollar signs."""
    return figure.suptitle(" ", x=0.01, ha="left", fontsize=11, parse_math=False)


class ImageFitPlot(FitPlot):
    """Generated images, and beside them some of the held-out ones."""

    def __init__(self, target: Target, figure: Figure | SubFigure):
        self.figure = figure
        self._title = _long_title(figure)
        generated, real = figure.subplots(1, 2)
        empty = np.zeros((SIDE**2, *target.images.shape), np.uint8)
        self._image = self._draw(generated, empty, "generated")
        self._draw(real, target.images.held_out[: SIDE**2], "held out")

    @staticmethod
    def _draw(axes: Axes, images: np.ndarray, name: str) -> AxesImage:
        axes.set_axis_off()
        axes.set_title(name, fontsize=10)
        return axes.imshow(tiled(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")

    def show(self, frame: np.ndarray, title: str) -> None:
        self._image.set_data(tiled(np.asarray(frame, dtype=np.uint8)))
        self._title.set_text(title)


def pixels(rows: np.ndarray, target: Target) -> np.ndarray:
    """Images (n, h, w, c) of uint8 from rows (n, c h w) in standard units."""
    entries = np.clip(target.in_data_units(rows), 0, 255).round().astype(np.uint8)
    return entries.reshape(-1, *target.shape).transpose(0, 2, 3, 1)


def tiled(images: np.ndarray) -> np.ndarray:
    """The first SIDE^2 images (n, h, w, c) on one white sheet, (height, width, c) or, if c is 1,
    (height, width).
    """
    images = images[: SIDE**2]
    gap = max(1, images.shape[1] // 16)
    framed = np.pad(images, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=255)
    _, height, width, channels = framed.shape
    sheet = np.full((SIDE**2, height, width, channels), 255, np.uint8)
    sheet[: len(framed)] = framed
    sheet = sheet.reshape(SIDE, SIDE, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(SIDE * height, SIDE * width, channels)
    return sheet[..., 0] if channels == 1 else sheet


def noise_map(lines: np.ndarray, target: Target) -> Figure:
    """Where a generator takes a square grid in its noise; lines (count, points, 2), mapped, in
    standard units.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    half = len(lines) // 2
    for k, line in enumerate(_in_figure(target.shown(lines), target)):
        axes.plot(*line.T, linewidth=0.8, color=GENERATED if k < half else TARGET, alpha=0.7)
    (xlim, ylim), (xlabel, ylabel) = _window(target), _labels(target)
    axes.set(xlim=xlim, ylim=ylim, xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.set_title("A square grid in the noise, and where the generator takes it", loc="left")
    return figure


def headline(target: Target) -> str:
    """The distance that titles and curves name first: w1 on the line, w2 elsewhere."""
    return "w1" if target.dim == 1 else "w2"


def reference_of(found: dict, target: Target) -> float:
    """What that distance compares with: the training set's, or the two-sample distance."""
    name = headline(target)
    return found[name + ("_data" if name + "_data" in found else "_two_sample")]


def verdict(found: dict, target: Target) -> str:
    """A distance and what it compares with, in words; both are in the data's units."""
    name, level = headline(target), f"{reference_of(found, target):.3g}"
    distance = f"{name.upper()} {found[name]:.3g}"
    if name + "_data" in found:
        return f"{distance} to the law (its training set {level})"
    sd = found[name + "_two_sample_sd"]
    return f"{distance} to fresh samples (two-sample distance {level} ± {sd:.2g})"


def curves(history: Sequence[dict], reference: dict, target: Target) -> Figure:
    """Loss and Wasserstein distances against epochs; `history` as in history.csv, `reference` as
    that of a :class:`generative.metrics.Yardstick`.
    """
    unit, name = length_unit(target), headline(target)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    trained = [row for row in history if "loss" in row]
    losses = [row["loss"] for row in trained]
    left.plot([row["epoch"] for row in trained], losses, color=GENERATED)
    left.set_yscale(_scale(losses))  # a critic's may be negative
    left.set(title="Training loss", ylabel="loss in standard units")
    epochs, to_law = [row["epoch"] for row in history], name + "_data" in reference
    to = "to the law" if to_law else "to fresh samples"
    drawn = []
    for other, color in ((name, GENERATED), ("w2" if name == "w1" else "w1", "0.6")):
        if other not in history[0]:
            continue
        distances = [row[other] / unit for row in history]
        drawn += distances
        right.plot(epochs, distances, color=color, label=f"{other.upper()} {to}")
    level = reference_of(reference, target) / unit
    label = f"{name.upper()} of the training set" if to_law else f"two-sample {name.upper()}"
    right.axhline(level, color=TARGET, linestyle=":", label=label)
    if not to_law:
        sd = reference[name + "_two_sample_sd"] / unit
        right.axhspan(level - sd, level + sd, color=TARGET, alpha=0.15, linewidth=0)
    right.set_yscale(_scale([*drawn, level]))
    right.set(title="Distance to the target")
    right.set_ylabel(f"distance in units of {'x' if unit == 1 else format(unit, 'g')}")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=1)  # looks are spaced geometrically at first
        axes.set_xlim(0, max(1, epochs[-1]))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scale(values: Sequence[float]) -> str:
    """Of an axis."""
    return "log" if min(values) > 0 else "linear"


def save_animation(
    frames: Sequence[np.ndarray], titles: Sequence[str], target: Target, path: Path
) -> None:
    """A GIF of the fit, 0.15 seconds for each frame and two for the last one."""
    figure = Figure(figsize=SIZE, dpi=70, layout="constrained")
    plot = fit_plot(target, figure)
    images = []
    for content, title in zip(frames, titles):
        plot.show(content, title)
        images.append(Image.fromarray(picture(figure)).quantize(32))
    save_gif(images, [150] * (len(images) - 1) + [2000], path)
