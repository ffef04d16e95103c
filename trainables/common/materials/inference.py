"""Materials of a folder's photographs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pharos.errors import InputError
from trainables.common.image_files import images_in, read_image
from trainables.common.materials.evaluation import Predict
from trainables.common.materials.tiling import tiled


def predict_folder(
    predict: Predict,
    folder: Path,
    output: Path,
    *,
    classes: Sequence[str],
    side: int,
    batch: int,
    device: torch.device,
) -> None:
    """Writes `<name>.png` of class numbers for every image, at its size, and `classes.json` that names them.

    Args:
        predict: The network.
        folder: Of images.
        output: Takes the files.
        classes: Names.
        side: S; images whose short side is smaller are enlarged, as for training.
        batch: Tiles at a time.
        device: Where the network is.

    Raises:
        InputError: There is no image.
    """
    from PIL import Image

    files = images_in(folder)
    if not files:
        raise InputError(f"{folder}: no image in it (.png, .jpg, .tif or .bmp)")
    for file in files:
        image: Tensor = torch.from_numpy(read_image(file).copy()).permute(2, 0, 1).to(device).float() / 255
        height, width = image.shape[1:]
        factor = max(1.0, side / min(height, width))
        size = (max(side, round(height * factor)), max(side, round(width * factor))) if factor > 1 else (height, width)
        larger = image
        if factor > 1:
            larger = functional.interpolate(image[None], size=size, mode="bicubic", align_corners=False)[0].clamp(0, 1)
        logits = tiled(predict, larger, side, batch)[None]
        codes = functional.interpolate(logits, size=(height, width), mode="nearest")[0].argmax(dim=0)
        Image.fromarray(codes.cpu().numpy().astype(np.uint8)).save(output / f"{file.stem}.png")
    (output / "classes.json").write_text(json.dumps(dict(enumerate(classes)), indent=1))
