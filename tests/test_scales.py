"""Units do not matter: costs, points and weights of every scale; and what `converged` goes by."""

import numpy as np
import ot
import pytest
import torch
from conftest import barycenter_program, exact_value, line_cost, random_problem

import ipot
from exactot import barycenter, free_support_barycenter, solve, solve_sample

SCALES = [1e-300, 1e-130, 1e-30, 1e30, 1e130, 1e300]
SINGLE = [1e-37, 1e-20, 1e20, 1e37]
RNG = np.random.default_rng(0)
M = RNG.random((20, 15))
X, Y = RNG.random((30, 2)), RNG.random((25, 2))
A = RNG.dirichlet(np.ones(15), 2).T
C = RNG.random((15, 15))
PROBLEMS = {
    "solve": lambda s: solve(s * M),
    "solve, columns": lambda s: solve(s * np.tile(M, (20, 20))),
    "ipot.solve": lambda s: ipot.solve(s * M, tol=1e-3),
    "ipot.solve, beta": lambda s: ipot.solve(s * M, beta=0.02 * s, max_iter=50),
    "ipot.solve, float32": lambda s: ipot.solve(np.float32(s) * M.astype("f4"), tol=1e-2),
    "barycenter": lambda s: barycenter(A, s * C, max_iter=60),
    "barycenter, exact": lambda s: barycenter(A, s * C, exact=True),
}


@pytest.mark.parametrize("scale", SCALES + SINGLE)
@pytest.mark.parametrize("name", PROBLEMS)
def test_costs_in_other_units(name, scale):
    if "float32" in name and scale not in SINGLE:
        pytest.skip("float32 has no such costs")
    usual, scaled = PROBLEMS[name](1.0), PROBLEMS[name](scale)
    rel = 1e-5 if "float32" in name else 1e-11
    assert float(scaled.value) / scale == pytest.approx(float(usual.value), rel=rel)
    assert float(scaled.lower_bound) / scale == pytest.approx(float(usual.lower_bound), rel=rel)
    assert scaled.n_iter == usual.n_iter and scaled.converged == usual.converged


@pytest.mark.parametrize("scale", [1e-150, 1e-15, 1e21, 1e25, 1e150])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("d", [1, 2, 8])
def test_points_in_other_units(metric, scale, d):
    x, y = np.random.default_rng(d).random((2, 40, d))
    usual, scaled = (solve_sample(s * x, s * y, metric=metric) for s in (1.0, scale))
    cost = scale**2 if metric == "sqeuclidean" else scale
    assert scaled.value / cost == pytest.approx(usual.value, rel=1e-12) and scaled.converged
    if metric == "sqeuclidean":  # the others have many optimal plans
        np.testing.assert_allclose(scaled.plan, usual.plan)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_other_doors_in_other_units(scale):
    on_grid = [barycenter(A.reshape(5, 3, 2), grid=s, max_iter=40) for s in (1.0, scale)]
    assert on_grid[1].value / scale**2 == pytest.approx(on_grid[0].value, rel=1e-10)
    moved = [free_support_barycenter([s * X, s * Y], 4) for s in (1.0, scale)]
    np.testing.assert_allclose(moved[1].points / scale, moved[0].points, rtol=1e-9)
    assert moved[1].value / scale**2 == pytest.approx(moved[0].value, rel=1e-10)
    u, v = np.full(20, 1 / 20), np.full(15, 1 / 15)
    plans = [ipot.ipot_WD(u, v, s * M, beta=0.1 * s, max_iter=50) for s in (1.0, scale)]
    np.testing.assert_allclose(plans[1][0], plans[0][0], rtol=1e-9)
    assert plans[1][1][-1] / scale == pytest.approx(plans[0][1][-1], rel=1e-11)
    q = [ipot.ipot_barycenter(A, s * line_cost(15), 0.05 * s) for s in (1.0, scale)]
    np.testing.assert_allclose(q[1], q[0], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_weights_in_other_units(scale):
    _, a, b = random_problem(3, 20, 15)
    for door in (solve, ipot.solve):
        usual, scaled = door(M, a, b), door(M, scale * a, scale * b)
        assert scaled.value / scale == pytest.approx(usual.value, rel=1e-9)
        np.testing.assert_allclose(scaled.plan / scale, usual.plan, atol=1e-12)
    large = np.tile(M, (20, 20))
    a, b = (np.random.default_rng(n).random(n) for n in large.shape)
    a, b = a / a.sum(), b / b.sum()
    assert solve(large, scale * a, scale * b).n_iter == solve(large, a, b).n_iter
    q = barycenter(scale * A, C, max_iter=30).histogram
    np.testing.assert_allclose(q, barycenter(A, C, max_iter=30).histogram, rtol=1e-9)


def test_gradients_keep_their_units():
    for scale in (1e-200, 1e200):
        gradients = []
        for s in (1.0, scale):
            inputs = [torch.from_numpy(z).requires_grad_() for z in (s * M, *map(uniform, M.shape))]
            ipot.solve(*inputs, tol=1e-3).value.backward()
            gradients.append([z.grad.numpy() for z in inputs])
        for k, unit in enumerate((1.0, scale, scale)):
            np.testing.assert_allclose(gradients[1][k] / unit, gradients[0][k], atol=1e-9)


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e30, 1e140])
def test_gradients_in_points_keep_their_units(scale):
    cube = lambda u, v: (u[:, None] - v).abs().sum(-1) ** 2  # noqa: E731
    for metric, degree in (("sqeuclidean", 2), ("euclidean", 1), ("cityblock", 1), (cube, 2)):
        found = []
        for s in (1.0, scale):
            x, y = (torch.from_numpy(s * z).requires_grad_() for z in (X, Y))
            value = solve_sample(x, y, metric=metric).value
            value.backward()
            cost = s**degree
            found.append(
                [value.item() / cost, x.grad.numpy() * s / cost, y.grad.numpy() * s / cost]
            )
        for first, second in zip(*found):
            np.testing.assert_allclose(second, first, rtol=1e-9, atol=1e-12)


def uniform(n):
    return np.full(n, 1 / n)


# -------------------------------------------------------------------------------- what converged is


@pytest.mark.parametrize(("dtype", "huge"), [("f4", 1e9), ("f8", 1e9), ("f8", 1e16), ("f8", 1e300)])
def test_a_huge_cost_that_no_mass_pays(dtype, huge):
    rng = np.random.default_rng(3)
    cost, forbidden = rng.random((20, 20)), rng.random((20, 20)) < 0.3
    np.fill_diagonal(forbidden, False)
    W = exact_value(np.where(forbidden, 1e3, cost), uniform(20), uniform(20))
    cost = np.where(forbidden, huge, cost).astype(dtype)
    exact = solve(cost)
    assert exact.value == pytest.approx(W, rel=1e-6) and exact.converged
    assert exact.lower_bound == pytest.approx(W, rel=1e-6)
    for options in ({}, {"tol": 1e-2}, {"tol": 1e-3, "max_iter": 20000}):
        found = ipot.solve(cost, **options)
        assert found.lower_bound <= W * (1 + 1e-6) and found.value >= W * (1 - 1e-6)
        assert found.lower_bound >= 0.9 * W
        assert not found.converged or found.gap <= (options.get("tol", 0) + 1e-5) * found.value


@pytest.mark.parametrize("huge", [1e6, 1e9, 1e15, 1e300])
def test_a_huge_cost_in_a_barycenter(huge):
    rng = np.random.default_rng(4)
    forbidden = (rng.random((12, 12)) < 0.3) & ~np.eye(12, dtype=bool)
    cost, A = rng.random((12, 12)), rng.dirichlet(np.ones(12), 3).T
    W = barycenter_program(A, np.where(forbidden, 1e3, cost), uniform(3))
    cost = np.where(forbidden, huge, cost)
    exact = barycenter(A, cost, exact=True)
    assert exact.value == pytest.approx(W, rel=1e-8) and exact.converged
    for tol in (None, 1e-2):
        found = barycenter(A, cost, tol=tol)
        assert found.lower_bound <= W * (1 + 1e-9) and W * (1 - 1e-9) <= found.value <= 1.02 * W
        assert found.converged == (found.gap <= (tol or 1e-9) * found.value)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("value", [0.0, 1e-15, 3.0, -1e9])
def test_equal_costs_are_solved(dtype, value):
    cost = np.full((6, 9), value, dtype)
    a, b = np.arange(1, 7, dtype=dtype) / 21, np.arange(1, 10, dtype=dtype) / 45
    answers = [door(cost, *w) for door in (solve, ipot.solve) for w in ((), (a, b))]
    for found in (*answers, ipot.solve(cost, a, b, tol=1e-3, beta=1e-16)):
        assert found.converged and found.value == pytest.approx(value, rel=1e-6)
        assert found.lower_bound <= np.float64(cost[0, 0]) * (1 + 1e-15 * np.sign(value))


def test_a_step_where_one_of_a_batch_has_equal_costs():
    batch = np.random.default_rng(0).random((2, 5, 5)) * 1e-15
    batch[1] = 1e-15
    for cost in (batch[0], batch[1], batch):
        value = np.atleast_1d(ipot.solve(cost, beta=1e-16, max_iter=3000).value)
        assert value == pytest.approx(np.atleast_1d(solve(cost).value), rel=0.2)
    one_hot = np.eye(5)[0]
    assert ipot.solve(batch[0], one_hot, one_hot, beta=1e-16).converged


@pytest.mark.parametrize("row", [0, 1, 75, 150])
def test_a_row_of_huge_costs_that_little_mass_pays(row):
    """Its potential is huge, and sets no tolerance of the others."""
    rng = np.random.default_rng(row)
    cost, a, b = rng.random((300, 300)), rng.dirichlet(np.ones(300)), rng.dirichlet(np.ones(300))
    cost[row] = 1e8 * (1 + cost[row])
    a[row] = 1e-10
    found = solve(cost, a / a.sum(), b)
    assert found.converged and found.gap <= 1e-12 * found.value


KINDS = {
    "1 - identity": lambda rng, n: 1 - np.eye(n),
    "uniform": lambda rng, n: rng.random((n, n)),
    "integer": lambda rng, n: rng.integers(0, 4, (n, n)),
    "half forbidden": lambda rng, n: np.where(rng.random((n, n)) < 0.5, 1e3, rng.random((n, n))),
    "cloud": lambda rng, n: ot.dist(rng.normal(size=(n, 2)), rng.normal(size=(n, 2))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_answers_in_float32_are_called_converged(kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cost, a = KINDS[kind](rng, 270).astype("f4"), rng.random(270).astype("f4")
        found = solve(cost, a / a.sum())
        assert found.converged and found.gap <= 1e-6 * (found.value + np.median(cost))


def test_points_without_mass_far_away():
    x, y = np.float32([[-3e3], [0]]), np.float32([[1.5], [9e3]])
    for options in ({}, {"metric": lambda u, v: (u - v.T) ** 2}):
        found = solve_sample(x, y, np.float32([0, 1]), np.float32([1, 0]), **options)
        assert found.value == pytest.approx(2.25, rel=1e-6) and found.converged
        assert found.gap <= 1e-5
