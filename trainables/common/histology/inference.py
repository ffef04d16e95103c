"""Whole images of any size, predicted in overlapping tiles that fade into each other.

For every image of a folder: `<name>.png`, each pixel's label; and `<name>_overlay.png`, labels over the tissue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pharos.errors import InputError
from trainables.common.histology.data import standardised, starts, unit
from trainables.common.histology.optics import Bytes
from trainables.common.histology.pictures import overlay
from trainables.common.image_files import images_in, read_image

_OVERLAP = 0.5  # of two neighbouring tiles, as a share of their side
_BATCH = 4
_OF_TWO_CLASSES = 2


def predict_folder(
    probabilities: Callable[[Tensor], Tensor],
    folder: Path,
    output: Path,
    about: Mapping[str, Any],
    *,
    side: int,
    multiple: int,
    device: torch.device,
) -> None:
    """Writes labels and overlay of every image that lies in a folder, or in its `images`.

    Args:
        probabilities: (B, K, h, w) of standardised tiles (B, 3, h, w).
        folder: Holds the images; of any size, PNG, TIFF, BMP or JPEG.
        output: Takes what is written.
        about: Of `Tissue.about`.
        side: Of the tiles, pixels: what the network was trained on.
        multiple: What the side must be a multiple of.
        device: Where the network lives.

    Raises:
        InputError: The folder has no image, or one that cannot be read.
    """
    paths = images_in(folder) or images_in(folder / "images")
    if not paths:
        raise InputError(f"{folder}: has no image to predict (png, tif, bmp, jpg), nor has its folder images")
    clear = [0] if len(about["classes"]) == _OF_TWO_CLASSES else []
    for number, path in enumerate(paths, 1):
        image = torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)
        found = predict_image(
            lambda x: probabilities(standardised(x, about["mean"], about["std"])),
            unit(image).to(device),
            side=side,
            multiple=multiple,
        )
        labels = found.argmax(dim=0).to(torch.uint8).cpu()
        shown = overlay(unit(image), labels, clear=clear)
        _write(output / f"{path.stem}.png", labels.numpy())
        _write(output / f"{path.stem}_overlay.png", (shown * 255).round().byte().permute(1, 2, 0).numpy())
        shares = torch.bincount(labels.flatten().long(), minlength=len(about["classes"])) / labels.numel()
        said = ", ".join(f"{name} {share:.0%}" for name, share in zip(about["classes"], shares.tolist(), strict=True))
        print(f"{number}/{len(paths)} {path.name}: {said}", file=sys.stderr, flush=True)


def predict_image(probabilities: Callable[[Tensor], Tensor], image: Tensor, *, side: int, multiple: int) -> Tensor:
    """Probabilities of a whole image: each pixel's are the mean over the tiles that hold it, the nearest centre most.

    Args:
        probabilities: (B, K, h, w) of tiles (B, 3, h, w).
        image: (3, H, W) in [0, 1], of any size; it is mirrored where it is smaller than a tile.
        side: Of the tiles; rounded up to the multiple.
        multiple: What the side must be a multiple of.

    Returns:
        (K, H, W).
    """
    height, width = image.shape[1:]
    side = -(-side // multiple) * multiple
    rows, columns = (_mirrored(length, max(0, side - length)) for length in (height, width))
    image = image[:, rows.to(image.device)][:, :, columns.to(image.device)]
    stride = max(1, round(side * (1 - _OVERLAP)))
    places = [
        (top, left) for top in starts(image.shape[1], side, stride) for left in starts(image.shape[2], side, stride)
    ]
    # A triangle along both sides, which is nowhere 0, so that a corner with one tile is that tile's.
    ramp = 1 - (torch.arange(side, device=image.device) - (side - 1) / 2).abs() / (side / 2)
    weight = ramp.clamp_min(1e-3)[:, None] * ramp.clamp_min(1e-3)[None, :]
    total: Tensor | None = None
    counted = torch.zeros(image.shape[1:], device=image.device)
    for first in range(0, len(places), _BATCH):
        chosen = places[first : first + _BATCH]
        tiles = torch.stack([image[:, top : top + side, left : left + side] for top, left in chosen])
        for (top, left), found in zip(chosen, probabilities(tiles), strict=True):
            window = slice(top, top + side), slice(left, left + side)
            if total is None:
                total = torch.zeros(len(found), *image.shape[1:], device=image.device)
            total[:, window[0], window[1]] += weight * found
            counted[window] += weight
    assert total is not None
    return (total / counted)[:, :height, :width]


def _mirrored(length: int, more: int) -> Tensor:
    """Places of an axis, and of so many more beyond its end, mirrored."""
    return torch.from_numpy(np.pad(np.arange(length), (0, more), mode="symmetric"))


def _write(path: Path, pixels: Bytes) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)
