"""Where sweeps live: a folder behind fsspec, in which a file is either whole or absent.

Only local folders are supported so far; everything goes through one class, so that a bucket is a change in
this module alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import posixpath
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pharos.errors import InputError, PharosError


class Storage:
    """A folder, by URL. Paths given to its methods are relative to it and use '/'.

    Args:
        url: A local path or a `file://` URL.

    Raises:
        InputError: The URL is not one of a local folder.
    """

    def __init__(self, url: str):
        try:
            fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InputError(f"storage.url={url}: {error}; give a local folder or a file:// URL") from None
        if not isinstance(fs, LocalFileSystem):
            raise InputError(f"storage.url={url}: only local folders (file://) are supported so far")
        self.fs = fs
        self.root = root

    def path(self, *parts: str) -> str:
        """The absolute path of a file or folder below this one."""
        return posixpath.join(self.root, *parts)

    def sub(self, *parts: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage(self.path(*parts))

    def exists(self, path: str = "") -> bool:
        return bool(self.fs.exists(self.path(path)))

    def read_bytes(self, path: str) -> bytes:
        return bytes(self.fs.cat_file(self.path(path)))

    def read_json(self, path: str) -> Any:
        return json.loads(self.read_bytes(path))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Writes a file that is there whole or not at all, whatever happens in between.

        Raises:
            PharosError: The storage refuses (disk full, no permission), with its reason in one line.
        """
        target = Path(self.path(path))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise PharosError(f"cannot write {target}: {error.strerror}") from error

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())

    def append_line(self, path: str, line: str) -> None:
        """Appends one line; after a crash the last line may be torn, so readers use `read_lines`."""
        target = Path(self.path(path))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                file.write(line.encode() + b"\n")
        except OSError as error:
            raise PharosError(f"cannot write {target}: {error.strerror}") from error

    def read_lines(self, path: str) -> list[str]:
        """The whole lines of a file: a torn last line is left out, a missing file has none."""
        if not self.exists(path):
            return []
        return [line.decode() for line in self.read_bytes(path).split(b"\n")[:-1]]

    def list(self, path: str = "") -> Iterable[str]:
        """Names in a folder, sorted; none when the folder is missing. Temporary files are left out."""
        if not self.exists(path):
            return []
        names = (posixpath.basename(entry) for entry in self.fs.ls(self.path(path), detail=False))
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, path: str = "") -> None:
        if self.exists(path):
            self.fs.rm(self.path(path), recursive=True)

    def lock(self, wait_seconds: float = 0.0) -> int:
        """Takes this folder for this process; the system gives it back when the process ends, however it ends.

        Args:
            wait_seconds: How long to wait for a process that has it.

        Returns:
            What `unlock` takes.

        Raises:
            InputError: Another process has it.
        """
        Path(self.root).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.read(descriptor, 20).decode() or "unknown"
                    os.close(descriptor)
                    raise InputError(
                        f"{self.root}: another process ({holder}) is working on it; wait for it or stop it first"
                    ) from None
                time.sleep(0.05)
            else:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor

    def unlock(self, lock: int) -> None:
        """Gives the folder back."""
        os.close(lock)

    @contextlib.contextmanager
    def locked(self, wait_seconds: float) -> Iterator[None]:
        """Has this folder for the length of a block; see `lock`."""
        lock = self.lock(wait_seconds)
        try:
            yield
        finally:
            self.unlock(lock)

    def check_writable(self) -> None:
        """Tries a write before anything depends on it.

        Raises:
            InputError: Nothing can be written here.
        """
        # The nearest folder that exists is asked, so that a refused sweep leaves no folders behind.
        folder = Path(self.root)
        try:
            while not folder.exists():
                folder = folder.parent
            probe = folder / f".pharos-{os.getpid()}.tmp"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"storage.url={self.root}: cannot write to {folder} ({error.strerror}); give a folder you may write to"
            ) from None


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut: the folder's entry is data of the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
