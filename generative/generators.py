"""What all generators share, and one that follows a velocity."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from generative.batches import Noise, stream
from generative.features import Autoencoder
from generative.networks import convolutional, initialise, linear
from generative.process import unaffected

BLOCKS = 3  # of a velocity's network
CHUNK = 2**14  # samples that are made at once, so few that caches hold them
ENTRIES = 2**20  # of samples that are made at once: fewer of large images
FREQUENCIES = 8  # of the time that a velocity is given
STEPS = ("midpoint", "euler")  # ways to follow a velocity


class Sampler(nn.Module):
    """A network that turns noise into samples.

    The data's mean and standard deviation scale the output. Samples are in the units of these two:
    the target's standard units in training, the data's own, in float64, with those of generator.pt.

    Attributes
    ----------
    noise : Noise
        What it turns into samples.
    mean, std : float64 tensors (x_dim,)
    thrift : int
        How many times fewer samples figures and distances take than of a small network.
    """

    thrift: ClassVar[int] = 1

    def __init__(self, noise: Noise, x_dim: int):
        super().__init__()
        self.noise = noise
        self.register_buffer("mean", torch.zeros(x_dim, dtype=torch.float64))
        self.register_buffer("std", torch.ones(x_dim, dtype=torch.float64))

    @property
    def rows(self) -> int:
        """How many samples to make at once."""
        return min(CHUNK, max(1, ENTRIES // len(self.mean)))

    def initialise(self, data: Tensor, rng: torch.Generator) -> None:
        """First weights, for data (n, x_dim) whose mean and standard deviation the output takes."""
        self.initialise_weights(rng)
        self.mean, self.std = data.mean(0), data.std(0)

    def initialise_weights(self, rng: torch.Generator) -> None:
        """First weights of a network whose output has mean 0 and standard deviation 1."""
        raise NotImplementedError

    def standard(self, z: Tensor) -> Tensor:
        """Noise (n, z_dim) to samples (n, x_dim) less the mean, over the standard deviation."""
        raise NotImplementedError

    def calibrate(self, z: Tensor) -> None:
        """Fit what depends on the weights to noise (n, z_dim): the statistics of BatchNorm.

        Its own running statistics lag behind the weights and spoil the samples.
        """
        update_bn([z], self)

    def forward(self, z: Tensor) -> Tensor:
        """Noise (n, z_dim) to samples (n, x_dim)."""
        return self.mean + self.std * self.standard(z)

    @unaffected
    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, stratified: bool = False) -> Tensor:
        """n samples (n, x_dim), independent unless `stratified`, on the generator's device."""
        noise = self.noise(n, stream(seed, 5, self.mean.device), stratified)
        return torch.cat([self(z) for z in noise.split(self.rows)])


class ImageGenerator(Sampler):
    """Images by transposed convolutions, as rows of pixels from -1 to 1."""

    thrift: ClassVar = 10

    def __init__(self, noise: Noise, g_dim: int, shape: tuple[int, int, int], attention: bool):
        super().__init__(noise, math.prod(shape))
        self.register_buffer("shape", torch.tensor(shape))
        self.layers = convolutional(noise.dim, shape, g_dim, attention)

    def calibrate(self, z: Tensor) -> None:
        update_bn(z.split(self.rows), self)

    def initialise(self, data: Tensor, rng: torch.Generator) -> None:
        initialise(self, rng)
        self.mean, self.std = torch.zeros_like(data[0]), torch.ones_like(data[0])

    def standard(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Flow(Sampler):
    """Points that start as noise and follow a velocity v(x, t) from t = 0 to 1, in equal steps.

    The velocity is a network with residual blocks, each of LayerNorm, SiLU and a linear layer. It
    is 0 at first, so that the flow leaves the noise where it is.

    A velocity that is learnt by least squares is a little too small, and samples keep too close to
    their mean. The buffers `centre` and `spread` take the first two moments of each coordinate out.
    """

    thrift: ClassVar = 8

    def __init__(self, noise: Noise, g_dim: int, x_dim: int, steps: int, method: str = "midpoint"):
        super().__init__(noise, x_dim)
        self.steps, self.method = steps, method
        self.register_buffer("centre", torch.zeros(x_dim, dtype=torch.float32))
        self.register_buffer("spread", torch.ones(x_dim, dtype=torch.float32))
        self.first = linear(x_dim + 2 * FREQUENCIES, g_dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(g_dim, dtype=torch.float32), nn.SiLU(), linear(g_dim, g_dim))
            for _ in range(BLOCKS)
        )
        self.last = nn.Sequential(
            nn.LayerNorm(g_dim, dtype=torch.float32), nn.SiLU(), linear(g_dim, x_dim)
        )

    def initialise_weights(self, rng: torch.Generator) -> None:
        initialise(self, rng)
        nn.init.zeros_(self.last[-1].weight)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """At points x (n, x_dim) and times t (n, 1), shape (n, x_dim)."""
        octaves = 2.0 ** torch.arange(FREQUENCIES, device=t.device, dtype=t.dtype)
        angle = math.pi / 2 * t * octaves
        h = self.first(torch.cat((x, angle.sin(), angle.cos()), 1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)

    @torch.no_grad()
    def calibrate(self, z: Tensor) -> None:
        """Measure the moments, on noise (n, z_dim)."""
        x = torch.cat([self.follow(rows) for rows in z.split(self.rows)])
        spread = x.std(0)
        self.centre.copy_(x.mean(0))
        self.spread.copy_(spread.where(spread > 0, 1))

    def standard(self, z: Tensor) -> Tensor:
        return (self.follow(z) - self.centre) / self.spread

    def follow(self, z: Tensor) -> Tensor:
        """Where the velocity carries noise (n, z_dim), (n, x_dim)."""
        x, dt = z[:, : len(self.mean)], 1 / self.steps
        for step in range(self.steps):
            t = torch.full_like(x[:, :1], step * dt)
            velocity = self.velocity(x, t)
            if self.method == "midpoint":
                velocity = self.velocity(x + dt / 2 * velocity, t + dt / 2)
            x = x + dt * velocity
        return x


class Decoded(Sampler):
    """Images that an autoencoder decodes from a generator's latents, as rows of pixels."""

    def __init__(self, generator: Sampler, autoencoder: Autoencoder):
        super().__init__(generator.noise, math.prod(autoencoder.shape))
        self.register_buffer("shape", torch.tensor(autoencoder.shape))
        self.generator, self.autoencoder = generator, autoencoder
        self.thrift = generator.thrift
        self.to(generator.mean.device)

    def standard(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(self.generator(z).float())
