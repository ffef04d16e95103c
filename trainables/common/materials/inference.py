"""Materials of a folder's photographs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
    is_exact: bool = False,
    prepare: Callable[[Tensor], Tensor] | None = None,
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
        is_exact: Whether larger images are reduced too, so that all short sides are S.
        prepare: What becomes of a whole image (3, H, W) in [0, 1] before it is cut into tiles.

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
        factor = side / min(height, width)
        resized = image
        if factor > 1 or (is_exact and factor != 1):
            size = (max(side, round(height * factor)), max(side, round(width * factor)))
            resized = functional.interpolate(
                image[None], size=size, mode="bicubic", align_corners=False, antialias=True
            )[0].clamp(0, 1)
        logits = tiled(predict, resized if prepare is None else prepare(resized), side, batch)[None]
        codes = functional.interpolate(logits, size=(height, width), mode="nearest")[0].argmax(dim=0)
        Image.fromarray(codes.cpu().numpy().astype(np.uint8)).save(output / f"{file.stem}.png")
    (output / "classes.json").write_text(json.dumps(dict(enumerate(classes)), indent=1))
