"""Layers, critics, and convolutional networks for images.

Images are rows (n, c h w) wherever they meet anything but a convolution.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention
from torch.nn.utils import skip_init
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2  # of LeakyReLU below zero


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose weights are yet to be set, whatever torch's defaults are."""
    return skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)


@torch.no_grad()
def mirror(weights: Tensor) -> None:
    """Make the second half of the rows the first one with its sign changed, in place."""
    half = len(weights) // 2
    weights[half : 2 * half] = -weights[:half]


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down the gradient of a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def moving(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """The rule of an exponential moving average of weights, for torch's AveragedModel.

    The decay grows to its value with the count n of averaged weights, as (1 + n) / (10 + n), so
    that the first weights are forgotten.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        share = 1 - ((1 + count) / (10 + count)).clamp_max(decay)  # read by the device alone
        for mean, weight in zip(averaged, current):
            mean.lerp_(weight, share.to(mean))

    return update


@torch.no_grad()
def initialise(layers: nn.Module, rng: torch.Generator) -> None:
    """Kaiming normal weights and zero biases, drawn by rng, for all linear and convolutional
    layers.

    Of a transposed convolution's k^2 weights for each pair of channels k^2 / stride^2 meet in one
    pixel.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, SLOPE, mode="fan_out", generator=rng)
            layer.weight.mul_(layer.stride[0])
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, SLOPE, generator=rng)
        else:
            continue
        nn.init.zeros_(layer.bias)


class Critic(nn.Module):
    """Samples to one number each: linear layers with LeakyReLU between, no normalisation.

    The data's mean and standard deviation scale the input, as they do the generator's output.
    """

    def __init__(self, data: Tensor, width: int, rng: torch.Generator, depth: int = 3):
        """data (n, x_dim) sets the scale and the device; rng draws the weights."""
        super().__init__()
        sizes = [data.shape[1], *[width] * depth]
        layers = []
        for size, following in pairwise(sizes):
            layers += [linear(size, following), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, linear(width, 1))
        self.register_buffer("mean", data.mean(0))
        std = data.std(0)
        self.register_buffer("std", std.where(std > 0, 1))
        self.to(data.device)
        initialise(self.layers, rng)

    def forward(self, x: Tensor) -> Tensor:
        """(n, x_dim) to (n,)."""
        return self.layers((x - self.mean) / self.std)[:, 0]


# --------------------------------------------------------------------------------- Images


class SelfAttention(nn.Module):
    """Each place of an image takes from all others what resembles it, by a gate that is 0 at first.

    Zhang, Goodfellow, Metaxas, Odena, "Self-Attention Generative Adversarial Networks", ICML 2019,
    section 3. Queries and keys have an eighth of the channels, values half of them, as in the code
    of Brock, Donahue, Simonyan (BigGAN, 2019); nothing is pooled.
    """

    def __init__(self, channels: int):
        super().__init__()
        few, half = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = pixelwise(channels, few), pixelwise(channels, few)
        self.value, self.out = pixelwise(channels, half), pixelwise(half, channels)
        self.gate = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same shape."""
        query, key, value = (
            layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        found = scaled_dot_product_attention(query, key, value, scale=1.0)
        found = found.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.gate * self.out(found)


def pixelwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A linear layer for the channels of each pixel."""
    return skip_init(nn.Conv2d, inputs, outputs, 1, dtype=torch.float32)


def downsample(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution to half the height and the width, rounded down."""
    return skip_init(nn.Conv2d, inputs, outputs, 4, 2, 1, dtype=torch.float32)


def upsample(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """A transposed convolution to twice the height and the width."""
    return skip_init(nn.ConvTranspose2d, inputs, outputs, 4, 2, 1, dtype=torch.float32)


class Crop(nn.Module):
    """The first rows and columns of images."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


def convolutional(
    z_dim: int, shape: tuple[int, int, int], width: int, attention: bool
) -> nn.Sequential:
    """Layers from noise (n, z_dim) to rows (n, c h w) of entries from -1 to 1; weights not set.

    A linear layer makes a quarter of the size, with twice `width` channels; two transposed
    convolutions follow (Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks", ICLR 2016).

    Parameters
    ----------
    shape : (c, h, w)
    attention : bool
        Whether half-size images pass through self-attention.
    """
    channels, height, across = shape
    small = 2 * width, -(-height // 4), -(-across // 4)
    return nn.Sequential(
        linear(z_dim, small[0] * small[1] * small[2]),
        nn.Unflatten(1, small),
        nn.BatchNorm2d(2 * width, dtype=torch.float32),
        nn.LeakyReLU(SLOPE),
        upsample(2 * width, width),
        nn.BatchNorm2d(width, dtype=torch.float32),
        nn.LeakyReLU(SLOPE),
        *([SelfAttention(width)] if attention else []),
        upsample(width, channels),
        Crop(height, across),
        nn.Tanh(),
        nn.Flatten(),
    )


class ImageCritic(nn.Module):
    """Images to one number each: two convolutions to a quarter of the size, and a linear layer.

    There is no normalisation, because a penalty on slopes is about each image alone. With attention
    the matrix of each layer's weights has spectral norm 1 (Miyato et al. 2018), as in Zhang et al.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int,
        rng: torch.Generator,
        attention: bool = False,
    ):
        """shape (c, h, w); rng draws the weights, on the device that they are to be on."""
        super().__init__()
        channels, height, across = shape
        self.layers = nn.Sequential(
            nn.Unflatten(1, shape),
            downsample(channels, width),
            nn.LeakyReLU(SLOPE),
            *([SelfAttention(width)] if attention else []),
            downsample(width, 2 * width),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
            linear(2 * width * (height // 4) * (across // 4), 1),
        )
        self.to(rng.device)
        initialise(self.layers, rng)
        if attention:
            for layer in [*self.layers.modules()]:
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    bound_norm(layer, rng)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c h w) to (n,)."""
        return self.layers(x)[:, 0]


@torch.no_grad()
def bound_norm(layer: nn.Module, rng: torch.Generator) -> None:
    """Divide the layer's weight by its spectral norm, which power iterations estimate.

    torch starts them by its global random numbers, which are left as they were; rng draws others.
    """
    device = rng.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        spectral_norm(layer)
    weight = layer.parametrizations.weight.original.flatten(1)
    v = torch.randn(weight.shape[1], generator=rng, device=device, dtype=weight.dtype)
    for _ in range(15):
        u = normalize(weight @ v, dim=0)
        v = normalize(weight.T @ u, dim=0)
    for buffer, value in zip(layer.parametrizations.weight[0].buffers(), (u, v), strict=True):
        buffer.copy_(value)
