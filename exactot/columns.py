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
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from exactot.annealing import Annealed, is_tied
from exactot.costs import Rows
from exactot.forest import settle
from exactot.line import north_west
from exactot.pairs import AllPairs
from exactot.plans import Flow
from exactot.progress import log
from exactot.simplex import (
    SparseArcs,
    centred,
    network_simplex,
    reduced_costs,
    rounding_noise,
)
from ipot import EPS, power_of_two

# benchmarks/solvers.py chose these: n = 128 to 8192, d = 1, 2, 16, uniform and random weights.
SMALL = 200**2  # problems with fewer arcs go to the network simplex as they are
MOST_TIED = 2**21  # likewise where the costs have few values, which the simplex is quick with
LIGHT = 1e-18  # mass of points that are linked to the others once these are solved
LOOSE = 1e-3  # relative gaps from here on are loose
CLOSE = 3e-10  # gap, relative to the carried cost, from which potentials are refined
REFINEMENTS = 2  # of a solution's potentials, at most
WIDER = 1e3  # times the gap: what is above is cut in a refinement


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
) -> tuple[SparseArcs, Tensor, Tensor, float | None, int]:
    """As :func:`generate` does, and the sweeps that this took."""
    n, m = cost.shape
    if n * m <= SMALL or n == 1 or m == 1 or (n * m <= MOST_TIED and is_tied(cost)):
        return *_all_arcs(cost, a, b), 0
    if cost.copies:
        return _solve_distinct(cost, a, b, eps, tol)
    if cost.searched and not cost.sorted:
        return _solve_in_order(cost, a, b, eps, tol)
    source = cost if cost.searched else AllPairs(cost, tol >= LOOSE)
    annealed = source.anneal(a, b, eps)
    # Potentials with few digits keep the differences of whole costs exact.
    digit = 2.0**-24 * power_of_two(annealed.g.abs().amax().clamp_min(1e-300))
    annealed = replace(annealed, g=torch.round(annealed.g / digit) * digit)
    if tol and cost.searched and (found := cost.solve_within(annealed, a, b, tol)):
        return *found, None, annealed.sweeps
    arcs, f, g, usual = generate(source, annealed, a, b, tol)
    usual = usual if usual is None else max(usual, annealed.eps)
    return arcs, f, g, usual, annealed.sweeps


def _solve_in_order(
    cost: Rows, a: Tensor, b: Tensor, eps: float, tol: float
) -> tuple[SparseArcs, Tensor, Tensor, float | None, int]:
    """As :func:`_solve_part`, with the points in an order that suits a search."""
    cost, order = cost.in_order()
    places = [torch.from_numpy(z) for z in order]
    weights = (w[z] for w, z in zip((a, b), places))
    found, *potentials, usual, sweeps = _solve_part(cost, *weights, eps, tol)
    f, g = (torch.empty_like(u).index_copy_(0, z, u) for u, z in zip(potentials, places))
    ends = order[0][found.rows], order[1][found.columns]
    return SparseArcs(*ends, found.costs, found.flow), f, g, usual, sweeps


def _solve_distinct(
    cost: Rows, a: Tensor, b: Tensor, eps: float, tol: float
) -> tuple[SparseArcs, Tensor, Tensor, float | None, int]:
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
    return SparseArcs(*ends, costs, mass), f, g, usual, sweeps


def generate(
    source: AllPairs, annealed: Annealed, a: Tensor, b: Tensor, tol: float
) -> tuple[SparseArcs, Tensor, Tensor, float | None]:
    """Arcs with a flow on them, and the best potentials seen; where no arc is left that could
    improve the flow also a usual one of the costs that the simplex was given, otherwise None.

    Begins with the arcs that the source finds near under the annealed potentials.
    """
    mass_a, mass_b, g = a.cpu().numpy(), b.cpu().numpy(), annealed.g
    n, m = len(a), len(b)
    found, f = source.near(annealed, north_west(mass_a, mass_b)[:2])
    f, g = (_tensor(x, a.device) for x in centred(f.cpu().numpy(), g.cpu().numpy(), mass_a))
    arcs = SparseArcs.union(m, found)
    best, f_best, g_best, limit, left = a @ f + b @ g, f, g, math.inf, REFINEMENTS
    for number in itertools.count(1):
        log.info("round %d: network simplex on %d arcs", number, len(arcs.rows))
        reduced, few = reduced_costs(arcs, f.cpu().numpy(), g.cpu().numpy()), arcs
        if m <= n and len(arcs.rows) == n * m:  # that for all is faster
            reduced, few = reduced.reshape(n, m), None
        # The reduced costs of a round before have an optimal tree, from which the next one starts.
        found = network_simplex(mass_a, mass_b, reduced, few, limit, number > 1)
        if found is None:  # a feasible flow all the same, with an honest gap
            arcs.flow = arcs.spread(m, *north_west(mass_a, mass_b))
            return arcs, f_best, g_best, None
        flow, *steps, usual = found
        arcs.flow = flow.ravel()
        f, g = (x + _tensor(y, a.device) for x, y in zip((f, g), centred(*steps, mass_a)))
        f, more = source.price(f, g, _tolerance(arcs, f, g, usual), annealed.noise)
        bound = a @ f + b @ g
        if bound >= best:
            best, f_best, g_best = bound, f, g
        size = len(arcs.rows)
        longer = SparseArcs.union(m, (arcs.rows, arcs.columns, arcs.costs), more)
        value = _dot(arcs.flow, arcs.costs)
        added = len(longer.rows) - size
        log.info("round %d: gap %.2g, %d arcs added", number, value - float(best), added)
        if tol and value - float(best) <= tol * abs(value):
            return arcs, f_best, g_best, None
        if not added:
            gap = _dot(arcs.flow, reduced_costs(arcs, f_best.cpu().numpy(), g_best.cpu().numpy()))
            close = CLOSE * _dot(arcs.flow, abs(arcs.costs)) + rounding_noise(usual, f, g)
            if gap <= close or left == 0:
                return arcs, f_best, g_best, usual
            limit, left = WIDER * gap + _digits_of_used(arcs), left - 1
        arcs = longer


def _digits_of_used(arcs: SparseArcs) -> float:
    """What rounding may leave of the reduced cost of an arc that carries mass.

    No cost below this is cut: a huge one that a little mass pays would forbid the cut.
    """
    return 32 * EPS * float(abs(arcs.costs[arcs.flow > 0]).max())


def _tolerance(arcs: SparseArcs, f: Tensor, g: Tensor, usual: float) -> Tensor:
    """By how much f_i + g_j may exceed a cost in row i: what the simplex leaves, and rounding.

    A huge cost that hardly any mass pays does not set it.
    """
    used = arcs.flow > 0
    size = min(float(np.ptp(arcs.costs[used])), _dot(arcs.flow, abs(arcs.costs)))
    return 1e-12 * size + rounding_noise(usual, f, g) + 8 * EPS * f.abs()


def _all_arcs(cost: Rows, a: Tensor, b: Tensor) -> tuple[SparseArcs, Tensor, Tensor, float | None]:
    """As :func:`_generate` for a small problem, by POT's dense network simplex."""
    C, mass_a, mass_b = (np.ascontiguousarray(x.cpu()) for x in (cost.block(slice(None)), a, b))
    usual, g = 0.0, np.zeros(C.shape[1])
    if 1 in C.shape:  # one plan only
        plan = (mass_a[:, None] if len(C) > 1 else mass_b[None]).copy()
        g = C[0] if len(C) == 1 else g
    elif found := network_simplex(mass_a, mass_b, C - C.min()):
        plan, _, g, usual = found
    else:
        rows, columns, mass = north_west(mass_a, mass_b)
        plan, usual = np.zeros(C.shape), None
        plan[rows, columns] = mass
    for left in reversed(range(REFINEMENTS + 1)):
        f = np.subtract(C, g).min(1)  # `row_minima` costs a batch of these 5 % of its time
        rows, columns = np.divmod(np.flatnonzero(plan > 0), plan.shape[1])
        arcs = SparseArcs(rows, columns, C[rows, columns], plan[rows, columns])
        size, noise = _dot(arcs.flow, abs(arcs.costs)), rounding_noise(usual or 0.0, f, g)
        gap = _dot(arcs.flow, reduced_costs(arcs, f, g))
        if gap <= CLOSE * size + noise or left == 0 or not usual:
            break
        limit = WIDER * gap + _digits_of_used(arcs)
        found = network_simplex(mass_a, mass_b, C - f[:, None] - g, limit=limit)
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
