"""When a search has had enough: budgets, a target, a plateau, and a fault that is the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pharos.search.objective import Objectives


@dataclass
class Limits:
    """What ends a search before its last trial; None: nothing does.

    Attributes:
        hours: Of wall-clock, over all drivers of the sweep.
        gpu_hours: Of GPUs that were held for it (CPU cores, where trials have no GPU), busy or not.
        stop_at: A value of the objective that is good enough.
        plateau: So many trials in a row have ended without a better one.
    """

    hours: float | None = None
    gpu_hours: float | None = None
    stop_at: float | None = None
    plateau: int | None = None

    def reached(
        self,
        objectives: Objectives,
        best: float | None,
        without_gain: int,
        seconds: float,
        device_seconds: float,
    ) -> str:
        """Why the search is over; nothing: it is not.

        Args:
            objectives: What is compared.
            best: The best value of a complete trial.
            without_gain: Trials that have ended since there was a better one.
            seconds: Of wall-clock.
            device_seconds: Of the devices that were held.
        """
        if self.stop_at is not None and best is not None:
            goal = objectives.losses([self.stop_at])
            if objectives.losses([best]) <= goal:
                return f"{objectives.first.metric}={best:.6g} reached stop_at={self.stop_at:g}"
        if self.plateau is not None and without_gain >= self.plateau:
            return f"{without_gain} trials in a row brought nothing better (plateau={self.plateau})"
        if self.hours is not None and seconds >= self.hours * 3600:
            return f"it has had its time (hours={self.hours:g})"
        if self.gpu_hours is not None and device_seconds >= self.gpu_hours * 3600:
            return f"it has had its device time (gpu_hours={self.gpu_hours:g})"
        return ""


class Breaker:
    """Ends a search whose trials all fail by the same fault: it is the code's, not the values'.

    Args:
        limit: So many different configurations with the same traceback are enough; 0: never.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._seen: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}

    def trips(self, params: Mapping[str, Any], reason: str) -> bool:
        """Hears of a failed trial; whether that was the last straw.

        Args:
            params: Its values.
            reason: What it failed for. Only a traceback counts: a process or a store that was lost is nobody's fault.
        """
        place = traceback_place(reason)
        if not place or not self._limit:
            return False
        configurations = self._seen.setdefault(place, [])
        if params not in configurations:
            configurations.append(dict(params))
        return len(configurations) >= self._limit


def traceback_place(reason: str) -> tuple[str, ...]:
    """Where a traceback passed through and the kind of its error; what it says of values is left out."""
    frames = re.findall(r'^  File "(.+)", line (\d+), in (.+)$', reason, re.MULTILINE)
    if not frames:
        return ()
    kind = reason.strip().rsplit("\n", 1)[-1].partition(":")[0]
    return (*(":".join(frame) for frame in frames), kind)
