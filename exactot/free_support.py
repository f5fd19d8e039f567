"""Barycenters of point clouds, by points that move.

The barycenter of clouds X_k with weights w_k among clouds of a fixed number of points minimises
sum_k w_k W(X, X_k) over the points X, for the squared Euclidean cost. The method (Cuturi and Doucet
2014, Algorithm 2) takes turns: exact plans P_k between X and each cloud, then every point to the
mean of where the plans send it,

    x_i <- sum_k w_k (P_k X_k)_i / b_i.

The value never grows. What is found is a local minimum, which depends on the start.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from exactot.costs import extent, point_scale
from exactot.solve import check_points, solve_sample
from ipot import (
    Array,
    as_tensors,
    brief,
    check_count,
    mass_tolerance,
    read_mass,
    read_number,
    read_shares,
    undisturbed,
)


@dataclass(frozen=True, eq=False)
class PointBarycenter:
    """A barycenter of point clouds whose points were free to move.

    Attributes
    ----------
    points : array, shape (n_points, d)
        Of the kind, dtype and device of the inputs.
    value : array, shape ()
        sum_k weights_k W(points, X_k), squared Euclidean, by exact plans.
    n_iter : int
        Moves of the points.
    converged : bool
        Whether the last plans would move the points by no more than `tol` allows.
    """

    points: Array = field(repr=False)
    value: Array
    n_iter: int
    converged: bool


@undisturbed
def free_support_barycenter(
    X_list: list[Array],
    n_points: int | None = None,
    *,
    a_list: list[Array] | None = None,
    b: Array | None = None,
    weights: Array | None = None,
    init: Array | None = None,
    max_iter: int = 100,
    tol: float = 1e-7,
    seed: int = 0,
) -> PointBarycenter:
    """Points that are a Wasserstein barycenter of point clouds (squared Euclidean cost).

    Parameters
    ----------
    X_list : list of arrays, shapes (m_k, d)
        Clouds, NumPy or torch, float32 or float64.
    n_points : int, optional
        Points of the barycenter; needed unless `init` is given.
    a_list : list of arrays, shapes (m_k,), optional
        Weights of the clouds' points, of equal mass; uniform with mass 1 if left out.
    b : array, shape (n_points,), optional
        Weights of the barycenter's points, positive, of the same mass; uniform if left out.
    weights : array, shape (K,), optional
        Of the clouds, non-negative with sum 1; equal if left out.
    init : array, shape (n_points, d), optional
        Where the points start. If left out, at points of the clouds drawn by their weights.
    max_iter : int
        Moves at most.
    tol : float
        Stop once the mean squared move is at most `tol` times the clouds' mean squared distance
        from their common mean.
    seed : int
        Of the draw of the start.

    Returns
    -------
    PointBarycenter

    Raises
    ------
    TypeError, ValueError
        As :func:`exactot.solve_sample`; also for an empty list, lists of different lengths, a
        weight of b that is zero, and neither or conflicting `n_points` and `init`.

    Examples
    --------
    >>> import numpy as np
    >>> clouds = [np.array([[0.0, 0.0], [0.0, 2.0]]), np.array([[4.0, 0.0], [4.0, 2.0]])]
    >>> found = free_support_barycenter(clouds, init=clouds[0])
    >>> found.points
    array([[2., 0.],
           [2., 2.]])
    """
    check_count("max_iter", max_iter)
    tol = read_number("tol", tol)
    clouds, masses, b, shares, X, give_back = _read(
        X_list, n_points, a_list, b, weights, init, seed
    )
    everything = torch.cat(clouds).double()
    reach = extent(everything)
    if not bool(4 * everything.shape[1] * reach.square() < torch.finfo(X.dtype).max / 4):
        raise ValueError(f"squared distances must not overflow {X.dtype}; half a side is {reach:g}")
    scale = float(point_scale(reach))
    everything, clouds, X = everything / scale, [x / scale for x in clouds], X / scale
    spread = float((everything - everything.mean(0)).square().sum(1).mean())
    rates = b / b.sum()
    for n_iter in range(max_iter + 1):
        value, target = 0.0, torch.zeros_like(X, dtype=torch.float64)
        for cloud, mass, share in zip(clouds, masses, shares):
            found = solve_sample(X, cloud, b, mass)
            plan = found.sparse_plan.to(torch.float64)
            target += share * (plan @ cloud.double()) / b[:, None]
            value = value + share * found.value.double()
        move = float((rates * (target - X.double()).square().sum(1)).sum())
        converged = move <= tol * spread
        if converged or n_iter == max_iter:
            break
        X = target.to(X.dtype)
    return PointBarycenter(give_back(X * scale), give_back(value * scale**2), n_iter, converged)


def _read(
    X_list: list[Array],
    n_points: int | None,
    a_list: list[Array] | None,
    b: Array | None,
    weights: Array | None,
    init: Array | None,
    seed: int,
) -> tuple[list[Tensor], list[Tensor], Tensor, list[float], Tensor, Callable[[Tensor], Array]]:
    """Clouds, their weights, those of the barycenter's points and of the clouds, and the start."""
    if not isinstance(X_list, (list, tuple)) or len(X_list) == 0:
        raise TypeError("X_list must be a list of at least one array of shape (m, d)")
    count = len(X_list)
    a_list = [None] * count if a_list is None else a_list
    if not isinstance(a_list, (list, tuple)) or len(a_list) != count:
        raise ValueError(f"a_list must be a list of {count} arrays, one for each cloud")
    if n_points is None and init is None:
        raise ValueError("give n_points, or the points to start from as init")
    named = {f"X_list[{k}]": X for k, X in enumerate(X_list)}
    named |= {f"a_list[{k}]": a for k, a in enumerate(a_list)}
    free = (*(f"a_list[{k}]" for k in range(count)), "b", "weights")
    tensors, give_back = as_tensors(free, **named, b=b, weights=weights, init=init)
    tensors = [x if x is None else x.detach() for x in tensors]
    clouds, masses, (b, weights, init) = tensors[:count], tensors[count:-3], tensors[-3:]
    for k, X in enumerate(clouds):
        if X is not None and X.ndim < 2:
            check_points(f"X_list[{k}]", X)
        if X is None or X.ndim != 2 or X.shape[1] != clouds[0].shape[-1]:
            got = None if X is None else tuple(X.shape)
            raise ValueError(
                f"X_list must hold arrays of shape (m, d) with one d; got {got} at {k}"
            )
        check_points(f"X_list[{k}]", X)
        if masses[k] is None:
            masses[k] = torch.full_like(X[:, 0], 1 / len(X), dtype=torch.float64)
        elif masses[k].shape != (len(X),):
            got = tuple(masses[k].shape)
            raise ValueError(f"a_list[{k}] must have shape ({len(X)},); got {got}")
    tolerance = mass_tolerance(*clouds, *masses, b)
    read = [read_mass(f"a_list[{k}]", mass) for k, mass in enumerate(masses)]
    masses = [mass * unit for mass, unit in read]
    if init is None:
        init = _drawn(clouds, masses, n_points, seed)
    elif init.ndim != 2 or init.shape[1] != clouds[0].shape[1] or n_points not in (None, len(init)):
        wanted = "n_points" if n_points is None else n_points
        shape = f"({wanted}, {clouds[0].shape[1]})"
        raise ValueError(f"init must have shape {shape}; got {tuple(init.shape)}")
    if not bool(init.isfinite().all()):
        raise ValueError("init must be finite; got NaN or inf")
    if b is None:
        b = torch.full_like(init[:, 0], 1 / len(init), dtype=torch.float64) * masses[0].sum()
    if b.shape != (len(init),) or not bool(((b > 0) & b.isfinite()).all()):
        wanted = f"{len(init)} entries, all positive and finite"
        raise ValueError(f"b must have {wanted}; got {b.tolist()}")
    expected = masses[0].sum()
    b = b.double()
    for name, mass in (("b", b), *((f"a_list[{k}]", a) for k, a in enumerate(masses))):
        if not bool((mass.sum() - expected).abs() <= tolerance * expected):
            wanted = f"the mass of a_list[0], {brief(expected)}"
            raise ValueError(f"{name} must have {wanted}; got {brief(mass.sum())}")
    masses = [mass * (expected / mass.sum()) for mass in masses]
    b = b * (expected / b.sum())
    shares = read_shares(weights, count, clouds[0].device)
    if shares.ndim != 1:
        raise ValueError(f"weights must have shape ({count},); got {tuple(shares.shape)}")
    return clouds, masses, b, shares.tolist(), init, give_back


def _drawn(clouds: list[Tensor], masses: list[Tensor], n_points: int, seed: int) -> Tensor:
    """Points of the clouds, drawn by their weights."""
    check_count("n_points", n_points)
    check_count("seed", seed, least=0)
    draw = np.random.default_rng(seed)
    chance = torch.cat([a.double() / a.double().sum() for a in masses]).cpu().numpy() / len(masses)
    few = np.count_nonzero(chance) < n_points
    chosen = draw.choice(len(chance), n_points, replace=few, p=chance / chance.sum())
    return torch.cat(clouds)[torch.from_numpy(chosen).to(clouds[0].device)]
