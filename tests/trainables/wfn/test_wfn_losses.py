"""The regulariser: values, limits, gradients in closed form, and how it steers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pharos.engines.activations import checkpoint_activations
from trainables.common.quantisation.fixing import Layout, make_fixable
from trainables.wfn.losses import Regulariser, SoftDistance, whole_loss

GAMMA_0 = 2.0**-7
CENTRES = torch.tensor([-0.5, -0.125, 0.0, 0.0625, 0.25, 0.375], dtype=torch.float64)


def weights_of(count=40):
    drawn = 0.3 * torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn[:6] = torch.tensor([0.003, -0.005, 0.001, 0.0625, -0.5, 0.3])
    return drawn


def distances(weights, centres):
    """As the notes write them, for autograd."""
    w, c = weights[:, None], centres
    large = w.abs() >= GAMMA_0
    small = torch.where(c == 0, torch.zeros_like(w * c), (w - c).abs())
    return torch.where(large, (w - c).abs() / w.abs(), small)


def by_autograd(weights, centres, tau):
    d = distances(weights, centres)
    return (torch.softmax(-d / tau, dim=1) * d).sum()


def soft(weights, tau=0.05, centres=CENTRES, tiny=True, nearest=0):
    return SoftDistance.apply(weights, centres, GAMMA_0, tau, tiny, nearest)


@pytest.mark.parametrize("tau", [0.01, 0.05, 0.3])
def test_the_closed_form_is_autograd_s(tau):
    mine, theirs = (weights_of()[6:].clone().requires_grad_() for _ in range(2))
    ours, reference = soft(mine, tau), by_autograd(theirs, CENTRES, tau)
    ours.backward()
    reference.backward()
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_gradcheck_away_from_centres_and_gamma_0():
    weights = torch.tensor([0.004, -0.003, 0.1, -0.3, 0.7, -0.02], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft, (weights,), eps=1e-7, atol=1e-5)


def test_a_small_temperature_gives_the_nearest_centre_s_distance_and_a_large_one_the_mean():
    weights = weights_of()
    d = distances(weights, CENTRES)
    torch.testing.assert_close(soft(weights, 1e-6), d.min(dim=1).values.sum(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(soft(weights, 1e9), d.mean(dim=1).sum(), rtol=1e-6, atol=0)


def test_a_weight_is_drawn_to_the_centre_beside_it():
    for start, centre in ((0.26, 0.25), (0.24, 0.25), (-0.51, -0.5), (-0.49, -0.5)):
        w = torch.tensor([start], dtype=torch.float64, requires_grad=True)
        soft(w, 0.01).backward()
        assert math.copysign(1, float(w.grad)) == math.copysign(1, start - centre)


def test_weights_below_gamma_0_can_be_left_out():
    tiny = torch.tensor([0.003, -0.005], dtype=torch.float64, requires_grad=True)
    without = soft(tiny, 0.3, tiny=False)
    without.backward()
    assert without.item() == 0
    assert not tiny.grad.any()
    assert soft(tiny, 0.3).item() > 0


def test_all_centres_among_the_nearest_is_all_and_far_ones_hardly_count():
    weights = weights_of()
    torch.testing.assert_close(soft(weights, nearest=len(CENTRES)), soft(weights), rtol=0, atol=0)
    large = weights[weights.abs() > 0.1]
    torch.testing.assert_close(soft(large, 0.01, nearest=4), soft(large, 0.01), rtol=1e-6, atol=0)


def test_parts_make_no_difference(monkeypatch):
    whole, parts = (weights_of().requires_grad_() for _ in range(2))
    one = soft(whole)
    monkeypatch.setattr("trainables.wfn.losses._ELEMENTS_AT_ONCE", 30)
    other = soft(parts)
    one.backward()
    other.backward()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    assert torch.equal(whole.grad, parts.grad)


def make_network():
    torch.manual_seed(0)
    return make_fixable(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), include_bn=True)


def regulariser_of(network):
    made = Regulariser(network, gamma_0=GAMMA_0, tau=0.05, tiny="paper", nearest=0)
    made.set_centres(CENTRES.float())
    return made


def test_the_whole_loss_is_steered_and_its_value_is_1_plus_alpha_times_the_cross_entropy():
    network = make_network()
    regulariser = regulariser_of(network)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    parameters = list(network.parameters())
    cross_entropy = nn.functional.cross_entropy(network(x), y)
    found = regulariser.take()
    loss = whole_loss(cross_entropy, found, 0.4)
    torch.testing.assert_close(loss, 1.4 * cross_entropy, rtol=1e-6, atol=0)
    of_loss = torch.autograd.grad(loss, parameters, retain_graph=True)
    of_both = torch.autograd.grad(cross_entropy, parameters, retain_graph=True), torch.autograd.grad(found, parameters)
    ratio = (0.4 * cross_entropy / found).item()
    for ours, first, second in zip(of_loss, *of_both, strict=True):
        torch.testing.assert_close(ours, first + ratio * second, rtol=1e-5, atol=1e-7)
    assert whole_loss(cross_entropy, found, 0.0) is cross_entropy


def test_it_is_the_mean_over_the_free_weights_of_a_training_pass():
    network = make_network()
    regulariser = regulariser_of(network)
    layout = Layout.of(network)
    weights = layout.vector(network.state_dict())
    mask = np.arange(layout.size) % 3 == 0
    network.load_state_dict(layout.fixed(network.state_dict(), weights, mask))
    network(torch.randn(4, 3))
    free = torch.from_numpy(weights[~mask])
    torch.testing.assert_close(regulariser.take(), soft(free, centres=CENTRES.float()) / len(free))
    assert regulariser.take() is None  # nothing since
    for _ in range(3):
        regulariser.start()
        network(torch.randn(4, 3))
    torch.testing.assert_close(regulariser.take(), soft(free, centres=CENTRES.float()) / len(free))
    network.eval()
    network(torch.randn(4, 3))
    with torch.no_grad():
        network.train()(torch.randn(4, 3))
    assert regulariser.take() is None


def test_activations_that_are_computed_again_change_nothing():
    gradients = []
    for is_checkpointed in (False, True):
        network = nn.Sequential(make_network(), make_network())
        regulariser = regulariser_of(network)
        if is_checkpointed:
            assert checkpoint_activations(network) == 2
        for _ in range(2):
            network.zero_grad()
            regulariser.start()
            x = torch.linspace(-1, 1, 12).reshape(4, 3)
            loss = network[1](nn.functional.pad(network[0](x), (0, 1))).square().mean()
            whole_loss(loss, regulariser.take(), 0.4).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_without_a_codebook_or_without_free_weights_there_is_none():
    network = make_network()
    regulariser = regulariser_of(network)
    regulariser.set_centres(None)
    network(torch.randn(4, 3))
    assert regulariser.take() is None
    regulariser.set_centres(CENTRES.float())
    layout = Layout.of(network)
    everything = np.ones(layout.size, bool)
    network.load_state_dict(layout.fixed(network.state_dict(), layout.vector(network.state_dict()), everything))
    network(torch.randn(4, 3))
    assert regulariser.take() is None
