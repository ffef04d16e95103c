"""The study's journal: Optuna's file of one JSON line a change, of which what belongs together is written at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pharos.errors import InputError

JOURNAL = "study.journal"


class Journal(JournalFileBackend):
    """Optuna's, with a way to write several changes with one lock and one sync to disk, instead of one for each.

    They are written in their order, so that a driver killed meanwhile leaves the first few, as it does without.
    """

    _held: list[dict[str, Any]] | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Writes what the block changes when it ends; until then the study does not know of it."""
        if self._held is not None:  # the block around this one writes
            yield
            return
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self.append_logs(held)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._held is None:
            super().append_logs(logs)
        else:
            self._held += logs


def open_journal(path: Path) -> tuple[JournalStorage, Journal]:
    """The journal for Optuna, and itself.

    Raises:
        ValueError: A line of it is damaged.
        KeyError: Or missing.
    """
    journal = Journal(str(path))
    return JournalStorage(journal), journal


def mend(path: Path) -> None:
    """Repairs what a killed driver may leave: Optuna's own lock and a torn last line, at which it would stop.

    Raises:
        InputError: It is damaged in another way.
    """
    with contextlib.suppress(FileNotFoundError):
        path.with_name(path.name + ".lock").unlink()
    if path.exists():
        data = path.read_bytes()
        kept = data.rfind(b"\n") + 1
        if kept < len(data) and data[kept:].lstrip(b"\0") != data[kept:]:
            raise InputError(f"{path}: damaged (zeros in it); put a copy of it back from before it was changed")
        if kept < len(data):
            os.truncate(path, kept)
