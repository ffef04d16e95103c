"""A learner: one module, one optimiser and one schedule behind one engine (here: `torch`, one process)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pharos.errors import InputError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


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
    """constant, linear or cosine: how the rate falls to zero over the loop, epoch by epoch, after `hold`."""
    hold: float = 0.5
    """linear and cosine: the share of the loop, from its start, that keeps the full rate."""

    def __post_init__(self) -> None:
        if self.name not in ("adam", "adamw", "sgd"):
            raise InputError(f"optimiser {self.name!r} is unknown; choose adam, adamw or sgd")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise InputError(f"schedule {self.schedule!r} is unknown; choose constant, linear or cosine")
        if not 0 <= self.hold < 1:
            raise InputError(f"hold={self.hold}: a share of the loop, at least 0 and below 1")


class Learner:
    """One module, one optimiser. Call it like the module; `step(loss)` is one update.

    Args:
        name: Its name in checkpoints and in the reported `loss/<name>`.
        module: The network, as single-device code.
        optim: The optimiser's configuration.
        device: Where the module is moved to.
        precision: `fp32`, or `bf16`: calls run under autocast; their floating-point outputs come back as fp32.
    """

    def __init__(self, name: str, module: nn.Module, optim: OptimConfig, device: torch.device, precision: str):
        self.name = name
        self.module = module.to(device)
        self.optimizer = _optimizer(self.module, optim)
        self._optim = optim
        self._device = device
        self._autocast = PRECISIONS[precision]
        # A running sum on the device: its mean is reported, a NaN in it betrays a divergence, and no step waits.
        self._loss_sum = torch.zeros((), device=device)
        self._steps = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._autocast is None:
            return self.module(*args, **kwargs)
        with torch.autocast(self._device.type, self._autocast):
            out = self.module(*args, **kwargs)
        return out.float() if isinstance(out, Tensor) and out.is_floating_point() else out

    def step(self, loss: Tensor) -> None:
        """One update from a scalar loss: gradients cleared, back-propagated, clipped, applied."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._optim.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._optim.clip_norm)
        self.optimizer.step()
        self._loss_sum += loss.detach()
        self._steps += 1

    @contextlib.contextmanager
    def frozen(self) -> Iterator[Learner]:
        """Within the block, gradients pass through the module but none reaches its parameters."""
        wanted = [p for p in self.module.parameters() if p.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield self
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Learner]:
        """Within the block, the module is in evaluation mode and no gradient is recorded."""
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield self
        finally:
            self.module.train(training)

    def take_mean_loss(self) -> float | None:
        """The mean loss of the steps since the last call; None when there were none."""
        mean = float(self._loss_sum) / self._steps if self._steps else None
        self._loss_sum.zero_()
        self._steps = 0
        return mean

    def start_epoch(self, progress: float) -> None:
        """Sets the learning rate, and forgets losses: reported ones are one epoch's, wherever the last one ran.

        Args:
            progress: How far the present loop is, in [0, 1).
        """
        self._loss_sum.zero_()
        self._steps = 0
        for group in self.optimizer.param_groups:
            group["lr"] = self._optim.lr * _rate(self._optim, progress)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


def _rate(config: OptimConfig, progress: float) -> float:
    """The share of the full learning rate at a point of the loop."""
    if config.schedule == "constant" or progress <= config.hold:
        return 1.0
    left = (1 - progress) / (1 - config.hold)
    return left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def _optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.beta1, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    # Fused: one kernel for all parameters, on CPU as on GPU.
    return kind(
        parameters,
        config.lr,
        (config.beta1, config.beta2),
        config.eps,
        config.weight_decay,
        fused=True,
    )
