"""Readers of measured spectra: tables of reflectances, and sensitivities of cameras.

| file | reflectances | camera |
|---|---|---|
| `.csv` of SpectralDB (spectraldb.com) | in per cent, with and without gloss, with properties | |
| `.csv`, a row a sample: `name,400,410,...,700`, or without names; also with blanks | in [0, 1] | |
| `.csv`, a row a wavelength: `nm,R,G,B` | | yes |
| `.json` of the Academy's rawtoaces | in [0, 1] | yes |
| `.mat` of the USGS library of 1995 | in [0, 1]; samples with gaps from 400 to 700 nm are left out | |
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pharos.cache import local_copy
from pharos.errors import InputError
from trainables.common.materials.spectra import WAVELENGTHS

_Array = NDArray[np.float64]
_MOST = 1.5  # a reflectance above it is in another unit; fluorescent and calibrated ones may exceed 1 a little
_MISSING = -1e30  # below it the USGS library has no measurement


@dataclass(frozen=True)
class Samples:
    """Measured materials.

    Attributes:
        source: Where they come from, for messages.
        names: Of the samples.
        spectra: (M, 31) reflectances without specular reflection, in [0, 1].
        specularity: (M,) specular reflection, the same for all bands; 0 where it was not measured.
        roughness: (M,) of the surface; 0 where it was not measured.
        properties: (M,) others that came with them, by name.
    """

    source: str
    names: list[str]
    spectra: Tensor
    specularity: Tensor
    roughness: Tensor
    properties: dict[str, Tensor] = field(default_factory=dict)


def read_samples(url: str) -> Samples:
    """A table of measured reflectances, resampled to the 31 bands.

    Raises:
        InputError: It is not there, in none of the formats above, or does not span 400 to 700 nm.
    """
    path = _found(url)
    match path.suffix.lower():
        case ".csv":
            rows = _rows(path)
            return _spectral_db(url, rows) if "SCEMeasures" in rows[0] else _plain(url, rows)
        case ".json":
            names, wavelengths, values = _academy(path, url)
            return _samples(url, names, wavelengths, values)
        case ".mat":
            return _usgs(path, url)
    raise InputError(f"{url}: reflectances are read from .csv, .json and .mat")


def read_camera(url: str) -> Tensor:
    """A camera's sensitivities (3, 31) for R, G and B, in any unit.

    Raises:
        InputError: It is not there, in none of the formats above, or does not span 400 to 700 nm.
    """
    path = _found(url)
    if path.suffix.lower() == ".json":
        names, wavelengths, values = _academy(path, url)
    elif path.suffix.lower() == ".csv":
        head, *rows = _rows(path)
        names = [name.strip() for name in head[1:]]
        table = _numbers(url, rows)
        wavelengths, values = table[:, 0], table[:, 1:].T
    else:
        raise InputError(f"{url}: a camera is read from .csv and .json")
    if names != ["R", "G", "B"]:
        raise InputError(f"{url}: its columns are {', '.join(names)}; expected R, G, B")
    sensitivity = _resampled(url, wavelengths, values)
    if not (sensitivity >= -1e-3).all() or not (sensitivity.sum(dim=1) > 0).all():
        raise InputError(f"{url}: sensitivities must not be negative, and those of no channel may all be 0")
    return sensitivity.clamp_min(0)


def _found(url: str) -> Path:
    path = local_copy(url)
    if not path.is_file():
        raise InputError(f"{url}: there is no such file")
    return path


def _samples(url: str, names: list[str], wavelengths: _Array, values: _Array) -> Samples:
    spectra = _resampled(url, wavelengths, values)
    if spectra.min() < 0 or spectra.max() > _MOST:
        low, high = float(spectra.min()), float(spectra.max())
        raise InputError(f"{url}: reflectances from {low:.3g} to {high:.3g}; expected them in [0, 1]")
    none = spectra.new_zeros(len(spectra))
    return Samples(url, names, spectra, none, none)


def _resampled(url: str, wavelengths: _Array, values: _Array) -> Tensor:
    """Values (M, W) at wavelengths (W,) in nm -> (M, 31), linearly between the nearest two."""
    order = np.argsort(wavelengths, kind="stable")
    wavelengths, values = wavelengths[order], values[:, order]
    bands = WAVELENGTHS
    if not len(wavelengths) or wavelengths[0] > bands[0] or wavelengths[-1] < bands[-1]:
        span = f"{wavelengths[0]:g} to {wavelengths[-1]:g} nm" if len(wavelengths) else "no wavelength"
        raise InputError(f"{url}: has {span}; expected 400 to 700 nm and more")
    found = torch.from_numpy(np.stack([np.interp(bands, wavelengths, row) for row in values])).float()
    if not found.isfinite().all():
        raise InputError(f"{url}: a value is not a finite number")
    return found


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise InputError(f"{path}: has no row below its header")
    # Separated by blanks instead.
    return [row[0].split() if len(row) == 1 else row for row in rows]


def _numbers(url: str, rows: list[list[str]]) -> _Array:
    try:
        return np.array([[float(value) for value in row] for row in rows])
    except ValueError as error:
        raise InputError(f"{url}: {error}; expected a table of numbers below the header") from None


def _plain(url: str, rows: list[list[str]]) -> Samples:
    head, *rest = rows
    if head[0].strip().replace(".", "", 1).isdigit():
        names, first = [str(number) for number in range(1, len(rest) + 1)], 0
    else:
        names, first = [row[0] for row in rest], 1
    wavelengths = _numbers(url, [head[first:]])[0]
    return _samples(url, names, wavelengths, _numbers(url, [row[first:] for row in rest]))


def _spectral_db(url: str, rows: list[list[str]]) -> Samples:
    """SpectralDB's own table; its samples without a spectrum of 400 to 700 nm are left out."""
    head, *rest = rows
    # The collection's own spelling.
    columns = {
        "visible": "VisibleRefectance",
        "melanopic": "MelanopicReflectance",
        **{name: name[0].upper() for name in ("red", "green", "blue")},
        "specularity": "Specularity",
        "roughness": "Roughness",
    }
    missing = {"Name", *columns.values()} - set(head)
    if missing:
        raise InputError(f"{url}: has no column {', '.join(sorted(missing))}; expected SpectralDB's table")
    kept, spectra = [], []
    bands = [int(band) for band in WAVELENGTHS]
    for row in rest:
        entry = dict(zip(head, row, strict=False))
        measured = {int(nm): float(value) for nm, value in re.findall(r"(\d+):\s*([-+.\deE]+)", entry["SCEMeasures"])}
        if all(band in measured for band in bands) and all(entry[column] for column in columns.values()):
            kept.append(entry)
            spectra.append([measured[band] / 100 for band in bands])
    if not kept:
        raise InputError(f"{url}: no sample has a spectrum from 400 to 700 nm and all properties")
    values = {name: torch.from_numpy(_numbers(url, [[e[c]] for e in kept])[:, 0]) for name, c in columns.items()}
    given = {name: value.float() for name, value in values.items()}
    return Samples(
        url,
        [entry["Name"] for entry in kept],
        torch.tensor(spectra),
        given.pop("specularity"),
        given.pop("roughness"),
        given,
    )


def _academy(path: Path, url: str) -> tuple[list[str], _Array, _Array]:
    """Names (M), wavelengths (W,) in nm and values (M, W) of a file of rawtoaces."""
    try:
        content: Any = json.loads(path.read_text())["spectral_data"]
        rows = content["data"]["main"]
        wavelengths = np.array([float(nm) for nm in rows])
        values = np.array([[float(value) for value in row] for row in rows.values()])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url}: is no file of rawtoaces ({error!r})") from None
    if values.ndim != 2:
        raise InputError(f"{url}: its wavelengths have no lists of values")
    names = content.get("index", {}).get("main") or [str(number + 1) for number in range(values.shape[1])]
    if values.shape[1] != len(names):
        raise InputError(f"{url}: rows of {values.shape[1]} values for {len(names)} names")
    return names, wavelengths, values.T


def _usgs(path: Path, url: str) -> Samples:
    """Columns of `datalib` are spectra over channels; the first is the wavelength in micrometres."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path)
        library, letters = np.asarray(content["datalib"], dtype=float), content["names"]
    except (ValueError, KeyError, NotImplementedError, MatReadError) as error:
        raise InputError(f"{url}: is no spectral library with `names` and `datalib` ({error})") from None
    wavelengths, first = library[:, 0] * 1000, 3  # after wavelength, resolution and channel number
    names = ["".join(map(chr, row)).strip() for row in letters[first : library.shape[1]]]
    values = library[:, first:].T
    bands = WAVELENGTHS
    # Two spectrometers overlap; a gap matters only where it would be interpolated over.
    inside = (wavelengths >= bands[0] - 10) & (wavelengths <= bands[-1] + 10)
    whole = np.asarray((values[:, inside] > _MISSING).all(axis=1))
    if not whole.any():
        raise InputError(f"{url}: no sample was measured from 400 to 700 nm without a gap")
    # The library's calibration lets a few values be slightly negative.
    kept = np.clip(values[whole][:, inside], 0, None)
    return _samples(url, [n for n, is_whole in zip(names, whole, strict=True) if is_whole], wavelengths[inside], kept)
