"""Comparing trials by several objectives at once: ranks, the Pareto front, its hypervolume.

Losses are lower-better throughout, one number an objective; with one objective all of it is plain sorting. Dominance
and hypervolume are moocore's.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np

Losses = tuple[float, ...]
"""One number for each objective, lower is better."""


def ranking(losses: Sequence[Losses]) -> list[int]:
    """Indices from the best to the worst.

    With several objectives: by non-dominated front, and within a front those in emptier places first (crowding
    distance, Deb et al. 2002, section III-B), so that whoever takes the first few takes a spread of the front.
    Equals stay in their order.
    """
    indices = range(len(losses))
    if not losses or len(losses[0]) == 1:
        return sorted(indices, key=lambda index: losses[index])
    points = np.asarray(losses, dtype=float)
    fronts = moocore.pareto_rank(points)
    crowding = np.empty(len(points))
    for front in np.unique(fronts):
        members = np.flatnonzero(fronts == front)
        crowding[members] = _crowding(points[members])
    return sorted(indices, key=lambda index: (fronts[index], -crowding[index]))


def pareto_front(losses: Sequence[Losses]) -> list[int]:
    """Indices of those that no other is at least as good as in all objectives and better in one; equals all stay."""
    if not losses:
        return []
    kept = moocore.is_nondominated(np.asarray(losses, dtype=float), keep_weakly=True)
    return [int(index) for index in np.flatnonzero(kept)]


def hypervolume(losses: Sequence[Losses], reference: Losses) -> float:
    """The volume between the losses' front and a reference point that is worse than they are.

    Args:
        losses: Any trials'; those that do not dominate the reference add nothing.
        reference: One number for each objective.
    """
    if not losses:
        return 0.0
    return float(moocore.hypervolume(np.asarray(losses, dtype=float), ref=np.asarray(reference, dtype=float)))


def _crowding(points: np.ndarray) -> np.ndarray:
    """How far a point's neighbours on its front are from each other, over all objectives; infinite at the ends."""
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance
