"""What a generator turns into samples."""

import torch
from torch import Tensor

LATENTS = ("uniform", "gaussian", "gaussians")


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


class Noise:
    """Noise of a run's settings; it needs no data."""

    def __init__(self, config, rng: torch.Generator):
        """rng draws minibatches, on its device."""
        self.config, self.rng = config, rng
        if config.latent == "gaussians":  # their centres are the same on all devices
            own = torch.Generator().manual_seed(config.seed + 4)
            shape = config.latent_centres, config.z_dim
            centres = torch.randn(shape, generator=own, dtype=torch.float32)
            self.centres = centres.to(rng.device)

    def __call__(
        self, n: int | None = None, rng: torch.Generator | None = None, independent: bool = False
    ) -> Tensor:
        """Noise (n, z_dim); a minibatch of the training if nothing is said."""
        shape, rng = (n or self.config.batchsize, self.config.z_dim), rng or self.rng
        kind = {"generator": rng, "device": rng.device, "dtype": torch.float32}
        even = lattice(*shape, rng) if self.config.even and not independent else None
        if self.config.latent == "uniform":
            return 2 * (torch.rand(shape, **kind) if even is None else even) - 1
        if even is None:
            z = torch.randn(shape, **kind)
        else:
            z = torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6))
        if self.config.latent == "gaussian":
            return z
        count = len(self.centres)
        chosen = torch.randint(count, shape[:1], generator=rng, device=rng.device)
        return self.centres[chosen] + self.config.latent_sigma * z
