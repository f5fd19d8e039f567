"""The experiments: what they compute, and short runs."""

import csv
import math

import numpy as np
import ot
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from sklearn.datasets import load_digits

from benchmarks import (
    batches,
    certificates,
    couplings,
    gallery,
    images,
    memory,
    objectives,
    shrinkage,
    solvers,
    steps,
    unbalanced,
    vision_language,
)
from generative import image_yardstick, plots
from generative.targets import TARGETS


@pytest.mark.parametrize(
    ("benchmark", "options", "gap"),
    [
        (batches, "--batches 4 --sizes 16 --iterations 20", "mean cost / exact - 1"),
        (memory, "--sizes 500", "gap"),
        (solvers, "--sizes 100 400 --dimensions 2 --seeds 1", "gap"),
        (couplings, "--sizes 20 300 --dimensions 2 784 --repeats 1", "exactot, ms"),
        (couplings, "--straightness --sizes 20 300 --dimensions 2 --points 400", "excess"),
        (certificates, "--n 60 --dimensions 2", "certified gap"),
        (vision_language, "--batches 3 --words 9 --regions 7 --width 8", "mean cost / exact - 1"),
    ],
)
def test_benchmarks_of_the_solver_run(benchmark, options, gap, tmp_path, monkeypatch, capsys):
    where = ["--output-dir", tmp_path] if benchmark is solvers else ["--output", tmp_path / "t.csv"]
    monkeypatch.setattr("sys.argv", ["benchmark", *options.split(), *map(str, where)])
    benchmark.main()
    (table,) = tmp_path.glob("*.csv")
    with table.open() as file:
        values = [float(row[gap]) for row in csv.DictReader(file) if row[gap]]
    assert values and np.isfinite(values).all() and min(values) > -1e-6
    assert "Written to" in capsys.readouterr().out


def test_cells_are_run_once_and_tabled(tmp_path, monkeypatch):
    config = objectives.Config(
        objectives=("ipot", "wgan"), targets=("mixture",), seeds=1, seconds=0.5,
        output_dir=str(tmp_path),
    )  # fmt: skip
    cells = objectives.all_cells(config)[0]
    assert [cell["objective"] for cell in cells] == ["ipot", "wgan"]
    assert all(cell["distance"] > cell["reference"] > 0 and cell["steps"] > 0 for cell in cells)
    monkeypatch.setattr(objectives, "run_cell", None)  # a second run must not need it
    assert objectives.all_cells(config)[0] == cells
    first, _ = objectives.table(cells)
    assert first["mean"] == cells[0]["distance"] and first["spread"] == 0
    assert first["over reference"] == cells[0]["distance"] / cells[0]["reference"]
    path = tmp_path / "fits.png"
    objectives.draw_fits(cells, config.objectives, config.targets, path)
    assert colours(path) > 20


def colours(path):
    """The number of those of a figure that fits a page."""
    with Image.open(path) as image:
        assert image.width <= 1000
        return len(image.convert("RGB").getcolors(10**6))


def test_the_gallery_shows_each_target_and_the_shares_of_modes(tmp_path):
    """The last cell failed and is in the figure only."""
    cells = [gallery.run_cell("gaussian", 0, 2)]
    rng = torch.Generator().manual_seed(0)
    for name in ("ring", "moons", "checkerboard", "grid"):
        frame = plots.frame(TARGETS[name].draw(500, rng).numpy(), TARGETS[name])
        found = {"distance": 0.3, "reference": 0.2, "seconds": 1.0, "frame": frame.tolist()}
        shares = {"smallest_mode": 0.1, "largest_mode": 0.2}
        cells.append({"target": name, "seed": 0, "failed": ""} | found | shares)
    del cells[-1]["distance"]
    first, ring, *rest = gallery.table(cells)
    assert [row["target"] for row in rest] == ["moons", "checkerboard"]
    assert (first[""], ring[""]) == ("W1", "W2") and first["ratio"] > 1
    assert ring["smallest mode"] == pytest.approx(0.8) and first["smallest mode"] == ""
    gallery.draw(cells, tmp_path / "gallery.png")
    assert colours(tmp_path / "gallery.png") > 20


def test_exact_shares_of_outliers():
    """The farther the outliers, the fewer go there; OTM takes all of them."""
    shares = [unbalanced.exact_share(distance, 0.1, "kl") for distance in (3.0, 5.0, 9.0, 12.0)]
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.001
    assert unbalanced.exact_share(12.0, 0.1, "linear") == 0.01


def test_exact_shares_solve_the_unbalanced_problem():
    """POT's solver on the same two atoms: the plan's rows split at the threshold."""
    x = norm.ppf((np.arange(400) + 0.5) / 400)
    cost = 0.05 * (x[:, None] - np.array([1.0, -5.0])) ** 2
    plan = ot.unbalanced.mm_unbalanced(
        np.full(400, 1 / 400), np.array([0.99, 0.01]), cost, 1.0, numItermax=20000, stopThr=1e-14
    )
    share = (plan[:, 1] > plan[:, 0]).mean()
    assert share == pytest.approx(unbalanced.exact_share(5.0, 0.1, "kl"), abs=3e-3)


def test_the_exact_map_goes_from_the_target_to_staying_where_it_is():
    """As transport gets dearer; where it is dearest, T(mu) is mu."""
    found = [unbalanced.exact_kl("kl", tau, bins=70) for tau in (0.02, 0.1, 1.0, 1000.0)]
    x = np.linspace(-3, 4, 2000)
    mu, nu = unbalanced.MAP_SOURCE.density(x), unbalanced.MAP_TARGET.density(x)
    assert found == sorted(found) and 0 <= found[0] < 0.003
    assert found[-1] == pytest.approx((mu * np.log(mu / nu)).sum() * (x[1] - x[0]), rel=0.05)


def test_the_predicted_shrinkage():
    np.testing.assert_allclose(shrinkage.predicted(np.array([0, 1, 2, 5])), [1, 0.5**0.5, 0, 0])


def test_what_an_earlier_run_left_is_not_made_again(tmp_path):
    path = tmp_path / "run.npy"
    np.testing.assert_array_equal(unbalanced.kept(path, np.arange, 5), np.arange(5))
    np.testing.assert_array_equal(unbalanced.kept(path, np.zeros, 5), np.arange(5))


def test_steps_are_counted_for_both_schedules(tmp_path, monkeypatch):
    output = tmp_path / "steps.csv"
    arguments = ["--sizes", "36", "--seeds", "1", "--most", "220", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["steps", *arguments])
    steps.main()
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["n"] for row in rows} == {"36"}
    for row in rows:
        constant, growing = (float(x) for x in row["sweeps to 0.1"].split(" / "))
        assert float(row["ratio, 0.1"]) == growing / constant
        assert "uniform" not in row["problem"] or float(row["ratio"]) < 1


def test_objectives_on_images(tmp_path, monkeypatch):
    """Cells in this process, on small digits; a control, a flow after few steps, foreign images."""
    monkeypatch.setattr(image_yardstick, "STEPS", 20)
    monkeypatch.setattr(image_yardstick, "FEW_STEPS", 20)
    found = load_digits()
    np.savez(tmp_path / "digits.npz", images=(found.images * 15).astype(np.uint8), y=found.target)
    images.write_crops(tmp_path / "crops.npy")
    assert np.load(tmp_path / "crops.npy").shape == (1000, 28, 28)
    arguments = 0, 10.0, 1, str(tmp_path)
    cells = [
        images.run_cell(name, space, *arguments)
        for name, space in (("ot-cfm", "latent"), ("mixture", "latent"), ("wgan", "pixels"))
    ]
    flow, mixture, wgan, real = images.table(cells)
    assert flow["steps 1"] > 0 and flow["minibatches"] > 0 and math.isnan(wgan["steps 1"])
    assert mixture["frechet"] < wgan["frechet"] and real["frechet"] < mixture["frechet"]
    images.draw(cells, images.SPACES, found.images[:24, ..., None], tmp_path / "images.png")
    assert colours(tmp_path / "images.png") > 20
    cell = images.run_contaminated("linear", 0, 0.05, 1.0, 1, str(tmp_path))
    assert cell["foreign_real"] == pytest.approx(0.05, abs=0.02) and 0 <= cell["foreign"] <= 1
