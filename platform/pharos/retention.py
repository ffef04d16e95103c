"""Which checkpoints stay. What somebody holds stays in any case (`Checkpoints.hold`)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pharos.checkpoint import Checkpoints, is_hold, is_manifest


@dataclass(frozen=True)
class Keep:
    """What a trial keeps while it trains.

    Attributes:
        last: How many of the newest; two, so that a damaged last one still has one before it.
        best: How many with the best objective.
        every: The first at or after each multiple of so many epochs, too; 0: none.
        mode: Whether a better objective is smaller (`min`) or larger (`max`).
    """

    last: int = 2
    best: int = 1
    every: int = 0
    mode: str = "min"


def surplus(values: Mapping[int, float | None], keep: Keep) -> set[int]:
    """The checkpoints of a trial that go.

    Args:
        values: The objective by step; None where it is not known.
        keep: What stays.
    """
    steps = sorted(values)
    stay = set(steps[-keep.last :] if keep.last else [])
    sign = 1 if keep.mode == "min" else -1
    known = {step: sign * value for step, value in values.items() if value is not None and math.isfinite(value)}
    stay |= set(sorted(known, key=lambda step: (known[step], -step))[: keep.best])
    if keep.every:
        firsts: dict[int, int] = {}
        for step in steps:
            firsts.setdefault(step // keep.every, step)
        stay |= {step for multiple, step in firsts.items() if multiple}
    return set(steps) - stay


class Retention:
    """Removes what a trial need not keep, as it saves.

    Args:
        checkpoints: The trial's.
        keep: What stays.
    """

    def __init__(self, checkpoints: Checkpoints, keep: Keep):
        # Removing need not wait for a store: what is too much goes with the next save.
        self._checkpoints = Checkpoints(checkpoints.storage.patient(0))
        self._keep = keep
        # The files that were there to begin with, and those written since: what another attempt, that takes this one
        # for dead, writes meanwhile is not this one's to remove.
        self._files = {step: set(names) for step, names in checkpoints.files().items() if any(map(is_manifest, names))}
        self._values: dict[int, float | None] = {}

    def apply(self, step: int, value: float | None, names: Collection[str]) -> None:
        """Removes what is not kept now that this step was saved.

        Args:
            step: The step.
            value: Its objective.
            names: Its files.
        """
        self._files.setdefault(step, set()).update(names)
        self._values[step] = value
        for other in set(self._files) - set(self._values):
            self._values[other] = self._checkpoints.value(other)
        # What lies past this step is damaged, or the trial would have gone on from there.
        values = {other: each for other, each in self._values.items() if other <= step}
        goes = surplus(values, self._keep) | (set(self._values) - set(values))
        if not goes:
            return
        present = self._checkpoints.files()
        for other in goes:
            there = present.get(other, {})
            if not any(map(is_hold, there)):
                self._checkpoints.remove(other, self._files[other] & set(there))
                del self._values[other], self._files[other]
