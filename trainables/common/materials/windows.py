"""Attention within windows, of a map to itself or to another one.

Source: section 3.5 of the reference notes on DBAT.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

_APART = -100.0  # added to the score of two places of different regions


def partitioned(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B n, window², C), windows row by row."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def joined(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partitioned`."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


@functools.lru_cache(maxsize=16)
def region_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """What is added to the scores of a map that was rolled by a shift: places that were apart stay apart.

    A map of one window falls into four groups, too; standard Swin would not shift it.

    Returns:
        (n, window², window²).
    """
    regions = torch.zeros(1, height, width, 1)
    cuts = [slice(0, -window), slice(-window, -shift), slice(-shift, None)] if shift else [slice(None)]
    for number, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
        regions[:, rows, columns] = number
    flat = partitioned(regions, window).squeeze(-1)
    return (flat[:, :, None] != flat[:, None, :]).float() * _APART


class DropPath(nn.Module):
    """Leaves a residual branch out for some samples of a batch while it trains.

    Args:
        rate: Probability.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or not self.rate:
            return x
        kept = torch.rand(len(x), *([1] * (x.dim() - 1)), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class WindowBlock(nn.Module):
    """A Swin block; given a second map, its keys and values come from there, and the residual from the first.

    Args:
        channels: c, a multiple of the heads.
        heads: Of the attention.
        window: Side of the windows, which divides the map's.
        shift: By which the windows are moved.
        is_cross: Whether it takes a second map.
        drop_path: Rate at which both branches are left out.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int, *, is_cross: bool, drop_path: float):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm = nn.LayerNorm(channels)
        self.value_norm = nn.LayerNorm(channels) if is_cross else None
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.drop_path = DropPath(drop_path)
        self.register_buffer("places", _relative_places(window), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, H, W, c), and another map of the same shape -> the same shape."""
        asked = self.norm(x)
        given = asked if other is None or self.value_norm is None else self.value_norm(other)
        x = x + self.drop_path(self._attend(asked, given))
        branch: Tensor = self.drop_path(self.mlp(self.mlp_norm(x)))
        return x + branch

    def _attend(self, asked: Tensor, given: Tensor) -> Tensor:
        height, width = asked.shape[1:3]
        if self.shift:
            asked, given = (torch.roll(x, (-self.shift, -self.shift), (1, 2)) for x in (asked, given))
        asked, given = partitioned(asked, self.window), partitioned(given, self.window)
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, asked), (self.key, given), (self.value, given))
        )
        places: Tensor = self.places  # type: ignore[assignment]
        bias = self.relative_position_bias_table[places].permute(2, 0, 1)
        mask = region_mask(height, width, self.window, self.shift).to(bias.device)
        scores = bias[None] + mask[:, None]
        if len(mask) > 1:
            scores = scores.repeat(len(query) // len(mask), 1, 1, 1)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=scores.to(query.dtype))
        mixed = joined(self.project(out.transpose(1, 2).flatten(2)), self.window, height, width)
        return torch.roll(mixed, (self.shift, self.shift), (1, 2)) if self.shift else mixed


def _relative_places(window: int) -> Tensor:
    """Which row of the bias table belongs to each pair of places (window², window²)."""
    axis = torch.arange(window)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :] + window - 1
    return apart[0] * (2 * window - 1) + apart[1]
