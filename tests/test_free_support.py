"""Barycenters of point clouds, against POT."""

import doctest
import importlib
from itertools import pairwise

import numpy as np
import ot
import pytest
import torch

from exactot import free_support_barycenter


def some_clouds(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    clouds = [rng.standard_normal((m, 2)) + c for m, c in ((25, 0), (40, 3), (30, -2))]
    masses = [rng.dirichlet(np.ones(len(x))) for x in clouds]
    return [x.astype(dtype) for x in clouds], [a.astype(dtype) for a in masses]


@pytest.mark.parametrize("seed", range(4))
def test_free_support_is_that_of_pot(seed):
    clouds, masses = some_clouds(seed)
    rng = np.random.default_rng(seed)
    weights, b = rng.dirichlet(np.ones(3)), rng.dirichlet(np.full(15, 5.0))
    start = rng.standard_normal((15, 2))
    ours = free_support_barycenter(
        clouds, a_list=masses, b=b, weights=weights, init=start, tol=1e-14
    )
    theirs = ot.lp.free_support_barycenter(
        clouds, masses, start, b=b, weights=weights, numItermax=100, stopThr=1e-14
    )

    def value(X):
        return sum(w * ot.emd2(b, a, ot.dist(X, Y)) for w, a, Y in zip(weights, masses, clouds))

    assert ours.converged and ours.n_iter < 100
    assert float(ours.value) == pytest.approx(value(ours.points), rel=1e-9)
    assert float(ours.value) == pytest.approx(value(theirs), abs=1e-6)


def test_free_support_of_one_cloud_is_the_cloud():
    clouds, _ = some_clouds(0)
    found = free_support_barycenter(clouds[:1], 25)
    assert float(found.value) < 1e-12
    np.testing.assert_allclose(np.sort(found.points, 0), np.sort(clouds[0], 0), atol=1e-9)


def test_free_support_goes_down_and_takes_tensors():
    clouds, masses = some_clouds(1, np.float32)
    values = [
        float(free_support_barycenter(clouds, 12, a_list=masses, max_iter=k, tol=0.0).value)
        for k in (1, 2, 4, 30)
    ]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(values))
    tensors = [[torch.from_numpy(x) for x in y] for y in (clouds, masses)]
    found = free_support_barycenter(tensors[0], 12, a_list=tensors[1], max_iter=30, tol=0.0)
    assert found.points.dtype == torch.float32 and found.points.shape == (12, 2)
    assert float(found.value) == pytest.approx(values[-1], rel=1e-6)


@pytest.mark.parametrize(
    "kw, error, message",
    [
        ({"X_list": []}, TypeError, "X_list must be a list"),
        ({"X_list": [np.ones((3, 2)), np.ones((3, 1))]}, ValueError, "with one d; got .3, 1. at 1"),
        ({"X_list": [np.full((3, 2), np.nan)]}, ValueError, r"X_list\[0\] must be finite"),
        ({"n_points": None}, ValueError, "give n_points, or"),
        ({"n_points": 0}, ValueError, "n_points must be at least 1"),
        ({"init": np.ones((4, 2))}, ValueError, r"init must have shape \(5, 2\)"),
        ({"a_list": [np.ones(3)]}, ValueError, "a_list must be a list of 2 arrays"),
        ({"a_list": [np.ones(3), np.ones(3)]}, ValueError, r"a_list\[1\] must have shape"),
        ({"a_list": [np.ones(3), -np.ones(4)]}, ValueError, r"a_list\[1\] must be non-negative"),
        ({"b": np.zeros(5)}, ValueError, "b must have 5 entries, all positive and finite"),
        ({"weights": np.ones(2)}, ValueError, "weights must sum to 1"),
        ({"a_list": np.ones((2, 3))}, ValueError, "a_list must be a list"),
        ({"a_list": [np.ones(3), np.ones(4)]}, ValueError, r"a_list\[1\] must have the mass of"),
        ({"b": np.ones(5)}, ValueError, r"b must have the mass of a_list\[0\], 1; got 5"),
        ({"init": np.full((5, 2), np.nan)}, ValueError, "init must be finite"),
        ({"seed": -1}, ValueError, "seed"),
        ({"tol": None}, TypeError, "tol must be a number"),
        ({"weights": np.full((2, 2), 0.5)}, ValueError, r"weights must have shape \(2,\)"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    ],
)
def test_bad_clouds_are_refused(kw, error, message):
    X_list = [np.zeros((3, 2)), np.ones((4, 2))]
    with pytest.raises(error, match=message):
        free_support_barycenter(**{"X_list": X_list, "n_points": 5, **kw})


def test_the_examples_in_the_docstrings():
    tested = doctest.testmod(importlib.import_module("exactot.free_support"))
    assert tested.attempted > 0 and tested.failed == 0
