"""Wasserstein GANs: a critic f that is kept Lipschitz estimates W1 from its dual."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from generative.objectives.objective import Batches, CriticObjective, descend


class Wgan(CriticObjective):
    """Arjovsky, Chintala, Bottou, "Wasserstein GAN", ICML 2017: the critic's weights are clipped.

    The critic descends mean f(G(z)) - mean f(y), the generator -mean f(G(z)). As with its authors
    the critic takes 100 steps, not `n_critic`, before each of the first 25 updates of the generator
    and before every 500th.
    """

    defaults: ClassVar = {"lr": 5e-5, "batchsize": 64}
    one_size: ClassVar = True

    def make_optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(network.parameters(), lr=lr)

    def update(self, batches: Batches) -> dict[str, Tensor]:
        """`loss` is the critic's estimate of the distance, in units of its slope; it is positive
        unless the critic lags behind.
        """
        for _ in range(self.critic_steps(batches.updates)):
            with torch.no_grad():
                x = self.generator(batches.noise())
            loss = self.critic_step(x, batches.points())
        self.critic.requires_grad_(False)
        descend(self.optimizer, -self.critic(self.generator(batches.noise())).mean())
        self.critic.requires_grad_(True)
        return {"loss": -loss}

    def critic_steps(self, updates: int) -> int:
        return 100 if updates < 25 or updates % 500 == 0 else self.config.n_critic

    def critic_step(self, x: Tensor, y: Tensor) -> Tensor:
        """A step on samples x and data y; the loss without its penalty."""
        of_x, of_y = self.critic(torch.cat((x, y))).split((len(x), len(y)))
        loss = of_x.mean() - of_y.mean()
        descend(self.critic_optimizer, loss + self.penalty(x, y))
        self.constrain()
        return loss.detach()

    def penalty(self, x: Tensor, y: Tensor) -> Tensor | float:
        return 0.0

    @torch.no_grad()
    def constrain(self) -> None:
        for weight in self.critic.parameters():
            weight.clamp_(-self.config.clip, self.config.clip)


class WganGp(Wgan):
    """Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved Training of Wasserstein GANs",
    NeurIPS 2017: the critic pays for a slope other than 1 between samples and data.
    """

    defaults: ClassVar = {"batchsize": 256}

    make_optimizer = CriticObjective.make_optimizer

    def critic_steps(self, updates: int) -> int:
        return self.config.n_critic

    def penalty(self, x: Tensor, y: Tensor) -> Tensor:
        """penalty * mean (|grad f| - 1)^2 at one point between each sample and a datum."""
        share = torch.rand(len(x), 1, generator=self.rng, device=x.device)
        between = torch.lerp(x, y, share).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        # Where f is flat the norm has no derivative; the small term keeps it from being NaN.
        norm = (slope.square().sum(1) + 1e-12).sqrt()
        return self.config.penalty * (norm - 1).square().mean()

    def constrain(self) -> None:
        pass
