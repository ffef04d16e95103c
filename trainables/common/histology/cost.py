"""What training costs in memory: the bytes that autograd keeps for the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Saved:
    """How much was kept, in MiB."""

    mib: float = 0.0


@contextlib.contextmanager
def saved_activations(parameters: Iterable[Tensor]) -> Iterator[Saved]:
    """Counts what is saved for the backward pass within the block, each storage once, parameters left out.

    Args:
        parameters: They are there anyway.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes: dict[int, int] = {}
    result = Saved()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield result
    result.mib = sum(sizes.values()) / 2**20
