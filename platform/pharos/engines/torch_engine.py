"""The engine `torch`: plain PyTorch for one worker, DistributedDataParallel for more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pharos.checkpoint import Checkpoint, Part
from pharos.engines.base import EngineConfig
from pharos.engines.optimizers import OptimConfig, forget, make_optimizer, set_rate
from pharos.world import World


class TorchEngine:
    """See `pharos.engines.base.Engine`. Every worker has the whole model and optimiser; gradients are averaged."""

    def __init__(
        self, module: nn.Module, optim: OptimConfig, config: EngineConfig, world: World, factors: Mapping[str, float]
    ):
        self.optimizer = make_optimizer(module, optim, factors)
        self._module = module
        self._world = world
        self._clip = optim.clip_norm
        self._accumulation = config.accumulation
        self._calls = 0
        self._scaler = torch.amp.GradScaler(world.device.type) if config.precision == "fp16" else None
        self._ddp: DistributedDataParallel | None = None
        if world.size > 1:
            # Averaged over the workers before an evaluation instead (`Learner.evaluating`): a collective less a call.
            self._ddp = DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)
        self._forward = self._ddp or module
        self._announce()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def update(self, loss: Tensor) -> None:
        if self._calls % self._accumulation == 0:
            self.optimizer.zero_grad(set_to_none=True)
        self._calls += 1
        if self._accumulation > 1:
            loss = loss / self._accumulation
        if self._scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self._calls % self._accumulation == 0:
            self._apply()
        if self._accumulation > 1:
            self._announce()

    def set_rate(self, rate: float) -> None:
        set_rate(self.optimizer, rate)

    def forget(self) -> None:
        forget(self.optimizer)

    def whole(self, write: bool = False) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def parts(self) -> Iterator[Part]:
        # All workers hold the same, so each writes its share of it.
        mine = slice(self._world.rank, None, self._world.size)
        for name, value in list(self._module.state_dict().items())[mine]:
            yield Part.whole(f"weights/{name}", value)
        for name, parameter in list(self._module.named_parameters())[mine]:
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    yield Part.whole(f"optimizer/{name}/{key}", value)
        if self._scaler is not None and self._world.rank == 0:
            for key, number in self._scaler.state_dict().items():
                yield Part.whole(f"scaler/{key}", torch.tensor(float(number), dtype=torch.float64))

    def load(self, saved: Checkpoint, prefix: str) -> None:
        for name, parameter in self._module.named_parameters():
            state = saved.tensors(f"{prefix}optimizer/{name}/")
            if state:
                # Steps are counted where PyTorch's own fused optimisers count them.
                self.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
        scaler = saved.tensors(f"{prefix}scaler/")
        if self._scaler is not None and scaler.keys() == self._scaler.state_dict().keys():
            known = self._scaler.state_dict()
            self._scaler.load_state_dict({key: type(known[key])(value) for key, value in scaler.items()})

    def close(self) -> None:
        # The reducer holds the gradient buckets and is part of a cycle.
        self._ddp = None
        self._forward = self._module

    def _apply(self) -> None:
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        if self._clip > 0:
            nn.utils.clip_grad_norm_(self._module.parameters(), self._clip)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()

    def _announce(self) -> None:
        """Tells DDP, before the forward pass, whether the backward pass after it ends an accumulation."""
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = (self._calls + 1) % self._accumulation == 0
