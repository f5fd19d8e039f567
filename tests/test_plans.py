"""Plans with few entries: their two forms, and the gradients in the points."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import clouds, random_problem

from exactot import solve, solve_sample


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_two_forms_agree(kind, dtype, column_generation):
    M, a, b = (kind(z) for z in random_problem(1, 30, 40, dtype, zeros=True))
    result = solve(M, a, b)
    sparse, dense = result.sparse_plan, result.plan
    assert sparse.shape == dense.shape == (30, 40) and sparse.dtype == dense.dtype == M.dtype
    assert isinstance(dense, type(M))
    if kind is np.asarray:
        assert isinstance(sparse, scipy.sparse.coo_array) and sparse.nnz < 70
        np.testing.assert_array_equal(sparse.toarray(), dense)
        np.testing.assert_allclose(sparse.sum(1), a, atol=1e-7)
    else:
        assert sparse.is_sparse and sparse.is_coalesced() and len(sparse.values()) < 70
        np.testing.assert_array_equal(sparse.to_dense(), dense)
        np.testing.assert_array_equal(sparse.coalesce().indices(), dense.to_sparse().indices())


def test_the_plan_is_formed_when_it_is_read():
    x, y, *_ = clouds(0, 40, 50, 2)
    result = solve_sample(x, y)
    assert "plan" not in vars(result)
    assert result.plan is result.plan and "plan" in vars(result)
    with pytest.raises(AttributeError, match="has no attribute 'plans'"):
        result.plans  # noqa: B018


def test_a_batch_of_plans():
    x, y, *_ = clouds(2, 6, 5, 2)
    X = np.stack([[x, x + 1, 2 * x], [x - 1, 3 * x, x]])
    result = solve_sample(X, y)
    assert result.plan.shape == (2, 3, 6, 5) and len(result.sparse_plan) == 6
    for k, one in zip(np.ndindex(2, 3), result.sparse_plan):
        np.testing.assert_array_equal(result.plan[k], one.toarray())


def test_results_travel():
    M, a, b = random_problem(3, 6, 5)
    result = solve(M, a, b)
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        np.testing.assert_array_equal(again.plan, result.plan)
        assert again.value == result.value and again.converged


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("n", [12, 300])
def test_a_sparse_plan_holds_no_zeros_and_is_in_row_major_order(n, d):
    x, y, a, b = clouds(5, n, n, d, zeros=True)
    for weights in ((a, b), (None, None)):
        plan = solve_sample(x, y, *weights).sparse_plan
        assert (plan.data > 0).all() and plan.nnz < 2 * n
        assert (np.diff(plan.row.astype(int) * n + plan.col) > 0).all()


@pytest.mark.parametrize("mass", [1.0, 7.0])
def test_plans_carry_the_mass_that_was_given(mass):
    x, y, a, b = clouds(6, 50, 40, 2)
    plan = solve_sample(x, y, mass * a, mass * b).sparse_plan
    np.testing.assert_allclose(plan.sum(1), mass * a, atol=1e-13)
    np.testing.assert_allclose(plan.sum(0), mass * b, atol=1e-13)


def test_points_that_coincide_have_a_finite_gradient():
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    for metric, slope in (("sqeuclidean", 2.0), ("euclidean", 1.0), ("cityblock", 1.0)):
        x.grad = None
        solve_sample(x, y, metric=metric).value.backward()
        np.testing.assert_allclose(x.grad, [[0, 0], [0, -slope / 2]], atol=1e-15)


def test_a_metric_that_ignores_a_cloud_gives_it_no_gradient():
    x, y, *_ = clouds(17, 12, 10, 3)
    X, Y = (torch.from_numpy(z).requires_grad_() for z in (x, y))
    one_sided = lambda u, v: v.square().sum(1).expand(len(u), -1)  # noqa: E731
    solve_sample(X, Y, metric=one_sided).value.backward()
    assert (X.grad == 0).all() and (Y.grad != 0).any()
    hamming = lambda u, v: (u[:, None].round() != v.round()).sum(-1)  # noqa: E731
    with pytest.raises(ValueError, match="metric must be differentiable"):
        solve_sample(X, Y, metric=hamming)
