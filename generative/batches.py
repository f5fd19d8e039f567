"""Minibatches of a training: noise, and points of a data set, independent or stratified."""

import math

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from generative.ranks import own

LATENTS = ("uniform", "gaussian")
LARGE = 10**6  # points whose order in a k-d tree is coarser
MOST = 6  # dimensions in which a lattice fills the cube evenly


def stream(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """One of many independent streams of random numbers that a seed gives."""
    state = np.random.SeedSequence((seed, number)).generate_state(1)
    return torch.Generator(device).manual_seed(int(state[0]))


def stratified_points(n: int, dim: int, rng: torch.Generator) -> Tensor:
    """Points (n, dim) that fill the unit cube evenly, each of them uniform.

    Independent noise has gaps and clusters, for which minibatch plans move points between modes.
    In up to six dimensions the points are a lattice with a random shift (Cranley, Patterson 1976).
    Its steps are powers of the root r of x^(dim + 1) = x + 1, the golden ratio for dim = 1. In more
    dimensions they are a Latin hypercube (McKay, Beckman, Conover 1979): each coordinate has one
    point in each of n equal parts of the interval.
    """
    kind = {"generator": rng, "device": rng.device, "dtype": torch.float64}
    if dim > MOST:
        parts = torch.rand(n, dim, **kind).argsort(0)
        return ((parts + torch.rand(n, dim, **kind)) / n).float()
    r = 1.5
    for _ in range(60):
        r = (1 + r) ** (1 / (dim + 1))
    steps = r ** -torch.arange(1, dim + 1, dtype=torch.float64, device=rng.device)
    count = torch.arange(n, dtype=torch.float64, device=rng.device)[:, None]
    return torch.frac(count * steps + torch.rand(dim, **kind)).float()


class Noise:
    """The law of what a generator turns into samples.

    Parameters
    ----------
    latent : str
        `uniform` in [-1, 1], `gaussian`, or `gaussians` of standard deviation `sigma` about the
        `centres` (m, dim), each as likely as the others.
    """

    def __init__(self, latent: str, dim: int, centres: Tensor | None = None, sigma: float = 0.0):
        self.latent, self.dim, self.centres, self.sigma = latent, dim, centres, sigma

    def __call__(self, n: int, rng: torch.Generator, stratified: bool = False) -> Tensor:
        """Noise (n, dim), float32, on the device of rng; independent unless `stratified`."""
        kind = {"generator": rng, "device": rng.device, "dtype": torch.float32}
        uniform = stratified_points(n, self.dim, rng) if stratified else None
        if self.latent == "uniform":
            return 2 * (torch.rand(n, self.dim, **kind) if uniform is None else uniform) - 1
        if uniform is None:
            z = torch.randn(n, self.dim, **kind)
        else:
            z = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
        if self.centres is None:
            return z
        chosen = torch.randint(len(self.centres), (n,), generator=rng, device=rng.device)
        return self.centres.to(rng.device)[chosen] + self.sigma * z

    def walks(self, count: int, steps: int, rng: torch.Generator) -> Tensor:
        """Noise (count, steps, dim) on ways from one draw to another, on which it keeps its law if
        that is gaussian.
        """
        first, last = (self(count, rng)[:, None] for _ in range(2))
        t = torch.linspace(0, 1, steps, device=rng.device, dtype=torch.float32)[:, None]
        if self.latent == "gaussian":
            return (math.pi / 2 * t).cos() * first + (math.pi / 2 * t).sin() * last
        return torch.lerp(first, last, t)

    def square_grid(self) -> Tensor:
        """Lines of a square grid in two dimensions of noise, (42, 200, 2): upright ones first."""
        reach = 1.0 if self.latent == "uniform" else 2.0
        t, places = (torch.linspace(-reach, reach, n, dtype=torch.float32) for n in (200, 21))
        upright = torch.stack(torch.meshgrid(places, t, indexing="ij"), -1)
        return torch.cat((upright, upright.flip(-1)))


def noise_of(config, dim: int) -> Noise:
    """The noise of a run's settings; it needs no data."""
    if config.latent != "gaussians":
        return Noise(config.latent, dim)
    own = stream(config.seed, 6)  # on the CPU, so that centres are the same on all devices
    centres = torch.randn(config.latent_centres, dim, generator=own, dtype=torch.float32)
    return Noise(config.latent, dim, centres, config.latent_sigma)


class Batches:
    """Minibatches of `size` from one random generator; what an objective asks for its points.

    Where several processes train, each draws the whole minibatch and gets its own rows of it.

    Attributes
    ----------
    data : tensor (data_size, x_dim)
        The whole data set.
    rng : torch.Generator
        All randomness of a training comes from it.
    shape : (c, h, w) or None
        Of images, whose rows of pixels the data are.
    """

    def __init__(
        self,
        noise: Noise,
        data: Tensor,
        size: int,
        stratified: bool,
        rng: torch.Generator,
        shape: tuple[int, int, int] | None = None,
    ):
        self.data, self.size, self.stratified, self.rng = data, size, stratified, rng
        self.shape = shape
        self._noise, self._position = noise, 0
        if stratified:
            few = 1 + len(data) // LARGE  # a tree down to single points takes 300 bytes for each
            tree = cKDTree(data.cpu().numpy(), leafsize=few)
            self._order = torch.from_numpy(tree.indices.astype(np.int64)).to(data.device)

    def noise(self) -> Tensor:
        """A new minibatch of noise, (size, z_dim)."""
        return own(self._noise(self.size, self.rng, self.stratified))

    def points(self) -> Tensor:
        """The next minibatch of the data set, (size, x_dim), which is walked through endlessly.

        A stratified one takes points at equal distances in the order of a k-d tree, so that each
        region of the data has its share.
        """
        index = own(torch.arange(self.size, device=self.data.device))
        if self.stratified:
            start = torch.rand(1, generator=self.rng, device=index.device, dtype=torch.float64)
            place = (index + start) * (len(self.data) / self.size)
            return self.data[self._order[place.long() % len(self.data)]]
        index = (self._position + index) % len(self.data)
        self._position += self.size
        return self.data[index]

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        return {"position": self._position, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self._position = state["position"]
        self.rng.set_state(state["rng"].cpu())
