"""Certified barycenters against the linear program, closed forms and finite differences."""

import doctest
import importlib

import numpy as np
import ot
import pytest
import torch
from conftest import barycenter_problems, barycenter_program, line_cost
from hypothesis import given, settings
from hypothesis import strategies as st

from exactot import barycenter, barycenters
from ipot import BarycenterIteration


def objective(q, A, M, weights):
    scale = abs(M).max() or 1.0
    return scale * sum(w * ot.emd2(q, p / p.sum(), M / scale) for w, p in zip(weights, A.T))


# ----------------------------------------------------------------------------------- certificates


@settings(max_examples=150, deadline=None)
@given(barycenter_problems(), st.integers(1, 200))
def test_the_optimum_lies_between_the_bounds(problem, max_iter):
    A, M, weights = problem
    span = float(np.ptp(M)) or 1.0
    found = barycenter(A, M, weights, max_iter=max_iter)
    best, slack = barycenter_program(A, M, weights), 1e-9 * (span + abs(M).max())
    assert found.lower_bound - slack <= best <= found.value + slack
    assert found.gap >= 0 and found.n_iter == max_iter
    assert (found.histogram >= 0).all() and found.histogram.sum() == pytest.approx(1, abs=1e-12)
    assert abs(found.value - objective(found.histogram, A, M, weights)) <= slack
    f, g = found.potentials
    assert f.shape == g.shape == A.shape
    assert (f[:, None, :] + g[None, :, :] <= M[:, :, None] + slack).all()
    assert abs(f @ weights).max() <= slack


@pytest.mark.parametrize("max_iter", [100, 1000])
def test_the_published_pair(max_iter):
    x = np.arange(100)
    bump = [np.exp(-((x - m) ** 2) / (2 * s**2)) for m, s in ((20, 5), (40, 5), (60, 8))]
    A = np.stack([bump[0] + bump[1], bump[2]], 1)
    M = line_cost(100)
    best = barycenter(A, M, exact=True)
    assert best.n_iter == 0 and best.gap < 1e-12
    found = barycenter(A, M, max_iter=max_iter)
    assert found.value - best.value <= 1e-5
    assert best.value - found.lower_bound <= 2e-5


@pytest.mark.parametrize("bins", [0, 10**6])
def test_tol_is_reached(monkeypatch, bins):
    monkeypatch.setattr(barycenters, "BINS", bins)  # plans that are rounded, or optimal ones
    A = np.random.default_rng(0).uniform(size=(6, 7, 3)) ** 4
    found = barycenter(A, grid=0.5, tol=0.05, max_iter=2000)
    assert found.converged and found.gap <= 0.05 * found.value and found.n_iter < 2000
    few = barycenter(A, grid=0.5, tol=1e-9, max_iter=30)
    assert not few.converged and few.n_iter == 30


# ------------------------------------------------------------------------------------- properties


def test_one_input_gives_itself_back():
    p = np.random.default_rng(0).dirichlet(np.ones(30))[:, None]
    for found in (
        barycenter(p, line_cost(30), max_iter=1000),
        barycenter(p, line_cost(30), exact=True),
        barycenter(np.tile(p, 3), line_cost(30), np.array([0.2, 0.5, 0.3]), max_iter=1000),
        barycenter(np.tile(p, 3), line_cost(30), np.array([0.2, 0.5, 0.3]), exact=True),
        barycenter(np.stack([p[:, 0], p[::-1, 0]], 1), line_cost(30), [1.0, 0.0], exact=True),
    ):
        np.testing.assert_allclose(found.histogram, p[:, 0], atol=1e-6)
        assert abs(found.value) < 1e-6


def test_translation_and_reflection():
    rng = np.random.default_rng(1)
    A = np.zeros((20, 18, 2))
    A[3:12, 4:11] = rng.uniform(size=(9, 7, 2))
    base = barycenter(A, grid=1.0).histogram
    moved = barycenter(np.roll(A, (5, 3), (0, 1)), grid=1.0).histogram
    np.testing.assert_allclose(moved, np.roll(base, (5, 3), (0, 1)), atol=1e-4)
    np.testing.assert_allclose(barycenter(A[::-1], grid=1.0).histogram, base[::-1], atol=1e-9)
    np.testing.assert_allclose(
        barycenter(A.transpose(1, 0, 2), grid=1.0).histogram, base.T, atol=1e-9
    )


@pytest.mark.parametrize("kw", [{"exact": True}, {"max_iter": 1000}])
def test_a_barycenter_on_a_line_averages_quantiles(kw):
    rng = np.random.default_rng(2)
    n, weights = 400, np.array([0.3, 0.7])
    x = np.arange(n)
    A = np.stack([np.exp(-(((x - 60) / 12.0) ** 2)), np.exp(-(((x - 280) / 25.0) ** 2))], 1)
    A += 0.2 * A * rng.uniform(size=A.shape)
    q = barycenter(A, weights=weights, grid=1.0, **kw).histogram
    levels = np.linspace(0.02, 0.98, 49)
    quantiles = [np.interp(levels, p.cumsum() / p.sum(), x) for p in A.T]
    np.testing.assert_allclose(
        np.interp(levels, q.cumsum(), x), weights @ np.stack(quantiles), atol=0.6
    )


def test_gaussians_on_a_plane():
    """The barycenter of Gaussians N(m_k, diag(s_k^2)) has mean sum w m and deviations sum w s."""
    y, x = np.mgrid[:56, :48] * 1.0
    means, deviations = np.array([[16.0, 20], [30, 24]]), np.array([[3.0, 5], [6, 4]])
    weights = np.array([0.25, 0.75])
    A = np.stack(
        [
            np.exp(-(((y - m[0]) / s[0]) ** 2 + ((x - m[1]) / s[1]) ** 2) / 2)
            for m, s in zip(means, deviations)
        ],
        -1,
    )
    q = barycenter(A, weights=weights, grid=1.0, max_iter=200).histogram
    for axis, z in enumerate((y, x)):
        mean = (q * z).sum()
        assert mean == pytest.approx(weights @ means[:, axis], abs=0.02)
        deviation = np.sqrt((q * (z - mean) ** 2).sum())
        assert deviation == pytest.approx(weights @ deviations[:, axis], rel=0.02)


def test_the_order_and_the_mass_of_inputs_do_not_matter():
    rng = np.random.default_rng(3)
    A, weights = rng.uniform(size=(15, 4)), rng.dirichlet(np.ones(4))
    order = [2, 0, 3, 1]
    for kw in ({}, {"exact": True}):
        base = barycenter(A, line_cost(15), weights, **kw)
        again = barycenter(A[:, order] * [1, 20, 3, 0.1], line_cost(15), weights[order], **kw)
        np.testing.assert_allclose(again.histogram, base.histogram, atol=1e-9)
        assert again.value == pytest.approx(base.value, rel=1e-9)


def test_scalings_and_logarithms_agree(monkeypatch):
    rng = np.random.default_rng(5)
    A = rng.uniform(size=(30, 3)) * (rng.uniform(size=(30, 3)) < 0.6) + 1e-9
    fast = barycenter(A, line_cost(30), max_iter=400)
    monkeypatch.setattr(BarycenterIteration, "on_scalings", lambda *_: False)
    slow = barycenter(A, line_cost(30), max_iter=400)
    np.testing.assert_allclose(fast.histogram, slow.histogram, atol=1e-8)
    assert fast.lower_bound == pytest.approx(slow.lower_bound, rel=1e-9)


@pytest.mark.parametrize("kw", [{}, {"exact": True}])
@pytest.mark.parametrize("kind", ["line", "plane"])
def test_a_batch_of_weights_is_a_loop(kind, kw):
    rng = np.random.default_rng(6)
    A = rng.uniform(size=(24, 3))
    weights = rng.dirichlet(np.ones(3), (2, 2))
    weights[0, 0] = 0, 1, 0
    options = {"grid": 1.0, **kw}
    A = A if kind == "line" else A.reshape(4, 6, 3)
    batch = barycenter(A, weights=weights, **options)
    assert batch.histogram.shape == (2, 2, *A.shape[:-1]) and batch.converged.shape == (2, 2)
    for k in np.ndindex(2, 2):
        one = barycenter(A, weights=weights[k], **options)
        np.testing.assert_allclose(batch.histogram[k], one.histogram, atol=1e-8)
        assert batch.value[k] == pytest.approx(one.value, rel=1e-8, abs=1e-12)
        np.testing.assert_allclose(batch.potentials[0][k], one.potentials[0], atol=1e-6)


def test_torch_and_numpy_and_single_precision_agree():
    A = np.random.default_rng(7).uniform(size=(5, 6, 3))
    base = barycenter(A, grid=1.0)
    from_torch = barycenter(torch.from_numpy(A), grid=1.0)
    assert isinstance(from_torch.histogram, torch.Tensor)
    np.testing.assert_allclose(from_torch.histogram.numpy(), base.histogram, atol=1e-12)
    single = barycenter(A.astype(np.float32), grid=1.0)
    assert single.histogram.dtype == single.value.dtype == np.float32
    np.testing.assert_allclose(single.histogram, base.histogram, atol=1e-4)
    assert single.lower_bound <= base.value * (1 + 1e-6) and single.value >= base.lower_bound


def test_gradients_are_finite_differences():
    rng = np.random.default_rng(8)
    A = torch.from_numpy(rng.uniform(0.1, 1, (12, 3))).requires_grad_()
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    M = torch.from_numpy(rng.uniform(size=(12, 12)))

    def value(A, weights):
        return barycenter(A, M, weights, exact=True).value

    value(A, weights).backward()
    h = 1e-6
    for _ in range(5):
        dA = torch.from_numpy(rng.standard_normal(A.shape))
        dw = torch.from_numpy(rng.standard_normal(3))
        dw -= dw.mean()
        with torch.no_grad():
            change = value(A + h * dA, weights + h * dw) - value(A - h * dA, weights - h * dw)
        expected = (A.grad * dA).sum() + (weights.grad * dw).sum()
        assert float(change / (2 * h)) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_constant_cost_and_a_single_bin():
    A = np.random.default_rng(10).uniform(size=(5, 2))
    for kw in ({}, {"exact": True}, {"tol": 1e-3}):
        found = barycenter(A, np.full((5, 5), 3.0), **kw)
        assert found.value == pytest.approx(3) and found.converged
        assert barycenter(A[:1], np.zeros((1, 1)), **kw).histogram == [1.0]


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "kw, error, message",
    [
        ({"A": None}, TypeError, "A must be an array"),
        ({"M": None}, ValueError, "either the cost matrix M or the spacing.*neither"),
        ({"grid": 1.0}, ValueError, "either the cost matrix M or the spacing.*both"),
        ({"A": np.ones((3, 0))}, ValueError, "A must have shape"),
        ({"A": np.ones(3), "M": None, "grid": 1.0}, ValueError, "A must have shape"),
        ({"M": np.ones((3, 4))}, ValueError, "M must have shape"),
        ({"M": np.full((3, 3), np.nan)}, ValueError, "M must be finite"),
        ({"M": None, "grid": (1.0, 2.0)}, ValueError, "grid must be one spacing or one for each"),
        ({"M": None, "grid": -1.0}, ValueError, "grid must be a finite number >= 0; got -1"),
        ({"M": None, "grid": 1e200}, ValueError, "costs must not overflow torch.float64"),
        ({"M": None, "grid": "1"}, TypeError, "grid must be a number"),
        ({"A": np.array([[1, 0.0], [1, 0], [2, 0]])}, ValueError, "positive mass"),
        ({"A": np.array([[1, 1.0], [1, -1], [2, 2]])}, ValueError, "non-negative"),
        ({"A": np.array([[1, 1.0], [1, np.nan], [2, 2]])}, ValueError, "finite"),
        ({"weights": np.ones(3) / 3}, ValueError, r"weights must have shape \(..., 2\)"),
        ({"weights": np.ones(2)}, ValueError, "weights must sum to 1; they sum to 2"),
        ({"weights": np.array([1.5, -0.5])}, ValueError, "non-negative"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"tol": -1.0}, ValueError, "tol must be"),
    ],
)
def test_bad_input_is_refused(kw, error, message):
    with pytest.raises(error, match=message):
        barycenter(**{"A": np.ones((3, 2)), "M": line_cost(3), **kw})


def test_a_huge_cost_does_not_hide_that_a_cost_is_not_monge():
    rng = np.random.default_rng(14)
    M = 1e-4 * rng.uniform(size=(8, 8))
    M[0, 7] = 1e8
    A = rng.uniform(size=(8, 3))
    found = barycenter(A, M, exact=True)
    assert found.n_iter > 0
    assert not found.converged or found.gap <= 1e-6 * found.value + 1e-11 * 1e8


def test_the_examples_in_the_docstrings():
    tested = doctest.testmod(importlib.import_module("exactot.barycenters"))
    assert tested.attempted > 0 and tested.failed == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    A = torch.from_numpy(np.random.default_rng(13).uniform(size=(5, 6, 3)))
    for kw in ({"grid": 1.0}, {"grid": 1.0, "exact": True}):
        on_cpu, on_cuda = barycenter(A, **kw), barycenter(A.cuda(), **kw)
        assert on_cuda.histogram.is_cuda
        np.testing.assert_allclose(on_cuda.histogram.cpu(), on_cpu.histogram, atol=1e-9)
