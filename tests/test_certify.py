"""Brackets for plans and potentials of others: true, and tight where these are good."""

import numpy as np
import ot
import pytest
import scipy.sparse
import torch
from conftest import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from exactot import certify, certify_sample, multiscale, solve


def truth(a, b, M):
    return ot.emd2(a, b, M, numItermax=10**7)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["dense", "sparse", "torch", "torch sparse"]),
    st.floats(0, 1),
    st.booleans(),
)
def test_a_bracket_holds_whatever_the_plan_is(seed, n, m, kind, share, with_potentials):
    rng = np.random.default_rng(seed)
    x, y, a, b = clouds(seed, n, m, 3)
    M = cdist(x, y, "sqeuclidean")
    plan = np.outer(a, b) * rng.random((n, m)) * 2 * (rng.random((n, m)) <= share)
    plan[0, 0] += 0.1
    potentials = (rng.normal(size=n), rng.normal(size=m)) if with_potentials else None
    arrays = x, y, M, a, b
    if kind.startswith("torch"):
        arrays = tuple(torch.from_numpy(z) for z in arrays)
    given_plan = {
        "dense": lambda: plan,
        "sparse": lambda: scipy.sparse.csr_array(plan),
        "torch": lambda: torch.from_numpy(plan),
        "torch sparse": lambda: torch.from_numpy(plan).to_sparse(),
    }[kind]()
    X, Y, C, wa, wb = arrays
    options = {"potentials": potentials, "tol": 1e-9}
    W = truth(a, b, M)
    for found in (
        certify(C, given_plan, wa, wb, **options),
        certify_sample(X, Y, given_plan, wa, wb, **options),
    ):
        assert found.lower_bound <= W * (1 + 1e-12) <= found.value * (1 + 3e-12)
        assert found.cost == pytest.approx((plan * M).sum(), rel=1e-9)
        off = abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum()
        assert found.marginal_error == pytest.approx(off, rel=1e-9, abs=1e-12)
        assert isinstance(found.plan, torch.Tensor) is kind.startswith("torch")
        mended = np.asarray(found.plan)
        np.testing.assert_allclose(mended.sum(1), a, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(mended.sum(0), b, rtol=1e-9, atol=1e-14)
        assert float(found.value) == pytest.approx((mended * M).sum(), rel=1e-9)
        f, g = (np.asarray(z) for z in found.potentials)
        assert (f[:, None] + g - M).max() <= 1e-9 * M.max()
        assert float(found.lower_bound) == pytest.approx(a @ f + b @ g, rel=1e-9, abs=1e-12)
        if not with_potentials:
            assert found.lower_bound == pytest.approx(W, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", torch.cdist])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_an_optimal_plan_and_its_potentials_have_no_gap(metric, d):
    x, y, a, b = clouds(1, 60, 50, d)
    M = cdist(x, y, metric if isinstance(metric, str) else "euclidean")
    best = solve(M, a, b)
    arrays = x, y
    if metric is torch.cdist:
        arrays = torch.from_numpy(x), torch.from_numpy(y)
        a, b = torch.from_numpy(a), torch.from_numpy(b)
    for options in (
        {"plan": best.sparse_plan},
        {"plan": best.plan},
        {"potentials": best.potentials},
        {"plan": best.sparse_plan, "potentials": best.potentials},
        {"potentials": (best.potentials[0] + 5, np.zeros(50))},  # the other one follows from it
    ):
        found = certify_sample(*arrays, a=a, b=b, metric=metric, tol=0.0, **options)
        assert found.converged and found.relative_gap < 1e-9
        assert float(found.value) == pytest.approx(best.value, rel=1e-8)


def test_an_assignment_is_a_plan():
    rng = np.random.default_rng(2)
    x, y, order = rng.normal(size=(30, 2)), rng.normal(size=(30, 2)), rng.permutation(30)
    for columns in (order, torch.from_numpy(order)):
        found = certify_sample(x, y, columns)
        M = cdist(x, y, "sqeuclidean")
        assert found.value == pytest.approx(M[np.arange(30), order].mean(), rel=1e-12)
        assert found.marginal_error < 1e-15 and not found.converged
        assert found.lower_bound == pytest.approx(truth([], [], M), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-300, 1e-30, 1e3, 1e12]), st.booleans())
def test_masses_are_of_any_unit(seed, unit, sparse):
    rng = np.random.default_rng(seed)
    x, y, a, b = clouds(seed, 12, 15, 2)
    M, a, b = cdist(x, y), unit * a, unit * b
    plan = np.outer(a, b) / unit * rng.random((12, 15)) * (rng.random((12, 15)) < 0.5)
    plan[3, 4] += unit
    found = certify(M, scipy.sparse.csr_array(plan) if sparse else plan, a, b, tol=1e-9)
    W = unit * truth(a / unit, b / unit, M)
    assert found.lower_bound <= W * (1 + 1e-9) <= found.value * (1 + 2e-9)
    np.testing.assert_allclose(found.plan.sum(1), a, rtol=1e-9)
    np.testing.assert_allclose(found.plan.sum(0), b, rtol=1e-9)
    assert found.marginal_error == pytest.approx(
        abs(plan.sum(1) - a).sum() + abs(plan.sum(0) - b).sum()
    )


def test_what_is_given_stays_as_it_is():
    data, indices, starts = np.array([0.2, 0.3, 0.4, 0.1]), np.array([1, 0, 1, 1]), [0, 2, 4]
    plan = scipy.sparse.csr_array((data, indices, starts), shape=(2, 2))
    before = [z.copy() for z in (plan.data, plan.indices, plan.indptr)]
    data.flags.writeable = False
    found = certify(np.eye(2), plan)
    assert all((z == w).all() for z, w in zip(before, (plan.data, plan.indices, plan.indptr)))
    assert found.cost == pytest.approx((plan.toarray() * np.eye(2)).sum())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_plans_of_torch_in_other_layouts_and_precisions():
    x, y, a, b = (torch.from_numpy(z) for z in clouds(6, 8, 9, 2))
    plan = torch.outer(a, b)
    wanted = certify_sample(x, y, plan, a, b)
    for other in (plan.to_sparse_csr(), plan.bfloat16(), plan.bfloat16().to_sparse()):
        found = certify_sample(x, y, other, a, b)
        assert float(found.cost) == pytest.approx(float(wanted.cost), rel=1e-2)
    a.requires_grad_()
    assert certify_sample(x, y, a=a, b=b, potentials=wanted.potentials).converged


def test_points_without_mass_do_not_spoil_a_bound():
    x, y, a, b = clouds(7, 20, 15, 2)
    a[3] = b[5] = 0.0
    a, b = a / a.sum(), b / b.sum()
    M = cdist(x, y)
    f, g = solve(M, a, b).potentials
    f, g = f.copy(), g.copy()
    f[3] = g[5] = 1e6
    found = certify(M, a=a, b=b, potentials=(f, g))
    assert found.lower_bound == pytest.approx(truth(a, b, M), rel=1e-9)
    assert (found.potentials[0][:, None] + found.potentials[1] - M).max() <= 1e-9


def test_a_known_excess_is_found():
    """POT's entropic plan costs a known share more than its exact one."""
    x, y, a, b = clouds(3, 50, 40, 2)
    M = cdist(x, y, "sqeuclidean")
    plan, W = ot.sinkhorn(a, b, M, 0.5, stopThr=1e-12), truth(a, b, M)
    found = certify(M, plan, a, b, tol=1e-6)
    assert found.marginal_error < 1e-9
    assert found.relative_gap == pytest.approx(1 - W / (plan * M).sum(), rel=1e-4)


def test_large_clouds_need_no_matrix(monkeypatch):
    x, y, a, b = clouds(4, 3000, 2500, 2)
    monkeypatch.setattr(multiscale.SearchedRows, "block", None)  # would be a pass over all pairs
    rows, columns, mass = np.arange(3000), np.arange(3000) % 2500, a
    found = certify_sample(
        x, y, scipy.sparse.coo_array((mass, (rows, columns)), (3000, 2500)), a, b
    )
    assert found.lower_bound < found.value and found.marginal_error > 0.01


def test_single_precision_rounds_outwards():
    x, y, a, b = clouds(5, 40, 30, 2)
    x, y = x.astype(np.float32), y.astype(np.float32)
    best = solve(cdist(x, y, "sqeuclidean"), a, b)
    found = certify_sample(x, y, best.sparse_plan, a, b, tol=1e-6)
    assert found.value.dtype == found.potentials[0].dtype == np.float32
    assert found.lower_bound <= best.value <= found.value and found.converged


@pytest.mark.parametrize(
    ("plan", "options", "error", "words"),
    [
        (None, {}, ValueError, "give a plan"),
        (np.ones((3, 3)), {}, ValueError, "shape"),
        (-np.ones((3, 2)), {}, ValueError, "non-negative"),
        (np.zeros((3, 2)), {}, ValueError, "mass"),
        (np.full((3, 2), np.nan), {}, ValueError, "finite"),
        (np.array([0, 1, 2]), {}, ValueError, "from 0 to 1"),
        (None, {"potentials": np.ones(3)}, TypeError, "pair"),
        (None, {"potentials": (np.ones(3), np.ones(3))}, ValueError, "shapes"),
        (None, {"potentials": (np.ones(3), np.full(2, np.inf))}, ValueError, "finite"),
        (np.ones((3, 2)), {"tol": -1.0}, ValueError, "tol"),
    ],
)
def test_what_cannot_be_certified_is_said(plan, options, error, words):
    x, y = np.arange(6.0).reshape(3, 2), np.arange(4.0).reshape(2, 2)
    for function, arrays in ((certify, (cdist(x, y),)), (certify_sample, (x, y))):
        with pytest.raises(error, match=words):
            function(*arrays, plan, **options)
