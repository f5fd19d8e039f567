"""The interface of UNITER's and ViLT's `ot.py`: equal plans, and what theirs does not survive."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ipot


def embeddings(seed, B=5, M=9, N=7, D=12, dtype=torch.float32, full=False):
    """Vectors around a few shared ones, and masks with at least one vector each."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(B, 4, D, generator=rng, dtype=torch.float64)
    batch = torch.arange(B)[:, None]
    x, y = (
        base[batch, torch.randint(4, (B, n), generator=rng)]
        + 0.5 * torch.randn(B, n, D, generator=rng, dtype=torch.float64)
        for n in (M, N)
    )
    pads = (
        torch.arange(n) >= (n if full else torch.randint(1, n + 1, (B, 1), generator=rng))
        for n in (M, N)
    )
    return x.to(dtype), y.to(dtype), *(pad.expand(B, -1).clone() for pad in pads)


def plan_of_the_paper(C, beta, steps, k):
    """Algorithm 1 for one cost without padding: every factor is formed, in float64."""
    n, m = C.shape
    kernel, plan, b = np.exp(-(C - C.min()) / beta), np.ones((n, m)), np.full(m, 1 / m)
    a = np.full(n, 1 / n)
    u = a
    for _ in range(steps):
        Q = kernel * plan
        for _ in range(k):
            v = b / (Q.T @ u)
            u = a / (Q @ v)
        plan = u[:, None] * Q * v
    return plan


def lengths(x, y, x_pad, y_pad):
    joint = x_pad[:, :, None] | y_pad[:, None]
    C = ipot.cost_matrix_cosine(x, y).masked_fill(joint, 0)
    return C, (~x_pad).sum(1), (~y_pad).sum(1), joint


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(torch.float32, 0.1, 1e-4), (torch.float32, 0.5, 1e-4)])
    | st.sampled_from([(torch.float64, beta, 1e-9) for beta in (0.03, 0.1, 0.5, 2.0)]),
    st.integers(1, 80),
    st.integers(1, 3),
)
def test_plans_are_those_of_the_paper_on_what_is_no_padding(seed, precision, steps, k):
    """In single precision too; plans by a beta of 0.03 depend on digits that it does not have."""
    dtype, beta, atol = precision
    x, y, x_pad, y_pad = embeddings(seed, dtype=dtype)
    C, x_len, y_len, joint = lengths(x, y, x_pad, y_pad)
    T = ipot.ipot(C, x_len, x_pad, y_len, y_pad, joint, beta, steps, k)
    assert T.shape == (5, 7, 9) and T.dtype == dtype
    for each, cost, rows, columns in zip(T, C, x_len, y_len):
        wanted = plan_of_the_paper(cost[:rows, :columns].double().numpy(), beta, steps, k)
        np.testing.assert_allclose(each.T[:rows, :columns], wanted, atol=atol * wanted.max())
        assert each.sum() == pytest.approx(each[:columns, :rows].sum())


@pytest.mark.parametrize("beta", [0.02, 1e-3, 1e-6])
def test_a_small_beta_leaves_no_range(beta):
    x, y = torch.zeros(1, 3, 2), torch.zeros(1, 4, 2)
    x[0, :, 0], y[0, :, 0] = torch.tensor([1.0, 1, -1]), 1.0
    none = torch.zeros(1, 3, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    assert float(ipot.optimal_transport_dist(x, y, *none, beta)) == pytest.approx(2 / 3, rel=1e-6)


def test_costs_that_are_nearly_equal_stay_in_range():
    """Independent vectors in many dimensions: a step changes little, and all of them do no harm."""
    x, y = (torch.randn(3, n, 768, generator=torch.Generator().manual_seed(n)) for n in (40, 30))
    none = [torch.zeros(3, n, dtype=torch.bool) for n in (40, 30)]
    C, x_len, y_len, joint = lengths(x, y, *none)
    T = ipot.ipot(C, x_len, none[0], y_len, none[1], joint, 0.5, 400, 1)
    for each, cost in zip(T, C):
        wanted = plan_of_the_paper(cost.double().numpy(), 0.5, 400, 1)
        np.testing.assert_allclose(each.T, wanted, atol=1e-4 * wanted.max())


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64])
def test_distances_are_those_of_the_plans(kind):
    x, y, x_pad, y_pad = embeddings(0)
    C, x_len, y_len, joint = lengths(x, y, x_pad, y_pad)
    found = ipot.optimal_transport_dist(x, y, x_pad.to(kind), y_pad.to(kind))
    masks = [pad.to(kind) for pad in (x_pad, y_pad, joint)]
    T = ipot.ipot(C, x_len, masks[0], y_len.float(), masks[1], masks[2], 0.5, 50, 1)
    torch.testing.assert_close(found, torch.stack([(c.T * t).sum() for c, t in zip(C, T)]))


def test_gradients_hold_the_plan_fixed_and_are_zero_at_padding():
    x, y, x_pad, y_pad = embeddings(1, dtype=torch.float64)
    x.requires_grad_()
    ipot.optimal_transport_dist(x, y, x_pad, y_pad).sum().backward()
    C, x_len, y_len, joint = lengths(x.detach(), y, x_pad, y_pad)
    T = ipot.ipot(C, x_len, x_pad, y_len, y_pad, joint, 0.5, 50, 1)
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        (ipot.cost_matrix_cosine(z, y) * T.transpose(1, 2)).sum().backward()
    torch.testing.assert_close(x.grad, z.grad)
    assert x_pad.any() and (x.grad[x_pad] == 0).all() and x.grad[~x_pad].any()


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_a_side_that_is_all_padding_costs_nothing(tol):
    x, y, x_pad, y_pad = embeddings(2)
    others = ipot.optimal_transport_dist(x, y, x_pad, y_pad, tol=tol)
    x_pad[1], y_pad[3] = True, True
    x.requires_grad_(), y.requires_grad_()
    found = ipot.optimal_transport_dist(x, y, x_pad, y_pad, tol=tol)
    found.sum().backward()
    assert found[1] == found[3] == 0
    for grad in (x.grad, y.grad):
        assert grad.isfinite().all() and not grad[[1, 3]].any() and grad[[0, 2, 4]].any()
    torch.testing.assert_close(found[[0, 2, 4]], others[[0, 2, 4]])


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_batches_of_padding_and_empty_ones(tol):
    x, y, x_pad, y_pad = embeddings(2)
    x.requires_grad_()
    found = ipot.optimal_transport_dist(x, y, torch.ones_like(x_pad), y_pad, tol=tol)
    found.sum().backward()
    assert not found.any() and not x.grad.any()
    assert ipot.optimal_transport_dist(x[:0], y[:0], x_pad[:0], y_pad[:0], tol=tol).shape == (0,)


def test_what_stands_at_padding_does_not_matter():
    x, y, x_pad, y_pad = embeddings(3)
    wanted = ipot.optimal_transport_dist(x, y, x_pad, y_pad)
    x[x_pad] = math.nan
    x.requires_grad_()
    found = ipot.optimal_transport_dist(x, y, x_pad, y_pad)
    found.sum().backward()
    assert (found == wanted).all() and x.grad.isfinite().all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.5, 0.05])
def test_half_precision_is_computed_in_single(kind, beta):
    x, y, x_pad, y_pad = embeddings(3, dtype=kind)
    x.requires_grad_()
    found = ipot.optimal_transport_dist(x, y, x_pad, y_pad, beta)
    found.sum().backward()
    assert found.dtype == x.grad.dtype == kind and x.grad.isfinite().all()
    wanted = ipot.optimal_transport_dist(x.detach().float(), y.float(), x_pad, y_pad, beta)
    assert (found == wanted.to(kind)).all()


def test_autocast_changes_nothing():
    x, y, x_pad, y_pad = embeddings(4)
    wanted = ipot.optimal_transport_dist(x, y, x_pad, y_pad)
    with torch.autocast("cpu", torch.bfloat16):
        assert (ipot.optimal_transport_dist(x, y, x_pad, y_pad) == wanted).all()


def test_a_given_gap_is_that_to_the_true_distance():
    x, y, x_pad, y_pad = embeddings(5)
    x.requires_grad_()
    C, x_len, y_len, _ = lengths(x.detach().double(), y.double(), x_pad, y_pad)
    found = ipot.optimal_transport_dist(x, y, x_pad, y_pad, tol=1e-3)
    found.sum().backward()
    assert found.dtype == torch.float32 and not x.grad[x_pad].any()
    for value, cost, rows, columns in zip(found.detach(), C, x_len, y_len):
        wanted = ot.emd2([], [], cost[:rows, :columns].numpy())
        assert wanted * (1 - 1e-6) <= float(value) <= wanted * (1 + 1e-3) + 1e-6


def test_what_cannot_be_is_said():
    x, y, x_pad, y_pad = embeddings(6)
    with pytest.raises(ValueError, match="masks"):
        ipot.optimal_transport_dist(x, y, y_pad, x_pad)
    with pytest.raises(ValueError, match="larger"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ipot, "STEPS", (2, 3))
        ipot.optimal_transport_dist(x, y, x_pad, y_pad, tol=1e-9)
