"""The masses of a plan whose arcs form a forest, to rounding whatever the weights are.

A network simplex adds and subtracts masses of all sizes, so that small ones lose their digits, and
it drops those below some 1e-15. Its arcs however form a forest, on which the weights determine the
masses: a leaf has one arc, which carries all of its weight. With the leaves taken off one after
another, in whole numbers, no digit is lost.

Weights that were rounded balance on a tree of the forest up to their own rounding only, and what is
left over is spread over the tree's columns. Where more than that is left over, the simplex has
dropped mass, and the tree is linked to others by the cheapest arc of its heaviest points.
"""

import heapq
import itertools

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from exactot.costs import Rows
from ipot import EPS

NEARLY = 6 * EPS  # of a mass: what a plan's sums are left to be off by
TOLERANCE = 2 * EPS  # of a mass: what a sum of rounded weights may be off by
SLIGHT = 32 * EPS  # of a mass: what rounding in a simplex may put on an arc
FINER = 30  # bits of the unit below a weight's last one, for shares of what is left over
RATE_BITS = 128  # of the rate at which it is spread
HEAVIEST = 16  # points of a tree that may be linked to others
ROUNDS = 8  # in which trees are linked; after that, points that are left astray are attached
HEAVIER = 64  # times as heavy is a point as one that is attached to it
LIGHTER = 2**30  # times as light as the heaviest are points that can be astray

Arcs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # rows, columns, masses, costs


def marginal_errors(
    rows: np.ndarray, columns: np.ndarray, mass: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the rows' and the columns' sums of masses are off by, (n,) and (m,); in extended
    precision, because the sums' own rounding does not count."""
    errors = []
    for numbers, weights in ((rows, a), (columns, b)):
        order = np.argsort(numbers, kind="stable")
        numbers, masses = numbers[order], mass[order].astype(np.longdouble)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        total = np.zeros(len(weights), np.longdouble)
        total[numbers[starts]] = np.add.reduceat(masses, starts)
        errors.append(abs(total - weights).astype(float))
    return tuple(errors)


def settle(cost: Rows, arcs: Arcs, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Arcs:
    """The arcs that carry mass, in row-major order, with masses whose marginals are a and b.

    The arcs are a forest; f and g are potentials, by which further arcs are chosen.
    """
    weights = a.cpu().numpy(), b.cpu().numpy()
    rows, columns, mass, costs = arcs
    sums = np.bincount(rows, mass, len(a)), np.bincount(columns, mass, len(b))
    if any((abs(total - w) > NEARLY * w).any() for total, w in zip(sums, weights)):
        # What rounding may have put on an arc between two trees is left away.
        most = np.maximum(weights[0][rows], weights[1][columns])
        is_leaf = (np.bincount(rows)[rows] == 1) | (np.bincount(columns)[columns] == 1)
        rows, columns, mass, costs = (x[is_leaf | (mass > SLIGHT * most)] for x in arcs)
        forest = _Forest(cost, rows, columns, costs, *weights, f, g)
        rows, columns, mass, costs = forest.settled(mass)
    order = np.lexsort((columns, rows))
    order = order[mass[order] > 0]
    return rows[order], columns[order], mass[order], costs[order]


class _Forest:
    """Arcs without a cycle between n rows and m columns; columns are nodes n to n + m - 1."""

    def __init__(self, cost, rows, columns, costs, a, b, f, g):
        self.cost, self.f, self.g, self.n = cost, f, g, len(a)
        self.rows, self.columns, self.costs = rows, columns, costs
        self.attached: set[int] = set()
        significand, exponent = np.frexp(np.concatenate((a, b)))
        shifts = (exponent - exponent.min() + FINER).tolist()
        whole = (significand * 2.0**53).astype(np.int64).tolist()
        self.unit = 53 + FINER - int(exponent.min())  # weights are in units of 2^-unit
        self.weights = [x << shift for x, shift in zip(whole, shifts)]

    def settled(self, mass: np.ndarray) -> Arcs:
        """Rows, columns, masses and costs; the given masses if the arcs have a cycle."""
        given = self.rows, self.columns, mass, self.costs
        self.link_points()
        flow, left = self.eliminated(self.weights)
        if flow is None:
            return given
        if min(flow) > 0 and left <= NEARLY:
            return self.rows, self.columns, self.as_floats(flow), self.costs
        for round_ in itertools.count():
            label, trees = self.trees()
            if round_ < ROUNDS:
                self.link_trees(label, trees)
            flow, _ = self.eliminated(self.balanced(trees))
            signs = np.array([(x > 0) - (x < 0) for x in flow])
            if round_ < ROUNDS and (signs < 0).any():
                self.keep(signs > 0)  # an arc with less than nothing goes; others take its place
            elif round_ >= ROUNDS and (bad := self.astray(trees, signs)):
                self.attach(bad)
            else:
                break
        return self.rows, self.columns, self.as_floats(flow), self.costs

    def as_floats(self, flow: list[int]) -> np.ndarray:
        """Masses of a unit of mass; a division of whole numbers is rounded once."""
        above, below = 1 << max(-self.unit, 0), 1 << max(self.unit, 0)
        return np.array([x * above / below for x in flow])

    def keep(self, chosen: np.ndarray) -> None:
        self.rows, self.columns, self.costs = (
            x[chosen] for x in (self.rows, self.columns, self.costs)
        )

    def astray(self, trees: dict[int, "_Tree"], signs: np.ndarray) -> list[int]:
        """Light points whose arcs cannot carry their mass."""
        bad = set()
        for row, column in zip(self.rows[signs < 0].tolist(), self.columns[signs < 0].tolist()):
            ends = [x for x in (row, column + self.n) if x not in self.attached]
            bad.update(sorted(ends, key=self.weights.__getitem__)[:1])
        light = max(self.weights) // LIGHTER
        for tree in trees.values():
            if tree.is_off():
                bad.update(node for node in tree.nodes if self.weights[node] < light)
        return sorted(bad - self.attached)

    def attach(self, bad: list[int]) -> None:
        """Give each of these points one arc only: the cheapest to a much heavier point."""
        gone = np.isin(self.rows, bad) | np.isin(self.columns + self.n, bad)
        ends = {*self.rows[gone].tolist(), *(self.columns[gone] + self.n).tolist()}
        bad = sorted({*bad, *(ends & self.attached)})  # with those that were attached to them
        self.attached.update(bad)
        self.keep(~gone)
        for node in bad:
            axis = 0 if node < self.n else 1
            others = range(self.n, len(self.weights)) if axis == 0 else range(self.n)
            heavy = [x for x in others if self.weights[x] > HEAVIER * self.weights[node]]
            heavy = [x for x in heavy if x not in self.attached] or heavy
            heavy = heavy or [max(others, key=self.weights.__getitem__)]
            self.add_cheapest(np.array([node]), np.array(heavy), axis)

    def link_trees(self, label: np.ndarray, trees: dict[int, "_Tree"]) -> None:
        """Link the trees that do not balance to others, the lightest first."""
        waiting = [(tree.mass, k) for k, tree in trees.items() if tree.is_off()]
        heapq.heapify(waiting)
        while waiting:
            mass, k = heapq.heappop(waiting)
            if k not in trees or trees[k].mass != mass:
                continue  # it was linked to another one since
            other = self.link(k, trees[k].excess, label)
            if other is None:
                continue
            small, large = sorted((k, other), key=lambda t: len(trees[t].nodes))
            label[trees[small].nodes] = large
            trees[large].join(trees.pop(small))
            if trees[large].is_off():
                heapq.heappush(waiting, (trees[large].mass, large))

    def balanced(self, trees: dict[int, "_Tree"]) -> list[int]:
        """The weights, changed so that they balance on each tree."""
        weights = list(self.weights)
        for tree in trees.values():
            self.spread(tree, weights)
        return weights

    def link_points(self) -> None:
        """Link all points without an arc by their cheapest arcs to points that have one."""
        alone = [np.ones(size, bool) for size in self.cost.shape]
        alone[0][self.rows] = alone[1][self.columns] = False
        for axis in (0, 1):
            own, others = np.flatnonzero(alone[axis]), np.flatnonzero(~alone[1 - axis])
            if len(own):
                ends = (own, others)[:: 1 - 2 * axis]
                nearest, costs, _ = self.cheapest(*ends, axis)
                ends = (own, others[nearest])[:: 1 - 2 * axis]
                self.add(*ends, costs)

    def cheapest(
        self, rows: np.ndarray, columns: np.ndarray, axis: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each of the rows (axis 0) or of the columns (axis 1) the number of the other end of
        its arc of least reduced cost, that arc's cost, and the reduced one."""
        own = [torch.from_numpy(x).to(self.f.device) for x in (rows, columns)]
        part, f, g = self.cost.restricted(*own), self.f[own[0]], self.g[own[1]]
        best = torch.full((len(own[axis]),), torch.inf, dtype=f.dtype, device=f.device)
        number, costs = torch.zeros_like(own[axis]), torch.zeros_like(best)
        for block, C in part.blocks():
            least, at = (C - f[block, None] - g).min(1 - axis)
            mine = block if axis == 0 else slice(None)
            better = least < best[mine]
            found = C.gather(1 - axis, at.unsqueeze(1 - axis)).squeeze(1 - axis)
            at = at if axis == 0 else at + block.start
            for old, new in ((best, least), (number, at), (costs, found)):
                old[mine] = torch.where(better, new, old[mine])
        return tuple(x.cpu().numpy() for x in (number, costs, best))

    def add(self, rows: np.ndarray, columns: np.ndarray, costs: np.ndarray) -> None:
        self.rows = np.append(self.rows, rows)
        self.columns = np.append(self.columns, columns)
        self.costs = np.append(self.costs, costs)

    def trees(self) -> tuple[np.ndarray, dict[int, "_Tree"]]:
        """The tree that each node is in, and the trees."""
        size = len(self.weights)
        ends = self.rows, self.columns + self.n
        graph = scipy.sparse.coo_array((np.ones(len(self.rows)), ends), shape=(size, size))
        count, label = connected_components(graph, directed=False)
        trees = {k: _Tree() for k in range(count)}
        for node, (k, weight) in enumerate(zip(label.tolist(), self.weights)):
            trees[k].add(node, weight if node < self.n else -weight)
        return label, trees

    def link(self, k: int, excess: int, label: np.ndarray) -> int | None:
        """Add the cheapest arc by which a heavy point of tree k can pass on its excess, or be given
        what it lacks, and return the tree that it leads to."""
        axis = 0 if excess > 0 else 1
        sides = np.split(np.arange(len(label)), [self.n])
        own, others = sides[axis], sides[1 - axis]
        own, others = own[label[own] == k], others[label[others] != k]
        if not len(others):
            return None
        own = heapq.nlargest(HEAVIEST, own.tolist(), key=self.weights.__getitem__)
        least = min(abs(excess), self.weights[own[0]])  # a lighter point cannot carry it
        own = np.array([node for node in own if self.weights[node] >= least])
        return int(label[self.add_cheapest(own, others, axis)])

    def add_cheapest(self, own: np.ndarray, others: np.ndarray, axis: int) -> int:
        """Add the arc of least reduced cost between these nodes, own being rows (axis 0) or columns
        (axis 1); the other node."""
        ends = [own, others][:: 1 - 2 * axis]
        nearest, costs, reduced = self.cheapest(ends[0], ends[1] - self.n, axis)
        ends, best = [own, others[nearest]][:: 1 - 2 * axis], reduced.argmin()
        row, column = (x[best : best + 1] for x in ends)
        self.add(row, column - self.n, costs[best : best + 1])
        return int(others[nearest[best]])

    def spread(self, tree: "_Tree", weights: list[int]) -> None:
        """Add the tree's excess to its columns, in proportion to their weights."""
        columns = [node for node in tree.nodes if node >= self.n] if tree.excess else []
        if not columns:
            return
        total, left = sum(weights[node] for node in columns), tree.excess
        rate = (left << RATE_BITS) // total
        for node in columns:
            share = weights[node] * rate >> RATE_BITS
            weights[node], left = weights[node] + share, left - share
        weights[max(columns, key=weights.__getitem__)] += left

    def eliminated(self, weights: list[int]) -> tuple[list[int] | None, float]:
        """The flow of each arc, leaf by leaf, or None if the arcs have a cycle; and the most that
        is left over where a tree ends, relative to the weight there.

        The tree of the heaviest point ends at this.
        """
        left, tails = list(weights), self.columns + self.n
        count = len(left)
        degree = np.bincount(self.rows, minlength=count) + np.bincount(tails, minlength=count)
        # The exclusive or of a node's arcs is, when one is left, this arc.
        arc = np.zeros(count, np.int64)
        numbers = np.arange(len(tails))
        np.bitwise_xor.at(arc, self.rows, numbers)
        np.bitwise_xor.at(arc, tails, numbers)
        both = (self.rows ^ tails).tolist()
        heaviest = max(range(count), key=weights.__getitem__)
        degree[heaviest] += 2  # so that it never is a leaf
        leaves = np.flatnonzero(degree == 1).tolist()
        degree, arc, flow = degree.tolist(), arc.tolist(), [None] * len(both)
        for leaf in leaves:  # grows as it goes
            if degree[leaf] != 1:
                continue
            k = arc[leaf]
            other = both[k] ^ leaf
            flow[k] = left[leaf]
            left[other] -= left[leaf]
            arc[other] ^= k
            left[leaf] = degree[leaf] = 0
            degree[other] -= 1
            if degree[other] == 1:
                leaves.append(other)
        return None if None in flow else flow, max(abs(x) / w for x, w in zip(left, self.weights))


class _Tree:
    """Nodes of a tree, their mass, and by how much that of the rows exceeds that of the columns."""

    def __init__(self):
        self.nodes, self.mass, self.excess = [], 0, 0

    def add(self, node: int, signed: int) -> None:
        self.nodes.append(node)
        self.mass += abs(signed)
        self.excess += signed

    def join(self, other: "_Tree") -> None:
        self.nodes += other.nodes
        self.mass += other.mass
        self.excess += other.excess

    def is_off(self) -> bool:
        """Whether more is left over than rounding explains."""
        return abs(self.excess) / self.mass > TOLERANCE
