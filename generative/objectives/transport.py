"""Objectives that need no critic: the generator follows a transport plan between minibatches.

With the plan P held fixed (envelope theorem; Theorem B.1 of the IPOT paper) the gradient of the
transport cost <P, C>, C the squared distances, is 2 (x_i / n - sum_j P_ij y_j) for each point.
"""

import torch
from torch import Tensor, nn

import ipot
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
        # The same plan as for the cost scaled to [0, 1], whose step is config.beta.
        beta = self.config.beta * cost.max().clamp_min(torch.finfo(cost.dtype).tiny)
        return ipot.solve(cost, beta=beta, max_iter=self.config.num_proximal)


class IpotExact(Ipot):
    """The Wasserstein distance, by exact plans; on the line they are found by sorting."""

    def solve(self, x: Tensor, y: Tensor) -> ipot.Transport:
        return ipot.solve_sample(x, y, exact=True)


class Sinkhorn(Ipot):
    """The entropic transport cost S(x, y), or the debiased S(x, y) - S(x, x) / 2 - S(y, y) / 2.

    S(x, y) = min <P, C> + reg KL(P | a b^T), the entropy included: for this the envelope gradient
    is right (Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
    Divergences", AISTATS 2019), where Genevay, Peyre, Cuturi (2018) leave it out and differentiate
    through the iterations. S(x, x) depends on x twice, whence the factor 1 of its gradient here.
    """

    def update(self, batches: Batches) -> dict[str, Tensor]:
        """`loss` is S(x, y), or its debiased form, at the iterations' dual variables."""
        noise, y = batches.noise(), batches.points()
        x = self.generator(noise)
        points = x.detach()
        plan, loss = self._entropic(points, y)
        destination = len(x) * (plan @ y)
        if self.config.debiased:
            own, self_cost = self._entropic(points, points)
            destination += points - len(x) * (own @ points)
            loss = loss - self_cost / 2 - self._entropic(y, y)[1] / 2
        self.follow(noise, x, destination)
        return {"loss": loss}

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
            v = torch.ones_like(g)
            for _ in range(max(1, self.config.num_proximal // 10)):
                u = m / (kernel @ v)
                v = n / (u @ kernel)
            f, g = f + eps * u.log(), g + eps * v.log()
        return kernel.mul_(u[:, None]).mul_(v / (n * m)), f.mean() + g.mean()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, d) and (m, d) to (n, m), by |x|^2 + |y|^2 - 2 <x, y>."""
    cost = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return cost.add_(x.square().sum(1, keepdim=True)).clamp_min_(0)
