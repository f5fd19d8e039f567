"""What is taken as input, and what is refused with a word on what to write."""

import numpy as np
import pytest
import torch
from conftest import line_cost, random_problem

import ipot
from exactot import barycenter, free_support_barycenter, solve, solve_sample

RNG = np.random.default_rng(0)
X, Y = RNG.random((30, 2)), RNG.random((25, 2))
M, A, B = random_problem(0, 20, 15)


def test_weights_of_low_precision_are_taken_everywhere():
    """As a file with six digits has them."""
    x = RNG.random((1000, 2), dtype="f4")
    a, c = (np.round(RNG.dirichlet(np.ones(1000)), 6).astype("f4") for _ in range(2))
    assert abs(a.sum(dtype=float) - c.sum(dtype=float)) > 1e-6
    solve_sample(x, x, a, c)
    solve(x @ x.T, a, c)
    ipot.solve(x @ x.T, a, c, max_iter=5)
    ipot.ipot_WD(a, c, x @ x.T, max_iter=3)
    ipot.round_to_marginals(np.outer(a, c), a, c)
    free_support_barycenter([x, x], 10, a_list=[a * np.float32(1 + 5e-5), c], max_iter=1)
    wide = x.astype(float)
    free_support_barycenter([wide, wide], 10, a_list=[a, c], b=np.full(10, 0.1), max_iter=1)
    ipot.ipot_barycenter(
        RNG.random((4, 3)), line_cost(4).astype("f4"), 0.1, np.float32([0.3, 0.3, 0.4])
    )
    shares = np.float32([0.333333, 0.333333, 0.333333])
    barycenter(np.ones((4, 3), "f4"), grid=1.0, weights=shares)
    free_support_barycenter([x, x, x], 5, weights=shares, max_iter=1)


@pytest.mark.parametrize("door", [solve, ipot.solve])
def test_float32_costs_with_float64_weights(door):
    small = M.astype("f4")
    found, wide = door(small, A, B), door(small.astype(float), A, B)
    assert found.value.dtype == found.plan.dtype == found.potentials[0].dtype == np.float32
    assert found.value == pytest.approx(float(wide.value), rel=1e-4)
    assert door(M, A.astype("f4"), B).value.dtype == np.float64
    single = door(small, A.astype("f4"), B.astype("f4"))
    assert single.value == pytest.approx(float(wide.value), rel=1e-4)


def test_doors_with_several_dtypes():
    assert (
        solve_sample(X.astype("f4"), Y.astype("f4"), RNG.dirichlet(np.ones(30))).plan.dtype == "f4"
    )
    q = barycenter(np.ones((6, 2)), line_cost(6).astype("f4"), np.float64([0.5, 0.5]))
    assert q.histogram.dtype == np.float32
    with pytest.raises(TypeError, match="one dtype; got X_a float32, X_b float64"):
        solve_sample(X.astype("f4"), Y)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_rounding_left_below_zero_is_zero(dtype):
    a = np.array([0.5, 0.5, -1e-18], dtype)
    C = np.arange(9.0, dtype=dtype).reshape(3, 3)
    for door in (solve, ipot.solve):
        found = door(C, a)
        assert (found.plan[2] == 0).all()
        with pytest.raises(ValueError, match="non-negative; the smallest entry is -1e-05"):
            door(C, np.array([0.5, 0.50001, -1e-5], dtype))


def test_integers_and_booleans_are_numbers():
    C = np.arange(12).reshape(3, 4)
    expected = solve(C.astype(float)).value
    for kind in (np.int8, np.uint16, np.int64, np.float64):
        assert solve(C.astype(kind)).value == expected
    assert solve(C.tolist()).value == expected and solve(torch.from_numpy(C)).value == expected
    assert solve(C, [True, False, True], [1, 0, 0, 1]).plan.sum() == 2


def test_lazy_views_of_tensors():
    C, weights = torch.from_numpy(M), torch.from_numpy(A)
    negated = torch.complex(torch.zeros_like(C), -C).conj().imag
    assert negated.is_neg() and solve(negated, weights).value == solve(C, weights).value
    assert ipot.solve(C.T.contiguous().T).value == ipot.solve(C).value
    strided = torch.stack((C, C), -1)[..., 0]
    assert solve(strided).value == solve(C).value
    flipped = M[::-1, ::-1]
    assert solve(flipped).value == pytest.approx(solve(M).value, rel=1e-14)
    assert solve(np.broadcast_to(M, (2, *M.shape))).value.shape == (2,)
    assert solve(M.astype(">f8")).value == solve(M).value
    read_only = M.copy()
    read_only.flags.writeable = False
    assert solve(read_only).value == solve(M).value


BAD = [
    (lambda: solve_sample(X[:, 0], Y), ValueError, r"write X_a\[:, None\] for points on a line"),
    (lambda: solve_sample(X, Y[0]), ValueError, r"write X_b\[:, None\]"),
    (lambda: solve_sample(np.ma.masked_array(X), Y), TypeError, "X_a is a masked array"),
    (lambda: solve(np.ma.masked_array(M)), TypeError, "M is a masked array"),
    (lambda: solve(M, np.ma.masked_array(A)), TypeError, "a is a masked array"),
    (lambda: solve([*np.ma.masked_array(M)]), TypeError, "M is a masked array"),
    (lambda: ipot.solve(M, beta=np.ma.masked_array(0.1)), TypeError, "beta is a masked array"),
    (lambda: ipot.solve(M, beta=True), TypeError, "beta must be a number"),
    (lambda: free_support_barycenter([X[:, 0]], 2), ValueError, r"write X_list\[0\]\[:, None\]"),
    (lambda: barycenter(np.ma.masked_array(M), M), TypeError, "A is a masked array"),
    (lambda: free_support_barycenter([np.ma.masked_array(X)], 2), TypeError, "is a masked array"),
    (lambda: ipot.ipot_WD(A, B, M, beta=None), TypeError, "beta must be a number; got None"),
    (lambda: ipot.ipot_barycenter(np.ones((3, 2)), np.eye(3), None), TypeError, "beta must be"),
    (lambda: solve(torch.from_numpy(M).to(torch.complex64)), TypeError, "complex"),
    (lambda: solve(M.astype("f2")), TypeError, "M must be float32 or float64"),
    (lambda: solve(M, A.astype("f2")), TypeError, "a must be float32 or float64"),
    (lambda: solve(M.astype(object)), TypeError, "M must be float32 or float64"),
    (lambda: solve(1e300 * M, 1e10 * A, 1e10 * B), ValueError, "must not overflow"),
    (lambda: solve_sample(np.float32(1e25) * X.astype("f4"), Y.astype("f4")), ValueError, "overfl"),
    (lambda: barycenter(np.ones((3, 2)), grid=1e200), ValueError, "must not overflow"),
    (lambda: free_support_barycenter([1e200 * X], 3), ValueError, "must not overflow"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_what_cannot_be_used_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_images_are_clouds_once_they_are_flat():
    images = RNG.random((5, 1, 4, 4))
    with pytest.raises(ValueError, match="batch dimensions do not match"):
        solve_sample(images, RNG.random((7, 1, 4, 4)))
    assert solve_sample(images.reshape(5, -1), RNG.random((7, 16))).plan.shape == (5, 7)
    assert "X.reshape(n, -1)" in solve_sample.__doc__
