"""Networks of TIPSy-GAN: the pair of lifters, one for the legs and one for the torso.

Source: section 3.2 of the reference notes on TIPSy-GAN (arXiv 2205.05980), which follow the first author's
public code (Aswarin/2D-to-3D-Pose). The solo baseline and the student are single `Lifter`s.

Deviation: `norm="affine"`, see `common.pose.networks`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.common.pose.networks import Activation, Lifter, Norm
from trainables.common.pose.skeleton import SUBSETS

PARTS: dict[str, tuple[int, ...]] = SUBSETS[16].two_parts
"""Joints of the two lifters of `Pair`: legs 0 to 5, torso (trunk, head, arms) 6 to 15."""
FULL: dict[str, tuple[int, ...]] = {"full": tuple(range(16))}
"""The same for a full-pose lifter."""


class Pair(nn.Module):
    """Two lifters that share nothing: one for the legs, one for the torso with arms and head.

    The legs come first in all joint subsets: 6 + 10 joints in the papers' 16, 6 + 8 in 14, 7 + 10 in 17
    (where the root counts with the legs).

    Args:
        width: Features H of both.
        blocks_legs: Residual blocks of the legs' lifter.
        blocks_torso: Residual blocks of the torso's lifter.
        legs: Number of joints of the legs.
        torso: Number of joints of the torso.
        norm: Kind of normalisation.
        activation: Kind of activation.
        dropout: Probability of dropping a feature in the blocks.

    Raises:
        ValueError: The normalisation or activation is unknown.
    """

    def __init__(
        self,
        width: int = 1024,
        blocks_legs: int = 3,
        blocks_torso: int = 3,
        *,
        legs: int = len(PARTS["legs"]),
        torso: int = len(PARTS["torso"]),
        norm: Norm = "affine",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.split = legs
        self.legs = Lifter(legs, width, blocks_legs, norm=norm, activation=activation, dropout=dropout)
        self.torso = Lifter(torso, width, blocks_torso, norm=norm, activation=activation, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Image positions (B, legs + torso, 2) -> depths (B, legs + torso) in (-1, 1)."""
        return torch.cat([self.legs(x[:, : self.split]), self.torso(x[:, self.split :])], dim=1)
