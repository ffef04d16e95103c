"""A sweep as its driver sees it: hands out trials, hears their reports, decides, records, and sums up.

Every backend drives the same four calls, so that a sweep means the same under all of them:

    spec = sweep.next_trial()            None: nothing to start now
    action = sweep.on_report(n, ...)     STOP: the trial has ended, as pruned; PAUSE: it is to save and stop
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
from typing import Any

import yaml

from pharos.background import Outbox
from pharos.config import LIMITS, make_plan, reopen_plan
from pharos.errors import InputError, PharosError, StorageError
from pharos.evidence import Memory, in_words
from pharos.folders import SWEEP_FILE, find_folder, read_document, without_url, write_plan
from pharos.journal import JOURNAL
from pharos.listener import Listener, Listeners
from pharos.mirror import StudyMirror
from pharos.notify import open_notifiers
from pharos.plan import Plan
from pharos.records import TrialRecord, Usage
from pharos.retention import Keep
from pharos.schedulers.base import Action
from pharos.schedulers.choice import make_scheduler
from pharos.search.limits import Breaker, Limits
from pharos.search.samplers import make_sampler
from pharos.search.search import Search
from pharos.spool import node_folder
from pharos.storage import Storage
from pharos.study import Study
from pharos.summary import summarise
from pharos.survey import clear, survey
from pharos.trial import Ending, Outcome, Report, TrialSpec, trial_id

# The one in C, where PyYAML was built with it, takes a third of the time.
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# A store that has not answered for so long is worth a word.
_CUT_OFF_SECONDS = 15.0


class Sweep:
    """One sweep, with its study open.

    Args:
        name: Its name and its folder's.
        plan: What it searches.
        storage: Its folder.
        listener: Hears of every event.
        is_new: Whether its folder was made just now.
        is_changed: Whether its plan is not what its folder says; it is written there once nobody else is at work.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        storage: Storage,
        listener: Listener,
        *,
        is_new: bool = False,
        is_changed: bool = False,
    ):
        self.name = name
        self.plan = plan
        self.storage = storage
        self.settings = settings = plan.settings
        self.objectives = settings.objectives
        self.stopped_by_hand = False
        self.slots = 1
        self._lost: dict[int, float] = {}  # by trial, what its present attempt says the one before lost
        self._is_new = is_new
        self.listener = listener
        self._opened_at = self._counted_at = time.monotonic()
        self._slot_seconds = 0.0
        config = settings.storage
        self._folder = node_folder(storage, config.cache)
        self._outbox: Outbox | None = None
        self._is_cut_off = False
        if not storage.is_local:
            journal = None if settings.study.storage else Path(self._folder.path(JOURNAL))
            self._mirror = StudyMirror(storage, journal, config.mirror_seconds, listener.note)
        self._max_fidelity = plan.recipe.fidelity(plan.build_config())
        if storage.is_local and not settings.study.storage and not is_new:
            _check_journal(storage)
        self.study = Study(
            Path(self._folder.root),
            self.objectives,
            lambda known: make_sampler(
                settings.sampler,
                plan.space,
                plan.defaults,
                self._max_fidelity,
                objectives=self.objectives,
                seed=settings.seed,
                known=known,
            ),
            name,
            settings.study.storage,
            generation=plan.generation,
            constraints=settings.bounds,
        )
        try:
            if not is_new:
                self._check_folders()
            # Before anything is learned for a space that changed: it is this space's evidence.
            if is_changed:
                write_plan(storage, plan)
            self._learn()
        except PharosError:
            self.study.close()
            raise
        if not storage.is_local:
            self._outbox = Outbox("sweep", storage.root)
            self._outbox.every(config.mirror_seconds, "study", self._mirror.push)
        self._before = self.study.usage
        if not plan.generation:
            self.study.enqueue(plan.first_trials)
        self._limits = Limits(settings.hours, settings.gpu_hours, settings.stop_at, settings.plateau)
        self.search = Search(
            self.study,
            plan.space,
            plan.defaults,
            make_scheduler(settings.scheduler, self._max_fidelity, plan.space, plan.defaults, settings.seed),
            trials=settings.trials,
            max_fidelity=lambda params: plan.recipe.fidelity(plan.build_config(params)),
            runs_whole=plan.is_paper_trial,
            retries=settings.retries,
            breaker=Breaker(settings.breaker),
        )

    def _check_folders(self) -> None:
        """Sees to it that no new trial takes up the files of one that the study has lost.

        A study on a disk knows of every trial that has a folder, unless it was damaged. One that was mirrored to a
        store may lack the last that started before its machine was lost: their numbers are left out.

        Raises:
            InputError: The study was damaged.
        """
        unknown = sorted(_folders(self.storage) - set(self.study.records))
        names = ", ".join(map(trial_id, unknown))
        if unknown and self.storage.is_local:
            raise InputError(
                f"{self.storage.path(JOURNAL)}: damaged: it does not know the trials {names}, which have folders; "
                "put a copy of it back from before it was changed, or move their folders away"
            )
        if unknown:
            self.study.leave_out(unknown)
            self.listener.note(
                f"the study was lost before it knew the trials {names}; their files are left as they are"
            )

    def _learn(self) -> None:
        """Gives the sampler what is known from elsewhere, once for each space."""
        wanted = self.settings.warm_start
        if self.study.evidence is not None or not (wanted or self.plan.generation):
            return
        memory = Memory(self.plan)
        if self.study.records:
            memory.add(self.name, self.plan, self.study.records)
        if wanted == "auto":
            memory.add_alike(self.storage.parent(), self.name)
        else:
            memory.add_named(wanted)
        self.study.learn(memory.evidence, self.plan.space, memory.note)
        for line in in_words(memory.note) or ["evidence: there is none"]:
            self.listener.note(line)

    # What a backend calls

    def open(self, slots: int) -> None:
        """Starts the clock.

        Args:
            slots: How many trials can run at once.
        """
        self.slots = slots
        self._opened_at = self._counted_at = time.monotonic()
        self._slot_seconds = 0.0
        self.listener.start(self, slots)

    def resize(self, slots: int) -> None:
        """Hears that nodes came or went: so many trials can run at once now."""
        if slots == self.slots:
            return
        self._slot_seconds += (time.monotonic() - self._counted_at) * self.slots
        self._counted_at = time.monotonic()
        self.listener.note(
            f"the cluster has room for {slots} trials at a time now, {self.slots} before"
            if slots
            else "no node has room for a trial: waiting for one"
        )
        self.slots = slots

    def next_trial(self) -> TrialSpec | None:
        """The next trial to start; None when there is none now (`finished` says whether there may be later)."""
        self._watch_limits()
        if self.interrupted or self._is_troubled():
            return None
        record = self.search.next()
        if record is None:
            return None
        self._lost[record.number] = 0.0
        spec = self.plan.trial_spec(
            self.name,
            record.number,
            record.params,
            folder=self._folder_of(record.number),
            tracking_folder=self.storage.root,
            origin=self._folder_of(record.origin.donor) if record.origin else None,
            max_fidelity=self.search.max_fidelity(record),
        )
        document = {"params": spec.params, "seed": spec.seed, "config": spec.config}
        if record.origin:
            document["origin"] = dataclasses.asdict(record.origin)
        self._write(f"trials/{spec.id}/trial.yaml", yaml.dump(document, Dumper=_Dumper).encode())
        self.listener.started(record)
        return spec

    @property
    def finished(self) -> bool:
        """Whether no trial is running and none will be started."""
        if self.running:
            return False
        return self.search.finished or self.interrupted or self._is_lost()

    @property
    def running(self) -> int:
        """How many trials are."""
        return self.study.counts[Outcome.RUNNING]

    @property
    def interrupted(self) -> bool:
        """Whether running trials are to save and stop, and no more are to be started."""
        return self.stopped_by_hand or bool(self.search.over)

    def on_report(self, number: int, report: Report) -> Action:
        """Records a trial's report and says what becomes of it."""
        record = self.study.records[number]
        if record.outcome != Outcome.RUNNING:
            return Action.STOP  # the word that it has ended is still on its way
        self._count_lost(record, report.lost_seconds)
        decision = self.search.on_report(number, report)
        self._watch_store()
        self._watch_limits()
        self.listener.reported(record, report)
        if decision.action == Action.STOP:
            self._after_end(number)
        return decision.action

    def on_end(self, number: int, ending: Ending) -> None:
        """Records how a trial ended; what a trial says after it was pruned no longer counts."""
        record = self.study.records[number]
        if record.outcome != Outcome.RUNNING:
            return
        self._count_lost(record, ending.lost_seconds)
        self.search.on_end(number, ending)
        self._after_end(number)

    def _after_end(self, number: int) -> None:
        self.study.set_usage(self.usage)
        if self._outbox is not None:
            self._outbox.put("study", self._mirror.push)
        if self.settings.storage.keep_trials is not None:
            self._clear(unfinished=False)
        self.listener.ended(self.study.records[number])

    def on_lost(self, number: int, reason: str, outcome: Outcome = Outcome.FAILED, *, by_node: bool = False) -> None:
        """Hears that a trial's process died: it goes on from its checkpoint, unless that happened too often.

        Args:
            number: The trial's.
            reason: Why, in one line.
            outcome: What it ends as if it was too often.
            by_node: Whether its node went, which is not the trial's fault.
        """
        if self.study.records[number].outcome != Outcome.RUNNING:
            return
        if self.search.on_lost(number, reason, outcome, by_node=by_node):
            what = "node" if by_node else "process"
            self.listener.note(f"trial {trial_id(number)} lost its {what} ({reason}); it goes on from its checkpoint")
        else:
            self._after_end(number)

    def max_fidelity(self, record: TrialRecord) -> int:
        """The fidelity of the whole trial, which its own values may decide."""
        return self.search.max_fidelity(record)

    def interrupt(self) -> None:
        """Starts no more trials; backends let those that run save and stop."""
        if not self.stopped_by_hand:
            self.stopped_by_hand = True
            self.listener.note("stopping: running trials save at the end of their epoch (once more to stop at once)")

    def discard(self) -> None:
        """Lets a sweep go that could not be run; a new one of which no trial was started leaves nothing behind."""
        self.listener.stop()
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
        self.listener.stop()
        try:
            self.study.set_usage(self.usage)
            self.study.set_note("over", self.search.over)
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
            self.listener.closed()
        return summary

    @property
    def usage(self) -> Usage:
        """Time used up to now, by this driver and those before it."""
        now = time.monotonic()
        held = self._slot_seconds + (now - self._counted_at) * self.slots
        seconds = now - self._opened_at
        return Usage(round(self._before.seconds + seconds, 3), round(self._before.slot_seconds + held, 3))

    def summary(self) -> dict[str, Any]:
        """What a script reads; see `pharos.summary`."""
        return summarise(
            self.name, self.plan, self.storage, self.study.records, usage=self.usage, notes=self.study.notes
        )

    def _folder_of(self, number: int) -> str:
        return self.storage.path("trials", trial_id(number))

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
        keep = Keep(config.keep_last, config.keep_best, config.keep_every, self.objectives.first.mode)
        ended = {n: dataclasses.replace(r) for n, r in self.study.records.items() if r.outcome.is_final}

        def act() -> None:
            home = self.storage.patient(0)
            clear(home, survey(home, ended, keep, self.objectives, config.keep_trials), unfinished)

        if self._outbox is None:
            act()
        else:
            self._outbox.put("clear", act)

    def _watch_limits(self) -> None:
        """Ends the search when it has had enough."""
        if self.search.over:
            return
        best = self.search.best
        usage = self.usage
        reason = self._limits.reached(
            self.objectives,
            best.values[0] if best is not None and best.values else None,
            self.search.without_gain,
            usage.seconds,
            usage.slot_seconds * self.settings.devices,
        )
        if reason:
            self.search.over = reason
            self.listener.note(f"enough: {reason}; running trials save and stop")

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
            self.listener.note(self._outbox.refusal)
            self.interrupt()
        seconds, why = self._outbox.trouble
        if seconds > _CUT_OFF_SECONDS and not self._is_cut_off:
            self._is_cut_off = True
            self.listener.note(f"{self.storage.root} does not answer ({why}); trials go on, and what waits goes later")
        elif self._is_cut_off and not seconds:
            self._is_cut_off = False
            self.listener.note(f"{self.storage.root} answers again")

    def _count_lost(self, record: TrialRecord, seconds: float) -> None:
        """Counts once what every report and the ending of an attempt say of the attempt before."""
        record.lost_seconds += seconds - self._lost.get(record.number, 0.0)
        self._lost[record.number] = seconds


def _folders(home: Storage) -> set[int]:
    """The trials that have a folder."""
    return {int(name) for name in home.list("trials") if name.isdigit()}


def _check_journal(home: Storage) -> None:
    """Complains of a journal that is gone or empty, before a new one is begun in its place.

    Raises:
        InputError: It is, and there are trials.
    """
    if _folders(home) and not (home.exists(JOURNAL) and home.read_bytes(JOURNAL)):
        raise InputError(
            f"{home.path(JOURNAL)}: gone or empty, and there are trials; put a copy of it back, or start a new sweep"
        )


def _with_notifiers(listener: Listener, name: str, plan: Plan) -> Listener:
    """The listener, and what tells people who are not watching, if somebody is to be told."""
    notifiers = open_notifiers(name, plan.settings, listener.note)
    return Listeners([listener, *notifiers]) if notifiers else listener


def start(family: str, overrides: Sequence[str], listener: Listener) -> Sweep:
    """A new sweep, its folder written.

    Raises:
        InputError: Something in the request is wrong; nothing was written.
    """
    plan = make_plan(family, overrides)
    return create(plan, plan.settings.storage.open(), f"{family}-{datetime.date.today().isoformat()}", listener)


def create(plan: Plan, storage: Storage, name: str, listener: Listener) -> Sweep:
    """A new sweep of a plan, its folder written.

    Args:
        plan: What it searches.
        storage: What its folder is to lie in.
        name: What its name begins with.
        listener: Hears of every event.

    Raises:
        InputError: The folder cannot be written to, the study's database not be used, or nobody be notified; nothing
            was written.
    """
    name = f"{name}-{secrets.token_hex(2)}"
    listener = _with_notifiers(listener, name, plan)
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
    folder = storage.sub(name)
    write_plan(folder, plan)
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
    folder = find_folder(name, SWEEP_FILE, overrides)
    document = read_document(folder)
    before = document["settings"]["trials"]
    plan = reopen_plan(document, without_url(overrides), extend=extend)
    if extend and plan.finalists:
        count = len(plan.finalists["trials"])
        more = f"--from {plan.finalists['sweep']} --top {count} --seeds {2 * before // count}"
        raise InputError(
            f"--extend: {name} is of finalists, which are a fixed set; more seeds: python platform/train.py {more}"
        )
    limits = [text for text in overrides if text.split("=")[0] in LIMITS]
    if extend and plan.settings.trials <= before and not limits:
        raise InputError(
            f"--extend needs more trials than the {before} the sweep has: trials=+50 or trials={before + 50}"
        )
    if not extend and plan.settings.trials != before:
        raise InputError(f"--resume keeps the {before} trials asked for; to add some: --extend {name} trials=+50")
    listener = _with_notifiers(listener, folder.name, plan)
    is_changed = plan.to_dict() != {key: document.get(key) for key in plan.to_dict()}
    return Sweep(folder.name, plan, folder.patient(plan.settings.storage.patience), listener, is_changed=is_changed)
