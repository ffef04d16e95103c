"""Checkpoints: tensors as safetensors, everything else as JSON, and a manifest that is written last.

A checkpoint is a folder `<step>/`. Each worker writes what it holds of the learners to files of at most 32 MiB,
`rank-<r>-<n>-<attempt>.safetensors`; rank 0 adds the rest of the trial's state (`state-<attempt>.json`, its tensors in
rank 0's files) and, when all are written, `manifest-<attempt>.json`: the size and SHA-256 of every file, how many
workers and which engine wrote them, which elements of which tensor lie where, the value of the objective, and its own
SHA-256. The manifest is the commit: a folder without a valid one does not exist. No file is ever written twice, so
that an attempt that was thought dead and writes on spoils nothing: a folder then holds two checkpoints, both good.

As tensors are named and their pieces are located in the flattened whole, any number of workers reads what any other
number wrote. Nothing here is ever unpickled. `pharos.saver` writes them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pharos.background import in_parallel
from pharos.errors import PharosError, StorageError
from pharos.storage import Storage

_HELD = "held-"

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
        name: Of its manifest.
        manifest: What that says.
        files: The files that were read already, by name.
    """

    def __init__(self, storage: Storage, name: str, manifest: Mapping[str, Any], files: dict[str, bytes] | None = None):
        self.name = name
        self.step = int(manifest["step"])
        self.world_size = int(manifest["world_size"])
        self._storage = storage
        self._tensors: Mapping[str, Any] = manifest["tensors"]
        self._bytes = files or {}
        self._loaded: dict[str, dict[str, Tensor]] = {}
        self.state: Any = _unpack(json.loads(self._read(manifest["state"])), self.tensor)
        """What was saved, learners apart."""

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
        if len(found) == 1:
            return found[0][1]
        return torch.cat([piece for _, piece in sorted(found, key=lambda item: item[0])])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Whole tensors by name, the beginning cut off."""
        return {name: self.tensor(prefix + name) for name in self.names(prefix)}

    def check(self) -> None:
        """Looks into every file of tensors: one may have its checksum in the manifest and hold none all the same.

        Raises:
            ValueError: A file is no safetensors file.
            KeyError: It lacks a tensor.
        """
        for name, entry in self._tensors.items():
            for file, *_ in entry["pieces"]:
                self._file(file)[name]

    def _file(self, name: str) -> dict[str, Tensor]:
        if name not in self._loaded:
            try:
                tensors = load(self._read(name))
            except SafetensorError as error:
                raise ValueError(f"{name} holds no tensors: {error}") from None
            self._loaded[name] = {key: value.reshape(-1) for key, value in tensors.items()}
            self._bytes.pop(name, None)
        return self._loaded[name]

    def _read(self, name: str) -> bytes:
        return self._bytes[name] if name in self._bytes else self._storage.read_bytes(name)


class Checkpoints:
    """The checkpoints of one trial.

    Args:
        storage: The trial's `checkpoints/` folder.
    """

    def __init__(self, storage: Storage):
        self.storage = storage

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint; None when there is none.

        A damaged one is named in the log and the one before it is used.
        """
        for step, files in reversed(self.files().items()):
            for name in filter(is_manifest, files):
                checkpoint = self._verified(step, name)
                if checkpoint is not None:
                    return checkpoint
        return None

    def at(self, step: int, name: str) -> Checkpoint:
        """A checkpoint that another worker has verified, by the name of its manifest."""
        folder = self.storage.sub(folder_of(step))
        return Checkpoint(folder, name, _unseal(folder.read_bytes(name), step))

    def newest_path(self) -> str | None:
        """The folder of the newest committed checkpoint."""
        steps = self.steps()
        return self.storage.path(folder_of(steps[-1])) if steps else None

    def steps(self) -> list[int]:
        """The steps that were committed, in order."""
        return [step for step, files in self.files().items() if any(map(is_manifest, files))]

    def files(self) -> dict[int, dict[str, int]]:
        """The bytes of each file of each step, committed or not, in order."""
        found: dict[int, dict[str, int]] = {}
        for path, size in self.storage.sizes().items():
            folder, _, name = path.partition("/")
            if folder.isdigit():
                found.setdefault(int(folder), {})[name] = size
        return dict(sorted(found.items()))

    def value(self, step: int) -> float | None:
        """The objective of a committed checkpoint; None where it is not known."""
        for name in filter(is_manifest, self.storage.list(folder_of(step))):
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                value: float | None = self._manifest(step, name)["value"]
                return value
        return None

    def remove(self, step: int, names: Collection[str]) -> None:
        """Removes a checkpoint, of which these are the files."""
        folder = folder_of(step)
        # First, as the rest may go in any order: half of a checkpoint must not be taken for one.
        manifests = set(filter(is_manifest, names))
        self.storage.remove_files([f"{folder}/{name}" for name in sorted(manifests)])
        self.storage.remove_files([f"{folder}/{name}" for name in sorted(set(names) - manifests)])

    def hold(self, step: int, who: str) -> None:
        """Keeps a checkpoint from being removed until `release`: somebody is going to read it.

        One that was just being removed goes all the same; who holds it looks afterwards whether it is there.
        """
        self.storage.write_bytes(f"{folder_of(step)}/{_HELD}{who}", b"")

    def release(self, step: int, who: str) -> None:
        """Takes back a `hold`."""
        self.storage.remove(f"{folder_of(step)}/{_HELD}{who}")

    def release_all(self, who: str) -> None:
        """Takes back every `hold` of somebody's, such as those that a dead process left."""
        for step, files in self.files().items():
            if f"{_HELD}{who}" in files:
                self.release(step, who)

    def copy_newest(self, other: Checkpoints, who: str) -> bool:
        """Makes the newest valid checkpoint another trial's, too; whether there was one.

        It is held while it is copied. A process that dies in between leaves no checkpoint there, or the whole, and a
        hold for `release_all`.

        Args:
            other: The other trial's checkpoints; there are none yet.
            who: Whose copy it is.
        """
        found = self.newest()
        while found is not None:
            self.hold(found.step, who)
            # It may have been going just then; if so there is a newer one by now.
            if found.name in self.files().get(found.step, {}):
                break
            self.release(found.step, who)
            found = self.newest()
        if found is None:
            return False
        source, target = (each.storage.sub(folder_of(found.step)) for each in (self, other))
        for name in self._manifest(found.step, found.name)["files"]:
            target.write_bytes(name, source.read_bytes(name))
        target.write_bytes(found.name, source.read_bytes(found.name))
        self.release(found.step, who)
        return True

    def remove_stale(self) -> None:
        """Removes what was never committed; nobody may be writing here."""
        for step, files in self.files().items():
            manifests = list(filter(is_manifest, files))
            known = {*manifests, *filter(is_hold, files)}
            try:
                for name in manifests:
                    known |= set(self._manifest(step, name)["files"])
            except (ValueError, KeyError, TypeError):
                continue  # damaged: `newest` says so
            self.storage.remove_files([f"{folder_of(step)}/{name}" for name in files if name not in known])

    def _manifest(self, step: int, name: str) -> dict[str, Any]:
        return _unseal(self.storage.read_bytes(f"{folder_of(step)}/{name}"), step)

    def _verified(self, step: int, name: str) -> Checkpoint | None:
        folder = self.storage.sub(folder_of(step))
        try:
            manifest = self._manifest(step, name)
            jobs = [functools.partial(_read, folder, file, entry) for file, entry in manifest["files"].items()]
            checkpoint = Checkpoint(folder, name, manifest, dict(in_parallel(jobs)))
            checkpoint.check()
            return checkpoint
        except StorageError:
            raise  # a store that does not answer says nothing of the checkpoint
        except (OSError, ValueError, KeyError, TypeError, PharosError) as error:
            logger.warning("checkpoint %s is damaged (%s); using the one before", folder.root, error)
            return None


def manifest_name(attempt: str) -> str:
    """The name of a manifest, from the word of the attempt that wrote it."""
    return f"manifest-{attempt}.json" if attempt else "manifest.json"


def is_manifest(name: str) -> bool:
    """Whether a file commits a checkpoint."""
    return name.startswith("manifest") and name.endswith(".json")


def is_hold(name: str) -> bool:
    """Whether a file keeps its checkpoint from being removed; see `Checkpoints.hold`."""
    return name.startswith(_HELD)


def folder_of(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"{step:08d}"


def _read(folder: Storage, name: str, entry: Mapping[str, Any]) -> tuple[str, bytes]:
    """A file, by name, that is as its manifest says."""
    data = folder.read_bytes(name)
    if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{name} does not match the manifest")
    return name, data


def seal(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's file: JSON with a checksum of the rest of it."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}) + "\n").encode()


def _unseal(data: bytes, step: int) -> dict[str, Any]:
    sealed = json.loads(data)
    if not isinstance(sealed, dict):
        raise ValueError("the manifest is none")
    manifest = {key: value for key, value in sealed.items() if key != "sha256"}
    if seal(manifest) != data or manifest["step"] != step:
        raise ValueError("the manifest does not match its own checksum and place")
    pieces = {piece[0] for tensor in manifest["tensors"].values() for piece in tensor["pieces"]}
    for name in (manifest["state"], *manifest["files"], *pieces):  # else a copy could write anything anywhere
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"the manifest names {name!r}, which is no file of its folder")
    return manifest


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
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
        pairs = [[key, pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(pairs)
        return {"$pairs": pairs}
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
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
