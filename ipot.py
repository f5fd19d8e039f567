"""Optimal transport by the proximal-point method (IPOT), every answer with a certificate.

The problem: between weights a (n) and b (m) of equal mass, for a cost matrix M (n, m), find

    W(a, b) = min <P, M>   over plans P >= 0 with  P 1 = a  and  P^T 1 = b.

The method (Xie, Wang, Wang, Zha: "A Fast Proximal Point Method for Computing Exact Wasserstein
Distance", UAI 2019) repeats P <- argmin <P', M> + beta KL(P' | P), each step solved by one Sinkhorn
sweep. Unlike Sinkhorn's algorithm it converges to W itself, whatever beta is.

What is different here is the form. The t-th plan is diag(A) exp(-t M / beta) diag(B) (appendix A.2
of the paper), so the state is two vectors, and one iteration is a Sinkhorn sweep at temperature
beta / t that starts from B_t^2 / B_{t-1}: log-scalings extrapolated linearly. The scalings are kept
relative to the potentials found so far, so that no entry that matters under- or overflows; where
even that would not do (a tiny beta), the step is taken again in the log domain. The scalings are
also dual potentials: made feasible by two c-transforms they bound W from below, while the plan,
rounded to its marginals, bounds it from above.

To a given gap, and to an exact answer, there is a faster way than to iterate on. With the
temperature halved after every second sweep the potentials are near the optimal ones after 5 to 20
steps; the few arcs of smallest reduced cost at each point then all but surely hold an optimal plan,
and a network simplex on these, its potentials checked against all other arcs, ends the matter.

    solve                    any cost matrix, or a batch: plan, value, bounds, potentials, gradients
    solve_sample             from two point clouds, without their cost matrix where it is large
    barycenter               of histograms on any bins or a grid: certified, exact on a line
    free_support_barycenter  of point clouds, by points that move
    ipot_WD                  Algorithm 1 of the paper, with the signature of its published module
    ipot_barycenter          Algorithm 2 of the paper, likewise

This file needs NumPy, SciPy, PyTorch and POT, and can be copied into any project.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import ModuleType

import numpy as np
import ot
import scipy.optimize
import scipy.sparse
import torch
from torch import Tensor

__all__ = [
    "Barycenter",
    "LazyPlan",
    "PointBarycenter",
    "Transport",
    "barycenter",
    "free_support_barycenter",
    "ipot_WD",
    "ipot_barycenter",
    "solve",
    "solve_sample",
]

Array = np.ndarray | Tensor

_DENSE_BYTES = 2**28  # cost matrices of solve_sample up to this size are formed
_FEW = 4  # dimensions up to which squared distances are sums of differences
_BLOCK = 2**18  # entries of a cost that are read at a time
_SMALL = 180**2  # problems with fewer arcs go to the network simplex as they are
_SWEEPS = 2  # in a stage of annealing
_BINS = 512  # up to which a barycenter is certified by optimal plans
_STAGES = 20  # at most: the temperature is then 1e-7 of the cost's range
_ARCS = 6  # of each row for the sparse problem, times the number of others that it sees
_OPTIMAL = 1  # POT's result code
_EPS = float(np.finfo(np.float64).eps)


# --------------------------------------------------------------------------------------------------
# Public functions
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Transport:
    """A transport plan and the proof of how good it is; `lower_bound <= W <= value`.

    Arrays are of the kind (NumPy or torch), dtype and device that the solver was given; `...` are
    its batch dimensions, and without any the scalars are plain 0-d values.

    Attributes
    ----------
    plan : array, shape (..., n, m), or sparse matrix, or LazyPlan
        Non-negative, with marginals a and b to rounding. A batch of sparse or lazy plans is a list
        of them, in C order.
    value : array, shape (...)
        Cost of the plan, in units of cost times mass: an upper bound on W. With torch inputs that
        require gradients, `value.backward()` gives the envelope gradient (Theorem B.1 of the
        paper): the plan in M, the potentials in a and b, and the plan times the gradient of the
        cost in the points.
    lower_bound : array, shape (...)
        Dual value of the potentials: a lower bound on W.
    gap : array, shape (...)
        `value - lower_bound`, never negative.
    potentials : (f, g), shapes (..., n) and (..., m)
        Dual feasible: f_i + g_j <= M_ij for all i, j, also where a weight is zero.
    n_iter : int
        Proximal iterations that were run; with `tol` or `exact` the sweeps of the annealing. The
        most of a batch.
    converged : bool or boolean array, shape (...)
        Whether the gap is at most `tol * |value|`, up to the rounding of the dtype. Without a `tol`
        whether it is zero to rounding; with `exact` whether no arc is left that could improve the
        plan.
    """

    plan: Array | scipy.sparse.coo_matrix | LazyPlan | list = field(repr=False)
    value: Array
    lower_bound: Array
    gap: Array
    potentials: tuple[Array, Array] = field(repr=False)
    n_iter: int
    converged: bool | Array


def solve(
    M: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    beta: float | Array | None = None,
    max_iter: int = 1000,
    inner_iter: int = 1,
    tol: float | None = None,
    exact: bool = False,
    sparse: bool = False,
) -> Transport:
    """Optimal transport for a cost matrix, with a certified gap.

    Solves min <P, M> over P >= 0, P 1 = a, P^T 1 = b. There are two ways. With neither `tol` nor
    `exact`: `max_iter` proximal iterations as in the paper, in exponent form, and the plan rounded
    to its marginals (Altschuler, Weed, Rigollet 2017, Algorithm 2). With one of them: annealed
    potentials, a network simplex (POT's, on the CPU) on the arcs of smallest reduced cost, and
    pricing of all arcs, until the gap is reached. This is the faster way to any given gap, because
    it is the rounding that holds a smooth plan back, while potentials are good early; what was
    measured is in `benchmarks/solvers.py`.

    Parameters
    ----------
    M : array, shape (..., n, m)
        Cost, NumPy or torch, float32 or float64, any sign and scale. Leading dimensions are a
        batch.
    a, b : array, shapes (..., n) and (..., m), optional
        Weights, non-negative (zeros are fine) and of equal, positive mass. Uniform with mass 1 if
        left out; without batch dimensions they serve every problem of the batch. A difference of
        mass within the tolerance (relative 1e-6 in float64, 1e-4 in float32) is made up by scaling
        b.
    beta : float or array of shape (...), optional
        Proximal step in units of the cost, or the temperature at which annealing begins. None takes
        0.05 of the cost's range, good from 1 to 16 dimensions; a smaller one is not better within a
        given number of iterations.
    max_iter : int
        Proximal iterations; with `tol` or `exact` the sweeps after which annealing ends, if it has
        not before: it takes 2 to 40.
    inner_iter : int
        Sinkhorn sweeps in one proximal iteration (L in the paper); not used with `tol` or `exact`.
    tol : float, optional
        Stop once `gap <= tol * |value|`. Each problem of a batch stops by itself.
    exact : bool
        Go on until the plan is optimal: the value is that of the linear programme, and the gap zero
        to rounding.
    sparse : bool
        With `exact`: give the plan, of fewer than n + m entries, as a SciPy COO matrix or a torch
        sparse COO tensor.

    Returns
    -------
    Transport

    Raises
    ------
    TypeError
        NumPy mixed with torch, mixed dtypes, not float32 or float64, counts that are not integers.
    ValueError
        Shapes that do not match, empty arrays, NaN or inf, negative weights, no mass or unequal
        mass, devices that differ, beta <= 0, max_iter or inner_iter < 1, tol < 0, `sparse` without
        `exact`.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([0.0, 1.0, 3.0]), np.array([5.0, 6.0, 8.0])
    >>> transport = solve((x[:, None] - y[None, :]) ** 2, tol=1e-6)
    >>> print(f"{transport.value:.6f}", transport.converged)
    25.000000 True
    """
    wanted = _check_options(max_iter, inner_iter, tol, exact, sparse)
    problem = _read_problem(M, a, b, beta)
    if wanted is None:
        certificate, plan = _iterate_dense(problem, max_iter, inner_iter)
    else:
        costs = (_MatrixRows(problem.C[k]) for k in np.ndindex(problem.C.shape[:-2]))
        certificate, plan = _solve_flows(problem, costs, wanted, max_iter, sparse)
    return _transport(problem, certificate, plan)


def solve_sample(
    X_a: Array,
    X_b: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    metric: str | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    beta: float | Array | None = None,
    max_iter: int = 1000,
    tol: float | None = None,
    exact: bool = False,
    lazy: bool | None = None,
    sparse: bool = False,
) -> Transport:
    """Optimal transport between two point clouds, with a certified gap.

    As :func:`solve` for the matrix of `metric(x_i, y_j)`. If `lazy`, that matrix is never formed:
    it is computed in blocks of rows of a few megabytes wherever it is read, and the memory is
    O((n + m) d); with `tol` or `exact` also that of 8 to 60 arcs a row. These two form no n x m
    matrix in any case but for a dense plan, and sort points on a line (d = 1, a named metric)
    instead. Lazy iterations compute their kernel in float32 and keep its exponents within 40 of the
    last potentials': for a very small beta they are not those of the dense ones.

    Parameters
    ----------
    X_a, X_b : array, shapes (..., n, d) and (..., m, d)
        Points, NumPy or torch, float32 or float64. Leading dimensions are a batch.
    a, b : array, shapes (..., n) and (..., m), optional
        Weights, as in :func:`solve`.
    metric : "sqeuclidean", "euclidean", "cityblock" or callable
        Cost between points; a callable takes torch tensors (n, d) and (m, d) in the clouds' dtype
        to (n, m), and must be differentiable if gradients in the points are wanted. Parameters of
        its own get no gradient.
    beta, max_iter, tol, exact, sparse
        As in :func:`solve`; `max_iter` counts sweeps of Algorithm 1 with L = 1.
    lazy : bool, optional
        Whether to do without the matrix. None: if it would take more than 256 MiB.

    Returns
    -------
    Transport
        Its plan is an array, or a :class:`LazyPlan` if `lazy`; sparse if `sparse`. `value` is
        differentiable in X_a, X_b, a and b.

    Raises
    ------
    TypeError, ValueError
        As :func:`solve`; also for points whose dimensions differ and for an unknown metric.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([[0.0], [1.0], [3.0]]), np.array([[5.0], [6.0], [8.0]])
    >>> print(f"{solve_sample(x, y, exact=True).value:.6f}")
    25.000000
    """
    wanted = _check_options(max_iter, 1, tol, exact, sparse)
    (X_a, X_b, a, b), give_back = _as_tensors(X_a=X_a, X_b=X_b, a=a, b=b)
    distance = _Metric(metric)
    batch = _check_clouds(X_a, X_b, a, b)
    x, y = (X.detach().expand(*batch, *X.shape[-2:]) for X in (X_a, X_b))
    size = x.shape[-2] * y.shape[-2] * math.prod(batch) * x.element_size()
    lazy = size > _DENSE_BYTES if lazy is None else bool(lazy)
    inputs = (X_a, X_b, a, b)
    if wanted is None and not lazy:
        with torch.no_grad():
            C = distance(x, y)
        names = ("metric(X_a, X_b)", "a", "b")
        problem = _read_problem(C, a, b, beta, names, inputs=inputs, give_back=give_back)
        certificate, plan = _iterate_dense(problem, max_iter)
    else:

        def costs() -> Iterator[_CloudRows]:
            return (_CloudRows(x[k], y[k], distance) for k in np.ndindex(batch))

        line = wanted is not None and distance.name is not None and x.shape[-1] == 1
        problem = _read_clouds(costs(), batch, inputs, beta, give_back, line)
        if wanted is None:
            certificate, plan = _iterate_lazy(problem, costs(), max_iter)
        else:
            certificate, plan = _solve_flows(
                problem, costs(), wanted, max_iter, sparse, lazy=lazy, line=line
            )
    return _transport(problem, certificate, plan, clouds=(x, y, distance))


class LazyPlan:
    """A transport plan (n, m) between point clouds whose rows are computed when they are asked for.

    Attributes
    ----------
    shape : (int, int)
        n and m.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rows: Callable[[slice | Tensor], Tensor],
        mass: float,
        X_b: Tensor,
        give_back: Callable[[Tensor], Array],
    ):
        self.shape = shape
        self._rows_of, self._mass, self._X_b, self._give_back = rows, mass, X_b, give_back

    def _rows(self, rows: slice | Tensor) -> Tensor:
        return self._rows_of(rows).mul_(self._mass)

    def __repr__(self) -> str:
        return f"LazyPlan(shape={self.shape})"

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in _row_slices(*self.shape, self._X_b.device):
            yield rows, self._rows(rows)

    def _tensor(self, name: str, V: Array, rows: int) -> Tensor:
        try:
            V = V if isinstance(V, Tensor) else np.array(V, dtype=np.float64)
            V = torch.as_tensor(V, dtype=torch.float64, device=self._X_b.device)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be an array of numbers; got {V!r}") from None
        if V.ndim not in (1, 2) or V.shape[0] != rows:
            raise ValueError(
                f"{name} must have shape ({rows},) or ({rows}, k); got {tuple(V.shape)}"
            )
        return V

    def rows(self, index: Array | list[int]) -> Array:
        """The dense rows (k, m) of a list of k row numbers."""
        index = torch.as_tensor(index, device=self._X_b.device)
        whole = not index.is_floating_point() and index.dtype != torch.bool
        if index.ndim != 1 or not whole or bool(((index < 0) | (index >= self.shape[0])).any()):
            raise ValueError(f"index must be a list of row numbers from 0 to {self.shape[0] - 1}")
        return self._give_back(self._rows(index))

    def apply(self, V: Array) -> Array:
        """P V for V of shape (m,) or (m, k)."""
        V = self._tensor("V", V, self.shape[1])
        return self._give_back(torch.cat([P @ V for _, P in self._blocks()]))

    def apply_transposed(self, V: Array) -> Array:
        """P^T V for V of shape (n,) or (n, k)."""
        V = self._tensor("V", V, self.shape[0])
        return self._give_back(sum(P.T @ V[rows] for rows, P in self._blocks()))

    def barycentric(self) -> Array:
        """Where each point of X_a goes: the mean of X_b under its row of the plan, (n, d).

        NaN for a point without mass.
        """
        Y = self._X_b.double()
        return self._give_back(torch.cat([P @ Y / P.sum(1)[:, None] for _, P in self._blocks()]))

    def topk(self, k: int) -> scipy.sparse.coo_matrix | Tensor:
        """The k largest entries of each row, as a SciPy COO matrix or a torch sparse tensor."""
        _check_count("k", k)
        found = [torch.topk(P, min(k, self.shape[1]), sorted=False) for _, P in self._blocks()]
        values = torch.cat([block.values for block in found])
        columns = torch.cat([block.indices for block in found])
        rows = torch.arange(len(values), device=values.device)[:, None].expand_as(columns)
        return _sparse(rows.ravel(), columns.ravel(), values.ravel(), self.shape, self._give_back)

    def toarray(self) -> Array:
        """The dense plan (n, m)."""
        return self._give_back(torch.cat([P for _, P in self._blocks()]))


@dataclass(frozen=True, eq=False)
class Barycenter:
    """A barycenter and the proof of how good it is; `lower_bound <= optimum <= value`.

    Arrays are of the kind, dtype and device of the inputs; `...` are the batch dimensions of the
    weights.

    Attributes
    ----------
    histogram : array, shape (..., n) or (..., *grid)
        Non-negative, of mass 1.
    value : array, shape (...)
        sum_k weights_k <P_k, M> for plans P_k between the histogram and the inputs, in units of
        cost: an upper bound on the histogram's objective; equal to it up to 512 bins, on a line,
        and with `exact`. With torch inputs that require gradients, `value.backward()` gives the
        envelope gradient in A and in the weights: that of the optimum, as far as the gap is closed.
        In M there is none.
    lower_bound : array, shape (...)
        Dual value of the potentials: no histogram has a smaller objective.
    gap : array, shape (...)
        `value - lower_bound`, never negative.
    potentials : (f, g), both of the histogram's shape and one dimension of K more, the last
        f on the barycenter's bins, g on the inputs'; f_ki + g_kj <= M_ij, and sum_k weights_k f_ki
        vanishes, both to rounding.
    n_iter : int
        Iterations that were run; none where there is a closed form.
    converged : bool or boolean array, shape (...)
        Whether the gap is at most `tol * |value|` (zero without a `tol`), up to rounding.
    """

    histogram: Array = field(repr=False)
    value: Array
    lower_bound: Array
    gap: Array
    potentials: tuple[Array, Array] = field(repr=False)
    n_iter: int
    converged: bool | Array


def barycenter(
    A: Array,
    M: Array | None = None,
    weights: Array | None = None,
    *,
    grid: float | tuple[float, ...] | None = None,
    beta: float | None = None,
    max_iter: int = 300,
    tol: float | None = None,
    exact: bool = False,
    normalize: bool = False,
) -> Barycenter:
    """The Wasserstein barycenter of histograms, with a certified gap.

    Minimises sum_k weights_k W(q, A_k) over histograms q. The method is IPOT-WB (Algorithm 2 of the
    paper) in exponent form, its proximal steps growing: after t iterations the temperature is

        eps_t = max(beta / t^2, span / t^2.5, 3e-6 span)

    instead of beta / t, with span the cost's range, and the scalings extrapolated linearly in
    1 / eps. That comes in 100 iterations as close as Algorithm 2 in some 10,000, and the second
    term keeps a small beta from freezing an early plan. A few costs much larger than the others set
    the span: make them moderate.

    Each of the K plans is two vectors, and on a grid the kernel is applied axis by axis, so that
    the memory is O(n K) and one matrix an axis. With M, and up to 2^22 entries in K kernels, these
    are kept, each relative to its plan: that is faster.

    Where the cost is that of a convex function of the distance on a line (any Monge matrix, any 1-D
    grid), `tol` and `exact` take a closed form instead: the inputs' quantiles, cut into intervals
    on which no input changes its bin, each moved to the best bin for its K places. A minimum over
    bins of a submodular cost is submodular (Topkis 1978), hence the monotone coupling is optimal
    among all of K inputs, although the bins are given.

    Parameters
    ----------
    A : array, shape (n, K), or (*grid, K) with `grid`
        Histograms, non-negative, float32 or float64; each is scaled to mass 1 here.
    M : array, shape (n, n)
        Cost of bin i of the barycenter (rows) to bin j of an input. Either M or `grid` is given.
    weights : array, shape (..., K), optional
        Non-negative with sum 1; equal if left out. Leading dimensions are a batch: a barycenter for
        each, of the same inputs.
    grid : float or tuple of floats
        Spacing of a regular grid of one to three axes, one number or one for each: the cost is the
        squared Euclidean distance, and no n x n matrix is formed beyond 512 bins.
    beta : float, optional
        First proximal step in units of the cost. None takes its range.
    max_iter : int
        Iterations.
    tol : float, optional
        Stop once `gap <= tol * |value|`, for every weight vector. Off the line a gap below some
        1e-5 of the cost's range takes `exact`: eps ends there.
    exact : bool
        Solve the linear programme, with SciPy's HiGHS on the arcs that the iterations single out,
        to a gap of zero to rounding; for small problems (n K up to about 2,000).
    normalize : bool
        Scale the weights to sum 1.

    Returns
    -------
    Barycenter

    Raises
    ------
    TypeError
        As :func:`solve`.
    ValueError
        Shapes that do not match, NaN or inf, negative mass, an empty column, weights that are
        negative or do not sum to 1, neither or both of M and `grid`, a spacing that is not positive
        or not one for each axis, beta <= 0, max_iter < 1, tol < 0.
    RuntimeError
        With `exact`, if HiGHS fails.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.zeros((5, 2))
    >>> A[0, 0] = A[4, 1] = 1
    >>> barycenter(A, grid=1.0, exact=True).histogram
    array([0., 0., 1., 0., 0.])
    """
    tol = _check_options(max_iter, 1, tol, exact, False)
    problem = _read_histograms(A, M, weights, grid, beta, normalize)
    if tol is not None and problem.cost.is_monge:
        return _certified(problem, *_quantile_averages(problem), tol, 0)
    if exact:
        near = _last(_averages(problem, max_iter, _growing_steps(problem)))
        return _certified(problem, *_restricted_programmes(problem, near), tol, near.t)
    return _average(problem, max_iter, tol)


@dataclass(frozen=True, eq=False)
class PointBarycenter:
    """A barycenter of point clouds whose points were free to move.

    Attributes
    ----------
    points : array, shape (n_points, d)
        Of the kind, dtype and device of the inputs.
    value : array, shape ()
        sum_k weights_k W(points, X_k), squared Euclidean, by exact plans.
    n_iter : int
        Moves of the points.
    converged : bool
        Whether the last plans would move the points by no more than `tol` allows.
    """

    points: Array = field(repr=False)
    value: Array
    n_iter: int
    converged: bool


def free_support_barycenter(
    X_list: list[Array],
    n_points: int | None = None,
    *,
    a_list: list[Array] | None = None,
    b: Array | None = None,
    weights: Array | None = None,
    init: Array | None = None,
    max_iter: int = 100,
    tol: float = 1e-7,
    normalize: bool = False,
    seed: int = 0,
) -> PointBarycenter:
    """Points that are a Wasserstein barycenter of point clouds (squared Euclidean cost).

    Minimises sum_k weights_k W(X, X_k) over the points X (n_points, d) by turns (Cuturi and Doucet
    2014, Algorithm 2): exact plans P_k between X and each cloud, then every point to the mean of
    where they send it, x_i <- sum_k weights_k (P_k X_k)_i / b_i. The value never grows; what is
    found is a local minimum, which depends on the start.

    Parameters
    ----------
    X_list : list of arrays, shapes (m_k, d)
        Clouds, NumPy or torch, float32 or float64.
    n_points : int, optional
        Points of the barycenter; needed unless `init` is given.
    a_list : list of arrays, shapes (m_k,), optional
        Weights of the clouds' points, of equal mass; uniform with mass 1 if left out.
    b : array, shape (n_points,), optional
        Weights of the barycenter's points, positive, of the same mass; uniform if left out.
    weights : array, shape (K,), optional
        Of the clouds, non-negative with sum 1; equal if left out.
    init : array, shape (n_points, d), optional
        Where the points start. If left out, at points of the clouds drawn by their weights.
    max_iter : int
        Moves at most.
    tol : float
        Stop once the mean squared move is at most `tol` times the clouds' mean squared distance
        from their common mean.
    normalize : bool
        Scale `weights` to sum 1.
    seed : int
        Of the draw of the start.

    Returns
    -------
    PointBarycenter

    Raises
    ------
    TypeError, ValueError
        As :func:`solve_sample`; also for an empty list, lists of different lengths, a weight of b
        that is zero, and neither or conflicting `n_points` and `init`.
    """
    tol = _check_options(max_iter, 1, _as_float("tol", tol), False, False)
    clouds, masses, b, shares, X, give_back = _read_free_support(
        X_list, n_points, a_list, b, weights, init, normalize, seed
    )
    everything = torch.cat(clouds).double()
    spread = float((everything - everything.mean(0)).square().sum(1).mean())
    rates = b.double() / b.double().sum()
    for n_iter in range(max_iter + 1):
        value, target = 0.0, torch.zeros_like(X, dtype=torch.float64)
        for cloud, mass, share in zip(clouds, masses, shares):
            found = solve_sample(X, cloud, b, mass, exact=True, sparse=True)
            plan = found.plan.to(torch.float64)
            target += share * (plan @ cloud.double()) / b.double()[:, None]
            value = value + share * found.value.double()
        move = float((rates * (target - X.double()).square().sum(1)).sum())
        converged = move <= tol * spread
        if converged or n_iter == max_iter:
            break
        X = target.to(X.dtype)
    return PointBarycenter(give_back(X), give_back(value), n_iter, converged)


def ipot_WD(
    a1: Array,
    a2: Array,
    C: Array,
    beta: float = 2,
    max_iter: int = 1000,
    L: int = 1,
    use_path: bool = True,
    return_map: bool = True,
    return_loss: bool = True,
) -> tuple[Array, list[float]] | list[float] | Array | None:
    """Algorithm 1 of the IPOT paper: the iterates themselves, not rounded, in float64.

    Parameters
    ----------
    a1, a2 : array or list, shapes (n,) and (m,)
        Weights, non-negative, of equal mass (1 or any other). Points without mass take no part: the
        iterates are those of the problem without them.
    C : array or list, shape (n, m)
        Cost.
    beta : float
        Proximal step in units of the cost; from 1e-12 of its range up.
    max_iter, L : int
        Outer iterations, and Sinkhorn sweeps in each.
    use_path : bool
        Start each outer iteration's sweeps from the last scalings (True) or from ones.
    return_map, return_loss : bool
        What to return.

    Returns
    -------
    (P, loss), loss, P or None as the flags say: P the last plan (n, m), NumPy or torch like the
    inputs; loss the list of <P_t, C> after every outer iteration.

    Raises
    ------
    TypeError, ValueError
        As :func:`solve`; also if C has batch dimensions.
    """
    _check_count("max_iter", max_iter)
    _check_count("L", L)
    for name, x, shape in (("C", C, "(n, m)"), ("a1", a1, "(n,)"), ("a2", a2, "(m,)")):
        if np.ndim(x) > (2 if name == "C" else 1):
            raise ValueError(f"{name} must have shape {shape}; it has {np.ndim(x)} dimensions")
    problem = _read_problem(C, a1, a2, beta, names=("C", "a1", "a2"), precise=True)
    if not (return_map or return_loss):
        return None
    cost = _DenseCost(problem.C, problem.beta)
    loss: list[Tensor] = []
    trace = loss.extend if return_loss else None
    iterate = _last(_proximal(cost, problem, max_iter, L, warm=bool(use_path), trace=trace))
    values = (torch.stack(loss) * problem.mass).tolist() if return_loss else None
    if not return_map:
        return values
    plan = problem.give_back(iterate.plan() * problem.mass)
    return (plan, values) if return_loss else plan


def ipot_barycenter(
    A: Array, M: Array, beta: float, weights: Array | None = None, numItermax: int = 1000
) -> Array:
    """Algorithm 2 of the IPOT paper: the Wasserstein barycenter of histograms, in float64.

    Minimises sum_k weights_k W(q, p_k) over histograms q, with one plan per input. Each iteration
    fits the plans' columns to the inputs, takes q as the geometric mean of their rows and fits the
    rows to q, in this order: begun with the rows, fitted to the q of the step before, the iteration
    goes to another point than the barycenter.

    Parameters
    ----------
    A : array or list, shape (n, K)
        Histograms in the columns, non-negative with positive mass, each scaled to mass 1 here.
    M : array or list, shape (n, n)
        Cost between bins; q lies along its rows.
    beta : float
        Proximal step in units of the cost; from 1e-12 of its range up.
    weights : array or list, shape (K,), optional
        Non-negative with sum 1; equal if left out.
    numItermax : int
        Iterations.

    Returns
    -------
    q : array, shape (n,)
        The barycenter, scaled to mass 1 (Algorithm 2 loses a little mass until it has converged).

    Raises
    ------
    TypeError, ValueError
        As :func:`solve`; also for a column without mass and for weights that do not sum to 1.
    """
    _check_count("numItermax", numItermax)
    if M is None:
        raise TypeError("M must be an array; got None")
    if np.ndim(A) > 2 or np.ndim(weights) > 1:
        raise ValueError("A must have shape (n, K) and weights (K,); batches are for barycenter()")
    problem = _read_histograms(A, M, weights, None, beta, False)
    iterate = _last(_averages(problem, numItermax, lambda t: problem.beta / t))
    return problem.give_back(iterate.histogram()[0])


# --------------------------------------------------------------------------------------------------
# The proximal iteration, in exponent form
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Problem:
    """Validated tensors; all of a batch have the same leading dimensions or broadcast to them."""

    C: Tensor | None  # (..., n, m), float32 or float64; None between clouds
    a: Tensor  # (..., n), float64, mass 1
    b: Tensor  # (..., m), float64, mass 1
    beta: Tensor  # (..., 1), float64
    low: Tensor  # (...), float64: smallest cost
    high: Tensor  # (...), float64: largest cost
    mass: Tensor  # (...), float64: what to scale the answer by
    dtype: torch.dtype  # of the answer
    inputs: tuple[Tensor | None, ...]  # as given, for gradients
    give_back: Callable[[Tensor], Array]  # to the caller's dtype and kind of array

    @property
    def rounding(self) -> Tensor:
        """How small a gap the dtype can tell from zero.

        Two potentials, up to twice the cost, and two bounds are rounded outwards.
        """
        eps = 8 * torch.finfo(self.dtype).eps + 32 * _EPS
        return eps * self.largest + torch.finfo(self.dtype).tiny

    @property
    def largest(self) -> Tensor:
        """The largest cost in size."""
        return torch.maximum(self.low.abs(), self.high.abs())


@dataclass(frozen=True, eq=False)
class _Iterate:
    """Iterate t: P_ij = a_i b_j exp(phi_i + psi_j - t (C_ij - f_i - g_j) / beta).

    f and g are a fixed reference, near the potentials; phi and psi are the scalings relative to it.
    """

    t: int
    f: Tensor  # (..., n), dtype of C, so that C - f - g means the same wherever it is computed
    g: Tensor  # (..., m)
    phi: Tensor  # (..., n), float64
    psi: Tensor  # (..., m), float64
    psi_last: Tensor  # (..., m), float64: psi of iterate t - 1
    plan: Callable[[], Tensor] | None = None

    def potentials(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """(beta / t) (log A, log B), up to the weights: optimal up to O(1 / t); float64."""
        step = beta / self.t
        return self.f + step * self.phi, self.g + step * self.psi

    def step_potential(self, beta: Tensor) -> Tensor:
        """beta log (B_t / B_{t-1}), the last proximal step's own dual variable; float64.

        Without the O(1 / t) of the mean over all steps: a bound 2 to 6 times as close in d = 1, 2.
        """
        return self.g + beta * (self.psi - self.psi_last)

    def recentred(self, beta: Tensor) -> _Iterate:
        """The same iterate, its potentials moved into the reference."""
        if self.t == 0:
            return self
        f, g = (x.to(self.f.dtype) for x in self.potentials(beta))
        df, dg = (f.double() - self.f.double()) / beta, (g.double() - self.g.double()) / beta
        phi, psi = self.phi - self.t * df, self.psi - self.t * dg
        return _Iterate(self.t, f, g, phi, psi, self.psi_last - (self.t - 1) * dg)


def _proximal(
    cost: _DenseCost,
    problem: _Problem,
    max_iter: int,
    inner_iter: int = 1,
    *,
    warm: bool = True,
    trace: Callable[[list[Tensor]], None] | None = None,
) -> Iterator[_Iterate]:
    """Iterate, yielding at the end of each block of steps that share one reference.

    A block is run on scalings first. If they left the range in which that is accurate it is run
    again, half as long; where a single step still fails, the next ones are taken in the log domain.
    """
    iterate = _start(cost, problem)
    options = (inner_iter, warm, trace is not None)
    longest, patience = 4, 1
    while iterate.t < max_iter:
        iterate = iterate.recentred(problem.beta)
        left = max_iter - iterate.t
        tried = steps = min(longest, left)
        block = _scaling_steps(cost, problem, iterate, steps, *options)
        while block is None and steps > 1:
            steps //= 2
            block = _scaling_steps(cost, problem, iterate, steps, *options)
        if block is None:
            steps = min(patience, left)
            block = _log_steps(cost, problem, iterate, steps, *options)
            longest, patience = 1, min(2 * patience, 64)
        else:
            # exp(-t C / beta) changes by its own power as t grows: blocks lengthen with t.
            cut = steps < tried or patience > 1
            longest = max(1, min(500, 3 * (iterate.t + steps)))
            longest, patience = (min(longest, 2 * steps) if cut else longest), 1
        iterate, losses = block
        if trace is not None:
            trace(losses)
        yield iterate


def _all(x: bool | Array) -> bool:
    return x if isinstance(x, bool) else bool(x.all())


def _last(iterates: Iterator[_Iterate]) -> _Iterate:
    return deque(iterates, maxlen=1).pop()


def _start(cost: _DenseCost, problem: _Problem) -> _Iterate:
    """Gamma = 1 and scalings 1 on the points that have mass, seen from feasible potentials."""
    log_b = problem.b.log()
    psi = torch.where(problem.b > 0, -log_b, 0.0)
    psi, g = torch.broadcast_tensors(psi, cost.g)
    f = cost.f.expand(*psi.shape[:-1], -1)
    phi = torch.zeros_like(f, dtype=torch.float64)
    return _Iterate(0, f, g, phi, psi, psi + g / problem.beta)


def _scaling_steps(
    cost: _DenseCost,
    problem: _Problem,
    x: _Iterate,
    steps: int,
    inner_iter: int,
    warm: bool,
    with_loss: bool,
) -> tuple[_Iterate, list[Tensor]] | None:
    """`steps` iterations by matrix-vector products; None if they left the accurate range."""
    kernel = cost.kernel(x.f, x.g, x.t + 1, x.t + steps)
    native = kernel.native
    a, b = native(problem.a), native(problem.b)
    w, w_last = native((-x.psi).exp()), native((-x.psi_last).exp())
    restart = None if warm else native((-x.g / problem.beta).exp())
    losses = []
    with np.errstate(all="ignore"):  # overflow shows at the end
        v = b / w
        for step in range(steps):
            # B_t^2 / B_{t-1}, with B = b / w: written so that a weight of zero stays zero.
            v = v * (w_last / w if warm else restart)
            w_last = w
            for _ in range(inner_iter):
                row = kernel.dot(v)
                u = a / row
                w = kernel.dot_transposed(u)
                v = b / w
            if with_loss:
                losses.append(kernel.cost_of(u, v))
            if step + 1 < steps:
                kernel.grow()
        phi, psi, psi_last = (torch.as_tensor(-_log(x)) for x in (row, w, w_last))
    # Entries at the kernel's floor must not matter: they carry exp(top - span) of the mass.
    top = _largest(phi, problem.a) + _largest(psi, problem.b)
    in_range = torch.cat((phi, psi, psi_last), -1).isfinite().all()
    in_range &= top.amax() <= _span(kernel.dtype) - 20
    if losses:
        in_range &= torch.stack(losses).isfinite().all()
    if not bool(in_range):
        return None
    return _Iterate(x.t + steps, x.f, x.g, phi, psi, psi_last, lambda: kernel.plan(u, v)), losses


def _log_steps(
    cost: _DenseCost,
    problem: _Problem,
    x: _Iterate,
    steps: int,
    inner_iter: int,
    warm: bool,
    with_loss: bool,
) -> tuple[_Iterate, list[Tensor]]:
    """`steps` iterations in the log domain and float64: slower, and safe for every beta."""
    reduced = cost.reduced(x.f, x.g, torch.float64).div_(-problem.beta[..., None])
    log_a, log_b = problem.a.log(), problem.b.log()
    psi, psi_last = x.psi, x.psi_last
    losses = []
    for t in range(x.t + 1, x.t + steps + 1):
        exponent = reduced * t
        psi_last, psi = psi, 2 * psi - psi_last if warm else psi - x.g / problem.beta
        for _ in range(inner_iter):
            phi = -torch.logsumexp(exponent + (psi + log_b)[..., None, :], -1)
            log_u = phi + log_a
            psi = -torch.logsumexp(exponent + log_u[..., :, None], -2)
        if with_loss:
            exponent += log_u[..., :, None] + (psi + log_b)[..., None, :]
            losses.append((exponent.exp_() * cost.C).sum((-2, -1)))

    def plan() -> Tensor:
        log_plan = reduced * t + log_u[..., :, None] + (psi + log_b)[..., None, :]
        return log_plan.exp_().to(cost.C.dtype)

    return _Iterate(t, x.f, x.g, phi, psi, psi_last, plan), losses


def _iterate_dense(
    problem: _Problem, max_iter: int, inner_iter: int = 1
) -> tuple[_Certificate, Tensor]:
    """`max_iter` proximal iterations on a cost matrix, rounded and certified."""
    cost = _DenseCost(problem.C, problem.beta)
    iterate = _last(_proximal(cost, problem, max_iter, inner_iter))
    return _certify(cost, problem, iterate)


@np.errstate(all="ignore")  # out of range shows in the result
def _iterate_lazy(
    problem: _Problem, costs: Iterable[_CloudRows], max_iter: int
) -> tuple[_Certificate, LazyPlan | list[LazyPlan]]:
    """The same iterates without a matrix, one problem of the batch after another."""
    parts, plans = [], []
    for k, cost in zip(np.ndindex(problem.mass.shape), costs):
        a, b, beta = problem.a[k], problem.b[k], float(problem.beta[k])
        weights = _native(a.float()), _native(b.float())
        # log A_t and log B_t, up to the weights; the last two of each.
        F = F_last = _native(torch.zeros_like(a))
        G = G_last = _native(torch.where(b > 0, -b.log(), 0.0))
        for t in range(1, max_iter + 1):
            eps = beta / t
            g = eps * (2 * G - G_last)
            f = eps * (2 * F - F_last) if t > 1 else _native(cost.row_minima(torch.as_tensor(g)))
            f, g, _ = cost.sweep(f, g, eps, *weights)
            F, F_last, G, G_last = f / eps, F, g / eps, G
        f, g, step = (torch.as_tensor(x) for x in (f, g, beta * (G - G_last)))
        rows, value = _round_lazily(cost, f, g, eps, a, b)
        step = torch.where(b > 0, step, -math.inf)
        parts.append((float(value), *_dual_bound(cost, step, a, b, problem.dtype)))
        plans.append(LazyPlan(cost.shape, rows, float(problem.mass[k]), cost.Y, problem.give_back))
    certificate = _stacked(problem, parts, max_iter)
    return certificate, plans if problem.mass.ndim else plans[0]


# --------------------------------------------------------------------------------------------------
# To a gap: annealed potentials, a network simplex on few arcs, pricing of all
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Flow:
    """A feasible plan with few entries and a dual variable to prove its worth; one problem."""

    rows: np.ndarray  # int64
    columns: np.ndarray  # int64
    mass: np.ndarray  # float64, sum 1
    cost: float  # of the plan
    g: Tensor  # (m,), float64; -inf where b is zero
    optimal: bool  # whether no arc is left that could improve it
    sweeps: int = 0
    f: Tensor | None = None  # (n,), float64, where it is known without a c-transform


def _solve_flows(
    problem: _Problem,
    costs: Iterable[_Rows],
    tol: float,
    max_iter: int,
    sparse: bool,
    lazy: bool = False,
    line: bool = False,
) -> tuple[_Certificate, Tensor | LazyPlan | list]:
    """Every problem of the batch to the relative gap `tol`, and the plans in the form asked for."""
    batch, device = problem.mass.shape, problem.mass.device
    shape = problem.a.shape[-1], problem.b.shape[-1]
    dense = None if sparse or lazy else _zeros((*batch, *shape), problem.dtype, device)
    parts, plans, optimal, sweeps = [], [], [], 0
    for k, cost in zip(np.ndindex(batch), costs):
        a, b = problem.a[k], problem.b[k]
        if line:
            flow = _sorted_flow(cost, a, b)
        else:
            flow = _solve_flow(cost, a, b, float(problem.beta[k]), tol, max_iter)
        bound = _dual_bound(cost, flow.g, a, b, problem.dtype, flow.f)
        parts.append((flow.cost + cost.error, *bound))
        optimal.append(flow.optimal)
        sweeps = max(sweeps, flow.sweeps)
        mass = float(problem.mass[k])
        rows, columns, values = (
            _tensor(x, device) for x in (flow.rows, flow.columns, flow.mass * mass)
        )
        if dense is not None:
            dense[k][rows, columns] = values.to(problem.dtype)
        elif sparse:
            plans.append(_sparse(rows, columns, values, shape, problem.give_back))
        else:
            table = scipy.sparse.csr_array((flow.mass, (flow.rows, flow.columns)), shape=shape)
            plan_rows = partial(_table_rows, table, device)
            plans.append(LazyPlan(shape, plan_rows, mass, cost.Y, problem.give_back))
    certificate = _stacked(problem, parts, sweeps, tol, optimal)
    if dense is not None:
        return certificate, dense
    return certificate, plans if batch else plans[0]


def _table_rows(table: scipy.sparse.csr_array, device: torch.device, index) -> Tensor:
    index = index.cpu().numpy() if isinstance(index, Tensor) else index
    return torch.as_tensor(table[index].toarray(), device=device)


def _solve_flow(cost: _Rows, a: Tensor, b: Tensor, beta: float, tol: float, max_iter: int) -> _Flow:
    """A flow whose gap is within `tol`, by column generation.

    Few of the n m arcs carry mass in an optimal plan. Potentials near the optimal ones tell which
    may: those whose reduced cost C_ij - f_i - g_j is small. The network simplex on these arcs has
    potentials of its own; an arc whose cost they exceed is added, and when there is none, the flow
    is optimal among all. The simplex gets the reduced costs, which it solves 3 to 7 times as fast
    as the costs: most arcs that are not needed are then visibly dear.
    """
    rows, columns = a.nonzero().ravel(), b.nonzero().ravel()
    whole, whole_b = cost.shape == (len(rows), len(columns)), b
    cost, a, b = cost.restricted(rows, columns), a[rows], b[columns]
    n, m = cost.shape
    if n * m <= _SMALL or n == 1 or m == 1:
        arcs, f, g, optimal = _all_arcs_flow(cost, a, b)
        sweeps = 0
    else:
        g, neighbours, sweeps, blur = _anneal(cost, a, b, beta, max_iter)
        count = (_ARCS if tol < 1e-3 else _ARCS / 2) * neighbours
        count = math.ceil(min(60.0, max(8.0, count)))  # 8 for NaN
        arcs, f, g, optimal = _generate_columns(cost, g, a, b, count, blur, tol)
    used = arcs.flow > 0
    return _Flow(
        rows.cpu().numpy()[arcs.rows[used]],
        columns.cpu().numpy()[arcs.columns[used]],
        arcs.flow[used],
        _dot(arcs.flow[used], arcs.costs[used]),
        g if whole else torch.full_like(whole_b, -math.inf).index_copy(0, columns, g),
        optimal,
        sweeps,
        f if whole else None,
    )


@np.errstate(all="ignore")  # out of range shows in f and g
def _anneal(
    cost: _Rows, a: Tensor, b: Tensor, eps: float, max_iter: int
) -> tuple[Tensor, float, int, float]:
    """g near an optimal one, how many others a point sees then, how many sweeps it took, and below
    which difference costs were found equal.

    Proximal steps whose temperature is halved from one to the next, each of two Sinkhorn sweeps
    from the potentials extrapolated along half of the last change: IPOT's extrapolation for this
    schedule. It ends where a point sees few others: when the mean of 1 / sum_j (P_ij / a_i)^2 falls
    below 5 (after 5 stages in 16 dimensions, 11 in 2) or, where costs tie, no further.
    """
    g = cost.column_minima(torch.zeros_like(a))
    f = cost.row_minima(g)
    _, C = next(cost.blocks())
    i, j = divmod(_some(C.numel()), C.shape[1])
    typical = float((C[i, j] - f[i] - g[j]).median())
    if typical > 0:  # a few huge costs do not set the scale
        eps = min(eps, 30 * typical)
    a, b, f, g = (_native(x) for x in (a.float(), b.float(), f, g))
    f_warm, g_warm, neighbours, tied = f, g, math.nan, False
    for stage in range(1, _STAGES + 1):
        f_new, g_new, seen = cost.sweep(f_warm, g_warm, eps, a, b, _SWEEPS)
        if not math.isfinite(f_new.sum() + g_new.sum()):
            break  # out of float32's range: the potentials of the stage before will do
        f_warm, g_warm = f_new + (f_new - f) / 2, g_new + (g_new - g) / 2
        f, g, last, neighbours = f_new, g_new, neighbours, float(seen)
        eps /= 2
        # Equal costs, which no temperature tells apart.
        tied = 0.9 * last < neighbours and (neighbours < 10 or stage == _STAGES)
        if neighbours < 5 or tied or _SWEEPS * stage >= max_iter:
            break
    blur = 10 * eps if tied and neighbours >= 5 else 0.0
    return torch.as_tensor(g), neighbours, _SWEEPS * stage, blur


@dataclass(eq=False)
class _Arcs:
    """Arcs of the sparse problem in row-major order, with their costs and what flows in them."""

    rows: np.ndarray
    columns: np.ndarray
    costs: np.ndarray
    flow: np.ndarray | None = None

    @classmethod
    def union(cls, m: int, *parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> _Arcs:
        rows, columns, costs = (np.concatenate(x) for x in zip(*parts))
        _, first = np.unique(rows * m + columns, return_index=True)
        return cls(rows[first], columns[first], costs[first])

    def spread(self, m: int, rows: np.ndarray, columns: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """Mass on some of the arcs as a flow on all of them."""
        flow = np.zeros(len(self.rows))
        flow[np.searchsorted(self.rows * m + self.columns, rows.astype(np.int64) * m + columns)] = (
            mass
        )
        return flow


def _generate_columns(
    cost: _Rows, g: Tensor, a: Tensor, b: Tensor, count: int, blur: float, tol: float
) -> tuple[_Arcs, Tensor, Tensor, bool]:
    """Arcs with a flow on them, the best potentials seen, and whether the flow is optimal.

    Begins with the `count` nearest arcs of each row under g.
    """
    m = cost.shape[1]
    mass_a, mass_b = a.cpu().numpy(), b.cpu().numpy()
    arcs, f = _near_arcs(cost, g, count, blur, mass_a, mass_b)
    best, f_best, g_best = a @ f + b @ g, f, g
    while True:
        reduced = arcs.costs - f.cpu().numpy()[arcs.rows] - g.cpu().numpy()[arcs.columns]
        found = _network_simplex(mass_a, mass_b, reduced, arcs)
        if found is None:  # a feasible flow all the same, with an honest gap
            arcs.flow = arcs.spread(m, *_north_west(mass_a, mass_b))
            return arcs, f_best, g_best, False
        arcs.flow, f_step, g_step = found
        f, g = f + _tensor(f_step, f.device), g + _tensor(g_step, g.device)
        used = arcs.costs[arcs.flow > 0]
        tolerance = 1e-12 * float(np.ptp(used)) + 8 * _EPS * float(np.abs(used).max())
        f, more = _price(cost, f, g, tolerance)
        bound = a @ f + b @ g
        if bound >= best:
            best, f_best, g_best = bound, f, g
        size = len(arcs.rows)
        longer = _Arcs.union(m, (arcs.rows, arcs.columns, arcs.costs), more)
        value = _dot(arcs.flow, arcs.costs)
        if len(longer.rows) == size:
            return arcs, f_best, g_best, True
        if tol and value - float(best) <= tol * abs(value):
            return arcs, f_best, g_best, False
        arcs = longer


def _near_arcs(
    cost: _Rows, g: Tensor, count: int, blur: float, a: np.ndarray, b: np.ndarray
) -> tuple[_Arcs, Tensor]:
    """The arcs of smallest C_ij - g_j of each row i, a path of arcs that can carry all mass, and
    the c-transform of g.

    Of arcs that differ by less than `blur` each row takes others: the same ones in all rows could
    not carry their flow.
    """
    n, m = cost.shape
    count = min(m, math.ceil(count * max(1.0, m / n)))
    path_rows, path_columns, _ = _north_west(a, b)
    near, costs = np.empty((n, count), np.int64), np.empty((n, count))
    path_costs, least = np.empty(len(path_rows)), torch.empty(n, dtype=g.dtype, device=g.device)
    noise, draw = None, torch.Generator(g.device).manual_seed(0)
    for rows, C in cost.blocks():
        reduced = cost.reduced(C, g)
        least[rows] = reduced.amin(1)
        # In float32 what is near can be told apart once the least of the row is taken off.
        reduced.sub_(least[rows, None])
        if blur:
            if noise is None:
                noise = torch.rand(reduced.shape, generator=draw, device=draw.device)
            reduced.add_(noise[: len(reduced)], alpha=blur)
        j = torch.topk(reduced.float(), count, largest=False, sorted=False).indices
        near[rows], costs[rows] = j.cpu().numpy(), C.gather(1, j).cpu().numpy()
        on_path = slice(*np.searchsorted(path_rows, (rows.start, rows.stop)))
        i, j = (_tensor(x[on_path], C.device) for x in (path_rows - rows.start, path_columns))
        path_costs[on_path] = C[i, j].cpu().numpy()
    rows = np.repeat(np.arange(n), count)
    near = (rows, near.ravel(), costs.ravel())
    return _Arcs.union(m, near, (path_rows, path_columns, path_costs)), least


def _price(
    cost: _Rows, f: Tensor, g: Tensor, tolerance: float
) -> tuple[Tensor, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The largest f that g allows, and the worst arcs of each row that the given f violates."""
    best = torch.empty_like(f)
    count = min(cost.shape[1], 8)
    found = []
    for rows, C in cost.blocks():
        slack = cost.reduced(C, g)
        best[rows] = slack.amin(1)
        bad = (best[rows] < f[rows] - tolerance).nonzero().ravel()
        if len(bad):
            least, j = torch.topk(slack[bad], count, largest=False)
            i = bad[:, None].expand_as(j)
            chosen = least < f[rows][i] - tolerance
            i, j = i[chosen], j[chosen]
            found.append([x.cpu().numpy() for x in (i + rows.start, j, C[i, j])])
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    return best, tuple(np.concatenate(x) for x in zip(nothing, *found))


def _network_simplex(
    a: np.ndarray, b: np.ndarray, costs: np.ndarray, arcs: _Arcs | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Optimal flow, of the shape of costs, and potentials, by POT; None if it reports failure.

    The costs are those of `arcs`, or a matrix. They are cut at a cap if no dear one is used: an
    entry of 1e15 that forbids an arc would leave the simplex, whose tolerances are those of its
    largest cost, no digits for the others. Where no flow is on what was cut, the potentials are
    feasible for the true costs too.
    """
    some = np.sort(costs.ravel()[_some(costs.size)])
    some = some[some > 0]
    cap = 1e6 * float(some[len(some) // 2]) if len(some) else math.inf  # 1e6 times the median
    low, high = float(costs.min()), float(costs.max())
    for limit in (cap, math.inf) if high > cap else (math.inf,):
        scale = max(min(high, limit), -low) or 1.0
        table = (costs if limit == math.inf else np.minimum(costs, limit)) / scale
        if arcs is not None:
            shape = len(a), len(b)
            table = scipy.sparse.coo_matrix((table, (arcs.rows, arcs.columns)), shape=shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the result code says the same
            plan, log = ot.emd(
                a, b, table, 2**31 - 1, log=True, center_dual=False, check_marginals=False
            )
        if log["result_code"] == _OPTIMAL:
            flow = plan if arcs is None else arcs.spread(len(b), plan.row, plan.col, plan.data)
            if limit == math.inf or not flow[costs > limit].any():
                return flow, scale * log["u"], scale * log["v"]
    return None


def _all_arcs_flow(cost: _Rows, a: Tensor, b: Tensor) -> tuple[_Arcs, Tensor, Tensor, bool]:
    """The flow of a small problem, by POT's dense network simplex."""
    C, mass_a, mass_b = (x.cpu().numpy() for x in (cost.block(slice(None)), a, b))
    optimal = True
    if 1 in C.shape:  # one plan only
        plan, g = np.outer(mass_a, mass_b), C[0] if len(C) == 1 else np.zeros(1)
    elif found := _network_simplex(mass_a, mass_b, C - C.min()):
        plan, _, g = found
    else:
        rows, columns, mass = _north_west(mass_a, mass_b)
        plan, g, optimal = np.zeros(C.shape), np.zeros(len(mass_b)), False
        plan[rows, columns] = mass
    rows, columns = np.divmod(np.flatnonzero(plan > 0), plan.shape[1])
    arcs = _Arcs(rows, columns, C[rows, columns], plan[rows, columns])
    f = np.subtract(C, g, out=plan).min(1)  # fresh memory costs more than the difference
    return arcs, _tensor(f, a.device), _tensor(g, a.device), optimal


def _north_west(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The north-west corner rule: n + m - 1 arcs, each one step down or right of the last, and the
    mass that flows in them; feasible for all weights, optimal if the cost is a Monge matrix."""
    a, b = np.cumsum(a), np.cumsum(b)
    ends = np.concatenate((a[:-1] / a[-1], b[:-1] / b[-1]))
    order = np.argsort(ends, kind="stable")
    down = np.concatenate(([0], order < len(a) - 1))
    rows = np.cumsum(down)
    columns = np.arange(len(rows)) - rows
    mass = np.diff(ends[order], prepend=0.0, append=1.0)
    return rows, columns, mass


def _sorted_flow(cost: _CloudRows, a: Tensor, b: Tensor) -> _Flow:
    """Points on a line with a convex cost: the sorted order is optimal, for plan and potentials.

    Along the north-west path one index changes at a time, so that f and g are sums of differences
    of costs; feasible everywhere as the sorted cost is a Monge matrix.
    """
    x, order_x = cost.X.double().ravel().sort(stable=True)
    y, order_y = cost.Y.double().ravel().sort(stable=True)
    rows, columns, mass = _north_west(a[order_x].cpu().numpy(), b[order_y].cpu().numpy())
    device, power = a.device, 2 if cost.distance.name == "sqeuclidean" else 1
    along = np.abs(x.cpu().numpy()[rows] - y.cpu().numpy()[columns]) ** power
    change, down = np.diff(along.astype(np.longdouble)), np.diff(rows) == 1
    f = np.concatenate(([0.0], np.cumsum(change[down])))
    g = np.concatenate(([0.0], np.cumsum(change[~down]))) + along[0]
    # What the rounding of sums and costs could break of f_i + g_j <= C_ij.
    span = float(torch.maximum(x[-1], y[-1]) - torch.minimum(x[0], y[0])) ** power
    f = f - 8 * _EPS * (np.abs(f).max() + np.abs(g).max() + span)
    f, g = (_tensor(z.astype(float), device) for z in (f, g))
    return _Flow(
        order_x.cpu().numpy()[rows],
        order_y.cpu().numpy()[columns],
        mass,
        _dot(mass, along),
        torch.empty_like(g).index_copy(0, order_y, g),
        True,
        f=torch.empty_like(f).index_copy(0, order_x, f),
    )


# --------------------------------------------------------------------------------------------------
# Geometry: all that reads the entries of a cost
# --------------------------------------------------------------------------------------------------


class _DenseCost:
    """A cost matrix (..., n, m), and its kernels at the proximal step beta (..., 1)."""

    def __init__(self, C: Tensor, beta: Tensor):
        self.C, self.beta = C, beta
        # The smallest cost of each row, and of each column in what that leaves.
        self.f = C.amin(-1)
        self.has_negative = bool((self.f < 0).any())
        reduced = torch.sub(C, self.f[..., :, None], out=_new_matrix(C, tuple(C.shape)))
        self.g = reduced.amin(-2)
        # G = exp(-C / beta) from reduced costs; where it fits the dtype every later kernel is a
        # product of its powers, which is cheaper than another exp.
        exponent = reduced.sub_(self.g[..., None, :]).div_(-beta[..., None].to(C.dtype))
        self.fits = bool(exponent.amin() >= -_span(C.dtype) / 2)
        self.G = exponent.exp_() if self.fits else exponent
        self.space: tuple[Tensor, Tensor] | None = None  # two matrices that serve all kernels

    def reduced(self, f: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
        """C_ij - f_i - g_j in a new matrix."""
        return (self.C.to(dtype) - f[..., :, None]).sub_(g[..., None, :])

    def kernel(self, f: Tensor, g: Tensor, t: int, t_end: int) -> _DenseKernel:
        """exp(-t (C - f - g) / beta), to grow up to t_end, in the last kernel's memory."""
        dtype, limit = self.C.dtype, _span(self.C.dtype) / t_end
        if self.space is None:
            shape = (*f.shape, g.shape[-1])
            self.space = _new_matrix(self.C, shape), _new_matrix(self.C, shape)
        G, K = self.space
        if self.fits:
            row = ((f - self.f) / self.beta).exp().to(dtype)
            column = ((g - self.g) / self.beta).exp().to(dtype)
            torch.mul(self.G, row[..., :, None], out=G).mul_(column[..., None, :])
            G.clamp_(math.exp(-limit), math.exp(limit))
        else:
            torch.sub(self.C, f[..., :, None], out=G).sub_(g[..., None, :])
            G.div_(-self.beta[..., None].to(dtype)).clamp_(-limit, limit).exp_()
        K.copy_(G)
        for bit in bin(t)[3:]:  # K = G^t by repeated squaring
            K.mul_(K)
            if bit == "1":
                K.mul_(G)
        return _DenseKernel(self.C, G, K)

    def of_plan(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """<plan, C> and <plan, |C|>, float64; their relative error is the dtype's eps."""
        product = torch.mul(plan, self.C, out=self.space[0])
        value = _sum64(product, (-2, -1))
        return value, _sum64(product.abs_(), (-2, -1)) if self.has_negative else value

    def c_transforms(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The largest f that g allows, then the largest g that this f allows; exactly feasible.

        Rounding is monotone, so the smallest of the rounded differences is the rounded smallest,
        and one step towards -inf puts it on the safe side.
        """
        scratch, _ = self.space
        f = _next_below(torch.sub(self.C, g[..., None, :], out=scratch).amin(-1))
        return f, _next_below(torch.sub(self.C, f[..., :, None], out=scratch).amin(-2))


class _DenseKernel:
    """K = G^t elementwise, for one t after another.

    On the CPU NumPy handles matrices of up to a megabyte, on the same memory: a call costs a third
    of torch's, and a batch of small matrix-vector products an eighth. Larger products NumPy would
    run in threads of its own, which then compete with torch's.
    """

    def __init__(self, C: Tensor, G: Tensor, K: Tensor):
        self.dtype = G.dtype
        size = G.shape[-1] * G.shape[-2] * G.element_size()
        self.numpy = G.device.type == "cpu" and size <= 2**20
        self.C, self.G, self.K = (self.native(x) for x in (C, G, K))

    def native(self, x: Tensor) -> Array:
        """x in the kernel's dtype and in the kind of array that it computes with."""
        x = x.to(self.dtype)
        return x.numpy() if self.numpy else x

    def grow(self) -> None:
        self.K *= self.G

    def dot(self, v: Array) -> Array:
        return self.K @ v if v.ndim == 1 else (self.K @ v[..., None])[..., 0]

    def dot_transposed(self, u: Array) -> Array:
        return u @ self.K if u.ndim == 1 else (u[..., None, :] @ self.K)[..., 0, :]

    def cost_of(self, u: Array, v: Array) -> Tensor:
        row = ((self.K * self.C) @ v[..., None])[..., 0]
        return torch.as_tensor((u * row).sum(-1))

    def plan(self, u: Array, v: Array) -> Tensor:
        """diag(u) K diag(v); uses up the kernel."""
        K, u, v = (torch.as_tensor(x) for x in (self.K, u, v))
        return K.mul_(u[..., :, None]).mul_(v[..., None, :])


def _span(dtype: torch.dtype) -> float:
    """Kernels stay within exp(-span) and exp(span): arithmetic is slow on denormal numbers."""
    return 80.0 if dtype == torch.float32 else 600.0


class _Rows:
    """A cost (n, m) that is read in blocks of rows, float64; one problem.

    Of all entries at a time, only the cost matrix that was given, and one kernel beside it, exist.
    """

    shape: tuple[int, int]
    device: torch.device
    error: float = 0.0  # what its entries may be off by

    def block(self, rows: slice | Tensor) -> Tensor:
        """Rows of the cost, (k, m); valid until the next block is read."""
        raise NotImplementedError

    def restricted(self, rows: Tensor, columns: Tensor) -> _Rows:
        """The same cost between some of the points."""
        whole = (len(rows), len(columns)) == self.shape
        return self if whole else self._part(rows, columns)

    def _part(self, rows: Tensor, columns: Tensor) -> _Rows:
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in _row_slices(*self.shape, self.device):
            yield rows, self.block(rows)

    def reduced(self, C: Tensor, g: Tensor, f: Tensor | None = None) -> Tensor:
        """C - g - f, in scratch memory that the next call uses again."""
        if self._scratch is None or len(self._scratch) < len(C):
            self._scratch = torch.empty_like(C, memory_format=torch.contiguous_format)
        out = torch.sub(C, g, out=self._scratch[: len(C)])
        return out if f is None else out.sub_(f)

    _scratch: Tensor | None = None

    def span(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest cost."""
        low, high = zip(*((C.amin(), C.amax()) for _, C in self.blocks()))
        return torch.stack(low).amin(), torch.stack(high).amax()

    def row_minima(self, g: Tensor) -> Tensor:
        """min_j (C_ij - g_j)."""
        # Written in place: small tensors kept among large ones that come and go fragment the heap.
        least = torch.empty(self.shape[0], dtype=torch.float64, device=self.device)
        for rows, C in self.blocks():
            least[rows] = self.reduced(C, g).amin(1)
        return least

    def column_minima(self, f: Tensor) -> Tensor:
        """min_i (C_ij - f_i)."""
        least = torch.full((self.shape[1],), math.inf, dtype=torch.float64, device=self.device)
        for rows, C in self.blocks():
            column = self.reduced(C, f[rows, None]).amin(0)
            least = torch.minimum(least, column)
        return least

    def sweep(
        self, f: Array, g: Array, eps: float, a: Array, b: Array, count: int = 1
    ) -> tuple[Array, Array, Array | float]:
        """Sinkhorn sweeps from g at temperature eps: f, g and, after more than one, how many others
        a point sees.

        Native arrays; the weights in float32. The f that is given only keeps the exponents in
        range; where they leave it f and g are not finite. Rows and columns are fitted in one pass:
        a block has whole rows, so that their scaling is known when it adds to the columns.
        """
        xp = _library(self.device)
        self._refer(f, g, eps)
        q = _single(xp.exp((g - self.g) / eps))
        row = xp.empty_like(a)
        for left in reversed(range(count)):
            v, column, neighbours = b * q, xp.zeros_like(b), 0.0
            halve = count > 1 and left == 0
            move = halve and self._halve(row, q)
            for rows in _row_slices(*self.shape, self.device):
                K = self._kernel(rows, eps)
                row[rows] = K @ v
                column += (a[rows] / row[rows]) @ K
                if halve:
                    # 1 / sum_j (P_ij / a_i)^2, by what is also the kernel of the next stage.
                    scale, weights = row[rows], v
                    if move:
                        K /= row[rows, None]
                        K *= q
                        scale, weights = 1.0, b
                    K *= K
                    xp.clip(K, 1e-26, 1e26, out=K)
                    neighbours += (a[rows] * scale**2 / (K @ weights**2)).sum()
            if left:
                q = 1 / column
        found = self.f - eps * _log(row), self.g - eps * _log(column), neighbours
        if move:
            self.f, self.g = found[0], self.g + eps * _log(q)
        return found

    def _refer(self, f: Array, g: Array, eps: float) -> None:
        """Set the potentials that the kernel is relative to."""
        self.f, self.g = f, g

    def _kernel(self, rows: slice, eps: float) -> Array:
        """Rows of exp((f + g - C) / eps) in float32; the caller may change them."""
        f, g = torch.as_tensor(self.f), torch.as_tensor(self.g)
        K = self.reduced(self.block(rows), g, f[rows, None]).float()
        return _native(K.mul_(-1 / eps).clamp_(-40, 40).exp_())  # no product of three overflows

    def _halve(self, row: Array, q: Array) -> bool:
        """Before eps is halved: whether to take the kernel relative to these scalings then."""
        return False


class _MatrixRows(_Rows):
    """A cost matrix. Annealing stores its kernel, in float32, and squares the plan to halve eps."""

    def __init__(self, C: Tensor, rows: Tensor | None = None, columns: Tensor | None = None):
        self.C, self.rows, self.columns = C, rows, columns
        self.shape = C.shape if rows is None else (len(rows), len(columns))
        self.device = C.device
        self.kernel: Array | None = None
        self.eps = math.nan  # of the kernel

    def block(self, rows: slice | Tensor) -> Tensor:
        C = self.C[rows] if self.rows is None else self.C[self.rows[rows]][:, self.columns]
        return C.double()

    def _part(self, rows: Tensor, columns: Tensor) -> _MatrixRows:
        # A copy that is with its kernel still smaller than one whole matrix.
        if 2 * len(rows) * len(columns) <= self.C.numel():
            return _MatrixRows(self.C[rows[:, None], columns])
        return _MatrixRows(self.C, rows, columns)

    def _refer(self, f: Array, g: Array, eps: float) -> None:
        if self.eps == eps and max(abs(f - self.f).max(), abs(g - self.g).max()) < 25 * eps:
            return
        super()._refer(f, g, eps)
        self.eps = eps
        f, g = torch.as_tensor(f), torch.as_tensor(g)
        if self.kernel is None:
            self.kernel = _native(_new_matrix(f.float(), tuple(self.shape)))
        for rows, C in self.blocks():
            K = torch.as_tensor(self.kernel[rows]).copy_(self.reduced(C, g, f[rows, None]))
            K.mul_(-1 / eps).clamp_(-60, 60).exp_()

    def _kernel(self, rows: slice, eps: float) -> Array:
        return self.kernel[rows]

    def _halve(self, row: Array, q: Array) -> bool:
        self.eps /= 2
        # Two more passes over the kernel; but what is at its floor of exp(-60) must not matter.
        return bool(max(abs(_log(row)).max(), abs(_log(q)).max()) > 8)


class _CloudRows(_Rows):
    """The cost between two clouds, (n, d) and (m, d), computed whenever it is read; float64.

    In more than a few dimensions squared distances are |x|^2 + |y|^2 - 2 <x, y> about the mean of
    y. What cancels there is at most `error`, which the bounds then allow for.
    """

    def __init__(self, X: Tensor, Y: Tensor, distance: _Metric):
        self.X, self.Y, self.distance = X, Y, distance
        self.shape = len(X), len(Y)
        self.device, self.error = X.device, 0.0
        self.x, self.y = (X.double(), Y.double()) if distance.name else (X, Y)
        self.squares = None
        if distance.name == "sqeuclidean":
            centre = self.y.mean(0) if X.shape[1] > _FEW else 0.0
            self.x, self.y = self.x - centre, (self.y - centre).T.contiguous()
            if len(self.y) > _FEW:
                self.squares = self.x.square().sum(1), self.y.square().sum(0)
                self.error = 8 * _EPS * float(sum(z.amax() for z in self.squares))
        self._block: Tensor | None = None

    def block(self, rows: slice | Tensor) -> Tensor:
        x = self.x[rows]
        if self.distance.name != "sqeuclidean":
            with torch.no_grad():
                return self.distance(x, self.y).double()
        if isinstance(rows, Tensor):
            C, difference = x.new_empty(2, len(x), self.shape[1])
        else:
            if self._block is None or self._block.shape[1] < len(x):
                self._block = x.new_empty(2, len(x), self.shape[1])
            C, difference = self._block[:, : len(x)]
        if self.squares is not None:
            torch.addmm(self.squares[1], x, self.y, alpha=-2, out=C)
            return C.add_(self.squares[0][rows, None]).clamp_min_(0.0)
        torch.sub(x[:, :1], self.y[0], out=C).square_()
        for k in range(1, len(self.y)):
            torch.sub(x[:, k, None], self.y[k], out=difference)
            C.addcmul_(difference, difference)
        return C

    def _part(self, rows: Tensor, columns: Tensor) -> _CloudRows:
        return _CloudRows(self.X[rows], self.Y[columns], self.distance)

    def ends(self) -> _CloudRows:
        """Between the first and last points on a line only: the largest cost is among these."""
        x, y = (torch.stack((Z.amin(0), Z.amax(0))) for Z in (self.X, self.Y))
        return _CloudRows(x, y, self.distance)

    def span(self) -> tuple[Tensor, Tensor]:
        low, high = super().span()
        if not bool(low.isfinite() & high.isfinite()):
            raise ValueError("metric(X_a, X_b) must be finite; got NaN or inf")
        return low, high


def _sqeuclidean(x: Tensor, y: Tensor) -> Tensor:
    """By differences: |x|^2 + |y|^2 - 2 <x, y> would cancel between clusters far apart."""
    if x.shape[-1] > _FEW:
        return _euclidean(x, y).square()
    parts = zip(x.unbind(-1), y.unbind(-1))
    return sum((p[..., :, None] - q[..., None, :]).square() for p, q in parts)


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _cityblock(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, p=1.0)


_METRICS = {"sqeuclidean": _sqeuclidean, "euclidean": _euclidean, "cityblock": _cityblock}


class _Metric:
    """A cost between points, (..., n, d) and (..., m, d) to (..., n, m) in their dtype."""

    def __init__(self, metric: str | Callable[[Tensor, Tensor], Tensor]):
        self.name = metric if isinstance(metric, str) else None
        if self.name not in _METRICS and (self.name is not None or not callable(metric)):
            raise ValueError(f"metric must be {', '.join(_METRICS)} or a callable; got {metric!r}")
        self.function = _METRICS[metric] if self.name else metric

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.name:
            return self.function(x, y)
        if x.ndim > 2:  # a callable sees one pair of clouds at a time
            batch = x.shape[:-2]
            costs = [self(x[k], y[k]) for k in np.ndindex(batch)]
            return torch.stack(costs).reshape(*batch, *costs[0].shape)
        C = self.function(x, y)
        if not isinstance(C, Tensor) or C.shape != (len(x), len(y)):
            got = tuple(C.shape) if isinstance(C, Tensor) else type(C).__name__
            raise ValueError(f"metric must give a tensor of shape {(len(x), len(y))}; got {got}")
        return C.to(x.dtype)

    def rounding(self, d: int, dtype: torch.dtype) -> float:
        """Relative error of a cost."""
        return (d + 4) * torch.finfo(dtype).eps if self.name else 0.0


def _some(size: int) -> np.ndarray:
    """Where a thousand entries of a matrix are, in all columns; a stride could keep to one."""
    return np.arange(1000) * (size - 1) // 999


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    """<x, y>. From 10,000 entries on NumPy's product starts a thread, which then spins for 0.1 s
    and holds up torch's: exact solutions took twice as long."""
    return float((x * y).sum())


def _row_slices(n: int, m: int, device: torch.device) -> Iterator[slice]:
    """Rows in blocks that stay in a CPU's cache, or that fill a GPU."""
    size = max(1, (_BLOCK if device.type == "cpu" else 64 * _BLOCK) // m)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _new_matrix(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uninitialised memory, on the CPU from a pool of matrices that nobody holds any more.

    Touching fresh memory can cost more than the iterations: the system clears it page by page. Each
    thread keeps the last four matrices of up to 2^22 entries.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    dtype = np.dtype(str(like.dtype).removeprefix("torch."))
    pool = _pool.__dict__.setdefault("matrices", deque(maxlen=4))
    for k in range(len(pool)):
        # Two references: the pool's and that of the call. Any tensor or view would be another.
        if pool[k].shape == shape and pool[k].dtype == dtype and sys.getrefcount(pool[k]) == 2:
            return torch.from_numpy(pool[k])
    matrix = np.empty(shape, dtype)
    if matrix.size <= 2**22:
        pool.append(matrix)
    return torch.from_numpy(matrix)


_pool = threading.local()


def _library(device: torch.device) -> ModuleType:
    """NumPy on a CPU: calls on small arrays cost a third of torch's, its products of a matrix and a
    vector half, and it has no threads to wake for them."""
    return np if device.type == "cpu" else torch


def _native(x: Tensor) -> Array:
    """The same memory as an array of the device's library."""
    return x.numpy() if x.device.type == "cpu" else x


def _single(x: Array) -> Array:
    return x.float() if isinstance(x, Tensor) else x.astype(np.float32)


def _log(x: Array) -> Array:
    """In float64."""
    return x.double().log() if isinstance(x, Tensor) else np.log(x.astype(np.float64))


def _largest(x: Tensor, weights: Tensor) -> Tensor:
    """The largest entry of x where there is weight."""
    return torch.where(weights > 0, x, -math.inf).amax(-1)


# --------------------------------------------------------------------------------------------------
# Rounding and certificate
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Certificate:
    """Feasible potentials, and the bounds on W that they and a plan of mass 1 prove."""

    f: Tensor
    g: Tensor
    value: Tensor  # float64, as the next
    lower_bound: Tensor
    converged: Tensor
    n_iter: int


def _certify(cost: _DenseCost, problem: _Problem, iterate: _Iterate) -> tuple[_Certificate, Tensor]:
    """The iterate's plan, rounded and with the problem's mass, and what it proves."""
    a, b, C = problem.a, problem.b, problem.C
    eps = torch.finfo(C.dtype).eps
    plan = _round_to_marginals(iterate.plan(), a, b)
    # What rounding leaves of the marginals' error could cost its mass times the range of the cost.
    error = (a - _sum64(plan, -1)).abs().sum(-1) + (b - _sum64(plan, -2)).abs().sum(-1)
    value, size = cost.of_plan(plan)
    value = value + error * (problem.high - problem.low + problem.largest) + 2 * eps * size
    value = value + 16 * _EPS * problem.largest

    # Columns without mass put no bound on the rows; their own potential follows from the rows.
    g = torch.where(b > 0, iterate.step_potential(problem.beta), -math.inf).to(C.dtype)
    f, g = cost.c_transforms(g)
    lower_bound = _dual_value(f, g, a, b)
    converged = value - lower_bound <= problem.rounding
    plan.mul_(problem.mass[..., None, None].to(C.dtype))
    return _Certificate(f, g, value, lower_bound, converged, iterate.t), plan


def _dual_value(f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """<a, f> + <b, g> in float64, less what its rounding may have added."""
    terms = torch.cat((a * f, b * g), -1)
    return terms.sum(-1) - 4 * _EPS * terms.abs().sum(-1)


def _dual_bound(
    cost: _Rows, g: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, f: Tensor | None = None
) -> tuple[float, Tensor, Tensor]:
    """The dual value of potentials that are feasible in dtype, and these.

    g, with -inf where b is zero, is c-transformed twice, unless its c-transform f is given.
    """
    if f is None:
        g = -_round_up(-g, dtype)
        f = -_round_up(-_next_below(cost.row_minima(g.double())), dtype)
        g = -_round_up(-_next_below(cost.column_minima(f.double())), dtype)
    else:
        f, g = -_round_up(-_next_below(f), dtype), -_round_up(-g, dtype)
    return float(_dual_value(f, g, a, b)) - cost.error, f, g


def _stacked(
    problem: _Problem,
    parts: list[tuple[float, float, Tensor, Tensor]],
    n_iter: int,
    tol: float = 0.0,
    optimal: list[bool] | None = None,
) -> _Certificate:
    """The certificate of a batch from the (value, lower bound, f, g) of each of its problems."""
    batch, device = problem.mass.shape, problem.mass.device
    *numbers, f, g = zip(*parts)
    f, g = (torch.stack(x).reshape(*batch, -1) for x in (f, g))
    value, bound = (_tensor(np.reshape(x, batch), device) for x in numbers)
    allowed = tol * value.abs() + problem.rounding
    if optimal is not None:  # up to the rounding of the simplex's potentials
        optimal = _tensor(np.reshape(optimal, batch), device)
        allowed = allowed.maximum(optimal * 1e-9 * (value.abs() + problem.largest))
    converged = value - bound <= allowed
    bound = bound.minimum(value)  # an optimal flow's may meet but for rounding
    return _Certificate(f, g, value, bound, converged, n_iter)


def _round_lazily(
    cost: _CloudRows, f: Tensor, g: Tensor, eps: float, a: Tensor, b: Tensor
) -> tuple[Callable[[slice | Tensor], Tensor], Tensor]:
    """The rows of the rounded plan a_i b_j exp((f_i + g_j - C_ij) / eps), and its cost.

    As `_round_to_marginals`, in two passes over the cost: a block has whole rows, so that their
    scale is known at once.
    """
    scale_a = torch.empty_like(a)

    def smooth(C: Tensor, rows: slice | Tensor) -> Tensor:
        P = (C - g).sub_(f[rows, None]).mul_(-1 / eps).clamp_max_(700).exp_()
        return P.mul_(b).mul_(a[rows, None])

    column = torch.zeros_like(b)
    for rows, C in cost.blocks():
        P = smooth(C, rows)
        scale_a[rows] = (a[rows] / P.sum(1).clamp_min(1e-300)).clamp_max(1.0)
        column += scale_a[rows] @ P
    scale_b = (b / column.clamp_min(1e-300)).clamp_max(1.0)
    missing_b = (b - column * scale_b).clamp_min(0.0)
    missing_b = missing_b / missing_b.sum().clamp_min(1e-300)
    missing_a, value = torch.empty_like(a), torch.zeros((), dtype=a.dtype, device=a.device)
    for rows, C in cost.blocks():
        P = smooth(C, rows).mul_(scale_b).mul_(scale_a[rows, None])
        missing_a[rows] = (a[rows] - P.sum(1)).clamp_min(0.0)
        value = value + (P.mul_(C)).sum() + missing_a[rows] @ (C @ missing_b)

    def plan(rows: slice | Tensor) -> Tensor:
        P = smooth(cost.block(rows), rows).mul_(scale_b).mul_(scale_a[rows, None])
        return P.addcmul_(missing_a[rows, None], missing_b)

    return plan, value + cost.error


def _round_to_marginals(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A feasible plan near the given one (Altschuler, Weed, Rigollet 2017, Algorithm 2); in place.

    Rows, then columns, that carry too much are scaled down, and what is then missing is added as
    the product of the two deficits.
    """
    dtype = plan.dtype
    for marginal, axis in ((a, -1), (b, -2)):
        scale = (marginal / plan.sum(axis).double().clamp_min(1e-300)).clamp_max(1.0)
        plan.mul_(scale.to(dtype).unsqueeze(axis))
    missing_a = (a - plan.sum(-1)).clamp_min(0.0)
    missing_b = (b - plan.sum(-2)).clamp_min(0.0)
    missing_b = missing_b / missing_b.sum(-1, keepdim=True).clamp_min(1e-300)
    return plan.addcmul_(missing_a.to(dtype)[..., :, None], missing_b.to(dtype)[..., None, :])


def _sum64(x: Tensor, axis: int | tuple[int, int]) -> Tensor:
    """Sum in float64 without a float64 copy; NumPy's is the faster one on the CPU."""
    if x.device.type == "cpu":
        return torch.as_tensor(x.numpy().sum(axis, dtype=np.float64))
    return x.sum(axis, dtype=torch.float64)


def _transport(
    problem: _Problem,
    found: _Certificate,
    plan: Tensor | scipy.sparse.coo_matrix | LazyPlan | list,
    clouds: tuple[Tensor, Tensor, _Metric] | None = None,
) -> Transport:
    """The caller's units, dtype and kind; bounds are rounded outwards."""
    dtype, mass, give = problem.dtype, problem.mass, problem.give_back
    off = 0.0  # how far the costs between points may be from true, relatively
    if clouds is not None:
        off = clouds[2].rounding(
            clouds[0].shape[-1], dtype if problem.C is not None else torch.float64
        )
    value = _round_up(found.value * mass * (1 + off), dtype)
    lower_bound = -_round_up(-found.lower_bound * mass * (1 - off), dtype)
    gap = value - lower_bound
    needed = [x is not None and x.requires_grad for x in problem.inputs]
    if any(needed) and torch.is_grad_enabled():
        gradients = (found.f, found.g)
        if clouds is not None:
            points = (None, None)
            if any(needed[:2]):
                points = _cloud_gradients(plan, mass.shape, *clouds)
            gradients = (*points, *gradients)
        elif needed[0]:
            plans = torch.stack(plan) if isinstance(plan, list) else plan
            dense = plans.to_dense()
            gradients = (dense.reshape(*mass.shape, *dense.shape[-2:]), *gradients)
        else:
            gradients = (None, *gradients)
        value = _Envelope.apply(value, gradients, *problem.inputs)
    return Transport(
        plan=give(plan) if isinstance(plan, Tensor) else plan,
        value=give(value),
        lower_bound=give(lower_bound),
        gap=give(gap),
        potentials=(give(found.f), give(found.g)),
        n_iter=found.n_iter,
        converged=bool(found.converged) if found.converged.ndim == 0 else give(found.converged),
    )


class _Envelope(torch.autograd.Function):
    """The value as a function of the inputs, whose gradients are known (envelope theorem)."""

    @staticmethod
    def forward(ctx, value, gradients, *inputs):
        ctx.save_for_backward(*gradients)
        ctx.shapes = [None if x is None else x.shape for x in inputs]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grads = []
        for gradient, shape, wanted in zip(ctx.saved_tensors, ctx.shapes, ctx.needs_input_grad[2:]):
            grads.append(None)
            if wanted:
                rates = grad.reshape(grad.shape + (1,) * (gradient.ndim - grad.ndim))
                grads[-1] = (rates * gradient).sum_to_size(shape)
        return None, None, *grads


def _cloud_gradients(
    plan: Tensor | LazyPlan | list,
    batch: torch.Size,
    x: Tensor,
    y: Tensor,
    distance: _Metric,
) -> tuple[Tensor, Tensor]:
    """sum_j P_ij dc(x_i, y_j)/dx_i, and the same for y; the cost is differentiated in blocks."""
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    for flat, k in enumerate(np.ndindex(batch)):
        rows_of = _rows_of(plan[flat] if isinstance(plan, list) else plan[k] if k else plan)
        for rows in _row_slices(x.shape[-2], y.shape[-2], x.device):
            points = [z.detach() for z in (x[k][rows], y[k])]
            points = [(z.double() if distance.name else z).requires_grad_() for z in points]
            with torch.enable_grad():
                C = distance(*points)
            if C.grad_fn is None:
                raise ValueError("metric must be differentiable for gradients in the points")
            share = rows_of(rows).to(C.dtype)
            block = torch.autograd.grad(C, points, share, allow_unused=True)
            for total, part in ((grad_x[k][rows], block[0]), (grad_y[k], block[1])):
                if part is not None:
                    total += part.to(total.dtype)
    return grad_x, grad_y


def _rows_of(plan: Tensor | LazyPlan) -> Callable[[slice], Tensor]:
    """Dense rows, float64, of a plan in any form."""
    if isinstance(plan, LazyPlan):
        return plan._rows
    if plan.is_sparse:
        plan = plan.coalesce()
        table = scipy.sparse.csr_array(
            (plan.values().cpu().numpy(), plan.indices().cpu().numpy()), shape=plan.shape
        )
        return partial(_table_rows, table.astype(np.float64), plan.device)
    return lambda rows: plan[rows].double()


def _round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The float64 tensor x in dtype, never smaller."""
    if dtype == x.dtype:
        return x
    y = x.to(dtype)
    return torch.where(y.double() < x, torch.nextafter(y, torch.full_like(y, math.inf)), y)


def _next_below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


# --------------------------------------------------------------------------------------------------
# Barycenters
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Histograms:
    """Validated input of a barycenter: K inputs on bins of some shape, W weight vectors."""

    p: Tensor  # (K, *shape), float64, each of mass 1
    mass: Tensor  # (K,), float64: of the inputs as given
    weights: Tensor  # (W, K), float64, each of sum 1
    total: Tensor | None  # (W, 1): what they summed to if they were to be scaled
    batch: tuple[int, ...]  # of the weights; W is its product
    cost: _AxisCost
    beta: float
    dtype: torch.dtype  # of the answer
    inputs: tuple[Tensor, Tensor | None]  # A and weights as given, for gradients
    give_back: Callable[[Tensor], Array]

    def mean(self, x: Tensor) -> Tensor:
        """sum_k weights_k x_k for x (W, K, *shape)."""
        return (self.weights.view(*self.weights.shape, *(1,) * (x.ndim - 2)) * x).sum(1)


@dataclass(frozen=True, eq=False)
class _Averages:
    """Iterate t for each weight vector: plan k is exp(log_A_i + log_B_j - s C_ij), s = 1 / eps.

    Its rows sum to q. row and column are the logarithms of what B, and the A that was extrapolated
    for this step, sum to under exp(-s C): with them as a reference the plans are near q_i p_j.
    """

    t: int
    s: float
    s_last: float
    log_A: Tensor  # (W, K, *shape), float64
    log_A_last: Tensor  # of iterate t - 1, at s_last
    log_q: Tensor | None  # (W, *shape)
    row: Tensor
    column: Tensor

    def potential(self) -> Tensor:
        """log A / s: near an optimal dual variable; the weighted sum over k vanishes."""
        return self.log_A / self.s

    def histogram(self) -> Tensor:
        return torch.softmax(self.log_q.flatten(1), 1).view_as(self.log_q)


def _stages(max_iter: int, temperature: Callable[[int], float]) -> Iterator[np.ndarray]:
    """The 1 / eps of all iterations, in stages on which they grow by equal amounts.

    So a kernel grows by a product with the same matrix throughout a stage. At the ends of stages
    eps is temperature(t).
    """
    t, s = 0, 0.0
    while t < max_iter:
        t_end = min(max_iter, max(t + 1, int(1.4 * t)))
        s_end = 1 / temperature(t_end)
        yield np.linspace(s, s_end, t_end - t + 1)[1:]
        t, s = t_end, s_end


def _growing_steps(problem: _Histograms) -> Callable[[int], float]:
    """The temperatures that :func:`barycenter` states; Algorithm 2 has beta / t."""
    beta, span = problem.beta, problem.cost.span or 1.0
    return lambda t: max(beta / t**2, span / t**2.5, 3e-6 * span)


def _averages(
    problem: _Histograms, max_iter: int, temperature: Callable[[int], float]
) -> Iterator[_Averages]:
    """IPOT-WB, yielding at the end of each stage.

    An iteration fits the plans' columns to the inputs, takes q as the geometric mean of their rows
    and fits the rows to q. It starts from A extrapolated: A_t^2 / A_{t-1} in equal steps.
    """
    start = torch.zeros_like(problem.p).expand(len(problem.weights), *problem.p.shape)
    x = _Averages(0, 0.0, 0.0, start, start, None, start, start)
    small = len(problem.cost.axes) == 1 and start[..., :1].numel() * start.shape[-1] ** 2 <= 2**22
    for stage in _stages(max_iter, temperature):
        found = _scaled_averages(problem, x, stage) if small else None
        x = found or _log_averages(problem, x, stage)
        yield x


def _log_averages(problem: _Histograms, x: _Averages, stage: np.ndarray) -> _Averages:
    """Iterations in the log domain, with the kernel applied axis by axis."""
    log_p, cost = problem.p.log(), problem.cost
    log_A, log_A_last, s, s_last = x.log_A, x.log_A_last, x.s, x.s_last
    for s_next in stage.tolist():
        growth = (s_next - s) / (s - s_last) if s > s_last else 0.0
        warm = torch.lerp(log_A_last, log_A, 1 + growth)
        column = cost.log_product(warm, s_next, transposed=True)
        row = cost.log_product(log_p - column, s_next)
        log_q = problem.mean(warm + row)
        log_A, log_A_last, s, s_last = log_q[:, None] - row, log_A, s_next, s
    return _Averages(x.t + len(stage), s, s_last, log_A, log_A_last, log_q, row, column)


def _scaled_averages(problem: _Histograms, x: _Averages, stage: np.ndarray) -> _Averages | None:
    """The same iterations on a cost matrix, by products with kernels relative to the last plans.

    None if they left the range in which that is accurate.
    """
    C, limit = problem.cost.axes[0].C, _span(torch.float64)
    xp = _library(C.device)
    scale = max(x.s, 1e-300)
    f, g = -x.row / scale, -x.column / scale
    exponent = (
        (f[..., :, None] + g[..., None, :]).sub_(C).clamp_(-limit / stage[-1], limit / stage[-1])
    )
    K = _native((exponent * stage[0]).exp_())
    G = _native(exponent.mul_(stage[1] - stage[0]).exp_()) if len(stage) > 1 else None
    p, weights = _native(problem.p), _native(problem.weights)[:, None, :]
    # Relative to f: log A_t - s_t f, which extrapolates as log A does.
    log_u, log_u_last = _native(x.log_A - x.s * f), _native(x.log_A_last - x.s_last * f)
    s, s_last = x.s, x.s_last
    with np.errstate(all="ignore"):  # overflow shows at the end
        for step, s_next in enumerate(stage.tolist()):
            growth = (s_next - s) / (s - s_last) if s > s_last else 0.0
            warm = log_u + growth * (log_u - log_u_last)
            u = xp.exp(warm)
            column = (u[..., None, :] @ K)[..., 0, :]
            v = p / column
            row = (K @ v[..., None])[..., 0]
            log_row = xp.log(row)
            log_q = (weights @ (warm + log_row))[..., 0, :]
            log_u, log_u_last = log_q[..., None, :] - log_row, log_u
            s, s_last = s_next, s
            if step + 1 < len(stage):
                K *= G
    u, v, log_u, log_u_last, log_q, log_row, column = (
        torch.as_tensor(y) for y in (u, v, log_u, log_u_last, log_q, log_row, column)
    )
    log_column = column.log()
    # Entries at the kernel's floor must not matter to any row, nor to a column with mass.
    spread = (log_row - v.sum(-1, keepdim=True).log()).amin()
    reach = log_column - u.sum(-1, keepdim=True).log()
    spread = torch.minimum(spread, torch.where(problem.p > 0, reach, math.inf).amin())
    if not bool((spread > 40 - limit) & log_u.isfinite().all() & log_column.isfinite().all()):
        return None
    return _Averages(
        x.t + len(stage),
        s,
        s_last,
        log_u + s * f,
        log_u_last + s_last * f,
        log_q,
        log_row - s * f,
        log_column - s * g,
    )


def _average(problem: _Histograms, max_iter: int, tol: float | None) -> Barycenter:
    """The iterate, after `max_iter` or once every gap is within tol."""
    for x in _averages(problem, max_iter, _growing_steps(problem)):
        if x.t == max_iter or (tol and x.t > 20):
            q = x.histogram()
            costs = _plan_costs(problem, x, q)
            found = _certified(problem, q, x.potential(), costs, tol or 0.0, x.t)
            if tol and _all(found.converged):
                break
    return found


def _plan_costs(problem: _Histograms, x: _Averages, q: Tensor) -> Tensor:
    """Costs (W, K) of plans between q and each input: optimal ones where that is cheap."""
    if problem.cost.is_monge:
        C, p = problem.cost.axes[0].C.cpu().numpy(), problem.p.cpu().numpy()
        costs = [[_monotone_cost(C, x, y) for y in p] for x in q.cpu().numpy()]
        return torch.tensor(costs, dtype=torch.float64, device=q.device)
    if q[0].numel() <= _BINS:
        return _optimal_costs(problem, q)
    return _rounded_costs(problem, x.log_A, problem.p.log() - x.column, x.s, q)


def _optimal_costs(problem: _Histograms, q: Tensor) -> Tensor:
    """W(q, p_k), (W, K)."""
    C = problem.cost.matrix()
    p = problem.p.flatten(1)
    q = q.flatten(1)[:, None].expand(-1, len(p), -1)
    return solve(C, q, p.expand_as(q), exact=True, sparse=True).value


def _rounded_costs(
    problem: _Histograms, log_A: Tensor, log_B: Tensor, s: float, q: Tensor
) -> Tensor:
    """Costs of the plans exp(log_A + log_B - s C), made feasible as in `_round_to_marginals`.

    No plan is formed: its sums are kernel products, and so is its cost, with K C for K along one
    axis at a time.
    """
    cost, p = problem.cost, problem.p
    bins = tuple(range(2, log_A.ndim))
    q = q[:, None]
    log_A = torch.minimum(log_A, q.log() - cost.log_product(log_B, s))
    log_B = torch.minimum(log_B, p.log() - cost.log_product(log_A, s, transposed=True))
    missing_q = (q - (log_A + cost.log_product(log_B, s)).exp()).clamp_min(0.0)
    missing_p = (p - (log_B + cost.log_product(log_A, s, transposed=True)).exp()).clamp_min(0.0)
    total = cost.lowest * (1 - missing_q.sum(bins))
    for k, axis in enumerate(cost.axes):
        total = total + (log_A + cost.log_product(log_B, s, weighted=k)).exp().sum(bins)
        others = tuple(i for i in bins if i != k + 2)
        left, right = (y.sum(others) if others else y for y in (missing_q, missing_p))
        total = total + (left * (right @ axis.C.T)).sum(-1) / right.sum(-1).clamp_min(1e-300)
    return total + 64 * _EPS * cost.largest


def _certified(
    problem: _Histograms, q: Tensor, f: Tensor, costs: Tensor, tol: float, n_iter: int
) -> Barycenter:
    """What potentials f (W, K, *shape) and plans of these costs (W, K) prove about q.

    The dual: f_ki + g_kj <= M_ij, and sum_k weights_k f_ki = 0 (more generally its minimum over i
    is added to the bound). Any f will do: g is its c-transform.
    """
    cost, dtype, batch = problem.cost, problem.dtype, problem.batch
    bins = tuple(range(2, f.ndim))
    # Two c-transforms of f less its largest entry: nowhere smaller, and within the cost's range.
    f = cost.c_transform(cost.c_transform(f - f.amax(bins, keepdim=True)), transposed=False)
    f = (f - problem.mean(f)[:, None]).to(dtype).double()
    slack = 32 * _EPS * cost.largest
    g = -_round_up(slack - cost.c_transform(f), dtype).double()
    gains = (g * problem.p).sum(bins)
    least = problem.mean(f).flatten(1).amin(1)
    lower = (problem.weights * gains).sum(1) + least - slack
    value = _round_up((problem.weights * costs).sum(1) + slack, dtype)
    lower_bound = torch.minimum(-_round_up(-lower, dtype), value)
    rounding = 8 * torch.finfo(dtype).eps * cost.largest + 1e-9 * cost.span + 4 * slack
    converged = value - lower_bound <= max(tol, 1e-9) * value.abs() + rounding

    def shaped(x: Tensor) -> Tensor:
        return problem.give_back(x.reshape((*batch, *x.shape[1:])))

    A, weights = problem.inputs
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in problem.inputs):
        ones = (1,) * len(bins)
        rates = (problem.weights / problem.mass).view(*gains.shape, *ones)
        in_A = rates * (g - gains.view(*gains.shape, *ones))
        in_A = in_A.movedim(1, -1).reshape((*batch, *A.shape)).to(dtype)
        in_weights = costs
        if problem.total is not None:
            in_weights = (costs - (problem.weights * costs).sum(1, keepdim=True)) / problem.total
        in_weights = in_weights.reshape((*batch, costs.shape[1])).to(dtype)
        shaped_value = _Envelope.apply(value.reshape(batch), (in_A, in_weights), A, weights)
    else:
        shaped_value = value.reshape(batch)
    return Barycenter(
        histogram=shaped(q),
        value=problem.give_back(shaped_value),
        lower_bound=shaped(lower_bound),
        gap=shaped(value - lower_bound),
        potentials=(shaped(f.movedim(1, -1)), shaped(g.movedim(1, -1))),
        n_iter=n_iter,
        converged=shaped(converged) if batch else bool(converged[0]),
    )


def _quantile_averages(problem: _Histograms) -> tuple[Tensor, Tensor, Tensor]:
    """The barycenters for a Monge cost, in closed form: q, f and the costs of the plans.

    The inputs' cumulative masses cut [0, 1] into intervals, on each of which input k stays in one
    bin j_k; an interval goes to the bin i with the least sum_k weights_k C_{i j_k} =: c(j). From
    one interval to the next one j_k grows by 1, and by the change of c the dual variable
    u_k = weights_k g_k changes: then sum_k u_k = c on all intervals, and <= c elsewhere, for c is
    submodular.
    """
    C = problem.cost.axes[0].C.cpu().numpy()
    bins, mass, which = _monotone_coupling(problem.p.cpu().numpy())
    n, count = len(C), bins.shape[1]
    found = []
    for weights in problem.weights.cpu().numpy():
        to, least = _best_bins(C, bins, weights)
        f = np.zeros((count, n))
        for k in np.flatnonzero(weights):
            u = np.concatenate(([least[0] / np.count_nonzero(weights)], np.diff(least)[which == k]))
            f[k] = (C - u.cumsum() / weights[k]).min(1)
        costs = [mass @ C[to, bins[:, k]] for k in range(count)]
        found.append((np.bincount(to, mass, n), f, np.array(costs)))
    return tuple(_tensor(np.stack(x), problem.p.device) for x in zip(*found))


def _monotone_coupling(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the quantiles of p (K, n) lie: the bins (S, K) of each interval, the mass (S,) of each,
    and the input that changes its bin from one to the next; S = K (n - 1) + 1.
    """
    count, n = p.shape
    ends = np.minimum(p.cumsum(1)[:, :-1], 1.0).ravel()
    order = np.argsort(ends, kind="stable")
    which = order // max(n - 1, 1)
    moves = np.zeros((len(order) + 1, count), np.int64)
    moves[np.arange(1, len(moves)), which] = 1
    mass = np.diff(np.concatenate(([0.0], ends[order], [1.0])))
    return moves.cumsum(0), mass, which


def _monotone_cost(C: np.ndarray, q: np.ndarray, p: np.ndarray) -> float:
    """W(q, p) for a Monge cost."""
    bins, mass, _ = _monotone_coupling(np.stack((q, p)))
    return float(mass @ C[bins[:, 0], bins[:, 1]])


def _best_bins(
    C: np.ndarray, bins: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bin i of least cost sum_k weights_k C_{i j_k} for each row j of bins, and that cost."""
    to, least = np.empty(len(bins), np.int64), np.empty(len(bins))
    for rows in _row_slices(len(bins), len(C), torch.device("cpu")):
        total = sum(weights[k] * C[:, bins[rows, k]] for k in np.flatnonzero(weights))
        to[rows] = total.argmin(0)
        least[rows] = total[to[rows], np.arange(total.shape[1])]
    return to, least


def _restricted_programmes(problem: _Histograms, near: _Averages) -> tuple[Tensor, Tensor, Tensor]:
    """Optimal q and f, from near-optimal ones, and the costs of optimal plans."""
    q, f = near.histogram(), near.potential()
    C = problem.cost.matrix().cpu().numpy()
    p, shape = problem.p.flatten(1).cpu().numpy(), q.shape[1:]
    found = [
        _restricted_programme(C, p, weights, x, y)
        for weights, x, y in zip(
            problem.weights.cpu().numpy(), q.flatten(1).cpu().numpy(), f.flatten(2).cpu().numpy()
        )
    ]
    q, f = (_tensor(np.stack(x), problem.p.device) for x in zip(*found))
    q, f = q.reshape(-1, *shape), f.reshape(len(q), -1, *shape)
    return q, f, _optimal_costs(problem, q)


def _restricted_programme(
    C: np.ndarray, p: np.ndarray, weights: np.ndarray, q: np.ndarray, f: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The linear programme of one barycenter, by column generation.

    Its variables are q and the plans' arcs: those of optimal plans for the q that is known, and of
    each row and column the arcs of least reduced cost. HiGHS's dual variables price all others, and
    those that would improve the solution are added until there are none.
    """
    n = len(C)
    span = float(C.max() - C.min()) or 1.0
    C = (C - C.min()) / span
    f, used = f / span, np.flatnonzero(weights)
    arcs = []
    for k in used:
        reduced = C - f[k][:, None]
        reduced -= reduced.min(0)
        flow = solve(C, q, p[k], exact=True, sparse=True).plan
        arcs.append(np.union1d(_least_arcs(reduced, _ARCS), flow.row * n + flow.col))
    while True:
        q, f, g = _solve_programme(C, p, weights, used, arcs)
        fresh = False
        for i, k in enumerate(used):
            reduced = C - f[k][:, None] - g[k]
            wrong = np.flatnonzero(reduced.ravel() < -1e-9)
            wrong = np.setdiff1d(np.intersect1d(wrong, _least_arcs(reduced, _ARCS)), arcs[i])
            arcs[i], fresh = np.union1d(arcs[i], wrong), fresh or len(wrong) > 0
        if not fresh:
            return q, f * span


def _least_arcs(reduced: np.ndarray, count: int) -> np.ndarray:
    """Flat numbers of the `count` least entries of each row and of each column."""
    n, m = reduced.shape
    count = min(count, n, m)
    columns = np.argpartition(reduced, count - 1, axis=1)[:, :count]
    rows = np.argpartition(reduced, count - 1, axis=0)[:count]
    return np.union1d(np.arange(n)[:, None] * m + columns, rows * m + np.arange(m))


def _solve_programme(
    C: np.ndarray, p: np.ndarray, weights: np.ndarray, used: np.ndarray, arcs: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, f and g of the programme on these arcs of the inputs in use."""
    (count, n), blocks, costs = p.shape, [], []
    for k, numbers in zip(used, arcs):
        rows, columns = np.divmod(numbers, n)
        one = (np.ones(len(numbers)), np.arange(len(numbers)))
        shape = (n, len(numbers))
        table = [scipy.sparse.csr_array((one[0], (x, one[1])), shape) for x in (rows, columns)]
        blocks.append(scipy.sparse.vstack(table))
        costs.append(weights[k] * C[rows, columns])
    both = scipy.sparse.vstack((scipy.sparse.eye_array(n), scipy.sparse.csr_array((n, n))))
    matrix = scipy.sparse.hstack(
        (scipy.sparse.block_diag(blocks), -scipy.sparse.vstack([both] * len(used))), format="csc"
    )
    right = np.concatenate([np.concatenate((np.zeros(n), p[k])) for k in used])
    programme = {"A_eq": matrix, "b_eq": right, "method": "highs"}
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    objective = np.concatenate((*costs, np.zeros(n)))
    found = scipy.optimize.linprog(objective, options=options, **programme)
    if found.status != 0:  # presolve takes masses near 1e-12 for contradictions
        found = scipy.optimize.linprog(
            objective, options=options | {"presolve": False}, **programme
        )
    if found.status != 0:
        raise RuntimeError(
            f"HiGHS did not solve the barycenter's linear programme: {found.message}"
        )
    q = found.x[-n:].clip(0)
    dual = np.zeros((count, 2, n))
    dual[used] = found.eqlin.marginals.reshape(-1, 2, n) / weights[used, None, None]
    return q / q.sum(), dual[:, 0], dual[:, 1]


class _Axis:
    """Cost (n, m) between bins along one axis of a grid, in one direction, and its kernels."""

    def __init__(self, C: Tensor):
        self.C = C
        m = C.shape[1]
        self.widths = sorted({math.ceil(m / k) for k in range(1, m + 1)}, reverse=True)
        self.spreads: dict[int, float] = {}
        self.kernels: dict = {}

    def _blocks(self, width: int) -> Tensor:
        """(blocks, n, width): the columns in blocks, the last filled up with the last column."""
        m = self.C.shape[1]
        missing = -m % width
        C = torch.cat((self.C, self.C[:, -1:].expand(-1, missing)), 1) if missing else self.C
        return C.unflatten(1, (-1, width)).movedim(1, 0)

    def _width(self, s: float) -> int:
        """Of the blocks for 1 / eps = s: so narrow that no entry of a kernel underflows."""
        for width in self.widths:
            if width not in self.spreads:
                C = self._blocks(width)
                self.spreads[width] = float((C.amax(2) - C.amin(2)).amax())
            if s * self.spreads[width] <= _span(torch.float64):
                return width
        raise AssertionError("a block of one column has no spread")

    def _kernel(self, s: float, weighted: bool) -> tuple[Tensor, Tensor]:
        """exp(-s (C - low)) and s low, low (blocks, 1, n) the least cost of a row in a block."""
        if self.kernels.get("s") != s:
            self.kernels = {"s": s}
        if weighted not in self.kernels:
            C = self._blocks(self._width(s)).mT
            low = C.amin(1, keepdim=True)
            K = (low - C).mul_(s).exp_()
            self.kernels[weighted] = K * (C - self.C.amin()) if weighted else K, s * low
        return self.kernels[weighted]

    def log_product(self, x: Tensor, s: float, weighted: bool = False) -> Tensor:
        """log sum_j exp(x_j - s C_ij) for x (..., m), in blocks of rows of x.

        Relative to the largest x_j of a block and to the least cost in it a block's sum neither
        under- nor overflows, and what underflows in it is negligible. So is a block that underflows
        relative to the one with the largest of these. Hence exponents end at -700, below which exp
        takes seven times as long.
        """
        K, low = self._kernel(s, weighted)
        blocks, width, n = K.shape
        m = x.shape[-1]
        out = x.new_empty(x[..., 0].numel(), n)
        rows = x.reshape(-1, m)
        for part in _row_slices(len(rows), blocks * max(n, width), x.device):
            y = torch.nn.functional.pad(rows[part], (0, blocks * width - m), value=-math.inf)
            y = y.unflatten(1, (blocks, width)).movedim(1, 0)
            top = y.amax(2, keepdim=True).clamp_min_(-1e300)
            sums = (y - top).clamp_min_(-700.0).exp_() @ K
            if blocks == 1:
                torch.sub(sums[0].log_(), low[0] - top[0], out=out[part])
            else:
                share = top - low
                largest = share.amax(0)
                share.sub_(largest).clamp_min_(-700.0)
                sums = sums.mul_(share.exp_()).sum(0)
                torch.add(sums.log_(), largest, out=out[part])
        return out.view(*x.shape[:-1], n)

    def least(self, x: Tensor) -> Tensor:
        """min_j (x_j + C_ij) for x (..., m)."""
        out = x.new_empty(x[..., 0].numel(), len(self.C))
        rows = x.reshape(-1, x.shape[-1])
        for part in _row_slices(len(rows), self.C.numel(), x.device):
            out[part] = (rows[part][:, None, :] + self.C).amin(2)
        return out.view(*x.shape[:-1], -1)


class _AxisCost:
    """The cost between the bins of a grid, a sum of one cost (n, n) for each axis.

    A cost matrix between n bins is the case of one axis.
    """

    def __init__(self, costs: list[Tensor], symmetric: bool = False):
        self.axes = [_Axis(C) for C in costs]
        self.transposed = self.axes if symmetric else [_Axis(C.mT.contiguous()) for C in costs]
        self.lowest = sum(float(C.amin()) for C in costs)
        highest = sum(float(C.amax()) for C in costs)
        self.span, self.largest = highest - self.lowest, max(abs(highest), abs(self.lowest))

    def log_product(
        self, x: Tensor, s: float, transposed: bool = False, weighted: int | None = None
    ) -> Tensor:
        """log sum_j exp(x_j - s C_ij), with sums over all axes; if weighted, of the terms times the
        cost along that axis less its lowest.
        """
        for k, axis in enumerate(self.transposed if transposed else self.axes):
            along = k - len(self.axes)
            x = axis.log_product(x.movedim(along, -1), s, k == weighted).movedim(-1, along)
        return x

    def c_transform(self, f: Tensor, transposed: bool = True) -> Tensor:
        """min_i (C_ij - f_i), or of g_j in place of f_i min_j (C_ij - g_j) if not transposed."""
        x = -f
        for k, axis in enumerate(self.transposed if transposed else self.axes):
            along = k - len(self.axes)
            x = axis.least(x.movedim(along, -1)).movedim(-1, along)
        return x

    @cached_property
    def is_monge(self) -> bool:
        """Whether C_ij + C_{i+1,j+1} <= C_{i+1,j} + C_{i,j+1}, up to rounding, on a line."""
        if len(self.axes) > 1:
            return False
        C = self.axes[0].C
        along, across = C[:-1, :-1] + C[1:, 1:], C[1:, :-1] + C[:-1, 1:]
        return not bool((along - across > 4 * _EPS * (along.abs() + across.abs())).any())

    def matrix(self) -> Tensor:
        """The cost between all pairs of bins, in C order."""
        total = self.axes[0].C
        for axis in self.axes[1:]:
            n, m = len(total), len(axis.C)
            total = (total[:, None, :, None] + axis.C[:, None, :]).reshape(n * m, n * m)
        return total


# --------------------------------------------------------------------------------------------------
# Input
# --------------------------------------------------------------------------------------------------


def _as_tensors(**arrays: Array | None) -> tuple[list[Tensor | None], Callable[[Tensor], Array]]:
    """Tensors of one dtype on one device, and the way back to the caller's kind of array.

    Lists and integer arrays take the dtype of the floating-point ones, float64 if there are none.
    """
    torch_names = [name for name, x in arrays.items() if isinstance(x, Tensor)]
    numpy_names = [name for name, x in arrays.items() if isinstance(x, np.ndarray)]
    if torch_names and numpy_names:
        raise TypeError(
            f"NumPy and torch inputs are mixed: {', '.join(torch_names)} torch, "
            f"{', '.join(numpy_names)} NumPy; give all of one kind"
        )
    for name in torch_names:
        if arrays[name].layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got layout {arrays[name].layout}")
    devices = {arrays[name].device for name in torch_names}
    if len(devices) > 1:
        raise ValueError(
            f"inputs must be on one device; got {', '.join(sorted(map(str, devices)))}"
        )
    device = devices.pop() if devices else torch.device("cpu")

    dtypes = {}
    for name, x in arrays.items():
        if x is None:
            continue
        if name not in torch_names:
            try:
                arrays[name] = x = np.asarray(x)
            except ValueError as error:
                raise ValueError(f"{name} is not a rectangular array: {error}") from None
        kind = x.dtype.name if isinstance(x, np.ndarray) else str(x.dtype).removeprefix("torch.")
        if kind in ("float32", "float64") and (name in torch_names or name in numpy_names):
            dtypes[name] = kind
        elif not kind.startswith(("int", "uint", "bool", "float32", "float64")):
            raise TypeError(f"{name} must be float32 or float64 (or integers); got {kind}")
    if len(set(dtypes.values())) > 1:
        given = ", ".join(f"{name} {kind}" for name, kind in dtypes.items())
        raise TypeError(f"inputs must have one dtype; got {given}")
    dtype = next(iter(dtypes.values()), "float64")

    def to_tensor(x):
        if x is None or isinstance(x, Tensor):
            return x if x is None else x.to(getattr(torch, dtype))
        x = np.require(x, dtype=dtype, requirements=["C", "W"])
        return torch.from_numpy(x).to(device)

    def give_back(x):
        if x.is_floating_point():
            x = x.to(getattr(torch, dtype))
        return x if torch_names else x.cpu().numpy()[()]

    return [to_tensor(x) for x in arrays.values()], give_back


def _read_problem(
    M: Array,
    a: Array | None,
    b: Array | None,
    beta: float | Array | None,
    names: tuple[str, str, str] = ("M", "a", "b"),
    precise: bool = False,
    inputs: tuple[Tensor | None, ...] | None = None,
    give_back: Callable[[Tensor], Array] | None = None,
) -> _Problem:
    """Checked inputs, weights scaled to mass 1; `precise` computes in float64 in any case.

    What was read already comes with the `inputs` that the gradients belong to.
    """
    if M is None:
        raise TypeError(f"{names[0]} must be an array of shape (..., n, m); got None")
    if inputs is None:
        (M, a, b), give_back = _as_tensors(**dict(zip(names, (M, a, b))))
        inputs = (M, a, b)
    C = M.detach()
    if C.ndim < 2 or C.numel() == 0:
        raise ValueError(
            f"{names[0]} must have shape (..., n, m) with n, m >= 1; got {tuple(C.shape)}"
        )
    against = f"{names[0]} of shape {tuple(C.shape)}"
    C = C.double() if precise else C
    a, b, mass_a, mass_b = _read_weights((a, b), C.shape[-2:], names[1:], against, M)
    try:
        batch = np.broadcast_shapes(C.shape[:-2], a.shape[:-1], b.shape[:-1])
    except ValueError:
        raise ValueError(
            f"batch dimensions do not match: {names[0]} {tuple(C.shape[:-2])}, "
            f"{names[1]} {tuple(a.shape[:-1])}, {names[2]} {tuple(b.shape[:-1])}"
        ) from None
    if math.prod(batch) == 0:
        raise ValueError(f"the batch is empty: {names[0]} has shape {tuple(C.shape)}")
    low, high = _cost_range(names[0], C)
    if (inputs[-2] is not None or inputs[-1] is not None) and bool((a == 0).any() | (b == 0).any()):
        # Points without mass have no say in what the cost's range is.
        whole = C.expand(*batch, *C.shape[-2:])
        costs = (_MatrixRows(whole[k]) for k in np.ndindex(batch))
        low, high = _active_span(costs, a.expand(*batch, -1), b.expand(*batch, -1))
    low, high = low.expand(batch), high.expand(batch)
    # Algorithm 1 ends on the columns, and its plan carries their mass; POT takes that of the rows.
    mass = (mass_b if precise else mass_a).expand(batch)
    _check_size(mass, low, high, C.dtype)
    return _Problem(
        C.expand(*batch, *C.shape[-2:]),
        a.expand(*batch, -1),
        b.expand(*batch, -1),
        _proximal_step(beta, low, high),
        low,
        high,
        mass,
        C.dtype,
        inputs,
        give_back,
    )


def _active_span(costs: Iterable[_Rows], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest cost between points with mass, of each problem of a batch."""
    batch, spans = a.shape[:-1], []
    for k, cost in zip(np.ndindex(batch), costs):
        spans.append(cost.restricted(a[k].nonzero().ravel(), b[k].nonzero().ravel()).span())
    low, high = (torch.stack(x).reshape(batch) for x in zip(*spans))
    return low, high


def _read_clouds(
    costs: Iterable[_CloudRows],
    batch: tuple[int, ...],
    inputs: tuple[Tensor | None, ...],
    beta: float | Array | None,
    give_back: Callable[[Tensor], Array],
    line: bool,
) -> _Problem:
    """As `_read_problem`, for costs that are not formed; the clouds are checked before."""
    dtype = inputs[0].dtype
    shapes = f"X_a {tuple(inputs[0].shape)} and X_b {tuple(inputs[1].shape)}"
    sizes = inputs[0].shape[-2], inputs[1].shape[-2]
    a, b, mass, _ = _read_weights(inputs[2:], sizes, ("a", "b"), shapes, inputs[0])
    a, b, mass = a.expand(*batch, -1), b.expand(*batch, -1), mass.expand(batch)
    if line:
        ends = [cost.ends().span() for cost in costs]
        low, high = (torch.stack(x).reshape(batch) for x in zip(*ends))
    else:
        low, high = _active_span(costs, a, b)
    _check_size(mass, low, high, dtype)
    step = _proximal_step(beta, low, high)
    return _Problem(None, a, b, step, low, high, mass, dtype, inputs, give_back)


def _read_weights(
    given: tuple[Tensor | None, Tensor | None],
    sizes: tuple[int, int],
    names: tuple[str, str],
    against: str,
    like: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of mass 1, and their masses as given; float64."""
    read = []
    for name, x, size in zip(names, given, sizes):
        if x is None:
            x = torch.full((size,), 1 / size, dtype=torch.float64, device=like.device)
            mass = x.sum()
        elif x.ndim < 1 or x.shape[-1] != size:
            raise ValueError(
                f"{name} must have shape (..., {size}) to match {against}; got {tuple(x.shape)}"
            )
        else:
            x = x.detach().double()
            mass = _check_weights(name, x)
        read.append((x, mass))
    (a, mass_a), (b, mass_b) = read
    if given[0] is None and given[1] is None:
        return a, b, mass_a, mass_b
    tolerance = 1e-6 if like.dtype == torch.float64 else 1e-4
    if bool(((mass_a - mass_b).abs() > tolerance * torch.maximum(mass_a, mass_b)).any()):
        raise ValueError(
            f"{names[0]} and {names[1]} must have equal mass (to {tolerance:g} relative); "
            f"got {_brief(mass_a)} and {_brief(mass_b)}"
        )
    return a / mass_a[..., None], b / mass_b[..., None], mass_a, mass_b


def _read_histograms(
    A: Array | None,
    M: Array | None,
    weights: Array | None,
    grid: float | tuple[float, ...] | None,
    beta: float | None,
    normalize: bool,
) -> _Histograms:
    """Checked inputs of a barycenter, in float64; A's columns scaled to mass 1."""
    if A is None:
        raise TypeError("A must be an array of shape (n, K) or (*grid, K); got None")
    if (M is None) == (grid is None):
        raise ValueError(
            "give either the cost matrix M or the spacing of the grid; got "
            + ("neither" if M is None else "both")
        )
    (A, M, weights), give_back = _as_tensors(A=A, M=M, weights=weights)
    dims = (2,) if grid is None else (2, 3, 4)
    if A.ndim not in dims or A.numel() == 0:
        shape = "(n, K)" if grid is None else "(*grid, K) with one to three axes of a grid"
        raise ValueError(f"A must have shape {shape}, K >= 1; got {tuple(A.shape)}")
    p, count = A.detach().double().movedim(-1, 0), A.shape[-1]
    _check_weights("A's columns", p.flatten(1))
    mass = p.flatten(1).sum(1)
    if bool((mass < 1e-280).any()):
        raise ValueError(f"A's columns must have a mass above 1e-280; got {_brief(mass)}")
    p = p / mass.view(-1, *(1,) * (p.ndim - 1))
    shares, total = _read_shares(weights, count, p, normalize)
    if grid is None:
        n = len(A)
        if M.shape != (n, n):
            raise ValueError(
                f"M must have shape (n, n) = {(n, n)} like A's rows; got {tuple(M.shape)}"
            )
        C = M.detach().double()
        _cost_range("M", M.detach())
        cost = _AxisCost([C])
    else:
        cost = _grid_cost(grid, p)
        if not cost.span < torch.finfo(A.dtype).max / 1e14:
            raise ValueError(
                f"grid is too large for {A.dtype}: the largest cost is {cost.span:.3g}"
            )
    span = torch.tensor(cost.span, dtype=torch.float64)
    step = _proximal_step(cost.span or 1.0 if beta is None else beta, 0 * span, span)
    return _Histograms(
        p,
        mass,
        shares.reshape(-1, count),
        total.reshape(-1, 1) if normalize else None,
        tuple(shares.shape[:-1]),
        cost,
        float(step),
        A.dtype,
        (A, weights),
        give_back,
    )


def _read_shares(
    weights: Tensor | None, count: int, like: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Weights (..., K) of a barycenter's inputs, float64, of sum 1; and what they summed to."""
    if weights is None:
        weights = like.new_full((count,), 1 / count, dtype=torch.float64)
    if weights.ndim < 1 or weights.shape[-1] != count or weights.numel() == 0:
        raise ValueError(
            f"weights must have shape (..., {count}), one for each input; got "
            f"{tuple(weights.shape)}"
        )
    shares = weights.detach().double()
    _check_weights("weights", shares)
    total = shares.sum(-1, keepdim=True)
    if not normalize and not bool(((total - 1).abs() <= 1e-6).all()):
        raise ValueError(
            f"weights must sum to 1; they sum to {_brief(total)} (normalize=True scales them)"
        )
    return shares / total, total


def _grid_cost(grid: float | tuple[float, ...], p: Tensor) -> _AxisCost:
    """Squared distances along the axes of histograms p (K, *shape)."""
    sizes = p.shape[1:]
    spacing = [grid] * len(sizes) if np.ndim(grid) == 0 else list(grid)
    if len(spacing) != len(sizes):
        raise ValueError(
            f"grid must be one spacing or one for each of A's {len(sizes)} axes before the last; "
            f"got {len(spacing)}"
        )
    costs = []
    for h, n in zip(spacing, sizes):
        h = _as_float("grid", h)
        if not 0 < h * n < 1e100:
            raise ValueError(f"grid must have positive, finite spacings; got {h:g}")
        x = h * torch.arange(n, dtype=torch.float64, device=p.device)
        costs.append((x[:, None] - x).square_())
    return _AxisCost(costs, symmetric=True)


def _read_free_support(
    X_list: list[Array],
    n_points: int | None,
    a_list: list[Array] | None,
    b: Array | None,
    weights: Array | None,
    init: Array | None,
    normalize: bool,
    seed: int,
) -> tuple[list[Tensor], list[Tensor], Tensor, list[float], Tensor, Callable[[Tensor], Array]]:
    """Clouds, their weights, those of the barycenter's points and of the clouds, and the start."""
    if not isinstance(X_list, (list, tuple)) or len(X_list) == 0:
        raise TypeError("X_list must be a list of at least one array of shape (m, d)")
    count = len(X_list)
    a_list = [None] * count if a_list is None else a_list
    if not isinstance(a_list, (list, tuple)) or len(a_list) != count:
        raise ValueError(f"a_list must be a list of {count} arrays, one for each cloud")
    if n_points is None and init is None:
        raise ValueError("give n_points, or the points to start from as init")
    named = {f"X_list[{k}]": X for k, X in enumerate(X_list)}
    named |= {f"a_list[{k}]": a for k, a in enumerate(a_list)}
    tensors, give_back = _as_tensors(**named, b=b, weights=weights, init=init)
    tensors = [x if x is None else x.detach() for x in tensors]
    clouds, masses, (b, weights, init) = tensors[:count], tensors[count:-3], tensors[-3:]
    for k, X in enumerate(clouds):
        if X is None or X.ndim != 2 or X.shape[1] != clouds[0].shape[-1]:
            raise ValueError(
                "X_list must hold arrays of shape (m, d) with one d; got "
                f"{None if X is None else tuple(X.shape)} at {k}"
            )
        _check_clouds(X, X, masses[k], masses[k])
        if masses[k] is None:
            masses[k] = X.new_full((len(X),), 1 / len(X))
        elif masses[k].shape != (len(X),):
            raise ValueError(
                f"a_list[{k}] must have shape ({len(X)},); got {tuple(masses[k].shape)}"
            )
        _check_weights(f"a_list[{k}]", masses[k])
    if init is None:
        _check_count("n_points", n_points)
        _check_count("seed", seed, least=0)
        draw = np.random.default_rng(seed)
        chance = torch.cat([a.double() / a.double().sum() for a in masses]).cpu().numpy() / count
        few = np.count_nonzero(chance) < n_points
        chosen = draw.choice(len(chance), n_points, replace=few, p=chance / chance.sum())
        init = torch.cat(clouds)[torch.from_numpy(chosen).to(clouds[0].device)]
    elif init.ndim != 2 or init.shape[1] != clouds[0].shape[1] or n_points not in (None, len(init)):
        wanted = "n_points" if n_points is None else n_points
        raise ValueError(
            f"init must have shape ({wanted}, {clouds[0].shape[1]}); got {tuple(init.shape)}"
        )
    if b is None:
        b = init.new_full((len(init),), 1 / len(init)) * masses[0].sum()
    if not bool(init.isfinite().all()):
        raise ValueError("init must be finite; got NaN or inf")
    if b.shape != (len(init),) or not bool(((b > 0) & b.isfinite()).all()):
        raise ValueError(
            f"b must have {len(init)} entries, all positive and finite; got {b.tolist()}"
        )
    for name, mass in (("b", b), *((f"a_list[{k}]", a) for k, a in enumerate(masses))):
        if not math.isclose(float(mass.sum()), float(masses[0].sum()), rel_tol=1e-6):
            raise ValueError(
                f"{name} must have the mass of a_list[0], {float(masses[0].sum()):.9g}; got "
                f"{float(mass.sum()):.9g}"
            )
    shares, _ = _read_shares(weights, count, clouds[0], normalize)
    if shares.ndim != 1:
        raise ValueError(f"weights must have shape ({count},); got {tuple(shares.shape)}")
    return clouds, masses, b, shares.tolist(), init, give_back


def _check_size(mass: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype) -> None:
    if not bool((mass * torch.maximum(low.abs(), high.abs()) < torch.finfo(dtype).max / 4).all()):
        raise ValueError(
            f"mass times cost must not overflow {dtype}; got masses {_brief(mass)} and costs "
            f"from {float(low.min()):.3g} to {float(high.max()):.3g}"
        )


def _check_clouds(
    X_a: Tensor | None, X_b: Tensor | None, a: Tensor | None, b: Tensor | None
) -> tuple[int, ...]:
    """The batch dimensions of all."""
    for name, X in (("X_a", X_a), ("X_b", X_b)):
        if X is None:
            raise TypeError(f"{name} must be an array of shape (..., n, d); got None")
        if X.ndim < 2 or X.numel() == 0:
            raise ValueError(
                f"{name} must have shape (..., n, d) with n, d >= 1; got {tuple(X.shape)}"
            )
        if not bool(X.isfinite().all()):
            bad = int((~X.isfinite()).sum())
            raise ValueError(f"{name} must be finite; {bad} of {X.numel()} entries are NaN or inf")
        limit = torch.finfo(X.dtype).max ** 0.5 / 1e8  # its square, and steps, still fit
        if not bool((X.abs() < limit).all()):
            raise ValueError(f"{name} must be below {limit:.3g} in size, for its dtype {X.dtype}")
    if X_a.shape[-1] != X_b.shape[-1]:
        raise ValueError(
            f"X_a and X_b must have the same last dimension; got {tuple(X_a.shape)} and "
            f"{tuple(X_b.shape)}"
        )
    shapes = [X_a.shape[:-2], X_b.shape[:-2], *(x.shape[:-1] for x in (a, b) if x is not None)]
    try:
        batch = np.broadcast_shapes(*shapes)
    except ValueError:
        batch = None
    if batch is None or 0 in batch:
        given = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"batch dimensions do not match or are empty: those given are {given}")
    return batch


def _check_options(
    max_iter: int, inner_iter: int, tol: float | None, exact: bool, sparse: bool
) -> float | None:
    """The relative gap to reach; None for a number of iterations."""
    _check_count("max_iter", max_iter)
    _check_count("inner_iter", inner_iter)
    if tol is not None:
        tol = _as_float("tol", tol)
        if not 0 <= tol < math.inf:
            raise ValueError(f"tol must be None or a finite number >= 0; got {tol!r}")
    if sparse and not exact:
        raise ValueError("sparse plans are those of exact=True; got sparse=True without it")
    return 0.0 if exact else tol


def _cost_range(name: str, C: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest cost of each problem, float64; refuses NaN and inf."""
    low, high = C.amin((-2, -1)).double(), C.amax((-2, -1)).double()
    limit = torch.finfo(C.dtype).max / 1e14  # steps of up to 1e12 times the range still fit
    if not bool(((high < limit) & (low > -limit)).all()):
        bad = int((~torch.isfinite(C)).sum())
        if bad:
            raise ValueError(f"{name} must be finite; {bad} of {C.numel()} entries are NaN or inf")
        raise ValueError(f"{name} must be below {limit:.3g} in size, for its dtype {C.dtype}")
    return low, high


def _check_weights(name: str, x: Tensor) -> Tensor:
    """Their mass, (...), which is positive and finite."""
    mass = x.sum(-1)
    if x.numel() == 0 or (
        float(x.amin()) >= 0 and 0 < float(mass.amin()) <= float(mass.amax()) < math.inf
    ):
        return mass
    if not bool(mass.isfinite().all()):
        raise ValueError(f"{name} must be finite; got NaN or inf")
    if bool((x < 0).any()):
        raise ValueError(f"{name} must be non-negative; the smallest entry is {float(x.min()):.6g}")
    raise ValueError(f"{name} must have positive mass; the total is zero")


def _proximal_step(beta: float | Array | None, low: Tensor, high: Tensor) -> Tensor:
    """beta with shape (..., 1), float64; 0.05 of the cost's range if None."""
    spread = high - low
    spread = torch.where(spread > 0, spread, 1.0)
    if beta is None:
        step = 0.05 * spread
    else:
        try:
            step = torch.as_tensor(beta, dtype=torch.float64, device=low.device).detach()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"beta must be a number or an array of numbers; got {beta!r}") from None
        if step.ndim and step.shape != spread.shape:
            raise ValueError(
                f"beta must have the batch shape {tuple(spread.shape)}; got {tuple(step.shape)}"
            )
        if not bool((torch.isfinite(step) & (step > 0)).all()):
            raise ValueError(f"beta must be positive and finite; got {_brief(step)}")
        if bool((step < 1e-12 * spread).any()):
            raise ValueError(
                f"beta must be at least 1e-12 of the cost's range {_brief(spread)}; "
                f"got {_brief(step)}"
            )
        # From here on the plan is the product of the weights to rounding, whatever beta is.
        step = torch.minimum(step, 1e12 * spread)
    return step.clamp_min(1e-28)[..., None]


def _tensor(x: np.ndarray | float, device: torch.device) -> Tensor:
    dtype = torch.float64 if isinstance(x, float) else None
    return torch.as_tensor(x, dtype=dtype, device=device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # NumPy's cost nothing until they are touched.
    return torch.from_numpy(np.zeros(shape, str(dtype).removeprefix("torch.")))


def _sparse(
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    shape: tuple[int, int],
    give_back: Callable[[Tensor], Array],
) -> scipy.sparse.coo_matrix | Tensor:
    """A sparse matrix of the caller's kind."""
    values = give_back(values)
    if isinstance(values, Tensor):
        indices = torch.stack((rows, columns))
        return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
    return scipy.sparse.coo_matrix((values, (rows.cpu().numpy(), columns.cpu().numpy())), shape)


def _check_count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def _as_float(name: str, value: float) -> float:
    try:
        if isinstance(value, (str, bool)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number; got {value!r}") from None


def _brief(x: Tensor) -> str:
    """A number, or the range of several."""
    low, high = float(x.min()), float(x.max())
    return f"{low:.9g}" if low == high else f"{low:.9g} to {high:.9g}"
