"""Flow matching along exact minibatch couplings."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exactot import solve_sample
from generative.batches import Batches, Noise
from generative.generators import STEPS, Flow
from generative.objectives.objective import Objective, descend
from generative.ranks import of_all, uniform
from generative.rules import Count, Flag, one_of


def paired(x: Tensor, y: Tensor) -> tuple[Tensor]:
    """The data y (n, d) in the order of their partners x (n, d)."""
    return (y[solve_sample(x, y).plan.argmax(1)],)


class OtCfm(Objective):
    """Tong et al., "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal
    Transport", TMLR 2024, section 4.3, with sigma = 0.

    An exact plan pairs noise x with data y. The velocity at (1 - t) x + t y descends its squared
    distance to y - x. Paths of pairs from a plan hardly cross, so that few steps follow them well.
    """

    @dataclass(kw_only=True)
    class Settings(Objective.Settings):
        lr: float = 1e-5
        average: float = 0.97
        latent: str = "gaussian"
        z_dim: int = 0
        g_dim: int = 256
        flow_steps: Count = 4  # from noise to samples
        flow_method: one_of(STEPS) = "midpoint"  # of each step; euler takes half the work
        coupled: Flag = True  # pair noise and data by exact plans; otherwise at random
        updates_per_plan: Count = 8  # updates, at fresh times, on the pairs of each plan

    @dataclass(kw_only=True)
    class LatentSettings:
        lr: float = 4e-5
        average: float = 0.75
        g_dim: int = 384

    SpaceSettings: ClassVar = {"latent": LatentSettings}

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=config.lr, fused=True)
        self.parts = {"optimizer": self.optimizer}

    @classmethod
    def check(cls, config, dim: int) -> None:
        if getattr(config, "attention", False):
            raise ValueError("attention: got True; ot-cfm, whose network sees rows, accepts False")
        if config.z_dim not in (0, dim):
            raise ValueError(
                f"z_dim: got {config.z_dim}; accepts {dim}, the data's, or 0: a flow keeps "
                f"the number of dimensions"
            )

    @classmethod
    def make_generator(cls, config, noise: Noise, x_dim: int) -> Flow:
        return Flow(noise, config.g_dim, x_dim, config.flow_steps, config.flow_method)

    def update(self) -> dict[str, Tensor]:
        """`loss` is the mean squared distance between the velocity and y - x, in units of the
        data's standard deviation; it does not fall to 0 where paths cross.
        """
        generator = self.generator
        std = generator.std.where(generator.std > 0, 1)  # a column may be constant
        y = ((self.batches.points() - generator.mean) / std).float()
        x = self.batches.noise()[:, : y.shape[1]]
        if self.config.coupled:
            (y,) = of_all(paired, x, y, rng=self.batches.rng)
        for _ in range(self.config.updates_per_plan):
            t = uniform(x, self.batches.rng)
            found = generator.velocity(torch.lerp(x, y, t), t)
            loss = (found - (y - x)).square().sum(1).mean()
            descend(self.optimizer, loss)
        return {"loss": loss.detach()}
