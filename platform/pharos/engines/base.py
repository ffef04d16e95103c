"""What an engine is, and how one is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pharos.checkpoint import Checkpoint, Part

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class EngineConfig:
    """What runs a learner. `conf/engine/` says what each value is for."""

    name: str = "torch"
    precision: str = "fp32"
    accumulation: int = 1
    activation_checkpointing: bool = False
    zero: int = 0
    offload: bool = False
    config: str | None = None
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """What `config`, or the file that comes with the ZeRO stage, holds; the driver reads it."""

    @property
    def has_half_weights(self) -> bool:
        """Whether the module's own weights are of half precision, as DeepSpeed has them under fp16."""
        return self.name == "deepspeed" and self.precision == "fp16"


class Engine(Protocol):
    """Runs one module and its optimiser on however many workers there are."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of a call whose gradient will reach the parameters."""

    def update(self, loss: Tensor) -> None:
        """Back-propagates this worker's loss; every `accumulation`-th call applies the mean gradient."""

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate."""

    def forget(self) -> None:
        """Makes the optimiser's state that of a new one."""

    def whole(self, write: bool = False) -> AbstractContextManager[None]:
        """Within the block the module's parameters are whole; with `write`, what is written to them is kept."""

    def parts(self) -> Iterator[Part]:
        """This worker's part of the weights and of the optimiser's state, by name."""

    def load(self, saved: Checkpoint, prefix: str) -> None:
        """Takes up the optimiser's state; the module's weights were loaded before the engine was made."""

    def close(self) -> None:
        """Gives back what garbage collection would not."""
