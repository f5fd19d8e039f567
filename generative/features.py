"""Representations in which images are compared: an autoencoder's latents, a classifier's features.

Both are small networks that are trained on the images first. Images are rows (n, c h w) of entries
from -1 to 1.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    max_pool2d,
    pad,
)
from torch.nn.utils import skip_init

from generative.networks import SLOPE, initialise, linear
from generative.process import unaffected

# Chosen by reconstructions of held-out digits of 28 x 28.
WIDTHS = 512, 256  # of the autoencoder's hidden layers
BLUR = 0.1  # noise on latents, in units of their standard deviation, while the decoder learns
FEATURES = 84  # of the classifier
SMALL = 16  # pixels of a side
CHUNK = 1000  # images at once


def shift(rows: Tensor, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Images moved by up to one pixel in each direction, edges repeated; shape (c, h, w).

    Images of less than 16 pixels stay: a pixel is much of them.
    """
    if min(shape[1:]) < SMALL:
        return rows
    images = pad(rows.unflatten(1, shape), (1, 1, 1, 1), mode="replicate")
    _, height, width = shape
    dy, dx = torch.randint(3, (2, len(rows)), generator=rng, device=rows.device)
    at = torch.arange(len(rows), device=rows.device)[:, None, None, None]
    channel = torch.arange(shape[0], device=rows.device)[:, None, None]
    i = dy[:, None, None, None] + torch.arange(height, device=rows.device)[:, None]
    j = dx[:, None, None, None] + torch.arange(width, device=rows.device)
    return images[at, channel, i, j].flatten(1)


def minibatches(n: int, size: int, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Indices of `steps` minibatches, which walk through n points in ever new random orders."""
    size = min(size, n)
    order, place = torch.randperm(n, generator=rng, device=rng.device), 0
    for _ in range(steps):
        if place + size > n:
            order, place = torch.randperm(n, generator=rng, device=rng.device), 0
        yield order[place : place + size]
        place += size


def falling(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A rate that falls linearly to 0."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


class Autoencoder(nn.Module):
    """Images to `dim` numbers, with mean 0 and standard deviation 1 over the data, and back."""

    def __init__(self, shape: tuple[int, int, int], dim: int):
        super().__init__()
        self.shape = shape
        size, (first, second) = shape[0] * shape[1] * shape[2], WIDTHS
        self.encoder = nn.Sequential(
            linear(size, first),
            nn.LeakyReLU(SLOPE),
            linear(first, second),
            nn.LeakyReLU(SLOPE),
            linear(second, dim),
        )
        self.decoder = nn.Sequential(
            linear(dim, second),
            nn.BatchNorm1d(second, dtype=torch.float32),
            nn.LeakyReLU(SLOPE),
            linear(second, first),
            nn.BatchNorm1d(first, dtype=torch.float32),
            nn.LeakyReLU(SLOPE),
            linear(first, size),
        )
        self.standard = nn.BatchNorm1d(dim, affine=False, dtype=torch.float32)

    @unaffected
    def train_on(
        self,
        data: Tensor,
        steps: int,
        rng: torch.Generator,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """Learn to reconstruct images (n, c h w) from noisy latents, and fix the latents' scale.

        Pixels are taken as probabilities: the loss is their cross entropy. `progress` is called
        after each of the steps.
        """
        initialise(self, rng)
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3, fused=True)
        rates = falling(optimizer, steps)
        self.train()
        for index in minibatches(len(data), 100, steps, rng):
            x = shift(data[index], self.shape, rng)
            z = self.standard(self.encoder(x))
            noise = torch.randn(z.shape, generator=rng, device=z.device, dtype=z.dtype)
            logits = self.decoder(z + BLUR * noise)
            loss = binary_cross_entropy_with_logits(logits, (x + 1) / 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            progress()
        self.eval()
        with torch.no_grad():
            latents = torch.cat([self.encoder(x) for x in data.split(CHUNK)])
        self.standard.running_mean.copy_(latents.mean(0))
        self.standard.running_var.copy_(latents.var(0))

    @unaffected
    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Images (n, c h w) to latents (n, dim)."""
        return torch.cat([self.standard(self.encoder(rows)) for rows in x.split(CHUNK)])

    @unaffected
    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (n, dim) to images (n, c h w)."""
        return torch.cat([2 * self.decoder(rows).sigmoid() - 1 for rows in z.split(CHUNK)])


class Classifier(nn.Module):
    """Images to classes by two convolutions; the layer before the last one gives features.

    After LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition",
    1998, figure 2, with more channels, fewer dense layers, LeakyReLU and maxima for means.
    """

    def __init__(self, shape: tuple[int, int, int], count: int):
        super().__init__()
        self.shape = shape
        self.first = skip_init(nn.Conv2d, shape[0], 16, 5, padding=2, dtype=torch.float32)
        self.second = skip_init(nn.Conv2d, 16, 32, 5, padding=2, dtype=torch.float32)
        self.dense = linear(32 * (shape[1] // 4) * (shape[2] // 4), FEATURES)
        self.last = linear(FEATURES, count)
        self.register_buffer("scale", torch.ones(FEATURES, dtype=torch.float32))

    def _dense(self, rows: Tensor) -> Tensor:
        x = rows.unflatten(1, self.shape)
        for layer in (self.first, self.second):
            x = nn.functional.leaky_relu(max_pool2d(layer(x), 2), SLOPE)
        return nn.functional.leaky_relu(self.dense(x.flatten(1)), SLOPE)

    @unaffected
    def train_on(self, data: Tensor, labels: Tensor, steps: int, rng: torch.Generator) -> None:
        """Learn the labels (n,) of images (n, c h w), and fix the scale of the features."""
        initialise(self, rng)
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3, fused=True)
        rates = falling(optimizer, steps)
        for index in minibatches(len(data), 100, steps, rng):
            x = shift(data[index], self.shape, rng)
            loss = cross_entropy(self.last(self._dense(x)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        with torch.no_grad():
            spread = torch.cat([self._dense(rows) for rows in data.split(CHUNK)]).std(0)
        self.scale.copy_(spread.where(spread > 0, 1))

    @unaffected
    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Images (n, c h w) to (n, 84), in units of their standard deviation over the data."""
        return torch.cat([self._dense(rows) / self.scale for rows in x.split(CHUNK)])

    @unaffected
    @torch.no_grad()
    def classes(self, x: Tensor) -> Tensor:
        """The likeliest class of each image, (n,)."""
        return self.last(self.features(x) * self.scale).argmax(1)
