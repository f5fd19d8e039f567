"""Assignment: each sample goes to one point of the whole data set, which a critic keeps fair."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from generative import ranks
from generative.batches import LATENTS, Batches
from generative.image_costs import COSTS, cost_matrix, image_cost
from generative.objectives.objective import CriticObjective, descend
from generative.rules import Count, Weight, one_of

WEIGHT = 0.1  # of the squared distance, beside psi
WEIGHTS = {"psnr": 1.0, "ssim": 5.0}  # of other costs
PAIRS = 64  # in a minibatch of the generator; its authors take 16, too few for BatchNorm
ENTRIES = 2**22  # of data that the critic sees at once
BLOCK = 256  # samples assigned at once
LAST = 200  # walk on which the full schedule has grown to its end


class Assignment(CriticObjective):
    """ "Training Generative Networks with General Optimal Transport Distances", arXiv 1910.00535,
    with squared distance: semi-discrete transport, whose dual variable psi is a network.

    In a round samples are assigned to j = argmin psi(y_j) + 0.1 |G(z) - y_j|^2 over all data, n_j
    of them to y_j, and psi descends mean_j psi(y_j) - sum_j n_j psi(y_j) / sum_j n_j, which raises
    the price of points that are taken too often. After `n_critic` rounds the generator walks once
    through the pairs of the last round and descends |G(z) - y_j|^2; an update is a minibatch of
    this walk. Rounds grow from a fifth of the data set to ten times.

    psi starts at zero, so that the first samples go to their nearest data. Images
    may be assigned by psi - PSNR or psi + 5 (1 - SSIM), and the generator may descend 1 - SSIM or
    minus the PSNR.
    """

    @dataclass(kw_only=True)
    class Settings(CriticObjective.Settings):
        lr: float = 5e-5
        data_size: int = 10000
        batchsize: int = 200
        steps_per_epoch: int = 10
        n_critic: Count = 10  # rounds of the critic before each walk of the generator
        latent: one_of((*LATENTS, "gaussians")) = "gaussians"  # noise: or uniform, gaussian
        latent_centres: Count = 10000  # of gaussians: how many, drawn from a standard normal
        latent_sigma: Weight = 0.1  # of gaussians: their standard deviation

    @dataclass(kw_only=True)
    class PixelSettings(CriticObjective.PixelSettings):
        assignment_cost: one_of(COSTS) = "psnr"  # by which samples are assigned; ssim takes long
        generator_cost: one_of(COSTS) = "ssim"  # which the generator descends

    SpaceSettings: ClassVar = {"pixels": PixelSettings}

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.assignment_cost = getattr(config, "assignment_cost", "squared")
        self.generator_cost = getattr(config, "generator_cost", "squared")
        nn.init.zeros_(self.critic.layers[-1].weight)
        self.walks = 0
        self.pairs: tuple[Tensor, Tensor] | None = None  # noise (m, z_dim), indices of data (m,)
        self.place = 0  # in the pairs
        self.uniformity: dict[str, Tensor] = {}

    def update(self) -> dict[str, Tensor]:
        """`loss` is the mean cost between samples and the data that they go to.

        Of the last round `unassigned` is the share of data that no sample goes to, and `dispersion`
        the variance of the counts n_j over their mean: 1 where data are taken at random.
        """
        if self.pairs is None or self.place + 2 > len(self.pairs[0]):
            self.pairs, self.place = self.new_pairs(), 0
            self.walks += 1
        few = slice(self.place, self.place + PAIRS)
        count = len(self.pairs[1][few])
        noise, chosen = (ranks.own(of_pairs[few]) for of_pairs in self.pairs)
        self.place += PAIRS
        pairs = self.generator(noise), self.batches.data[chosen]
        costs = image_cost(self.generator_cost, *pairs, self.batches.shape)
        share = ranks.count() * len(costs) / count  # the mean over the ranks is that over all pairs
        loss = share * costs.mean() if len(costs) else costs.sum()
        descend(self.optimizer, loss)
        return {"loss": loss.detach(), **self.uniformity}

    def new_pairs(self) -> tuple[Tensor, Tensor]:
        """`n_critic` rounds; the noise of the last one and the data that its samples go to."""
        data = self.batches.data
        for _ in range(self.config.n_critic):
            minibatches = [self.batches.noise() for _ in range(self.minibatches(len(data)))]
            parts = data.split(max(1, ENTRIES // data.shape[1]))
            with torch.no_grad():
                psi = torch.cat([self.critic(rows) for rows in parts])
                chosen = [self.assigned(self.generator(z), psi) for z in minibatches]
                chosen = torch.cat([ranks.gathered(x) for x in chosen])
            counts = torch.bincount(chosen, minlength=len(psi)).to(psi.dtype)
            slopes = 1 / len(psi) - counts / len(chosen)
            self.critic_optimizer.zero_grad(set_to_none=True)
            for rows, slope in zip(parts, slopes.split(len(parts[0]))):  # not all at once in memory
                (slope @ self.critic(rows)).backward()
            ranks.averaged_(x.grad for x in self.critic.parameters())
            self.critic_optimizer.step()
        self.uniformity = {
            "unassigned": (counts == 0).to(psi.dtype).mean(),
            "dispersion": counts.var() / counts.mean(),
        }
        return torch.cat([ranks.gathered(z) for z in minibatches]), chosen

    def assigned(self, x: Tensor, psi: Tensor) -> Tensor:
        """The data (n,) that samples x go to."""
        name, data = self.assignment_cost, self.batches.data
        if name == "squared":
            return cheapest(x, data, psi)
        costs = (cost_matrix(name, rows, data, self.batches.shape) for rows in x.split(BLOCK))
        return torch.cat([(psi + WEIGHTS[name] * cost).argmin(1) for cost in costs])

    def minibatches(self, data_size: int) -> int:
        """How many minibatches of samples a round assigns."""
        grown = math.sqrt(min(1, self.walks / LAST))
        return int(10 * data_size / self.config.batchsize * grown) + 10

    def state_dict(self) -> dict:
        own = {"walks": self.walks, "place": self.place, "pairs": self.pairs}
        return super().state_dict() | own | {"uniformity": self.uniformity}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.walks, self.place = state["walks"], state["place"]
        self.pairs, self.uniformity = state["pairs"], state["uniformity"]


class AssignmentFast(Assignment):
    """The same with few pairs: 5 rounds of 2 minibatches before each walk."""

    @dataclass(kw_only=True)
    class Settings(Assignment.Settings):
        n_critic: Count = 5  # rounds of the critic before each walk of the generator
        steps_per_epoch: int = 2

    def minibatches(self, data_size: int) -> int:
        return 2


def cheapest(x: Tensor, y: Tensor, psi: Tensor) -> Tensor:
    """argmin_j psi_j + 0.1 |x_i - y_j|^2, for x (n, d), y (m, d) and psi (m,); shape (n,).

    The data get one more coordinate, sqrt((psi_j - min psi) / 0.1), and samples a zero: then the
    cheapest is the nearest (a power diagram is a slice of a Voronoi diagram).
    """
    height = ((psi - psi.min()) / WEIGHT).sqrt()
    lifted = torch.cat((y, height[:, None]), 1)
    if x.device.type == "cpu" and y.shape[1] <= 3:  # in more dimensions trees prune little
        flat = torch.cat((x, torch.zeros_like(x[:, :1])), 1)
        _, nearest = cKDTree(lifted.numpy()).query(flat.numpy(), workers=torch.get_num_threads())
        return torch.from_numpy(nearest.astype(np.int64, copy=False))
    squares = lifted.square().sum(1)
    block = max(1, 2**24 // len(y))
    return torch.cat([torch.addmm(squares, z, y.T, alpha=-2).argmin(1) for z in x.split(block)])
