"""Costs that are read in blocks of rows: entries, c-transforms, parts, metrics."""

import tracemalloc

import numpy as np
import pytest
import torch
from conftest import LargestTensor, clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from exactot import costs, solve_sample
from exactot.costs import CloudRows, MatrixRows, Metric, squared_distances

METRICS = ("sqeuclidean", "euclidean", "cityblock")


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 2, 4, 5, 20, 784]),
    st.sampled_from([*METRICS, "matrix"]),
    st.sampled_from([7, 100, 10**6]),
)
def test_blocks_and_c_transforms_are_those_of_the_matrix(seed, n, m, d, kind, block):
    x, y, *_ = clouds(seed, n, m, d)
    M = cdist(x, y, "sqeuclidean" if kind == "matrix" else kind)
    X, Y, C = (torch.from_numpy(z) for z in (x, y, M))
    cost = MatrixRows(C) if kind == "matrix" else CloudRows(X, Y, Metric(kind))
    rng = np.random.default_rng(seed)
    f, g = rng.standard_normal(n), rng.standard_normal(m)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "BLOCK", block)
        whole = torch.cat([part.clone() for _, part in cost.blocks()])
        rows, columns = (
            cost.row_minima(torch.from_numpy(g)),
            cost.column_minima(torch.from_numpy(f)),
        )
    np.testing.assert_allclose(whole, M, atol=1e-13 * (1 + M.max()))
    np.testing.assert_allclose(rows, (M - g).min(1), atol=1e-12 * (1 + M.max()))
    np.testing.assert_allclose(columns, (M - f[:, None]).min(0), atol=1e-12 * (1 + M.max()))
    if kind == "sqeuclidean":
        assert (np.abs(whole.numpy() - M) <= cost.error + 1e-14 * M).all()
    some = [np.flatnonzero(rng.random(size) < 0.7) for size in (n, m)]
    if all(map(len, some)):
        part = cost.restricted(*map(torch.from_numpy, some)).block(slice(None))
        np.testing.assert_allclose(part, M[np.ix_(*some)], atol=1e-13 * (1 + M.max()))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("d", [1, 3, 8])
def test_squared_distances_keep_the_dtype_and_their_digits_far_from_zero(dtype, tolerance, d):
    x, y, *_ = clouds(0, 30, 20, d)
    X, Y = (torch.from_numpy(z + 100).to(dtype) for z in (x, y))
    found = squared_distances(X, Y)
    true = cdist(X.double(), Y.double(), "sqeuclidean")
    assert found.dtype == dtype and (found >= 0).all()
    np.testing.assert_allclose(found, true, atol=tolerance * true.max() * 4)


@pytest.mark.parametrize("tol", [0.0, 1e-2])
def test_no_matrix_is_formed_between_clouds(monkeypatch, tol):
    """The largest tensor is a block and its differences, not n x m."""
    monkeypatch.setattr(costs, "BLOCK", 2**14)
    n, m = 1500, 1400
    x, y, a, b = clouds(7, n, m, 2)
    with LargestTensor() as seen:
        solve_sample(x, y, a, b, tol=tol)
    assert seen.entries < n * m / 8
    tracemalloc.start()
    solve_sample(x, y, a, b, tol=tol)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * n * m / 2  # bytes of NumPy's: the arcs and their costs


def test_a_callable_must_keep_to_its_shape():
    x, y, *_ = (torch.from_numpy(z) for z in clouds(0, 12, 10, 2))
    for metric in (lambda u, v: torch.ones(3), lambda u, v: torch.cdist(v, u), lambda u, v: 1.0):
        with pytest.raises(ValueError, match=r"metric must give a tensor of shape \(12, 10\)"):
            Metric(metric)(x, y)
    with pytest.raises(ValueError, match="metric must be sqeuclidean, euclidean, cityblock or a c"):
        Metric("manhattan")
