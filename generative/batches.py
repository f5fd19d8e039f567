"""Noise of a minibatch."""

import torch
from torch import Tensor


def lattice(n: int, dim: int, rng: torch.Generator) -> Tensor:
    """Points (n, dim) that fill the unit cube evenly: a lattice with a random shift (Cranley,
    Patterson 1976), so that each of them is uniform.

    Independent noise has gaps and clusters, for which minibatch plans move points between modes.
    The steps are powers of the root r of x^(dim + 1) = x + 1, the golden ratio for dim = 1.
    """
    r = 1.5
    for _ in range(60):
        r = (1 + r) ** (1 / (dim + 1))
    steps = r ** -torch.arange(1, dim + 1, dtype=torch.float64, device=rng.device)
    shift = torch.rand(dim, generator=rng, dtype=torch.float64, device=rng.device)
    count = torch.arange(n, dtype=torch.float64, device=rng.device)[:, None]
    return torch.frac(count * steps + shift).float()
