"""Pairs of small reduced cost, against all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from exactot import search
from exactot.search import SLOPES, Tree, arcs_below, close_leaves, cost, nearest

METRICS = ("sqeuclidean", "euclidean", "cityblock")


def clouds_and_potentials(seed, n, m, d, metric, shape):
    """Points, g, and its c-transform f, which may be far off what is optimal."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 1
    if shape == "grid":
        x, y = np.round(2 * x), np.round(2 * y)
    if shape == "outlier":
        x[0] = 1e6
    if shape == "flat":
        x[:, 0] = y[:, 0] = 3.0
    C = cdist(x, y, metric)
    g = rng.normal(size=m) * rng.choice([0.0, 0.1, 10.0])
    return x, y, C, (C - g).min(1), g


def together(parts):
    parts = list(parts)
    return tuple(np.concatenate(x) for x in zip(*parts)) if parts else ([], [], [])


CLOUDS = st.tuples(
    st.integers(0, 10**6),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 4),
    st.sampled_from(METRICS),
    st.sampled_from(["gauss", "grid", "outlier", "flat"]),
)


@settings(max_examples=150, deadline=None)
@given(CLOUDS, st.sampled_from([0.0, 1e-3, 0.3, 100.0]), st.sampled_from([1, 4, 32]))
def test_all_pairs_below_are_found_and_no_others(clouds, width, leaf):
    x, y, C, f, g = clouds_and_potentials(*clouds)
    metric = clouds[4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "LEAF", leaf)
        patch.setattr(search, "BLOCK", 2000)
        i, j, found = together(arcs_below(Tree(x), Tree(y), f + width, g, metric))
    rounding = 1e-13 * (1 + abs(C).max() + abs(f).max() + abs(g).max())
    sure, possible = (np.argwhere(C - f[:, None] - g < width + s * rounding) for s in (-1, 1))
    pairs = set(zip(np.array(i).tolist(), np.array(j).tolist()))
    assert len(pairs) == len(i)
    assert set(map(tuple, sure.tolist())) <= pairs <= set(map(tuple, possible.tolist()))
    if len(i):
        np.testing.assert_allclose(found, C[i, j], rtol=1e-13, atol=1e-300)


@settings(max_examples=80, deadline=None)
@given(CLOUDS, st.integers(1, 12), st.booleans())
def test_nearest_are_those_of_least_reduced_cost(clouds, count, some):
    x, y, C, f, g = clouds_and_potentials(*clouds)
    rows = np.arange(0, len(x), 3) if some else None
    chosen = np.arange(len(x)) if rows is None else rows
    i, j, found = nearest(Tree(x), Tree(y), f, g, clouds[4], count, 1e-3, rows)
    count = min(count, len(y))
    np.testing.assert_array_equal(i, np.repeat(chosen, count))
    np.testing.assert_allclose(found, C[i, j], rtol=1e-13, atol=1e-300)
    best = np.sort((C - g)[chosen], axis=1)[:, :count]
    rounding = 1e-13 * (1 + abs(C).max() + abs(g).max())
    np.testing.assert_allclose((found - g[j]).reshape(-1, count), best, rtol=0, atol=rounding)


@pytest.mark.parametrize("metric", METRICS)
def test_slopes_are_subgradients(metric):
    rng = np.random.default_rng(0)
    D, E = rng.normal(size=(2, 3, 1000))
    D[:, :100] = 0.0  # where there may be a corner
    along = (SLOPES[metric](D) * (E - D)).sum(0)
    assert (cost(metric, E.copy()) >= cost(metric, D.copy()) + along - 1e-12).all()


@pytest.mark.parametrize("d, most", [(2, 60), (3, 400)])
def test_a_leaf_meets_few_others(d, most):
    """However many there are. The map x -> 1 + x / 2 is optimal, with f = |x|^2 / 2 - 2 <x, 1>."""
    rng, counts = np.random.default_rng(0), []
    for n in (2000, 8000):
        x, y = rng.normal(size=(n, d)), 1 + 0.5 * rng.normal(size=(n, d))
        f = (x**2).sum(1) / 2 - 2 * x.sum(1)
        g = (y**2).sum(1) - 2 * ((y - 1) ** 2).sum(1)
        source, target = Tree(x), Tree(y)
        _, j, C = nearest(source, target, f, g, "sqeuclidean", 1, 1.0)
        f = C - g[j] + 0.01
        A, _ = close_leaves(source, target, f[source.order], g[target.order], "sqeuclidean")
        counts.append(len(A) / 2**source.depth)
    assert counts[0] < most and counts[1] < 1.5 * counts[0]
