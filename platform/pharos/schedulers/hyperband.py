"""Asynchronous HyperBand: several ASHA at once that differ in how early they dare to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pharos.schedulers.asha import Asha
from pharos.schedulers.base import Decision, Scheduler
from pharos.schedulers.rungs import ladder
from pharos.search.fronts import Losses
from pharos.trial import Outcome


class Hyperband(Scheduler):
    """Asynchronous HyperBand (Li et al., MLSys 2020, section 3.2, over Li et al., JMLR 2018, algorithm 1).

    Bracket 0 decides at all rungs, bracket 1 from the second on, and so forth; the last stops nothing. They get trials
    in the proportions of HyperBand's own: with s rungs, n_s = ⌈(s_max + 1) / (s + 1) · reduction^s⌉ of each Σ n_s.
    Trials are compared within their bracket.

    Which bracket a trial is in follows from its number alone.

    Args:
        max_fidelity: Of a whole trial; nothing is stopped there.
        grace: Share of a whole trial that every trial gets, in (0, 1].
        reduction: Between two rungs the fidelity grows by this factor, and one trial in so many goes on.

    Attributes:
        brackets: From the one that stops earliest.
    """

    def __init__(self, max_fidelity: int, grace: float, reduction: int):
        most = len(ladder(max_fidelity, grace, reduction))
        self.brackets = [Asha(max_fidelity, grace, reduction, bracket) for bracket in range(most + 1)]
        # -(-a // b) is a / b rounded up, in whole numbers.
        sizes = [-(-(most + 1) * reduction**s // (s + 1)) for s in range(most, -1, -1)]
        self._round = _interleaved(sizes)

    def bracket(self, trial: int) -> int:
        """The bracket of a trial, by its number."""
        return self._round[trial % len(self._round)]

    def on_report(self, trial: int, fidelity: int, losses: Losses) -> Decision:
        bracket = self.bracket(trial)
        decision = self.brackets[bracket].on_report(trial, fidelity, losses)
        if not decision.reason:
            return decision
        return dataclasses.replace(decision, reason=f"bracket {bracket}, {decision.reason}")

    def on_end(self, trial: int, outcome: Outcome) -> None:
        self.brackets[self.bracket(trial)].on_end(trial, outcome)


def _interleaved(sizes: Sequence[int]) -> list[int]:
    """Each index as often as its size says, evenly spread: always the one that is owed most (stride scheduling)."""
    total = sum(sizes)
    owed = [0] * len(sizes)
    order = []
    for _ in range(total):
        owed = [debt + size for debt, size in zip(owed, sizes, strict=True)]
        chosen = owed.index(max(owed))
        owed[chosen] -= total
        order.append(chosen)
    return order
