"""Jets reclustered and taken apart again, many at a time: from constituents to the tree of splittings.

Section 2.4 of the reference notes on JetLOV (arXiv 2311.14654), whose rules are those of LundNet (arXiv 2012.08526).

Every object keeps its nearest neighbour. A merge then costs one row of distances, and a row for each object whose
neighbour is gone: O(n) instead of the O(n^2) of a matrix that is searched. One loop over merges serves a whole block of
jets. They are sorted by size and enter that loop when it has come down to their own number of objects, so that nothing
is computed for padding; a merged pair's second place is taken by the last object, so that those alive stay together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.jetlov.jets import Jets

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALGORITHMS = {"CA": 0, "kt": 1, "antikt": -1}
"""Powers of the transverse momenta in the distance: Cambridge/Aachen has none."""
LUND = ("ln z", "ln Delta", "psi", "ln m", "ln kt")
"""The Lund variables of a splitting (section 2.5), in their order."""
RAW = ("pT a", "eta a", "phi a", "m a", "pT b", "eta b", "phi b", "m b")
"""The momenta of its two subjets, the harder first: GeV and radians."""

_JETS_AT_ONCE = 512
_ROWS_AT_ONCE = 2**17  # distances, when neighbours are first looked for
_GUARD = 1e-8  # in each logarithm: massless pairs, and particles with next to no pT
_LEAST_DELTA = 1e-6
_MOST_RAPIDITY = 1e5


@dataclass(frozen=True)
class Cuts:
    """What becomes a node of the tree."""

    kt_min: float = 0.0
    """GeV: softer splittings are no nodes; their harder branch is followed in their place."""
    delta_min: float = 0.0
    """Narrower splittings are taken for a single particle."""
    algorithm: str = "CA"
    """How the jet is reclustered: CA, kt or antikt."""
    secondary: bool = True
    """Whether softer branches are followed, too; False: the primary plane alone."""


@dataclass(frozen=True)
class Nodes:
    """The splittings of many jets, each jet's in depth-first order, harder branches first."""

    raw: npt.NDArray[np.float32]
    """`RAW` of each splitting, (N, 8); zeros where a jet has none."""
    lund: npt.NDArray[np.float32]
    """`LUND`, (N, 5)."""
    parent: npt.NDArray[np.int32]
    """Place of the splitting before it, inside its jet, (N,); -1 of the first."""
    offsets: Ints
    """Where each jet's nodes begin, (J + 1,)."""


def decluster(jets: Jets, cuts: Cuts | None = None) -> Nodes:
    """The trees of jets, at least one node each.

    Args:
        jets: Constituents.
        cuts: Which splittings count.
    """
    counts = np.diff(jets.offsets)
    order = np.argsort(-counts, kind="stable")
    parts = []
    for start in range(0, len(order), _JETS_AT_ONCE):
        chosen = order[start : start + _JETS_AT_ONCE]
        momenta = _padded(jets.p4, jets.offsets[chosen], counts[chosen])
        parts.append((chosen, _trees(_cluster(momenta, counts[chosen], cuts or Cuts()), cuts or Cuts())))
    return _in_order(parts, len(counts))


@dataclass(frozen=True)
class _History:
    """How a block of jets was clustered: objects are the n places of constituents, then one for each merge.

    The last merge of every jet is the block's last; a jet of m constituents has no part in the first n - m.
    """

    momenta: Floats
    """px, py, pz, E of each object, (B, 2n - 1, 4)."""
    y: Floats
    """Rapidity, (B, 2n - 1)."""
    phi: Floats
    """Azimuth in [0, 2 pi), (B, 2n - 1)."""
    children: Ints
    """The two objects of each merge, harder first, (B, n - 1, 2)."""
    active: list[int]
    """How many jets, the first of the block, take part in each merge."""


def _padded(p4: npt.NDArray[np.float32], starts: Ints, counts: Ints) -> Floats:
    """Momenta of so many jets, (B, most constituents, 4), in float64."""
    place = np.arange(counts[0])
    rows = np.minimum(starts[:, None] + place, len(p4) - 1)
    return np.where((place < counts[:, None])[..., None], p4[rows], 0).astype(np.float64)


class _Alive:
    """The objects of a block of jets that are not merged yet: the first places of each row."""

    def __init__(self, y: Floats, phi: Floats, pt2: Floats, power: int):
        self._power = power
        self.y, self.phi, self.weight = y.copy(), phi.copy(), _weight(pt2, power)
        self.name = np.tile(np.arange(y.shape[1]), (len(y), 1))
        self.near, self.distance = np.zeros(y.shape, dtype=np.int64), np.full(y.shape, np.inf)

    def enter(self, jets: slice, width: int) -> None:
        """Finds the neighbours in jets that have so many objects."""
        for some in _blocks(jets, max(1, _ROWS_AT_ONCE // width**2)):
            rows, columns = (some, slice(width), None), (some, None, slice(width))
            d = self._between(rows, columns)
            d[:, np.arange(width), np.arange(width)] = np.inf
            self.near[some, :width] = d.argmin(axis=2)
            self.distance[some, :width] = d.min(axis=2)

    def closest(self, jets: int, width: int) -> tuple[Ints, Ints]:
        """The places of the closest pair of each of the first jets, the lower first."""
        one = self.distance[:jets, :width].argmin(axis=1)
        other = self.near[np.arange(jets), one]
        return np.minimum(one, other), np.maximum(one, other)

    def replace(self, low: Ints, high: Ints, last: int, new: tuple[int, Floats, Floats, Floats]) -> None:
        """Puts the merged pair into the lower place and the last object into the higher one.

        Args:
            low: Of each of the first jets.
            high: The same.
            last: The place that is free afterwards.
            new: Name, rapidities, azimuths and squared transverse momenta of what the pairs became.
        """
        jets, r = len(low), np.arange(len(low))
        for values in (self.y, self.phi, self.weight, self.name, self.near, self.distance):
            values[r, high] = values[:jets, last]
        self.name[r, low], self.y[r, low], self.phi[r, low] = new[:3]
        self.weight[r, low] = _weight(new[3], self._power)
        if last == 1:  # one object is left
            return
        near, nearest = self.near[:jets, :last], self.distance[:jets, :last]
        is_lost = (near == low[:, None]) | (near == high[:, None])
        np.copyto(near, high[:, None], where=near == last)
        d = self._between((slice(jets), slice(last)), (r, low, None))
        d[r, low] = np.inf
        is_closer = d < nearest
        np.copyto(nearest, d, where=is_closer)
        np.copyto(near, low[:, None], where=is_closer)
        self.near[r, low] = found = d.argmin(axis=1)
        self.distance[r, low] = d[r, found]
        is_lost[r, low] = False
        jet, place = np.nonzero(is_lost)
        if len(jet):
            d = self._between((jet, slice(last)), (jet, place, None))
            which = np.arange(len(jet))
            d[which, place] = np.inf
            self.near[jet, place] = found = d.argmin(axis=1)
            self.distance[jet, place] = d[which, found]

    def _between(self, one: Any, other: Any) -> Floats:
        """Squared distances of objects at two sets of places, broadcast."""
        around = np.abs(self.phi[one] - self.phi[other])
        np.minimum(around, 2 * np.pi - around, out=around)
        along = self.y[one] - self.y[other]
        along *= along
        around *= around
        along += around
        if self._power:
            along *= np.minimum(self.weight[one], self.weight[other])
        return np.asarray(along)


def _cluster(p4: Floats, counts: Ints, cuts: Cuts) -> _History:
    """Merges the closest pair of each jet until one object is left.

    Args:
        p4: Constituents, (B, n, 4).
        counts: How many each jet has, falling.
        cuts: Whose algorithm.
    """
    block, n = p4.shape[:2]
    momenta, children = np.zeros((block, 2 * n - 1, 4)), np.zeros((block, n - 1, 2), dtype=np.int64)
    y, phi, pt2 = (np.zeros((block, 2 * n - 1)) for _ in range(3))
    momenta[:, :n], pt2[:, :n] = p4, _pt2(p4)
    y[:, :n], phi[:, :n] = directions(p4)
    alive = _Alive(y[:, :n], phi[:, :n], pt2[:, :n], ALGORITHMS[cuts.algorithm])
    active = [int(np.searchsorted(-counts, -width, side="right")) for width in range(n, 1, -1)]
    entered = 0
    for step, jets in enumerate(active):
        width, new, r = n - step, n + step, np.arange(jets)
        alive.enter(slice(entered, jets), width)
        entered = jets
        low, high = alive.closest(jets, width)
        first, second = alive.name[r, low], alive.name[r, high]
        is_swapped = pt2[r, second] > pt2[r, first]
        children[:jets, step, 0] = np.where(is_swapped, second, first)
        children[:jets, step, 1] = np.where(is_swapped, first, second)
        total = momenta[r, first] + momenta[r, second]
        momenta[:jets, new], pt2[:jets, new] = total, _pt2(total)
        y[:jets, new], phi[:jets, new] = directions(total)
        alive.replace(low, high, width - 1, (new, y[:jets, new], phi[:jets, new], pt2[:jets, new]))
    return _History(momenta, y, phi, children, active)


def _blocks(whole: slice, size: int) -> Iterator[slice]:
    for first in range(whole.start, whole.stop, size):
        yield slice(first, min(whole.stop, first + size))


def _pt2(p4: Floats) -> Floats:
    return np.asarray(p4[..., 0] ** 2 + p4[..., 1] ** 2)


def _weight(pt2: Floats, power: int) -> Floats:
    if power == 0:
        return np.ones_like(pt2)
    return np.maximum(pt2, 1e-30) ** power


def directions(p4: Floats) -> tuple[Floats, Floats]:
    """Rapidity, bounded, and azimuth in [0, 2 pi) of momenta (…, 4)."""
    pz, energy = p4[..., 2], p4[..., 3]
    mt2 = np.maximum(_pt2(p4) + np.maximum(energy**2 - pz**2 - _pt2(p4), 0), 1e-300)
    # By the sum of E and |pz|, as their difference loses its digits along the beam.
    y = np.log(np.maximum(energy + np.abs(pz), 1e-150) / np.sqrt(mt2))
    y = np.copysign(np.minimum(y, _MOST_RAPIDITY), pz)
    phi = np.arctan2(p4[..., 1], p4[..., 0])
    return y, np.where(phi < 0, phi + 2 * np.pi, phi)


def wrapped(angle: Floats) -> Floats:
    """Differences of azimuths in [-pi, pi)."""
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)


def _trees(history: _History, cuts: Cuts) -> Nodes:
    """Nodes of a block of jets: which merges count, where they stand, and their variables."""
    block, merges = history.children.shape[:2]
    n, rows = merges + 1, np.arange(block)[:, None]
    a, b = history.children[..., 0], history.children[..., 1]
    pt_b = np.sqrt(_pt2(history.momenta[rows, b]))
    dy = history.y[rows, a] - history.y[rows, b]
    dphi = wrapped(history.phi[rows, a] - history.phi[rows, b])
    delta = np.maximum(_LEAST_DELTA, np.hypot(dy, dphi))
    goes_on = ~(delta < cuts.delta_min)
    is_node = goes_on & (pt_b * delta >= cuts.kt_min)
    sizes = np.zeros((block, n + merges), dtype=np.int64)  # nodes below each object
    for step, jets in enumerate(history.active):
        r = rows[:jets, 0]
        below = sizes[r, a[:jets, step]]
        if cuts.secondary:
            below = below + is_node[:jets, step] * sizes[r, b[:jets, step]]
        sizes[:jets, n + step] = goes_on[:jets, step] * below + is_node[:jets, step]
    place = np.full((block, n + merges), -1)  # of an object's splitting among its jet's nodes; -1: it has no part
    up = np.full((block, n + merges), -1)  # the node before it
    if merges:
        place[: history.active[-1], -1] = 0
    for step, jets in reversed(list(enumerate(history.active))):
        r, here = rows[:jets, 0], place[:jets, n + step]
        node, harder, softer = is_node[:jets, step] & (here >= 0), a[:jets, step], b[:jets, step]
        before = np.where(node, here, up[:jets, n + step])
        place[r, harder] = np.where(goes_on[:jets, step] & (here >= 0), here + node, -1)
        up[r, harder] = before
        if cuts.secondary:
            place[r, softer] = np.where(node, here + 1 + sizes[r, harder], -1)
            up[r, softer] = before

    does_count = is_node & (place[:, n:] >= 0)
    for step, jets in enumerate(history.active):
        does_count[jets:, step] = False
    counts = does_count.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(counts, 1))])
    jet, merge = np.nonzero(does_count)
    row = offsets[jet] + place[jet, n + merge]
    raw, lund = np.zeros((offsets[-1], 8), np.float32), np.zeros((offsets[-1], 5), np.float32)
    parent = np.full(offsets[-1], -1, np.int32)
    parent[row] = up[jet, n + merge]
    p_a, p_b = history.momenta[jet, a[jet, merge]], history.momenta[jet, b[jet, merge]]
    raw[row] = raw_variables(p_a, p_b)
    lund[row] = lund_variables(p_a, p_b, dy[jet, merge], dphi[jet, merge])
    return Nodes(raw, lund, parent, offsets)


def lund_variables(p_a: Floats, p_b: Floats, dy: Floats, dphi: Floats) -> Floats:
    """The five Lund variables of splittings (section 2.5), (N, 5).

    Args:
        p_a: The harder subjets, (N, 4).
        p_b: The softer ones.
        dy: Difference of their rapidities, a minus b, (N,).
        dphi: Of their azimuths, wrapped.
    """
    pt_a, pt_b = np.sqrt(_pt2(p_a)), np.sqrt(_pt2(p_b))
    delta = np.maximum(_LEAST_DELTA, np.hypot(dy, dphi))
    psi = np.where(dphi == 0, 0.0, np.arctan(dy / np.where(dphi == 0, 1.0, dphi)))
    mass = np.sqrt(np.abs(_mass2(p_a + p_b)))
    z = pt_b / np.maximum(pt_a + pt_b, 1e-300)
    logarithms = [np.log(value + _GUARD) for value in (z, delta, mass, pt_b * delta)]
    return np.stack([logarithms[0], logarithms[1], psi, logarithms[2], logarithms[3]], axis=1)


def raw_variables(p_a: Floats, p_b: Floats) -> Floats:
    """pT, pseudorapidity, azimuth and mass (with the sign of its square) of both subjets, (N, 8)."""
    parts = []
    for p4 in (p_a, p_b):
        pt = np.sqrt(_pt2(p4))
        eta = np.arcsinh(p4[:, 2] / np.maximum(pt, 1e-300))
        eta = np.clip(eta, -_MOST_RAPIDITY, _MOST_RAPIDITY)
        mass2 = _mass2(p4)
        parts += [pt, eta, directions(p4)[1], np.copysign(np.sqrt(np.abs(mass2)), mass2)]
    return np.stack(parts, axis=1)


def _mass2(p4: Floats) -> Floats:
    return np.asarray(p4[..., 3] ** 2 - p4[..., 2] ** 2 - _pt2(p4))


def _in_order(parts: list[tuple[Ints, Nodes]], count: int) -> Nodes:
    """Nodes of all jets in their first order."""
    sizes = np.zeros(count, dtype=np.int64)
    for chosen, nodes in parts:
        sizes[chosen] = np.diff(nodes.offsets)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    raw, lund = np.zeros((offsets[-1], 8), np.float32), np.zeros((offsets[-1], 5), np.float32)
    parent = np.zeros(offsets[-1], np.int32)
    for chosen, nodes in parts:
        rows = np.repeat(offsets[chosen] - nodes.offsets[:-1], np.diff(nodes.offsets)) + np.arange(nodes.offsets[-1])
        raw[rows], lund[rows], parent[rows] = nodes.raw, nodes.lund, nodes.parent
    return Nodes(raw, lund, parent, offsets)
