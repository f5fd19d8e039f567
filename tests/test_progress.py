"""What a solver says while it works."""

import logging

import pytest
from conftest import clouds

from exactot import solve_sample

LOG = logging.getLogger("exactot")


def test_verbose_names_the_steps_on_stderr(capsys, column_generation):
    x, y, a, b = clouds(0, 60, 50, 2)
    solve_sample(x, y, a, b, verbose=True)
    said = capsys.readouterr()
    assert said.out == ""
    for words in ("annealing: 60 x 50", "round 1: network simplex on", "arcs added"):
        assert words in said.err
    assert all(float(line.split(" s ")[0]) >= 0 for line in said.err.splitlines())


@pytest.mark.parametrize("verbose", [True, False])
def test_the_logger_is_left_as_it_was(capsys, column_generation, verbose):
    before = LOG.level, list(LOG.handlers), LOG.propagate
    x, y, a, b = clouds(0, 60, 50, 2)
    solve_sample(x, y, a, b, verbose=verbose)
    with pytest.raises(ValueError, match="metric must give"):
        solve_sample(x, y, metric=lambda u, v: u, verbose=verbose)
    assert before == (LOG.level, list(LOG.handlers), LOG.propagate)
    assert bool(capsys.readouterr().err) == verbose
