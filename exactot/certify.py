"""How far from optimal a plan is, or potentials, that somebody else computed.

By weak duality <a, f> + <b, g> <= W <= <P, C> for all potentials with f_i + g_j <= C_ij and all
plans with the marginals a and b. So

1. a plan is mended where its marginals are off: what is too much is scaled down, and what is then
   missing is added (Altschuler, Weed, Rigollet 2017, or the north-west corner rule for a plan with
   few entries). Its cost is an upper bound;
2. potentials are made feasible by c-transforms. Their value is a lower bound;
3. what was not given is found by `solve` or `solve_sample` to within a relative gap `tol`, which is
   the effort.

No cost matrix is formed between clouds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from exactot.costs import CloudRows, MatrixRows, Metric, Rows
from exactot.multiscale import cloud_rows
from exactot.parts import feasible, rows_of
from exactot.plans import ExactTransport, given_back
from exactot.search import cost as distances
from exactot.solve import lowered, read_batch_of_clouds, solve, solve_sample
from ipot import (
    EPS,
    Array,
    as_tensors,
    check_unmasked,
    dual_value,
    read_number,
    read_weights,
    round_to_marginals,
    round_up,
    undisturbed,
)

ROUNDING = 1e-12  # of the mass: by so much a plan's marginals may be off without being mended

Plan = Array | scipy.sparse.sparray | scipy.sparse.spmatrix


@dataclass(frozen=True, eq=False)
class Certificate(ExactTransport):
    """A bracket `lower_bound <= W <= value` from a plan or potentials that were given.

    Attributes
    ----------
    sparse_plan, value
        The plan that was given, mended, and its cost; the solver's own if none was given. Of a
        dense plan there is `plan` alone, and `sparse_plan` is None.
    lower_bound, potentials
        Of the potentials that were given, made feasible; the solver's own if none were given.
    cost : float
        <P, M> of the plan as it was given, or NaN.
    marginal_error : float
        The mass by which its marginals are off, sum_i |(P 1)_i - a_i| + sum_j |(P^T 1)_j - b_j|, or
        NaN.
    relative_gap : float
        `gap / |value|`: the plan's cost is too high by at most this share of it.
    converged : bool
        Whether the relative gap is at most `tol`, up to rounding.
    """

    cost: float = field(kw_only=True)
    marginal_error: float = field(kw_only=True)

    @property
    def relative_gap(self) -> float:
        value = abs(float(self.value))
        return float(self.gap) / value if value else math.inf if self.gap else 0.0


@undisturbed
def certify(
    M: Array,
    plan: Plan | None = None,
    a: Array | None = None,
    b: Array | None = None,
    *,
    potentials: tuple[Array, Array] | None = None,
    tol: float = 1e-3,
    verbose: bool = False,
) -> Certificate:
    """How far from optimal a plan or potentials are, for a cost matrix.

    Parameters
    ----------
    M : array, shape (n, m)
        Cost, as in :func:`exactot.solve`; no batch.
    plan : array or SciPy or torch sparse array (n, m), or integers (n,), optional
        A plan, whose marginals need not be exact; or the column that each row goes to.
    a, b : array, shapes (n,) and (m,), optional
        Weights, as in :func:`exactot.solve`.
    potentials : (f, g), arrays of shapes (n,) and (m,), optional
        They need not be feasible: those that are used are the best c-transforms of one of them.
    tol : float
        Relative gap of the bound that is found here for what is not given.
    verbose : bool
        Show progress where this takes longer.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError
        As :func:`exactot.solve`; also if neither a plan nor potentials are given, for a plan with
        negative or infinite entries or of another shape, and for potentials of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> M = np.array([[0.0, 1.0], [1.0, 0.5]])
    >>> found = certify(M, np.full((2, 2), 0.25))
    >>> print(f"{found.lower_bound:.6f} <= W <= {found.value:.6f}, gap {found.relative_gap:.0%}")
    0.250000 <= W <= 0.625000, gap 60%
    """
    (C, a, b), give_back = as_tensors(("a", "b"), M=M, a=a, b=b)
    if C is None or C.ndim != 2:
        raise ValueError(f"M must have shape (n, m); got {None if C is None else tuple(C.shape)}")
    C, a, b = (z if z is None else z.detach() for z in (C, a, b))
    places = np.arange(C.shape[1])
    given = plan, potentials, read_number("tol", tol)

    def ours() -> ExactTransport:
        return solve(C, a, b, tol=tol, verbose=verbose)

    return _certificate(MatrixRows(C), given, (a, b), ours, places, C, give_back)


@undisturbed
def certify_sample(
    X_a: Array,
    X_b: Array,
    plan: Plan | None = None,
    a: Array | None = None,
    b: Array | None = None,
    *,
    potentials: tuple[Array, Array] | None = None,
    metric: str | Callable[[Tensor, Tensor], Tensor] = "sqeuclidean",
    tol: float = 1e-3,
    verbose: bool = False,
) -> Certificate:
    """How far from optimal a plan or potentials are, between clouds (n, d) and (m, d).

    As :func:`certify` for the cost matrix `metric(x_i, y_j)`, which is never formed. The clouds and
    the metric are those of :func:`exactot.solve_sample`, without a batch.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([[0.0], [1.0], [3.0]]), np.array([[5.0], [6.0], [8.0]])
    >>> found = certify_sample(x, y, np.array([0, 2, 1]))  # a permutation
    >>> print(f"{found.lower_bound:.3f} <= W <= {found.value:.3f}")
    25.000 <= W <= 27.667
    """
    (X, Y, a, b), give_back = as_tensors(("a", "b"), X_a=X_a, X_b=X_b, a=a, b=b)
    if batch := read_batch_of_clouds(X, Y, a, b):
        raise ValueError(f"X_a and X_b must be two clouds, (n, d) and (m, d); got a batch {batch}")
    X, Y, a, b = (z if z is None else z.detach() for z in (X, Y, a, b))
    rows = cloud_rows(X, Y, Metric(metric))
    widest = (Y.amax(0) - Y.amin(0)).argmax()
    places = Y[:, widest].argsort().argsort().cpu().numpy()
    given = plan, potentials, read_number("tol", tol)

    def ours() -> ExactTransport:
        return solve_sample(X, Y, a, b, metric=metric, tol=tol, verbose=verbose)

    return _certificate(rows, given, (a, b), ours, places, X, give_back)


def _certificate(
    rows: Rows,
    given: tuple[Plan | None, tuple[Array, Array] | None, float],
    weights: tuple[Tensor | None, Tensor | None],
    ours: Callable[[], ExactTransport],
    places: np.ndarray,
    like: Tensor,
    give_back: Callable[[Tensor], Array],
) -> Certificate:
    """The bracket from what is given, and from our own solution for what is not."""
    plan, potentials, tol = given
    if plan is None and potentials is None:
        raise ValueError("give a plan, potentials (f, g), or both")
    n, m = rows.shape
    a, b, unit = read_weights(weights, (n, m), ("a", "b"), f"a cost ({n}, {m})", like)
    unit = float(unit)  # of mass, in which all is computed here
    if plan is not None:
        plan = _read_plan(plan, (n, m), a.cpu().numpy(), unit)
    if potentials is not None:
        potentials = _read_potentials(potentials, (n, m), rows.device)
    own = None if plan is not None and potentials is not None else ours()
    if potentials is None:
        f, g, bound = *(z.double() for z in own.potentials), float(own.lower_bound) / unit
    else:
        f, g, bound = _best(rows, *potentials, a, b)
    mass, size = float(a.sum()), float(a @ f.abs() + b @ g.abs())
    rounding = 4 * EPS * size + rows.rounding * size + rows.error * mass
    if plan is None:
        cost = error = math.nan
        sparse, value = own.sparse_plan, float(own.value) / unit
    else:
        weights = a.cpu().numpy(), b.cpu().numpy()
        cost, _ = _cost(plan, rows)
        plan, error, left = _mended(plan, *weights, places)
        value, size = _cost(plan, rows)
        margin = (8 * EPS + rows.rounding) * size + rows.error * mass
        margin += sum(float(x @ abs(z.cpu().numpy())) for x, z in zip(left, (f, g)))
        value += margin
        rounding += margin
        plan, cost, error = unit * plan, unit * cost, unit * error
        sparse = None
        if isinstance(plan, csr_array):
            ends = torch.from_numpy(np.stack(_ends(plan))).to(rows.device)
            sparse = given_back(ends, plan.data, plan.shape, give_back)
    rounding += 1e-9 * abs(value)  # what an exact solver leaves, see `solve`
    converged = value - bound <= tol * abs(value) + rounding
    value, bound = unit * value, unit * bound
    dtype = like.dtype if like.dtype == torch.float32 else torch.float64
    ends = min(bound, value), value
    low, high = (torch.tensor(x, dtype=torch.float64, device=rows.device) for x in ends)
    low, high = -round_up(-low, dtype), round_up(high, dtype)
    found = Certificate(
        sparse_plan=sparse,
        value=give_back(high),
        lower_bound=give_back(low),
        gap=give_back(high - low),
        potentials=tuple(give_back(-round_up(-z, dtype)) for z in (f, g)),
        n_iter=0 if own is None else own.n_iter,
        converged=converged,
        cost=cost,
        marginal_error=error,
    )
    if plan is not None and sparse is None:
        object.__setattr__(found, "plan", give_back(torch.from_numpy(plan).to(rows.device)))
    return found


def _read_plan(
    plan: Plan, shape: tuple[int, int], a: np.ndarray, unit: float
) -> csr_array | np.ndarray:
    """A copy of the plan, float64, in this unit: sparse, or dense where it was given so."""
    check_unmasked("plan", plan)
    if isinstance(plan, Tensor):
        plan = plan.detach().cpu()
        plan = plan.double() if plan.is_floating_point() else plan
        if plan.layout == torch.strided:
            plan = plan.numpy()
        else:
            plan = plan.to_sparse_coo().coalesce()
            plan = coo_array((plan.values().numpy(), tuple(plan.indices().numpy())), plan.shape)
    if scipy.sparse.issparse(plan):
        plan = csr_array(plan, dtype=np.float64, copy=True)
        plan.sum_duplicates()
        plan.data /= unit
    elif np.ndim(plan) == 1 and np.issubdtype(np.asarray(plan).dtype, np.integer):
        columns = np.asarray(plan)
        if len(columns) != shape[0] or not ((columns >= 0) & (columns < shape[1])).all():
            raise ValueError(f"an assignment must be {shape[0]} columns from 0 to {shape[1] - 1}")
        plan = csr_array((a, (np.arange(shape[0]), columns)), shape=shape)
    else:
        plan = np.asarray(plan, np.float64) / unit
    if plan.shape != shape:
        raise ValueError(f"plan must have shape {shape}; got {plan.shape}")
    entries = plan.data if isinstance(plan, csr_array) else plan
    if not (np.isfinite(entries).all() and (entries >= 0).all() and entries.any()):
        raise ValueError("plan must be finite and non-negative, and carry mass")
    return plan


def _read_potentials(
    potentials: tuple[Array, Array], shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    if not isinstance(potentials, (tuple, list)) or len(potentials) != 2:
        raise TypeError("potentials must be a pair (f, g)")
    kinds = (z.detach() if isinstance(z, Tensor) else np.array(z, float) for z in potentials)
    found = [torch.as_tensor(z).to(device, torch.float64) for z in kinds]
    if any(z.shape != (size,) for z, size in zip(found, shape)):
        shapes = ", ".join(str(tuple(z.shape)) for z in found)
        raise ValueError(f"potentials must have shapes ({shape[0]},), ({shape[1]},); got {shapes}")
    if not all(bool(z.isfinite().all()) for z in found):
        raise ValueError("potentials must be finite")
    return tuple(found)


def _best(rows: Rows, f: Tensor, g: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, float]:
    """The better of the feasible potentials that f and g lead to, and their value. Points without
    mass have no say."""
    i, j = a.nonzero().ravel(), b.nonzero().ravel()
    part, a, b = rows.restricted(i, j), a[i], b[j]
    first, second = part.row_minima(g[j]), part.column_minima(f[i])
    pairs = (first, part.column_minima(first)), (part.row_minima(second), second)
    pairs = [tuple(lowered(part, z, torch.float64) for z in pair) for pair in pairs]
    value, best = max((float(dual_value(*pair, a, b)[0]), k) for k, pair in enumerate(pairs))
    f, g = pairs[best]
    if part is not rows:
        others = rows.extended(i, j, f, g)
        f, g = (lowered(rows, z, torch.float64).index_copy(0, at, own)
                for z, at, own in zip(others, (i, j), (f, g)))  # fmt: skip
    return f, g, value


def _cost(plan: csr_array | np.ndarray, rows: Rows) -> tuple[float, float]:
    """<P, C> and <P, |C|>."""
    if isinstance(plan, csr_array) and isinstance(rows, CloudRows) and rows.metric.name:
        i, j = _ends(plan)
        x, y = (z.cpu().numpy() for z in (rows.x[i], rows.y[j]))
        terms = plan.data * distances(rows.metric.name, np.ascontiguousarray((x - y).T))
        return float(terms.sum()), float(terms.sum())
    value = size = 0.0
    for part, C in rows.blocks():
        block = plan[part]
        if isinstance(plan, csr_array):
            i, j = _ends(block)
            terms = block.data * C[i, j].cpu().numpy()
        else:
            terms = block * C.cpu().numpy()
        value, size = value + float(terms.sum()), size + float(abs(terms).sum())
    return value, size


def _ends(plan: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each entry."""
    return rows_of(plan), plan.indices.astype(np.int64)


def _errors(
    plan: csr_array | np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the sums of rows (n,) and columns (m,) are off."""
    return tuple(abs(np.asarray(plan.sum(axis)) - w) for axis, w in ((1, a), (0, b)))


def _mended(
    plan: csr_array | np.ndarray, a: np.ndarray, b: np.ndarray, places: np.ndarray
) -> tuple[csr_array | np.ndarray, float, tuple[np.ndarray, np.ndarray]]:
    """The plan with marginals a and b; the mass by which they were off; and by how much each row
    and each column still is."""
    left = _errors(plan, a, b)
    error = float(sum(x.sum() for x in left))
    if error > ROUNDING * a.sum():
        if isinstance(plan, csr_array):
            rows, columns, mass = feasible(plan, a, b, places)
            plan = coo_array((mass, (rows, columns)), shape=plan.shape).tocsr()
        else:
            plan = round_to_marginals(plan, a, b)
        left = _errors(plan, a, b)
    return plan, error, left
