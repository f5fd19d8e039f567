"""POT's network simplex on some arcs, or on all, with what its floating-point numbers need.

It drops small masses, its tolerances are those of the largest cost that it is given, and in C it
cannot be interrupted.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ot.lp import emd_wrap
from torch import Tensor

from ipot import EPS, Array, sample_places

CAP = 1e6  # times a usual cost: what is above is cut where no flow needs it
MISPUT = 1e-14  # mass that rounding may have put on an arc
OPTIMAL = 1  # its result code
ITERATIONS = 2**31 - 1  # at most
UNIT = 2.0**10  # of mass; its own tolerance for the sum of all is 1e-8
LONG = 20_000  # points from which on it may take a second


@dataclass(eq=False)
class SparseArcs:
    """Arcs of the sparse problem in row-major order, with their costs and their flow."""

    rows: np.ndarray
    columns: np.ndarray
    costs: np.ndarray
    flow: np.ndarray | None = None

    @classmethod
    def union(cls, m: int, *parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> "SparseArcs":
        rows, columns, costs = (np.concatenate(x) for x in zip(*parts))
        _, first = np.unique(rows * m + columns, return_index=True)
        return cls(rows[first], columns[first], costs[first])

    def spread(self, m: int, rows: np.ndarray, columns: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """Masses on some of the arcs, which may be there twice, as a flow on all of them."""
        numbers = rows.astype(np.int64) * m + columns.astype(np.int64)
        place = np.searchsorted(self.rows * m + self.columns, numbers)
        return np.bincount(place, mass, len(self.rows))


def reduced_costs(arcs: SparseArcs, f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The arcs' reduced costs. Weighted by an optimal flow they sum to zero, and to a gap whatever
    digits the flow has lost."""
    return arcs.costs - f[arcs.rows] - g[arcs.columns]


def rounding_noise(usual: float, f: Array, g: Array) -> float:
    """What rounding leaves of a reduced cost, where a usual cost that the simplex sees is this."""
    return 8 * EPS * (usual + _median(f) + _median(g))


def _median(potential: Array) -> float:
    """The size of a hundred entries in the median: a few huge ones do not set it."""
    some = abs(potential[:: 1 + len(potential) // 99])
    some = np.sort(some.cpu().numpy() if isinstance(some, Tensor) else some)
    return float(some[len(some) // 2])


def centred(f: np.ndarray, g: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The potentials, moved against each other so that the median of f under the weights a is zero.

    A huge cost that little mass pays may be in all potentials, and would cost them digits.
    """
    order = np.argsort(f)
    sums = a[order].cumsum()
    middle = f[order[np.searchsorted(sums, sums[-1] / 2)]]
    return f - middle, g + middle


def network_simplex(
    a: np.ndarray,
    b: np.ndarray,
    costs: np.ndarray,
    arcs: SparseArcs | None = None,
    limit: float = math.inf,
    warm: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float] | None:
    """Optimal flow, of the shape of costs, potentials, and a usual cost; None if POT fails.

    The costs are those of `arcs`, or a matrix. They are cut at `limit`, or else at a cap, if no
    expensive one is used: an entry of 1e15 that forbids an arc would leave the simplex, whose
    tolerances are those of its largest cost, no digits for the others. Where no flow is on what was
    cut, but for what rounding put there, the potentials are feasible for the true costs too. If it
    is `warm`, costs between arcs are near those of an optimal tree, whose arcs cost nothing.
    """
    sample = np.sort(costs.ravel()[sample_places(costs.size)])
    sample = sample[sample > 0]
    usual = float(sample[len(sample) // 4]) if len(sample) else 0.0
    low, high = float(costs.min()), float(costs.max())
    for cap in (*(x for x in (limit, CAP * usual) if 0 < x < high), math.inf):
        scale = 2.0 ** math.frexp(max(min(high, cap), -low))[1]  # whole costs stay whole
        table = (costs if cap == math.inf else np.minimum(costs, cap)) / scale
        solved, flow, u, v = emd(a, b, table, arcs, warm)
        if cap < math.inf and solved:
            expensive = costs > cap
            solved = flow[expensive].sum() <= MISPUT
            flow[expensive] = 0.0
        if solved:
            return flow, scale * u, scale * v, usual
    return None


def emd(
    a: np.ndarray, b: np.ndarray, costs: np.ndarray, arcs: SparseArcs | None, warm: bool = False
) -> tuple[bool, np.ndarray, np.ndarray, np.ndarray]:
    """Whether POT's network simplex solved it, the flow, and potentials.

    It is called below `ot.emd`, whose warnings would pass through the process's filters. It drops
    masses below 1e-15, so that larger units keep more.
    """
    unit = math.ldexp(UNIT, 1 - math.frexp(a.sum())[1])
    a, b = unit * a, unit * (b * (a.sum() / b.sum()))
    if arcs is None:
        flow, _, u, v, code = emd_wrap.emd_c(a, b, costs, ITERATIONS, 1)
        return code == OPTIMAL, flow / unit, u, v
    ends = [x.astype(np.uint64) for x in (arcs.rows, arcs.columns)]
    start = [np.zeros(len(a)), np.zeros(len(b))] if warm else []
    solved = _interruptible(emd_wrap.emd_c_sparse, a, b, *ends, costs, ITERATIONS, *start)
    rows, columns, mass, _, u, v, code = solved
    return code == OPTIMAL, arcs.spread(len(b), rows, columns, mass) / unit, u, v


def _interruptible(solver: Callable[..., tuple], a: np.ndarray, b: np.ndarray, *rest) -> tuple:
    """What the solver returns. A long call goes to a thread of its own: while C code runs Python
    does not see Ctrl-C in its thread, but it does in one that waits."""
    if len(a) + len(b) < LONG:
        return solver(a, b, *rest)
    done: list[tuple | Exception] = []

    def call() -> None:
        try:
            done.append(solver(a, b, *rest))
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join()
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]
