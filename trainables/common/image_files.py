"""Images and masks as files, in folders or in zip archives."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pharos.errors import InputError

Bytes = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


def read_image(path: Path | zipfile.Path) -> Bytes:
    """An RGB image (H, W, 3).

    Raises:
        InputError: The file cannot be read as one.
    """
    from PIL import Image

    try:
        with path.open("rb") as file, Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not an image that can be read ({error})") from None


def read_codes(path: Path | zipfile.Path, size: tuple[int, int] | None = None) -> Any:
    """A single-channel image of numbers (H, W), 8 or 16 bits; of several channels the first.

    Args:
        path: The file.
        size: Height and width that it must have.

    Raises:
        InputError: It cannot be read, or is of another size.
    """
    from PIL import Image

    try:
        with path.open("rb") as file, Image.open(file) as picture:
            codes = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: not a mask that can be read ({error})") from None
    codes = codes[..., 0] if codes.ndim == 3 else codes
    if size is not None and codes.shape != size:
        raise InputError(f"{path}: {codes.shape[0]} x {codes.shape[1]} pixels, its image has {size[0]} x {size[1]}")
    return codes.astype(np.int64)


def images_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
