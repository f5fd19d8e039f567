"""Couplings for flow matching: which noise goes to which datum, by an exact plan.

A flow that is trained on pairs (x0, x1) from an optimal plan of squared distances has straighter
paths, which take fewer steps to follow (Tong et al., "Improving and generalizing flow-based
generative models with minibatch optimal transport", TMLR 2024; Pooladian et al., ICML 2023). Only
the plan matters, so that the cost may be -<x0, x1>: the rest of |x0 - x1|^2 costs every plan the
same. That is one product of matrices. SciPy's assignment solves it up to 256 points, and `solve` up
to 2^28 pairs. Beyond, `solve_sample` forms no matrix. It sorts points of a line, and it is the
faster from 2^24 pairs on where it searches (benchmarks/couplings.py).

    pairs          the map: a partner for each x0
    OTPlanSampler  the interface of torchcfm's, whose place it takes in its matchers
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from exactot.costs import extent, point_scale, squared_distances
from exactot.multiscale import LARGE
from exactot.solve import solve, solve_sample
from ipot import Array, as_tensors, read_number, undisturbed

SMALL = 256  # points of each side, at most, that SciPy assigns the fastest
MATRIX = 2**28  # pairs, at most, of a matrix that is formed
SEARCHED = 2**24  # likewise where `solve_sample` searches

Arcs = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns, masses; in row-major order


@undisturbed
def pairs(
    x0: Array,
    x1: Array,
    y0: Array | None = None,
    y1: Array | None = None,
    *,
    a: Array | None = None,
    b: Array | None = None,
    condition_weight: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Array, Array]:
    """A partner in x1 for each point of x0, by an optimal plan of squared Euclidean distances.

    Parameters
    ----------
    x0, x1 : array, shapes (n, ...) and (m, ...)
        Points, NumPy or torch, of any floating dtype; images and the like are flattened.
    y0, y1 : array, shapes (n,) and (m,) or (n, k) and (m, k), optional
        Conditions: labels, or vectors.
    a, b : array, shapes (n,) and (m,), optional
        Weights of equal mass, those of x0 positive; uniform if left out.
    condition_weight : float
        What the plan pays where labels differ, or for the squared distance of vectors; 0 leaves
        the conditions out (Cheng and Schwing, arXiv 2503.10636).
    generator : torch.Generator, optional
        Of what is drawn; None takes torch's own.

    Returns
    -------
    i, j : int64 arrays, shape (n,)
        x0[i] goes to x1[j]; i is 0 ... n - 1. If n = m and the weights are uniform, j is a
        permutation. Otherwise each partner is drawn from its point's row of the plan.

    Raises
    ------
    TypeError, ValueError
        Shapes or kinds of arrays that do not match, NaN or inf, no points, bad weights, a negative
        condition_weight, or one without conditions.

    Examples
    --------
    >>> import numpy as np
    >>> pairs(np.array([[0.0], [1.0], [3.0]]), np.array([[8.0], [5.0], [6.0]]))
    (array([0, 1, 2]), array([1, 2, 0]))
    """
    tensors, give_back = _read(x0, x1, y0, y1, a, b)
    i, j, mass = _coupling(*tensors, _weight(condition_weight, y0, y1))
    n = len(tensors[0])
    starts = np.searchsorted(i, np.arange(n + 1))
    if not np.diff(starts).all():
        raise ValueError("a must be positive: a point without mass has no partner")
    if len(i) > n:
        ends = np.cumsum(mass)
        before = np.concatenate(([0.0], ends))[starts]
        drawn = before[:-1] + _uniform(n, generator) * np.diff(before)
        place = np.searchsorted(ends, drawn, side="right")
        j = j[np.clip(place, starts[:-1], starts[1:] - 1)]
    found = (torch.from_numpy(z).to(tensors[0].device) for z in (np.arange(n), j))
    return tuple(give_back(z) for z in found)


class OTPlanSampler:
    """Draws pairs from exact plans; takes the place of torchcfm's sampler of this name, as in

        matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
        matcher.ot_sampler = OTPlanSampler()

    What is drawn comes from torch's generator, not from NumPy's.

    Parameters
    ----------
    method : str
        "exact"; ValueError for torchcfm's others.
    reg, reg_m, normalize_cost, num_threads, warn
        torchcfm's; they change no exact plan.
    condition_weight : float
        As in :func:`pairs`; `sample_plan_with_labels` uses it where both labels are given.
    generator : torch.Generator, optional
        Of what is drawn; None takes torch's own.
    """

    def __init__(
        self,
        method: str = "exact",
        reg: float = 0.05,
        reg_m: float = 1.0,
        normalize_cost: bool = False,
        num_threads: int | str = 1,
        warn: bool = True,
        *,
        condition_weight: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        if method != "exact":
            raise ValueError(
                f"method must be 'exact'; got {method!r}, which torchcfm's sampler has"
            )
        self.reg, self.reg_m, self.normalize_cost, self.warn = reg, reg_m, normalize_cost, warn
        self.condition_weight = read_number("condition_weight", condition_weight)
        self.generator = generator

    @undisturbed
    def get_map(self, x0: Tensor, x1: Tensor) -> np.ndarray:
        """The plan (n, m) with uniform weights of mass 1, float64."""
        i, j, mass = _coupling(*_read(x0, x1)[0])
        plan = np.zeros((len(x0), len(x1)))
        plan[i, j] = mass
        return plan

    def sample_map(
        self, pi: np.ndarray, batch_size: int, replace: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (batch_size,) drawn from a plan (n, m)."""
        rows, columns = np.nonzero(pi)
        return self._drawn((rows, columns, pi[rows, columns]), batch_size, replace)

    def sample_plan(self, x0: Tensor, x1: Tensor, replace: bool = True) -> tuple[Tensor, Tensor]:
        """Pairs x0[i] (n, ...) and x1[j] (n, ...), drawn from the plan of x0 (n, ...) and x1
        (m, ...). Without replacement, if n = m, these are all pairs in a random order."""
        return self.sample_plan_with_labels(x0, x1, replace=replace)[:2]

    @undisturbed
    def sample_plan_with_labels(
        self,
        x0: Tensor,
        x1: Tensor,
        y0: Tensor | None = None,
        y1: Tensor | None = None,
        replace: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """As `sample_plan`, with y0[i] and y1[j], or None for what is not given."""
        weight = 0.0 if y0 is None or y1 is None else self.condition_weight
        conditions = (y0, y1) if weight else (None, None)
        arcs = _coupling(*_read(x0, x1, *conditions)[0], _weight(weight, *conditions))
        i, j = (torch.from_numpy(z) for z in self._drawn(arcs, len(x0), replace))
        ends = (x0, i), (x1, j), (y0, i), (y1, j)
        return tuple(None if z is None else z[k.to(z.device)] for z, k in ends)

    @undisturbed
    def sample_trajectory(self, X: Tensor) -> np.ndarray:
        """Paths (n, times, ...) through samples X (n, times, ...) of several times: each step is a
        pair of the plan between two of them. They are NumPy arrays, as torchcfm's are."""
        at, path = np.arange(len(X)), [X[:, 0]]
        for t in range(1, X.shape[1]):
            step = pairs(X[:, t - 1], X[:, t], generator=self.generator)[1].cpu().numpy()
            at = step[at]
            path.append(X[:, t][torch.from_numpy(at).to(X.device)])
        return torch.stack(path, 1).detach().cpu().numpy()

    def _drawn(self, arcs: Arcs, count: int, replace: bool) -> tuple[np.ndarray, np.ndarray]:
        """The ends of arcs drawn by their masses."""
        rows, columns, mass = arcs
        if replace:
            ends = np.cumsum(mass)
            drawn = np.searchsorted(ends, ends[-1] * _uniform(count, self.generator), side="right")
            drawn = np.minimum(drawn, len(mass) - 1)
        elif count > len(mass):
            raise ValueError(f"the plan has {len(mass)} pairs; {count} cannot be drawn from them")
        else:  # the first arrivals of processes whose rates are the masses
            waits = -np.log1p(-_uniform(len(mass), self.generator)) / mass
            drawn = np.argsort(waits)[:count]
        return rows[drawn], columns[drawn]


def _uniform(count: int, generator: torch.Generator | None) -> np.ndarray:
    """Numbers in [0, 1), on the CPU whatever the generator's device is."""
    device = "cpu" if generator is None else generator.device
    options = {"dtype": torch.float64, "generator": generator, "device": device}
    return torch.rand(count, **options).cpu().numpy()


def _weight(weight: float, y0: Array | None, y1: Array | None) -> float:
    weight = read_number("condition_weight", weight)
    if weight < 0 or (weight > 0 and (y0 is None or y1 is None)):
        raise ValueError(f"condition_weight must not be negative, and needs y0, y1; got {weight:g}")
    return weight


def _read(
    x0: Array,
    x1: Array,
    y0: Array | None = None,
    y1: Array | None = None,
    a: Array | None = None,
    b: Array | None = None,
) -> tuple[list[Tensor | None], Callable[[Tensor], Array]]:
    """The tensors, half precision in single and labels by number, and the way back."""
    if y0 is not None and y1 is not None and np.ndim(y0) == 1 == np.ndim(y1):
        both = [z.cpu().numpy() if isinstance(z, Tensor) else np.asarray(z) for z in (y0, y1)]
        number = np.unique(np.concatenate(both), return_inverse=True)[1]
        numbers = number[: len(both[0])], number[len(both[0]) :]
        y0, y1 = (
            torch.from_numpy(z).to(like.device) if isinstance(like, Tensor) else z
            for z, like in zip(numbers, (y0, y1))
        )
    given = {"x0": x0, "x1": x1, "y0": y0, "y1": y1, "a": a, "b": b}
    for name, x in given.items():
        if isinstance(x, Tensor):
            half = x.dtype in (torch.float16, torch.bfloat16)
            given[name] = x.detach().float() if half else x.detach()
    tensors, give_back = as_tensors(("y0", "y1", "a", "b"), **given)
    for name, x in zip(given, tensors):
        if name in ("x0", "x1") and x is None:
            raise TypeError(f"{name} must be an array; got None")
        if x is not None and (x.ndim == 0 or x.numel() == 0):
            raise ValueError(f"{name} must have a row for each point; got {tuple(x.shape)}")
        # A sum is quicker to look at than all entries, and finite only if they are.
        if x is not None and not (bool(x.sum().isfinite()) or bool(x.isfinite().all())):
            raise ValueError(f"{name} must be finite; some entries are NaN or inf")
    x0, x1, y0, y1, *_ = tensors
    for name, x, y in (("y0", x0, y0), ("y1", x1, y1)):
        if y is not None and len(x) != len(y):
            raise ValueError(f"{name} must have a row for each point of x{name[1]}; got {len(y)}")
    if x0.shape[1:] != x1.shape[1:]:
        shapes = f"{tuple(x0.shape)} and {tuple(x1.shape)}"
        raise ValueError(f"points of x0 and x1 must have one shape; got {shapes}")
    if y0 is not None and y1 is not None and (y0.ndim > 2 or y0.shape[1:] != y1.shape[1:]):
        shapes = f"{tuple(y0.shape)} and {tuple(y1.shape)}"
        raise ValueError(f"y0 and y1 must be (n,) and (m,) or (n, k) and (m, k); got {shapes}")
    return tensors, give_back


def _coupling(
    x0: Tensor,
    x1: Tensor,
    y0: Tensor | None = None,
    y1: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    weight: float = 0.0,
) -> Arcs:
    """The arcs of an optimal plan; `weight` is that of the conditions."""
    points = [x.reshape(len(x), -1) for x in (x0, x1)]
    (n, d), m = points[0].shape, len(x1)
    sorts = d == 1 and not weight
    if sorts or n * m > _most_pairs(d, x0.device):
        if weight:
            conditions = (math.sqrt(weight) * y.to(x0.dtype) for y in _coordinates(y0, y1))
            points = [torch.cat(both, 1) for both in zip(points, conditions)]
        plan = solve_sample(*points, a, b).sparse_plan
    else:
        x, y = (z - z.mean(0) for z in points)
        scale = point_scale(torch.maximum(extent(x), extent(y)))
        C = ((x / scale) @ (y / scale).T).neg_()
        if weight:  # half of it, as C is half of the squared distances
            C = C.double() + (weight / 2 / float(scale) ** 2) * _differences(y0, y1)
        # What no optimal plan depends on costs solvers half of their time.
        C -= C.amin(1, keepdim=True)
        C -= C.amin(0)
        if n == m <= SMALL and a is None and b is None:
            i, j = linear_sum_assignment(C.cpu())
            return i, j, np.full(n, 1 / n)
        plan = solve(C, a, b).sparse_plan
    i, j = plan.indices().cpu().numpy()
    return i, j, plan.values().double().cpu().numpy()


def _most_pairs(d: int, device: torch.device) -> int:
    """Pairs, at most, of which a matrix is formed."""
    return max(SEARCHED, LARGE[d]) if d in LARGE and device.type == "cpu" else MATRIX


def _differences(y0: Tensor, y1: Tensor) -> Tensor:
    """1 where labels differ, or the squared distances of vectors: (n, m), float64."""
    if y0.ndim == 1:
        return (y0[:, None] != y1).double()
    return squared_distances(y0.double(), y1.double())


def _coordinates(y0: Tensor, y1: Tensor) -> list[Tensor]:
    """Vectors whose squared distances are these."""
    if y0.ndim == 2:
        return [y0, y1]
    each = math.sqrt(0.5) * torch.eye(1 + int(max(y0.max(), y1.max())), device=y0.device)
    return [each[y.long()] for y in (y0, y1)]
