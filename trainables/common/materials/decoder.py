"""The feature pyramid that turns maps at four strides into logits.

Source: section 3.6 of the reference notes on DBAT (the FPN of segmentation-models-pytorch).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class _Step(nn.Module):
    """Convolution, norm, ReLU, and twice the side where it is asked for."""

    def __init__(self, channels: int, features: int, groups: int, *, enlarges: bool):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.GroupNorm(groups, features), nn.ReLU()
        )
        self.enlarges = enlarges

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return enlarged(x, 2) if self.enlarges else x


class Pyramid(nn.Module):
    """Four maps -> features (B, features, H, W) at the first map's size.

    Args:
        width: C of the maps' C, 2C, 4C and 8C channels.
        pyramid: Channels of the way down.
        features: Channels of what comes out.
        groups: Of the group norms; they divide the features.
    """

    def __init__(self, width: int, pyramid: int = 256, features: int = 128, groups: int = 32):
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(width * 2**k, pyramid, 1) for k in range(4)])
        self.branches = nn.ModuleList(
            [
                nn.Sequential(
                    *(
                        _Step(pyramid if step == 0 else features, features, groups, enlarges=level > 0)
                        for step in range(max(1, level))
                    )
                )
                for level in range(4)
            ]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The sum of what the four levels say."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for k in (2, 1, 0):
            levels[k] = levels[k] + functional.interpolate(levels[k + 1], scale_factor=2, mode="nearest")
        first, *others = [branch(x) for branch, x in zip(self.branches, levels, strict=True)]
        total: Tensor = first
        for other in others:
            total = total + other
        return total


class Head(nn.Module):
    """Features (B, F, H, W) -> logits (B, K, H s, W s).

    Args:
        features: F.
        classes: K.
        factor: s.
        dropout: Share of the channels that are left out while it trains.
    """

    def __init__(self, features: int, classes: int, factor: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(features, classes, 1)
        self.factor = factor
        nn.init.xavier_uniform_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """One value for each class and pixel."""
        return enlarged(self.classify(self.dropout(features)), self.factor)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Bilinear, corners on corners; in fp32."""
    return functional.interpolate(x.float(), scale_factor=factor, mode="bilinear", align_corners=True)


def decoder_parameters(width: int, pyramid: int, features: int, classes: int) -> int:
    """How many the pyramid and the head have."""
    lateral = 15 * width * pyramid + 4 * pyramid
    first, later = 9 * pyramid * features + 2 * features, 9 * features**2 + 2 * features
    return lateral + 4 * first + 3 * later + features * classes + classes
