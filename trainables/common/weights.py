"""A user's trained weights: files of tensors, and nothing that could run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pharos.cache import local_copy
from pharos.errors import InputError

SETTING = "recipe.model.weights"
_NESTED = ("state_dict", "model")  # where timm's and DeiT's own files have it
_PARALLEL = "module."  # what DataParallel puts before each name


def read_weights(url: str) -> Mapping[str, Tensor]:
    """A network's tensors by name.

    Args:
        url: Of `torch.save`, or safetensors.

    Raises:
        InputError: It is no such file, or holds more than tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = local_copy(url)
    if not path.is_file():
        raise InputError(f"{SETTING}={path}: no such file")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise InputError(f"{SETTING}={path}: not safetensors, nor a state dict: {reason}") from None
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise InputError(f"{SETTING}={path}: holds more than tensors; save the state dict alone") from None
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{SETTING}={path}: not a state dict of tensors")
    return {name.removeprefix(_PARALLEL): value for name, value in state.items()}


def check_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], url: str) -> None:
    """Compares what a file and a network both have.

    Args:
        found: The file's.
        wanted: The network's.
        url: The file.

    Raises:
        InputError: A tensor has another shape.
    """
    for name, value in wanted.items():
        if name in found and found[name].shape != value.shape:
            theirs, ours = tuple(found[name].shape), tuple(value.shape)
            raise InputError(f"{SETTING}={url}: {name} is {theirs}, this network has {ours}")
