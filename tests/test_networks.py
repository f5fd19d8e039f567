"""Networks for images."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from generative.networks import (
    ImageCritic,
    SelfAttention,
    convolutional,
    initialise,
    moving,
)

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 9, 7)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def generator(shape, attention, seed=0):
    layers = convolutional(5, shape, 8, attention)
    initialise(layers, rng(seed))
    return layers


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_size_from_noise_and_numbers_from_images(shape, attention):
    layers, critic = generator(shape, attention), ImageCritic(shape, 8, rng(), attention)
    x = layers(torch.randn(6, 5, generator=rng()))
    assert x.shape == (6, shape[0] * shape[1] * shape[2]) and bool((x.abs() <= 1).all())
    before = layers[:-2](torch.randn(500, 5, generator=rng(1)))  # before tanh
    assert 0.4 < float(before.detach().std()) < 2.5
    values = critic(x)
    assert values.shape == (6,) and values.dtype == torch.float32
    values.sum().backward()
    for network in (layers, critic):
        for name, weight in network.named_parameters():
            assert bool(weight.grad.isfinite().all()), name


def test_all_weights_come_from_the_generator_and_torchs_own_is_left():
    before = torch.get_rng_state()
    for make in (
        lambda seed: ImageCritic((1, 8, 8), 8, rng(seed), attention=True),
        lambda seed: generator((1, 8, 8), True, seed),
    ):
        first, again, other = (make(seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_moving_average_forgets_the_first_weights():
    layer = torch.nn.Linear(1, 1)
    averaged = AveragedModel(layer, multi_avg_fn=moving(0.9))
    expected = None
    for count, value in enumerate((1000.0, *[1.0] * 300)):
        torch.nn.init.constant_(layer.weight, value)
        averaged.update_parameters(layer)
        decay = min(0.9, (1 + count) / (10 + count))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(1, abs=1e-3)


def test_attention_is_the_identity_until_its_gate_opens():
    layer = SelfAttention(16)
    initialise(layer, rng())
    x = torch.randn(2, 16, 5, 4, generator=rng())
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.gate.fill_(0.5)
    query, key, value = (f(x).flatten(2) for f in (layer.query, layer.key, layer.value))
    weights = torch.einsum("nci,ncj->nij", query, key).softmax(2)
    mixed = torch.einsum("nij,ncj->nci", weights, value).unflatten(2, (5, 4))
    torch.testing.assert_close(layer(x), x + 0.5 * layer.out(mixed))


def test_the_critic_with_attention_has_weights_of_norm_one():
    """From the first, and ever better: each pass is one power iteration."""
    critic = ImageCritic((1, 12, 12), 8, rng(), attention=True)
    x = torch.randn(4, 144, generator=rng())
    for layer in critic.modules():
        if hasattr(layer, "parametrizations"):
            norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert float(norm) == pytest.approx(1, abs=0.15)
    for _ in range(200):
        critic(x)
    bounded = [layer for layer in critic.modules() if hasattr(layer, "parametrizations")]
    assert len(bounded) == 7
    for layer in bounded:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1, abs=1e-3)
