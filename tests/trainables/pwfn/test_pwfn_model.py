"""Probabilistic layers of PWFN (the document's section 7, invariants 3 to 7 and 16)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from trainables.common.quantisation.fixing import MASK, VALUE, Layout
from trainables.common.quantisation.models import ModelConfig, build_model
from trainables.pwfn.model import SIGMA, ProbabilisticNetwork, set_sigmas
from trainables.pwfn.sigma import LEAST

S = 0.05
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (3, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9, 9)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 7, 7)),
    "conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2), (2, 4, 11)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1), groups=2), (2, 2, 3, 5, 5)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def probabilistic(plain: nn.Module, sigma: float | None = None, **kinds: object) -> ProbabilisticNetwork:
    network = ProbabilisticNetwork(nn.Sequential(copy.deepcopy(plain)), cut_off=S, **kinds)  # type: ignore[arg-type]
    set_sigmas(network, 0.0025, S, sigma)
    return network


# 3


@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_is_the_plain_one_bit_for_bit(name: str) -> None:
    make, shape = LAYERS[name]
    plain, x = make(), torch.randn(shape)
    network = probabilistic(plain)
    with torch.no_grad():
        assert torch.equal(network(x), plain(x))
        assert not torch.equal(network(x, seed=1), plain(x))
    assert torch.equal(network(x, trained="mu"), plain(x))


@pytest.mark.parametrize("name", LAYERS)
def test_with_next_to_no_sigma_noise_is_next_to_nothing(name: str) -> None:
    make, shape = LAYERS[name]
    plain, x = make().double(), torch.randn(shape).double()
    network = probabilistic(plain, 0.0).double()
    assert (network(x, seed=1) - plain(x)).abs().max() < 100 * LEAST


# 4


def test_draws_have_the_mean_and_the_deviation_of_their_weight() -> None:
    layer = nn.Linear(3, 2)
    network = probabilistic(layer)
    inner = network.layers[0]
    draws = []
    for seed in range(10_000):
        network._now.seed = seed
        draws.append(inner.effective("weight").detach().flatten())  # type: ignore[union-attr]
    drawn = torch.stack(draws).double()
    mu, sigma = layer.weight.detach().flatten().double(), inner.weight_sigma.detach().flatten().double()
    score = (drawn.mean(0) - mu) / (sigma / 100)
    assert score.abs().max() < 4
    assert ((drawn.var(0) / sigma.square() - 1) / math.sqrt(2 / 10_000)).abs().max() < 4


def test_the_gradient_of_sigma_is_that_of_the_weight_times_the_noise() -> None:
    network = probabilistic(nn.Linear(3, 2), 0.01)
    inner = network.layers[0]
    out = network(torch.randn(4, 3), seed=5)
    out.square().sum().backward()
    noise = inner._noise("weight", inner.weight)
    assert torch.equal(inner.weight_sigma.grad, inner.weight.grad * noise)
    assert torch.equal(inner.bias_sigma.grad, inner.bias.grad * inner._noise("bias", inner.bias))


def test_below_the_floor_sigma_has_no_gradient_of_the_data() -> None:
    network = probabilistic(nn.Linear(3, 2), -0.01)
    out = network(torch.randn(4, 3), seed=5)
    out.square().sum().backward()
    assert (network.layers[0].weight_sigma.grad == 0).all()


# 5


def test_the_variance_of_an_output_is_that_of_its_weights() -> None:
    network, x = probabilistic(nn.Linear(5, 3), 0.01), torch.randn(5)
    sigmas = [torch.rand(shape) * 0.05 for shape in ((3, 5), (3,))]
    with torch.no_grad():
        network.layers[0].weight_sigma.copy_(sigmas[0])
        network.layers[0].bias_sigma.copy_(sigmas[1])
        draws = torch.stack([network(x[None], seed=seed)[0] for seed in range(3000)]).double()
    expected = (x.square() * sigmas[0].square()).sum(1) + sigmas[1].square()
    assert ((draws.var(0) / expected - 1) / math.sqrt(2 / 3000)).abs().max() < 4


# 6


def penalty_gradients(network: ProbabilisticNetwork, seed: int = 3) -> dict[str, Tensor]:
    network(torch.randn(4, 6), seed=seed)
    network.penalty.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in network.named_parameters()
    }


def test_the_penalty_pushes_the_sigmas_of_weights_alone() -> None:
    network = probabilistic(nn.Linear(6, 5), 0.01)
    inner = network.layers[0]
    gradients = penalty_gradients(network)
    room = (S - inner.weight_sigma.detach()).relu()
    assert torch.equal(gradients["network.0.weight_sigma"], -room * inner._noise("weight", inner.weight).abs())
    for name in ("weight", "bias", "bias_sigma"):
        assert (gradients[f"network.0.{name}"] == 0).all()


def test_there_is_no_penalty_without_noise_or_above_the_cut_off() -> None:
    x = torch.randn(4, 6)

    def penalty(sigma: float, seed: int | None) -> Tensor:
        network = probabilistic(nn.Linear(6, 5), sigma)
        network(x, seed=seed)
        return network.penalty

    assert penalty(0.01, None) == 0
    assert penalty(S, 1) == 0
    assert penalty(0.01, 1) > 0


# 7


@pytest.mark.parametrize(
    ("model", "image", "classes", "trained"),
    [
        (ModelConfig("cnn_s"), (1, 8, 8), 10, 45_908),
        (ModelConfig("resnet18_c", width=8), (3, 32, 32), 10, 351_604),
        (ModelConfig("vit_digits"), (1, 8, 8), 10, 227_828),
        (ModelConfig("vit_glyph"), (3, 32, 32), 10, 410_772),
    ],
    ids=lambda value: value.name if isinstance(value, ModelConfig) else "",
)
def test_each_quantised_weight_has_one_mu_and_one_sigma(
    model: ModelConfig, image: tuple[int, int, int], classes: int, trained: int
) -> None:
    network = ProbabilisticNetwork(build_model(model, classes, image))
    counts = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert sum(counts.values()) == trained
    sigmas = sum(count for name, count in counts.items() if name.endswith(SIGMA))
    assert sigmas == Layout.of(network).size


@pytest.mark.parametrize(
    ("name", "trained"), [("deit_tiny", 11_387_216), ("deit_small", 44_006_096), ("resnet18", 23_369_424)]
)
def test_the_paper_s_networks_have_as_many_trained_parameters_as_the_document_counts(name: str, trained: int) -> None:
    with torch.device("meta"):
        network = ProbabilisticNetwork(build_model(ModelConfig(name), 1000, (3, 224, 224)))
    assert sum(parameter.numel() for parameter in network.parameters()) == trained


# 16


def fixed_in_part(retrained: bool = False) -> ProbabilisticNetwork:
    network = probabilistic(nn.Linear(6, 5), 0.01, retrained=retrained)
    inner = network.layers[0]
    with torch.no_grad():
        for name in ("weight", "bias"):
            mask = torch.rand_like(getattr(inner, name)) < 0.5
            getattr(inner, name + MASK).copy_(mask)
            getattr(inner, name + VALUE).copy_(mask * 0.25)
            getattr(inner, name + SIGMA + VALUE).copy_(mask * 0.003)
    return network


@pytest.mark.parametrize("retrained", [False, True])
def test_fixed_weights_stay_whatever_the_optimiser_does(retrained: bool) -> None:
    network = fixed_in_part(retrained)
    inner, x = network.layers[0], torch.randn(4, 6)
    before = {name: inner.effective(name).detach() for name in ("weight", "bias")}  # type: ignore[union-attr]
    masks = {name: getattr(inner, name + MASK) for name in before}
    drawn = [parameter.clone() for parameter in inner.parameters()]
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for step in range(20):
        optimiser.zero_grad()
        out = network(x, seed=step)
        (out.square().mean() + network.penalty).backward()
        assert (inner.weight.grad[masks["weight"]] == 0).all()
        assert (inner.weight_sigma.grad[masks["weight"]] == 0).all() != retrained
        optimiser.step()
    assert all(not torch.equal(a, b) for a, b in zip(drawn, inner.parameters(), strict=True))
    with torch.no_grad():
        network(x)  # a pass without noise
        for name, value in before.items():
            now = inner.effective(name)
            assert torch.equal(now[masks[name]], value[masks[name]])
            assert not torch.equal(now[~masks[name]], value[~masks[name]])


def test_fixed_weights_are_disturbed_with_the_sigma_that_they_were_left() -> None:
    network = fixed_in_part()
    inner = network.layers[0]
    network(torch.randn(1, 6), seed=9)
    drawn = inner.effective("weight")
    noise, mask = inner._noise("weight", inner.weight), inner.weight_mask
    assert torch.equal(drawn[mask], (0.25 + noise * torch.tensor(0.003))[mask])
    assert torch.equal(drawn[~mask], (inner.weight + noise * torch.tensor(0.01))[~mask])


def test_noise_follows_from_the_seed_and_each_layer_has_its_own() -> None:
    network = ProbabilisticNetwork(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    set_sigmas(network, 0.0025, S)
    x = torch.randn(4, 6)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        assert torch.equal(network(x, seed=1), network(x, seed=1))
        assert not torch.equal(network(x, seed=1), network(x, seed=2))
    first, second = (layer._noise("weight", layer.weight) for layer in network.layers)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], network.layers[0]._noise("bias", network.layers[0].bias))


@pytest.mark.parametrize(("trained", "still"), [("mu", "sigma"), ("sigma", "mu")])
def test_what_is_not_trained_takes_part_with_gradients_of_zero(trained: str, still: str) -> None:
    network = probabilistic(nn.Linear(6, 5), 0.01)
    out = network(torch.randn(4, 6), seed=1, trained=trained)  # type: ignore[arg-type]
    (out.square().sum() + network.penalty).backward()
    for name, parameter in network.named_parameters():
        is_sigma = name.endswith(SIGMA)
        assert parameter.grad is not None
        assert bool((parameter.grad == 0).all()) == (is_sigma == (still == "sigma")), name
