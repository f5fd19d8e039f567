"""Column generation: ties, expensive arcs, few rounds, and a simplex that fails."""

import numpy as np
import ot
import pytest
from conftest import assert_optimal, exact_value, random_problem

from exactot import columns, simplex, solve


def test_ties_everywhere():
    grid = np.stack(np.mgrid[:24, :24], -1).reshape(-1, 2).astype(float)
    rng = np.random.default_rng(0)
    a, b = (np.where(rng.uniform(size=576) < 0.3, 0.0, rng.integers(1, 5, 576)) for _ in range(2))
    a, b = a / a.sum(), b / b.sum()
    M = ot.dist(grid, grid)
    assert_optimal(solve(M, a, b), M, a, b)
    same = solve(M, a, a)
    assert abs(same.value) < 1e-12 and same.converged


@pytest.mark.parametrize("values", [2, 4])
def test_ties_everywhere_take_few_rounds(values, monkeypatch):
    """Rows that all took the same ones of many equal arcs would need eight rounds and more."""
    rng = np.random.default_rng(0)
    M = rng.integers(0, values, (400, 350)).astype(float)
    a, b = rng.dirichlet(np.ones(400)), rng.dirichlet(np.ones(350))
    rounds, emd = [], simplex.emd
    monkeypatch.setattr(simplex, "emd", lambda *x: rounds.append(1) or emd(*x))
    found = solve(M, a, b)
    assert len(rounds) <= 2
    assert found.value == pytest.approx(ot.emd2(a, b, M, numItermax=10**7), abs=1e-12)
    assert found.converged


@pytest.mark.parametrize("small", [0, 10**6])
def test_failure_of_the_simplex_is_certified(monkeypatch, small):
    M, a, b = random_problem(0, 20, 25)
    W, emd = exact_value(M, a, b), simplex.emd
    monkeypatch.setattr(columns, "SMALL", small)
    monkeypatch.setattr(simplex, "emd", lambda *x: (False, *emd(*x)[1:]))
    result = solve(M, a, b)
    assert not result.converged and result.gap > 0
    assert result.lower_bound <= W <= result.value
    np.testing.assert_allclose(result.plan.sum(1), a, atol=1e-14)


@pytest.mark.parametrize("small", [0, 10**6])
@pytest.mark.parametrize("huge", [1e9, 1e15, 1e30])
def test_a_forbidding_cost_leaves_the_others_their_digits(monkeypatch, small, huge):
    monkeypatch.setattr(columns, "SMALL", small)
    M = np.random.default_rng(19).random((60, 60))
    M[0, 0] = M[5, 7] = 3.0
    W = exact_value(M, np.full(60, 1 / 60), np.full(60, 1 / 60))
    M[0, 0] = M[5, 7] = huge
    result = solve(M)
    assert result.value == pytest.approx(W, rel=1e-9) and result.converged
    assert result.lower_bound == pytest.approx(W, rel=1e-6)
