"""Plans of large clouds within a gap, found part by part.

The annealing leaves a sparse plan that is soft: its cost exceeds the least one by about d / 2
temperatures, while its potentials prove a bound that is much closer. From there

1. sweeps go on until the marginals are balanced well, and what is left is moved by the north-west
   corner rule in the order of a tree of the points;
2. one cloud is cut into parts of some thousand points. Each keeps the mass that it sends to each
   point of the other cloud, and the network simplex finds the best plan between these;
3. the same with parts of the other cloud, whose borders are elsewhere, and so on in turn.

No linear program is larger than a part, so that the time grows as the number of points does. The
gap is that to the potentials' bound, and the plan is optimal but for what would have to cross a
border twice.

Benamou, "A domain decomposition method for the polar factorization of vector-valued mappings",
SIAM Journal on Numerical Analysis 1995, and Bonafini and Schmitzer, "Domain decomposition for
entropy regularized optimal transport", Numerische Mathematik 2021, solve by parts in this way.
"""

import itertools
import math

import numpy as np
from scipy.sparse import csr_array

from exactot.line import north_west
from exactot.progress import log
from exactot.search import Tree, cost, usual_cost
from exactot.simplex import SparseArcs, network_simplex, reduced_costs

PART = 2000  # points, at most
CLIP = 1e12  # by which they scale at most
PASSES = 2  # over all parts; more of them gain next to nothing
RAMP = 3  # sweeps after which their relaxation is half of the way from 1 to 2
SWEEPS = 10_000  # at most
CHECK = 50  # sweeps between looks at their error
STALLED = 10  # looks, in which it has to fall by a tenth
LEAST = 1e-7  # error of marginals, in float32
BALANCED = 0.25  # of the gap that is asked for is what mass astray may cost


def balanced(plan: csr_array, a: np.ndarray, b: np.ndarray, error: float) -> csr_array:
    """The plan scaled to marginals a (n,) and b (m,), up to this error of b, by sweeps whose
    relaxation grows; or as near to it as they come."""
    a, b, transposed = a.astype(np.float32), b.astype(np.float32), plan.T.tocsr()
    u, v, errors = np.ones(len(a), np.float32), np.ones(len(b), np.float32), []
    for sweep in range(1, SWEEPS + 1):
        power = 2 - RAMP / (sweep + RAMP) if sweep % CHECK else 1.0
        u = np.clip(u * (a / (u * (plan @ v))) ** power, 1 / CLIP, CLIP)
        off = v * (transposed @ u) / b
        if sweep % CHECK == 0:
            errors.append(float(b @ abs(off - 1)))
            if errors[-1] < error or (len(errors) > STALLED and min(errors) > 0.9 * errors[0]):
                break
            errors = errors[-STALLED:]
        v = np.clip(v * off**-power, 1 / CLIP, CLIP)
    log.info("parts: marginals are balanced to %.1g after %d sweeps", errors[-1], sweep)
    u = np.clip(a / (plan @ v), 1 / CLIP, CLIP)
    rows = np.repeat(np.arange(len(a)), np.diff(plan.indptr))
    return csr_array((u[rows] * plan.data * v[plan.indices], plan.indices, plan.indptr), plan.shape)


def _feasible(
    plan: csr_array, a: np.ndarray, b: np.ndarray, target: Tree
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and masses of a plan with marginals a and b: the given one where it exceeds
    none of them, and the north-west corner rule for what these still want."""
    rows = np.repeat(np.arange(len(a)), np.diff(plan.indptr))
    columns = plan.indices.astype(np.int64)
    mass = plan.data.astype(float)
    for ends, weights in ((rows, a), (columns, b)):
        sums = np.bincount(ends, mass, len(weights))
        mass *= np.minimum(1.0, weights / np.maximum(sums, 1e-300))[ends]
    place = np.argsort(target.order)
    image = np.bincount(rows, mass * place[columns]) / np.bincount(rows, mass)
    order = np.argsort(image), target.order
    left = (
        np.maximum(weights - np.bincount(ends, mass, len(weights)), 0.0)[z]
        for ends, weights, z in zip((rows, columns), (a, b), order)
    )
    i, j, rest = north_west(*left)
    parts = zip((rows, columns, mass), (order[0][i], order[1][j], rest))
    return tuple(np.concatenate(part) for part in parts)


def solve_parts(
    ends: tuple[np.ndarray, np.ndarray], mass: np.ndarray, costs: np.ndarray, tree: Tree
) -> np.ndarray:
    """Masses on the same arcs that cost the least among those with the same marginals in each part
    of the tree, whose points are the first ends."""
    order, level = tree.order, max(0, math.ceil(math.log2(len(tree.order) / PART)))
    rows, columns = np.argsort(order)[ends[0]], ends[1]
    starts = np.arange(2**level + 1) * len(order) >> level
    sort = np.lexsort((columns, rows))
    limits, found = np.searchsorted(rows[sort], starts), mass.copy()
    for start, arcs in zip(starts, (sort[slice(*x)] for x in itertools.pairwise(limits))):
        if len(arcs):
            i, j = rows[arcs] - start, np.unique(columns[arcs], return_inverse=True)[1]
            part, price = mass[arcs], costs[arcs]
            weights = np.bincount(i, part), np.bincount(j, part)
            solved = network_simplex(*weights, price, SparseArcs(i, j, price))
            if solved is not None and solved[0] @ price < part @ price:
                found[arcs] = solved[0]
    return found


def solve_by_parts(
    points: tuple[np.ndarray, np.ndarray],
    trees: tuple[Tree, Tree],
    metric: str,
    plan: csr_array,
    potentials: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    tol: float,
) -> SparseArcs | None:
    """Arcs with a flow whose relative gap to the feasible potentials' bound is at most tol; None if
    some passes over all parts do not find one. The plan is near to an optimal one."""
    (x, y), (f, g), (a, b) = points, potentials, weights
    bound = float((a * f).sum() + (b * g).sum())
    astray = usual_cost(metric, x, y)  # of a unit of mass
    plan = balanced(plan, a, b, max(BALANCED * tol * abs(bound) / astray, LEAST))
    rows, columns, mass = _feasible(plan, a, b, trees[1])
    arcs = SparseArcs.union(len(b), (rows, columns, cost(metric, (x[rows] - y[columns]).T)))
    mass = arcs.spread(len(b), rows, columns, mass)
    reduced = reduced_costs(arcs, f, g)
    for number in range(PASSES):
        axis = number % 2
        ends = (arcs.rows, arcs.columns)[:: 1 - 2 * axis]
        mass = solve_parts(ends, mass, reduced, trees[axis])
        value = float((mass * arcs.costs).sum())
        log.info("parts: gap %.2g after pass %d", value - bound, number + 1)
        if value - bound <= tol * abs(value):
            arcs.flow = mass
            return arcs
    return None
