"""Invariants 16 and 18 of the reference notes: RGB formation, joint crops, and readers of ARAD_1K and CAVE."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from pharos.errors import InputError
from trainables.common.materials.spectra import camera
from trainables.matspectnet.normalisation import value_range
from trainables.matspectnet.spectral_files import arad, cave, photographed
from trainables.matspectnet.spectral_set import Scene, SpectralSet

SENSITIVITY = torch.from_numpy(camera()).float()


def test_an_image_has_the_challenge_s_exposure() -> None:
    torch.manual_seed(0)
    cube = 0.2 + 0.3 * torch.rand(31, 40, 50)
    image = photographed(cube, SENSITIVITY)
    assert image.shape == (3, 40, 50)
    assert float(image.mean()) == pytest.approx(0.18, rel=1e-5)
    flat = photographed(torch.ones(31, 4, 4), torch.ones(3, 31))
    assert (flat[:, 0, 0] / flat[1, 0, 0]).tolist() == pytest.approx([2.2934, 1, 1.6231])


def test_more_photons_are_less_noise() -> None:
    cube = torch.full((31, 200, 200), 0.5)
    clean = photographed(cube, SENSITIVITY)
    power = []
    for photons in (200.0, 800.0):
        noisy = photographed(cube, SENSITIVITY, photons=photons, generator=torch.Generator().manual_seed(0))
        power.append(float((noisy - clean).square().mean()))
    # The variance of 120,000 values is known to about 1 %; its exposure adds next to nothing.
    assert power[0] / power[1] == pytest.approx(4, rel=0.05)


def test_windows_of_rgb_and_spectra_are_the_same() -> None:
    height, width, side = 20, 33, 8
    place = torch.arange(height * width).view(height, width) / (height * width)
    scene = Scene.of("marked", place.expand(3, -1, -1), place.expand(31, -1, -1), place.expand(3, -1, -1))
    both = SpectralSet([scene, scene], "none")
    draws = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    x, spectra, clean = both.crops(torch.zeros(64, dtype=torch.long), draws, side)
    assert x.shape == (64, 3, side, side)
    assert torch.equal(x[:, 0], spectra[:, 0])
    assert torch.equal(clean, x)
    corners = {tuple(crop[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist()) for crop in x}
    assert len(corners) == 64
    # Every turn and mirroring occurs: the window's first pixel lies in each of its corners, in both directions.
    steps = {(float((crop[0, 0, 1] - crop[0, 0, 0]) * height * width).__round__()) for crop in x}
    assert steps == {1, -1, width, -width}


def test_windows_reach_the_borders() -> None:
    scene = Scene.of("small", torch.rand(3, 10, 12), torch.rand(31, 10, 12))
    both = SpectralSet([scene], "none")
    x, _, _ = both.crops(torch.zeros(2, dtype=torch.long), torch.tensor([[0, 0, 0, 0.9, 0.9], [0.999] * 5]), 8)
    assert torch.equal(x[0], scene.rgb[:, :8, :8])
    assert torch.equal(x[1], scene.rgb[:, -8:, -8:].rot90(3, (1, 2)))
    whole, _, _ = both.crops(torch.zeros(1, dtype=torch.long), torch.full((1, 5), 0.9), 64)
    assert whole.shape == (1, 3, 10, 10)
    middle, spectra, _ = both.whole(0, 6)
    assert torch.equal(middle[0], scene.rgb[:, 2:8, 3:9])
    assert torch.equal(spectra[0], scene.read(2, 3, 6, 6))


def test_ranges_are_what_they_say() -> None:
    image = torch.tensor([10, 60, 110], dtype=torch.uint8).view(3, 1, 1)
    assert value_range(image, "minmax")(image).flatten().tolist() == pytest.approx([0, 0.5, 1])
    assert value_range(image, "none")(image).flatten().tolist() == pytest.approx([10 / 255, 60 / 255, 110 / 255])
    hot = torch.rand(3, 100, 100)
    hot[0, 0, 0] = 50
    assert value_range(hot, "percentile").high < 1.01
    assert value_range(hot, "minmax").high == 50


def write_arad(root: Path, part: str, name: str, cube: np.ndarray, size: tuple[int, int]) -> None:
    for kind in ("RGB", "spectral"):
        (root / f"{part}_{kind}").mkdir(exist_ok=True)
    values = np.linspace(0, 255, size[0] * size[1] * 3).reshape(*size, 3).astype(np.uint8)
    Image.fromarray(values).save(root / f"{part}_RGB" / f"{name}.jpg", quality=95)
    with h5py.File(root / f"{part}_spectral" / f"{name}.mat", "w") as file:
        file["cube"] = cube


def test_arad_s_axes_are_matlab_s(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((31, 12, 9)).astype(np.float32)  # bands, width, height
    write_arad(tmp_path, "Train", "ARAD_1K_0001", cube, (9, 12))
    (scene,) = arad(tmp_path, "Train")
    assert scene.rgb.shape == (3, 9, 12)
    assert scene.rgb.dtype == torch.uint8
    assert scene.clean is None
    assert torch.equal(scene.read(0, 0, 9, 12), torch.from_numpy(cube).mT)
    assert torch.equal(scene.read(2, 3, 4, 5), torch.from_numpy(cube).mT[:, 2:6, 3:8])


def test_arad_s_images_without_noise_are_found(tmp_path: Path) -> None:
    write_arad(tmp_path, "Train", "a", np.ones((31, 8, 8), np.float32), (8, 8))
    (tmp_path / "Train_RGB_clean").mkdir()
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "Train_RGB_clean" / "a.png")
    (scene,) = arad(tmp_path, "Train")
    assert scene.clean is not None
    assert (scene.clean == 7).all()


def test_broken_cubes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Train_RGB"):
        arad(tmp_path, "Train")
    write_arad(tmp_path, "Train", "b", np.ones((31, 8, 9), np.float32), (8, 8))
    with pytest.raises(InputError, match=r"b\.mat: a cube of \(31, 8, 9\)"):
        arad(tmp_path, "Train")
    (tmp_path / "Train_spectral" / "b.mat").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"b\.mat: no MATLAB 7\.3 file"):
        arad(tmp_path, "Train")


def test_cave_s_bands_are_in_order_and_its_rgb_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "balloons_ms" / "balloons_ms"
    folder.mkdir(parents=True)
    for band in range(1, 32):
        values = np.full((6, 5), band * 1000, np.uint16)
        Image.fromarray(values).save(folder / f"balloons_ms_{band:02}.png")
    (scene,) = cave(tmp_path, SENSITIVITY, photons=1e9, seed=0)
    torch.testing.assert_close(scene.read(0, 0, 6, 5)[:, 0, 0], torch.arange(1, 32) * 1000 / 65535)
    assert scene.clean is not None
    torch.testing.assert_close(scene.rgb, scene.clean, atol=1e-4, rtol=0)
    assert float(scene.clean.mean()) == pytest.approx(0.18, rel=1e-4)
    (folder / "balloons_ms_31.png").unlink()
    with pytest.raises(InputError, match="balloons_ms_31"):
        cave(tmp_path, SENSITIVITY, photons=750, seed=0)
    with pytest.raises(InputError, match="CAVE"):
        cave(tmp_path / "none", SENSITIVITY, photons=1, seed=0)
