"""Every training objective against its contract, and each against its closed form."""

import dataclasses
import json
import types
from pathlib import Path

import numpy as np
import ot
import pytest
import torch

import learning_demo
from generative.networks import Critic
from generative.objectives import OBJECTIVES
from generative.objectives.adversarial import WganGp
from generative.objectives.objective import Objective, descend
from generative.objectives.transport import Sinkhorn
from learning_demo import Config, Training, check, saved_config, train
from tests.test_learning_demo import train_and_interrupt

CRITICS = [name for name in OBJECTIVES if name in ("wgan", "wgan-gp")]
SMALL = {"data_size": 400, "batchsize": 32, "g_dim": 16, "c_dim": 16, "num_proximal": 10}
SMALL |= {"n_critic": 2, "show": False}


class Points(torch.nn.Module):
    """A generator that gives its own parameters, whatever the noise."""

    def __init__(self, x):
        super().__init__()
        self.x = torch.nn.Parameter(x)

    def forward(self, z):
        return self.x


class Fixed:
    """The same points each time."""

    def __init__(self, y, updates=1001):
        self.data, self.updates, self.rng = y, updates, torch.Generator().manual_seed(0)

    def noise(self):
        return None

    def points(self):
        return self.data


def toy(name, seed=0, n=24, **changes):
    """An objective on fixed points, not optimised: the gradient stays where it is."""
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 1, generator=rng)
    generator, batches = Points(x), Fixed(y)
    config = dataclasses.replace(Config(**SMALL), **changes)
    objective = OBJECTIVES[name](config, generator, batches)
    return objective, generator, batches


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_update_changes_the_generator_and_gives_what_to_log(name):
    objective, generator, batches = toy(name)
    before = generator.x.detach().clone()
    logged = objective.update(batches)
    assert "loss" in logged
    for value in logged.values():
        assert value.ndim == 0 and bool(value.isfinite()) and not value.requires_grad
    assert not torch.equal(before, generator.x)
    assert all(p.requires_grad for p in generator.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_updates_bring_the_points_to_the_target(name):
    objective, generator, batches = toy(name, n=64, lr=5e-3, penalty=1.0, clip=0.1)
    batches.data = 0.5 * batches.data + 3

    def distance():
        return ot.wasserstein_1d(generator.x.detach().numpy()[:, 0], batches.data.numpy()[:, 0])

    before = distance()
    for _ in range(150):
        objective.update(batches)
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
    changes = {"lr": 1e-12, "num_proximal": 3000, "reg": 0.5, "debiased": "plain" not in name}
    objective, generator, batches = toy(name.split(",")[0], n=12, **changes)
    loss = objective.update(batches)["loss"]
    x, y = (z.detach().double().numpy() for z in (generator.x, batches.data))
    assert float(loss) == pytest.approx(COSTS[name](x, y), rel=1e-2, abs=1e-4)
    for k in range(12):
        step = np.zeros_like(x)
        step[k] = 1e-5
        slope = (COSTS[name](x + step, y) - COSTS[name](x - step, y)) / 2e-5
        assert float(generator.x.grad[k, 0]) == pytest.approx(slope, abs=5e-3)


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_step_leaves_the_generator_alone_and_lowers_its_loss(name):
    objective, generator, batches = toy(name, lr=1e-3, clip=10.0)
    x, y = generator.x.detach(), batches.data
    first = objective.critic_step(x, y)
    assert generator.x.grad is None
    for _ in range(100):
        last = objective.critic_step(x, y)
    assert last < first
    before = [p.clone() for p in objective.critic.parameters()]
    objective.critic_steps = lambda updates: 1
    objective.critic_step = lambda x, y: torch.zeros(())
    objective.update(batches)
    for p, q in zip(objective.critic.parameters(), before):
        assert torch.equal(p, q) and p.requires_grad


def test_the_clipped_critic_stays_in_its_range():
    objective, _, batches = toy("wgan", lr=0.1, clip=0.02)
    for _ in range(3):
        objective.update(batches)
        for p in objective.critic.parameters():
            assert float(p.detach().abs().max()) <= 0.02 + 1e-8


def test_the_clipped_critic_takes_more_steps_at_first():
    objective, _, _ = toy("wgan", n_critic=5)
    assert [objective.critic_steps(k) for k in (0, 24, 25, 499, 500, 1000)] == [
        100, 100, 5, 5, 100, 100,
    ]  # fmt: skip


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
    torch.testing.assert_close(critic.mean, data.mean(0))
    again = Critic(data, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(critic(data), again(data))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_resumes_to_the_same_numbers(tmp_path, name):
    def config(folder):
        return Config(
            **SMALL, objective=name, epochs=4, plot_interval=2, output_dir=str(tmp_path / folder)
        )

    whole = train(config("whole"))
    train_and_interrupt(config("cut"), after=2)
    folder = next((tmp_path / "cut").iterdir())
    resumed = train(dataclasses.replace(saved_config(str(folder)), show=False))
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_published_settings_apply_where_the_user_left_the_field(tmp_path, capsys):
    changes = {"c_dim": 8, "data_size": 300, "epochs": 1, "n_critic": 1, "show": False}
    train(Config(objective="wgan", batchsize=100, output_dir=str(tmp_path), **changes))
    saved = json.loads((tmp_path / "gaussian" / "config.json").read_text())
    assert saved["lr"] == 5e-5 and saved["batchsize"] == 100
    assert "wgan takes lr 5e-05 unless" in capsys.readouterr().out


def test_gaussian_noise():
    run = Training(Config(**SMALL, latent="gaussian", z_dim=3))
    z = run.noise(20000)
    assert z.shape == (20000, 3) and float(z.std()) == pytest.approx(1, abs=0.02)
    assert float(Training(Config(**SMALL)).noise(20000).abs().max()) <= 1


def test_minibatches_walk_through_the_data():
    run = Training(Config(**{**SMALL, "data_size": 80, "batchsize": 32}))
    seen = torch.cat([run.points() for _ in range(5)])
    torch.testing.assert_close(seen, torch.cat((run.data, run.data)))


@pytest.mark.parametrize("figure, value", [("critic", float("nan")), ("loss", 1e12)])
def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(tmp_path, monkeypatch, figure, value):
    def update(self, batches, update=WganGp.update):
        logged = update(self, batches)
        bad = torch.tensor(value if batches.updates >= 6 else 0.0)
        return {**logged, figure: bad}

    monkeypatch.setattr(WganGp, "update", update)
    config = Config(
        **SMALL, objective="wgan-gp", epochs=9, plot_interval=2, output_dir=str(tmp_path)
    )
    with pytest.raises(ValueError, match=rf"broke down in epoch 4 \({figure} went to .*smaller lr"):
        train(config)
    folder = tmp_path / "gaussian"
    state = learning_demo.load_checkpoint(folder / "checkpoint.pt", torch.device("cpu"))
    assert state["epoch"] == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "wgangp"}, "objective: got 'wgangp'; accepts ipot, ipot-exact, sinkhorn"),
        ({"latent": "normal"}, "latent: got 'normal'; accepts uniform, gaussian"),
        ({"reg": 0.0}, "reg: got 0.0; accepts numbers"),
        ({"clip": -1}, "clip: got -1; accepts numbers"),
        ({"n_critic": 0}, "n_critic: got 0; accepts integers from 1 up"),
        (
            {"objective": "wgan", "target_batchsize": 9},
            "target_batchsize: got 9; wgan accepts 0",
        ),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError) as error:
        check(Config(**changes))
    assert str(error.value).startswith(message)


def test_sinkhorn_shrinks_plainly_and_not_when_debiased():
    """For a Gaussian of variance s^2 the plain minimiser has variance s^2 - reg / 2."""
    rng = torch.Generator().manual_seed(0)
    y = torch.erfinv(torch.linspace(-0.999, 0.999, 150)[:, None]) * 2**0.5
    for debiased, variance in ((False, float(y.var()) - 0.25), (True, float(y.var()))):
        generator = Points(torch.randn(150, 1, generator=rng))
        config = Config(**{**SMALL, "num_proximal": 40}, reg=0.5, debiased=debiased, lr=0.02)
        objective = Sinkhorn(config, generator, types.SimpleNamespace(rng=rng))
        for _ in range(200):
            objective.update(Fixed(y))
        assert float(generator.x.detach().var()) == pytest.approx(variance, rel=0.04)


def test_the_objective_of_the_readme_trains(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    code = next(block for block in text.split("```python\n")[1:] if "(Objective)" in block)
    names = {"Objective": Objective, "descend": descend, "torch": torch}
    exec(code.split("```")[0], names)
    monkeypatch.setitem(OBJECTIVES, "mine", names["MeanAndSpread"])
    metrics = train(
        Config(
            **SMALL, objective="mine", lr=1e-2, epochs=60, plot_interval=30,
            average=0.5, output_dir=str(tmp_path), data_type="uniform",
        )
    )  # fmt: skip
    assert metrics["steps"] == 120 and metrics["w1"] < 0.4
