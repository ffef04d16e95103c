"""Who hears of a sweep's events: what people see and what tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pharos.records import TrialRecord
from pharos.trial import Report

if TYPE_CHECKING:
    from pharos.sweep import Sweep


class Listener(Protocol):
    """Hears of a sweep's events, in the order in which they happen."""

    def start(self, sweep: Sweep, slots: int) -> None:
        """Trials are about to be started, so many at a time."""

    def started(self, record: TrialRecord) -> None:
        """A trial was handed out, for the first time or again."""

    def reported(self, record: TrialRecord, report: Report) -> None:
        """A trial reported metrics; if it is to be pruned for them, that follows."""

    def ended(self, record: TrialRecord) -> None:
        """A trial ended or was interrupted."""

    def note(self, text: str) -> None:
        """Something else that a person should know."""

    def stop(self) -> None:
        """Nothing more will happen."""

    def closed(self) -> None:
        """All is written, or could not be, and the study is free for others."""


class Listeners:
    """Several listeners as one; each hears of an event in their order."""

    def __init__(self, listeners: Sequence[Listener]):
        self._listeners = listeners

    def start(self, sweep: Sweep, slots: int) -> None:
        for listener in self._listeners:
            listener.start(sweep, slots)

    def started(self, record: TrialRecord) -> None:
        for listener in self._listeners:
            listener.started(record)

    def reported(self, record: TrialRecord, report: Report) -> None:
        for listener in self._listeners:
            listener.reported(record, report)

    def ended(self, record: TrialRecord) -> None:
        for listener in self._listeners:
            listener.ended(record)

    def note(self, text: str) -> None:
        for listener in self._listeners:
            listener.note(text)

    def stop(self) -> None:
        for listener in self._listeners:
            listener.stop()

    def closed(self) -> None:
        for listener in self._listeners:
            listener.closed()
