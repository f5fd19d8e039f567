"""Flow matching along exact couplings, and the flow that samples."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from generative.batches import Noise
from generative.generators import Flow
from generative.objectives import OBJECTIVES
from generative.run_settings import check
from learning_demo import Config
from tests.test_objectives import Fixed, small


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def flow(dim=2, steps=4):
    found = Flow(Noise("gaussian", dim), 16, dim, steps)
    found.initialise_weights(rng())
    return found


class Pairs(Fixed):
    """Fixed noise and data."""

    def __init__(self, x, y):
        super().__init__(y)
        self.x = x

    def noise(self):
        return self.x


def objective(x, y, seed=0, **changes):
    """For these minibatches."""
    generator = flow(x.shape[1])
    batches = Pairs(x, y)
    batches.rng = rng(seed)
    config = small("ot-cfm", batchsize=len(x), lr=1e-3, **{"updates_per_plan": 1, **changes})
    return OBJECTIVES["ot-cfm"](config, generator, batches), generator


def test_a_flow_is_the_identity_at_first_and_scaled_by_the_data():
    generator = flow()
    z = torch.randn(50, 2, generator=rng(1))
    assert torch.equal(generator.standard(z), z)
    data = 3 * torch.randn(1000, 2, generator=rng(2)) + 7
    generator.initialise(data, rng())
    torch.testing.assert_close(generator(z), data.mean(0) + data.std(0) * z)


def test_midpoint_steps_are_exact_to_second_order(monkeypatch):
    z = torch.randn(5, 2, generator=rng(), dtype=torch.float64)
    generator = flow(steps=3)
    monkeypatch.setattr(generator, "velocity", lambda x, t: 2 * t.expand_as(x))  # x + t^2
    torch.testing.assert_close(generator.standard(z), z + 1)
    monkeypatch.setattr(generator, "velocity", lambda x, t: x)
    torch.testing.assert_close(generator.standard(z), z * (1 + 1 / 3 + 1 / 18) ** 3)
    errors = []
    for steps in (8, 16):
        generator.steps = steps
        errors.append(float((generator.standard(z) - math.e * z).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_a_calibrated_flow_has_the_moments_of_the_data():
    generator = flow(steps=2)
    generator.mean, generator.std = torch.tensor([[3.0, -1.0], [2.0, 0.0]]).double()
    for weight in generator.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=rng())
    z = torch.randn(20000, 2, generator=rng(1))
    generator.calibrate(z)
    x = generator(z)
    torch.testing.assert_close(x.mean(0), generator.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0), generator.std, atol=1e-4, rtol=0)
    other = flow(steps=2)
    other.load_state_dict(generator.state_dict())
    assert torch.equal(other(z), x)


def test_euler_steps_are_exact_to_first_order(monkeypatch):
    generator = Flow(Noise("gaussian", 2), 16, 2, 3, "euler")
    z = torch.randn(5, 2, generator=rng(), dtype=torch.float64)
    monkeypatch.setattr(generator, "velocity", lambda x, t: x)
    torch.testing.assert_close(generator.standard(z), z * (4 / 3) ** 3)


def test_the_loss_is_about_the_cheapest_pairs():
    """The velocity is 0 at first, so that the loss is the mean squared length of the pairs."""
    x, y = torch.randn(2, 40, 2, generator=rng())
    cost = ((x[:, None] - y) ** 2).sum(-1).numpy()
    found, _ = objective(x, y)
    cheapest = cost[linear_sum_assignment(cost)].mean()
    assert float(found.update()["loss"]) == pytest.approx(cheapest, rel=1e-5)
    found, _ = objective(x, y, coupled=False)
    assert float(found.update()["loss"]) == pytest.approx(np.diag(cost).mean(), rel=1e-5)


def test_the_gradient_is_that_of_the_velocitys_error():
    x, y = torch.randn(2, 30, 2, generator=rng())
    found, generator = objective(x, y)
    with torch.no_grad():
        torch.nn.init.normal_(generator.last[-1].weight, generator=rng(3))
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    found.optimizer = torch.optim.SGD(generator.parameters(), lr=1e-6)
    found.update()
    i, j = linear_sum_assignment(((x[:, None] - y) ** 2).sum(-1))
    assert list(i) == list(range(30))
    t = torch.rand(30, 1, generator=rng())
    other = flow()
    other.load_state_dict(generator.state_dict() | before)
    error = other.velocity((1 - t) * x + t * y[j], t) - (y[j] - x)
    error.square().sum(1).mean().backward()
    for name, p in generator.named_parameters():
        torch.testing.assert_close(
            (before[name] - p.detach()) / 1e-6,
            other.get_parameter(name).grad,
            rtol=0.05,
            atol=0.2,
        )


def test_a_trained_flow_moves_noise_to_two_points():
    """By one step, as paths from an exact plan do not cross."""
    y = torch.tensor([[-1.0], [1.0]]).repeat(64, 1)
    x = torch.randn(128, 1, generator=rng())
    found, generator = objective(x, y)
    found.set_rates(10)
    for _ in range(300):
        found.update()
    generator.steps = 1
    with torch.no_grad():
        moved = generator.standard(x)
    far = x.abs() > 0.3
    assert float((moved.sign() == x.sign())[far].double().mean()) > 0.97
    assert float((moved.abs() - 1)[far].abs().mean()) < 0.3


def test_a_constant_column_stays_constant():
    x, y = torch.randn(2, 20, 2, generator=rng())
    y[:, 1] = 3
    found, generator = objective(x, y)
    generator.initialise(y, rng())
    for _ in range(3):
        assert bool(found.update()["loss"].isfinite())
    assert bool((generator(x)[:, 1] == 3).all())


def test_the_number_of_dimensions_is_the_datas():
    with pytest.raises(ValueError, match="z_dim: got 3; accepts 2, the data's, or 0"):
        check(Config(objective="ot-cfm", data_type="ring", z_dim=3))
    check(Config(objective="ot-cfm", data_type="ring", z_dim=2))
