"""The training script on images."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import generative.metrics as metrics_module
from generative.objectives import OBJECTIVES
from learning_demo import Config, load_generator, train
from tests.test_learning_demo import saved, train_and_interrupt, weights


def images(tmp_path, **changes):
    """Settings of a small run on scikit-learn's digits."""
    settings = {"data_type": "digits", "epochs": 2, "plot_interval": 1, "batchsize": 16}
    settings |= {"data_size": 200, "show": False, "output_dir": str(tmp_path)}
    objective = changes.get("objective", "ipot")
    own = {"g_dim": 8, "c_dim": 8, "n_critic": 1, "num_proximal": 10, "latent_centres": 50}
    live = {f.name for f in dataclasses.fields(Config(data_type="digits", objective=objective))}
    settings |= {name: value for name, value in own.items() if name in live}
    return Config(**settings | changes)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_on_images(tmp_path, monkeypatch, objective):
    monkeypatch.setattr(metrics_module, "POINTS", 100)
    monkeypatch.setattr(metrics_module, "QUICK", 50)
    metrics = train(images(tmp_path, objective=objective))
    folder = tmp_path / "digits"
    assert metrics["w2"] > 0 and metrics["w2_two_sample"] > 0
    assert {"final.png", "fit.gif", "curves.png", "fit_00000.png"} <= {
        path.name for path in folder.iterdir()
    }
    drawn = load_generator(folder).sample(7)
    assert drawn.shape == (7, 64) and drawn.dtype == torch.float64
    assert bool(drawn.isfinite().all())
    if objective != "ot-cfm":  # pixels from 0 to 255
        assert float(drawn.min()) >= 0 and 100 < float(drawn.max()) <= 255


@pytest.mark.parametrize("objective", ["ipot", "wgan-gp"])
def test_attention_trains_and_resumes_to_the_same_numbers(tmp_path, monkeypatch, objective):
    monkeypatch.setattr(metrics_module, "POINTS", 100)
    monkeypatch.setattr(metrics_module, "QUICK", 50)
    options = {"objective": objective, "attention": True}
    whole = train(images(tmp_path / "whole", epochs=4, **options))
    train_and_interrupt(images(tmp_path / "cut", epochs=4, **options), after=2)
    resumed = train(dataclasses.replace(saved(tmp_path / "cut" / "digits"), show=False))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    for name, tensor in weights(tmp_path / "whole" / "digits").items():
        assert torch.equal(tensor, weights(tmp_path / "cut" / "digits")[name])


def test_images_of_a_file_and_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_module, "POINTS", 50)
    monkeypatch.setattr(metrics_module, "QUICK", 50)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "mine.npy", rng.integers(0, 256, (120, 9, 7, 3), dtype=np.uint8))
    train(images(tmp_path, data_path=str(tmp_path / "mine.npy"), epochs=1))
    assert load_generator(tmp_path / "mine").sample(3).shape == (3, 9 * 7 * 3)
    pictures = tmp_path / "faces"
    pictures.mkdir()
    for k in range(100):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(
            pictures / f"{k}.png"
        )
    train(images(tmp_path, data_type="folder", data_dir=str(pictures), size=8, epochs=1))
    assert load_generator(tmp_path / "faces-2").sample(3).shape == (3, 8 * 8 * 3)


def test_settings_of_images_are_live_with_images_only(tmp_path):
    with pytest.raises(ValueError, match="attention: points have no such setting; it belongs to"):
        Config(attention=True)
    config = Config(data_type="digits")
    assert config.attention is False and config.z_dim == 64
    with pytest.raises(
        ValueError, match=r"data_type: got 'ring'; write Config\(data_type='ring'\)"
    ):
        config.data_type = "ring"
    with pytest.raises(ValueError, match="attention: got True; wgan, which clips weights"):
        train(images(tmp_path, objective="wgan", attention=True))
    with pytest.raises(ValueError, match=r"mnist: no files in .*; put train-images"):
        train(images(tmp_path, data_type="mnist", data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="size: got 3; accepts 0, or integers from 4 to 256"):
        train(images(tmp_path, size=3))
    assert not any(tmp_path.iterdir())
