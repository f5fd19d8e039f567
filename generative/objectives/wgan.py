"""Wasserstein GAN: a critic f that is kept Lipschitz estimates W1 from its dual."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from generative.batches import Batches
from generative.objectives.objective import CriticObjective, descend
from generative.rules import Count, Rate


class WassersteinCritic(CriticObjective):
    """The critic descends mean f(G(z)) - mean f(y), `n_critic` times, the generator
    -mean f(G(z)). What keeps the critic's slope bounded is left to those who inherit.
    """

    @dataclass(kw_only=True)
    class Settings(CriticObjective.Settings):
        n_critic: Count = 5  # steps of the critic for each of the generator

    def update(self) -> dict[str, Tensor]:
        """`loss` is the critic's estimate of the distance, in units of its slope; it is positive
        unless the critic lags behind.
        """
        for _ in range(self.critic_steps()):
            with torch.no_grad():
                x = self.generator(self.batches.noise())
            loss = self.critic_step(x, self.batches.points())
        self.critic.requires_grad_(False)
        descend(self.optimizer, -self.critic(self.generator(self.batches.noise())).mean())
        self.critic.requires_grad_(True)
        return {"loss": -loss}

    def critic_steps(self) -> int:
        """How many before the next update of the generator."""
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

    @dataclass(kw_only=True)
    class Settings(WassersteinCritic.Settings):
        lr: float = 5e-5
        critic_lr: Rate = 5e-5  # the critic's learning rate
        batchsize: int = 64
        clip: Rate = 0.01  # largest weight of the critic

    advice: ClassVar = "a smaller lr, critic_lr or clip"

    @classmethod
    def check(cls, config, dim: int) -> None:
        if getattr(config, "attention", False):  # its spectral norm undoes the clipping
            raise ValueError("attention: got True; wgan, which clips weights, accepts False")

    def make_optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(network.parameters(), lr=lr)

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.updates = 0  # of the generator

    def update(self) -> dict[str, Tensor]:
        logged = super().update()
        self.updates += 1
        return logged

    def critic_steps(self) -> int:
        at_first = self.updates < 25 or self.updates % 500 == 0
        return 100 if at_first else self.config.n_critic

    def critic_step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().critic_step(x, y)
        with torch.no_grad():
            for weight in self.critic.parameters():
                weight.clamp_(-self.config.clip, self.config.clip)
        return loss

    def state_dict(self) -> dict:
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]
