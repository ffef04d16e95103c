"""DBAT's network and its two controls: Swin and a feature pyramid, with or without the backward attention between them.

Source: section 3 of the reference notes on DBAT (arXiv 2305.03919).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, overload

from torch import Tensor, nn

from pharos.errors import InputError
from trainables.common.materials.attention import (
    AGGREGATIONS,
    ENLARGEMENTS,
    MERGES,
    BackwardAttention,
    module_parameters,
)
from trainables.common.materials.decoder import Head, Pyramid, decoder_parameters
from trainables.common.materials.swin import Swin, swin_parameters
from trainables.common.settings import Checked

MODELS = ("dbat", "swin_fpn", "swin_fpn_wide")


@dataclass
class NetworkConfig(Checked):
    """The network. Defaults are the paper's, with Swin-T."""

    where = "recipe.network"

    model: str = "dbat"
    """dbat; swin_fpn: without the module, the baseline; swin_fpn_wide: that, as much wider as gives it as many
    parameters as dbat has (width and pyramid channels stay those of the setting for dbat)."""
    width: int = 96
    """C: channels of the first stage, doubled by each (Swin-T and S: 96, B: 128)."""
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    """Blocks of each stage."""
    heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    """Heads of each stage."""
    patch: int = 4
    """Pixels along a side of the smallest patches; the largest have eight times as many."""
    window: int = 7
    """Side of the backbone's windows, in patches."""
    drop_path: float = 0.2
    """Of the backbone's last block; it rises linearly from 0."""
    weights: str = ""
    """Folder with config.json and model.safetensors of a Swin to start from; empty: from scratch."""
    aggregate: str = "dynamic"
    """dynamic (masks), or as controls: uniform (a quarter of each map) or last (the last map alone)."""
    merge: str = "gl"
    """gl (the last map attends to the aggregate), self (the aggregate to itself), add (their sum), none (it alone)."""
    enlarge: str = "patchmerge"
    """How maps are brought to the last one's size: patchmerge, conv or avgpool."""
    merge_heads: int = 32
    """Of the merge."""
    merge_window: int = 16
    """Of the merge; it divides the side of the last map."""
    merge_drop_path: float = 0.3
    """Of the merge's second block; its first has six sevenths of it."""
    mask_dilation: int = 1
    """Of the first convolution of the masks."""
    mask_dropout: float = 0.0
    """Before the last convolution of the masks."""
    mask_temperature: float = 1.0
    """Scores of the masks are divided by it: small ones choose, large ones mix."""
    pyramid: int = 256
    """Channels of the pyramid's way down."""
    features: int = 128
    """Channels of its segmentation branches."""
    groups: int = 32
    """Of their group norms."""
    dropout2d: float = 0.2
    """Share of the features' channels that are left out before the head."""

    def __post_init__(self) -> None:
        """Checks values and their combinations.

        Raises:
            InputError: One is impossible.
        """
        self.check_choices(model=MODELS, aggregate=AGGREGATIONS, merge=MERGES, enlarge=ENLARGEMENTS)
        self.check_least(1, "width", "patch", "window", "merge_heads", "mask_dilation", "pyramid", "features", "groups")
        self.check_least(2, "merge_window")
        self.check_range(0, 0.9, "drop_path", "merge_drop_path", "mask_dropout", "dropout2d")
        self.check_range(0.01, 100, "mask_temperature")
        if len(self.depths) != 4 or len(self.heads) != 4 or min(*self.depths, *self.heads) < 1:
            raise InputError(f"{self.where}: depths={self.depths} and heads={self.heads} must be four numbers each")
        for stage, heads in enumerate(self.heads):
            if self.width * 2**stage % heads:
                raise InputError(
                    f"{self.where}.heads={self.heads}: stage {stage + 1} has {self.width * 2**stage} channels"
                )
        if 8 * self.width % self.merge_heads:
            raise InputError(f"{self.where}.merge_heads={self.merge_heads} must divide {8 * self.width} channels")
        if self.features % self.groups:
            raise InputError(f"{self.where}.groups={self.groups} must divide features={self.features}")

    def check_side(self, side: int) -> None:
        """Refuses images that the stages or the merge cannot divide.

        Raises:
            InputError: The side is no multiple of the largest patch, or the last map's none of the merge's window.
        """
        largest = 8 * self.patch
        if side % largest:
            raise InputError(f"recipe.data.crop={side} must be a multiple of {largest}, the side of the largest patch")
        if self.model == "dbat" and self.merge in ("gl", "self") and side // largest % self.merge_window:
            raise InputError(
                f"{self.where}.merge_window={self.merge_window} must divide {side // largest}, the side of the last map"
            )


@dataclass(frozen=True)
class Look:
    """What a network makes of images on its way to the logits.

    Attributes:
        features: (B, F, S/p, S/p) what the head classifies.
        masks: A (B, 4, h, w); None without the module.
        layers: By name: `map 1` to `map 4` of the backbone, and `aggregate` and `merged` of the module.
    """

    features: Tensor
    masks: Tensor | None
    layers: dict[str, Tensor]


class Segmenter(nn.Module):
    """Images (B, 3, S, S), standardised -> logits (B, K, S, S).

    Args:
        config: Which network.
        classes: K.
        side: S.
        extra: Channels of features that `forward` is given beside the images (MatSpectNet's).
        backbone: Another one than Swin, with the same maps.
    """

    def __init__(
        self, config: NetworkConfig, classes: int, side: int, *, extra: int = 0, backbone: nn.Module | None = None
    ):
        super().__init__()
        config = widened(config, classes) if config.model == "swin_fpn_wide" else config
        self.width = config.width
        self.backbone = backbone or Swin(
            side,
            patch=config.patch,
            width=config.width,
            depths=config.depths,
            heads=config.heads,
            window=config.window,
            drop_path=config.drop_path,
            weights=config.weights,
        )
        self.attention = (
            BackwardAttention(
                config.width,
                aggregate=config.aggregate,
                merge=config.merge,
                enlarge=config.enlarge,
                heads=config.merge_heads,
                window=config.merge_window,
                drop_path=config.merge_drop_path,
                dilation=config.mask_dilation,
                mask_dropout=config.mask_dropout,
                temperature=config.mask_temperature,
            )
            if config.model == "dbat"
            else None
        )
        self.pyramid = Pyramid(config.width, config.pyramid, config.features, config.groups)
        self.head = Head(config.features + extra, classes, config.patch, config.dropout2d)

    def look(self, images: Tensor) -> Look:
        """All that the network makes of images, but for the logits."""
        maps = list(self.backbone(images))
        layers = {f"map {k + 1}": x for k, x in enumerate(maps)}
        masks = None
        if self.attention is not None:
            maps[-1], layers["aggregate"], masks = self.attention(maps)
            layers["merged"] = maps[-1]
        return Look(self.pyramid(maps), masks, layers)

    @overload
    def forward(self, images: Tensor) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, with_look: Literal[True]) -> tuple[Tensor, Look]: ...

    def forward(self, images: Tensor, with_look: bool = False) -> Tensor | tuple[Tensor, Look]:
        """Logits at the images' size, fp32; if it is asked for, with what they were made of."""
        look = self.look(images)
        logits: Tensor = self.head(look.features)
        return (logits, look) if with_look else logits


def parameters(config: NetworkConfig, classes: int) -> int:
    """How many `Segmenter` has, without building it; the module's with its default variants."""
    if config.model == "swin_fpn_wide":
        config = widened(config, classes)
    total = swin_parameters(config.patch, config.width, config.depths, config.heads, config.window)
    total += decoder_parameters(config.width, config.pyramid, config.features, classes)
    if config.model == "dbat":
        total += module_parameters(config.width, config.merge_heads, config.merge_window)
    return total


def widened(config: NetworkConfig, classes: int) -> NetworkConfig:
    """The baseline whose width brings its parameters nearest to those of dbat: the control of what is mere capacity."""
    wanted = parameters(replace(config, model="dbat"), classes)
    # Heads divide the width of every stage as they do that of the first.
    widths = [width for width in range(config.width, 3 * config.width) if _fits(config.heads, width)]
    baselines = [replace(config, model="swin_fpn", width=width, merge_heads=1) for width in widths]
    return min(baselines, key=lambda baseline: abs(parameters(baseline, classes) - wanted))


def _fits(heads: Sequence[int], width: int) -> bool:
    return all(width * 2**stage % count == 0 for stage, count in enumerate(heads))
