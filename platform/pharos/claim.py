"""Whose a trial in a store is: an attempt that was given up, on a node that was cut off or stood still, may yet go on.

On a disk the folder's lock keeps two attempts apart. A store has none; so each attempt says at its start that the trial
is its own, and looks before it writes whether it still is. One that finds another's word stops; the last one's stays.
(Between the look and the write lies a moment. Checkpoints need no more: no files of two attempts have the same name.)
"""

from __future__ import annotations

import os
import secrets
import socket

from pharos.errors import StorageError
from pharos.storage import Storage

CLAIM = "attempt.json"


class Claim:
    """An attempt's word that a trial is its own, from now on.

    Args:
        home: The trial's folder, in a store.

    Raises:
        StorageError: The store does not answer.
    """

    def __init__(self, home: Storage):
        self._home = home
        self._word = {"attempt": secrets.token_hex(6), "host": socket.gethostname(), "pid": os.getpid()}
        home.write_json(CLAIM, self._word)

    def check(self) -> None:
        """Asks whether it still is.

        Raises:
            StorageError: Another attempt has taken it over, or the store does not answer.
        """
        try:
            present = self._home.patient(0).read_json(CLAIM)
        except FileNotFoundError:
            present = None
        if present != self._word:
            who = f"an attempt on {present['host']}, process {present['pid']}" if present else "somebody who removed it"
            raise StorageError(f"{self._home.root} was taken over by {who}; this one stops", is_final=True)
