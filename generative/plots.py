"""Figures of the training script."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from PIL import Image

from generative.checkpoints import written_whole
from generative.targets import Target

GENERATED, TARGET = "#4c9fd0", "#c2410c"
BINS = 80
DOTS = 1500
SIZE = (7, 4.2)  # inches


def has_display() -> bool:
    """Whether figures can appear on a screen."""
    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return plt.get_backend().lower() in {name.lower() for name in interactive}


def fit_figure(live: bool) -> Figure:
    """An empty figure for the fit: pyplot's own to show in a window, or one that it never sees.

    pyplot's current figure stays what it was.
    """
    if not live:
        return Figure(figsize=SIZE, layout="constrained")
    before = plt.gcf() if plt.get_fignums() else None
    figure = plt.figure(figsize=SIZE, layout="constrained")
    if before is not None:
        plt.figure(before)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the path's suffix names the format."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


def save_gif(images: Sequence[Image.Image], durations: Sequence[int], path: Path) -> None:
    """Write pictures as a GIF that starts again at its end; durations in milliseconds."""
    first, *rest = images
    with written_whole(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=list(durations), loop=0)


def length_unit(target: Target) -> float:
    """The length that figures count in: 1, or a power of ten where numbers would be long."""
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
    if target.dim > 1:
        return _in_figure(target.shown(samples[:DOTS]), target).round(6)
    shown = _in_figure(target.shown(samples), target)
    counts, edges = np.histogram(shown, bins=BINS, range=_window(target)[0])
    return counts / (len(samples) * np.diff(edges))


def fit_plot(target: Target, figure: Figure) -> "FitPlot":
    """The figure of the fit, in an empty figure: pyplot's to show it, or one of its own."""
    return (FitPlot if target.dim == 1 else PlaneFitPlot)(target, figure)


class FitPlot:
    """The target's density and, behind it, the histogram of generated samples."""

    def __init__(self, target: Target, figure: Figure):
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
        self._axes.set_title(" ", loc="left", fontsize=11)
        self._axes.legend(loc="upper right", frameon=False)
        self._axes.spines[["top", "right"]].set_visible(False)

    def show(self, frame: np.ndarray, title: str) -> None:
        """Set what :func:`frame` gave, and the title."""
        self._bars.set_data(values=frame)
        self._set_title(title)

    def _set_title(self, title: str) -> None:
        """A title in which a file's name may hold dollar signs."""
        self._axes.set_title(title, loc="left", fontsize=11, parse_math=False)

    def refresh_window(self) -> None:
        """Bring the window up to date without waiting for anything; do nothing if it is closed."""
        if plt.fignum_exists(self.figure.number):
            self.figure.canvas.draw_idle()
            self.figure.canvas.flush_events()


class PlaneFitPlot(FitPlot):
    """Generated samples over the target: circles of 3 standard deviations about the modes of a
    mixture, its density, or samples where that has no closed form.
    """

    def __init__(self, target: Target, figure: Figure):
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
        self._axes.set_title(" ", loc="left", fontsize=11)
        self._axes.legend(handles=handles, loc="upper right", fontsize=8)

    def show(self, frame: np.ndarray, title: str) -> None:
        self._dots.set_data(*np.asarray(frame).T)
        self._set_title(title)


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


def curves(history: Sequence[dict], w1_floor: float, target: Target) -> Figure:
    """Loss and Wasserstein distances against epochs; `history` as in history.csv."""
    epochs, unit = [row["epoch"] for row in history], length_unit(target)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [row["loss"] for row in history]
    left.plot(epochs, losses, color=GENERATED)
    left.set_yscale(_scale(losses))  # a critic's may be negative
    left.set(title="Training loss", ylabel="loss in standard units")
    distances = {name: [row[name] / unit for row in history] for name in ("w1", "w2")}
    right.plot(epochs, distances["w1"], color=GENERATED, label="W1 to fresh samples")
    right.plot(epochs, distances["w2"], color="0.6", label="W2 to fresh samples")
    floor = w1_floor / unit  # 0 where two sets of data are equal
    right.axhline(floor, color=TARGET, linestyle=":", label="W1 between two target samples")
    right.set_yscale(_scale([*distances["w1"], *distances["w2"], floor]))
    right.set(title="Distance to the target")
    right.set_ylabel(f"distance in units of {'x' if unit == 1 else format(unit, 'g')}")
    right.legend(frameon=False)
    for axes in (left, right):
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
    canvas = FigureCanvasAgg(figure)  # whatever draws on the screen
    plot = fit_plot(target, figure)
    images = []
    for content, title in zip(frames, titles):
        plot.show(content, title)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
        images.append(image.convert("RGB").quantize(32))
    save_gif(images, [150] * (len(images) - 1) + [2000], path)
