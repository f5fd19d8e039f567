"""Clouds from coarse to fine, against the solver that reads all pairs, and POT."""

import contextlib
import itertools
import tracemalloc

import numpy as np
import ot
import pytest
import torch
from conftest import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from exactot import cells, columns, multiscale, search, solve_sample
from exactot.cells import cell_numbers, levels
from exactot.costs import CloudRows, Metric
from exactot.multiscale import SearchedRows, anneal_clouds

METRICS = ("sqeuclidean", "euclidean", "cityblock")
SHAPES = ("gauss", "same", "grid", "copies", "outlier", "clusters", "flat", "curve")


@contextlib.contextmanager
def searching():
    """Small clouds of up to six dimensions take the way of large ones, with several levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiscale, "LARGE", dict.fromkeys(range(2, 7), 0))
        patch.setattr(cells, "COARSE", 20)
        patch.setattr(search, "LEAF", 8)
        patch.setattr(columns, "SMALL", 0)
        yield


@pytest.fixture
def searched():
    with searching():
        yield


def shaped(rng, shape, n, m, d):
    """Clouds that are hard in one way each."""
    x, y = rng.normal(size=(n, d)), 0.6 * rng.normal(size=(m, d)) + 1
    if shape == "same":
        y = rng.normal(size=(m, d))
    elif shape == "grid":
        x, y = np.round(2 * x), np.round(2 * y)
    elif shape == "copies":
        x, y = x[rng.integers(1 + n // 5, size=n)], y[rng.integers(1 + m // 5, size=m)]
    elif shape == "outlier":
        x[0] = 1e6
    elif shape == "clusters":
        x, y = (
            10 * rng.normal(size=(6, d))[rng.integers(6, size=k)] + 0.05 * z[:k]
            for k, z in ((n, x), (m, y))
        )
    elif shape == "flat":
        x[:, 0] = y[:, 0] = 3.0
    elif shape == "curve":
        x = np.stack([np.sin((k + 1) * np.linspace(0, 3, n)) for k in range(d)], 1)
    return x, y


def weighted(rng, kind, n):
    w = {
        "uniform": lambda: np.ones(n),
        "random": lambda: rng.random(n),
        "zeros": lambda: rng.random(n) * (rng.random(n) < 0.7) + np.eye(1, n)[0],
        "very different": lambda: 10 ** rng.uniform(-12, 0, n),
    }[kind]()
    return w / w.sum()


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(2, 4),
    st.sampled_from(METRICS),
    st.sampled_from(SHAPES),
    st.sampled_from(["uniform", "random", "zeros", "very different"]),
)
def test_values_are_those_of_the_dense_way(seed, n, m, d, metric, shape, kind):
    rng = np.random.default_rng(seed)
    x, y = shaped(rng, shape, n, m, d)
    a, b = (weighted(rng, kind, k) for k in (n, m))
    dense = solve_sample(x, y, a, b, metric=metric)
    with searching():
        found = solve_sample(x, y, a, b, metric=metric)
    M = cdist(x, y, metric)
    carried = (np.asarray(found.plan) * M).sum()
    assert found.converged
    assert abs(found.value - dense.value) <= 1e-9 * carried + 1e-12 * M.max()
    np.testing.assert_allclose(found.plan.sum(1), a, rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(found.plan.sum(0), b, rtol=1e-13, atol=1e-300)
    f, g = found.potentials
    assert (f[:, None] + g - M).max() <= 1e-12 * (M.max() + abs(f).max() + abs(g).max())
    assert found.sparse_plan.nnz < n + m


def test_large_clouds_are_searched_by_themselves():
    """And exact: POT's simplex on the matrix, whose result is that of the linear program."""
    x, y, a, b = clouds(0, 2200, 2000, 2)
    assert isinstance(
        multiscale.cloud_rows(*map(torch.from_numpy, (x, y)), Metric("sqeuclidean")), SearchedRows
    )
    found = solve_sample(x, y, a, b)
    assert found.value == pytest.approx(ot.emd2(a, b, ot.dist(x, y), numItermax=10**7), rel=1e-10)
    assert found.converged and found.gap < 1e-9 * found.value


def test_what_is_not_for_it_goes_the_dense_way(monkeypatch):
    monkeypatch.setattr(multiscale, "LARGE", {2: 0, 3: 0})
    x, y, *_ = (torch.from_numpy(z) for z in clouds(0, 30, 20, 7))
    for points, metric in (((x, y), "sqeuclidean"), ((x[:, :2], y[:, :2]), torch.cdist)):
        assert type(multiscale.cloud_rows(*points, Metric(metric))) is CloudRows


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_a_gap_is_kept(searched, tol):
    x, y, a, b = clouds(3, 300, 250, 2)
    exact, found = solve_sample(x, y, a, b), solve_sample(x, y, a, b, tol=tol)
    assert found.gap <= tol * found.value and found.converged
    assert found.lower_bound <= exact.value * (1 + 1e-12) <= found.value * (1 + 2e-12)


def test_gradients_are_those_of_the_dense_way(searched):
    x, y, a, b = (torch.from_numpy(z).requires_grad_() for z in clouds(4, 200, 150, 2))
    solve_sample(x, y, a, b).value.backward()
    found = [z.grad.clone() for z in (x, y)]
    plan = torch.from_numpy(
        ot.emd(
            *(z.detach().numpy() for z in (a, b)), ot.dist(x.detach().numpy(), y.detach().numpy())
        )
    )
    expected = (
        2 * (plan.sum(1)[:, None] * x - plan @ y),
        2 * (plan.sum(0)[:, None] * y - plan.T @ x),
    )
    for z, want in zip(found, expected):
        torch.testing.assert_close(z, want.detach(), rtol=0, atol=1e-12)


def test_a_batch_and_float32(searched):
    x, y, a, b = clouds(5, 90, 80, 2)
    both = solve_sample(np.stack((x, x + 1)), np.stack((y, y)), a, b)
    for k in (0, 1):
        assert both.value[k] == pytest.approx(solve_sample(x + k, y, a, b).value, rel=1e-12)
    single = solve_sample(x.astype("f4"), y.astype("f4"))
    assert single.plan.dtype == np.float32
    assert single.value == pytest.approx(solve_sample(x, y).value, rel=1e-5)


def test_cells_are_nested():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 2)) * [1, 1e5]
    corner = points.min(0)
    for k in range(20):
        coarse, fine = (cell_numbers(points, corner, 2.0 ** (e - k)) for e in (17, 16))
        assert fine.max() >= coarse.max()
        assert len(np.unique(fine * 10**6 + coarse)) == fine.max() + 1  # each in one coarse cell
        spread = [np.ptp(points[coarse == c], axis=0).max() for c in range(coarse.max() + 1)]
        assert max(spread) <= 2.0 ** (17 - k)


def test_levels_keep_mass_and_means_and_end_with_the_points(monkeypatch):
    monkeypatch.setattr(cells, "COARSE", 20)
    x, y, a, b = clouds(0, 400, 300, 3)
    found = levels((x, y), (a, b))
    assert len(found) > 2
    for side, points, weights in ((0, x, a), (1, y, b)):
        for level in found:
            cloud = level[side]
            assert cloud.weights.sum() == pytest.approx(1)
            np.testing.assert_allclose(cloud.weights @ cloud.centres, weights @ points, atol=1e-13)
        for before, level in itertools.pairwise(found):
            inside = np.bincount(level[side].parent, level[side].weights)
            np.testing.assert_allclose(inside, before[side].weights, rtol=1e-12)
        np.testing.assert_array_equal(found[-1][side].centres, points)


def test_annealed_potentials_are_nearly_optimal():
    """Their dual value, made feasible, is within 3e-3 of the optimum."""
    x, y, a, b = clouds(1, 1500, 1400, 2)
    found = anneal_clouds(x, y, a, b, "sqeuclidean", 5.0)
    C, g = ot.dist(x, y), found.g.numpy()
    dual = a @ (C - g).min(1) + b @ g
    assert dual == pytest.approx(solve_sample(x, y, a, b).value, rel=3e-3)
    assert dual <= solve_sample(x, y, a, b).value


def test_memory_grows_with_the_points_alone():
    """Of two clouds of 8,000 points: far below the 512 MB of a matrix."""
    x, y, *_ = clouds(0, 8000, 8000, 2)
    tracemalloc.start()
    solve_sample(x, y, tol=1e-2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e3 * (len(x) + len(y))
