"""A UNet of Gaussian-derivative filters with branches of scale.

Source: section 3.4 of the reference notes on SEUNet (arXiv 2304.04595) and of those on RSESF (arXiv 2304.04600). Both
networks are this body; they differ in the ranges of their scales, in batch normalisation, and in what comes after the
last block.

Features are (slots, B, C, H, W): a slot is one copy of the network, of one orientation r and one scale s, at r S + s.
No layer of the body mixes slots, and all of them have the same weights; only the filters' angles and scales differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.batchnorm import BatchNorm2d
from trainables.common.histology.filters import GaussianConv, Interval


class SharedNorm(BatchNorm2d):
    """Batch normalisation with the same statistics and the same affine map in all slots."""

    def forward(self, x: Tensor) -> Tensor:
        """(slots, B, C, H, W) -> the same shape."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class BranchNorm(nn.Module):
    """Batch normalisation of each branch of scale by itself, with all of its orientations.

    Args:
        channels: C of a branch.
        branches: S.
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.norm = BatchNorm2d(branches * channels)
        self._branches = branches

    def forward(self, x: Tensor) -> Tensor:
        """(R S, B, C, H, W) -> the same shape."""
        by_branch = x.view(-1, self._branches, *x.shape[1:]).transpose(1, 2)  # (R, B, S, C, H, W)
        y: Tensor = self.norm(by_branch.flatten(0, 1).flatten(1, 2))
        return y.view(by_branch.shape).transpose(1, 2).flatten(0, 1)


class _Block(nn.Module):
    """[Gaussian filters, norm, ReLU] twice."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module], first: dict[str, Any], **both: Any):
        super().__init__()
        self.convs = nn.ModuleList(
            [GaussianConv(inputs, outputs, **(both | first)), GaussianConv(outputs, outputs, **both)]
        )
        self.norms = nn.ModuleList([norm(outputs), norm(outputs)])

    def forward(self, x: Tensor, angles: Sequence[float]) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x, angles)), inplace=True)
        return x


class ScaleSpaceUNet(nn.Module):
    """The body: an image to features of every slot at full resolution.

    Args:
        width: Channels of a slot at level 0, doubled by each level.
        intervals: Of the scales, level by level: L + 1 times S of them.
        norm: shared (by all slots) or per_branch (by the orientations of a scale).
        is_reduction_normed: Whether the 1x1 convolution after an up-sampling has a norm and a ReLU.
        lift_truncation: Half-width of the windows of the first layer, in scales.
        pool: max or avg.
        filters: What else all layers of filters share: order, truncation, sigma_mode, sigma_rate.
    """

    def __init__(
        self,
        width: int,
        intervals: Sequence[Sequence[Interval]],
        *,
        norm: str = "shared",
        is_reduction_normed: bool = False,
        lift_truncation: float,
        pool: str = "max",
        **filters: Any,
    ) -> None:
        super().__init__()
        self.depth = len(intervals) - 1
        self.branches = len(intervals[0])
        self._pool = functional.max_pool2d if pool == "max" else functional.avg_pool2d
        widths = [width * 2**level for level in range(self.depth + 1)]

        def make_norm(channels: int) -> nn.Module:
            return SharedNorm(channels) if norm == "shared" else BranchNorm(channels, self.branches)

        def block(inputs: int, level: int) -> _Block:
            first = {} if inputs != 3 or level else {"truncation": lift_truncation}
            return _Block(inputs, widths[level], make_norm, first, intervals=intervals[level], **filters)

        self.encoder = nn.ModuleList(block(widths[level - 1] if level else 3, level) for level in range(len(widths)))
        upwards = range(self.depth - 1, -1, -1)
        self.reductions = nn.ModuleList(nn.Conv2d(widths[level + 1], widths[level], 1) for level in upwards)
        self.reduction_norms = nn.ModuleList(make_norm(widths[level]) for level in upwards if is_reduction_normed)
        self.decoder = nn.ModuleList(block(2 * widths[level], level) for level in upwards)

    def forward(self, x: Tensor, angles: Sequence[float] = (0.0,)) -> Tensor:
        """Images (B, 3, H, W) -> features (R S, B, width, H, W).

        Args:
            x: Sides are multiples of 2^L.
            angles: Of the R orientations, in degrees.

        Raises:
            ValueError: A side is not.
        """
        if any(side % 2**self.depth for side in x.shape[-2:]):
            raise ValueError(f"an image of {tuple(x.shape[-2:])}: both sides must be multiples of {2**self.depth}")
        skips: list[Tensor] = []
        features = x.unsqueeze(0)
        for level, block in enumerate(self.encoder):
            if level:
                pooled = self._pool(features.flatten(0, 1), 2)
                features = pooled.view(*features.shape[:2], *pooled.shape[1:])
            features = block(features, angles)
            skips.append(features)
        features = skips.pop()
        for step, block in enumerate(self.decoder):
            # The 1x1 convolution commutes with the up-sampling, and has a quarter of the pixels before it.
            reduced = self.reductions[step](features.flatten(0, 1))
            raised = functional.interpolate(reduced, scale_factor=2, mode="bilinear", align_corners=True)
            up = raised.view(*features.shape[:2], *raised.shape[1:])
            if self.reduction_norms:
                up = functional.relu(self.reduction_norms[step](up), inplace=True)
            features = block(torch.cat([skips.pop(), up], dim=2), angles)
        return features

    def first_layer(self, weights: Mapping[str, Tensor]) -> tuple[GaussianConv, dict[str, Tensor]]:
        """The layer that sees the image, and its own weights.

        Args:
            weights: Of the network whose `body` this is, by name.
        """
        layer = next(module for module in self.encoder.modules() if isinstance(module, GaussianConv))
        start = "body.encoder.0.convs.0."
        return layer, {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
