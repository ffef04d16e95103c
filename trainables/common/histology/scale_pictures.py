"""Filters of Gaussian derivatives as pictures: one pattern at all of its scales and orientations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.histology.filters import GaussianConv

_ZOOM = 5  # by which a filter's pixels are enlarged
_GAP = 3
# From least over nothing to most.
_ENDS = torch.tensor([[0.13, 0.35, 0.67], [1.0, 1.0, 1.0], [0.75, 0.15, 0.15]])


class _Turned(nn.Module):
    """A layer whose answer are its filters (S, outputs, k, k) for its first input."""

    def __init__(self, layer: GaussianConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, angle: float) -> Tensor:
        return self.layer.filters(angle)[:, :, 0]


@torch.no_grad()
def draw_filters(
    layer: GaussianConv, weights: Mapping[str, Tensor], outputs: Sequence[int], angles: Sequence[float]
) -> Tensor:
    """Filters of a layer for its first input: rows are scales of each output in turn, columns orientations.

    Args:
        layer: Whose.
        weights: Its parameters by name: under ZeRO 3 it has but pieces of them itself.
        outputs: Which of its output channels.
        angles: In degrees.

    Returns:
        (3, height, width) in [0, 1]; each filter between minus and plus its own largest value.
    """
    whole = {f"layer.{name}": value for name, value in weights.items()}
    turned = [torch.func.functional_call(_Turned(layer), whole, (angle,)) for angle in angles]
    rows = [
        torch.cat([_coloured(filters[scale, output]) for filters in turned], dim=2)
        for output in outputs
        for scale in range(len(turned[0]))
    ]
    return torch.cat(rows, dim=1).clamp(0, 1)


def _coloured(filter_: Tensor) -> Tensor:
    """(k, k) -> (3, zoom k + gap, zoom k + gap)."""
    value = (filter_ / filter_.abs().max().clamp_min(1e-12)).cpu().float()
    end = torch.where((value < 0)[..., None], _ENDS[0], _ENDS[2])
    colour = (_ENDS[1] + value.abs()[..., None] * (end - _ENDS[1])).movedim(-1, 0)
    large = colour.repeat_interleave(_ZOOM, 1).repeat_interleave(_ZOOM, 2)
    return functional.pad(large, (0, _GAP, 0, _GAP), value=0.8)
