"""ASHA as published: a trial pauses at every rung and goes on once it is known to be among the best there."""

from __future__ import annotations

from pharos.schedulers.base import GO_ON, Action, Decision, GoOn, Scheduler
from pharos.schedulers.rungs import HAS_ENDED, Ladder, ladder, ordinal, require_finite
from pharos.search.fronts import Losses
from pharos.space import Params
from pharos.trial import Outcome


class Promotion(Scheduler):
    """Asynchronous successive halving with promotions (Li et al., MLSys 2020, algorithm 2, `get_job`).

    A trial pauses at each rung. A free place goes to the highest rung at which a paused trial is among the best
    1/reduction of all that ever reached it; if there is none, a new trial may start.

    A paused trial goes on when it is handed out again. What it reports before that changes nothing, unless it reaches
    the next rung: then it stands there, as paused. So a resume, which hands out each trial once and then tells all its
    reports, finds every trial at the rung where it paused last. A trial that diverged or ran out of memory counts as
    a loser in the next rung, the one that it was on its way to.

    Args:
        max_fidelity: Of a whole trial; nothing is paused there.
        grace: Share of a whole trial that every trial gets, in (0, 1].
        reduction: Between two rungs the fidelity grows by this factor, and one trial in so many goes on.

    Attributes:
        rungs: Their fidelities.
    """

    def __init__(self, max_fidelity: int, grace: float, reduction: int):
        self.rungs = ladder(max_fidelity, grace, reduction)
        self._max_fidelity = max_fidelity
        self._reduction = reduction
        self._ladder = Ladder(self.rungs)
        self._paused: dict[int, int] = {}  # by trial, the index of its rung
        self._ended: set[int] = set()

    @property
    def paused(self) -> dict[int, int]:
        """The fidelity of its rung by paused trial."""
        return {trial: self.rungs[level] for trial, level in self._paused.items()}

    def on_start(self, trial: int, params: Params, replaces: int | None = None) -> None:
        self._paused.pop(trial, None)

    def on_report(self, trial: int, fidelity: int, losses: Losses) -> Decision:
        require_finite(losses)
        if trial in self._ended:
            return HAS_ENDED
        level = self._ladder.enter(trial, fidelity, losses)
        if fidelity >= self._max_fidelity:
            self._paused.pop(trial, None)
            return GO_ON
        if level is None:
            # The word that it is to pause is still on its way.
            return Decision(Action.PAUSE, "it is paused") if trial in self._paused else GO_ON
        self._paused[trial] = level
        rung = self._ladder.rungs[level]
        place = ordinal(rung.place(trial, losses) + 1)
        return Decision(
            Action.PAUSE, f"rung {self.rungs[level]}: {place} of {len(rung)}, the best 1/{self._reduction} go on"
        )

    def on_end(self, trial: int, outcome: Outcome) -> None:
        if not outcome.is_final or trial in self._ended:
            return
        self._ended.add(trial)
        self._paused.pop(trial, None)
        if outcome in (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY):
            # It would have gone no further than there, so that in rungs above it makes no room.
            for rung in self._ladder.ahead(trial)[:1]:
                rung.losers += 1

    def next(self) -> GoOn | None:
        for level in reversed(range(len(self.rungs))):
            rung = self._ladder.rungs[level]
            for trial in rung.best(len(rung) // self._reduction):
                if self._paused.get(trial) == level:
                    return GoOn(trial)
        return None
