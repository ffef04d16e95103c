"""A sweep as its driver sees it: hands out trials, hears their reports, decides, records, and sums up.

Every backend drives the same four calls, so that a sweep means the same under all of them:

    spec = sweep.next_trial()            None: nothing to start now
    goes_on = sweep.on_report(n, ...)    False: the trial is pruned
    sweep.on_end(n, ending)
    sweep.on_lost(n, reason)             its process died: it goes on later, from its checkpoint
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
import yaml

from pharos.background import Outbox
from pharos.config import Plan, SamplerConfig, make_plan, reopen_plan, storage_of
from pharos.errors import InputError, PharosError, StorageError
from pharos.mirror import StudyMirror
from pharos.retention import Keep
from pharos.scheduler import Asha, NeverStop
from pharos.spool import node_folder
from pharos.storage import Storage
from pharos.study import JOURNAL, Study, TrialRecord, Usage
from pharos.summary import summarise, versions
from pharos.survey import clear, survey
from pharos.trial import Ending, Outcome, Report, TrialSpec, trial_id

_FILE = "sweep.yaml"
# A store that has not answered for so long is worth a word.
_CUT_OFF_SECONDS = 15.0
# Commands look for what was named for so long, no longer: a wrong endpoint is a likely reason.
_LOOK_SECONDS = 15.0


class Listener(Protocol):
    """Hears of a sweep's events, in the order in which they happen."""

    def start(self, sweep: Sweep, slots: int) -> None:
        """Trials are about to be started, so many at a time."""

    def started(self, record: TrialRecord) -> None:
        """A trial was handed out, for the first time or again."""

    def reported(self, record: TrialRecord, report: Report) -> None:
        """A trial reported metrics; if it is to be pruned for them, that follows."""

    def ended(self, record: TrialRecord) -> None:
        """A trial ended or was interrupted."""

    def note(self, text: str) -> None:
        """Something else that a person should know."""

    def stop(self) -> None:
        """Nothing more will happen."""


class Sweep:
    """One sweep, with its study open.

    Args:
        name: Its name and its folder's.
        plan: What it searches.
        storage: Its folder.
        listener: Hears of every event.
        is_new: Whether its folder was made just now.
    """

    def __init__(self, name: str, plan: Plan, storage: Storage, listener: Listener, is_new: bool = False):
        self.name = name
        self.plan = plan
        self.storage = storage
        self.settings = plan.settings
        self.objective = plan.settings.objective.metric
        self._fidelities: dict[int, int] = {}
        self._lost: dict[int, float] = {}  # by trial, what its present attempt says the one before lost
        self.interrupted = False
        self._is_new = is_new
        self._listener = listener
        self.slots = 1
        self._opened_at = time.monotonic()
        config = self.settings.storage
        self._folder = node_folder(storage, config.cache)
        self._outbox: Outbox | None = None
        self._is_cut_off = False
        if not storage.is_local:
            journal = None if self.settings.study.storage else Path(self._folder.path(JOURNAL))
            self._mirror = StudyMirror(storage, journal, config.mirror_seconds, listener.note)
        self.study = Study(
            Path(self._folder.root),
            self.settings.objective.mode,
            lambda known: _sampler(self.settings.sampler, self.settings.seed, known),
            name,
            self.settings.study.storage,
        )
        if not storage.is_local:
            self._outbox = Outbox("sweep", storage.root)
            self._outbox.every(config.mirror_seconds, "study", self._mirror.push)
        self._before = self.study.usage
        self.study.enqueue(plan.first_trials)
        self._sign = 1 if self.settings.objective.mode == "min" else -1
        self._curves = {
            number: {fidelity: self._sign * value for fidelity, value in record.curve.items()}
            for number, record in self.study.records.items()
        }
        scheduler = self.settings.scheduler
        self._scheduler = (
            Asha(plan.recipe.fidelity(plan.build_config()), scheduler.grace, scheduler.reduction)
            if scheduler.name == "asha"
            else NeverStop()
        )

    # What a backend calls

    def open(self, slots: int) -> None:
        """Starts the clock.

        Args:
            slots: How many trials can run at once.
        """
        self.slots = slots
        self._opened_at = time.monotonic()
        self._listener.start(self, slots)

    def next_trial(self) -> TrialSpec | None:
        """The next trial to start; None when there is none now (`finished` says whether there may be later)."""
        records = self.study.records.values()
        waiting = any(record.outcome == Outcome.INTERRUPTED for record in records)
        if self.interrupted or (len(records) >= self.settings.trials and not waiting) or self._is_troubled():
            return None
        record = self.study.ask(self.plan.space, self.plan.defaults)
        self._curves.setdefault(record.number, {})
        self._lost[record.number] = 0.0
        folder = self.storage.path("trials", trial_id(record.number))
        spec = self.plan.trial_spec(self.name, record.number, record.params, folder, self.storage.root)
        document = {"params": spec.params, "seed": spec.seed, "config": spec.config}
        self._write(f"trials/{spec.id}/trial.yaml", yaml.safe_dump(document).encode())
        self._listener.started(record)
        return spec

    @property
    def finished(self) -> bool:
        """Whether no trial is running and none will be started."""
        outcomes = [record.outcome for record in self.study.records.values()]
        if Outcome.RUNNING in outcomes:
            return False
        is_done = len(outcomes) >= self.settings.trials and all(outcome.is_final for outcome in outcomes)
        return is_done or self.interrupted or self._is_lost()

    def on_report(self, number: int, report: Report) -> bool:
        """Records a trial's report; False if the trial is to stop here, as pruned."""
        record = self.study.records[number]
        record.metrics, record.seconds = report.metrics, report.seconds
        self._count_lost(record, report.lost_seconds)
        value = report.metrics.get(self.objective)
        goes_on = True
        if value is not None:
            curve = self._curves[number]
            # An epoch that runs again after a loss was decided about when it ran first.
            is_new = report.fidelity not in curve
            self.study.report(number, report.fidelity, value)
            curve.setdefault(report.fidelity, self._sign * value)
            # The paper's values run whole: what the search gained is measured against them on the same budget.
            is_whole = report.fidelity >= self.max_fidelity(record) or self.plan.is_paper_trial(record.params)
            if is_new and not is_whole:
                goes_on = self._scheduler.goes_on(self._curves, number, report.fidelity)
        self._watch_store()
        self._listener.reported(record, report)
        if not goes_on:
            self.on_end(
                number,
                Ending(
                    Outcome.PRUNED,
                    fidelity=report.fidelity,
                    metrics=report.metrics,
                    seconds=report.seconds,
                    lost_seconds=report.lost_seconds,
                    process=report.process,
                    started_at=report.started_at,
                    ended_at=time.time(),
                ),
            )
        return goes_on

    def on_end(self, number: int, ending: Ending) -> None:
        """Records how a trial ended; what a trial says after it was pruned no longer counts."""
        record = self.study.records[number]
        if record.outcome != Outcome.RUNNING:
            return
        self._count_lost(record, ending.lost_seconds)
        if ending.outcome == Outcome.INTERRUPTED:
            self.study.interrupt(number)
        else:
            self.study.tell(number, ending, self.objective)
        self.study.set_usage(self.usage)
        if self._outbox is not None:
            self._outbox.put("study", self._mirror.push)
        if self.settings.storage.keep_trials is not None:
            self._clear(unfinished=False)
        self._listener.ended(record)

    def on_lost(self, number: int, reason: str, outcome: Outcome = Outcome.FAILED) -> None:
        """Hears that a trial's process died: it goes on from its checkpoint, unless that happened too often."""
        record = self.study.records[number]
        if record.outcome != Outcome.RUNNING:
            return
        if self.study.lose(number) <= self.settings.retries:
            self._listener.note(f"trial {trial_id(number)} lost its process ({reason}); it goes on from its checkpoint")
            return
        record.outcome = Outcome.RUNNING
        self.on_end(
            number,
            Ending(
                outcome,
                reason=f"lost its process {record.attempts} times; last: {reason}",
                fidelity=record.fidelity,
                metrics=record.metrics,
                seconds=record.seconds,
                lost_seconds=self._lost.get(number, 0.0),
            ),
        )

    def max_fidelity(self, record: TrialRecord) -> int:
        """The fidelity of the whole trial, which its own values may decide."""
        if record.number not in self._fidelities:
            config = self.plan.build_config(record.params)
            self._fidelities[record.number] = self.plan.recipe.fidelity(config)
        return self._fidelities[record.number]

    def interrupt(self) -> None:
        """Starts no more trials; backends let those that run save and stop."""
        if not self.interrupted:
            self.interrupted = True
            self._listener.note("stopping: running trials save at the end of their epoch (once more to stop at once)")

    def discard(self) -> None:
        """Lets a sweep go that could not be run; a new one of which no trial was started leaves nothing behind."""
        self._listener.stop()
        if not self._is_new or self.study.records:
            self.close()
            return
        if self._outbox is not None:
            self._outbox.close()
        self.study.delete()
        self.storage.remove()
        shutil.rmtree(self._folder.root, ignore_errors=True)

    def close(self) -> dict[str, Any]:
        """Writes `summary.json`, lets the study go, and returns the summary.

        Raises:
            StorageError: Not all of the sweep could be brought to where it belongs.
        """
        self._listener.stop()
        try:
            self.study.set_usage(self.usage)
            if self._outbox is not None:
                self._outbox.check(self.settings.storage.patience)
            summary = self.summary()
            self._write("summary.json", (json.dumps(summary, indent=2) + "\n").encode())
            self._clear(unfinished=True)
            if self._outbox is not None:
                self._outbox.put("close", self._mirror.close)
                self._outbox.flush(self.settings.storage.patience)
                self._watch_store()
                self._outbox.close()
                # A study that was set aside, as another driver's took its place, stays.
                self._folder.remove_files([JOURNAL, ".lock"])
        except StorageError as error:
            raise StorageError(
                f"{error}; the study lies in {self._folder.root} too: "
                f"python platform/sweep.py --resume {self.storage.root} goes on from there",
                error.is_final,
            ) from None
        finally:
            if self._outbox is not None:
                self._outbox.close()
            self.study.close()
        return summary

    @property
    def usage(self) -> Usage:
        """Time used up to now, by this driver and those before it."""
        seconds = time.monotonic() - self._opened_at
        return Usage(
            round(self._before.seconds + seconds, 3), round(self._before.slot_seconds + seconds * self.slots, 3)
        )

    def summary(self) -> dict[str, Any]:
        """What a script reads; see `pharos.summary`."""
        return summarise(self.name, self.plan, self.storage, self.study.records, self.usage)

    def _write(self, path: str, data: bytes) -> None:
        """Writes a file of the sweep; one in a store when that answers."""
        if self._outbox is None:
            self.storage.write_bytes(path, data)
        else:
            store = self.storage.patient(0)
            self._outbox.put(path, lambda: store.write_bytes(path, data))

    def _clear(self, unfinished: bool) -> None:
        """Removes checkpoints that need not be kept, of trials that have ended."""
        config = self.settings.storage
        keep = Keep(config.keep_last, config.keep_best, config.keep_every, self.settings.objective.mode)
        ended = {n: dataclasses.replace(r) for n, r in self.study.records.items() if r.outcome.is_final}

        def act() -> None:
            home = self.storage.patient(0)
            clear(home, survey(home, ended, keep, config.keep_trials), unfinished)

        if self._outbox is None:
            act()
        else:
            self._outbox.put("clear", act)

    def _is_lost(self) -> bool:
        """Whether no trial can be started any more, as the store does not take what the sweep writes."""
        self._watch_store()
        try:
            if self._outbox is not None:
                self._outbox.check(self.settings.storage.patience)
        except StorageError:
            return True
        return False

    def _is_troubled(self) -> bool:
        """Whether a trial had better not be started now: it would only wait for the store."""
        self._watch_store()
        seconds, _ = self._outbox.trouble if self._outbox is not None else (0.0, "")
        return seconds > min(_CUT_OFF_SECONDS, self.settings.storage.patience / 4)

    def _watch_store(self) -> None:
        """Says it when the store stops to answer, and when it answers again."""
        if self._outbox is None:
            return
        if self._outbox.refusal and not self.interrupted:
            self._listener.note(self._outbox.refusal)
            self.interrupt()
        seconds, why = self._outbox.trouble
        if seconds > _CUT_OFF_SECONDS and not self._is_cut_off:
            self._is_cut_off = True
            self._listener.note(f"{self.storage.root} does not answer ({why}); trials go on, and what waits goes later")
        elif self._is_cut_off and not seconds:
            self._is_cut_off = False
            self._listener.note(f"{self.storage.root} answers again")

    def _count_lost(self, record: TrialRecord, seconds: float) -> None:
        """Counts once what every report and the ending of an attempt say of the attempt before."""
        record.lost_seconds += seconds - self._lost.get(record.number, 0.0)
        self._lost[record.number] = seconds


def start(family: str, overrides: Sequence[str], listener: Listener) -> Sweep:
    """A new sweep, its folder written.

    Raises:
        InputError: Something in the request is wrong; nothing was written.
    """
    plan = make_plan(family, overrides)
    storage = plan.settings.storage.open()
    storage.check_writable()
    if (
        "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        and storage.is_local
        and Path(storage.root).is_relative_to(Path.cwd())
    ):
        listener.note(
            f"storage.url={plan.settings.storage.url} lies in this job's own folder, which goes with the cluster; "
            "give a folder that all nodes share to keep the sweep"
        )
    name = f"{family}-{datetime.date.today().isoformat()}-{secrets.token_hex(2)}"
    folder = storage.sub(name)
    _write_plan(folder, plan)
    try:
        return Sweep(name, plan, folder, listener, is_new=True)
    except PharosError:
        folder.remove()
        shutil.rmtree(node_folder(folder, plan.settings.storage.cache).root, ignore_errors=True)
        raise


def reopen(name: str, overrides: Sequence[str], listener: Listener, extend: bool = False) -> Sweep:
    """A sweep that exists, to be finished or extended.

    Args:
        name: Its name below `storage.url`, or the path of its folder.
        overrides: `storage.url=…` to find it, and changes to how it runs.
        extend: Whether more trials are asked for than before.

    Raises:
        InputError: There is no such sweep, another process runs it, or an override does not fit.
    """
    folder = find_folder(name, _FILE, overrides)
    document = _read_plan(folder)
    before = document["settings"]["trials"]
    plan = reopen_plan(document, without_url(overrides))
    if extend and plan.settings.trials <= before:
        raise InputError(
            f"--extend needs more trials than the {before} the sweep has: trials=+50 or trials={before + 50}"
        )
    if not extend and plan.settings.trials != before:
        raise InputError(f"--resume keeps the {before} trials asked for; to add some: --extend {name} trials=+50")
    sweep = Sweep(folder.name, plan, folder.patient(plan.settings.storage.patience), listener)
    if plan.to_dict() != {key: document[key] for key in plan.to_dict()}:
        _write_plan(folder, plan)
    return sweep


def find_folder(name: str, file: str, overrides: Sequence[str] = ()) -> Storage:
    """The folder of a sweep or run, by its name below `storage.url` or by its path.

    Args:
        name: What was typed.
        file: What such a folder holds.
        overrides: May have a `storage.url=…` and what reaching it needs.

    Raises:
        InputError: There is none.
    """
    config = storage_of(overrides)
    home = config.open().patient(_LOOK_SECONDS)
    places = [config.open(name).patient(_LOOK_SECONDS)] if "://" in name else [Storage(name), home.sub(name)]
    for folder in places:
        if folder.exists(file):
            return folder
    if "://" in name:
        raise InputError(f"{name}: there is no {file}")
    known = [entry for entry in home.list() if home.exists(f"{entry}/{file}")]
    raise InputError(
        f"{name}: nothing of that name in {config.url}; "
        + (f"there are {', '.join(known[-5:])}" if known else "there is none; storage.url=… says where to look")
    )


def read_plan(name: str, overrides: Sequence[str] = (), allowed: tuple[str, ...] = ()) -> tuple[Storage, Plan]:
    """The folder and plan of a sweep, for commands that only read it; see `reopen_plan`."""
    folder = find_folder(name, _FILE, overrides)
    return folder, reopen_plan(_read_plan(folder), without_url(overrides), allowed)


def without_url(overrides: Sequence[str]) -> list[str]:
    """The overrides but `storage.url=…`, which says where to look and changes nothing."""
    return [text for text in overrides if not text.startswith("storage.url=")]


def _write_plan(folder: Storage, plan: Plan) -> None:
    document = {**plan.to_dict(), "versions": versions()}
    folder.write_bytes(_FILE, yaml.safe_dump(document, sort_keys=False).encode())


def _read_plan(folder: Storage) -> dict[str, Any]:
    try:
        document = yaml.safe_load(folder.read_bytes(_FILE))
    except yaml.YAMLError as error:
        raise InputError(f"{folder.path('sweep.yaml')}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not {"settings", "recipe", "space", "first_trials"} <= set(document):
        raise InputError(f"{folder.path('sweep.yaml')}: not a sweep's; it needs settings, recipe, space, first_trials")
    return document


def _sampler(config: SamplerConfig, seed: int, known: int) -> optuna.samplers.BaseSampler:
    # A driver that takes up a study draws other numbers than the one before it, whose trials it would repeat.
    seed = (seed * 1_000_003 + known) % 2**32
    if config.name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=config.startup, multivariate=True, group=True, constant_liar=True, seed=seed
    )
