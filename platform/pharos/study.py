"""The study: the one record of every trial of a sweep, and the only truth about their outcomes.

Optuna's study, in a journal file that only the sweep's driver writes, or in a database. What Optuna has no word for is
kept in user attributes beside its states:

    outcome        Optuna's state   what a sampler learns
    complete       COMPLETE         the value
    pruned         PRUNED           the value at the fidelity it was stopped at, never as if it were final
    diverged       PRUNED           an infeasible region (a violated constraint)
    out_of_memory  PRUNED           the same
    failed         FAIL             nothing: a fault of the code or the machine says nothing of the values
    cancelled      FAIL             nothing
    interrupted    WAITING          handed out again, before anything new
    running        RUNNING          RUNNING when a driver starts can only be left over: it becomes interrupted
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pharos.errors import InputError, PharosError
from pharos.mirror import fetch_journal
from pharos.retry import redact
from pharos.space import Params, Space
from pharos.storage import Storage
from pharos.trial import Ending, Outcome

P = ParamSpec("P")
T = TypeVar("T")

_STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.DIVERGED: TrialState.PRUNED,
    Outcome.OUT_OF_MEMORY: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
    Outcome.CANCELLED: TrialState.FAIL,
}
JOURNAL = "study.journal"
_IN_JOURNAL = "sweep"
_PASSWORD = "PHAROS_STUDY_PASSWORD"
_INFEASIBLE = (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)


def _in_one_line(method: Callable[P, T]) -> Callable[P, T]:
    """Says in one line that the study's database is gone; a journal cannot be."""

    @functools.wraps(method)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return method(*arguments, **options)
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            why = redact(" ".join(str(error.__cause__ or error).split()))
            raise PharosError(f"the study's database does not answer: {why}; --resume goes on when it does") from None

    return wrapped


@dataclass
class TrialRecord:
    """A trial as the study knows it."""

    number: int
    params: Params
    outcome: Outcome
    curve: dict[int, float] = field(default_factory=dict)
    """The objective by fidelity, as reported."""
    value: float | None = None
    """The objective of a complete trial."""
    fidelity: int = 0
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last metrics reported."""
    attempts: int = 0
    """Times it was started and lost its process."""
    seconds: float = 0.0
    lost_seconds: float = 0.0

    @property
    def last_value(self) -> float | None:
        """The result of a complete trial, else the last value reported."""
        return self.value if self.value is not None else self.curve.get(max(self.curve, default=0))


@dataclass(frozen=True)
class Usage:
    """Time that a sweep has had, over all its drivers."""

    seconds: float = 0.0
    """Of wall-clock."""
    slot_seconds: float = 0.0
    """Times the trials that could run at once."""


class Study:
    """A sweep's study, opened by its driver alone.

    Args:
        folder: A folder of this machine: with the journal, if the study is in one, which is made if it does not exist.
        mode: `min` or `max`.
        make_sampler: Makes the source of new trials, from the number of trials that are known already.
        name: The sweep's.
        rdb: The URL of the database that the study is in; None: it is in a journal.

    Raises:
        InputError: Another driver has the study open, or the database cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        mode: str,
        make_sampler: Callable[[int], optuna.samplers.BaseSampler],
        name: str = "sweep",
        rdb: str | None = None,
    ):
        self._folder = Storage(str(folder))
        self._lock = self._folder.lock()
        self._name = name if rdb else _IN_JOURNAL
        journal = folder / JOURNAL
        if not rdb:
            _mend(journal)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(
                study_name=self._name,
                storage=_open_rdb(rdb) if rdb else _open_journal(journal),
                direction="minimize" if mode == "min" else "maximize",
                load_if_exists=True,
            )
        except InputError:
            self.close()
            raise
        except (ValueError, KeyError) as error:
            self.close()
            raise InputError(
                f"{journal}: damaged ({error}); put a copy of it back from before it was changed"
            ) from None
        self._storage = self._study._storage
        self._mode = mode
        self.records: dict[int, TrialRecord] = {}
        for trial in self._study.get_trials(deepcopy=False):
            # An enqueued trial that was never handed out has no number's worth of history yet.
            if trial.state != TrialState.WAITING or "outcome" in trial.user_attrs:
                self.records[trial.number] = _record(trial)
            if trial.state == TrialState.RUNNING:
                self.interrupt(trial.number)
        with _quiet():
            self._study.sampler = make_sampler(len(self.records))

    def close(self) -> None:
        """Lets another driver open the study."""
        self._folder.unlock(self._lock)

    def delete(self) -> None:
        """Lets the study go, from a database too."""
        optuna.delete_study(study_name=self._name, storage=self._storage)
        self.close()

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def usage(self) -> Usage:
        """What all drivers of this sweep have used so far."""
        return Usage(**self._study.user_attrs.get("usage", {}))

    @_in_one_line
    def set_usage(self, usage: Usage) -> None:
        self._study.set_user_attr("usage", dataclasses.asdict(usage))

    @_in_one_line
    def enqueue(self, first_trials: list[Params]) -> None:
        """Asks for these trials before any other; those that the study already has are not asked for again."""
        for params in first_trials:
            self._study.enqueue_trial(params, skip_if_exists=True)

    @_in_one_line
    def ask(self, space: Space, defaults: Mapping[str, Any]) -> TrialRecord:
        """The next trial: an interrupted one, else a first trial, else what the sampler suggests."""
        with _quiet():
            trial = self._study.ask()
            params = space.ask(trial, defaults)
        record = self.records.get(trial.number) or TrialRecord(trial.number, params, Outcome.RUNNING)
        record.params, record.outcome = params, Outcome.RUNNING
        self.records[trial.number] = record
        self._set(trial.number, outcome=Outcome.RUNNING)
        return record

    @_in_one_line
    def report(self, number: int, fidelity: int, value: float) -> None:
        """Records the objective at a fidelity; a trial that repeats epochs after a loss repeats its values."""
        record = self.records[number]
        if fidelity not in record.curve:
            self._storage.set_trial_intermediate_value(self._id(number), fidelity, value)
            record.curve[fidelity] = value
        record.fidelity = fidelity

    @_in_one_line
    def interrupt(self, number: int) -> None:
        """Puts a trial back, to go on from its checkpoint when it is asked for again."""
        record = self.records[number]
        record.outcome = Outcome.INTERRUPTED
        self._set(number, outcome=record.outcome, lost_seconds=round(record.lost_seconds, 3))
        self._storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def lose(self, number: int) -> int:
        """Puts back a trial that lost its process; returns how often that has happened to it."""
        record = self.records[number]
        record.attempts += 1
        self._set(number, attempts=record.attempts)
        self.interrupt(number)
        return record.attempts

    @_in_one_line
    def tell(self, number: int, ending: Ending, objective: str) -> TrialRecord:
        """Records how a trial ended, for good.

        The state goes last: a driver that dies in between leaves a trial that is still RUNNING, and a resume
        takes it up from its last checkpoint, at which it ends again the same way.
        """
        record = self.records[number]
        record.outcome, record.reason = ending.outcome, ending.reason
        record.metrics, record.fidelity = ending.metrics, ending.fidelity
        record.seconds = ending.seconds
        self._set(
            number,
            outcome=record.outcome,
            reason=record.reason,
            metrics=record.metrics,
            fidelity=record.fidelity,
            seconds=round(record.seconds, 3),
            lost_seconds=round(record.lost_seconds, 3),
            process=ending.process,
            started_at=ending.started_at,
            ended_at=ending.ended_at,
        )
        values = None
        if ending.outcome == Outcome.COMPLETE:
            record.value = ending.metrics[objective]
            values = [record.value]
        elif ending.outcome == Outcome.PRUNED:
            values = [record.curve[ending.fidelity]]
        elif ending.outcome in _INFEASIBLE:
            self._storage.set_trial_system_attr(self._id(number), f"constraints:{ending.outcome}", 1.0)
        self._storage.set_trial_state_values(self._id(number), _STATES[ending.outcome], values)
        return record

    def _set(self, number: int, **attributes: Any) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._id(number), name, value)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)


def best_record(records: Mapping[int, TrialRecord], mode: str) -> TrialRecord | None:
    """The complete trial with the best value; a trial that was stopped early is never the best."""
    complete = [r for r in records.values() if r.outcome == Outcome.COMPLETE and r.value is not None]
    sign = 1 if mode == "min" else -1
    return min(complete, key=lambda r: sign * (r.value or 0.0), default=None)


def count_outcomes(records: Mapping[int, TrialRecord]) -> dict[Outcome, int]:
    """How many trials have each outcome."""
    counts = dict.fromkeys(Outcome, 0)
    for record in records.values():
        counts[record.outcome] += 1
    return counts


def read_study(home: Storage, name: str, rdb: str | None) -> tuple[dict[int, TrialRecord], Usage]:
    """The trials of a study that somebody else may have open, and the time they have had.

    Args:
        home: The sweep's folder.
        name: The sweep's.
        rdb: The database that the study is in; None: it is in a journal.

    Raises:
        InputError: There is no study, or it cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="pharos-") as scratch:
        storage: RDBStorage | JournalStorage
        if rdb:
            storage = _open_rdb(rdb)
        elif home.is_local:
            if not home.exists(JOURNAL):
                raise InputError(f"{home.path(JOURNAL)}: no such study; name a sweep's folder that holds it")
            storage = _open_journal(Path(home.path(JOURNAL)))
        else:
            fetch_journal(home, Path(scratch) / JOURNAL)
            storage = _open_journal(Path(scratch) / JOURNAL)
        try:
            study = optuna.load_study(study_name=name if rdb else _IN_JOURNAL, storage=storage)
        except KeyError:
            raise InputError(f"{home.root}: its study has no trial yet") from None
        trials = study.get_trials(deepcopy=False)
        records = {t.number: _record(t) for t in trials if t.state != TrialState.WAITING or "outcome" in t.user_attrs}
        return records, Usage(**study.user_attrs.get("usage", {}))


def check_rdb(url: str) -> None:
    """Complains of a database URL that holds a password, without showing it.

    Raises:
        InputError: It does, or is no URL.
    """
    try:
        parts = make_url(url)
    except ArgumentError:
        raise InputError("study.storage: not a database URL; such as postgresql://user@host/database") from None
    if parts.password is not None or any(re.search("pass|secret|token", key, re.IGNORECASE) for key in parts.query):
        raise InputError(
            f"study.storage={parts.set(query={}).render_as_string()}: a password in it; "
            f"it comes from the environment: PGPASSWORD, ~/.pgpass or {_PASSWORD}"
        )


def _open_journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def _open_rdb(url: str) -> RDBStorage:
    check_rdb(url)
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if _PASSWORD in os.environ and not url.startswith("sqlite"):
        arguments["connect_args"] = {"password": os.environ[_PASSWORD]}
    try:
        return RDBStorage(url, engine_kwargs=arguments)
    except ImportError as error:
        what = str(error).splitlines()[0]
        raise InputError(
            f"study.storage={url}: {what} For PostgreSQL: pip install -c constraints.txt 'pharos-sweeps[postgresql]'"
        ) from None
    except SQLAlchemyError as error:
        why = redact(" ".join(str(error.__cause__ or error).split()))
        raise InputError(f"study.storage={url}: cannot be opened: {why}") from None


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        params=dict(trial.params),
        outcome=Outcome(attributes.get("outcome", Outcome.RUNNING)),
        curve=dict(trial.intermediate_values),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        fidelity=attributes.get("fidelity", max(trial.intermediate_values, default=0)),
        reason=attributes.get("reason", ""),
        metrics=attributes.get("metrics", {}),
        attempts=attributes.get("attempts", 0),
        seconds=attributes.get("seconds", 0.0),
        lost_seconds=attributes.get("lost_seconds", 0.0),
    )


def _mend(path: Path) -> None:
    """Repairs what a killed driver may leave: Optuna's own lock and a torn last line, at which it would stop."""
    with contextlib.suppress(FileNotFoundError):
        path.with_name(path.name + ".lock").unlink()
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns of experimental options that we chose on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
