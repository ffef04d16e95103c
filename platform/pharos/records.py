"""What is known of a trial: how it reads from Optuna's, and what a sweep's trials are together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pharos.search.fronts import Losses, pareto_front, ranking
from pharos.search.objective import Objectives
from pharos.space import Params
from pharos.trial import Origin, Outcome

CONSTRAINT = "constraints:"
"""How Optuna's attributes of violated constraints begin."""
AT = "at:"
"""How the attributes begin that hold several objectives at a fidelity."""


@dataclass(frozen=True)
class Span:
    """The time that a process trained a trial for, in one attempt."""

    process: int
    started_at: float
    """Wall-clock time, as of all else here."""
    ended_at: float
    is_lost: bool = False
    """Whether the process was lost; what it had saved by then was kept."""


@dataclass
class TrialRecord:
    """A trial as the study knows it."""

    number: int
    params: Params
    outcome: Outcome
    curve: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """The objectives by fidelity, as reported."""
    values: tuple[float, ...] | None = None
    """The objectives of a complete trial."""
    violations: dict[str, float] = field(default_factory=dict)
    """By how much it breaks each constraint; 0 or less: it keeps it."""
    fidelity: int = 0
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last metrics reported."""
    attempts: int = 0
    """Times it was started and lost its process."""
    preemptions: int = 0
    """Times it lost its node."""
    seconds: float = 0.0
    lost_seconds: float = 0.0
    origin: Origin | None = None
    """Where it started from, if not from nothing."""
    spans: list[Span] = field(default_factory=list)
    """The attempts that have ended; one whose driver died with it is not among them."""
    attempt: Span | None = field(default=None, compare=False)
    """The present one, up to its last report; its own driver alone knows it."""

    @property
    def last_values(self) -> tuple[float, ...] | None:
        """The result of a complete trial, else the last values reported."""
        return self.values if self.values is not None else self.curve.get(max(self.curve, default=0))

    @property
    def is_feasible(self) -> bool:
        """Whether it keeps all constraints, as far as is known."""
        return all(violation <= 0 for violation in self.violations.values())


@dataclass(frozen=True)
class Usage:
    """Time that a sweep has had, over all its drivers."""

    seconds: float = 0.0
    """Of wall-clock."""
    slot_seconds: float = 0.0
    """Times the trials that could run at once."""


def best_record(records: Mapping[int, TrialRecord], objectives: Objectives) -> TrialRecord | None:
    """The complete trial with the best value (of the first objective); one that was stopped early is never the best."""
    return min(_complete(records), key=lambda r: objectives.losses(r.values or ()), default=None)


def front(records: Mapping[int, TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """The complete trials that no other beats in all objectives, the best in the first objective first."""
    complete = _complete(records)
    losses = [objectives.losses(record.values or ()) for record in complete]
    return [complete[index] for index in sorted(pareto_front(losses), key=lambda index: losses[index])]


def ranked(records: Mapping[int, TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """The complete trials from the best to the worst."""
    complete = _complete(records)
    return [complete[index] for index in ranking([objectives.losses(record.values or ()) for record in complete])]


def losses_of(record: TrialRecord, objectives: Objectives) -> dict[int, Losses]:
    """A trial's curve, lower is better."""
    return {fidelity: objectives.losses(values) for fidelity, values in record.curve.items()}


def count_outcomes(records: Mapping[int, TrialRecord]) -> dict[Outcome, int]:
    """How many trials have each outcome."""
    counts = dict.fromkeys(Outcome, 0)
    for record in records.values():
        counts[record.outcome] += 1
    return counts


def _complete(records: Mapping[int, TrialRecord]) -> list[TrialRecord]:
    """Complete trials that keep the constraints."""
    return [r for r in records.values() if r.outcome == Outcome.COMPLETE and r.values is not None and r.is_feasible]


def curve_of(trial: FrozenTrial) -> dict[int, tuple[float, ...]]:
    """The objectives by fidelity that a trial of Optuna's has reported."""
    if trial.intermediate_values:
        return {step: (value,) for step, value in trial.intermediate_values.items()}
    return {
        int(name.removeprefix(AT)): tuple(values) for name, values in trial.user_attrs.items() if name.startswith(AT)
    }


def is_own(trial: FrozenTrial) -> bool:
    """Whether a trial of Optuna's is one of the sweep's: no evidence, and not still to be handed out."""
    return "outcome" in trial.user_attrs


def record_of(trial: FrozenTrial) -> TrialRecord:
    """A sweep's trial as the study has it, finished or not."""
    attributes, system = trial.user_attrs, trial.system_attrs
    origin = attributes.get("origin")
    curve = curve_of(trial)
    outcome = Outcome(attributes["outcome"])
    reached = max(curve, default=0)
    return TrialRecord(
        number=attributes.get("number", trial.number),
        params=dict(trial.params),
        outcome=outcome,
        curve=curve,
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else None,
        violations={
            name.removeprefix(CONSTRAINT): value for name, value in system.items() if name.startswith(CONSTRAINT)
        },
        # One that goes on may have been told an ending, by a driver that died before it was final.
        fidelity=attributes.get("fidelity", reached) if outcome.is_final else reached,
        reason=attributes.get("reason", ""),
        metrics=attributes.get("metrics", {}),
        attempts=attributes.get("attempts", 0),
        preemptions=attributes.get("preemptions", 0),
        seconds=attributes.get("seconds", 0.0),
        lost_seconds=attributes.get("lost_seconds", 0.0),
        origin=Origin(**origin) if origin else None,
        spans=_spans(attributes, outcome),
    )


def _spans(attributes: Mapping[str, Any], outcome: Outcome) -> list[Span]:
    """The attempts at a trial, the last of which is kept apart."""
    earlier = [Span(*span) for span in attributes.get("spans", [])]
    # A driver that died while it told the ending may have told when it began, and not yet when it ended.
    if not outcome.is_final or not (attributes.get("started_at") and "ended_at" in attributes):
        return earlier
    return [*earlier, Span(attributes["process"], attributes["started_at"], attributes["ended_at"])]
