"""Data that lies in a bucket, or was made of data, once on each node: a folder with a size limit.

The least recently used goes out.

    <folder>/<key>/entry.json   the sizes of its files; written last, so that an entry without it does not exist
    <folder>/<key>/data/        the files
    <folder>/<key>.lock         shared by whoever fills or uses the entry, held alone by who throws it out
    <folder>/<key>.fill         held by the one process that fills it, in <key>.part

The key stands for the URL and for what lies there (names, sizes, ETags or times): data that changed is another entry.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pharos.errors import InputError, PharosError, StorageError
from pharos.retry import again
from pharos.storage import StorageConfig, open_url

_ENTRY = "entry.json"
_ROOM = "room.lock"


@dataclass(frozen=True)
class _Remote:
    """One file as its store describes it."""

    path: str
    size: int
    tag: str


class NodeCache:
    """A node's copies of remote files.

    Args:
        folder: Where they lie, on a disk of the node.
        limit: Bytes that all of them may take.
        store: Options and patience for URLs of the same kind as its own (`storage.url`).
    """

    def __init__(self, folder: str | Path, limit: int, store: StorageConfig | None = None):
        self.folder = Path(folder).expanduser()
        self.limit = limit
        self.store = store or StorageConfig()
        self._used: dict[str, int] = {}  # key -> the descriptor whose shared lock keeps the entry

    def fetch(self, url: str) -> Path:
        """A local copy of a file or a folder, filled once however many processes ask; local paths are their own.

        The copy stays at least until this process ends.

        Raises:
            InputError: There is nothing at the URL, or nobody here may read it.
            PharosError: The store does not answer, gives something else than it promised, or the limit is too small.
        """
        options = self.store.options if _kind(url) == _kind(self.store.url) else {}
        fs, path = open_url(url, options)
        if isinstance(fs, LocalFileSystem):
            return Path(path)
        files = self._listed(fs, url, path)
        identity = [url, *sorted((file.path, file.size, file.tag) for file in files.values())]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        data = self._entry(key, lambda: self._fill(key, fs, url, path, files))
        (first, *_) = files.values()
        return data / Path(path).name if first.path == path else data

    def make(self, identity: object, size: int, build: Callable[[Path], None]) -> Path:
        """A folder of what is expensive to make, made once however many processes ask; it stays as `fetch`'s does.

        Args:
            identity: What it is made of, and how: another is another folder. Compared as JSON.
            size: Bytes that it will take, about.
            build: Writes files into an empty folder.

        Raises:
            PharosError: The limit is too small.
        """
        key = hashlib.sha256(json.dumps(["made", identity]).encode()).hexdigest()[:32]
        return self._entry(key, lambda: self._build(key, size, build))

    def _entry(self, key: str, fill: Callable[[], None]) -> Path:
        if key not in self._used or not self._is_whole(key):
            self._take(key, fill)
        os.utime(self.folder / key / _ENTRY)
        return self.folder / key / "data"

    def _take(self, key: str, fill: Callable[[], None]) -> None:
        """Fills an entry unless somebody has, and keeps it from being thrown out."""
        self.folder.mkdir(parents=True, exist_ok=True)
        used, filling = self._lock_of(key), os.open(self.folder / f"{key}.fill", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(used, fcntl.LOCK_SH)
            if not self._is_whole(key):
                fcntl.flock(filling, fcntl.LOCK_EX)
                if not self._is_whole(key):  # nobody has filled it while this process waited
                    fill()
        except BaseException:
            os.close(used)
            raise
        finally:
            os.close(filling)
        if key in self._used:
            os.close(self._used[key])
        self._used[key] = used

    def _lock_of(self, key: str) -> int:
        return os.open(self.folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o644)

    def _fill(self, key: str, fs: Any, url: str, path: str, files: dict[str, _Remote]) -> None:
        part = self.folder / f"{key}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            self._make_room(key, part, sum(file.size for file in files.values()))
            for name, file in files.items():
                self._again(functools.partial(_download, fs, file, part / "data" / name), f"{url}: {name}")
            # An ETag is not always a checksum (not under SSE-KMS), but it tells an object that was replaced meanwhile.
            if self._listed(fs, url, path) != files:
                raise PharosError(f"{url}: changed while it was copied; start again when it is whole")
            self._commit(key, part, {name: file.size for name, file in files.items()}, url)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _build(self, key: str, size: int, build: Callable[[Path], None]) -> None:
        part = self.folder / f"{key}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            self._make_room(key, part, size)
            data = part / "data"
            data.mkdir()
            build(data)
            sizes = {str(path.relative_to(data)): path.stat().st_size for path in data.rglob("*") if path.is_file()}
            self._commit(key, part, sizes, "")
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _commit(self, key: str, part: Path, sizes: dict[str, int], url: str) -> None:
        (part / _ENTRY).write_text(json.dumps({"url": url, "files": sizes}))
        shutil.rmtree(self.folder / key, ignore_errors=True)
        part.rename(self.folder / key)

    def _make_room(self, key: str, part: Path, wanted: int) -> None:
        """Throws out what was used longest ago until so much more fits, and reserves it."""
        if wanted > self.limit:
            raise PharosError(
                f"the data take {wanted / 1e9:.3g} GB, the node's cache at most {self.limit / 1e9:.3g}: "
                "raise storage.cache_gb"
            )
        descriptor = os.open(self.folder / _ROOM, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            taken = {path: _reserved(path) for path in self.folder.iterdir() if path.is_dir()}
            for path in sorted(taken, key=_last_used):
                is_dead = path.suffix == ".part" and path != part
                if is_dead or sum(taken.values()) + wanted > self.limit:
                    taken[path] = 0 if self._throw_out(path, key) else taken[path]
            if sum(taken.values()) + wanted > self.limit:
                raise PharosError(
                    f"{self.folder}: {wanted / 1e9:.3g} GB more do not fit the limit of {self.limit / 1e9:.3g} while "
                    "other trials use what is there: raise storage.cache_gb"
                )
            part.mkdir(parents=True)
            (part / "reserved").write_text(str(wanted))
        finally:
            os.close(descriptor)

    def _throw_out(self, path: Path, key: str) -> bool:
        """Removes an entry, or the rest of a dead process's filling, unless somebody uses it."""
        if path.stem == key:
            return False
        descriptor = self._lock_of(path.stem)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            (path / _ENTRY).unlink(missing_ok=True)  # first: a half-removed entry must not be taken for a whole one
            shutil.rmtree(path, ignore_errors=True)
            return True
        finally:
            os.close(descriptor)

    def _is_whole(self, key: str) -> bool:
        try:
            files = json.loads((self.folder / key / _ENTRY).read_text())["files"]
            return all((self.folder / key / "data" / name).stat().st_size == size for name, size in files.items())
        except (OSError, ValueError, KeyError):
            return False

    def _listed(self, fs: Any, url: str, path: str) -> dict[str, _Remote]:
        """What lies at a path, by the name below it."""

        def ask() -> dict[str, Any]:
            fs.invalidate_cache()
            found: dict[str, Any] = fs.find(path, detail=True)
            return found

        found = self._again(ask, url)
        root = path.rstrip("/")
        files = {}
        for name, info in found.items():
            relative = name[len(root) :].lstrip("/") or Path(name).name
            if ".." in Path(relative).parts:
                raise InputError(f"{url}: {name} points outside of it")
            tag = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("created") or ""
            files[relative] = _Remote(name, int(info["size"]), str(tag))
        if not files:
            raise InputError(f"{url}: nothing there")
        return files

    def _again(self, act: Callable[[], Any], what: str) -> Any:
        try:
            return again(act, what, self.store.patience)
        except FileNotFoundError:
            raise InputError(f"{what}: nothing there") from None
        except StorageError as error:
            if error.is_final:
                raise InputError(str(error)) from None
            raise


_node: NodeCache | None = None


def configure(store: StorageConfig | None = None) -> None:
    """Says where this process keeps copies of remote data, how much of them the node may hold, and how it gets them."""
    global _node  # noqa: PLW0603 - one cache a process, as there is one a node
    store = store or StorageConfig()
    folder, limit = Path(store.cache).expanduser() / "data", int(store.cache_gb * 1e9)
    if _node is None or (_node.folder, _node.limit) != (folder, limit):
        _node = NodeCache(folder, limit, store)
    _node.store = store


def local_copy(url: str) -> Path:
    """Where a recipe's data are on this node: a local path itself, or the node's copy of what lies at a URL.

    Raises:
        InputError: There is nothing at the URL, or nobody here may read it.
        PharosError: See `NodeCache.fetch`.
    """
    return _this_node().fetch(url)


def made(identity: object, size: int, build: Callable[[Path], None]) -> Path:
    """This node's folder of what a recipe makes of its data and trials share; see `NodeCache.make`."""
    return _this_node().make(identity, size, build)


def _this_node() -> NodeCache:
    if _node is None:
        configure()
    assert _node is not None
    return _node


class _BrokenCopyError(OSError):
    """What arrived is not what the store said it has."""


def _kind(url: str) -> str:
    return url.partition("://")[0] if "://" in url else ""


def _download(fs: Any, file: _Remote, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fs.get_file(file.path, str(target))
    with target.open("rb") as copy:
        os.fsync(copy.fileno())
    if target.stat().st_size != file.size:
        raise _BrokenCopyError(f"{target.stat().st_size} bytes arrived of {file.size}")


def _reserved(path: Path) -> int:
    """Bytes that an entry takes, or will take when it is filled."""
    try:
        if path.suffix == ".part":
            return int((path / "reserved").read_text())
        return sum(json.loads((path / _ENTRY).read_text())["files"].values())
    except (OSError, ValueError, KeyError):
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _last_used(path: Path) -> float:
    try:
        return (path / _ENTRY).stat().st_mtime
    except OSError:
        return 0.0
