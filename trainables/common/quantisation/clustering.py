"""The relative-distance clustering of WFN: few centres, sums of powers of two, for a whole network's weights.

Section 4.2 of the reference notes on WFN (Subia-Waud & Dasmahapatra, arXiv 2210.13554). The authors' code builds the
matrix of all distances; here the weights are sorted once, and everything else is binary search and prefix sums:

- what is within a relative distance x of a centre lies in one interval of the sorted weights (for x >= 1, two), and
  the sum of its distances follows from counts and from a prefix sum of 1/w;
- weights that are fixed leave gaps, of which there are no more than groups, so counts among the free ones take a
  search among the gaps besides;
- how many weights are nearest to each candidate follows from the ranks of the candidates' midpoints.

One pick costs O(K log N), whatever N is; the whole O(N log N) of the sort.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_ORDER = 20
"""Terms beyond the first after which the authors' code loosens the distance instead of adding more."""
_MAX_DELTA = 0.9999
_PROBES = 64  # thresholds that are tried at once
_FEW = 4096  # weights between two thresholds that are looked at one by one

Vector = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """The weights that were fixed at one centre in one pick."""

    centre: float
    size: int
    order: int
    """Terms beyond the first that its candidates had; `MAX_ORDER + 1` when no more were added."""
    allowed: float
    """Bound of its mean distance."""
    mean_distance: float
    """Of its members that moved."""


@dataclass(frozen=True)
class Clustering:
    """What one call has decided."""

    values: Vector
    """The weights, those of `mask` at their centres, (n,)."""
    mask: Mask
    """Which are fixed, (n,)."""
    groups: tuple[Group, ...]
    """In the order in which they were picked."""

    @property
    def codebook(self) -> Vector:
        """Distinct values of the fixed weights, ascending."""
        return np.unique(self.values[self.mask] + np.float32(0))

    def by_order(self) -> dict[int, int]:
        """How many weights were fixed at each order."""
        counts: dict[int, int] = {}
        for group in self.groups:
            counts[group.order] = counts.get(group.order, 0) + group.size
        return dict(sorted(counts.items()))


# Candidates


def grid(largest: float, gamma_0: float, delta: float) -> Doubles:
    """Magnitudes from gamma_0 up to the largest weight, whose bands of relative width delta touch."""
    if largest < gamma_0:
        return np.empty(0)
    delta = min(delta, _MAX_DELTA)
    ratio = (1 + delta) / (1 - delta)
    # The point that floating point puts a hair below the largest weight is not one of its own.
    count = max(1, math.ceil(math.log(largest / gamma_0) / math.log(ratio) - 1e-9))
    return np.asarray(gamma_0 * ratio ** np.arange(count), np.float64)


def candidates(points: Doubles, gamma_0: float, delta: float, order: int) -> Doubles:
    """Centres for a grid: 0 and its points of both signs, rounded to sums of at most order + 1 powers of two.

    Rounding is in the logarithm: between 2^k and 2^(k+1) at sqrt(2) 2^k.

    Args:
        points: Of `grid`.
        gamma_0: Magnitudes below it count as zero.
        delta: What is nearer than this, relatively, gets no further term.
        order: Terms beyond the first.

    Returns:
        Ascending, (k,), symmetric about 0.
    """
    lowest = math.log2(gamma_0) - order - 1

    def power(x: Doubles) -> Doubles:
        magnitudes = np.where(x == 0, 1.0, np.abs(x))
        powers: Doubles = np.sign(x) * 2.0 ** np.maximum(lowest, np.round(np.log2(magnitudes)))
        return powers

    rounded = np.where(points < gamma_0, 0.0, power(points))
    for _ in range(order):
        rest = points - rounded
        is_far = (np.abs(rest) >= delta * points) & (rounded != 0)
        if not is_far.any():
            break
        rounded = np.where(is_far, rounded + power(rest), rounded)
    return np.unique(np.concatenate([-rounded, [0.0], rounded]) + 0.0)


# Clustering


def cluster(
    weights: Vector,
    share: float,
    delta: float,
    *,
    gamma_0: float = 2.0**-7,
    max_order: int = MAX_ORDER,
    distance: str = "relative",
    kept: Mask | None = None,
) -> Clustering:
    """Fixes a share of the weights at as few centres as the allowed distance lets them have, the most wanted first.

    Args:
        weights: All of the network's, (n,), fp32, finite.
        share: How many of them are fixed, in (0, 1]; at least one is.
        delta: Mean distance that a group may be moved by; also how dense candidates are.
        gamma_0: Magnitudes below it go to zero at no cost.
        max_order: Terms beyond the first that centres may have before the distance is loosened instead.
        distance: relative, |w - c| / |w|; or euclidean, |w - c|.
        kept: Weights that stay as they are and count as fixed, (n,); None: all are assigned anew.

    Raises:
        ValueError: A weight is not finite.
    """
    target = len(weights) if share >= 1 else max(1, int(len(weights) * share))
    free = _Free(weights, gamma_0, kept, is_relative=distance == "relative")
    groups: list[Group] = []
    order, allowed = 0, delta
    offered = free.offer(delta, order)
    while free.fixed < target:
        centre = free.most_wanted()
        members, mean = free.around(centre, allowed, target - free.fixed)
        if members:
            size = free.fix(members, centre)
            groups.append(Group(centre, size, order, allowed, mean))
            allowed = delta
            offered = free.offer(delta, min(order, max_order))
            continue
        # More terms; an order that offers nothing new would fail again.
        tried = offered
        while order < max_order and np.array_equal(offered, tried):
            order += 1
            offered = free.offer(delta, order)
        if np.array_equal(offered, tried):
            order = MAX_ORDER + 1
            allowed *= 2
    values, mask = free.result()
    return Clustering(values, mask, tuple(groups))


Span = tuple[int, int]
_REACH = 64.0  # no group reaches farther: nothing so far away has a place in a mean distance of a few hundredths


class _Free:
    """The sorted weights, and which runs of them are still free. Places are indices of the sorted weights.

    Args:
        weights: (n,).
        gamma_0: Magnitudes below it are zeros.
        kept: Weights that are fixed from the start.
        is_relative: Which distance.
    """

    def __init__(self, weights: Vector, gamma_0: float, kept: Mask | None, *, is_relative: bool):
        if not np.isfinite(weights).all():
            raise ValueError("a weight is not finite")
        self._weights = weights
        self._gamma_0 = gamma_0
        self._is_relative = is_relative
        self._kept = np.zeros(len(weights), bool) if kept is None else kept
        self._order = np.argsort(weights) if kept is None else np.flatnonzero(~kept)[np.argsort(weights[~kept])]
        self._sorted = weights[self._order]
        self._sums = np.zeros(len(self._sorted) + 1)
        np.cumsum(self._terms(), out=self._sums[1:])
        self._labels = np.zeros(len(self._sorted), np.uint16)  # 0: free; else 1 + the centre's place in `_centres`
        self._centres: list[float] = []
        self._zeros = int(self._right(np.array([-gamma_0]))[0]), int(self._left(np.array([gamma_0]))[0])
        self._made: dict[tuple[int, int], tuple[Doubles, Indices]] = {}
        self._set_runs(np.array([0]), np.array([len(self._sorted)]))

    def _terms(self) -> Doubles:
        """What sums of distances are linear in: 1/w, or w itself."""
        terms = self._sorted.astype(np.float64)
        if self._is_relative:
            # No group reaches far below gamma_0; there 1/w would only cost the others' sums their precision.
            terms[np.abs(self._sorted) < self._gamma_0 / (2 * _REACH)] = np.inf
            np.reciprocal(terms, out=terms)
        return terms

    @property
    def fixed(self) -> int:
        """How many are fixed."""
        return len(self._weights) - self._count

    def offer(self, delta: float, order: int) -> Doubles:
        """Takes up the candidates for what is free now, and returns them."""
        largest = 0.0
        if self._count:
            largest = max(abs(float(self._sorted[self._starts[0]])), abs(float(self._sorted[self._ends[-1] - 1])))
        points = grid(largest, self._gamma_0, delta)
        key = len(points), order
        if key not in self._made:
            centres = candidates(points, self._gamma_0, delta, order)
            # A weight half-way belongs to the lower one.
            self._made[key] = centres, self._right((centres[1:] + centres[:-1]) / 2)
        self._offered = self._made[key]
        return self._offered[0]

    def most_wanted(self) -> float:
        """The candidate that most free weights are nearest to, in absolute terms; of several the lowest."""
        centres, midpoints = self._offered
        below, _ = self._free_below(midpoints)
        return float(centres[np.argmax(np.diff(below, prepend=0, append=self._count))])

    def around(self, centre: float, allowed: float, most: int) -> tuple[list[Span], float]:
        """The largest group of nearest free weights whose mean distance is allowed.

        Two or more weights that are at the centre already do not dilute the mean. Zero's group is what is below
        gamma_0, as every other weight is at a relative distance of 1. Of several equally near weights those are taken
        that come first in ascending order, below the centre and then above it.

        Args:
            centre: Which.
            allowed: Mean distance.
            most: No more weights than so many.

        Returns:
            Spans of places whose free weights are the group, none if it is empty, and its mean distance.
        """
        at = self._at(centre)
        at_centre = self._free_between(*at)
        if at_centre >= most or (centre == 0 and self._is_relative):
            return (self._first(at, most) if at_centre else []), 0.0
        diluting = at_centre if at_centre < 2 else 0
        # Thresholds: `low` is allowed, `high` is not, or nothing is beyond.
        low, high = 0.0, _REACH
        probes = np.geomspace(allowed / 1000, high, _PROBES)
        while True:
            count, total = self._measure(centre, probes)
            is_allowed = (total <= allowed * (count + diluting)) & (at_centre + count <= most)
            good = int(is_allowed.argmin()) if not is_allowed.all() else len(probes)
            low = float(probes[good - 1]) if good else low
            high = float(probes[good]) if good < len(probes) else high
            inner, outer = self._measure(centre, np.array([low, high]))[0]
            if outer - inner <= _FEW or high - low <= 4 * np.spacing(high):
                break
            probes = np.linspace(low, high, _PROBES)
        count, total = (values[0] for values in self._measure(centre, np.array([low])))
        inside = self._segments(centre, np.array([low]))
        outside = self._segments(centre, np.array([high]))
        # The rest one by one.
        rest = np.concatenate([self._free_places(*span) for span in _between(inside, outside)])
        distances = self._distance(centre, rest)
        nearest = np.argsort(distances, kind="stable")[: most - at_centre - count]
        totals = total + np.cumsum(distances[nearest])
        good = int((totals <= allowed * (count + diluting + np.arange(1, len(nearest) + 1))).sum())
        if at_centre + count + good == 0:
            return [], 0.0
        moved = count + good
        mean = float(totals[good - 1] if good else total) / moved if moved else 0.0
        spans = [at, *((int(first[0]), int(last[0])) for first, last, _ in inside), *_runs_of(rest[nearest[:good]])]
        return [span for span in spans if span[0] < span[1]], mean

    def fix(self, spans: Sequence[Span], centre: float) -> int:
        """Fixes the free weights of these places, and returns how many they were."""
        if centre not in self._centres:
            self._centres.append(centre)
        label = 1 + self._centres.index(centre)
        before = self._count
        for first, last in spans:
            one, end = self._runs_in(first, last)
            if one == end:
                continue
            starts, ends = self._starts[one:end].copy(), self._ends[one:end].copy()
            left = [int(starts[0])] if starts[0] < first else []
            right = [int(ends[-1])] if ends[-1] > last else []
            starts[0], ends[-1] = max(first, starts[0]), min(last, ends[-1])
            for start, stop in zip(starts.tolist(), ends.tolist(), strict=True):
                self._labels[start:stop] = label
            self._set_runs(
                np.concatenate([self._starts[:one], left, [last] * len(right), self._starts[end:]]).astype(np.int64),
                np.concatenate([self._ends[:one], [first] * len(left), right, self._ends[end:]]).astype(np.int64),
            )
        return before - self._count

    def result(self) -> tuple[Vector, Mask]:
        """The weights, those fixed at their centres, and which are fixed."""
        values, mask = self._weights.copy(), self._kept.copy()
        is_fixed = self._labels > 0
        places = self._order[is_fixed]
        values[places] = np.array([0.0, *self._centres], np.float32)[self._labels[is_fixed]]
        mask[places] = True
        return values, mask

    # Places

    def _left(self, values: Doubles) -> Indices:
        """The first place whose weight is at least each value."""
        # In fp32, so that the weights need not be copied: the least fp32 that is no less.
        rounded = values.astype(np.float32)
        rounded = np.where(rounded < values, np.nextafter(rounded, np.float32(np.inf)), rounded)
        return np.searchsorted(self._sorted, rounded, "left")

    def _right(self, values: Doubles) -> Indices:
        """The first place whose weight is above each value."""
        rounded = values.astype(np.float32)
        rounded = np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)
        return np.searchsorted(self._sorted, rounded, "right")

    def _at(self, centre: float) -> Span:
        """The places of weights at no distance from a centre: those equal to it; for zero, all below gamma_0."""
        if centre == 0:
            return self._zeros
        return int(self._left(np.array([centre]))[0]), int(self._right(np.array([centre]))[0])

    def _segments(self, centre: float, limits: Doubles) -> list[tuple[Indices, Indices, int]]:
        """Places within each distance of a centre, without those at it: firsts, lasts, and the sign of d in them.

        The distance is sign * (1 - c/w), or sign * (w - c), all over a segment.
        """
        at = self._at(centre)
        ones = np.ones(len(limits), np.int64)
        if not self._is_relative:
            below, above = (
                np.minimum(self._left(centre - limits), at[0]),
                np.maximum(self._right(centre + limits), at[1]),
            )
            return [(below, at[0] * ones, -1), (at[1] * ones, above, 1)]
        with np.errstate(divide="ignore"):
            beyond = np.where(limits < 1, centre / (1 - limits), np.copysign(np.inf, centre))
            opposite = np.where(limits > 1, -centre / (limits - 1), np.copysign(np.inf, -centre))
        inner = centre / (1 + limits)
        if centre > 0:
            return [
                (self._left(inner), at[0] * ones, -1),
                (at[1] * ones, self._right(beyond), 1),
                (0 * ones, self._right(opposite), 1),
            ]
        return [
            (at[1] * ones, self._right(inner), -1),
            (self._left(beyond), at[0] * ones, 1),
            (self._left(opposite), len(self._sorted) * ones, 1),
        ]

    def _measure(self, centre: float, limits: Doubles) -> tuple[Indices, Doubles]:
        """How many free weights are within each distance of a centre, not at it, and the sums of their distances."""
        counts, totals = np.zeros(len(limits), np.int64), np.zeros(len(limits))
        for first, last, sign in self._segments(centre, limits):
            (below, sum_below), (upto, sum_upto) = self._free_below(first), self._free_below(last)
            count, total = upto - below, sum_upto - sum_below
            counts += count
            distances = sign * (count - centre * total if self._is_relative else total - centre * count)
            totals += np.where(count > 0, distances, 0.0)  # across a gap, sums of nothing differ by rounding
        return counts, totals

    def _distance(self, centre: float, places: Indices) -> Doubles:
        weights = self._sorted[places].astype(np.float64)
        distance: Doubles = np.abs(weights - centre)
        return distance / np.abs(weights) if self._is_relative else distance

    # Runs of free places

    def _set_runs(self, starts: Indices, ends: Indices) -> None:
        self._starts, self._ends = starts, ends
        lengths = ends - starts
        self._counts_before = np.cumsum(lengths) - lengths
        sums = self._sums[ends] - self._sums[starts]
        self._sums_before = np.cumsum(sums) - sums
        self._count = int(lengths.sum())

    def _free_below(self, places: Indices) -> tuple[Indices, Doubles]:
        """How many free weights lie before each place, and the sums of their terms."""
        if not self._count:
            return np.zeros(len(places), np.int64), np.zeros(len(places))
        run = np.maximum(np.searchsorted(self._starts, places, "right") - 1, 0)
        upto = np.clip(places, self._starts[run], self._ends[run])
        counts = self._counts_before[run] + upto - self._starts[run]
        return counts, self._sums_before[run] + self._sums[upto] - self._sums[self._starts[run]]

    def _free_between(self, first: int, last: int) -> int:
        below, _ = self._free_below(np.array([first, last]))
        return int(below[1] - below[0])

    def _runs_in(self, first: int, last: int) -> Span:
        """The runs, by index, that have places in a span."""
        if first >= last:
            return 0, 0
        one, end = np.searchsorted(self._ends, first, "right"), np.searchsorted(self._starts, last, "left")
        return int(one), int(max(one, end))

    def _free_places(self, first: int, last: int) -> Indices:
        one, end = self._runs_in(first, last)
        spans = zip(self._starts[one:end].tolist(), self._ends[one:end].tolist(), strict=True)
        parts = [np.arange(max(first, start), min(last, stop)) for start, stop in spans]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _first(self, span: Span, most: int) -> list[Span]:
        """The part of a span that has its first so many free places."""
        if self._free_between(*span) <= most:
            return [span]
        return [(span[0], int(self._free_places(*span)[most - 1]) + 1)]


def _between(inside: list[tuple[Indices, Indices, int]], outside: list[tuple[Indices, Indices, int]]) -> list[Span]:
    """Spans of the outer segments that the inner ones lack."""
    spans = []
    for (first, last, _), (outer_first, outer_last, _) in zip(inside, outside, strict=True):
        if first[0] >= last[0]:
            spans.append((int(outer_first[0]), int(outer_last[0])))
        else:
            spans += [(int(outer_first[0]), int(first[0])), (int(last[0]), int(outer_last[0]))]
    return spans


def _runs_of(places: Indices) -> list[Span]:
    """Places as spans of consecutive ones."""
    places = np.sort(places)
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(places, breaks) if len(part)]
