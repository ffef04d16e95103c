"""Which checkpoints stay. What somebody holds stays in any case (`Checkpoints.hold`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pharos.checkpoint import Checkpoints, is_hold


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
        self._checkpoints = checkpoints
        self._keep = keep
        self._values: dict[int, float | None] = {}  # the objective of each checkpoint that is there
        self._is_new = True

    def apply(self, step: int, value: float | None) -> None:
        """Removes what is not kept now that this step was saved, with that objective."""
        self._values[step] = value
        if self._is_new:
            self._values = self.values(self._checkpoints.steps()) | self._values
            self._is_new = False
        # What lies past this step is damaged, or the trial would have gone on from there.
        values = {other: each for other, each in self._values.items() if other <= step}
        goes = surplus(values, self._keep) | (set(self._values) - set(values))
        if not goes:
            return
        files = self._checkpoints.files()
        for other in goes:
            names = files.get(other, {})
            if not any(is_hold(name) for name in names):
                self._checkpoints.remove(other, names)
                del self._values[other]

    def values(self, steps: Iterable[int]) -> dict[int, float | None]:
        """The objective of each checkpoint; None where it is not known."""
        return {step: self._value(step) for step in steps}

    def _value(self, step: int) -> float | None:
        if step not in self._values:
            try:
                self._values[step] = self._checkpoints.manifest(step)["value"]
            except (OSError, ValueError, KeyError):
                self._values[step] = None
        return self._values[step]
