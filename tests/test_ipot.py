"""The solver against independent truth: POT's linear program, the paper's algorithms transcribed
plainly, closed forms and finite differences."""

import doctest
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from conftest import clouds, cost_range, exact_value, random_problem, rough_problems
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ipot
from benchmarks.published import algorithm_1, algorithm_2
from ipot import ipot_barycenter, ipot_WD, round_to_marginals, solve

ROOT = Path(__file__).resolve().parent.parent
WIDE_EXPONENT = np.finfo(np.longdouble).maxexp > 2000


problems = st.builds(
    random_problem,
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 20),
    m=st.integers(1, 20),
    dtype=st.sampled_from([np.float32, np.float64]),
    zeros=st.booleans(),
    ties=st.booleans(),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    mass=st.sampled_from([1.0, 1e-3, 250.0]),
)
relative_betas = st.floats(-4, 4).map(lambda x: 10.0**x)


# ---------------------------------------------------------------------------------------- solve


@settings(max_examples=300, deadline=None)
@given(problems, relative_betas, st.integers(1, 60), st.sampled_from([1, 1, 3]), st.booleans())
def test_solve_certifies_the_truth(problem, beta, max_iter, inner_iter, growing):
    M, a, b = problem
    options = {"max_iter": max_iter, "inner_iter": inner_iter, "growing": growing}
    result = solve(M, a, b, beta=beta * cost_range(M), **options)
    W = exact_value(M, a, b)
    mass, size = float(a.sum()), float(np.abs(M).max()) * float(a.sum())
    rounding = np.finfo(M.dtype).eps

    assert result.plan.dtype == M.dtype and result.plan.shape == M.shape
    assert np.isfinite(result.plan).all() and (result.plan >= 0).all()
    np.testing.assert_allclose(result.plan.sum(1, dtype=float), a, atol=8 * rounding * mass)
    np.testing.assert_allclose(result.plan.sum(0, dtype=float), b, atol=8 * rounding * mass)
    np.testing.assert_allclose(
        np.sum(result.plan.astype(float) * M), result.value, atol=32 * rounding * size
    )
    # The truth is bracketed to the rounding of the linear program, also in float32.
    assert result.lower_bound <= W + 1e-13 * size
    assert W - 1e-13 * size <= result.value
    assert 0 <= result.gap < np.inf
    f, g = (x.astype(float) for x in result.potentials)
    assert (f[:, None] + g[None, :] <= M.astype(float)).all()
    assert result.n_iter == max_iter


@settings(max_examples=50, deadline=None)
@given(problems, st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_tol_is_reached_or_reported(problem, tol):
    M, a, b = problem
    result = solve(M, a, b, tol=tol, max_iter=3000)
    W = exact_value(M, a, b)
    rounding = 32 * np.finfo(M.dtype).eps * float(np.abs(M).max()) * float(a.sum())
    assert result.converged == (result.n_iter < 3000 or result.gap <= tol * abs(result.value))
    if result.converged:
        assert abs(result.value - W) <= tol * abs(result.value) + rounding


@settings(max_examples=150, deadline=None)
@given(rough_problems(), st.integers(1, 40))
def test_bounds_hold_on_rough_problems(problem, max_iter):
    M, a, b = problem
    result = solve(M, a, b, max_iter=max_iter)
    W, size = exact_value(M, a, b), float(np.abs(M).max())
    assert result.lower_bound <= W + 1e-13 * size and W - 1e-13 * size <= float(result.value)
    assert np.isfinite(result.plan).all() and np.isfinite(result.gap) and result.gap >= 0


@settings(max_examples=60, deadline=None)
@given(rough_problems(), relative_betas, st.integers(500, 2000), st.sampled_from([1, 1, 2]))
def test_bounds_hold_where_steps_have_grown_large(problem, beta, max_iter, inner_iter):
    M, a, b = problem
    options = {"max_iter": max_iter, "inner_iter": inner_iter}
    result = solve(M, a, b, beta=beta * cost_range(M), **options)
    W, size = exact_value(M, a, b), float(np.abs(M).max())
    assert result.lower_bound <= W + 1e-13 * size and W - 1e-13 * size <= float(result.value)
    assert np.isfinite(result.plan).all() and np.isfinite(result.gap) and result.gap >= 0


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("weights", ["uniform", "random"])
def test_growing_steps_come_closer(d, weights):
    x, y, a, b = clouds(d, 200, 180, d)
    problem = (ot.dist(x, y),) if weights == "uniform" else (ot.dist(x, y), a, b)
    growing, constant = (solve(*problem, max_iter=200, growing=g) for g in (True, False))
    assert growing.gap < constant.gap / 2
    assert growing.lower_bound > constant.lower_bound


def test_growing_steps_converge_to_rounding():
    M, a, b = random_problem(11, 6, 5)
    result = solve(M, a, b, tol=0, max_iter=20000)
    np.testing.assert_allclose(result.value, exact_value(M, a, b), rtol=1e-13)
    assert result.converged and result.n_iter < 20000


@pytest.mark.parametrize("growing", [True, False])
def test_logarithms_continue_what_scalings_begin(growing, monkeypatch):
    x, y, a, b = clouds(3, 40, 30, 1, zeros=True)
    options = {"max_iter": 300, "growing": growing}
    scalings = solve(ot.dist(x, y), a, b, **options)
    monkeypatch.setattr(ipot._Iteration, "on_scalings", lambda self, steps: False)
    logarithms = solve(ot.dist(x, y), a, b, **options)
    np.testing.assert_allclose(logarithms.plan, scalings.plan, atol=1e-9)
    np.testing.assert_allclose(logarithms.lower_bound, scalings.lower_bound, rtol=1e-9)


def test_problems_of_a_batch_have_steps_of_their_own():
    x, y, *_ = clouds(1, 30, 30, 1)
    z, w, *_ = clouds(2, 30, 30, 16)
    M = np.stack([ot.dist(x, y), 1e3 + ot.dist(z, w), 1e-3 * ot.dist(y, x), np.ones((30, 30))])
    batch, alone = solve(M, max_iter=300), [solve(C, max_iter=300) for C in M]
    np.testing.assert_allclose(batch.plan, [one.plan for one in alone], atol=1e-9)
    np.testing.assert_allclose(batch.lower_bound, [one.lower_bound for one in alone], rtol=1e-9)


def test_lazily_negated_tensors_are_taken():
    M = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    negated = torch.complex(M, -M).conj().imag
    assert negated.is_neg() and torch.equal(negated, M)
    torch.testing.assert_close(solve(negated).plan, solve(M).plan, atol=0, rtol=0)


def test_the_layout_of_the_cost_does_not_matter():
    M = np.random.default_rng(0).random((20, 15, 4)).astype(np.float32)
    strided = solve(torch.from_numpy(M).permute(2, 0, 1), max_iter=40)
    whole = solve(torch.from_numpy(M).permute(2, 0, 1).contiguous(), max_iter=40)
    torch.testing.assert_close(strided.plan, whole.plan)
    cost = ipot._Cost(*ipot.read_problem(torch.from_numpy(M).permute(2, 0, 1), None, None), None)
    assert all(x.is_contiguous() for x in cost.space)


def test_constant_steps_are_algorithm_1_rounded():
    M, a, b = random_problem(2, 9, 8)
    plan = round_to_marginals(ipot_WD(a, b, M, 0.3, max_iter=70, return_loss=False), a, b)
    constant = solve(M, a, b, beta=0.3, max_iter=70, growing=False)
    np.testing.assert_allclose(constant.plan, plan, atol=1e-14)


def test_a_batch_stops_when_all_of_it_is_there():
    M = np.random.default_rng(0).random((3, 40, 40))
    batch = solve(M, tol=1e-2, max_iter=5000)
    alone = [solve(C, tol=1e-2, max_iter=5000) for C in M]
    assert batch.converged.all() and batch.n_iter >= max(one.n_iter for one in alone)
    assert (batch.gap <= 1e-2 * batch.value).all()
    few = solve(M, tol=1e-9, max_iter=30)
    assert not few.converged.any() and few.n_iter == 30


def test_value_converges_to_the_linear_program():
    rng = np.random.default_rng(0)
    M = ot.dist(rng.normal(size=(60, 2)), rng.normal(size=(50, 2)))
    W = exact_value(M, np.full(60, 1 / 60), np.full(50, 1 / 50))
    gaps = [solve(M, max_iter=n).value / W - 1 for n in (10, 100, 1000, 10000)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-4
    result = solve(M, max_iter=20000, tol=1e-4)
    assert result.converged and result.lower_bound <= W * (1 + 1e-12)


def test_default_beta_is_a_twentieth_of_the_range_of_costs_that_matter():
    M, a, b = random_problem(3, 12, 9, zeros=True)
    active = M[np.ix_(a > 0, b > 0)]
    by_hand = solve(M, a, b, beta=0.05 * np.ptp(active), max_iter=30)
    np.testing.assert_allclose(solve(M, a, b, max_iter=30).plan, by_hand.plan, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2.0**-20, 2.0**10]), st.floats(-5, 5))
def test_scaling_and_shifting_the_cost_changes_nothing_else(seed, scale, shift):
    M, a, b = random_problem(seed, 9, 7, zeros=True)
    base = solve(M, a, b, max_iter=40)
    scaled = solve(scale * M, a, b, max_iter=40)
    np.testing.assert_allclose(scaled.plan, base.plan, atol=1e-12)
    np.testing.assert_allclose(scaled.lower_bound, scale * base.lower_bound, rtol=1e-9)
    shifted = solve(M + shift, a, b, max_iter=40)
    np.testing.assert_allclose(shifted.plan, base.plan, atol=1e-11)
    np.testing.assert_allclose(shifted.value, base.value + shift, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_permuting_points_permutes_the_plan(seed):
    M, a, b = random_problem(seed, 8, 11, zeros=True)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(8), rng.permutation(11)
    base = solve(M, a, b, max_iter=50)
    moved = solve(M[rows][:, columns], a[rows], b[columns], max_iter=50)
    np.testing.assert_allclose(moved.plan, base.plan[rows][:, columns], atol=1e-12)
    np.testing.assert_allclose(moved.lower_bound, base.lower_bound, rtol=1e-10, atol=1e-12)


def test_points_without_mass_change_nothing():
    M, a, b = random_problem(5, 10, 9)
    base = solve(M, a, b, max_iter=50)
    wide = np.full((12, 11), 1e3)
    wide[:10, :9] = M
    padded = solve(wide, np.append(a, [0, 0]), np.append(b, [0, 0]), max_iter=50)
    np.testing.assert_allclose(padded.plan[:10, :9], base.plan, atol=1e-13)
    assert padded.plan[10:].sum() == 0 and padded.plan[:, 9:].sum() == 0
    np.testing.assert_allclose(padded.lower_bound, base.lower_bound, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_equals_loop(dtype):
    parts = [random_problem(seed, 7, 5, dtype, zeros=seed % 2 == 0) for seed in range(6)]
    M, a, b = (np.stack(x).reshape(2, 3, *x[0].shape) for x in zip(*parts))
    batch = solve(M, a, b, max_iter=80)
    assert batch.plan.shape == (2, 3, 7, 5) and batch.value.shape == (2, 3)
    for k, part in enumerate(parts):
        alone, where = solve(*part, max_iter=80), np.unravel_index(k, (2, 3))
        tolerance = 1e-5 if dtype == np.float32 else 1e-11
        np.testing.assert_allclose(batch.plan[where], alone.plan, atol=tolerance)
        np.testing.assert_allclose(batch.value[where], alone.value, rtol=10 * tolerance)
        np.testing.assert_allclose(batch.lower_bound[where], alone.lower_bound, rtol=10 * tolerance)


def test_one_cost_serves_a_batch_of_weights_and_steps():
    M, a, b = random_problem(1, 6, 8)
    weights = np.stack([a, np.roll(a, 1), np.roll(a, 2)])
    steps = np.array([0.1, 0.2, 0.4])
    batch = solve(M, weights, b, beta=steps, max_iter=30)
    for k in range(3):
        alone = solve(M, weights[k], b, beta=steps[k], max_iter=30)
        np.testing.assert_allclose(batch.plan[k], alone.plan, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numpy_equals_torch(dtype):
    M, a, b = (torch.from_numpy(x).to(dtype) for x in random_problem(2, 9, 6))
    from_torch, from_numpy = solve(M, a, b), solve(M.numpy(), a.numpy(), b.numpy())
    assert isinstance(from_torch.plan, torch.Tensor) and from_torch.value.dtype == dtype
    assert isinstance(from_numpy.plan, np.ndarray) and np.isscalar(from_numpy.value)
    np.testing.assert_array_equal(from_torch.plan.numpy(), from_numpy.plan)
    assert float(from_torch.lower_bound) == from_numpy.lower_bound


def test_inputs_are_left_alone_and_lists_and_integers_are_taken():
    M, a, b = random_problem(4, 6, 6, ties=True)
    before = [x.copy() for x in (M, a, b)]
    for x in (M, a, b):
        x.setflags(write=False)
    base = solve(M, a, b)
    for x, y in zip((M, a, b), before):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(solve(M.astype(int), a, b).plan, base.plan)
    np.testing.assert_array_equal(solve(M.tolist(), a.tolist(), b).plan, base.plan)
    np.testing.assert_array_equal(solve(M[:, ::-1][:, ::-1], a, b).plan, base.plan)


def test_gradient_is_the_envelope_and_matches_finite_differences():
    M, a, b = random_problem(11, 5, 4)
    tensors = [torch.from_numpy(x).requires_grad_() for x in (M, a, b)]
    result = solve(*tensors, tol=1e-10, max_iter=20000)
    assert result.converged
    (3 * result.value).backward()
    rng = np.random.default_rng(0)
    step = 1e-6
    for index, direction in enumerate((rng.normal(size=M.shape), rng.normal(size=5))):
        if index == 1:
            direction -= direction.mean()  # the mass of a stays that of b
        at = [
            exact_value(
                *(x + sign * step * direction if k == index else x for k, x in enumerate((M, a, b)))
            )
            for sign in (1, -1)
        ]
        slope = 3 * (at[0] - at[1]) / (2 * step)
        ours = float((tensors[index].grad.numpy() * direction).sum())
        assert ours == pytest.approx(slope, rel=1e-5, abs=1e-7)
    for x in tensors[1:]:  # a step along them keeps the mass
        assert abs(float(x.grad.sum())) < 1e-12
    np.testing.assert_allclose(tensors[0].grad.numpy(), 3 * result.plan.numpy(), rtol=1e-12)


def test_gradient_of_a_batch_reaches_a_shared_cost():
    M, a, b = (torch.from_numpy(x) for x in random_problem(12, 5, 4))
    M.requires_grad_()
    result = solve(M, a, torch.stack([b, b.flip(0)]))
    result.value.sum().backward()
    np.testing.assert_allclose(M.grad.numpy(), result.plan.sum(0).numpy(), rtol=1e-12)


def test_closed_forms():
    rng = np.random.default_rng(1)
    # A Dirac against anything: the mean cost.
    cost = rng.normal(size=(1, 8))
    weights = rng.dirichlet(np.ones(8))
    result = solve(cost, None, weights)
    assert result.value == pytest.approx(float(cost[0] @ weights)) and result.converged
    # A cloud against itself in another order: zero, by the permutation.
    x = rng.normal(size=(20, 3))
    order = rng.permutation(20)
    result = solve(ot.dist(x, x[order]), tol=1e-6, max_iter=5000)
    assert result.converged and abs(result.value) < 1e-10
    np.testing.assert_allclose(result.plan[order, np.arange(20)], 1 / 20, rtol=1e-6)
    # A translation: its squared length, by the identity.
    result = solve(ot.dist(x, x + np.array([3.0, 0.0, 4.0])), tol=1e-8, max_iter=5000)
    assert result.value == pytest.approx(25, rel=1e-7)
    # On a line: the sorted points.
    y = rng.normal(size=20)
    result = solve((x[:, :1] - y[None, :]) ** 2, tol=1e-5, max_iter=20000)
    sorted_cost = np.mean((np.sort(x[:, 0]) - np.sort(y)) ** 2)
    assert result.lower_bound <= sorted_cost * (1 + 1e-12) and result.value >= sorted_cost * (
        1 - 1e-12
    )
    assert result.converged


def test_float32_survives_what_underflows_float32():
    rng = np.random.default_rng(3)
    M = (1e6 * ot.dist(rng.normal(size=(40, 2)), rng.normal(size=(30, 2)))).astype(np.float32)
    W = exact_value(M, np.full(40, 1 / 40), np.full(30, 1 / 30))
    for beta in (1e-4, 1e-3, 1e-2, 0.05, 1.0):
        result = solve(M, beta=beta * np.ptp(M), max_iter=500)
        assert result.lower_bound <= W <= result.value
        assert result.gap < 3 * W


# --------------------------------------------------------------------------- round_to_marginals


@settings(max_examples=150, deadline=None)
@given(problems, st.sampled_from(["random", "sparse", "zero", "near"]))
def test_a_rounded_plan_is_feasible_and_near(problem, kind):
    _, a, b = problem
    rng = np.random.default_rng(0)
    plan = np.outer(a, b) / a.sum() * rng.uniform(0, 2, (len(a), len(b)))
    if kind == "sparse":
        plan *= rng.uniform(size=plan.shape) < 0.2
    elif kind == "zero":
        plan *= 0
    elif kind == "near":
        plan = np.outer(a, b) / a.sum() * (1 + 1e-3 * rng.uniform(-1, 1, plan.shape))
    plan = plan.astype(a.dtype)
    rounded = round_to_marginals(plan, a, b)
    eps, mass = float(np.finfo(a.dtype).eps), float(a.sum())
    assert rounded.dtype == a.dtype and (rounded >= 0).all()
    np.testing.assert_allclose(rounded.sum(1, dtype=float), a, atol=8 * eps * mass)
    np.testing.assert_allclose(rounded.sum(0, dtype=float), b, atol=8 * eps * mass)
    # Lemma 7 of Altschuler, Weed, Rigollet: what moves is at most twice the marginals' error.
    error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    assert np.abs(rounded - plan).sum() <= 2 * error + 64 * eps * mass


def test_rounding_takes_tensors_and_batches_and_refuses_negative_plans():
    M, a, b = random_problem(0, 5, 6)
    plans = np.random.default_rng(0).random((3, 5, 6))
    batch = round_to_marginals(torch.from_numpy(plans), torch.from_numpy(a), torch.from_numpy(b))
    for plan, rounded in zip(plans, batch):
        np.testing.assert_allclose(rounded.numpy(), round_to_marginals(plan, a, b), atol=1e-15)
    exact = ot.emd(a, b, M)
    np.testing.assert_allclose(round_to_marginals(exact, a, b), exact, atol=1e-15)
    with pytest.raises(TypeError, match="a and b must be arrays; got None"):
        round_to_marginals(plans, None, b)
    with pytest.raises(ValueError, match="plan must be non-negative; got entries down to -"):
        round_to_marginals(-plans, a, b)
    with pytest.raises(ValueError, match=r"a must have shape \(\.\.\., 5\) to match plan"):
        round_to_marginals(plans, b, a)


# -------------------------------------------------------------------------------------- ipot_WD


# A block of steps whose kernel is too small in the middle, and large enough at both ends.
@example(13, 13, 7, 10.0**-1.90625, 1, True, 53, 1e-6, 1.0)
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 15),
    st.integers(1, 15),
    relative_betas,
    st.sampled_from([1, 1, 2, 5]),
    st.booleans(),
    st.integers(1, 200),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([1.0, 30.0]),
)
@pytest.mark.skipif(not WIDE_EXPONENT, reason="long double has no wider exponent here")
def test_iterates_are_algorithm_1(seed, n, m, beta, L, use_path, max_iter, scale, mass):
    M, a, b = random_problem(seed, n, m, scale=scale, mass=mass)
    beta = beta * cost_range(M)
    # In double precision the transcription loses entries that underflow without becoming NaN, and
    # with them the plan; the wider exponent of long double keeps them.
    with np.errstate(all="ignore"):
        plan, loss = algorithm_1(
            *(x.astype(np.longdouble) for x in (a, b, M)),
            np.longdouble(beta),
            max_iter,
            L,
            use_path,
        )
    P, ours = ipot_WD(a, b, M, beta, max_iter=max_iter, L=L, use_path=use_path)
    assert np.isfinite(P).all() and np.isfinite(ours).all() and len(ours) == max_iter
    if np.isfinite(plan).all() and np.exp(-np.longdouble(np.ptp(M)) * max_iter / beta) > 0:
        np.testing.assert_allclose(P, plan.astype(float), rtol=1e-9, atol=1e-9 * mass)
        np.testing.assert_allclose(ours, loss, rtol=1e-9, atol=1e-9 * scale * mass)


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_iterates_are_algorithm_1_in_plain_double(beta):
    M, a, b = random_problem(7, 40, 30)
    plan, loss = algorithm_1(a, b, M, beta * cost_range(M), 1000)
    P, ours = ipot_WD(a, b, M, beta * cost_range(M), max_iter=1000)
    np.testing.assert_allclose(P, plan, atol=1e-12)
    np.testing.assert_allclose(ours, loss, rtol=1e-11)


def test_cross_ratio_of_the_plan_is_that_of_the_kernel():
    M, a, b = random_problem(8, 6, 5)
    beta, t = 0.3, 7
    log_plan = np.log(ipot_WD(a, b, M, beta, max_iter=t, return_loss=False))
    log_kernel = -t * M / beta

    def cross(x):
        return x[:-1, :-1] + x[1:, 1:] - x[1:, :-1] - x[:-1, 1:]

    np.testing.assert_allclose(cross(log_plan), cross(log_kernel), rtol=1e-9, atol=1e-9)


def test_zero_weights_are_those_of_the_problem_without_them():
    M, a, b = random_problem(9, 12, 10, zeros=True)
    rows, columns = a > 0, b > 0
    part, loss = algorithm_1(a[rows], b[columns], M[np.ix_(rows, columns)], 0.4, 60)
    P, ours = ipot_WD(a, b, M, 0.4, max_iter=60)
    np.testing.assert_allclose(P[np.ix_(rows, columns)], part, atol=1e-12)
    np.testing.assert_allclose(ours, loss, rtol=1e-11)
    assert P.sum() == pytest.approx(1)


@pytest.mark.parametrize("beta", [1e-4, 1e-2, 1.0, 1e4])
def test_twenty_thousand_iterations(beta):
    M, a, b = random_problem(10, 12, 15)
    P, loss = ipot_WD(a, b, M, beta * cost_range(M), max_iter=20000)
    assert len(loss) == 20000 and np.isfinite(loss).all() and np.isfinite(P).all()
    np.testing.assert_allclose(P.sum(0), b, atol=1e-9)
    if 1e-2 <= beta <= 1:
        assert loss[-1] == pytest.approx(exact_value(M, a, b), abs=1e-4 * cost_range(M))


def test_flags_lists_tensors_and_mass():
    M, a, b = random_problem(13, 5, 5)
    P, loss = ipot_WD(a, b, M)
    assert len(loss) == 1000 and isinstance(loss, list) and isinstance(loss[0], float)
    assert ipot_WD(a, b, M, return_map=False) == loss
    np.testing.assert_array_equal(ipot_WD(a, b, M, return_loss=False), P)
    assert ipot_WD(a, b, M, return_map=False, return_loss=False) is None
    from_lists, _ = ipot_WD(a.tolist(), b.tolist(), M.tolist())
    np.testing.assert_array_equal(from_lists, P)
    tensors = [torch.from_numpy(x).float() for x in (a, b, M)]
    from_torch, _ = ipot_WD(*tensors)
    assert isinstance(from_torch, torch.Tensor) and from_torch.dtype == torch.float32
    np.testing.assert_allclose(from_torch.numpy(), P, atol=1e-5)
    ones, _ = ipot_WD(np.ones(5), np.ones(5), M, 0.5, 20)
    np.testing.assert_allclose(ones, algorithm_1(np.ones(5), np.ones(5), M, 0.5, 20)[0], atol=1e-12)


# ------------------------------------------------------------------------------ ipot_barycenter


def published_pair(n=100):
    """Two bumps and two bumps, not normalised: masses 2 and 1, as in the published demo."""
    x = np.arange(n)
    bump = lambda mean, sd: np.exp(-((x - mean) ** 2) / (2 * sd**2))  # noqa: E731
    A = np.stack([bump(20, 5) + bump(60, 8), bump(50, 4) + bump(80, 6)], 1)
    A *= np.array([2.0, 1.0]) / A.sum(0)
    M = (x[:, None] - x[None, :]) ** 2.0
    return A, M / M.max()


@pytest.mark.parametrize("beta, iterations", [(0.1, 1), (0.1, 300), (1.0, 300), (0.02, 50)])
def test_barycenter_is_algorithm_2(beta, iterations):
    A, M = published_pair()
    weights = np.array([0.3, 0.7])
    q = algorithm_2(A / A.sum(0), M, beta, weights, iterations)
    ours = ipot_barycenter(A, M, beta, weights, iterations)
    np.testing.assert_allclose(ours, q / q.sum(), atol=1e-9)
    unnormalised = algorithm_2(A, M, beta, weights, iterations)
    np.testing.assert_allclose(ours, unnormalised / unnormalised.sum(), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 15), st.integers(1, 4), relative_betas, st.booleans())
def test_barycenter_is_a_histogram(seed, n, count, beta, zeros):
    rng = np.random.default_rng(seed)
    A = rng.uniform(0.1, 5, (n, count))
    if zeros:
        A[rng.uniform(size=A.shape) < 0.4] = 0
        A[rng.integers(n)] = 1
    M = np.abs(rng.normal(size=(n, n)))
    weights = rng.dirichlet(np.ones(count))
    q = ipot_barycenter(A, M, beta * cost_range(M), weights, 60)
    assert q.shape == (n,) and np.isfinite(q).all() and (q >= 0).all()
    assert q.sum() == pytest.approx(1, abs=1e-12)
    order = rng.permutation(count)
    again = ipot_barycenter(A[:, order], M, beta * cost_range(M), weights[order], 60)
    np.testing.assert_allclose(again, q, atol=1e-8)


def test_barycenter_comes_close_to_the_linear_program():
    A, M = published_pair(60)
    A = A / A.sum(0)

    def objective(q):
        return sum(0.5 * exact_value(M, q, p) for p in A.T)

    exact = np.maximum(ot.lp.barycenter(A, M, np.array([0.5, 0.5])), 0)
    best = objective(exact / exact.sum())
    assert objective(ipot_barycenter(A, M, 0.1, numItermax=1000)) < best * (1 + 1e-4)
    assert objective(ipot_barycenter(A, M, 0.01, numItermax=1000)) < best * (1 + 1e-4)


def test_barycenter_of_one_input_is_that_input():
    A, M = published_pair(40)
    q = ipot_barycenter(A[:, :1], M, 0.05, numItermax=3000)
    np.testing.assert_allclose(q, A[:, 0] / A[:, 0].sum(), atol=1e-6)
    both = ipot_barycenter(A, M, 0.05, [1.0, 0.0], 3000)
    np.testing.assert_allclose(both, q, atol=1e-9)


def test_barycenter_takes_lists_and_tensors():
    A, M = published_pair(20)
    q = ipot_barycenter(A, M, 0.1)
    np.testing.assert_array_equal(ipot_barycenter(A.tolist(), M.tolist(), 0.1), q)
    from_torch = ipot_barycenter(torch.from_numpy(A), torch.from_numpy(M), 0.1)
    np.testing.assert_array_equal(from_torch.numpy(), q)


# ------------------------------------------------------------------------------------ bad input

M0, a0, b0 = np.ones((3, 4)), np.full(3, 1 / 3), np.full(4, 1 / 4)
nan, inf = np.nan, np.inf
BAD_PROBLEMS = [
    (np.ma.masked_array(M0, M0 > 2), a0, b0, TypeError, "{M} is a masked array; leave"),
    (M0, np.ma.masked_array(a0, a0 < 0), b0, TypeError, "{a} is a masked array"),
    (np.ones(3), a0, b0, ValueError, r"{M} must have shape \(\.\.\., n, m\)"),
    (np.ones((0, 4)), None, b0, ValueError, "n, m >= 1"),
    (np.ones((0, 3, 4)), a0, b0, ValueError, "n, m >= 1"),
    (M0, np.ones(4) / 4, b0, ValueError, r"{a} must have shape \(\.\.\., 3\)"),
    (M0, a0, a0, ValueError, r"{b} must have shape \(\.\.\., 4\)"),
    (M0, np.array(1.0), b0, ValueError, "{a} must have shape"),
    (np.ones((2, 3, 4)), np.ones((5, 3)) / 3, b0, ValueError, "batch dimensions do not match"),
    (np.full((3, 4), nan), a0, b0, ValueError, "{M} must be finite"),
    (np.where(np.eye(3, 4) > 0, inf, 1.0), a0, b0, ValueError, "3 of 12 entries"),
    (M0, np.array([nan, 0.5, 0.5]), b0, ValueError, "{a} must be finite"),
    (M0, a0, np.array([inf, 0, 0, 0]), ValueError, "{b} must be finite"),
    (M0, np.array([-0.5, 0.5, 1.0]), b0, ValueError, "{a} must be non-negative.* -0.5"),
    (M0, np.zeros(3), b0, ValueError, "{a} must have positive mass"),
    (M0, 2 * a0, b0, ValueError, "equal mass .*got 2 and 1"),
    (M0, a0 * (1 + 3e-6), b0, ValueError, "equal mass"),
    (M0, torch.from_numpy(a0), b0, TypeError, "NumPy and torch"),
    (M0.astype(complex), a0, b0, TypeError, "{M} must be float32 or float64.*complex"),
    (M0.astype(np.float16), None, None, TypeError, "float16"),
    (np.array([["x"] * 4] * 3), a0, b0, TypeError, "{M} must be float32"),
    (np.full((3, 4), 1e308), a0, b0, ValueError, "mass times cost.*up to 1e.308"),
    (torch.ones(3, 4).to_sparse(), None, None, TypeError, "{M} must be a dense tensor"),
    (1e200 * M0, 1e200 * a0, 1e200 * b0, ValueError, "mass times cost"),
    ([[1, 2], [3]], None, None, ValueError, "{M} is not a rectangular array"),
]


@pytest.mark.parametrize("M, a, b, error, message", BAD_PROBLEMS)
def test_bad_problems_are_refused(M, a, b, error, message):
    with pytest.raises(error, match=message.format(M="M", a="a", b="b")):
        solve(M, a, b)
    if a is not None and b is not None and M.ndim == 2:
        with pytest.raises(error, match=message.format(M="C", a="a1", b="a2")):
            ipot_WD(a, b, M)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"beta": 0}, ValueError, "beta must be positive"),
        ({"beta": -1.0}, ValueError, "beta must be positive"),
        ({"beta": nan}, ValueError, "beta must be positive"),
        ({"beta": 1e-14}, ValueError, "at least 1e-12 of the cost's range"),
        ({"beta": "small"}, TypeError, "beta must be a number"),
        ({"beta": np.ones(2)}, ValueError, "batch shape"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"max_iter": 10.5}, TypeError, "max_iter must be an integer"),
        ({"max_iter": True}, TypeError, "max_iter must be an integer"),
        ({"inner_iter": 0}, ValueError, "inner_iter must be at least 1"),
        ({"tol": -1e-3}, ValueError, "tol must be a finite number >= 0"),
        ({"tol": nan}, ValueError, "tol must be a finite number >= 0"),
        ({"tol": "0.01"}, TypeError, "tol must be a number"),
        ({"tol": True}, TypeError, "tol must be a number"),
        ({"growing": 2}, TypeError, "growing must be True or False"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        solve(M0 + np.arange(4), a0, b0, **options)


def test_what_is_missing_or_has_a_dimension_too_many_is_named():
    with pytest.raises(TypeError, match="M must be an array of shape"):
        solve(None)
    with pytest.raises(TypeError, match="A and M must be arrays"):
        ipot_barycenter(None, np.ones((3, 3)), 0.1)
    with pytest.raises(ValueError, match=r"a1 must have shape \(n,\); it has 2 dimensions"):
        ipot_WD(np.ones((2, 3)) / 3, b0, M0)
    with pytest.raises(ValueError, match=r"C must have shape \(n, m\); it has 3 dimensions"):
        ipot_WD(a0, b0, M0[None])


def test_a_later_call_changes_no_earlier_result():
    problems = [random_problem(seed, 30, 30, np.float32) for seed in range(4)]
    results = [solve(*problem, max_iter=20) for problem in problems]
    before = [result.plan.copy() for result in results]
    with torch.inference_mode():
        solve(torch.rand(30, 30), max_iter=5)
    for problem in problems:
        solve(*problem, max_iter=5)
    for result, plan in zip(results, before):
        np.testing.assert_array_equal(result.plan, plan)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda problem: solve(*problem, max_iter=20).plan, 5 * problems))
    for plan, expected in zip(again, 5 * before):
        np.testing.assert_array_equal(plan, expected)


def test_byte_order_and_gradients_of_beta_do_not_matter():
    M, a, b = random_problem(21, 6, 7)
    base = solve(M, a, b, beta=0.2, max_iter=20)
    np.testing.assert_array_equal(
        solve(M.astype(">f8"), a, b, beta=0.2, max_iter=20).plan, base.plan
    )
    beta = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    plan = solve(*(torch.from_numpy(x) for x in (M, a, b)), beta=beta, max_iter=20).plan
    np.testing.assert_array_equal(plan.numpy(), base.plan)


def test_devices_must_agree():
    with pytest.raises(ValueError, match="one device; got cpu, meta"):
        solve(torch.ones(3, 4), torch.ones(3, device="meta"), torch.ones(4))


def test_mass_may_differ_by_the_tolerance_of_the_dtype():
    assert np.isfinite(solve(M0, a0 * (1 + 5e-7), b0).value)
    a32, b32 = a0.astype(np.float32), b0.astype(np.float32)
    assert np.isfinite(solve(M0.astype(np.float32), a32 * np.float32(1 + 5e-5), b32).value)
    with pytest.raises(ValueError, match="equal mass"):
        solve(M0.astype(np.float32), a32 * np.float32(1 + 2e-4), b32)


@pytest.mark.parametrize(
    "A, M, weights, message",
    [
        (np.ones(3), np.ones((3, 3)), None, "A must have shape"),
        (np.ones((3, 0)), np.ones((3, 3)), None, "A must have shape"),
        (np.ones((3, 2)), np.ones((3, 4)), None, r"and M \(n, n\); got"),
        (np.array([[1.0, 0], [1, 0]]), np.ones((2, 2)), None, "positive mass"),
        (np.array([[1.0, -1], [1, 2]]), np.ones((2, 2)), None, "non-negative"),
        (np.array([[1.0, nan], [1, 2]]), np.ones((2, 2)), None, "finite"),
        (np.ones((3, 2)), np.full((3, 3), nan), None, "M must be finite"),
        (np.ones((3, 2)), np.ones((3, 3)), np.ones(3) / 3, "weights must have shape"),
        (np.ones((3, 2)), np.ones((3, 3)), np.array([0.5, 0.6]), "weights must sum to 1"),
        (np.ones((3, 2)), np.ones((3, 3)), np.array([1.5, -0.5]), "weights must be non-negative"),
    ],
)
def test_bad_barycenter_input_is_refused(A, M, weights, message):
    with pytest.raises(ValueError, match=message):
        ipot_barycenter(A, M, 0.1, weights)


# ------------------------------------------------------------------------------- the file alone


def test_the_file_works_alone(tmp_path):
    """With NumPy and PyTorch only; PyTorch's own imports are not counted."""
    shutil.copy(ROOT / "ipot.py", tmp_path)
    code = (
        "import sys, numpy, torch; before = set(sys.modules)\n"
        "import ipot\n"
        "C = [[0.0, 1.0], [1.0, 0.0]]\n"
        "print(ipot.solve(C, tol=1e-3).converged, len(ipot.ipot_WD([1, 1], [1, 1], C)[1]))\n"
        "print(ipot.ipot_barycenter(C, C, 0.1), ipot.round_to_marginals(C, [1, 1], [1, 1]))\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'scipy', 'ot', 'exactot', 'sklearn', 'matplotlib'}, new\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout.startswith("True 1000") and run.returncode == 0, run.stderr


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(ipot).failed == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        M, a, b = (torch.from_numpy(x).to(dtype) for x in random_problem(6, 70, 50, zeros=True))
        on_cpu, on_cuda = solve(M, a, b), solve(M.cuda(), a.cuda(), b.cuda())
        assert on_cuda.plan.is_cuda and on_cuda.plan.dtype == dtype
        np.testing.assert_allclose(on_cuda.plan.cpu().numpy(), on_cpu.plan.numpy(), atol=tolerance)
