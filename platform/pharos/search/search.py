"""A search: what to try next, when a trial stops, how it ended, when it is enough. A sweep without its files.

It holds the study and asks the scheduler, the sampler and the limits. Everything that it knows is in the study: a
driver that takes up where another died tells the scheduler again what the study has of each trial.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pharos.records import Span, TrialRecord, losses_of
from pharos.schedulers.base import GO_ON, Action, Clone, Decision, GoOn, Scheduler
from pharos.search.fronts import Losses, pareto_front
from pharos.search.limits import Breaker
from pharos.space import Params, Space
from pharos.study import Study
from pharos.trial import Ending, Origin, Outcome, Report

_MOST_NODES = 20  # of a trial that loses more, it is likelier that it takes them down


class Search:
    """A search over an open study.

    Args:
        study: Its record.
        space: What is searched.
        defaults: The configuration's values by full name, for conditions.
        scheduler: Stops and pauses trials.
        trials: How many there are to be; one that takes another's place (`Clone`) is no more than the other.
        max_fidelity: Of a whole trial with given values.
        runs_whole: Whether a trial with given values is never stopped early.
        retries: How often a trial that loses its process goes on.
        breaker: Ends the search for a fault that is the same everywhere.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        defaults: Mapping[str, Any],
        scheduler: Scheduler,
        *,
        trials: int,
        max_fidelity: Callable[[Params], int],
        runs_whole: Callable[[Params], bool] = lambda params: False,
        retries: int = 0,
        breaker: Breaker | None = None,
    ):
        self.study = study
        self.trials = trials
        self.over = ""
        """Why no more trials are started, if that is so before the last."""
        self.fault = ""
        """The traceback that ended it."""
        self._space = space
        self._defaults = defaults
        self._scheduler = scheduler
        self._max_fidelity = max_fidelity
        self._runs_whole = runs_whole
        self._retries = retries
        self._breaker = breaker or Breaker(0)
        self._fidelities: dict[int, int] = {}
        self._pausing: dict[int, str] = {}  # trials that were told to, with the reason
        self._replaced = 0
        self._front: list[Losses] = []
        self.best: TrialRecord | None = None
        """The complete trial with the best (first) objective."""
        self.seconds = 0.0
        """Of training, of the trials that have ended."""
        self.without_gain = 0
        """Trials that have ended since one was better than all before; with several objectives, joined the front."""
        for record in study.records.values():
            self._tell_again(record)

    # What is to run

    def next(self) -> TrialRecord | None:
        """The next trial to run; None when there is none now (`finished` says whether there may be later)."""
        if self.over:
            return None
        study = self.study
        if waiting := study.having(Outcome.INTERRUPTED):
            record = study.hand_out(waiting[0])
        elif isinstance(start := self._scheduler.next(), GoOn) and start.trial not in self._pausing:
            record = study.hand_out(start.trial)
        elif isinstance(start, Clone):
            record = study.clone(start.params, Origin(start.donor, start.replaces), self._space)
            self._replaced += 1
        elif self.left:
            record = study.ask(self._space, self._defaults)
        else:
            if not study.having(Outcome.RUNNING):
                self._give_up_paused()
            return None
        self._scheduler.on_start(record.number, record.params, record.origin.replaces if record.origin else None)
        return record

    @property
    def left(self) -> int:
        """How many new trials are still to be asked for."""
        return max(0, self.trials - (len(self.study.records) - self._replaced))

    @property
    def finished(self) -> bool:
        """Whether no trial is running and none will be started."""
        counts = self.study.counts
        if counts[Outcome.RUNNING]:
            return False
        return bool(self.over) or not (self.left or counts[Outcome.INTERRUPTED] or counts[Outcome.PAUSED])

    # What happens to trials

    def on_report(self, number: int, report: Report) -> Decision:
        """Records a trial's report and says what becomes of it; one that stops here has ended, as pruned."""
        record = self.study.records[number]
        if record.outcome != Outcome.RUNNING:
            return Decision(Action.STOP)
        record.metrics, record.seconds = report.metrics, report.seconds
        record.attempt = Span(report.process, report.started_at, time.time())
        values = self.study.objectives.values(report.metrics)
        if values is None:
            return GO_ON
        # An epoch that runs again after a loss was decided about when it ran first.
        is_new = report.fidelity not in record.curve
        self.study.report(number, report.fidelity, values)
        if not is_new:
            return GO_ON
        decision = self._scheduler.on_report(number, report.fidelity, self.study.objectives.losses(values))
        if report.fidelity >= self.max_fidelity(record):
            self._pausing.pop(number, None)  # the word came too late: all that is left to do is to end
        # The paper's values run whole: what the search gained is measured against them on the same budget.
        if report.fidelity >= self.max_fidelity(record) or self._runs_whole(record.params):
            if decision.action == Action.PAUSE:
                self._scheduler.on_start(number, record.params)
            return GO_ON
        if decision.action == Action.PAUSE:
            self._pausing[number] = decision.reason
        elif decision.action == Action.STOP:
            self.on_end(number, _stopped(record, decision.reason, report))
        return decision

    def on_end(self, number: int, ending: Ending) -> None:
        """Records how a trial ended; what a trial says after it was pruned no longer counts."""
        record = self.study.records[number]
        if record.outcome != Outcome.RUNNING:
            return
        reason = self._pausing.pop(number, None)
        if ending.outcome == Outcome.INTERRUPTED:
            if reason is None:
                self.study.interrupt(number)
            else:
                self.study.pause(number)
            return
        self._end(number, ending)

    def on_lost(self, number: int, reason: str, outcome: Outcome = Outcome.FAILED, *, by_node: bool = False) -> bool:
        """Hears that a trial's process died; whether it goes on from its checkpoint: not if that happened too often.

        A trial that went with its node has that many more chances: most often it was preempted.
        """
        record = self.study.records[number]
        if record.outcome != Outcome.RUNNING:
            return True
        self._pausing.pop(number, None)
        if by_node and self.study.lose(number, by_node=True) <= _MOST_NODES:
            return True
        if not by_node and self.study.lose(number) <= self._retries:
            return True
        losses = f"its node {record.preemptions}" if by_node else f"its process {record.attempts}"
        self.study.hand_out(number)
        self._end(
            number,
            Ending(
                outcome,
                reason=f"lost {losses} times; last: {reason}",
                fidelity=record.fidelity,
                metrics=record.metrics,
                seconds=record.seconds,
            ),
        )
        return False

    def _end(self, number: int, ending: Ending) -> None:
        record = self.study.tell(number, ending)
        self._scheduler.on_end(number, record.outcome)
        self._weigh(record)
        if record.outcome == Outcome.FAILED and self._breaker.trips(record.params, record.reason):
            self.fault = record.reason
            self.over = "different configurations failed at the same place"

    # What is known

    def max_fidelity(self, record: TrialRecord) -> int:
        """The fidelity of the whole trial, which its own values may decide."""
        if record.number not in self._fidelities:
            self._fidelities[record.number] = self._max_fidelity(record.params)
        return self._fidelities[record.number]

    def _weigh(self, record: TrialRecord) -> None:
        self.seconds += record.seconds
        self.without_gain += 1
        if record.outcome != Outcome.COMPLETE or record.values is None or not record.is_feasible:
            return
        losses = self.study.objectives.losses(record.values)
        front = [*self._front, losses]
        if losses not in self._front and len(front) - 1 in (kept := pareto_front(front)):
            self.without_gain = 0
            self._front = [front[index] for index in kept]
            if losses == min(self._front):
                self.best = record

    def _give_up_paused(self) -> None:
        """Ends paused trials that nobody can promote any more: no trial runs and none is to come."""
        for number in self.study.having(Outcome.PAUSED):
            record = self.study.records[number]
            self.study.hand_out(number)
            self._end(number, _stopped(record, "paused, and never promoted"))

    def _tell_again(self, record: TrialRecord) -> None:
        """Tells the scheduler what the study has of a trial, as if it happened now."""
        replaces = record.origin.replaces if record.origin else None
        self._replaced += replaces is not None
        self._scheduler.on_start(record.number, record.params, replaces)
        for fidelity, losses in sorted(losses_of(record, self.study.objectives).items()):
            self._scheduler.on_report(record.number, fidelity, losses)
        if record.outcome.is_final:
            self._scheduler.on_end(record.number, record.outcome)
            self._weigh(record)


def _stopped(record: TrialRecord, reason: str, report: Report | None = None) -> Ending:
    """The ending of a trial that the scheduler stopped at its last report."""
    return Ending(
        Outcome.PRUNED,
        reason=reason,
        fidelity=record.fidelity,
        metrics=record.metrics,
        seconds=record.seconds,
        lost_seconds=report.lost_seconds if report else 0.0,
        process=report.process if report else 0,
        started_at=report.started_at if report else 0.0,
        ended_at=time.time(),
    )
