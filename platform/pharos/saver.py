"""Writes checkpoints while training goes on.

Training waits for a copy into the host's memory, no longer:

    training thread     copy into buffers of the host, which the next copy uses again
    background thread   files of at most 32 MiB, four at a time, each tried until it is written
    rank 0's            then: what the others have written, metrics.jsonl, the manifest, what need not be kept

Workers tell rank 0 what they have written through their world's board, never in a collective: those are training's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pharos.background import Background, in_parallel
from pharos.checkpoint import Checkpoints, Part, folder_of, manifest_name, pack, seal
from pharos.errors import PharosError, StorageError
from pharos.retention import Keep, Retention
from pharos.retry import pauses, reason
from pharos.world import World

FILE_BYTES = 32 * 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """One file of a checkpoint: runs of elements by their tensor's name, and where they begin in it."""

    name: str
    pieces: dict[str, tuple[int, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Snapshot:
    """What one worker writes of a checkpoint, in the host's memory."""

    step: int
    state: bytes
    tensors: dict[str, tuple[tuple[int, ...], int, Tensor]]
    """The whole tensor's shape, the first element's place in it, and the elements, by name."""
    engine: dict[str, Any]
    value: float | None


class Saver:
    """Saves the checkpoints of one trial, one at a time.

    Args:
        checkpoints: Where.
        world: The trial's workers; each has a saver.
        keep: Which checkpoints stay.
        attempt: A word that no other attempt at the trial has, the same on all workers; part of the files' names.
        patience: Seconds without any progress after which saving has failed.
        before_commit: Called by rank 0 before a checkpoint counts, for what must be there when it does.
        background: The thread that writes; several savers, one after the other, may use the same.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        world: World | None = None,
        *,
        keep: Keep | None = None,
        attempt: str = "",
        patience: float = 60.0,
        before_commit: Callable[[], None] = lambda: None,
        background: Background | None = None,
    ):
        self.checkpoints = checkpoints
        self._storage = checkpoints.storage.patient(0)  # trying again is done here, where it shows as no progress
        self._world = world or World()
        self._retention: Retention | None = None
        if self._world.rank == 0:
            self._retention = Retention(checkpoints, keep or Keep())
        self._attempt = attempt
        self._patience = patience
        self._before_commit = before_commit
        self._background = background or Background("checkpoints")
        self._buffers: dict[str, Tensor] = {}
        self._error = ""
        self._trouble = ""
        self._moved_at = time.monotonic()
        self._is_abandoned = False

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return not self._background.idle.is_set()

    @property
    def failure(self) -> str:
        """Why saving has failed, in one line; empty while there is hope."""
        if self._error:
            return self._error
        waited = time.monotonic() - self._moved_at
        if self.is_busy and waited > self._patience:
            return f"{self._trouble or f'{self._storage.root}: no answer'} (nothing written for {waited:.0f} s)"
        return ""

    def wait(self, seconds: float) -> bool:
        """Waits until nothing is being written, or so long; says whether nothing is."""
        return self._background.idle.wait(seconds)

    def abandon(self) -> None:
        """Gives up what is being written."""
        self._is_abandoned = True

    def begin(
        self,
        step: int,
        state: Any,
        parts: Iterable[Part] = (),
        engine: Mapping[str, Any] | None = None,
        value: float | None = None,
    ) -> None:
        """Copies a checkpoint and lets it be written. All workers call it together, none of them `is_busy`.

        Args:
            step: What the folder is named after: the fidelity reached.
            state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None; rank 0's counts.
            parts: What this worker holds of the learners.
            engine: What wrote it, for those who read the manifest.
            value: The objective, by which the best checkpoints are kept.

        Raises:
            TypeError: The state holds something else.
        """
        assert not self.is_busy  # the copy would change what is being written
        snapshot = self._copy(step, state, parts, dict(engine or {}), value)
        self._moved_at = time.monotonic()
        self._background.start(functools.partial(self._write_all, snapshot))

    def save(self, step: int, state: Any, parts: Iterable[Part] = (), **about: Any) -> None:
        """Like `begin`, but comes back when it is written; at rank 0, by all workers.

        Raises:
            TypeError: See `begin`.
            PharosError: It could not be written.
        """
        self.begin(step, state, parts, **about)
        while not self.wait(0.1) and not self.failure:
            pass
        if self.failure:
            self.abandon()
            raise PharosError(self.failure)

    def _copy(
        self, step: int, state: Any, parts: Iterable[Part], engine: dict[str, Any], value: float | None
    ) -> _Snapshot:
        tensors: dict[str, tuple[tuple[int, ...], int, Tensor]] = {}
        text = b""
        if self._world.rank == 0:
            of_state: dict[str, Tensor] = {}
            text = json.dumps(pack(state, "state", of_state)).encode()
            tensors |= {name: (tuple(each.shape), 0, each.reshape(-1)) for name, each in of_state.items()}
        is_on_gpu = False
        for part in parts:
            values = part.values.detach().reshape(-1)
            buffer = self._buffers.get(part.name)
            if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
                buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
                self._buffers[part.name] = buffer
            buffer.copy_(values, non_blocking=values.is_cuda)
            is_on_gpu |= values.is_cuda
            tensors[part.name] = (part.shape, part.start, buffer)
        if is_on_gpu:
            torch.cuda.synchronize()
        return _Snapshot(step, text, tensors, engine, value)

    # What follows runs in the background thread

    def _write_all(self, snapshot: _Snapshot) -> None:
        try:
            written = self._write_own(snapshot)
            if self._world.rank == 0:
                self._commit(snapshot, written)
            else:
                self._world.post(self._key(snapshot.step, self._world.rank), json.dumps(written))
        except Exception as error:
            self._error = str(error) if isinstance(error, PharosError) else f"{self._storage.root}: {reason(error)}"
            if self._world.rank:
                with contextlib.suppress(Exception):  # that is what failed, maybe
                    self._world.post(self._key(snapshot.step, self._world.rank), json.dumps({"error": self._error}))

    def _write_own(self, snapshot: _Snapshot) -> dict[str, Any]:
        """Writes this worker's files; returns the manifest's lines on files and on pieces of tensors."""
        files = list(self._files(snapshot))
        jobs = [functools.partial(self._write_tensors, snapshot.step, file) for file in files]
        if self._world.rank == 0:
            jobs.append(functools.partial(self._write, snapshot.step, self._state_name, snapshot.state))
        pieces: dict[str, Any] = {}
        for file in files:
            for name, (start, values) in file.pieces.items():
                entry = pieces.setdefault(name, {"shape": list(snapshot.tensors[name][0]), "pieces": []})
                entry["pieces"].append([file.name, start, values.numel()])
        return {"files": dict(in_parallel(jobs)), "tensors": pieces}

    def _commit(self, snapshot: _Snapshot, written: dict[str, Any]) -> None:
        for rank in range(1, self._world.size):
            theirs = self._told_by(rank, snapshot.step)
            written["files"] |= theirs["files"]
            for name, entry in theirs["tensors"].items():
                known = written["tensors"].setdefault(name, {"shape": entry["shape"], "pieces": []})
                known["pieces"] += entry["pieces"]
        manifest = {
            "step": snapshot.step,
            "world_size": self._world.size,
            "engine": snapshot.engine,
            "value": snapshot.value,
            "state": self._state_name,
            **written,
        }
        self._until_done(self._before_commit, snapshot.step)
        name = manifest_name(self._attempt)
        self._write(snapshot.step, name, seal(manifest))
        assert self._retention is not None  # this is rank 0
        try:
            self._retention.apply(snapshot.step, snapshot.value, {*written["files"], name})
        except (PharosError, OSError) as error:  # the checkpoint is there; what is too much goes next time
            logger.warning("%s", error)

    def _told_by(self, rank: int, step: int) -> dict[str, Any]:
        """What another worker has written, once it has."""
        key = self._key(step, rank)
        while (note := self._world.take(key)) is None:
            if self._is_abandoned:
                raise PharosError(f"worker {rank} has not written its part")
            news = self._world.take(f"{key}/news")
            if news:
                self._trouble = f"worker {rank}: {news}"
            elif news is not None:
                self._moved_at = time.monotonic()
            time.sleep(0.01)
        self._world.take(f"{key}/news")
        told: dict[str, Any] = json.loads(note)
        if "error" in told:
            raise PharosError(f"worker {rank}: {told['error']}")
        self._moved_at = time.monotonic()
        return told

    def _write_tensors(self, step: int, file: _File) -> tuple[str, dict[str, Any]]:
        return self._write(step, file.name, save({name: values for name, (_, values) in file.pieces.items()}))

    def _write(self, step: int, name: str, data: bytes) -> tuple[str, dict[str, Any]]:
        self._until_done(lambda: self._storage.write_bytes(f"{folder_of(step)}/{name}", data), step)
        return name, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _until_done(self, act: Callable[[], None], step: int) -> None:
        for pause in pauses():
            try:
                act()
            except StorageError as error:
                self._trouble = str(error)
                self._tell(step, self._trouble)
                if error.is_final or self._is_abandoned:
                    raise
            else:
                self._moved_at = time.monotonic()
                self._tell(step, "")
                return
            time.sleep(pause)

    def _tell(self, step: int, trouble: str) -> None:
        """Lets rank 0 know how this worker gets on: of nothing new it would think that it does not."""
        if self._world.rank:
            self._world.post(f"{self._key(step, self._world.rank)}/news", trouble)

    def _files(self, snapshot: _Snapshot) -> Iterator[_File]:
        """Shares the tensors out to files, none of which is too large; a tensor may be in several."""
        file, room, count = self._file(0), FILE_BYTES, 1
        for name, (_, start, values) in snapshot.tensors.items():
            length = FILE_BYTES // values.element_size()
            for index, run in enumerate(torch.split(values, length)):
                if run.nbytes > room:
                    yield file
                    file, room, count = self._file(count), FILE_BYTES, count + 1
                file.pieces[name] = (start + index * length, run)
                room -= run.nbytes
        if file.pieces:
            yield file

    def _file(self, number: int) -> _File:
        return _File(f"rank-{self._world.rank:05d}-{number:03d}{self._suffix}.safetensors")

    @property
    def _state_name(self) -> str:
        return f"state{self._suffix}.json"

    @property
    def _suffix(self) -> str:
        return f"-{self._attempt}" if self._attempt else ""

    def _key(self, step: int, rank: int) -> str:
        return f"checkpoint/{self._attempt}/{step}/{rank}"
