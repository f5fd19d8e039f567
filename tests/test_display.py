"""What a run shows of itself: windows, notebooks, TensorBoard."""

import base64
import builtins
import io
import itertools

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from generative import plots
from generative.display import due_after, due_between
from generative.targets import TARGETS
from learning_demo import Config, train
from tests.test_learning_demo import ROOT, history, saved, small


def test_a_notebook_shows_the_fit_and_the_progress(tmp_path):
    """One picture that changes, the progress bar, the metrics; the caller's figure stays."""
    code = f"""
    import matplotlib.pyplot as plt
    mine = plt.figure()
    from learning_demo import Config, train
    metrics = train(Config(data_size=400, batchsize=64, g_dim=16, epochs=6, plot_interval=2,
                           num_proximal=10, output_dir={str(tmp_path)!r}))
    assert plt.get_fignums() == [mine.number] and plt.gcf() is mine and not mine.axes
    plt.close(mine)
    metrics["w1"] > 0
    """
    lines = "\n".join(line[4:] for line in code.splitlines())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(lines)])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = notebook.cells[0].outputs
    (picture,) = [output for output in outputs if output.output_type == "display_data"]
    image = Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"])))
    final = Image.open(tmp_path / "gaussian" / "final.png").resize(image.size)
    difference = np.asarray(image.convert("L"), float) - np.asarray(final.convert("L"), float)
    assert abs(difference).mean() < 8  # it is the last fit: of another figure, over 20
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "6/6" in text and "Writing to" in text
    assert outputs[-1].data["text/plain"] == "True"


def test_tensorboard_has_the_history_and_the_fit(tmp_path):
    train(small(tmp_path, tensorboard=True))
    folder = tmp_path / "gaussian"
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "w1", "w2"}
    rows = history(folder)
    assert [event.step for event in events.Scalars("w1")] == rows["epoch"].tolist()
    np.testing.assert_allclose([event.value for event in events.Scalars("w1")], rows["w1"], 1e-5)
    picture = Image.open(io.BytesIO(events.Images("fit")[-1].encoded_image_string))
    assert len(picture.convert("RGB").getcolors(10**6)) > 20


def test_a_resumed_run_goes_on_with_its_events(tmp_path):
    train(small(tmp_path, epochs=2, tensorboard=True))
    folder = tmp_path / "gaussian"
    config = saved(folder)
    config.epochs = 4
    train(config)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("w1")] == [0, 1, 2, 3, 4]


def test_tensorboard_is_asked_for_in_one_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "torch.utils.tensorboard":
            raise ImportError("No module named 'tensorboard'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"^tensorboard: .*pip install tensorboard$"):
        train(small(tmp_path / "outputs", tensorboard=True))
    assert not (tmp_path / "outputs").exists()


def test_looks_are_spaced_geometrically_at_first():
    due = {epoch: due_after(epoch, epoch == 430, 200) for epoch in range(1, 431)}
    looks = [epoch for epoch, what in due.items() if what]
    assert looks == [1, 2, 4, 8, 16, 32, *range(40, 401, 40), 430]
    figures = [epoch for epoch, what in due.items() if what == "figure"]
    assert figures == [1, 4, 16, 200, 400, 430]
    assert all(due_after(epoch, epoch == 6, 1) == "figure" for epoch in range(1, 7))


def test_looks_are_spaced_evenly_in_a_limited_time():
    done = np.linspace(0, 1, 1001)
    due = [due_between(before, after) for before, after in itertools.pairwise(done)]
    assert due.count("figure") == 10 and due.count("look") == 40 and due[-1] == "figure"
    assert due_between(0.0, 1.0) == "figure"


def test_a_picture_leaves_the_canvas_of_a_figure():
    figure = plots.new_figure()
    fit, canvas = plots.fit_plot(TARGETS["gaussian"], figure), figure.canvas
    samples = TARGETS["gaussian"].quantile(np.linspace(0.01, 0.99, 500))[:, None]
    fit.show(plots.frame(samples, TARGETS["gaussian"]), "title")
    assert plots.picture(figure).shape[2] == 3 and figure.canvas is canvas


def test_the_title_compares_with_what_can_be_hoped_for():
    found = {"w1": 0.0123, "w1_data": 0.0076, "w2": 0.5, "w2_two_sample": 0.4}
    found["w2_two_sample_sd"] = 0.05
    assert plots.verdict(found, TARGETS["gaussian"]) == (
        "W1 0.0123 to the law (its training set 0.0076)"
    )
    assert plots.verdict(found, TARGETS["ring"]) == (
        "W2 0.5 to fresh samples (two-sample distance 0.4 ± 0.05)"
    )


def test_pyplot_never_sees_the_figure_of_a_run(tmp_path):
    before = plt.get_fignums()
    train(Config(data_size=300, epochs=1, output_dir=str(tmp_path)))
    assert plt.get_fignums() == before
