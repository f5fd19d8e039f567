"""Plans of large clouds within a gap, found part by part.

The annealing leaves a sparse plan that is soft: its cost exceeds the least one by about d / 2
temperatures, while its potentials prove a bound that is much closer. From there

1. one cloud is cut into parts of some thousand points. Sweeps balance the plan inside of them. They
   are slow to balance mass that has to go far, and Newton's method, with one unknown for each part,
   does that: it says which mass each part sends to each point of the other cloud;
2. the network simplex finds the best plan between each part and what it sends;
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
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import splu

from exactot.line import north_west
from exactot.progress import log
from exactot.search import Tree, cost
from exactot.simplex import SparseArcs, network_simplex, reduced_costs

PART = 2000  # points, at most
CLIP = 1e12  # by which sweeps scale at most
PASSES = 2  # over all parts; more of them gain next to nothing
RELAXATION = 1.9  # of the sweeps but the last
SWEEPS = 100
LAST = 10
STEPS = 50  # of Newton's method, at most
BALANCED = 1e-13  # mass astray with which they end
DAMPING = 1e-10  # of its matrix, which is singular: potentials may be shifted


def balanced(plan: csr_array, a: np.ndarray, b: np.ndarray) -> csr_array:
    """The plan, scaled to be nearer to marginals a (n,) and b (m,) by over-relaxed sweeps."""
    a, b, transposed = a.astype(np.float32), b.astype(np.float32), plan.T.tocsr()
    u, v = np.ones(len(a), np.float32), np.ones(len(b), np.float32)
    for sweep in range(SWEEPS):
        power = RELAXATION if sweep < SWEEPS - LAST else 1.0
        u = np.clip(u * (a / (u * (plan @ v))) ** power, 1 / CLIP, CLIP)
        v = np.clip(v * (b / (v * (transposed @ u))) ** power, 1 / CLIP, CLIP)
    entries = u[rows_of(plan)] * plan.data * v[plan.indices]
    return csr_array((entries, plan.indices, plan.indptr), plan.shape)


def newton(shares: csr_array, a: np.ndarray, b: np.ndarray) -> csr_array:
    """diag(exp(u)) shares diag(v) with marginals a (k,) and b (m,), or as near to them as Newton's
    method comes. Its u maximises <a, u> - <b, log(shares^T exp(u))>, which is concave."""
    u = np.zeros(len(a))
    for step in range(STEPS + 1):
        scaled = diags_array(np.exp(u)) @ shares
        scaled = (scaled @ diags_array(b / scaled.sum(0))).tocsr()
        sums = scaled.sum(1)
        error = float(abs(a - sums).sum())
        log.info("parts: mass %.1g is astray after %d steps", error, step)
        if error < BALANCED or step == STEPS:
            return scaled
        curvature = diags_array(sums + DAMPING * a) - scaled @ diags_array(1 / b) @ scaled.T
        try:
            change = splu(curvature.tocsc()).solve(a - sums)
        except RuntimeError:  # it is singular where no scaling has these marginals
            return scaled
        u += change / max(1.0, float(abs(change).max()))


def feasible(
    plan: csr_array, a: np.ndarray, b: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and masses of a plan with marginals a and b: the given one where it exceeds
    none of them, and the north-west corner rule for what these still want.

    The rule takes the columns by their places, and the rows by the mean place of their mass.
    """
    rows, columns = rows_of(plan), plan.indices.astype(np.int64)
    mass = plan.data.astype(float)
    for ends, weights in ((rows, a), (columns, b)):
        sums = np.bincount(ends, mass, len(weights))
        mass *= np.minimum(1.0, weights / np.maximum(sums, 1e-300))[ends]
    order = np.argsort(images(plan, places)), np.argsort(places)
    left = [
        np.maximum(weights - np.bincount(ends, mass, len(weights)), 0.0)[z]
        for ends, weights, z in zip((rows, columns), (a, b), order)
    ]
    if not all(x.any() for x in left):
        return rows, columns, mass
    i, j, rest = north_west(*left)
    parts = zip((rows, columns, mass), (order[0][i], order[1][j], rest))
    return tuple(np.concatenate(part) for part in parts)


def rows_of(plan: csr_array) -> np.ndarray:
    """The row of each entry."""
    return np.repeat(np.arange(plan.shape[0]), np.diff(plan.indptr))


def images(plan: csr_array, places: np.ndarray) -> np.ndarray:
    """The mean place of each row's mass; 0 where there is none."""
    return (plan @ places) / np.maximum(plan.sum(1), 1e-300)


def parts_of(tree: Tree) -> np.ndarray:
    """The number of the part (n,) that each point is in."""
    n = len(tree.order)
    level = max(0, math.ceil(math.log2(n / PART)))
    found = np.empty(n, np.int64)
    found[tree.order] = ((np.arange(n) + 1 << level) - 1) // n
    return found


def first_flow(
    plan: csr_array, a: np.ndarray, b: np.ndarray, trees: tuple[Tree, Tree]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and masses of a plan with marginals a and b, which sends from each part what a
    good plan would send, but inside of it does so by the north-west corner rule."""
    part, places = parts_of(trees[0]), np.argsort(trees[1].order).astype(float)
    entries = plan.data.astype(float), (part[rows_of(plan)], plan.indices)
    mass_of_parts = np.bincount(part, a)
    shares = coo_array(entries, shape=(len(mass_of_parts), len(b))).tocsr()
    shares = newton(shares, mass_of_parts, b)
    k, j, mass = feasible(shares, mass_of_parts, b, places)
    rows, shares = np.lexsort((images(plan, places), part)), np.lexsort((places[j], k))
    i, share, mass = north_west(a[rows], mass[shares])
    return rows[i], j[shares[share]], mass


def solve_parts(
    ends: tuple[np.ndarray, np.ndarray], mass: np.ndarray, costs: np.ndarray, tree: Tree
) -> np.ndarray:
    """Masses on the same arcs that cost the least among those with the same marginals in each part
    of the tree, whose points are the first ends."""
    parts = parts_of(tree)
    part = parts[ends[0]]
    sort = np.lexsort((ends[1], ends[0], part))
    limits, found = np.searchsorted(part[sort], np.arange(parts.max() + 2)), mass.copy()
    for arcs in (sort[slice(*x)] for x in itertools.pairwise(limits) if x[0] < x[1]):
        i, j = (np.unique(x[arcs], return_inverse=True)[1] for x in ends)
        before, price = mass[arcs], costs[arcs]
        weights = np.bincount(i, before), np.bincount(j, before)
        solved = network_simplex(*weights, price, SparseArcs(i, j, price))
        if solved is not None and solved[0] @ price < before @ price:
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
    plan = balanced(plan, a, b)
    path = first_flow(plan, a, b, trees)
    rows = np.concatenate((rows_of(plan), path[0]))
    columns = np.concatenate((plan.indices, path[1]))
    arcs = SparseArcs.union(len(b), (rows, columns, cost(metric, (x[rows] - y[columns]).T)))
    mass = arcs.spread(len(b), *path)
    reduced = reduced_costs(arcs, f, g)
    bound = float((a * f).sum() + (b * g).sum())
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
