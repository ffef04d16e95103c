"""Fixing rounds of PWFN: which sigmas measure, what becomes of them, what stays (section 7, 14, 15, 17 and 18)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables.common.quantisation.fixing import MASK, Layout
from trainables.common.quantisation.measures import describe, distinct, entropy, huffman_lengths
from trainables.pwfn.clustering import SIGMA_FLOOR
from trainables.pwfn.evaluation import calibration, calibration_error
from trainables.pwfn.model import SIGMA, ProbabilisticNetwork, set_sigmas
from trainables.pwfn.pictures import draw_codebook, draw_weights
from trainables.pwfn.rounds import (
    JOINS,
    PAPER10,
    SIGMA_MODES,
    Fixed,
    Fixing,
    fix,
    replaced,
    sigmas,
    state,
    tolerances,
)


class Blocks(nn.Module):
    """The reference vector of invariant 13 as six layers."""

    def __init__(self) -> None:
        super().__init__()
        draw = np.random.default_rng(0)
        self.layers = nn.ModuleList([nn.Linear(40, 100, bias=False) for _ in range(6)])
        with torch.no_grad():
            for layer, std in zip(self.layers, (0.12, 0.06, 0.04, 0.03, 0.02, 0.01), strict=True):
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(torch.from_numpy(draw.normal(0, std, 4000)).reshape(100, 40))


@pytest.fixture
def network() -> ProbabilisticNetwork:
    made = ProbabilisticNetwork(Blocks())
    set_sigmas(made, 0.0025, 0.05)
    return made


@pytest.fixture
def layout(network: ProbabilisticNetwork) -> Layout:
    return Layout.of(network)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def after_rounds(
    network: ProbabilisticNetwork, layout: Layout, fractions: tuple[float, ...], fixing: Fixing
) -> list[Fixed]:
    found = []
    weights: dict[str, Tensor] = network.state_dict()
    for fraction in fractions:
        after = fix(weights, layout, fraction, 1.0, fixing, generator())
        weights = state(weights, layout, after)
        assert np.array_equal(layout.mask(weights), after.is_fixed)
        assert np.array_equal(layout.vector(weights), after.mu)
        found.append(after)
    return found


# 14


def test_ten_rounds_without_training_move_and_release_nothing(network: ProbabilisticNetwork, layout: Layout) -> None:
    rounds = after_rounds(network, layout, PAPER10, Fixing())
    fixed = [after.is_fixed for after in rounds]
    assert [int(each.sum()) for each in fixed] == [math.ceil(round(24_000 * p, 6)) for p in PAPER10]
    for number in range(1, 10):
        was = fixed[number - 1]
        assert fixed[number][was].all()
        assert np.array_equal(rounds[number].mu[was], rounds[number - 1].mu[was])
        assert rounds[number].figures["moved"] == 0
    assert describe(rounds[-1].mu)["unique"] == 88


def test_noise_on_fixed_weights_falls_to_the_floor_in_three_rounds(
    network: ProbabilisticNetwork, layout: Layout
) -> None:
    medians = [np.median(after.sigma[after.is_fixed]) for after in after_rounds(network, layout, PAPER10[:3], Fixing())]
    assert medians == pytest.approx([0.0044, 0.0015, 0.0], abs=5e-5)


# 15


def test_bits_are_the_mean_length_of_ideal_codes_and_huffman_s_are_less_than_one_longer(
    network: ProbabilisticNetwork, layout: Layout
) -> None:
    after = after_rounds(network, layout, (1.0,), Fixing())[0]
    values, counts = distinct(after.mu)
    each = dict(zip(values.tolist(), (counts / counts.sum()).tolist(), strict=True))
    lengths = [-math.log2(each[value]) for value in after.mu.tolist()]
    bits = entropy(counts)
    assert bits == pytest.approx(np.mean(lengths))
    assert bits == pytest.approx(float(-sum(p * math.log(p) for p in each.values())) / math.log(2))
    assert bits <= math.log2(len(values))
    assert bits <= (huffman_lengths(counts) * counts).sum() / counts.sum() < bits + 1


# 17


@pytest.mark.parametrize("part_fixed", [False, True])
def test_ablations_keep_what_they_say_they_keep(
    network: ProbabilisticNetwork, layout: Layout, part_fixed: bool
) -> None:
    sigma = sigmas(network.state_dict(), layout, "std_mu")
    is_fixed = np.arange(len(sigma)) % 3 == 0 if part_fixed else np.zeros(len(sigma), dtype=bool)
    found = {mode: replaced(sigma, is_fixed, layout, mode, generator()) for mode in SIGMA_MODES}
    assert np.array_equal(found["learned"], sigma)
    for part in layout.parts():
        assert np.array_equal(np.sort(found["permuted"][part]), np.sort(sigma[part]))
        assert not np.array_equal(found["permuted"][part], sigma[part])
        assert found["layer_mean"][part].mean(dtype=np.float64) == pytest.approx(sigma[part].mean(dtype=np.float64))
        assert len(np.unique(found["layer_mean"][part][~is_fixed[part]])) == 1
    assert found["const"].mean(dtype=np.float64) == pytest.approx(sigma.mean(dtype=np.float64))
    assert len(np.unique(found["const"][~is_fixed])) == 1
    for each in found.values():
        assert np.array_equal(each[is_fixed], sigma[is_fixed])


# The rest of a round


@pytest.mark.parametrize("join", JOINS)
def test_joined_sigmas_are_those_of_the_members(network: ProbabilisticNetwork, layout: Layout, join: str) -> None:
    weights = network.state_dict()
    mu, sigma = layout.vector(weights), sigmas(weights, layout, join)
    after = fix(weights, layout, 0.5, 1.0, Fixing(join=join), generator())
    free = ~after.is_fixed
    assert np.array_equal(after.sigma[free], sigma[free])
    assert np.array_equal(after.mu[free], mu[free])
    factors = {"keep_half": 0.5, "keep_tenth": 0.1, "allow_retraining": 1.0, "none": 0.0}
    if join in factors:
        assert after.sigma[~free] == pytest.approx(factors[join] * sigma[~free])
        return
    # Half of the weights are placed in the first two relaxations: no centre is chosen twice.
    for centre in np.unique(after.mu[~free]):
        members = ~free & (after.mu == centre)
        spread = mu[members].std(dtype=np.float64)
        expected = spread if join == "std_mu" else np.sqrt(np.square(sigma[members].astype(np.float64)).mean())
        left = np.unique(after.sigma[members])
        if len(left) == 1:
            assert left[0] == pytest.approx(expected, rel=1e-5)


def test_a_single_member_is_left_without_noise() -> None:
    network = ProbabilisticNetwork(nn.Sequential(nn.Linear(1, 1, bias=False)))
    with torch.no_grad():
        network.layers[0].weight.fill_(0.3)
        network.layers[0].weight_sigma.fill_(0.01)
    layout = Layout.of(network)
    after = fix(network.state_dict(), layout, 1.0, 1.0, Fixing(), generator())
    assert after.sigma.tolist() == [0.0]


def test_sigmas_of_fixed_weights_are_what_the_round_left_unless_they_are_retrained(
    network: ProbabilisticNetwork, layout: Layout
) -> None:
    for join in ("std_mu", "allow_retraining"):
        weights = network.state_dict()
        after = fix(weights, layout, 0.5, 1.0, Fixing(join=join), generator())
        weights = state(weights, layout, after)
        assert np.array_equal(sigmas(weights, layout, join), after.sigma)
        for name in layout.names:  # as an optimiser might
            weights[name + SIGMA] = weights[name + SIGMA] + 1
        again = sigmas(weights, layout, join)
        still = ~after.is_fixed if join == "std_mu" else np.zeros_like(after.is_fixed)
        assert np.array_equal(again == after.sigma, after.is_fixed & (join == "std_mu"))
        assert again[still] == pytest.approx(after.sigma[still] + 1)


def test_with_free_only_fixed_weights_stay_whatever_their_sigma(network: ProbabilisticNetwork, layout: Layout) -> None:
    first = after_rounds(network, layout, (0.3,), Fixing())[0]
    weights = state(network.state_dict(), layout, first)
    for name in layout.names:  # fixed weights that could go anywhere
        weights[name + SIGMA + "_value"] = torch.ones_like(weights[name + SIGMA + "_value"])
    after = fix(weights, layout, 0.6, 1.0, Fixing(free_only=True), generator())
    assert after.is_fixed.sum() == 14_400
    assert after.is_fixed[first.is_fixed].all()
    assert np.array_equal(after.mu[first.is_fixed], first.mu[first.is_fixed])
    moved = fix(weights, layout, 0.6, 1.0, Fixing(), generator())
    assert moved.figures["moved"] > 0.1


def test_late_is_the_share_that_needed_more_than_twice_the_tolerance(
    network: ProbabilisticNetwork, layout: Layout
) -> None:
    assert after_rounds(network, layout, (1.0,), Fixing())[0].figures["late"] == pytest.approx(0.137, abs=5e-4)


def test_tolerances_go_linearly_from_the_first_to_the_last() -> None:
    assert tolerances(1.0, 0.5, 3) == [1.0, 0.75, 0.5]
    assert tolerances(2.0, 0.5, 1) == [2.0]


def test_the_state_of_a_round_says_what_is_fixed(network: ProbabilisticNetwork, layout: Layout) -> None:
    after = after_rounds(network, layout, (0.2,), Fixing())[0]
    weights = state(network.state_dict(), layout, after)
    network.load_state_dict(weights)
    assert sum(int(weights[name + MASK].sum()) for name in layout.names) == 4800


# 18


def test_a_predictor_that_knows_its_chances_is_calibrated() -> None:
    chances = torch.rand(10_000, generator=generator())
    right = torch.rand(10_000, generator=torch.Generator().manual_seed(1)) < chances.clamp_min(0.5)
    confident = torch.stack([chances.clamp_min(0.5), 1 - chances.clamp_min(0.5)], dim=1)
    y = torch.where(right, 0, 1)
    assert calibration_error(confident, y) < 0.02
    assert calibration_error(confident, torch.ones_like(y)) > 0.5


def test_scores_of_certain_and_of_uncertain_predictions() -> None:
    y = torch.tensor([0, 1, 2, 3])
    sure = calibration(100 * torch.eye(4), y)
    assert (sure["ece"], sure["nll"], sure["brier"]) == pytest.approx((0, 0, 0), abs=1e-6)
    unsure = calibration(torch.zeros(4, 4), y)
    assert unsure["nll"] == pytest.approx(math.log(4))
    assert unsure["brier"] == pytest.approx(0.75**2 + 3 * 0.25**2)


# Pictures


def test_the_picture_of_the_weights_has_a_colour_for_each_centre_and_grey_for_the_free(
    network: ProbabilisticNetwork, layout: Layout
) -> None:
    weights = network.state_dict()
    after = fix(weights, layout, 0.5, 1.0, Fixing(), generator())
    picture = draw_weights(layout.vector(weights), sigmas(weights, layout, "std_mu"), after)
    assert picture.shape[0] == 3
    assert 0 <= picture.min() <= picture.max() <= 1
    colours = picture.flatten(1).T.unique(dim=0)
    assert len(np.unique(after.mu[after.is_fixed])) <= len(colours) - 3 <= len(np.unique(after.mu[after.is_fixed])) + 1
    assert torch.tensor([0.8, 0.8, 0.8]) in picture.flatten(1).T


def test_the_picture_of_the_codebook_has_a_bar_for_each_value() -> None:
    picture = draw_codebook(np.array([0.0] * 5 + [0.5] * 3 + [-0.25], dtype=np.float32))
    assert picture.shape[0] == 3
    assert len(picture.flatten(1).T.unique(dim=0)) == 3 + 3  # ink, frame, paper


def test_pictures_of_degenerate_weights_are_drawn() -> None:
    zeros = np.zeros(4, dtype=np.float32)
    after = Fixed(zeros, zeros, np.zeros(4, dtype=bool), {})
    assert draw_weights(zeros, zeros + SIGMA_FLOOR, after).isfinite().all()
    assert draw_codebook(zeros).isfinite().all()
