"""Optimal transport to a certified gap, exact by default.

The problem is min <P, C> over plans P >= 0 with P 1 = a, P^T 1 = b, for a cost matrix or for the
distances between two clouds. `columns` finds a flow and potentials for it; clouds on a line have a
closed form (`line`). This file reads the input and proves the answer.

The proof. The flow's cost bounds W from above. The flow's potentials bound it from below:
<a, f> + <b, g> <= W for every f, g with f_i + g_j <= C_ij. Both bounds are rounded outwards in the
caller's dtype.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from exactot.columns import solve_flow
from exactot.costs import CloudRows, MatrixRows, Metric, Rows
from exactot.line import sorted_flow
from exactot.plans import ExactTransport, Flow, dense, point_gradients
from ipot import (
    Array,
    Problem,
    as_tensors,
    certified,
    dual_value,
    next_below,
    proximal_step,
    read_batch,
    read_number,
    read_problem,
    read_weights,
    round_up,
    without_autocast,
)


@without_autocast
def solve(
    M: Array, a: Array | None = None, b: Array | None = None, *, tol: float = 0.0
) -> ExactTransport:
    """Optimal transport for a cost matrix: exact, or to a certified gap.

    Solves min <P, M> over P >= 0, P 1 = a, P^T 1 = b by annealed potentials, a network simplex
    (POT's, on the CPU) on the arcs of smallest reduced cost, and pricing of all arcs.

    Parameters
    ----------
    M : array, shape (..., n, m)
        Cost, NumPy or torch, float32 or float64, of any sign and scale; leading dimensions are a
        batch.
    a, b : array, shapes (..., n) and (..., m), optional
        Weights, non-negative (zeros are fine) and of equal, positive mass; uniform with mass 1 if
        left out. Without batch dimensions they serve the whole batch. A difference of mass within
        1e-6 (float32: 1e-4), relative, is made up by scaling b.
    tol : float
        Stop once `gap <= tol * |value|`; each problem of a batch stops by itself. With 0 the plan
        is optimal: the value is that of the linear program, and the gap is zero to rounding.

    Returns
    -------
    ExactTransport
        A :class:`ipot.Transport` with one more field, `sparse_plan`; its dense `plan` is formed
        when it is first read. `n_iter` counts the sweeps of the annealing, and `converged` also
        holds where no arc is left that could improve the plan.

    Raises
    ------
    TypeError
        NumPy mixed with torch, mixed dtypes, not float32 or float64.
    ValueError
        Shapes that do not match, empty arrays, NaN or inf, negative weights, no mass or unequal
        mass, devices that differ, tol < 0.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([0.0, 1.0, 3.0]), np.array([5.0, 6.0, 8.0])
    >>> transport = solve((x[:, None] - y) ** 2)
    >>> print(f"{transport.value:.6f}", transport.converged)
    25.000000 True
    >>> transport.plan
    array([[0.33333333, 0.        , 0.        ],
           [0.        , 0.33333333, 0.        ],
           [0.        , 0.        , 0.33333333]])

    A sparse plan is applied, projected and searched by SciPy:

    >>> P = transport.sparse_plan
    >>> P @ y  # apply it to a vector, or to the columns of a matrix
    array([1.66666667, 2.        , 2.66666667])
    >>> (P @ y) / P.sum(1)  # barycentric projection: where each point goes in the mean
    array([5., 6., 8.])
    >>> P.tocsr().argmax(1).ravel()  # the best partner of each point
    array([0, 1, 2])
    >>> [np.sort(row.data)[:-3:-1] for row in P.tocsr()]  # the two largest entries of each row
    [array([0.33333333]), array([0.33333333]), array([0.33333333])]
    """
    tol = read_number("tol", tol)
    C, problem = read_problem(M, a, b)
    costs = (MatrixRows(C[k]) for k in np.ndindex(C.shape[:-2]))
    flows, bounds = _solve_flows(problem, costs, tol)
    return _transport(problem, flows, *bounds, tol)


@without_autocast
def solve_sample(
    X_a: Array,
    X_b: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    metric: str | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    tol: float = 0.0,
) -> ExactTransport:
    """Optimal transport between two point clouds: exact, or to a certified gap.

    As :func:`solve` for the matrix of `metric(x_i, y_j)`, which is never formed: it is computed in
    blocks of rows of a few megabytes wherever it is read. The memory is O((n + m) d), and that of 8
    to 60 arcs a row. Points on a line (d = 1, a named metric) are sorted instead.

    Parameters
    ----------
    X_a, X_b : array, shapes (..., n, d) and (..., m, d)
        Points, NumPy or torch, float32 or float64; leading dimensions are a batch.
    a, b : array, shapes (..., n) and (..., m), optional
        Weights, as in :func:`solve`.
    metric : "sqeuclidean", "euclidean", "cityblock" or callable
        Cost between points. A callable takes torch tensors (n, d) and (m, d) in the clouds' dtype
        to (n, m), and must be differentiable if gradients in the points are wanted. Parameters of
        its own get no gradient.
    tol : float
        As in :func:`solve`.

    Returns
    -------
    ExactTransport
        As that of :func:`solve`. `value` is differentiable in X_a, X_b, a and b: the gradient in
        the points is the plan times that of the metric.

    Raises
    ------
    TypeError, ValueError
        As :func:`solve`; also for points whose dimensions differ and for an unknown metric.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([[0.0], [1.0], [3.0]]), np.array([[5.0], [6.0], [8.0]])
    >>> print(f"{solve_sample(x, y).value:.6f}")
    25.000000
    """
    tol, metric = read_number("tol", tol), Metric(metric)
    inputs, give_back = as_tensors(X_a=X_a, X_b=X_b, a=a, b=b)
    batch = _read_batch_of_clouds(*inputs)
    x, y = (X.detach().expand(*batch, *X.shape[-2:]) for X in inputs[:2])
    line = bool(metric.name) and x.shape[-1] == 1

    def costs() -> Iterator[CloudRows]:
        return (CloudRows(x[k], y[k], metric) for k in np.ndindex(batch))

    problem = _read_clouds(costs(), batch, inputs, give_back, line)
    flows, (f, g, value, bound) = _solve_flows(problem, costs(), tol, line)
    # A named metric's cost is computed in float64, to a few roundings.
    rounding = metric.rounding(x.shape[-1])
    value, bound = value + rounding * value.abs(), bound - rounding * bound.abs()

    def of_points() -> tuple[Tensor | None, Tensor | None]:
        if not any(X.requires_grad for X in inputs[:2]):
            return None, None
        each = [
            point_gradients(flow, float(problem.mass[k]), x[k], y[k], metric)
            for flow, k in zip(flows, np.ndindex(batch))
        ]
        return tuple(torch.stack(z).reshape(like.shape) for z, like in zip(zip(*each), (x, y)))

    return _transport(problem, flows, f, g, value, bound, tol, of_points)


def _solve_flows(
    problem: Problem, costs: Iterable[Rows], tol: float, line: bool = False
) -> tuple[list[Flow], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A flow for each problem of the batch, and f, g and the two bounds that they prove."""
    batch, device = problem.mass.shape, problem.mass.device
    first = proximal_step(None, problem.low, problem.high)[..., 0]  # temperature
    flows, parts = [], []
    for k, cost in zip(np.ndindex(batch), costs):
        # Points without mass have no say: only their own potentials depend on them.
        rows, columns = problem.a[k].nonzero().ravel(), problem.b[k].nonzero().ravel()
        part, a, b = cost.restricted(rows, columns), problem.a[k][rows], problem.b[k][columns]
        flow = sorted_flow(part, a, b) if line else solve_flow(part, a, b, float(first[k]), tol)
        f, g = _below(flow.f, problem.dtype), -round_up(-flow.g, problem.dtype)
        bound = float(dual_value(f, g, a, b)) - part.error
        value = flow.cost
        if part.error:
            value = float(torch.from_numpy(flow.mass).to(device) @ part.along(*flow.indices()))
        if part is not cost:
            f, g = _extended(cost, rows, columns, f, g)
            rows, columns = rows.cpu().numpy(), columns.cpu().numpy()
            flow = replace(flow, rows=rows[flow.rows], columns=columns[flow.columns])
        flows.append(flow)
        parts.append((f, g, value, bound))
    f, g, *numbers = zip(*parts)
    f, g = (torch.stack(x).reshape(*batch, -1) for x in (f, g))
    value, bound = (torch.tensor(x, dtype=torch.float64, device=device) for x in numbers)
    return flows, (f, g, value.reshape(batch), bound.reshape(batch))


def _extended(
    cost: Rows, rows: Tensor, columns: Tensor, f: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """Feasible potentials of some rows and columns, and the largest that these allow the others."""
    everywhere = torch.arange(cost.shape[0], device=f.device)
    least = cost.restricted(everywhere, columns).row_minima(g.double())
    f = _below(least, f.dtype).index_copy(0, rows, f)
    return f, _below(cost.column_minima(f.double()), g.dtype).index_copy(0, columns, g)


def _below(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The float64 tensor x in dtype, smaller by a rounding at least."""
    return -round_up(-next_below(x), dtype)


def _transport(
    problem: Problem,
    flows: list[Flow],
    f: Tensor,
    g: Tensor,
    value: Tensor,
    bound: Tensor,
    tol: float,
    of_points: Callable[[], tuple] | None = None,
) -> ExactTransport:
    """The answer. `of_points` makes the gradients in the points, where clouds were given."""
    batch, shape = problem.mass.shape, (problem.a.shape[-1], problem.b.shape[-1])
    masses = problem.mass.ravel().tolist()
    plans = [flow.plan(shape, mass, problem.give_back) for flow, mass in zip(flows, masses)]
    # Up to the rounding of the simplex's potentials an optimal flow has no gap.
    optimal = torch.tensor([flow.optimal for flow in flows], device=f.device).reshape(batch)
    allowed = optimal * 1e-9 * (value.abs() + problem.largest)

    def gradients() -> tuple[Tensor | None, ...]:
        if of_points is not None:
            return *of_points(), f, g
        return dense(plans, batch) if problem.inputs[0].requires_grad else None, f, g

    return ExactTransport(
        sparse_plan=plans if batch else plans[0],
        **certified(
            problem,
            value,
            bound,
            (f, g),
            gradients,
            n_iter=max(x.sweeps for x in flows),
            tol=tol,
            allowed=allowed,
        ),
    )


def _read_clouds(
    costs: Iterable[CloudRows],
    batch: tuple[int, ...],
    inputs: list[Tensor | None],
    give_back: Callable[[Tensor], Array],
    line: bool,
) -> Problem:
    X_a, X_b, *weights = inputs
    sizes, against = (X_a.shape[-2], X_b.shape[-2]), f"X_a {tuple(X_a.shape)}"
    against += f" and X_b {tuple(X_b.shape)}"
    (a, b), (mass, _) = read_weights(weights, sizes, ("a", "b"), against, X_a)
    a, b, mass = a.expand(*batch, -1), b.expand(*batch, -1), mass.expand(batch)
    spans = []
    for k, cost in zip(np.ndindex(batch), costs):
        rows, columns = a[k].nonzero().ravel(), b[k].nonzero().ravel()
        part = cost.restricted(rows, columns)
        spans.append((part.ends() if line else part).span())
    low, high = (torch.stack(x).reshape(batch) for x in zip(*spans))
    return Problem(a, b, mass, low, high, X_a.dtype, tuple(inputs), give_back)


def check_points(name: str, X: Tensor | None) -> None:
    """Refuse what is no cloud (..., n, d) of finite points."""
    if X is None:
        raise TypeError(f"{name} must be an array of shape (..., n, d); got None")
    if X.ndim < 2 or X.numel() == 0:
        wanted = "(..., n, d) with n, d >= 1"
        raise ValueError(f"{name} must have shape {wanted}; got {tuple(X.shape)}")
    if not bool(X.isfinite().all()):
        bad = int((~X.isfinite()).sum())
        raise ValueError(f"{name} must be finite; {bad} of {X.numel()} entries are NaN or inf")
    limit = torch.finfo(X.dtype).max ** 0.5 / 1e8  # its square, and steps, still fit
    if not bool((X.abs() < limit).all()):
        raise ValueError(f"{name} must be below {limit:.3g} in size, for its dtype {X.dtype}")


def _read_batch_of_clouds(
    X_a: Tensor | None, X_b: Tensor | None, a: Tensor | None, b: Tensor | None
) -> tuple[int, ...]:
    """The batch dimensions of all."""
    check_points("X_a", X_a)
    check_points("X_b", X_b)
    if X_a.shape[-1] != X_b.shape[-1]:
        shapes = f"{tuple(X_a.shape)} and {tuple(X_b.shape)}"
        raise ValueError(f"X_a and X_b must have the same last dimension; got {shapes}")
    shapes = {"X_a": X_a.shape[:-2], "X_b": X_b.shape[:-2]}
    for name, weights in (("a", a), ("b", b)):
        if weights is not None and weights.ndim:
            shapes[name] = weights.shape[:-1]
    return read_batch(shapes)
