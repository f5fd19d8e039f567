"""The training script: its contract with the user, its gradient, and what a stop costs."""

import dataclasses
import errno
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import generative.metrics as metrics_module
from generative import plots
from generative.batches import Noise
from generative.run_settings import check, saved_config, settled
from generative.runs import claimed, load_checkpoint, save_checkpoint
from generative.targets import TARGETS
from learning_demo import Config, Generator, Training, load_generator, main, train

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"data_size": 400, "batchsize": 64, "g_dim": 16, "num_proximal": 10, "show": False}


def small(tmp_path, **changes):
    settings = {**SMALL, "epochs": 6, "plot_interval": 2, "output_dir": str(tmp_path), **changes}
    if settings.get("objective", "ipot") != "ipot":
        del settings["num_proximal"]
    return Config(**settings)


def saved(folder):
    return saved_config(Config, folder)


def training(config):
    return Training(*settled(config))


def sample(folder, n):
    return load_generator(folder).sample(n)


def weights(folder):
    return torch.load(folder / "generator.pt", weights_only=True)


def history(folder):
    return np.genfromtxt(folder / "history.csv", delimiter=",", names=True)


def test_generator_is_the_published_network():
    generator = Generator(Noise("uniform", 3), 128, 2)
    kinds = [type(layer).__name__ for layer in generator.layers]
    block = ["Linear", "BatchNorm1d", "LeakyReLU"]
    assert kinds == [*block, *block, "Linear"]
    assert generator.layers[2].negative_slope == 0.2
    data = 5 + 2 * torch.randn(1000, 2)
    generator.initialise(data, torch.Generator().manual_seed(0))
    first = generator.layers[0]
    assert bool((first.bias == 0).all())
    assert float(first.weight.detach().std()) == pytest.approx((2 / (3 + 128)) ** 0.5, rel=0.15)
    torch.testing.assert_close(generator.mean, data.mean(0))
    assert generator(torch.rand(64, 3)).shape == (64, 2)


@pytest.mark.parametrize("data_type", ["uniform", "gaussian", "mixture", "ring", "moons"])
def test_a_run_leaves_everything_in_its_folder(tmp_path, monkeypatch, capsys, data_type):
    monkeypatch.setattr(metrics_module, "PLANE", 300)
    monkeypatch.setattr(metrics_module, "POINTS", 300)
    metrics = train(small(tmp_path, data_type=data_type))
    folder = tmp_path / data_type
    assert str(folder) in capsys.readouterr().out.splitlines()[0]
    dim = TARGETS[data_type].dim
    name, reference = ("w1", "w1_data") if dim == 1 else ("w2", "w2_two_sample")
    assert {path.name for path in folder.iterdir()} - {"map.png"} == {
        "checkpoint.pt",
        "config.json",
        "curves.png",
        "final.png",
        "fit.gif",
        "fit_00000.png",
        "fit_00001.png",
        "fit_00002.png",
        "fit_00004.png",
        "fit_00006.png",
        "generator.pt",
        "history.csv",
        "metrics.json",
    }
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 6 and metrics[name] > 0 and metrics[reference] > 0
    assert list(history(folder).dtype.names) == ["epoch", "loss", "w1", "w2"]
    assert history(folder)["epoch"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    with Image.open(folder / "fit.gif") as gif:
        assert gif.n_frames == 7
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 20  # not blank
    samples = load_generator(folder).sample(10)
    assert samples.shape == (10, dim) and samples.dtype == torch.float64
    assert (folder / "map.png").exists() == (dim == 2)


@pytest.mark.parametrize("d", [1, 2, 64])
def test_a_run_on_the_users_data(tmp_path, monkeypatch, d):
    monkeypatch.setattr(metrics_module, "PLANE", 200)
    monkeypatch.setattr(metrics_module, "POINTS", 200)
    rows = load_digits().data[:, :d] if d == 64 else np.random.default_rng(0).normal(size=(500, d))
    np.save(tmp_path / "mine.npy", rows)
    config = small(tmp_path, data_path=str(tmp_path / "mine.npy"))
    metrics = train(config)
    folder = tmp_path / "mine"
    assert np.isfinite(metrics["kl"])
    assert metrics["w1"] > 0 and metrics["w1_two_sample"] > metrics["w1_two_sample_sd"] > 0
    assert {"final.png", "fit.gif", "curves.png"} <= {path.name for path in folder.iterdir()}
    kept = saved(folder)
    assert train(dataclasses.replace(kept, epochs=8, show=False))["steps"] == 8


def test_one_seed_gives_the_same_numbers_and_a_second_folder(tmp_path):
    first, second = (train(small(tmp_path)) for _ in range(2))
    assert {path.name for path in tmp_path.iterdir()} == {"gaussian", "gaussian-2"}
    assert first["w1"] == second["w1"]
    assert train(small(tmp_path, seed=1))["w1"] != first["w1"]


def samples_of_the_readme(outputs):
    code = (ROOT / "README.md").read_text().split("**Draw samples.**")[1]
    names = {}
    exec(code.split("```")[1].removeprefix("python").replace("outputs", str(outputs)), names)
    return names["samples"]


def test_the_readme_draws_samples(tmp_path):
    metrics = train(small(tmp_path, epochs=40, plot_interval=40, lr=3e-4, average=0.5))
    samples = samples_of_the_readme(tmp_path)
    assert samples.shape == (1000, 1) and not samples.requires_grad
    y = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    w1, _ = metrics_module.wasserstein_distances(samples, y)
    assert w1 == pytest.approx(metrics["w1"], abs=0.15)


def test_training_brings_the_distance_down(tmp_path):
    settings = {"lr": 1e-4, "epochs": 120, "plot_interval": 40, "average": 0.9}
    metrics = train(small(tmp_path, data_type="mixture", data_size=5000, batchsize=128, **settings))
    start = history(tmp_path / "mixture")["w1"][0]
    assert metrics["w1"] < 0.3 and metrics["w1"] < start / 2


def train_and_interrupt(config, after):
    """A run that gets Ctrl-C twice, so that it stops at once, after so many epochs."""

    def stop(self, run_epoch=Training.run_epoch):
        if self.epoch == after:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        run_epoch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "run_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def test_resuming_gives_the_numbers_of_an_uninterrupted_run(tmp_path):
    whole = train(small(tmp_path / "whole"))
    train_and_interrupt(small(tmp_path / "cut"), after=4)
    cut = tmp_path / "cut" / "gaussian"
    assert not (cut / "metrics.json").exists()
    resumed = train(dataclasses.replace(saved(cut), show=False))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    for name, tensor in weights(tmp_path / "whole" / "gaussian").items():
        assert torch.equal(tensor, weights(cut)[name])
    assert (cut / "history.csv").read_text() == (
        tmp_path / "whole" / "gaussian" / "history.csv"
    ).read_text()


def test_a_finished_run_can_be_lengthened(tmp_path):
    whole = train(small(tmp_path / "whole", epochs=8, lr_factor=1.0))
    train(small(tmp_path / "grown", epochs=4, lr_factor=1.0))
    kept = saved(tmp_path / "grown" / "gaussian")
    grown = train(dataclasses.replace(kept, epochs=8, show=False))
    assert grown["w1"] == whole["w1"] and grown["steps"] == whole["steps"]


def test_a_killed_run_goes_on_from_its_last_figure(tmp_path):
    command = [sys.executable, "learning_demo.py", "--output-dir", str(tmp_path), "--no-show"]
    command += ["--epochs", "100000", "--plot-interval", "2", "--data-size", "400"]
    command += ["--batchsize", "64", "--num-proximal", "5"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/fit_00006.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    folder = tmp_path / "gaussian"
    run = training(saved(folder))
    run.restore(load_checkpoint(folder / "checkpoint.pt", run.device))
    figures = sorted(folder.glob("fit_*.png"))
    assert run.epoch >= int(figures[-1].stem.split("_")[1]) - 2 > 0
    run.run_epoch()


def test_ctrl_c_saves_the_epoch_and_says_how_to_go_on(tmp_path):
    parent = tmp_path / 'it\'s a "$1" & ü'
    parent.mkdir()
    command = [sys.executable, str(ROOT / "learning_demo.py"), "--output-dir", "out", "--no-show"]
    command += ["--plot-interval", "400", "--data-size", "400", "--batchsize", "64"]
    process = subprocess.Popen(
        command, cwd=parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        shown = ""
        while "epoch" not in shown:  # the progress bar
            character = process.stderr.read(1)
            assert character, shown
            shown += character
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert process.returncode == 1
    assert "Traceback" not in errors
    folder = parent / "out" / "gaussian"
    run = training(saved(folder))
    run.restore(load_checkpoint(folder / "checkpoint.pt", run.device))
    assert 0 < run.epoch < 400  # a checkpoint where no figure was due
    command = [*shlex.split(errors.split("To go on: ")[1]), "--no-show"]
    with claimed(folder):
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.stderr == f"learning_demo.py: {folder} is in use by another process\n"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data_type": "gausian"}, "data_type: got 'gausian'; accepts uniform, gaussian, mixture"),
        ({"data_size": 1}, "data_size: got 1; accepts integers from 2 up"),
        ({"batchsize": 0}, "batchsize: got 0"),
        ({"epochs": 2.5}, "epochs: got 2.5; accepts integers"),
        ({"plot_interval": 0}, "plot_interval: got 0"),
        ({"steps_per_epoch": True}, "steps_per_epoch: got True"),
        ({"num_proximal": -1}, "num_proximal: got -1"),
        ({"lr": 0.0}, "lr: got 0.0; accepts numbers above 0, below 1e+06"),
        ({"beta": float("nan")}, "beta: got nan"),
        ({"lr": "fast"}, "lr: got 'fast'"),
        ({"average": 1.0}, "average: got 1.0; accepts numbers from 0, below 1"),
        ({"z_dim": -1}, "z_dim: got -1"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**64}, "seed: got 18446744073709551616; accepts integers from 0 up"),
        ({"device": "tpu9"}, "device: got 'tpu9'; accepts auto, cpu"),
        ({"stratified": "no"}, "stratified: got 'no'; accepts True or False"),
        ({"objective": ["ipot"]}, "objective: got ['ipot']; accepts auto, ipot, ipot-exact"),
        ({"device": "meta"}, "device: got 'meta'; accepts auto"),
        ({"data_path": 5}, "data_path: got 5; accepts text"),
        ({"resume": "nowhere"}, "resume: nowhere is not a run's folder"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changes, message):
    output = tmp_path / "outputs"
    with pytest.raises(ValueError) as error:
        train(Config(**{**SMALL, "output_dir": str(output), **changes}))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not output.exists()
    if "resume" not in changes:
        with pytest.raises(ValueError):
            check(Config(**changes))


def test_a_resumed_run_keeps_its_settings(tmp_path):
    train(small(tmp_path, epochs=2))
    kept = saved(tmp_path / "gaussian")
    with pytest.raises(ValueError, match=r"lr: got 0\.1, but the run in .* has 0\.0001"):
        train(dataclasses.replace(kept, lr=0.1))
    with pytest.raises(ValueError, match="epochs: got 1; a resumed run accepts 2 or more"):
        train(dataclasses.replace(kept, epochs=1))


def test_a_resumed_run_takes_what_the_command_line_says(tmp_path, monkeypatch, capsys):
    train(small(tmp_path, epochs=2))
    command = ["learning_demo.py", "--resume", str(tmp_path / "gaussian"), "--no-show"]
    monkeypatch.setattr(sys, "argv", [*command, "--epochs", "4"])
    main()
    assert history(tmp_path / "gaussian")["epoch"].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(sys, "argv", [*command, "--batchsize", "512"])  # Config's own default
    with pytest.raises(SystemExit, match=r"batchsize: got 512, but the run in .* has 64"):
        main()


def test_a_training_that_breaks_down_says_so(tmp_path, monkeypatch):
    def forward(self, z, forward=Generator.forward):
        return forward(self, z) * (float("nan") if self.training else 1.0)

    monkeypatch.setattr(Generator, "forward", forward)
    with pytest.raises(ValueError, match=r"training broke down in epoch 1 .*try a smaller lr"):
        train(small(tmp_path))


def user_data(path, scale=1.0, offset=0.0, d=1):
    rows = np.random.default_rng(0).normal(size=(500, d))
    rows[::2, 0] += 4
    np.save(path, offset + scale * rows)
    return str(path)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("scale, offset", [(1e-300, 0), (1e-6, 0), (1e15, 1.7e18), (1e300, 0)])
def test_a_run_is_the_same_in_all_units(tmp_path, scale, offset, d):
    """Metrics, figures, drawn samples, and again after they were resumed."""
    settings = {"lr": 1e-4, "epochs": 20, "plot_interval": 10}
    found, frames = [], []
    for name, units in (("plain", ()), ("other", (scale, offset))):
        data = user_data(tmp_path / f"{name}.npy", *units, d=d)
        metrics = train(small(tmp_path, data_path=data, **settings))
        run = training(saved(tmp_path / name))
        samples = sample(tmp_path / name, 300).cpu().numpy()
        size, middle = units or (1.0, 0.0)
        distances = np.array([metrics[name] for name in ("w1", "w2", "w1_two_sample")])
        others = [metrics[name] for name in ("mmd", "kl")]
        found.append((distances / size, others, (samples - middle) / size))
        run.restore(load_checkpoint(tmp_path / name / "checkpoint.pt", run.device))
        frames.append(run.frames[-1].numpy())
        shown = np.count_nonzero(frames[-1]) if d == 1 else len(np.unique(frames[-1], axis=0))
        assert shown > 10
    for plain, other in zip(*found):
        np.testing.assert_allclose(other, plain, rtol=0.02, atol=0.02)
    for row in history(tmp_path / "other"):
        assert row["w1"] / scale < 3


def test_titles_have_significant_digits(tmp_path, monkeypatch, capsys):
    titles = []
    show = plots.FitPlot.show
    monkeypatch.setattr(plots.FitPlot, "show", lambda *args: (titles.append(args[2]), show(*args)))
    data = user_data(tmp_path / "a$b_$c.npy", 1e-9)
    metrics = train(small(tmp_path, data_path=data))
    assert f"W1 {metrics['w1']:.3g}" in capsys.readouterr().out
    assert titles[-1].startswith("a$b_$c, epoch 6: W1 ") and "e-" in titles[-1]


@pytest.mark.parametrize("kind", ["zero-inflated", "binary", "counts", "repeated rows"])
def test_metrics_of_ties_are_json(tmp_path, kind):
    rng = np.random.default_rng(0)
    rows = {
        "zero-inflated": np.where(rng.random((500, 1)) < 0.9, 0.0, rng.normal(size=(500, 1))),
        "binary": (rng.random((500, 2)) < 0.3) * 1.0,
        "counts": rng.poisson(1.0, (500, 1)),
        "repeated rows": np.repeat(rng.normal(size=(25, 2)), 20, axis=0),
    }[kind]
    np.save(tmp_path / "mine.npy", rows)
    metrics = train(small(tmp_path, data_path=tmp_path / "mine.npy", epochs=2))

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    text = (tmp_path / "mine" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse) == metrics
    assert metrics["kl"] is metrics["kl_two_sample"] is metrics["kl_two_sample_sd"] is None
    assert abs(metrics["mmd_two_sample"]) < 0.1 < metrics["mmd"] + 0.2


@pytest.mark.parametrize("rows", [np.ones((200, 1)), 1e305 * np.eye(200)[:, :1]])
def test_data_that_cannot_be_used_leave_no_folder(tmp_path, rows):
    np.save(tmp_path / "mine.npy", rows)
    with pytest.raises(ValueError, match=r"^data_path: .*mine\.npy.*accepts"):
        train(small(tmp_path / "outputs", data_path=str(tmp_path / "mine.npy")))
    assert not (tmp_path / "outputs").exists()


def test_settings_may_be_numpys_and_paths(tmp_path, monkeypatch):
    user_data(tmp_path / "mine.npy")
    monkeypatch.chdir(tmp_path)
    config = Config(
        data_path=Path("mine.npy"), output_dir=tmp_path / "out", device=torch.device("cpu"),
        epochs=np.int64(2), plot_interval=2, lr=np.float32(1e-3), stratified=np.bool_(False),
        batchsize=np.uint8(32), show=False,
    )  # fmt: skip
    train(config)
    monkeypatch.chdir("/")
    kept = saved(tmp_path / "out" / "mine")
    assert kept.data_path == str(tmp_path / "mine.npy") and kept.stratified is False
    train(dataclasses.replace(kept, epochs=np.int64(4), show=False))


def test_changed_data_are_noticed_and_samples_need_none(tmp_path):
    data = user_data(tmp_path / "mine.npy")
    train(small(tmp_path, data_path=data, epochs=2))
    kept = dataclasses.replace(saved(tmp_path / "mine"), epochs=4, show=False)
    before = {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    user_data(tmp_path / "mine.npy", scale=1.01)
    with pytest.raises(ValueError, match=r"data_path: .*mine\.npy is not what the run was trained"):
        train(kept)
    assert {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before
    (tmp_path / "mine.npy").unlink()
    assert sample(tmp_path / "mine", 50).shape == (50, 1)
    moved = user_data(tmp_path / "elsewhere.npy")
    train(dataclasses.replace(kept, data_path=moved))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_folder_of_a_gpu_draws_samples_without_one(tmp_path, monkeypatch):
    train(small(tmp_path, epochs=2))
    folder = tmp_path / "gaussian"
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"device": "cuda:7"}))
    state = load_checkpoint(folder / "checkpoint.pt", torch.device("cpu")) | {"device": "cuda"}
    with monkeypatch.context() as patch:  # what torch writes of tensors on a GPU
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        save_checkpoint(folder / "checkpoint.pt", state)
        save_checkpoint(folder / "generator.pt", weights(folder))
    assert samples_of_the_readme(tmp_path).shape == (1000, 1)
    with pytest.raises(ValueError, match=r"trained on cuda, .* generator\.pt gives samples on any"):
        train(dataclasses.replace(saved(folder), show=False))


@contextmanager
def strange_process():
    """Most of what a caller can set for torch and NumPy, warnings as errors, a figure of pyplot."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    mine = plt.figure()
    try:
        with (
            torch.device("meta"),
            torch.autocast("cpu", dtype=torch.bfloat16),
            torch.inference_mode(),
            np.errstate(all="raise"),
            warnings.catch_warnings(action="error"),
        ):
            yield
    finally:
        plt.close(mine)
        torch.set_default_dtype(before)


def process():
    """What a training could change by accident."""
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
        dict(plt.rcParams),
        plt.get_fignums() and plt.gcf().number,
        plt.get_fignums(),
        (torch.get_default_dtype(), torch.get_default_device(), torch.is_inference_mode_enabled()),
        (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), np.geterr()),
        list(warnings.filters),
        signal.getsignal(signal.SIGINT),
        torch.tensor(2e-308, dtype=torch.float64, device="cpu").div(2).tolist(),  # or flushed to 0
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"data_type": "ring", "objective": "wgan-gp"},
        {"data_path": "mine.npy", "latent": "gaussian", "stratified": False},
        {"data_type": "moons", "objective": "assignment-fast"},
    ],
)
def test_the_callers_process_neither_matters_nor_changes(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(metrics_module, "PLANE", 200)
    monkeypatch.setattr(metrics_module, "POINTS", 200)
    monkeypatch.chdir(tmp_path)
    user_data("mine.npy", d=2)
    config = small(tmp_path, epochs=2, **changes)
    usual = train(config)
    drawn = sample(next(tmp_path.glob("*/")), 9)
    with strange_process():
        before = process()
        found = train(config)
        again = sample(next(tmp_path.glob("*-2/")), 9)
        assert process() == before
    assert {**found, "seconds": 0} == {**usual, "seconds": 0} and torch.equal(again, drawn)


def test_a_checkpoint_that_is_gone_or_strange_is_told(tmp_path):
    train(small(tmp_path, epochs=2, device="cpu"))
    folder = tmp_path / "gaussian"
    kept = dataclasses.replace(saved(folder), epochs=4, show=False)
    for content in ({}, {"device": "cpu"}, torch.zeros(3)):
        save_checkpoint(folder / "checkpoint.pt", content)
        with pytest.raises(ValueError, match=r"the checkpoint does not fit|is not a checkpoint"):
            train(kept)
    (folder / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"has lost its checkpoint\.pt"):
        train(kept)


@pytest.mark.parametrize(
    "content", ["", "[1]", "null", '{"unknown": 1}', '{"lr": "fast"}', b"\xff\xfe".decode("latin1")]
)
def test_a_config_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin1")
    with pytest.raises(
        ValueError, match=r"^(resume: .*config\.json cannot be read|lr: got 'fast')"
    ):
        train(saved(tmp_path))
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_config_of_fewer_fields_is_filled(tmp_path):
    train(small(tmp_path, epochs=2))
    path = tmp_path / "gaussian" / "config.json"
    settings = json.loads(path.read_text())
    del settings["stratified"], settings["huber"]
    path.write_text(json.dumps(settings))
    assert saved(path.parent).stratified is True


@pytest.mark.parametrize("name, value", [("data_type", "uniform"), ("lr", 1e-3), ("g_dim", 8)])
def test_an_edited_config_is_noticed(tmp_path, name, value):
    train(small(tmp_path, epochs=2))
    path = tmp_path / "gaussian" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=f"^{name}: config.json has {value!r}, but the run was"):
        train(dataclasses.replace(saved(path.parent), epochs=4, show=False))


@pytest.mark.parametrize("name", ["b\udcffd$_", "x" * 250])
def test_any_file_name_will_do(tmp_path, name):
    metrics = train(small(tmp_path, data_path=user_data(tmp_path / f"{name}.npy"), epochs=2))
    (folder,) = tmp_path.glob("*/")
    assert sample(folder, 10).shape == (10, 1) and metrics["steps"] == 2
    assert str(folder).isprintable() and len(folder.name) <= 60


@pytest.mark.parametrize("name", ["fit_00004.png", "checkpoint.pt", "metrics.json", "fit.gif"])
def test_a_disk_that_is_full_costs_no_checkpoint(tmp_path, monkeypatch, name):
    """Only the third checkpoint and what comes after it fail."""
    folder, replace = tmp_path / "gaussian", os.replace

    def full(source, destination):
        if Path(destination).name == name and (folder / "fit_00002.png").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match=f"^cannot write .*{name}: No space left on device$"):
        train(small(tmp_path))
    monkeypatch.setattr(os, "replace", replace)
    assert not list(folder.glob(".*"))
    train(dataclasses.replace(saved(folder), show=False))


@pytest.mark.parametrize("backend", ["svg", "pdf"])
def test_any_backend_will_do(tmp_path, backend):
    command = [sys.executable, "learning_demo.py", "--output-dir", str(tmp_path), "--epochs", "2"]
    command += ["--plot-interval", "2", "--data-size", "400", "--batchsize", "64"]
    environment = {**os.environ, "MPLBACKEND": backend}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "gaussian" / "fit.gif").exists()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    command = [sys.executable, "learning_demo.py", "--output-dir", str(tmp_path / "file")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert f"cannot write to {tmp_path / 'file'}" in run.stderr
