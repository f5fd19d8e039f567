"""The notebook for newcomers runs, and it is committed with clean outputs."""

import copy
import os
import re
import signal
import threading

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_readme import ROOT, broken_links, same_output

TOUR = ROOT / "docs" / "tour.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_picture(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def printed(cell):
    """What it printed, but for what a training found, where rounding is amplified."""
    texts = [output.text for output in cell.outputs if output.get("name") == "stdout"]
    return [line for line in "".join(texts).splitlines() if not re.search("outputs|distance", line)]


def state():
    """What a kernel might change of this process."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return handlers, dict(os.environ), os.getcwd(), plt.get_fignums(), threading.active_count()


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(TOUR, as_version=4)


def test_it_was_committed_with_clean_outputs(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(map(has_picture, cells)) >= 5
    assert committed.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata for cell in committed.cells)
    assert TOUR.stat().st_size < 400_000
    assert not re.search(r"/(tmp|home|root|work|Users)/", TOUR.read_text())
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs)


def test_its_links_lead_to_files(committed):
    texts = [cell.source for cell in committed.cells if cell.cell_type == "markdown"]
    assert broken_links("\n\n".join(texts), TOUR.parent) == []


@pytest.mark.slow
def test_it_runs_without_an_error_and_shows_pictures(committed, tmp_path):
    """The kernel is that of this interpreter, without the user's profile."""
    fresh = copy.deepcopy(committed)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(TOUR.parent)}})
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs = []
    before = state()
    client.execute(env=os.environ | {"IPYTHONDIR": str(tmp_path)})
    assert state() == before
    cells = code_cells(fresh)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert sum(map(has_picture, cells)) >= 5
    for then, now in zip(code_cells(committed), cells):
        assert has_picture(then) == has_picture(now)
        assert same_output(printed(then), printed(now))
