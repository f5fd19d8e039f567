"""Do the solvers keep their word on random problems of every kind?

    OMP_NUM_THREADS=1 python -m benchmarks.fuzz --problems 1000
    python -m benchmarks.fuzz --problems 1 --seed 17

A problem is made from its seed alone (see `benchmarks.problems`): the second command makes one
problem again, whatever is on file, and prints it. A run that was stopped goes on where it was.

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
from benchmarks.problems import Case, Extended, Problem, distances, make
from benchmarks.table import machine, show
from benchmarks.timing import milliseconds

EXACT = 1e-9  # of the carried cost, between exact values
MARGINALS = 8  # roundings of the dtype, relative to each weight
TOL = 1e-2  # of ipot.solve
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
