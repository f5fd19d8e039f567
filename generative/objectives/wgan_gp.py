"""Wasserstein GAN with a gradient penalty."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from generative.objectives.wgan import WassersteinCritic
from generative.ranks import uniform
from generative.rules import Weight


class WganGp(WassersteinCritic):
    """Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved Training of Wasserstein GANs",
    NeurIPS 2017: the critic pays for a slope other than 1 between samples and data. Settings are
    those of its toy experiments, but for the width of the critic, 512 there.
    """

    @dataclass(kw_only=True)
    class Settings(WassersteinCritic.Settings):
        batchsize: int = 256
        latent: str = "gaussian"
        penalty: Weight = 0.1  # weight of the penalty on slopes of the critic other than 1

    @dataclass(kw_only=True)
    class PixelSettings(WassersteinCritic.PixelSettings):
        """As its authors' on images."""

        batchsize: int = 64
        z_dim: int = 128
        penalty: Weight = 10.0  # weight of the penalty on slopes of the critic other than 1

    SpaceSettings: ClassVar = {"pixels": PixelSettings}
    advice: ClassVar = "a smaller lr or critic_lr, or a larger penalty"

    def penalty(self, x: Tensor, y: Tensor) -> Tensor:
        """penalty * mean (|grad f| - 1)^2 at one point between each sample and a datum."""
        between = torch.lerp(x, y, uniform(x, self.batches.rng)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        # Where f is flat the norm has no derivative; the small term keeps it from being NaN.
        norm = (slope.square().sum(1) + 1e-12).sqrt()
        return self.config.penalty * (norm - 1).square().mean()
