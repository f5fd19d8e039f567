"""Closed forms on a line.

Plans. Let points be sorted on a line and the cost be a convex function of their distance. The cost
matrix is then a Monge matrix, C_ij + C_{i+1,j+1} <= C_{i+1,j} + C_{i,j+1}, and the plan of the
north-west corner rule, which moves mass in sorted order, is optimal (Hoffman 1963). Along its path
one index changes at a time, so that the potentials are sums of differences of costs.

Barycenters. Let K histograms be given on the bins of a line and C be a Monge matrix between bins.
The histograms' cumulative masses cut [0, 1] into intervals on which input k stays in one bin j_k,
and an interval is sent to the bin i with the least sum_k weights_k C_{i j_k}. This least cost is a
submodular function of (j_1, ..., j_K), as a minimum over i of submodular functions is (Topkis
1978), and hence the monotone coupling of all K inputs is optimal although the bins are given.
"""

import numpy as np
import torch

from exactot.costs import CloudRows, row_slices
from exactot.forest import settle
from exactot.plans import Flow
from ipot import EPS

COARSE, FINE = 61, 40  # bits of whole numbers that stand for weights


def north_west(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The north-west corner rule for weights a (n,) and b (m,) of equal mass.

    Returns the rows, columns and masses of n + m - 1 arcs, each one step down or right of the last.
    They are feasible for all weights.
    """
    limbs_a, limbs_b = _limbs(a), _limbs(b)
    # What rounding left the masses to differ by is spread over b.
    left = (int(limbs_a[0].sum()) - int(limbs_b[0].sum())) << FINE
    left += int(limbs_a[1].sum()) - int(limbs_b[1].sum())
    limbs_b[1] += (left * (b / b.sum())).astype(np.int64)
    (high_a, low_a), (high_b, low_b) = (_running_sums(*limbs) for limbs in (limbs_a, limbs_b))
    high, low = (np.concatenate((x[:-1], y[:-1])) for x, y in ((high_a, high_b), (low_a, low_b)))
    order = np.lexsort((low, high))
    down = np.concatenate(([0], order < len(a) - 1))
    rows = np.cumsum(down)
    columns = np.arange(len(rows)) - rows
    high = np.diff(high[order], prepend=0, append=high_a[-1])
    low = np.diff(low[order], prepend=0, append=low_a[-1])
    mass = np.ldexp(high.astype(float), -COARSE) + np.ldexp(low.astype(float), -COARSE - FINE)
    return rows, columns, np.maximum(mass, 0.0)  # rounding of b may have left -1e-29


def _limbs(weights: np.ndarray) -> list[np.ndarray]:
    """Weights of a mass below 2 as whole numbers: of units of 2^-COARSE, and of 2^-FINE of these.

    Sums of these have no rounding, which would be the larger the more weights there are.
    """
    scaled = np.ldexp(weights, COARSE)
    high = np.floor(scaled)
    low = np.floor(np.ldexp(scaled - high, FINE))
    return [high.astype(np.int64), low.astype(np.int64)]


def _running_sums(high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low = low.cumsum()
    return high.cumsum() + (low >> FINE), low & ((1 << FINE) - 1)


def sorted_flow(cost: CloudRows, a: torch.Tensor, b: torch.Tensor) -> Flow:
    """The optimal flow between points on a line, for a named metric."""
    x, order_x = cost.x.ravel().sort(stable=True)
    y, order_y = cost.y.ravel().sort(stable=True)
    rows, columns, mass = north_west(a[order_x].cpu().numpy(), b[order_y].cpu().numpy())
    power = 2 if cost.metric.name == "sqeuclidean" else 1
    along = np.abs(x.cpu().numpy()[rows] - y.cpu().numpy()[columns]) ** power
    change, down = np.diff(along.astype(np.longdouble)), np.diff(rows) == 1
    f = np.concatenate(([0.0], np.cumsum(change[down])))
    g = np.concatenate(([0.0], np.cumsum(change[~down]))) + along[0]
    # What the rounding of sums and costs could break of f_i + g_j <= C_ij.
    span = float(torch.maximum(x[-1], y[-1]) - torch.minimum(x[0], y[0])) ** power
    slack = 8 * EPS * (np.abs(f).max() + np.abs(g).max() + span)
    f = f - slack
    f, g = (torch.from_numpy(z.astype(float)).to(a.device) for z in (f, g))
    rows, columns = order_x.cpu().numpy()[rows], order_y.cpu().numpy()[columns]
    f = torch.empty_like(f).index_copy(0, order_x, f)
    g = torch.empty_like(g).index_copy(0, order_y, g)
    arcs = settle(cost, (rows, columns, mass, along), a, b, f, g)
    return Flow(*arcs, f, g, optimal=True, noise=slack)


def is_monge(C: torch.Tensor) -> bool:
    """Whether C_ij + C_{i+1,j+1} <= C_{i+1,j} + C_{i,j+1}, up to rounding."""
    along, across = C[:-1, :-1] + C[1:, 1:], C[1:, :-1] + C[:-1, 1:]
    return not bool((along - across > 4 * EPS * (along.abs() + across.abs())).any())


def monotone_cost(C: np.ndarray, q: np.ndarray, p: np.ndarray) -> float:
    """W(q, p) for a Monge matrix C (n, n) and histograms of mass 1."""
    rows, columns, mass = north_west(q, p)
    return float(mass @ C[rows, columns])


def monotone_barycenters(
    C: np.ndarray, p: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The barycenters of p (K, n) with weights (W, K) for a Monge matrix C (n, n).

    Returns q (W, n), dual potentials f (W, K, n) on its bins, and the costs (W, K) of the plans.
    From one interval to the next one j_k grows by 1. By the change of the least cost there the dual
    variable u_k = weights_k g_k changes: then sum_k u_k is the least cost on all intervals, and no
    more than it elsewhere, because it is submodular.
    """
    bins, mass, which = _intervals(p)
    n, count = len(C), bins.shape[1]
    found = []
    for shares in weights:
        to, least = _best_bins(C, bins, shares)
        f = np.zeros((count, n))
        for k in np.flatnonzero(shares):
            u = np.concatenate(([least[0] / np.count_nonzero(shares)], np.diff(least)[which == k]))
            f[k] = (C - u.cumsum() / shares[k]).min(1)
        costs = [mass @ C[to, bins[:, k]] for k in range(count)]
        found.append((np.bincount(to, mass, n), f, np.array(costs)))
    return tuple(np.stack(x) for x in zip(*found))


def _intervals(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The intervals that the quantiles of p (K, n) cut [0, 1] into, S = K (n - 1) + 1 of them.

    Returns the bins (S, K) of each, the mass (S,) of each, and the input that changes its bin from
    one to the next.
    """
    count, n = p.shape
    ends = np.minimum(p.cumsum(1)[:, :-1], 1.0).ravel()
    order = np.argsort(ends, kind="stable")
    which = order // max(n - 1, 1)
    moves = np.zeros((len(order) + 1, count), np.int64)
    moves[np.arange(1, len(moves)), which] = 1
    mass = np.diff(np.concatenate(([0.0], ends[order], [1.0])))
    return moves.cumsum(0), mass, which


def _best_bins(
    C: np.ndarray, bins: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bin i of least cost sum_k weights_k C_{i j_k} for each row j of bins, and that cost."""
    to, least = np.empty(len(bins), np.int64), np.empty(len(bins))
    for rows in row_slices(len(bins), len(C), torch.device("cpu")):
        total = sum(weights[k] * C[:, bins[rows, k]] for k in np.flatnonzero(weights))
        to[rows] = total.argmin(0)
        least[rows] = total[to[rows], np.arange(total.shape[1])]
    return to, least
