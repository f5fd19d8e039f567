"""Plans with few entries: a flow with its potentials, its form for the caller, its gradients.

An optimal plan between n and m points needs at most n + m - 1 entries (a basis of the transport
polytope). It is kept as lists of rows, columns and masses, and becomes a dense matrix only when it
is read.

The gradient of W in the points follows from the envelope theorem: with the plan held fixed,

    dW/dx_i = sum_j P_ij dc(x_i, y_j)/dx_i,

a sum over the arcs that carry mass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from exactot.costs import SLOPES, Metric, row_slices
from ipot import Array, Transport


@dataclass(frozen=True, eq=False)
class Flow:
    """A feasible plan with few entries, and potentials to prove its worth."""

    rows: np.ndarray  # int64; the arcs are in row-major order
    columns: np.ndarray  # int64
    mass: np.ndarray  # float64
    costs: np.ndarray  # float64: of a unit of mass on each arc
    f: Tensor  # (n,), float64: feasible with g but for its rounding
    g: Tensor  # (m,), float64
    optimal: bool  # whether no arc is left that could improve the flow
    noise: float  # what rounding may have left of a reduced cost
    sweeps: int = 0  # of the annealing

    @property
    def cost(self) -> tuple[float, float]:
        """<P, C> and <P, |C|>."""
        terms = self.mass.astype(np.longdouble) * self.costs
        return float(terms.sum()), float(abs(terms).sum())

    def plan(
        self, shape: tuple[int, int], unit: float, give_back: Callable[[Tensor], Array]
    ) -> scipy.sparse.coo_array | Tensor:
        """The plan (n, m), its masses in this unit, in the caller's dtype and kind."""
        return given_back(self.indices(), unit * self.mass, shape, give_back)

    def indices(self) -> Tensor:
        """The rows and columns, shape (2, count)."""
        return torch.from_numpy(np.stack((self.rows, self.columns))).to(self.g.device)


def given_back(
    indices: Tensor, mass: np.ndarray, shape: tuple[int, int], give_back: Callable[[Tensor], Array]
) -> scipy.sparse.coo_array | Tensor:
    """A plan from its rows and columns (2, count), row-major, and masses, in the caller's dtype and
    kind: a SciPy COO array for NumPy, a sparse COO tensor for torch."""
    values = give_back(torch.from_numpy(mass).to(indices.device))
    if isinstance(values, np.ndarray):
        return scipy.sparse.coo_array((values, tuple(indices.cpu().numpy())), shape=shape)
    options = {"check_invariants": False, "is_coalesced": True, "device": values.device}
    return torch.sparse_coo_tensor(indices, values, shape, **options)


@dataclass(frozen=True, eq=False)
class ExactTransport(Transport):
    """A :class:`ipot.Transport` whose plan is stored sparse.

    Attributes
    ----------
    plan : array, shape (..., n, m)
        Formed when it is first read.
    sparse_plan : scipy.sparse.coo_array or torch sparse COO tensor, shape (n, m)
        The same plan, of fewer than n + m entries (some twice as many where large clouds are
        solved within a gap); for a batch a list of them, in C order.
    """

    plan: Array = field(init=False, repr=False)
    sparse_plan: scipy.sparse.coo_array | Tensor | list = field(repr=False, kw_only=True)

    def __getattr__(self, name: str):
        if name != "plan":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        object.__setattr__(self, "plan", dense(self.sparse_plan, np.shape(self.value)))
        return self.plan


def dense(plan: scipy.sparse.coo_array | Tensor | list, batch: tuple[int, ...]) -> Array:
    """Sparse plans as an array (*batch, n, m)."""
    plans = plan if isinstance(plan, list) else [plan]
    first, shape = plans[0], (*batch, *plans[0].shape)
    if not isinstance(first, Tensor):
        whole = np.zeros(shape, first.dtype)
    elif first.device.type == "cpu":  # NumPy's zeros cost nothing until they are touched
        whole = torch.from_numpy(np.zeros(shape, first.values().numpy().dtype))
    else:
        whole = torch.zeros(shape, dtype=first.dtype, device=first.device)
    for k, one in zip(np.ndindex(*batch), plans):
        if isinstance(one, Tensor):
            whole[k][tuple(one.indices())] = one.values()
        else:
            whole[k][one.row, one.col] = one.data
    return whole


def point_gradients(
    flow: Flow, mass: float, x: Tensor, y: Tensor, metric: Metric
) -> tuple[Tensor, Tensor]:
    """The gradients of the flow's cost in x (n, d) and y (m, d), for this mass.

    Raises
    ------
    ValueError
        If a metric of the user's own is not differentiable.
    """
    if not metric.name:
        return _by_autograd(flow, mass, x, y, metric)
    i, j = flow.indices()
    masses = mass * torch.from_numpy(flow.mass).to(x.device)[:, None]
    slopes = masses * SLOPES[metric.name](x.double()[i] - y.double()[j])
    grad_x = torch.zeros_like(x, dtype=torch.float64).index_add_(0, i, slopes)
    grad_y = torch.zeros_like(y, dtype=torch.float64).index_add_(0, j, -slopes)
    return grad_x.to(x.dtype), grad_y.to(y.dtype)


def _by_autograd(
    flow: Flow, mass: float, x: Tensor, y: Tensor, metric: Metric
) -> tuple[Tensor, Tensor]:
    """The cost is differentiated in blocks of rows; where the slope of an arc without mass is
    infinite or NaN, as that of a root is at 0, row by row on the arcs that have mass."""
    arcs, shape = (mass * flow.mass, (flow.rows, flow.columns)), (len(x), len(y))
    plan = scipy.sparse.csr_array(arcs, shape=shape)
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    for rows in row_slices(*shape, x.device):
        block = _pullback(metric, x[rows], y, plan[rows].toarray())
        if all(bool(part.isfinite().all()) for part in block):
            grad_x[rows] += block[0]
            grad_y += block[1]
            continue
        for i in range(rows.start, rows.stop):
            used = plan.indices[plan.indptr[i] : plan.indptr[i + 1]]
            masses = plan.data[plan.indptr[i] : plan.indptr[i + 1]]
            columns = torch.from_numpy(used.astype(np.int64)).to(y.device)
            part = _pullback(metric, x[i : i + 1], y[columns], masses[None])
            grad_x[i] += part[0][0]
            grad_y.index_add_(0, columns, part[1])
    return grad_x, grad_y


def _pullback(metric: Metric, x: Tensor, y: Tensor, shares: np.ndarray) -> tuple[Tensor, Tensor]:
    """The gradients of <shares, metric(x, y)> in x and y."""
    points = [z.detach().requires_grad_() for z in (x, y)]
    with torch.enable_grad():
        C = metric(*points)
    if C.grad_fn is None:
        raise ValueError("metric must be differentiable for gradients in the points")
    found = torch.autograd.grad(C, points, torch.from_numpy(shares).to(C), allow_unused=True)
    return tuple(torch.zeros_like(z) if part is None else part for z, part in zip(points, found))
