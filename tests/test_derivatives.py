"""Derivatives are right, or an error says that there are none."""

import copy

import numpy as np
import pytest
import torch
from conftest import random_problem

import ipot
from exactot import barycenter, solve, solve_sample

RNG = torch.Generator().manual_seed(0)
X, Y = (torch.rand(6, 2, generator=RNG, dtype=torch.float64) for _ in range(2))
M = torch.cdist(X, Y) ** 2
VALUES = {
    "solve_sample": lambda x: solve_sample(x, Y).value,
    "line": lambda x: solve_sample(x[:, :1], Y[:, :1]).value,
    "metric": lambda x: solve_sample(x, Y, metric=lambda u, v: torch.cdist(u, v) ** 4).value,
    "solve": lambda x: solve((x[:, None] - Y).square().sum(-1)).value,
    "ipot": lambda x: ipot.solve((x[:, None] - Y).square().sum(-1)).value,
    "barycenter": lambda x: barycenter(x.square(), torch.cdist(X, X), max_iter=20).value,
}


@pytest.mark.parametrize("name", VALUES)
def test_second_derivatives_are_refused(name):
    value, message = VALUES[name], "first derivatives only"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.functional.hessian(value, X)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match=message):  # also inside a sum
        (slope.square().sum() + x.sum()).backward()
    x.grad = None
    (slope,) = torch.autograd.grad(value(x), x, create_graph=True)
    once = torch.autograd.grad(value(x), x)[0]
    np.testing.assert_array_equal(slope.detach(), once)  # nothing is refused that is not asked for


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", VALUES)
def test_transforms_of_torch_are_named(name):
    value = VALUES[name]
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(TypeError, match=r"torch\.func\.grad, vmap"):
            transform(value)(X)
    with pytest.raises(TypeError, match="leading dimensions for a batch"):
        torch.func.vmap(value)(torch.stack((X, X + 1)))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="jvp"):
        value(torch.autograd.forward_ad.make_dual(X, torch.ones_like(X)))


@pytest.mark.parametrize("door", [solve, ipot.solve])
def test_a_step_along_the_gradient_in_weights_keeps_the_mass(door):
    C, a, b = (torch.from_numpy(x) for x in random_problem(5, 12, 9))
    a[3] = b[4] = 0
    a, b = ((x / x.sum()).requires_grad_() for x in (a, b))
    door(C, a, b).value.backward()
    for x in (a, b):
        assert abs(float(x.grad[x > 0].sum())) < 1e-12
        moved = (x - 1e-3 * x.grad * (x > 0)).detach()
        assert float(moved.sum()) == pytest.approx(1, abs=1e-12)
        assert (
            door(C, *(moved if z is x else z.detach() for z in (a, b))).value < door(C, a, b).value
        )


@pytest.mark.parametrize("power", [1, 2])
def test_coincident_points_without_mass_between_them(power):
    """A root has an infinite slope at 0: it must not reach arcs that carry nothing."""
    x, y = X.clone(), Y.clone()
    y[0] = x[1]  # not partners
    root = lambda u, v: ((u[:, None] - v) ** 2).sum(-1).sqrt() ** power  # noqa: E731
    a = torch.tensor([0.5, 0, 0.1, 0.1, 0.1, 0.2], dtype=torch.float64)
    points = [z.clone().requires_grad_() for z in (x, y)]
    solve_sample(*points, a, metric=root).value.backward()
    named = [z.clone().requires_grad_() for z in (x, y)]
    solve_sample(*named, a, metric={1: "euclidean", 2: "sqeuclidean"}[power]).value.backward()
    for first, second in zip(points, named):
        np.testing.assert_allclose(first.grad, second.grad, atol=1e-12)


def test_an_answer_may_be_written_to_before_backward():
    for door in (solve, ipot.solve):
        C = M.clone().requires_grad_()
        found = door(C)
        expected = found.plan.clone()
        found.plan.zero_()
        found.potentials[0].zero_()
        found.value.backward()
        np.testing.assert_array_equal(C.grad, expected)


def test_a_deep_copy_has_the_numbers_and_no_gradient():
    for door in (solve, ipot.solve):
        found = door(M.clone().requires_grad_())
        again = copy.deepcopy(found)
        assert again.value.item() == found.value.item() and not again.value.requires_grad
        assert found.value.requires_grad and (again.plan == found.plan).all()


def test_a_step_inside_a_transform_is_named():
    for transform in (torch.func.grad, torch.func.vmap):
        with pytest.raises(TypeError, match="beta is inside torch"):
            transform(lambda beta: ipot.solve(M, beta=beta.sum()).value)(torch.full((3,), 0.1))


def test_float32_costs_with_float64_weights_have_gradients_in_each_dtype():
    C, a, b = (torch.from_numpy(x) for x in random_problem(6, 7, 5))
    inputs = [C.float().requires_grad_(), a.requires_grad_(), b]
    solve(*inputs).value.backward()
    assert inputs[0].grad.dtype == torch.float32 and inputs[1].grad.dtype == torch.float64
