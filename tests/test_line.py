"""Closed forms on a line."""

import numpy as np
import pytest
import torch
from conftest import assert_optimal, clouds, exact_value, line_cost
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from exactot import solve_sample
from exactot.line import is_monge, monotone_cost, north_west


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30))
def test_the_north_west_corner_rule_is_feasible(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) * (rng.random(n) < 0.7) + 1e-9, rng.random(m) + 1e-9
    a, b = a / a.sum(), b / b.sum()
    rows, columns, mass = north_west(a, b)
    assert len(rows) == n + m - 1 and (mass >= 0).all()
    np.testing.assert_array_equal(np.diff(rows) + np.diff(columns), 1)
    np.testing.assert_allclose(np.bincount(rows, mass, n), a, atol=1e-15)
    np.testing.assert_allclose(np.bincount(columns, mass, m), b, atol=1e-15)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
def test_potentials_of_a_line_are_feasible(metric):
    x, y, a, b = clouds(10, 80, 70, 1, zeros=True)
    y[:5], x[:7] = y[0], x[0]
    result = solve_sample(x, y, a, b, metric=metric)
    f, g = result.potentials
    M = cdist(x, y, metric)
    assert (f[:, None] + g <= M + 1e-14 * M.max()).all()
    assert_optimal(result, M, a, b)
    assert result.n_iter == 0


def test_a_long_line_is_sorted():
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal(200_000), rng.standard_normal(200_000) + 1
    result = solve_sample(x[:, None], y[:, None])
    assert result.converged and result.n_iter == 0
    assert result.value == pytest.approx(np.mean((np.sort(x) - np.sort(y)) ** 2), rel=1e-12)
    assert result.gap <= 1e-10 * result.value


def test_what_a_monge_matrix_is():
    x = np.arange(8.0)
    assert is_monge(torch.from_numpy(line_cost(8)))
    assert is_monge(torch.from_numpy(np.abs(x[:, None] - x) ** 1.5))
    assert not is_monge(torch.from_numpy(np.abs(x[:, None] - x) ** 0.5))
    huge = 1e-4 * np.random.default_rng(14).random((8, 8))
    huge[0, 7] = 1e8
    assert not is_monge(torch.from_numpy(huge))


def test_the_monotone_cost_is_that_of_the_linear_program():
    rng = np.random.default_rng(3)
    for _ in range(20):
        q, p = rng.dirichlet(np.ones(12)), rng.dirichlet(np.full(12, 0.1))
        assert monotone_cost(line_cost(12), q, p) == pytest.approx(exact_value(line_cost(12), q, p))
