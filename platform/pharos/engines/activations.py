"""Activation checkpointing: a block's activations are forgotten after the forward pass and computed again."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(module: nn.Module) -> int:
    """Makes every block of a `Sequential` or `ModuleList` recompute its activations in the backward pass.

    A block is an element that has modules of its own: recomputing a bare layer would save nothing.

    Returns:
        How many blocks there are.
    """
    blocks = [
        block
        for parent in module.modules()
        if isinstance(parent, nn.Sequential | nn.ModuleList)
        for block in parent.children()
        if any(block.children())
    ]
    for block in blocks:
        block.forward = functools.partial(_forward, block.forward)
    return len(blocks)


def _forward(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
