"""Readers of measured spectra."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from pharos.errors import InputError
from trainables.common.materials.spectra_files import read_camera, read_samples


def academy(path: Path, names: list[str], low: int = 380, high: int = 780) -> Path:
    """As rawtoaces has them: value of the k-th column is k + 1 thousandths of the wavelength in micrometres."""
    rows = {str(nm): [(k + 1) * nm / 1000 / 10 for k in range(len(names))] for nm in range(low, high + 1, 5)}
    path.write_text(json.dumps({"spectral_data": {"index": {"main": names}, "data": {"main": rows}}}))
    return path


def test_the_academy_s_reflectances_are_resampled(tmp_path: Path) -> None:
    samples = read_samples(str(academy(tmp_path / "patches.json", ["p1", "p2"])))
    assert samples.names == ["p1", "p2"]
    torch.testing.assert_close(samples.spectra[1], 2 * torch.arange(400, 701, 10.0) / 10_000)
    assert not samples.specularity.any()
    assert not samples.properties


def test_names_are_numbers_where_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"spectral_data": {"data": {"main": {"380": [0, 1], "780": [1, 0]}}}}')
    samples = read_samples(str(path))
    assert samples.names == ["1", "2"]
    torch.testing.assert_close(samples.spectra[0], (torch.arange(400, 701, 10.0) - 380) / 400)


def test_a_camera_has_three_channels(tmp_path: Path) -> None:
    sensitivity = read_camera(str(academy(tmp_path / "camera.json", ["R", "G", "B"])))
    assert sensitivity.shape == (3, 31)
    assert sensitivity[2, 0] == pytest.approx(0.12)
    with pytest.raises(InputError, match="X, Y, Z"):
        read_camera(str(academy(tmp_path / "observer.json", ["X", "Y", "Z"])))


def test_a_camera_s_table_has_a_row_a_wavelength(tmp_path: Path) -> None:
    path = tmp_path / "qe.csv"
    path.write_text("nm,R,G,B\n" + "".join(f"{nm},{nm / 1000},0.5,{1 - nm / 1000}\n" for nm in range(360, 751)))
    sensitivity = read_camera(str(path))
    torch.testing.assert_close(sensitivity[0], torch.arange(400, 701, 10.0) / 1000)
    torch.testing.assert_close(sensitivity[1], torch.full((31,), 0.5))
    path.write_text("nm,R,G,B\n" + "".join(f"{nm},-1,0.5,1\n" for nm in range(360, 751)))
    with pytest.raises(InputError, match="negative"):
        read_camera(str(path))


def test_a_plain_table_has_a_row_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("name,350,550,750\nchalk,0.2,0.4,0.6\ncoal,0.02,0.02,0.02\n")
    samples = read_samples(str(path))
    assert samples.names == ["chalk", "coal"]
    assert samples.spectra[0, 15] == pytest.approx(0.4)
    assert samples.spectra[0, 0] == pytest.approx(0.25)
    path.write_text("350 550 750\n0.2 0.4 0.6\n")
    assert read_samples(str(path)).names == ["1"]
    assert read_samples(str(path)).spectra[0, 15] == pytest.approx(0.4)
    path.write_text("name,350,550,750\nchalk,20,40,60\n")
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        read_samples(str(path))
    path.write_text("name,350,550,650\nchalk,0.2,0.4,0.6\n")
    with pytest.raises(InputError, match="350 to 650 nm"):
        read_samples(str(path))
    path.write_text("name,350,550,750\nchalk,0.2,what,0.6\n")
    with pytest.raises(InputError, match="table of numbers"):
        read_samples(str(path))


def spectral_db(path: Path, **changes: str) -> Path:
    measured = "{" + ", ".join(f"{nm}: {nm / 10:.2f}" for nm in range(360, 741, 10)) + "}"
    row = {
        "Name": "Wall",
        "Specularity": "0.0036",
        "Roughness": "0.2",
        "R": "0.83",
        "G": "0.81",
        "B": "0.72",
        "SCIMeasures": measured,
        "SCEMeasures": measured,
        "VisibleRefectance": "0.811",
        "MelanopicReflectance": "0.769",
    }
    rows = [row, {**row, **changes}]
    lines = [",".join(row), *(",".join(f'"{value}"' for value in entry.values()) for entry in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_spectral_db_is_in_per_cent_and_has_properties(tmp_path: Path) -> None:
    samples = read_samples(str(spectral_db(tmp_path / "spectraldb.csv", Name="Door", Roughness="0.1")))
    assert samples.names == ["Wall", "Door"]
    torch.testing.assert_close(samples.spectra[0], torch.arange(400, 701, 10.0) / 1000)
    assert samples.roughness.tolist() == pytest.approx([0.2, 0.1])
    assert samples.specularity.tolist() == pytest.approx([0.0036, 0.0036])
    given = {name: float(value[0]) for name, value in samples.properties.items()}
    assert given == pytest.approx({"visible": 0.811, "melanopic": 0.769, "red": 0.83, "green": 0.81, "blue": 0.72})


def test_samples_of_spectral_db_without_a_whole_spectrum_are_left_out(tmp_path: Path) -> None:
    path = spectral_db(tmp_path / "spectraldb.csv", Name="Cut", SCEMeasures="{400: 3.0, 410: 4.0}")
    assert read_samples(str(path)).names == ["Wall"]


def test_the_usgs_library_is_sorted_and_gaps_are_left_out(tmp_path: Path) -> None:
    # Two spectrometers whose ranges overlap, as in the real one.
    wavelengths = np.concatenate([np.arange(0.38, 0.69, 0.01), np.arange(0.665, 1.0, 0.01)])
    whole, gap = wavelengths.copy(), wavelengths.copy()
    gap[5] = -1.23e34
    far = wavelengths.copy()
    far[-1] = -1.23e34  # beyond 700 nm nobody asks
    columns = [wavelengths, wavelengths * 0, wavelengths * 0, whole, gap, far]
    names = ["Wavelengths", "Resolution", "Channel", "Whole", "Gap", "Far"]
    letters = np.array([[ord(letter) for letter in name.ljust(12)] for name in names], np.uint8)
    path = tmp_path / "library.mat"
    savemat(path, {"datalib": np.stack(columns, axis=1), "names": letters})
    samples = read_samples(str(path))
    assert samples.names == ["Whole", "Far"]
    torch.testing.assert_close(samples.spectra[0], torch.arange(400, 701, 10.0) / 1000, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "content"), [("a.json", "{}"), ("a.mat", "none"), ("a.txt", "1"), ("a.csv", "name")])
def test_other_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name) as caught:
        read_samples(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_samples(str(tmp_path / "missing.csv"))
