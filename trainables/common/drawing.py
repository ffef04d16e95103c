"""Small pictures without a library: text, and colours that tell neighbours apart."""

from __future__ import annotations

import torch
from torch import Tensor

_INK = torch.tensor([0.10, 0.10, 0.12])
# A 5 x 7 fount: five columns a character, the lowest bit on top.
_GLYPHS = {
    " ": "0000000000",
    ".": "0060600000",
    "-": "0808080808",
    "%": "2313086462",
    **dict(zip("01234", ("3E5149453E", "00427F4000", "7249494946", "2141494D33", "1814127F10"), strict=True)),
    **dict(zip("56789", ("2745454539", "3C4A494931", "4121110907", "3649494936", "464949291E"), strict=True)),
    **dict(zip("ABCDE", ("7C1211127C", "7F49494936", "3E41414122", "7F4141413E", "7F49494941"), strict=True)),
    **dict(zip("FGHIJ", ("7F09090901", "3E41415173", "7F0808087F", "00417F4100", "2040413F01"), strict=True)),
    **dict(zip("KLMNO", ("7F08142241", "7F40404040", "7F021C027F", "7F0408107F", "3E4141413E"), strict=True)),
    **dict(zip("PQRST", ("7F09090906", "3E4151215E", "7F09192946", "2649494932", "03017F0103"), strict=True)),
    **dict(zip("UVWXY", ("3F4040403F", "1F2040201F", "3F4038403F", "6314081463", "0304780403"), strict=True)),
    "Z": "6159494D43",
}


def lettering(text: str) -> Tensor:
    """Text as a mask (7, 6 n) of the pixels that are inked; characters without a glyph are blank."""
    columns = [
        int(code[k : k + 2], 16)
        for c in text.upper()
        for code in [_GLYPHS.get(c, _GLYPHS[" "]) + "00"]
        for k in range(0, 12, 2)
    ]
    return torch.tensor([[bool(column >> row & 1) for column in columns] for row in range(7)])


def write(canvas: Tensor, mask: Tensor, row: int, column: int) -> None:
    """Inks a mask (height, width) onto a canvas (3, ...) at a place that it fits in."""
    height, width = mask.shape
    area = canvas[:, row : row + height, column : column + width]
    area[:, mask] = _INK[:, None]
