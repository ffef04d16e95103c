"""The median stopping rule: a trial stops whose best is worse than what half of the others had on average."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from pharos.errors import InputError
from pharos.schedulers.base import GO_ON, Action, Decision, Scheduler
from pharos.schedulers.rungs import HAS_ENDED, fidelity_at, require_finite
from pharos.search.fronts import Losses
from pharos.trial import Outcome


@dataclass
class _Curve:
    """What is kept of a trial's reports."""

    fidelity: int = 0
    count: int = 0
    total: float = 0.0
    best: float = float("inf")


class Median(Scheduler):
    """The median stopping rule (Golovin et al., Vizier, KDD 2017, section 3.2.1).

    At each report a trial stops if its best loss so far is worse than the median of the running averages, up to that
    fidelity, of all other trials that reported there, whether they still run or not.

    Args:
        max_fidelity: Of a whole trial; nothing is stopped there.
        grace: Share of a whole trial that every trial gets, in (0, 1].
        min_trials: How many others must have reported at a fidelity before anything is stopped there.
        objectives: How many a trial reports.

    Raises:
        InputError: Several objectives have no median.
    """

    def __init__(self, max_fidelity: int, grace: float, min_trials: int, objectives: int = 1):
        if objectives > 1:
            raise InputError(f"scheduler=median compares one objective, not {objectives}; scheduler=asha takes several")
        self._max_fidelity = max_fidelity
        self._grace = fidelity_at(grace, max_fidelity)
        self._min_trials = max(1, min_trials)
        self._curves: dict[int, _Curve] = {}
        self._averages: dict[int, list[float]] = {}  # by fidelity, sorted
        self._ended: set[int] = set()

    def on_report(self, trial: int, fidelity: int, losses: Losses) -> Decision:
        require_finite(losses)
        if trial in self._ended:
            return HAS_ENDED
        curve = self._curves.setdefault(trial, _Curve())
        if fidelity <= curve.fidelity:
            return GO_ON
        (loss,) = losses
        curve.fidelity, curve.count, curve.total = fidelity, curve.count + 1, curve.total + loss
        curve.best = min(curve.best, loss)
        others = self._averages.setdefault(fidelity, [])
        decision = self._decide(fidelity, curve.best, others)
        bisect.insort(others, curve.total / curve.count)
        return decision

    def on_end(self, trial: int, outcome: Outcome) -> None:
        if outcome.is_final:
            self._ended.add(trial)
            self._curves.pop(trial, None)

    def _decide(self, fidelity: int, best: float, others: list[float]) -> Decision:
        if not self._grace <= fidelity < self._max_fidelity or len(others) < self._min_trials:
            return GO_ON
        middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
        if best <= middle:
            return GO_ON
        whose = f"{len(others)} others" if len(others) > 1 else "1 other"
        return Decision(
            Action.STOP, f"epoch {fidelity}: its best, {best:.6g}, is worse than {middle:.6g}, the median of {whose}"
        )
