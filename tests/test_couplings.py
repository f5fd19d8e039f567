"""Pairs for flow matching: optimal, whatever the shapes are, and in torchcfm's own matchers."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from exactot import couplings
from exactot.couplings import OTPlanSampler, pairs


def points(seed, n, m, *shape, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, *shape, generator=rng)
    x1 = (
        0.5 * torch.randn(m, *shape, generator=rng)
        + torch.arange(m).view(-1, *[1] * len(shape)) % 3
    )
    return x0.to(dtype), x1.to(dtype)


def cost(x0, x1, y0=None, y1=None, weight=0.0):
    M = cdist(*(z.double().reshape(len(z), -1) for z in (x0, x1)), "sqeuclidean")
    return M + weight * (y0[:, None] != y1).numpy() if weight else M


def best(M):
    i, j = linear_sum_assignment(M)
    return M[i, j].sum()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 260),
    st.sampled_from([(), (1,), (2,), (5,), (2, 3, 4)]),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_pairs_are_an_optimal_permutation(seed, n, shape, dtype):
    x0, x1 = points(seed, n, n, *shape, dtype=dtype)
    i, j = pairs(x0, x1)
    M = cost(x0, x1)
    assert (i == torch.arange(n)).all() and (j.sort().values == torch.arange(n)).all()
    assert j.dtype == torch.int64
    assert M[i, j].sum() <= best(M) + 1e-5 * M.max()


@pytest.mark.parametrize("limits", [{"SEARCHED": 0}, {"SEARCHED": 0, "MATRIX": 0}])
@pytest.mark.parametrize("d", [2, 3, 8])
def test_pairs_without_a_matrix_cost_the_same(monkeypatch, limits, d):
    for name, limit in limits.items():
        monkeypatch.setattr(couplings, name, limit)
    x0, x1 = points(0, 300, 300, d, dtype=torch.float64)
    M = cost(x0, x1)
    assert M[pairs(x0, x1)].sum() == pytest.approx(best(M), rel=1e-12)


def test_large_clouds_of_the_plane_are_searched(monkeypatch):
    monkeypatch.setattr(couplings, "SEARCHED", 2**22)
    x0, x1 = points(0, 2100, 2100, 2)
    M = cost(x0, x1)
    assert M[pairs(x0, x1)].sum() == pytest.approx(2100 * ot.emd2([], [], M), rel=1e-9)


def test_partners_are_drawn_where_a_plan_is_no_permutation():
    x0, x1 = points(1, 6, 4, 2)
    a, b = torch.tensor([1.0, 2, 3, 1, 2, 1]), torch.tensor([4.0, 3, 2, 1])
    plan = ot.emd(a.numpy() / 10, b.numpy() / 10, cost(x0, x1))
    rng, seen = torch.Generator().manual_seed(0), np.zeros((6, 4))
    for _ in range(2000):
        i, j = pairs(x0, x1, a=a, b=b, generator=rng)
        assert (i == torch.arange(6)).all()
        seen[i, j] += 1
    np.testing.assert_allclose(seen / 2000, plan / plan.sum(1, keepdims=True), atol=0.05)
    assert (seen[plan == 0] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 220), st.floats(0.01, 100), st.booleans())
def test_conditions_cost_their_weight(seed, n, weight, as_vectors):
    x0, x1 = points(seed, n, n, 3)
    rng = torch.Generator().manual_seed(seed)
    y0, y1 = (torch.randint(-2, 3, (n,), generator=rng) for _ in range(2))
    given_y = [torch.eye(5)[y + 2] / 2**0.5 for y in (y0, y1)] if as_vectors else (y0, y1)
    M = cost(x0, x1, y0, y1, weight)
    found = pairs(x0, x1, *given_y, condition_weight=weight)
    assert M[found].sum() <= best(M) + 1e-5 * M.max()


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("n", [100, 300])
def test_a_weight_may_forbid_other_labels(n, d):
    """However large it is: among points of one label the plan is as good as without others."""
    x0, x1 = points(11, n, n, d)
    y0, y1 = torch.arange(n) % 2 + 2**24, torch.arange(n) % 2 + 2**24  # float32 cannot tell these
    i, j = pairs(x0, x1, y0, y1, condition_weight=1e8)
    M = cost(x0, x1)
    assert (y0[i] == y1[j]).all()
    wanted = sum(best(M[np.ix_(*(np.flatnonzero(y == label) for y in (y0, y1)))])
                 for label in y0.unique())  # fmt: skip
    assert M[i, j].sum() <= wanted * (1 + 1e-5)


@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize(
    ("unit", "offset", "dtype"),
    [
        (1e-30, 0.0, torch.float32),
        (1e25, 0.0, torch.float32),
        (1.0, 300.0, torch.float32),
        (1e-200, 0.0, torch.float64),
        (1e200, 0.0, torch.float64),
    ],
)
def test_the_unit_and_the_origin_do_not_matter(n, unit, offset, dtype):
    x0, x1 = points(12, n, n, 5, dtype=dtype)
    moved = (z * unit + offset for z in (x0, x1))
    M = cost(x0, x1)
    assert M[pairs(*moved)].sum() <= best(M) * (1 + 1e-5)


def test_numpy_gives_numpy():
    x0, x1 = (z.numpy() for z in points(2, 20, 20, 2))
    _, j = pairs(x0, x1)
    assert isinstance(j, np.ndarray) and j.dtype == np.int64
    assert (j == pairs(torch.from_numpy(x0), torch.from_numpy(x1))[1].numpy()).all()


@pytest.mark.parametrize("sizes", [(30, 30), (300, 300), (40, 25)])
def test_a_map_is_an_optimal_plan(sizes):
    x0, x1 = points(3, *sizes, 2)
    plan = OTPlanSampler().get_map(x0, x1)
    M = cost(x0, x1)
    assert (plan * M).sum() == pytest.approx(ot.emd2([], [], M), rel=1e-5)
    for axis, size in ((1, sizes[0]), (0, sizes[1])):
        np.testing.assert_allclose(plan.sum(axis), 1 / size)


def test_samples_are_pairs_of_the_plan():
    x0, x1 = points(4, 50, 50, 2)
    partner = dict(zip(map(tuple, x0.tolist()), map(tuple, x1[pairs(x0, x1)[1]].tolist())))
    sampler = OTPlanSampler(generator=torch.Generator().manual_seed(0))
    for replace in (True, False):
        z0, z1 = sampler.sample_plan(x0, x1, replace)
        assert all(partner[tuple(z)] == tuple(w) for z, w in zip(z0.tolist(), z1.tolist()))
        assert (len(torch.unique(z0, dim=0)) == 50) is not replace
    y0, y1 = torch.arange(50), torch.arange(50) + 100
    z0, z1, w0, w1 = sampler.sample_plan_with_labels(x0, x1, y0, y1)
    assert (x0[w0] == z0).all() and (x1[w1 - 100] == z1).all()
    z0, z1, w0, w1 = sampler.sample_plan_with_labels(x0, x1, None, y1)
    assert w0 is None and (x1[w1 - 100] == z1).all()
    i, j = sampler.sample_map(sampler.get_map(x0, x1), 50, replace=False)
    assert sorted(i) == sorted(j) == list(range(50))


def test_a_batch_may_be_one_point():
    x0, x1 = points(13, 1, 1, 3)
    sampler = OTPlanSampler()
    z0, z1, w0, w1 = sampler.sample_plan_with_labels(x0, x1, torch.tensor([3]), torch.tensor([4]))
    assert (z0 == x0).all() and (z1 == x1).all() and (w0, w1) == (3, 4)
    assert [len(z) for z in sampler.sample_map(np.ones((1, 1)), 1)] == [1, 1]
    assert (sampler.sample_trajectory(torch.stack((x0, x1), 1))[0, 1] == x1[0].numpy()).all()


@pytest.mark.parametrize("replace", [True, False])
def test_samples_follow_the_masses(replace):
    plan, seen = np.array([[0.5, 0.25, 0.0], [0.0, 0.05, 0.2]]), np.zeros((2, 3))
    sampler = OTPlanSampler(generator=torch.Generator().manual_seed(0))
    for _ in range(4000):
        i, j = sampler.sample_map(plan, 1, replace)
        seen[i, j] += 1
    np.testing.assert_allclose(seen / 4000, plan, atol=0.03)


def test_labels_take_part_in_the_plan_by_their_weight():
    x0, x1 = points(5, 40, 40, 2)
    y = torch.arange(40) % 2
    _, _, w0, w1 = OTPlanSampler(condition_weight=1e4).sample_plan_with_labels(x0, x1, y, y)
    assert (w0 == w1).all()
    _, _, w0, w1 = OTPlanSampler().sample_plan_with_labels(x0, x1, y, y)
    assert (w0 != w1).any()


def test_paths_follow_the_plans():
    X = torch.stack([z for k in range(2) for z in points(6 + k, 30, 30, 2)], 1)
    paths = OTPlanSampler().sample_trajectory(X)
    assert paths.shape == (30, 4, 2) and (paths[:, 0] == X[:, 0].numpy()).all()
    for t in range(3):
        M = cost(X[:, t], X[:, t + 1])
        assert ((paths[:, t] - paths[:, t + 1]) ** 2).sum() == pytest.approx(best(M), rel=1e-5)


@pytest.mark.parametrize("guided", [True, False])
def test_in_the_matchers_of_torchcfm(guided):
    torchcfm = pytest.importorskip("torchcfm")
    matcher = torchcfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    theirs, matcher.ot_sampler = matcher.ot_sampler, OTPlanSampler()
    assert {name for name in vars(type(theirs)) if name[0] != "_"} <= set(dir(OTPlanSampler))
    x0, x1 = points(8, 64, 64, 1, 4, 4)
    y1 = torch.arange(64)
    if guided:
        t, xt, ut, none, labels = matcher.guided_sample_location_and_conditional_flow(x0, x1, y1=y1)
        assert none is None
    else:
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
    z0, z1 = (xt + s * ut for s in (-t.view(-1, 1, 1, 1), 1 - t.view(-1, 1, 1, 1)))
    i, j = (cdist(z.flatten(1), x.flatten(1)).argmin(1) for z, x in ((z0, x0), (z1, x1)))
    assert (pairs(x0, x1)[1].numpy()[i] == j).all()
    assert not guided or (labels.numpy() == j).all()


def test_the_process_is_left_as_found():
    x0, x1 = points(9, 30, 20, 2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    sampler = OTPlanSampler(generator=torch.Generator().manual_seed(0))
    found = sampler.sample_plan(x0, x1)
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    _, j = pairs(x0[:20], x1[:15], generator=torch.Generator().manual_seed(0))
    assert (j == pairs(x0[:20], x1[:15], generator=torch.Generator().manual_seed(0))[1]).all()
    assert (torch.get_rng_state() == before[0]).all()
    sampler.generator.manual_seed(0)
    assert all((z == w).all() for z, w in zip(found, sampler.sample_plan(x0, x1)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((None, [[1.0]]), TypeError, "x0"),
        (([[np.nan]], [[1.0]]), ValueError, "finite"),
        (([], []), ValueError, "row"),
        (([[1.0]], [[1.0, 2.0]]), ValueError, "one shape"),
        (([[1.0]], [[1.0]], [1, 2], [1]), ValueError, "y0"),
    ],
)
def test_what_cannot_be_paired_is_said(arguments, error, words):
    with pytest.raises(error, match=words):
        pairs(*(x if x is None else np.array(x) for x in arguments))


def test_settings_that_cannot_be_are_said():
    x0, x1 = points(10, 5, 5, 2)
    with pytest.raises(ValueError, match="torchcfm"):
        OTPlanSampler("sinkhorn")
    with pytest.raises(ValueError, match="needs y0"):
        pairs(x0, x1, condition_weight=1.0)
    with pytest.raises(ValueError, match="positive"):
        pairs(x0, x1, a=torch.tensor([1.0, 0, 1, 1, 1]), b=torch.tensor([1.0, 1, 1, 1, 0]))
    with pytest.raises(ValueError, match="drawn"):
        sampler = OTPlanSampler()
        sampler.sample_map(np.eye(3) / 3, 4, replace=False)
