"""Loss terms shared by the adversarial 2D-to-3D lifting families.

Source: sections 4.1 and 4.2 of the reference notes on TIPSy-GAN (arXiv 2205.05980) and section 4.2 of those
on "Optimising 2D Pose Representation" (arXiv 2209.00618); R1: Mescheder et al. (arXiv 1801.04406).

Consistency terms are first computed per joint, (J,), and then reduced over the joints of each part. So one
call of the networks serves every partition, overlapping ones included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.pose.geometry import full_precision

GanLoss = Literal["lsgan", "bce_smooth", "hinge"]
Reduction = Literal["part_mean", "joint_mean"]
Share = Literal["by_joints", "equal", "one"]
Lift = Callable[[Tensor], Tensor]
"""Depths (B, J) of image positions (B, J, 2)."""
Parts = Mapping[str, Sequence[int]]
"""Positions of the joints of each separately lifted part."""

# The scores that a critic gives to real and generated poses straddle this value.
_DECISION: dict[str, float] = {"lsgan": 0.5, "bce_smooth": 0.0, "hinge": 0.0}


def _scores(values: Tensor) -> Tensor:
    """Scores as (B,) in at least float32; (B, 1) against labels (B,) would broadcast to (B, B)."""
    if values.shape not in ((len(values),), (len(values), 1)):
        raise ValueError(f"critic scores have shape {tuple(values.shape)}; expected (B,) or (B, 1)")
    return full_precision(values.reshape(-1))


def _check(gan_loss: str, smooth: float) -> None:
    if gan_loss not in get_args(GanLoss):
        raise ValueError(f"gan_loss={gan_loss!r} must be one of {', '.join(get_args(GanLoss))}")
    if not 0 <= smooth < 0.5:
        raise ValueError(f"smooth={smooth} must be in [0, .5): the real label is 1 - smooth")


def _against(scores: Tensor, real: bool, gan_loss: str, smooth: float) -> Tensor:
    """Mean loss of scores (B,) that should say `real`."""
    match gan_loss:
        case "lsgan":
            return (scores - float(real)).square().mean()
        case "bce_smooth":
            target = torch.full_like(scores, 1 - smooth if real else 0.0)
            return functional.binary_cross_entropy_with_logits(scores, target)
        case _:
            return functional.relu(1 - scores if real else 1 + scores).mean()


def critic_adversarial(
    real: Tensor, fake: Tensor, gan_loss: GanLoss, *, smooth: float = 0.2, swap: bool = False
) -> Tensor:
    """Critic's adversarial loss: the mean over the real and the fake block (section 4.1).

    `lsgan` has the targets 1 and 0; `bce_smooth` takes scores as logits and has the targets 1 - smooth and 0;
    `hinge` has the margins +1 and -1. Only `bce_smooth` reads `smooth`.

    Args:
        real: Scores of real poses, (B,) or (B, 1).
        fake: Scores of reprojected poses, (B,) or (B, 1).
        gan_loss: Kind of loss.
        smooth: Distance of the real label from 1.
        swap: Exchange the labels of the two blocks (label noise: one coin per batch, drawn by the caller).

    Returns:
        Scalar.

    Raises:
        ValueError: A shape, the kind or the smoothing is not possible.
    """
    _check(gan_loss, smooth)
    on_real = _against(_scores(real), not swap, gan_loss, smooth)
    on_fake = _against(_scores(fake), swap, gan_loss, smooth)
    return 0.5 * (on_real + on_fake)


def generator_adversarial(fake: Tensor, gan_loss: GanLoss, *, smooth: float = 0.2) -> Tensor:
    """Generator's adversarial loss: the fakes should look real (section 4.1).

    Args:
        fake: Critic's scores of reprojected poses, (B,) or (B, 1).
        gan_loss: Kind of loss; `hinge` is the plain -mean(score).
        smooth: As for the critic; the generator's target is the same 1 - smooth.

    Returns:
        Scalar.

    Raises:
        ValueError: A shape, the kind or the smoothing is not possible.
    """
    _check(gan_loss, smooth)
    scores = _scores(fake)
    return -scores.mean() if gan_loss == "hinge" else _against(scores, True, gan_loss, smooth)


@torch.no_grad()
def critic_accuracy(real: Tensor, fake: Tensor, gan_loss: GanLoss) -> Tensor:
    """Share of poses that the critic tells correctly, in [0, 1]; true identities, whatever the label noise.

    Args:
        real: Scores of real poses, (B,) or (B, 1).
        fake: Scores of reprojected poses, (B,) or (B, 1).
        gan_loss: Kind of loss; it fixes the score between the two classes (.5 for lsgan, else 0).

    Returns:
        Scalar, the mean over both blocks.
    """
    middle = _DECISION[gan_loss]
    return 0.5 * ((_scores(real) > middle).float().mean() + (_scores(fake) <= middle).float().mean())


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Mean squared norm of the critic's gradient at real poses (R1, without its factor gamma / 2).

    Args:
        critic: Maps (B, J, 2) to scores.
        real: (B, J, 2) real poses.

    Returns:
        Scalar, differentiable in the critic's parameters.
    """
    at = real.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(_scores(critic(at)).sum(), at, create_graph=True)
    return slope.square().sum(dim=(1, 2)).mean()


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None


def grad_scale(values: Tensor, scale: Tensor) -> Tensor:
    """Identity forward; multiply the gradient by `scale` backward (section 4.2).

    Args:
        values: Any tensor.
        scale: Factors, broadcastable to `values`.

    Returns:
        The same values.
    """
    scaled: Tensor = _ScaleGradient.apply(values, scale)  # type: ignore[no-untyped-call]
    return scaled


def cycle_errors(x: Tensor, x_back: Tensor) -> Tensor:
    """2D cycle (L2D of section 4.1) per joint.

    Args:
        x: (B, J, 2) input.
        x_back: (B, J, 2) the pose lifted, rotated, projected, lifted again, rotated back and projected.

    Returns:
        (J,) mean squared error over batch and coordinates.
    """
    return (x - x_back).square().mean(dim=(0, 2))


def quarter_turn_inputs(x: Tensor, z: Tensor, half_turn: bool = True) -> list[Tensor]:
    """Images of the lifted pose [x, z] = (a, b, z) turned by -90, +90 and 180 degrees (L90 of section 4.1).

    Args:
        x: (B, J, 2) image positions.
        z: (B, J) depths.
        half_turn: With the third term.

    Returns:
        (z, b), (-z, b) and, with `half_turn`, (-a, b); each (B, J, 2).
    """
    a, b = x.unbind(-1)
    z = full_precision(z)
    turned = [torch.stack([z, b], dim=-1), torch.stack([-z, b], dim=-1)]
    return [*turned, torch.stack([-a, b], dim=-1)] if half_turn else turned


def quarter_turn_errors(x: Tensor, z: Tensor, depths: Sequence[Tensor]) -> Tensor:
    """90-degree consistency (L90 of section 4.1) per joint: sum of its two or three terms.

    Args:
        x: (B, J, 2) image positions.
        z: (B, J) depths.
        depths: The lifter's depths, each (B, J), of the images of `quarter_turn_inputs`, in that order.

    Returns:
        (J,) mean squared error over the batch. Gradients flow through both `z` and `depths`.
    """
    a, z = x[..., 0], full_precision(z)
    # Depth of the exact rotation of (a, b, z) by -90, +90 and 180 degrees.
    expected = (-a, a, -z)[: len(depths)]
    squares = [(want - full_precision(got)).square().mean(dim=0) for want, got in zip(expected, depths, strict=True)]
    return torch.stack(squares).sum(dim=0)


def adversarial_shares(parts: Parts, joints: int, kind: Share = "by_joints") -> dict[str, float]:
    """Weight of the adversarial term of each part: its share of the joints (.625 torso, .375 legs).

    Where a joint belongs to several parts, the shares are divided by their sum, so that they add up to 1.

    Args:
        parts: Joints of each part.
        joints: Number of joints J.
        kind: by_joints as above; equal gives every part the same share; one gives each all of it.

    Raises:
        ValueError: The parts do not cover all joints, or the kind is unknown.
    """
    if kind not in get_args(Share):
        raise ValueError(f"adv_share={kind!r} must be one of {', '.join(get_args(Share))}")
    covered = {joint for part in parts.values() for joint in part}
    if covered != set(range(joints)):
        raise ValueError(f"the parts cover joints {sorted(covered)}; expected all of 0..{joints - 1}")
    if kind != "by_joints":
        return dict.fromkeys(parts, 1.0 if kind == "one" else 1 / len(parts))
    total = sum(len(part) for part in parts.values())
    return {name: len(part) / total for name, part in parts.items()}


def part_errors(per_joint: Tensor, parts: Parts) -> dict[str, Tensor]:
    """Mean of per-joint errors (J,) over the joints of each part."""
    return {name: per_joint[list(part)].mean() for name, part in parts.items()}


def part_weights(parts: Parts, shares: Mapping[str, float], joints: int, reduction: Reduction) -> dict[str, float]:
    """Factor of each part's mean error in the sum over parts (pitfall P4).

    With `part_mean` (the papers) it is 1: a joint of a small part gets more consistency per adversarial
    weight (10 L2D against w_p: .625 solo, 1.6 torso, 4.44 legs). With `joint_mean` a part minimises its share
    of the full-pose objective, and the ratio is the solo model's for every joint.

    Args:
        parts: Joints of each part.
        shares: Adversarial weight of each part.
        joints: Number of joints J.
        reduction: Which of the two.

    Returns:
        Factor by part.

    Raises:
        ValueError: The reduction is unknown.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} must be one of {', '.join(get_args(Reduction))}")
    if reduction == "part_mean":
        return dict.fromkeys(parts, 1.0)
    return {name: shares[name] * len(part) / joints for name, part in parts.items()}


@contextlib.contextmanager
def running_statistics_held(lift: Lift) -> Iterator[None]:
    """Within the context, batch normalisation uses batch statistics but does not update the running ones.

    Only the pass over the original poses should define them (section 8 of the notes): the turned and
    reprojected ones are distributed differently. A `lift` that is not a module has no statistics to hold.
    """
    modules = lift.modules() if isinstance(lift, nn.Module) else ()
    momenta = {m: m.momentum for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for module in momenta:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum


def lift_each(lift: Lift, inputs: Sequence[Tensor], *, together: bool) -> list[Tensor]:
    """Depths of several batches of image positions.

    Args:
        lift: The lifter.
        inputs: Batches of image positions, each (B, J, 2).
        together: Concatenate them to one call: fewer and larger matrix products, the same result for a lifter
            that treats poses independently. Batch normalisation does not: its statistics would mix input
            distributions, and reprojections would be normalised by turned poses. It needs separate calls.

    Returns:
        Depths (B, J) of each input.
    """
    if together:
        return list(torch.split(lift(torch.cat(list(inputs))), [len(x) for x in inputs]))
    with running_statistics_held(lift):
        return [lift(x) for x in inputs]
