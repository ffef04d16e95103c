"""Readers of the public data sets: whatever the file, out come constituents, labels and the domain.

Section 2.1 to 2.3 of the reference notes on JetLOV (arXiv 2311.14654). A domain is a name in a file's name (shards,
lundnet), else a folder in the root; `nominal` is the root itself.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pharos.errors import InputError
from trainables.jetlov.jets import Jets, cartesian, from_counts, from_padded, joined, load

_BACKGROUND = "qcd"
_LUNDNET = {"w": ("WW", "QCD"), "top": ("Top", "QCD"), "qg": ("Quark", "Gluon")}
_LUNDNET_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
_JETCLASS = {"w": ("label_Wqq",), "top": ("label_Tbqq",)}
_NPZ_SHARES = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}


@dataclass(frozen=True)
class Source:
    """A file, and what of it is meant."""

    path: Path
    part: str = ""
    """lundnet: signal or background; npz: the split."""


def find(source: str, root: Path, task: str, split: str, domain: str) -> list[Source]:
    """The files of one split of one domain.

    Args:
        source: Of `settings.SOURCES`, but toy.
        root: The folder.
        task: w, top or qg.
        split: train, val or test.
        domain: Which.

    Raises:
        InputError: There are none.
    """
    if not root.is_dir():
        raise InputError(f"recipe.data.root={root}: no such folder")
    if source == "shards":
        names = [f"jets-{split}-{process}-{domain}-*.npz" for process in (task, _BACKGROUND)]
        found = [[Source(path) for path in sorted(root.glob(name))] for name in names]
    elif source == "lundnet":
        folder = root / _LUNDNET_FOLDERS[split]
        level = "" if domain == "nominal" else f"_{domain}"
        names = [f"{folder.name}/*{process}_500GeV{level}.json.gz" for process in _LUNDNET[task]]
        parts = zip(names, ("signal", "background"), strict=True)
        found = [[Source(path, part) for path in sorted(root.glob(name))] for name, part in parts]
    else:
        home = root if domain == "nominal" else root / domain
        names = {
            "toptagging": [f"{split}*.h5", f"{split}*.parquet"],
            "jetclass": [f"{split}*/*.root", f"{split}*.root"],
            "npz": ["*.npz"],
        }[source]
        part = split if source == "npz" else ""
        found = [[Source(path, part) for name in names for path in sorted(home.glob(name))]]
    for name, files in zip(names, found, strict=False):
        if not files:
            raise InputError(f"recipe.data.root={root}: no {name} for source={source}, task={task}, domain {domain}")
    return [file for files in found for file in files]


def read(source: str, files: Sequence[Source], task: str, domain: str) -> Jets:
    """All jets of some files.

    Raises:
        InputError: One is damaged or of another kind, or a package is missing.
    """
    readers: dict[str, Callable[[Source, str, str], Jets]] = {
        "shards": lambda file, task, domain: load(file.path),
        "lundnet": _read_lundnet,
        "toptagging": _read_toptagging,
        "jetclass": _read_jetclass,
        "npz": _read_npz,
    }
    parts = []
    for file in files:
        try:
            parts.append(readers[source](file, task, domain))
        except InputError as error:
            raise InputError(f"{file.path}: {str(error).removeprefix(f'{file.path}: ')}") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise InputError(f"{file.path}: cannot be read as source={source}: {reason}") from None
    return joined(parts)


def _read_lundnet(file: Source, task: str, domain: str) -> Jets:
    """A jet a line: a list of its event's properties, then of momenta; a bare string is a header."""
    momenta: list[list[float]] = []
    counts: list[int] = []
    with gzip.open(file.path, "rt") as lines:
        try:
            for line in lines:
                jet = json.loads(line)
                if isinstance(jet, str):
                    continue
                rows = [[c["px"], c["py"], c["pz"], c["E"]] for c in jet[1:]]
                counts.append(len(rows))
                momenta += rows
        except (EOFError, zlib.error, gzip.BadGzipFile, json.JSONDecodeError):
            if not counts:
                raise  # else its end was cut off; the reference takes what is there
    return from_counts(np.array(momenta), np.array(counts), np.full(len(counts), file.part == "signal"), domain)


def _read_toptagging(file: Source, task: str, domain: str) -> Jets:
    """A row a jet: E_0, PX_0, PY_0, PZ_0, E_1, …; `is_signal_new`."""
    if task != "top":
        raise InputError(f"recipe.data.task={task}: this data set has top quarks; take task=top")
    if file.path.suffix == ".parquet":
        columns = _parquet(file.path)
        slots = sum(name.startswith("PX_") for name in columns)
        names = [f"{axis}_{slot}" for slot in range(slots) for axis in ("PX", "PY", "PZ", "E")]
        p4 = np.stack([columns[name] for name in names], axis=1)
        return from_padded(p4.reshape(len(p4), slots, 4), columns["is_signal_new"], domain)
    return _pandas_table(file.path, domain)


def _pandas_table(path: Path, domain: str) -> Jets:
    """The HDF5 file of the data set, a `table` that pandas wrote: its columns by their blocks."""
    h5py = _need("h5py", "pose")
    with h5py.File(path) as file:
        rows = file["table/table"]
        fields = [name for name in rows.dtype.names if name.startswith("values_block_")]
        values = {name: rows[name] for name in fields}
        floats = next(v for v in values.values() if v.dtype.kind == "f")
        integers = next(v for v in values.values() if v.dtype.kind in "iu")
    # Blocks keep the file's order: E, PX, PY, PZ of each constituent, then the truth's four; and ttv, is_signal_new.
    slots = (floats.shape[1] - 4) // 4
    p4 = floats[:, : 4 * slots].reshape(len(floats), slots, 4)[..., [1, 2, 3, 0]]
    return from_padded(p4, integers[:, -1], domain)


def _parquet(path: Path) -> dict[str, npt.NDArray[Any]]:
    parquet = _need("pyarrow.parquet", "jets")
    table = parquet.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def _read_jetclass(file: Source, task: str, domain: str) -> Jets:
    """Ragged branches of constituents and one-hot labels; jets that are neither signal nor QCD are left out."""
    if task not in _JETCLASS:
        raise InputError(f"recipe.data.task={task}: JetClass has {' and '.join(_JETCLASS)}")
    uproot = _need("uproot", "jets")
    axes = ["part_px", "part_py", "part_pz", "part_energy"]
    labels = [*_JETCLASS[task], "label_QCD"]
    with uproot.open(file.path) as opened:
        tree = opened["tree"]
        parts = tree.arrays([*axes, *labels], library="np")
    signal, background = (np.asarray(parts[name]).astype(bool) for name in labels)
    chosen = np.flatnonzero(signal | background)
    if not len(chosen):
        empty = np.zeros(0, np.int64)
        return from_counts(np.zeros((0, 4)), empty, empty, domain)
    counts = np.array([len(parts[axes[0]][jet]) for jet in chosen])
    p4 = np.stack([np.concatenate(list(parts[axis][chosen])) for axis in axes], axis=1)
    return from_counts(p4, counts, signal[chosen], domain)


def _read_npz(file: Source, task: str, domain: str) -> Jets:
    """X (J, M, 4) of pT, rapidity, azimuth and PDG number, zero-padded; y. Consecutive jets stay in one split."""
    with np.load(file.path, allow_pickle=False) as opened:
        x, y = opened["X"], opened["y"]
    if x.ndim != 3 or x.shape[2] < 3 or len(x) != len(y):
        raise InputError(f"X must be (jets, constituents, 4) and y (jets,); they are {x.shape} and {y.shape}")
    low, high = (int(share * len(x)) for share in _NPZ_SHARES[file.part])
    x, y = x[low:high].astype(np.float64), y[low:high]
    mass = masses(x[..., 3]) if x.shape[2] > 3 else 0.0
    p4 = cartesian(x[..., 0], x[..., 1], x[..., 2], mass)
    p4[x[..., 0] <= 0] = 0
    return from_padded(p4, y > 0, domain)


_MASSES = {11: 0.000511, 13: 0.10566, 22: 0.0, 111: 0.13498, 130: 0.49761, 211: 0.13957, 310: 0.49761, 321: 0.49368}
_MASSES |= {2112: 0.93957, 2212: 0.93827, 3112: 1.19745, 3122: 1.11568, 3222: 1.18937, 3312: 1.32171, 3322: 1.31486}
_MASSES |= {3334: 1.67245}


def masses(numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """GeV, by PDG number; 0 of what lives too short to be seen, and of numbers that are not."""
    known = np.array(sorted(_MASSES))
    values = np.array([_MASSES[number] for number in known.tolist()])
    wanted = np.abs(np.nan_to_num(numbers)).astype(np.int64)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, values[place], 0.0)


def _need(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise InputError(f"needs {package}: pip install -c constraints.txt 'pharos-sweeps[{extra}]'") from None
