"""Layers, and networks beside the generator."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose weights are yet to be set, whatever torch's defaults are."""
    return skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)


@torch.no_grad()
def mirror(weights: Tensor) -> None:
    """Make the second half of the rows the first one with its sign changed, in place."""
    half = len(weights) // 2
    weights[half : 2 * half] = -weights[:half]


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
            layers += [linear(size, following), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, linear(width, 1))
        self.register_buffer("mean", data.mean(0))
        std = data.std(0)
        self.register_buffer("std", std.where(std > 0, 1))
        self.to(data.device)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, 0.2, generator=rng)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, x_dim) to (n,)."""
        return self.layers((x - self.mean) / self.std)[:, 0]
