"""What the training script asks of an objective."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from generative.batches import Batches, Noise
from generative.generators import Sampler
from generative.networks import Critic, ImageCritic
from generative.ranks import averaged_
from generative.rules import Count, Rate


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down the mean, over the ranks, of a loss of their rows."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    averaged_(x.grad for group in optimizer.param_groups for x in group["params"])
    optimizer.step()


class Objective:
    """A rule to update a generator; it owns what else it trains, and nothing more.

    Attributes
    ----------
    Settings : dataclass
        The settings that only this objective reads, and its own defaults of those in Config (mostly
        its authors'). A field without a default is one of Config that other objectives ignore.
    SpaceSettings : dict of dataclasses
        More of them, and other defaults, for images that are compared in a space of this name.
    advice : str
        What to try if it diverges.
    parts : dict
        The optimisers and networks that it owns, by name: what a checkpoint keeps of it.
    """

    @dataclass(kw_only=True)
    class Settings:
        """No settings of its own."""

    SpaceSettings: ClassVar[dict[str, type]] = {}

    advice: ClassVar[str] = "a smaller lr"

    def __init__(self, config, generator: nn.Module, batches: Batches):
        """`config` has the fields of Config and of the objective's own Settings."""
        self.config, self.generator, self.batches = config, generator, batches
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {}

    @classmethod
    def check(cls, config, dim: int) -> None:
        """Refuse settings that do not fit data of `dim` dimensions, with a ValueError that names
        the field.
        """

    @classmethod
    def make_generator(cls, config, noise: Noise, x_dim: int) -> Sampler | None:
        """The network that the objective needs, if that is not the usual one."""

    def update(self) -> dict[str, Tensor]:
        """Learn from a minibatch: update the generator, after the critic if there is one.

        Returns 0-d tensors to log, "loss" among them; nothing is read back from the device.
        """
        raise NotImplementedError

    def set_rates(self, factor: float) -> None:
        """Learning rates that are `factor` times those of the settings."""
        for part in self.parts.values():
            if isinstance(part, torch.optim.Optimizer):
                for group in part.param_groups:
                    group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


class CriticObjective(Objective):
    """An objective with a critic: `critic`, `critic_optimizer` and the generator's `optimizer`."""

    @dataclass(kw_only=True)
    class Settings(Objective.Settings):
        """A critic's, and what is usual with one: a constant rate and independent minibatches."""

        critic_lr: Rate = 1e-4  # the critic's learning rate
        c_dim: Count = 128  # width of the critic's hidden layers
        lr_factor: float = 1.0
        stratified: bool = False

    @dataclass(kw_only=True)
    class PixelSettings:
        c_dim: Count = 32  # width of the critic's first convolution; the second has twice as many

    SpaceSettings: ClassVar = {"pixels": PixelSettings}
    advice: ClassVar = "a smaller lr or critic_lr"

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        if batches.shape is None:
            self.critic = Critic(batches.data, config.c_dim, batches.rng)
        else:
            self.critic = ImageCritic(batches.shape, config.c_dim, batches.rng, config.attention)
        self.optimizer = self.make_optimizer(generator, config.lr)
        self.critic_optimizer = self.make_optimizer(self.critic, config.critic_lr)
        self.parts = {
            "critic": self.critic,
            "optimizer": self.optimizer,
            "critic_optimizer": self.critic_optimizer,
        }

    def make_optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.9), fused=True)
