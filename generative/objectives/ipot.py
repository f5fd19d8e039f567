"""The Wasserstein distance, by the proximal iterations of IPOT."""

from dataclasses import dataclass

import torch
from torch import Tensor

import ipot
from exactot.costs import squared_distances
from generative.objectives.plan import FollowPlan
from generative.rules import Count, Flag, Scale


class Ipot(FollowPlan):
    """Destinations n sum_j P_ij y_j by IPOT's plan P, debiased or not.

    A plan after few iterations spreads each point's mass, which draws destinations together. The
    plan S of as many iterations between x and itself spreads them as much; the debiased destination
    x_i + n sum_j P_ij y_j - n sum_j S_ij x_j takes that away. With exact plans S is the identity.
    """

    @dataclass(kw_only=True)
    class Settings(FollowPlan.Settings):
        beta: Scale
        num_proximal: Count = 112  # IPOT iterations for each plan
        debiased: Flag = False  # take away what few iterations do to points, by a second plan

    def destination(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        transport = self.solve(x, y)
        destination = len(x) * (transport.plan @ y)
        if self.config.debiased:
            destination += x - len(x) * (self.solve(x, x).plan @ x)
        return destination, transport.value

    def solve(self, x: Tensor, y: Tensor) -> ipot.Transport:
        """beta is in units of the largest cost, as in the published loop."""
        cost = squared_distances(x, y)
        largest = cost.max()
        largest = largest.where(largest > torch.finfo(cost.dtype).tiny, 1)  # all points are equal
        beta = self.config.beta * largest
        return ipot.solve(cost, beta=beta, max_iter=self.config.num_proximal)
