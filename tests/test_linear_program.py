"""A barycenter's linear program by column generation, against the whole program."""

import numpy as np
import ot
import pytest
import scipy.optimize
from conftest import barycenter_problems, barycenter_program
from hypothesis import given, settings

from exactot import barycenter


@settings(max_examples=150, deadline=None)
@given(barycenter_problems())
def test_exact_is_the_linear_program(problem):
    A, M, weights = problem
    found = barycenter(A, M, weights, exact=True)
    span = float(np.ptp(M)) or abs(M).max()
    assert abs(found.value - barycenter_program(A, M, weights)) <= 1e-8 * (span + abs(M).max())
    assert found.converged and found.gap <= 2e-9 * (span + abs(M).max())


@pytest.mark.parametrize("seed", range(3))
def test_exact_beyond_a_line(seed):
    rng = np.random.default_rng(seed)
    A = rng.dirichlet(np.full(36, 0.3), 4).T
    x = np.stack(np.divmod(np.arange(36), 6), 1) * 1.0
    weights = rng.dirichlet(np.ones(4))
    found = barycenter(A.reshape(6, 6, 4), weights=weights, grid=1.0, exact=True)
    best = barycenter_program(A, ot.dist(x), weights)
    assert found.value == pytest.approx(best, rel=1e-8) and found.gap < 1e-8 * best


def test_failure_of_the_program_is_an_error(monkeypatch):
    class Failed:
        status, message = 4, "numerical trouble"

    monkeypatch.setattr(scipy.optimize, "linprog", lambda *_, **__: Failed)
    A = np.random.default_rng(12).uniform(size=(3, 3, 2))
    with pytest.raises(RuntimeError, match=r"HiGHS did not solve.*numerical trouble"):
        barycenter(A, grid=1.0, exact=True)
