"""How fast jets are taken apart: jets a second on one core, against a plain numpy loop over each jet's merges.

    python benchmarks/declustering.py [--jets 1000] [--rounds 3] [--json FILE]

The jets have the sizes of Pythia's (68 constituents in the mean) and the shape of a shower. Both are timed in the same
run, in turns, by the processor time of this process; best of the rounds. All trees are compared: the same nodes in the
same order, the same parents, and the Lund variables to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.claims import table
from trainables.jetlov.declustering import Cuts, decluster, directions, lund_variables, wrapped
from trainables.jetlov.jets import Jets, cartesian, from_counts

Floats = npt.NDArray[np.float64]


def jets_like_pythia(count: int, mean: float = 68.0, seed: int = 0) -> Jets:
    """So many jets of about so many constituents: splittings at ever smaller angles."""
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.gamma(12.0, mean / 12, count).astype(np.int64), 1, 250)
    total = int(counts.sum())
    centre = np.repeat(rng.uniform(-2, 2, (count, 2)), counts, axis=0)
    distance, angle = np.exp(-rng.exponential(1.5, total)), rng.uniform(0, 2 * np.pi, total)
    pt = 0.3 + rng.pareto(1.2, total) * np.minimum(1 / distance, 50) ** 0.5
    y, phi = centre[:, 0] + distance * np.cos(angle), centre[:, 1] + distance * np.sin(angle)
    return from_counts(cartesian(pt, y, phi, 0.14), counts, np.arange(count) % 2, "nominal")


def plain(p4: Floats) -> tuple[list[int], Floats]:
    """One jet by the rules, with a matrix of distances: parents and Lund variables of its nodes.

    Args:
        p4: Constituents, (n, 4).
    """
    n = len(p4)
    momenta, alive = list(p4), list(range(n))
    y, phi = (list(values) for values in directions(p4))
    merged: dict[int, tuple[int, int]] = {}
    matrix = np.full((2 * n - 1, 2 * n - 1), np.inf)
    first = np.array(y)[:, None] - np.array(y)
    around = np.abs(np.array(phi)[:, None] - np.array(phi))
    matrix[:n, :n] = np.minimum(around, 2 * np.pi - around) ** 2 + first**2
    np.fill_diagonal(matrix, np.inf)
    for new in range(n, 2 * n - 1):
        a, b = divmod(int(matrix[:new, :new].argmin()), new)
        if np.hypot(*momenta[b][:2]) > np.hypot(*momenta[a][:2]):
            a, b = b, a
        merged[new] = a, b
        momenta.append(momenta[a] + momenta[b])
        own_y, own_phi = directions(momenta[new])
        alive = [k for k in alive if k not in (a, b)]
        around = np.abs(np.array(phi)[alive] - own_phi)
        row = np.minimum(around, 2 * np.pi - around) ** 2 + (np.array(y)[alive] - own_y) ** 2
        matrix[[a, b], :] = matrix[:, [a, b]] = np.inf
        matrix[new, alive] = matrix[alive, new] = row
        y.append(float(own_y))
        phi.append(float(own_phi))
        alive.append(new)
    parents: list[int] = []
    rows: list[tuple[int, int]] = []
    waiting = [(2 * n - 2, -1)] if n > 1 else []
    while waiting:
        node, parent = waiting.pop()
        if node not in merged:
            continue
        parents.append(parent)
        rows.append(merged[node])
        waiting += [(merged[node][1], len(rows) - 1), (merged[node][0], len(rows) - 1)]
    if not rows:
        return [-1], np.zeros((1, 5))
    a_, b_ = np.array(rows).T
    dy, dphi = np.array(y)[a_] - np.array(y)[b_], wrapped(np.array(phi)[a_] - np.array(phi)[b_])
    return parents, lund_variables(np.array(momenta)[a_], np.array(momenta)[b_], dy, dphi)


def compare(jets: Jets) -> int:
    """How many trees are the same by both."""
    nodes = decluster(jets, Cuts())
    same = 0
    for jet in range(len(jets)):
        parents, lund = plain(jets.p4[jets.offsets[jet] : jets.offsets[jet + 1]].astype(np.float64))
        own = slice(nodes.offsets[jet], nodes.offsets[jet + 1])
        is_alike = nodes.parent[own].tolist() == parents
        same += is_alike and bool(np.allclose(nodes.lund[own], lund, rtol=1e-5, atol=1e-5))
    return same


def main() -> None:
    """Measures, compares and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jets", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jets = jets_like_pythia(options.jets)
    ours, theirs = [], []
    for _ in range(options.rounds):
        start = time.process_time()
        decluster(jets)
        ours.append((time.process_time() - start) / len(jets))
        start = time.process_time()
        for jet in range(len(jets)):
            plain(jets.p4[jets.offsets[jet] : jets.offsets[jet + 1]].astype(np.float64))
        theirs.append((time.process_time() - start) / len(jets))
    a, b, same = min(ours), min(theirs), compare(jets)
    mean = len(jets.p4) / len(jets)
    rows = [
        ["plain numpy loop", f"{1e3 * b:.2f}", f"{1 / b:.0f}", "1"],
        ["decluster", f"{1e3 * a:.3f}", f"{1 / a:.0f}", f"{b / a:.1f}"],
    ]
    print(table([f"{len(jets)} jets of {mean:.0f} constituents", "ms a jet", "jets a second and core", "ratio"], rows))
    print(f"\n{same} of {len(jets)} trees are the same.")
    if options.json:
        options.json.write_text(json.dumps({"ms": 1e3 * a, "plain_ms": 1e3 * b, "same": same, "jets": len(jets)}))


if __name__ == "__main__":
    main()
