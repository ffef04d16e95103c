"""Judges a sweep that was struck: from its folder, and from the witness's account of what really ran."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from benchmarks.faults.fault import Moment, Scene
from benchmarks.faults.witness import Line
from pharos.checkpoint import Checkpoints
from pharos.errors import PharosError
from pharos.folders import SWEEP_FILE, read_document
from pharos.records import TrialRecord
from pharos.storage import Storage
from pharos.study import read_study
from pharos.trial import Outcome, trial_id


class Status(StrEnum):
    """What a case showed."""

    HELD = "held"  # the promise
    BROKEN = "broken"
    MISSED = "missed"  # the strike did not hit: nothing was shown
    HUNG = "hung"
    SKIPPED = "skipped"  # it cannot be done here: nothing was shown


@dataclass(frozen=True)
class Undisturbed:
    """What a sweep comes to when nothing happens to it.

    Attributes:
        seconds: From the start of its driver to its end.
        outcomes: How many trials ended how.
        results: The values of complete trials, by their parameters.
    """

    seconds: float
    outcomes: Mapping[str, int]
    results: Mapping[str, tuple[float, ...]]


@dataclass
class Verdict:
    """What came of one fault at one moment.

    Attributes:
        lost: Finished trials that the sweep does not know any more, or without what they had found.
        twice: Finished trials whose training was executed again.
        again: Epochs whose training was started more than once, over all trials.
        changed: Complete trials with other numbers than in the undisturbed sweep.
        completed: Whether all trials that were asked for came to their end.
        seconds: Of wall-clock time, all drivers together.
        lost_seconds: Against the undisturbed sweep.
        reason: What the user read of a sweep that did not complete, of a case that was missed or skipped.
        problems: Why the promise was broken.
    """

    fault: str
    title: str
    moment: str
    status: Status = Status.HELD
    lost: int = 0
    twice: int = 0
    again: int = 0
    changed: int = 0
    completed: bool = False
    seconds: float = 0.0
    lost_seconds: float = 0.0
    reason: str = ""
    problems: list[str] = field(default_factory=list)
    strikes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    """A sweep as it lies in its folder."""

    storage: Storage
    trials: int
    records: Mapping[int, TrialRecord]
    summary: dict[str, Any] | None

    @staticmethod
    def of(scene: Scene) -> _Folder:
        storage = Storage(f"{scene.url}/{scene.name}", scene.options)
        records, _, _ = read_study(storage, storage.name, None)
        summary = storage.read_json("summary.json") if storage.exists("summary.json") else None
        settings = read_document(storage)["settings"] if storage.exists(SWEEP_FILE) else {"trials": 0}
        return _Folder(storage, settings["trials"], records, summary)


def judge_undisturbed(scene: Scene, seconds: float) -> Undisturbed:
    """What the sweep of a scene came to to which nothing was done.

    Raises:
        RuntimeError: It did not complete.
    """
    folder = _Folder.of(scene)
    status = scene.drivers[-1].process.returncode
    if status or not _is_complete(folder) or folder.summary is None:
        raise RuntimeError(f"the undisturbed sweep did not complete (status {status}): {last_words(scene)}")
    return Undisturbed(
        seconds,
        {str(outcome): count for outcome, count in Counter(r.outcome for r in folder.records.values()).items()},
        {_key(record): record.values for record in folder.records.values() if record.values is not None},
    )


def judge(verdict: Verdict, moment: Moment, scene: Scene, undisturbed: Undisturbed) -> None:
    """Fills in what came of a case whose strike hit.

    Args:
        verdict: With its seconds.
        moment: What is to come of it.
        scene: Its drivers have ended, or the time was over.
        undisturbed: The same sweep without a strike.
    """
    lines = scene.witness.lines()
    folder = _Folder.of(scene)
    verdict.strikes = [what for _, what in scene.strikes]
    verdict.lost_seconds = verdict.seconds - undisturbed.seconds
    problems = verdict.problems
    problems += scene.objections
    lost = [*_lost(folder, lines)]
    verdict.lost = len(lost)
    problems += [f"lost: {each}" for each in lost]
    twice = _ran_again_after_its_record(lines)
    verdict.twice = len(twice)
    problems += [f"trial {trial_id(number)} was finished, and was trained again" for number in twice]
    verdict.again = _epochs_again(lines)
    if not moment.restarts:
        problems += _went_back_too_far(lines)
    changed = [
        number
        for number, record in folder.records.items()
        if record.values is not None and record.values != undisturbed.results.get(_key(record))
    ]
    verdict.changed = len(changed)
    problems += [f"trial {trial_id(number)} has other numbers than undisturbed" for number in changed]
    problems += _wrong_rows(folder)
    verdict.completed = _is_complete(folder)
    said = "".join(driver.said for driver in scene.drivers)
    if not verdict.completed:
        verdict.reason = last_words(scene)
    problems += _ended_wrongly(verdict, moment, folder, scene, undisturbed)
    if moment.says and not re.search(moment.says, said):
        problems.append(f"the user does not read {moment.says!r}")
    if "Traceback" in said:
        problems.append("the user reads a traceback")
    if problems and verdict.status == Status.HELD:
        verdict.status = Status.BROKEN


def last_words(scene: Scene) -> str:
    """The last line that the last driver said to its user."""
    lines = scene.drivers[-1].log.read_text(errors="replace").splitlines() if scene.drivers else []
    return next((line for line in reversed(lines) if line.strip()), "nothing was said")


def _is_complete(folder: _Folder) -> bool:
    return len(folder.records) == folder.trials and all(r.outcome.is_final for r in folder.records.values())


def _lost(folder: _Folder, lines: Sequence[Line]) -> list[str]:
    """Trials that had finished, by the witness, and are not what they were."""
    found = []
    for line in lines:
        if line.point != "recorded":
            continue
        record = folder.records.get(line.trial)
        if record is None:
            found.append(f"trial {trial_id(line.trial)} is not in the study")
        elif (str(record.outcome), record.values) != (line.outcome, line.values):
            found.append(
                f"trial {trial_id(line.trial)} had ended as {line.outcome} with {line.values}, "
                f"and is {record.outcome} with {record.values}"
            )
    for number, record in folder.records.items():
        if record.outcome != Outcome.COMPLETE:
            continue
        home = folder.storage.sub("trials", trial_id(number))
        try:
            newest = Checkpoints(home.sub("checkpoints")).newest()
        except PharosError as error:
            found.append(f"trial {trial_id(number)} has no readable checkpoint: {error}")
            continue
        if newest is None or newest.step != record.fidelity:
            where = f"at {newest.step}" if newest else "missing"
            found.append(f"trial {trial_id(number)} is complete at {record.fidelity}, its checkpoint is {where}")
    return found


def _ran_again_after_its_record(lines: Sequence[Line]) -> list[int]:
    """Trials that were recorded as finished, and of which an attempt trained that began later."""
    finished: set[int] = set()
    late: dict[str, int] = {}
    found: set[int] = set()
    for line in lines:
        if line.point == "recorded":
            finished.add(line.trial)
        elif line.point == "begins" and line.trial in finished:
            late[line.attempt] = line.trial
        elif line.point == "epoch" and line.attempt in late:
            found.add(line.trial)
    return sorted(found)


def _epochs_again(lines: Sequence[Line]) -> int:
    begun = Counter((line.trial, line.epoch) for line in lines if line.point == "epoch" and line.rank == 0)
    return sum(count - 1 for count in begun.values())


def _went_back_too_far(lines: Sequence[Line]) -> list[str]:
    """Attempts that did not go on from the last checkpoint that was committed when they began."""
    committed: Counter[int] = Counter()
    began_with: dict[str, int] = {}
    found = []
    for line in lines:
        if line.point == "committed":
            committed[line.trial] = max(committed[line.trial], line.epoch)
        elif line.point == "begins":
            began_with[line.attempt] = committed[line.trial]
        elif line.point == "epoch" and line.attempt in began_with:
            last = began_with.pop(line.attempt)
            if line.epoch <= last:
                found.append(
                    f"trial {trial_id(line.trial)} went on with epoch {line.epoch}, with a checkpoint of {last} there"
                )
    return found


def _wrong_rows(folder: _Folder) -> list[str]:
    """Complete trials whose metrics.jsonl does not have each epoch once."""
    found = []
    for number, record in folder.records.items():
        if record.outcome != Outcome.COMPLETE:
            continue
        rows = [
            json.loads(line)["fidelity"]
            for line in folder.storage.read_lines(f"trials/{trial_id(number)}/metrics.jsonl")
        ]
        if rows != list(range(1, record.fidelity + 1)):
            found.append(f"trial {trial_id(number)} of {record.fidelity} epochs has the rows {rows}")
    return found


def _ended_wrongly(
    verdict: Verdict, moment: Moment, folder: _Folder, scene: Scene, undisturbed: Undisturbed
) -> list[str]:
    """What is wrong with how the sweep ended."""
    outcomes = Counter(str(record.outcome) for record in folder.records.values())
    status = scene.drivers[-1].process.returncode
    if verdict.status == Status.HUNG:
        return ["the sweep did not end in time"]
    if not moment.completes:
        return [] if status else ["the sweep did not complete, and its exit status is 0"]
    if not verdict.completed:
        return [f"the sweep did not complete: {dict(outcomes)} of {folder.trials}"]
    found = []
    if status:
        found.append(f"the sweep is complete, and its exit status is {status}")
    wanted = dict(undisturbed.outcomes if moment.outcomes is None else moment.outcomes)
    if outcomes != wanted:
        found.append(f"its trials ended as {dict(outcomes)}, not as {wanted}")
    if folder.summary is None or folder.summary["trials"] != dict(outcomes):
        found.append(f"summary.json says {folder.summary and folder.summary['trials']}, the study {dict(outcomes)}")
    return found


def _key(record: TrialRecord) -> str:
    """What a trial is found by again in another sweep of the same space."""
    return json.dumps(record.params, sort_keys=True)
