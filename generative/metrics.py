"""How far generated samples are from the target."""

import math
from collections.abc import Callable

import numpy as np
import ot
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics.pairwise import euclidean_distances
from torch import Tensor

from exactot import solve_sample
from generative.targets import Target

PLANE = 5000  # points for exact plans on the plane, of each set
POINTS = 1000  # the same in more dimensions
QUICK = 300  # the same, during a training
FEW = 500  # for the distances between all of them
MANY = 5000  # samples in a set on the line
PAIRS = 12  # of sets, for a mean and its standard deviation
PLANE_PAIRS = 4  # the same on the plane, where they are larger
FEW_PAIRS = 5  # the same, during a training
NODES = 10**6  # of the midpoint rule, and samples that are held against a law
FEW_NODES = 2**16  # the same, during a training


def wasserstein_distances(
    x: Tensor, y: Tensor, points: int | None = None, orders: tuple[int, ...] = (1, 2)
) -> tuple[float, ...]:
    """W1 and W2 between two sets of points, exact, in the points' units.

    On the line of all points; otherwise of the first `points` of each set, by default 5,000 on the
    plane and 1,000 in more dimensions.

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
    points = points or (PLANE if x.shape[1] == 2 else POINTS)
    x, y = x[:points], y[:points]
    metrics = {1: "euclidean", 2: "sqeuclidean"}
    costs = (solve_sample(x, y, metric=metrics[p]) for p in orders)
    return tuple(max(float(cost.value), 0.0) ** (1 / p) for p, cost in zip(orders, costs))


def sliced_w2(x: Tensor, y: Tensor) -> float:
    """Root of the mean squared W2 distance of projections to 100 directions (POT's)."""
    x, y = _array(x), _array(y)
    return float(ot.sliced_wasserstein_distance(x, y, n_projections=100, seed=0))


def mmd(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, equation 3), of the first
    500 points of each; Gaussian kernel, its bandwidth the median distance between all of them
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


def law_distances(x: Tensor, target: Target, nodes: int = NODES) -> tuple[float, float]:
    """W1 and W2 of points x (n, 1) to the law itself of a target that has a quantile function Q.

    W_p^p is the integral of |F^-1(u) - Q(u)|^p over u, F^-1 being the quantile function of the
    points (Peyre, Cuturi 2019, equation 2.36); by the midpoint rule on `nodes` values of u or more.
    """
    x = np.sort(_array(x)[:, 0])
    x = np.repeat(x, -(-nodes // len(x)))
    gap = abs(x - target.quantile((np.arange(len(x)) + 0.5) / len(x)))
    return float(gap.mean()), float(np.square(gap).mean() ** 0.5)


class Yardstick:
    """Measures a generator by a target's law where that is known, otherwise by fresh samples.

    Parameters
    ----------
    target : Target
    data : tensor (data_size, d)
        The training set, in standard units.
    rng : torch.Generator
        Draws the fresh samples: 12 pairs of sets, 4 larger ones on the plane (5 if not `full`).
    full : bool
        Whether to take all of METRICS, with many samples; otherwise W1 and W2, with few.
    thrift : int
        How many times fewer samples to hold against a law.

    Attributes
    ----------
    reference : dict
        What no generator is expected to be better than, in the data's units. Where W1 and W2 are to
        the law, those of the training set, `w1_data` and `w2_data`; of all others the two-sample
        distance, `w1_two_sample`, which is a mean over the pairs, and `w1_two_sample_sd`, their
        standard deviation.
    """

    def __init__(
        self, target: Target, data: Tensor, rng: torch.Generator, full: bool, thrift: int = 1
    ):
        self.target, self.full, self.reference = target, full, {}
        self.nodes = (NODES if full else FEW_NODES) // thrift
        names = [
            name for name in (METRICS if full else LAW) if target.dim > 1 or name != "sliced_w2"
        ]
        if target.shape:
            names = ["w2"]  # in many dimensions W1 takes long, and says little more
        self.to_law = LAW if target.quantile is not None else ()
        self.names = tuple(name for name in names if name not in self.to_law)
        for name, value in zip(self.to_law, law_distances(data, target) if self.to_law else ()):
            self.reference[name + "_data"] = value
        size, pairs = (POINTS, PAIRS) if full else (QUICK, FEW_PAIRS)
        if target.dim == 1:
            size = MANY
        elif target.dim == 2 and full:
            size, pairs = PLANE, PLANE_PAIRS
        self.pairs = [target.two_sets(size, rng) for _ in range(pairs if self.names else 0)]
        for name in self.names:
            found = [METRICS[name](other, y) for y, other in self.pairs]
            mean, sd = (None, None) if None in found else (np.mean(found), np.std(found, ddof=1))
            self.reference[name + "_two_sample"] = self._in_data_units(name, mean)
            self.reference[name + "_two_sample_sd"] = self._in_data_units(name, sd)

    def measure(self, sample: Callable[..., Tensor]) -> dict[str, float | None]:
        """Distances in the data's units; to fresh samples, means over the sets.

        `sample(n, stratified=...)` gives n generated samples (n, d). The distance to a law takes a
        million stratified ones, or 65,536 if not `full`, over `thrift`, so that it has next to no
        chance in it.
        """
        found = {}
        if self.to_law:
            x = sample(self.nodes, stratified=True)
            found = dict(zip(self.to_law, law_distances(x, self.target, len(x))))
        if self.names:
            sets = sample(sum(len(y) for y, _ in self.pairs))
            sets = sets.split([len(y) for y, _ in self.pairs])
        for name in self.names:
            values = [METRICS[name](x, y) for x, (y, _) in zip(sets, self.pairs)]
            found[name] = self._in_data_units(name, None if None in values else np.mean(values))
        return found

    def _in_data_units(self, name: str, value: float | None) -> float | None:
        if value is None:
            return None
        return float(value) * (self.target.scale if name in LENGTHS else 1.0)


METRICS: dict[str, Callable[[Tensor, Tensor], float | None]] = {
    "w1": lambda x, y: wasserstein_distances(x, y, orders=(1,))[0],
    "w2": lambda x, y: wasserstein_distances(x, y, orders=(2,))[0],
    "sliced_w2": sliced_w2,
    "mmd": mmd,
    "kl": kl_divergence,
}
LAW = ("w1", "w2")  # of METRICS, those that can be to a law
LENGTHS = ("w1", "w2", "sliced_w2")  # of METRICS, those in the data's units


def _array(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
