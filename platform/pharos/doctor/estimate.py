"""How long trials and a sweep take, and what that costs, from what was seen of a few epochs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from pharos.schedulers.choice import SchedulerConfig
from pharos.schedulers.rungs import ladder


def epoch_seconds(loops: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds of each epoch of a whole trial, in order, all loops one after the other.

    A batch takes the median of those seen in its loop, the first left out, which warms up. What else an epoch takes is
    known of those seen; of others it is the mean over those between the first and the last, if any was seen.

    Args:
        loops: From `pharos.probe.Probe.found`.
    """
    seconds: list[float] = []
    for loop in loops:
        seen = loop["seen"]
        if not seen:
            continue
        steps = [step for epoch in seen for step in epoch["steps"]]
        step = statistics.median(steps[1:] or steps or [0.0])
        between = [epoch["other"] for epoch in seen[1:-1]] or [epoch["other"] for epoch in seen[:-1]] or [0.0]
        known = {epoch["index"]: epoch for epoch in seen}
        for index in range(loop["epochs"]):
            epoch = known.get(index)
            other = epoch["other"] if epoch else statistics.fmean(between)
            batches = epoch["batches"] if epoch else seen[-1]["batches"]
            seconds.append(batches * step + other)
    return seconds


def least_seconds(epochs: Sequence[float], scheduler: SchedulerConfig, trials: int) -> float:
    """Seconds of a trial on average if the scheduler stops as many, as early, as it can.

    Args:
        epochs: Seconds of each.
        scheduler: What stops trials.
        trials: How many there are.
    """
    whole, count = sum(epochs), len(epochs)
    if scheduler.name in ("asha", "promotion", "hyperband"):
        until = [0, *ladder(count, scheduler.grace, scheduler.reduction), count]
        parts = [sum(epochs[a:b]) for a, b in itertools.pairwise(until)]
        return float(sum(part / scheduler.reduction**rung for rung, part in enumerate(parts)))
    if scheduler.name == "median":  # at best half of them stop at the first comparison
        grace = sum(epochs[: max(1, round(scheduler.grace * count))])
        return (whole + grace) / 2
    if scheduler.name == "pbt":  # who replaces another goes on from a copy: the population's length remains
        return whole * min(1.0, scheduler.population / trials)
    return whole


def sweep_seconds(trial: float, trials: int, slots: int, start: float) -> float:
    """Seconds of a sweep whose trials take so long.

    Args:
        trial: Seconds of each.
        trials: How many.
        slots: At a time.
        start: Seconds that each slot takes before its first trial.
    """
    return start + trial * max(trials / slots, 1.0)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
