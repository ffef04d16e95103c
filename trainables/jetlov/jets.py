"""Jets as plain arrays: constituents one after the other, and the files that hold them.

Section 2.3 of the reference notes on JetLOV (arXiv 2311.14654), layer 1.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pharos.errors import InputError


@dataclass(frozen=True)
class Jets:
    """So many jets.

    Raises:
        InputError: One has no constituent, or not finite ones.
    """

    p4: npt.NDArray[np.float32]
    """px, py, pz, E of all constituents in GeV, (C, 4)."""
    offsets: npt.NDArray[np.int64]
    """Where each jet's begin, (J + 1,)."""
    label: npt.NDArray[np.int8]
    """1 of signal, 0 of background, (J,)."""
    domain: str = "nominal"
    """Where they come from: all jets of one object are of one domain."""

    def __post_init__(self) -> None:
        empty = np.flatnonzero(np.diff(self.offsets) < 1)
        if len(empty):
            raise InputError(f"{self.domain}: jet {empty[0]} has no constituents ({len(empty)} such jets)")
        if not np.isfinite(self.p4).all():
            raise InputError(f"{self.domain}: momenta that are no numbers")

    def __len__(self) -> int:
        return len(self.label)

    def take(self, chosen: npt.NDArray[np.int64]) -> Jets:
        """Some of them, in that order."""
        counts = np.diff(self.offsets)[chosen]
        rows = ragged(self.offsets[:-1][chosen], counts)
        return Jets(self.p4[rows], _offsets(counts), self.label[chosen], self.domain)


def ragged(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start, start + 1, … of each, `count` long, one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - ends + counts, counts)


def _offsets(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def from_padded(p4: npt.NDArray[Any], label: npt.NDArray[Any], domain: str) -> Jets:
    """Jets of a zero-padded array (J, M, 4) of px, py, pz, E; constituents without energy are dropped."""
    is_real = p4[..., 3] != 0
    return Jets(p4[is_real].astype(np.float32), _offsets(is_real.sum(axis=1)), label.astype(np.int8), domain)


def from_counts(p4: npt.NDArray[Any], counts: npt.NDArray[Any], label: npt.NDArray[Any], domain: str) -> Jets:
    """Jets of constituents (C, 4) one after the other, so many each; those without energy are dropped."""
    is_real = p4[:, 3] != 0
    kept = np.bincount(np.repeat(np.arange(len(counts)), counts)[is_real], minlength=len(counts))
    return Jets(p4[is_real].astype(np.float32), _offsets(kept), label.astype(np.int8), domain)


def cartesian(
    pt: npt.NDArray[Any], y: npt.NDArray[Any], phi: npt.NDArray[Any], mass: npt.NDArray[Any] | float
) -> npt.NDArray[np.float64]:
    """px, py, pz, E of transverse momenta, rapidities, azimuths and masses, (…, 4)."""
    mt = np.sqrt(np.square(pt) + np.square(mass))
    parts = (pt * np.cos(phi), pt * np.sin(phi), mt * np.sinh(y), mt * np.cosh(y))
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def joined(parts: Sequence[Jets]) -> Jets:
    """All jets of several, which are of one domain."""
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    p4, label = (np.concatenate([getattr(part, name) for part in parts]) for name in ("p4", "label"))
    return Jets(p4, _offsets(counts), label, parts[0].domain)


def save(jets: Jets, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a shard; it is there whole or not at all.

    Args:
        jets: What.
        path: `jets-<split>-….npz`.
        about: How they were made: becomes JSON.
    """
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(
            file,
            p4=jets.p4,
            offsets=jets.offsets,
            label=jets.label,
            domain=np.array(jets.domain),
            meta=np.array(json.dumps(dict(about))),
        )
    part.rename(path)


def load(path: Path) -> Jets:
    """A shard that `save` wrote.

    Raises:
        InputError: It is something else, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Jets(file["p4"], file["offsets"], file["label"], str(file["domain"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise InputError(f"{path}: not a file of jets (p4, offsets, label, domain): {reason}") from None
