"""Samples of each target against its density, and the distances against closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from generative.metrics import wasserstein_distances
from generative.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_samples_follow_the_density(name):
    target = TARGETS[name]
    samples = target.draw(200000, torch.Generator().manual_seed(0))
    assert samples.shape == (200000, 1) and samples.dtype == torch.float32
    assert quad(target.density, -10, 10, points=[0, 2], limit=200)[0] == pytest.approx(1, abs=1e-6)
    edges = np.linspace(*target.window, 12)
    share = np.histogram(samples.numpy(), edges)[0] / len(samples)
    expected = [quad(target.density, *pair, limit=200)[0] for pair in pairwise(edges)]
    np.testing.assert_allclose(share, expected, atol=0.005)


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_half_of_the_samples_is_like_the_second(name):
    samples = TARGETS[name].draw(100000, torch.Generator().manual_seed(1))
    w1, _ = wasserstein_distances(samples[:50000], samples[50000:])
    assert w1 < 0.03


def test_one_seed_gives_one_data_set():
    first, second, other = (
        TARGETS["mixture"].draw(100, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(0.1, 4))
def test_distances_have_their_closed_forms(seed, shift, scale):
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert wasserstein_distances(x, x + shift) == pytest.approx((abs(shift),) * 2, abs=1e-9)
    # Scaling about the mean moves every point by |scale - 1| |x - mean|, in order.
    moved = x.mean() + scale * (x - x.mean())
    w1 = abs(scale - 1) * float((x - x.mean()).abs().mean())
    w2 = abs(scale - 1) * float((x - x.mean()).square().mean().sqrt())
    assert wasserstein_distances(x, moved) == pytest.approx((w1, w2), rel=1e-9, abs=1e-9)
    assert wasserstein_distances(x, moved[torch.randperm(200)]) == pytest.approx((w1, w2), abs=1e-9)


def test_distances_refuse_more_than_one_dimension():
    with pytest.raises(ValueError, match=r"y must have shape \(n, 1\); got \(5, 2\)"):
        wasserstein_distances(torch.ones(5, 1), torch.ones(5, 2))
