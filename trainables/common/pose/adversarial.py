"""Objectives of the adversarial lifting families: generator step and critic step.

Source: sections 4.1 and 4.2 of the reference notes on TIPSy-GAN (arXiv 2205.05980), and section 4.2 of those on
"Optimising 2D Pose Representation" (arXiv 2209.00618). A lifter is any callable (B, J, 2) -> (B, J), so that all
models share this code; what differs is the partition of the joints in `ObjectiveSettings.parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.common.pose.geometry import full_precision, reproject, unit_box
from trainables.common.pose.losses import (
    GanLoss,
    Lift,
    Reduction,
    Share,
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
)

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights and variants of the two objectives (sections 4.1 and 6 of the notes).

    Attributes:
        parts: Joints of each separately trained part; all joints in one for a model that is trained as a whole.
            Where parts overlap, a joint's adversarial gradient has the share of the last of its parts.
        gan_loss: Adversarial loss: bce_smooth, lsgan or hinge.
        smooth: bce_smooth: distance of the real label from 1.
        w_adv: Weight of the adversarial term; each part gets its share of it.
        w_2d: Weight of the 2D cycle.
        w_90: Weight of the 90-degree consistency; 0 leaves out its lifter calls (ablation).
        w_90_180: With the third (180-degree) term of the consistency.
        reduction: part_mean (the papers) or joint_mean, see `common.pose.losses.part_weights`.
        adv_share: How the adversarial weight is divided, see `common.pose.losses.adversarial_shares`.
        renorm_fake: Scale reprojections to max |x|, |y| = 1 as the data are, before the critic sees them.
            Else the critic can tell reals by their touching the border of the box (pitfall P3).
        r1_gamma: Weight of the critic's R1 penalty; 0 leaves it out.
        joint_calls: Lift all images of a step that depend on the first depths in one call. Must be off for
            norm=batch, whose statistics would mix input distributions.
    """

    parts: Mapping[str, tuple[int, ...]]
    gan_loss: GanLoss = "bce_smooth"
    smooth: float = 0.2
    w_adv: float = 1.0
    w_2d: float = 10.0
    w_90: float = 3.0
    w_90_180: bool = True
    reduction: Reduction = "part_mean"
    adv_share: Share = "by_joints"
    renorm_fake: bool = False
    r1_gamma: float = 0.0
    joint_calls: bool = True


def _seen_by_critic(fake: Tensor, settings: ObjectiveSettings) -> Tensor:
    return unit_box(fake) if settings.renorm_fake else fake


def generator_objective(
    lifter: Lift, critic: Score, x: Tensor, rotation: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss whose single backward gives every part the gradient of its own objective (sections 4.1, 4.2).

    Part p minimises `share_p w_adv L_adv + w_2d L2D_p + w_90 L90_p`. The adversarial term is common to all
    parts; the authors' code differentiates it once per part with that part's weight. Here it enters with
    w_adv, and the gradient that reaches each joint of the reprojection is multiplied by the share of the
    joint's part. A rotation does not mix joints, so this equals scaling the gradient of the joint's depth,
    and one reprojection serves critic and cycle. With one part the share is 1.

    The returned value is therefore w_adv L_adv + sum over parts; its value (not its gradient) is the same as
    without the scaling.

    Args:
        lifter: Depths (B, J) of image positions (B, J, 2).
        critic: Scores of 2D poses, with `requires_grad_(False)`: gradients pass through it to the fakes.
        x: (B, J, 2) normalised 2D poses.
        rotation: (B, 3, 3) view of each pose, `common.pose.geometry.draw_rotations`.
        settings: Weights and variants.

    Returns:
        Scalar total, and its detached parts: adv, l2d_<part>, l90_<part> (if w_90 > 0), std_z.

    Raises:
        ValueError: The parts do not cover the joints, or a setting is not possible.
    """
    joints = x.shape[1]
    shares = adversarial_shares(settings.parts, joints, settings.adv_share)
    weights = part_weights(settings.parts, shares, joints, settings.reduction)

    z = full_precision(lifter(x))
    view = reproject(x, z, rotation)
    # All further images depend on z only, so one call lifts them together.
    images = [view]
    if settings.w_90 > 0:
        images += quarter_turn_inputs(x, z, settings.w_90_180)
    z_view, *z_turned = lift_each(lifter, images, together=settings.joint_calls)

    fake = _seen_by_critic(_scaled_by_share(view, shares, settings), settings)
    adversarial = generator_adversarial(critic(fake), settings.gan_loss, smooth=settings.smooth)
    cycle = part_errors(cycle_errors(x, reproject(view, z_view, rotation.mT)), settings.parts)
    total = settings.w_adv * adversarial + settings.w_2d * _weighted(cycle, weights)
    report = {"adv": adversarial, **{f"l2d_{name}": value for name, value in cycle.items()}}
    if z_turned:
        turns = part_errors(quarter_turn_errors(x, z, z_turned), settings.parts)
        total = total + settings.w_90 * _weighted(turns, weights)
        report |= {f"l90_{name}": value for name, value in turns.items()}
    report["std_z"] = z.std()
    return total, {name: value.detach() for name, value in report.items()}


def _scaled_by_share(view: Tensor, shares: Mapping[str, float], settings: ObjectiveSettings) -> Tensor:
    """The reprojection (B, J, 2), with the gradient at each joint scaled by the share of its part."""
    if len(shares) == 1:
        return view
    scale = view.new_zeros(view.shape[1], 1)
    for name, part in settings.parts.items():
        scale[list(part)] = shares[name]
    return grad_scale(view, scale)


def _weighted(errors: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * error for name, error in errors.items()]).sum()


def critic_objective(
    lifter: Lift,
    critic: Score,
    x: Tensor,
    rotation: Tensor,
    settings: ObjectiveSettings,
    *,
    swap: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the critic: tell real 2D poses from reprojected lifted ones (sections 4.1, 4.2).

    Args:
        lifter: Depths (B, J) of image positions (B, J, 2); gets no gradient.
        critic: Scores of 2D poses, trainable.
        x: (B, J, 2) normalised 2D poses, the reals and the origin of the fakes.
        rotation: (B, 3, 3) view of each pose; another draw than that of the generator step.
        settings: Weights and variants.
        swap: Exchange the labels of real and fake (the authors do with probability 10/99 per batch).

    Returns:
        Scalar total, and its detached parts: d_loss (without the penalty), d_accuracy, r1 (if r1_gamma > 0).

    Raises:
        ValueError: A setting is not possible.
    """
    with torch.no_grad():
        fake = _seen_by_critic(reproject(x, lifter(x), rotation), settings)
    # One call for both blocks; the critic has no normalisation, so they do not influence each other.
    real_scores, fake_scores = critic(torch.cat([x, fake])).chunk(2)
    total = critic_adversarial(real_scores, fake_scores, settings.gan_loss, smooth=settings.smooth, swap=swap)
    report = {"d_loss": total, "d_accuracy": critic_accuracy(real_scores, fake_scores, settings.gan_loss)}
    if settings.r1_gamma > 0:
        report["r1"] = r1_penalty(critic, x)
        total = total + 0.5 * settings.r1_gamma * report["r1"]
    return total, {name: value.detach() for name, value in report.items()}
