"""Random problems of every kind, and that the checks notice what is wrong."""

import csv
from dataclasses import replace

import numpy as np
import pytest

import exactot
import ipot
from benchmarks import fuzz, problems

SMALL = 24  # points on a side
BLOCK = 10  # seeds of a test


@pytest.mark.parametrize("first", range(0, 250, BLOCK))
def test_random_problems(first):
    """`python -m benchmarks.fuzz --problems 1 --largest 24 --seed N` makes one of them again."""
    seeds = range(first, first + BLOCK)
    found = {seed: fuzz.run(problems.make(seed, SMALL), timed=False)["failures"] for seed in seeds}
    assert not (failed := {seed: what for seed, what in found.items() if what}), failed


def plain_problem(solver):
    """A problem that is easy to solve, the answer, and bounds on its value."""
    rng = np.random.default_rng(0)
    M, a = rng.random((6, 5)) + 1, rng.random(6)
    p = problems.Problem(M, a, np.full(5, a.sum() / 5), None, "", np.float64, False)
    case = problems.Case({}, [p], False, "numpy")
    low, high, _ = fuzz.linear_program(p)
    return fuzz.answers(case, solver(M, a, p.b))[0], low, high


def failed(checks):
    return {what for what, x in checks.items() if not x <= 1}


WRONG = {
    "value too high": ({"value": 1.0001}, {"value <= W", "value = lower_bound", "gap"}),
    "value too low": ({"value": 0.9999}, {"value >= W", "value >= <P, M>", "lower_bound <= value"}),
    "bound too high": ({"lower_bound": 1.0001}, {"lower_bound <= W", "lower_bound <= dual"}),
    "bound too low": ({"lower_bound": 0.9999}, {"value = lower_bound", "gap"}),
    "infeasible": ({"f": 1 + 1e-12}, {"feasible"}),
    "plan too small": ({"mass": 1 - 1e-14}, {"marginals"}),
    "negative plan": ({"mass": -1}, {"plan >= 0", "marginals"}),
    "NaN": ({"value": np.nan}, {"finite", "gap", "value <= W", "value >= W"}),
}


@pytest.mark.parametrize(("changes", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_fails(changes, expected):
    answer, low, high = plain_problem(exactot.solve)
    assert answer.error(low, high) == 0
    wrong = {name: getattr(answer, name) * factor for name, factor in changes.items()}
    assert expected <= failed(replace(answer, **wrong).exact(low, high))


def test_a_gap_that_is_called_closed_fails():
    answer, *bounds = plain_problem(lambda *problem: ipot.solve(*problem, max_iter=2))
    assert not answer.converged and not failed(answer.iterated(*bounds, 1e-6))
    assert failed(replace(answer, converged=True).iterated(*bounds, 1e-6)) == {"honest"}
    assert failed(answer.iterated(*bounds, 1.0)) == {"converged"}
    answer, low, high = plain_problem(exactot.solve)
    assert failed(replace(answer, converged=False).exact(low, high)) == {"converged"}


def test_every_class_is_drawn_and_a_seed_makes_one_problem():
    cases = [problems.make(seed, SMALL) for seed in range(250)]
    names = set().union(*(fuzz.classes(case.row) for case in cases))
    assert {f"cost: {name}" for name in (*problems.COSTS, *problems.POINTS)} < names
    assert {f"weights: {name}" for name in problems.WEIGHTS} < names
    for first, second in zip(cases, (problems.make(seed, SMALL) for seed in range(20))):
        np.testing.assert_array_equal(first.problems[0].M, second.problems[0].M)
        np.testing.assert_array_equal(first.problems[0].a, second.problems[0].a)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    output = tmp_path / "fuzz.csv"

    def command(problems, seed=0):
        options = f"--problems {problems} --seed {seed} --largest 9 --output {output}".split()
        monkeypatch.setattr("sys.argv", ["fuzz", *options])
        fuzz.main()
        return capsys.readouterr().out

    command(4)
    before = output.read_text()
    assert "cost:" in command(6) and output.read_text().startswith(before)
    with output.open(newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == list("012345")
    assert "cost: " in command(1, seed=2) and output.read_text().count("\n") == 7
