"""What column generation asks of a cost, where all pairs are read: in blocks of rows."""

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from exactot.annealing import Annealed, anneal, is_tied
from exactot.costs import Rows
from exactot.search import Arcs

# benchmarks/solvers.py chose these: n = 128 to 8192, d = 1, 2, 16, uniform and random weights.
ARCS = 6  # of each row at first, times the number of others that it sees; half for a loose gap
FEWEST, MOST = 8, 60  # arcs of each row at first
VIOLATORS = 8  # arcs that a row may add in a round


class AllPairs:
    """A cost of which all pairs are read; `exactot.multiscale.SearchedRows` has the same methods.

    For a loose gap fewer arcs will do at first.
    """

    def __init__(self, cost: Rows, loose: bool = False):
        self.cost, self.loose = cost, loose

    @cached_property
    def tied(self) -> bool:
        return is_tied(self.cost)

    def anneal(self, a: Tensor, b: Tensor, eps: float) -> Annealed:
        """Potentials for weights a (n,) and b (m,), from the temperature eps down."""
        return anneal(self.cost, a, b, eps)

    def near(self, annealed: Annealed, path: tuple[np.ndarray, np.ndarray]) -> tuple[Arcs, Tensor]:
        """The arcs of smallest C_ij - g_j of each row i, and these on the path; and the c-transform
        of g.

        Of arcs that differ by less than the noise each row takes others: the same ones in all rows
        could not carry their flow.
        """
        (n, m), g, noise = self.cost.shape, annealed.g, annealed.noise
        count = (ARCS / 2 if self.loose else ARCS) * annealed.neighbours
        count = math.ceil(min(MOST, max(FEWEST, count)))  # the fewest for NaN
        count = min(m, math.ceil(count * max(1.0, m / n)))
        near, costs = np.empty((n, count), np.int64), np.empty((n, count))
        path_rows, path_columns = path
        path_costs, least = np.empty(len(path_rows)), torch.empty(n, dtype=g.dtype, device=g.device)
        draw, drawn = torch.Generator(g.device).manual_seed(0), None
        for rows, C in self.cost.blocks():
            reduced = self.cost.reduced(C, g)
            least[rows] = reduced.amin(1)
            # In float32 what is near can be told apart once the least of the row is taken off.
            reduced.sub_(least[rows, None])
            if noise:
                if drawn is None:
                    drawn = torch.rand(
                        reduced.shape, generator=draw, device=draw.device, dtype=C.dtype
                    )
                reduced.add_(drawn[: len(reduced)], alpha=noise)
            j = torch.topk(reduced.float(), count, largest=False, sorted=False).indices
            near[rows], costs[rows] = j.cpu().numpy(), C.gather(1, j).cpu().numpy()
            on_path = slice(*np.searchsorted(path_rows, (rows.start, rows.stop)))
            ends = path_rows[on_path] - rows.start, path_columns[on_path]
            i, j = (torch.from_numpy(x).to(C.device) for x in ends)
            path_costs[on_path] = C[i, j].cpu().numpy()
        arcs = (np.repeat(np.arange(n), count), near.ravel(), costs.ravel())
        parts = zip(arcs, (path_rows, path_columns, path_costs))
        return tuple(np.concatenate(part) for part in parts), least

    def price(self, f: Tensor, g: Tensor, tolerance: Tensor, noise: float) -> tuple[Tensor, Arcs]:
        """The c-transform of g, and the worst arcs of each row that the given f violates by more
        than the tolerance; others in each row of those that differ by less than the noise."""
        best, count = torch.empty_like(f), min(self.cost.shape[1], VIOLATORS)
        found, draw = [], torch.Generator(f.device).manual_seed(0)
        for rows, C in self.cost.blocks():
            slack = self.cost.reduced(C, g)
            best[rows] = slack.amin(1)
            limit = (f - tolerance)[rows]
            bad = (best[rows] < limit).nonzero().ravel()
            if len(bad):
                slack, limit = slack[bad], limit[bad, None]
                violated = slack < limit
                if noise and self.tied:
                    slack = slack + noise * torch.rand(
                        slack.shape, generator=draw, device=slack.device, dtype=slack.dtype
                    )
                slack = slack.masked_fill(~violated, torch.inf)
                j = torch.topk(slack, count, largest=False).indices
                chosen = violated.gather(1, j)
                i, j = bad[:, None].expand_as(j)[chosen], j[chosen]
                found.append([x.cpu().numpy() for x in (i + rows.start, j, C[i, j])])
        nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        return best, tuple(np.concatenate(x) for x in zip(nothing, *found))
