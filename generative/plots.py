"""Figures of the training script."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from generative.checkpoints import written_whole
from generative.targets import Target

GENERATED, TARGET = "#4c9fd0", "#c2410c"
BINS = 80
SIZE = (7, 4.2)  # inches


def has_display() -> bool:
    """Whether figures can appear on a screen."""
    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return plt.get_backend().lower() in {name.lower() for name in interactive}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the path's suffix names the format."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


def histogram(samples: np.ndarray, target: Target) -> np.ndarray:
    """Density of samples in equal bins over the target's window, shape (BINS,); what lies outside
    the window counts in the total."""
    counts, edges = np.histogram(samples, bins=BINS, range=target.window)
    return counts / (len(samples) * np.diff(edges))


class FitPlot:
    """The target's density and, behind it, the histogram of generated samples."""

    def __init__(self, target: Target, figure: Figure):
        """Draw in an empty figure: pyplot's to show it, or one of its own."""
        self.figure, self._axes = figure, figure.subplots()
        edges = np.linspace(*target.window, BINS + 1)
        x = np.linspace(*target.window, 600)
        density = target.density(x)
        self._bars = self._axes.stairs(
            np.zeros(BINS), edges, fill=True, color=GENERATED, label="generated samples"
        )
        self._axes.plot(x, density, color=TARGET, linewidth=2, label="target density")
        self._axes.set(xlim=target.window, ylim=(0, 1.6 * density.max()))
        self._axes.set(xlabel="x", ylabel="density")
        self._axes.set_title(" ", loc="left", fontsize=11)
        self._axes.legend(loc="upper right", frameon=False)
        self._axes.spines[["top", "right"]].set_visible(False)

    def show(self, heights: np.ndarray, title: str) -> None:
        """Set the histogram, shape (BINS,), and the title."""
        self._bars.set_data(values=heights)
        self._axes.set_title(title, loc="left", fontsize=11)

    def refresh_window(self) -> None:
        """Bring the window up to date without waiting for anything; do nothing if it is closed."""
        if plt.fignum_exists(self.figure.number):
            self.figure.canvas.draw_idle()
            self.figure.canvas.flush_events()


def curves(history: Sequence[dict], w1_floor: float) -> Figure:
    """Loss and Wasserstein distances against epochs; `history` as in history.csv."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    losses = [row["loss"] for row in history]
    left.plot(epochs, losses, color=GENERATED)
    left.set_yscale("log" if min(losses) > 0 else "linear")  # a critic's may be negative
    left.set(title="Training loss", ylabel="loss")
    right.plot(epochs, [row["w1"] for row in history], color=GENERATED, label="W1 to fresh samples")
    right.plot(epochs, [row["w2"] for row in history], color="0.6", label="W2 to fresh samples")
    right.axhline(w1_floor, color=TARGET, linestyle=":", label="W1 between two target samples")
    right.set(title="Distance to the target", ylabel="distance in units of x", yscale="log")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_animation(
    frames: Sequence[np.ndarray], titles: Sequence[str], target: Target, path: Path
) -> None:
    """A GIF of the fit, 0.15 seconds for each histogram and two for the last one."""
    figure = Figure(figsize=SIZE, dpi=70, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # whatever draws on the screen
    plot = FitPlot(target, figure)
    images = []
    for heights, title in zip(frames, titles):
        plot.show(heights, title)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
        images.append(image.convert("RGB").quantize(32))
    durations = [150] * (len(images) - 1) + [2000]
    with written_whole(path) as temporary:
        images[0].save(
            temporary, save_all=True, append_images=images[1:], duration=durations, loop=0
        )
