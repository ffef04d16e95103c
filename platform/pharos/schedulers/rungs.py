"""What schedulers share: shares of a whole trial, rungs, and who came in at which place there.

What a rung holds follows from who reported what, not from the order in which trials arrived, nor from what they were
told: on a resume the records are told again trial by trial, and must give the same rungs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from pharos.schedulers.base import Action, Decision
from pharos.search.fronts import Losses, ranking

HAS_ENDED = Decision(Action.STOP, "it has ended")
"""The answer to what a trial says after its end, which no longer counts."""


def fidelity_at(share: float, max_fidelity: int) -> int:
    """The first fidelity at which so much of a whole trial is done; at least 1."""
    # Rounded before: in binary, 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(round(share * max_fidelity, 6)))


def ladder(max_fidelity: int, grace: float, reduction: int) -> list[int]:
    """The fidelities at which successive halving decides: from the grace on, each `reduction` times the one before.

    All below that of a whole trial, which needs no decision.
    """
    rungs: list[int] = []
    while (rung := fidelity_at(grace, max_fidelity)) < max_fidelity:
        if rung not in rungs:  # several shares of less than one epoch are all epoch 1
            rungs.append(rung)
        grace *= reduction
    return rungs


def require_finite(losses: Losses) -> None:
    """Raises ValueError at a loss that is no number: it would pass comparisons unseen."""
    if not all(math.isfinite(loss) for loss in losses):
        raise ValueError(f"a scheduler hears finite losses, not {losses}")


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th …"""
    teens = 10 <= number % 100 < 20
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


class Rung:
    """The losses of all trials that reached one fidelity.

    Attributes:
        losers: How many count as worse than all of them, without a value.
    """

    def __init__(self) -> None:
        self.losers = 0
        self._entries: list[tuple[Losses, int]] = []  # sorted
        self._order: list[int] | None = None  # trials from the best to the worst, if known

    def __len__(self) -> int:
        return len(self._entries) + self.losers

    def add(self, trial: int, losses: Losses) -> None:
        bisect.insort(self._entries, (losses, trial))
        self._order = None

    def place(self, trial: int, losses: Losses) -> int:
        """How many are better than this trial, which is in; equals are not."""
        if len(losses) == 1:
            return bisect.bisect_left(self._entries, (losses, -1))
        others = [entry for entry, other in self._entries if other != trial]
        return ranking([losses, *others]).index(0)

    def best(self, count: int) -> list[int]:
        """The best trials, at most so many, from the best on; of equals the earlier numbers."""
        if not self._entries or len(self._entries[0][0]) == 1:
            return [trial for _, trial in self._entries[:count]]
        if self._order is None:
            self._order = [self._entries[index][1] for index in ranking([losses for losses, _ in self._entries])]
        return self._order[:count]


class Ladder:
    """Rungs at rising fidelities, each trial entered once in each.

    A trial's value at a rung is that of its first report at or past it, so that trials are compared at equal fidelity.

    Args:
        fidelities: Of the rungs, rising.
    """

    def __init__(self, fidelities: Sequence[int]):
        self.fidelities = list(fidelities)
        self.rungs = [Rung() for _ in fidelities]
        self._passed: dict[int, int] = {}  # by trial, how many rungs lie behind it

    def enter(self, trial: int, fidelity: int, losses: Losses) -> int | None:
        """Enters a report in all rungs that it is the first to reach; the index of the highest, if any."""
        before = self._passed.get(trial, 0)
        passed = bisect.bisect_right(self.fidelities, fidelity)
        if passed <= before:
            return None
        for rung in self.rungs[before:passed]:
            rung.add(trial, losses)
        self._passed[trial] = passed
        return passed - 1

    def start_at(self, trial: int, fidelity: int) -> None:
        """A trial that begins here, from another's checkpoint, is in none of the rungs before; no effect later."""
        self._passed.setdefault(trial, bisect.bisect_left(self.fidelities, fidelity))

    def ahead(self, trial: int) -> list[Rung]:
        """The rungs that a trial has not reached, the next one first."""
        return self.rungs[self._passed.get(trial, 0) :]
