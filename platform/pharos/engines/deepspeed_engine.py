"""The engine `deepspeed`: ZeRO 0 to 3, with PyTorch's optimisers, so that no kernel is compiled in a trial.

Written against DeepSpeed 0.19.8. Its own checkpoints are pickles that fit one number of workers; ours need the fp32
weights and the optimiser's state parameter by parameter, so `_held` reaches into where each ZeRO stage keeps them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pharos.checkpoint import Checkpoint, Part
from pharos.engines.base import EngineConfig
from pharos.engines.optimizers import OptimConfig, forget, make_optimizer, set_rate
from pharos.errors import PharosError
from pharos.world import World, join_alone

_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
_LOSS_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine:
    """See `pharos.engines.base.Engine`."""

    def __init__(
        self, module: nn.Module, optim: OptimConfig, config: EngineConfig, world: World, factors: Mapping[str, float]
    ):
        self._deepspeed = _import_deepspeed(world)
        self._module = module
        self._world = world
        self._zero = config.zero
        self._scaler_keys = _LOSS_SCALER if config.has_half_weights else ()
        self._stepping = _Stepping()
        if config.has_half_weights and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            raise PharosError("engine.precision=fp16: DeepSpeed has no fp16 batch normalisation; take bf16")
        for parameter in module.parameters():
            if parameter.requires_grad:  # before DeepSpeed's own hooks, which would take the gradient for a step's
                parameter.register_post_accumulate_grad_hook(self._stepping.check)  # type: ignore[no-untyped-call]
        try:
            self._engine, *_ = self._deepspeed.initialize(
                model=module,
                optimizer=make_optimizer(module, optim, factors),
                config=_configuration(module, optim, config),
                dist_init_required=False,
            )
        except ValueError as error:
            if config.has_half_weights:
                raise PharosError(f"engine.precision=fp16: {error} Take bf16.") from error
            raise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Not through DeepSpeed's engine: it would take every gradient that passes an output (of a penalty on the
        # inputs, say, or of a later call in the same loss) for the one backward pass of its step.
        return self._module(*args, **kwargs)

    def update(self, loss: Tensor) -> None:
        if self._zero:
            self._engine.optimizer.clear_backward_seen_flag()
        # The loss is the output whose backward pass begins the step.
        begin = self._engine._backward_prologue
        self._deepspeed.runtime.utils.register_output_backward_hooks(loss, preprocess_once_fn=begin)
        self._stepping.now = True
        try:
            self._engine.backward(loss)
        except RuntimeError as error:
            if self._zero == 3 and "must be a matrix" in str(error):
                raise PharosError(
                    f"engine.zero=3: {error}; weights are not there for the gradient of a gradient: take engine.zero=2"
                ) from error
            raise
        finally:
            self._stepping.now = False
        self._engine.step()

    def set_rate(self, rate: float) -> None:
        set_rate(self._engine.optimizer, rate)

    def forget(self) -> None:
        forget(self._base)

    @contextlib.contextmanager
    def whole(self, write: bool = False) -> Iterator[None]:
        if self._zero == 3:
            parameters = list(self._module.parameters())
            with self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
                yield
        else:
            yield
        if write and self._zero:
            self._engine.optimizer.refresh_fp32_params()

    def parts(self) -> Iterator[Part]:
        rank, size = self._world.rank, self._world.size
        for index, (name, parameter) in enumerate(self._module.named_parameters(remove_duplicate=False)):
            held = self._held(parameter)
            # What all workers hold whole, one of them writes.
            if held is None or (not self._is_sharded(parameter) and index % size != rank):
                continue
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            yield Part(f"weights/{name}", held.weights, shape, held.start)
            for key, value in held.state.items():
                if value.dim():
                    yield Part(f"optimizer/{name}/{key}", value, shape, held.start)
                elif held.start == 0:
                    yield Part.whole(f"optimizer/{name}/{key}", value)
        if rank == 0:
            parameters = dict(self._module.named_parameters(remove_duplicate=False))
            for name, value in self._module.state_dict().items():
                if name not in parameters:
                    yield Part.whole(f"weights/{name}", value)
            for key in self._scaler_keys:
                number = float(getattr(self._engine.optimizer.loss_scaler, key))
                yield Part.whole(f"scaler/{key}", torch.tensor(number, dtype=torch.float64))

    def load(self, saved: Checkpoint, prefix: str) -> None:
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                continue
            keys = saved.names(f"{prefix}optimizer/{name}/")
            held = self._held(parameter, {key: saved.tensor(f"{prefix}optimizer/{name}/{key}") for key in keys})
            if held is None:
                continue
            count = held.weights.numel()
            held.weights.copy_(saved.elements(f"{prefix}weights/{name}", held.start, count))
            for key, value in held.state.items():
                source = f"{prefix}optimizer/{name}/{key}"
                value.copy_(saved.tensor(source) if value.dim() == 0 else saved.elements(source, held.start, count))
        scaler = saved.tensors(f"{prefix}scaler/")
        for key in self._scaler_keys:
            if key in scaler:
                kind = type(getattr(self._engine.optimizer.loss_scaler, key))
                setattr(self._engine.optimizer.loss_scaler, key, kind(scaler[key]))

    def close(self) -> None:
        self._engine.destroy()
        if self._zero == 3:
            # Two of its globals would keep the module for the life of the process.
            from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

            mine = set(self._module.modules())
            parameter_offload.FWD_MODULE_STACK[:] = [m for m in parameter_offload.FWD_MODULE_STACK if m not in mine]
            coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
            to_release = coordinator._PartitionedParameterCoordinator__params_to_release
            to_release.__closure__[0].cell_contents.cache_clear()  # an lru_cache without a limit

    @property
    def _base(self) -> torch.optim.Optimizer:
        """PyTorch's optimiser, below DeepSpeed's."""
        optimizer: torch.optim.Optimizer = self._engine.optimizer.optimizer if self._zero else self._engine.optimizer
        return optimizer

    def _is_sharded(self, parameter: nn.Parameter) -> bool:
        """Whether each worker holds a piece of it: ZeRO 1 and 2 leave parameters that are not trained alone."""
        return self._zero == 3 or (self._zero > 0 and parameter.requires_grad)

    def _held(self, parameter: nn.Parameter, initial: dict[str, Tensor] | None = None) -> _Held | None:
        """What this worker holds of a parameter; None if nothing.

        Args:
            parameter: One of the module's.
            initial: Whole state by name; entries that the optimiser has not made yet are made like these.
        """
        optimizer = self._engine.optimizer
        if self._zero == 3:
            partition = parameter.ds_tensor  # type: ignore[attr-defined]
            start = self._world.rank * partition.numel()
            count = max(0, min(partition.numel(), parameter.ds_numel - start))  # type: ignore[attr-defined]
            if not count:
                return None
            if not parameter.requires_grad:
                return _Held(partition.data.reshape(-1)[:count], start, {})
            group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            flat = optimizer.fp32_partitioned_groups_flat[group]
        elif self._is_sharded(parameter):
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                return None
            address, start = mapping.get_hp_fragment_address(), mapping.lp_fragment_address.start
            offset, count = address.start, address.numel
            flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        else:
            flat, offset, start, count = parameter, 0, 0, parameter.numel()
        state = self._base.state[flat] if initial else self._base.state.get(flat, {})
        for key, value in (initial or {}).items():
            if key not in state:
                state[key] = value.to(flat.device) if value.dim() == 0 else torch.zeros_like(flat.data)
        return _Held(
            flat.data.reshape(-1)[offset : offset + count],
            start,
            {k: v if v.dim() == 0 else v.reshape(-1)[offset : offset + count] for k, v in state.items()},
        )


@dataclass
class _Stepping:
    """Whether a gradient may arrive. Of its own, because what a parameter's hook refers to is never collected."""

    now: bool = False

    def check(self, parameter: Tensor) -> None:
        if not self.now:
            raise PharosError(
                "a gradient reached a learner outside its own step; put that call of it into `with learner.frozen():`"
            )


@dataclass(frozen=True)
class _Held:
    """A worker's piece of a parameter: views, so that writing to them changes what DeepSpeed has."""

    weights: Tensor
    """fp32 elements, (count,)."""
    start: int
    """Index of the first in the flattened parameter."""
    state: dict[str, Tensor]
    """The optimiser's, for the same elements; scalars are common to all."""


def _configuration(module: nn.Module, optim: OptimConfig, config: EngineConfig) -> dict[str, Any]:
    """The file's configuration with what the recipe and the settings say."""
    zero = {**config.deepspeed.get("zero_optimization", {}), "stage": config.zero}
    # Buffers are allocated at the size that is asked for, whatever the model's; they must be a multiple of something.
    elements = 1024 * math.ceil(sum(p.numel() for p in module.parameters()) / 1024 + 1)
    zero |= {key: min(int(zero[key]), elements) for key in _BUCKETS if key in zero}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        **config.deepspeed,
        "train_micro_batch_size_per_gpu": 1,  # batches are the recipe's
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": optim.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        # bf16 is autocast's and needs nothing of DeepSpeed.
        "fp16": {
            **config.deepspeed.get("fp16", {}),
            "enabled": config.has_half_weights,
            "auto_cast": config.has_half_weights,
        },
    }


@contextlib.contextmanager
def _silent_compilers() -> Iterator[None]:
    """Hides what the compilers say that DeepSpeed, when it is imported, tries out for kernels nobody wants."""
    before = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:  # noqa: PTH123 - a device, not a path
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _import_deepspeed(world: World) -> ModuleType:
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    # Each worker sees one device.
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("LOCAL_SIZE", "1")
    try:
        with contextlib.nullcontext() if "deepspeed" in sys.modules else _silent_compilers():
            import deepspeed
    except ImportError as error:
        raise PharosError(
            f"engine=deepspeed needs DeepSpeed ({error}): pip install -c constraints.txt 'pharos-sweeps[deepspeed]'"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # Else its shared-memory all-reduce for CPUs is compiled, for minutes, when the first engine is made.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        join_alone(world.device)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist.get_backend(), dist_init_required=False, verbose=False)
    module: ModuleType = deepspeed
    return module
