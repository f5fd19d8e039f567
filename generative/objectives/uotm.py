"""Unbalanced optimal transport maps: the generator moves a source onto most of the data."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from generative.batches import Batches
from generative.objectives.objective import CriticObjective, descend
from generative.rules import Count, Scale, Weight, one_of


def _exponential(x: Tensor) -> Tensor:
    """exp(x) - 1, from x = 10 on its tangent, so that a bad start cannot overflow."""
    return x.clamp_max(10).expm1() + math.exp(10) * (x - 10).clamp_min(0)


CONJUGATES = {
    "linear": lambda x: x,
    "kl": _exponential,
    "chi2": lambda x: (x + 2).clamp_min(0).square() / 4 - 1,
    "softplus": lambda x: 2 * softplus(x) - 2 * math.log(2),
}
"""Psi*, the convex conjugate of the price of unequal masses; value 0 and slope 1 at 0. With
"linear" the masses must be equal, which is OTM (Rout, Korotin, Burnaev, ICLR 2022).
"""


class Uotm(CriticObjective):
    """Choi, Choi, Kang, "Generative Modeling through the Semi-dual Formulation of Unbalanced
    Optimal Transport", NeurIPS 2023.

    The generator is a map T(x, z): the first x_dim coordinates of the noise are a point x of the
    source, others z vary what x is mapped to. With c = tau / 2 |x - T(x, z)|^2 the potential v
    descends mean Psi*(v(T) - c) + mean Psi*(-v(y)) + penalty mean |grad_x v(T(x, z))|^2, `n_critic`
    times for the same x and y, then T descends mean c - v(T).
    """

    @dataclass(kw_only=True)
    class Settings(CriticObjective.Settings):
        latent: str = "gaussian"
        z_dim: int = 0
        batchsize: int = 256
        n_critic: Count = 5  # steps of the potential for each of the map
        conjugate: one_of(CONJUGATES) = "kl"  # price of unequal masses; linear: OTM
        tau: Scale = 0.1  # weight of the transport cost
        penalty: Weight = 0.01  # weight of the penalty on the potential's slope

    @dataclass(kw_only=True)
    class PixelSettings(CriticObjective.PixelSettings):
        """As its authors' on CIFAR-10, with the penalty of their experiments on the plane."""

        lr: float = 1.6e-4
        batchsize: int = 128
        n_critic: Count = 1  # steps of the potential for each of the map
        tau: Scale = 0.001  # weight of the transport cost

    SpaceSettings: ClassVar = {"pixels": PixelSettings}
    advice: ClassVar = "a smaller lr or critic_lr, or a larger penalty"

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.dim = batches.data.shape[1]  # of the source and of the data

    @classmethod
    def check(cls, config, dim: int) -> None:
        if 0 < config.z_dim < dim:
            raise ValueError(
                f"z_dim: got {config.z_dim}; accepts {dim} or more: the noise begins "
                f"with a point of the source"
            )

    def make_optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=lr, fused=True)

    def update(self) -> dict[str, Tensor]:
        """`loss` is the potential's: minus an estimate of the unbalanced transport cost, a lower
        bound of it where T is optimal for v.
        """
        noise, y = self.batches.noise(), self.batches.points()
        source = noise[:, : self.dim]
        self.generator.requires_grad_(False)
        for _ in range(self.config.n_critic):
            loss = self.critic_step(source, noise, y)
            noise = torch.cat((source, self.batches.noise()[:, self.dim :]), 1)
        self.generator.requires_grad_(True)
        self.critic.requires_grad_(False)
        samples = self.generator(noise)
        descend(self.optimizer, (self.cost(source, samples) - self.critic(samples)).mean())
        self.critic.requires_grad_(True)
        return {"loss": loss}

    def critic_step(self, source: Tensor, noise: Tensor, y: Tensor) -> Tensor:
        """A step of the potential; the loss without its penalty."""
        conjugate, penalty = CONJUGATES[self.config.conjugate], self.config.penalty
        with torch.no_grad():
            samples = self.generator(noise)
        of_samples, of_y = self.critic(torch.cat((samples, y))).split((len(samples), len(y)))
        cost = self.cost(source, samples)
        loss = conjugate(of_samples - cost).mean() + conjugate(-of_y).mean()
        steepness = self.steepness(noise) if penalty > 0 else 0.0
        descend(self.critic_optimizer, loss + penalty * steepness)
        return loss.detach()

    def steepness(self, noise: Tensor) -> Tensor:
        """mean |grad_x v(T(x, z))|^2, x being what the noise begins with.

        BatchNorm takes its running statistics here: with those of the minibatch the slope at a
        point would be about the others too.
        """
        noise, mode = noise.detach().requires_grad_(), self.generator.training
        self.generator.eval()
        of_samples = self.critic(self.generator(noise))
        self.generator.train(mode)
        (slope,) = torch.autograd.grad(of_samples.sum(), noise, create_graph=True)
        return slope[:, : self.dim].square().sum(1).mean()

    def cost(self, source: Tensor, samples: Tensor) -> Tensor:
        return self.config.tau / 2 * (source - samples).square().sum(1)
