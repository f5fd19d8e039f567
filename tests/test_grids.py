"""Costs that are applied axis by axis, against the whole matrix."""

import numpy as np
import ot
import pytest
import torch
from conftest import LargestTensor
from hypothesis import given, settings
from hypothesis import strategies as st

from exactot import barycenter, barycenters
from exactot.grids import GridCost, squared_distances_on


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(7,), (4, 5), (3, 2, 4)]),
    st.sampled_from([0.1, 30.0, 1e4]),
    st.booleans(),
)
def test_products_and_c_transforms_are_those_of_the_matrix(seed, shape, s, transposed):
    rng = np.random.default_rng(seed)
    axes = [torch.from_numpy(rng.normal(size=(n, n))) for n in shape]
    cost = GridCost(axes)
    x = torch.from_numpy(rng.normal(scale=5, size=(2, *shape)))
    x[0].view(-1)[0] = -torch.inf
    C = cost.matrix().mT if transposed else cost.matrix()
    flat = x.flatten(1)
    expected = torch.logsumexp(flat[:, None, :] - s * C, -1).view_as(x)
    found = cost.log_product(x, s, transposed)
    np.testing.assert_allclose(found, expected, atol=1e-9 * (1 + s), rtol=1e-10)
    x = x.clamp_min(-20)
    expected = (C - x.flatten(1)[:, None, :]).amin(-1).view_as(x)
    np.testing.assert_allclose(cost.c_transform(x, transposed), expected, atol=1e-12)


def test_squared_distances_on_a_grid():
    cost, unit = squared_distances_on((0.5, 2.0), (3, 4), "cpu")
    points = np.stack(np.mgrid[:3, :4], -1).reshape(-1, 2) * [0.5, 2.0]
    np.testing.assert_allclose(cost.matrix(), ot.dist(points), atol=1e-14)
    assert cost.span == pytest.approx(1 + 36) and cost.lowest == 0 and unit == 1
    small, unit = squared_distances_on((0.5e-100, 2e-100), (3, 4), "cpu")
    np.testing.assert_allclose(unit * small.matrix(), 1e-200 * cost.matrix(), rtol=1e-14)


@pytest.mark.parametrize("shape", [(40,), (5, 8), (3, 4, 3)])
def test_the_grid_and_its_cost_matrix_agree(shape):
    rng = np.random.default_rng(4)
    spacing = tuple(rng.uniform(0.5, 2, len(shape)))
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * spacing
    M = ot.dist(points.reshape(-1, len(shape)))
    A = rng.uniform(size=(*shape, 3)) ** 3
    for max_iter in (10, 100, 500):
        on_grid = barycenter(A, grid=spacing, max_iter=max_iter)
        dense = barycenter(A.reshape(-1, 3), M, max_iter=max_iter)
        np.testing.assert_allclose(on_grid.histogram.ravel(), dense.histogram, atol=1e-7)
        assert on_grid.value == pytest.approx(dense.value, rel=1e-9)
        assert on_grid.lower_bound == pytest.approx(dense.lower_bound, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_rounded_plans_bound_the_optimal_ones(seed, max_iter):
    rng = np.random.default_rng(seed)
    A = rng.uniform(size=(3, 5, 2)) * rng.integers(0, 2, (3, 5, 1)) + 1e-3
    found = [barycenter(A, grid=(1.0, 0.3), max_iter=max_iter)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(barycenters, "BINS", 0)
        found.append(barycenter(A, grid=(1.0, 0.3), max_iter=max_iter))
    np.testing.assert_array_equal(found[0].histogram, found[1].histogram)
    assert found[0].value <= found[1].value * (1 + 1e-12)


def test_no_matrix_between_the_bins_of_a_grid():
    side, count = 64, 3
    A = np.random.default_rng(9).uniform(size=(side, side, count)) ** 20
    with LargestTensor() as seen:
        barycenter(A, grid=1 / side, max_iter=60)
    assert seen.entries <= max(side**2 * count, 2**19) < side**4 / 8


def test_a_grid_too_large_for_its_dtype():
    with pytest.raises(ValueError, match=r"costs must not overflow torch.float32"):
        barycenter(np.ones((4, 5, 3), np.float32), grid=1e20)
