"""Potentials near the optimal ones, by proximal steps whose temperature is halved.

The dual of min <P, C> asks for potentials f, g with f_i + g_j <= C_ij and the largest <a, f> +
<b, g>. IPOT's iterates are Sinkhorn sweeps at falling temperatures eps, each of which starts from
log-scalings extrapolated linearly in s = 1 / eps (see `ipot`). The paper lets s grow by equal
amounts. Here eps is halved from one stage to the next, which makes s grow by a factor of 2, and the
potentials are extrapolated along half of their last change: the same formula for this schedule.
The loop is its own, because the kernel is applied in blocks of rows, and because it ends by itself.

Each stage has two sweeps

    u_i = a_i / sum_j K_ij v_j,   v_j = b_j / sum_i K_ij u_i,   K = exp((f + g - C) / eps),

relative to the potentials f, g it starts from, so that the exponents stay in the range of float32.
The annealing ends where a point sees few others: where the mean of 1 / sum_j (P_ij / a_i)^2 falls
below 5: after 3 to 5 stages in 16 dimensions, 8 to 13 in 2 and 14 to 20 on a line (clouds of
benchmarks/solvers.py, n = 256 to 4096). Equal costs, which no temperature tells apart, end it too.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exactot.costs import MatrixRows, Rows, row_slices
from exactot.progress import log
from ipot import Array, exp_, extrapolated, log64, sample_places, tensor

# benchmarks/solvers.py chose these: n = 256 to 4096, d = 1, 2, 16.
SWEEPS = 2  # in a stage
STAGES = 20  # at most: the temperature is then 1e-7 of the cost's range
NEIGHBOURS = 5  # that a point sees at the end
FEW_VALUES = 64  # of a thousand costs
TYPICAL = 30  # times the median reduced cost: the largest first temperature


@dataclass(frozen=True, eq=False)
class Annealed:
    """Where the annealing ended."""

    g: Tensor  # (m,), float64: near an optimal potential
    neighbours: float  # how many others a point sees
    sweeps: int
    eps: float  # the first temperature
    noise: float  # costs that differ by less were found equal; 0 where few are equal
    last: float  # temperature
    f: Tensor | None = None  # (n,), likewise, where it was found too
    also: tuple[np.ndarray, ...] | None = None  # arcs that may carry mass over far, and a group


def anneal(cost: Rows, a: Tensor, b: Tensor, eps: float) -> Annealed:
    """Potentials for weights a (n,) and b (m,) of equal mass, from the temperature eps down."""
    g = cost.column_minima(torch.zeros_like(a))
    f = cost.row_minima(g)
    _, C = next(cost.blocks())
    i, j = divmod(sample_places(C.numel()), C.shape[1])
    typical = float((C[i, j] - f[i] - g[j]).median())
    if typical > 0:  # a few huge costs do not set the scale
        eps = min(eps, TYPICAL * typical)
    kernel = _StoredKernel(cost) if isinstance(cost, MatrixRows) else _Kernel(cost)
    a, b, f, g = (native(x) for x in ((a / a.sum()).float(), (b / b.sum()).float(), f, g))
    f_warm, g_warm, neighbours, tied, first = f, g, math.nan, False, eps
    for stage in range(1, STAGES + 1):
        f_new, g_new, seen = _sweep(kernel, f_warm, g_warm, eps, a, b)
        if not math.isfinite(f_new.sum() + g_new.sum()):
            break  # out of float32's range: the potentials of the stage before will do
        # s doubles, so log B = s g goes on by twice its last change: g by half of its own.
        f_warm, g_warm = extrapolated(f_new, f, 0.5), extrapolated(g_new, g, 0.5)
        f, g, last, neighbours = f_new, g_new, neighbours, float(seen)
        log.info(
            "annealing: %d x %d points, temperature %.2g, each sees %.1f others",
            *(*cost.shape, eps, neighbours),
        )
        eps /= 2
        tied = 0.9 * last < neighbours and (neighbours < 2 * NEIGHBOURS or stage == STAGES)
        if neighbours < NEIGHBOURS or tied:
            break
    noise = 10 * eps if is_tied(cost) or (tied and neighbours >= NEIGHBOURS) else 0.0
    return Annealed(tensor(g), neighbours, SWEEPS * stage, first, noise, 2 * eps)


def is_tied(cost: Rows) -> bool:
    """Whether a thousand costs have few values."""
    _, C = next(cost.blocks())
    i, j = divmod(sample_places(C.numel()), C.shape[1])
    return len(C[i, j].unique()) <= FEW_VALUES


def _sweep(
    kernel: "_Kernel", f: Array, g: Array, eps: float, a: Array, b: Array
) -> tuple[Array, Array, Array | float]:
    """The sweeps of a stage from f and g: new f and g, and how many others a point sees.

    The f that is given only keeps the exponents in range; where they leave it f and g are not
    finite. Rows and columns are fitted in one pass, for a block has whole rows: their scaling is
    known when it adds to the columns.
    """
    cost, xp = kernel.cost, library(kernel.cost.device)
    kernel.refer(f, g, eps)
    q = _single(xp.exp((g - kernel.g) / eps))
    row, neighbours = xp.empty_like(a), 0.0
    for left in reversed(range(SWEEPS)):
        v, column = b * q, xp.zeros_like(b)
        absorb = left == 0 and kernel.halve(row, q)
        for rows in row_slices(*cost.shape, cost.device):
            K = kernel.rows(rows)
            row[rows] = K @ v
            column += (a[rows] / row[rows]) @ K
            if left == 0:
                # 1 / sum_j (P_ij / a_i)^2, by what is also the stored kernel of the next stage.
                scale, weights = row[rows], v
                if absorb:
                    K /= row[rows, None]
                    K *= q
                    scale, weights = 1.0, b
                K *= K
                xp.clip(K, 1e-26, 1e26, out=K)
                neighbours += (a[rows] * scale**2 / (K @ weights**2)).sum()
        if left:
            q = 1 / column
    found = kernel.f - eps * log64(row), kernel.g - eps * log64(column), neighbours
    if absorb:
        kernel.f, kernel.g = found[0], kernel.g + eps * log64(q)
    return found


class _Kernel:
    """exp((f + g - C) / eps) in float32, in blocks of rows that are computed at each pass."""

    def __init__(self, cost: Rows):
        self.cost = cost

    def refer(self, f: Array, g: Array, eps: float) -> None:
        """Set the potentials that the kernel is relative to."""
        self.f, self.g, self.eps = f, g, eps

    def rows(self, rows: slice) -> Array:
        """A block, which the caller may change."""
        f, g = tensor(self.f), tensor(self.g)
        K = self.cost.reduced(self.cost.block(rows), g, f[rows, None]).float()
        # No product of three of its entries overflows.
        return native(exp_(K.mul_(-1 / self.eps).clamp_(-40, 40)))

    def halve(self, row: Array, q: Array) -> bool:
        """Before the last sweep of a stage squares the kernel: whether to absorb these scalings."""
        return False


class _StoredKernel(_Kernel):
    """The kernel of a matrix, stored: squaring the plan halves the temperature."""

    def __init__(self, cost: Rows):
        super().__init__(cost)
        self.eps, self.K = math.nan, None

    def refer(self, f: Array, g: Array, eps: float) -> None:
        if self.eps == eps and max(abs(f - self.f).max(), abs(g - self.g).max()) < 25 * eps:
            return
        super().refer(f, g, eps)
        f, g = tensor(f), tensor(g)
        if self.K is None:
            shape, device = self.cost.shape, self.cost.device
            self.K = native(torch.empty(shape, dtype=torch.float32, device=device))
        for rows, C in self.cost.blocks():
            K = tensor(self.K[rows]).copy_(self.cost.reduced(C, g, f[rows, None]))
            exp_(K.mul_(-1 / eps).clamp_(-60, 60))

    def rows(self, rows: slice) -> Array:
        return self.K[rows]

    def halve(self, row: Array, q: Array) -> bool:
        self.eps /= 2
        # Two more passes over the kernel; but what is at its floor of exp(-60) must not matter.
        return bool(max(abs(log64(row)).max(), abs(log64(q)).max()) > 8)


def library(device: torch.device):
    """NumPy on a CPU: calls on small arrays cost a third of torch's, its products of a matrix and a
    vector half, and it has no threads to wake for them."""
    return np if device.type == "cpu" else torch


def native(x: Tensor) -> Array:
    """The same memory as an array of the device's library."""
    return x.numpy() if x.device.type == "cpu" else x


def _single(x: Array) -> Array:
    return x.float() if isinstance(x, Tensor) else x.astype(np.float32)
