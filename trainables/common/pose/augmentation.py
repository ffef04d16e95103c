"""What the lifting families draw anew for each batch: mirror images, label exchanges, views.

Source: sections 2.6, 3.1 and 4.2 of the reference notes on TIPSy-GAN (arXiv 2205.05980); "Optimising 2D Pose
Representation" (arXiv 2209.00618) uses the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pharos.run import Epoch
from trainables.common.pose.geometry import draw_rotations
from trainables.common.pose.skeleton import SUBSETS


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with this probability; the same on every rank if the generator is."""
    return bool(torch.rand((), generator=generator) < probability)


def flipped(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Mirrors every other batch, by one coin for all of it.

    Args:
        x: (B, J, 2) normalised 2D poses.
        kind: naive negates x, as the authors' code does; swap also exchanges left and right joints; none.
        generator: In the same state on every rank.

    Returns:
        (B, J, 2).
    """
    if kind == "none" or not chance(0.5, generator):
        return x
    mirrored = x * x.new_tensor([-1.0, 1.0])
    return mirrored[:, list(SUBSETS[x.shape[1]].mirror)] if kind == "swap" else mirrored


@dataclass(frozen=True)
class Views:
    """Where reprojections are seen from.

    Attributes:
        azimuth_max: Largest turn, in degrees.
        elevation_max: Largest tilt, in degrees.
        per: batch (one view for a step) or sample.
        epoch: Whose random generators are used.
        device: Where the views go.
    """

    azimuth_max: float
    elevation_max: float
    per: str
    epoch: Epoch
    device: torch.device

    def draw(self) -> Tensor:
        """New views (B, 3, 3) of this worker's share of the batch."""
        views = self.epoch.per_sample(
            lambda count, generator: draw_rotations(
                count,
                self.azimuth_max,
                self.elevation_max,
                per=self.per,  # type: ignore[arg-type]
                # One view for all poses is a decision like a flip; the draws for it come from the same stream.
                generator=self.epoch.shared if self.per == "batch" else generator,
            )
        )
        return views.to(self.device)
