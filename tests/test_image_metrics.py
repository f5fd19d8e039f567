"""Distances and shares of images, where the answer is known."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generative import image_metrics
from generative.image_metrics import (
    class_shares,
    density_and_coverage,
    frechet_distance,
    nearer_share,
    precision_and_recall,
    share_of_the_unseen,
)


def normal(n, d=8, seed=0, shift=0.0, sd=1.0):
    rng = torch.Generator().manual_seed(seed)
    return shift + sd * torch.randn(n, d, generator=rng)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_frechet_distance_is_the_formula_by_scipys_root(seed, d):
    rng = np.random.default_rng(seed)
    x, y = (
        rng.normal(size=(4 * d + 1, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d) for _ in "xy"
    )
    covariances = [np.cov(z.T).reshape(d, d) for z in (x, y)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    found = frechet_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_classes_that_are_due_nothing_do_not_count():
    found = class_shares(torch.tensor([0, 0, 2, 2]), torch.tensor([0.5, 0.0, 0.5]))
    assert found == {"classes_found": 2, "smallest_class": 1.0, "largest_class": 1.0}


def test_frechet_distance_of_few_samples_in_many_dimensions():
    """Singular covariances: two points on each axis, x on the first, y on the second."""
    x, y = torch.zeros(2, 5), torch.zeros(2, 5)
    x[0, 0], x[1, 0], y[0, 1], y[1, 1] = 1, -1, 1, -1
    assert frechet_distance(x, y) == pytest.approx(4) and frechet_distance(x, x) < 1e-12


def test_frechet_distance_of_known_gaussians():
    x = normal(2000)
    assert frechet_distance(x, x) < 1e-9
    assert frechet_distance(x, 3 * x) == pytest.approx(
        4 * (float(x.T.cov().trace()) + float(x.mean(0).square().sum())), rel=1e-6
    )
    assert frechet_distance(x, x + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)


def test_the_same_law_has_all_and_another_one_nothing():
    x, y = normal(1000), normal(1000, seed=1)
    assert min(precision_and_recall(x, y)) > 0.93
    density, coverage = density_and_coverage(x, y)
    assert density == pytest.approx(1, abs=0.05) and coverage > 0.95
    far = normal(1000, shift=50)
    assert precision_and_recall(far, y) == (0, 0) and density_and_coverage(far, y) == (0, 0)
    copies = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    assert precision_and_recall(copies, y) == (1, 1)
    assert density_and_coverage(copies, y)[1] == 1


def test_a_narrow_law_has_precision_and_no_recall_and_a_wide_one_the_reverse():
    y = normal(1000, seed=1)
    precision, recall = precision_and_recall(normal(1000, sd=0.3), y)
    assert precision > 0.99 and recall < 0.2
    assert density_and_coverage(normal(1000, sd=0.3), y)[0] > 2
    precision, recall = precision_and_recall(normal(1000, sd=3), y)
    assert precision < 0.2 and recall > 0.99


def test_a_missing_mode_halves_recall_and_coverage():
    y = torch.cat((normal(500, seed=1), normal(500, seed=2, shift=20)))
    x = normal(1000)
    precision, recall = precision_and_recall(x, y)
    _, coverage = density_and_coverage(x, y)
    assert precision > 0.93 and recall == pytest.approx(0.48, abs=0.03)
    assert coverage == pytest.approx(0.5, abs=0.01)


def test_counts_agree_with_loops(monkeypatch):
    """Also in blocks of few rows."""
    monkeypatch.setattr(image_metrics, "BLOCK", 100)
    x, y, k = normal(37, 3).numpy(), normal(23, 3, seed=1).numpy(), 4
    radii = {
        name: [np.sort([np.linalg.norm(p - q) for q in z])[k] for p in z]
        for name, z in (("x", x), ("y", y))
    }
    inside = np.array(
        [[np.linalg.norm(p - q) <= radii["y"][j] for j, q in enumerate(y)] for p in x]
    )
    reached = [any(np.linalg.norm(p - q) <= radii["x"][j] for j, q in enumerate(x)) for p in y]
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    found = precision_and_recall(x, y, k)
    assert found == pytest.approx((inside.any(1).mean(), np.mean(reached)), abs=1e-12)
    expected = inside.sum() / (k * len(x)), inside.any(0).mean()
    assert density_and_coverage(x, y, k) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="4 images have no 4 neighbours each; accepts 5"):
        precision_and_recall(x[:4], y, k)


def test_memorising_shows_in_the_share_that_is_nearer_to_what_was_seen():
    seen, unseen = normal(800, seed=1), normal(200, seed=2)
    assert nearer_share(normal(4000, seed=3), seen, unseen) == pytest.approx(0.8, abs=0.03)
    assert share_of_the_unseen(seen, normal(800, seed=2)) == pytest.approx(0.5, abs=0.06)
    copies = seen + 0.01 * normal(800, seed=4)
    assert nearer_share(copies, seen, unseen) == 1
    blurred = 0.5 * normal(4000, seed=5)  # nearer to everything, not to what was seen
    assert nearer_share(blurred, seen, unseen) == pytest.approx(0.8, abs=0.06)
    ordered = torch.cat((normal(400, seed=7, shift=-9), normal(400, seed=8, shift=9)))
    mixed = torch.cat((normal(800, seed=9, shift=-9), normal(800, seed=10, shift=9)))
    assert share_of_the_unseen(mixed, ordered) == pytest.approx(2 / 3, abs=0.06)
    half = torch.cat((copies[:400], normal(400, seed=6)))
    assert nearer_share(half, seen, unseen) == pytest.approx(0.9, abs=0.03)
    assert nearer_share(seen, seen, seen) == 0.5


def test_a_class_that_is_missing_is_not_found():
    classes = torch.arange(1000) % 9
    assert class_shares(classes, torch.full((9,), 1 / 9))["classes_found"] == 9
    found = class_shares(classes, torch.full((10,), 0.1))
    assert found["classes_found"] == 9 and found["smallest_class"] == 0
    assert found["largest_class"] == pytest.approx(1.12)
    rare = torch.tensor([0.98, 0.02])
    assert class_shares((torch.arange(1000) >= 980).long(), rare) == {
        "classes_found": 2,
        "smallest_class": pytest.approx(1),
        "largest_class": pytest.approx(1),
    }
