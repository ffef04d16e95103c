"""What the trials of a sweep take of its storage, and what of that need not be kept."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pharos.checkpoint import Checkpoints, is_hold, is_manifest
from pharos.mirror import ours
from pharos.plan import Plan
from pharos.records import TrialRecord, ranked
from pharos.retention import Keep, surplus
from pharos.search.objective import Objectives
from pharos.storage import Storage
from pharos.study import read_study
from pharos.trial import Outcome, trial_id

_UNFINISHED = "never finished"


@dataclass(frozen=True)
class TrialUse:
    """What one trial takes of a sweep's storage.

    Attributes:
        number: The trial's.
        size: Bytes of all its files.
        files: Bytes of each file of each checkpoint, committed or not.
        goes: Why a checkpoint would be removed, by step.
        outcome: The trial's; None if the study does not know it.
    """

    number: int
    size: int
    files: dict[int, dict[str, int]]
    goes: dict[int, str]

    outcome: Outcome | None = None

    @property
    def steps(self) -> dict[int, int]:
        """Bytes of each checkpoint."""
        return {step: sum(files.values()) for step, files in sorted(self.files.items())}

    @property
    def freed(self) -> int:
        """Bytes that would be freed."""
        return sum(self.steps[step] for step in self.goes)

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "trial": trial_id(self.number),
            "outcome": self.outcome and str(self.outcome),
            "bytes": self.size,
            "checkpoints": [
                {"step": step, "bytes": size, "goes": self.goes.get(step)} for step, size in self.steps.items()
            ],
        }


def survey(
    home: Storage, records: Mapping[int, TrialRecord], keep: Keep, objectives: Objectives, trials: int | None
) -> list[TrialUse]:
    """What a sweep's trials take, and what of it need not be kept.

    Nothing of a running trial goes: that is its own process's to say. What an interrupted one goes on from stays.

    Args:
        home: The sweep's folder.
        records: Its trials.
        keep: What stays of each trial.
        objectives: What makes a trial good.
        trials: Of how many of the best trials; None: of all.
    """
    sizes: dict[int, dict[str, int]] = {number: {} for number in records}
    for path, size in home.sizes("trials").items():
        name, _, file = path.partition("/")
        if name.isdigit():
            sizes.setdefault(int(name), {})[file] = size
    best = set(records) if trials is None else {record.number for record in ranked(records, objectives)[:trials]}
    uses = []
    for number, files in sorted(sizes.items()):
        steps = _steps(files)
        committed = {step for step, names in steps.items() if any(map(is_manifest, names))}
        held = {step for step, names in steps.items() if any(is_hold(name) for name in names)}
        record = records.get(number)
        goes: dict[int, str] = {}
        if record is not None and record.outcome != Outcome.RUNNING:
            if record.outcome.is_final and number not in best:
                goes = dict.fromkeys(steps, "not of the best trials")
            elif len(committed) > keep.last:
                checkpoints = Checkpoints(home.sub("trials", trial_id(number), "checkpoints"))
                values = {step: checkpoints.value(step) for step in committed}
                goes = dict.fromkeys(surplus(values, keep), "neither new nor good")
            goes |= dict.fromkeys(set(steps) - committed, _UNFINISHED)
        goes = {step: why for step, why in sorted(goes.items()) if step not in held}
        uses.append(TrialUse(number, sum(files.values()), steps, goes, record.outcome if record else None))
    return uses


def survey_sweep(home: Storage, plan: Plan, remove: bool = False) -> list[TrialUse]:
    """A survey of a sweep that is not open here, by the settings of its plan.

    Args:
        home: The sweep's folder.
        plan: The sweep's.
        remove: Whether what need not be kept is removed.

    Raises:
        InputError: It is to be removed, and a driver is at work.
    """
    config = plan.settings.storage
    keep = Keep(config.keep_last, config.keep_best, config.keep_every, plan.settings.objectives.first.mode)
    with ours(home, config) if remove else contextlib.nullcontext():
        records, _, _ = read_study(home, home.name, plan.settings.study.storage)
        uses = survey(home, records, keep, plan.settings.objectives, config.keep_trials)
        if remove:
            clear(home, uses)
    return uses


def clear(home: Storage, uses: list[TrialUse], unfinished: bool = True) -> None:
    """Removes what a survey said need not be kept.

    Args:
        home: The sweep's folder.
        uses: What the survey said.
        unfinished: Whether what was never finished goes too; the process of a trial just stopped may be finishing it.
    """
    for use in uses:
        checkpoints = Checkpoints(home.sub("trials", trial_id(use.number), "checkpoints"))
        for step, why in use.goes.items():
            if unfinished or why != _UNFINISHED:
                checkpoints.remove(step, use.files[step])


def _steps(files: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """The files of each checkpoint among a trial's."""
    steps: dict[int, dict[str, int]] = {}
    for file, size in files.items():
        kind, _, rest = file.partition("/")
        folder, _, name = rest.partition("/")
        if kind == "checkpoints" and folder.isdigit():
            steps.setdefault(int(folder), {})[name] = size
    return steps
