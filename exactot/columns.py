"""Exact plans by column generation: few arcs, a network simplex, pricing of all arcs.

The problem min <P, C> over plans P between weights a (n) and b (m) has n m variables, its arcs, of
which an optimal plan uses at most n + m - 1. Annealed potentials f, g (see `annealing`) tell which
arcs may carry mass: those whose reduced cost C_ij - f_i - g_j is small. So

1. take the nearest arcs of each row under the annealed potentials, and a path of arcs that can
   carry all mass whatever the weights are;
2. solve the problem on these arcs by the network simplex (POT's), which returns potentials of its
   own. It is given the reduced costs, which it solves 3 to 7 times as fast as the costs, because
   most arcs that are not needed are then visibly expensive;
3. price all arcs: where f_i + g_j exceeds C_ij the arc is added, and 2 is repeated. Where no arc is
   left, the potentials are feasible for all arcs, and the flow is optimal.

With a relative gap `tol` the loop ends once the cost of the flow and the dual value of the
potentials, made feasible by a c-transform, are as close as that.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from ot.lp import emd_wrap
from torch import Tensor

from exactot.annealing import Annealed, anneal, is_tied
from exactot.costs import Rows
from exactot.forest import settle
from exactot.line import north_west
from exactot.multiscale import SearchedRows
from exactot.plans import Flow
from exactot.progress import log
from ipot import EPS, Array, power_of_two, sample_places

# benchmarks/solvers.py chose these: n = 128 to 8192, d = 1, 2, 16, uniform and random weights.
SMALL = 200**2  # problems with fewer arcs go to the network simplex as they are
MOST_TIED = 2**21  # likewise where the costs have few values, which the simplex is quick with
ARCS = 6  # of each row at first, times the number of others that it sees; half for a loose gap
FEWEST, MOST = 8, 60  # arcs of each row at first
LIGHT = 1e-18  # mass of points that are linked to the others once these are solved
LOOSE = 1e-3  # relative gaps from here on are loose
VIOLATORS = 8  # arcs that a row may add in a round
CAP = 1e6  # times a usual cost: what is above is cut where no flow needs it
CLOSE = 3e-10  # gap, relative to the carried cost, from which potentials are refined
REFINEMENTS = 2  # of a solution's potentials, at most
WIDER = 1e3  # times the gap: what is above is cut in a refinement
MISPUT = 1e-14  # mass that rounding may have put on an arc

# POT's network simplex
OPTIMAL = 1  # its result code
ITERATIONS = 2**31 - 1  # at most
UNIT = 2.0**10  # of mass; its own tolerance for the sum of all is 1e-8


def solve_flow(cost: Rows, a: Tensor, b: Tensor, eps: float, tol: float) -> Flow:
    """A flow for weights a (n,) and b (m,) whose relative gap is within tol.

    The weights are positive, and their mass is near 1. `eps` is the temperature at which the
    annealing begins.
    """
    if cost.shape[0] * cost.shape[1] > SMALL:
        heavy = a > LIGHT, b > LIGHT
        if not (heavy[0].all() and heavy[1].all()):
            flow = _flow_of(cost, a, b, heavy, eps, tol)
            light = ~(heavy[0].cpu().numpy()[flow.rows] & heavy[1].cpu().numpy()[flow.columns])
            carried = flow.mass * abs(flow.costs)
            if carried[light].sum() <= CLOSE * carried.sum():
                return flow
    return _flow_of(cost, a, b, None, eps, tol)


def _flow_of(
    cost: Rows, a: Tensor, b: Tensor, among: tuple[Tensor, Tensor] | None, eps: float, tol: float
) -> Flow:
    """A flow that is solved among some of the points, to which the others are linked; or all."""
    part, mass_a, mass_b = cost, a, b
    if among is not None:
        rows, columns = (x.nonzero().ravel() for x in among)
        part, mass_a, mass_b = cost.restricted(rows, columns), a[rows], b[columns]
    arcs, f, g, usual, sweeps = _solve_part(part, mass_a, mass_b, eps, tol)
    used = arcs.flow > 0
    found = [x[used] for x in (arcs.rows, arcs.columns, arcs.flow, arcs.costs)]
    if part is not cost:
        f, g = cost.extended(rows, columns, f, g)
        found[:2] = rows.cpu().numpy()[found[0]], columns.cpu().numpy()[found[1]]
    noise = EPS * (usual or 0.0)
    return Flow(*settle(cost, found, a, b, f, g), f, g, usual is not None, noise, sweeps)


def _solve_part(
    cost: Rows, a: Tensor, b: Tensor, eps: float, tol: float
) -> tuple["_Arcs", Tensor, Tensor, float | None, int]:
    """As :func:`_generate` does, and the sweeps that this took."""
    n, m = cost.shape
    if n * m <= SMALL or n == 1 or m == 1 or (n * m <= MOST_TIED and is_tied(cost)):
        return *_all_arcs(cost, a, b), 0
    if isinstance(cost, SearchedRows) and cost.copies:
        return _solve_distinct(cost, a, b, eps, tol)
    searched = isinstance(cost, SearchedRows)
    annealed = cost.anneal(a, b, eps, _exact) if searched else anneal(cost, a, b, eps)
    count = (ARCS if tol < LOOSE else ARCS / 2) * annealed.neighbours
    count = math.ceil(min(MOST, max(FEWEST, count)))  # the fewest for NaN
    # Potentials with few digits keep the differences of whole costs exact.
    digit = 2.0**-24 * power_of_two(annealed.g.abs().amax().clamp_min(1e-300))
    annealed = replace(annealed, g=torch.round(annealed.g / digit) * digit)
    arcs, f, g, usual = _generate(cost, annealed, a, b, count, tol)
    usual = usual if usual is None else max(usual, annealed.eps)
    return arcs, f, g, usual, annealed.sweeps


def _exact(
    cost: SearchedRows, annealed: Annealed, a: Tensor, b: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arcs that carry mass, and potentials."""
    arcs, f, g, _ = _generate(cost, annealed, a, b, 0, 0.0)
    used = arcs.flow > 0
    return arcs.rows[used], arcs.columns[used], f.numpy(), g.numpy()


def _solve_distinct(
    cost: SearchedRows, a: Tensor, b: Tensor, eps: float, tol: float
) -> tuple["_Arcs", Tensor, Tensor, float | None, int]:
    """As :func:`_solve_part`, where points are there more than once: copies share mass."""
    firsts, masses = [], []
    for number, weights in zip(cost.copies, (a, b)):
        firsts.append(torch.from_numpy(np.unique(number, return_index=True)[1]))
        masses.append(torch.from_numpy(np.bincount(number, weights.numpy())))
    found, *potentials, usual, sweeps = _solve_part(cost.restricted(*firsts), *masses, eps, tol)
    ends, mass, costs = [found.rows, found.columns], found.flow, found.costs
    for axis, (number, weights) in enumerate(zip(cost.copies, (a, b))):
        order, copies = np.argsort(ends[axis], kind="stable"), np.argsort(number, kind="stable")
        arc, copy, mass = north_west(mass[order], weights.numpy()[copies])
        arc, copy = order[arc], copies[copy]
        real = ends[axis][arc] == number[copy]
        arc, copy, mass = arc[real], copy[real], mass[real]
        ends, costs = [x[arc] for x in ends], costs[arc]
        ends[axis] = copy
    f, g = (z[torch.from_numpy(x)] for z, x in zip(potentials, cost.copies))
    return _Arcs(*ends, costs, mass), f, g, usual, sweeps


@dataclass(eq=False)
class _Arcs:
    """Arcs of the sparse problem in row-major order, with their costs and their flow."""

    rows: np.ndarray
    columns: np.ndarray
    costs: np.ndarray
    flow: np.ndarray | None = None

    @classmethod
    def union(cls, m: int, *parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> "_Arcs":
        rows, columns, costs = (np.concatenate(x) for x in zip(*parts))
        _, first = np.unique(rows * m + columns, return_index=True)
        return cls(rows[first], columns[first], costs[first])

    def spread(self, m: int, rows: np.ndarray, columns: np.ndarray, mass: np.ndarray) -> np.ndarray:
        """Mass on some of the arcs as a flow on all of them."""
        flow = np.zeros(len(self.rows))
        numbers = rows.astype(np.int64) * m + columns
        flow[np.searchsorted(self.rows * m + self.columns, numbers)] = mass
        return flow


def _generate(
    cost: Rows, annealed: Annealed, a: Tensor, b: Tensor, count: int, tol: float
) -> tuple[_Arcs, Tensor, Tensor, float | None]:
    """Arcs with a flow on them, and the best potentials seen; where no arc is left that could
    improve the flow also a usual one of the costs that the simplex was given, otherwise None.

    Begins with the `count` nearest arcs of each row under the annealed potentials.
    """
    m, g = cost.shape[1], annealed.g
    mass_a, mass_b = a.cpu().numpy(), b.cpu().numpy()
    arcs, f = _near_arcs(cost, annealed, count, mass_a, mass_b)
    noise = annealed.noise if is_tied(cost) else 0.0  # in other costs the worst are told apart
    price = cost.price if isinstance(cost, SearchedRows) else partial(_price, cost)
    best, f_best, g_best, limit, left = a @ f + b @ g, f, g, math.inf, REFINEMENTS
    for number in itertools.count(1):
        log.info("round %d: network simplex on %d arcs", number, len(arcs.rows))
        reduced, few = _slack(arcs, f.cpu().numpy(), g.cpu().numpy()), arcs
        if m <= cost.shape[0] and len(arcs.rows) == cost.shape[0] * m:  # that for all is faster
            reduced, few = reduced.reshape(cost.shape), None
        # The reduced costs of a round before have an optimal tree, from which the next one starts.
        found = _network_simplex(mass_a, mass_b, reduced, few, limit, number > 1)
        if found is None:  # a feasible flow all the same, with an honest gap
            arcs.flow = arcs.spread(m, *north_west(mass_a, mass_b))
            return arcs, f_best, g_best, None
        flow, f_step, g_step, usual = found
        arcs.flow = flow.ravel()
        f, g = f + _tensor(f_step, f.device), g + _tensor(g_step, g.device)
        f, more = price(f, g, _tolerance(arcs, f, g, usual), noise)
        bound = a @ f + b @ g
        if bound >= best:
            best, f_best, g_best = bound, f, g
        size = len(arcs.rows)
        longer = _Arcs.union(m, (arcs.rows, arcs.columns, arcs.costs), more)
        value = _dot(arcs.flow, arcs.costs)
        added = len(longer.rows) - size
        log.info("round %d: gap %.2g, %d arcs added", number, value - float(best), added)
        if tol and value - float(best) <= tol * abs(value):
            return arcs, f_best, g_best, None
        if not added:
            gap = _dot(arcs.flow, _slack(arcs, f_best.cpu().numpy(), g_best.cpu().numpy()))
            close = CLOSE * _dot(arcs.flow, abs(arcs.costs)) + _noise(usual, f, g)
            if gap <= close or left == 0:
                return arcs, f_best, g_best, usual
            limit, left = WIDER * gap, left - 1
        arcs = longer


def _slack(arcs: _Arcs, f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The arcs' reduced costs. Weighted by an optimal flow they sum to zero, and to a gap whatever
    digits the flow has lost."""
    return arcs.costs - f[arcs.rows] - g[arcs.columns]


def _near_arcs(
    cost: Rows, annealed: Annealed, count: int, a: np.ndarray, b: np.ndarray
) -> tuple[_Arcs, Tensor]:
    """The arcs of smallest C_ij - g_j of each row i, a path of arcs that can carry all mass, and
    the c-transform of g.

    Of arcs that differ by less than `noise` each row takes others: the same ones in all rows could
    not carry their flow.
    """
    (n, m), g, noise = cost.shape, annealed.g, annealed.noise
    path_rows, path_columns, _ = north_west(a, b)
    if isinstance(cost, SearchedRows):
        arcs, least = cost.near(annealed, (path_rows, path_columns))
        return _Arcs.union(m, arcs), least
    count = min(m, math.ceil(count * max(1.0, m / n)))
    near, costs = np.empty((n, count), np.int64), np.empty((n, count))
    path_costs, least = np.empty(len(path_rows)), torch.empty(n, dtype=g.dtype, device=g.device)
    draw, drawn = torch.Generator(g.device).manual_seed(0), None
    for rows, C in cost.blocks():
        reduced = cost.reduced(C, g)
        least[rows] = reduced.amin(1)
        # In float32 what is near can be told apart once the least of the row is taken off.
        reduced.sub_(least[rows, None])
        if noise:
            if drawn is None:
                drawn = torch.rand(reduced.shape, generator=draw, device=draw.device, dtype=C.dtype)
            reduced.add_(drawn[: len(reduced)], alpha=noise)
        j = torch.topk(reduced.float(), count, largest=False, sorted=False).indices
        near[rows], costs[rows] = j.cpu().numpy(), C.gather(1, j).cpu().numpy()
        on_path = slice(*np.searchsorted(path_rows, (rows.start, rows.stop)))
        i, j = (_tensor(x[on_path], C.device) for x in (path_rows - rows.start, path_columns))
        path_costs[on_path] = C[i, j].cpu().numpy()
    rows = np.repeat(np.arange(n), count)
    near = (rows, near.ravel(), costs.ravel())
    return _Arcs.union(m, near, (path_rows, path_columns, path_costs)), least


def _tolerance(arcs: _Arcs, f: Tensor, g: Tensor, usual: float) -> Tensor:
    """By how much f_i + g_j may exceed a cost in row i: what the simplex leaves, and rounding.

    A huge cost that hardly any mass pays does not set it.
    """
    used = arcs.flow > 0
    size = min(float(np.ptp(arcs.costs[used])), _dot(arcs.flow, abs(arcs.costs)))
    return 1e-12 * size + _noise(usual, f, g) + 8 * EPS * f.abs()


def _noise(usual: float, f: Array, g: Array) -> float:
    """What rounding leaves of a reduced cost, where a usual cost that the simplex sees is this."""
    return 8 * EPS * (usual + _median(f) + _median(g))


def _median(potential: Array) -> float:
    """The size of a hundred entries in the median: a few huge ones do not set it."""
    some = abs(potential[:: 1 + len(potential) // 99])
    some = np.sort(some.cpu().numpy() if isinstance(some, Tensor) else some)
    return float(some[len(some) // 2])


def _price(
    cost: Rows, f: Tensor, g: Tensor, tolerance: Tensor, noise: float
) -> tuple[Tensor, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The c-transform of g, and the worst arcs of each row that the given f violates; others in
    each row of those that differ by less than `noise`."""
    best = torch.empty_like(f)
    count = min(cost.shape[1], VIOLATORS)
    found, draw = [], torch.Generator(f.device).manual_seed(0)
    for rows, C in cost.blocks():
        slack = cost.reduced(C, g)
        best[rows] = slack.amin(1)
        bad = (best[rows] < (f - tolerance)[rows]).nonzero().ravel()
        if len(bad):
            slack = slack[bad]
            if noise:
                slack = slack + noise * torch.rand(
                    slack.shape, generator=draw, device=slack.device, dtype=slack.dtype
                )
            j = torch.topk(slack, count, largest=False).indices
            i = bad[:, None].expand_as(j)
            chosen = C[i, j] - g[j] < (f - tolerance)[rows][i]
            i, j = i[chosen], j[chosen]
            found.append([x.cpu().numpy() for x in (i + rows.start, j, C[i, j])])
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    return best, tuple(np.concatenate(x) for x in zip(nothing, *found))


def _network_simplex(
    a: np.ndarray,
    b: np.ndarray,
    costs: np.ndarray,
    arcs: _Arcs | None = None,
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
        solved, flow, u, v = _emd(a, b, table, arcs, warm)
        if cap < math.inf and solved:
            expensive = costs > cap
            solved = flow[expensive].sum() <= MISPUT
            flow[expensive] = 0.0
        if solved:
            return flow, scale * u, scale * v, usual
    return None


def _emd(
    a: np.ndarray, b: np.ndarray, costs: np.ndarray, arcs: _Arcs | None, warm: bool = False
) -> tuple[bool, np.ndarray, np.ndarray, np.ndarray]:
    """Whether POT's network simplex solved it, the flow, and potentials.

    It is called below `ot.emd`, whose warnings would pass through the process's filters. It drops
    masses below 1e-15, so that larger units keep more.
    """
    a, b = UNIT * a, UNIT * (b * (a.sum() / b.sum()))
    if arcs is None:
        flow, _, u, v, code = emd_wrap.emd_c(a, b, costs, ITERATIONS, 1)
    else:
        ends = (x.astype(np.uint64) for x in (arcs.rows, arcs.columns))
        start = [np.zeros(len(a)), np.zeros(len(b))] if warm else []
        solved = emd_wrap.emd_c_sparse(a, b, *ends, costs, ITERATIONS, *start)
        rows, columns, mass, _, u, v, code = solved
        flow = arcs.spread(len(b), rows, columns, mass)
        if warm:  # its tree hangs on an arc of a huge cost, which is in all potentials
            shift = np.median(u)
            u, v = u - shift, v + shift
    flow /= UNIT
    return code == OPTIMAL, flow, u, v


def _all_arcs(cost: Rows, a: Tensor, b: Tensor) -> tuple[_Arcs, Tensor, Tensor, float | None]:
    """As :func:`_generate` for a small problem, by POT's dense network simplex."""
    C, mass_a, mass_b = (np.ascontiguousarray(x.cpu()) for x in (cost.block(slice(None)), a, b))
    usual, g = 0.0, np.zeros(C.shape[1])
    if 1 in C.shape:  # one plan only
        plan = (mass_a[:, None] if len(C) > 1 else mass_b[None]).copy()
        g = C[0] if len(C) == 1 else g
    elif found := _network_simplex(mass_a, mass_b, C - C.min()):
        plan, _, g, usual = found
    else:
        rows, columns, mass = north_west(mass_a, mass_b)
        plan, usual = np.zeros(C.shape), None
        plan[rows, columns] = mass
    for left in reversed(range(REFINEMENTS + 1)):
        f = np.subtract(C, g).min(1)  # `row_minima` costs a batch of these 5 % of its time
        rows, columns = np.divmod(np.flatnonzero(plan > 0), plan.shape[1])
        arcs = _Arcs(rows, columns, C[rows, columns], plan[rows, columns])
        size, noise = _dot(arcs.flow, abs(arcs.costs)), _noise(usual or 0.0, f, g)
        gap = _dot(arcs.flow, _slack(arcs, f, g))
        if gap <= CLOSE * size + noise or left == 0 or not usual:
            break
        found = _network_simplex(mass_a, mass_b, C - f[:, None] - g, limit=WIDER * gap)
        if not found:
            break
        plan, g = found[0], g + found[2]
    return arcs, _tensor(f, a.device), _tensor(g, a.device), usual


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    """<x, y>. From 10,000 entries on NumPy's product starts a thread, which then spins for 0.1 s
    and holds up torch's: exact solutions took twice as long."""
    return float((x * y).sum())


def _tensor(x: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(x, device=device)
