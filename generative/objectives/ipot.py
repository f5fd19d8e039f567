"""The Wasserstein distance, by the proximal iterations of IPOT."""

from dataclasses import dataclass

import torch
from torch import Tensor

import ipot
from exactot.costs import squared_distances
from generative.objectives.plan import FollowPlan
from generative.rules import Count, Scale


class Ipot(FollowPlan):
    """Destinations by IPOT's plan.

    A plan after few iterations spreads each point's mass, which draws destinations together.
    """

    @dataclass(kw_only=True)
    class Settings(FollowPlan.Settings):
        beta: Scale
        num_proximal: Count = 112  # IPOT iterations for each plan

    def plan(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """beta is in units of the largest cost, as in the published loop."""
        cost = squared_distances(x, y)
        largest = cost.max()
        largest = largest.where(largest > torch.finfo(cost.dtype).tiny, 1)  # all points are equal
        beta = self.config.beta * largest
        transport = ipot.solve(cost, beta=beta, max_iter=self.config.num_proximal)
        return transport.plan, transport.value
