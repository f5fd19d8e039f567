"""What generated images are measured by, where the answer is known."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from generative import image_yardstick
from generative.image_yardstick import ImageYardstick, new_eye
from generative.images import contaminated, read_array, read_images
from generative.inception import check_inception
from generative.targets import from_images, image_rows


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return read_images("digits", "")


def measured(images, sample, eye=None, full=True):
    """What a yardstick finds for samples that are given, and its reference."""
    target = from_images(images)
    data = image_rows(torch.from_numpy(images.train))
    yardstick = ImageYardstick(target, data, eye or new_eye(images, rng()), rng(1), full)
    found = yardstick.measure(lambda n, **_: sample(data)[:n])
    assert set(yardstick.reference) >= {f"{name}_real" for name in found if name != "w2"}
    return found, yardstick.reference


@pytest.fixture(scope="module")
def eye(digits):
    return new_eye(digits, rng())


def test_the_training_set_itself_is_as_good_as_real_and_memorised(digits, eye):
    found, reference = measured(digits, lambda data: data, eye)
    for name in ("frechet", "precision", "recall", "density", "coverage", "classes_found"):
        assert found[name] == pytest.approx(reference[name + "_real"])
    assert found["nearer_training"] == 1 and reference["nearer_training_real"] < 0.9
    assert found["classes_found"] == 10 and reference["precision_real"] > 0.9
    assert found["w2"] < 1.1 * reference["w2_two_sample"]


def test_noise_is_far_and_a_missing_class_is_told(digits, eye):
    noise, reference = measured(digits, lambda data: torch.rand_like(data) * 2 - 1, eye)
    assert noise["frechet"] > 5 * reference["frechet_real"] and noise["coverage"] < 0.2
    kept = torch.from_numpy(digits.train_labels) != 3
    found, reference = measured(digits, lambda data: data[kept], eye)
    assert found["classes_found"] == 9 and found["smallest_class"] < 0.1
    assert found["recall"] < reference["recall_real"] + 0.01
    assert found["frechet"] > 1.2 * reference["frechet_real"]


def test_a_quick_look_has_the_distances_only(digits, eye):
    found, _ = measured(digits, lambda data: data, eye, full=False)
    assert set(found) == {"frechet", "w2"}


def test_inceptions_distance_is_that_of_torch_fidelity(digits, eye, monkeypatch):
    """Which is not installed here: another one is in its place, and sees what it would."""
    with pytest.raises(ValueError, match="inception: torch-fidelity is not installed; pip install"):
        check_inception()
    seen = []

    def calculate_metrics(input1, input2, fid, cuda, **_):
        seen.append((torch.stack([*input1]), torch.stack([*input2])))
        return {"frechet_inception_distance": 7.5}

    def create_feature_extractor(*_, **__):
        raise RuntimeError("no route to host")

    module, utils = types.ModuleType("torch_fidelity"), types.ModuleType("torch_fidelity.utils")
    module.calculate_metrics, module.utils = calculate_metrics, utils
    utils.create_feature_extractor = create_feature_extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    monkeypatch.setitem(sys.modules, "torch_fidelity.utils", utils)
    with pytest.raises(ValueError, match=r"inception: the weights .* \(no route to host\)"):
        check_inception()
    utils.create_feature_extractor = lambda *_, **__: None
    check_inception()
    target, data = from_images(digits), image_rows(torch.from_numpy(digits.train))
    yardstick = ImageYardstick(target, data, eye, rng(), full=True, inception=True)
    found = yardstick.measure(lambda n, **_: data[:n])
    assert found["fid"] == yardstick.reference["fid_real"] == 7.5
    generated, real = seen[-1]
    assert generated.shape[1:] == real.shape[1:] == (3, 8, 8) and generated.dtype == torch.uint8
    expected = torch.from_numpy(digits.train[: len(generated)]).permute(0, 3, 1, 2)
    assert torch.equal(generated, expected.expand(-1, 3, -1, -1))


def test_without_labels_an_autoencoder_gives_features(digits, monkeypatch):
    monkeypatch.setattr(image_yardstick, "STEPS", 200)
    plain = replace(digits, train_labels=None, held_out_labels=None)
    eye = new_eye(plain, rng())
    assert eye.words == "an autoencoder's latents"
    found, reference = measured(plain, lambda data: torch.rand_like(data) * 2 - 1, eye)
    assert found["frechet"] > 5 * reference["frechet_real"] and "classes_found" not in found


def test_the_share_of_foreign_images_is_that_among_them(digits, monkeypatch):
    monkeypatch.setattr(image_yardstick, "STEPS", 100)
    stripes = np.zeros((120, 8, 8), np.uint8)
    stripes[:, ::2] = np.random.default_rng(0).integers(100, 256, (120, 1, 1))
    mixed = contaminated(digits, read_array(stripes, None, "", 0), 0.05, seed=0)
    found, reference = measured(mixed, lambda data: data)
    assert found["foreign"] == pytest.approx(0.05, abs=0.005)
    assert reference["foreign_real"] == pytest.approx(0.05, abs=0.005)
    clean = image_rows(torch.from_numpy(digits.train))
    assert measured(mixed, lambda _: clean)[0]["foreign"] < 0.01
