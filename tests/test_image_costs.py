"""Squared distance, PSNR and SSIM of images."""

import numpy as np
import pytest
import torch

from generative.image_costs import COSTS, cost_matrix, image_cost
from generative.images import read_images
from generative.targets import image_rows

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def digits():
    images = read_images("digits", "", size=28)
    return image_rows(torch.from_numpy(images.train[:40]))


def ssim(x, y):
    """Equation 13 of Wang et al. 2004, window by window, for pixels from 0 to 1."""
    t = np.arange(11) - 5
    window = np.exp(-(t**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    found = []
    for i in range(18):
        for j in range(18):
            a, b = (z[i : i + 11, j : j + 11] for z in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            both = (window * a * b).sum() - mean_a * mean_b
            light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            found.append(light * (2 * both + 9e-4) / (var_a + var_b + 9e-4))
    return np.mean(found)


def test_costs_are_their_formulas(digits):
    x, y = digits[:3], digits[3:6]
    squares = (x - y).square().double()
    found = {name: image_cost(name, x, y, SHAPE) for name in COSTS}
    torch.testing.assert_close(found["squared"].double(), squares.sum(1))
    psnr = 10 * torch.log10(2**2 / squares.mean(1))
    torch.testing.assert_close(-found["psnr"].double(), psnr)
    pairs = ((x.view(-1, 28, 28) + 1) / 2).numpy(), ((y.view(-1, 28, 28) + 1) / 2).numpy()
    pairs = zip(*pairs)
    expected = [1 - ssim(*pair) for pair in pairs]
    np.testing.assert_allclose(found["ssim"], expected, atol=2e-4)


@pytest.mark.parametrize("name", COSTS)
def test_the_matrix_has_the_costs_of_pairs_and_equal_images_are_cheapest(digits, name):
    matrix = cost_matrix(name, digits[:5], digits, SHAPE)
    assert matrix.shape == (5, 40)
    for i in range(5):
        pairs = digits[i : i + 1].expand(40, -1), digits
        expected = image_cost(name, *pairs, SHAPE)
        others = torch.arange(40) != i  # squares of equal images are rounded
        torch.testing.assert_close(matrix[i, others], expected[others], rtol=1e-3, atol=2e-3)
    assert matrix.argmin(1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", COSTS)
def test_gradients_are_finite_also_between_equal_and_small_images(name):
    x = torch.rand(4, 3 * 8 * 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.cat((x.detach()[:2], -x.detach()[2:]))
    image_cost(name, x, y, (3, 8, 9)).sum().backward()
    assert bool(x.grad.isfinite().all()) and float(x.grad[2:].abs().max()) > 0
