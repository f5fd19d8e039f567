"""Patches of images at fixed places."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactot import solve_sample
from generative.patches import Patches, sliced_destination


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(4, 12), st.integers(4, 12), st.integers(2, 4), st.data())
def test_patches_cover_images_and_give_them_back(channels, height, width, size, data):
    stride = data.draw(st.integers(1, size))
    patches = Patches((channels, height, width), size, stride)
    x = torch.randn(5, channels * height * width, generator=rng())
    cut = patches.cut(x)
    assert len(cut) == len(patches.places) and cut[0].shape == (5, channels * size**2)
    torch.testing.assert_close(patches.paste(cut), x)


def test_where_patches_overlap_they_are_averaged():
    patches = Patches((1, 2, 3), 2, 1)
    left, right = torch.zeros(1, 4), torch.full((1, 4), 2.0)
    assert patches.paste([left, right]).tolist() == [[0, 1, 2, 0, 1, 2]]


def test_sliced_destinations_on_the_line_are_those_of_the_exact_plan():
    x, y = torch.randn(2, 30, 1, generator=rng())
    found, cost = sliced_destination(x, y, 1, rng(1))
    transport = solve_sample(x, y)
    torch.testing.assert_close(found, 30 * (transport.plan @ y).float())
    assert float(cost) == pytest.approx(float(transport.value), rel=1e-5)


def test_sliced_destinations_undo_a_shift():
    """Along each line all points move alike; over many lines the moves add up to the shift."""
    x = torch.randn(50, 3, generator=rng())
    shift = torch.tensor([1.0, -2.0, 0.5])
    found, cost = sliced_destination(x, x + shift, 20000, rng(1))
    torch.testing.assert_close(found, x + shift, atol=0.05, rtol=0)
    assert float(cost) == pytest.approx(float(shift.square().sum()), rel=0.03)
