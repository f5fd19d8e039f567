"""How far generated samples are from the target."""

import ot
from torch import Tensor


def wasserstein_distances(x: Tensor, y: Tensor) -> tuple[float, float]:
    """W1 and W2 between two sets of points on the line, exact, in units of the data.

    Parameters
    ----------
    x, y : tensor, shapes (n, 1) and (m, 1)

    Raises
    ------
    ValueError
        If the points are not one-dimensional.
    """
    for name, points in (("x", x), ("y", y)):
        if points.ndim != 2 or points.shape[1] != 1:
            raise ValueError(f"{name} must have shape (n, 1); got {tuple(points.shape)}")
    x, y = (points[:, 0].detach().double().cpu().numpy() for points in (x, y))
    w1 = ot.wasserstein_1d(x, y, p=1)
    w2 = ot.wasserstein_1d(x, y, p=2) ** 0.5
    return float(w1), float(w2)
