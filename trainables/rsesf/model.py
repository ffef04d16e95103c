"""RSESF: a UNet of steerable filters; all orientations and scales of a filter share its coefficients.

Source: section 3 of the reference notes on RSESF (arXiv 2304.04600).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainables.common.histology.branches import BranchLogits
from trainables.common.histology.filters import Interval, ladder
from trainables.common.histology.scale_pictures import draw_filters
from trainables.common.histology.scale_space import ScaleSpaceUNet

OFFSET_RULES = ("floor_half", "per_level", "none")
SELECTIONS = ("image_argmax", "pixel_argmax", "channel_argmax", "max")


def intervals(kind: str, low: float, step: float, *, branches: int, depth: int, rule: str) -> list[list[Interval]]:
    """The ranges of the branches' scales, level by level.

    Args:
        kind: arithmetic or geometric.
        low: Where the first begins, at level 0.
        step: Width, or ratio of the ends.
        branches: S.
        depth: L.
        rule: How many steps higher a level begins than level 0: floor_half (half of its number, rounded down),
            per_level (its number), none.
    """
    levels = range(depth + 1)
    first = {"floor_half": [level // 2 for level in levels], "per_level": list(levels), "none": [0 for _ in levels]}
    return [ladder(kind, low, step, branches, first[rule][level]) for level in levels]


class RSESF(nn.Module):
    """Images to the logits of each scale. It has no weight that depends on how many orientations there are.

    Args:
        classes: K.
        width: Channels of a slot at level 0.
        ranges: Of the scales, level by level, as `intervals` makes them.
        eta: How the branches' losses are weighed, see `branch_weights`.
        orientations_train: R in training, where the largest of each feature goes on.
        orientations: R in evaluation.
        selection: How orientations are pooled in evaluation, see `pooled`.
        body: Of `ScaleSpaceUNet`.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        ranges: list[list[Interval]],
        *,
        eta: str,
        orientations_train: int = 1,
        orientations: int = 8,
        selection: str = "image_argmax",
        **body: Any,
    ) -> None:
        super().__init__()
        branches = len(ranges[0])
        self.orientations_train, self.orientations, self.selection = orientations_train, orientations, selection
        self._eta_mode = eta
        self.body = ScaleSpaceUNet(width, ranges, is_reduction_normed=True, **body)
        self.head = nn.Conv2d(width, classes, 1)
        self.eta = None if eta == "uniform" else nn.Parameter(torch.full((branches,), 1 / branches))

    def forward(self, x: Tensor, orientations: int = 0) -> BranchLogits:
        """(B, 3, H, W) -> logits (S, B, K, H, W); with as many orientations as it was made for, or others."""
        if self.training:
            # All orientations at once: they share their batch statistics.
            angles = _angles(orientations or self.orientations_train)
            features = pooled(self.body(x, angles).chunk(len(angles)), "max")
        else:
            # One after the other, in the memory of one.
            turned = (self.body(x, [angle]) for angle in _angles(orientations or self.orientations))
            features = pooled(turned, self.selection)
        maps = self.head(features.flatten(0, 1))
        logits = maps.view(*features.shape[:2], *maps.shape[1:])
        return BranchLogits.weighed(logits, self.eta, self._eta_mode)

    def drawn_filters(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Two patterns of the first layer, at all scales (rows) and orientations (columns): (3, height, width).

        Args:
            weights: All of the network's, by name.
        """
        layer, mine = self.body.first_layer(weights)
        shown = range(min(2, mine["coefficients"].shape[2]))
        return draw_filters(layer, mine, shown, _angles(self.orientations))


def _angles(orientations: int) -> list[float]:
    return [360 * turn / orientations for turn in range(orientations)]


def pooled(turned: Iterable[Tensor], selection: str) -> Tensor:
    """One set of features from those of all orientations, which may come one at a time.

    Args:
        turned: Of each orientation (S, B, C, H, W).
        selection: max (of each feature), or the whole features of the orientation with the largest sum: over channels
            (pixel_argmax), pixels (channel_argmax), or both (image_argmax; one for each image and scale).
    """
    over = {"pixel_argmax": (2,), "channel_argmax": (3, 4), "image_argmax": (2, 3, 4)}
    best: Tensor | None = None
    largest: Tensor | None = None
    for features in turned:
        if selection == "max":
            best = features if best is None else torch.maximum(best, features)
            continue
        score = features.sum(dim=over[selection], keepdim=True)
        if best is None or largest is None:
            best, largest = features, score
        else:
            best = torch.where(score > largest, features, best)
            largest = torch.maximum(score, largest)
    assert best is not None
    return best
