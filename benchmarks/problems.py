"""Random transport problems of every kind, each made from its seed alone.

Costs and weights of every kind (COSTS, WEIGHTS) meet in every shape, dtype and scale.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

Extended = np.longdouble
LONG = (3, 20000), (9, 12315), (50000, 3), (1, 5000), (7000, 1), (2000, 40)
METRICS = ("sqeuclidean", "euclidean", "cityblock")
POINTS = ("cloud", "grid", "massless")  # costs that are distances

WEIGHTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "none": lambda rng, n: np.ones(n),
    "uniform": lambda rng, n: np.ones(n),
    "random": lambda rng, n: rng.random(n),
    "dirichlet": lambda rng, n: rng.dirichlet(np.full(n, 0.05)),
    "zeros": lambda rng, n: rng.random(n) * (rng.random(n) < 0.6),
    "one-hot": lambda rng, n: np.eye(1, n, rng.integers(n))[0],
    "denormal": lambda rng, n: np.where(
        rng.random(n) < 0.3, 10 ** rng.choice([-320.0, -42.0], n), rng.random(n)
    ),
    "ratio 1e12": lambda rng, n: 10 ** rng.uniform(-12, 0, n),
    "softmax": lambda rng, n: np.exp(rng.uniform(-690, 0, n)),
    "tail": lambda rng, n: np.exp(-(np.linspace(0, 37, n) ** 2) / 2),
    "counts": lambda rng, n: rng.multinomial(1000, np.full(n, 1 / n)).astype(float),
    "float32": lambda rng, n: (w := rng.random(n, np.float32) + np.float32(1e-3)) / w.sum(),
}
COSTS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "uniform": lambda rng, n, m: rng.random((n, m)),
    "constant": lambda rng, n, m: np.full((n, m), rng.normal()),
    "zero": lambda rng, n, m: np.zeros((n, m)),
    "diagonal": lambda rng, n, m: 1 - np.eye(n, m),
    "binary": lambda rng, n, m: rng.integers(0, 2, (n, m)) * 1.0,
    "integer": lambda rng, n, m: rng.integers(-3, 8, (n, m)) * 1.0,
    "low rank": lambda rng, n, m: rng.normal(size=(n, 2)) @ rng.normal(size=(2, m)),
    "log-normal": lambda rng, n, m: rng.lognormal(0, rng.uniform(1, 5), (n, m)),
    "offset": lambda rng, n, m: rng.random((n, m)) + 1e6,
    "forbidding": lambda rng, n, m: np.where(
        (rng.random((n, m)) < 0.3) & ~np.eye(n, m, dtype=bool),
        10 ** rng.uniform(9, 16),
        rng.random((n, m)),
    ),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem, as it is given: M (n, m), weights or None, and points if M is a distance."""

    M: np.ndarray
    a: np.ndarray | None
    b: np.ndarray | None
    points: tuple[np.ndarray, np.ndarray] | None
    metric: str
    dtype: type  # of the answer
    forbidding: bool  # whether the largest entry stands for a forbidden arc
    error: float = 0.0  # of an entry of M, relative to the largest cost between points with mass

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b, scaled to a's mass, in extended precision."""
        a, b = (
            np.full(n, 1 / Extended(n)) if w is None else w.astype(Extended)
            for w, n in zip((self.a, self.b), self.M.shape)
        )
        return a, b * (a.sum() / b.sum())

    @cached_property
    def active(self) -> tuple[np.ndarray, ...]:
        """M, a and b between points with mass, in extended precision."""
        a, b = self.weights
        return self.M.astype(Extended)[np.ix_(a > 0, b > 0)], a[a > 0], b[b > 0]

    @cached_property
    def usual(self) -> Extended:
        """A cost that arithmetic meets, without the few huge ones."""
        return self.span or Extended(1)

    @cached_property
    def span(self) -> Extended:
        """The largest cost in size between points with mass, but for forbidden arcs."""
        size = np.abs(self.active[0])
        return (
            size[size < np.abs(self.M).max() / 2].max(initial=0) if self.forbidding else size.max()
        )


@dataclass(frozen=True, eq=False)
class Case:
    """What a seed makes: one problem, or a batch of them, and the kind of array they come in."""

    row: dict  # its classes, as on file
    problems: list[Problem]
    batched: bool
    library: str

    def array(self, parts: list[np.ndarray | None]) -> np.ndarray | torch.Tensor | None:
        """The problems' arrays as one, of the case's kind."""
        if parts[0] is None:
            return None
        whole = np.stack(parts) if self.batched else parts[0]
        return torch.from_numpy(whole.copy()) if self.library == "torch" else whole

    def of(self, *names: str) -> list:
        return [self.array([getattr(p, name) for p in self.problems]) for name in names]


def make(seed: int, largest: int = 300) -> Case:
    """The case of a seed."""
    rng = np.random.default_rng(seed)
    cost = str(rng.choice([*COSTS, *POINTS, "cloud", "forbidding"]))
    n, m = (int((largest + 1) ** rng.random()) for _ in range(2))
    if cost == "forbidding":
        n = m = max(n, 6)
    elif rng.random() < 0.3:
        m = n
    elif largest >= 300 and rng.random() < 1 / 20:
        n, m = LONG[rng.integers(len(LONG))]
    kinds = [str(kind) for kind in rng.choice(list(WEIGHTS), 2)]
    if cost == "massless":
        kinds = ["uniform" if kind == "none" else kind for kind in kinds]
    same = cost == "forbidding" or (n == m and rng.random() < 0.3)
    kinds = [kinds[0]] * 2 if same else kinds
    precision = str(rng.choice(["float64", "float64", "float32", "mixed"], p=[0.4, 0.2, 0.3, 0.1]))
    library = str(rng.choice(["numpy", "torch"]))
    batched = n * m <= 10**4 and rng.random() < 0.15
    scale = rng.random() if rng.random() < 0.5 else None  # a place in the dtype's range
    metric = str(rng.choice(METRICS, p=[0.6, 0.2, 0.2]))
    d = int(rng.choice([1, 2, 3, 5, 16]))
    draw = Draw(rng, cost, kinds, (n, m), precision, scale, metric, d, same)
    problems = [draw.problem() for _ in range(rng.integers(2, 5) if batched else 1)]
    shape = f"{n} x {m}" if not batched else f"{len(problems)} x {n} x {m}"
    row = {"seed": seed, "cost": cost, "weights": ", ".join(kinds), "shape": shape}
    row["kind"] = f"{library} {precision}"
    row["scale"] = f"{float(np.abs(problems[0].M).max()):.0e}"
    return Case(row, problems, batched, library)


@dataclass(frozen=True, eq=False)
class Draw:
    """What the problems of a batch share."""

    rng: np.random.Generator
    cost: str
    kinds: list[str]  # of weights
    shape: tuple[int, int]
    precision: str  # float64, float32, or mixed: float32 costs, float64 weights
    scale: (
        float | None
    )  # where in the dtype's range, from 0 to 1; None leaves the costs as they are
    metric: str
    d: int
    same: bool  # whether a is b

    def problem(self) -> Problem:
        dtype = np.float64 if self.precision == "float64" else np.float32
        mass = 10 ** self.rng.uniform(-4, 4)
        mass = 1.0 if "none" in self.kinds else 1000.0 if "counts" in self.kinds else mass
        a, b = (self.weights(kind, n, mass) for kind, n in zip(self.kinds, self.shape))
        b = a if self.same else b
        if not self.same and b is not None and b.dtype.kind == "f" and self.rng.random() < 0.1:
            b = b * (1 + (4e-5 if self.precision == "float32" else 4e-7))
        if self.precision == "float32":
            a, b = (w if w is None or w.dtype.kind == "i" else w.astype(dtype) for w in (a, b))
        points = None
        if self.cost in POINTS:
            points = self.points()
            if self.scale is not None:
                low, high = (-150, 145) if dtype == np.float64 else (-18, 10)
                points = scaled(low + self.scale * (high - low), *points)
            points = tuple(z.astype(dtype) for z in points)
            M = distances(*points, self.metric)
        else:
            M = COSTS[self.cost](self.rng, *self.shape)
            if self.scale is not None:
                low, high = (-300, 300) if dtype == np.float64 else (-37, 37)
                high -= max(0.0, math.log10(mass))  # mass times cost must not overflow
                (M,) = scaled(low + self.scale * (high - low), M)
        forbidding = self.cost == "forbidding"
        return Problem(M.astype(dtype), a, b, points, self.metric, dtype, forbidding)

    def weights(self, kind: str, n: int, mass: float) -> np.ndarray | None:
        """Weights of this mass; those whose mass is nearly right stay as they are."""
        if kind == "none":
            return None
        w = WEIGHTS[kind](self.rng, n).astype(float)
        if self.cost == "massless" and n > 1:
            w[0] = 0
        if w.sum() == 0:
            w[-1] = 1
        if kind == "counts" and mass == w.sum():
            return w.astype(np.int64)
        return w if abs(w.sum() - mass) <= 2e-7 * mass else w / w.sum() * mass

    def points(self) -> list[np.ndarray]:
        """Points (n, d) and (m, d); the first of a massless problem are far away."""
        if self.cost == "grid":
            return [self.rng.integers(0, 6, (k, min(self.d, 2))) * 1.0 for k in self.shape]
        x, y = (self.rng.normal(size=(k, self.d)) for k in self.shape)
        y += self.rng.uniform(0, 3)
        for z in (x, y) if self.cost == "massless" else ():
            if len(z) > 1:
                z[0] += 10 ** self.rng.uniform(2, 8)
        return [x, y]


def scaled(exponent: float, *arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays, the largest entry of which becomes 10^exponent in size."""
    size = max(np.abs(x).max() for x in arrays) or 1.0
    return [x / size * 10**exponent for x in arrays]


def distances(x: np.ndarray, y: np.ndarray, metric: str) -> np.ndarray:
    """Distances (n, m) in extended precision, whose squares neither over- nor underflow."""
    total = np.zeros((len(x), len(y)), Extended)
    for u, v in zip(x.T.astype(Extended), y.T.astype(Extended)):
        apart = np.abs(u[:, None] - v)
        total += apart if metric == "cityblock" else apart**2
    return np.sqrt(total) if metric == "euclidean" else total
