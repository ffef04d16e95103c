"""The optimisers that all engines share: PyTorch's own, so that none compiles a kernel in a trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pharos.errors import InputError

_FACTOR = "factor"  # of a parameter group's learning rate
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


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimiser's state that of a new one: zeros, in the place where engines have mapped it."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def make_optimizer(
    module: nn.Module, config: OptimConfig, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """An optimiser of the parameters that are trainable now.

    Args:
        module: Whose.
        config: The optimiser's.
        factors: Of the learning rate, by the end of parameters' names; for others it is 1.
    """
    parameters = _groups(module, config, factors or {})
    if config.name == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.beta1, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # Fused: one kernel for all parameters, on CPU as on GPU.
    return kind(parameters, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay, fused=True)


def set_rate(optimizer: Any, rate: float) -> None:
    """Sets the learning rate; groups with a factor of their own get it times that."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_FACTOR]


def _groups(module: nn.Module, config: OptimConfig, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trainable parameters, those of one learning rate and one weight decay together."""
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = next((value for end, value in factors.items() if name.endswith(end)), 1.0)
            decay = 0.0 if any(part in name for part in config.undecayed) else config.weight_decay
            alike.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * factor, "weight_decay": decay, _FACTOR: factor}
        for (factor, decay), parameters in alike.items()
    ]
