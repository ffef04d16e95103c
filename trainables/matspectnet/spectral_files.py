"""Readers of hyperspectral images: ARAD_1K (NTIRE 2022) and CAVE; and RGB images as the challenge makes them.

Source: section 2.2 of the reference notes on MatSpectNet (arXiv 2307.11466).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pharos.errors import InputError
from trainables.common.image_files import read_image
from trainables.common.materials.spectra import BANDS
from trainables.matspectnet.spectral_set import Scene

_GAINS = (2.2934, 1.0, 1.6231)  # of the challenge's camera, for R, G and B
_GREY = 0.18  # mean of an image after exposure


def arad(root: Path, part: str) -> list[Scene]:
    """Scenes of ARAD_1K: `<part>_RGB/NAME.jpg`, `<part>_spectral/NAME.mat`, and noise-free `<part>_RGB_clean/NAME.png`.

    Cubes are read from their files when they are needed, the window that is needed only.

    Args:
        root: Folder of the parts.
        part: Train or Valid.

    Raises:
        InputError: There are no scenes, or one has no cube of its size.
    """
    images = sorted((root / f"{part}_RGB").glob("*.jpg"))
    if not images:
        raise InputError(f"{root}: no {part}_RGB/*.jpg; expected the folders of ARAD_1K")
    return [_arad_scene(root, part, path) for path in images]


def _arad_scene(root: Path, part: str, path: Path) -> Scene:
    import h5py

    cube = root / f"{part}_spectral" / f"{path.stem}.mat"
    noise_free = root / f"{part}_RGB_clean" / f"{path.stem}.png"
    rgb = _tensor(read_image(path))
    size = (BANDS, rgb.shape[2], rgb.shape[1])  # MATLAB's order of axes
    try:
        with h5py.File(cube) as file:
            found = file["cube"].shape
    except (OSError, KeyError) as error:
        raise InputError(f"{cube}: no MATLAB 7.3 file with a `cube` ({error}); remove it and its image") from None
    if found != size:
        raise InputError(f"{cube}: a cube of {found}, its image asks for {size}")

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        with h5py.File(cube) as file:
            window = file["cube"][:, left : left + width, top : top + height]
        return torch.from_numpy(np.asarray(window, dtype=np.float32)).mT

    return Scene(path.stem, rgb, read, clean=_tensor(read_image(noise_free)) if noise_free.is_file() else None)


def cave(root: Path, sensitivity: Tensor, *, photons: float, seed: int) -> list[Scene]:
    """Scenes of CAVE: 31 greyscale images `NAME_ms_01.png` to `NAME_ms_31.png` in a folder of each, at any depth.

    Their RGB images are made, as the challenge makes them.

    Args:
        root: Folder of the scenes.
        sensitivity: (3, 31) of the camera.
        photons: See `photographed`.
        seed: Of the noise.

    Raises:
        InputError: There are no scenes, or a band is missing or cannot be read.
    """
    first = sorted(root.rglob("*_ms_01.png"))
    if not first:
        raise InputError(f"{root}: no NAME_ms_01.png below it; expected the folders of CAVE")
    generator = torch.Generator().manual_seed(seed)
    scenes = []
    for path in first:
        name = path.name.removesuffix("_01.png")
        cube = torch.stack([_band(path.with_name(f"{name}_{band:02}.png")) for band in range(1, BANDS + 1)])
        rgb = photographed(cube, sensitivity, photons=photons, generator=generator)
        clean = photographed(cube, sensitivity)
        scenes.append(Scene.of(name, rgb, cube, clean))
    return scenes


def photographed(
    cube: Tensor, sensitivity: Tensor, *, photons: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """An RGB image as the NTIRE 2022 challenge makes it, of mean 0.18, before it is rounded to 8 bits and compressed.

    Args:
        cube: (31, H, W) spectra.
        sensitivity: (3, 31) of the camera, before white balance.
        photons: Electrons that a value of 1 stands for; the shot noise's variance falls with it. 0: no noise.
        generator: Draws the noise.

    Returns:
        (3, H, W); clipped to [0, 1] where it is exposed too much.
    """
    gains = sensitivity.new_tensor(_GAINS)[:, None]
    image = torch.einsum("cb,bhw->chw", sensitivity * gains, cube).clamp_min(0)
    if photons > 0:
        image = torch.poisson(image * photons, generator=generator) / photons
    return (image * (_GREY / image.mean().clamp_min(1e-12))).clamp_max(1)


def _band(path: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: no greyscale image that can be read ({error})") from None
    values = values[..., 0] if values.ndim == 3 else values
    most = 255 if values.dtype == np.uint8 else 65535
    return torch.from_numpy(values.astype(np.float32) / most)


def _tensor(image: Any) -> Tensor:
    """(H, W, 3) bytes -> (3, H, W) bytes."""
    return torch.from_numpy(image.copy()).movedim(-1, 0)
