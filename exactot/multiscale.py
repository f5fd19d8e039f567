"""Large clouds in few dimensions: potentials from coarse to fine, and no pass over all pairs.

`columns` needs three things of a cost: annealed potentials, the arcs of small reduced cost, and the
c-transform that prices all arcs. Here each of them reads only pairs that `search` finds to be close
under the potentials at hand.

The annealing (see `annealing`) runs on cells of a grid (see `cells`), whose side is halved whenever
a cell sees few others: the temperature at which a point sees a constant number of others falls with
the distance between points. A potential of cells is carried to the finer ones by a soft c-transform
of the other. The kernel is stored where an entry of the plan is above exp(-CUT) sqrt(a_i b_j). It
is sparse, and so many sweeps cost no more than the search for it: these decide how good the
potentials are. Sweeps are slow to balance mass that has to go far. Coarse levels, which are cheap,
are therefore solved exactly too, and what this changes by more than the temperature explains is
kept.

Schmitzer, "A Sparse Multiscale Algorithm for Dense Optimal Transport", 2016, and "Stabilized Sparse
Scaling Algorithms for Entropy Regularized Transport Problems", 2019, go from coarse to fine for
exact plans and for entropic ones.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from exactot.annealing import NEIGHBOURS, STAGES, Annealed, anneal, is_tied
from exactot.cells import Cells, children, levels
from exactot.columns import generate
from exactot.costs import CloudRows, Metric
from exactot.parts import solve_by_parts
from exactot.progress import log
from exactot.search import (
    Arcs,
    Tree,
    arcs_below,
    by_rows,
    cost,
    nearest,
    usual_cost,
    within,
)
from exactot.simplex import SparseArcs
from ipot import extrapolated

LARGE = {2: 2**22, 3: 2**22, 4: 2**30}  # pairs from which on it pays, in these dimensions
SAMPLE = 700  # points that a c-transform is taken over at first
GROWTH = 8  # of this sample
CUT = 10  # temperatures
STEEP = 30  # likewise, by which potentials may exceed a cost; no product leaves float32's range
SWEEPS = 100  # of a stage, at most
CHECK = 10  # sweeps between looks at their error
EXACT = 1e-4  # error of the marginals with which the sweeps end
SOLVED = 0.25  # of the points, at most, are the cells of a level that is solved exactly
UNBALANCED = 0.01  # of the cost is what mass astray may cost; with more a level is solved too
LEVEL = 0.01  # temperatures: gap of a level that is solved, but the last
ASTRAY = 1e-2  # error with which a stage is repeated, as the kernel lacks arcs
REPEATS = 4  # of a stage, at most
RELAXATION = 1.8
CLIP = 1e9  # by which a sweep scales at most
ARCS = 8  # of each row and of each column
VIOLATORS = 8  # arcs that a row may add in a round
WITHIN = 0.15  # temperatures: a gap below this is not tried by parts


@dataclass(frozen=True, eq=False)
class _Stage:
    """What sweeps at one temperature leave."""

    f: np.ndarray  # (n,): the plan is a_i b_j exp((f_i + g_j - C_ij) / eps)
    g: np.ndarray  # (m,)
    eps: float
    plan: csr_array  # (n, m), where it is not negligible
    neighbours: float  # how many others a row sees
    error: float  # of the columns' marginals
    sweeps: int

    @property
    def sees_few(self) -> bool:
        """Whether the plan has few entries; a row has to see m / n columns at least."""
        n, m = self.plan.shape
        return self.neighbours * n < NEIGHBOURS * (n + m) / 2


def anneal_clouds(
    x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, metric: str, eps: float
) -> Annealed:
    """Potentials for clouds (n, d) and (m, d) with positive weights of equal mass, from the
    temperature eps down.

    Coarse levels, and those on which sweeps leave much mass astray, are also solved exactly.
    """
    scale = levels((x, y), (a / a.sum(), b / b.sum()))
    first, f, noise = _coarsest(*scale[0], metric, eps)
    g, eps, sweeps = first.g.numpy(), first.last, first.sweeps
    astray = usual_cost(metric, x, y)
    plan = also = None
    for k, level in enumerate(scale):
        if k:
            sides = (scale[k - 1], plan, g), (scale[k - 1][::-1], plan.T.tocsr(), f)
            f, g = (carried(z, *ends, metric, eps) for z, ends in zip(level, sides))
        stage, count = _anneal_level(*level, f, g, metric, eps)
        f, g, eps, plan, sweeps = stage.f, stage.g, stage.eps, stage.plan, sweeps + count
        near_f, near_g = (torch.from_numpy(z + eps * w.logs) for z, w in zip((f, g), level))
        found = replace(
            first,
            g=near_g,
            f=near_f,
            neighbours=stage.neighbours,
            sweeps=sweeps,
            last=eps,
            noise=10 * eps if noise else 0.0,
            also=also,
        )
        also = None
        value = abs(float(level[0].weights @ f + level[1].weights @ g))
        few = any(len(z) <= SOLVED * len(points) for z, points in ((f, x), (g, y)))
        if k + 1 < len(scale) and (few or stage.error * astray > UNBALANCED * value):
            tol = LEVEL * eps / max(value, eps)
            rows, columns, *solved = _exact(level, found, metric, tol)
            f, g = corrected((f, g), solved, CUT * eps)
            ones = np.ones(len(rows), np.float32)
            plan = coo_array((ones, (rows, columns)), shape=plan.shape).tocsr()
            also = children(scale[k + 1], rows, columns)
    return found


def corrected(
    soft: tuple[np.ndarray, np.ndarray], exact: tuple[np.ndarray, np.ndarray], most: float
) -> tuple[np.ndarray, np.ndarray]:
    """Soft potentials, changed to exact ones but for `most`. What differs by less is explained by
    the temperature, and soft potentials are the better start there: exact ones are not unique."""
    shift = np.median(exact[0] - soft[0])
    changes = exact[0] - soft[0] - shift, exact[1] - soft[1] + shift
    return tuple(z + np.sign(c) * np.maximum(abs(c) - most, 0.0) for z, c in zip(soft, changes))


def _exact(
    level: tuple[Cells, Cells], annealed: Annealed, metric: str, tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arcs that carry mass, and potentials."""
    cost = SearchedRows(*(torch.from_numpy(z.centres) for z in level), Metric(metric))
    weights = (torch.from_numpy(z.weights) for z in level)
    arcs, f, g, _ = generate(cost, annealed, *weights, tol)
    used = arcs.flow > 0
    return arcs.rows[used], arcs.columns[used], f.numpy(), g.numpy()


def _coarsest(x: Cells, y: Cells, metric: str, eps: float) -> tuple[Annealed, np.ndarray, bool]:
    """The first level annealed with all pairs of cells, f (n,), and whether few costs differ."""
    cost = CloudRows(torch.from_numpy(x.centres), torch.from_numpy(y.centres), Metric(metric))
    found = anneal(cost, torch.from_numpy(x.weights), torch.from_numpy(y.weights), eps)
    eps, f = found.last, torch.empty(len(x.weights), dtype=torch.float64)
    shift = found.g + torch.from_numpy(2 * eps * y.logs)
    for rows, C in cost.blocks():
        f[rows] = -eps * ((shift - C) / eps).logsumexp(1)
    return found, f.numpy(), is_tied(cost)


def _anneal_level(
    x: Cells, y: Cells, f: np.ndarray, g: np.ndarray, metric: str, eps: float
) -> tuple[_Stage, int]:
    """The last stage of a level, which begins at the temperature eps, and its sweeps."""
    sweeps, seen = 0, math.inf
    for number in range(STAGES):
        was, stage = (f, g), _stage(x, y, f, g, metric, eps)
        for _ in range(REPEATS):
            if stage.error < ASTRAY:
                break
            stage = _stage(x, y, stage.f, stage.g, metric, eps)
        sweeps += stage.sweeps
        log.info(
            "annealing: %d x %d cells, temperature %.2g, each sees %.1f others",
            *(len(f), len(g), eps, stage.neighbours),
        )
        if stage.sees_few or stage.neighbours > 0.9 * seen:  # of equal costs it sees many for ever
            break
        f, g, eps, seen = stage.f, stage.g, eps / 2, stage.neighbours
        if number:  # see `annealing`; what was carried here is no earlier stage
            f, g = (extrapolated(z, old, 0.5) for z, old in zip((f, g), was))
    return stage, sweeps


def _stage(x: Cells, y: Cells, f: np.ndarray, g: np.ndarray, metric: str, eps: float) -> _Stage:
    """Sweeps at the temperature eps from potentials f and g, over-relaxed.

    Thibault, Chizat, Dossal, Papadakis, "Overrelaxed Sinkhorn-Knopp Algorithm for Regularized
    Optimal Transport", Algorithms 2021.
    """
    f, g = f + eps * x.logs, g + eps * y.logs  # the plan is now sqrt(a_i b_j) exp(...)
    K = _kernel(x, y, f, g, metric, eps)
    a, b = (z.weights.astype(np.float32) for z in (x, y))
    roots = np.exp(x.logs).astype(np.float32), np.exp(y.logs).astype(np.float32)
    limits = [(root / CLIP, root * CLIP) for root in roots]
    u, v, transposed, error = *roots, K.T.tocsr(), math.inf
    for sweep in range(1, SWEEPS + 1):
        power = RELAXATION if CHECK < sweep < SWEEPS - CHECK else 1.0
        u = np.clip(u * (a / (u * (K @ v))) ** power, *limits[0])
        off = v * (transposed @ u) / b
        if sweep % CHECK == 0:
            error = float(b @ abs(off - 1))
            if error < EXACT:
                break
        v = np.clip(v * off**-power, *limits[1])
    u = np.clip(a / (K @ v), *limits[0])
    K.data *= np.repeat(u, np.diff(K.indptr)) * v[K.indices]
    sums, squares = K.sum(1), K.power(2).sum(1)
    neighbours = float((x.weights * sums**2 / squares).sum())
    f = f + eps * (np.log(u.astype(float)) - 2 * x.logs)
    g = g + eps * (np.log(v.astype(float)) - 2 * y.logs)
    return _Stage(f, g, eps, K, neighbours, error, sweep)


def carried(
    fine: Cells,
    before: tuple[Cells, Cells],
    plan: csr_array,
    g: np.ndarray,
    metric: str,
    eps: float,
) -> np.ndarray:
    """A potential on finer cells (n,): -eps log sum_j b_j exp((g_j - C_ij) / eps) over the other
    cloud's cells of the level before, whose plan (k, m) says where to begin to look."""
    g, others = g + 2 * eps * before[1].logs, before[1]
    counts = np.diff(plan.indptr)[fine.parent]
    columns = plan.indices[np.repeat(plan.indptr[fine.parent], counts) + within(counts)]
    apart = np.repeat(fine.centres, counts, axis=0) - others.centres[columns]
    starts = counts.cumsum() - counts
    f = np.minimum.reduceat(cost(metric, apart.T) - g[columns], starts)  # at least as much
    for i, j, C in arcs_below(fine.tree, others.tree, f + CUT * eps, g, metric):
        slack = C - g[j]
        order, starts, sizes = by_rows(i, slack)
        slack, least = slack[order], slack[order[starts]]
        shares = np.exp((np.repeat(least, sizes) - slack) / eps)
        f[i[order[starts]]] = least - eps * np.log(np.add.reduceat(shares, starts))
    return f


def best_of_each(group: np.ndarray, ends: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """The numbers of the arcs of least slack among those of one group with one end."""
    order = np.lexsort((slack, ends, group))
    first = np.diff(group[order], prepend=-1) != 0
    return order[first | (np.diff(ends[order], prepend=-1) != 0)]


def _kernel(x: Cells, y: Cells, f: np.ndarray, g: np.ndarray, metric: str, eps: float) -> csr_array:
    """exp((f + g - C) / eps) where it is above exp(-CUT), and at least one entry in each row and
    each column."""
    found = []
    for i, j, C in arcs_below(x.tree, y.tree, f + CUT * eps, g, metric):
        exponent = np.minimum((f[i] + g[j] - C) / eps, STEEP)
        found.append((i.astype(np.int32), j.astype(np.int32), np.exp(exponent).astype(np.float32)))
    sides = (x.tree, y.tree, f, g), (y.tree, x.tree, g, f)
    for axis, side in enumerate(sides):
        alone = np.ones(len(side[2]), bool)
        for part in found:
            alone[part[axis]] = False
        if alone.any():
            ends = nearest(*side, metric, 1, 4 * CUT * eps, np.flatnonzero(alone))[:2]
            least = np.full(len(ends[0]), math.exp(-CUT), np.float32)
            found.append((*ends[:: 1 - 2 * axis], least))
    i, j, entries = (np.concatenate(part) for part in zip(*found))
    return coo_array((entries, (i, j)), shape=(len(f), len(g))).tocsr()


def soft_plan(
    x: Cells, y: Cells, f: np.ndarray, g: np.ndarray, metric: str, eps: float
) -> csr_array:
    """The entropic plan of these potentials at the temperature eps, where it is not negligible;
    its marginals are those of the clouds but for some factors."""
    K = _kernel(x, y, f, g, metric, eps)
    roots = [np.exp(z.logs).astype(np.float32) for z in (x, y)]
    K.data *= np.repeat(roots[0], np.diff(K.indptr)) * roots[1][K.indices]
    return K


def cloud_rows(X: Tensor, Y: Tensor, metric: Metric, scale: float = 1.0) -> CloudRows:
    """The cost between clouds (n, d) and (m, d), in the form that is read the fastest."""
    pays = len(X) * len(Y) >= LARGE.get(X.shape[1], math.inf)
    searched = pays and metric.name and X.device.type == "cpu"
    return (SearchedRows if searched else CloudRows)(X, Y, metric, scale)


def c_transform(x: np.ndarray, y: np.ndarray, g: np.ndarray, metric: str) -> np.ndarray:
    """min_j C_ij - g_j, shape (n,), for clouds (n, d) and (m, d): over ever larger samples of j, as
    the minima over a sample leave few pairs of the next one to look at."""
    order, source = np.random.default_rng(0).permutation(len(g)), Tree(x)
    size = min(SAMPLE, len(g))
    some = CloudRows(*(torch.from_numpy(z) for z in (x, y[order[:size]])), Metric(metric))
    f = some.row_minima(torch.from_numpy(g[order[:size]])).numpy()
    while size < len(g):
        size = min(GROWTH * size, len(g))
        sample = order[:size]
        for i, j, C in arcs_below(source, Tree(y[sample]), f, g[sample], metric):
            np.minimum.at(f, i, C - g[sample[j]])
    return f


class SearchedRows(CloudRows):
    """The cost between clouds in few dimensions, whose small reduced entries are searched for."""

    searched = True

    def __init__(
        self, X: Tensor, Y: Tensor, metric: Metric, scale: float = 1.0, sorted: bool = False
    ):
        super().__init__(X, Y, metric, scale)
        self.sorted = sorted  # whether the points are in the order of the trees
        self.points = self.x.numpy(), self.y.numpy()

    @cached_property
    def trees(self) -> tuple[Tree, Tree]:
        return Tree(self.points[0]), Tree(self.points[1])

    def _part(self, rows: Tensor, columns: Tensor) -> CloudRows:
        return cloud_rows(self.X[rows], self.Y[columns], self.metric, self.scale)

    def in_order(self) -> tuple["SearchedRows", tuple[np.ndarray, np.ndarray]]:
        """The same cost with the points in the order of the trees, and this order: points that are
        near each other are then near in memory."""
        order = self.trees[0].order, self.trees[1].order
        clouds = (Z[torch.from_numpy(z)] for Z, z in zip((self.X, self.Y), order))
        return SearchedRows(*clouds, self.metric, self.scale, sorted=True), order

    @cached_property
    def copies(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The number of the distinct point that each one is, of both clouds; None if all differ."""
        found = [np.unique(z, axis=0, return_inverse=True)[1].ravel() for z in self.points]
        return None if all(x.max() + 1 == len(x) for x in found) else tuple(found)

    def span(self) -> tuple[Tensor, Tensor]:
        """Bounds of the smallest and of the largest cost."""
        (x_low, x_high), (y_low, y_high) = ((z.min(0), z.max(0)) for z in self.points)
        far = np.maximum(abs(x_high - y_low), abs(y_high - x_low))
        ends = 0.0, float(cost(self.metric.name, far[:, None].copy())[0])
        return tuple(torch.tensor(end, dtype=torch.float64) for end in ends)

    def row_minima(self, g: Tensor) -> Tensor:
        return torch.from_numpy(c_transform(*self.points, g.numpy(), self.metric.name))

    def column_minima(self, f: Tensor) -> Tensor:
        return torch.from_numpy(c_transform(*self.points[::-1], f.numpy(), self.metric.name))

    def anneal(self, a: Tensor, b: Tensor, eps: float) -> Annealed:
        return anneal_clouds(*self.points, a.numpy(), b.numpy(), self.metric.name, eps)

    def near(self, annealed: Annealed, path: tuple[np.ndarray, np.ndarray]) -> tuple[Arcs, Tensor]:
        """The arcs of least reduced cost of each row and of each column, those inside of pairs of
        cells that carried mass, and these on the path; and the c-transform of g."""
        f, g = annealed.f.numpy(), annealed.g.numpy()
        options = self.metric.name, ARCS, annealed.last, None, annealed.noise
        i, j, C = nearest(*self.trees, f, g, *options)
        f = (C - g[j]).reshape(len(f), -1).min(1)  # as many arcs of each row
        columns, rows, costs = nearest(*self.trees[::-1], g, f, *options)
        parts = [(i, j, C), (rows, columns, costs), self._with_costs(*path)]
        if annealed.also:
            k, l, pair = annealed.also
            k, l, C = self._with_costs(k, l)
            slack = C - f[k] - g[l]
            best = np.union1d(best_of_each(pair, k, slack), best_of_each(pair, l, slack))
            parts.append((k[best], l[best], C[best]))
        return tuple(np.concatenate(x) for x in zip(*parts)), torch.from_numpy(f)

    def _with_costs(self, rows: np.ndarray, columns: np.ndarray) -> Arcs:
        apart = self.points[0][rows] - self.points[1][columns]
        return rows, columns, cost(self.metric.name, apart.T)

    def solve_within(
        self, annealed: Annealed, a: Tensor, b: Tensor, tol: float
    ) -> tuple[SparseArcs, Tensor, Tensor] | None:
        """Arcs with a flow whose relative gap is at most tol, and potentials that prove it; None if
        the annealed ones are too far off, or the mass of points is too unequal."""
        f, g, options = annealed.f.numpy(), annealed.g.numpy(), (1, CUT * annealed.last)
        for axis in (0, 1):  # the c-transform of g, and then that of f
            _, j, C = nearest(*self.trees[:: 1 - 2 * axis], f, g, self.metric.name, *options)
            f, g = g, C - g[j]
        weights = a.numpy(), b.numpy()
        bound = sum(float((w * z).sum()) for w, z in zip(weights, (f, g)))
        if tol * bound < WITHIN * annealed.last:
            return None
        clouds = (Cells(z, w / w.sum(), None) for z, w in zip(self.points, weights))
        near = annealed.f.numpy(), annealed.g.numpy()
        plan = soft_plan(*clouds, *near, self.metric.name, annealed.last)
        options = self.metric.name, plan, (f, g), weights, tol
        arcs = solve_by_parts(self.points, self.trees, *options)
        return None if arcs is None else (arcs, torch.from_numpy(f), torch.from_numpy(g))

    def price(self, f: Tensor, g: Tensor, tolerance: Tensor, noise: float) -> tuple[Tensor, Arcs]:
        """The c-transform of g, and the worst arcs of each row that the given f violates by more
        than the tolerance; others in each row of those that differ by less than the noise."""
        f, g, tolerance = f.numpy(), g.numpy(), tolerance.numpy()
        best, found, rng = np.full_like(f, np.nan), [], np.random.default_rng(0)
        for i, j, C in arcs_below(*self.trees, f + tolerance, g, self.metric.name):
            slack = C - g[j]
            order, starts, sizes = by_rows(i, slack)
            i, j, C, slack = i[order], j[order], C[order], slack[order]
            best[i[starts]] = slack[starts]
            bad = slack < (f - tolerance)[i]
            i, j, C, slack = i[bad], j[bad], C[bad], slack[bad]
            order, _, sizes = by_rows(i, slack + noise * rng.random(len(slack)))
            worst = order[within(sizes) < VIOLATORS]
            found.append((i[worst], j[worst], C[worst]))
        high = np.flatnonzero(np.isnan(best))
        if len(high):
            width = 4 * float(tolerance[high].max())
            i, j, C = nearest(*self.trees, f, g, self.metric.name, 1, width, high)
            best[i] = C - g[j]
        nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        return torch.from_numpy(best), tuple(np.concatenate(x) for x in zip(nothing, *found))
