"""A sweep as its driver sees it: hands out trials, hears their reports, decides, records, and sums up.

Every backend drives the same four calls, so that a sweep means the same under all of them:

    spec = sweep.next_trial()            None: nothing to start now
    goes_on = sweep.on_report(n, ...)    False: the trial is pruned
    sweep.on_end(n, ending)
    sweep.on_lost(n, reason)             its process died: it goes on later, from its checkpoint
"""

from __future__ import annotations

import datetime
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
import yaml

from pharos.config import Plan, SamplerConfig, make_plan, reopen_plan
from pharos.errors import InputError
from pharos.scheduler import Asha, NeverStop
from pharos.storage import Storage
from pharos.study import Study, TrialRecord, Usage
from pharos.summary import summarise, versions
from pharos.trial import Ending, Outcome, Report, TrialSpec, trial_id

_FILE = "sweep.yaml"


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
        journal = Path(storage.path("study.journal"))
        self.study = Study(
            journal,
            self.settings.objective.mode,
            lambda known: _sampler(self.settings.sampler, self.settings.seed, known),
        )
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
        if self.interrupted or (len(records) >= self.settings.trials and not waiting):
            return None
        record = self.study.ask(self.plan.space, self.plan.defaults)
        self._curves.setdefault(record.number, {})
        self._lost[record.number] = 0.0
        folder = self.storage.path("trials", trial_id(record.number))
        spec = self.plan.trial_spec(self.name, record.number, record.params, folder, self.storage.root)
        self.storage.write_bytes(
            f"trials/{spec.id}/trial.yaml",
            yaml.safe_dump({"params": spec.params, "seed": spec.seed, "config": spec.config}).encode(),
        )
        self._listener.started(record)
        return spec

    @property
    def finished(self) -> bool:
        """Whether no trial is running and none will be started."""
        outcomes = [record.outcome for record in self.study.records.values()]
        if Outcome.RUNNING in outcomes:
            return False
        return self.interrupted or (len(outcomes) >= self.settings.trials and all(o.is_final for o in outcomes))

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
        self.study.close()
        if self._is_new and not self.study.records:
            self.storage.remove()

    def close(self) -> dict[str, Any]:
        """Writes `summary.json`, lets the study go, and returns the summary."""
        self.study.set_usage(self.usage)
        self._listener.stop()
        summary = self.summary()
        self.storage.write_json("summary.json", summary)
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
    storage = Storage(plan.settings.storage.url)
    storage.check_writable()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and Path(storage.root).is_relative_to(Path.cwd()):
        listener.note(
            f"storage.url={plan.settings.storage.url} lies in this job's own folder, which goes with the cluster; "
            "give a folder that all nodes share to keep the sweep"
        )
    name = f"{family}-{datetime.date.today().isoformat()}-{secrets.token_hex(2)}"
    folder = storage.sub(name)
    _write_plan(folder, plan)
    return Sweep(name, plan, folder, listener, is_new=True)


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
    sweep = Sweep(folder.root.rstrip("/").rsplit("/", 1)[-1], plan, folder, listener)
    if plan.to_dict() != {key: document[key] for key in plan.to_dict()}:
        _write_plan(folder, plan)
    return sweep


def find_folder(name: str, file: str, overrides: Sequence[str] = ()) -> Storage:
    """The folder of a sweep or run, by its name below `storage.url` or by its path.

    Args:
        name: What was typed.
        file: What such a folder holds.
        overrides: May have a `storage.url=…`.

    Raises:
        InputError: There is none.
    """
    url = next((text.partition("=")[2] for text in overrides if text.startswith("storage.url=")), "sweeps")
    for folder in (Storage(name), Storage(url).sub(name)):
        if folder.exists(file):
            return folder
    known = [entry for entry in Storage(url).list() if Storage(url).exists(f"{entry}/{file}")]
    raise InputError(
        f"{name}: nothing of that name in {url}; "
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
