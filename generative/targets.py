"""Target distributions: how to draw from them, and their densities for the figures."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import multivariate_normal, norm, uniform
from sklearn.datasets import make_moons, make_swiss_roll
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A distribution on the line or the plane.

    Attributes
    ----------
    draw : function
        `draw(n, generator)` gives independent samples, shape (n, dim), float32, on the generator's
        device.
    window : ((float, float), ...)
        For each dimension the part that figures show.
    density : function or None
        Probability density: on the line at an array of points, same shape; on the plane at points
        (..., 2), shape (...). None where there is no closed form.
    shares, centres, sd : arrays (m,), (m, dim) and (m,), or None
        Weights, means and standard deviations of the modes, for mixtures of Gaussians.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    window: tuple[tuple[float, float], ...]
    density: Callable[[np.ndarray], np.ndarray] | None = None
    shares: np.ndarray | None = None
    centres: np.ndarray | None = None
    sd: np.ndarray | None = None

    @property
    def dim(self) -> int:
        return len(self.window)


def mixture(
    shares: np.ndarray, centres: np.ndarray, sd: np.ndarray, window: tuple[tuple[float, float], ...]
) -> Target:
    """Gaussians N(centres_k, sd_k^2 I) with these shares; centres (m, dim)."""
    shares, centres, sd = (np.asarray(z, dtype=float) for z in (shares, centres, sd))

    def draw(n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        weights, means, scales = (
            torch.tensor(z, dtype=torch.float32, device=device) for z in (shares, centres, sd)
        )
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        z = torch.randn(n, centres.shape[1], generator=generator, device=device)
        return means[chosen] + scales[chosen, None] * z

    def density(x: np.ndarray) -> np.ndarray:
        if len(window) == 1:
            parts = [norm(m[0], s).pdf(x) for m, s in zip(centres, sd)]
        else:
            parts = [multivariate_normal(m, s**2).pdf(x) for m, s in zip(centres, sd)]
        return sum(share * part for share, part in zip(shares, parts))

    return Target(draw, window, density, shares, centres, sd)


def _square(side: float) -> tuple[tuple[float, float], ...]:
    return ((-side, side), (-side, side))


def _ring() -> Target:
    """Eight Gaussians on a circle, as in the toy experiments of Gulrajani et al. (2017)."""
    angles = 2 * np.pi * np.arange(8) / 8
    centres = 2 * np.stack((np.cos(angles), np.sin(angles)), 1) / 1.414
    return mixture(np.full(8, 1 / 8), centres, np.full(8, 0.02 / 1.414), _square(2.0))


def _grid() -> Target:
    """25 Gaussians on a square grid, likewise."""
    steps = 2.0 * np.arange(-2, 3)
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2) / 2.828
    return mixture(np.full(25, 1 / 25), centres, np.full(25, 0.05 / 2.828), _square(2.0))


def _from_numpy(make: Callable[[int, int], np.ndarray]) -> Callable[[int, torch.Generator], Tensor]:
    """Draw by a function of a number and a seed."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        return torch.tensor(make(n, seed), dtype=torch.float32, device=generator.device)

    return draw


def _moons(n: int, seed: int) -> np.ndarray:
    return make_moons(n, noise=0.05, random_state=seed)[0]


def _swiss_roll(n: int, seed: int) -> np.ndarray:
    """Noise 0.25, axes 0 and 2, scaled, as in the toy experiments of Gulrajani et al. (2017)."""
    return make_swiss_roll(n, noise=0.25, random_state=seed)[0][:, [0, 2]] / 7.5


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """The black squares of a 4 x 4 board on [-2, 2]^2."""
    x = 4 * torch.rand(n, 2, generator=generator, device=generator.device) - 2
    x[:, 1] = x[:, 1].floor().div(2).floor() * 2 + x[:, 1] % 1 + x[:, 0].floor() % 2
    return torch.where(x[:, 1:] >= 2, x - torch.tensor([0.0, 4.0], device=x.device), x)


def _checkerboard_density(x: np.ndarray) -> np.ndarray:
    black = np.floor(x).sum(-1) % 2 == 0
    return np.where(black & (abs(x) < 2).all(-1), 1 / 8, 0.0)


def _draw_uniform(n: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(n, 1, generator=generator, device=generator.device)


def _draw_gaussian(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 1, generator=generator, device=generator.device)


def _draw_mixture(n: int, generator: torch.Generator) -> Tensor:
    left = torch.rand(n, 1, generator=generator, device=generator.device) < 0.5
    z = _draw_gaussian(n, generator)
    return torch.where(left, -2 + z, 2 + 0.5 * z)


_TWO = mixture([0.5, 0.5], [[-2], [2]], [1, 0.5], ((-6.0, 5.0),))

TARGETS = {
    "uniform": Target(_draw_uniform, ((-0.5, 2.5),), uniform(0, 2).pdf),
    "gaussian": Target(_draw_gaussian, ((-4.5, 4.5),), norm(0, 1).pdf),
    "mixture": replace(_TWO, draw=_draw_mixture),
    "outlier": mixture([0.49, 0.49, 0.02], [[-2], [2], [10]], [1, 0.5, 0.5], ((-6.0, 13.0),)),
    "ring": _ring(),
    "grid": _grid(),
    "moons": Target(_from_numpy(_moons), ((-1.5, 2.5), (-1.0, 1.5))),
    "swiss-roll": Target(_from_numpy(_swiss_roll), ((-1.8, 2.2), (-2.0, 2.2))),
    "checkerboard": Target(_checkerboard, _square(2.4), _checkerboard_density),
}
