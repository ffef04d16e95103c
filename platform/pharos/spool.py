"""A trial's files that grow: written on the node that trains it, and mirrored to where the trial lies.

An object store cannot append. So each node has a folder of its own for a trial, in which `metrics.jsonl` and `log` are
written as on a disk; whole copies of them go to the store every few seconds and before each checkpoint counts. A
trial on a disk has its files there to begin with, and nothing is mirrored.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from pharos.background import Outbox
from pharos.claim import Claim
from pharos.errors import StorageError
from pharos.storage import Storage

logger = logging.getLogger(__name__)


def node_folder(home: Storage, cache: str) -> Storage:
    """Where this node keeps what belongs to a folder: the folder itself if it is on a disk.

    Args:
        home: The folder, by its URL.
        cache: The node's own folder (`storage.cache`).
    """
    if home.is_local:
        return home
    key = hashlib.sha256(home.root.encode()).hexdigest()[:16]
    return Storage(str(Path(cache).expanduser() / "spool" / f"{home.name}-{key}"))


class Spool:
    """The growing files of a trial, of one of its workers.

    Args:
        home: The trial's folder.
        folder: This node's folder for it, see `node_folder`.
        names: Of the files; what the store has of them is the beginning of what this node has.
        seconds: How often they are mirrored.
        claim: What must hold for anything to be mirrored.

    Raises:
        StorageError: What is there cannot be read.
    """

    def __init__(
        self,
        home: Storage,
        folder: Storage,
        names: Sequence[str],
        seconds: float = 10.0,
        claim: Claim | None = None,
    ):
        self.folder = folder
        self.home = home
        self._names = list(names)
        self._claim = claim
        self._outbox: Outbox | None = None
        self._sent: dict[str, int] = {}
        self._sending = threading.Lock()  # an older copy must not arrive after a newer one
        if home.is_local:
            return
        Path(self.folder.root).mkdir(parents=True, exist_ok=True)
        for name in names:
            self._fetch(name)
        self._outbox = Outbox(f"spool-{home.name}", home.root)
        self._outbox.every(seconds, "mirror", self.mirror)

    def mirror(self) -> None:
        """Brings to the store what has grown.

        Raises:
            StorageError: The store does not take it, or another attempt has taken the trial over.
        """
        if self._claim is not None:
            self._claim.check()
        store = self.home.patient(0)
        with self._sending:
            for name in self._names if self._outbox else ():
                size = self._size(name)
                if not self.folder.exists(name):
                    self._sent.pop(name, None)
                elif size != self._sent.get(name):
                    self._sent[name] = size  # at first: it may be written anew meanwhile
                    try:
                        store.write_bytes(name, Path(self.folder.path(name)).read_bytes()[:size])
                    except BaseException:
                        self._sent.pop(name, None)
                        raise

    def replace(self, name: str, data: bytes) -> None:
        """Writes a file anew."""
        self.folder.write_bytes(name, data)
        self._sent.pop(name, None)  # it may be another of the same length

    def add(self, name: str, data: bytes) -> None:
        """Writes a file that was not named before, or writes it anew."""
        self.replace(name, data)
        with self._sending:
            if name not in self._names:
                self._names.append(name)

    def close(self, patience: float) -> None:
        """Mirrors what is left and forgets the node's copies; those that could not be mirrored stay and are named.

        Args:
            patience: Seconds to wait for the store.
        """
        if self._outbox is None:
            return
        self._outbox.put("mirror", self.mirror)
        try:
            self._outbox.flush(patience)
        except StorageError as error:
            logger.warning("%s; what is not there lies in %s", error, self.folder.root)
        else:
            with self._sending:
                for name in self._names:
                    self.folder.remove(name)
        finally:
            self._outbox.close()

    def forget(self) -> None:
        """Removes this node's folder if nothing is left in it but its lock."""
        folder = Path(self.folder.root)
        if not self.home.is_local and {p.name for p in folder.rglob("*") if p.is_file()} <= {".lock"}:
            shutil.rmtree(folder, ignore_errors=True)

    def _fetch(self, name: str) -> None:
        """Takes what the store has, unless an attempt on this node was killed that only went on from there."""
        theirs = b""
        with contextlib.suppress(FileNotFoundError):
            theirs = self.home.read_bytes(name)
        path = Path(self.folder.path(name))
        if theirs and not (path.exists() and path.read_bytes().startswith(theirs)):
            self.folder.write_bytes(name, theirs)
        self._sent[name] = len(theirs)

    def _size(self, name: str) -> int:
        path = Path(self.folder.path(name))
        return path.stat().st_size if path.exists() else 0
