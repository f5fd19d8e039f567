"""The generator follows a transport plan between minibatches; no critic.

With the plan P held fixed (envelope theorem; Theorem B.1 of the IPOT paper) the gradient of the
transport cost <P, C>, C the squared distances, is 2 / n (x_i - d_i) for each point, where
d_i = n sum_j P_ij y_j is its destination. The generator descends this gradient, whose length is
bounded for each point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generative.batches import Batches
from generative.objectives.objective import Objective, descend
from generative.rules import Scale, integers


class FollowPlan(Objective):
    """Each point x_i of a minibatch moves to its destination d_i, which subclasses choose.

    The pull of a destination is bounded, as in Huber's loss. A few points change their mode from
    plan to plan. Their squared distances would drown the others, and draw them between the modes.
    """

    @dataclass(kw_only=True)
    class Settings(Objective.Settings):
        updates_per_plan: integers(0) = 0  # updates on each plan; 0: 7 on the line, otherwise 16
        huber: Scale = 0.05  # distance (standard units) beyond which a destination pulls no more

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.optimizer = torch.optim.Adam(
            generator.parameters(), lr=config.lr, betas=(0.5, 0.999), fused=True
        )
        self.parts = {"optimizer": self.optimizer}
        on_line = batches.data.shape[1] == 1
        self.updates = config.updates_per_plan or (7 if on_line else 16)

    def update(self) -> dict[str, Tensor]:
        """`loss` is the transport cost between the minibatches."""
        noise, y = self.batches.noise(), self.batches.points()
        x = self.generator(noise)
        destination, cost = self.destination(x.detach(), y)
        for step in range(self.updates):
            x = self.generator(noise) if step else x
            descend(self.optimizer, bounded_squares(x - destination, self.config.huber).mean())
        return {"loss": cost}

    def destination(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where each point of x (n, d) goes, (n, d), and the transport cost, for y (n, d)."""
        raise NotImplementedError


def bounded_squares(z: Tensor, reach: float) -> Tensor:
    """Squared lengths of vectors z (n, d), shape (n,), which grow linearly beyond `reach`."""
    return 2 * reach * ((z.square().sum(1) + reach**2).sqrt() - reach)
