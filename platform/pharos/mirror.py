"""A sweep whose folder is in a store: who drives it, and its study's journal.

Object stores cannot append. The driver writes the journal on its own disk; what is new of it goes to the store as
immutable segments, and a pointer that lists them is what counts:

    study/00001-3fa09c21.journal    a run of whole lines
    study.json                      the segments in their order with their checksums; the driver, and its heartbeat

A driver that starts elsewhere puts the journal together again. One that finds another's heartbeat going stops; and one
that finds itself replaced, having been thought dead, stops too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pharos.background import Outbox
from pharos.errors import InputError, StorageError
from pharos.storage import Storage, StorageConfig

POINTER = "study.json"
_SEGMENTS = "study"
# So many segments are put together to one, so that a reader need not fetch hundreds.
_MANY = 50
# Segments that were put together stay for so many beats.
_LINGER = 3
# A driver is dead if its heart has not beaten for so many of its intervals.
_BEATS = 2.5


@dataclass(frozen=True)
class _Segment:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Pointer:
    """What `study.json` holds."""

    driver: str
    host: str
    boot: str
    pid: int
    every: float
    """Seconds between two beats."""
    beat: int = 0
    is_open: bool = True
    segments: tuple[_Segment, ...] = field(default_factory=tuple)

    @property
    def size(self) -> int:
        return sum(segment.bytes for segment in self.segments)


class StudyMirror:
    """Makes a sweep in a store this driver's own, and keeps its journal there; see the module.

    Args:
        home: The sweep's folder in the store.
        journal: Where the journal lies here; None if the study lies elsewhere (RDB).
        seconds: Between two beats.
        note: Hears what a person should know.

    Raises:
        InputError: Another driver is at it, or its journal is damaged.
        StorageError: The store does not answer.
    """

    def __init__(
        self, home: Storage, journal: Path | None, seconds: float, note: Callable[[str], None] = lambda text: None
    ):
        self._home = home
        self._journal = journal
        self._replaced: list[tuple[int, str]] = []  # segments that count no more, and the beat at which they go
        self._pointer = _Pointer(secrets.token_hex(6), socket.gethostname(), _boot(), os.getpid(), seconds)
        before = _wait_for_driver(home, note)
        if before is not None:
            self._pointer = replace(self._pointer, segments=before.segments)
            if journal is not None:
                self._restore(journal, before, note)
        self._write_pointer(self._pointer)
        self._remove_stale()

    def push(self) -> None:
        """Brings to the store what the journal has gained, and beats.

        Raises:
            StorageError: The store does not take it, or another driver has taken the sweep over.
        """
        home = self._home.patient(0)
        self._check_ours(home)
        pointer = replace(self._pointer, beat=self._pointer.beat + 1)
        new = self._new_lines(pointer.size)
        if new and len(pointer.segments) >= _MANY:
            # Not removed at once: a pointer that was thought lost may yet arrive, and count until the next beat.
            self._replaced += [(pointer.beat + _LINGER, segment.name) for segment in pointer.segments]
            new = self._new_lines(0)
            pointer = replace(pointer, segments=())
        if new:
            digest = hashlib.sha256(new).hexdigest()
            segment = _Segment(f"{pointer.beat:06d}-{digest[:8]}.journal", len(new), digest)
            home.write_bytes(f"{_SEGMENTS}/{segment.name}", new)
            pointer = replace(pointer, segments=(*pointer.segments, segment))
        self._write_pointer(pointer, home)
        while self._replaced and self._replaced[0][0] <= pointer.beat:
            home.remove(f"{_SEGMENTS}/{self._replaced[0][1]}")
            del self._replaced[0]

    def close(self) -> None:
        """Lets another driver take the sweep at once.

        Raises:
            StorageError: See `push`.
        """
        self.push()
        self._write_pointer(replace(self._pointer, is_open=False), self._home.patient(0))

    def _new_lines(self, start: int) -> bytes:
        """What the journal holds from there on, in whole lines."""
        if self._journal is None:
            return b""
        with self._journal.open("rb") as file:
            file.seek(start)
            data = file.read()
        return data[: data.rfind(b"\n") + 1]

    def _restore(self, journal: Path, pointer: _Pointer, note: Callable[[str], None]) -> None:
        """Puts the store's journal in the place of this disk's, unless this disk's only goes on from it."""
        theirs = _fetch(self._home, pointer)
        if journal.exists():
            ours = journal.read_bytes()
            if ours.startswith(theirs):
                return
            aside = journal.with_name(f"{journal.name}.{int(time.time())}")
            journal.rename(aside)
            note(f"another driver has gone on with this sweep; what this machine had of its study is kept as {aside}")
        Storage(str(journal.parent)).write_bytes(journal.name, theirs)

    def _check_ours(self, home: Storage) -> None:
        try:
            present = _read_pointer(home)
        except FileNotFoundError:
            present = None
        if present is None or present.driver != self._pointer.driver:
            who = f"a driver on {present.host}, process {present.pid}" if present else "somebody who removed it"
            raise StorageError(f"{self._home.root} was taken over by {who}; this one stops", is_final=True)

    def _write_pointer(self, pointer: _Pointer, home: Storage | None = None) -> None:
        (home or self._home).write_json(POINTER, asdict(pointer))
        self._pointer = pointer

    def _remove_stale(self) -> None:
        known = {segment.name for segment in self._pointer.segments}
        for name in self._home.list(_SEGMENTS):
            if name not in known:
                self._home.remove(f"{_SEGMENTS}/{name}")


@contextlib.contextmanager
def ours(home: Storage, config: StorageConfig) -> Iterator[None]:
    """Keeps drivers from a sweep's folder for the length of a block.

    Raises:
        InputError: One is at work.
    """
    if home.is_local:
        with home.locked(0.0):
            yield
        return
    mirror = StudyMirror(home, None, config.mirror_seconds)
    outbox = Outbox("ours", home.root)
    outbox.every(config.mirror_seconds, "beat", mirror.push)
    try:
        yield
    finally:
        outbox.close()
        mirror.close()


def fetch_journal(home: Storage, target: Path) -> None:
    """Writes what the store has of a sweep's journal to a file, for those who only read.

    Raises:
        InputError: There is none, or it is damaged.
    """
    target.write_bytes(fetch_news(home, 0))


def fetch_news(home: Storage, start: int) -> bytes:
    """What the store has of a sweep's journal from that byte on; nothing, if it has no more.

    Raises:
        InputError: There is none, or it is damaged.
    """
    for attempt in range(3):
        try:
            pointer = _read_pointer(home)
        except FileNotFoundError:
            raise InputError(f"{home.path(POINTER)}: no such study; name a sweep's folder") from None
        try:
            return _fetch(home, pointer, start)
        except InputError:
            # Its driver may just have put the segments together.
            if attempt == 2:
                raise
    raise AssertionError


def _fetch(home: Storage, pointer: _Pointer, start: int = 0) -> bytes:
    """The journal from a byte on: segments only ever continue it, also when they are put together."""
    data = b""
    for segment in pointer.segments:
        if start >= segment.bytes:
            start -= segment.bytes
            continue
        try:
            part = home.read_bytes(f"{_SEGMENTS}/{segment.name}")
        except FileNotFoundError:
            raise InputError(f"{home.path(_SEGMENTS, segment.name)}: missing; put a copy of it back") from None
        if len(part) != segment.bytes or hashlib.sha256(part).hexdigest() != segment.sha256:
            raise InputError(f"{home.path(_SEGMENTS, segment.name)}: damaged; put a copy of it back")
        data += part[start:]
        start = 0
    return data


def _read_pointer(home: Storage) -> _Pointer:
    try:
        document = home.read_json(POINTER)
        return _Pointer(**{**document, "segments": tuple(_Segment(**each) for each in document["segments"])})
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{home.path(POINTER)}: damaged; put a copy of it back") from None


def _wait_for_driver(home: Storage, note: Callable[[str], None]) -> _Pointer | None:
    """The pointer that the last driver left, once it is sure to be gone.

    Raises:
        InputError: It is not.
    """
    try:
        pointer = _read_pointer(home)
    except FileNotFoundError:
        return None
    if not pointer.is_open or _is_dead(pointer):
        return pointer
    who = f"the driver on {pointer.host}, process {pointer.pid}"
    seconds = _BEATS * pointer.every
    note(f"{who}, did not say that it ended; waiting {seconds:.0f} s for a sign of life")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, pointer.every / 4))
        try:
            present = _read_pointer(home)
        except FileNotFoundError:
            raise InputError(f"{home.root}: {who}, has removed it") from None
        if (present.driver, present.beat) != (pointer.driver, pointer.beat):
            if not present.is_open:
                return present
            raise InputError(f"{home.root}: {who}, is working on it; wait for it or stop it first")
    return pointer


def _is_dead(pointer: _Pointer) -> bool:
    """Whether a driver of this machine has ended; of another one nothing is known."""
    if not pointer.boot or pointer.boot != _boot():
        return False
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pointer.pid, 0)
        except ProcessLookupError:
            return True
    return False


def _boot() -> str:
    """A word for what numbers processes here: this machine since it was started, or this container on it."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink()
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {namespace}"
    except OSError:
        return ""
