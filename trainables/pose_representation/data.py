"""What the representations are given: poses without depth, the draws of each batch, and poses with exchanged torsos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.common.pose.augmentation import Views, chance, flipped
from trainables.common.pose.data import PoseDataConfig, PoseSet, open_poses

__all__ = ["PoseDataConfig", "Views", "chance", "exchanged", "flipped", "mm_per_unit", "open_poses"]


def exchanged(x: Tensor, part: Sequence[int], generator: torch.Generator) -> Tensor:
    """Each pose with a part of another one, in normalised coordinates (section 5.2 of the notes).

    Exchanged before normalisation, the part would change the scale of the whole pose (pitfall P9).

    Args:
        x: (N, J, 2) normalised 2D poses, N at least 2.
        part: Joints that are exchanged.
        generator: Draws who gets whose; nobody gets their own.

    Returns:
        (N, J, 2).
    """
    ring = torch.randperm(len(x), generator=generator)
    donor = torch.empty_like(ring)
    donor[ring] = ring.roll(1)
    mixed = x.clone()
    mixed[:, list(part)] = x[donor.to(x.device)][:, list(part)]
    return mixed


def mm_per_unit(poses: PoseSet) -> Tensor:
    """Millimetres that a normalised unit stands for in each pose (N,), whatever the input was measured in."""
    millimetres, units = (values[..., :2].square().sum(dim=(1, 2)) for values in (poses.truth, poses.x))
    return (millimetres / units).sqrt()
