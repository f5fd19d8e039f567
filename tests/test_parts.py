"""Plans within a gap, solved part by part."""

import numpy as np
import ot
import pytest
from conftest import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist

from exactot import cells, multiscale, parts, simplex, solve_sample
from exactot.search import Tree


@pytest.fixture
def searched(monkeypatch):
    """Small clouds take the way of large ones, in several parts."""
    monkeypatch.setattr(multiscale, "LARGE", {2: 0, 3: 0})
    monkeypatch.setattr(cells, "COARSE", 40)
    monkeypatch.setattr(parts, "PART", 150)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("d", [2, 3])
def test_a_gap_is_reached_without_a_program_for_all(searched, monkeypatch, metric, d):
    sizes, emd = [], simplex.emd
    monkeypatch.setattr(simplex, "emd", lambda a, *rest: sizes.append(len(a)) or emd(a, *rest))
    x, y, a, b = clouds(0, 700, 600, d)
    found = solve_sample(x, y, a, b, metric=metric, tol=0.03)
    assert len(sizes) > 5 and max(sizes) < 300
    M = cdist(x, y, metric)
    W = ot.emd2(a, b, M, numItermax=10**7)
    assert found.converged and found.gap <= 0.03 * found.value
    assert found.lower_bound <= W * (1 + 1e-12) <= found.value * (1 + 2e-12)
    assert found.value == pytest.approx((found.plan * M).sum(), rel=1e-12)
    np.testing.assert_allclose(found.plan.sum(1), a, rtol=1e-10)
    np.testing.assert_allclose(found.plan.sum(0), b, rtol=1e-10)
    assert found.sparse_plan.nnz < 4 * (len(a) + len(b))


@pytest.mark.parametrize("within", [0.0, multiscale.WITHIN])
def test_a_gap_that_parts_do_not_reach_takes_a_program_for_all(searched, monkeypatch, within):
    """Whether they are tried or not."""
    monkeypatch.setattr(multiscale, "WITHIN", within)
    x, y, a, b = clouds(1, 500, 400, 2)
    found = solve_sample(x, y, a, b, tol=1e-6)
    assert found.converged and found.gap <= 1e-6 * found.value


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 200), st.integers(2, 50))
def test_parts_keep_the_marginals_and_cost_no_more(seed, n, m, part):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 1
    mass = rng.random((n, m)) * (rng.random((n, m)) < 0.3)
    rows, columns = np.nonzero(mass)
    mass, costs = mass[rows, columns], cdist(x, y)[rows, columns]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", part)
        found = parts.solve_parts((rows, columns), mass, costs, Tree(x)) if len(mass) else mass
    for ends, size in ((rows, n), (columns, m)):
        sums = [np.bincount(ends, each, size) for each in (mass, found)]
        np.testing.assert_allclose(*sums, rtol=1e-9, atol=1e-13)
    assert found @ costs <= mass @ costs * (1 + 1e-12)
    assert (found >= 0).all()


def some_plan(rng, n, m, share):
    """Masses (n, m), some in each row and in each column."""
    mass = rng.random((n, m)) * (rng.random((n, m)) < share)
    mass[np.arange(max(n, m)) % n, np.arange(max(n, m)) % m] = rng.random(max(n, m)) + 0.1
    return csr_array(mass.astype(np.float32))


def test_sweeps_balance_a_plan():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.full(300, 5.0)), rng.dirichlet(np.full(200, 5.0))
    plan = parts.balanced(some_plan(rng, 300, 200, 0.5), a, b)
    np.testing.assert_allclose(plan.sum(1), a, rtol=1e-4)
    np.testing.assert_allclose(plan.sum(0), b, rtol=1e-4)


def test_steps_of_newton_balance_parts():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(40)), rng.dirichlet(np.ones(500))
    shares = some_plan(rng, 40, 500, 1.0).astype(float)
    found = parts.newton(shares, a, b)
    np.testing.assert_allclose(found.sum(1), a, rtol=1e-10)
    np.testing.assert_allclose(found.sum(0), b, rtol=1e-10)
    logs = np.log(found.toarray() / shares.toarray())  # of rank one: rows and columns are scaled
    np.testing.assert_allclose(logs - logs[:1] - logs[:, :1] + logs[0, 0], 0, atol=1e-9)


def test_parts_send_what_is_missing_through_points_that_they_share(monkeypatch):
    """A plan between near points of two clouds, whose marginals are off over long distances."""
    monkeypatch.setattr(parts, "PART", 50)
    rng = np.random.default_rng(0)
    x, y = rng.random((600, 2)), rng.random((500, 2))
    near = np.exp(-cdist(x, y, "sqeuclidean") / 0.01) * (cdist(x, y) < 0.2)
    a, b = near.sum(1) * (1 + 0.5 * x[:, 0]), near.sum(0)
    a, b = a / a.sum(), b / b.sum()
    rows, columns, mass = parts.first_flow(csr_array(near / near.sum()), a, b, (Tree(x), Tree(y)))
    part = parts.parts_of(Tree(x))
    shared = np.array([near[part == k].any(0) for k in range(part.max() + 1)])
    assert mass[~shared[part[rows], columns]].sum() < 1e-9
    np.testing.assert_allclose(np.bincount(rows, mass), a, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 80),
    st.integers(1, 80),
    st.floats(0, 1),
    st.integers(2, 30),
)
def test_the_first_flow_has_the_marginals_whatever_the_plan_is(seed, n, m, share, part):
    """Also where no scaling of the plan has them, as between clusters of unequal mass."""
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.ones(n)) + 1e-9, rng.dirichlet(np.ones(m)) + 1e-9
    a, b = a / a.sum(), b / b.sum()
    trees = Tree(rng.normal(size=(n, 2))), Tree(rng.normal(size=(m, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", part)
        rows, columns, mass = parts.first_flow(some_plan(rng, n, m, share), a, b, trees)
    assert (mass >= 0).all()
    np.testing.assert_allclose(np.bincount(rows, mass, n), a, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(np.bincount(columns, mass, m), b, rtol=1e-9, atol=1e-13)
