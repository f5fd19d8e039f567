"""Samples of each target against its density, and the distances against closed forms."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from generative import point_files
from generative.metrics import (
    Yardstick,
    kl_divergence,
    law_distances,
    mmd,
    mode_shares,
    sliced_w2,
    wasserstein_distances,
)
from generative.point_files import Points
from generative.targets import TARGETS, from_file

LINES = [name for name, target in TARGETS.items() if target.dim == 1]


@pytest.mark.parametrize("name", LINES)
def test_samples_follow_the_density(name):
    target = TARGETS[name]
    samples = target.draw(200000, torch.Generator().manual_seed(0))
    assert samples.shape == (200000, 1) and samples.dtype == torch.float32
    assert quad(target.density, -10, 20, points=[0, 2, 10], limit=200)[0] == pytest.approx(
        1, abs=1e-6
    )
    edges = np.linspace(*target.window[0], 12)
    share = np.histogram(samples.numpy(), edges)[0] / len(samples)
    expected = [quad(target.density, *pair, limit=200)[0] for pair in pairwise(edges)]
    np.testing.assert_allclose(share, expected, atol=0.005)


@pytest.mark.parametrize("name", LINES)
def test_the_first_half_of_the_samples_is_like_the_second(name):
    samples = TARGETS[name].draw(100000, torch.Generator().manual_seed(1))
    w1, _ = wasserstein_distances(samples[:50000], samples[50000:])
    assert w1 < 0.03


def test_one_seed_gives_one_data_set():
    first, second, other = (
        TARGETS["mixture"].draw(100, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(0.1, 4))
def test_distances_have_their_closed_forms(seed, shift, scale):
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert wasserstein_distances(x, x + shift) == pytest.approx((abs(shift),) * 2, abs=1e-9)
    # Scaling about the mean moves every point by |scale - 1| |x - mean|, in order.
    moved = x.mean() + scale * (x - x.mean())
    w1 = abs(scale - 1) * float((x - x.mean()).abs().mean())
    w2 = abs(scale - 1) * float((x - x.mean()).square().mean().sqrt())
    assert wasserstein_distances(x, moved) == pytest.approx((w1, w2), rel=1e-9, abs=1e-9)
    assert wasserstein_distances(x, moved[torch.randperm(200)]) == pytest.approx((w1, w2), abs=1e-9)


def test_distances_refuse_points_that_do_not_match():
    with pytest.raises(ValueError, match=r"shapes \(n, d\) and \(m, d\); got \(5, 1\), \(5, 2\)"):
        wasserstein_distances(torch.ones(5, 1), torch.ones(5, 2))


# ------------------------------------------------------------------------------------- the plane

PLANES = [name for name, target in TARGETS.items() if target.dim == 2]


@pytest.mark.parametrize("name", PLANES)
def test_samples_of_the_plane(name):
    target = TARGETS[name]
    x = target.draw(20000, torch.Generator().manual_seed(0))
    assert x.shape == (20000, 2) and x.dtype == torch.float32
    low, high = np.array(target.window).T
    assert ((x.numpy() >= low) & (x.numpy() <= high)).all(1).mean() > 0.999
    assert torch.equal(x, target.draw(20000, torch.Generator().manual_seed(0)))
    assert not torch.equal(x, target.draw(20000, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", ["ring", "grid", "checkerboard"])
def test_densities_of_the_plane(name):
    target = TARGETS[name]
    steps = [np.linspace(low, high, 1201)[:-1] + (high - low) / 2400 for low, high in target.window]
    density = target.density(np.stack(np.meshgrid(*steps), -1))
    cell = np.prod([(high - low) / 1200 for low, high in target.window])
    assert density.sum() * cell == pytest.approx(1, abs=2e-3)
    x = target.draw(50000, torch.Generator().manual_seed(0)).double().numpy()
    inside = target.density(x)
    assert (inside > 0).all()
    # E density(x) = integral of its square.
    assert inside.mean() == pytest.approx((density**2).sum() * cell, rel=0.02)


@pytest.mark.parametrize("name", ["ring", "grid", "outlier", "mixture"])
def test_the_modes_of_a_mixture(name):
    target = TARGETS[name]
    x = target.draw(50000, torch.Generator().manual_seed(0))
    found = mode_shares(x, target)
    assert found["modes"] == found["modes_found"] == len(target.sd)
    # Within 3 standard deviations lies 0.9973 of a Gaussian on the line, 0.9889 on the plane.
    assert found["in_modes"] == pytest.approx(0.9973 if target.dim == 1 else 0.9889, abs=3e-3)
    assert found["smallest_mode"] == pytest.approx(target.shares.min(), abs=5e-3)
    one = torch.tensor(target.centres[:1], dtype=torch.float32).expand(100, -1)
    lone = mode_shares(one, target)
    assert lone["modes_found"] == 1 and lone["largest_mode"] == lone["in_modes"] == 1
    assert mode_shares(one + 100, target)["in_modes"] == 0


# ------------------------------------------------------------------ metrics between two Gaussians


def two_gaussians(d, n=5000, shift=0.5, scale=1.5):
    rng = torch.Generator().manual_seed(d)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)
    y = shift + scale * torch.randn(n, d, generator=rng, dtype=torch.float64)
    return x, y, shift, scale


@pytest.mark.parametrize("d", [1, 2])
def test_w2_between_gaussians(d):
    x, y, shift, scale = two_gaussians(d, n=3000)
    exact = (d * (shift**2 + (scale - 1) ** 2)) ** 0.5
    w1, w2 = wasserstein_distances(x, y, points=3000)
    assert w2 == pytest.approx(exact, rel=0.05) and 0 < w1 <= w2
    assert sliced_w2(x, y) == pytest.approx(exact / d**0.5, rel=0.07)


@pytest.mark.parametrize("d", [1, 2])
def test_kl_between_gaussians(d):
    x, y, shift, scale = two_gaussians(d, n=20000)
    exact = d * (np.log(scale) + (1 + shift**2) / (2 * scale**2) - 0.5)
    assert kl_divergence(x, y) == pytest.approx(exact, abs=0.03)
    assert kl_divergence(x[:10000], x[10000:]) == pytest.approx(0, abs=0.03)


def test_mmd_between_gaussians():
    """On the line, for a kernel exp(-r^2 / (2 h^2)), the mean of k(X, Y) is closed."""
    x, y, shift, scale = two_gaussians(1)
    points = torch.cat((x[:1000], y[:1000]))
    h = float(torch.pdist(points).median())

    def mean(variance, distance):
        return h / (h**2 + variance) ** 0.5 * np.exp(-(distance**2) / (2 * (h**2 + variance)))

    exact = mean(2, 0) + mean(2 * scale**2, 0) - 2 * mean(1 + scale**2, shift)
    parts = [slice(k, k + 500) for k in range(0, 5000, 500)]
    assert np.mean([mmd(x[k], y[k]) for k in parts]) == pytest.approx(exact, abs=0.01)
    assert abs(np.mean([mmd(x[k], x.flip(0)[k]) for k in parts[:5]])) < 0.005


# --------------------------------------------------------------------------- distances to a law


@pytest.mark.parametrize("name", LINES)
def test_quantile_functions_invert_the_densities(name):
    target = TARGETS[name]
    for u in (1e-4, 0.03, 0.3, 0.49, 0.5001, 0.77, 0.979, 0.9999):
        x = float(target.quantile(np.array([u]))[0])
        low, points = target.window[0][0] - 6, [z for z in (-2, 0, 2, 10) if z < x]
        assert quad(target.density, low, x, points=points, limit=500)[0] == pytest.approx(
            u, abs=1e-6
        )


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3))
def test_distances_of_an_atom_to_a_law(place):
    """W1 = E |X - place|, W2^2 = E (X - place)^2."""
    atom = torch.full((7, 1), place, dtype=torch.float64)
    w1, w2 = law_distances(atom, TARGETS["gaussian"])
    exact = place * (2 * norm.cdf(place) - 1) + 2 * norm.pdf(place)
    assert (w1, w2) == pytest.approx((exact, (1 + place**2) ** 0.5), abs=1e-5)
    w1, w2 = law_distances(atom, TARGETS["uniform"])
    exact = abs(place - 1) if not 0 < place < 2 else ((2 - place) ** 2 + place**2) / 4
    assert (w1, w2) == pytest.approx((exact, (1 / 3 + (place - 1) ** 2) ** 0.5), abs=1e-5)
    _, w2 = law_distances(atom, TARGETS["mixture"])
    variance = 0.5 * (1 + (place + 2) ** 2) + 0.5 * (0.25 + (place - 2) ** 2)
    assert w2 == pytest.approx(variance**0.5, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), st.floats(-2, 2), st.floats(0.2, 3))
def test_distances_of_an_even_sample_to_a_law(n, shift, scale):
    """n points in the middle of n equal parts of [0, 2]; moved quantiles of a Gaussian."""
    x = torch.from_numpy((2 * np.arange(n)[:, None] + 1) / n)
    assert law_distances(x, TARGETS["uniform"])[0] == pytest.approx(1 / (2 * n), rel=1e-2)
    z = norm.ppf((np.arange(10**6)[:, None] + 0.5) / 10**6)
    w1, w2 = law_distances(torch.from_numpy(shift + scale * z), TARGETS["gaussian"])
    assert w2 == pytest.approx((shift**2 + (scale - 1) ** 2) ** 0.5, abs=1e-5)
    assert w1 == pytest.approx(float(np.abs(shift + (scale - 1) * z).mean()), abs=1e-9)


def yardstick(target):
    rng = torch.Generator().manual_seed(0)
    return Yardstick(target, target.draw(2000, rng), rng, full=True)


def test_a_law_is_measured_beside_the_training_set():
    target = TARGETS["mixture"]
    found = yardstick(target)

    def sample(n, stratified=False):
        rng = torch.Generator().manual_seed(1)
        if not stratified:
            return target.draw(n, rng)
        return torch.from_numpy(target.quantile((np.arange(n) + 0.5) / n)[:, None])

    measured = found.measure(sample)
    assert measured["w1"] < 1e-6 and measured["w2"] < 1e-6
    data = target.draw(2000, torch.Generator().manual_seed(0))
    assert found.reference["w1_data"] == law_distances(data, target)[0] > 0.01
    assert abs(measured["kl"]) < 0.02 and "w1_two_sample" not in found.reference


def test_two_sample_distances_are_means_over_pairs(monkeypatch):
    monkeypatch.setattr("generative.metrics.PLANE", 300)
    target = TARGETS["ring"]
    found = yardstick(target)
    pairs = [wasserstein_distances(x, y)[1] for x, y in found.pairs]
    assert len(pairs) == 4 and len(found.pairs[0][0]) == 300
    assert found.reference["w2_two_sample"] == pytest.approx(np.mean(pairs))
    assert found.reference["w2_two_sample_sd"] == pytest.approx(np.std(pairs, ddof=1))
    rng = torch.Generator().manual_seed(1)
    measured = found.measure(lambda n: target.draw(n, rng) + 0.3)
    for name in ("w1", "w2", "sliced_w2", "mmd", "kl"):
        mean, sd = (found.reference[name + end] for end in ("_two_sample", "_two_sample_sd"))
        assert measured[name] > mean and sd > 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_mmd_of_ties(share):
    """The closed form for atoms at 0 and 1 where every distance that is not 0 is 1."""
    x, y = torch.zeros(400, 1), torch.zeros(500, 1)
    x[: int(400 * share)] = 1
    p, q = share, 0.0
    pairs = (400 / 399) * 2 * p * (1 - p)  # that differ within x
    k = np.exp(-0.5)
    exact = (1 - pairs * (1 - k)) + 1 - 2 * (1 - (p * (1 - q) + q * (1 - p)) * (1 - k))
    assert mmd(x, y) == pytest.approx(exact, abs=1e-12)


def test_kl_of_ties_is_none():
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    repeated = x.round()
    assert kl_divergence(repeated, repeated) is None and kl_divergence(x, x.flip(0)) is not None
    assert kl_divergence(x, repeated) is None and kl_divergence(repeated, x) is None


# ----------------------------------------------------------------------------------- a user's data


@pytest.mark.parametrize("d", [1, 2, 5])
def test_data_of_a_file_are_split_and_shown(tmp_path, d):
    rows = np.random.default_rng(0).normal(3, 2, (1000, d))
    np.save(tmp_path / "mine.npy", rows)
    target = from_file(str(tmp_path / "mine.npy"), seed=0)
    rng = torch.Generator().manual_seed(0)
    data = target.draw(50000, rng)
    first, second = target.two_sets(50000, rng)
    assert target.dim == d and data.dtype == first.dtype == torch.float32
    assert (len(data), len(first), len(second)) == (800, 100, 100)
    everything = torch.cat((data, first, second)).numpy()
    assert abs(everything.mean(0)).max() < 1e-6
    assert everything.var(0).mean() == pytest.approx(1)
    everything = np.sort(target.in_data_units(everything), axis=0)
    np.testing.assert_allclose(everything, np.sort(rows, axis=0), atol=1e-5)
    assert len(target.draw(10, rng)) == 10 and len(target.two_sets(7, rng)[1]) == 7
    shown = target.shown(data.numpy())
    if d > 2:  # principal components
        assert abs(shown.mean(0)).max() < 0.5 and shown.std(0).min() > 2 - 0.2
    assert shown.shape == (800, min(d, 2)) and len(target.window) == min(d, 2)
    low, high = np.array(target.window).T
    assert ((shown > low) & (shown < high)).all()
    assert (target.density is not None) == (d == 1)
    if d == 1:
        assert quad(target.density, low[0], high[0], limit=500)[0] == pytest.approx(1, abs=0.02)


SCALES = [(1e-300, 0), (1e-160, 1e-150), (1e-6, 0), (1e-6, 1.0), (1e-6, -1e6), (1e15, 1.7e18)]
SCALES += [(1e300, 0)]


def target_of(path, rows):
    np.save(path, rows)
    return from_file(str(path), seed=0)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("scale, offset", SCALES)
def test_data_of_any_scale_and_offset_are_the_same_in_standard_units(tmp_path, d, scale, offset):
    rows = np.random.default_rng(0).normal(size=(1000, d))
    plain = target_of(tmp_path / "plain.npy", rows)
    other = target_of(tmp_path / "other.npy", offset + scale * rows)
    x, y = (t.draw(800, torch.Generator().manual_seed(0)).numpy() for t in (plain, other))
    np.testing.assert_allclose(x, y, atol=1e-4)
    assert set(np.sign(other.origin)) == {np.sign(offset) if abs(offset) > 5000 * scale else 0}
    (low, high), (first, last) = other.window[0], plain.window[0]
    assert (high - low) / scale == pytest.approx(last - first, rel=1e-5)
    assert low <= other.shown(y)[:, 0].min() and other.shown(y)[:, 0].max() <= high
    np.testing.assert_allclose(other.in_data_units(y), offset + scale * plain.in_data_units(x))
    if d == 1:
        x = rows + 1e-3  # not an end of a bin
        y = offset - other.origin + scale * x
        assert scale * other.density(y) == pytest.approx(plain.density(x), rel=1e-4)


@pytest.mark.parametrize("dtype", ["i8", "u8", "i2"])
def test_integers_far_from_zero_are_exact(tmp_path, dtype):
    """Also at both ends of what the dtype holds, and beside a column near zero."""
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max - 9, 0], dtype=dtype)
    rows = ends + np.random.default_rng(0).integers(0, 10, (500, 3)).astype(dtype)
    target = target_of(tmp_path / "mine.npy", rows)
    beyond = target.offset + target.scale * target.held_out[:]
    np.testing.assert_allclose(beyond, beyond.round(), atol=1e-5)
    found = {tuple((target.origin + row.astype(dtype)).tolist()) for row in beyond.round()}
    assert found <= set(map(tuple, rows.tolist()))


@pytest.mark.parametrize("dtype", ["f2", ">f8", "i4", "u1", "?", "g"])
def test_data_of_any_real_dtype_are_read(tmp_path, dtype):
    rows = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (500, 2)).astype(dtype))
    target = target_of(tmp_path / "mine.npy", rows)
    shown = target.shown(target.draw(400, torch.Generator().manual_seed(0)).numpy())
    assert shown == pytest.approx(shown.round(), abs=1e-6) and shown.std() > 0.4


def test_columns_keep_their_proportion(tmp_path):
    """Squared distances mix the columns, so that one scale serves all."""
    rows = np.random.default_rng(0).normal(size=(500, 2)) * [1e12, 1e-12]
    target = target_of(tmp_path / "mine.npy", rows)
    spread = target.draw(400, torch.Generator().manual_seed(0)).std(0)
    assert float(spread[1] / spread[0]) == pytest.approx(1e-24, rel=0.2)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            np.ones((99, 2)),
            r"has shape \(99, 2\); accepts a .npy file of shape \(n, d\)",
        ),
        (np.ones(500), r"bad.npy has shape \(500,\)"),
        (np.ones((200, 785)), r"shape \(200, 785\); accepts .* d up to 784"),
        (np.ones((200, 2), dtype=complex), "holds complex128, not real numbers"),
        (np.full((200, 1), np.nan), "entries that are not finite"),
        (np.full((200, 1), 1e300), "all rows of .* are equal"),
        (1e305 * np.arange(200.0)[:, None], r"entries up to 1e\+303"),
        (1e-306 * np.arange(200.0)[:, None], "differ by 1e-303 or more"),
        (1e20 + np.arange(200.0)[:, None], "all rows of .* are equal"),
        (np.r_[np.random.default_rng(0).normal(size=(200, 1)), [[1e30]]], "equal in float32"),
        (np.ones((200, 2), dtype="m8[s]"), "holds timedelta64"),
        (np.ones(200, dtype=[("a", "f8")]), "not real numbers"),
        (np.full((200, 1), None), "cannot be read .*Python objects"),
        (np.ones((0, 2)), r"shape \(0, 2\)"),
        (np.array([["a"] * 3] * 200), "holds <U1, not real numbers"),
        (None, "there is no file"),
        (b"not an array", "cannot be read"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=f"data_path: .*{message}"):
        from_file(str(path), 0)


@pytest.mark.parametrize("dtype, offset", [("f4", 0), ("f8", 1e9), ("i8", 10**12)])
def test_a_file_is_read_in_parts(tmp_path, monkeypatch, dtype, offset):
    """Its points in standard units are those of NumPy's whole array."""
    monkeypatch.setattr(point_files, "PART", 64)
    rows = (offset + 1000 * np.random.default_rng(0).normal(size=(500, 3))).astype(dtype)
    np.save(tmp_path / "mine.npy", rows)
    points = Points(str(tmp_path / "mine.npy"))
    exact = rows.astype(float) - rows.astype(float).mean(0)
    expected = exact / np.sqrt(exact.var(0).mean())
    np.testing.assert_allclose(points[:], expected, atol=1e-5)
    some = np.array([7, 3, 499])
    np.testing.assert_array_equal(points.part(some)[:], points[some])
    assert points.digest == hashlib.sha256((tmp_path / "mine.npy").read_bytes()).hexdigest()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(500, 2)))
    target = from_file(str(tmp_path / "mine.npy"), seed=0)
    np.save(tmp_path / "mine.npy", np.zeros((500, 2)))
    with pytest.raises(ValueError, match="has changed since the run began"):
        target.two_sets(10, torch.Generator())
