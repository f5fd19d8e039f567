"""Figures without a display, and what several test files share."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ot
import pytest
import scipy.optimize
import scipy.sparse as sp
import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from exactot import columns


@pytest.fixture
def column_generation(monkeypatch):
    """Small problems take the way of the large ones."""
    monkeypatch.setattr(columns, "SMALL", 0)


def random_problem(seed, n, m, dtype=np.float64, zeros=False, ties=False, scale=1.0, mass=1.0):
    """Cost (n, m) of any sign and weights of equal mass, with zeros and ties if asked."""
    rng = np.random.default_rng(seed)
    M = rng.integers(-2, 4, (n, m)) if ties else rng.normal(0.3, 1.0, (n, m))
    a, b = rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, m)
    if zeros:
        a[rng.permutation(n)[: n // 3]] = 0
        b[rng.permutation(m)[: m // 3]] = 0
    a, b = mass * a / a.sum(), mass * b / b.sum()
    return (scale * M).astype(dtype), a.astype(dtype), b.astype(dtype)


def clouds(seed, n, m, d, dtype=np.float64, zeros=False):
    """Points (n, d) and (m, d) and weights of mass 1."""
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


def exact_value(M, a, b):
    """W by POT, of costs scaled to [0, 1]: of others it takes some for infeasible."""
    M, a, b = (np.asarray(z, float) for z in (M, a, b))
    low, scale = M.min(), np.ptp(M) or 1.0
    return a.sum() * (low + scale * _simplex_value((M - low) / scale, a / a.sum(), b / b.sum()))


def _simplex_value(M, a, b):
    M, a, b = (np.asarray(x, dtype=np.float64) for x in (M, a, b))
    if 1 in M.shape:  # one plan only; POT reports some of these as infeasible
        return float(np.sum(M * np.outer(a, b / b.sum())))
    return ot.emd2(a, b * (a.sum() / b.sum()), M, numItermax=10**6)


def cost_range(M):
    return float(np.ptp(M)) or 1.0


def assert_optimal(result, M, a, b):
    """The value is that of the linear program, the plan feasible, and the potentials too."""
    W, size = exact_value(M, a, b), float(np.abs(M).max())
    eps, tiny = float(np.finfo(M.dtype).eps), float(np.finfo(M.dtype).tiny)
    rounding = 5 * eps * size if eps > 1e-10 else 1e-15 * size
    assert result.converged
    assert abs(float(result.value) - W) <= 1e-9 * abs(W) + rounding + tiny
    assert float(result.lower_bound) <= W + 1e-13 * size
    assert 0 <= result.gap <= 1e-9 * abs(W) + 2 * rounding + 1e-11 * size + tiny
    assert (result.plan >= 0).all()
    np.testing.assert_allclose(result.plan.sum(1, dtype=float), a, atol=4 * eps)
    np.testing.assert_allclose(result.plan.sum(0, dtype=float), b, atol=4 * eps)
    f, g = (z.astype(float) for z in result.potentials)
    assert (f[:, None] + g <= M.astype(float) + 1e-15 * size).all()


def line_cost(n):
    """Squared distances between n bins on [0, 1]."""
    x = np.linspace(0, 1, n)
    return (x[:, None] - x) ** 2


@st.composite
def barycenter_problems(draw, largest=12):
    """Histograms with and without empty bins, weights with zeros, costs of several kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, count = draw(st.integers(1, largest)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["line", "distance", "random", "integer", "negative"]))
    x = rng.uniform(size=n)
    M = {
        "line": (x[:, None] - x) ** 2,
        "distance": abs(x[:, None] - x),
        "random": rng.uniform(size=(n, n)),
        "integer": rng.integers(0, 4, (n, n)) * 1.0,
        "negative": rng.standard_normal((n, n)),
    }[kind]
    if kind in ("line", "distance") and draw(st.booleans()):
        M = M[np.argsort(x)][:, np.argsort(x)]
    A = rng.uniform(size=(n, count))
    if draw(st.booleans()):
        A[rng.uniform(size=A.shape) < 0.4] = 0
    A[rng.integers(n, size=count), range(count)] += 0.1
    weights = rng.dirichlet(np.ones(count))
    if count > 1:
        weights[0] *= draw(st.sampled_from([1, 1, 0, 1e-8, 1e-14]))
        weights /= weights.sum()
    return A, M * 10.0 ** draw(st.integers(-6, 6)), weights


def barycenter_program(A, M, weights):
    """The optimum of the whole linear program, its costs scaled to what HiGHS expects."""
    n, count = A.shape
    scale = abs(M).max() or 1.0
    rows = sp.kron(sp.eye(n), np.ones((1, n)))
    columns = sp.kron(np.ones((1, n)), sp.eye(n))
    upper = sp.hstack([sp.block_diag([rows] * count), -sp.vstack([sp.eye(n)] * count)])
    lower = sp.hstack([sp.block_diag([columns] * count), sp.csr_matrix((n * count, n))])
    # Tolerances as tight as HiGHS has them: a weight of 1e-8 is below the usual ones.
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    for presolve in (True, False):
        found = scipy.optimize.linprog(
            np.concatenate([w * M.ravel() / scale for w in weights] + [np.zeros(n)]),
            A_eq=sp.vstack([upper, lower]),
            b_eq=np.concatenate([np.zeros(n * count), (A / A.sum(0)).T.ravel()]),
            method="highs",
            options=options | {"presolve": presolve},
        )
        if found.status == 0:
            break
    assert found.status == 0
    return scale * found.fun


class LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.entries = max(self.entries, x.numel())
        return out
