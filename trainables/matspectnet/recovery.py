"""Spectral recovery: MST++, three U-shaped transformers whose tokens are spectral channels.

Source: section 3.1 of the reference notes on MatSpectNet (arXiv 2307.11466); Cai et al., "MST++", NTIRE 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.materials.spectra import BANDS

_MULTIPLE = 8  # sides of what the transformers see


class SpectralAttention(nn.Module):
    """Attention between channels: its cost grows with the number of pixels, not with its square.

    Args:
        width: Channels c, in and out.
        heads: Number of heads.
        head_width: Channels of each head.
    """

    def __init__(self, width: int, heads: int = 1, head_width: int = BANDS):
        super().__init__()
        self._heads = heads
        self.queries = _linear(width, heads * head_width, bias=False)
        self.keys = _linear(width, heads * head_width, bias=False)
        self.values = _linear(width, heads * head_width, bias=False)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.out = _linear(heads * head_width, width)
        self.position = nn.Sequential(_depthwise(width), nn.GELU(), _depthwise(width))

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, N, c) -> weights (B, heads, d, d), whose rows sum to 1, and values (B, heads, d, N)."""
        queries, keys, values = (
            layer(x).unflatten(2, (self._heads, -1)).permute(0, 2, 3, 1)
            for layer in (self.queries, self.keys, self.values)
        )
        # Sums over all pixels: in half precision they would lose most of them.
        with torch.autocast(x.device.type, enabled=False):
            queries, keys = (functional.normalize(part.float(), dim=-1) for part in (queries, keys))
            weights = (self.scale.float() * (keys @ queries.mT)).softmax(dim=-1)
        return weights, values

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> the same shape."""
        height, width = x.shape[-2:]
        weights, values = self.attention(x.flatten(2).mT)
        mixed = (weights.to(values.dtype) @ values).flatten(1, 2)
        image = (len(x), -1, height, width)
        out: Tensor = self.out(mixed.mT).mT.reshape(image) + self.position(values.flatten(1, 2).reshape(image))
        return out


class Block(nn.Module):
    """x + attention(x), then x + feed-forward(norm(x)). There is no norm before the attention.

    Args:
        width: Channels c.
        heads: Of the attention.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = SpectralAttention(width, heads, width // heads)
        self.norm = nn.LayerNorm(width)
        self.forth = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.GELU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width, bias=False),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) -> the same shape."""
        x = x + self.attention(x)
        out: Tensor = x + self.forth(self.norm(x.movedim(1, -1)).movedim(-1, 1))
        return out


class Stage(nn.Module):
    """A U of five blocks: at full, half, quarter, half and full resolution.

    Args:
        width: Channels at full resolution.
    """

    def __init__(self, width: int = BANDS):
        super().__init__()
        self.into = _conv(width, width)
        self.down = nn.ModuleList(nn.Conv2d(c, 2 * c, 4, stride=2, padding=1, bias=False) for c in (width, 2 * width))
        self.encoder = nn.ModuleList([Block(width, 1), Block(2 * width, 2)])
        self.bottleneck = Block(4 * width, 4)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in (2 * width, width))
        self.fuse = nn.ModuleList(nn.Conv2d(2 * c, c, 1, bias=False) for c in (2 * width, width))
        self.decoder = nn.ModuleList([Block(2 * width, 2), Block(width, 1)])
        self.out = _conv(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, H, W), H and W multiples of 4 -> the same shape, and the bottleneck (B, 4c, H/4, W/4)."""
        out = self.into(x)
        skips = []
        for block, down in zip(self.encoder, self.down, strict=True):
            out = block(out)
            skips.append(out)
            out = down(out)
        deepest = out = self.bottleneck(out)
        for up, fuse, block in zip(self.up, self.fuse, self.decoder, strict=True):
            out = block(fuse(torch.cat([up(out), skips.pop()], dim=1)))
        return self.out(out) + x, deepest


class Recovery(nn.Module):
    """RGB -> a hyperspectral image of 31 bands.

    Args:
        stages: How many stages follow each other.
        width: Channels of the stages; where they are not the bands, there is no residual around all stages.
        residual: What is added at the end: first (what went into the stages, MST++) or body (what came out of them,
            as the authors of MatSpectNet have it).
    """

    def __init__(self, stages: int = 3, width: int = BANDS, residual: str = "first"):
        super().__init__()
        self._residual = residual
        self.into = _conv(3, width)
        self.stages = nn.ModuleList(Stage(width) for _ in range(stages))
        self.out = _conv(width, BANDS)

    @property
    def feature_width(self) -> int:
        """Channels of the features that `forward` gives."""
        return 4 * self.into.out_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1] -> spectra (B, 31, H, W), not clamped, and the middle stage's (B, 4c, H/4, W/4)."""
        height, width = x.shape[-2:]
        # Mirrored at the border, by at most 7 pixels.
        padded = functional.pad(x, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="reflect")
        first = out = self.into(padded)
        features = []
        for stage in self.stages:
            out, deepest = stage(out)
            features.append(deepest)
        spectra = self.out(out)
        if out.shape == spectra.shape:
            spectra = spectra + (out if self._residual == "body" else first)
        return spectra[..., :height, :width], features[len(features) // 2]


def _linear(inward: int, outward: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inward, outward, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _conv(inward: int, outward: int) -> nn.Conv2d:
    return nn.Conv2d(inward, outward, 3, padding=1, bias=False)


def _depthwise(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
