"""Target distributions: how to draw from them, and their densities for the figures."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import multivariate_normal, norm, rv_histogram, uniform
from sklearn.decomposition import PCA
from torch import Tensor

from generative.image_files import Pixels
from generative.images import (
    NAMES,
    Images,
    contaminated,
    holds_images,
    read_array_file,
    read_images,
    with_shape,
)
from generative.point_files import Points, equal_in_float32
from generative.ranks import by_first

SURVEYED = 200_000  # of a user's points, for what figures show
FEW = 1000  # of them, to see whether float32 tells them apart


@dataclass(frozen=True)
class Target:
    """A distribution on the line, on the plane, or of a user's data in more dimensions.

    Samples are in standard units, in which a user's data have mean 0 and, on average over the
    columns, variance 1. Training and distances keep to them; :meth:`in_data_units` leads back. All
    other attributes are in the data's units. For the distributions of this file both are the same.
    Where a user's data lie far from 0, figures show and float64 resolves what they have beyond a
    round number.

    Attributes
    ----------
    draw : function
        `draw(n, generator)` gives independent samples in standard units, shape (n, dim), float32,
        on the generator's device.
    window : ((float, float), ...)
        For each dimension of the figures the part that they show.
    density : function or None
        Probability density of what figures show: on the line at an array of points, same shape; on
        the plane at points (..., 2), shape (...). None where there is no closed form.
    quantile : function or None
        On the line the quantile function of the law, at an array of levels; None if not known.
    shares, centres, sd : arrays (m,), (m, dim) and (m,), or None
        Weights, means and standard deviations of the modes, for mixtures of Gaussians.
    projection : array (dim, 2), or None
        In more than two dimensions the plane that figures show.
    held_out : Points, Rows or None
        A user's data (m, dim) that `draw` does not give, in standard units, to compare samples
        with; read where they are asked for, as arrays.
    origin : array (dim,) or 0
        What figures subtract; integers where the data are.
    offset, scale : array (dim,) or 0.0, and float
        The mean, which is 0 in standard units, less the origin; and the length that is 1, the same
        for all columns.
    digest : str or None
        SHA-256 of a user's file, or of all images.
    images : Images or None
        Where samples are images: rows of their pixels, channels first, from -1 to 1 in standard
        units and from 0 to 255 in the data's.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    window: tuple[tuple[float, float], ...]
    density: Callable[[np.ndarray], np.ndarray] | None = None
    quantile: Callable[[np.ndarray], np.ndarray] | None = None
    shares: np.ndarray | None = None
    centres: np.ndarray | None = None
    sd: np.ndarray | None = None
    projection: np.ndarray | None = None
    held_out: "Points | Rows | None" = None
    origin: np.ndarray | int = 0
    offset: np.ndarray | float = 0.0
    scale: float = 1.0
    digest: str | None = None
    images: Images | None = None

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of images; None of points."""
        if self.images is None:
            return None
        height, width, channels = self.images.shape
        return channels, height, width

    @property
    def dim(self) -> int:
        """Of a sample."""
        if self.images is not None:
            return math.prod(self.shape)
        return len(self.window) if self.projection is None else len(self.projection)

    def in_data_units(self, samples: np.ndarray) -> np.ndarray:
        """Samples (..., dim) in the data's own units, float64."""
        return self.origin + (self.offset + self.scale * samples.astype(np.float64))

    def shown(self, samples: np.ndarray) -> np.ndarray:
        """Samples (..., dim) as figures show them, (..., 1) or (..., 2), in units of the data's
        length: beyond the origin, or as principal components.
        """
        samples = self.scale * samples.astype(np.float64)
        return self.offset + samples if self.projection is None else samples @ self.projection

    def two_sets(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two independent sets of up to n samples, to measure distances with."""
        if self.held_out is None:
            return self.draw(n, generator), self.draw(n, generator)
        count, device = len(self.held_out), generator.device
        order = torch.randperm(count, generator=generator, device=device).cpu()
        halves = (half[:n].numpy() for half in order.chunk(2))
        first, second = (torch.from_numpy(self.held_out[half]).to(device) for half in halves)
        return first, second


def _uniform(n: int, dim: int, rng: torch.Generator) -> Tensor:
    return torch.rand(n, dim, generator=rng, device=rng.device, dtype=torch.float32)


def _normal(n: int, dim: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, dim, generator=rng, device=rng.device, dtype=torch.float32)


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
        return means[chosen] + scales[chosen, None] * _normal(n, centres.shape[1], generator)

    def density(x: np.ndarray) -> np.ndarray:
        if len(window) == 1:
            parts = [norm(m[0], s).pdf(x) for m, s in zip(centres, sd)]
        else:
            parts = [multivariate_normal(m, s**2).pdf(x) for m, s in zip(centres, sd)]
        return sum(share * part for share, part in zip(shares, parts))

    def distribution(x: np.ndarray) -> np.ndarray:
        return sum(w * norm(m[0], s).cdf(x) for w, m, s in zip(shares, centres, sd))

    quantile = None
    if len(window) == 1:
        reach = 9 * sd  # beyond which there is no mass that float64 resolves
        quantile = _inverse(distribution, min(centres[:, 0] - reach), max(centres[:, 0] + reach))
    return Target(draw, window, density, quantile, shares, centres, sd)


def _inverse(
    distribution: Callable[[np.ndarray], np.ndarray], low: float, high: float
) -> Callable[[np.ndarray], np.ndarray]:
    """The quantile function of a law on [low, high], linear between 200,000 places."""

    @functools.cache
    def table() -> tuple[np.ndarray, np.ndarray]:
        x = np.linspace(low, high, 200001)
        return distribution(x), x

    return lambda u: np.interp(u, *table())


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


def _moons(n: int, generator: torch.Generator) -> Tensor:
    """Two half circles, noise 0.05; scikit-learn's spreads its points evenly, these are drawn."""
    angle = math.pi * _uniform(n, 1, generator)
    lower = (_uniform(n, 1, generator) < 0.5).float()
    sign = 1 - 2 * lower
    x = torch.cat((lower + sign * angle.cos(), lower / 2 + sign * angle.sin()), 1)
    return x + 0.05 * _normal(n, 2, generator)


def _swiss_roll(n: int, generator: torch.Generator) -> Tensor:
    """Noise 0.25, axes 0 and 2 of scikit-learn's, divided by 7.5, as Gulrajani et al. (2017)."""
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, 1, generator))
    x = torch.cat((angle * angle.cos(), angle * angle.sin()), 1)
    return (x + 0.25 * _normal(n, 2, generator)) / 7.5


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """The black squares of a 4 x 4 board on [-2, 2]^2."""
    x = 4 * _uniform(n, 2, generator) - 2
    x[:, 1] = x[:, 1].floor().div(2).floor() * 2 + x[:, 1] % 1 + x[:, 0].floor() % 2
    x[:, 1] -= 4 * (x[:, 1] >= 2)
    return x


def _checkerboard_density(x: np.ndarray) -> np.ndarray:
    black = np.floor(x).sum(-1) % 2 == 0
    return np.where(black & (abs(x) < 2).all(-1), 1 / 8, 0.0)


def _draw_mixture(n: int, generator: torch.Generator) -> Tensor:
    left = _uniform(n, 1, generator) < 0.5
    z = _normal(n, 1, generator)
    return torch.where(left, -2 + z, 2 + 0.5 * z)


_TWO = mixture([0.5, 0.5], [[-2], [2]], [1, 0.5], ((-6.0, 5.0),))


def from_settings(config: Any) -> Target:
    """The target of a run's settings.

    Raises
    ------
    ValueError
        If the data cannot be found, read or used.
    """
    if config.data_path and not holds_images(config.data_path):
        return from_file(config.data_path, config.seed)
    if not config.data_path and config.data_type in TARGETS:
        return TARGETS[config.data_type]
    images = _images("data_path" if config.data_path else "data_type", config)
    if config.contaminate:
        others = _images("contaminate", config)
        images = contaminated(images, others, config.share, config.seed)
    return from_images(images)


def _images(setting: str, config: Any) -> Images:
    """The set of images, by its name or its file, that a setting says."""
    name = getattr(config, setting)
    if setting == "data_path" or (name not in NAMES and Path(name).exists()):
        images = read_array_file(name, config.seed, setting)
        return with_shape(images, config.size, config.channels)
    if name not in NAMES:
        raise ValueError(
            f"{setting}: got {name!r}; accepts {', '.join(NAMES)}, or a .npy or .npz file of images"
        )
    return read_images(
        name,
        config.data_dir,
        config.seed,
        size=config.size,
        channels=config.channels,
        fetch=config.download,
    )


class Rows:
    """Images as rows of pixels in standard units, each read where it is asked for."""

    def __init__(self, pixels: np.ndarray | Pixels):
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, which) -> np.ndarray:
        return image_rows(torch.from_numpy(self._pixels[which])).numpy()


def _drawn(rows: Points | Rows, n: int, generator: torch.Generator) -> Tensor:
    """At most as many rows as there are, each once, on the generator's device."""
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return torch.from_numpy(rows[order[:n].cpu().numpy()]).to(generator.device)


def from_images(images: Images) -> Target:
    """Images as rows of pixels."""
    return Target(
        functools.partial(_drawn, Rows(images.train)),
        (),
        held_out=Rows(images.held_out),
        offset=127.5,
        scale=127.5,
        digest=by_first(images.digest),
        images=images,
    )


def image_rows(pixels: Tensor) -> Tensor:
    """Pixels (n, h, w, c) from 0 to 255 as rows (n, c h w) from -1 to 1, float32."""
    return pixels.permute(0, 3, 1, 2).flatten(1).float().div_(127.5).sub_(1)


def from_file(path: str, seed: int) -> Target:
    """A user's points: a fifth of them, drawn by the seed, is held out to measure distances with.

    Raises
    ------
    ValueError
        If the file's points cannot be used (:class:`generative.point_files.Points`).
    """
    points = Points(path)
    order = np.random.default_rng(seed).permutation(len(points))
    held_out, points = (points.part(index) for index in np.split(order, [len(order) // 5]))
    few = np.arange(min(FEW, len(held_out)))
    if 2 * _distinct(held_out[few]) < _distinct(points.exact(held_out.index[few])):
        raise ValueError(equal_in_float32(path))

    rows, offset, scale = points[:SURVEYED], points.offset, points.scale
    projection = density = None
    if rows.shape[1] > 2:
        projection = PCA(2, random_state=0).fit(rows).components_.T.astype(np.float64)
    if rows.shape[1] == 1:
        bins = int(2 * len(rows) ** (1 / 3))  # Rice's rule
        histogram = rv_histogram(np.histogram(rows.astype(np.float64), bins))

        def density(x: np.ndarray) -> np.ndarray:
            return histogram.pdf((x - offset[0]) / scale) / scale

    target = Target(
        functools.partial(_drawn, points), (), density, projection=projection, held_out=held_out,
        origin=points.origin, offset=offset, scale=scale, digest=points.digest,
    )  # fmt: skip
    seen = target.shown(rows)
    low, high = seen.min(0), seen.max(0)
    margin = 0.1 * (high - low).max()
    return replace(target, window=tuple(zip((low - margin).tolist(), (high + margin).tolist())))


def _distinct(rows: np.ndarray) -> int:
    return len(np.unique(rows, axis=0))


TARGETS = {
    "uniform": Target(
        lambda n, rng: 2 * _uniform(n, 1, rng),
        ((-0.5, 2.5),),
        uniform(0, 2).pdf,
        uniform(0, 2).ppf,
    ),
    "gaussian": Target(
        lambda n, rng: _normal(n, 1, rng), ((-4.5, 4.5),), norm(0, 1).pdf, norm(0, 1).ppf
    ),
    "mixture": replace(_TWO, draw=_draw_mixture),
    "outlier": mixture([0.49, 0.49, 0.02], [[-2], [2], [10]], [1, 0.5, 0.5], ((-6.0, 13.0),)),
    "ring": _ring(),
    "grid": _grid(),
    "moons": Target(_moons, ((-1.5, 2.5), (-1.0, 1.5))),
    "swiss-roll": Target(_swiss_roll, ((-1.8, 2.2), (-2.0, 2.2))),
    "checkerboard": Target(_checkerboard, _square(2.4), _checkerboard_density),
}
