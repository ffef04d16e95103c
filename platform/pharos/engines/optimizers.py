"""The optimisers that all engines share: PyTorch's own, so that none compiles a kernel in a trial."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pharos.errors import InputError


_SCHEDULES = ("constant", "linear", "cosine", "onecycle", "exponential")


@dataclass
class OptimConfig:
    """An optimiser. The defaults are those of Adam in PyTorch."""

    name: str = "adam"
    """adam, adamw or sgd."""
    lr: float = 1e-3
    """Learning rate."""
    beta1: float = 0.9
    """First-moment decay of adam and adamw; momentum of sgd."""
    beta2: float = 0.999
    """Second-moment decay of adam and adamw."""
    eps: float = 1e-8
    """Added to the denominator of adam and adamw."""
    weight_decay: float = 0.0
    """L2 penalty of adam and sgd; decoupled decay of adamw."""
    clip_norm: float = 0.0
    """Largest norm of a step's whole gradient; 0 leaves it as it is."""
    schedule: str = "constant"
    """constant; linear or cosine: how the rate falls to zero over the loop, epoch by epoch, after `hold`; onecycle:
    it rises from a 25th of `lr` to all of it over the first 0.3 of the loop, and falls to nothing, in cosines;
    exponential: it falls by the same factor every epoch, to the share `final` after the last."""
    hold: float = 0.5
    """linear and cosine: the share of the loop, from its start, that keeps the full rate."""
    final: float = 0.01
    """exponential: the share of the rate that is left at the end of the loop."""

    def __post_init__(self) -> None:
        if self.name not in ("adam", "adamw", "sgd"):
            raise InputError(f"optimiser {self.name!r} is unknown; choose adam, adamw or sgd")
        if self.schedule not in _SCHEDULES:
            raise InputError(f"schedule {self.schedule!r} is unknown; choose {', '.join(_SCHEDULES[:-1])} or {_SCHEDULES[-1]}")
        if not 0 <= self.hold < 1:
            raise InputError(f"hold={self.hold}: a share of the loop, at least 0 and below 1")
        if not 0 < self.final <= 1:
            raise InputError(f"final={self.final}: a share of the rate, above 0 and at most 1")


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimiser of the parameters that are trainable now."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.beta1, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # Fused: one kernel for all parameters, on CPU as on GPU.
    return kind(parameters, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay, fused=True)
