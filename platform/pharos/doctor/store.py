"""Whether what is written to `storage.url` can be read, listed and removed, and how fast."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from pharos.doctor.machine import nearest
from pharos.errors import PharosError, StorageError
from pharos.rdb import open_rdb
from pharos.settings import Settings
from pharos.storage import Storage, StorageConfig

SECONDS = 40.0
_PATIENCE = 10.0
_BYTES = 16 * 2**20


def scratch(config: StorageConfig) -> str:
    """A folder's URL for what is tried, in the storage; on a disk in the nearest folder that is there.

    Raises:
        InputError: The URL is wrong.
    """
    home = config.open()
    if home.is_local:
        home.check_writable()
    name = f"pharos-doctor-{secrets.token_hex(4)}"
    return str(nearest(Path(home.root)) / name) if home.is_local else home.path(name)


def round_trip(options: dict[str, Any], url: str) -> dict[str, Any]:
    """Writes, reads, lists and removes; MB/s of a larger file, and the bytes that are free (None: no limit is known).

    Raises:
        PharosError: One of it failed.
    """
    folder = Storage(url, options, _PATIENCE)
    token = secrets.token_bytes(32)
    try:
        folder.write_bytes("token", token)
        if folder.read_bytes("token") != token:
            raise PharosError(f"{url}: what was written reads otherwise")
        if list(folder.list()) != ["token"]:
            raise PharosError(f"{url}: a file that was written is not listed")
        data = os.urandom(_BYTES)
        started_at = time.monotonic()
        folder.write_bytes("large", data)
        written_at = time.monotonic()
        if folder.read_bytes("large") != data:
            raise PharosError(f"{url}: 16 MiB that were written read otherwise")
        read_at = time.monotonic()
        folder.remove("large")
        if "large" in folder.list():
            raise PharosError(f"{url}: a file that was removed is still listed")
    except OSError as error:
        raise StorageError(f"{url}: {error.strerror or error}", is_final=True) from None
    return {
        "write_mb_s": _BYTES / 1e6 / (written_at - started_at),
        "read_mb_s": _BYTES / 1e6 / (read_at - written_at),
        "free": shutil.disk_usage(folder.root).free if folder.is_local else None,
    }


def reach(options: dict[str, Any], url: str, who: str) -> str:
    """Why this machine cannot share a folder that has a file `token`; empty if it can."""
    try:
        folder = Storage(url, options, _PATIENCE)
        folder.read_bytes("token")
        folder.write_bytes(who, b"1")
        folder.remove(who)
    except FileNotFoundError:
        return "does not see what another machine wrote there"
    except (OSError, PharosError) as error:
        return " ".join(str(error).split())
    return ""


def remove(options: dict[str, Any], url: str) -> None:
    """Removes what was tried."""
    Storage(url, options, 3.0).remove()


def open_study(settings: Settings) -> str:
    """Opens the study's database; the kind of it."""
    assert settings.study.storage is not None
    storage = open_rdb(settings.study.storage)
    kind = str(storage.engine.dialect.name)
    storage.remove_session()
    return kind
