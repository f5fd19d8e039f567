"""Two clouds at several levels: the cells of a grid, whose side is halved, down to the points."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from exactot.search import Tree, within

COARSE = 700  # cells of each cloud at first, at most
FINEST = 48  # halvings of the first cell's side
SPLIT = 2  # points of a cell in the mean, below which the next level is that of the points
LAST = 3  # likewise, once the other cloud's level is that of its points


@dataclass(eq=False)
class Cells:
    """A cloud at one level: centres (n, d), weights (n,) of mass 1, and the cell of the level
    before that each was in, but at the first."""

    centres: np.ndarray
    weights: np.ndarray
    parent: np.ndarray | None

    @cached_property
    def tree(self) -> Tree:
        return Tree(self.centres)

    @cached_property
    def logs(self) -> np.ndarray:
        """log sqrt(a_i)."""
        return np.log(self.weights) / 2


def cell_numbers(points: np.ndarray, corner: np.ndarray, side: float) -> np.ndarray:
    """The number of the cell (n,) of a grid that each point is in; empty cells do not count."""
    number = np.zeros(len(points), np.int64)
    for axis, start in enumerate(corner):
        values, place = np.unique((points[:, axis] - start) // side, return_inverse=True)
        number = number * len(values) + place
    return np.unique(number, return_inverse=True)[1]


def levels(
    points: tuple[np.ndarray, np.ndarray], weights: tuple[np.ndarray, np.ndarray]
) -> list[tuple[Cells, Cells]]:
    """Two clouds from coarse cells to their points, both with cells of the same sides."""
    ends = [[op(z, axis=0) for z in points] for op in (np.min, np.max)]
    corner = np.minimum(*ends[0])
    side = 2.0 ** math.frexp((np.maximum(*ends[1]) - corner).max())[1]
    smallest = side / 2.0**FINEST
    numbers = [np.zeros(len(z), np.int64) for z in points]
    while True:
        finer = [cell_numbers(z, corner, side / 2) for z in points]
        if max(number.max() for number in finer) >= COARSE or side < smallest:
            break
        numbers, side = finer, side / 2
    found, parents = [], [None, None]
    while True:
        pair = [_cells(*each) for each in zip(points, weights, numbers, parents)]
        found.append(tuple(pair))
        if all(len(cell.weights) == len(z) for cell, z in zip(pair, points)):
            return found
        parents, side = numbers, side / 2
        numbers = [cell_numbers(z, corner, side) for z in points]
        share = [(1 + number.max()) / len(number) for number in numbers]
        most = 1 / LAST if max(share) > 1 / SPLIT else 1 / SPLIT
        numbers = [
            number if part < most and side > smallest else np.arange(len(number))
            for number, part in zip(numbers, share)
        ]


def _cells(
    points: np.ndarray, weights: np.ndarray, number: np.ndarray, parents: np.ndarray | None
) -> Cells:
    """The cells with these numbers of the points; `parents` numbers those of the level before."""
    mass, parent = np.bincount(number, weights), None
    if parents is not None:
        parent = np.empty(len(mass), np.int64)
        parent[number] = parents
    if len(mass) == len(number):
        return Cells(points, weights, parent)
    centres = np.stack([np.bincount(number, weights * x) for x in points.T], 1) / mass[:, None]
    return Cells(centres, mass, parent)


def children(
    fine: tuple[Cells, Cells], rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of finer cells in these pairs of cells before: rows, columns, and which pair."""
    order = [np.argsort(z.parent, kind="stable") for z in fine]
    counts = [np.bincount(z.parent) for z in fine]
    starts = [count.cumsum() - count for count in counts]
    of_rows, of_columns = counts[0][rows], counts[1][columns]
    sizes = of_rows * of_columns
    pair = np.repeat(np.arange(len(rows)), sizes)
    i, j = np.divmod(within(sizes), of_columns[pair])
    return order[0][starts[0][rows[pair]] + i], order[1][starts[1][columns[pair]] + j], pair
