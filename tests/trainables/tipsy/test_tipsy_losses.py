"""Objectives of TIPSy-GAN: gradients, symmetries, separation of the steps, distillation."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trainables.common.pose.adversarial import ObjectiveSettings, critic_objective, generator_objective
from trainables.common.pose.geometry import draw_rotations, reproject, rotation_x, rotation_y
from trainables.common.pose.losses import (
    GanLoss,
    Lift,
    Reduction,
    cycle_errors,
    generator_adversarial,
    part_errors,
    quarter_turn_errors,
    quarter_turn_inputs,
)
from trainables.common.pose.networks import Affine, Critic, Lifter
from trainables.tipsy.losses import distillation_loss
from trainables.tipsy.model import FULL, PARTS, Pair

PAIR = ObjectiveSettings(parts=PARTS, gan_loss="lsgan")
SOLO = ObjectiveSettings(parts=FULL, gan_loss="lsgan")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _x(count: int = 8) -> Tensor:
    return torch.rand(count, 16, 2, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


def _views(count: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return draw_rotations(count, 160, 10, per="sample", generator=generator).double()


def _frozen_critic() -> Critic:
    return Critic(16, 24, 1).double().requires_grad_(False)


def _pair() -> Pair:
    return Pair(24, 1, 2).double()


# --- one backward ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gan_loss", ["lsgan", "bce_smooth", "hinge"])
@pytest.mark.parametrize("reduction", ["part_mean", "joint_mean"])
def test_one_backward_equals_one_objective_per_part(gan_loss: GanLoss, reduction: Reduction) -> None:
    settings = replace(PAIR, gan_loss=gan_loss, reduction=reduction, w_adv=0.7)
    pair, critic, x, views = _pair(), _frozen_critic(), _x(), _views()
    total, _ = generator_objective(pair, critic, x, views, settings)
    total.backward()

    # As in the authors' code: the losses written out, differentiated once for each part.
    z = pair(x)
    seen = reproject(x, z, views)
    adversarial = generator_adversarial(critic(seen), settings.gan_loss)
    cycle = part_errors(cycle_errors(x, reproject(seen, pair(seen), views.mT)), PARTS)
    turned = [pair(image) for image in quarter_turn_inputs(x, z)]
    turns = part_errors(quarter_turn_errors(x, z, turned), PARTS)
    for name, network, share in (("legs", pair.legs, 6 / 16), ("torso", pair.torso, 10 / 16)):
        weight = share**2 if reduction == "joint_mean" else 1.0
        loss = share * 0.7 * adversarial + weight * (10 * cycle[name] + 3 * turns[name])
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-12)


def test_value_is_the_weighted_sum_of_the_parts() -> None:
    total, report = generator_objective(_pair(), _frozen_critic(), _x(), _views(), PAIR)
    terms = 10 * (report["l2d_legs"] + report["l2d_torso"]) + 3 * (report["l90_legs"] + report["l90_torso"])
    torch.testing.assert_close(total.detach(), report["adv"] + terms)
    assert not any(value.requires_grad for value in report.values())


def test_calls_together_and_apart_give_the_same_gradients() -> None:
    lifter, critic = Lifter(16, 24, 2).double(), _frozen_critic()
    gradients = []
    for joint in (True, False):
        total, _ = generator_objective(lifter, critic, _x(), _views(), replace(SOLO, joint_calls=joint))
        gradients.append(torch.autograd.grad(total, list(lifter.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_batch_statistics_come_from_the_original_poses_only() -> None:
    lifter = Lifter(16, 24, 1, norm="batch").double()
    twin = copy.deepcopy(lifter)
    generator_objective(lifter, _frozen_critic(), _x(), _views(), replace(SOLO, joint_calls=False))
    twin(_x())
    for name, value in twin.state_dict().items():
        if "running" in name:
            assert torch.equal(lifter.state_dict()[name], value)


class _Counted:
    """A lifter that counts the poses it is given."""

    def __init__(self, lifter: nn.Module) -> None:
        self.lifter = lifter
        self.calls: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        z: Tensor = self.lifter(x)
        return z


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        (SOLO, [8, 32]),
        (replace(SOLO, w_90_180=False), [8, 24]),
        (replace(SOLO, w_90=0.0), [8, 8]),
        (replace(SOLO, joint_calls=False), [8] * 5),
    ],
)
def test_no_lifter_call_is_wasted(settings: ObjectiveSettings, calls: list[int]) -> None:
    counted = _Counted(Lifter(16, 24, 1).double())
    _, report = generator_objective(counted, _frozen_critic(), _x(), _views(), settings)
    assert counted.calls == calls
    assert ("l90_full" in report) == (settings.w_90 > 0)


# --- symmetry ----------------------------------------------------------------------------------------------


def _view(azimuth: float, elevation: float) -> Tensor:
    angles = torch.tensor([azimuth, elevation], dtype=torch.float64)
    return (rotation_y(angles[0]) @ rotation_x(angles[1])).expand(8, 3, 3)


def test_negated_lifter_with_negated_angles_has_the_same_objective() -> None:
    lifter, critic = Lifter(16, 24, 2).double(), _frozen_critic()

    def negated(x: Tensor) -> Tensor:
        return -lifter(x)

    def parts(lift: Lift, azimuth: float, elevation: float) -> dict[str, Tensor]:
        return generator_objective(lift, critic, _x(), _view(azimuth, elevation), SOLO)[1]

    straight = parts(lifter, 0.9, 0.15)
    mirrored = parts(negated, -0.9, -0.15)
    for name in ("adv", "l2d_full", "l90_full"):
        torch.testing.assert_close(straight[name], mirrored[name], rtol=1e-6, atol=1e-12)
    other = parts(negated, -0.9, 0.15)
    assert abs(other["adv"] - straight["adv"]) > 1e-6
    assert abs(other["l2d_full"] - straight["l2d_full"]) > 1e-6
    torch.testing.assert_close(other["l90_full"], straight["l90_full"])


# --- separation of the steps -------------------------------------------------------------------------------


def test_generator_step_leaves_the_critic_alone() -> None:
    pair, critic = _pair(), Critic(16, 24, 1).double()
    before = copy.deepcopy(critic.state_dict())
    critic.requires_grad_(False)
    total, _ = generator_objective(pair, critic, _x(), _views(), PAIR)
    total.backward()
    torch.optim.Adam(pair.parameters()).step()
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert all(torch.equal(before[name], value) for name, value in critic.state_dict().items())


def test_critic_step_leaves_the_lifter_alone() -> None:
    pair, critic = _pair(), Critic(16, 24, 1).double()
    total, report = critic_objective(pair, critic, _x(), _views(), replace(PAIR, r1_gamma=1.0))
    total.backward()
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert all(parameter.grad is not None for parameter in critic.parameters())
    torch.testing.assert_close(total.detach(), report["d_loss"] + 0.5 * report["r1"])


def test_critic_learns_and_swapped_labels_reverse_it() -> None:
    critic = Critic(16, 24, 1).double()
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)

    def flat(x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:2], dtype=x.dtype)

    for _ in range(200):
        total, report = critic_objective(flat, critic, _x(), _views(), SOLO)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert report["d_accuracy"] == 1.0
    assert report["d_loss"] < 0.05
    _, swapped = critic_objective(flat, critic, _x(), _views(), SOLO, swap=True)
    assert swapped["d_loss"] > 0.5
    assert swapped["d_accuracy"] == 1.0


def test_renormalised_fakes_touch_the_border() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).mean(dim=1)

    for renorm in (False, True):
        settings = replace(PAIR, renorm_fake=renorm)
        generator_objective(_pair(), critic, _x(), _views(), settings)
        critic_objective(_pair(), critic, _x(), _views(), settings)
    border = [x.abs().amax(dim=(1, 2)) for x in (seen[0], seen[2], seen[3][8:])]
    ones = torch.ones(8, dtype=torch.float64)
    assert not torch.allclose(border[0], ones)
    torch.testing.assert_close(border[1], ones)
    torch.testing.assert_close(border[2], ones)


def test_parts_must_cover_the_pose() -> None:
    settings = replace(PAIR, parts={"legs": PARTS["legs"]})
    with pytest.raises(ValueError, match="cover"):
        generator_objective(_pair(), _frozen_critic(), _x(), _views(), settings)


@pytest.mark.parametrize("settings", [SOLO, PAIR])
def test_a_few_steps_lower_the_consistency_terms(settings: ObjectiveSettings) -> None:
    lifter = Lifter(16, 32, 2) if settings is SOLO else Pair(32, 1, 1)
    critic = Critic(16, 24, 1).requires_grad_(False)
    optimizer = torch.optim.Adam(lifter.parameters(), lr=1e-3)
    totals = []
    for _ in range(30):
        total, _ = generator_objective(lifter, critic, _x().float(), _views().float(), settings)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


# --- distillation ------------------------------------------------------------------------------------------


def _joined(one: Tensor, other: Tensor) -> Tensor:
    return torch.block_diag(one, other) if one.ndim == 2 else torch.cat([one, other])


def _student_of(pair: Pair) -> Lifter:
    """The full-pose lifter of double width whose layers are the block-diagonal joins of the pair's."""
    student = Lifter(16, 2 * pair.legs.head.in_features, len(pair.legs.blocks)).double()
    legs, torso = pair.legs.state_dict(), pair.torso.state_dict()
    student.load_state_dict({name: _joined(legs[name], torso[name]) for name in legs})
    return student


def test_block_diagonal_student_has_no_distillation_loss() -> None:
    pair = Pair(24, 2, 2).double().eval()
    for module in pair.modules():
        if isinstance(module, Affine):
            nn.init.normal_(module.gain)
            nn.init.normal_(module.shift)
    assert distillation_loss(_student_of(pair), pair, _x()) < 1e-24


def test_distillation_approaches_the_teacher_and_leaves_it_alone() -> None:
    teacher = _pair().eval()
    before = copy.deepcopy(teacher.state_dict())
    student = Lifter(16, 24, 1).double()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = distillation_loss(student, teacher, _x())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
