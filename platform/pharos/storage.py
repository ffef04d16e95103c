"""Where sweeps live: a folder behind fsspec, on a disk or in a bucket, in which a file is either whole or absent.

Credentials come from the environment, a profile or the machine's role, as each store's own tools read them, and from
nowhere else: a URL or an option that holds one is refused, and no error text shows one.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fcntl
import json
import os
import posixpath
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pharos.errors import InputError, PharosError, StorageError
from pharos.retry import again

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
# Options of file systems that are, or hold, secrets.
_SECRET = re.compile(r"^key$|secret|token|passw|credential|connection_string|(account|access)_key|sas_", re.IGNORECASE)
# A user or password in a URL, such as an endpoint's or a proxy's.
_LOGIN = re.compile(r"://[^/\s]*@")
# What a command waits for a store before it says that there is none.
_CHECK_SECONDS = 15.0
# One that sends may take so long, and the more the more it sends, in bytes a second; others only need an end.
_SLOWEST = 2**19
_LIST_SECONDS = 600.0
# Retries are ours; a request that hangs is given up so soon that there is time for another.
_S3_CONFIG: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 1}}


@dataclass
class StorageConfig:
    """Where sweeps lie, and what of them stays. `conf/storage/` says what each value is for."""

    url: str = "sweeps"
    options: dict[str, Any] = field(default_factory=dict)
    patience: float = 300.0
    mirror_seconds: float = 10.0
    keep_last: int = 2
    keep_best: int = 1
    keep_every: int = 0
    keep_trials: int | None = None
    cache: str = "~/.cache/pharos"
    cache_gb: float = 50.0

    def open(self, url: str | None = None) -> Storage:
        """The storage at a URL, or at `url`."""
        return Storage(url or self.url, self.options, self.patience)


def open_url(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The file system of a URL and the path in it.

    Args:
        url: A local path, or any URL that fsspec knows.
        options: Arguments of the file system; for a local path they do not matter.

    Raises:
        InputError: The URL or an option is wrong, or holds a secret; or a package is missing.
    """
    scheme, separator, rest = url.partition("://")
    if separator and _has_login(rest):
        raise InputError(f"{scheme}://…: a URL with a user or password in it; credentials come from the environment")
    if not separator or scheme == "file":
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    arguments = {**(options or {})}
    check_options(arguments)
    if scheme in ("s3", "s3a"):
        arguments["config_kwargs"] = {**_S3_CONFIG, **arguments.get("config_kwargs", {})}
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **arguments)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        what = "'pharos-sweeps[s3]'" if extra == "s3" else extra or "the package that it names"
        raise InputError(f"{url}: {error}; pip install -c constraints.txt {what}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{url}: {error}; storage.options are arguments of its file system") from None
    if scheme in ("s3", "s3a"):
        fs.retries = 1
    if getattr(fs, "async_impl", False) and fs.loop is not None:
        fs.loop.call_soon_threadsafe(fs.loop.set_exception_handler, _forget_lost_connections)
    return fs, str(path)


def _has_login(rest: str) -> bool:
    """Whether a URL, its scheme cut off, has a user or password in it; one that is not quoted may hold a '/'."""
    host = rest.partition("/")[0]
    is_port = host.rpartition(":")[2].isdigit()
    return "@" in host or (":" in host and not is_port and "@" in rest)


def _forget_lost_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Keeps quiet of what a broken connection leaves behind in the HTTP client; the request itself has failed."""
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)


def check_options(options: Mapping[str, Any]) -> None:
    """Complains of an option that is a secret, or is called like one.

    Raises:
        InputError: There is one.
    """
    for name, value in options.items():
        if _SECRET.search(str(name)) or (isinstance(value, str) and _LOGIN.search(value)):
            raise InputError(f"storage.options.{name}: credentials come from the environment, a profile or a role")
        if isinstance(value, Mapping):
            check_options(value)


class Storage:
    """A folder, by URL. Paths given to its methods are relative to it and use '/'.

    What a store does not do at once is tried again for `patience` seconds; then, and when trying again would not help,
    methods raise a StorageError of one line.

    Args:
        url: A local path, or any URL that fsspec knows.
        options: Arguments of the file system.
        patience: Seconds; see above.

    Raises:
        InputError: See `open_url`.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, patience: float = 60.0):
        self.fs, path = open_url(url, options)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.root: str = path if self.is_local else self.fs.unstrip_protocol(path).rstrip("/")
        """A local path, or a URL."""
        self.patience = patience
        self._is_s3 = not self.is_local and "s3" in self.fs.protocol
        self._read_timeout = getattr(self.fs, "config_kwargs", _S3_CONFIG).get(
            "read_timeout", _S3_CONFIG["read_timeout"]
        )

    def path(self, *parts: str) -> str:
        """The absolute path, or URL, of a file or folder below this one."""
        return posixpath.join(self.root, *parts)

    def sub(self, *parts: str) -> Storage:
        """The storage of a folder below this one."""
        return self._with(root=self.path(*parts))

    def parent(self) -> Storage:
        """The storage of the folder that this one is in."""
        return self._with(root=posixpath.dirname(self.root))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.root)

    def patient(self, seconds: float) -> Storage:
        """The same, with another patience."""
        return self._with(patience=seconds)

    def exists(self, path: str = "") -> bool:
        return bool(self._again("exists", path, "cannot look for"))

    def read_bytes(self, path: str) -> bytes:
        """What a file holds.

        Raises:
            FileNotFoundError: There is none.
        """
        # s3fs would ask for the size first, to read in parts: what is large here is in parts already.
        options = {"max_concurrency": 1} if self._is_s3 else {}
        return bytes(self._again("cat_file", path, "cannot read", **options))

    def read_json(self, path: str) -> Any:
        return json.loads(self.read_bytes(path))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Writes a file that is there whole or not at all, whatever happens in between.

        Raises:
            PharosError: The storage refuses (disk full, no permission), with its reason in one line.
        """
        if self.is_local:
            _write_file(Path(self.path(path)), data)
        else:
            # An object store has an object when all of it has arrived.
            self._again("pipe_file", path, "cannot write", data)

    def write_json(self, path: str, value: Any) -> None:
        self.write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())

    def append_line(self, path: str, line: str) -> None:
        """Appends one line, to a local file alone; after a crash the last may be torn, so readers use `read_lines`."""
        target = self._local(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                file.write(line.encode() + b"\n")
        except OSError as error:
            raise PharosError(f"cannot write {target}: {error.strerror}") from error

    def read_lines(self, path: str) -> list[str]:
        """The whole lines of a file: a torn last line is left out, a missing file has none."""
        try:
            data = self.read_bytes(path)
        except FileNotFoundError:
            return []
        return [line.decode() for line in data.split(b"\n")[:-1]]

    def list(self, path: str = "") -> Iterable[str]:
        """Names in a folder, sorted; none when the folder is missing. Temporary files are left out."""
        try:
            entries = self._again("ls", path, "cannot list", detail=False)
        except FileNotFoundError:
            return []
        names = {posixpath.basename(entry.rstrip("/")) for entry in entries} - {""}
        return sorted(name for name in names if not name.startswith("."))

    def sizes(self, path: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by its path from there; temporary files are left out."""
        root = self._at(path).rstrip("/") + "/"
        try:
            found = self._again("find", path, "cannot list", detail=True)
        except FileNotFoundError:
            return {}
        names = {name[len(root) :]: int(info["size"]) for name, info in found.items() if name.startswith(root)}
        return {name: size for name, size in names.items() if not posixpath.basename(name).startswith(".")}

    def remove(self, path: str = "") -> None:
        """Removes a file, or a folder with all that is in it; it need not exist."""
        with contextlib.suppress(FileNotFoundError):
            self._again("rm", path, "cannot remove", recursive=True)

    def remove_files(self, paths: Sequence[str]) -> None:
        """Removes files; they need not exist."""
        if not paths:
            return
        if self.is_local:
            for path in paths:
                self._local(path).unlink(missing_ok=True)
            for folder in {self._local(path).parent for path in paths}:
                with contextlib.suppress(OSError):  # others are in it
                    folder.rmdir()
            return
        try:
            self._again("rm", paths, "cannot remove")
        except FileNotFoundError:  # some stores stop at the first that is missing
            for path in paths if len(paths) > 1 else ():
                self.remove_files([path])

    def lock(self, wait_seconds: float = 0.0) -> int:
        """Takes this local folder for this process; the system gives it back when the process ends, however it ends.

        Args:
            wait_seconds: How long to wait for a process that has it.

        Returns:
            What `unlock` takes.

        Raises:
            InputError: Another process has it.
        """
        path = self._local(".lock")
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except (FileNotFoundError, FileExistsError):  # whoever has it is just removing the folder
                if os.path.lexists(path.parent) and not path.parent.is_dir():
                    raise
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20).decode() or "unknown"
                os.close(descriptor)
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{self.root}: another process ({holder}) is working on it; wait for it or stop it first"
                    ) from None
                time.sleep(0.05)
                continue
            # Whoever had it may have removed the folder meanwhile, and another process has made it anew.
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
            os.close(descriptor)

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
        if self.is_local:
            _check_folder(self.root)
            return
        probe = f".pharos-{secrets.token_hex(4)}.tmp"
        here = self.patient(min(self.patience, _CHECK_SECONDS))
        try:
            here.write_bytes(probe, b"")
            here.remove(probe)
        except StorageError as error:
            hint = "" if error.is_final else "; check the endpoint (AWS_ENDPOINT_URL, storage.options) and the network"
            raise InputError(f"storage.url={self.root}: {error}{hint}") from None

    def _with(self, **changes: Any) -> Storage:
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def _at(self, path: str) -> str:
        """A path as the file system wants it."""
        return str(self.fs._strip_protocol(posixpath.join(self.root, path) if path else self.root))

    def _local(self, path: str) -> Path:
        assert self.is_local, f"{self.root}: only a local file can be appended to or locked"
        return Path(self.path(path))

    def _again(self, name: str, path: str | Sequence[str], what: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the file system on a path or several, in a store as long as it takes."""
        first = path if isinstance(path, str) else path[0]
        where: str | list[str] = self._at(path) if isinstance(path, str) else [self._at(each) for each in path]
        if self.is_local:
            return getattr(self.fs, name)(where, *arguments, **options)

        def act() -> Any:
            if not getattr(self.fs, "async_impl", False):
                return getattr(self.fs, name)(where, *arguments, **options)
            # Not every request ends by itself: one that sends waits without end for the store's word to go on.
            data = next((each for each in arguments if isinstance(each, bytes)), None)
            seconds = _LIST_SECONDS if data is None else self._read_timeout + len(data) / _SLOWEST
            request = getattr(self.fs, f"_{name}")(where, *arguments, **options)
            return asyncio.run_coroutine_threadsafe(asyncio.wait_for(request, seconds), self.fs.loop).result()

        return again(act, f"{what} {self.path(first) if first else self.root}", self.patience)


def _write_file(target: Path, data: bytes) -> None:
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


def _check_folder(root: str) -> None:
    # The nearest folder that exists is asked, so that a refused sweep leaves no folders behind.
    folder = Path(root)
    try:
        while not folder.exists():
            folder = folder.parent
        probe = folder / f".pharos-{os.getpid()}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"storage.url={root}: cannot write to {folder} ({error.strerror}); give a folder you may write to"
        ) from None


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut: the folder's entry is data of the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that lies at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
