"""Where a run shows itself while it trains: a progress bar, a window or a notebook, TensorBoard."""

import io
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from generative import plots
from generative.runs import summary_writer
from generative.targets import Target


def has_window() -> bool:
    """Whether figures can appear in windows of their own."""
    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    return plt.get_backend().lower() in {name.lower() for name in interactive}


def in_notebook() -> bool:
    """Whether figures can appear under a notebook's cell."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def due_after(epoch: int, last: bool, interval: int) -> str:
    """What an epoch ends with: a "figure", a "look" at the fit, or nothing ("").

    Looks are spaced geometrically at first, and from then on by a fifth of the interval between
    figures.
    """
    gap = max(1, interval // 5)
    if epoch == 1 or last or epoch % interval == 0:
        return "figure"
    if epoch < gap and epoch.bit_count() == 1:  # powers of two
        return "figure" if epoch.bit_length() % 2 else "look"
    return "" if epoch % gap else "look"


def due_between(before: float, done: float) -> str:
    """The same for an epoch that takes a training from one part of its time to another.

    There are fifty looks, every fifth with a figure.
    """
    if int(10 * done) > int(10 * before):
        return "figure"
    return "look" if int(50 * done) > int(50 * before) else ""


class Display:
    """The fit's figure, shown wherever there is a place for it, and the progress of a run.

    A figure in a window is pyplot's, so that it stays open; others pyplot never sees. pyplot's
    current figure stays what it was.

    Parameters
    ----------
    config
        The run's settings.
    epochs, spent : int and float
        What the run has behind it, in epochs and in seconds of training.
    events : Path or None
        A folder for TensorBoard's events.
    """

    def __init__(self, target: Target, config: Any, epochs: int, spent: float, events: Path | None):
        self.notebook = config.show and in_notebook()
        self.window = config.show and not self.notebook and has_window()
        self.cell = None  # the notebook's picture
        self.fit = plots.fit_plot(target, _window() if self.window else plots.new_figure())
        if self.window:
            self.fit.figure.show()
        purge = epochs + (epochs > 0)
        self.events = summary_writer()(events, purge_step=purge) if events else None
        self.seconds = config.seconds
        if self.seconds:
            form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}"
            self.progress = tqdm(total=self.seconds, initial=spent, bar_format=form)
        else:
            self.progress = tqdm(total=config.epochs, initial=epochs, unit="epoch")

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.progress.close()
        if self.events:
            self.events.close()

    def advance(self, epochs: int, spent: float) -> None:
        """Move the progress bar on to these epochs or seconds of training."""
        reached = min(spent, self.seconds) if self.seconds else epochs
        self.progress.update(reached - self.progress.n)

    def look(self, frame: np.ndarray, title: str, row: dict[str, float]) -> None:
        """Show the fit at an epoch, and write the figures of a row of the history."""
        self.fit.show(frame, title)
        self.refresh()
        shown = {
            name: f"{row[name]:.3g}" for name in ("loss", "w1", "w2", "frechet") if name in row
        }
        self.progress.set_postfix(shown)
        if self.events:
            for name, value in row.items():
                if name != "epoch":
                    self.events.add_scalar(name, value, row["epoch"])
            self.events.add_image(
                "fit", plots.picture(self.fit.figure), row["epoch"], dataformats="HWC"
            )

    def refresh(self) -> None:
        """Bring the window or the notebook's cell up to date without waiting for anything."""
        figure = self.fit.figure
        if self.window and plt.fignum_exists(figure.number):
            figure.canvas.draw_idle()
            figure.canvas.flush_events()
        if self.notebook:
            from IPython.display import Image as CellImage
            from IPython.display import display

            file = io.BytesIO()
            Image.fromarray(plots.picture(figure)).save(file, "png")
            content = CellImage(data=file.getvalue())
            if self.cell is None:
                self.cell = display(content, display_id=True)
            else:
                self.cell.update(content)


def _window() -> Figure:
    """A figure of pyplot's, which does not become its current one where there is another."""
    before = plt.gcf() if plt.get_fignums() else None
    figure = plt.figure(figsize=plots.SIZE, layout="constrained")
    if before is not None:
        plt.figure(before)
    return figure
