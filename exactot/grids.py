"""Histograms on grids: costs that are a sum over the axes, applied axis by axis.

Let bins lie on a regular grid of one to three axes and the cost be a sum of one cost for each axis,
C_ij = sum_k C^k_{i_k j_k}, as squared distances are. Then a product with the kernel exp(-s C) is
one product with a small matrix along each axis, and so is a c-transform, min_i (C_ij - f_i). No
n x n matrix is formed. A cost matrix between n bins is the case of one axis.

Products are taken on logarithms, log sum_j exp(x_j - s C_ij), so that they hold for every s.
"""

import math

import numpy as np
import torch
from torch import Tensor

from exactot.costs import point_scale, row_slices, squared_distances
from ipot import EPS, FEW_HUGE, check_unmasked, read_number, sample_places

# float64 sets these; benchmarks/barycenters.py shows their time.
LIMIT = 600.0  # spread of the exponents in a block: no entry of its kernel underflows
FLOOR = -700.0  # exponents end here: below, exp takes seven times as long


class Axis:
    """A cost (n, m) between bins along one axis, in one direction, and its kernels; float64."""

    def __init__(self, C: Tensor):
        self.C = C
        m = C.shape[1]
        self.widths = sorted({math.ceil(m / k) for k in range(1, m + 1)}, reverse=True)
        self.spreads: dict[int, float] = {}
        self.kernels: dict = {}

    def log_product(self, x: Tensor, s: float, weighted: bool = False) -> Tensor:
        """log sum_j exp(x_j - s C_ij) for x (..., m), in blocks of rows of x.

        If weighted, the terms are multiplied by C_ij less the lowest cost. Relative to the largest
        x_j of a block and to the least cost in it a block's sum neither under- nor overflows, and
        what underflows in it is negligible. So is a block that underflows relative to the one with
        the largest of these.
        """
        K, low = self._kernel(s, weighted)
        blocks, width, n = K.shape
        m = x.shape[-1]
        out = x.new_empty(x[..., 0].numel(), n)
        rows = x.reshape(-1, m)
        for part in row_slices(len(rows), blocks * max(n, width), x.device):
            y = torch.nn.functional.pad(rows[part], (0, blocks * width - m), value=-math.inf)
            y = y.unflatten(1, (blocks, width)).movedim(1, 0)
            top = y.amax(2, keepdim=True).clamp_min_(-1e300)
            sums = (y - top).clamp_min_(FLOOR).exp_() @ K
            if blocks == 1:
                torch.sub(sums[0].log_(), low[0] - top[0], out=out[part])
            else:
                share = top - low
                largest = share.amax(0)
                share.sub_(largest).clamp_min_(FLOOR)
                sums = sums.mul_(share.exp_()).sum(0)
                torch.add(sums.log_(), largest, out=out[part])
        return out.view(*x.shape[:-1], n)

    def least(self, x: Tensor) -> Tensor:
        """min_j (x_j + C_ij) for x (..., m)."""
        out = x.new_empty(x[..., 0].numel(), len(self.C))
        rows = x.reshape(-1, x.shape[-1])
        for part in row_slices(len(rows), self.C.numel(), x.device):
            out[part] = (rows[part][:, None, :] + self.C).amin(2)
        return out.view(*x.shape[:-1], -1)

    def _blocks(self, width: int) -> Tensor:
        """(blocks, n, width): the columns in blocks, the last filled up with the last column."""
        m = self.C.shape[1]
        missing = -m % width
        C = torch.cat((self.C, self.C[:, -1:].expand(-1, missing)), 1) if missing else self.C
        return C.unflatten(1, (-1, width)).movedim(1, 0)

    def _width(self, s: float) -> int:
        """Of the blocks for 1 / eps = s: so narrow that no entry of a kernel underflows."""
        for width in self.widths:
            if width not in self.spreads:
                C = self._blocks(width)
                self.spreads[width] = float((C.amax(2) - C.amin(2)).amax())
            if s * self.spreads[width] <= LIMIT:
                return width
        raise AssertionError("a block of one column has no spread")

    def _kernel(self, s: float, weighted: bool) -> tuple[Tensor, Tensor]:
        """exp(-s (C - low)) and s low, low (blocks, 1, n) the least cost of a row in a block."""
        if self.kernels.get("s") != s:
            self.kernels = {"s": s}
        if weighted not in self.kernels:
            C = self._blocks(self._width(s)).mT
            low = C.amin(1, keepdim=True)
            K = (low - C).mul_(s).exp_()
            self.kernels[weighted] = K * (C - self.C.amin()) if weighted else K, s * low
        return self.kernels[weighted]


class GridCost:
    """The cost between the bins of a grid, from one cost (n, n) for each axis; float64."""

    def __init__(self, costs: list[Tensor], symmetric: bool = False):
        self.axes = [Axis(C) for C in costs]
        self.transposed = self.axes if symmetric else [Axis(C.mT.contiguous()) for C in costs]
        self.lowest = sum(float(C.amin()) for C in costs)
        highest = sum(float(C.amax()) for C in costs)
        self.span, self.largest = highest - self.lowest, max(abs(highest), abs(self.lowest))
        self.usual = sum(map(_usual_range, costs))  # the span, if no few huge costs set it

    def log_product(
        self, x: Tensor, s: float, transposed: bool = False, weighted: int | None = None
    ) -> Tensor:
        """log sum_j exp(x_j - s C_ij), with sums over all axes.

        If weighted, the terms are multiplied by the cost along that axis less its lowest.
        """
        for k, axis in enumerate(self.transposed if transposed else self.axes):
            along = k - len(self.axes)
            x = axis.log_product(x.movedim(along, -1), s, k == weighted).movedim(-1, along)
        return x

    def c_transform(self, f: Tensor, transposed: bool = True) -> Tensor:
        """min_i (C_ij - f_i), or of g_j in place of f_i min_j (C_ij - g_j) if not transposed."""
        x = -f
        for k, axis in enumerate(self.transposed if transposed else self.axes):
            along = k - len(self.axes)
            x = axis.least(x.movedim(along, -1)).movedim(-1, along)
        return x

    def matrix(self) -> Tensor:
        """The cost between all pairs of bins, in C order."""
        total = self.axes[0].C
        for axis in self.axes[1:]:
            n, m = len(total), len(axis.C)
            total = (total[:, None, :, None] + axis.C[:, None, :]).reshape(n * m, n * m)
        return total

    def rounded_costs(self, log_A: Tensor, log_B: Tensor, s: float, q: Tensor, p: Tensor) -> Tensor:
        """Costs (W, K) of the plans exp(log_A + log_B - s C), made feasible for q and p.

        The rounding is that of `ipot.round_to_marginals`, for q (W, *shape) and p (K, *shape), but
        no plan is formed: its sums are kernel products, and so is its cost, with K C in place of K
        along one axis at a time.
        """
        bins = tuple(range(2, log_A.ndim))
        q = q[:, None]
        log_A = torch.minimum(log_A, q.log() - self.log_product(log_B, s))
        log_B = torch.minimum(log_B, p.log() - self.log_product(log_A, s, transposed=True))
        missing_q = (q - (log_A + self.log_product(log_B, s)).exp()).clamp_min(0.0)
        missing_p = (p - (log_B + self.log_product(log_A, s, transposed=True)).exp()).clamp_min(0.0)
        total = self.lowest * (1 - missing_q.sum(bins))
        for k, axis in enumerate(self.axes):
            total = total + (log_A + self.log_product(log_B, s, weighted=k)).exp().sum(bins)
            others = tuple(i for i in bins if i != k + 2)
            left, right = (y.sum(others) if others else y for y in (missing_q, missing_p))
            total = total + (left * (right @ axis.C.T)).sum(-1) / right.sum(-1).clamp_min(1e-300)
        return total + 64 * EPS * self.largest


def _usual_range(C: Tensor) -> float:
    """The range of a cost, or FEW_HUGE times what a quarter of the positive ones of a thousand
    costs, less the least of their rows, are below."""
    reduced = (C - C.amin(1, keepdim=True)).ravel()[sample_places(C.numel())]
    span, positive = float(C.amax() - C.amin()), reduced[reduced > 0]
    return min(span, FEW_HUGE * float(positive.quantile(0.25))) if len(positive) else span or 1.0


def squared_distances_on(
    grid: float | tuple[float, ...], sizes: tuple[int, ...], device
) -> tuple[GridCost, Tensor]:
    """The squared distances on a grid with these spacings and numbers of bins, and their unit ().

    Raises
    ------
    TypeError, ValueError
        If a spacing is no number, is not positive, or if there is not one for each axis.
    """
    check_unmasked("grid", grid)
    spacing = [grid] * len(sizes) if np.ndim(grid) == 0 else list(grid)
    if len(spacing) != len(sizes):
        raise ValueError(
            f"grid must be one spacing or one for each of A's {len(sizes)} axes before the last; "
            f"got {len(spacing)}"
        )
    spacing = [read_number("grid", h) for h in spacing]
    if not min(spacing) > 0:
        raise ValueError(f"grid must have positive, finite spacings; got {min(spacing):g}")
    largest = max(h * n for h, n in zip(spacing, sizes))
    if not largest < math.inf:
        raise ValueError("grid must have a finite extent; the spacing times the bins overflows")
    scale = point_scale(torch.tensor(largest, dtype=torch.float64, device=device))
    costs = []
    for h, n in zip(spacing, sizes):
        x = (h / scale) * torch.arange(n, dtype=torch.float64, device=device)
        costs.append(squared_distances(x[:, None], x[:, None]))
    return GridCost(costs, symmetric=True), scale**2
