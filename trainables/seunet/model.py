"""SEUNet: a UNet whose branches of scale share their coefficients, each with its own trainable scale in each layer.

Source: section 3 of the reference notes on SEUNet (arXiv 2304.04595).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainables.common.histology.branches import BranchLogits
from trainables.common.histology.filters import Interval, ladder
from trainables.common.histology.scale_pictures import draw_filters
from trainables.common.histology.scale_space import ScaleSpaceUNet

_SHOWN = 8  # filters

LADDERS = ("offset", "constant", "geometric")


def intervals(
    kind: str, low: float, step: float, *, branches: int, depth: int, level_offset: float
) -> list[list[Interval]]:
    """The ranges of the branches' scales, level by level.

    Args:
        kind: offset (each level begins `level_offset` pixels above the one before it), constant, or geometric.
        low: Where the first begins, at level 0.
        step: Width of each, or geometric: ratio of its ends.
        branches: S.
        depth: L.
        level_offset: In pixels of the level.
    """
    name = "geometric" if kind == "geometric" else "arithmetic"
    shift = level_offset if kind == "offset" else 0.0
    return [ladder(name, low + level * shift, step, branches) for level in range(depth + 1)]


class SEUNet(nn.Module):
    """Images to the logits of each branch.

    Args:
        classes: K.
        width: Channels of a branch at level 0.
        ranges: Of the scales, level by level, as `intervals` makes them.
        head: split (a map of logits for each branch, from one shared 1x1 convolution) or fused (a 5x5 convolution of
            the branches' probabilities, one map).
        eta: How the branches' losses are weighed, see `branch_weights`.
        body: Of `ScaleSpaceUNet`.
    """

    def __init__(
        self, classes: int, width: int, ranges: list[list[Interval]], *, head: str, eta: str, **body: Any
    ) -> None:
        super().__init__()
        branches = len(ranges[0])
        self._eta_mode = eta
        self.body = ScaleSpaceUNet(width, ranges, **body)
        self.head = nn.Conv2d(width, classes, 1)
        self.fused = nn.Conv2d(branches * classes, classes, 5, padding=2) if head == "fused" else None
        self.eta = nn.Parameter(torch.full((branches,), 1 / branches)) if head == "split" and eta != "uniform" else None

    def forward(self, x: Tensor) -> BranchLogits:
        """(B, 3, H, W) -> logits (S, B, K, H, W), or (1, B, K, H, W) of a fused head."""
        features = self.body(x)
        maps = self.head(features.flatten(0, 1))
        logits = maps.view(*features.shape[:2], *maps.shape[1:])
        if self.fused is not None:
            fused = self.fused(logits.softmax(dim=2).transpose(0, 1).flatten(1, 2))
            return BranchLogits(fused.unsqueeze(0), fused.new_ones(1))
        return BranchLogits.weighed(logits, self.eta, self._eta_mode)

    def drawn_filters(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Patterns of the first layer (columns) at the scales of all branches (rows); a picture (3, height, width).

        Args:
            weights: All of the network's, by name.
        """
        layer, mine = self.body.first_layer(weights)
        shown = range(min(_SHOWN, mine["coefficients"].shape[2]))
        return torch.cat([draw_filters(layer, mine, [output], [0.0]) for output in shown], dim=2)
