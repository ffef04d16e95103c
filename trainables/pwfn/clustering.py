"""One clustering round: which weights are fixed now, and to which centre, with distances measured in their sigmas.

Source: section 4.4 of the reference notes on PWFN (arXiv 2309.13575), which follow the authors' public code
(subiawaud/PWFN). Theirs builds the matrix of all distances, centres by weights; here a weight is only the range of the
sorted centres within its reach, and weights of the same range are one cell, so that centres are chosen among cells.
The result is the same, weight by weight, in O(N) time and memory a relaxation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIGMA_FLOOR = 2.0**-20
"""Least sigma in a distance."""
_CHUNK = 1 << 18  # weights at a time: what is made of them stays in the processor's cache
_TABLE = 1 << 22  # entries of a table; what does not fit into one is found by bisection or by sorting
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """How centres are made and how the search for them is relaxed; the defaults are the paper's.

    Attributes:
        b: Centres are multiples of 2^-b; with `zero_fix`, smaller weights have distance 0 to the centre 0.
        max_powl: Most powers of two in a centre.
        inc: Factor of the tolerance when nothing more can be assigned; above 1.
        zero_fix: Whether weights below 2^-b have distance 0 to the centre 0.
    """

    b: int = 7
    max_powl: int = 4
    inc: float = 2.0
    zero_fix: bool = True


@dataclass(frozen=True)
class Group:
    """Weights that were given the same centre at the same time.

    Attributes:
        centre: The value.
        powl: Powers of two that centres might have.
        tolerance: Sigmas that a weight might move.
        count: How many weights.
    """

    centre: float
    powl: int
    tolerance: float
    count: int


@dataclass(frozen=True)
class Assignment:
    """The result of one round.

    Attributes:
        group: (N,) int32, the index of each weight's group; -1: not assigned.
        groups: In the order in which they were made.
    """

    group: Tensor
    groups: list[Group]

    @property
    def is_fixed(self) -> Tensor:
        """(N,) bool."""
        return self.group >= 0

    @property
    def centres(self) -> Tensor:
        """(N,) float32, each weight's centre; 0 where `is_fixed` is false."""
        return self._each([group.centre for group in self.groups])

    @property
    def tolerances(self) -> Tensor:
        """(N,) float32, the tolerance at which each weight was assigned; 0 where `is_fixed` is false."""
        return self._each([group.tolerance for group in self.groups])

    def _each(self, values: list[float]) -> Tensor:
        # The last entry is that of the index -1.
        return torch.tensor([*values, 0.0], device=self.group.device)[self.group.long()]


def share(fraction: float, count: int) -> int:
    """The least whole number of `count` weights that is `fraction` of them: of the decimal, as it was typed."""
    return math.ceil(Fraction(str(fraction)) * count)


def candidates(largest: float, powl: int, b: int) -> NDArray[np.int64]:
    """The centres that may be chosen, in units of 2^-b, ascending: sums of at most `powl` powers of two, and negated.

    Args:
        largest: Greatest magnitude of the weights that are left; no centre exceeds it.
        powl: Most powers of two in a sum, from 1.
        b: The smallest power of two is 2^-b.
    """
    mantissa, exponent = math.frexp(largest)
    top = exponent - 1 - (mantissa == 0.5) if largest else -b - 1  # ceil(log2(largest)) - 1
    powers = np.array([0, *(1 << k for k in range(top + b + 1))], dtype=np.int64)
    sums = powers
    for _ in range(powl - 1):
        sums = np.unique(np.add.outer(sums, powers))
    sums = sums[sums <= math.floor(largest * 2.0**b)]
    return np.unique(np.concatenate([-sums, sums]))


def relaxations(max_powl: int, delta: float, inc: float) -> Iterator[tuple[int, float]]:
    """The number of terms and the tolerance, step by step: (1, 1) (2, 1) (2, 2) (3, 2) (3, 4) (4, 4) (4, 8) ..."""
    powl, counter = 1, 1
    while True:
        yield powl, delta
        if powl < max_powl and counter % 2:
            powl += 1
        else:
            delta *= inc
        counter += 1


def cluster(mu: Tensor, sigma: Tensor, count: int, delta: float, rules: Rules) -> Assignment:
    """Assigns `count` weights to centres, greedily: always the centre that most unassigned weights can reach.

    Every weight moves by at most its tolerance in sigmas, except those below 2^-b that go to 0 (`zero_fix`). The
    result does not depend on the device.

    Args:
        mu: (N,) finite float32 weights.
        sigma: (N,) float32, on the same device; below 2^-20 it counts as that.
        count: How many to assign, at most N.
        delta: Sigmas that a weight may move at first, above 0.
        rules: The rest.
    """
    group = torch.full(mu.shape, -1, dtype=torch.int32, device=mu.device)
    groups: list[Group] = []
    left = torch.arange(len(mu), dtype=torch.int32, device=mu.device)
    target, steps = count, relaxations(rules.max_powl, delta, rules.inc)
    while target:
        powl, tolerance = next(steps)
        units = candidates(float(mu.abs().max()), powl, rules.b)
        cells, ranges, sizes = _cells(mu, sigma, units, tolerance, rules)
        owner, chosen = _choose(ranges, sizes, len(units), target)
        for centre, size in chosen:
            groups.append(Group(float(units[centre]) * 2.0**-rules.b, powl, tolerance, size))
        base = len(groups) - len(chosen)
        found = torch.from_numpy(owner).to(mu.device).index_select(0, cells)
        del cells
        if sum(size for _, size in chosen) > target:  # the last centre takes the closest, so many as are wanted
            last = groups[-1]
            over = (found == len(chosen) - 1).nonzero().squeeze(1)
            kept = target - sum(size for _, size in chosen[:-1])
            order = _distance(mu[over], sigma[over], last.centre, rules).argsort(stable=True)
            found[over[order[kept:]]] = -1
            groups[-1] = Group(last.centre, powl, tolerance, kept)
        is_taken = found >= 0
        group[left[is_taken].long()] = found[is_taken] + base
        target -= sum(each.count for each in groups[base:])
        mu, sigma, left = (each[~is_taken] for each in (mu, sigma, left))
    return Assignment(group, groups)


def _cells(
    mu: Tensor, sigma: Tensor, units: Numbers, tolerance: float, rules: Rules
) -> tuple[Tensor, Numbers, Numbers]:
    """Sorts weights into cells of the same range of centres within reach.

    Returns:
        (N,) the cell of each weight, int32; and of each cell its range, first * (K + 1) + beyond of [first, beyond)
        among the K centres, and the number of its weights, which may be 0.
    """
    width = len(units) + 1
    reach, scale = int(units[-1]), 2.0**rules.b
    first, beyond = _Rank(units, reach, mu.device, right=False), _Rank(units, reach, mu.device, right=True)
    is_dense = width * width <= _TABLE
    cells = torch.empty(mu.shape, dtype=torch.int32 if is_dense else torch.int64, device=mu.device)
    sizes = torch.zeros(width * width if is_dense else 0, dtype=torch.int64, device=mu.device)
    for start in range(0, len(mu), _CHUNK):
        part = slice(start, start + _CHUNK)
        centre, radius = mu[part].double(), sigma[part].double().clamp_min(SIGMA_FLOOR) * tolerance
        low, high = centre - radius, centre + radius
        if rules.zero_fix:
            # No other centre lies between such a weight and 0, so the range stays one.
            is_small = centre.abs() * scale < 1
            low, high = low.where(~is_small, low.clamp_max(0.0)), high.where(~is_small, high.clamp_min(0.0))
        # Times a power of two and rounded to a whole number: exact.
        cell = first((low * scale).ceil_()) * width + beyond((high * scale).floor_())
        cells[part] = cell
        if is_dense:
            sizes += torch.bincount(cell, minlength=len(sizes))
    if is_dense:
        return cells, np.arange(len(sizes)), sizes.cpu().numpy()
    ranges, cells, sizes = torch.unique(cells, return_inverse=True, return_counts=True)
    return cells.int(), ranges.cpu().numpy(), sizes.cpu().numpy()


class _Rank:
    """How many centres are below whole numbers, or with `right` up to them."""

    def __init__(self, units: Numbers, reach: int, device: torch.device, right: bool):
        self._units = torch.from_numpy(units).to(device)
        self._reach, self._right = reach, right
        self._table: Tensor | None = None
        if 2 * reach < _TABLE:
            self._table = self._look_up(torch.arange(-reach - 1, reach + 2, device=device))

    def __call__(self, numbers: Tensor) -> Tensor:
        whole = numbers.clamp_(-self._reach - 1, self._reach + 1).long()
        return self._look_up(whole) if self._table is None else self._table[whole.add_(self._reach + 1)]

    def _look_up(self, whole: Tensor) -> Tensor:
        return torch.bucketize(whole, self._units, right=self._right)


def _choose(
    ranges: Numbers, sizes: Numbers, centres: int, target: int
) -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
    """Chooses centres until `target` weights have one, or no centre reaches a weight.

    Args:
        ranges: Of `_cells`.
        sizes: Of `_cells`.
        centres: K.
        target: How many weights are wanted.

    Returns:
        The choice that took each cell, -1 for none; and each choice: the centre and its number of weights, which for
        the last one may be more than are wanted.
    """
    owner = np.full(len(sizes), -1, dtype=np.int32)
    cell = np.flatnonzero(sizes)
    size, (low, high) = sizes[cell], np.divmod(ranges[cell], centres + 1)
    chosen: list[tuple[int, int]] = []
    while target > 0:
        # Each cell adds its size from its first centre on and takes it away from the first beyond.
        steps = np.bincount(low, size, centres + 1) - np.bincount(high, size, centres + 1)
        reached = np.cumsum(steps[:centres])  # whole numbers below 2^53: exact
        best = int(np.argmax(reached))
        if not reached[best]:
            break
        is_taken = (low <= best) & (best < high)
        owner[cell[is_taken]] = len(chosen)
        chosen.append((best, int(reached[best])))
        target -= chosen[-1][1]
        cell, low, high, size = (each[~is_taken] for each in (cell, low, high, size))
    return owner, chosen


def _distance(mu: Tensor, sigma: Tensor, centre: float, rules: Rules) -> Tensor:
    """Distances to a centre in sigmas."""
    distance = (mu.double() - centre).abs() / sigma.double().clamp_min(SIGMA_FLOOR)
    if rules.zero_fix and centre == 0:
        distance[mu.abs() < 2.0**-rules.b] = 0
    return distance
