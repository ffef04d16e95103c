"""Checkpoints: tensors as safetensors, everything else as JSON, and a manifest that is written last.

A checkpoint is a folder `<step>/` with `state.safetensors`, `state.json` and `manifest.json`. The manifest holds
the size and SHA-256 of the others and is the commit: a folder without a valid one does not exist. Nothing here
is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import torch
from safetensors.torch import load, save

from pharos.storage import Storage

_MANIFEST = "manifest.json"
_STATE = ("state.safetensors", "state.json")

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one trial, newest last.

    Args:
        storage: The trial's `checkpoints/` folder.
        keep: How many of the newest to keep; two, so that a damaged last one still has one before it.
    """

    def __init__(self, storage: Storage, keep: int = 2):
        self._storage = storage
        self._keep = keep

    def save(self, step: int, state: Any) -> str:
        """Writes a checkpoint and forgets the oldest; returns its folder's path.

        Args:
            step: What the folder is named after: the fidelity reached.
            state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

        Raises:
            TypeError: The state holds something else.
            PharosError: The storage refuses.
        """
        tensors: dict[str, torch.Tensor] = {}
        skeleton = _pack(state, "", tensors)
        files = {"state.safetensors": save(tensors), "state.json": json.dumps(skeleton).encode()}
        folder = f"{step:08d}"
        # A folder of this name may hold an older attempt; without its manifest it no longer counts.
        self._storage.remove(folder)
        for name, data in files.items():
            self._storage.write_bytes(f"{folder}/{name}", data)
        manifest = {
            "step": step,
            "world_size": 1,
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            },
        }
        self._storage.write_json(f"{folder}/{_MANIFEST}", manifest)
        steps = self._steps()
        # What lies past this step is damaged or was never committed, or the trial would have gone on from there.
        later = [name for name in steps if int(name) > step]
        for old in later + [name for name in steps if name not in later][: -self._keep]:
            self._storage.remove(old)
        return self._storage.path(folder)

    def newest(self) -> tuple[int, Any] | None:
        """The step and state of the newest valid checkpoint; None when there is none.

        A damaged one is named in the log and the one before it is used.
        """
        for folder in reversed(self._steps()):
            files = self._valid_files(folder)
            if files is not None:
                skeleton = json.loads(files["state.json"])
                return int(folder), _unpack(skeleton, load(files["state.safetensors"]))
        return None

    def newest_path(self) -> str | None:
        """The folder of the newest committed checkpoint."""
        steps = [folder for folder in self._steps() if self._storage.exists(f"{folder}/{_MANIFEST}")]
        return self._storage.path(steps[-1]) if steps else None

    def _steps(self) -> list[str]:
        return [name for name in self._storage.list() if name.isdigit()]

    def _valid_files(self, folder: str) -> dict[str, bytes] | None:
        try:
            manifest = self._storage.read_json(f"{folder}/{_MANIFEST}")
            files = {name: self._storage.read_bytes(f"{folder}/{name}") for name in _STATE}
            for name, data in files.items():
                entry = manifest["files"][name]
                if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
                    raise ValueError(f"{name} does not match the manifest")
        except FileNotFoundError:
            return None  # never committed: it was being written when its process died
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("checkpoint %s is damaged (%s); using the one before", self._storage.path(folder), error)
            return None
        return files


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Replaces each tensor by a reference, and what JSON would lose (tuples, keys that are no text) by a tag."""
    if isinstance(value, torch.Tensor):
        while name in tensors:  # keys that look alike, such as 1 and "1"
            name += "'"
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"$tensor": name}
    if isinstance(value, dict):
        for key in value:
            if not (key is None or isinstance(key, (bool, int, float, str))):
                raise TypeError(f"a checkpoint cannot hold {name or 'a state'} with a key of type {type(key).__name__}")
        pairs = [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(pairs)
        return {"$pairs": pairs}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold {name or 'a state'} of type {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$tuple" in value:
            return tuple(_unpack(item, tensors) for item in value["$tuple"])
        if "$pairs" in value:
            return {key: _unpack(item, tensors) for key, item in value["$pairs"]}
        return {key: _unpack(item, tensors) for key, item in value.items()}
    return value
