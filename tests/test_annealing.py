"""Annealed potentials: near the optimal ones for every cost, in few sweeps."""

import numpy as np
import pytest
import torch
from conftest import clouds, exact_value
from scipy.spatial.distance import cdist

from exactot.annealing import anneal
from exactot.costs import CloudRows, MatrixRows, Metric


def dual_value(cost, g, a, b):
    f = cost.row_minima(g)
    return float(a @ f + b @ cost.column_minima(f))


@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("weights", ["uniform", "random"])
def test_the_dual_value_is_near(d, weights):
    x, y, a, b = clouds(d, 300, 250, d)
    if weights == "uniform":
        a, b = np.full(300, 1 / 300), np.full(250, 1 / 250)
    M = cdist(x, y, "sqeuclidean")
    W, (a, b) = exact_value(M, a, b), (torch.from_numpy(z) for z in (a, b))
    cost = MatrixRows(torch.from_numpy(M))
    found = anneal(cost, a, b, 0.05 * np.ptp(M))
    assert 0.97 * W <= dual_value(cost, found.g, a, b) <= W * (1 + 1e-12)
    assert found.neighbours < 5 and found.sweeps <= 40 and found.noise == 0


def test_a_cloud_and_its_matrix_have_the_same_potentials():
    """The kernel of a matrix is stored and squared, that of a cloud is computed at each pass."""
    x, y, a, b = (torch.from_numpy(z) for z in clouds(7, 200, 180, 2))
    cloud = CloudRows(x, y, Metric("sqeuclidean"))
    matrix = MatrixRows(cloud.block(slice(None)).clone())
    first, second = (anneal(cost, a, b, 1.0) for cost in (cloud, matrix))
    assert first.sweeps == second.sweeps
    np.testing.assert_allclose(first.g, second.g, atol=1e-4)


def test_equal_costs_end_it():
    M = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (300, 300)).astype(float))
    uniform = torch.full((300,), 1 / 300, dtype=torch.float64)
    found = anneal(MatrixRows(M), uniform, uniform, 0.05)
    assert found.neighbours > 10 and found.noise > 0 and found.sweeps <= 40
