"""Takes a trained model out of a checkpoint, as plain safetensors: whatever engine and number of workers wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from pharos.checkpoint import Checkpoints
from pharos.errors import InputError
from pharos.plan import Plan
from pharos.space import Params
from pharos.storage import Storage

_MODEL = "model.json"


def export_weights(source: Storage, plan: Plan, params: Params, directory: str) -> dict[str, Any]:
    """Writes one file a learner, `<learner>.safetensors`, and `model.json`, which says what they are.

    Args:
        source: The trial's folder, or a run's.
        plan: What it was trained from.
        params: Its searched values.
        directory: Where the files go; made if it is not there.

    Returns:
        What `model.json` holds: family, params, config, metrics, fidelity and the files' learners.

    Raises:
        InputError: The trial has no checkpoint, or the directory holds a model already.
    """
    target = Storage(directory)
    if target.exists(_MODEL):
        raise InputError(f"--export {directory}: holds a model already; give another folder")
    saved = Checkpoints(source.sub("checkpoints")).newest()
    if saved is None:
        raise InputError(f"--export: {source.root} has no checkpoint; trials that were pruned at once have none")
    target.check_writable()
    files = {}
    for name in saved.state["learners"]:
        weights = saved.tensors(f"learners/{name}/weights/")
        files[f"{name}.safetensors"] = sum(value.numel() for value in weights.values())
        target.write_bytes(f"{name}.safetensors", save(weights))
    model = {
        "family": plan.settings.family,
        "from": source.root,
        "params": params,
        "config": plan.trial_config(params),
        "fidelity": saved.step,
        "metrics": saved.state["metrics"],
        "elements": files,
    }
    target.write_bytes(_MODEL, (json.dumps(model, indent=2) + "\n").encode())
    return model


def closing(model: dict[str, Any], directory: str) -> str:
    """What is said when it is done."""
    lines = [f"{model['family']}, trained to epoch {model['fidelity']}:"]
    lines += [f"  {Path(directory) / name}  {count:,} values" for name, count in model["elements"].items()]
    return "\n".join([*lines, f"  {Path(directory) / _MODEL}  its configuration and metrics"])
