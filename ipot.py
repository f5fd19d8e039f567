"""Optimal transport by the proximal-point method (IPOT), every answer with a certificate.

The problem. For weights a (n) and b (m) of equal mass and a cost matrix M (n, m), find

    W(a, b) = min <P, M>   over plans P >= 0 with  P 1 = a  and  P^T 1 = b.

The method (Xie, Wang, Wang, Zha: "A Fast Proximal Point Method for Computing Exact Wasserstein
Distance", UAI 2019) repeats P <- argmin <P', M> + beta KL(P' | P). One Sinkhorn sweep solves each
step well enough. Unlike Sinkhorn's algorithm the method converges to W itself, whatever beta is.

The form. The t-th plan is diag(A_t) exp(-s_t M) diag(B_t) with s_t = t / beta (appendix A.2 of the
paper). The state is therefore two vectors, and one iteration is a Sinkhorn sweep at temperature
1 / s_t. The sweep starts from log-scalings x = log B that are extrapolated linearly in s,

    x_t + (s_{t+1} - s_t) / (s_t - s_{t-1}) (x_t - x_{t-1}),

relative to the potentials found so far, so that no entry that matters under- or overflows. Where
that is not enough (a tiny beta), the step is taken in the log domain.

Growing steps. s need not grow by equal amounts. :func:`solve` doubles the step where rounding the
plan to its marginals costs little beside the temperature, and damps the extrapolation as Nesterov's
method does (docs/method.md). A gap of 1 % takes half the paper's sweeps, or fewer, in 1 and 2
dimensions (benchmarks/steps.py).

The certificate. The plan, rounded to its marginals, bounds W from above. The scalings are also dual
potentials, and two c-transforms make them feasible, so that they bound W from below.

This file needs NumPy and PyTorch, and can be copied into any project. The package `exactot` builds
on the names listed in TOOLKIT.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Transport",
    "cost_matrix_cosine",
    "ipot",
    "ipot_WD",
    "ipot_barycenter",
    "optimal_transport_dist",
    "round_to_marginals",
    "solve",
    "trace",
]
TOOLKIT = (
    "Array BarycenterIteration EPS FEW_HUGE Problem Result STEP as_tensors brief certified "
    "check_count check_unmasked cost_range cost_unit dual_value exp_ extrapolated log64 "
    "mass_tolerance near_power next_below power_of_two read_batch read_mass read_number "
    "read_problem read_shares read_weights round_to_marginals round_up sample_places tensor "
    "undisturbed"
).split()

Array = np.ndarray | Tensor
EPS = float(np.finfo(np.float64).eps)
PROCESS = os.getpid()  # that imported this file
FORKED = getattr(multiprocessing.current_process(), "_start_method", None) == "fork"
STEPS = 64, 512, 4096, 32768  # for distances to a given gap
STEP = 0.05  # beta in units of the cost's range; benchmarks/solvers.py, d = 1 to 16
FEW_HUGE = 1000  # times a usual reduced cost: what exceeds that does not set the scale
# Growing steps; benchmarks/steps.py chose these.
LOOK = 8  # sweeps before steps change for the first time; again after 16, 32 and so on
GROW, SHRINK = 0.5, 1.0  # cost of rounding, in units of the temperature, at which steps change
COLDEST = 16  # temperature at which they stop growing, in units of the cost's own rounding
DAMPING = 3, 48  # after t sweeps the extrapolation is damped by 1 - 3 / (t + 48)


# --------------------------------------------------------------------------------- Public functions


def undisturbed(function: Callable) -> Callable:
    """The function, free of what the process has set, and leaving it as found.

    Autocast would take digits from its products, and a default device its new arrays. What leaves
    the range of numbers is looked for where it can, so that NumPy need not say it. In a forked
    process torch waits for threads that only the parent has, so that one thread has to do.
    """

    @functools.wraps(function)
    def run(*args, **options):
        with contextlib.ExitStack() as stack:
            stack.enter_context(np.errstate(all="ignore"))
            for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
                stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            threads = torch.get_num_threads()
            if threads > 1 and (FORKED or os.getpid() != PROCESS):
                stack.callback(torch.set_num_threads, threads)
                torch.set_num_threads(1)
            return function(*args, **options)

    return run


class Result:
    """An answer. A deep copy of it has no gradient, as a deep copy of a tensor has none."""

    def __deepcopy__(self, memo: dict):
        other = copy.copy(self)
        for name, x in vars(self).items():
            x = x.detach() if isinstance(x, Tensor) else x
            object.__setattr__(other, name, copy.deepcopy(x, memo))
        return other


@dataclass(frozen=True, eq=False)
class Transport(Result):
    """A transport plan and the proof of how good it is; `lower_bound <= W <= value`.

    Arrays are of the kind (NumPy or torch), dtype and device that the solver was given. `...` are
    the batch dimensions; without any the scalars are plain 0-d values.

    Attributes
    ----------
    plan : array, shape (..., n, m)
        Non-negative, with marginals a and b to rounding.
    value : array, shape (...)
        Cost of the plan, in units of cost times mass: an upper bound on W. `value.backward()` gives
        the envelope gradient (Theorem B.1 of the paper): the plan in M, the potentials in a and b.
    lower_bound : array, shape (...)
        Dual value of the potentials: a lower bound on W.
    gap : array, shape (...)
        `value - lower_bound`, never negative.
    potentials : (f, g), shapes (..., n) and (..., m)
        Dual feasible: f_i + g_j <= M_ij for all i, j, also where a weight is zero.
    n_iter : int
        Iterations that were run; the most of a batch.
    converged : bool or boolean array, shape (...)
        Whether the gap is at most `tol * |value|` (zero without a `tol`), up to rounding.
    """

    plan: Array = field(repr=False)
    value: Array
    lower_bound: Array
    gap: Array
    potentials: tuple[Array, Array] = field(repr=False)
    n_iter: int
    converged: bool | Array


@undisturbed
def solve(
    M: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    beta: float | Array | None = None,
    max_iter: int = 1000,
    inner_iter: int = 1,
    tol: float | None = None,
    growing: bool = True,
) -> Transport:
    """Optimal transport for a cost matrix by proximal iterations, with a certified gap.

    Solves min <P, M> over P >= 0, P 1 = a, P^T 1 = b. The last iterate is rounded to its marginals
    (Altschuler, Weed, Rigollet 2017, Algorithm 2).

    Parameters
    ----------
    M : array, shape (..., n, m)
        Cost, NumPy or torch, float32 or float64, of any sign and scale; leading dimensions are a
        batch. The answer has its dtype.
    a, b : array, shapes (..., n) and (..., m), optional
        Weights, non-negative (zeros are fine, and what rounding left below zero) and of equal,
        positive mass; uniform with mass 1 if left out. Without batch dimensions they serve the
        whole batch. A difference of mass within 1e-6 (float32: 1e-4), relative, is made up by
        scaling b.
    beta : float or array of shape (...), optional
        First proximal step in units of the cost. None takes 0.05 of the cost's range, to which a
        few huge costs do not count; this works from 1 to 16 dimensions. A smaller one is not better
        within a given number of iterations.
    max_iter : int
        Most proximal iterations; exactly as many are run if `tol` is None.
    inner_iter : int
        Sinkhorn sweeps in one proximal iteration (L in the paper).
    tol : float, optional
        Stop once `gap <= tol * |value|` for every problem of the batch, looked at every few
        iterations. `converged` says whether it was reached.
    growing : bool
        Let the steps grow from beta on, and damp the extrapolation. False is the paper's iteration.

    Returns
    -------
    Transport

    Raises
    ------
    TypeError
        NumPy mixed with torch, not float32 or float64, masked arrays, tensors inside torch.func's
        transforms, counts that are not integers, growing not a bool.
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
    check_count("max_iter", max_iter)
    check_count("inner_iter", inner_iter)
    tol = None if tol is None else read_number("tol", tol)
    if not isinstance(growing, bool):
        raise TypeError(f"growing must be True or False; got {growing!r}")
    C, problem = read_problem(M, a, b)
    iteration = _Iteration(_Cost(C, problem, beta, growing), problem, inner_iter)
    for t in iteration.run(max_iter, growth=4.0 if tol is None else 1.5):
        if tol is None and t < max_iter:
            continue
        plan, f, g, value, lower_bound, rounding = _certify(iteration)
        if bool((value - lower_bound <= (tol or 0.0) * value.abs() + rounding).all()):
            break
    plan.mul_(problem.mass[..., None, None].to(plan.dtype))
    bounds = certified(
        problem, f, g, value, lower_bound, rounding,
        lambda: (plan.clone(), *problem.in_weights(f, g)), n_iter=t, tol=tol or 0.0,
    )  # fmt: skip
    return Transport(plan=problem.give_back(plan), **bounds)


@undisturbed
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
        Weights, non-negative, of equal mass. Points without mass take no part.
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
        As :func:`solve`; also if C has batch dimensions or beta is None.
    """
    check_count("max_iter", max_iter)
    check_count("L", L)
    beta = read_number("beta", beta)
    for name, x, shape in (("C", C, "(n, m)"), ("a1", a1, "(n,)"), ("a2", a2, "(m,)")):
        if np.ndim(x) > (2 if name == "C" else 1):
            raise ValueError(f"{name} must have shape {shape}; it has {np.ndim(x)} dimensions")
    C, problem = read_problem(C, a1, a2, names=("C", "a1", "a2"), precise=True)
    iteration = _Iteration(
        _Cost(C, problem, beta), problem, L, warm=bool(use_path), with_loss=bool(return_loss)
    )
    for _ in iteration.run(max_iter):
        pass
    scale = problem.mass * problem.unit
    loss = (torch.stack(iteration.losses) * scale).tolist() if return_loss else None
    plan = problem.give_back(iteration.plan() * problem.mass)
    return (plan, loss) if return_map and return_loss else plan if return_map else loss


@undisturbed
def ipot_barycenter(
    A: Array, M: Array, beta: float, weights: Array | None = None, numItermax: int = 1000
) -> Array:
    """Algorithm 2 of the IPOT paper: the Wasserstein barycenter of histograms, in float64.

    Minimises sum_k weights_k W(q, p_k) over histograms q, with one plan per input. The three
    formulas of a step are taken in the order b, q, a: in the order a, b, q, with the q of the step
    before, the iteration goes to another point than the barycenter. The memory is O(K n^2).

    Parameters
    ----------
    A : array or list, shape (n, K)
        Histograms in the columns, non-negative with positive mass; each is scaled to mass 1 here.
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
    array, shape (n,)
        The barycenter q, scaled to mass 1 (Algorithm 2 loses a little mass on its way).

    Raises
    ------
    TypeError, ValueError
        As :func:`solve`; also for a column without mass and weights that do not sum to 1.
    """
    check_count("numItermax", numItermax)
    if A is None or M is None:
        raise TypeError("A and M must be arrays; got None")
    (A, M, weights), give_back = as_tensors(("A", "weights"), A=A, M=M, weights=weights)
    if A.ndim != 2 or A.numel() == 0 or M.shape != (len(A), len(A)):
        wanted = "A must have shape (n, K) with n, K >= 1, and M (n, n)"
        raise ValueError(f"{wanted}; got {tuple(A.shape)} and {tuple(M.shape)}")
    p, _ = read_mass("A's columns", A.detach().T)
    p, C = p / p.sum(-1, keepdim=True), M.detach().double()
    weights = read_shares(weights, len(p), p.device)
    if weights.ndim > 1:
        raise ValueError(f"weights must have shape ({len(p)},); got {tuple(weights.shape)}")
    low, high = cost_range("M", C)
    unit = cost_unit(low, high)
    beta = float(_proximal_step(read_number("beta", beta), high / unit - low / unit, unit))
    iteration = BarycenterIteration(p, weights[None], C / unit)
    for _ in iteration.run(numItermax, lambda t: beta / t):
        pass
    return give_back(iteration.histogram()[0])


@undisturbed
def round_to_marginals(plan: Array, a: Array, b: Array) -> Array:
    """A feasible plan near the given one (Altschuler, Weed, Rigollet 2017, Algorithm 2).

    Rows, then columns, that carry too much are scaled down, and what is then missing is added as
    the product of the two deficits.

    Parameters
    ----------
    plan : array, shape (..., n, m)
        Non-negative.
    a, b : array, shapes (..., n) and (..., m)
        Weights, non-negative, of equal, positive mass.

    Returns
    -------
    array, shape (..., n, m)
        Non-negative, with marginals a and b to rounding. It carries no gradient.

    Raises
    ------
    TypeError, ValueError
        As :func:`solve`; also for a plan with negative entries.

    Examples
    --------
    >>> round_to_marginals([[0.6, 0.0], [0.0, 0.6]], [0.5, 0.5], [0.25, 0.75])
    array([[0.25, 0.25],
           [0.  , 0.5 ]])
    """
    if a is None or b is None:
        raise TypeError("a and b must be arrays; got None")
    plan, problem = read_problem(plan, a, b, names=("plan", "a", "b"))
    if bool((plan < 0).any()):
        raise ValueError(f"plan must be non-negative; got entries down to {float(plan.min()):.6g}")
    plan = plan * (problem.unit / problem.mass)[..., None, None].to(plan.dtype)
    plan = _round(plan, problem.a, problem.b)
    return problem.give_back(plan * problem.mass[..., None, None].to(plan.dtype))


# -------------------------------------------------- The names that vision-language code calls


def cost_matrix_cosine(x: Tensor, y: Tensor, eps: float = 1e-5) -> Tensor:
    """One minus the cosines between vectors (B, M, D) and (B, N, D): shape (B, M, N)."""
    x, y = (torch.nn.functional.normalize(z, dim=-1, eps=eps) for z in (x, y))
    return 1 - x @ y.transpose(1, 2)


def trace(x: Tensor) -> Tensor:
    """The sums of the diagonals (B,) of matrices (B, n, n)."""
    return x.diagonal(dim1=1, dim2=2).sum(1)


@undisturbed
@torch.no_grad()
def ipot(C, x_len, x_pad, y_len, y_pad, joint_pad, beta, iteration, k) -> Tensor:
    """Plans (B, N, M), columns first, of the paper's iteration for costs C (B, M, N): `iteration`
    steps of size beta with k sweeps each. Interface: Chen et al., "UNITER", ECCV 2020.

    Masks x_pad (B, M), y_pad (B, N) and joint_pad (B, M, N) are not 0 at padding. A mass of 1 is
    spread evenly over the rest, which x_len and y_len (B,) count: joint_pad alone is read here.
    Half precision is computed in single.
    """
    pad = joint_pad.bool().transpose(1, 2)
    cost = C.transpose(1, 2).to(torch.promote_types(C.dtype, torch.float32)).masked_fill(pad, 0)
    if not cost.numel():
        return cost.to(C.dtype)
    none = pad.all(2), pad.all(1)
    weights = ((~z | z.all(1, keepdim=True)).double() for z in none)  # a plan of padding is cut
    b, a = (w / w.sum(1, keepdim=True) for w in weights)
    cost, problem = read_problem(cost, b, a)
    steps = _Iteration(_Cost(cost, problem, beta), problem, k)
    for _ in steps.run(iteration):
        pass
    return steps.plan().masked_fill(pad, 0).to(C.dtype)


@undisturbed
def optimal_transport_dist(
    txt_emb, img_emb, txt_pad, img_pad, beta=0.5, iteration=50, k=1, tol=None
) -> Tensor:
    """Transport costs (B,) by cosines between embeddings (B, M, D) and (B, N, D), differentiable
    with the plans held fixed; 0 where one side is all padding. Masks are as in :func:`ipot`.

    With `tol` each exceeds the true distance by at most that share of it; ValueError if it cannot.
    """
    pads, vectors = (txt_pad.bool(), img_pad.bool()), (txt_emb, img_emb)
    shapes = [tuple(z.shape[:2]) for z in (*vectors, *pads)]
    if shapes[:2] != shapes[2:]:
        raise ValueError(f"masks must be (B, M) and (B, N) = {shapes[:2]}; got {shapes[2:]}")
    kind = torch.promote_types(txt_emb.dtype, torch.float32 if tol is None else torch.float64)
    vectors = (z.to(kind).masked_fill(pad[..., None], 0) for z, pad in zip(vectors, pads))
    joint, counts = pads[0][:, :, None] | pads[1][:, None], [(~pad).sum(1) for pad in pads]
    cost = cost_matrix_cosine(*vectors).masked_fill(joint, 0)
    if tol is None:
        masks = counts[0], pads[0], counts[1], pads[1], joint
        return trace(cost @ ipot(cost.detach(), *masks, beta, iteration, k)).to(txt_emb.dtype)
    a, b = ((~pad).to(kind) / (~pad).sum(1, keepdim=True) for pad in pads)
    distance, left = 0 * cost.sum((1, 2)), ~joint.all(2).all(1)
    for steps in STEPS:  # most problems need few, and do not wait for the others
        if left.any():
            found = solve(cost[left], a[left], b[left], beta=beta, max_iter=steps, tol=tol)
            places = left.nonzero()[found.converged, 0]
            distance = distance.index_copy(0, places, found.value[found.converged])
            left = left.index_fill(0, places, False)
    if left.any():
        raise ValueError(f"tol = {tol:g} is not reached in {steps} steps; take a larger one")
    return distance.to(txt_emb.dtype)


# --------------------------------------------------------- The proximal iteration, in exponent form


def extrapolated(x: Array, x_last: Array, growth: float) -> Array:
    """Where a sweep starts: log-scalings x, moved on by `growth` times their last change."""
    return x + growth * (x - x_last)


class _Iteration:
    """Algorithm 1: P_ij = a_i b_j exp(phi_i + psi_j - s (C_ij - f_i - g_j) / beta).

    s (..., 1), in units of 1 / beta, grows by ds in a step; in the paper ds is 1, and s the number
    t of steps. f (..., n) and g (..., m), in the dtype of C, are a reference near the potentials,
    fixed for a block of steps. phi and psi, in float64, are the log-scalings relative to it. drift
    is the mean change of psi in a step between the last two looks at ds.
    """

    def __init__(self, cost: _Cost, problem: Problem, inner_iter=1, warm=True, with_loss=False):
        self.cost, self.problem, self.inner_iter, self.warm = cost, problem, inner_iter, warm
        self.losses: list[Tensor] | None = [] if with_loss else None  # <P_t, C> after each step
        # Gamma = 1 and scalings 1 on the points that have mass, seen from feasible potentials.
        psi = torch.where(problem.b > 0, -problem.b.log(), 0.0)
        psi, self.g = torch.broadcast_tensors(psi, cost.g)
        self.f = cost.f.expand(*psi.shape[:-1], -1)
        self.phi = torch.zeros_like(self.f, dtype=torch.float64)
        self.psi, self.psi_last = psi, psi + self.g / cost.beta
        self.t, self.ds = 0, torch.ones_like(psi[..., :1])
        self.s = self.s_look = torch.zeros_like(self.ds)
        self.psi_look, self.drift = psi, torch.zeros_like(psi)
        self.look = LOOK if cost.growing else math.inf

    def run(self, max_iter: int, growth: float = 4.0) -> Iterator[int]:
        """Iterate, yielding t at the end of each block.

        A block is run on scalings first. If they left the range in which that is accurate, it is
        run again, half as long; where a single step still fails, the next ones are taken in the log
        domain. exp(-t C / beta) changes by its own power as t grows: blocks lengthen with t.
        """
        # 8 steps from nothing fail one problem in hundreds, and with it the batch.
        longest, patience = LOOK if self.cost.growing and self.f.ndim == 1 else 4, 1
        while self.t < max_iter:
            self.recentre()
            left = min(self.look, max_iter) - self.t
            tried = steps = min(longest, left)
            while not (done := self.on_scalings(steps)) and steps > 1:
                steps //= 2
            if done:
                cut = steps < tried or patience > 1
                longest = max(1, min(500, int((growth - 1) * self.t)))
                longest, patience = (min(longest, 2 * steps) if cut else longest), 1
            else:
                self.in_logarithms(min(patience, left))
                longest, patience = 1, min(2 * patience, 64)
            if self.t == self.look < max_iter:
                self.choose_step()
            yield self.t

    def choose_step(self) -> None:
        """Weigh what rounding would cost, the rows' error at the mean reduced cost, against eps."""
        mass, eps = self.problem.a.sum(-1, keepdim=True), self.cost.beta / self.s
        a, b = self.problem.a / mass, self.problem.b / mass
        price = (a * (self.cost.row_costs - self.f)).sum(-1) - (b * self.g).sum(-1)
        ratio = ((a - self.row_sums() / mass).abs().sum(-1) * price)[..., None] / eps
        size = (a * self.f.abs()).sum(-1) + (b * self.g.abs()).sum(-1)
        coldest = COLDEST * torch.finfo(self.f.dtype).eps * size[..., None]
        ds = torch.where((ratio < GROW) & (eps > coldest), 2 * self.ds, self.ds)
        ds = torch.where(ratio > SHRINK, self.ds / 2, ds).clamp_min(1)
        # The last change and the mean one, as they would have been with the new step.
        self.psi_last, self.ds = extrapolated(self.psi, self.psi_last, -ds / self.ds), ds
        self.drift = (self.psi - self.psi_look) * (ds / (self.s - self.s_look))
        self.psi_look, self.s_look, self.look = self.psi, self.s, 2 * self.look

    def momenta(self, steps: int) -> list[float]:
        """c of the next sweeps, which start from psi + drift + c (psi - psi_last - drift)."""
        if not self.cost.growing or self.t < LOOK:
            return [1.0] * steps
        return [1 - DAMPING[0] / (t + DAMPING[1]) for t in range(self.t, self.t + steps)]

    def advance(self, steps: int, phi: Tensor, psi: Tensor, psi_last: Tensor) -> None:
        self.t, self.phi, self.psi, self.psi_last = self.t + steps, phi, psi, psi_last
        self.s = self.s + steps * self.ds

    def recentre(self) -> None:
        """Move the potentials (beta / s) (log A, log B) into the reference."""
        if self.t == 0:
            return
        s, beta, f, g = self.s, self.cost.beta, self.f, self.g
        self.f = (f + beta / s * self.phi).to(f.dtype)
        self.g = (g + beta / s * self.psi).to(g.dtype)
        df, dg = (self.f.double() - f.double()) / beta, (self.g.double() - g.double()) / beta
        self.phi, self.psi = self.phi - s * df, self.psi - s * dg
        self.psi_last = self.psi_last - (s - self.ds) * dg
        self.psi_look = self.psi_look - self.s_look * dg
        self.drift = self.drift - self.ds * dg

    def on_scalings(self, steps: int) -> bool:
        """`steps` iterations by matrix-vector products; False if they left the accurate range."""
        cost, own = self.cost, self.cost.own
        if cost.growing:
            cost.set_kernel(self.f, self.g, self.s + self.ds, self.ds, steps)
        else:
            cost.set_power(self.f, self.g, self.t + 1, self.t + steps)
        a, b = own(self.problem.a), own(self.problem.b)
        w, w_last = own((-self.psi).exp()), own((-self.psi_last).exp())
        restart = None if self.warm else own((-self.g / cost.beta).exp())
        losses, drift, sums = [], own(self.drift.exp()), {}
        v = b / w
        for step, growth in enumerate(self.momenta(steps), 1):
            # `extrapolated` for B = b / w, written so that a weight of zero stays zero.
            change = w_last / w if self.warm else restart
            v = v * (change if growth == 1 else (change / drift) ** growth * drift)
            w_last = w
            for _ in range(self.inner_iter):
                row = cost.dot(v)
                u = a / row
                w = cost.dot_transposed(u)
                v = b / w
            if is_looked_at(step, steps):
                sums[step] = row, w
            if self.losses is not None:
                losses.append(cost.of_scalings(u, v))
            if step < steps:
                cost.grow()
        phi, psi, psi_last = (tensor(-log64(x)) for x in (row, w, w_last))
        in_range = torch.cat((phi, psi, psi_last), -1).isfinite().all()
        in_range &= self.floor_is_low(sums, steps)
        if losses:
            in_range &= torch.stack(losses).isfinite().all()
            self.losses.extend(losses if in_range else [])
        if in_range:
            self.advance(steps, phi, psi, psi_last)
            self.plan = lambda: cost.scaled_kernel(u, v)
            self.row_sums = lambda: tensor(u * cost.dot(v))
        return bool(in_range)

    def floor_is_low(self, sums: dict[int, tuple[Array, Array]], steps: int) -> Tensor:
        """Whether entries at the kernel's floor do not matter, by the sums that steps divided by.

        They carry exp(top - floor) of the mass. The floor falls with s, to exp(-limit) at the last
        step: an earlier step can reach its own floor where the last one does not.
        """
        top = 0.0
        for weights, x in zip((self.problem.a, self.problem.b), zip(*sums.values())):
            x = tensor(np.stack(x)) if self.cost.numpy else torch.stack(x)
            top = top - torch.where(weights > 0, x, math.inf).amin(-1).double().log()
        done = torch.tensor(list(sums), dtype=top.dtype, device=top.device)
        done = done.view(-1, *(1 for _ in top.shape[1:]))
        s, ds = self.s[..., 0], self.ds[..., 0]
        floor = _limit(self.cost.C.dtype) * (s + done * ds) / (s + steps * ds)
        return (top <= floor - (floor / 4).clamp_max(20)).all()

    def in_logarithms(self, steps: int) -> None:
        """`steps` iterations in the log domain and float64: slower, and safe for every beta."""
        C, beta, psi, psi_last = self.cost.C, self.cost.beta, self.psi, self.psi_last
        reduced = (C.double() - self.f[..., :, None]).sub_(self.g[..., None, :])
        reduced.div_(-beta[..., None])
        log_a, log_b = self.problem.a.log(), self.problem.b.log()
        exponent, scratch = torch.empty_like(reduced), torch.empty_like(reduced)
        for step, growth in enumerate(self.momenta(steps), 1):
            torch.mul(reduced, (self.s + step * self.ds)[..., None], out=exponent)
            start = extrapolated(psi, psi_last + self.drift, growth) + self.drift
            psi_last, psi = psi, start if self.warm else psi - self.g / beta
            for _ in range(self.inner_iter):
                torch.add(exponent, (psi + log_b)[..., None, :], out=scratch)
                phi = -_log_sum_exp_(scratch, -1)
                log_u = phi + log_a
                torch.add(exponent, log_u[..., :, None], out=scratch)
                psi = -_log_sum_exp_(scratch, -2)
            if self.losses is not None:
                exponent += log_u[..., :, None] + (psi + log_b)[..., None, :]
                self.losses.append((exponent.exp_() * C).sum((-2, -1)))
        self.advance(steps, phi, psi, psi_last)
        log_plan = reduced.mul_(self.s[..., None])
        log_plan.add_(log_u[..., :, None]).add_((psi + log_b)[..., None, :])
        self.plan = lambda: log_plan.exp_().to(C.dtype)
        self.row_sums = lambda: log_plan.logsumexp(-1).exp_()


class _Cost:
    """A cost matrix (..., n, m), and its kernel exp(-t (C - f - g) / beta) for one t after another.

    On the CPU NumPy handles kernels of up to a megabyte, on torch's memory: a call costs a third of
    torch's, and a batch of small matrix-vector products an eighth. Larger products NumPy would run
    in threads of its own, which then compete with torch's.
    """

    def __init__(self, C: Tensor, problem: Problem, beta: float | Array | None, growing=False):
        # The smallest cost of each row, and of each column in what that leaves.
        self.C, self.f = C, C.amin(-1)
        self.has_negative = bool((self.f < 0).any())
        reduced = C - self.f[..., :, None]
        self.g = reduced.amin(-2)
        self.usual = self.usual_range(problem)
        if beta is None:
            self.beta = STEP * self.usual[..., None]
        else:
            spread = problem.high - problem.low
            self.beta = _proximal_step(beta, spread, problem.unit, self.usual)
        # Two matrices that serve all kernels.
        self.growing, self.space = growing, tuple(C.new_empty((2, *C.shape)))
        if growing:
            b = problem.b / problem.b.sum(-1, keepdim=True)
            self.row_costs = (C @ b.to(C.dtype)[..., None])[..., 0]
        else:
            # G = exp(-C / beta) from reduced costs; where it fits the dtype every later kernel is a
            # product of its powers, which is cheaper than another exp.
            exponent = reduced.sub_(self.g[..., None, :]).div_(-self.beta[..., None].to(C.dtype))
            self.fits = bool(exponent.amin() >= -_limit(C.dtype) / 2)
            self.G = exponent.exp_() if self.fits else exponent
        size = C.shape[-1] * C.shape[-2] * C.element_size()
        self.numpy = C.device.type == "cpu" and size <= 2**20

    def usual_range(self, problem: Problem) -> Tensor:
        """The cost's range; or FEW_HUGE times what a quarter of the positive ones of a thousand
        costs, less the smallest of their rows and columns, are below. The cost where all are equal.
        """
        n, m = self.C.shape[-2:]
        i, j = (torch.from_numpy(x).to(self.C.device) for x in divmod(sample_places(n * m), m))
        reduced = (self.C[..., i, j] - self.f[..., i] - self.g[..., j]).double()
        counts = (problem.a[..., i] > 0) & (problem.b[..., j] > 0) & (reduced > 0)
        quarter = torch.where(counts, reduced, math.nan).nanquantile(0.25, -1)
        spread = problem.high - problem.low
        spread = torch.where(FEW_HUGE * quarter < spread, FEW_HUGE * quarter, spread)
        spread = torch.where(spread > 0, spread, problem.high.abs())
        return torch.where(spread > 0, spread, 1.0)

    def own(self, x: Tensor) -> Array:
        """x in the cost's dtype and in the kind of array that the kernel computes with."""
        x = x.to(self.C.dtype)
        return x.numpy() if self.numpy else x

    def set_kernel(self, f: Tensor, g: Tensor, s: Tensor, ds: Tensor, steps: int) -> None:
        """K = exp(-s (C - f - g) / beta), to grow with s by ds in each further one of the steps."""
        (G, K), limit, last = self.space, _limit(self.C.dtype), s + (steps - 1) * ds
        scale, share, rate = (
            x[..., None].to(K.dtype) for x in (-last / self.beta, s / last, ds / last)
        )
        torch.sub(self.C, f[..., :, None], out=G).sub_(g[..., None, :])
        exp_(torch.mul(G.mul_(scale).clamp_(-limit, limit), share, out=K))
        exp_(G.mul_(rate))
        self.K, self.growth = self.own(K), self.own(G)

    def set_power(self, f: Tensor, g: Tensor, t: int, t_end: int) -> None:
        """K = G^t elementwise, to grow up to t_end: the kernel of constant steps."""
        (G, K), dtype, limit = self.space, self.C.dtype, _limit(self.C.dtype) / t_end
        if self.fits:
            row = ((f - self.f) / self.beta).exp().to(dtype)
            column = ((g - self.g) / self.beta).exp().to(dtype)
            torch.mul(self.G, row[..., :, None], out=G).mul_(column[..., None, :])
            G.clamp_(math.exp(-limit), math.exp(limit))
        else:
            torch.sub(self.C, f[..., :, None], out=G).sub_(g[..., None, :])
            G.div_(-self.beta[..., None].to(dtype)).clamp_(-limit, limit).exp_()
        K.copy_(G)
        for bit in bin(t)[3:]:  # repeated squaring
            K.mul_(K)
            if bit == "1":
                K.mul_(G)
        self.K, self.growth = self.own(K), self.own(G)

    def grow(self) -> None:
        self.K *= self.growth

    def dot(self, v: Array) -> Array:
        return self.K @ v if v.ndim == 1 else (self.K @ v[..., None])[..., 0]

    def dot_transposed(self, u: Array) -> Array:
        return u @ self.K if u.ndim == 1 else (u[..., None, :] @ self.K)[..., 0, :]

    def of_scalings(self, u: Array, v: Array) -> Tensor:
        """<diag(u) K diag(v), C>."""
        row = ((self.K * self.own(self.C)) @ v[..., None])[..., 0]
        return tensor((u * row).sum(-1))

    def scaled_kernel(self, u: Array, v: Array) -> Tensor:
        """diag(u) K diag(v), in the kernel's memory."""
        K, u, v = (tensor(x) for x in (self.K, u, v))
        return K.mul_(u[..., :, None]).mul_(v[..., None, :])

    def of_plan(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """<plan, C> and <plan, |C|>, float64; their relative error is the dtype's eps."""
        product = torch.mul(plan, self.C, out=self.space[0])
        value = _sum64(product, (-2, -1))
        return value, _sum64(product.abs_(), (-2, -1)) if self.has_negative else value

    def c_transforms(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The largest f that g allows, then the largest g that this f allows; exactly feasible:
        the smallest of the rounded differences is the rounded smallest, and the next number below
        is on the safe side."""
        scratch, _ = self.space
        f = next_below(torch.sub(self.C, g[..., None, :], out=scratch).amin(-1))
        return f, next_below(torch.sub(self.C, f[..., :, None], out=scratch).amin(-2))


def is_looked_at(step: int, steps: int) -> bool:
    """Whether a step of a block is one of some 16 that are checked, among them the last one."""
    return (steps - step) % (1 + steps // 16) == 0


def _limit(dtype: torch.dtype) -> float:
    """Kernels stay within exp(-limit) and exp(limit).

    Their products with weights are then normal numbers: arithmetic is slow on denormal ones.
    """
    return 60.0 if dtype == torch.float32 else 600.0


def exp_(x: Tensor) -> Tensor:
    """The exponential, in x's memory; torch's exp2 takes less than half the time of its exp."""
    return x.mul_(1 / math.log(2)).exp2_()


def sample_places(size: int) -> np.ndarray:
    """Where a thousand entries of a matrix are, in all columns; a stride could keep to one."""
    return np.arange(1000) * (size - 1) // 999


def _log_sum_exp_(x: Tensor, axis: int) -> Tensor:
    """log sum exp(x), in x's memory; torch's exponential is slow on what underflows."""
    top = x.amax(axis, keepdim=True)
    x.sub_(top).clamp_min_(-_limit(x.dtype))
    return exp_(x).sum(axis).log_().add_(top.squeeze(axis))


def tensor(x: Array) -> Tensor:
    """A tensor as it is, NumPy's memory as a tensor on the CPU, whatever torch's default device."""
    return x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))


def log64(x: Array) -> Array:
    """The logarithm in float64."""
    return x.double().log() if isinstance(x, Tensor) else np.log(x.astype(np.float64))


# ---------------------------------------- The iteration for barycenters (IPOT-WB), in exponent form


class BarycenterIteration:
    """Algorithm 2 (IPOT-WB): plan k is exp(log_A_i + log_B_j - s C_ij), s = 1 / eps.

    A step fits the plans' columns to the inputs p (K, *shape), takes q (W, *shape) as the geometric
    mean of their rows, with weights (W, K), and fits the rows to q. It starts from log A (W, K,
    *shape) extrapolated linearly in s. `row` and `column` are the logarithms of what B and that A
    sum to under exp(-s C): with them as a reference the plans are near q_i p_j. Unlike those of
    :class:`_Iteration`, the steps follow a given schedule, and the extrapolation is never damped:
    with damping the plans lead to another point than the barycenter.

    The cost is a matrix C (n, n), or log_product(x, s, transposed) for log sum_j exp(x_j - s C_ij)
    and, transposed, for the sum over i.
    """

    def __init__(self, p: Tensor, weights: Tensor, C: Tensor | None, log_product=None):
        self.p, self.weights, self.C = p, weights, C
        self.log_product = log_product or self.of_matrix
        self.t, self.s, self.s_last = 0, 0.0, 0.0
        zero = torch.zeros_like(p).expand(len(weights), *p.shape)
        self.log_A = self.log_A_last = self.row = self.column = zero

    def run(self, max_iter: int, temperature: Callable[[int], float]) -> Iterator[int]:
        """Iterate, yielding t at the end of each stage; there eps is temperature(t).

        Within a stage s grows by equal amounts, so that a kernel grows by a product with the same
        matrix. With a matrix a stage is run on W K kernels first, and again in logarithms where
        these left the range in which they are accurate.
        """
        while self.t < max_iter:
            t_end = min(max_iter, max(self.t + 1, int(1.4 * self.t)))
            stage = np.linspace(self.s, 1 / temperature(t_end), t_end - self.t + 1)[1:]
            steps = np.diff((self.s_last, self.s, *stage))
            growths = np.divide(steps[1:], steps[:-1], out=0 * stage, where=steps[:-1] > 0)
            if self.C is None or not self.on_scalings(stage, growths):
                self.in_logarithms(stage, growths)
            self.t, (self.s_last, self.s) = t_end, (self.s, *stage.tolist())[-2:]
            yield self.t

    def in_logarithms(self, stage: np.ndarray, growths: np.ndarray) -> None:
        log_p, ones = self.p.log(), (1,) * (self.p.ndim - 1)
        weights = self.weights.view(*self.weights.shape, *ones)
        for s, growth in zip(stage.tolist(), growths.tolist()):
            warm = extrapolated(self.log_A, self.log_A_last, growth)
            self.column = self.log_product(warm, s, True)
            self.row = self.log_product(log_p - self.column, s, False)
            self.log_q = (weights * (warm + self.row)).sum(1)
            self.log_A, self.log_A_last = self.log_q[:, None] - self.row, self.log_A

    def on_scalings(self, stage: np.ndarray, growths: np.ndarray) -> bool:
        """By products with kernels relative to the last plans; False if that is not accurate."""
        limit, on_cpu = _limit(torch.float64), self.C.device.type == "cpu"
        xp = np if on_cpu else torch  # NumPy's calls on small arrays cost a third of torch's
        own = (lambda x: x.numpy()) if on_cpu else (lambda x: x)
        f, g = (-x / max(self.s, 1e-300) for x in (self.row, self.column))
        exponent = (f[..., :, None] + g[..., None, :]).sub_(self.C)
        exponent.clamp_(-limit / stage[-1], limit / stage[-1])
        K = own((exponent * stage[0]).exp_())
        G = own(exponent.mul_(stage[1] - stage[0]).exp_()) if len(stage) > 1 else None
        p, weights = own(self.p), own(self.weights)[:, None, :]
        # Relative to f: log A_t - s_t f, which extrapolates as log A does.
        log_u, log_u_last = own(self.log_A - self.s * f), own(self.log_A_last - self.s_last * f)
        for step, growth in enumerate(growths.tolist()):
            if step > 0:
                K *= G
            warm = extrapolated(log_u, log_u_last, growth)
            u = xp.exp(warm)
            column = (u[..., None, :] @ K)[..., 0, :]
            v = p / column
            row = (K @ v[..., None])[..., 0]
            log_row = xp.log(row)
            log_q = (weights @ (warm + log_row))[..., 0, :]
            log_u, log_u_last = log_q[..., None, :] - log_row, log_u
        u, v, log_u, log_u_last, log_q, log_row, column = (
            tensor(y) for y in (u, v, log_u, log_u_last, log_q, log_row, column)
        )
        log_column = column.log()
        # Entries at the kernel's floor must not matter to any row, nor to a column with mass.
        spread = (log_row - v.sum(-1, keepdim=True).log()).amin()
        reach = log_column - u.sum(-1, keepdim=True).log()
        spread = torch.minimum(spread, torch.where(self.p > 0, reach, math.inf).amin())
        if not bool((spread > 40 - limit) & log_u.isfinite().all() & log_column.isfinite().all()):
            return False
        s_last, s = (self.s, *stage)[-2:]
        self.log_A, self.log_A_last, self.log_q = log_u + s * f, log_u_last + s_last * f, log_q
        self.row, self.column = log_row - s * f, log_column - s * g
        return True

    def of_matrix(self, x: Tensor, s: float, transposed: bool) -> Tensor:
        return _log_sum_exp_(x[..., None, :] - s * (self.C.mT if transposed else self.C), -1)

    def histogram(self) -> Tensor:
        return torch.softmax(self.log_q.flatten(1), 1).view_as(self.log_q)


# ------------------------------------------------------------------------- Rounding and certificate


def _round(plan: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """As :func:`round_to_marginals`; a and b in float64."""
    dtype = plan.dtype
    for marginal, axis in ((a, -1), (b, -2)):
        scale = (marginal / plan.sum(axis).double().clamp_min(1e-300)).clamp_max(1.0)
        plan.mul_(scale.to(dtype).unsqueeze(axis))
    missing_a = (a - plan.sum(-1)).clamp_min(0.0)
    missing_b = (b - plan.sum(-2)).clamp_min(0.0)
    missing_b = missing_b / missing_b.sum(-1, keepdim=True).clamp_min(1e-300)
    return plan.addcmul_(missing_a.to(dtype)[..., :, None], missing_b.to(dtype)[..., None, :])


def _certify(x: _Iteration) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The iterate's plan, rounded, feasible potentials f and g, the two bounds, and what rounding
    may have put between them."""
    cost, problem = x.cost, x.problem
    a, b, C = problem.a, problem.b, cost.C
    plan = _round(x.plan(), a, b)
    # beta / ds log(B_t / B_{t-1}), the last step's own dual variable: free of the O(1 / t) of the
    # mean over all steps, its bound is 2 to 6 times as close in d = 1, 2. Columns without mass put
    # no bound on the rows; their own potential follows from the rows.
    g = x.g + cost.beta / x.ds * (x.psi - x.psi_last)
    f, g = cost.c_transforms(torch.where(b > 0, g, -math.inf).to(C.dtype))
    lower_bound, dual_size = dual_value(f, g, a, b)
    value, size = cost.of_plan(plan)
    # What rounding leaves of the marginals' error costs its mass times the potentials, or at most
    # times the largest cost and the range.
    off = (a - _sum64(plan, -1)).abs(), (b - _sum64(plan, -2)).abs()
    error = sum((x * y.abs()).sum(-1) for x, y in zip(off, (f, g)))
    dearest = problem.high - problem.low + torch.maximum(problem.low.abs(), problem.high.abs())
    error = torch.minimum(error, dearest * sum(x.sum(-1) for x in off))
    info = torch.finfo(C.dtype)
    margin = 2 * error + (2 * info.eps + 16 * EPS) * size
    # Potentials are a difference of log-scalings times the temperature; large ones excuse no gap.
    noise = cost.beta[..., 0] * (1 + (b * x.psi.abs()).sum(-1))
    noise = (256 * EPS + info.eps) * torch.minimum(noise, cost.usual)
    most = (16 * info.eps + 64 * EPS) * size
    rounding = torch.minimum(2 * margin + 4 * info.eps * dual_size, most)
    return plan, f, g, value + margin, lower_bound, rounding + noise + info.tiny


def dual_value(f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """<a, f> + <b, g>, float64, less what its rounding may have added; and <a, |f|> + <b, |g|>."""
    terms = torch.cat((a * f, b * g), -1)
    size = terms.abs().sum(-1)
    return terms.sum(-1) - 4 * EPS * size, size


def certified(
    problem: Problem,
    f: Tensor,
    g: Tensor,
    value: Tensor,
    lower_bound: Tensor,
    rounding: Tensor,
    gradients: Callable[[], tuple[Tensor | None, ...]],
    *,
    n_iter: int,
    tol: float = 0.0,
) -> dict:
    """The fields of an answer but for its plan, in the caller's units, dtype and kind.

    The numbers are those of the problem in its own units, the bounds in float64; here they are
    rounded outwards. `gradients` makes the value's gradients in the inputs, in the caller's units.
    A gap within `rounding` passes for zero. Of the problem its mass, unit, dtype, inputs and
    give_back are read.
    """
    dtype, give, scale = problem.dtype, problem.give_back, problem.mass * problem.unit
    converged = value - lower_bound <= tol * value.abs() + rounding
    lower_bound = -round_up(-torch.minimum(lower_bound, value) * scale, dtype)
    value = round_up(value * scale, dtype)
    gap = value - lower_bound
    potentials = (-round_up(-x.double() * problem.unit[..., None], dtype) for x in (f, g))
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in problem.inputs):
        value = _Envelope.apply(value, gradients(), *problem.inputs)
    return {
        "value": give(value),
        "lower_bound": give(lower_bound),
        "gap": give(gap),
        "potentials": tuple(give(x) for x in potentials),
        "n_iter": n_iter,
        "converged": give(converged) if converged.ndim else bool(converged),
    }


class _Envelope(torch.autograd.Function):
    """A value whose gradients in the inputs are known (envelope theorem)."""

    @staticmethod
    def forward(ctx, value, gradients, *inputs):
        ctx.save_for_backward(*gradients)
        ctx.inputs = inputs
        return value.clone()

    @staticmethod
    @undisturbed
    def backward(ctx, grad):
        grads = []
        for gradient, x, wanted in zip(ctx.saved_tensors, ctx.inputs, ctx.needs_input_grad[2:]):
            grads.append(None)
            if wanted:
                rates = grad.reshape(grad.shape + (1,) * (gradient.ndim - grad.ndim))
                rates = (rates * gradient).sum_to_size(x.shape)
                again = torch.is_grad_enabled()  # the caller asks for derivatives of derivatives
                grads[-1] = _NoMore.apply(rates, grad, *ctx.inputs) if again else rates
        return None, None, *grads


class _NoMore(torch.autograd.Function):
    """A gradient that refuses to be differentiated: the plan in it depends on all inputs."""

    @staticmethod
    def forward(ctx, gradient, *inputs):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            "the value of a transport problem has first derivatives only; a second one was asked "
            "for, by create_graph=True, a Hessian or a penalty on the gradient"
        )


def round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The float64 tensor x in dtype, never smaller."""
    if dtype == x.dtype:
        return x
    y = x.to(dtype)
    return torch.where(y.double() < x, torch.nextafter(y, torch.full_like(y, math.inf)), y)


def next_below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, -math.inf))


def _sum64(x: Tensor, axis: int | tuple[int, int]) -> Tensor:
    """Sum in float64; torch makes a float64 copy first, which costs time where it is large."""
    if x.device.type == "cpu" and x.numel() > 2**20:
        return tensor(x.numpy().sum(axis, dtype=np.float64))
    return x.sum(axis, dtype=torch.float64)


# -------------------------------------------------------------------------------------------- Input


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked weights, the range of the cost, and the way back to the caller's kind of array.

    Weights and costs are in units that are powers of two, so that no digit is lost on the way.
    """

    a: Tensor  # (..., n), float64, in units of mass: of mass 0.75 to 1.5
    b: Tensor  # (..., m), float64, likewise
    mass: Tensor  # (...), float64: unit of the weights
    unit: Tensor  # (...), float64: unit of the cost
    low: Tensor  # (...), float64: smallest cost between points that have mass
    high: Tensor  # (...), float64: largest cost between them
    dtype: torch.dtype  # of the answer
    inputs: tuple[Tensor | None, ...]  # as given, for gradients
    give_back: Callable[[Tensor], Array]  # to the caller's dtype and kind of array

    def __post_init__(self):
        largest = torch.maximum(self.low.abs(), self.high.abs()) * self.unit
        if not bool((self.mass.clamp_min(1) * largest < torch.finfo(self.dtype).max / 4).all()):
            given = f"got {brief(self.mass)} times up to {brief(largest)}"
            raise ValueError(f"mass times cost must not overflow {self.dtype}; {given}")

    def in_weights(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The value's gradients in a and b. They sum to zero over the points that have mass, so
        that a step along them keeps the mass."""
        gradients = []
        for x, weights in ((f, self.a), (g, self.b)):
            has_mass = weights > 0
            total = torch.where(has_mass, x.double(), 0.0).sum(-1, keepdim=True)
            centred = x.double() - total / has_mass.sum(-1, keepdim=True)
            gradients.append(centred * self.unit[..., None])
        return tuple(gradients)


def as_tensors(
    free: tuple[str, ...] = (), /, **arrays: Array | None
) -> tuple[list[Tensor | None], Callable[[Tensor], Array]]:
    """Tensors on one device, and the way back to the caller's kind of array.

    Lists and integer arrays take the dtype of the floating-point ones, float64 if there are none.
    Those named in `free`, which are weights, may be float32 or float64; the others have one dtype,
    and it is that of the answer.
    """
    given = {name: x for name, x in arrays.items() if x is not None}
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
    numpy_names = [name for name, x in given.items() if isinstance(x, np.ndarray)]
    if tensors and numpy_names:
        raise TypeError(
            f"NumPy and torch inputs are mixed: {', '.join(tensors)} torch, "
            f"{', '.join(numpy_names)} NumPy; give all of one kind"
        )
    devices = sorted({str(x.device) for x in tensors.values()})
    if len(devices) > 1:
        raise ValueError(f"inputs must be on one device; got {', '.join(devices)}")
    dtypes = {}
    for name, x in given.items():
        if name in tensors:
            _check_tensor(name, x)
        check_unmasked(name, x)
        if name not in tensors:
            try:
                given[name] = x = np.asarray(x)
            except ValueError as error:
                raise ValueError(f"{name} is not a rectangular array: {error}") from None
        kind = str(x.dtype).removeprefix("torch.") if name in tensors else x.dtype.name
        if kind in ("float32", "float64") and (name in tensors or name in numpy_names):
            dtypes[name] = kind
        elif not kind.startswith(("int", "uint", "bool", "float32", "float64")):
            raise TypeError(f"{name} must be float32 or float64 (or integers); got {kind}")
    leading = {name: kind for name, kind in dtypes.items() if name not in free}
    if len(set(leading.values())) > 1:
        each = ", ".join(f"{name} {kind}" for name, kind in leading.items())
        raise TypeError(f"inputs must have one dtype; got {each}")
    dtype = max((leading or dtypes).values(), default="float64")

    def to_tensor(name: str) -> Tensor | None:
        x, own = given.get(name), dtypes.get(name, dtype)
        if x is None or name in tensors:
            return x if x is None else x.resolve_neg().to(getattr(torch, own))
        x = torch.from_numpy(np.require(x, own, ["C", "W"]))
        return x.to(devices[0]) if devices else x

    def give_back(x: Tensor) -> Array:
        x = x.to(getattr(torch, dtype)) if x.is_floating_point() else x
        return x if tensors else x.cpu().numpy()[()]

    return [to_tensor(name) for name in arrays], give_back


def check_unmasked(name: str, x: object) -> None:
    parts = x if isinstance(x, (list, tuple)) else [x]
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise TypeError(f"{name} is a masked array; leave the masked entries out, or fill them")


def _check_tensor(name: str, x: Tensor) -> None:
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got layout {x.layout}")
    forward = torch.autograd.forward_ad.unpack_dual(x).tangent is not None
    if forward or torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise TypeError(
            f"{name} is inside torch.func.grad, vmap, jvp or another of torch's transforms, which "
            f"a solver in NumPy cannot enter; use backward() or torch.autograd.grad for gradients, "
            f"and leading dimensions for a batch"
        )


def read_problem(
    M: Array,
    a: Array | None,
    b: Array | None,
    names: tuple[str, str, str] = ("M", "a", "b"),
    precise: bool = False,
) -> tuple[Tensor, Problem]:
    """The cost (..., n, m) in its unit, and the problem; `precise` computes in float64 in any case.

    Of two masses that differ a little the answer has that of the rows; if `precise` that of the
    columns, on which Algorithm 1 ends.
    """
    if M is None:
        raise TypeError(f"{names[0]} must be an array of shape (..., n, m); got None")
    inputs, give_back = as_tensors(names[1:], **dict(zip(names, (M, a, b))))
    C = inputs[0].detach()
    shape = tuple(C.shape)
    if C.ndim < 2 or C.numel() == 0:
        raise ValueError(f"{names[0]} must have shape (..., n, m) with n, m >= 1; got {shape}")
    C = C.double() if precise else C
    against = f"{names[0]} of shape {shape}"
    a, b, mass = read_weights(inputs[1:], shape[-2:], names[1:], against, inputs[0], precise)
    batch = read_batch(dict(zip(names, (shape[:-2], a.shape[:-1], b.shape[:-1]))))
    low, high = cost_range(names[0], C)
    largest = torch.maximum(low.abs(), high.abs())
    if bool((a == 0).any() | (b == 0).any()):
        # Points without mass have no say in what the cost's range is.
        active = (a > 0)[..., :, None] & (b > 0)[..., None, :]
        low = torch.where(active, C, math.inf).amin((-2, -1)).double()
        high = torch.where(active, C, -math.inf).amax((-2, -1)).double()
    unit = cost_unit(low, high, largest, torch.finfo(C.dtype).max ** 0.75)
    if bool((unit != 1).any()):
        C = C / unit.to(C.dtype)[..., None, None]
    mass, unit, low, high = (x.expand(batch) for x in (mass, unit, low / unit, high / unit))
    a, b = a.expand(*batch, -1), b.expand(*batch, -1)
    problem = Problem(a, b, mass, unit, low, high, C.dtype, tuple(inputs), give_back)
    return C.expand(*batch, *shape[-2:]), problem


def read_batch(shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The batch dimensions that all of them broadcast to."""
    given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
    try:
        batch = np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(f"batch dimensions do not match: {given}") from None
    if 0 in batch:
        raise ValueError(f"the batch is empty; batch dimensions are {given}")
    return batch


def read_weights(
    given: tuple[Tensor | None, ...],
    sizes: tuple[int, int],
    names: tuple[str, ...],
    against: str,
    like: Tensor,
    of_columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two weights of equal mass, float64, in a unit of mass that is a power of two, and the unit.

    Their mass is that of the rows, or of the columns.
    """
    weights = []
    for name, x, size in zip(names, given, sizes):
        if x is None:
            x = torch.full((size,), 1 / size, dtype=torch.float64, device=like.device)
        elif x.ndim < 1 or x.shape[-1] != size:
            wanted = f"(..., {size}) to match {against}"
            raise ValueError(f"{name} must have shape {wanted}; got {tuple(x.shape)}")
        weights.append(read_mass(name, x.detach()))
    (a, unit), (b, unit_b) = weights
    b = b * (unit_b / unit)[..., None]
    if all(x is None for x in given):
        return a, b, unit
    mass_a, mass_b = a.sum(-1), b.sum(-1)
    tolerance, difference = mass_tolerance(like, *given), (mass_a - mass_b).abs()
    if not bool((difference <= tolerance * torch.minimum(mass_a, mass_b)).all()):
        raise ValueError(
            f"{names[0]} and {names[1]} must have equal mass (to {tolerance:g} relative); "
            f"got {brief(mass_a * unit)} and {brief(mass_b * unit)}"
        )
    # Masses that are equal but for their own rounding leave the weights as they are.
    differ = difference > 2 * EPS * mass_a
    if of_columns:
        a = a * torch.where(differ, mass_b / mass_a, 1.0)[..., None]
    else:
        b = b * torch.where(differ, mass_a / mass_b, 1.0)[..., None]
    return a, b, unit


def mass_tolerance(*arrays: Tensor | None) -> float:
    """By how much masses may differ, relative, that were computed in these arrays' dtypes."""
    return 1e-4 if any(x is not None and x.dtype == torch.float32 for x in arrays) else 1e-6


def read_mass(name: str, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (..., n) in float64, of mass 0.75 to 1.5 in units of a power of two, and the unit.

    Negative entries that rounding explains are taken as zero.
    """
    x, top = weights.double(), weights.amax(-1).double()
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite; got NaN or inf")
    if bool((x < 0).any()):
        if bool((x < -8 * torch.finfo(weights.dtype).eps * top[..., None]).any()):
            smallest = float(x.min())
            raise ValueError(f"{name} must be non-negative; the smallest entry is {smallest:.6g}")
        x = x.clamp_min(0.0)
    if bool((top <= 0).any()):
        raise ValueError(f"{name} must have positive mass; the total is zero")
    unit = power_of_two(top)
    x = x / unit[..., None]
    more = power_of_two(x.sum(-1) / 0.75)
    return x / more[..., None], unit * more


def read_shares(weights: Tensor | None, count: int, device: torch.device) -> Tensor:
    """Weights (..., K) of a barycenter's K = count inputs, float64, of sum 1."""
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64, device=device)
    if weights.ndim < 1 or weights.shape[-1] != count or weights.numel() == 0:
        wanted = f"(..., {count}), one for each input"
        raise ValueError(f"weights must have shape {wanted}; got {tuple(weights.shape)}")
    shares, unit = read_mass("weights", weights.detach())
    total = shares.sum(-1, keepdim=True)
    if not bool(((total * unit[..., None] - 1).abs() <= mass_tolerance(weights)).all()):
        raise ValueError(f"weights must sum to 1; they sum to {brief(total * unit[..., None])}")
    return shares / total


def power_of_two(x: Tensor) -> Tensor:
    """The largest power of two that is no larger than x > 0, exactly."""
    return x / (2 * torch.frexp(x).mantissa)


def near_power(size: Tensor, bits: int, largest: Tensor | None = None, room: float = 1) -> Tensor:
    """A power of two to divide numbers of this size by; 1 if they are within 2^bits of that.

    No number becomes larger than `room`, if one is as large as `largest`.
    """
    usual = (size == 0) | ((size > 2.0**-bits) & (size < 2.0**bits))
    unit = power_of_two(torch.where(usual, 1.0, size))
    if largest is None:
        return unit
    return torch.maximum(unit, power_of_two(largest.clamp_min(1e-300)) / room)


def cost_unit(low: Tensor, high: Tensor, *far: Tensor | float) -> Tensor:
    """The unit (...) of costs from low to high, see :func:`near_power`."""
    return near_power(torch.maximum(low.abs(), high.abs()), 40, *far)


def _proximal_step(
    beta: float | Array, spread: Tensor, unit: Tensor, equal: Tensor | float = 1.0
) -> Tensor:
    """beta (..., 1) in the unit of the cost, whose range is `spread` (...); float64.

    Where all costs are equal it is `equal`: the plan is then the product of the weights.
    """
    check_unmasked("beta", beta)
    if isinstance(beta, Tensor):
        _check_tensor("beta", beta)
    try:
        step = torch.as_tensor(
            None if isinstance(beta, bool) else beta, dtype=torch.float64, device=unit.device
        ).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"beta must be a number or an array of numbers; got {beta!r}") from None
    if step.ndim and step.shape != spread.shape:
        shapes = f"{tuple(spread.shape)}; got {tuple(step.shape)}"
        raise ValueError(f"beta must have the batch shape {shapes}")
    if not bool((torch.isfinite(step) & (step > 0)).all()):
        raise ValueError(f"beta must be positive and finite; got {brief(step)}")
    if bool((step / unit < 1e-12 * spread).any()):
        least = f"1e-12 of the cost's range {brief(spread * unit)}"
        raise ValueError(f"beta must be at least {least}; got {brief(step)}")
    # So it is, to rounding, from 1e12 on.
    return torch.where(spread > 0, torch.minimum(step / unit, 1e12 * spread), equal)[..., None]


def cost_range(name: str, C: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest cost of each problem, float64; refuses NaN and inf."""
    low, high = C.amin((-2, -1)).double(), C.amax((-2, -1)).double()
    if not bool((low.isfinite() & high.isfinite()).all()):
        bad = int((~torch.isfinite(C)).sum())
        raise ValueError(f"{name} must be finite; {bad} of {C.numel()} entries are NaN or inf")
    return low, high


def check_count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def read_number(name: str, value: float) -> float:
    """A finite number from 0 up."""
    if isinstance(value, Tensor):
        _check_tensor(name, value)
    try:
        number = float(None if isinstance(value, (str, bool)) else value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number; got {value!r}") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0; got {value!r}")
    return number


def brief(x: Tensor) -> str:
    """A number, or the range of several."""
    low, high = float(x.min()), float(x.max())
    return f"{low:.9g}" if low == high else f"{low:.9g} to {high:.9g}"
