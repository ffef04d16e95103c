"""Pickles of arrays, read by an unpickler that can make numpy arrays and plain containers and nothing else.

Some data sets are distributed as pickles, which can run code when they are loaded. This one refuses every global that
is not array data before importing it.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np


def unpickle_arrays(stream: IO[bytes], encoding: str = "ASCII") -> Any:
    """The value of a pickle of numpy arrays, dicts, lists, strings and numbers.

    Args:
        stream: At the pickle's start.
        encoding: Of strings that Python 2 wrote; "bytes" leaves them as they are.

    Raises:
        pickle.UnpicklingError: It is damaged, or holds anything else.
    """
    return _ArrayUnpickler(stream, encoding=encoding).load()


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for `_codecs.encode`, by which pickle protocol 2 writes bytes, always as latin-1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which is not array data")
    return text.encode("latin1")


# numpy moved its reconstruction function; a file names the place of the release that wrote it.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not array data") from None
