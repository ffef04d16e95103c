"""ASHA, the stopping variant: a trial that is not among the best at a rung stops there."""

from __future__ import annotations

from pharos.schedulers.base import GO_ON, Action, Decision, Scheduler
from pharos.schedulers.rungs import HAS_ENDED, Ladder, ladder, ordinal, require_finite
from pharos.search.fronts import Losses
from pharos.trial import Outcome


class Asha(Scheduler):
    """Asynchronous successive halving, the stopping variant (Li et al., MLSys 2020, algorithm 2 of its appendix).

    A trial that reaches a rung goes on if it is among the best 1/reduction of all that reached that rung so far, itself
    included; the first to arrive therefore always goes on, and so does one that equals the last that may. A report that
    reaches two rungs counts in both and is judged at the higher.

    A trial that diverged or ran out of memory counts as a loser in the next rung that it had not reached: it makes room
    like one that came in last there. What a trial reports after its end counts nowhere. Until then all its reports do,
    whatever it was told: a resume could not tell which of them came too late.

    Args:
        max_fidelity: Of a whole trial; nothing is stopped there.
        grace: Share of a whole trial that every trial gets, in (0, 1].
        reduction: Between two rungs the fidelity grows by this factor, and one trial in so many goes on.
        bracket: How many of the lowest rungs to leave out (the paper's early-stopping rate s, section 3.2).

    Attributes:
        rungs: Their fidelities.
    """

    def __init__(self, max_fidelity: int, grace: float, reduction: int, bracket: int = 0):
        self.rungs = ladder(max_fidelity, grace, reduction)[bracket:]
        self._max_fidelity = max_fidelity
        self._reduction = reduction
        self._ladder = Ladder(self.rungs)
        self._ended: set[int] = set()

    def on_report(self, trial: int, fidelity: int, losses: Losses) -> Decision:
        require_finite(losses)
        if trial in self._ended:
            return HAS_ENDED
        level = self._ladder.enter(trial, fidelity, losses)
        if level is None or fidelity >= self._max_fidelity:
            return GO_ON
        rung = self._ladder.rungs[level]
        place, allowed = rung.place(trial, losses), max(1, len(rung) // self._reduction)
        if place < allowed:
            return GO_ON
        who = "the best goes on" if allowed == 1 else f"the best {allowed} go on"
        return Decision(Action.STOP, f"rung {self.rungs[level]}: {ordinal(place + 1)} of {len(rung)}, {who}")

    def on_end(self, trial: int, outcome: Outcome) -> None:
        if not outcome.is_final or trial in self._ended:
            return
        self._ended.add(trial)
        if outcome in (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY):
            for rung in self._ladder.ahead(trial)[:1]:  # a bad one would have come no further either
                rung.losers += 1
