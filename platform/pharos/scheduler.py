"""When to stop a trial early: a decision made from plain numbers, the same under every backend.

Ours instead of Ray Tune's, because it also serves the local backend, is rebuilt from the study on a resume, and
compares trials only at equal fidelity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

Curve = Mapping[int, float]
"""A trial's reported objective by fidelity, lower is better."""


class Asha:
    """Asynchronous successive halving, the stopping variant (Li et al., MLSys 2020, algorithm 2 of its appendix).

    A trial that reaches a rung goes on if its value is among the best 1/reduction of all values seen at that rung so
    far, its own included; the first to arrive therefore always goes on. Values are taken at the first report at or
    past the rung, so that trials are compared at equal fidelity.

    Args:
        max_fidelity: Of a whole trial; nothing is stopped there.
        grace: Share of a whole trial that every trial gets, in (0, 1].
        reduction: Between two rungs the fidelity grows by this factor, and one trial in so many goes on.
    """

    def __init__(self, max_fidelity: int, grace: float, reduction: int):
        self.rungs: list[int] = []
        fidelity = grace * max_fidelity
        while (rung := max(1, math.ceil(fidelity))) < max_fidelity:
            self.rungs.append(rung)
            fidelity *= reduction
        self._reduction = reduction

    def goes_on(self, curves: Mapping[int, Curve], trial: int, fidelity: int) -> bool:
        """Whether a trial that has just reported at this fidelity may continue.

        Args:
            curves: By trial, each with its finite values; the trial's new value included.
            trial: The one to decide about.
            fidelity: Of its newest report.
        """
        rung = self._rung_reached(curves[trial], fidelity)
        if rung is None:
            return True
        peers = sorted(value for curve in curves.values() if (value := _at(curve, rung)) is not None)
        allowed = max(1, len(peers) // self._reduction)
        return curves[trial][fidelity] <= peers[allowed - 1]

    def _rung_reached(self, curve: Curve, fidelity: int) -> int | None:
        """The highest rung for which this fidelity is the trial's first report at or past it."""
        reached = [r for r in self.rungs if min((f for f in curve if f >= r), default=0) == fidelity]
        return max(reached, default=None)


class NeverStop:
    """Every trial runs to its end."""

    def goes_on(self, curves: Mapping[int, Curve], trial: int, fidelity: int) -> bool:
        return True


def _at(curve: Curve, rung: int) -> float | None:
    return curve[min(past)] if (past := [f for f in curve if f >= rung]) else None
