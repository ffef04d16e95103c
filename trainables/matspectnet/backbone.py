"""The backbone: Swin V2 in its segmentation flavour, from `transformers`, with a user's weights.

Source: section 3.6 of the reference notes on MatSpectNet (Liu et al., "Swin Transformer V2", 2022): cosine attention,
position biases from a small network, and norms after each branch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trainables.common.materials.swin import with_weights

_STAGES = 4


class SwinV2(nn.Module):
    """Images (B, 3, S, S) -> four maps of C, 2C, 4C, 8C channels at strides p, 2p, 4p, 8p, each with its own norm.

    Args:
        side: S.
        patch: p.
        width: C.
        depths: Blocks of each stage.
        heads: Of each stage.
        window: Side of the windows.
        drop_path: Rate of the last block; it grows linearly from 0.
        weights: A folder of `config.json` and `model.safetensors`, as `transformers` saves a Swin V2; empty: none.

    Raises:
        InputError: There are no weights there, or they are of another shape.
    """

    def __init__(
        self,
        side: int,
        *,
        patch: int,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        drop_path: float,
        weights: str = "",
    ):
        super().__init__()
        from transformers import Swinv2Backbone, Swinv2Config

        config = Swinv2Config(  # type: ignore[call-arg] # what it passes on to its base
            image_size=side,
            patch_size=patch,
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            drop_path_rate=drop_path,
            out_features=[f"stage{k + 1}" for k in range(_STAGES)],
        )
        self.body = with_weights(Swinv2Backbone, config, weights) if weights else Swinv2Backbone(config)
        if not weights:
            self.body.apply(_start)
        self.norms = nn.ModuleList(nn.LayerNorm(width * 2**stage) for stage in range(_STAGES))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """M1 to M4."""
        maps = self.body(images).feature_maps
        return tuple(norm(x.movedim(1, -1)).movedim(-1, 1) for norm, x in zip(self.norms, maps, strict=True))


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    # Each block starts as the identity: the norm that ends its branches gives nothing yet.
    for name in ("layernorm_before", "layernorm_after"):
        norm = getattr(module, name, None)
        if isinstance(norm, nn.LayerNorm):
            nn.init.zeros_(norm.weight)
            nn.init.zeros_(norm.bias)
