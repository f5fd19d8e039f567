"""Do the solvers keep their word on random problems of every kind?

    OMP_NUM_THREADS=1 python -m benchmarks.fuzz --problems 1000
    python -m benchmarks.fuzz --problems 1 --seed 17

Costs and weights of every kind (COSTS, WEIGHTS) meet in every shape, dtype and scale. A problem is
made from its seed alone: the second command makes one problem again, whatever is on file, and
prints it. A run that was stopped goes on where it was.

The truth. A plan with the right marginals bounds the value W of the linear program from above, and
potentials with f_i + g_j <= M_ij bound it from below. This file evaluates both in extended
precision, for an answer and for what POT's network simplex makes of a well-scaled copy of the
problem. Where POT's plan misses a small weight, only POT's potentials count.

What is allowed. The carried cost is <P, |M|>. Exact values agree to 1e-9 of it: a simplex leaves
reduced costs of about 1e-12 of its largest cost. Bounds are rounded as their terms are, whose sizes
are <P, |M|> and <a, |f|> + <b, |g|>; a forbidding entry is no excuse for large potentials. Failures
are printed in multiples of what is allowed.

The table has the worst of each class: the error of an exact value beyond rounding, relative to the
carried cost; the error of a marginal relative to its weight, in roundings of the dtype; the time of
`exactot.solve` over that of `ot.emd`, where the latter needs 5 ms; and the seconds of `ipot.solve`
with a beta of 1e-8 of the cost's range, which every tenth seed takes.
"""

import csv
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import ot
import torch
import tyro
from tqdm import tqdm

import exactot
import ipot
from benchmarks.table import machine, show
from benchmarks.timing import milliseconds

Extended = np.longdouble
EXACT = 1e-9  # of the carried cost, between exact values
MARGINALS = 8  # roundings of the dtype, relative to each weight
TOL = 1e-2  # of ipot.solve
LONG = (3, 20000), (9, 12315), (50000, 3), (1, 5000), (7000, 1), (2000, 40)
METRICS = ("sqeuclidean", "euclidean", "cityblock")
POINTS = ("cloud", "grid", "massless")  # costs that are distances
COLUMNS = {"error": "value's error", "marginal": "marginal, eps"}  # of the table, by field
COLUMNS |= {"ratio": "time / ot.emd", "beta_s": "tiny beta, s"}
FIELDS = "seed cost weights shape kind scale error marginal emd_ms ratio beta_s failures".split()


@dataclass
class Config:
    """Settings of the fuzz."""

    problems: int = 1000  # seeds, from `seed` on
    seed: int = 0
    largest: int = 300  # points on a side, but for one problem in 30, which is long from 300 on
    output: str = "outputs/benchmarks/fuzz.csv"  # a line for each problem


# -------------------------------------------------------------------------------- Random problems

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


# --------------------------------------------------------------------------------------- The truth


def linear_program(p: Problem) -> tuple[Extended, Extended, float]:
    """Bounds on the value by POT, inf if its plan misses a weight, and its milliseconds."""
    M, a, b = p.active
    if 1 in M.shape:  # one plan only, which POT calls infeasible at times
        value = (M * np.outer(a, b)).sum() / a.sum()
        return value, value, 0.0
    low, mass, unit = M.min(), a.sum(), Extended(2.0) ** np.frexp(p.span)[1]
    C = np.minimum((M - low) / unit, 8 * sum(M.shape)).astype(float)  # forbidden arcs stay so
    weights = [(w / mass).astype(float) for w in (a, b)]

    def call() -> tuple[np.ndarray, dict]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a plan that is not optimal has wider bounds
            return ot.emd(*weights, C, numItermax=10**7, log=True, check_marginals=False)

    span, (plan, log) = best(call)
    plan, g = plan * mass, log["v"] * unit
    misses = max(np.abs(plan.sum(1) / a - 1).max(), np.abs(plan.sum(0) / b - 1).max())
    bound = a @ (M - g).min(1) + b @ g
    return bound, (plan * M).sum() if misses <= EXACT / 10 else Extended(np.inf), span


def best(call: Callable[[], object]) -> tuple[float, object]:
    """Milliseconds of a call, the best of three where that is worth while, and its result."""
    span, result = milliseconds(call)
    return (min(span, milliseconds(call, 2)[0]), result) if 2 < span < 2000 else (span, result)


# -------------------------------------------------------------------------------------- The checks


@dataclass(frozen=True, eq=False)
class Answer:
    """What a solver says of one problem, in extended precision, and what that should be.

    Every check is a number in multiples of what is allowed: above 1 it fails.
    """

    p: Problem
    value: Extended
    lower_bound: Extended
    gap: Extended
    f: np.ndarray
    g: np.ndarray
    converged: bool
    rows: np.ndarray
    columns: np.ndarray
    mass: np.ndarray  # of the plan, on these arcs
    dtype: np.dtype

    @cached_property
    def costs(self) -> np.ndarray:
        return self.p.M[self.rows, self.columns].astype(Extended)

    @cached_property
    def carried(self) -> Extended:
        return self.mass @ np.abs(self.costs)

    @cached_property
    def rounding(self) -> Extended:
        """Of the bounds: some of each of their terms, and what is lost below normal numbers."""
        info, (a, b) = np.finfo(self.p.dtype), self.p.weights
        shift = np.median(self.f[a > 0])
        terms = a @ np.abs(self.f - shift) + b @ np.abs(self.g + shift)
        terms = np.minimum(terms, 4 * self.p.span * a.sum())  # potentials need be no larger
        lost = (len(a) + len(b)) * np.maximum(1, a.sum()) * Extended(info.smallest_subnormal)
        error = self.p.error * self.p.span * a.sum()
        eps = 16 * Extended(info.eps) + 64 * Extended(ipot.EPS)  # of the answer, of its sums
        sums = 64 * ipot.EPS * self.p.usual * a.sum()
        return eps * (self.carried + terms) + sums + lost + error

    @cached_property
    def allowed(self) -> Extended:
        """Between exact values."""
        return EXACT * self.carried + self.rounding

    def marginals(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Errors of the rows' and of the columns' sums, the weights, and what is lost of each."""
        for places, w in zip((self.rows, self.columns), self.p.weights):
            sums = np.zeros_like(w)
            np.add.at(sums, places, self.mass)
            terms = np.bincount(places, minlength=len(w)) + 1
            lost = max(1, w.sum()) * Extended(np.finfo(self.p.dtype).smallest_subnormal)
            yield np.abs(sums - w), w, terms * lost

    def infeasible(self) -> Extended:
        """By how much f_i + g_j exceeds M_ij: a rounding of the largest of the three is allowed."""
        f, g, M, info = self.f[:, None], self.g, self.p.M.astype(Extended), np.finfo(self.p.dtype)
        size = np.maximum(np.maximum(np.abs(f), np.abs(g)), np.abs(M))
        error = self.p.error * np.maximum(np.abs(M), self.p.span)
        return ((f + g - M) / (info.eps * size + error + 64 * info.smallest_subnormal)).max()

    def certificate(self, low: Extended, high: Extended) -> dict[str, Extended | float]:
        """What every answer owes, for low <= W <= high."""
        a, b = self.p.weights
        finite = np.isfinite([self.value, self.lower_bound, *self.f, *self.g]).all()
        size = np.abs(self.value) + np.abs(self.lower_bound)
        gap_rounding = np.finfo(self.p.dtype).eps * size + self.rounding
        return {
            "finite": held(finite),
            "dtype": held(self.dtype == self.p.dtype),
            "plan >= 0": held((self.mass >= 0).all()),
            "lower_bound <= value": held(self.lower_bound <= self.value and self.gap >= 0),
            "gap": np.abs(self.gap - (self.value - self.lower_bound)) / gap_rounding,
            "lower_bound <= W": (self.lower_bound - high) / self.allowed,
            "lower_bound <= dual": (self.lower_bound - a @ self.f - b @ self.g) / self.rounding,
            "value >= W": (low - self.value) / self.allowed,
            "value >= <P, M>": (self.mass @ self.costs - self.value) / self.rounding,
            "feasible": self.infeasible(),
        }

    def exact(self, low: Extended, high: Extended) -> dict[str, Extended | float]:
        """What an exact answer owes."""
        return self.certificate(low, high) | {
            "converged": held(self.converged),
            "value <= W": (self.value - high) / self.allowed,
            "value = lower_bound": (self.value - self.lower_bound) / self.allowed,
            "marginals": self.roundings() / MARGINALS,
            "support": len(self.mass) / (sum(self.p.M.shape) - 1),
        }

    def iterated(self, low: Extended, high: Extended, tol: float) -> dict[str, Extended | float]:
        """What an answer of `ipot.solve` owes; marginals are right to roundings of the mass."""
        mass = self.p.weights[0].sum()
        off = max(error.max() for error, *_ in self.marginals()) / mass
        found = self.certificate(low, high)
        found["marginals"] = off / (MARGINALS * np.finfo(self.p.dtype).eps)
        if self.converged:
            rounding = self.rounding + 32 * np.finfo(self.p.dtype).eps * self.p.usual * mass
            found["honest"] = self.gap / (tol * np.abs(self.value) + rounding)
        else:
            found["converged"] = held(self.gap > (1 - EXACT) * tol * np.abs(self.value))
        return found

    def roundings(self) -> Extended:
        """The worst error of a marginal relative to its weight, in roundings of the dtype."""
        eps = np.finfo(self.p.dtype).eps
        parts = (error / (eps * w + lost / MARGINALS) for error, w, lost in self.marginals())
        return max(part.max() for part in parts)

    def error(self, low: Extended, high: Extended) -> float:
        """Of an exact value, beyond rounding, relative to the carried cost."""
        high = high if high < np.inf else self.lower_bound
        off = max(self.value - high, low - self.value) - self.rounding
        return 0.0 if off <= 0 else float(off / self.carried) if self.carried else math.inf


def held(what: bool) -> float:
    return 0.0 if what else math.inf


def answers(case: Case, result: ipot.Transport) -> list[Answer]:
    """The answer to each problem of the case."""
    if isinstance(result.value, torch.Tensor) != (case.library == "torch"):
        raise TypeError(f"{case.library} arrays are answered by {type(result.value).__name__}")
    numbers = [np.asarray(x) for x in (result.value, result.lower_bound, result.gap)]
    found, sparse = [], getattr(result, "sparse_plan", None)
    for k, p in enumerate(case.problems):
        at = k if case.batched else ()
        if sparse is None:
            plan = np.asarray(result.plan)[at]
            rows, columns = plan.nonzero()
            mass = plan[rows, columns]
        else:
            plan = sparse[k] if case.batched else sparse
            if case.library == "torch":
                (rows, columns), mass = plan.indices().numpy(), plan.values().numpy()
            else:
                rows, columns, mass = plan.row, plan.col, plan.data
        value, bound, gap = (Extended(x[at]) for x in numbers)
        f, g = (np.asarray(x)[at].astype(Extended) for x in result.potentials)
        arcs = rows, columns, mass.astype(Extended)
        converged = bool(np.asarray(result.converged)[at])
        found.append(Answer(p, value, bound, gap, f, g, converged, *arcs, numbers[0].dtype))
    return found


# ------------------------------------------------------------------------------------------- A run


def attempt(door: str, case: Case, failures: list[str], call: Callable) -> list[Answer]:
    """The answers of a call; none after an exception, which is a failure, as is a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = answers(case, call())
        except Exception as error:
            failures.append(f"{door} raises {type(error).__name__}: {error}")
            found = []
    failures += [f"{door} warns: {warning.message}" for warning in caught]
    return found


def judge(door: str, checks: dict[str, Extended | float], failures: list[str]) -> None:
    """Note the checks that fail; NaN fails."""
    failures += [f"{door}, {what}: {float(x):.2g} x" for what, x in checks.items() if not x <= 1]


def run(case: Case, timed: bool = True) -> dict:
    """The line on file of a case."""
    failures: list[str] = []
    truths = [linear_program(p) for p in case.problems]
    M, a, b = case.of("M", "a", "b")
    exact = attempt("solve", case, failures, lambda: exactot.solve(M, a, b))
    row = dict.fromkeys(FIELDS, math.nan) | case.row | {"emd_ms": truths[0][2]}
    for answer, (low, high, _) in zip(exact, truths):
        judge("solve", answer.exact(low, high), failures)
        row["error"] = max(answer.error(low, high), row["error"])
        row["marginal"] = max(float(answer.roundings()), row["marginal"])
    if exact and timed and row["emd_ms"] > 5 and not case.batched:
        row["ratio"] = best(lambda: exactot.solve(M, a, b))[0] / row["emd_ms"]
    other_forms(case, exact, failures)
    if case.problems[0].points is not None:
        of_clouds(case, failures)
    row["beta_s"] = iterations(case, truths, failures)
    return row | {"failures": "; ".join(dict.fromkeys(failures))}


def other_forms(case: Case, exact: list[Answer], failures: list[str]) -> None:
    """The same problems scaled by a power of two, and transposed, have the same values."""
    _, exponent = np.frexp(max(np.abs(p.M).max() for p in case.problems))
    factor = Extended(2.0) ** (7 - int(exponent))
    forms = {
        "scaled": [replace(p, M=(p.M * factor).astype(p.dtype)) for p in case.problems],
        "transposed": [replace(p, M=p.M.T.copy(), a=p.b, b=p.a) for p in case.problems],
    }
    for door, problems in forms.items():
        other = replace(case, problems=problems)
        M, a, b = other.of("M", "a", "b")
        found = attempt(door, other, failures, lambda M=M, a=a, b=b: exactot.solve(M, a, b))
        for first, second in zip(exact, found):
            masses = first.p.weights[0].sum() / second.p.weights[0].sum()
            same = second.value * (masses if door == "transposed" else 1 / factor)
            allowed = first.allowed if door == "transposed" else first.rounding
            judge(door, {"same value": np.abs(same - first.value) / allowed}, failures)


def of_clouds(case: Case, failures: list[str]) -> None:
    """The clouds themselves, against their distances in extended precision."""
    metric = case.problems[0].metric
    problems = [
        replace(p, M=distances(*p.points, metric), error=64 * np.finfo(float).eps)
        for p in case.problems
    ]
    case = replace(case, problems=problems)
    x, y = (case.array([p.points[k] for p in problems]) for k in (0, 1))
    a, b = case.of("a", "b")
    call = lambda: exactot.solve_sample(x, y, a, b, metric=metric)  # noqa: E731
    for answer in attempt("solve_sample", case, failures, call):
        judge("solve_sample", answer.exact(*linear_program(answer.p)[:2]), failures)


def iterations(case: Case, truths: list[tuple], failures: list[str]) -> float:
    """`ipot.solve` to a gap, and with betas in units of the range; the seconds of a tiny one."""
    M, a, b = case.of("M", "a", "b")
    size = np.array([float(np.ptp(p.M)) or 1.0 for p in case.problems])
    size = size if case.batched else float(size[0])
    doors = {
        "ipot": {"tol": TOL, "max_iter": 200},
        "ipot, beta 0.05": {"beta": 0.05 * size, "max_iter": 20},
        "ipot, beta 1e-8": {"beta": 1e-8 * size, "max_iter": 200, "inner_iter": 5},
    }
    if case.row["seed"] % 10:
        doors.popitem()  # it is slow
    for door, options in doors.items():
        call = functools.partial(ipot.solve, M, a, b, **options)
        span, found = milliseconds(functools.partial(attempt, door, case, failures, call))
        for answer, (low, high, _) in zip(found, truths):
            judge(door, answer.iterated(low, high, options.get("tol", 0.0)), failures)
    return math.nan if case.row["seed"] % 10 else span / 1e3


# ------------------------------------------------------------------------------------- The command


def classes(row: dict) -> set[str]:
    """The classes that a line belongs to."""
    n, m = (int(size) for size in row["shape"].split(" x ")[-2:])
    kind = "long" if max(n, m) > 300 else "row or column" if min(n, m) == 1 else "ordinary"
    shapes = {f"shape: {'batch' if row['shape'].count('x') > 1 else kind}", f"array: {row['kind']}"}
    return shapes | {f"cost: {row['cost']}"} | {f"weights: {w}" for w in row["weights"].split(", ")}


def table(rows: list[dict]) -> list[dict]:
    """The worst of each class."""
    lines = []
    for name in sorted(set().union(*map(classes, rows))):
        members = [row for row in rows if name in classes(row)]
        worst = {
            key: float(np.nanmax([-1.0, *(float(row[key]) for row in members)])) for key in COLUMNS
        }
        failed = sum(bool(row["failures"]) for row in members)
        line = {"class": name, "problems": len(members), "failed": failed}
        lines.append(line | {COLUMNS[key]: x if x >= 0 else "" for key, x in worst.items()})
    return lines


def on_file(path: Path) -> dict[int, dict]:
    """The lines by seed."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {int(row["seed"]): row for row in csv.DictReader(file)}


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.problems == 1:
        print("\n".join(f"{k}: {x}" for k, x in run(make(config.seed, config.largest)).items()))
        return
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = on_file(path)
    seeds = range(config.seed, config.seed + config.problems)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not known:
            writer.writeheader()
        for seed in tqdm([seed for seed in seeds if seed not in known], leave=False):
            writer.writerow(run(make(seed, config.largest)))
            file.flush()
    rows = [row for seed, row in on_file(path).items() if seed in seeds]
    print(machine())
    show(table(rows))
    for row in rows:
        if row["failures"]:
            given = ", ".join(row[key] for key in ("cost", "weights", "shape", "kind", "scale"))
            print(f"seed {row['seed']} ({given}): {row['failures']}")


if __name__ == "__main__":
    main()
