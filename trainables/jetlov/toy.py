"""A toy shower with a known Lund plane: the data that are always there.

Section 2.6 (tier A) of the reference notes on JetLOV (arXiv 2311.14654): a leading-logarithmic shower, by angle.
All partons of all jets shower side by side, so that there is one pass over emissions and not one over jets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainables.jetlov.jets import Jets, cartesian, from_counts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

C_F, C_A = 4 / 3, 3.0
RADIUS = 1.0
_M_Z, _M_W, _WIDTH_W, _M_TOP = 91.1876, 80.4, 2.1, 173.0
_B0 = 23 / (12 * np.pi)
_PT = (500.0, 600.0)  # GeV; falls as pT^-5
_UNDERLYING_PT = 1.0  # GeV, the mean of its particles


@dataclass(frozen=True)
class Domain:
    """How a jet showers."""

    alpha: float = 0.1365
    """alpha_s at the mass of the Z; Pythia's default of its final-state shower."""
    kt_cut: float = 1.0
    """GeV: nothing softer is emitted."""
    underlying: float = 0.0
    """Mean number of soft particles from elsewhere."""
    is_hard: bool = True
    """Whether emissions that take much of the momentum have their matrix element's weight; else 2 alpha_s C / pi."""


DOMAINS = {
    "nominal": Domain(),
    "alpha118": Domain(alpha=0.118),
    "alpha150": Domain(alpha=0.150),
    "kt07": Domain(kt_cut=0.7),
    "kt2": Domain(kt_cut=2.0),
    "ue": Domain(underlying=5.0),
}


def alpha_s(kt: npt.NDArray[np.float64] | float, alpha: float) -> Floats:
    """The coupling at one loop."""
    return np.asarray(alpha / (1 + alpha * _B0 * np.log(np.square(kt) / _M_Z**2)))


@dataclass
class Partons:
    """Partons that may still radiate."""

    jet: Ints
    """Whose they are, (P,)."""
    pt: Floats
    """GeV."""
    y: Floats
    """Relative to the jet's axis."""
    phi: Floats
    """The same."""
    colour: Floats
    """C_F or C_A."""
    depth: Floats
    """ln 1/Delta of the last emission: the next is at a smaller angle."""

    def chosen(self, which: npt.NDArray[np.bool_]) -> Partons:
        """Some of them."""
        return Partons(*(part[which] for part in vars(self).values()))

    def __add__(self, other: Partons) -> Partons:
        return Partons(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


def make_jets(task: str, per_class: int, domain: str, seed: int) -> Jets:
    """Jets of signal and background, as many of each, one after the other.

    Args:
        task: w, top or qg.
        per_class: How many.
        domain: Of `DOMAINS`.
        seed: Of everything that is drawn.
    """
    rng, setting = np.random.default_rng(seed), DOMAINS[domain]
    label = np.arange(2 * per_class) % 2
    pt = _power_law(rng, len(label))
    signal, background = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    if task == "qg":
        start = _single(signal, pt[signal], C_F) + _single(background, pt[background], C_A)
    else:
        colour = np.where(rng.random(len(background)) < 0.5, C_F, C_A)
        decay = _top if task == "top" else _w
        start = decay(rng, signal, pt[signal]) + _single(background, pt[background], colour)
    leaves = shower(rng, start, setting)
    leaves = leaves + _underlying(rng, len(label), setting)
    axis_y, axis_phi = rng.uniform(-2, 2, len(label)), rng.uniform(0, 2 * np.pi, len(label))
    order = np.argsort(leaves.jet, kind="stable")
    jet = leaves.jet[order]
    p4 = cartesian(leaves.pt[order], leaves.y[order] + axis_y[jet], leaves.phi[order] + axis_phi[jet], 0.0)
    return from_counts(p4, np.bincount(jet, minlength=len(label)), label, domain)


def shower(rng: np.random.Generator, start: Partons, domain: Domain) -> Partons:
    """What partons have become when nothing harder than the cut is left to emit.

    Emissions of a parton follow each other at smaller and smaller angles. With the rate of the largest coupling their
    number down to an angle is the area of a triangle in the plane of ln 1/Delta and ln kt, which is inverted; each is
    then accepted with the share of the true rate, which makes that exact.
    """
    done: list[Partons] = []
    active = start
    highest = float(alpha_s(domain.kt_cut, domain.alpha))
    while len(active.jet):
        rate = 2 * highest * active.colour / np.pi
        top = np.log(active.pt / 2 / domain.kt_cut)  # ln 1/Delta at which z = 1/2 has the least kt
        rest = np.maximum(top - active.depth, 0) ** 2 + 2 * np.log(rng.random(len(rate))) / rate
        is_on = rest > 0
        done.append(active.chosen(~is_on))
        active, rest, top = active.chosen(is_on), rest[is_on], top[is_on]
        active.depth = top - np.sqrt(rest)
        delta = np.exp(-active.depth)
        kt = domain.kt_cut * np.exp(rng.random(len(delta)) * np.sqrt(rest))
        z = kt / (active.pt * delta)
        share = alpha_s(kt, domain.alpha) / highest
        if domain.is_hard:
            share = share * np.where(active.colour == C_A, (1 - z + z**2) ** 2, 1 - z + z**2 / 2)
        is_emitted = rng.random(len(delta)) < share
        angle = rng.uniform(0, 2 * np.pi, len(delta))
        softer = active.chosen(is_emitted)
        along, across = (delta * np.cos(angle))[is_emitted], (delta * np.sin(angle))[is_emitted]
        z = z[is_emitted]
        softer.pt, softer.colour = z * softer.pt, np.full(len(z), C_A)
        softer.y, softer.phi = softer.y + (1 - z) * along, softer.phi + (1 - z) * across
        active.pt[is_emitted] *= 1 - z
        active.y[is_emitted] -= z * along
        active.phi[is_emitted] -= z * across
        active = active + softer
    result = done[0]
    for part in done[1:]:
        result = result + part
    return result


def _power_law(rng: np.random.Generator, count: int) -> Floats:
    low, high = (edge**-4 for edge in _PT)
    return np.asarray((low + rng.random(count) * (high - low)) ** (-1 / 4))


def _single(jet: Ints, pt: Floats, colour: Floats | float) -> Partons:
    """One parton a jet, that radiates from the jet's radius inwards."""
    zeros = np.zeros(len(jet))
    return Partons(
        jet, pt.copy(), zeros, zeros.copy(), np.broadcast_to(colour, zeros.shape).copy(), zeros - np.log(RADIUS)
    )


def _w(rng: np.random.Generator, jet: Ints, pt: Floats) -> Partons:
    """Two quarks of a W, each radiating from their angle inwards."""
    quarks = _until_inside(pt, lambda p: _two_body(rng, p, _w_mass(rng, len(p)), 0.0, 0.0))
    return _radiating(jet, quarks)


def _top(rng: np.random.Generator, jet: Ints, pt: Floats) -> Partons:
    """The b quark and the two quarks of the W of a top."""

    def decay(p: Floats) -> list[Floats]:
        mass_w = np.minimum(_w_mass(rng, len(p)), _M_TOP - 5)
        b, w = _two_body(rng, p, np.full(len(p), _M_TOP), 0.0, mass_w)
        return [b, *_decayed(rng, w, mass_w, 0.0, 0.0)]

    return _radiating(jet, _until_inside(pt, decay))


def _w_mass(rng: np.random.Generator, count: int) -> Floats:
    """Breit-Wigner, its tails cut."""
    return np.asarray(np.clip(_M_W + _WIDTH_W / 2 * np.tan(np.pi * (rng.random(count) - 0.5)), 60, 100))


def _until_inside(pt: Floats, decay: Callable[[Floats], list[Floats]]) -> list[Floats]:
    """Daughters (…, 4) of jets along x, decayed again until all are inside of the jet."""
    daughters = decay(pt)
    while True:
        is_out = np.any([np.hypot(*_offset(q)) > RADIUS for q in daughters], axis=0)
        if not is_out.any():
            return daughters
        for old, new in zip(daughters, decay(pt[is_out]), strict=True):
            old[is_out] = new


def _two_body(
    rng: np.random.Generator, pt: Floats, mass: Floats, m1: Floats | float, m2: Floats | float
) -> list[Floats]:
    parent = np.stack([pt, np.zeros_like(pt), np.zeros_like(pt), np.hypot(pt, mass)], axis=1)
    return _decayed(rng, parent, mass, m1, m2)


def _decayed(
    rng: np.random.Generator, parent: Floats, mass: Floats, m1: Floats | float, m2: Floats | float
) -> list[Floats]:
    """Momenta of an isotropic decay into two, each (n, 4).

    Args:
        rng: Where the directions come from.
        parent: px, py, pz, E, (n, 4).
        mass: Of the parents, (n,).
        m1: Of the first daughters.
        m2: Of the second.
    """
    e1 = (mass**2 + np.square(m1) - np.square(m2)) / (2 * mass)
    p = np.sqrt(np.maximum(e1**2 - np.square(m1), 0))
    cos, angle = rng.uniform(-1, 1, len(mass)), rng.uniform(0, 2 * np.pi, len(mass))
    sin = np.sqrt(1 - cos**2)
    direction = np.stack([sin * np.cos(angle), sin * np.sin(angle), cos], axis=1)
    first = _boosted(np.concatenate([p[:, None] * direction, e1[:, None]], axis=1), parent, mass)
    return [first, parent - first]


def _boosted(p4: Floats, parent: Floats, mass: Floats) -> Floats:
    """Momenta in the parents' rest frames, seen from where the parents fly."""
    inner = (p4[:, :3] * parent[:, :3]).sum(axis=1)
    energy = (p4[:, 3] * parent[:, 3] + inner) / mass
    factor = (inner / (parent[:, 3] + mass) + p4[:, 3]) / mass
    return np.concatenate([p4[:, :3] + factor[:, None] * parent[:, :3], energy[:, None]], axis=1)


def _offset(p4: Floats) -> tuple[Floats, Floats]:
    """Rapidity (of what is massless) and azimuth relative to the x axis."""
    pt = np.hypot(p4[:, 0], p4[:, 1])
    return np.arcsinh(p4[:, 2] / pt), np.arctan2(p4[:, 1], p4[:, 0])


def _radiating(jet: Ints, quarks: list[Floats]) -> Partons:
    """Quarks of a decay, each radiating below the angle to the nearest other."""
    offsets = [_offset(q) for q in quarks]
    parts = []
    for index, (y, phi) in enumerate(offsets):
        others = [np.hypot(y - b, phi - c) for other, (b, c) in enumerate(offsets) if other != index]
        nearest = np.minimum(RADIUS, np.min(others, axis=0))
        quark = quarks[index]
        own = np.hypot(quark[:, 0], quark[:, 1])
        parts.append(
            Partons(jet, own, y.copy(), phi.copy(), np.full(len(jet), C_F), -np.log(np.maximum(nearest, 1e-6)))
        )
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _underlying(rng: np.random.Generator, count: int, domain: Domain) -> Partons:
    """Soft particles, evenly over the jet's area."""
    jet = np.repeat(np.arange(count), rng.poisson(domain.underlying, count))
    distance, angle = RADIUS * np.sqrt(rng.random(len(jet))), rng.uniform(0, 2 * np.pi, len(jet))
    pt = rng.exponential(_UNDERLYING_PT, len(jet)) + 1e-3
    y, phi = distance * np.cos(angle), distance * np.sin(angle)
    return Partons(jet, pt, y, phi, np.full(len(jet), C_A), np.zeros(len(jet)))
