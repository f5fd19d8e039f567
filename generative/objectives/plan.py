"""The generator follows a transport plan between minibatches; no critic.

With the plan P held fixed (envelope theorem; Theorem B.1 of the IPOT paper) the gradient of the
transport cost <P, C>, C the squared distances, is 2 / n (x_i - d_i) for each point, where
d_i = n sum_j P_ij y_j is its destination. The generator descends this gradient, whose length is
bounded for each point.
"""

from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar

import torch
from torch import Tensor, nn

from generative.batches import Batches
from generative.objectives.objective import Objective, descend
from generative.patches import Patches, sliced_destination
from generative.ranks import of_all
from generative.rules import Flag, Scale, integers


class FollowPlan(Objective):
    """Each point x_i of a minibatch moves to its destination d_i, by plans that subclasses choose.

    The pull of a destination is bounded, as in Huber's loss. A few points change their mode from
    plan to plan. Their squared distances would drown the others, and draw them between the modes.

    Destinations are means, of few data each, and so the samples crowd together. Debiased ones are
    x_i + n sum_j P_ij y_j - n sum_j S_ij x'_j, with the plan S between x and a second minibatch x'
    of samples, which crowds as much. This is the gradient of the minibatch energy distance
    (Salimans, Zhang, Radford, Metaxas, "Improving GANs Using Optimal Transport", ICLR 2018,
    equation 6).
    """

    @dataclass(kw_only=True)
    class Settings(Objective.Settings):
        updates_per_plan: integers(0) = 0  # updates on each plan; 0: 7 on the line, otherwise 16
        huber: Scale = 0.05  # distance (standard units) beyond which a destination pulls no more
        debiased: Flag = False  # move away from a second minibatch of samples as towards the data

    @dataclass(kw_only=True)
    class OfImages:
        updates_per_plan: integers(0) = 2  # updates on each plan
        debiased: Flag = True  # move away from a second minibatch of samples as towards the data

    @dataclass(kw_only=True)
    class OfPixels(OfImages):
        batchsize: int = 256

    SpaceSettings: ClassVar = {"latent": OfImages, "pixels": OfPixels, "patches": OfImages}

    def __init__(self, config, generator: nn.Module, batches: Batches):
        super().__init__(config, generator, batches)
        self.optimizer = torch.optim.Adam(
            generator.parameters(), lr=config.lr, betas=(0.5, 0.999), fused=True
        )
        self.parts = {"optimizer": self.optimizer}
        on_line = batches.data.shape[1] == 1
        self.updates = config.updates_per_plan or (7 if on_line else 16)
        self.patches = None
        if getattr(config, "space", "") == "patches":
            self.patches = Patches(batches.shape, config.patch_size, config.patch_stride)

    def update(self) -> dict[str, Tensor]:
        """`loss` is the transport cost between the minibatches."""
        noise, y = self.batches.noise(), self.batches.points()
        x = self.generator(noise)
        rows = x.detach(), y, self.second()
        destination, cost = of_all(self.of_patches, *rows, rng=self.batches.rng)
        for step in range(self.updates):
            x = self.generator(noise) if step else x
            descend(self.optimizer, bounded_squares(x - destination, self.config.huber).mean())
        return {"loss": cost}

    def second(self) -> Tensor | None:
        """A second minibatch of samples to move away from, if that is wanted."""
        if not self.config.debiased:
            return None
        with torch.no_grad():
            return self.generator(self.batches.noise())

    def of_patches(self, x: Tensor, y: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor]:
        """The destination of images by those of their patches at each place, if they have some.

        Elnekave, Weiss, "Generating Natural Images with Direct Patch Distributions Matching", ECCV
        2022, match patches wherever they are in one image; here places stay apart.
        """
        if self.patches is None:
            return self.destination(x, y, second)
        cut = self.patches.cut
        seconds = repeat(None) if second is None else cut(second)
        found = [self.destination(*places) for places in zip(cut(x), cut(y), seconds)]
        destinations, costs = zip(*found)
        return self.patches.paste(destinations), torch.stack(costs).mean()

    def destination(
        self, x: Tensor, y: Tensor, second: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Where each point of x (n, d) goes, (n, d), and the transport cost, for y (n, d)."""
        destination, cost = self.moved(x, y)
        if second is not None:
            destination = x + destination - self.moved(x, second)[0]
        return destination, cost

    def moved(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where points x go by a plan or, if there are `directions`, by sorting; and the cost."""
        if lines := getattr(self.config, "directions", 0):
            return sliced_destination(x, y, lines, self.batches.rng)
        plan, cost = self.plan(x, y)
        return len(x) * (plan @ y), cost

    def plan(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A plan (n, n) between points x and y (n, d) of equal weights, and its transport cost."""
        raise NotImplementedError


def bounded_squares(z: Tensor, reach: float) -> Tensor:
    """Squared lengths of vectors z (n, d), shape (n,), which grow linearly beyond `reach`."""
    return 2 * reach * ((z.square().sum(1) + reach**2).sqrt() - reach)
