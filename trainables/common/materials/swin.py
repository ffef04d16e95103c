"""The backbone: Swin in its segmentation flavour, from `transformers`, with a user's weights.

Source: section 3.1 of the reference notes on DBAT (Liu et al., "Swin Transformer", 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pharos.errors import InputError

_STAGES = 4


class Swin(nn.Module):
    """Images (B, 3, S, S) -> four maps of C, 2C, 4C, 8C channels at strides p, 2p, 4p, 8p, each with its own norm.

    Windows stay shifted where a map is one window, and maps are padded to whole windows, as in the authors' code. The
    model of `transformers` drops paths of the attention alone; here, as in the paper, those of the MLP too.

    Args:
        side: S, for which the network is built; it takes others.
        patch: p.
        width: C.
        depths: Blocks of each stage.
        heads: Of each stage.
        window: Side of the windows.
        drop_path: Rate of the last block; it grows linearly from 0.
        weights: A folder of `config.json` and `model.safetensors`, as `transformers` saves a Swin; empty: none.

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
        from transformers import SwinBackbone, SwinConfig

        config = SwinConfig(  # type: ignore[call-arg] # what it passes on to its base
            image_size=side,
            patch_size=patch,
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            drop_path_rate=drop_path,
            out_features=[f"stage{k + 1}" for k in range(_STAGES)],
        )
        self.body = with_weights(SwinBackbone, config, weights) if weights else SwinBackbone(config)
        # A norm of the last stage that only classification uses.
        self.body.swin.layernorm = nn.Identity()
        if not weights:
            self.body.apply(_initialise)
        for name, module in self.body.named_modules():
            if name.endswith("mlp") and drop_path:
                module.register_forward_hook(_DropPath(self.body.get_submodule(name.replace("mlp", "drop_path"))))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """M1 to M4."""
        maps: tuple[Tensor, ...] = self.body(images).feature_maps
        return maps


class _DropPath:
    """Puts an MLP's output through its block's drop path."""

    def __init__(self, drop: nn.Module):
        self.drop = drop

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        dropped: Tensor = self.drop(output)
        return dropped


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    table = getattr(module, "relative_position_bias_table", None)
    if isinstance(table, nn.Parameter):
        nn.init.trunc_normal_(table, std=0.02)


def with_weights(kind: Any, config: Any, weights: str) -> Any:
    """A backbone of `transformers` with the weights of a folder.

    Args:
        kind: Its class.
        config: Its configuration.
        weights: The folder, with `config.json` and `model.safetensors`.

    Raises:
        InputError: There are no weights there, or they are of another shape.
    """
    folder = Path(weights)
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"recipe.network.weights={weights}: a folder with config.json and model.safetensors is needed")
    try:
        body, about = kind.from_pretrained(
            str(folder), config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"recipe.network.weights={weights}: not the weights of this backbone ({reason})") from None
    # Norms of the maps are not part of a classifier.
    missing = [name for name in about["missing_keys"] if "hidden_states_norms" not in name and "layernorm." not in name]
    if missing:
        raise InputError(f"recipe.network.weights={weights}: no {missing[0]} in it, nor {len(missing) - 1} others")
    return body.to(torch.float32)


def swin_parameters(patch: int, width: int, depths: Sequence[int], heads: Sequence[int], window: int) -> int:
    """How many the backbone has (section 3.7 of the notes)."""
    total = 3 * width * patch**2 + 3 * width
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        c = width * 2**stage
        total += depth * (12 * c**2 + 13 * c + (2 * window - 1) ** 2 * count) + 2 * c
        total += (8 * c**2 + 8 * c) if stage < _STAGES - 1 else 0
    return total
