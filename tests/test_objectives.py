"""Every training objective against its contract, and each against its closed form."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import kl_div

import learning_demo
from generative.batches import Batches, Noise, noise_of, stratified_points
from generative.networks import Critic
from generative.objectives import OBJECTIVES
from generative.objectives.assignment import PAIRS, cheapest
from generative.objectives.objective import CriticObjective
from generative.objectives.sinkhorn import Sinkhorn
from generative.objectives.uotm import CONJUGATES
from generative.objectives.wgan_gp import WganGp
from generative.run_settings import check
from generative.targets import TARGETS
from learning_demo import Config, train
from tests.test_learning_demo import saved, train_and_interrupt, training

CRITICS = ("wgan", "wgan-gp")
OF_NOISE = ("assignment", "assignment-fast", "uotm")  # what they do depends on the noise
SMALL = {"data_size": 400, "batchsize": 32, "g_dim": 16, "c_dim": 16, "num_proximal": 10}
SMALL |= {"n_critic": 2, "latent_centres": 50, "show": False}
PLANS = ("ipot", "ipot-exact", "sinkhorn")


def small(objective="ipot", **changes):
    """Settings of a small run; of SMALL what is live."""
    live = Config(objective=objective).__dataclass_fields__
    chosen = {name: value for name, value in SMALL.items() if name in live}
    return Config(**{**chosen, "objective": objective, **changes})


class Points(torch.nn.Module):
    """A generator that gives its own parameters, whatever the noise."""

    def __init__(self, x):
        super().__init__()
        self.x = torch.nn.Parameter(x)

    def forward(self, z):
        return self.x


class Affine(torch.nn.Linear):
    """A generator on the line, the identity at first."""

    def __init__(self):
        super().__init__(1, 1)
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)


class Fixed:
    """The same data each time, fresh normal noise."""

    shape = None

    def __init__(self, y):
        self.data, self.rng = y, torch.Generator().manual_seed(0)

    def noise(self):
        return torch.randn(len(self.data), 1, generator=self.rng)

    def points(self):
        return self.data


def toy(name, seed=0, n=24, **changes):
    """An objective, its generator, and fixed data of n points on the line."""
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 1, generator=rng)
    batches = Fixed(y)
    if name in PLANS:
        changes = {"updates_per_plan": 1, **changes}
    config = small(name, **{"batchsize": n, **changes})
    generator = OBJECTIVES[name].make_generator(config, Noise("gaussian", 1), 1)
    if generator is None:
        generator = Affine() if name in OF_NOISE else Points(x)
    else:
        generator.initialise(y, rng)
    objective = OBJECTIVES[name](config, generator, batches)
    if name == "wgan":
        objective.updates = 1001
    return objective, generator, batches


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_update_changes_the_generator_and_gives_what_to_log(name):
    objective, generator, batches = toy(name)
    z = batches.noise()
    before = generator(z).detach().clone()
    logged = objective.update()
    assert "loss" in logged
    for value in logged.values():
        assert value.ndim == 0 and bool(value.isfinite()) and not value.requires_grad
    assert not torch.equal(before, generator(z))
    assert all(p.requires_grad for p in generator.parameters())


@pytest.mark.parametrize("name", PLANS)
def test_points_that_are_all_equal_stay(name):
    objective, generator, batches = toy(name)
    torch.nn.init.ones_(generator.x)
    batches.data = torch.ones_like(batches.data)
    assert float(objective.update()["loss"]) == pytest.approx(0, abs=1e-6)
    assert float((generator.x.detach() - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_updates_bring_the_points_to_the_target(name):
    own = {"wgan": {"clip": 0.1}, "wgan-gp": {"penalty": 1.0}, "uotm": {"penalty": 0.0}}
    rates = {"critic_lr": 5e-3} if issubclass(OBJECTIVES[name], CriticObjective) else {}
    objective, generator, batches = toy(name, n=64, lr=5e-3, **own.get(name, {}), **rates)
    batches.data = 0.5 * batches.data + 3
    z = batches.noise()

    def distance():
        x = generator(z).detach()
        return ot.wasserstein_1d(x.numpy()[:, 0], batches.data.numpy()[:, 0])

    before = distance()
    for _ in range(150):
        objective.update()
    assert distance() < 0.8 * before


def entropic(x, y, reg=0.5):
    """POT's entropic cost, the entropy included."""
    plan = ot.sinkhorn([], [], ot.dist(x, y), reg, stopThr=1e-12, numItermax=10**5)
    return (plan * (ot.dist(x, y) + reg * np.log(plan * len(x) * len(y)))).sum()


COSTS = {
    "ipot": lambda x, y: ot.emd2([], [], ot.dist(x, y)),
    "ipot-exact": lambda x, y: ot.emd2([], [], ot.dist(x, y)),
    "sinkhorn": lambda x, y: entropic(x, y) - entropic(x, x) / 2 - entropic(y, y) / 2,
    "sinkhorn, plain": entropic,
}


@pytest.mark.parametrize("name", COSTS)
def test_the_gradient_is_that_of_the_loss(name):
    """Finite differences of POT's cost."""
    name, _, plain = name.partition(", ")
    changes = {
        "ipot": {"num_proximal": 3000},
        "ipot-exact": {},
        "sinkhorn": {"num_proximal": 3000, "reg": 0.5, "debiased": not plain},
    }[name]
    objective, generator, batches = toy(name, n=12, lr=1e-12, huber=1e4, **changes)
    loss = objective.update()["loss"]
    x, y = (z.detach().double().numpy() for z in (generator.x, batches.data))
    cost = COSTS[f"{name}, plain" if plain else name]
    assert float(loss) == pytest.approx(cost(x, y), rel=1e-2, abs=1e-4)
    for k in range(12):
        step = np.zeros_like(x)
        step[k] = 1e-5
        slope = (cost(x + step, y) - cost(x - step, y)) / 2e-5
        assert float(generator.x.grad[k, 0]) == pytest.approx(slope, abs=5e-3)


@pytest.mark.parametrize("name", PLANS)
def test_many_updates_on_a_plan_bring_points_where_it_sends_them(name):
    """POT's plan, of the points before."""
    own = {"ipot": {"num_proximal": 1000}}
    own["sinkhorn"] = {"num_proximal": 1000, "reg": 0.5, "debiased": False}
    changes = {"lr": 0.01, **own.get(name, {})}
    objective, generator, batches = toy(name, n=12, updates_per_plan=1500, **changes)
    x, y = generator.x.detach().double().numpy(), batches.data.double().numpy()
    cost = ot.dist(x, y)
    plan = ot.sinkhorn([], [], cost, 0.5) if name == "sinkhorn" else ot.emd([], [], cost)
    objective.update()
    np.testing.assert_allclose(generator.x.detach().numpy(), 12 * plan @ y, atol=0.01)


@pytest.mark.parametrize("name", ["ipot", "ipot-exact"])
def test_debiased_destinations_move_away_from_a_second_sample(name):
    """By POT's plans; where the second sample is the data nothing moves."""
    own = {"num_proximal": 1000} if name == "ipot" else {}
    objective, generator, batches = toy(name, n=16, debiased=True, **own)
    second = torch.randn(16, 1, generator=batches.rng)
    objective.generator = lambda noise: second
    assert objective.second() is second
    x, y = generator.x.detach(), batches.data
    found, cost = objective.destination(x, y, second)
    plans = [
        16 * ot.emd([], [], ot.dist(x.double().numpy(), z.double().numpy())) for z in (y, second)
    ]
    expected = x.numpy() + plans[0] @ y.numpy() - plans[1] @ second.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert float(cost) == pytest.approx(ot.emd2([], [], ot.dist(x.numpy(), y.numpy())), rel=1e-3)
    torch.testing.assert_close(objective.destination(x, y, y)[0], x, atol=1e-5, rtol=0)


def test_plans_between_few_points_draw_samples_together_but_for_debiased_ones():
    """Samples of small minibatches in many dimensions, where an exact plan averages unlike data."""
    spread = {}
    for debiased in (False, True):
        torch.manual_seed(0)
        config = small("ipot-exact", debiased=debiased, lr=0.01, updates_per_plan=1)
        generator = torch.nn.Linear(8, 8)
        batches = Fixed(torch.zeros(32, 8))
        rng = torch.Generator().manual_seed(0)
        batches.noise = batches.points = partial(torch.randn, 32, 8, generator=rng)
        objective = OBJECTIVES["ipot-exact"](config, generator, batches)
        for _ in range(400):
            objective.update()
        spread[debiased] = float(generator(batches.noise()).var(0).mean().detach())
    assert spread[False] < 0.5 and spread[True] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_step_leaves_the_generator_alone_and_lowers_its_loss(name):
    own = {"wgan": {"clip": 10.0}}.get(name, {})
    objective, generator, batches = toy(name, lr=1e-3, critic_lr=1e-3, **own)
    x, y = generator.x.detach(), batches.data
    first = objective.critic_step(x, y)
    assert generator.x.grad is None
    for _ in range(100):
        last = objective.critic_step(x, y)
    assert last < first
    before = [p.clone() for p in objective.critic.parameters()]
    objective.critic_steps = lambda: 1
    objective.critic_step = lambda x, y: torch.zeros(())
    objective.update()
    for p, q in zip(objective.critic.parameters(), before):
        assert torch.equal(p, q) and p.requires_grad


def test_the_clipped_critic_stays_in_its_range():
    objective, _, _batches = toy("wgan", lr=0.1, clip=0.02)
    for _ in range(3):
        objective.update()
        for p in objective.critic.parameters():
            assert float(p.detach().abs().max()) <= 0.02 + 1e-8


def test_the_clipped_critic_takes_more_steps_at_first():
    objective, _, _ = toy("wgan", n_critic=5)
    steps = []
    for objective.updates in (0, 24, 25, 499, 500, 1000):
        steps.append(objective.critic_steps())
    assert steps == [100, 100, 5, 5, 100, 100]


def test_the_penalty_of_a_linear_critic_is_its_closed_form():
    objective, _, _ = toy("wgan-gp", penalty=0.7)

    class Linear(torch.nn.Module):
        def forward(self, x):
            return x @ torch.tensor([3.0, 4.0])

    objective.critic = Linear()
    x, y = torch.randn(2, 10, 2)
    assert float(objective.penalty(x, y)) == pytest.approx(0.7 * (5 - 1) ** 2, rel=1e-5)


def test_a_flat_critic_has_a_penalty_with_a_gradient():
    objective, _, _ = toy("wgan-gp", penalty=2.0)
    for p in objective.critic.parameters():
        torch.nn.init.zeros_(p)
    x, y = torch.randn(2, 10, 1)
    penalty = objective.penalty(x, y)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(2.0, rel=1e-4)
    assert all(
        p.grad is None or bool(p.grad.isfinite().all()) for p in objective.critic.parameters()
    )


def test_critic_scales_its_input():
    data = 5 + 3 * torch.randn(1000, 2)
    critic = Critic(data, 8, torch.Generator().manual_seed(0))
    assert critic(data).shape == (1000,)
    of_more = Critic(7 - 40 * data, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(of_more(7 - 40 * data), critic(-data + 2 * data.mean(0)))


def assert_resumes_to_the_same_numbers(tmp_path, **changes):
    def config(folder):
        output = str(tmp_path / folder)
        return small(**{"epochs": 4, "plot_interval": 2, "output_dir": output, **changes})

    whole = train(config("whole"))
    train_and_interrupt(config("cut"), after=2)
    folder = next((tmp_path / "cut").iterdir())
    resumed = train(dataclasses.replace(saved(folder), show=False))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_resumes_to_the_same_numbers(tmp_path, name):
    assert_resumes_to_the_same_numbers(tmp_path, objective=name)


def test_noise():
    rng = torch.Generator().manual_seed(0)
    z = Noise("gaussian", 3)(20000, rng)
    assert z.shape == (20000, 3) and float(z.std()) == pytest.approx(1, abs=0.02)
    z = Noise("uniform", 3)(20000, rng)
    assert float(z.abs().max()) <= 1 and float(z.var()) == pytest.approx(1 / 3, abs=0.01)
    config = small("assignment", latent_sigma=0.01)
    noise = noise_of(config, 2)
    z, centres = noise(2000, rng), noise.centres
    assert centres.shape == (50, 2) and float(centres.std()) == pytest.approx(1, abs=0.2)
    nearest = torch.cdist(z, centres).min(1)
    assert len(nearest.indices.unique()) == 50 and float(nearest.values.max()) < 0.06
    assert torch.equal(centres, noise_of(config, 2).centres)


@settings(max_examples=40, deadline=None)
@given(st.integers(64, 300), st.sampled_from([1, 2, 3, 4, 5, 6, 7, 20]), st.integers(0, 10**6))
def test_stratified_points_are_even(n, dim, seed):
    """Each point is uniform over the shifts; a half of the cube misses its share of points by
    less than it does with independent ones, whose share has standard deviation 1 / sqrt(4 n)."""
    rng = torch.Generator().manual_seed(seed)
    u = torch.stack([stratified_points(n, dim, rng) for _ in range(30)])
    assert u.shape == (30, n, dim) and u.dtype == torch.float32
    assert 0 <= float(u.min()) and float(u.max()) <= 1
    missed = (u < 0.5).float().mean(1) - 0.5
    assert float(missed.square().mean().sqrt()) < 0.8 / (4 * n) ** 0.5
    firsts = torch.cat([stratified_points(1, dim, rng) for _ in range(2000)])
    assert float((firsts - 0.5).mean(0).abs().max()) < 0.03


@pytest.mark.parametrize(
    "latent, variance", [("uniform", 1 / 3), ("gaussian", 1), ("gaussians", 1)]
)
def test_stratified_noise_has_the_law_of_the_other(latent, variance):
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(4000, 2, generator=rng) if latent == "gaussians" else None
    noise = Noise(latent, 2, centres, 0.1)
    z = torch.cat([noise(4096, rng, stratified=True) for _ in range(5)])
    assert not torch.equal(noise(10, rng, stratified=True), noise(10, rng, stratified=True))
    torch.testing.assert_close(z.var(0), torch.full((2,), variance * 1.0), atol=0.07, rtol=0)
    assert float(z.mean(0).abs().max()) < 0.05
    if latent != "gaussians":  # whose centres are drawn at random
        means = torch.stack([noise(4096, rng, stratified=True).mean(0) for _ in range(20)])
        assert float(means.abs().max()) < 0.5 * (variance / 4096) ** 0.5  # independent: 2.5


def minibatches(data, size, stratified):
    rng = torch.Generator().manual_seed(0)
    return Batches(Noise("uniform", 2), data, size, stratified, rng)


@settings(max_examples=30, deadline=None)
@given(st.integers(30, 500), st.integers(2, 60), st.sampled_from(["mixture", "ring", "moons"]))
def test_stratified_minibatches_give_each_region_its_share(size, count, name):
    """No point is taken more often than others, and halves of the data keep their share."""
    data = TARGETS[name].draw(size, torch.Generator().manual_seed(1))
    count = min(count, size)
    batches = minibatches(data, count, stratified=True)
    seen = torch.stack([batches.points() for _ in range(40)])
    median = data[:, 0].median()
    share = (data[:, 0] <= median).float().mean()
    for y in seen:
        assert len(y.unique(dim=0)) == count  # none twice
        rows = (y[:, None] == data).all(-1)
        assert bool(rows.any(1).all())
    if name == "mixture":  # on the line the tree's order is the order, so shares are exact to 1
        shares = (seen[..., 0] <= median).float().sum(1)
        assert float((shares - share * count).abs().max()) <= 1.01


def test_rates_fall_from_their_multiple_to_the_rate():
    config = small("wgan-gp", lr_factor=5.0, lr=1e-3, critic_lr=2e-3, epochs=4)
    run = training(config)
    rates = []
    for _ in range(4):
        run.run_epoch()
        optimizers = run.objective.optimizer, run.objective.critic_optimizer
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
    np.testing.assert_allclose(rates, np.outer([5, 4, 3, 2], [1e-3, 2e-3]))


def test_independent_minibatches_resume_to_the_same_numbers(tmp_path):
    assert_resumes_to_the_same_numbers(tmp_path, stratified=False, data_type="mixture")


def test_stratified_minibatches_fit_a_mixture_better(tmp_path):
    """The same updates; the gap between the modes is what chance fills."""
    changes = {"data_type": "mixture", "batchsize": 64, "g_dim": 64, "lr": 1e-4, "epochs": 100}
    changes |= {"data_size": 5000, "plot_interval": 100, "output_dir": str(tmp_path)}
    found = [train(small(**changes, stratified=stratified))["w1"] for stratified in (False, True)]
    assert found[1] < 0.7 * found[0]


def test_minibatches_walk_through_the_data():
    data = torch.randn(80, 1)
    batches = minibatches(data, 32, stratified=False)
    seen = torch.cat([batches.points() for _ in range(5)])
    torch.testing.assert_close(seen, torch.cat((data, data)))


@pytest.mark.parametrize("figure, value", [("critic", float("nan")), ("loss", 1e12)])
def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(tmp_path, monkeypatch, figure, value):
    calls = iter(range(100))

    def update(self, update=WganGp.update):
        return {**update(self), figure: torch.tensor(value if next(calls) >= 3 else 0.0)}

    monkeypatch.setattr(WganGp, "update", update)
    config = small("wgan-gp", epochs=9, plot_interval=2, output_dir=str(tmp_path))
    with pytest.raises(ValueError, match=rf"broke down in epoch 4 \({figure} went to .*smaller lr"):
        train(config)
    folder = tmp_path / "gaussian"
    state = learning_demo.load_checkpoint(folder / "checkpoint.pt", torch.device("cpu"))
    assert state["epoch"] == 2


@pytest.mark.parametrize(
    "objective, changes, message",
    [
        ("wgangp", {}, "objective: got 'wgangp'; accepts auto, ipot, ipot-exact"),
        ("ipot", {"latent": "gaussians"}, "latent: got 'gaussians'; accepts uniform, gaussian"),
        ("assignment", {"latent": "normal"}, "latent: got 'normal'; accepts uniform, gaussian, g"),
        ("uotm", {"conjugate": "tv"}, "conjugate: got 'tv'; accepts linear, kl, chi2, softplus"),
        ("uotm", {"tau": 0}, "tau: got 0; accepts numbers above 1e-09"),
        ("uotm", {"penalty": -1.0}, "penalty: got -1.0; accepts numbers from 0"),
        ("uotm", {"z_dim": 1, "data_type": "ring"}, "z_dim: got 1; accepts 2 or more"),
        ("assignment", {"latent_centres": 0}, "latent_centres: got 0; accepts integers from 1 up"),
        ("sinkhorn", {"reg": 0.0}, "reg: got 0.0; accepts numbers"),
        ("wgan", {"clip": -1}, "clip: got -1; accepts numbers"),
        ("wgan", {"n_critic": 0}, "n_critic: got 0; accepts integers from 1 up"),
        ("wgan", {"beta": 0.1}, "beta: wgan has no such setting; it belongs to ipot"),
        (
            "ipot",
            {"n_critic": 3},
            "n_critic: ipot has no such setting; it belongs to wgan, wgan-gp",
        ),
        ("ipot", {"epoch": 3}, "epoch: there is no such setting; did you mean epochs?"),
    ],
)
def test_bad_settings_are_refused(objective, changes, message):
    with pytest.raises(ValueError) as error:
        check(Config(objective=objective, **changes))
    assert str(error.value).startswith(message)


def test_sinkhorn_shrinks_plainly_and_not_when_debiased():
    """For a Gaussian of variance s^2 the plain minimiser has variance s^2 - reg / 2."""
    rng = torch.Generator().manual_seed(0)
    y = torch.erfinv(torch.linspace(-0.999, 0.999, 150)[:, None]) * 2**0.5
    for debiased, variance in ((False, float(y.var()) - 0.25), (True, float(y.var()))):
        generator = Points(torch.randn(150, 1, generator=rng))
        changes = {"num_proximal": 40, "reg": 0.5, "debiased": debiased, "lr": 0.02}
        config = small("sinkhorn", updates_per_plan=1, huber=1e4, **changes)
        objective = Sinkhorn(config, generator, Fixed(y))
        for _ in range(200):
            objective.update()
        assert float(generator.x.detach().var()) == pytest.approx(variance, rel=0.04)


# ------------------------------------------------------------------------------------- assignment


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1, 2, 3, 5, 12]))
def test_assignment_equals_brute_force(seed, count, dim):
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(30, dim, generator=rng), torch.randn(count, dim, generator=rng)
    psi = torch.randn(count, generator=rng)
    value = psi + 0.1 * torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    chosen = cheapest(x, y, psi)
    assert chosen.shape == (30,) and chosen.dtype == torch.int64
    best = value.min(1).values
    torch.testing.assert_close(value.gather(1, chosen[:, None])[:, 0], best, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, grown", [("assignment", True), ("assignment-fast", False)])
def test_rounds_of_assignment(name, grown):
    objective, _, _batches = toy(name, n=50, batchsize=50)
    sizes = []
    for objective.walks in (0, 50, 200, 300):
        sizes.append(objective.minibatches(10000))
    assert sizes == ([10, 1010, 2010, 2010] if grown else [2] * 4)
    objective.walks = 0
    noise, chosen = objective.new_pairs()
    assert len(noise) == len(chosen) == 50 * objective.minibatches(50)


def test_a_walk_takes_every_pair_once():
    objective, _generator, _batches = toy("assignment", n=48, batchsize=48, n_critic=1)
    objective.update()
    pairs = objective.pairs[0]
    assert len(pairs) == 480
    for _ in range(1, 480 // PAIRS):
        objective.update()
        assert objective.pairs[0] is pairs
    for _ in range(2):
        objective.update()
    assert objective.pairs[0] is not pairs and objective.walks == 2


def test_assignment_becomes_fair():
    """Semi-discrete transport: with psi optimal each point of the data has the same share."""
    objective, generator, batches = toy("assignment", n=20, critic_lr=3e-3, c_dim=64)
    batches.data = batches.data + 2  # the nearest of most samples is the leftmost point
    objective.new_pairs()
    start = {name: float(value) for name, value in objective.uniformity.items()}
    for _ in range(100):
        objective.new_pairs()
    assert float(objective.uniformity["unassigned"]) < start["unassigned"]
    assert float(objective.uniformity["dispersion"]) < start["dispersion"] / 5
    assert generator.weight.grad is None


# -------------------------------------------------------------------------- unbalanced transport


@pytest.mark.parametrize("name", CONJUGATES)
def test_conjugates_are_convex_with_value_0_and_slope_1_at_0(name):
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    y = CONJUGATES[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert float(y[2000].detach()) == pytest.approx(0, abs=1e-12)
    assert float(slope[2000]) == pytest.approx(1, abs=1e-12)
    assert bool((slope.diff() >= -1e-9).all()) and bool((slope >= 0).all())
    assert bool(CONJUGATES[name](torch.tensor([1e4, -1e4])).isfinite().all())


def test_conjugates_are_those_of_their_divergences():
    """Psi*(x) = sup_t x t - Psi(t), by a fine grid of t."""
    t = torch.linspace(1e-9, 60, 400001, dtype=torch.float64)
    prices = {"kl": t * t.log() - t + 1, "chi2": (t - 1).square()}
    x = torch.linspace(-4, 3, 15, dtype=torch.float64)
    for name, price in prices.items():
        highest = torch.stack([(s * t - price).max() for s in x])
        torch.testing.assert_close(CONJUGATES[name](x), highest, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("conjugate", CONJUGATES)
def test_a_step_of_the_potential_leaves_the_map_alone_and_lowers_its_loss(conjugate):
    objective, generator, batches = toy("uotm", conjugate=conjugate, tau=0.5, penalty=0.0, lr=1e-3)
    x, y, dual = batches.noise(), batches.data, CONJUGATES[conjugate]
    with torch.no_grad():
        generator.bias += 1
        v = objective.critic
        cost = 0.25 * (x - generator(x)).square()[:, 0]
        expected = dual(v(generator(x)) - cost).mean() + dual(-v(y)).mean()
    before = generator(x).detach()
    first = objective.critic_step(x, x, y)
    assert float(first) == pytest.approx(float(expected), rel=1e-5)
    for _ in range(100):
        last = objective.critic_step(x, x, y)
    assert last < first and torch.equal(generator(x), before) and generator.weight.grad is None


def test_a_step_of_the_map_leaves_the_potential_alone():
    objective, generator, _batches = toy("uotm", tau=0.5, lr=1e-3)
    before = [p.clone() for p in objective.critic.parameters()]
    objective.critic_step = lambda source, noise, y: torch.zeros(())
    bias = generator.bias.clone()
    objective.update()
    for p, q in zip(objective.critic.parameters(), before):
        assert torch.equal(p, q) and p.requires_grad
    assert not torch.equal(generator.bias, bias)


def test_the_dual_of_a_trained_potential_is_the_unbalanced_cost():
    """Its c-transform gives a lower bound of the cost; POT gives that."""
    objective, _, batches = toy(
        "uotm", n=100, tau=0.5, penalty=0.0, lr=1e-2, critic_lr=1e-3, c_dim=32, n_critic=1
    )
    batches.data = 2 + 0.5 * batches.data
    x, y, a = batches.noise(), batches.data, np.full(100, 0.01)
    cost = 0.25 * ot.dist(x.double().numpy(), y.double().numpy())
    plan = ot.unbalanced.mm_unbalanced(a, a, cost, 1.0, numItermax=20000, stopThr=1e-13)
    exact = (plan * cost).sum() + sum(kl_div(plan.sum(k), a).sum() for k in (0, 1))
    for _ in range(400):
        objective.update()
    with torch.no_grad():
        v = objective.critic(y).double()
    transform = (torch.from_numpy(cost) - v).min(1).values
    bound = -sum(float(CONJUGATES["kl"](-z).mean()) for z in (transform, v))
    assert 0.9 * exact < bound <= exact + 1e-6


def test_the_penalty_of_a_linear_potential_is_its_closed_form():
    """Also where the map has a BatchNorm, whose statistics are held."""
    objective, generator, _ = toy("uotm")
    torch.nn.init.constant_(generator.weight, 2.0)
    norm = torch.nn.BatchNorm1d(1)
    norm.running_var.fill_(4.0)
    objective.generator = torch.nn.Sequential(generator, norm)
    objective.critic = lambda x: 3 * x[:, 0]
    slope = objective.steepness(torch.randn(10, 1))
    assert float(slope.detach()) == pytest.approx((3 * 2 / 2) ** 2, rel=1e-4)
    assert objective.generator.training and float(norm.running_var) == 4.0


def test_the_objective_of_the_docs_trains(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parent.parent / "docs" / "objectives.md").read_text()
    code = next(block for block in text.split("```python\n")[1:] if "(Objective)" in block)
    names = {}
    exec(code.split("```")[0], names)
    monkeypatch.setitem(OBJECTIVES, "mine", names["MeanAndSpread"])
    metrics = train(
        small(
            "mine", lr=1e-2, lr_factor=1.0, steps_per_epoch=2, epochs=60, plot_interval=30,
            average=0.5, output_dir=str(tmp_path), data_type="uniform",
        )
    )  # fmt: skip
    assert metrics["steps"] == 120 and metrics["w1"] < 0.4
