"""Wasserstein GAN: a critic f that is kept Lipschitz estimates W1 from its dual."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from generative.objectives.objective import Batches, CriticObjective, descend


class WassersteinCritic(CriticObjective):
    """The critic descends mean f(G(z)) - mean f(y), `n_critic` times, the generator
    -mean f(G(z)). What keeps the critic's slope bounded is left to those who inherit.
    """

    one_size: ClassVar = True

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
        """How many before this update of the generator."""
        return self.config.n_critic

    def critic_step(self, x: Tensor, y: Tensor) -> Tensor:
        """A step on samples x and data y; the loss without its penalty."""
        of_x, of_y = self.critic(torch.cat((x, y))).split((len(x), len(y)))
        loss = of_x.mean() - of_y.mean()
        descend(self.critic_optimizer, loss + self.penalty(x, y))
        return loss.detach()

    def penalty(self, x: Tensor, y: Tensor) -> Tensor | float:
        """Added to the critic's loss."""
        return 0.0


class Wgan(WassersteinCritic):
    """Arjovsky, Chintala, Bottou, "Wasserstein GAN", ICML 2017: the critic's weights are clipped.

    As with its authors the critic takes 100 steps, not `n_critic`, before each of the first 25
    updates of the generator and before every 500th.
    """

    defaults: ClassVar = {"lr": 5e-5, "batchsize": 64}
    advice: ClassVar = "a smaller lr, critic_lr or clip"

    def make_optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(network.parameters(), lr=lr)

    def critic_steps(self, updates: int) -> int:
        return 100 if updates < 25 or updates % 500 == 0 else self.config.n_critic

    def critic_step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().critic_step(x, y)
        with torch.no_grad():
            for weight in self.critic.parameters():
                weight.clamp_(-self.config.clip, self.config.clip)
        return loss
