"""A learner: one module, one optimiser and one schedule behind one engine (`pharos.engines`)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pharos.checkpoint import Checkpoint, Part
from pharos.engines import make_engine
from pharos.engines.activations import checkpoint_activations
from pharos.engines.base import PRECISIONS, EngineConfig
from pharos.engines.optimizers import OptimConfig
from pharos.world import World

__all__ = ["Learner", "OptimConfig"]

_CALLS = "calls"


class Learner:
    """One module, one optimiser. Call it like the module; `step(loss)` is one update.

    With several workers each calls it with its share of the batch and steps with the mean loss over that share: the
    update is that of the mean over the whole batch. All of them must step the same learners in the same order.

    A gradient that is not of its own step's loss is to be kept out with `frozen()`: `torch` forgets such gradients at
    the next step, `deepspeed` refuses them.

    Args:
        name: Its name in checkpoints and in the reported `loss/<name>`; without '/'.
        module: The network, as single-device code.
        optim: The optimiser's configuration.
        engine: What runs it, and in which precision. Under `bf16` and `fp16` calls run under autocast (but DeepSpeed's
            fp16 has fp16 weights), and their floating-point outputs come back as fp32.
        world: The workers that train it together.
        saved: A checkpoint that holds it; its weights and the optimiser's state are taken up.
        factors: Of the learning rate, by the end of parameters' names; for others it is 1.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optim: OptimConfig,
        *,
        engine: EngineConfig | None = None,
        world: World | None = None,
        saved: Checkpoint | None = None,
        factors: Mapping[str, float] | None = None,
    ):
        engine, world = engine or EngineConfig(), world or World()
        self.name = name
        self.module = module.to(world.device)
        if saved is not None:
            self.module.load_state_dict(saved.tensors(f"learners/{name}/weights/"))
        if engine.activation_checkpointing:
            checkpoint_activations(self.module)
        self._optim = optim
        self._world = world
        self._engine = make_engine(self.module, optim, engine, world, factors or {})
        if saved is not None:
            self._engine.load(saved, f"learners/{name}/")
        self._autocast = None if engine.has_half_weights else PRECISIONS[engine.precision]
        self._is_cast = engine.precision != "fp32"
        self._is_training = True  # neither frozen nor evaluating
        # A running sum on the device: its mean is reported, a NaN in it betrays a divergence, and no step waits.
        self._loss_sum = torch.zeros((), device=world.device)
        self._steps = 0
        self._rate = optim.lr
        self._calls = 0  # of `step`, earlier attempts included; counted where a warm-up asks for it
        self._accumulation = engine.accumulation
        if optim.warmup and saved is not None and _CALLS in saved.names(f"learners/{name}/"):
            self._calls = int(saved.tensor(f"learners/{name}/{_CALLS}"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Where no gradient reaches the parameters, the engine has nothing to prepare.
        forward = self._engine if torch.is_grad_enabled() and self._is_training else self.module
        if not self._is_cast:
            return forward(*args, **kwargs)
        with torch.autocast(self._world.device.type, self._autocast, enabled=self._autocast is not None):
            out = forward(*args, **kwargs)
        return out.float() if isinstance(out, Tensor) and out.is_floating_point() else out

    def step(self, loss: Tensor) -> None:
        """One update from this worker's scalar loss: back-propagated, averaged over the workers, clipped, applied.

        With `engine.accumulation=k` every k-th call applies the mean gradient of the last k.
        """
        if self._world.loss_weight != 1:
            loss = loss * self._world.loss_weight
        if self._optim.warmup:
            self._warm_up()
        self._engine.update(loss)
        self._loss_sum += loss.detach()
        self._steps += 1

    @contextlib.contextmanager
    def frozen(self) -> Iterator[Learner]:
        """Within the block, gradients pass through the module but none reaches its parameters."""
        wanted = [p for p in self.module.parameters() if p.requires_grad]
        before, self._is_training = self._is_training, False
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield self
        finally:
            self._is_training = before
            for parameter in wanted:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Learner]:
        """Within the block, the module is in evaluation mode and no gradient is recorded.

        The running statistics of batch normalisation are those of all workers then, and stay so.
        """
        self.share_statistics()
        before, self._is_training = self._is_training, False
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield self
        finally:
            self._is_training = before
            self.module.train(training)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the module's state, whole whatever the engine; on its device."""
        with self._engine.whole():
            return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces the module's state; the optimiser's stays."""
        with self._engine.whole(write=True):
            self.module.load_state_dict(weights)

    def reset_optimizer(self) -> None:
        """Forgets the optimiser's moments, as if it had just been made: for methods that start a new one by rounds.

        A trial resumes with what was saved last, so this belongs to the epoch that ends a round, not to the next.
        """
        self._engine.forget()

    # What the run uses

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The gradient of each parameter in the last step, clipped; none under DeepSpeed, which does not keep them."""
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad.detach()

    def take_mean_loss(self) -> float | None:
        """This worker's mean loss of the steps since the last call; None when there were none."""
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
        self._rate = self._optim.lr * _rate(self._optim, progress)
        self._engine.set_rate(self._rate)

    def share_statistics(self) -> None:
        """Averages the running statistics of batch normalisation over the workers."""
        if self._world.size > 1:
            for module in self.module.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    for statistic in (module.running_mean, module.running_var):
                        if statistic is not None:
                            self._world.average(statistic)

    def parts(self) -> Iterator[Part]:
        """What this worker adds to a checkpoint."""
        for part in self._engine.parts():
            yield replace(part, name=f"learners/{self.name}/{part.name}")
        if self._optim.warmup and self._world.rank == 0:
            yield Part.whole(f"learners/{self.name}/{_CALLS}", torch.tensor(self._calls))

    def close(self) -> None:
        """Gives back what the engine holds."""
        self._engine.close()

    def _warm_up(self) -> None:
        update = self._calls // self._accumulation + 1
        if update <= self._optim.warmup:
            self._engine.set_rate(self._rate * update / self._optim.warmup)
        elif update == self._optim.warmup + 1:
            self._engine.set_rate(self._rate)
        self._calls += 1


def _rate(config: OptimConfig, progress: float) -> float:
    """The share of the full learning rate at a point of the loop."""
    if config.schedule == "onecycle":
        return _one_cycle(progress)
    if config.schedule == "exponential":
        return float(config.final**progress)
    if config.schedule == "constant" or progress <= config.hold:
        return 1.0
    left = (1 - progress) / (1 - config.hold)
    return left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def _one_cycle(progress: float) -> float:
    """Smith and Topin's cycle with PyTorch's proportions: the first 0.3 up from 1/25, the rest down to 1/250,000."""
    lowest, last, rise = 1 / 25, 1 / 25e4, 0.3
    low, part = (lowest, progress / rise) if progress < rise else (last, (1 - progress) / (1 - rise))
    return low + (1 - low) * (0.5 - 0.5 * math.cos(math.pi * part))
