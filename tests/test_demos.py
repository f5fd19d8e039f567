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
        "steps.png",
        "bracket.png",
        "plans.png",
    }
    for picture in folder.iterdir():
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 20
    assert "(cost - W) / W after iterations:" in capsys.readouterr().out


SMALL = {
    "bins": 40,
    "size": 20,
    "ellipses": 3,
    "digits": 2,
    "image_iterations": 20,
    "mixtures": 3,
    "points": 30,
    "pixels": 40,
    "show": False,
}


def test_barycenter_demo_runs(tmp_path, capsys):
    folder = barycenter_demo.run(barycenter_demo.Config(output_dir=str(tmp_path), **SMALL))
    pictures = {"barycenters.png", "images.png", "shapes.png", "shapes.gif", "clouds.png"}
    pictures.add("colours.png")
    assert {path.name for path in folder.iterdir()} == pictures
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == (8 if path.suffix == ".gif" else 1)
            assert len(image.convert("RGB").getcolors(10**6)) > 20
    printed = capsys.readouterr().out
    assert "certified gap" in printed and "total variation" in printed


@pytest.mark.parametrize("panel", ["line", "colours"])
def test_a_panel_of_the_barycenter_demo_alone(tmp_path, panel):
    config = barycenter_demo.Config(panels=(panel,), output_dir=str(tmp_path), **SMALL)
    names = {"line": "barycenters.png", "colours": "colours.png"}
    assert [path.name for path in barycenter_demo.run(config).iterdir()] == [names[panel]]


def test_barycenters_rank_as_they_should():
    config = barycenter_demo.Config(bins=60)
    A, M = barycenter_demo.published_pair(config.bins)
    found = barycenter_demo.line_barycenters(A, M, config)
    half = np.full(2, 0.5)
    value = {name: barycenter_demo.objective(q, A, M, half) for name, (q, _) in found.items()}
    best = value["exactot.barycenter, exact"]
    assert best <= min(value.values()) * (1 + 1e-12)
    for name in ("IPOT-WB, beta 0.1, 1000 iterations", "exactot.barycenter, 100 iterations"):
        assert value[name] < best * (1 + 1e-4) < value["Sinkhorn, reg 0.001"]
    assert value["Sinkhorn, reg 0.001"] < value["L2 (mean)"]
    for q, _ in found.values():
        assert q.sum() == pytest.approx(1) and (q >= 0).all()


def test_barycenter_inputs_have_mass_one():
    A, M = barycenter_demo.published_pair(100)
    np.testing.assert_allclose(A.sum(0), 1)
    assert M.shape == (100, 100) and M.max() == 1


def test_ipot_is_sharper_than_sinkhorn_on_images():
    config = barycenter_demo.Config(size=32, image_iterations=100)
    rng = np.random.default_rng(0)
    found = barycenter_demo.image_barycenters(barycenter_demo.nested_ellipses(4, 32, rng), config)
    entropy, variation = zip(*map(barycenter_demo.sharpness, found.values()))
    assert entropy[2] < entropy[1] < entropy[0] and variation[2] > variation[1] > variation[0]
    flat = np.full((8, 8), 1 / 64)
    assert barycenter_demo.sharpness(flat) == (pytest.approx(np.log(64)), 0)


def test_digits_keep_their_shape():
    pictures = barycenter_demo.scattered_digits(3, 5, 48, np.random.default_rng(0))
    assert pictures.shape == (48, 48, 5) and (pictures >= 0).all()
    assert (pictures.sum((0, 1)) > 0).all()


def test_the_clouds_path_begins_and_ends_at_corners():
    weights = barycenter_demo.corner_path(4, 3)
    assert weights.shape == (10, 4)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[::3], np.eye(4))
    for cloud in barycenter_demo.shape_clouds(50, np.random.default_rng(0)):
        assert cloud.shape == (50, 2) and cloud.min() >= 0 and cloud.max() <= 1


def test_corner_weights_and_the_way_around():
    weights = barycenter_demo.corner_weights(4)
    np.testing.assert_allclose(weights.sum(-1), 1)
    for place, corner in (((0, 0), 0), ((0, 3), 1), ((3, 0), 2), ((3, 3), 3)):
        np.testing.assert_array_equal(weights[place], np.eye(4)[corner])
    places = list(barycenter_demo.around(4))
    assert len(set(places)) == len(places) == 12
    steps = np.abs(np.diff([*places, places[0]], axis=0)).sum(1)
    assert (steps == 1).all()


def test_each_channel_gets_the_other_distribution():
    rng = np.random.default_rng(0)
    source, target = rng.uniform(size=(500, 3)), rng.uniform(size=(500, 3)) ** 2
    moved = barycenter_demo.by_channel(source, target)
    np.testing.assert_allclose(np.sort(moved, 0), np.sort(target, 0), atol=1e-12)
    for k in range(3):
        assert (np.diff(moved[np.argsort(source[:, k]), k]) >= 0).all()


@pytest.mark.parametrize(
    "demo, changes, message",
    [
        (ipot_demo, {"betas": ()}, "betas: got"),
        (ipot_demo, {"regs": (0.0,)}, "regs: got"),
        (ipot_demo, {"sweeps": 0}, "sweeps: got 0"),
        (ipot_demo, {"iterations": 0}, "iterations: got 0"),
        (barycenter_demo, {"weight": 1.0}, "weight: got 1.0; accepts numbers between 0 and 1"),
        (barycenter_demo, {"beta": -1}, "beta: got -1"),
        (barycenter_demo, {"bins": 3}, "bins: got 3"),
        (barycenter_demo, {"panels": ("lines",)}, "panels: got ('lines',); accepts line, images"),
        (barycenter_demo, {"panels": ()}, "panels: got ()"),
        (barycenter_demo, {"digits": 200}, "digits: got 200"),
    ],
)
def test_bad_settings_are_refused(tmp_path, demo, changes, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace(")", r"\)")):
        demo.run(demo.Config(output_dir=str(tmp_path / "outputs"), **changes))
    assert not (tmp_path / "outputs").exists()
