"""Representations in which images are compared: an autoencoder's latents, a classifier's features.

Both are small networks that are trained on the images first. Images are rows (n, c h w) of entries
from -1 to 1.
"""

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    max_pool2d,
    pad,
)
from torch.nn.utils import skip_init
from tqdm import tqdm

from generative.networks import SLOPE, descend, initialise, linear
from generative.process import unaffected
from generative.ranks import by_first

# Chosen by reconstructions of held-out digits of 28 x 28.
WIDTHS = 512, 256  # of the autoencoder's hidden layers
BLUR = 0.1  # noise on latents, in units of their standard deviation, while the decoder learns
FEATURES = 84  # of the classifier
SMALL = 16  # pixels of a side
ENTRIES = 2**20  # of images at once
SIZE = 100  # images in a minibatch
RATE = 2e-3  # of learning, at first


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


def minibatches(n: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Indices of minibatches, which walk through n points in ever new random orders, for ever."""
    size = min(SIZE, n)
    while True:
        order = torch.randperm(n, generator=rng, device=rng.device)
        yield from order[: n // size * size].split(size)


def in_parts(rows: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Images of this shape, or what stands for them, in parts that memory and caches hold."""
    return rows.split(max(1, ENTRIES // math.prod(shape)))


def portions(steps: int, seconds: float = 0.0, words: str = "") -> Iterator[float]:
    """The part of a training that is done before each of its steps, from 0 to below 1.

    It lasts for `steps` steps or, if they are not 0, for `seconds`. If there are words for it a
    progress bar shows it.
    """
    started, form = time.perf_counter(), "{desc}: {percentage:.0f}%|{bar}| {elapsed}"
    with tqdm(total=1.0, desc=words, bar_format=form, mininterval=0.5, disable=not words) as bar:
        for step in itertools.count():
            done = (time.perf_counter() - started) / seconds if seconds else step / steps
            bar.update(min(done, 1.0) - bar.n)
            if done >= 1:
                return
            yield done


def set_rate(optimizer: torch.optim.Optimizer, done: float) -> None:
    """A rate that falls linearly to 0 as a training is `done`."""
    for group in optimizer.param_groups:
        group["lr"] = RATE * (1 - done)


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
        seconds: float = 0.0,
        words: str = "",
    ) -> None:
        """Learn to reconstruct images (n, c h w) from noisy latents, and fix the latents' scale.

        Pixels are taken as probabilities: the loss is their cross entropy. The training lasts for
        `steps` minibatches or, if they are not 0, for `seconds`. `words` name it in a progress bar.
        """
        initialise(self, rng)
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE, fused=True)
        self.train()
        for index, done in zip(minibatches(len(data), rng), portions(steps, seconds, words)):
            x = data[index]
            z = self.standard(self.encoder(x))
            noise = torch.randn(z.shape, generator=rng, device=z.device, dtype=z.dtype)
            logits = self.decoder(z + BLUR * noise)
            set_rate(optimizer, done)
            descend(optimizer, binary_cross_entropy_with_logits(logits, (x + 1) / 2))
        self.eval()
        with torch.no_grad():
            latents = torch.cat([self.encoder(x) for x in in_parts(data, self.shape)])
        self.standard.running_mean.copy_(latents.mean(0))
        self.standard.running_var.copy_(latents.var(0))

    @unaffected
    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Images (n, c h w) to latents (n, dim)."""
        return torch.cat([self.standard(self.encoder(rows)) for rows in in_parts(x, self.shape)])

    @unaffected
    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (n, dim) to images (n, c h w)."""
        return torch.cat([2 * self.decoder(rows).sigmoid() - 1 for rows in in_parts(z, self.shape)])


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
    def train_on(
        self, data: Tensor, labels: Tensor, steps: int, rng: torch.Generator, words: str = ""
    ) -> None:
        """Learn the labels (n,) of images (n, c h w) in `steps` minibatches, and fix the scale of
        the features. `words` name it in a progress bar.
        """
        initialise(self, rng)
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE, fused=True)
        for index, done in zip(minibatches(len(data), rng), portions(steps, words=words)):
            x = shift(data[index], self.shape, rng)
            set_rate(optimizer, done)
            descend(optimizer, cross_entropy(self.last(self._dense(x)), labels[index]))
        with torch.no_grad():
            spread = torch.cat([self._dense(rows) for rows in in_parts(data, self.shape)]).std(0)
        self.scale.copy_(spread.where(spread > 0, 1))

    @unaffected
    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Images (n, c h w) to (n, 84), in units of their standard deviation over the data."""
        return torch.cat([self._dense(rows) / self.scale for rows in in_parts(x, self.shape)])

    @unaffected
    @torch.no_grad()
    def classes(self, x: Tensor) -> Tensor:
        """The likeliest class of each image, (n,)."""
        return self.last(self.features(x) * self.scale).argmax(1)


def learnt_autoencoder(
    config: Any,
    data: Tensor,
    shape: tuple[int, int, int],
    rng: torch.Generator,
    learnt: dict | None,
) -> Autoencoder:
    """The one of a run's settings, with the weights `learnt` or trained on images (n, c h w) for
    its steps or, if the run's time is limited, its share of it; by the first rank, for all.
    """
    autoencoder = Autoencoder(shape, config.latent_dim).to(data.device)

    def weights() -> dict[str, Tensor]:
        seconds, words = config.seconds * config.autoencoder_share, "training the autoencoder"
        autoencoder.train_on(data, config.autoencoder_steps, rng, seconds, words)
        return {name: weight.cpu() for name, weight in autoencoder.state_dict().items()}

    autoencoder.load_state_dict(by_first(weights) if learnt is None else learnt)
    return autoencoder.eval()
