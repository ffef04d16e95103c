"""Shared loss terms: values fixed by section 7 of the notes on TIPSy-GAN, gradients, shape guards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables.common.pose.geometry import draw_rotations, half_turn, quarter_turn, reproject
from trainables.common.pose.losses import (
    GanLoss,
    Reduction,
    adversarial_shares,
    critic_accuracy,
    critic_adversarial,
    cycle_errors,
    generator_adversarial,
    grad_scale,
    lift_each,
    part_errors,
    part_weights,
    quarter_turn_errors,
    quarter_turn_inputs,
    r1_penalty,
    running_statistics_held,
)
from trainables.common.pose.skeleton import SUBSETS

TWO_PARTS = SUBSETS[16].two_parts
FULL = {"full": tuple(range(16))}


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- adversarial -------------------------------------------------------------------------------------------


def test_lsgan_at_one_half_is_a_quarter() -> None:
    half = torch.full((8,), 0.5)
    assert critic_adversarial(half, half, "lsgan").item() == 0.25
    assert generator_adversarial(half, "lsgan").item() == 0.25


@settings(deadline=None)
@given(smooth=st.floats(0, 0.49), swap=st.booleans())
def test_bce_at_probability_one_half_is_ln_2_for_any_target(smooth: float, swap: bool) -> None:
    logit = torch.zeros(8)
    value = critic_adversarial(logit, logit, "bce_smooth", smooth=smooth, swap=swap)
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)


def test_bce_minimum_at_the_smoothed_target() -> None:
    logit = torch.tensor([math.log(0.8 / 0.2)])
    assert generator_adversarial(logit, "bce_smooth", smooth=0.2).item() == pytest.approx(0.5004, abs=1e-4)


def test_hinge_values() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert critic_adversarial(real, fake, "hinge").item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert generator_adversarial(fake, "hinge").item() == 1.0


@pytest.mark.parametrize("kind", ["lsgan", "bce_smooth", "hinge"])
def test_swap_exchanges_the_blocks_and_mixes_in_expectation(kind: GanLoss) -> None:
    real, fake, p = _normal(64), _normal(64, seed=1), 10 / 99
    straight = critic_adversarial(real, fake, kind)
    swapped = critic_adversarial(real, fake, kind, swap=True)
    torch.testing.assert_close(swapped, critic_adversarial(fake, real, kind))
    coins = torch.rand(20000, generator=torch.Generator().manual_seed(0)) < p
    observed = torch.where(coins, swapped, straight).mean()
    torch.testing.assert_close(observed, (1 - p) * straight + p * swapped, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["lsgan", "bce_smooth", "hinge"])
def test_column_of_scores_does_not_broadcast(kind: GanLoss) -> None:
    real, fake = _normal(6), _normal(6, seed=1)
    expected = critic_adversarial(real, fake, kind)
    torch.testing.assert_close(critic_adversarial(real[:, None], fake, kind), expected)
    generator = generator_adversarial(fake, kind)
    torch.testing.assert_close(generator_adversarial(fake[:, None], kind), generator)
    with pytest.raises(ValueError, match=r"expected \(B,\) or \(B, 1\)"):
        critic_adversarial(real[None], fake, kind)


def test_impossible_settings_are_refused() -> None:
    scores = torch.zeros(2)
    with pytest.raises(ValueError, match="must be one of lsgan"):
        generator_adversarial(scores, "wgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="smooth"):
        critic_adversarial(scores, scores, "bce_smooth", smooth=0.7)


def test_accuracy_of_the_critic() -> None:
    real, fake = torch.tensor([0.9, 0.9, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.6, 0.3])
    assert critic_accuracy(real, fake, "lsgan").item() == 0.75
    assert critic_accuracy(real, -fake, "bce_smooth").item() == 1.0


def test_r1_of_a_linear_critic_is_its_squared_weight() -> None:
    weight = _normal(32).requires_grad_(True)
    penalty = r1_penalty(lambda x: x.flatten(1) @ weight, _normal(5, 16, 2))
    torch.testing.assert_close(penalty, weight.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 2 * weight)


# --- gradients and reductions ------------------------------------------------------------------------------


def test_grad_scale_is_identity_forward_and_scales_backward() -> None:
    values = _normal(3, 4).requires_grad_(True)
    scale = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    out = grad_scale(values, scale)
    assert torch.equal(out, values)
    (gradient,) = torch.autograd.grad(out.square().sum(), values)
    torch.testing.assert_close(gradient, 2 * values.detach() * scale)


def test_part_errors_and_shares() -> None:
    errors = part_errors(torch.arange(16.0), TWO_PARTS)
    assert {name: value.item() for name, value in errors.items()} == {"legs": 2.5, "torso": 10.5}
    assert adversarial_shares(TWO_PARTS, 16) == {"legs": 0.375, "torso": 0.625}
    assert adversarial_shares(SUBSETS[16].half_parts, 16) == {"left": 0.5, "right": 0.5}
    assert adversarial_shares(TWO_PARTS, 16, "equal") == {"legs": 0.5, "torso": 0.5}
    assert adversarial_shares(TWO_PARTS, 16, "one") == {"legs": 1.0, "torso": 1.0}
    with pytest.raises(ValueError, match="cover"):
        adversarial_shares({"legs": range(6)}, 16)
    with pytest.raises(ValueError, match="by_joints, equal, one"):
        adversarial_shares(TWO_PARTS, 16, "all")  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", ["part_mean", "joint_mean"])
@pytest.mark.parametrize("parts", [FULL, TWO_PARTS, SUBSETS[16].five_parts], ids=["full", "two", "five"])
def test_weight_of_consistency_against_adversary(reduction: Reduction, parts: dict[str, tuple[int, ...]]) -> None:
    table = {"full": 0.625, "legs": 4.44, "torso": 1.6, "trunk": 10.0}
    shares = adversarial_shares(parts, 16)
    weights = part_weights(parts, shares, 16, reduction)
    for name, part in parts.items():
        ratio = 10 * weights[name] / len(part) / shares[name]
        expected = table.get(name, 17.8) if reduction == "part_mean" else 0.625
        assert ratio == pytest.approx(expected, rel=2e-3)


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="part_mean"):
        part_weights(FULL, {"full": 1.0}, 16, "sum")  # type: ignore[arg-type]


# --- consistency -------------------------------------------------------------------------------------------


class _Oracle:
    """True depths of the rotated copies of one pose, looked up by image."""

    def __init__(self, poses: list[Tensor]) -> None:
        self.poses = torch.cat(poses)

    def __call__(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.poses[..., :2].flatten(1)).argmin(dim=1)
        return self.poses[nearest][..., 2]


def _turned(pose: Tensor) -> list[Tensor]:
    turns = [pose]
    for _ in range(3):
        turns.append(quarter_turn(turns[-1]))
    return turns


def test_quarter_turn_terms_vanish_for_the_oracle() -> None:
    pose = _normal(1, 16, 3)
    oracle = _Oracle(_turned(pose))
    x, z = pose[..., :2], pose[..., 2]
    depths = [oracle(image) for image in quarter_turn_inputs(x, z)]
    assert quarter_turn_errors(x, z, depths).max() < 1e-24
    # Each term alone, so that errors of opposite sign cannot cancel; the half turn needs -z, not +z.
    assert torch.equal(depths[2], half_turn(pose)[..., 2])
    wrong = (z - depths[2]).square().mean()
    torch.testing.assert_close(wrong, 4 * z.square().mean())


def test_half_turn_term_can_be_left_out() -> None:
    x, z = _normal(4, 16, 2), _normal(4, 16, seed=1)
    assert len(quarter_turn_inputs(x, z, half_turn=False)) == 2
    depths = [_normal(4, 16, seed=seed) for seed in (2, 3, 4)]
    two, three = (quarter_turn_errors(x, z, depths[:count]) for count in (2, 3))
    torch.testing.assert_close(three - two, (-z - depths[2]).square().mean(dim=0))


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_cycle_vanishes_for_the_oracle(seed: int) -> None:
    pose = _normal(3, 16, 3, seed=seed)
    views = draw_rotations(3, 160, 10, per="sample", generator=torch.Generator().manual_seed(seed)).double()
    views = torch.linalg.qr(views).Q  # orthogonal to float64 precision
    rotated = pose @ views
    x = pose[..., :2]
    back = reproject(reproject(x, pose[..., 2], views), rotated[..., 2], views.mT)
    assert cycle_errors(x, back).max() < 1e-12


# --- lifting several images --------------------------------------------------------------------------------


def test_calls_together_and_apart_agree() -> None:
    weight = _normal(32, 16)
    inputs = [_normal(size, 16, 2, seed=size) for size in (3, 5)]
    together, apart = (lift_each(lambda x: x.flatten(1) @ weight, inputs, together=choice) for choice in (True, False))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_running_statistics_are_held_and_momentum_restored() -> None:
    norm = nn.BatchNorm1d(4, momentum=0.1)
    assert norm.running_mean is not None
    with running_statistics_held(norm):
        norm(torch.randn(8, 4) + 5)
    assert not norm.running_mean.any()
    assert norm.momentum == 0.1
    norm(torch.randn(8, 4) + 5)
    assert norm.running_mean.all()
