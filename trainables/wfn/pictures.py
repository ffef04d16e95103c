"""What a trial shows: how the weights gather at a few values, round by round."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.common.drawing import lettering, write

_WIDTH, _BAND, _MARGIN = 720, 44, 12  # pixels
_OCTAVES = 9  # below 1, on either side
_FREE, _FIXED, _LINE = (0.72, 0.72, 0.74), (0.13, 0.38, 0.66), (0.88, 0.88, 0.88)

Vector = npt.NDArray[np.float32]


def count_columns(weights: Vector, mask: npt.NDArray[np.bool_]) -> Tensor:
    """How many free and how many fixed weights lie in each column of the picture, (2, columns).

    Columns are even in the logarithm of the magnitude, negative weights to the left, small ones in the middle.
    """
    half = (_WIDTH - 2 * _MARGIN) // 2
    octaves = np.log2(np.maximum(np.abs(weights), 2.0**-30)) + _OCTAVES
    outwards = np.clip((octaves / (_OCTAVES + 1) * half).astype(np.int64), 0, half - 1)
    columns = np.where(weights < 0, half - 1 - outwards, half + outwards)
    counts = [np.bincount(columns[chosen], minlength=2 * half) for chosen in (~mask, mask)]
    return torch.from_numpy(np.stack(counts))


def draw_rounds(rounds: list[Tensor]) -> Tensor:
    """The histograms of `count_columns`, one under the other, logarithmic upwards: free weights grey, fixed ones blue.

    Returns:
        (3, height, width) in [0, 1].
    """
    top = 12
    canvas = torch.ones(3, top + _BAND * len(rounds) + 14, _WIDTH)
    most = float(torch.stack(rounds).sum(dim=1).max().log1p())
    levels = torch.arange(_BAND - 6).flip(0)[:, None]  # of each row of pixels, from above
    for index, (free, fixed) in enumerate(rounds):
        band = canvas[:, top + index * _BAND + 4 : top + (index + 1) * _BAND - 2, _MARGIN : _MARGIN + len(free)]
        for counts, colour in ((free + fixed, _FREE), (fixed, _FIXED)):
            heights = counts.log1p() / most * (_BAND - 6)
            band[:, levels < heights] = torch.tensor(colour)[:, None]
        canvas[:, top + (index + 1) * _BAND - 2, _MARGIN:-_MARGIN] = torch.tensor(_LINE)[:, None]
        share = float(fixed.sum() / (free + fixed).sum())
        label = lettering(f"{100 * share:.1f}%")
        canvas[:, top + index * _BAND + 5 : top + index * _BAND + 14, 2 : 6 + label.shape[1]] = 1.0
        write(canvas, label, top + index * _BAND + 6, 4)
    half = (_WIDTH - 2 * _MARGIN) // 2
    for exponent in (-8, -6, -4, -2, 0):
        offset = round((exponent + _OCTAVES) / (_OCTAVES + 1) * half)
        for place, text in ((half + offset, f"{2.0**exponent:.3g}"), (half - offset, f"-{2.0**exponent:.3g}")):
            label = lettering(text)
            left = min(max(0, _MARGIN + place - label.shape[1] // 2), _WIDTH - label.shape[1])
            write(canvas, label, canvas.shape[1] - 9, left)
    write(canvas, lettering("weights by value after each round. free grey. fixed blue"), 2, _MARGIN)
    return canvas
