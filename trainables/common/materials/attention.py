"""The dynamic backward attention module: maps of patches of four sizes, weighed at every place by the deepest of them.

Source: sections 3.2 to 3.5 of the reference notes on DBAT (arXiv 2305.03919).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.batchnorm import BatchNorm2d
from trainables.common.materials.windows import WindowBlock

AGGREGATIONS = ("dynamic", "uniform", "last")
MERGES = ("gl", "self", "add", "none")
ENLARGEMENTS = ("patchmerge", "conv", "avgpool")
_MASKS = 4
# The last two of eight rates that rise linearly to the last one.
_FIRST_RATE = 6 / 7


def gathered(x: Tensor, factor: int) -> Tensor:
    """Space to depth: (B, c, H, W) -> (B, H/s, W/s, s² c); channel `(i s + j) c + ch` is `x[ch, s y + i, s x + j]`."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // factor, factor, w // factor, factor)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h // factor, w // factor, factor * factor * c)


def spread(x: Tensor, factor: int) -> Tensor:
    """The inverse of `gathered`."""
    b, h, w, c = x.shape
    x = x.view(b, h, w, factor, factor, c // factor**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c // factor**2, h * factor, w * factor)


class Enlarge(nn.Module):
    """A map of small patches as one of the largest: (B, c, H, W) -> (B, s c, H/s, W/s).

    Args:
        channels: c.
        factor: s.
        how: patchmerge (all of them, linearly), conv, or avgpool (their mean, linearly).
    """

    def __init__(self, channels: int, factor: int, how: str = "patchmerge"):
        super().__init__()
        self.factor, self.how = factor, how
        wide = channels * (factor**2 if how == "patchmerge" else 1)
        if how == "conv":
            self.convolution = nn.Conv2d(channels, factor * channels, factor, factor)
            return
        self.norm = nn.LayerNorm(wide)
        self.linear = nn.Linear(wide, factor * channels, bias=False)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        self.out_norm = nn.LayerNorm(factor * channels) if how == "patchmerge" else None

    def forward(self, x: Tensor) -> Tensor:
        """Each pixel is a patch of the last stage's size."""
        if self.how == "conv":
            out: Tensor = self.convolution(x)
            return out
        pooled = functional.avg_pool2d(x, self.factor).permute(0, 2, 3, 1) if self.how == "avgpool" else None
        tokens: Tensor = self.linear(self.norm(gathered(x, self.factor) if pooled is None else pooled))
        if self.out_norm is not None:
            tokens = self.out_norm(tokens)
        return tokens.permute(0, 3, 1, 2)


class MaskHead(nn.Module):
    """The attention masks: (B, 8C, h, w) -> (B, 4, h, w), positive, with a sum of one at every place.

    Args:
        width: C.
        dilation: Of the first convolution.
        dropout: Before the last one.
        temperature: By which the scores are divided.
    """

    def __init__(self, width: int, *, dilation: int = 1, dropout: float = 0.0, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature
        self.layers = nn.Sequential(
            nn.Conv2d(8 * width, 4 * width, 3, padding=dilation, dilation=dilation, bias=False),
            BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1, bias=False),
            BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(4 * width, _MASKS, 1, bias=False),
        )

    def forward(self, deepest: Tensor) -> Tensor:
        """A from M4."""
        scores: Tensor = self.layers(deepest)
        return (scores.float() / self.temperature).softmax(dim=1)


class Merge(nn.Module):
    """M4 attends to the aggregate Z, and keeps its own residual; then an ordinary block and a norm.

    Args:
        channels: 8C.
        heads: Of both blocks.
        window: Of both; the second is shifted by half of it.
        drop_path: Rate of the second block.
    """

    def __init__(self, channels: int, heads: int, window: int, drop_path: float):
        super().__init__()
        first = WindowBlock(channels, heads, window, 0, is_cross=True, drop_path=_FIRST_RATE * drop_path)
        second = WindowBlock(channels, heads, window, window // 2, is_cross=False, drop_path=drop_path)
        self.blocks = nn.ModuleList([first, second])
        self.norm = nn.LayerNorm(channels)

    def forward(self, query: Tensor, other: Tensor) -> Tensor:
        """Two maps (B, 8C, h, w) -> one."""
        x = self.blocks[0](query.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1))
        out: Tensor = self.norm(self.blocks[1](x))
        return out.permute(0, 3, 1, 2)


class BackwardAttention(nn.Module):
    """The whole module: four maps to a new last one.

    Args:
        width: C.
        aggregate: dynamic (by the masks), uniform (a quarter each) or last (M4 alone): controls of what masks are for.
        merge: gl (M4 attends to Z), self (Z to itself), add (M4 + Z) or none (Z).
        enlarge: How maps are brought to the last one's size.
        heads: Of the merge.
        window: Of the merge.
        drop_path: Of the merge.
        dilation: Of the masks.
        mask_dropout: Of the masks.
        temperature: Of the masks.
    """

    def __init__(
        self,
        width: int,
        *,
        aggregate: str = "dynamic",
        merge: str = "gl",
        enlarge: str = "patchmerge",
        heads: int = 32,
        window: int = 16,
        drop_path: float = 0.3,
        dilation: int = 1,
        mask_dropout: float = 0.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.aggregate, self.how = aggregate, merge
        # What a variant does not use is not there: workers wait for the gradient of everything that is.
        self.masks = (
            MaskHead(width, dilation=dilation, dropout=mask_dropout, temperature=temperature)
            if aggregate == "dynamic"
            else None
        )
        factors = (8, 4, 2) if aggregate != "last" else ()
        self.enlarge = nn.ModuleList([Enlarge(8 * width // factor, factor, enlarge) for factor in factors])
        self.merge = Merge(8 * width, heads, window, drop_path) if merge in ("gl", "self") else None

    def weights(self, deepest: Tensor) -> Tensor:
        """A (B, 4, h, w) from M4: how much of each map there is at each place."""
        if self.masks is not None:
            out: Tensor = self.masks(deepest)
            return out
        one = [0.25] * _MASKS if self.aggregate == "uniform" else [0.0, 0.0, 0.0, 1.0]
        shape = len(deepest), _MASKS, *deepest.shape[2:]
        return torch.tensor(one, device=deepest.device).view(1, -1, 1, 1).expand(shape)

    def aggregated(self, maps: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Z: the sum of the enlarged maps, each times its mask."""
        deepest = maps[-1]
        if self.aggregate == "last":
            return deepest
        enlarged = [layer(x) for layer, x in zip(self.enlarge, maps[:-1], strict=True)] + [deepest]
        return torch.stack([x * weights[:, k : k + 1] for k, x in enumerate(enlarged)]).sum(dim=0)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """M1 to M4 -> the new M4 and the aggregate Z, both (B, 8C, h, w), and A (B, 4, h, w)."""
        deepest = maps[-1]
        weights = self.weights(deepest)
        z = self.aggregated(maps, weights)
        merged = z
        if self.merge is not None:
            merged = self.merge(deepest if self.how == "gl" else z, z)
        elif self.how == "add":
            merged = deepest + z
        return merged, z, weights


def module_parameters(width: int, heads: int, window: int) -> int:
    """How many the module has with its default variants (section 3.7 of the notes)."""
    masks = 432 * width**2 + 32 * width
    enlarge = sum(
        2 * factor**2 * c + factor**3 * c**2 + 2 * factor * c
        for factor, c in ((8, width), (4, 2 * width), (2, 4 * width))
    )
    c = 8 * width
    table = (2 * window - 1) ** 2 * heads
    return masks + enlarge + (12 * c**2 + 15 * c + table) + (12 * c**2 + 13 * c + table) + 2 * c
