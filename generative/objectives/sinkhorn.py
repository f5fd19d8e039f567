"""The entropic transport cost, debiased or plain."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from exactot.costs import squared_distances
from generative.objectives.plan import FollowPlan
from generative.rules import Count, Flag, Scale


class Sinkhorn(FollowPlan):
    """The entropic transport cost S(x, y), or the debiased S(x, y) - S(x, x) / 2 - S(y, y) / 2.

    S(x, y) = min <P, C> + reg KL(P | a b^T), the entropy included: for this the envelope gradient
    is right (Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
    Divergences", AISTATS 2019), where Genevay, Peyre, Cuturi (2018) leave it out and differentiate
    through the iterations. S(x, x) depends on x twice, whence the factor 1 of its gradient here.
    """

    @dataclass(kw_only=True)
    class Settings(FollowPlan.Settings):
        reg: Scale = 0.1  # regularisation, in units of squared distance (standard units)
        debiased: Flag = True  # debias the cost; plain, its samples shrink
        num_proximal: Count = 50  # sweeps for each plan, in ten stages

    advice: ClassVar = "a smaller lr or a larger reg"

    @classmethod
    def check(cls, config, dim: int) -> None:
        if lines := getattr(config, "directions", 0):
            raise ValueError(f"directions: got {lines}; sinkhorn, which needs its plans, accepts 0")

    def second(self) -> None:
        """None: it is debiased by the samples themselves."""

    def destination(
        self, x: Tensor, y: Tensor, second: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The cost is S(x, y), or its debiased form, at the iterations' dual variables."""
        plan, cost = self._entropic(x, y)
        destination = len(x) * (plan @ y)
        if self.config.debiased:
            own, self_cost = self._entropic(x, x)
            destination += x - len(x) * (own @ x)
            cost = cost - self_cost / 2 - self._entropic(y, y)[1] / 2
        return destination, cost

    def _entropic(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The plan and the dual value, of `num_proximal` sweeps.

        In ten stages, the last three at `reg`, those before from the largest cost down to it. Each
        has a kernel relative to the potentials of the one before, so that nothing underflows.
        """
        C, n, m = squared_distances(x, y), len(x), len(y)
        f, g = C.new_zeros(n), C.new_zeros(m)
        largest = C.max().clamp_min(self.config.reg)
        for stage in range(10):
            eps = self.config.reg * (largest / self.config.reg) ** max(0, 1 - stage / 7)
            kernel = ((f[:, None] + g - C) / eps).exp_()
            u = torch.ones_like(f)
            for _ in range(max(1, self.config.num_proximal // 10)):
                v = n / (u @ kernel)
                u = m / (kernel @ v)  # last: each point of x has its whole mass, wherever 0 is
            f, g = f + eps * u.log(), g + eps * v.log()
        return kernel.mul_(u[:, None]).mul_(v / (n * m)), f.mean() + g.mean()
