"""Exact plans, point clouds, lazy plans and batches, against POT's linear programme and
closed forms."""

import math

import numpy as np
import ot
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ipot
from ipot import LazyPlan, solve, solve_sample
from tests.test_ipot import exact_value, random_problem

METRICS = ("sqeuclidean", "euclidean", "cityblock")


@pytest.fixture
def column_generation(monkeypatch):
    """Small problems take the way of the large ones."""
    monkeypatch.setattr(ipot, "_SMALL", 0)


def clouds(seed, n, m, d, dtype=np.float64, zeros=False):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = rng.standard_normal((m, d)) + 0.5
    a, b = rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, m)
    if zeros:
        a[::3] = 0
        b[1::3] = 0
    return [z.astype(dtype) for z in (x, y, a / a.sum(), b / b.sum())]


@st.composite
def rough_problems(draw):
    """Weights with zeros and of very different size, costs with ties, duplicates and all scales."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    kind = draw(st.sampled_from(["random", "integer", "constant", "grid", "line"]))
    if kind == "random":
        M = rng.standard_normal((n, m))
    elif kind == "integer":
        M = rng.integers(0, 4, (n, m)).astype(float)
    elif kind == "constant":
        M = np.full((n, m), rng.standard_normal())
    elif kind == "grid":
        M = ot.dist(rng.integers(0, 5, (n, 2)).astype(float), rng.integers(0, 5, (m, 2)) * 1.0)
    else:
        M = ot.dist(rng.standard_normal((n, 1)), rng.standard_normal((m, 1)))
    weights = []
    for size in (n, m):
        w = rng.uniform(0, 1, size) ** draw(st.sampled_from([0, 1, 8])) + 1e-12
        if draw(st.booleans()):
            w[rng.uniform(size=size) < 0.4] = 0
        w[rng.integers(size)] += 0.1
        weights.append(w / w.sum())
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scale = 10.0 ** draw(st.integers(-6, 6))
    return [z.astype(dtype) for z in (scale * M, *weights)]


def true_value(M, a, b):
    """W by POT, of costs scaled to [0, 1]: of others it takes some for infeasible."""
    M, a, b = (np.asarray(z, float) for z in (M, a, b))
    low, scale = M.min(), np.ptp(M) or 1.0
    return a.sum() * (low + scale * exact_value((M - low) / scale, a / a.sum(), b / b.sum()))


def assert_optimal(result, M, a, b):
    W, size = true_value(M, a, b), float(np.abs(M).max())
    eps, tiny = float(np.finfo(M.dtype).eps), float(np.finfo(M.dtype).tiny)
    rounding = 5 * eps * size if eps > 1e-10 else 1e-15 * size
    assert result.converged
    assert abs(float(result.value) - W) <= 1e-9 * abs(W) + rounding + tiny
    assert float(result.lower_bound) <= W + 1e-13 * size
    assert 0 <= result.gap <= 1e-9 * abs(W) + 2 * rounding + 1e-11 * size + tiny
    plan = result.plan if isinstance(result.plan, np.ndarray) else result.plan.toarray()
    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(1, dtype=float), a, atol=4 * eps)
    np.testing.assert_allclose(plan.sum(0, dtype=float), b, atol=4 * eps)
    f, g = (z.astype(float) for z in result.potentials)
    assert (f[:, None] + g <= M.astype(float) + 1e-15 * size).all()


@settings(max_examples=1000, deadline=None)
@given(rough_problems(), st.booleans())
def test_exact_is_the_linear_programme(problem, small):
    M, a, b = problem
    with pytest.MonkeyPatch.context() as patch:
        if not small:
            patch.setattr(ipot, "_SMALL", 0)
        assert_optimal(solve(M, a, b, exact=True), M, a, b)


@settings(max_examples=150, deadline=None)
@given(rough_problems(), st.integers(1, 40), st.booleans())
def test_bounds_hold_on_rough_problems(problem, max_iter, to_a_gap):
    M, a, b = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ipot, "_SMALL", 0)
        result = solve(M, a, b, max_iter=max_iter, tol=1e-2 if to_a_gap else None)
    W, size = true_value(M, a, b), float(np.abs(M).max())
    assert result.lower_bound <= W + 1e-13 * size and W - 1e-13 * size <= float(result.value)
    assert np.isfinite(result.plan).all() and np.isfinite(result.gap) and result.gap >= 0
    if to_a_gap:
        assert result.converged


@pytest.mark.parametrize("n, m, d", [(700, 600, 2), (400, 900, 5), (900, 300, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_larger_problems(n, m, d, dtype):
    x, y, a, b = clouds(n, n, m, d, dtype, zeros=True)
    M = ot.dist(x, y).astype(dtype)
    result = solve(M, a, b, exact=True)
    assert_optimal(result, M, a, b)
    assert 0 < result.n_iter <= 40
    rough = solve(M, a, b, tol=1e-2)
    assert rough.converged and rough.gap <= 1e-2 * rough.value + 1e-6


def test_ties_everywhere():
    grid = np.stack(np.mgrid[:24, :24], -1).reshape(-1, 2).astype(float)
    rng = np.random.default_rng(0)
    a, b = (np.where(rng.uniform(size=576) < 0.3, 0.0, rng.integers(1, 5, 576)) for _ in range(2))
    a, b = a / a.sum(), b / b.sum()
    M = ot.dist(grid, grid)
    assert_optimal(solve(M, a, b, exact=True), M, a, b)
    same = solve(M, a, a, exact=True)
    assert abs(same.value) < 1e-12 and same.converged


def test_failure_of_the_simplex_is_certified(monkeypatch, column_generation):
    M, a, b = random_problem(0, 20, 25)
    emd = ot.emd

    def failing(*args, **options):
        plan, log = emd(*args, **options)
        return plan, log | {"result_code": 3}

    for small in (0, 10**6):
        monkeypatch.setattr(ipot, "_SMALL", small)
        monkeypatch.setattr(ot, "emd", failing)
        result = solve(M, a, b, exact=True)
        monkeypatch.setattr(ot, "emd", emd)
        W = exact_value(M, a, b)
        assert not result.converged and result.gap > 0
        assert result.lower_bound <= W <= result.value
        np.testing.assert_allclose(result.plan.sum(1), a, atol=1e-14)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_sparse_plans(kind, column_generation):
    M, a, b = random_problem(1, 30, 40, zeros=True)
    dense = solve(M, a, b, exact=True)
    if kind == "numpy":
        result = solve(M, a, b, exact=True, sparse=True)
        assert scipy.sparse.issparse(result.plan) and result.plan.nnz < 70
        np.testing.assert_allclose(result.plan.toarray(), dense.plan, atol=1e-15)
    else:
        M = torch.from_numpy(M).requires_grad_()
        result = solve(M, torch.from_numpy(a), torch.from_numpy(b), exact=True, sparse=True)
        assert result.plan.is_sparse
        np.testing.assert_allclose(result.plan.to_dense(), dense.plan, atol=1e-15)
        result.value.backward()
        np.testing.assert_allclose(M.grad, dense.plan, atol=1e-15)
    batch = solve(np.stack([M.detach() if kind == "torch" else M] * 2), exact=True, sparse=True)
    assert isinstance(batch.plan, list) and len(batch.plan) == 2


# ---------------------------------------------------------------------------------- point clouds


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 3),
    st.sampled_from(METRICS),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.booleans(),
)
def test_clouds_exactly(seed, n, m, d, metric, dtype, zeros, lazy):
    x, y, a, b = clouds(seed, n, m, d, dtype, zeros and n > 2 and m > 2)
    result = solve_sample(x, y, a, b, metric=metric, exact=True, lazy=lazy)
    assert isinstance(result.plan, LazyPlan) == lazy
    distance = {"sqeuclidean": "sqeuclidean", "euclidean": "euclidean", "cityblock": "cityblock"}
    M = scipy.spatial.distance.cdist(x.astype(float), y.astype(float), distance[metric])
    W = true_value(M, a, b)
    eps = float(np.finfo(dtype).eps)
    assert result.converged and abs(result.value - W) <= 1e-9 * W + 8 * eps * M.max()
    assert result.lower_bound <= W + 1e-13 * M.max()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lazy", [False, True])
def test_clouds_by_iterations_are_the_matrix_by_iterations(metric, lazy):
    x, y, a, b = clouds(3, 60, 50, 3, zeros=True)
    M = scipy.spatial.distance.cdist(x, y, metric)
    base = solve(M, a, b, max_iter=60)
    result = solve_sample(x, y, a, b, metric=metric, max_iter=60, lazy=lazy)
    plan = result.plan.toarray() if lazy else result.plan
    tolerance = 1e-6 if lazy else 1e-10  # the lazy kernel is float32
    np.testing.assert_allclose(plan, base.plan, atol=tolerance)
    assert result.value == pytest.approx(base.value, rel=10 * tolerance)
    assert result.lower_bound == pytest.approx(base.lower_bound, rel=10 * tolerance)


@pytest.mark.parametrize("d", [1, 2, 16])
def test_lazy_and_dense_agree_in_float32(d):
    x, y, a, b = clouds(4, 300, 350, d, np.float32)
    dense = solve_sample(x, y, a, b, max_iter=100, lazy=False)
    lazy = solve_sample(x, y, a, b, max_iter=100, lazy=True)
    largest = float(ot.dist(x, y).max())
    assert lazy.value == pytest.approx(dense.value, abs=1e-5 * largest)
    assert lazy.lower_bound == pytest.approx(dense.lower_bound, abs=1e-5 * largest)
    np.testing.assert_allclose(lazy.plan.toarray(), dense.plan, atol=1e-5)


@pytest.mark.parametrize("beta", [1e-4, 1.0, 100.0])
def test_lazy_iterates_are_certified_for_any_step(beta):
    x, y, a, b = clouds(5, 40, 30, 2, zeros=True)
    M = ot.dist(x, y)
    W = exact_value(M, a, b)
    result = solve_sample(x, y, a, b, beta=beta * np.ptp(M), max_iter=200, lazy=True)
    assert result.lower_bound <= W <= result.value < np.inf
    plan = result.plan.toarray()
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-14)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-14)


@pytest.mark.parametrize("options", [{"exact": True}, {"max_iter": 30}])
def test_what_a_lazy_plan_answers(options):
    x, y, a, b = clouds(6, 50, 40, 2)
    plan = solve_sample(x, y, 7 * a, 7 * b, lazy=True, **options).plan
    dense = plan.toarray()
    assert plan.shape == (50, 40) and "(50, 40)" in repr(plan)
    np.testing.assert_allclose(dense.sum(1), 7 * a, atol=1e-13)
    V = np.random.default_rng(0).standard_normal((40, 3))
    np.testing.assert_allclose(plan.apply(V), dense @ V, atol=1e-12)
    np.testing.assert_allclose(plan.apply(V[:, 0]), dense @ V[:, 0], atol=1e-12)
    np.testing.assert_allclose(plan.apply_transposed(x), dense.T @ x, atol=1e-12)
    np.testing.assert_allclose(plan.rows([3, 1]), dense[[3, 1]])
    np.testing.assert_allclose(plan.barycentric(), dense @ y / dense.sum(1)[:, None], atol=1e-12)
    top = plan.topk(2).toarray()
    assert ((top > 0).sum(1) <= 2).all()
    np.testing.assert_allclose(top.sum(1), np.sort(dense, 1)[:, -2:].sum(1))
    with pytest.raises(ValueError, match=r"V must have shape \(40,\)"):
        plan.apply(x)
    with pytest.raises(ValueError, match="row numbers from 0 to 49"):
        plan.rows([50])
    for index in ([True, False], [1.5], [-1]):
        with pytest.raises(ValueError, match="row numbers from 0 to 49"):
            plan.rows(index)
    with pytest.raises(TypeError, match="V must be an array of numbers"):
        plan.apply("a")
    np.testing.assert_allclose(plan.apply(y[:, ::-1]), dense @ y[:, ::-1], atol=1e-12)
    with pytest.raises(ValueError, match="k must be at least 1"):
        plan.topk(0)


def test_no_matrix_is_formed_without_being_asked_for(monkeypatch):
    """The largest tensor that a lazy solve makes is a block, not n x m."""
    monkeypatch.setattr(ipot, "_BLOCK", 2**10)
    sizes = []
    block = ipot._CloudRows.block

    def seen(self, rows):
        C = block(self, rows)
        sizes.append(C.numel())
        return C

    monkeypatch.setattr(ipot._CloudRows, "block", seen)
    monkeypatch.setattr(ipot, "_new_matrix", None)
    monkeypatch.setattr(ipot, "_zeros", None)
    x, y, a, b = clouds(7, 400, 300, 2)
    for options in ({"exact": True}, {"tol": 1e-2}, {"max_iter": 5}):
        solve_sample(x, y, a, b, lazy=True, **options)
    assert max(sizes) <= 2**10


def test_lazy_is_chosen_by_size(monkeypatch):
    x, y, _, _ = clouds(8, 20, 30, 2)
    assert isinstance(solve_sample(x, y, max_iter=3).plan, np.ndarray)
    monkeypatch.setattr(ipot, "_DENSE_BYTES", 20 * 30 * 8 - 1)
    assert isinstance(solve_sample(x, y, max_iter=3).plan, LazyPlan)
    assert isinstance(solve_sample(x, y, max_iter=3, lazy=False).plan, np.ndarray)


def test_a_long_line_is_sorted():
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal(200_000), rng.standard_normal(200_000) + 1
    result = solve_sample(x[:, None], y[:, None], exact=True)
    assert result.converged and result.n_iter == 0
    assert result.value == pytest.approx(np.mean((np.sort(x) - np.sort(y)) ** 2), rel=1e-12)
    assert result.gap <= 1e-10 * result.value


@pytest.mark.parametrize("metric", METRICS)
def test_potentials_of_a_line_are_feasible(metric):
    x, y, a, b = clouds(10, 80, 70, 1, zeros=True)
    y[:5], x[:7] = y[0], x[0]
    result = solve_sample(x, y, a, b, metric=metric, exact=True)
    f, g = result.potentials
    M = scipy.spatial.distance.cdist(x, y, metric)
    assert (f[:, None] + g <= M + 1e-14 * M.max()).all()
    assert_optimal(result, M, a, b)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_clouds_match_finite_differences(metric, lazy):
    inputs = clouds(11, 8, 7, 2)
    tensors = [torch.from_numpy(z).requires_grad_() for z in inputs]
    result = solve_sample(*tensors, metric=metric, exact=True, lazy=lazy)
    result.value.backward()

    def W(*z):
        return exact_value(scipy.spatial.distance.cdist(z[0], z[1], metric), z[2], z[3])

    rng = np.random.default_rng(0)
    for k, tensor in enumerate(tensors):
        direction = rng.standard_normal(inputs[k].shape)
        if k > 1:
            direction -= direction.mean()
        moved = [
            W(*(z + s * 1e-6 * direction if j == k else z for j, z in enumerate(inputs)))
            for s in (1, -1)
        ]
        slope = (moved[0] - moved[1]) / 2e-6
        assert float((tensor.grad.numpy() * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_gradient_of_iterated_clouds_is_that_of_their_plan():
    x, y, _, _ = (torch.from_numpy(z) for z in clouds(12, 9, 6, 3))
    for lazy in (False, True):
        X = x.clone().requires_grad_()
        result = solve_sample(X, y, max_iter=20, lazy=lazy)
        result.value.backward()
        plan = result.plan.toarray() if lazy else result.plan
        by_hand = 2 * (plan.sum(1)[:, None] * x - plan @ y)
        np.testing.assert_allclose(X.grad, by_hand, atol=1e-12)


def test_a_callable_metric():
    x, y, a, b = clouds(13, 12, 10, 2)
    cube = lambda u, v: torch.cdist(u, v) ** 3  # noqa: E731
    M = scipy.spatial.distance.cdist(x, y) ** 3
    for options in ({"exact": True}, {"exact": True, "lazy": True}):
        result = solve_sample(x, y, a, b, metric=cube, **options)
        assert result.value == pytest.approx(exact_value(M, a, b), rel=1e-9)
    X = np.stack([x, x + 1])
    assert solve_sample(X, y, a, b, metric=cube, max_iter=5).plan.shape == (2, 12, 10)
    with pytest.raises(ValueError, match=r"metric must give a tensor of shape \(12, 10\)"):
        solve_sample(x, y, metric=lambda u, v: torch.ones(3), exact=True)
    with pytest.raises(ValueError, match="must be finite"):
        solve_sample(x, y, metric=lambda u, v: cube(u, v) * math.nan, exact=True)


def test_callables_of_any_kind():
    x, y, *_ = clouds(17, 12, 10, 3, np.float32)
    layer = torch.nn.Linear(3, 3)

    class Unhashable:
        __hash__ = None

        def __call__(self, u, v):
            return torch.cdist(layer(u), layer(v))

    hamming = lambda u, v: (u[:, None].round() != v.round()).sum(-1)  # noqa: E731
    for options in ({"exact": True}, {"max_iter": 20}, {"max_iter": 20, "lazy": True}):
        X = torch.from_numpy(x).requires_grad_()
        result = solve_sample(X, torch.from_numpy(y), metric=Unhashable(), **options)
        result.value.backward()
        assert X.grad.isfinite().all() and X.grad.abs().sum() > 0
        whole = solve_sample(x, y, metric=hamming, **options)
        assert whole.lower_bound <= whole.value and whole.value.dtype == np.float32
        with pytest.raises(ValueError, match=r"metric must give a tensor of shape \(12, 10\)"):
            solve_sample(x, y, metric=lambda u, v: torch.cdist(v, u), **options)
        one_sided = lambda u, v: v.square().sum(1).expand(len(u), -1)  # noqa: E731
        X, Y = (torch.from_numpy(z).requires_grad_() for z in (x, y))
        solve_sample(X, Y, metric=one_sided, **options).value.backward()
        assert (X.grad == 0).all() and (Y.grad != 0).any()
        with pytest.raises(ValueError, match="metric must be differentiable"):
            solve_sample(X, Y, metric=hamming, **options)
    with pytest.raises(ValueError, match="metric must be sqeuclidean"):
        solve_sample(x, y, metric=["euclidean"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [2, 6])
@pytest.mark.parametrize("options", [{"exact": True}, {"max_iter": 300}])
def test_clusters_far_apart(dtype, d, options):
    """|x|^2 + |y|^2 - 2 <x, y> would leave no digits."""
    rng = np.random.default_rng(18)
    far = 1e3 if dtype == np.float32 else 1e5
    x, y = (rng.random((8, d)) + far * (np.arange(8) % 2)[:, None] for _ in range(2))
    x, y = x.astype(dtype), y.astype(dtype)
    M = scipy.spatial.distance.cdist(x.astype(float), y.astype(float), "sqeuclidean")
    W = exact_value(M[::2, ::2], np.full(4, 1 / 8), np.full(4, 1 / 8))
    W += exact_value(M[1::2, 1::2], np.full(4, 1 / 8), np.full(4, 1 / 8))
    for lazy in (False, True):
        result = solve_sample(x, y, beta=0.1, lazy=lazy, **options)
        assert float(result.lower_bound) <= W * (1 + 1e-12)
        assert W * (1 - 1e-12) <= float(result.value)
    if "exact" in options and d == 2:
        assert float(result.value) == pytest.approx(W, rel=1e-6 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("small", [0, 10**6])
@pytest.mark.parametrize("huge", [1e9, 1e15, 1e30])
def test_a_forbidding_cost_leaves_the_others_their_digits(monkeypatch, small, huge):
    monkeypatch.setattr(ipot, "_SMALL", small)
    M = np.random.default_rng(19).random((60, 60))
    M[0, 0] = M[5, 7] = 3.0
    W = exact_value(M, np.full(60, 1 / 60), np.full(60, 1 / 60))
    M[0, 0] = M[5, 7] = huge
    result = solve(M, exact=True)
    assert result.value == pytest.approx(W, rel=1e-9) and result.converged
    assert result.lower_bound == pytest.approx(W, rel=1e-6)


def test_gradients_are_made_where_they_are_wanted():
    x, y, a, b = (torch.from_numpy(z) for z in clouds(20, 9, 8, 2))
    X, weights = x.clone().requires_grad_(), a.clone().requires_grad_()
    for options in ({}, {"lazy": True}, {"sparse": True}):
        X.grad = None
        solve_sample(X, y, a, b, exact=True, **options).value.backward()
        assert X.grad.abs().sum() > 0
    with torch.no_grad():
        assert not solve_sample(X, y, exact=True).value.requires_grad
    with torch.inference_mode():
        solve_sample(X, y, exact=True)
        solve_sample(X, y, max_iter=3)
    calls = []
    metric = lambda u, v: calls.append(torch.is_grad_enabled()) or torch.cdist(u, v)  # noqa: E731
    solve_sample(x, y, weights, b, metric=metric, exact=True).value.backward()
    assert weights.grad.abs().sum() > 0 and not any(calls)


# --------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("options", [{"exact": True}, {"tol": 1e-3}, {"max_iter": 30}])
@pytest.mark.parametrize("count, n", [(20, 32), (3, 128)])
def test_a_batch_is_each_of_its_problems(options, count, n):
    parts = [clouds(k, n, n, 2, np.float32) for k in range(count)]
    x, y, a, b = (np.stack(z) for z in zip(*parts))
    M = np.stack([ot.dist(p[0], p[1]) for p in parts])
    batch, from_clouds = solve(M, a, b, **options), solve_sample(x, y, a, b, **options)
    for k in range(count):
        alone = solve(M[k], a[k], b[k], **options)
        assert batch.value[k] == pytest.approx(alone.value, rel=1e-5)
        assert from_clouds.value[k] == pytest.approx(alone.value, rel=1e-5)
        np.testing.assert_allclose(batch.plan[k], alone.plan, atol=1e-5)
        assert batch.converged[k] == alone.converged


def test_batches_of_lazy_plans_and_gradients():
    x, y, *_ = clouds(14, 15, 12, 2)
    X = torch.from_numpy(np.stack([x, 2 * x])).requires_grad_()
    Y = torch.from_numpy(y).requires_grad_()
    results = [
        solve_sample(X, Y, exact=True, lazy=True),
        solve_sample(X, Y, max_iter=300, lazy=True),
        solve_sample(X, Y, exact=True),
    ]
    for result in results:
        X.grad = Y.grad = None
        result.value.sum().backward()
        assert X.grad.shape == X.shape and Y.grad.shape == Y.shape
    assert [plan.shape for plan in results[0].plan] == [(15, 12)] * 2
    one = solve_sample(2 * x, y, exact=True)
    assert float(results[0].value[1].detach()) == pytest.approx(one.value, rel=1e-12)


def test_global_settings_are_left_as_found():
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    x, y, a, b = clouds(15, 400, 300, 2)
    solve_sample(x, y, a, b, exact=True)
    solve_sample(x, y, a, b, max_iter=5, lazy=True)
    assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())


# ------------------------------------------------------------------------------------- bad input

X0, Y0 = np.zeros((3, 2)), np.ones((4, 2))
BAD_CLOUDS = [
    ((None, Y0), {}, TypeError, "X_a must be an array"),
    ((np.zeros(3), Y0), {}, ValueError, r"X_a must have shape \(\.\.\., n, d\)"),
    ((np.zeros((0, 2)), Y0), {}, ValueError, "n, d >= 1"),
    ((np.zeros((3, 3)), Y0), {}, ValueError, "same last dimension"),
    ((np.full((3, 2), np.nan), Y0), {}, ValueError, "X_a must be finite; 6 of 6"),
    ((X0, np.full((4, 2), np.inf)), {}, ValueError, "X_b must be finite"),
    ((np.full((3, 2), 1e200), Y0), {}, ValueError, "X_a must be below"),
    ((np.zeros((2, 3, 2)), np.zeros((3, 4, 2))), {}, ValueError, "batch dimensions do not match"),
    ((X0, torch.ones(4, 2)), {}, TypeError, "NumPy and torch"),
    ((X0, Y0, np.ones(4) / 4), {}, ValueError, r"a must have shape \(\.\.\., 3\)"),
    ((X0, Y0, np.ones(3), np.ones(4)), {}, ValueError, "equal mass"),
    ((X0, Y0, -np.ones(3) / 3), {}, ValueError, "a must be non-negative"),
    ((np.zeros((2, 3, 2)), Y0, np.ones((5, 3)) / 3), {}, ValueError, "batch dimensions do not"),
    ((X0, Y0), {"metric": "manhattan"}, ValueError, "metric must be sqeuclidean, euclidean, city"),
    ((X0, Y0), {"beta": -1.0}, ValueError, "beta must be positive"),
    ((X0, Y0), {"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    ((X0, Y0), {"tol": -1}, ValueError, "tol must be None or"),
    ((X0, Y0), {"tol": "0.01"}, TypeError, "tol must be a number"),
    ((X0, Y0), {"sparse": True}, ValueError, "sparse plans are those of exact=True"),
]


@pytest.mark.parametrize("arrays, options, error, message", BAD_CLOUDS)
@pytest.mark.parametrize("mode", [{}, {"lazy": True}, {"exact": True}])
def test_bad_clouds_are_refused(arrays, options, error, message, mode):
    if "sparse" in options and "exact" in mode:
        pytest.skip("that is what sparse plans are for")
    with pytest.raises(error, match=message):
        solve_sample(*arrays, **(mode | options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "options", [{"exact": True}, {"max_iter": 50, "lazy": True}, {"tol": 1e-3}]
)
def test_cuda_agrees(options):
    inputs = [torch.from_numpy(z) for z in clouds(16, 700, 600, 2)]
    here = solve_sample(*inputs, **options)
    there = solve_sample(*(z.cuda() for z in inputs), **options)
    assert there.value.device.type == "cuda"
    assert float(there.value) == pytest.approx(float(here.value), rel=1e-5)


@pytest.mark.parametrize("values", [2, 4])
def test_ties_everywhere_take_few_rounds(values, monkeypatch):
    """Rows that all took the same ones of many equal arcs would need eight rounds and more."""
    rng = np.random.default_rng(0)
    M = rng.integers(0, values, (400, 350)).astype(float)
    a, b = rng.dirichlet(np.ones(400)), rng.dirichlet(np.ones(350))
    rounds, emd = [], ot.emd
    monkeypatch.setattr(ot, "emd", lambda *x, **options: rounds.append(1) or emd(*x, **options))
    found = solve(M, a, b, exact=True)
    assert len(rounds) <= 2
    assert found.value == pytest.approx(ot.emd2(a, b, M, numItermax=10**7), abs=1e-12)
    assert found.converged
