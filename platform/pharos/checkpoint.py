"""Checkpoints: tensors as safetensors, everything else as JSON, and a manifest that is written last.

A checkpoint is a folder `<step>/`. Each worker writes what it holds of the learners to `rank-<r>.safetensors`; rank 0
adds the rest of the trial's state (`state.json`, its tensors in rank 0's file) and, when all are written,
`manifest.json`: the size and SHA-256 of every file, how many workers and which engine wrote them, which elements of
which tensor lie where, and its own SHA-256. The manifest is the commit: a folder without a valid one does not exist.
As tensors are named and their pieces are located in the flattened whole, any number of workers reads what any other
number wrote. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pharos.errors import PharosError
from pharos.storage import Storage
from pharos.world import World

_MANIFEST = "manifest.json"
_STATE = "state.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What one worker holds of a tensor: all of it, or a run of its elements.

    Attributes:
        name: The tensor's, the same on every worker.
        values: The elements, in the order of the flattened tensor.
        shape: Of the whole tensor.
        start: Index of the first of `values` in the flattened whole.
    """

    name: str
    values: Tensor
    shape: tuple[int, ...]
    start: int = 0

    @staticmethod
    def whole(name: str, tensor: Tensor) -> Part:
        return Part(name, tensor, tuple(tensor.shape))


class Checkpoint:
    """One committed checkpoint; files are read when something in them is asked for.

    Args:
        storage: Its folder.
        manifest: What its manifest says.
        files: The files that were read already, by name.
    """

    def __init__(self, storage: Storage, manifest: Mapping[str, Any], files: dict[str, bytes] | None = None):
        self.step = int(manifest["step"])
        self.world_size = int(manifest["world_size"])
        self._storage = storage
        self._tensors: Mapping[str, Any] = manifest["tensors"]
        self._bytes = files or {}
        self._loaded: dict[str, dict[str, Tensor]] = {}
        self.state: Any = _unpack(json.loads(self._read(_STATE)), self.tensor)
        """What `save` was given, learners apart."""

    def names(self, prefix: str) -> list[str]:
        """The names of tensors that begin so, the beginning cut off."""
        return [name.removeprefix(prefix) for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, put together from its pieces."""
        shape = self.shape(name)
        return self.elements(name, 0, math.prod(shape)).reshape(shape)

    def elements(self, name: str, start: int, count: int) -> Tensor:
        """A run of a tensor's elements, (count,), in the order of the flattened whole.

        Raises:
            PharosError: The checkpoint does not hold all of them.
        """
        found: list[tuple[int, Tensor]] = []
        for file, first, length in self._tensors[name]["pieces"]:
            low, high = max(start, first), min(start + count, first + length)
            if low < high:
                found.append((low, self._file(file)[name][low - first : high - first]))
        if sum(len(piece) for _, piece in found) != count:
            raise PharosError(f"{self._storage.root}: the pieces of {name} do not make up the whole")
        if not found:
            return self._file(self._tensors[name]["pieces"][0][0])[name][:0]
        return torch.cat([piece for _, piece in sorted(found, key=lambda item: item[0])])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Whole tensors by name, the beginning cut off."""
        return {name: self.tensor(prefix + name) for name in self.names(prefix)}

    def _file(self, name: str) -> dict[str, Tensor]:
        if name not in self._loaded:
            self._loaded[name] = {key: value.reshape(-1) for key, value in load(self._read(name)).items()}
            self._bytes.pop(name, None)
        return self._loaded[name]

    def _read(self, name: str) -> bytes:
        return self._bytes[name] if name in self._bytes else self._storage.read_bytes(name)


class Checkpoints:
    """The checkpoints of one trial, newest last.

    Args:
        storage: The trial's `checkpoints/` folder.
        keep: How many of the newest to keep; two, so that a damaged last one still has one before it.
    """

    def __init__(self, storage: Storage, keep: int = 2):
        self._storage = storage
        self._keep = keep

    def save(
        self,
        step: int,
        state: Any,
        parts: Iterable[Part] = (),
        world: World | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> str:
        """Writes a checkpoint and forgets the oldest; returns its folder's path. All workers call it together.

        Args:
            step: What the folder is named after: the fidelity reached.
            state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None; rank 0's counts.
            parts: What this worker holds of the learners.
            world: The trial's workers.
            engine: What wrote it, for those who read the manifest.

        Raises:
            TypeError: The state holds something else.
            PharosError: The storage refuses, here or at another worker.
        """
        world = world or World()
        folder = f"{step:08d}"
        if world.rank == 0:
            # A folder of this name may hold an older attempt; without its manifest it no longer counts.
            self._storage.remove(folder)
        world.barrier()
        written = world.gather(self._write(folder, world.rank, state, parts))
        for answer in written:
            if isinstance(answer, str):
                raise PharosError(answer)
        if world.rank == 0:
            tensors: dict[str, Any] = {}
            for _, pieces in written:
                for name, (shape, file, start, count) in pieces.items():
                    entry = tensors.setdefault(name, {"shape": shape, "pieces": []})
                    entry["pieces"].append([file, start, count])
            manifest = {
                "step": step,
                "world_size": world.size,
                "engine": dict(engine or {}),
                "files": {name: entry for files, _ in written for name, entry in files.items()},
                "tensors": tensors,
            }
            self._storage.write_bytes(f"{folder}/{_MANIFEST}", seal(manifest))
            self._forget(step)
        return self._storage.path(folder)

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint; None when there is none.

        A damaged one is named in the log and the one before it is used.
        """
        for folder in reversed(self._steps()):
            checkpoint = self._verified(folder)
            if checkpoint is not None:
                return checkpoint
        return None

    def at(self, step: int) -> Checkpoint:
        """A checkpoint that another worker has verified."""
        folder = self._storage.sub(f"{step:08d}")
        return Checkpoint(folder, _unseal(folder.read_bytes(_MANIFEST), step))

    def newest_path(self) -> str | None:
        """The folder of the newest committed checkpoint."""
        steps = [folder for folder in self._steps() if self._storage.exists(f"{folder}/{_MANIFEST}")]
        return self._storage.path(steps[-1]) if steps else None

    def _steps(self) -> list[str]:
        return [name for name in self._storage.list() if name.isdigit()]

    def _write(self, folder: str, rank: int, state: Any, parts: Iterable[Part]) -> tuple[Any, Any] | str:
        """Writes one worker's files; returns the manifest's lines on files and pieces, or why it could not."""
        file = f"rank-{rank:05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        pieces: dict[str, tuple[list[int], str, int, int]] = {}
        contents: dict[str, bytes] = {}
        if rank == 0:
            contents[_STATE] = json.dumps(_pack(state, "state", tensors)).encode()
            pieces |= {name: (list(value.shape), file, 0, value.numel()) for name, value in tensors.items()}
        for part in parts:
            # Cloned: safetensors refuses tensors that share memory, as tied weights do.
            tensors[part.name] = part.values.detach().cpu().reshape(-1).clone()
            pieces[part.name] = (list(part.shape), file, part.start, part.values.numel())
        contents[file] = save(tensors)
        try:
            for name, data in contents.items():
                self._storage.write_bytes(f"{folder}/{name}", data)
        except PharosError as error:
            return str(error)
        files = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents.items()}
        return files, pieces

    def _forget(self, step: int) -> None:
        steps = self._steps()
        # What lies past this step is damaged or was never committed, or the trial would have gone on from there.
        later = [name for name in steps if int(name) > step]
        for old in later + [name for name in steps if name not in later][: -self._keep]:
            self._storage.remove(old)

    def _verified(self, folder: str) -> Checkpoint | None:
        try:
            manifest = _unseal(self._storage.read_bytes(f"{folder}/{_MANIFEST}"), int(folder))
            files = {name: self._storage.read_bytes(f"{folder}/{name}") for name in manifest["files"]}
            for name, data in files.items():
                entry = manifest["files"][name]
                if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
                    raise ValueError(f"{name} does not match the manifest")
            return Checkpoint(self._storage.sub(folder), manifest, files)
        except FileNotFoundError as error:
            if not self._storage.exists(f"{folder}/{_MANIFEST}"):
                return None  # never committed: it was being written when its process died
            reason: Exception = error
        except (ValueError, KeyError, TypeError, PharosError) as error:
            reason = error
        logger.warning("checkpoint %s is damaged (%s); using the one before", self._storage.path(folder), reason)
        return None


def seal(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's file: JSON with a checksum of the rest of it."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}) + "\n").encode()


def _unseal(data: bytes, step: int) -> dict[str, Any]:
    sealed = json.loads(data)
    manifest = {key: value for key, value in sealed.items() if key != "sha256"}
    if seal(manifest) != data or manifest["step"] != step:
        raise ValueError("the manifest does not match its own checksum and place")
    return manifest


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replaces each tensor by a reference, and what JSON would lose (tuples, keys that are no text) by a tag."""
    if isinstance(value, torch.Tensor):
        while name in tensors:  # keys that look alike, such as 1 and "1"
            name += "'"
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


def _unpack(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensor) for item in value]
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensor(value["$tensor"])
        if "$tuple" in value:
            return tuple(_unpack(item, tensor) for item in value["$tuple"])
        if "$pairs" in value:
            return {key: _unpack(item, tensor) for key, item in value["$pairs"]}
        return {key: _unpack(item, tensor) for key, item in value.items()}
    return value
