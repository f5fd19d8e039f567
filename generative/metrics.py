"""How far generated samples are from the target."""

import math

import numpy as np
import ot
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics.pairwise import euclidean_distances
from torch import Tensor

from exactot import solve_sample
from generative.targets import Target

POINTS = 5000  # for exact plans in more than one dimension
FEW = 1000  # for the distances between all of them


def wasserstein_distances(
    x: Tensor, y: Tensor, points: int | None = None, orders: tuple[int, ...] = (1, 2)
) -> tuple[float, ...]:
    """W1 and W2 between two sets of points, exact, in the points' units.

    On the line of all points; otherwise of the first `points` of each set, by default 5,000.

    Parameters
    ----------
    x, y : tensor, shapes (n, d) and (m, d)
    orders : those asked for, of 1 and 2

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must have shapes (n, d) and (m, d); got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    x, y = (z.detach().double().cpu() for z in (x, y))
    if x.shape[1] == 1:
        x, y = x[:, 0].numpy(), y[:, 0].numpy()
        return tuple(float(ot.wasserstein_1d(x, y, p=p) ** (1 / p)) for p in orders)
    x, y = (z[: points or POINTS] for z in (x, y))
    metrics = {1: "euclidean", 2: "sqeuclidean"}
    costs = (solve_sample(x, y, metric=metrics[p]) for p in orders)
    return tuple(max(float(cost.value), 0.0) ** (1 / p) for p, cost in zip(orders, costs))


def sliced_w2(x: Tensor, y: Tensor) -> float:
    """Root of the mean squared W2 distance of projections to 100 directions (POT's)."""
    x, y = _array(x), _array(y)
    return float(ot.sliced_wasserstein_distance(x, y, n_projections=100, seed=0))


def mmd(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, equation 3), of the first
    1,000 points of each; Gaussian kernel, its bandwidth the median distance between all of them
    that differ.
    """
    x, y = _array(x[:FEW]), _array(y[:FEW])
    n, m = len(x), len(y)
    squares = pdist(np.concatenate((x, y)), "sqeuclidean")  # exactly 0 between equal points
    if not squares.any():
        return 0.0
    K = squareform(np.exp(-squares / (2 * np.median(squares[squares > 0]))))  # 0 on the diagonal
    within = K[:n, :n].sum() / (n * (n - 1)) + K[n:, n:].sum() / (m * (m - 1))
    return float(within - 2 * K[:n, n:].mean())


def kl_divergence(x: Tensor, y: Tensor, k: int = 5) -> float | None:
    """KL(law of x | law of y) by distances to the k-th nearest neighbours (Wang, Kulkarni, Verdu
    2009, section III; Perez-Cruz 2008); None where points repeat, so that there is no density.
    """
    x, y = _array(x), _array(y)
    own, within = (cKDTree(z).query(z, k + 1)[0][:, k] for z in (x, y))
    other = cKDTree(y).query(x, k)[0].reshape(len(x), -1)[:, -1]
    if not (own.all() and within.all() and other.all()):
        return None
    return float(x.shape[1] * np.log(other / own).mean() + math.log(len(y) / (len(x) - 1)))


def mode_shares(x: Tensor, target: Target) -> dict[str, float]:
    """How samples spread over the modes of a mixture of m Gaussians.

    Of samples within 3 standard deviations of a mode, the nearest in these units: `modes_found`,
    modes with at least a quarter of their share in the target, `in_modes`, the share of all samples
    that lies there, and the `smallest_mode` and `largest_mode` among the shares of the modes.
    """
    x = _array(x)
    distance = euclidean_distances(x, target.centres) / target.sd
    inside = distance.min(1) <= 3
    m = len(target.sd)
    shares = np.bincount(distance.argmin(1)[inside], minlength=m) / len(x)
    return {
        "modes": m,
        "modes_found": int((shares >= target.shares / 4).sum()),
        "in_modes": float(inside.mean()),
        "smallest_mode": float(shares.min()),
        "largest_mode": float(shares.max()),
    }


def all_metrics(x: Tensor, y: Tensor, other: Tensor, target: Target) -> dict[str, float | None]:
    """Every metric of samples x against data y, all in standard units; `_floor`: of two sets of
    data, other and y. Distances (W1, W2, sliced W2) come in the data's units.
    """
    found = {}
    for ends, z in (("", x), ("_floor", other)):
        w1, w2 = wasserstein_distances(z, y)
        found["w1" + ends], found["w2" + ends] = target.scale * w1, target.scale * w2
        found["sliced_w2" + ends] = target.scale * sliced_w2(z[:POINTS], y[:POINTS])
        found["mmd" + ends] = mmd(z, y)
        found["kl" + ends] = kl_divergence(z[:POINTS], y[:POINTS])
    if target.centres is not None:
        found |= mode_shares(x, target)
    return found


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
