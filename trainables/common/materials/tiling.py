"""Images of any size, cut into equal tiles and put together again.

Source: section 2.4 of the reference notes on DBAT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Axis:
    """How a length is covered with tiles.

    Attributes:
        count: Of tiles.
        stride: Pixels from one to the next.
        before: Zeros that are put before the length.
        after: Zeros that are put after it.
    """

    count: int
    stride: int
    before: int
    after: int


def axis_of(length: int, side: int) -> Axis:
    """As few tiles of a side as cover a length, evenly placed; what they cover beyond it is padding."""
    count = math.ceil(length / side)
    stride = side if length % side == 0 or count == 1 else math.ceil((length - side) / (count - 1))
    padding = stride * (count - 1) + side - length
    return Axis(count, stride, padding // 2 + padding % 2, padding // 2)


def tiled(predict: Callable[[Tensor], Tensor], image: Tensor, side: int, batch: int) -> Tensor:
    """What a network says of an image that is larger than its input: the mean of its logits where tiles overlap.

    Args:
        predict: (B, C, side, side) -> logits (B, K, side, side).
        image: (C, H, W).
        side: Of the tiles.
        batch: How many are predicted at a time.

    Returns:
        (K, H, W).
    """
    height, width = image.shape[-2:]
    rows, columns = axis_of(height, side), axis_of(width, side)
    padded = functional.pad(image, (columns.before, columns.after, rows.before, rows.after))
    places = [(r * rows.stride, c * columns.stride) for r in range(rows.count) for c in range(columns.count)]
    total: Tensor | None = None
    overlaps = padded.new_zeros(padded.shape[-2:])
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        logits = predict(torch.stack([padded[:, top : top + side, left : left + side] for top, left in some]))
        if total is None:
            total = logits.new_zeros(logits.shape[1], *padded.shape[-2:])
        for (top, left), one in zip(some, logits, strict=True):
            total[:, top : top + side, left : left + side] += one
            overlaps[top : top + side, left : left + side] += 1
    assert total is not None
    return (total / overlaps)[:, rows.before : rows.before + height, columns.before : columns.before + width]
