"""Optimal transport to a certified gap, exact by default.

The problem is min <P, C> over plans P >= 0 with P 1 = a, P^T 1 = b, for a cost matrix or for the
distances between two clouds. `columns` finds a flow and potentials for it; clouds on a line have a
closed form (`line`). This file reads the input and proves the answer.

The proof. The flow's cost bounds W from above. The flow's potentials bound it from below:
<a, f> + <b, g> <= W for every f, g with f_i + g_j <= C_ij. Both bounds are rounded outwards in the
caller's dtype.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from exactot.columns import solve_flow
from exactot.costs import MatrixRows, Metric, Rows, extent, point_scale
from exactot.forest import marginal_errors
from exactot.line import sorted_flow
from exactot.multiscale import cloud_rows
from exactot.plans import ExactTransport, Flow, dense, point_gradients
from exactot.progress import shown
from ipot import (
    EPS,
    STEP,
    Array,
    Problem,
    as_tensors,
    certified,
    cost_unit,
    dual_value,
    next_below,
    read_batch,
    read_number,
    read_problem,
    read_weights,
    round_up,
    undisturbed,
)

SIDE_BY_SIDE = 100**2  # pairs of points from which on problems of a batch are


@undisturbed
def solve(
    M: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    tol: float = 0.0,
    verbose: bool = False,
) -> ExactTransport:
    """Optimal transport for a cost matrix: exact, or to a certified gap.

    Solves min <P, M> over P >= 0, P 1 = a, P^T 1 = b by annealed potentials, a network simplex
    (POT's, on the CPU) on the arcs of smallest reduced cost, and pricing of all arcs.

    Parameters
    ----------
    M : array, shape (..., n, m)
        Cost, NumPy or torch, float32 or float64, of any sign and scale; leading dimensions are a
        batch. The answer has its dtype.
    a, b : array, shapes (..., n) and (..., m), optional
        Weights, non-negative (zeros are fine, and what rounding left below zero) and of equal,
        positive mass; uniform with mass 1 if left out. Whole weights have a whole plan. Without
        batch dimensions they serve the whole batch. A difference of mass within 1e-6 (float32:
        1e-4), relative, is made up by scaling b.
    tol : float
        Stop once `gap <= tol * |value|`; each problem of a batch stops by itself. With 0 the plan
        is optimal: the value is that of the linear program, and the gap is zero to rounding.
    verbose : bool
        Print to stderr what is being done, with the seconds since the call. The messages are those
        of the logger "exactot".

    Returns
    -------
    ExactTransport
        A :class:`ipot.Transport` with one more field, `sparse_plan`; its dense `plan` is formed
        when it is first read. `n_iter` counts the sweeps of the annealing, and `converged` also
        holds where no arc is left that could improve the plan.

    Raises
    ------
    TypeError
        NumPy mixed with torch, points of mixed dtypes, not float32 or float64, masked arrays,
        tensors inside torch.func's transforms.
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
    with shown(verbose):
        flows, bounds = _solve_flows(problem, costs, tol)
    return _transport(problem, flows, *bounds, tol)


@undisturbed
def solve_sample(
    X_a: Array,
    X_b: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    metric: str | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    tol: float = 0.0,
    verbose: bool = False,
) -> ExactTransport:
    """Optimal transport between two point clouds: exact, or to a certified gap.

    As :func:`solve` for the matrix of `metric(x_i, y_j)`, which is never formed: it is computed in
    blocks of rows of a few megabytes wherever it is read. The memory is O((n + m) d), and that of 8
    to 60 arcs a row. Points on a line (d = 1, a named metric) are sorted instead. Large clouds on
    the plane and in space (a named metric, on the CPU) are solved from coarse to fine, and only
    pairs of points that may matter are read (see `exactot.multiscale`). With a `tol` that allows it
    they are then solved part by part (see `exactot.parts`), which takes less time.

    Parameters
    ----------
    X_a, X_b : array, shapes (..., n, d) and (..., m, d)
        Points, NumPy or torch, float32 or float64, of any scale; leading dimensions are a batch.
        Images (n, channels, height, width) would be read as a batch of clouds: a cloud of images
        is `X.reshape(n, -1)`, and points on a line are `x[:, None]`.
    a, b : array, shapes (..., n) and (..., m), optional
        Weights, as in :func:`solve`.
    metric : "sqeuclidean", "euclidean", "cityblock" or callable
        Cost between points. A callable takes torch tensors (n, d) and (m, d) in the clouds' dtype
        to (n, m), and must be differentiable if gradients in the points are wanted. Parameters of
        its own get no gradient.
    tol, verbose
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
    inputs, give_back = as_tensors(("a", "b"), X_a=X_a, X_b=X_b, a=a, b=b)
    batch = read_batch_of_clouds(*inputs)
    x, y = (X.detach().expand(*batch, *X.shape[-2:]) for X in inputs[:2])
    line = bool(metric.name) and x.shape[-1] == 1
    problem, scales = _read_clouds(x, y, metric, batch, inputs, give_back, line)
    pairs = zip(np.ndindex(batch), scales)
    costs = (cloud_rows(x[k], y[k], metric, scale) for k, scale in pairs)
    with shown(verbose):
        flows, bounds = _solve_flows(problem, costs, tol, line)

    def of_points() -> tuple[Tensor | None, Tensor | None]:
        if not any(X.requires_grad for X in inputs[:2]):
            return None, None
        each = [
            point_gradients(flow, float(problem.mass[k]), x[k], y[k], metric)
            for flow, k in zip(flows, np.ndindex(batch))
        ]
        return tuple(torch.stack(z).reshape(like.shape) for z, like in zip(zip(*each), (x, y)))

    return _transport(problem, flows, *bounds, tol, of_points)


def _solve_flows(
    problem: Problem, costs: Iterable[Rows], tol: float, line: bool = False
) -> tuple[list[Flow], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """A flow for each problem of the batch; f, g, the two bounds that they prove, and the gap that
    rounding explains."""
    batch, device = problem.mass.shape, problem.mass.device
    spread = problem.high - problem.low
    first = STEP * torch.where(spread > 0, spread, 1.0)  # temperature
    everyone = bool((problem.a > 0).all() & (problem.b > 0).all())

    def solved(k: tuple[int, ...], cost: Rows) -> tuple[Flow, tuple]:
        # Points without mass have no say: only their own potentials depend on them.
        part, a, b = cost, problem.a[k], problem.b[k]
        if not everyone:
            rows, columns = a.nonzero().ravel(), b.nonzero().ravel()
            part, a, b = cost.restricted(rows, columns), a[rows], b[columns]
        flow = sorted_flow(part, a, b) if line else solve_flow(part, a, b, float(first[k]), tol)
        f, g, *bounds = _proof(part, flow, a, b, problem.dtype)
        if part is not cost:
            extended = cost.extended(rows, columns, f.double(), g.double())
            others = (lowered(cost, x, problem.dtype) for x in extended)
            f, g = (x.index_copy(0, at, y) for x, at, y in zip(others, (rows, columns), (f, g)))
            rows, columns = rows.cpu().numpy()[flow.rows], columns.cpu().numpy()[flow.columns]
            flow = replace(flow, rows=rows, columns=columns)
        return flow, (f, g, *bounds)

    pairs = problem.a.shape[-1] * problem.b.shape[-1]
    flows, parts = zip(*_in_threads(solved, list(np.ndindex(batch)), costs, pairs))
    f, g, *bounds = zip(*parts)
    f, g = (torch.stack(x).reshape(*batch, -1) for x in (f, g))
    bounds = (torch.tensor(x, dtype=torch.float64, device=device).reshape(batch) for x in bounds)
    return list(flows), (f, g, *bounds)


def _in_threads(
    solved: Callable[..., tuple], places: list, costs: Iterable[Rows], pairs: int
) -> list[tuple]:
    """What `solved` returns for each place and cost, between so many pairs of points.

    Problems of a batch are solved side by side, as many as torch may use threads, each of them in
    one. The network simplex lets others run meanwhile; in small problems it is not most of the
    work, and threads that wait for each other take longer.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(places) == 1 or pairs < SIDE_BY_SIDE:
        return [solved(*each) for each in zip(places, costs)]

    def alone(*each) -> tuple:
        with torch.no_grad(), np.errstate(all="ignore"):  # threads begin with their own of these
            return solved(*each)

    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, places, costs))
    finally:
        torch.set_num_threads(threads)


def _proof(
    cost: Rows, flow: Flow, a: Tensor, b: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, float, float, float]:
    """Feasible potentials of a flow in dtype, its bounds, and the gap that rounding explains."""
    f, g = _centred(flow.f, flow.g, a, b)
    f, g = lowered(cost, f, dtype), lowered(cost, g, dtype)
    bound, dual_size = (float(x) for x in dual_value(f, g, a, b))
    if cost.error:  # the arcs in use are few enough to compute their costs by differences
        along = cost.along(*flow.indices()).cpu().numpy()
        flow = replace(flow, costs=along)
    value, size = flow.cost
    # The marginals' rounding costs its mass times the potentials.
    a, b, *potentials = (x.cpu().numpy() for x in (a, b, f, g))
    errors = marginal_errors(flow.rows, flow.columns, flow.mass, a, b)
    margin = sum(float((error * abs(x)).sum()) for error, x in zip(errors, potentials))
    margin += (EPS + cost.rounding) * size
    info = np.finfo(potentials[0].dtype)
    rounding = 2 * (margin + cost.error * float(a.sum()) + cost.rounding * dual_size)
    rounding += 4 * float(info.eps) * (size + dual_size) + float(info.tiny)
    if flow.optimal:  # no gap but for the simplex's tolerance
        rounding += 1e-9 * size + 32 * (flow.noise + EPS * dual_size)
    return f, g, value + margin, bound, rounding


def _centred(f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The potentials, moved against each other where large means cancel: digits are lost there."""
    means = float(a @ f), float(b @ g)
    if abs(sum(means)) > abs(means[0]) / 4:
        return f, g
    shift = 0.5 * (means[0] - means[1]) / float(a.sum())
    slack = 2 * EPS * abs(shift)
    moved = f - (shift + slack), g + (shift - slack)
    before, after = (float(a @ x.abs() + b @ y.abs()) for x, y in ((f, g), moved))
    return moved if after < before / 4 else (f, g)


def lowered(cost: Rows, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A float64 potential in dtype, smaller by what rounding may have added to costs and to it."""
    if cost.error or cost.rounding:
        x = x - cost.error / 2 - cost.rounding * x.abs()
    return -round_up(-next_below(x), dtype)


def _transport(
    problem: Problem,
    flows: list[Flow],
    f: Tensor,
    g: Tensor,
    value: Tensor,
    bound: Tensor,
    rounding: Tensor,
    tol: float,
    of_points: Callable[[], tuple] | None = None,
) -> ExactTransport:
    """The answer. `of_points` makes the gradients in the points, where clouds were given."""
    batch, shape = problem.mass.shape, (problem.a.shape[-1], problem.b.shape[-1])
    units = problem.mass.ravel().tolist()
    plans = [flow.plan(shape, unit, problem.give_back) for flow, unit in zip(flows, units)]

    def gradients() -> tuple[Tensor | None, ...]:
        weights = problem.in_weights(f, g)
        if of_points is not None:
            return *of_points(), *weights
        return dense(plans, batch) if problem.inputs[0].requires_grad else None, *weights

    sweeps = max(flow.sweeps for flow in flows)
    return ExactTransport(
        sparse_plan=plans if batch else plans[0],
        **certified(problem, f, g, value, bound, rounding, gradients, n_iter=sweeps, tol=tol),
    )


def _read_clouds(
    x: Tensor,
    y: Tensor,
    metric: Metric,
    batch: tuple[int, ...],
    inputs: list[Tensor | None],
    give_back: Callable[[Tensor], Array],
    line: bool,
) -> tuple[Problem, list[float]]:
    """The problem between clouds x (*batch, n, d) and y, and the scale of each pair of them."""
    X_a, X_b, *weights = inputs
    sizes, against = (X_a.shape[-2], X_b.shape[-2]), f"X_a {tuple(X_a.shape)}"
    against += f" and X_b {tuple(X_b.shape)}"
    a, b, mass = read_weights(weights, sizes, ("a", "b"), against, X_a)
    a, b, mass = a.expand(*batch, -1), b.expand(*batch, -1), mass.expand(batch)
    scales, spans = [], []
    for k in np.ndindex(batch):
        rows, columns = a[k].nonzero().ravel(), b[k].nonzero().ravel()
        scale = _scale(x[k], y[k], rows, columns) if metric.name else 1.0
        part = cloud_rows(x[k], y[k], metric, scale).restricted(rows, columns)
        span = torch.stack((part.ends() if line else part).span())
        if not metric.name:
            scale = float(cost_unit(*span))
            span = span / scale
        scales.append(scale)
        spans.append(span)
    low, high = torch.stack(spans, -1).reshape(2, *batch)
    unit = torch.tensor(scales, dtype=torch.float64, device=x.device).reshape(batch)
    unit = unit**metric.degree
    return Problem(a, b, mass, unit, low, high, X_a.dtype, tuple(inputs), give_back), scales


def _scale(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> float:
    """A power of two near the extent of the points that have mass; 1 where it is usual."""
    own, everyone = extent(torch.cat((x[rows], y[columns]))), extent(torch.cat((x, y)))
    return float(point_scale(own, everyone, 2.0**400))  # squared distances do not overflow


def check_points(name: str, X: Tensor | None) -> None:
    """Refuse what is no cloud (..., n, d) of finite points."""
    if X is None:
        raise TypeError(f"{name} must be an array of shape (..., n, d); got None")
    if X.ndim == 1:
        raise ValueError(f"{name} has one dimension; write {name}[:, None] for points on a line")
    if X.ndim < 2 or X.numel() == 0:
        wanted = "(..., n, d) with n, d >= 1"
        raise ValueError(f"{name} must have shape {wanted}; got {tuple(X.shape)}")
    if not bool(X.isfinite().all()):
        bad = int((~X.isfinite()).sum())
        raise ValueError(f"{name} must be finite; {bad} of {X.numel()} entries are NaN or inf")


def read_batch_of_clouds(
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
