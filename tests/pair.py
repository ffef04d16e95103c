"""Two processes that train a trial together, without Ray: a gang as the tests need it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from pharos.backends.worker import Worker
from pharos.trial import Ending, Report, TrialSpec

_SECONDS = 100.0


def _serve(connection: Connection) -> None:
    worker = Worker()
    while (message := connection.recv()) is not None:
        name, arguments = message
        connection.send(getattr(worker, name)(*arguments))


class Pair:
    """Call `train`; `close` ends the processes."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            context.Process(target=_serve, args=(theirs,), daemon=True).start()
            self._ends.append(ours)
        self._has_met = False

    def train(self, spec: TrialSpec) -> tuple[Ending, list[Report]]:
        """Trains a trial on both; rank 0's ending and reports."""
        if not self._has_met:
            place = ("127.0.0.1", self._call(0, "host", "127.0.0.1", 2))
            self._both("join", lambda rank: (place, rank, 2, spec, _SECONDS))
            self._has_met = True
        self._both("start", lambda rank: (spec,))
        reports = []
        while isinstance(message := self._call(0, "next", _SECONDS), Report):
            reports.append(message)
        other = self._call(1, "next", _SECONDS)
        assert isinstance(message, Ending), "rank 0 is silent"
        assert isinstance(other, Ending), "rank 1 is silent"
        assert other.outcome == message.outcome, other.reason
        return message, reports

    def close(self) -> None:
        for end in self._ends:
            end.send(None)

    def _call(self, rank: int, name: str, *arguments: Any) -> Any:
        self._ends[rank].send((name, arguments))
        return self._ends[rank].recv()

    def _both(self, name: str, arguments: Any) -> None:
        for rank, end in enumerate(self._ends):
            end.send((name, arguments(rank)))
        for end in self._ends:
            end.recv()
