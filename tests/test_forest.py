"""Masses of plans: to rounding for weights of every size, whole for whole weights."""

from fractions import Fraction

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exactot import columns, solve, solve_sample

EPS = np.finfo(float).eps


def errors(plan, a, b):
    """Of the marginals, in roundings of each weight."""
    plan, a, b = (np.asarray(x).astype(np.longdouble) for x in (plan, a, b))
    pairs = ((plan.sum(1), a), (plan.sum(0), b * (a.sum() / b.sum())))
    return max(float((abs(sums - w)[w > 0] / w[w > 0]).max()) / EPS for sums, w in pairs)


WEIGHTS = {
    "softmax": lambda rng, n: np.exp(rng.uniform(-690, 0, n)),
    "softmax of floats": lambda rng, n: np.exp(12 * rng.normal(size=n)),
    "tail": lambda rng, n: np.exp(-(np.linspace(0, 37, n) ** 2) / 2),
    "ratios": lambda rng, n: 10 ** rng.uniform(-14, 0, n),
    "uniform": lambda rng, n: np.ones(n),
}
COSTS = {
    "cloud": lambda rng, n, m: ot.dist(rng.normal(size=(n, 2)), rng.normal(size=(m, 2))),
    "zero": lambda rng, n, m: np.zeros((n, m)),
    "integer": lambda rng, n, m: rng.integers(0, 3, (n, m)) * 1.0,
    "line": lambda rng, n, m: abs(rng.normal(size=(n, 1)) - rng.normal(size=m)),
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(list(COSTS)),
    st.sampled_from(list(WEIGHTS)),
    st.sampled_from(list(WEIGHTS)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.booleans(),
)
def test_marginals_hold_for_each_weight(seed, cost, kind_a, kind_b, shape, small):
    rng = np.random.default_rng(seed)
    M = COSTS[cost](rng, *shape)
    a, b = (WEIGHTS[kind](rng, n) for kind, n in zip((kind_a, kind_b), shape))
    a, b = a / a.sum(), b / b.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "SMALL", 256**2 if small else 0)
        patch.setattr(columns, "MOST_TIED", 0)
        found = solve(M, a, b)
    assert errors(found.plan, a, b) <= 8
    assert found.converged and found.sparse_plan.nnz < sum(shape)


@pytest.mark.parametrize("d", [1, 2])
def test_clouds_with_weights_of_a_softmax(d):
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, d, generator=rng, dtype=torch.float64) for _ in range(2))
    a = torch.softmax(12 * torch.randn(400, generator=rng, dtype=torch.float64), 0)
    found = solve_sample(x, y, a)
    assert errors(found.plan, a, np.full(400, 1 / 400)) <= 8
    where = found.sparse_plan @ y / found.sparse_plan.sum(1).to_dense()[:, None]
    assert where.isfinite().all() and found.converged


@pytest.mark.parametrize("small", [0, 10**6])
@pytest.mark.parametrize("kind", [np.int64, float])
def test_whole_weights_have_whole_plans(monkeypatch, small, kind):
    monkeypatch.setattr(columns, "SMALL", small)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        a = rng.integers(0, 50, 40)
        b = rng.multinomial(a.sum(), rng.dirichlet(np.ones(30)))
        found = solve(rng.random((40, 30)), a.astype(kind), b.astype(kind))
        plan = found.plan
        np.testing.assert_array_equal(plan, plan.round())
        np.testing.assert_array_equal(plan.sum(1), a)
        np.testing.assert_array_equal(plan.sum(0), b)


@pytest.mark.parametrize(("n", "m"), [(16000, 5), (100, 100), (3, 20000)])
def test_no_value_lies_below_the_optimum(n, m):
    """All costs are 1: the optimum is the mass."""
    rng = np.random.default_rng(1)
    a, b = rng.random(n), rng.random(m)
    a, b = a / a.sum(), b / b.sum()
    W, found = sum(map(Fraction, a.tolist())), solve(np.ones((n, m)), a, b)
    assert 0 <= Fraction(float(found.value)) - W <= 1e-14
    assert -1e-14 <= Fraction(float(found.lower_bound)) - W <= 4 * EPS
    assert errors(found.plan, a, b) <= 8


def test_a_metric_in_float32_gives_no_value_below_the_optimum():
    rng = np.random.default_rng(2)
    for d in (2, 5, 30):
        x, y = (torch.from_numpy(rng.normal(size=(300, d)).astype("f4")) for _ in range(2))
        product = lambda u, v: (u.square().sum(1)[:, None] + v.square().sum(1)) - 2 * u @ v.T  # noqa: E731
        cost = product(x, y).double().numpy()
        u = np.full(300, 1 / 300)
        found = solve_sample(x, y, metric=product)
        assert found.lower_bound <= ot.emd2(u, u, cost) <= float(found.value)
        assert found.converged
