"""The pictures that a trial keeps in its folder: the last of each name, `pictures/<name>.png`.

They are for people who look at a sweep later, so losing one to a crash costs nothing, and none may cost time: a
picture is encoded by the standard library alone, at most every `_SECONDS` a name and once more when the trial ends.
"""

from __future__ import annotations

import logging
import struct
import time
import zlib
from urllib.parse import quote, unquote

import torch
from torch import Tensor

from pharos.errors import PharosError
from pharos.spool import Spool
from pharos.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "pictures"
NAMES = 12
"""A trial keeps pictures of so many names."""
_SIDE = 1024
_SECONDS = 30.0
_LONGEST_NAME = 180


class Pictures:
    """Keeps a trial's pictures.

    Args:
        spool: The trial's files on this node.
    """

    def __init__(self, spool: Spool):
        self._spool = spool
        self._waiting: dict[str, Tensor] = {}
        self._written_at: dict[str, float] = {}

    def keep(self, name: str, image: Tensor) -> None:
        """Takes a picture, (3, height, width) with values in [0, 1]; the one of that name before is replaced.

        One of another shape, and one of a name too many or too long, is not kept: the trial goes on without it.
        """
        file = quote(name, safe=" ")
        names = {*self._waiting, *self._written_at, file}
        if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            logger.warning("picture %s: not kept: its shape is %s, not (3, height, width)", name, tuple(image.shape))
        elif len(names) > NAMES or not 0 < len(file) <= _LONGEST_NAME:
            logger.warning("picture %s: not kept: a trial keeps %d names of %d bytes", name, NAMES, _LONGEST_NAME)
        else:
            self._waiting[file] = image.detach().cpu().clone()
            if time.monotonic() - self._written_at.get(file, -_SECONDS) >= _SECONDS:
                self._write(file)

    def close(self) -> None:
        """Writes what waits."""
        for file in list(self._waiting):
            self._write(file)

    def _write(self, file: str) -> None:
        self._written_at[file] = time.monotonic()
        try:
            self._spool.add(f"{FOLDER}/{file}.png", png(self._waiting.pop(file)))
        except PharosError as error:  # a trial does not end for a picture
            logger.warning("picture %s: not kept: %s", unquote(file), error)


def read_pictures(trial: Storage) -> dict[str, bytes]:
    """The pictures of a trial, PNGs by name.

    Args:
        trial: Its folder.
    """
    files = [file for file in trial.list(FOLDER) if file.endswith(".png")][:NAMES]
    return {unquote(file.removesuffix(".png")): trial.read_bytes(f"{FOLDER}/{file}") for file in files}


def png(image: Tensor) -> bytes:
    """A picture, (3, height, width) with values in [0, 1], as a PNG; a large one is thinned out to 1,024 a side."""
    stride = -(-max(image.shape[1:]) // _SIDE)
    pixels = torch.nan_to_num(image[:, ::stride, ::stride].float()).clamp(0, 1).mul(255).round().byte().movedim(0, -1)
    height, width, _ = pixels.shape
    # Each row begins with its filter: none.
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), pixels.reshape(height, -1)], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(rows.numpy().tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
