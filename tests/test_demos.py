"""The convergence and barycenter demos: what they compute, and short headless runs."""

import numpy as np
import pytest
from PIL import Image

import barycenter_demo
import ipot_demo


def test_paper_pair_is_the_one_stated():
    problem = ipot_demo.paper_pair()
    x = np.arange(100)
    assert problem.a.sum() == pytest.approx(1) and problem.b.sum() == pytest.approx(1)
    assert problem.a @ x == pytest.approx(0.5 * 70 + 0.5 * 35, abs=0.05)
    assert problem.b @ x == pytest.approx(0.4 * 60 + 0.6 * 40, abs=0.05)
    assert problem.M.max() == 1
    quantile_cost = np.sum(problem.exact_plan * problem.M)
    assert problem.W == pytest.approx(quantile_cost) and problem.W > 0


def test_ipot_comes_closer_than_sinkhorn_and_brackets_the_truth():
    problem = ipot_demo.cloud_pair(60, 0)
    steps = np.array([10, 100, 1000])
    value, bound = ipot_demo.ipot_gaps(problem, 0.1, 1, steps)
    assert value[-1] < 1e-4 and bound[-1] < 1e-6 and (np.diff(value) < 0).all()
    assert ipot_demo.sinkhorn_gaps(problem, 0.01, steps)[-1] > 100 * value[-1]


def test_convergence_demo_runs(tmp_path, capsys):
    config = ipot_demo.Config(iterations=30, points=20, output_dir=str(tmp_path), show=False)
    folder = ipot_demo.run(config)
    assert {path.name for path in folder.iterdir()} == {
        "convergence.png",
        "bracket.png",
        "plans.png",
    }
    for picture in folder.iterdir():
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 20
    assert "relative gap after 30 iterations" in capsys.readouterr().out


def test_barycenter_demo_runs(tmp_path, capsys):
    config = barycenter_demo.Config(bins=40, output_dir=str(tmp_path), show=False)
    folder = barycenter_demo.run(config)
    assert [path.name for path in folder.iterdir()] == ["barycenters.png"]
    with Image.open(folder / "barycenters.png") as image:
        assert len(image.convert("RGB").getcolors(10**6)) > 20
    assert "above exact" in capsys.readouterr().out


def test_barycenters_rank_as_they_should():
    config = barycenter_demo.Config(bins=60)
    A, M = barycenter_demo.published_pair(config.bins)
    found = barycenter_demo.barycenters(A, M, config)
    value = {name: barycenter_demo.objective(q, A, M, 0.5) for name, (q, _) in found.items()}
    best = value["exact (LP)"]
    assert value["IPOT, beta 0.1"] < best * (1 + 1e-4) < value["Sinkhorn, reg 0.001"]
    assert value["Sinkhorn, reg 0.001"] < value["L2 (mean)"]
    for q, _ in found.values():
        assert q.sum() == pytest.approx(1) and (q >= 0).all()


def test_barycenter_inputs_have_mass_one():
    A, M = barycenter_demo.published_pair(100)
    np.testing.assert_allclose(A.sum(0), 1)
    assert M.shape == (100, 100) and M.max() == 1


@pytest.mark.parametrize(
    "demo, changes, message",
    [
        (ipot_demo, {"betas": ()}, "betas: got"),
        (ipot_demo, {"regs": (0.0,)}, "regs: got"),
        (ipot_demo, {"sweeps": (0,)}, "sweeps: got"),
        (ipot_demo, {"iterations": 0}, "iterations: got 0"),
        (barycenter_demo, {"weight": 1.0}, "weight: got 1.0; accepts numbers between 0 and 1"),
        (barycenter_demo, {"beta": -1}, "beta: got -1"),
        (barycenter_demo, {"bins": 3}, "bins: got 3"),
    ],
)
def test_bad_settings_are_refused(tmp_path, demo, changes, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace(")", r"\)")):
        demo.run(demo.Config(output_dir=str(tmp_path / "outputs"), **changes))
    assert not (tmp_path / "outputs").exists()
