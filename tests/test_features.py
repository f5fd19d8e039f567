"""An autoencoder's latents and a classifier's features, on scikit-learn's digits."""

import itertools
import time

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from generative.features import Autoencoder, Classifier, minibatches, portions, shift
from generative.images import read_images

SHAPE = (1, 8, 8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    """Rows to train on and held out, and their labels."""
    found = read_images("digits", "")
    rows = [
        torch.from_numpy(x.reshape(len(x), -1) / np.float32(127.5) - 1)
        for x in (found.train, found.held_out)
    ]
    return *rows, torch.from_numpy(found.train_labels), torch.from_numpy(found.held_out_labels)


def test_images_are_shifted_by_up_to_a_pixel_with_their_edges_repeated():
    shape, n = (2, 16, 17), 200
    rows = torch.randn(n, 2 * 16 * 17, generator=rng())
    assert shift(rows, (2, 17, 16), rng()).shape == rows.shape
    assert torch.equal(shift(rows, (34, 8, 2), rng()), rows)  # too small
    moved = shift(rows, shape, rng(1)).unflatten(1, shape)
    padded = np.pad(rows.unflatten(1, shape).numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
    found = set()
    for image, around in zip(moved.numpy(), padded):
        windows = {(i, j): around[:, i : i + 16, j : j + 17] for i in range(3) for j in range(3)}
        (place,) = (at for at, window in windows.items() if np.array_equal(window, image))
        found.add(place)
    assert len(found) == 9


def test_minibatches_take_each_point_once_in_a_round():
    taken = list(itertools.islice(minibatches(240, rng()), 4))
    assert [len(index) for index in taken] == [100] * 4
    first, second = torch.cat(taken).view(2, 200)
    assert len(first.unique()) == len(second.unique()) == 200
    assert not torch.equal(first, second)
    assert [len(x) for x in itertools.islice(minibatches(5, rng()), 3)] == [5, 5, 5]


def test_a_training_lasts_for_steps_or_for_a_time(capsys):
    assert list(portions(4)) == [0, 0.25, 0.5, 0.75]
    assert capsys.readouterr().err == ""
    started, done = time.perf_counter(), list(portions(1, 0.3, "learning"))
    assert 0.3 <= time.perf_counter() - started
    assert len(done) > 10 and done == sorted(done) and 0 <= done[0] and done[-1] < 1
    assert "learning: 100%" in capsys.readouterr().err


def test_an_autoencoder_gives_standard_latents_and_beats_principal_components(digits):
    train, held_out, *_ = digits
    model, before = Autoencoder(SHAPE, 10), torch.get_rng_state()
    model.train_on(train, 400, rng())
    assert torch.equal(torch.get_rng_state(), before)
    z = model.encode(train)
    torch.testing.assert_close(z.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.var(0), torch.ones(10), atol=1e-2, rtol=0)
    assert not z.requires_grad
    x = model.decode(model.encode(held_out))
    assert x.shape == held_out.shape and float(x.abs().max()) <= 1
    pca = PCA(10, random_state=0).fit(train)
    theirs = torch.from_numpy(pca.inverse_transform(pca.transform(held_out)))
    assert (x - held_out).square().mean() < (theirs - held_out).square().mean()
    other = Autoencoder(SHAPE, 10).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.decode(other.encode(held_out)), x)


def test_training_is_set_by_its_generator(digits):
    train, _, labels, _ = digits
    for make in (
        lambda: (Autoencoder(SHAPE, 4), (train, 5)),
        lambda: (Classifier(SHAPE, 10), (train, labels, 5)),
    ):
        (first, arguments), (again, _) = make(), make()
        first.train_on(*arguments, rng(1))
        again.train_on(*arguments, rng(1))
        for one, other in zip(first.state_dict().values(), again.state_dict().values()):
            assert torch.equal(one, other)
        again.train_on(*arguments, rng(2))
        assert not all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))


def test_a_classifier_knows_held_out_digits(digits):
    train, held_out, labels, held_out_labels = digits
    model = Classifier(SHAPE, 10)
    model.train_on(train, labels, 300, rng())
    right = (model.classes(held_out) == held_out_labels).double().mean()
    assert float(right) > 0.93
    features = model.features(train)
    assert features.shape == (len(train), 84)
    spread = features.std(0)
    alive = spread > 0
    assert int(alive.sum()) > 60 and float((spread[alive] - 1).abs().max()) < 1e-3
    model.train_on(train, labels, 5, rng())  # anew
    spread = model.features(train).std(0)
    assert float((spread[spread > 0] - 1).abs().max()) < 1e-3
