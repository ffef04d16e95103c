"""`summary.json`: what a script reads of a sweep.

sweep, family, objective {metric, mode}
trials        a count per outcome
best          trial, outcome, fidelity, values, params, checkpoint, metrics; null if no trial was completed
paper_values  the same for the trial with the recipe's own values
pareto        null: there is one objective
seconds       of wall-clock, over all drivers of the sweep
cpu_hours     (gpu_hours where trials have GPUs) by purpose: useful, pruned, lost, waiting
versions      of Python, the packages and this code
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from pharos.checkpoint import Checkpoints
from pharos.config import Plan
from pharos.families import ROOT
from pharos.storage import Storage
from pharos.study import TrialRecord, Usage, best_record, count_outcomes, read_study
from pharos.trial import Outcome, trial_id

PACKAGES = ("torch", "numpy", "optuna", "hydra-core", "ray", "wandb", "fsspec", "safetensors")


def summarise(
    name: str, plan: Plan, folder: Storage, records: Mapping[int, TrialRecord], usage: Usage
) -> dict[str, Any]:
    """A sweep's summary.

    Args:
        name: The sweep's.
        plan: What it searches.
        folder: Where it lies.
        records: Its trials.
        usage: The time it had.
    """
    objective = plan.settings.objective
    paper = next((record for record in records.values() if plan.is_paper_trial(record.params)), None)

    def result(record: TrialRecord | None) -> dict[str, Any] | None:
        if record is None:
            return None
        checkpoints = Checkpoints(folder.sub("trials", trial_id(record.number), "checkpoints"))
        return {
            "trial": trial_id(record.number),
            "outcome": str(record.outcome),
            "fidelity": record.fidelity,
            "values": {objective.metric: record.last_value},
            "params": record.params,
            "checkpoint": checkpoints.newest_path(),
            "metrics": record.metrics,
        }

    return {
        "sweep": name,
        "family": plan.settings.family,
        "objective": {"metric": objective.metric, "mode": objective.mode},
        "trials": {str(outcome): count for outcome, count in count_outcomes(records).items() if count},
        "best": result(best_record(records, objective.mode)),
        "paper_values": result(paper),
        "pareto": None,
        "seconds": usage.seconds,
        **_hours(plan, records, usage),
        "versions": versions(),
    }


def summarise_folder(folder: Storage, plan: Plan) -> dict[str, Any]:
    """The summary of a sweep as it stands, also while it runs.

    Raises:
        InputError: Its study is missing.
    """
    records, usage = read_study(folder, folder.name, plan.settings.study.storage)
    return summarise(folder.name, plan, folder, records, usage)


def versions() -> dict[str, str | None]:
    """Of Python, the packages that matter, and this code."""
    found: dict[str, str | None] = {"python": platform.python_version(), "code": _revision()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _revision() -> str | None:
    """The commit of the checkout, with a mark if it was changed; None where there is no checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _hours(plan: Plan, records: Mapping[int, TrialRecord], usage: Usage) -> dict[str, Any]:
    """Where the time of the processors went, in hours."""
    spent = dict.fromkeys(("useful", "pruned", "lost"), 0.0)
    for record in records.values():
        spent["lost"] += record.lost_seconds
        if record.outcome in (Outcome.COMPLETE, Outcome.RUNNING, Outcome.INTERRUPTED):
            spent["useful"] += record.seconds
        elif record.outcome == Outcome.PRUNED:
            spent["pruned"] += record.seconds
        else:
            spent["lost"] += record.seconds
    spent["waiting"] = max(0.0, usage.slot_seconds - sum(spent.values()))
    resources = plan.settings.resources
    gpus = resources.gpus_per_worker
    each = (gpus or resources.cpus_per_worker) * resources.workers
    hours = {purpose: round(seconds * each / 3600, 4) for purpose, seconds in spent.items()}
    return {"gpu_hours" if gpus else "cpu_hours": hours}
