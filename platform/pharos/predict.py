"""Lets a trained model say what it thinks of a folder of files that it has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pharos.cache import configure
from pharos.checkpoint import Checkpoints
from pharos.errors import InputError
from pharos.families import load_recipe
from pharos.plan import Plan
from pharos.recipe import build_config
from pharos.run import Run
from pharos.space import Params
from pharos.storage import Storage
from pharos.world import World


def predict_folder(source: Storage, plan: Plan, params: Params, folder: str, output: str) -> dict[str, Any]:
    """Has a family's `predict` write its predictions, in this process and on its GPU if it has one.

    Args:
        source: The folder of the trial, or run, whose newest checkpoint predicts; whatever engine wrote it.
        plan: What it was trained from.
        params: Its searched values.
        folder: What to predict.
        output: Where predictions go; made if it is not there.

    Returns:
        What `--json` prints: family, from, fidelity, output, and the files that were written, in the order of their
        names.

    Raises:
        InputError: The family predicts nothing, the trial has no checkpoint, the folder is not there, or the output
            holds something already.
    """
    recipe = load_recipe(plan.settings.family)
    inputs, target = Path(folder).expanduser(), Path(output).expanduser()
    if not inputs.is_dir():
        raise InputError(f"--predict {folder}: is no folder; give one that holds what to predict")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--output {output}: holds something already; give another folder")
    saved = Checkpoints(source.sub("checkpoints")).newest()
    if saved is None:
        raise InputError(f"--predict: {source.root} has no checkpoint; trials that were pruned at once have none")
    fidelity = saved.step
    Storage(str(target)).check_writable()
    configure(plan.settings.storage)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(seed=plan.settings.seed, world=World(device=device), saved=saved)
    target.mkdir(parents=True, exist_ok=True)
    try:
        recipe.predict(run, build_config(recipe.Config, plan.trial_config(params)), inputs, target)
    finally:
        run.close()
    return {
        "family": plan.settings.family,
        "from": source.root,
        "fidelity": fidelity,
        "output": str(target),
        "files": sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()),
    }


def closing(result: dict[str, Any]) -> str:
    """What is said when it is done."""
    return (
        f"{result['family']}, trained to epoch {result['fidelity']}: {len(result['files'])} files in {result['output']}"
    )
