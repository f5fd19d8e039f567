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

    solve             any cost matrix or batch of them: plan, value, bounds, potentials, gradients
    ipot_WD           Algorithm 1 of the paper, with the signature of its published module
    ipot_barycenter   Algorithm 2 of the paper, likewise

This file needs only NumPy and PyTorch and can be copied into any project.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

__all__ = ["Transport", "ipot_WD", "ipot_barycenter", "solve"]

Array = np.ndarray | Tensor


# --------------------------------------------------------------------------------------------------
# Public functions
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Transport:
    """A transport plan and the proof of how good it is; `lower_bound <= W <= value`.

    Arrays are of the kind (NumPy or torch), dtype and device that :func:`solve` was given; `...`
    are its batch dimensions, and without any the scalars are plain 0-d values.

    Attributes
    ----------
    plan : array, shape (..., n, m)
        Non-negative, with marginals a and b to rounding.
    value : array, shape (...)
        Cost of the plan, in units of cost times mass: an upper bound on W. With torch inputs that
        require gradients, `value.backward()` gives the envelope gradient (Theorem B.1 of the
        paper): the plan in M and the potentials in a and b.
    lower_bound : array, shape (...)
        Dual value of the potentials: a lower bound on W.
    gap : array, shape (...)
        `value - lower_bound`, never negative.
    potentials : (f, g), shapes (..., n) and (..., m)
        Dual feasible: f_i + g_j <= M_ij for all i, j, also where a weight is zero.
    n_iter : int
        Proximal iterations that were run.
    converged : bool or boolean array, shape (...)
        Whether the gap is at most `tol * |value|`, up to the rounding of the dtype; without a
        `tol`, whether it is zero up to rounding.
    """

    plan: Array = field(repr=False)
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
) -> Transport:
    """Optimal transport for a cost matrix, with a certified gap.

    Solves min <P, M> over P >= 0, P 1 = a, P^T 1 = b by the proximal-point iteration in exponent
    form and rounds the plan to its marginals (Altschuler, Weed, Rigollet 2017, Algorithm 2).

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
        Proximal step in units of the cost. None takes 0.05 of the cost's range, good from 1 to 16
        dimensions; a smaller one is not better within a given number of iterations.
    max_iter : int
        Most proximal iterations; exactly as many are run if `tol` is None.
    inner_iter : int
        Sinkhorn sweeps in one proximal iteration (L in the paper).
    tol : float, optional
        Stop once `gap <= tol * |value|`, looked at every few iterations; in a batch once it holds
        for every problem. Read `converged` for the outcome: where W is zero no relative gap exists,
        and only a gap of zero to rounding counts.

    Returns
    -------
    Transport

    Raises
    ------
    TypeError
        NumPy mixed with torch, mixed dtypes, not float32 or float64, counts that are not integers.
    ValueError
        Shapes that do not match, empty arrays, NaN or inf, negative weights, no mass or unequal
        mass, devices that differ, beta <= 0, max_iter or inner_iter < 1, tol < 0.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([0.0, 1.0, 3.0]), np.array([5.0, 6.0, 8.0])
    >>> transport = solve((x[:, None] - y[None, :]) ** 2, tol=1e-6)
    >>> bool(transport.lower_bound <= 25 <= transport.value), transport.converged
    (True, True)
    """
    _check_count("max_iter", max_iter)
    _check_count("inner_iter", inner_iter)
    if tol is not None and not 0 <= _as_float("tol", tol) < math.inf:
        raise ValueError(f"tol must be None or a finite number >= 0; got {tol!r}")
    problem = _read_problem(M, a, b, beta)
    cost = _DenseCost(problem.C, problem.beta)
    for iterate in _proximal(
        cost, problem, max_iter, inner_iter, growth=4.0 if tol is None else 1.5
    ):
        last = iterate.t == max_iter
        if tol is not None or last:
            certificate = _certify(cost, problem, iterate)
            converged = certificate.gap_is_within(tol or 0.0)
            if last or bool(converged.all()):
                break
    return _transport(problem, certificate, converged, int(iterate.t))


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
    for name, x in (("A", A), ("M", M)):
        if x is None:
            raise TypeError(f"{name} must be an array; got None")
    (A, M, weights), give_back = _as_tensors(A=A, M=M, weights=weights)
    if A.ndim != 2 or A.numel() == 0:
        raise ValueError(f"A must have shape (n, K) with n, K >= 1; got {tuple(A.shape)}")
    n, count = A.shape
    if M.shape != (n, n):
        raise ValueError(f"M must have shape (n, n) = {(n, n)} like A's rows; got {tuple(M.shape)}")
    A, M = A.detach().double(), M.detach().double()
    _check_weights("A's columns", A.T)
    if weights is None:
        weights = A.new_full((count,), 1 / count)
    if weights.shape != (count,):
        raise ValueError(f"weights must have shape ({count},); got {tuple(weights.shape)}")
    weights = weights.detach().double()
    _check_weights("weights", weights)
    step = _proximal_step(beta, *_cost_range("M", M))
    if abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(f"weights must sum to 1; they sum to {float(weights.sum()):.9g}")

    log_q = _barycenter_iterates((A / A.sum(0)).T.log(), M / step, weights, numItermax)
    return give_back(torch.softmax(log_q, dim=-1))


# --------------------------------------------------------------------------------------------------
# The proximal iteration, in exponent form
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Problem:
    """Validated tensors; all of a batch have the same leading dimensions or broadcast to them."""

    C: Tensor  # (..., n, m), float32 or float64
    a: Tensor  # (..., n), float64, mass 1
    b: Tensor  # (..., m), float64, mass 1
    beta: Tensor  # (..., 1), float64
    low: Tensor  # (...), float64: smallest cost
    high: Tensor  # (...), float64: largest cost
    mass: Tensor  # (...), float64: what to scale the answer by
    inputs: tuple[Tensor | None, ...]  # C, a, b as given, for gradients
    give_back: Callable[[Tensor], Array]  # to the caller's dtype and kind of array


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
    growth: float = 4.0,
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
            longest = max(1, min(500, int((growth - 1) * (iterate.t + steps))))
            longest, patience = (min(longest, 2 * steps) if cut else longest), 1
        iterate, losses = block
        if trace is not None:
            trace(losses)
        yield iterate


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
    phi, psi, psi_last = -_log(row), -_log(w), -_log(w_last)
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


def _barycenter_iterates(log_p: Tensor, cost: Tensor, weights: Tensor, max_iter: int) -> Tensor:
    """log q after `max_iter` iterations of Algorithm 2 with L = 1, in exponent form.

    log_p (K, n): the inputs, with -inf where a bin is empty; cost (n, n): M / beta. Plan k is
    diag(A_k) exp(-t cost) diag(B_k), and A_k^2 / A_k,last carries its scaling to the next step.
    """
    log_A = log_A_last = torch.zeros_like(log_p)
    for t in range(1, max_iter + 1):
        log_A_warm = 2 * log_A - log_A_last
        log_B = log_p - torch.logsumexp(log_A_warm[:, :, None] - t * cost, 1)
        log_row = torch.logsumexp(log_B[:, None, :] - t * cost, 2)
        log_q = weights @ (log_A_warm + log_row)
        log_A, log_A_last = log_q - log_row, log_A
    return log_q


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


def _log(x: Array) -> Tensor:
    return torch.as_tensor(x).double().log()


def _largest(x: Tensor, weights: Tensor) -> Tensor:
    """The largest entry of x where there is weight."""
    return torch.where(weights > 0, x, -math.inf).amax(-1)


# --------------------------------------------------------------------------------------------------
# Rounding and certificate
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Certificate:
    """A feasible plan of mass 1, feasible potentials, and the bounds on W that they prove."""

    plan: Tensor
    f: Tensor
    g: Tensor
    value: Tensor  # float64, as the next two
    lower_bound: Tensor
    rounding: Tensor  # how small a gap the dtype can tell from zero

    def gap_is_within(self, tol: float) -> Tensor:
        return self.value - self.lower_bound <= tol * self.value.abs() + self.rounding


def _certify(cost: _DenseCost, problem: _Problem, iterate: _Iterate) -> _Certificate:
    a, b, C = problem.a, problem.b, problem.C
    eps, eps64 = torch.finfo(C.dtype).eps, torch.finfo(torch.float64).eps
    largest = torch.maximum(problem.low.abs(), problem.high.abs())

    plan = _round_to_marginals(iterate.plan(), a, b)
    # What rounding leaves of the marginals' error could cost its mass times the range of the cost.
    error = (a - _sum64(plan, -1)).abs().sum(-1) + (b - _sum64(plan, -2)).abs().sum(-1)
    value, size = cost.of_plan(plan)
    value = value + error * (problem.high - problem.low + largest) + 2 * eps * size
    value = value + 16 * eps64 * largest

    # Columns without mass put no bound on the rows; their own potential follows from the rows.
    g = torch.where(b > 0, iterate.step_potential(problem.beta), -math.inf).to(C.dtype)
    f, g = cost.c_transforms(g)
    f64, g64 = f.double(), g.double()
    dual = (a * f64).sum(-1) + (b * g64).sum(-1)
    dual_size = (a * f64.abs()).sum(-1) + (b * g64.abs()).sum(-1)
    lower_bound = dual - 4 * eps64 * dual_size
    rounding = (4 * eps + 32 * eps64) * largest + torch.finfo(C.dtype).tiny
    return _Certificate(plan, f, g, value, lower_bound, rounding)


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


def _transport(problem: _Problem, found: _Certificate, converged: Tensor, n_iter: int) -> Transport:
    """The caller's units, dtype and kind; bounds are rounded outwards."""
    dtype, mass = problem.C.dtype, problem.mass
    value = _round_up(found.value * mass, dtype)
    lower_bound = -_round_up(-found.lower_bound * mass, dtype)
    gap = value - lower_bound
    plan = found.plan.mul_(mass[..., None, None].to(dtype))
    if any(x is not None and x.requires_grad for x in problem.inputs):
        value = _Envelope.apply(*problem.inputs, value, plan, found.f, found.g)
    give = problem.give_back
    return Transport(
        plan=give(plan),
        value=give(value),
        lower_bound=give(lower_bound),
        gap=give(gap),
        potentials=(give(found.f), give(found.g)),
        n_iter=n_iter,
        converged=bool(converged) if converged.ndim == 0 else give(converged),
    )


class _Envelope(torch.autograd.Function):
    """The value as a function of (M, a, b): its gradient is (plan, f, g) (envelope theorem)."""

    @staticmethod
    def forward(ctx, M, a, b, value, plan, f, g):
        ctx.save_for_backward(plan, f, g)
        ctx.shapes = [None if x is None else x.shape for x in (M, a, b)]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        plan, f, g = ctx.saved_tensors
        parts = (grad[..., None, None] * plan, grad[..., None] * f, grad[..., None] * g)
        wanted = zip(ctx.needs_input_grad, parts, ctx.shapes)
        grads = [part.sum_to_size(shape) if needed else None for needed, part, shape in wanted]
        return *grads, None, None, None, None


def _round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The float64 tensor x in dtype, never smaller."""
    y = x.to(dtype)
    return torch.where(y.double() < x, torch.nextafter(y, torch.full_like(y, math.inf)), y)


def _next_below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


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
) -> _Problem:
    """Checked inputs, weights scaled to mass 1; `precise` computes in float64 in any case."""
    if M is None:
        raise TypeError(f"{names[0]} must be an array of shape (..., n, m); got None")
    inputs, give_back = _as_tensors(**dict(zip(names, (M, a, b))))
    C = inputs[0].detach()
    if C.ndim < 2 or C.numel() == 0:
        raise ValueError(
            f"{names[0]} must have shape (..., n, m) with n, m >= 1; got {tuple(C.shape)}"
        )
    C = C.double() if precise else C
    tolerance = 1e-6 if inputs[0].dtype == torch.float64 else 1e-4
    weights = []
    for name, x, size in zip(names[1:], inputs[1:], C.shape[-2:]):
        if x is None:
            x = torch.full((size,), 1 / size, dtype=torch.float64, device=C.device)
        if x.ndim < 1 or x.shape[-1] != size:
            raise ValueError(
                f"{name} must have shape (..., {size}) to match {names[0]} of shape "
                f"{tuple(C.shape)}; got {tuple(x.shape)}"
            )
        weights.append(x.detach().double())
    a, b = weights
    try:
        batch = torch.broadcast_shapes(C.shape[:-2], a.shape[:-1], b.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"batch dimensions do not match: {names[0]} {tuple(C.shape[:-2])}, "
            f"{names[1]} {tuple(a.shape[:-1])}, {names[2]} {tuple(b.shape[:-1])}"
        ) from None
    if math.prod(batch) == 0:
        raise ValueError(f"the batch is empty: {names[0]} has shape {tuple(C.shape)}")
    low, high = _cost_range(names[0], C)
    for name, x, given in zip(names[1:], weights, inputs[1:]):
        if given is not None:
            _check_weights(name, x)
    mass_a, mass_b = a.sum(-1), b.sum(-1)
    if inputs[1] is not None or inputs[2] is not None:
        difference = (mass_a - mass_b).abs() / torch.maximum(mass_a, mass_b)
        if bool((difference > tolerance).any()):
            raise ValueError(
                f"{names[1]} and {names[2]} must have equal mass (to {tolerance:g} relative); "
                f"got {_brief(mass_a)} and {_brief(mass_b)}"
            )
        a, b = a / mass_a[..., None], b / mass_b[..., None]
        if bool((a == 0).any() | (b == 0).any()):
            # Points without mass have no say in what the cost's range is.
            active = (a > 0)[..., :, None] & (b > 0)[..., None, :]
            low = torch.where(active, C.double(), math.inf).amin((-2, -1))
            high = torch.where(active, C.double(), -math.inf).amax((-2, -1))
    low, high = low.expand(batch), high.expand(batch)
    # Algorithm 1 ends on the columns, and its plan carries their mass; POT takes that of the rows.
    mass = mass_b if precise else mass_a
    if not bool((mass * torch.maximum(low.abs(), high.abs()) < torch.finfo(C.dtype).max / 4).all()):
        raise ValueError(
            f"mass times cost must not overflow {C.dtype}; got masses {_brief(mass)} and costs "
            f"from {float(low.min()):.3g} to {float(high.max()):.3g}"
        )
    return _Problem(
        C.expand(*batch, *C.shape[-2:]),
        a.expand(*batch, -1),
        b.expand(*batch, -1),
        _proximal_step(beta, low, high),
        low,
        high,
        mass.expand(batch),
        tuple(inputs),
        give_back,
    )


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


def _check_weights(name: str, x: Tensor) -> None:
    if bool((torch.isfinite(x) & (x >= 0)).all() & (x.sum(-1) > 0).all() & torch.isfinite(x.sum())):
        return
    if not bool(torch.isfinite(x.sum())):
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


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def _as_float(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number; got {value!r}") from None


def _brief(x: Tensor) -> str:
    """A number, or the range of several."""
    low, high = float(x.min()), float(x.max())
    return f"{low:.9g}" if low == high else f"{low:.9g} to {high:.9g}"
