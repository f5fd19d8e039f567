"""The training script on images."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import generative.metrics as metrics_module
from generative import image_yardstick
from generative.metrics import wasserstein_distances
from generative.objectives import OBJECTIVES
from generative.run_settings import check
from learning_demo import Config, Training, load_generator, train
from tests.test_learning_demo import saved, train_and_interrupt, weights

PLANS = ("ipot", "ipot-exact", "sinkhorn")


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """Measuring takes less than training."""
    monkeypatch.setattr(metrics_module, "QUICK", 50)
    for name in ("STEPS", "FEW_STEPS"):
        monkeypatch.setattr(image_yardstick, name, 20)


def images(tmp_path, **changes):
    """Settings of a small run on scikit-learn's digits."""
    settings = {"data_type": "digits", "epochs": 2, "plot_interval": 1, "steps_per_epoch": 1}
    settings |= {"data_size": 200, "show": False, "output_dir": str(tmp_path), "batchsize": 16}
    own = {"g_dim": 8, "c_dim": 8, "n_critic": 1, "num_proximal": 10, "latent_centres": 50}
    own |= {"autoencoder_steps": 20, "latent_dim": 5, "patch_size": 4}
    kind = {name: changes[name] for name in ("objective", "space") if name in changes}
    live = {field.name for field in dataclasses.fields(Config(data_type="digits", **kind))}
    settings |= {name: value for name, value in own.items() if name in live}
    return Config(**settings | changes)


@pytest.mark.parametrize("space", ["latent", "pixels"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_on_images(tmp_path, objective, space):
    metrics = train(images(tmp_path, objective=objective, space=space, epochs=1))
    folder = tmp_path / "digits"
    for name in ("frechet", "precision", "recall", "density", "coverage", "nearer_training"):
        assert metrics[name] >= 0 and metrics[f"{name}_real"] > 0
    assert metrics["w2"] > 0 and metrics["features"] == "a classifier's features"
    assert {"final.png", "fit.gif", "curves.png", "nearest.png", "walk.png", "fit_00000.png"} <= {
        path.name for path in folder.iterdir()
    }
    drawn = load_generator(folder).sample(7)
    assert drawn.shape == (7, 64) and drawn.dtype == torch.float64
    assert bool(drawn.isfinite().all())
    if (objective, space) != ("ot-cfm", "pixels"):  # pixels from 0 to 255
        assert float(drawn.min()) >= 0 and 100 < float(drawn.max()) <= 255


@pytest.mark.parametrize(
    "options",
    [
        *({"objective": name} for name in PLANS),
        {"objective": "ipot-exact", "debiased": False},
        {"objective": "ipot-exact", "directions": 8, "debiased": False},
        {"objective": "ipot", "directions": 8, "debiased": True},
    ],
)
def test_plans_between_patches(tmp_path, options):
    """Updates move generated images towards the data."""
    config = images(tmp_path, lr=1e-3, space="patches", **options)
    run = Training(config, check(config))
    noise = run.generator.noise(200, run.new_rng(9))
    distances = []
    for _ in range(2):
        with torch.no_grad():
            x = run.generator(noise)
        distances.append(wasserstein_distances(x, run.data, orders=(2,))[0])
        losses = [run.objective.update()["loss"] for _ in range(20)]
    assert distances[1] < distances[0] and all(np.isfinite(losses))
    gradients = [p.grad for p in run.generator.parameters()]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("cost", ["squared", "psnr", "ssim"])
def test_costs_of_images_assign_and_teach(tmp_path, cost):
    options = {"objective": "assignment-fast", "space": "pixels", "lr": 1e-3}
    config = images(tmp_path, assignment_cost=cost, generator_cost=cost, **options)
    run = Training(config, check(config))
    losses = [float(run.objective.update()["loss"]) for _ in range(20)]
    assert np.mean(losses[-5:]) < losses[0]
    psi = torch.zeros(200, device=run.device)
    assert run.objective.assigned(run.data[:10], psi).tolist() == list(range(10))
    psi[3] = 1e6  # a price that nobody pays
    assert int(run.objective.assigned(run.data[3:4], psi)) != 3


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "ipot", "space": "pixels", "attention": True},
        {"objective": "wgan-gp", "space": "pixels", "attention": True},
        {"objective": "ipot", "space": "latent"},
        {"objective": "ot-cfm", "contaminate": "digits", "share": 0.1},
        {"objective": "ipot-exact", "space": "patches", "directions": 4},
    ],
)
def test_a_resumed_run_comes_to_the_same_numbers(tmp_path, options):
    whole = train(images(tmp_path / "whole", epochs=4, **options))
    train_and_interrupt(images(tmp_path / "cut", epochs=4, **options), after=2)
    resumed = train(dataclasses.replace(saved(tmp_path / "cut" / "digits"), show=False))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    for name, tensor in weights(tmp_path / "whole" / "digits").items():
        assert torch.equal(tensor, weights(tmp_path / "cut" / "digits")[name])


def test_a_run_may_be_limited_by_its_time(tmp_path):
    """The autoencoder has its share of it, and a run that goes on keeps what it has spent."""
    config = images(tmp_path, seconds=1.5, autoencoder_share=0.4, plot_interval=1000)
    run = Training(config, check(config))
    assert run.spent >= 0.6 and run.epoch == 0 and run.done == min(1, run.spent / 1.5)
    assert train(config)["steps"] > 2  # not the two epochs
    folder = tmp_path / "digits"
    config = saved(folder)
    with pytest.raises(ValueError, match=r"seconds: got 1; a resumed run accepts 1\.5 or more"):
        train(dataclasses.replace(config, seconds=1, show=False))
    state = torch.load(folder / "checkpoint.pt")
    assert state["spent"] >= 1.5
    before = state["epoch"]
    train(dataclasses.replace(config, seconds=state["spent"] + 1, show=False))
    assert torch.load(folder / "checkpoint.pt")["epoch"] > before


def test_a_run_goes_on_with_its_own_images_from_any_directory(tmp_path, monkeypatch):
    """Or says that they are others, whatever their size and classes."""
    rng = np.random.default_rng(0)
    for name, side in (("mine", 8), ("other", 9)):
        (tmp_path / name).mkdir()
        for k in range(100):
            picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    train(images("outputs", data_type="folder", data_dir="mine", size=8))
    monkeypatch.chdir("/")
    config = dataclasses.replace(saved(tmp_path / "outputs" / "mine"), show=False, epochs=3)
    assert config.data_dir == str(tmp_path / "mine")
    train(config)
    with pytest.raises(ValueError, match=r"data_dir: .*other is not what the run was trained on"):
        train(dataclasses.replace(config, data_dir=str(tmp_path / "other"), epochs=4))
    (tmp_path / "digits").mkdir()  # no file of images, though it is there
    monkeypatch.chdir(tmp_path)
    config = images(tmp_path, data_path="", contaminate="digits")
    assert check(config).images.others is not None


def test_foreign_images_are_counted(tmp_path):
    foreign = np.zeros((150, 8, 8), np.uint8)
    foreign[:, ::2] = 255
    np.save(tmp_path / "stripes.npy", foreign)
    mixed = {"contaminate": str(tmp_path / "stripes.npy"), "share": 0.1}
    metrics = train(images(tmp_path, data_size=2000, **mixed))
    assert metrics["foreign_real"] == pytest.approx(0.1, abs=0.01)
    assert 0 <= metrics["foreign"] <= 1
    for bad, message in (
        ({"contaminate": "cats"}, "contaminate: got 'cats'; accepts digits, mnist"),
        ({"contaminate": "digits", "share": 0.0}, "share: got 0.0; accepts numbers above 0"),
        ({"contaminate": __file__}, "contaminate: .* cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            train(images(tmp_path, **bad))


@pytest.mark.parametrize("space", ["latent", "pixels"])
def test_images_of_a_file_and_of_a_folder(tmp_path, space):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "mine.npy", rng.integers(0, 256, (120, 9, 7, 3), dtype=np.uint8))
    train(images(tmp_path, data_path=str(tmp_path / "mine.npy"), space=space))
    assert load_generator(tmp_path / "mine").sample(3).shape == (3, 9 * 7 * 3)
    pictures = tmp_path / "faces"
    pictures.mkdir()
    for k in range(100):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(
            pictures / f"{k}.png"
        )
    metrics = train(
        images(tmp_path, data_type="folder", data_dir=str(pictures), size=8, space=space)
    )
    assert metrics["features"] == "an autoencoder's latents"
    assert load_generator(tmp_path / "faces-2").sample(3).shape == (3, 8 * 8 * 3)


def test_settings_of_images_are_live_with_images_only(tmp_path):
    with pytest.raises(ValueError, match="attention: points have no such setting; it belongs to"):
        Config(attention=True)
    config = Config(data_type="digits")
    assert config.space == "latent" and config.objective == "ot-cfm" and config.latent_dim == 32
    assert Config(data_type="digits", objective="auto").objective == "ot-cfm"
    latent = Config(data_type="digits", objective="ipot")
    assert latent.debiased and latent.updates_per_plan == 2 and latent.huber == Config().huber
    pixels = Config(data_type="digits", objective="ipot-exact", space="pixels")
    assert pixels.debiased and pixels.batchsize == 256 and not Config().debiased
    assert Config(data_type="digits", objective="wgan", space="pixels").c_dim == 32
    assert Config(data_type="digits", objective="wgan-gp", space="pixels").penalty == 10
    assert Config(data_type="digits", objective="wgan-gp").penalty == 0.1
    assert Config().objective == Config(objective="auto").objective == "ipot"
    for wrong, message in (
        ({"attention": True}, "attention: space latent has no such setting; it belongs to pixels"),
        ({"space": "pixels", "latent_dim": 3}, "latent_dim: space pixels has no such setting"),
        ({"space": "features"}, "space: got 'features'; accepts latent, pixels, patches"),
        ({"assignment_cost": "ssim"}, "assignment_cost: ot-cfm has no such setting here; it"),
    ):
        with pytest.raises(ValueError, match=message):
            Config(data_type="digits", **wrong)
    with pytest.raises(ValueError, match=r"space: got 'pixels'; write Config\(space='pixels'\)"):
        config.space = "pixels"
    for wrong, message in (
        ({"objective": "wgan"}, "space: got 'patches'; wgan, which follows no plans, accepts"),
        ({"objective": "ipot", "patch_size": 9}, "patch_size: got 9; accepts up to 8"),
        ({"objective": "ipot", "patch_stride": 5}, "patch_stride: got 5; accepts up to 4"),
        ({"objective": "sinkhorn", "directions": 2}, "directions: got 2; sinkhorn, which needs"),
    ):
        with pytest.raises(ValueError, match=message):
            train(images(tmp_path, space="patches", **wrong))
    with pytest.raises(
        ValueError, match=r"data_type: got 'ring'; write Config\(data_type='ring'\)"
    ):
        config.data_type = "ring"
    with pytest.raises(ValueError, match="attention: got True; wgan, which clips weights"):
        train(images(tmp_path, objective="wgan", space="pixels", attention=True))
    with pytest.raises(ValueError, match="attention: got True; ot-cfm, whose network sees rows"):
        train(images(tmp_path, objective="ot-cfm", space="pixels", attention=True))
    with pytest.raises(ValueError, match="data_size: got 9; images accept 10 or more"):
        train(images(tmp_path, data_size=9))
    with pytest.raises(ValueError, match=r"mnist: no files in .*; put train-images"):
        train(images(tmp_path, data_type="mnist", data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="size: got 3; accepts 0, or integers from 4 to 256"):
        train(images(tmp_path, size=3))
    assert not any(tmp_path.iterdir())
