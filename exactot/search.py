"""The pairs of two clouds whose reduced cost C_ij - f_i - g_j is small, without reading all pairs.

Both clouds are sorted into binary trees of boxes. Let D be the difference of the centres of two
boxes, u and w the places of points in them, and let f <= f_0 + p u, g <= g_0 + q w there. The cost
is a convex function h of x - y, and so is above its tangent at D. Hence

    C - f - g >= h(D) - f_0 - g_0 + (h'(D) - p) u - (h'(D) + q) w
              >= h(D) - f_0 - g_0 - |h'(D) - p| r - |h'(D) + q| s

for boxes that reach r and s from their centres. Where this is not small no pair of the boxes is
read. With slopes p, q by least squares the bound misses by the second order of the boxes' sizes,
and in two dimensions a leaf meets a few others, however many points there are. What is
returned is computed from the points themselves.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from ipot import EPS

LEAF = 16  # points
ROUNDINGS = 64  # of a bound, at most
FIRST = 5  # level of the trees at which a search begins
BLOCK = 2**16  # pairs of points that are read at once, which stay in a CPU's cache

Arcs = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns, costs


def _unit(D: np.ndarray) -> np.ndarray:
    return D / np.maximum(np.sqrt((D * D).sum(0)), 1e-300)


def cost(metric: str, differences: Iterable[np.ndarray]) -> np.ndarray:
    """The cost from x - y, axis by axis; the arrays are overwritten."""
    total = None
    for z in differences:
        z = np.abs(z, out=z) if metric == "cityblock" else np.multiply(z, z, out=z)
        total = z if total is None else np.add(total, z, out=total)
    return np.sqrt(total, out=total) if metric == "euclidean" else total


SLOPES = {"sqeuclidean": lambda D: 2 * D, "euclidean": _unit, "cityblock": np.sign}
"""The gradient of the cost at x - y (d, ...), one of them where it has a corner."""


def usual_cost(metric: str, x: np.ndarray, y: np.ndarray) -> float:
    """The mean of the costs of a thousand pairs of points of clouds (n, d) and (m, d)."""
    i, j = np.random.default_rng(0).integers([[len(x)], [len(y)]], size=(2, 1000))
    return float(cost(metric, (x[i] - y[j]).T).mean())


class Tree:
    """Points (n, d) in a balanced binary tree.

    Attributes
    ----------
    cloud : (n, d)
        The points as they were given.
    order : (n,)
        The points' numbers as they lie in the tree, where each node is a range.
    points : (d, n)
        In this order.
    depth : int
        Level of the leaves, of which there are 2^depth.
    centre, half : lists of (d, 2^level)
        The box of each node: its middle, and how far it reaches from there.
    """

    def __init__(self, points: np.ndarray):
        n, d = points.shape
        self.depth = max(0, math.ceil(math.log2(n / LEAF)))
        ranks = np.empty((d, n), np.int64)
        for axis in range(d):
            ranks[axis, np.argsort(points[:, axis], kind="stable")] = np.arange(n)
        order = np.arange(n)
        for level in range(self.depth):
            starts = self._starts(n, level)
            here = points[order]
            width = np.maximum.reduceat(here, starts[:-1]) - np.minimum.reduceat(here, starts[:-1])
            node = np.repeat(np.arange(2**level), np.diff(starts))
            order = order[np.argsort(node * n + ranks[width.argmax(1)[node], order])]
        self.cloud, self.order = points, order
        self.points = np.ascontiguousarray(points[order].T)
        self.starts = [self._starts(n, level) for level in range(self.depth + 1)]
        low, high = (
            op.reduceat(self.points, self.starts[-1][:-1], axis=1)
            for op in (np.minimum, np.maximum)
        )
        self.centre, self.half = [], []
        for _ in range(self.depth + 1):
            self.centre.insert(0, (low + high) / 2)
            self.half.insert(0, (high - low) / 2 * (1 + 4 * EPS) + EPS * (abs(low) + abs(high)))
            low = np.minimum(low[:, ::2], low[:, 1::2])
            high = np.maximum(high[:, ::2], high[:, 1::2])

    @staticmethod
    def _starts(n: int, level: int) -> np.ndarray:
        """Where the ranges of the nodes at a level begin; and n."""
        return np.arange(2**level + 1) * n >> level

    def bounds(self, f: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each level from FIRST on slopes p (d, count) and tops f_0 (count,), so that
        f <= f_0 + p u on each node, and the size (count,) of what was added up for them; f is in
        the order of the tree."""
        (d, n), starts = self.points.shape, self.starts
        first = min(FIRST, self.depth)
        x = self.points - self.points.mean(1, keepdims=True)
        shifted = f - f.mean()
        moments = [np.ones(n), *x, shifted, *(x * shifted)]
        moments += [x[j] * x[k] for j in range(d) for k in range(j + 1)]
        moments = np.add.reduceat(np.stack(moments), starts[-1][:-1], axis=1)
        found = []
        for level in range(self.depth, first - 1, -1):
            slope = _least_squares(moments, d)
            node = np.repeat(np.arange(2**level), np.diff(starts[level]))
            rest = f.copy()
            for axis in range(d):
                rest -= slope[axis][node] * (self.points[axis] - self.centre[level][axis][node])
            top, size = (np.maximum.reduceat(z, starts[level][:-1]) for z in (rest, abs(f)))
            found.insert(0, (slope, top, size + (abs(slope) * self.half[level]).sum(0)))
            moments = moments[:, ::2] + moments[:, 1::2]
        return found


def _least_squares(moments: np.ndarray, d: int) -> np.ndarray:
    """Slopes (d, count) of values over points, from their sums."""
    count, x, f, xf = moments[0], moments[1 : d + 1], moments[d + 1], moments[d + 2 : 2 * d + 2]
    covariance, size = np.empty((len(count), d, d)), np.zeros(len(count))
    squares = iter(moments[2 * d + 2 :])
    for j in range(d):
        for k in range(j + 1):
            square = next(squares)
            covariance[:, j, k] = covariance[:, k, j] = square - x[j] * x[k] / count
        size += square
    # What rounding leaves of the covariance of points that nearly coincide is drowned.
    covariance += (1e-12 * size + 1e-300)[:, None, None] * np.eye(d)
    return np.linalg.solve(covariance, (xf - x * f / count).T[..., None])[..., 0].T


def close_leaves(
    source: Tree, target: Tree, f: np.ndarray, g: np.ndarray, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of leaves, sorted, that hold all pairs of points with C_ij < f_i + g_j; f and g in the
    order of the trees."""
    slope = SLOPES[metric]
    trees, tops = (source, target), (source.bounds(f), target.bounds(g))
    levels = [min(FIRST, tree.depth) for tree in trees]
    firsts = list(levels)
    A, B = (x.ravel() for x in np.indices([2**level for level in levels]))
    while True:
        (cx, rx), (cy, ry) = ((t.centre[k], t.half[k]) for t, k in zip(trees, levels))
        (p, f0, f_size), (q, g0, g_size) = (
            top[k - first] for top, k, first in zip(tops, levels, firsts)
        )
        D = cx[:, A] - cy[:, B]
        h, centre = slope(D), cost(metric, D.copy())
        least = centre - f0[A] - g0[B]
        least -= (abs(h - p[:, A]) * rx[:, A] + abs(h + q[:, B]) * ry[:, B]).sum(0)
        size = centre + (abs(h) * (rx[:, A] + ry[:, B])).sum(0) + f_size[A] + g_size[B]
        kept = least < ROUNDINGS * EPS * size
        A, B = A[kept], B[kept]
        split = [tree.depth > level for tree, level in zip(trees, levels)]
        if not any(split):
            order = np.lexsort((B, A))
            return A[order], B[order]
        if split[0]:
            A, B, levels[0] = np.concatenate((2 * A, 2 * A + 1)), np.tile(B, 2), levels[0] + 1
        if split[1]:
            A, B, levels[1] = np.tile(A, 2), np.concatenate((2 * B, 2 * B + 1)), levels[1] + 1


def arcs_below(
    source: Tree, target: Tree, f: np.ndarray, g: np.ndarray, metric: str
) -> Iterator[Arcs]:
    """All pairs of points with C_ij < f_i + g_j: rows, columns and costs, in parts whose rows
    differ."""
    f, g = f[source.order], g[target.order]
    A, B = close_leaves(source, target, f, g, metric)
    (left, mine), (right, theirs) = (_padded(tree) for tree in (source, target))
    X, Y = source.points[:, left], target.points[:, right]  # (d, leaves, size)
    F, G = np.where(mine, f[left], -np.inf), np.where(theirs, g[right], -np.inf)
    rows, columns = source.order[left], target.order[right]
    for parts in _blocks(A, max(1, BLOCK // (left.shape[1] * right.shape[1]))):
        found = []
        for part in parts:
            k, l = A[part], B[part]
            C = cost(metric, (x[k, :, None] - y[l, None, :] for x, y in zip(X, Y)))
            near = np.flatnonzero(C - F[k, :, None] < G[l, None, :])
            pair, i, j = np.unravel_index(near, C.shape)
            found.append((rows[k[pair], i], columns[l[pair], j], C.ravel()[near]))
        yield tuple(np.concatenate(x) for x in zip(*found))


def _blocks(A: np.ndarray, size: int) -> Iterator[list[slice]]:
    """Groups of slices of up to `size` entries of sorted numbers; no number is in two groups."""
    ends = np.append(np.flatnonzero(np.diff(A)) + 1, len(A)) if len(A) else A
    start = 0
    while start < len(A):
        whole = np.searchsorted(ends, [start, start + size], "right")
        stop = int(ends[max(whole[0], whole[1] - 1)])
        yield [slice(k, min(k + size, stop)) for k in range(start, stop, size)]
        start = stop


def _padded(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Places in the tree (leaves, size) of each leaf's points, and which are not there twice."""
    starts = tree.starts[-1]
    sizes = np.diff(starts)
    places = np.arange(sizes.max())
    return np.minimum(starts[:-1, None] + places, starts[1:, None] - 1), places < sizes[:, None]


def within(sizes: np.ndarray) -> np.ndarray:
    """0, 1, and so on in each of the groups of these sizes, one group behind the other."""
    return np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)


def by_rows(i: np.ndarray, slack: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arcs in the order of their rows and, in each, of their slack; where rows start, and how many
    arcs each has."""
    order = np.lexsort((slack, i))
    starts = np.flatnonzero(np.diff(i[order], prepend=-1))
    return order, starts, np.diff(starts, append=len(i))


def nearest(
    source: Tree,
    target: Tree,
    f: np.ndarray,
    g: np.ndarray,
    metric: str,
    count: int,
    width: float,
    rows: np.ndarray | None = None,
    noise: float = 0.0,
) -> Arcs:
    """The `count` arcs of least reduced cost of each of the rows, or all there are if these are
    fewer: sorted rows, columns, costs.

    At first arcs are looked for whose reduced cost is below `width`; for rows that have too few of
    these it is quadrupled. What differs by less than `noise` is told apart at random.
    """
    left = np.arange(len(f)) if rows is None else rows
    count, rng, found = min(count, len(g)), np.random.default_rng(0), []
    while len(left):
        tree = source if len(left) == len(f) else Tree(source.cloud[left])
        for i, j, C in arcs_below(tree, target, f[left] + width, g, metric):
            slack = C - g[j]
            order, starts, sizes = by_rows(i, slack)
            if noise:
                slack += noise * rng.random(len(slack))
                slack[order[starts]] = -np.inf  # the least is always among them
                order, starts, sizes = by_rows(i, slack)
            i, j, C = i[order], j[order], C[order]
            chosen = (within(sizes) < count) & np.repeat(sizes >= count, sizes)
            found.append((left[i[chosen]], j[chosen], C[chosen]))
        done = np.zeros(len(f), bool)
        for i, _, _ in found:
            done[i] = True
        left, width = left[~done[left]], 4 * width
    i, j, C = (np.concatenate(x) for x in zip(*found))
    order = np.argsort(i, kind="stable")
    return i[order], j[order], C[order]
