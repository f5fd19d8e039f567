"""What it costs to take one image for another: squared distance, PSNR or SSIM.

Images are rows (n, c h w) of pixels from -1 to 1.
"""

import torch
from pytorch_msssim import ssim
from torch import Tensor

RANGE = 2.0  # of pixels
WINDOW = 11  # pixels of a side, or fewer in small images
ENTRIES = 2**23  # of pairs of images at once
SHARPEST = 1e-8  # mean squared difference, below which images count as equal

COSTS = ("squared", "psnr", "ssim")


def image_cost(name: str, x: Tensor, y: Tensor, shape: tuple[int, int, int] | None) -> Tensor:
    """Of pairs of images x_i, y_i (n, c h w), shape (n,); points have squared distances only.

    `squared` is the sum of squared differences, `psnr` minus the peak signal-to-noise ratio in
    decibels, `ssim` 1 minus the structural similarity (Wang, Bovik, Sheikh, Simoncelli, "Image
    Quality Assessment: From Error Visibility to Structural Similarity", 2004, equation 13), by
    Gaussian windows of 11 pixels or the largest odd number that fits.
    """
    if name == "ssim":
        side = min(WINDOW, *shape[1:])
        images = (1 + z.unflatten(1, shape) for z in (x, y))  # from 0
        return 1 - ssim(*images, RANGE, size_average=False, win_size=side - 1 + side % 2)
    squares = (x - y).square()
    return squares.sum(1) if name == "squared" else of_squares(squares.mean(1))


def of_squares(squares: Tensor) -> Tensor:
    """Minus the PSNR, of mean squared differences."""
    return 10 * (squares.clamp_min(SHARPEST) / RANGE**2).log10()


def cost_matrix(name: str, x: Tensor, y: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Of all pairs of images x (n, c h w) and y (m, c h w), shape (n, m)."""
    if name != "ssim":
        squares = torch.cdist(x, y).square()
        return squares if name == "squared" else of_squares(squares / x.shape[1])
    few = max(1, ENTRIES // x.numel())
    columns = []
    for part in y.split(few):
        pairs = x.repeat_interleave(len(part), 0), part.repeat(len(x), 1)
        columns.append(image_cost(name, *pairs, shape).view(len(x), len(part)))
    return torch.cat(columns, 1)
