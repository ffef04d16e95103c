"""What runs a learner's module and optimiser: `torch`, alone or as DDP, and `deepspeed`, with ZeRO 0 to 3.

Both write and read the same named tensors, so that a checkpoint of one is resumed by the other, on any number of
workers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pharos.engines.base import Engine, EngineConfig
from pharos.engines.optimizers import OptimConfig
from pharos.world import World


def make_engine(
    module: nn.Module, optim: OptimConfig, config: EngineConfig, world: World, factors: Mapping[str, float]
) -> Engine:
    """The engine that a configuration names."""
    if config.name == "deepspeed":
        from pharos.engines.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(module, optim, config, world, factors)
    from pharos.engines.torch_engine import TorchEngine

    return TorchEngine(module, optim, config, world, factors)
