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
    interrupted    WAITING          nothing yet; it goes on before anything new
    paused         RUNNING          what it has reported, and that its place is taken (WAITING while no driver has it)
    running        RUNNING          RUNNING when a driver starts can only be left over: it becomes interrupted

A space that changes starts a new Optuna study beside the old one, as Optuna's own cannot change: the sweep's study is
all of them together, its trials numbered through. What is known of the trials before enters the new one as evidence.
Evidence (trials of earlier sweeps, too) is there for the sampler alone: it has no number and is no trial of this sweep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pharos.errors import InputError, PharosError
from pharos.journal import JOURNAL, mend, open_journal
from pharos.mirror import fetch_journal
from pharos.rdb import open_rdb
from pharos.records import AT, CONSTRAINT, Span, TrialRecord, Usage, is_own, record_of
from pharos.retry import redact
from pharos.search.objective import Constraint, Objectives
from pharos.space import Params, Space
from pharos.storage import Storage
from pharos.trial import Ending, Origin, Outcome

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
_IN_JOURNAL = "sweep"
_PERFECT = 1.0  # how far a trial that had no result at all is from being feasible
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


@dataclass(frozen=True)
class Evidence:
    """What is known of a trial elsewhere that would be one of this sweep's search space.

    Attributes:
        source: The sweep and trial it was.
        params: Its values in the present space.
        record: All else of it.
    """

    source: str
    params: Params
    record: TrialRecord


class Study:
    """A sweep's study, opened by its driver alone.

    Args:
        folder: A folder of this machine: with the journal, if the study is in one, which is made if it does not exist.
            None keeps the study in memory.
        objectives: What is compared.
        make_sampler: Makes the source of new trials, from the number of trials that are known already.
        name: The sweep's.
        rdb: The URL of the database that the study is in; None: it is in a journal.
        generation: How often the space has changed since the sweep began.
        constraints: What a trial's last metrics have to keep.

    Raises:
        InputError: Another driver has the study open, or the database cannot be used.
    """

    def __init__(
        self,
        folder: Path | None,
        objectives: Objectives,
        make_sampler: Callable[[int], optuna.samplers.BaseSampler],
        name: str = "sweep",
        rdb: str | None = None,
        *,
        generation: int = 0,
        constraints: Sequence[Constraint] = (),
    ):
        self.objectives = objectives
        self.records: dict[int, TrialRecord] = {}
        self._constraints = constraints
        self._left_out = 0
        self._folder = Storage(str(folder)) if folder else None
        self._lock = self._folder.lock() if self._folder else None
        self._name = name if rdb else _IN_JOURNAL
        self._storage: BaseStorage
        self._together: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            if folder and not rdb:
                mend(folder / JOURNAL)
                self._storage, journal = open_journal(folder / JOURNAL)
                self._together = journal.together
            else:
                self._storage = open_rdb(rdb) if rdb else InMemoryStorage()
            self._studies = [self._open(index) for index in range(generation + 1)]
            self._study = self._studies[-1]
            self._trials: dict[int, int] = {}  # Optuna's own id of each trial
            self._now: dict[Outcome, dict[int, None]] = {outcome: {} for outcome in Outcome}  # in order of arrival
            for trial in _trials(self._studies):
                self._take_up(trial)
            with _quiet():
                self._study.sampler = make_sampler(len(self.records))
        except (ValueError, KeyError) as error:
            self._unlock()
            where = folder / JOURNAL if folder else "the study"
            raise InputError(f"{where}: damaged ({error}); put a copy of it back from before it was changed") from None
        except BaseException:
            self._unlock()
            raise

    def close(self) -> None:
        """Lets another driver open the study."""
        try:
            self._put_aside()
        finally:
            self._unlock()

    @_in_one_line
    def _put_aside(self) -> None:
        """Marks paused trials as nobody's, for those who look at the study while no driver has it."""
        for number in self.having(Outcome.PAUSED):
            self._storage.set_trial_state_values(self._trials[number], TrialState.WAITING)

    def delete(self) -> None:
        """Lets the study go, from a database too."""
        for study in self._studies:
            optuna.delete_study(study_name=study.study_name, storage=self._storage)
        self._unlock()

    # What is known

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many trials have each outcome."""
        return {outcome: len(numbers) for outcome, numbers in self._now.items()}

    def having(self, outcome: Outcome) -> list[int]:
        """The trials that have an outcome, in the order in which they came to it."""
        return list(self._now[outcome])

    @property
    def usage(self) -> Usage:
        """What all drivers of this sweep have used so far."""
        return Usage(**self._studies[0].user_attrs.get("usage", {}))

    @_in_one_line
    def set_usage(self, usage: Usage) -> None:
        self._studies[0].set_user_attr("usage", dataclasses.asdict(usage))

    @property
    def notes(self) -> dict[str, Any]:
        """What is kept for people, by subject."""
        return _notes(self._studies)

    @_in_one_line
    def set_note(self, subject: str, text: str) -> None:
        """Keeps something for people; notes of the driver before are replaced."""
        self._studies[0].set_user_attr(subject, text)

    # What a sampler learns from

    @property
    def evidence(self) -> dict[str, Any] | None:
        """What `learn` has noted of the evidence; None: it has not been called for this space."""
        noted: dict[str, Any] | None = self._study.user_attrs.get("evidence")
        return noted

    @_in_one_line
    def learn(self, evidence: Iterable[Evidence], space: Space, note: Mapping[str, Any]) -> None:
        """Gives the sampler what is known from elsewhere; done again after a crash, nothing is there twice.

        Args:
            evidence: Final trials of other sweeps, or of this one before its space changed.
            space: The present one.
            note: What to keep of it for people.
        """
        there = {trial.user_attrs.get("evidence") for trial in self._study.get_trials(deepcopy=False)}
        for each in evidence:
            if each.source not in there:
                self._study.add_trial(self._as_evidence(each, space))
        self._study.set_user_attr("evidence", dict(note))

    def _as_evidence(self, evidence: Evidence, space: Space) -> FrozenTrial:
        record = evidence.record
        state = _STATES[record.outcome]
        is_single = len(self.objectives) == 1
        return optuna.trial.create_trial(
            state=state,
            values=list(record.values or ()) if state == TrialState.COMPLETE else None,
            params=evidence.params,
            distributions={d.name: d.distribution for d in space.dimensions if d.name in evidence.params},
            user_attrs={"evidence": evidence.source}
            | ({} if is_single else {f"{AT}{step}": list(values) for step, values in record.curve.items()}),
            system_attrs={f"{CONSTRAINT}{name}": value for name, value in record.violations.items()},
            intermediate_values={step: values[0] for step, values in record.curve.items()} if is_single else {},
        )

    # What happens to trials

    @_in_one_line
    def enqueue(self, first_trials: list[Params]) -> None:
        """Asks for these trials before any other; those that the study already has are not asked for again."""
        known = [record.params for record in self.records.values()]
        missing = [params for params in first_trials if params not in known]
        waiting = {
            trial._trial_id: trial.system_attrs.get("fixed_params")
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not is_own(trial)
        }
        waiting = {identity: params for identity, params in waiting.items() if params in missing}
        if list(waiting.values()) == missing:
            return
        # The driver before died while it asked for one: all wait again, so that they come in their order.
        for identity in waiting:
            self._storage.set_trial_state_values(identity, TrialState.FAIL)
        for params in missing:
            self._study.enqueue_trial(params)

    @_in_one_line
    def ask(self, space: Space, defaults: Mapping[str, Any]) -> TrialRecord:
        """A new trial: a first trial, else what the sampler suggests."""
        # Those that wait to go on are handed out by `hand_out`; Optuna would take them for enqueued ones.
        assert not self._now[Outcome.INTERRUPTED]
        with _quiet():
            trial = self._study.ask()
            with self._together():
                params = space.ask(trial, defaults)
                return self._begin(trial._trial_id, TrialRecord(self._next, params, Outcome.RUNNING))

    @_in_one_line
    def clone(self, params: Params, origin: Origin, space: Space) -> TrialRecord:
        """A new trial with given values that starts from another's checkpoint."""
        distributions = {d.name: d.distribution for d in space.dimensions if d.name in params}
        template = optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        identity = self._storage.create_new_trial(self._study._study_id, template_trial=template)
        record = TrialRecord(self._next, params, Outcome.RUNNING, origin=origin)
        with self._together():
            self._storage.set_trial_user_attr(identity, "origin", dataclasses.asdict(origin))
            return self._begin(identity, record)

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Gives no new trial one of these numbers, or a smaller one: there are files of trials unknown here."""
        self._left_out = max(numbers, default=-1) + 1

    @property
    def _next(self) -> int:
        """The number of the next new trial."""
        return max(self._left_out, max(self.records, default=-1) + 1)

    def _begin(self, identity: int, record: TrialRecord) -> TrialRecord:
        self._trials[record.number] = identity
        self.records[record.number] = record
        # The outcome goes last: a trial without one was never handed out.
        self._set(record.number, number=record.number, outcome=Outcome.RUNNING)
        self._now[Outcome.RUNNING][record.number] = None
        return record

    @_in_one_line
    def hand_out(self, number: int) -> TrialRecord:
        """Lets a trial go on that was interrupted or paused."""
        # Whatever dies in between leaves one that is RUNNING: it is interrupted then.
        with self._together():
            self._storage.set_trial_state_values(self._trials[number], TrialState.RUNNING)
            self._become(number, Outcome.RUNNING)
        return self.records[number]

    @_in_one_line
    def report(self, number: int, fidelity: int, values: tuple[float, ...]) -> None:
        """Records the objectives at a fidelity; a trial that repeats epochs after a loss repeats its values."""
        record = self.records[number]
        if fidelity not in record.curve:
            if len(values) == 1:
                self._storage.set_trial_intermediate_value(self._trials[number], fidelity, values[0])
            else:  # of which Optuna takes none
                self._set(number, **{f"{AT}{fidelity}": list(values)})
            record.curve[fidelity] = values
        record.fidelity = fidelity

    @_in_one_line
    def interrupt(self, number: int) -> None:
        """Puts a trial back, to go on from its checkpoint when it is asked for again."""
        with self._together():
            self._become(number, Outcome.INTERRUPTED)
            self._set(number, lost_seconds=round(self.records[number].lost_seconds, 3))
            self._close_attempt(number)
            self._storage.set_trial_state_values(self._trials[number], TrialState.WAITING)

    @_in_one_line
    def pause(self, number: int) -> None:
        """Puts a trial aside, to go on from its checkpoint if it is promoted."""
        record = self.records[number]
        with self._together():
            self._set(number, seconds=round(record.seconds, 3), metrics=record.metrics)
            self._close_attempt(number)
            self._become(number, Outcome.PAUSED)

    def lose(self, number: int, *, by_node: bool = False) -> int:
        """Puts back a trial that lost its process, or its node; returns how often that has happened to it."""
        record = self.records[number]
        if by_node:
            record.preemptions += 1
        else:
            record.attempts += 1
        if record.attempt is not None:
            record.attempt = dataclasses.replace(record.attempt, is_lost=True)
        with self._together():
            self._set(number, **({"preemptions": record.preemptions} if by_node else {"attempts": record.attempts}))
            self.interrupt(number)
        return record.preemptions if by_node else record.attempts

    @_in_one_line
    def tell(self, number: int, ending: Ending) -> TrialRecord:
        """Records how a trial ended, for good.

        The state goes last: a driver that dies in between leaves a trial that is still RUNNING, and a resume
        takes it up from its last checkpoint, at which it ends again the same way.
        """
        record = self.records[number]
        record.reason, record.metrics, record.fidelity = ending.reason, ending.metrics, ending.fidelity
        record.seconds = ending.seconds
        if ending.started_at:
            record.spans.append(Span(ending.process, ending.started_at, ending.ended_at))
        record.attempt = None
        if ending.outcome == Outcome.COMPLETE:
            record.values = self.objectives.values(ending.metrics)
        # What a driver that died here had told of it no longer holds, and Optuna takes nothing back.
        record.violations = dict.fromkeys(record.violations, 0.0) | self._violations(ending)
        with self._together():
            self._become(
                number,
                ending.outcome,
                reason=record.reason,
                metrics=record.metrics,
                fidelity=record.fidelity,
                seconds=round(record.seconds, 3),
                lost_seconds=round(record.lost_seconds, 3),
                process=ending.process,
                started_at=ending.started_at,
                ended_at=ending.ended_at,
            )
            for name, violation in record.violations.items():
                self._storage.set_trial_system_attr(self._trials[number], f"{CONSTRAINT}{name}", violation)
            self._storage.set_trial_state_values(self._trials[number], _STATES[ending.outcome], self._told(record))
        return record

    def _violations(self, ending: Ending) -> dict[str, float]:
        """By how much a trial that ended so breaks each constraint, as far as it can be said."""
        if ending.outcome in _INFEASIBLE:
            return {str(ending.outcome): _PERFECT}
        if ending.outcome not in (Outcome.COMPLETE, Outcome.PRUNED):
            return {}
        found = {each.metric: each.violation(ending.metrics) for each in self._constraints}
        return {metric: violation for metric, violation in found.items() if violation is not None}

    def _told(self, record: TrialRecord) -> tuple[float, ...] | None:
        """What a sampler of Optuna's learns as a trial's value: of a pruned one, that at its own fidelity."""
        if record.outcome == Outcome.PRUNED and len(self.objectives) == 1:
            return record.curve[record.fidelity]
        return record.values

    def _close_attempt(self, number: int) -> None:
        """Keeps when an attempt was that is not the trial's last."""
        record = self.records[number]
        if record.attempt is not None:
            record.spans.append(record.attempt)
            record.attempt = None
            self._set(number, spans=[dataclasses.astuple(span) for span in record.spans])

    def _become(self, number: int, outcome: Outcome, **attributes: Any) -> None:
        record = self.records[number]
        self._now[record.outcome].pop(number, None)
        record.outcome = outcome
        self._now[outcome][number] = None
        self._set(number, outcome=outcome, **attributes)

    def _set(self, trial: int, /, **attributes: Any) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._trials[trial], name, value)

    # Opening

    def _open(self, generation: int) -> optuna.Study:
        return optuna.create_study(
            study_name=_study_name(self._name, generation),
            storage=self._storage,
            directions=["minimize" if each.mode == "min" else "maximize" for each in self.objectives],
            load_if_exists=True,
        )

    def _take_up(self, trial: FrozenTrial) -> None:
        """Hears of a trial that is in the study already; what the driver before left over is put in order."""
        if not is_own(trial):
            # One that was asked for and never handed out counts for nothing, not even for a sampler.
            if trial.state == TrialState.RUNNING:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return
        record = record_of(trial)
        self._trials[record.number] = trial._trial_id
        self.records[record.number] = record
        self._now[record.outcome][record.number] = None
        if record.outcome == Outcome.PAUSED:
            if trial.state == TrialState.WAITING:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        elif trial.state == TrialState.RUNNING:
            self.interrupt(record.number)

    def _unlock(self) -> None:
        if self._folder is not None and self._lock is not None:
            self._folder.unlock(self._lock)


def read_study(home: Storage, name: str, rdb: str | None) -> tuple[dict[int, TrialRecord], Usage, dict[str, Any]]:
    """The trials of a study that somebody else may have open, the time they have had, and its notes.

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
            storage = open_rdb(rdb)
        elif home.is_local:
            if not home.exists(JOURNAL):
                raise InputError(f"{home.path(JOURNAL)}: no such study; name a sweep's folder that holds it")
            storage, _ = open_journal(Path(home.path(JOURNAL)))
        else:
            fetch_journal(home, Path(scratch) / JOURNAL)
            storage, _ = open_journal(Path(scratch) / JOURNAL)
        base = name if rdb else _IN_JOURNAL
        try:
            studies = [optuna.load_study(study_name=base, storage=storage)]
        except KeyError:
            raise InputError(f"{home.root}: its study has no trial yet") from None
        names = set(optuna.get_all_study_names(storage))
        while (later := _study_name(base, len(studies))) in names:
            studies.append(optuna.load_study(study_name=later, storage=storage))
        records = {record.number: record for record in map(record_of, filter(is_own, _trials(studies)))}
        return records, Usage(**studies[0].user_attrs.get("usage", {})), _notes(studies)


def _notes(studies: Sequence[optuna.Study]) -> dict[str, Any]:
    evidence: dict[str, Any] = {}
    for study in studies:
        evidence |= study.user_attrs.get("evidence", {})
    return {"over": studies[0].user_attrs.get("over", ""), "evidence": evidence}


def _study_name(base: str, generation: int) -> str:
    return base if generation == 0 else f"{base}/{generation + 1}"


def _trials(studies: Sequence[optuna.Study]) -> list[FrozenTrial]:
    """All of Optuna's trials, the sweep's own in the order of their numbers."""
    trials = [trial for study in studies for trial in study.get_trials(deepcopy=False)]
    return sorted(trials, key=lambda trial: trial.user_attrs.get("number", trial.number))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns of experimental options that we chose on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
