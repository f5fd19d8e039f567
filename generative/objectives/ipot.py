"""The generator follows a transport plan between minibatches; no critic.

With the plan P held fixed (envelope theorem; Theorem B.1 of the IPOT paper) the gradient of the
transport cost <P, C>, C the squared distances, is 2 (x_i / n - sum_j P_ij y_j) for each point.
"""

import torch
from torch import Tensor, nn

import ipot
from exactot import solve_sample
from exactot.costs import squared_distances
from generative.objectives.objective import Batches, Objective, descend


class Ipot(Objective):
    """The Wasserstein distance, by the proximal iterations of IPOT."""

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=config.lr, fused=True)
        self.parts = {"optimizer": self.optimizer}

    def update(self, batches: Batches) -> dict[str, Tensor]:
        """`loss` is the squared W2 distance between the minibatches."""
        noise, y = batches.noise(), batches.points()
        x = self.generator(noise)
        transport = self.solve(x.detach(), y)
        self.follow(noise, x, len(x) * (transport.plan @ y))
        return {"loss": transport.value}

    def follow(self, noise: Tensor, x: Tensor, destination: Tensor) -> None:
        """Steps of x = generator(noise) towards n sum_j P_ij y_j (n, d), held fixed.

        The mean of squared distances to them has the envelope gradient at the first x; more steps
        than one (`updates_per_plan`) bring the generator nearer to where the plan sends it.
        """
        for step in range(self.config.updates_per_plan):
            x = self.generator(noise) if step else x
            descend(self.optimizer, (x - destination).square().sum(1).mean())

    def solve(self, x: Tensor, y: Tensor) -> ipot.Transport:
        cost = squared_distances(x, y)
        largest = cost.max()  # with it, the plan is that of the cost scaled to [0, 1]
        largest = largest.where(largest > torch.finfo(cost.dtype).tiny, 1)  # all points are equal
        beta = self.config.beta * largest
        return ipot.solve(cost, beta=beta, max_iter=self.config.num_proximal)


class IpotExact(Ipot):
    """The Wasserstein distance, by exact plans; on the line they are found by sorting."""

    def solve(self, x: Tensor, y: Tensor) -> ipot.Transport:
        return solve_sample(x, y)
