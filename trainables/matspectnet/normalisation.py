"""How values of an image come to lie in [0, 1].

Source: section 2.1 of the reference notes on MatSpectNet (arXiv 2307.11466).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NORMALISATIONS = ("minmax", "percentile", "none")
_TAILS = (0.001, 0.999)  # percentile: what is left out at either end
_LEAST_DEVIATION = 1e-3
_SAMPLED = 1 << 16  # values of an image from which percentiles are taken


class Scale(nn.Module):
    """Values less their mean, in units of their standard deviation, channel by channel.

    Both are part of a checkpoint: whoever predicts later does not have the training images.

    Args:
        mean: (C,).
        deviation: (C,), positive.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.register_buffer("mean", mean[:, None, None].float())
        self.register_buffer("deviation", deviation[:, None, None].float())

    @classmethod
    def of(cls, images: Iterable[Tensor]) -> Scale:
        """The scale of images (C, ...), all their pixels together."""
        pixels = torch.cat([image.flatten(1).double() for image in images], dim=1)
        return cls(pixels.mean(dim=1), pixels.std(dim=1).clamp_min(_LEAST_DEVIATION))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        out: Tensor = (x - self.mean) / self.deviation
        return out


@dataclass(frozen=True)
class Range:
    """What becomes 0 and what becomes 1."""

    low: float
    high: float

    def __call__(self, image: Tensor) -> Tensor:
        """Values of the image in [0, 1], as float."""
        return ((image.float() - self.low) / max(self.high - self.low, 1e-6)).clamp(0, 1)


def value_range(image: Tensor, how: str) -> Range:
    """The range of an image.

    Args:
        image: (3, H, W), bytes or in [0, 1].
        how: minmax (its smallest and largest value, of all channels together: the authors' code); percentile (the
            same without a thousandth at either end, so that one hot pixel does not decide); or none (bytes / 255).
    """
    match how:
        case "minmax":
            return Range(float(image.min()), float(image.max()))
        case "percentile":
            values = image.flatten()
            values = values[:: max(1, len(values) // _SAMPLED)].float()
            low, high = values.quantile(torch.tensor(_TAILS)).tolist()
            return Range(low, high)
        case _:
            return Range(0.0, 255.0 if image.dtype == torch.uint8 else 1.0)
