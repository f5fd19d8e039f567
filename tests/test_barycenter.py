"""Barycenters against the linear programme, closed forms and POT."""

import doctest
from itertools import pairwise

import numpy as np
import ot
import pytest
import scipy.optimize
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import ipot
from ipot import barycenter, free_support_barycenter


def line(n):
    x = np.linspace(0, 1, n)
    return (x[:, None] - x) ** 2


def programme(A, M, weights):
    """The optimum of the whole linear programme, its costs scaled to what HiGHS expects."""
    n, count = A.shape
    scale = abs(M).max() or 1.0
    rows = sp.kron(sp.eye(n), np.ones((1, n)))
    columns = sp.kron(np.ones((1, n)), sp.eye(n))
    upper = sp.hstack([sp.block_diag([rows] * count), -sp.vstack([sp.eye(n)] * count)])
    lower = sp.hstack([sp.block_diag([columns] * count), sp.csr_matrix((n * count, n))])
    # Tolerances as tight as HiGHS has them: a weight of 1e-8 is below the usual ones.
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    for presolve in (True, False):
        found = scipy.optimize.linprog(
            np.concatenate([w * M.ravel() / scale for w in weights] + [np.zeros(n)]),
            A_eq=sp.vstack([upper, lower]),
            b_eq=np.concatenate([np.zeros(n * count), (A / A.sum(0)).T.ravel()]),
            method="highs",
            options=options | {"presolve": presolve},
        )
        if found.status == 0:
            break
    assert found.status == 0
    return scale * found.fun


def objective(q, A, M, weights):
    scale = abs(M).max() or 1.0
    return scale * sum(w * ot.emd2(q, p / p.sum(), M / scale) for w, p in zip(weights, A.T))


@st.composite
def problems(draw, largest=12):
    """Histograms with and without empty bins, weights with zeros, costs of several kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, count = draw(st.integers(1, largest)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["line", "distance", "random", "integer", "negative"]))
    x = rng.uniform(size=n)
    M = {
        "line": (x[:, None] - x) ** 2,
        "distance": abs(x[:, None] - x),
        "random": rng.uniform(size=(n, n)),
        "integer": rng.integers(0, 4, (n, n)) * 1.0,
        "negative": rng.standard_normal((n, n)),
    }[kind]
    if kind in ("line", "distance") and draw(st.booleans()):
        M = M[np.argsort(x)][:, np.argsort(x)]
    A = rng.uniform(size=(n, count))
    if draw(st.booleans()):
        A[rng.uniform(size=A.shape) < 0.4] = 0
    A[rng.integers(n, size=count), range(count)] += 0.1
    weights = rng.dirichlet(np.ones(count))
    if count > 1:
        weights[0] *= draw(st.sampled_from([1, 1, 0, 1e-8, 1e-14]))
        weights /= weights.sum()
    return A, M * 10.0 ** draw(st.integers(-6, 6)), weights


# ----------------------------------------------------------------------------------- certificates


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([1e-3, 0.1, 1.0, None]), st.integers(1, 200))
def test_the_optimum_lies_between_the_bounds(problem, beta, max_iter):
    A, M, weights = problem
    span = float(np.ptp(M)) or 1.0
    found = barycenter(A, M, weights, beta=beta and beta * span, max_iter=max_iter)
    best, slack = programme(A, M, weights), 1e-9 * (span + abs(M).max())
    assert found.lower_bound - slack <= best <= found.value + slack
    assert found.gap >= 0 and found.n_iter == max_iter
    assert (found.histogram >= 0).all() and found.histogram.sum() == pytest.approx(1, abs=1e-12)
    assert abs(found.value - objective(found.histogram, A, M, weights)) <= slack
    f, g = found.potentials
    assert f.shape == g.shape == A.shape
    assert (f[:, None, :] + g[None, :, :] <= M[:, :, None] + slack).all()
    assert abs(f @ weights).max() <= slack


@settings(max_examples=150, deadline=None)
@given(problems())
def test_exact_is_the_linear_programme(problem):
    A, M, weights = problem
    found = barycenter(A, M, weights, exact=True)
    span = float(np.ptp(M)) or abs(M).max()
    assert abs(found.value - programme(A, M, weights)) <= 1e-8 * (span + abs(M).max())
    assert found.converged and found.gap <= 2e-9 * (span + abs(M).max())


@pytest.mark.parametrize("seed", range(3))
def test_exact_beyond_a_line(seed):
    rng = np.random.default_rng(seed)
    A = rng.dirichlet(np.full(36, 0.3), 4).T
    x = np.stack(np.divmod(np.arange(36), 6), 1) * 1.0
    weights = rng.dirichlet(np.ones(4))
    found = barycenter(A.reshape(6, 6, 4), weights=weights, grid=1.0, exact=True)
    best = programme(A, ot.dist(x), weights)
    assert found.value == pytest.approx(best, rel=1e-8) and found.gap < 1e-8 * best


@pytest.mark.parametrize("max_iter", [100, 1000])
@pytest.mark.parametrize("beta", [1e-3, 1e-2, 1e-1, 1])
def test_the_published_pair_for_any_beta(beta, max_iter):
    x = np.arange(100)
    bump = [np.exp(-((x - m) ** 2) / (2 * s**2)) for m, s in ((20, 5), (40, 5), (60, 8))]
    A = np.stack([bump[0] + bump[1], bump[2]], 1)
    M = line(100)
    best = barycenter(A, M, exact=True)
    assert best.n_iter == 0 and best.gap < 1e-12
    found = barycenter(A, M, beta=beta, max_iter=max_iter)
    assert found.value - best.value <= 1e-5
    assert best.value - found.lower_bound <= 2e-5


@pytest.mark.parametrize("bins", [0, 10**6])
def test_tol_is_reached(monkeypatch, bins):
    monkeypatch.setattr(ipot, "_BINS", bins)  # plans that are rounded, or optimal ones
    A = np.random.default_rng(0).uniform(size=(6, 7, 3)) ** 4
    found = barycenter(A, grid=0.5, tol=0.05, max_iter=2000)
    assert found.converged and found.gap <= 0.05 * found.value and found.n_iter < 2000
    few = barycenter(A, grid=0.5, tol=1e-9, max_iter=30)
    assert not few.converged and few.n_iter == 30


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_rounded_plans_bound_the_optimal_ones(seed, max_iter):
    rng = np.random.default_rng(seed)
    A = rng.uniform(size=(3, 5, 2)) * rng.integers(0, 2, (3, 5, 1)) + 1e-3
    found = [barycenter(A, grid=(1.0, 0.3), max_iter=max_iter)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ipot, "_BINS", 0)
        found.append(barycenter(A, grid=(1.0, 0.3), max_iter=max_iter))
    np.testing.assert_array_equal(found[0].histogram, found[1].histogram)
    assert found[0].value <= found[1].value * (1 + 1e-12)


# ------------------------------------------------------------------------------------- properties


def test_one_input_gives_itself_back():
    p = np.random.default_rng(0).dirichlet(np.ones(30))[:, None]
    for found in (
        barycenter(p, line(30), max_iter=1000),
        barycenter(p, line(30), exact=True),
        barycenter(np.tile(p, 3), line(30), np.array([0.2, 0.5, 0.3]), max_iter=1000),
        barycenter(np.tile(p, 3), line(30), np.array([0.2, 0.5, 0.3]), exact=True),
        barycenter(np.stack([p[:, 0], p[::-1, 0]], 1), line(30), [1.0, 0.0], exact=True),
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
        base = barycenter(A, line(15), weights, **kw)
        again = barycenter(A[:, order] * [1, 20, 3, 0.1], line(15), weights[order], **kw)
        np.testing.assert_allclose(again.histogram, base.histogram, atol=1e-9)
        assert again.value == pytest.approx(base.value, rel=1e-9)


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


@pytest.mark.parametrize("beta", [1e-3, 1])
def test_scalings_and_logarithms_agree(monkeypatch, beta):
    rng = np.random.default_rng(5)
    A = rng.uniform(size=(30, 3)) * (rng.uniform(size=(30, 3)) < 0.6) + 1e-9
    fast = barycenter(A, line(30), beta=beta, max_iter=400)
    monkeypatch.setattr(ipot, "_scaled_averages", lambda *_: None)
    slow = barycenter(A, line(30), beta=beta, max_iter=400)
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


def test_the_gradient_in_weights_that_are_scaled():
    rng = np.random.default_rng(9)
    A, M = (torch.from_numpy(rng.uniform(size=(8, k))) for k in (3, 8))
    weights = torch.tensor([1.0, 3, 2], dtype=torch.float64, requires_grad=True)

    def value(weights):
        return barycenter(A, M, weights, exact=True, normalize=True).value

    value(weights).backward()
    with torch.no_grad():
        for k in range(3):
            step = 1e-6 * torch.eye(3, dtype=torch.float64)[k]
            slope = (value(weights + step) - value(weights - step)) / 2e-6
            assert float(weights.grad[k]) == pytest.approx(float(slope), abs=1e-6)


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.entries = max(self.entries, x.numel())
        return out


def test_no_matrix_between_the_bins_of_a_grid():
    side, count = 64, 3
    A = np.random.default_rng(9).uniform(size=(side, side, count)) ** 20
    with _Largest() as seen:
        barycenter(A, grid=1 / side, max_iter=60)
    assert seen.entries <= max(side**2 * count, 2**19) < side**4 / 8


def test_a_grid_too_large_for_its_dtype():
    with pytest.raises(ValueError, match=r"grid is too large for torch.float32"):
        barycenter(np.ones((4, 5, 3), np.float32), grid=1e20)


def test_a_huge_cost_does_not_hide_that_a_cost_is_not_monge():
    rng = np.random.default_rng(14)
    M = 1e-4 * rng.uniform(size=(8, 8))
    M[0, 7] = 1e8
    A = rng.uniform(size=(8, 3))
    found = barycenter(A, M, exact=True)
    assert found.n_iter > 0
    assert not found.converged or found.gap <= 1e-6 * found.value + 1e-11 * 1e8


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
        ({"M": None, "grid": -1.0}, ValueError, "positive, finite spacings; got -1"),
        ({"M": None, "grid": 1e200}, ValueError, "positive, finite spacings"),
        ({"A": np.full((3, 2), 1e-290)}, ValueError, "mass above 1e-280"),
        ({"M": None, "grid": "a"}, TypeError, "grid must be a number"),
        ({"A": np.array([[1, 0.0], [1, 0], [2, 0]])}, ValueError, "positive mass"),
        ({"A": np.array([[1, 1.0], [1, -1], [2, 2]])}, ValueError, "non-negative"),
        ({"A": np.array([[1, 1.0], [1, np.nan], [2, 2]])}, ValueError, "finite"),
        ({"weights": np.ones(3) / 3}, ValueError, r"weights must have shape \(..., 2\)"),
        ({"weights": np.ones(2)}, ValueError, "sum to 1; they sum to 2 .normalize=True"),
        ({"weights": np.array([1.5, -0.5])}, ValueError, "non-negative"),
        ({"beta": 0}, ValueError, "beta must be positive"),
        ({"beta": "a"}, TypeError, "beta must be a number"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"tol": -1.0}, ValueError, "tol must be"),
    ],
)
def test_bad_input_is_refused(kw, error, message):
    with pytest.raises(error, match=message):
        barycenter(**{"A": np.ones((3, 2)), "M": line(3), **kw})


def test_weights_are_scaled_if_asked():
    A = np.random.default_rng(11).uniform(size=(8, 2))
    base = barycenter(A, line(8), [0.25, 0.75])
    again = barycenter(A, line(8), [1, 3], normalize=True)
    np.testing.assert_allclose(again.histogram, base.histogram, atol=1e-12)


def test_failure_of_the_programme_is_an_error(monkeypatch):
    class Failed:
        status, message = 4, "numerical trouble"

    monkeypatch.setattr(scipy.optimize, "linprog", lambda *_, **__: Failed)
    A = np.random.default_rng(12).uniform(size=(3, 3, 2))
    with pytest.raises(RuntimeError, match=r"HiGHS did not solve.*numerical trouble"):
        barycenter(A, grid=1.0, exact=True)


# ----------------------------------------------------------------------------------- free support


def some_clouds(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    clouds = [rng.standard_normal((m, 2)) + c for m, c in ((25, 0), (40, 3), (30, -2))]
    masses = [rng.dirichlet(np.ones(len(x))) for x in clouds]
    return [x.astype(dtype) for x in clouds], [a.astype(dtype) for a in masses]


@pytest.mark.parametrize("seed", range(4))
def test_free_support_is_that_of_pot(seed):
    clouds, masses = some_clouds(seed)
    rng = np.random.default_rng(seed)
    weights, b = rng.dirichlet(np.ones(3)), rng.dirichlet(np.full(15, 5.0))
    start = rng.standard_normal((15, 2))
    ours = free_support_barycenter(
        clouds, a_list=masses, b=b, weights=weights, init=start, tol=1e-14
    )
    theirs = ot.lp.free_support_barycenter(
        clouds, masses, start, b=b, weights=weights, numItermax=100, stopThr=1e-14
    )

    def value(X):
        return sum(w * ot.emd2(b, a, ot.dist(X, Y)) for w, a, Y in zip(weights, masses, clouds))

    assert ours.converged and ours.n_iter < 100
    assert float(ours.value) == pytest.approx(value(ours.points), rel=1e-9)
    assert float(ours.value) == pytest.approx(value(theirs), abs=1e-6)


def test_free_support_of_one_cloud_is_the_cloud():
    clouds, _ = some_clouds(0)
    found = free_support_barycenter(clouds[:1], 25)
    assert float(found.value) < 1e-12
    np.testing.assert_allclose(np.sort(found.points, 0), np.sort(clouds[0], 0), atol=1e-9)


def test_free_support_goes_down_and_takes_tensors():
    clouds, masses = some_clouds(1, np.float32)
    values = [
        float(free_support_barycenter(clouds, 12, a_list=masses, max_iter=k, tol=0.0).value)
        for k in (1, 2, 4, 30)
    ]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(values))
    tensors = [[torch.from_numpy(x) for x in y] for y in (clouds, masses)]
    found = free_support_barycenter(tensors[0], 12, a_list=tensors[1], max_iter=30, tol=0.0)
    assert found.points.dtype == torch.float32 and found.points.shape == (12, 2)
    assert float(found.value) == pytest.approx(values[-1], rel=1e-6)


@pytest.mark.parametrize(
    "kw, error, message",
    [
        ({"X_list": []}, TypeError, "X_list must be a list"),
        ({"X_list": [np.ones((3, 2)), np.ones((3, 1))]}, ValueError, "with one d; got .3, 1. at 1"),
        ({"X_list": [np.full((3, 2), np.nan)]}, ValueError, "must be finite"),
        ({"n_points": None}, ValueError, "give n_points, or"),
        ({"n_points": 0}, ValueError, "n_points must be at least 1"),
        ({"init": np.ones((4, 2))}, ValueError, r"init must have shape \(5, 2\)"),
        ({"a_list": [np.ones(3)]}, ValueError, "a_list must be a list of 2 arrays"),
        ({"a_list": [np.ones(3), np.ones(3)]}, ValueError, r"a_list\[1\] must have shape"),
        ({"a_list": [np.ones(3), -np.ones(4)]}, ValueError, r"a_list\[1\] must be non-negative"),
        ({"b": np.zeros(5)}, ValueError, "b must have 5 entries, all positive and finite"),
        ({"weights": np.ones(2)}, ValueError, "weights must sum to 1"),
        ({"a_list": np.ones((2, 3))}, ValueError, "a_list must be a list"),
        ({"a_list": [np.ones(3), np.ones(4)]}, ValueError, r"a_list\[1\] must have the mass of"),
        ({"b": np.ones(5)}, ValueError, r"b must have the mass of a_list\[0\], 1; got 5"),
        ({"init": np.full((5, 2), np.nan)}, ValueError, "init must be finite"),
        ({"seed": -1}, ValueError, "seed"),
        ({"tol": None}, TypeError, "tol must be a number"),
        ({"weights": np.full((2, 2), 0.5)}, ValueError, r"weights must have shape \(2,\)"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    ],
)
def test_bad_clouds_are_refused(kw, error, message):
    X_list = [np.zeros((3, 2)), np.ones((4, 2))]
    with pytest.raises(error, match=message):
        free_support_barycenter(**{"X_list": X_list, "n_points": 5, **kw})


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(ipot).failed == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    A = torch.from_numpy(np.random.default_rng(13).uniform(size=(5, 6, 3)))
    for kw in ({"grid": 1.0}, {"grid": 1.0, "exact": True}):
        on_cpu, on_cuda = barycenter(A, **kw), barycenter(A.cuda(), **kw)
        assert on_cuda.histogram.is_cuda
        np.testing.assert_allclose(on_cuda.histogram.cpu(), on_cpu.histogram, atol=1e-9)
