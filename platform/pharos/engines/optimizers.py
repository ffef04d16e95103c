"""The optimisers that all engines share: PyTorch's own, so that none compiles a kernel in a trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
    undecayed: list[str] = field(default_factory=list)
    """Parameters without weight decay: those that have one of these in their names, such as [norm, bias]."""
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
    warmup: int = 0
    """Updates, from the learner's first, over which the rate rises linearly to what the schedule says."""

    def __post_init__(self) -> None:
        if self.name not in ("adam", "adamw", "sgd"):
            raise InputError(f"optimiser {self.name!r} is unknown; choose adam, adamw or sgd")
        if self.schedule not in _SCHEDULES:
            known = f"{', '.join(_SCHEDULES[:-1])} or {_SCHEDULES[-1]}"
            raise InputError(f"schedule {self.schedule!r} is unknown; choose {known}")
        if not 0 <= self.hold < 1:
            raise InputError(f"hold={self.hold}: a share of the loop, at least 0 and below 1")
        if not 0 < self.final <= 1:
            raise InputError(f"final={self.final}: a share of the rate, above 0 and at most 1")
        if self.warmup < 0:
            raise InputError(f"warmup={self.warmup}: a number of updates, at least 0")


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimiser of the parameters that are trainable now."""
    parameters = parameter_groups(module, config)
    if config.name == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.beta1, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # Fused: one kernel for all parameters, on CPU as on GPU.
    return kind(parameters, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay, fused=True)


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The parameters that are trainable now: those that decay, and those that do not, if there are any."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_decayed = not any(part in name for part in config.undecayed)
            (decayed if is_decayed else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
