"""Jets of Pythia 8 proton collisions, by the card of section 2.6 of the reference notes on JetLOV (arXiv 2311.14654).

Needs the package pythia8mc (`pip install -c constraints.txt 'pharos-sweeps[jets]'`), imported where it is used;
Pythia is under the GPL and no part of Pharos. What is generated are numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pharos.errors import InputError
from trainables.jetlov.jets import Jets, from_counts

_CARD = (
    "Beams:eCM = 14000",
    "PhaseSpace:pTHatMin = 450",
    # With decaying pi0 the splittings are not those that the public networks were trained on.
    "111:mayDecay = off",
    "Random:setSeed = on",
    "Print:quiet = on",
)
_HADRONIC_W = ("24:onMode = off", "24:onIfAny = 1 2 3 4 5")

PROCESSES = {
    "qcd": ("HardQCD:all = on",),
    "w": ("WeakDoubleBoson:ffbar2WW = on", *_HADRONIC_W),
    "top": ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on", *_HADRONIC_W),
}
"""What collides into what."""

DOMAINS = {
    "nominal": ("PartonLevel:MPI = off",),
    "mpi": ("PartonLevel:MPI = on",),
    "a14": ("PartonLevel:MPI = off", "Tune:pp = 21"),
    "fsr118": ("PartonLevel:MPI = off", "TimeShower:alphaSvalue = 0.118"),
    "parton": ("PartonLevel:MPI = off", "HadronLevel:all = off"),
    "vincia": ("PartonLevel:MPI = off", "PartonShowers:model = 2"),
}
"""How it is simulated; nominal is the Monash tune without multiple interactions, for speed. Vincia is slow."""

RADIUS, PT_MIN, RAPIDITY = 1.0, 500.0, 2.5
"""Of the jets: anti-kT radius, least transverse momentum in GeV, and largest rapidity."""

_EVENTS_PER_JET = 1000  # more failures than this, and something is wrong


def generate(process: str, domain: str, count: int, seed: int) -> Jets:
    """Jets of simulated events: of each event its two hardest, if they are hard and central enough.

    Args:
        process: Of `PROCESSES`.
        domain: Of `DOMAINS`.
        count: How many.
        seed: Of Pythia, 1 to 900,000,000; events of different seeds have nothing to do with each other.

    Raises:
        InputError: Pythia is not installed, or does not start.
    """
    pythia8 = _import_pythia()
    pythia = pythia8.Pythia("", False)
    for line in (*_CARD, f"Random:seed = {seed}", *PROCESSES[process], *DOMAINS[domain]):
        pythia.readString(line)
    if not pythia.init():
        raise InputError(f"Pythia does not start for {process} in {domain}; its own words are above")
    # Anti-kT of all visible final particles with their true masses; its own cut on rapidity would be one on particles.
    finder = pythia8.SlowJet(-1, RADIUS, PT_MIN, 25.0, 2, 2)
    rows: list[tuple[float, float, float, float]] = []
    counts: list[int] = []
    for _ in range(_EVENTS_PER_JET * count):
        if len(counts) >= count:
            break
        if not pythia.next():
            continue
        event = pythia.event
        finder.analyze(event)
        for jet in range(min(2, finder.sizeJet())):
            if abs(finder.y(jet)) < RAPIDITY and len(counts) < count:
                inside = [event[index] for index in finder.constituents(jet)]
                rows += [(p.px(), p.py(), p.pz(), p.e()) for p in inside]
                counts.append(len(inside))
    if len(counts) < count:
        raise InputError(f"Pythia makes no jets of {process} in {domain}: {len(counts)} of {count}")
    label = np.full(count, process != "qcd")
    return from_counts(np.array(rows), np.array(counts), label, domain)


def _import_pythia() -> Any:
    try:
        import pythia8mc
    except ImportError:
        raise InputError(
            "Pythia 8 is not installed: pip install -c constraints.txt --only-binary :all: 'pharos-sweeps[jets]'"
        ) from None
    return pythia8mc
