"""Whether a DeepSpeed configuration makes sense with the settings."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

from pharos.doctor.sheet import Finding, fail, ok, warn
from pharos.settings import Settings

_OURS = {
    "train_batch_size": "batches are the recipe's",
    "train_micro_batch_size_per_gpu": "batches are the recipe's",
    "gradient_accumulation_steps": "engine.accumulation says it",
    "gradient_clipping": "the recipe's optimiser says it",
}


def look(settings: Settings) -> Finding:
    """Compares what the file holds with what the settings say; the settings win where the engine sets a value."""
    engine, content = settings.engine, settings.engine.deepspeed
    zero: dict[str, Any] = content.get("zero_optimization", {})
    name = engine.config or f"cluster/deepspeed/zero{engine.zero}.json"
    missing = _missing_for_kernels(zero)
    if missing:
        return fail(f"{name}: offload to nvme compiles a kernel, which needs {missing}: install it, or offload to cpu")
    if "train_batch_size" in content:
        return fail(f"{name}: train_batch_size: batches are the recipe's, DeepSpeed refuses two answers: take it out")
    doubts = [f"{key} counts for nothing ({why})" for key, why in _OURS.items() if key in content]
    if zero.get("stage", engine.zero) != engine.zero:
        doubts.append(f"zero_optimization.stage is {zero['stage']}, engine.zero={engine.zero} goes before it")
    if content.get("bf16", {}).get("enabled") and engine.precision != "fp32":
        doubts.append(f"bf16.enabled contradicts engine.precision={engine.precision}")
    elif content.get("bf16", {}).get("enabled"):
        doubts.append("bf16.enabled makes the weights bf16; engine.precision=bf16 keeps fp32 weights")
    if content.get("fp16", {}).get("enabled") and engine.precision != "fp16":
        doubts.append(f"fp16.enabled counts for nothing: engine.precision={engine.precision}")
    if engine.zero and not engine.offload and all(shape.workers == 1 for shape in settings.resources.all_shapes):
        doubts.append(f"engine.zero={engine.zero} shares nothing out with resources.workers=1: engine=torch is faster")
    if doubts:
        return warn(f"{name}: " + "; ".join(doubts))
    offload = ", offload with PyTorch's optimiser (no kernel is compiled)" if engine.offload else ""
    return ok(f"{name}: ZeRO {engine.zero}, {engine.precision}{offload}")


def _missing_for_kernels(zero: dict[str, Any]) -> str:
    """What is not here of what a kernel's compilation takes, if the configuration asks for one."""
    devices = {zero.get(key, {}).get("device") for key in ("offload_optimizer", "offload_param")}
    if "nvme" not in devices:
        return ""
    absent = []
    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        absent.append("ninja")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        absent.append("a C++ compiler")
    return " and ".join(absent)
