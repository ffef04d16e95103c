"""`summary.json`: what a script reads of a sweep.

sweep, family, objective {metric, mode}; with several objectives a list of such
constraints   what trials have to keep, by metric: "<= 20"
trials        a count per outcome
stopped       why the search ended before its last trial; null: it did not
best          trial, outcome, fidelity, values, params, checkpoint, metrics; null if no trial was completed.
              Of several objectives the first decides. One that breaks a constraint is never the best
paper_values  the same for the trial with the recipe's own values
pareto        null with one objective; else front (a list of such, the best in the first objective first),
              hypervolume and its reference point
finalists     null but for a sweep of finalists (train.py --top): each one's mean on fresh seeds with its interval, the
              winner and whether it really wins; `pharos.standings` lists the fields. Its `best` is a single lucky run
evidence      by sweep, what was carried over from it (warm_start, or a space that changed) and why the rest was not
seconds       of wall-clock, over all drivers of the sweep
cpu_hours     (gpu_hours where trials have GPUs) by purpose: useful, pruned, lost, waiting
versions      of Python, the packages and this code
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from pharos.checkpoint import Checkpoints
from pharos.families import ROOT
from pharos.plan import Plan
from pharos.records import TrialRecord, Usage, best_record, count_outcomes, front, ranked
from pharos.search.fronts import hypervolume
from pharos.search.objective import Objectives
from pharos.standings import standings
from pharos.storage import Storage
from pharos.study import read_study
from pharos.trial import Outcome, trial_id

PACKAGES = ("torch", "numpy", "optuna", "hydra-core", "ray", "wandb", "fsspec", "safetensors")


def summarise(
    name: str,
    plan: Plan,
    folder: Storage,
    records: Mapping[int, TrialRecord],
    *,
    usage: Usage,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """A sweep's summary.

    Args:
        name: The sweep's.
        plan: What it searches.
        folder: Where it lies.
        records: Its trials.
        usage: The time it had.
        notes: The study's.
    """
    objectives = plan.settings.objectives
    paper = next((record for record in records.values() if plan.is_paper_trial(record.params)), None)

    def result(record: TrialRecord | None) -> dict[str, Any] | None:
        if record is None:
            return None
        checkpoints = Checkpoints(folder.sub("trials", trial_id(record.number), "checkpoints"))
        return {
            "trial": trial_id(record.number),
            "outcome": str(record.outcome),
            "fidelity": record.fidelity,
            "values": dict(zip(objectives.metrics, record.last_values or (), strict=False)),
            "params": record.params,
            "checkpoint": checkpoints.newest_path(),
            "metrics": record.metrics,
        }

    asked = [{"metric": each.metric, "mode": each.mode} for each in objectives]
    return {
        "sweep": name,
        "family": plan.settings.family,
        "objective": asked if len(asked) > 1 else asked[0],
        "constraints": plan.settings.constraints,
        "trials": {str(outcome): count for outcome, count in count_outcomes(records).items() if count},
        "stopped": notes["over"] or None,
        "best": result(best_record(records, objectives)),
        "paper_values": result(paper),
        "pareto": _pareto(records, objectives, result) if len(objectives) > 1 else None,
        "finalists": standings(plan, records) if plan.finalists else None,
        "evidence": notes["evidence"],
        "seconds": usage.seconds,
        **_hours(plan, records, usage),
        "versions": versions(),
    }


def _pareto(
    records: Mapping[int, TrialRecord], objectives: Objectives, result: Callable[[TrialRecord], Any]
) -> dict[str, Any]:
    """The front and what it dominates, in the metrics' own units."""
    best = front(records, objectives)
    losses = [objectives.losses(record.values or ()) for record in ranked(records, objectives)]
    worst = [max(column) for column in zip(*losses, strict=True)] if losses else [0.0] * len(objectives)
    given = [each.reference for each in objectives]
    values = objectives.losses(worst)  # and back
    reference = [mine if theirs is None else theirs for theirs, mine in zip(given, values, strict=True)]
    return {
        "front": [result(record) for record in best],
        "hypervolume": hypervolume(losses, objectives.losses(reference)) if losses else None,
        "reference": dict(zip(objectives.metrics, reference, strict=True)) if losses else None,
    }


def summarise_folder(folder: Storage, plan: Plan) -> dict[str, Any]:
    """The summary of a sweep as it stands, also while it runs.

    Raises:
        InputError: Its study is missing.
    """
    records, usage, notes = read_study(folder, folder.name, plan.settings.study.storage)
    return summarise(folder.name, plan, folder, records, usage=usage, notes=notes)


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
        # In seconds of a place of the usual shape, as the time held is.
        places = plan.shape(record.params).devices / plan.settings.devices
        spent["lost"] += record.lost_seconds * places
        if record.outcome in (Outcome.COMPLETE, Outcome.RUNNING, Outcome.INTERRUPTED, Outcome.PAUSED):
            spent["useful"] += record.seconds * places
        elif record.outcome == Outcome.PRUNED:
            spent["pruned"] += record.seconds * places
        else:
            spent["lost"] += record.seconds * places
    spent["waiting"] = max(0.0, usage.slot_seconds - sum(spent.values()))
    gpus = plan.settings.resources.gpus_per_worker
    hours = {purpose: round(seconds * plan.settings.devices / 3600, 4) for purpose, seconds in spent.items()}
    return {"gpu_hours" if gpus else "cpu_hours": hours}
