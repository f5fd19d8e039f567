"""What the training script asks of an objective."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from generative.networks import Critic


class Batches(Protocol):
    """Where an objective gets its points: tensors on the generator's device."""

    data: Tensor  # the whole data set, (data_size, x_dim)
    rng: torch.Generator  # all randomness comes from it
    updates: int  # calls of Objective.update so far

    def noise(self) -> Tensor:
        """A new minibatch of noise, (batchsize, z_dim)."""

    def points(self) -> Tensor:
        """The next minibatch of the data set, (batchsize or target_batchsize, x_dim)."""


class Objective:
    """A rule to update a generator; it owns what else it trains, and nothing more.

    Attributes
    ----------
    defaults : dict
        By field of Config, values for fields that the user leaves alone: what its authors use.
    one_size : bool
        Whether it takes as many data as samples in a minibatch, so no `target_batchsize`.
    maps_source : bool
        Whether its noise begins with a point of the source, so that z_dim is at least x_dim.
    advice : str
        What to try if it diverges.
    parts : dict
        The optimisers and networks that it owns, by name: what a checkpoint keeps of it.
    """

    defaults: ClassVar[dict[str, object]] = {}
    one_size: ClassVar[bool] = False
    maps_source: ClassVar[bool] = False
    advice: ClassVar[str] = "a smaller lr"

    def __init__(self, config, generator: nn.Module, batches: Batches):
        self.config, self.generator, self.rng = config, generator, batches.rng
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {}

    def update(self, batches: Batches) -> dict[str, Tensor]:
        """Learn from a minibatch: update the generator, after the critic if there is one.

        Returns 0-d tensors to log, "loss" among them; nothing is read back from the device.
        """
        raise NotImplementedError

    def set_rates(self, factor: float) -> None:
        """Learning rates that are this share of the first ones."""
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

    advice: ClassVar = "a smaller lr or critic_lr"

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.critic = Critic(batches.data, config.c_dim, batches.rng)
        self.optimizer = self.make_optimizer(generator, config.lr)
        self.critic_optimizer = self.make_optimizer(self.critic, config.critic_lr or config.lr)
        self.parts = {
            "critic": self.critic,
            "optimizer": self.optimizer,
            "critic_optimizer": self.critic_optimizer,
        }

    def make_optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.9), fused=True)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down the gradient of a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
