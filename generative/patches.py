"""Patches of images at fixed places, and images from patches."""

import torch
from torch import Tensor


class Patches:
    """Overlapping squares of images (c, h, w), `stride` pixels apart, that cover them.

    Attributes
    ----------
    places : list of (int, int)
        The upper left corners.
    """

    def __init__(self, shape: tuple[int, int, int], size: int, stride: int):
        self.shape, self.size = shape, size
        down, across = (self._starts(side, size, stride) for side in shape[1:])
        self.places = [(i, j) for i in down for j in across]

    @staticmethod
    def _starts(side: int, size: int, stride: int) -> list[int]:
        """The last patch touches the edge, so that no pixel is left out."""
        return [*range(0, side - size, stride), side - size]

    def cut(self, rows: Tensor) -> list[Tensor]:
        """Images (n, c h w) to their patches at each place, (n, c size^2)."""
        images, size = rows.unflatten(1, self.shape), self.size
        return [images[:, :, i : i + size, j : j + size].flatten(1) for i, j in self.places]

    def paste(self, patches: list[Tensor]) -> Tensor:
        """The images (n, c h w) with these patches, which are means where patches overlap."""
        total = patches[0].new_zeros(len(patches[0]), *self.shape)
        count, size = total[:1].clone(), self.size
        for (i, j), patch in zip(self.places, patches, strict=True):
            total[:, :, i : i + size, j : j + size] += patch.view(-1, self.shape[0], size, size)
            count[:, :, i : i + size, j : j + size] += 1
        return (total / count).flatten(1)


def sliced_destination(
    x: Tensor, y: Tensor, count: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where points x (n, d) go if those of y are sorted along random lines as they are, and the
    cost.

    Each of `count` lines, d or more for all directions to count, moves points along itself only;
    the moves are added up, times d / count (Rabin, Peyre, Delon, Bernot, "Wasserstein Barycenter
    and Its Application to Texture Mixing", 2011, section 3). The cost is d times the squared sliced
    W2 distance, which resembles the squared W2 distance in size.
    """
    dim = x.shape[1]
    lines = torch.randn(dim, count, generator=rng, device=x.device, dtype=x.dtype)
    lines /= lines.norm(dim=0)
    of_x, of_y = x @ lines, y @ lines
    order = of_x.argsort(0)
    moves = torch.empty_like(of_x).scatter_(0, order, of_y.sort(0).values) - of_x
    return x + dim / count * (moves @ lines.T), dim / count * moves.square().mean(0).sum()
