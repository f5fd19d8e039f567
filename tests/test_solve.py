"""Exact solutions between matrices and clouds, against POT's linear program, finite differences and
closed forms; batches, gradients, bad input."""

import doctest
import importlib

import numpy as np
import ot
import pytest
import scipy.spatial
import torch
from conftest import assert_optimal, clouds, exact_value, rough_problems
from hypothesis import given, settings
from hypothesis import strategies as st

import ipot
from exactot import columns, solve, solve_sample

METRICS = ("sqeuclidean", "euclidean", "cityblock")


# -------------------------------------------------------------------------------------- matrices


@settings(max_examples=1000, deadline=None)
@given(rough_problems(), st.booleans())
def test_exact_is_the_linear_program(problem, small):
    M, a, b = problem
    with pytest.MonkeyPatch.context() as patch:
        if not small:
            patch.setattr(columns, "SMALL", 0)
        assert_optimal(solve(M, a, b), M, a, b)


@settings(max_examples=150, deadline=None)
@given(rough_problems(), st.sampled_from([1e-1, 1e-2, 1e-4]))
def test_a_gap_is_reached_and_true(problem, tol):
    M, a, b = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "SMALL", 0)
        result = solve(M, a, b, tol=tol)
    W, size = exact_value(M, a, b), float(np.abs(M).max())
    assert result.lower_bound <= W + 1e-13 * size and W - 1e-13 * size <= float(result.value)
    assert np.isfinite(result.plan).all() and result.gap >= 0
    assert result.converged
    rounding = 8 * float(np.finfo(M.dtype).eps) * size + float(np.finfo(M.dtype).tiny)
    assert float(result.gap) <= tol * abs(float(result.value)) + 1e-9 * size + rounding


@pytest.mark.parametrize("n, m, d", [(700, 600, 2), (400, 900, 5), (900, 300, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_larger_problems(n, m, d, dtype):
    x, y, a, b = clouds(n, n, m, d, dtype, zeros=True)
    M = ot.dist(x, y).astype(dtype)
    result = solve(M, a, b)
    assert_optimal(result, M, a, b)
    assert 0 < result.n_iter <= 40
    rough = solve(M, a, b, tol=1e-2)
    assert rough.converged and rough.gap <= 1e-2 * rough.value + 1e-6


def test_both_doors_bracket_the_same_value():
    """Moving from one to the other is changing the import."""
    M, a, b = np.random.default_rng(0).random((30, 40)), None, np.full(40, 1 / 40)
    exact, iterated = solve(M, a, b, tol=1e-3), ipot.solve(M, a, b, tol=1e-3, max_iter=10**4)
    assert isinstance(exact, ipot.Transport) and isinstance(iterated, ipot.Transport)
    assert exact.converged and iterated.converged
    assert iterated.lower_bound <= exact.value and exact.lower_bound <= iterated.value
    for one in ("plan", "value", "lower_bound", "gap"):
        first, second = getattr(exact, one), getattr(iterated, one)
        assert type(first) is type(second) and first.dtype == second.dtype
        assert np.shape(first) == np.shape(second)


# -------------------------------------------------------------------------------------- clouds


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 7),
    st.sampled_from(METRICS),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.booleans(),
)
def test_clouds_exactly(seed, n, m, d, metric, dtype, zeros, small):
    x, y, a, b = clouds(seed, n, m, d, dtype, zeros and n > 2 and m > 2)
    with pytest.MonkeyPatch.context() as patch:
        if not small:
            patch.setattr(columns, "SMALL", 0)
        result = solve_sample(x, y, a, b, metric=metric)
    M = scipy.spatial.distance.cdist(x.astype(float), y.astype(float), metric)
    W = exact_value(M, a, b)
    eps = float(np.finfo(dtype).eps)
    assert result.converged and abs(result.value - W) <= 1e-9 * W + 8 * eps * M.max()
    assert result.lower_bound <= W + 1e-13 * M.max()
    f, g = (z.astype(float) for z in result.potentials)
    assert (f[:, None] + g <= M + 1e-13 * (1 + M.max())).all()


def test_clouds_and_their_matrix_agree():
    x, y, a, b = clouds(3, 260, 250, 3, zeros=True)
    for metric in METRICS:
        from_matrix = solve(scipy.spatial.distance.cdist(x, y, metric), a, b)
        from_clouds = solve_sample(x, y, a, b, metric=metric)
        assert from_clouds.value == pytest.approx(from_matrix.value, rel=1e-12)
        assert from_clouds.lower_bound == pytest.approx(from_matrix.lower_bound, rel=1e-10)


@pytest.mark.parametrize("d", [1, 2, 16, 784])
def test_clouds_in_float32_and_their_matrix_agree(d):
    x, y, a, b = clouds(4, 300, 350, d, np.float32)
    M = scipy.spatial.distance.cdist(x.astype(float), y.astype(float), "sqeuclidean")
    found, true = (
        solve_sample(x, y, a, b),
        solve(M, a.astype(float), b.astype(float) / b.sum() * a.sum()),
    )
    assert found.value == pytest.approx(true.value, abs=1e-6 * M.max())
    assert found.lower_bound <= true.value * (1 + 1e-6) and found.converged


def test_a_metric_of_ones_own():
    x, y, a, b = clouds(13, 12, 10, 2)
    cube = lambda u, v: torch.cdist(u, v) ** 3  # noqa: E731
    M = scipy.spatial.distance.cdist(x, y) ** 3
    assert solve_sample(x, y, a, b, metric=cube).value == pytest.approx(exact_value(M, a, b))
    X = np.stack([x, x + 1])
    assert solve_sample(X, y, a, b, metric=cube).plan.shape == (2, 12, 10)
    with pytest.raises(ValueError, match="must be finite"):
        solve_sample(x, y, metric=lambda u, v: cube(u, v) * np.nan)


def test_metrics_of_any_kind():
    x, y, *_ = clouds(17, 12, 10, 3, np.float32)
    layer = torch.nn.Linear(3, 3)

    class Unhashable:
        __hash__ = None

        def __call__(self, u, v):
            return torch.cdist(layer(u), layer(v))

    X = torch.from_numpy(x).requires_grad_()
    solve_sample(X, torch.from_numpy(y), metric=Unhashable()).value.backward()
    assert X.grad.isfinite().all() and X.grad.abs().sum() > 0
    hamming = lambda u, v: (u[:, None].round() != v.round()).sum(-1)  # noqa: E731
    whole = solve_sample(x, y, metric=hamming)
    assert whole.lower_bound <= whole.value and whole.value.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [2, 6])
def test_clusters_far_apart(dtype, d):
    """|x|^2 + |y|^2 - 2 <x, y> would leave no digits."""
    rng = np.random.default_rng(18)
    far = 1e3 if dtype == np.float32 else 1e5
    x, y = (rng.random((8, d)) + far * (np.arange(8) % 2)[:, None] for _ in range(2))
    x, y = x.astype(dtype), y.astype(dtype)
    M = scipy.spatial.distance.cdist(x.astype(float), y.astype(float), "sqeuclidean")
    W = exact_value(M[::2, ::2], np.full(4, 1 / 8), np.full(4, 1 / 8))
    W += exact_value(M[1::2, 1::2], np.full(4, 1 / 8), np.full(4, 1 / 8))
    result = solve_sample(x, y)
    assert float(result.lower_bound) <= W * (1 + 1e-12)
    assert W * (1 - 1e-12) <= float(result.value)
    if d == 2:
        assert float(result.value) == pytest.approx(W, rel=1e-6 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("d", [1, 2, 6])
@pytest.mark.parametrize("small", [0, 10**6])
def test_points_without_mass_far_away_change_nothing(monkeypatch, small, d):
    monkeypatch.setattr(columns, "SMALL", small)
    x, y, a, b = clouds(21, 14, 12, d)
    base = solve_sample(x, y, a, b)
    far = np.vstack((x, np.full((2, d), 1e8))), np.vstack((np.full((1, d), -3e7), y))
    padded = solve_sample(*far, np.append(a, [0, 0]), np.append(0, b))
    assert padded.value == pytest.approx(base.value, rel=1e-14)
    assert padded.lower_bound == pytest.approx(base.lower_bound, rel=1e-12)
    assert padded.converged and padded.gap <= 1e-10 * padded.value
    np.testing.assert_allclose(padded.plan[:14, 1:], base.plan, atol=1e-15)
    f, g = padded.potentials
    M = scipy.spatial.distance.cdist(*far, "sqeuclidean")
    assert np.isfinite(f).all() and np.isfinite(g).all()
    assert (f[:, None] + g <= M * (1 + 1e-12) + 1e-12).all()


def test_the_value_is_the_plans_own_in_many_dimensions():
    """What |x|^2 + |y|^2 - 2 <x, y> cancels widens the lower bound only."""
    x, y, a, b = clouds(22, 40, 30, 6)
    x[0] += 1e5
    result = solve_sample(x, y, a, b)
    M = scipy.spatial.distance.cdist(x, y, "sqeuclidean")
    assert result.value == pytest.approx(float((result.plan * M).sum()), rel=1e-13)
    assert result.lower_bound <= exact_value(M, a, b) * (1 + 1e-12) <= result.value * (1 + 2e-12)


# ----------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("d", [1, 2, 6])
@pytest.mark.parametrize("metric", [*METRICS, lambda u, v: (u[:, None] - v).abs().pow(3).sum(-1)])
def test_gradients_of_clouds_match_finite_differences(metric, d):
    inputs = clouds(11, 8, 7, d)
    tensors = [torch.from_numpy(z).requires_grad_() for z in inputs]
    solve_sample(*tensors, metric=metric).value.backward()

    def W(x, y, a, b):
        if isinstance(metric, str):
            return exact_value(scipy.spatial.distance.cdist(x, y, metric), a, b)
        return exact_value(metric(torch.from_numpy(x), torch.from_numpy(y)).numpy(), a, b)

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


def test_the_gradient_in_the_matrix_is_the_plan():
    M = torch.from_numpy(np.random.default_rng(1).random((2, 9, 7))).requires_grad_()
    result = solve(M)
    (3 * result.value).sum().backward()
    np.testing.assert_allclose(M.grad, 3 * result.plan, atol=1e-15)


def test_gradients_are_made_where_they_are_wanted():
    x, y, a, b = (torch.from_numpy(z) for z in clouds(20, 9, 8, 2))
    X, weights = x.clone().requires_grad_(), a.clone().requires_grad_()
    solve_sample(X, y, a, b).value.backward()
    assert X.grad.abs().sum() > 0
    with torch.no_grad():
        assert not solve_sample(X, y).value.requires_grad
    with torch.inference_mode():
        solve_sample(X, y)
    calls = []
    metric = lambda u, v: calls.append(torch.is_grad_enabled()) or torch.cdist(u, v)  # noqa: E731
    solve_sample(x, y, weights, b, metric=metric).value.backward()
    assert weights.grad.abs().sum() > 0 and not any(calls)


# --------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("tol", [0.0, 1e-3])
@pytest.mark.parametrize("count, n", [(20, 32), (3, 200)])
def test_a_batch_is_each_of_its_problems(tol, count, n):
    parts = [clouds(k, n, n, 2, np.float32) for k in range(count)]
    x, y, a, b = (np.stack(z) for z in zip(*parts))
    M = np.stack([ot.dist(p[0], p[1]) for p in parts])
    batch, from_clouds = solve(M, a, b, tol=tol), solve_sample(x, y, a, b, tol=tol)
    assert isinstance(batch.sparse_plan, list) and len(batch.sparse_plan) == count
    for k in range(count):
        alone = solve(M[k], a[k], b[k], tol=tol)
        assert batch.value[k] == pytest.approx(alone.value, rel=1e-5)
        assert from_clouds.value[k] == pytest.approx(alone.value, rel=1e-5)
        np.testing.assert_allclose(batch.plan[k], alone.plan, atol=1e-5)
        assert batch.converged[k] == alone.converged


def test_gradients_of_a_batch_reach_a_shared_cloud():
    x, y, *_ = clouds(14, 15, 12, 2)
    X = torch.from_numpy(np.stack([x, 2 * x])).requires_grad_()
    Y, Z = (torch.from_numpy(y).requires_grad_() for _ in range(2))
    batch = solve_sample(X, Y)
    batch.value.sum().backward()
    loop = [solve_sample(one, Z).value for one in X.detach()]
    sum(loop).backward()
    assert X.grad.shape == X.shape
    np.testing.assert_allclose(batch.value.detach(), torch.stack(loop).detach(), rtol=1e-12)
    np.testing.assert_allclose(Y.grad, Z.grad, atol=1e-12)


def test_global_settings_are_left_as_found():
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    x, y, a, b = clouds(15, 400, 300, 2)
    solve_sample(x, y, a, b)
    assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())


# ------------------------------------------------------------------------------------- bad input

X0, Y0 = np.zeros((3, 2)), np.ones((4, 2))
BAD_CLOUDS = [
    ((None, Y0), {}, TypeError, "X_a must be an array"),
    ((np.zeros(3), Y0), {}, ValueError, r"one dimension; write X_a\[:, None\]"),
    ((np.zeros((0, 2)), Y0), {}, ValueError, "n, d >= 1"),
    ((np.zeros((3, 3)), Y0), {}, ValueError, "same last dimension"),
    ((np.full((3, 2), np.nan), Y0), {}, ValueError, "X_a must be finite; 6 of 6"),
    ((X0, np.full((4, 2), np.inf)), {}, ValueError, "X_b must be finite"),
    ((np.full((3, 2), 1e200), Y0), {}, ValueError, "mass times cost"),
    ((np.zeros((2, 3, 2)), np.zeros((3, 4, 2))), {}, ValueError, "batch dimensions do not match"),
    ((np.zeros((0, 3, 2)), Y0), {}, ValueError, "n, d >= 1"),
    ((X0, Y0, np.zeros((0, 3))), {}, ValueError, "the batch is empty.* a .0,."),
    ((X0, torch.ones(4, 2)), {}, TypeError, "NumPy and torch"),
    ((X0, Y0, np.ones(4) / 4), {}, ValueError, r"a must have shape \(\.\.\., 3\)"),
    ((X0, Y0, np.array(1.0)), {}, ValueError, r"a must have shape \(\.\.\., 3\)"),
    ((X0, Y0, np.ones(3), np.ones(4)), {}, ValueError, "equal mass"),
    ((X0, Y0, -np.ones(3) / 3), {}, ValueError, "a must be non-negative"),
    ((np.zeros((2, 3, 2)), Y0, np.ones((5, 3)) / 3), {}, ValueError, "batch dimensions do not"),
    ((X0, Y0), {"metric": "manhattan"}, ValueError, "metric must be sqeuclidean, euclidean, city"),
    ((X0, Y0), {"metric": ["euclidean"]}, ValueError, "metric must be sqeuclidean"),
    ((X0, Y0), {"tol": -1}, ValueError, "tol must be a finite number >= 0"),
    ((X0, Y0), {"tol": None}, TypeError, "tol must be a number"),
    ((X0, Y0), {"tol": "0.01"}, TypeError, "tol must be a number"),
    ((X0, Y0), {"tol": True}, TypeError, "tol must be a number"),
]


@pytest.mark.parametrize("arrays, options, error, message", BAD_CLOUDS)
def test_bad_clouds_are_refused(arrays, options, error, message):
    with pytest.raises(error, match=message):
        solve_sample(*arrays, **options)


@pytest.mark.parametrize(
    "arrays, error, message",
    [
        ((None,), TypeError, "M must be an array of shape"),
        ((np.ones(3),), ValueError, r"M must have shape \(\.\.\., n, m\)"),
        ((np.full((2, 2), np.nan),), ValueError, "M must be finite"),
        ((np.ones((2, 3)), np.ones(3)), ValueError, r"a must have shape \(\.\.\., 2\)"),
        ((np.ones((2, 3)), np.ones(2), np.ones(3)), ValueError, "equal mass"),
    ],
)
def test_bad_matrices_are_refused(arrays, error, message):
    with pytest.raises(error, match=message):
        solve(*arrays)


def test_the_examples_in_the_docstrings():
    module = importlib.import_module("exactot.solve")  # the package's attribute is the function
    tested = doctest.testmod(module)
    assert tested.attempted > 5 and tested.failed == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_cuda_agrees(tol):
    inputs = [torch.from_numpy(z) for z in clouds(16, 700, 600, 2)]
    here = solve_sample(*inputs, tol=tol)
    there = solve_sample(*(z.cuda() for z in inputs), tol=tol)
    assert there.value.device.type == "cuda"
    assert float(there.value) == pytest.approx(float(here.value), rel=1e-5)


@pytest.mark.parametrize("size", [110, 230])
def test_a_batch_does_not_depend_on_the_number_of_threads(size):
    rng, threads = np.random.default_rng(0), torch.get_num_threads()
    M, answers = rng.random((5, size, size + 3)), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            answers.append(solve(M))
            assert torch.get_num_threads() == number
        with pytest.raises(ValueError, match="tol"):
            solve(M, tol=-1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    one, several = answers
    for name in ("plan", "value", "lower_bound"):
        assert (getattr(one, name) == getattr(several, name)).all()
