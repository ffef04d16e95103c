"""The optimisers that all engines share: PyTorch's own, so that none compiles a kernel in a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pharos.learner import OptimConfig


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimiser of the parameters that are trainable now."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.beta1, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # Fused: one kernel for all parameters, on CPU as on GPU.
    return kind(parameters, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay, fused=True)
