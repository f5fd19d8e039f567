"""Target distributions: how to draw from them, and their densities for the figures."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, uniform
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A distribution on the line.

    Attributes
    ----------
    draw : function
        `draw(n, generator)` gives independent samples, shape (n, 1), float32, on the generator's
        device.
    density : function
        Probability density at an array of points, same shape.
    window : (float, float)
        The part of the line that figures show.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    density: Callable[[np.ndarray], np.ndarray]
    window: tuple[float, float]


def _draw_uniform(n: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(n, 1, generator=generator, device=generator.device)


def _draw_gaussian(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 1, generator=generator, device=generator.device)


def _draw_mixture(n: int, generator: torch.Generator) -> Tensor:
    left = torch.rand(n, 1, generator=generator, device=generator.device) < 0.5
    z = _draw_gaussian(n, generator)
    return torch.where(left, -2 + z, 2 + 0.5 * z)


TARGETS = {
    "uniform": Target(_draw_uniform, uniform(0, 2).pdf, (-0.5, 2.5)),
    "gaussian": Target(_draw_gaussian, norm(0, 1).pdf, (-4.5, 4.5)),
    "mixture": Target(
        _draw_mixture,
        lambda x: 0.5 * norm(-2, 1).pdf(x) + 0.5 * norm(2, 0.5).pdf(x),
        (-6.0, 5.0),
    ),
}
