"""Wasserstein barycenters of histograms, certified.

The barycenter of histograms A_k with weights w_k minimises sum_k w_k W(q, A_k) over histograms q.

The iteration is IPOT-WB (Algorithm 2 of Xie, Wang, Wang, Zha, UAI 2019) in exponent form (see
`ipot.BarycenterIteration`). Its proximal steps grow: after t iterations the temperature is

    eps_t = max(span / t^2, 3e-6 span)

instead of beta / t, with span the cost's range, to which a few huge costs do not count. In 100
iterations these steps come as close as Algorithm 2 in some 10,000 (benchmarks/barycenters.py).

The dual: potentials f_k on the bins of q and g_k on those of A_k, with f_ki + g_kj <= C_ij for all
i, j and sum_k w_k f_ki = 0 for all i, prove that no histogram has an objective below
sum_k w_k <g_k, A_k>. Any f_k will do, after their weighted mean is taken off: g_k is the
c-transform of f_k.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from exactot.grids import GridCost, squared_distances_on
from exactot.line import is_monge, monotone_barycenters, monotone_cost
from exactot.linear_program import solve_barycenter
from exactot.solve import solve
from ipot import (
    EPS,
    Array,
    BarycenterIteration,
    Result,
    as_tensors,
    certified,
    check_count,
    cost_range,
    cost_unit,
    read_mass,
    read_number,
    read_shares,
    round_up,
    undisturbed,
)

# benchmarks/barycenters.py chose these.
NOISE = 1e-9  # of a linear program's solution, in units of its costs
COLDEST = 3e-6  # temperature at the end, in units of the cost's range
BINS = 512  # up to which the value is that of optimal plans
KERNELS = 2**22  # entries of kernels that are kept, each relative to its plan
WARM_UP = 20  # iterations before a gap is looked at


@dataclass(frozen=True, eq=False)
class Barycenter(Result):
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
        and with `exact`. `value.backward()` gives the envelope gradient in A and in the weights:
        that of the optimum, as far as the gap is closed. In M there is none.
    lower_bound : array, shape (...)
        Dual value of the potentials: no histogram has a smaller objective.
    gap : array, shape (...)
        `value - lower_bound`, never negative.
    potentials : (f, g), both of shape (..., n, K) or (..., *grid, K)
        f on the barycenter's bins, g on the inputs'; f_ki + g_kj <= M_ij, and sum_k weights_k f_ki
        vanishes, both to rounding.
    n_iter : int
        Iterations that were run; none where there is a closed form.
    converged : bool or boolean array, shape (...)
        Whether the gap is at most `tol * |value|` (zero without a `tol`), up to 1e-9 of the value
        and of the cost's range.
    """

    histogram: Array = field(repr=False)
    value: Array
    lower_bound: Array
    gap: Array
    potentials: tuple[Array, Array] = field(repr=False)
    n_iter: int
    converged: bool | Array


@undisturbed
def barycenter(
    A: Array,
    M: Array | None = None,
    weights: Array | None = None,
    *,
    grid: float | tuple[float, ...] | None = None,
    max_iter: int = 300,
    tol: float | None = None,
    exact: bool = False,
) -> Barycenter:
    """The Wasserstein barycenter of histograms, with a certified gap.

    Minimises sum_k weights_k W(q, A_k) over histograms q by IPOT-WB with growing steps. Each of the
    K plans is two vectors, and on a grid the kernel is applied axis by axis, so that the memory is
    O(n K) and one matrix an axis.

    Where the cost is that of a convex function of the distance on a line (any Monge matrix, any 1-D
    grid), `tol` and `exact` take a closed form instead (see `exactot.line`).

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
    max_iter : int
        Iterations.
    tol : float, optional
        Stop once `gap <= tol * |value|`, for every weight vector. Off the line a gap below some
        1e-5 of the cost's range takes `exact`: eps ends there.
    exact : bool
        Solve the linear program, with SciPy's HiGHS on the arcs that the iterations single out, to
        a gap of zero to rounding; for small problems (n K up to about 2,000).

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
        or not one for each axis, max_iter < 1, tol < 0.
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
    check_count("max_iter", max_iter)
    tol = None if tol is None else read_number("tol", tol)
    problem = _read_histograms(A, M, weights, grid)
    if (exact or tol is not None) and problem.on_a_line:
        C, p, shares = (x.cpu().numpy() for x in (problem.matrix, problem.p, problem.weights))
        q, f, costs = (
            torch.from_numpy(x).to(problem.p) for x in monotone_barycenters(C, p, shares)
        )
        return _certified(problem, q, f, costs, tol or 0.0, 0)
    iteration = _iteration(problem)
    for t in iteration.run(max_iter, problem.temperature):
        if exact or not (t == max_iter or (tol and t > WARM_UP)):
            continue
        q, f = iteration.histogram(), iteration.log_A / iteration.s
        found = _certified(problem, q, f, _plan_costs(problem, iteration, q), tol or 0.0, t)
        if tol and bool(torch.as_tensor(found.converged).all()):
            break
    if exact:
        q, f = _linear_programs(problem, iteration)
        return _certified(problem, q, f, _optimal_costs(problem, q), tol or 0.0, max_iter)
    return found


@dataclass(frozen=True, eq=False)
class _Histograms:
    """Validated input: K inputs on bins of some shape, W weight vectors."""

    p: Tensor  # (K, *shape), float64, each of mass 1
    masses: Tensor  # (K,), float64: of the inputs as given
    weights: Tensor  # (W, K), float64, each of sum 1
    batch: tuple[int, ...]  # of the weights; W is its product
    cost: GridCost
    on_a_line: bool  # the cost is a Monge matrix
    dtype: torch.dtype  # of the answer
    inputs: tuple[Tensor, Tensor | None]  # A and weights as given, for gradients
    give_back: Callable[[Tensor], Array]
    unit: Tensor  # (), float64: a power of two that the cost was divided by
    mass: float = 1.0  # of the answer

    @property
    def matrix(self) -> Tensor:
        """The cost matrix of one axis."""
        return self.cost.axes[0].C

    def temperature(self, t: int) -> float:
        return self.cost.usual * max(1 / t**2, COLDEST)

    def mean(self, x: Tensor) -> Tensor:
        """sum_k weights_k x_k for x (W, K, *shape)."""
        return (self.weights.view(*self.weights.shape, *(1,) * (x.ndim - 2)) * x).sum(1)


def _iteration(problem: _Histograms) -> BarycenterIteration:
    """On kernels where these are few and small, otherwise axis by axis."""
    count, n = problem.weights.numel(), len(problem.matrix)
    small = len(problem.cost.axes) == 1 and count * n**2 <= KERNELS
    C = problem.matrix if small else None
    return BarycenterIteration(problem.p, problem.weights, C, problem.cost.log_product)


def _plan_costs(problem: _Histograms, iteration: BarycenterIteration, q: Tensor) -> Tensor:
    """Costs (W, K) of plans between q and each input: optimal ones where that is cheap."""
    if problem.on_a_line:
        C, p = problem.matrix.cpu().numpy(), problem.p.cpu().numpy()
        costs = [[monotone_cost(C, x, y) for y in p] for x in q.cpu().numpy()]
        return torch.tensor(costs, dtype=torch.float64, device=q.device)
    if q[0].numel() <= BINS:
        return _optimal_costs(problem, q)
    log_B = problem.p.log() - iteration.column
    return problem.cost.rounded_costs(iteration.log_A, log_B, iteration.s, q, problem.p)


def _optimal_costs(problem: _Histograms, q: Tensor) -> Tensor:
    """W(q, p_k), (W, K)."""
    p = problem.p.flatten(1)
    q = q.flatten(1)[:, None].expand(-1, len(p), -1)
    return solve(problem.cost.matrix(), q, p.expand_as(q)).value


def _linear_programs(problem: _Histograms, iteration: BarycenterIteration) -> tuple[Tensor, Tensor]:
    """Optimal q and f, from those of the iteration."""
    q, f = iteration.histogram(), iteration.log_A / iteration.s
    C, p = problem.cost.matrix().cpu().numpy(), problem.p.flatten(1).cpu().numpy()
    near = (x.cpu().numpy() for x in (problem.weights, q.flatten(1), f.flatten(2)))
    found = [solve_barycenter(C, problem.cost.usual, p, *each) for each in zip(*near)]
    best_q, best_f = (torch.from_numpy(np.stack(x)).to(q) for x in zip(*found))
    return best_q.view_as(q), best_f.view_as(f)


def _certified(
    problem: _Histograms, q: Tensor, f: Tensor, costs: Tensor, tol: float, n_iter: int
) -> Barycenter:
    """What potentials f (W, K, *shape) and plans of these costs (W, K) prove about q."""
    cost, dtype, batch = problem.cost, problem.dtype, problem.batch
    bins = tuple(range(2, f.ndim))
    # Two c-transforms of f less its largest entry: nowhere smaller, and within the cost's range.
    f = cost.c_transform(cost.c_transform(f - f.amax(bins, keepdim=True)), transposed=False)
    f = (f - problem.mean(f)[:, None]).to(dtype).double()
    g = cost.c_transform(f)
    slack = 32 * EPS * (g.abs() + f.abs().amax(bins, keepdim=True))
    g = -round_up(slack - g, dtype).double()
    gains = (g * problem.p).sum(bins)
    # The potentials where there is mass: huge costs that no mass pays do not add to rounding.
    size = torch.where(problem.p > 0, g.abs(), 0.0).amax(bins)
    size = size + torch.where(q[:, None] > 0, f.abs(), 0.0).amax(bins)
    size = (problem.weights * size).sum(1)
    rounding = (8 * torch.finfo(dtype).eps + 128 * EPS) * size + NOISE * (size + cost.usual)
    # What is left of the weighted mean of f lowers the bound.
    left = problem.mean(f).flatten(1).amin(1)
    lower = (problem.weights * gains).sum(1) + left - 32 * EPS * size
    value = (problem.weights * costs).sum(1) + 32 * EPS * size

    def shaped(x: Tensor) -> Tensor:
        return x.reshape((*batch, *x.shape[1:]))

    def gradients() -> tuple[Tensor, Tensor]:
        ones = (1,) * len(bins)
        rates = (problem.weights / problem.masses).view(*gains.shape, *ones)
        in_A = shaped((rates * (g - gains.view(*gains.shape, *ones))).movedim(1, -1))
        in_use = problem.weights > 0
        mean = torch.where(in_use, costs, 0.0).sum(1, keepdim=True) / in_use.sum(1, keepdim=True)
        return problem.unit * in_A, problem.unit * shaped(costs - mean)

    bounds = certified(
        problem,
        shaped(f.movedim(1, -1)),
        shaped(g.movedim(1, -1)),
        shaped(value),
        shaped(lower),
        shaped(rounding),
        gradients,
        n_iter=n_iter,
        tol=max(tol, 1e-9),
    )
    return Barycenter(histogram=problem.give_back(shaped(q)), **bounds)


def _read_histograms(
    A: Array | None,
    M: Array | None,
    weights: Array | None,
    grid: float | tuple[float, ...] | None,
) -> _Histograms:
    """Checked inputs in float64, A's columns scaled to mass 1."""
    if A is None:
        raise TypeError("A must be an array of shape (n, K) or (*grid, K); got None")
    if (M is None) == (grid is None):
        given = "neither" if M is None else "both"
        raise ValueError(f"give either the cost matrix M or the spacing of the grid; got {given}")
    free = ("weights",) if M is None else ("A", "weights")
    (A, M, weights), give_back = as_tensors(free, A=A, M=M, weights=weights)
    dtype = A.dtype if M is None else M.dtype
    if A.ndim not in ((2,) if grid is None else (2, 3, 4)) or A.numel() == 0:
        shape = "(n, K)" if grid is None else "(*grid, K) with one to three axes of a grid"
        raise ValueError(f"A must have shape {shape}, K >= 1; got {tuple(A.shape)}")
    p, unit_of_mass = read_mass("A's columns", A.detach().movedim(-1, 0).flatten(1))
    masses = p.sum(1)
    p = (p / masses[:, None]).view(-1, *A.shape[:-1])
    shares = read_shares(weights, len(p), p.device)
    if grid is None:
        n = len(A)
        if M.shape != (n, n):
            wanted = f"(n, n) = {(n, n)} like A's rows"
            raise ValueError(f"M must have shape {wanted}; got {tuple(M.shape)}")
        unit = cost_unit(*cost_range("M", M.detach()))
        cost = GridCost([M.detach().double() / unit])
    else:
        cost, unit = squared_distances_on(grid, p.shape[1:], p.device)
    largest = cost.largest * unit
    if not bool(largest < torch.finfo(dtype).max / 4):
        raise ValueError(f"costs must not overflow {dtype}; the largest is {float(largest):.3g}")
    return _Histograms(
        p,
        masses * unit_of_mass,
        shares.reshape(-1, len(p)),
        tuple(shares.shape[:-1]),
        cost,
        len(cost.axes) == 1 and is_monge(cost.axes[0].C),
        dtype,
        (A, weights),
        give_back,
        unit,
    )
