"""Work that nobody waits for, in daemon threads: a stuck network call never keeps a process from ending."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pharos.errors import StorageError
from pharos.retry import pauses, reason

T = TypeVar("T")

_CLOSE_SECONDS = 2.0

logger = logging.getLogger(__name__)


def in_parallel(jobs: Sequence[Callable[[], T]], threads: int = 4) -> list[T]:
    """What the jobs return, in their order; the calling thread does its share.

    Raises:
        Exception: The first that one of them raised; those that had not begun are left out.
    """
    results: list[T | None] = [None] * len(jobs)
    errors: list[BaseException] = []
    indices = itertools.count()

    def work() -> None:
        while not errors and (index := next(indices)) < len(jobs):
            try:
                results[index] = jobs[index]()
            except BaseException as error:
                errors.append(error)

    helpers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(jobs)) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]


class Outbox:
    """Writes to a store that are done in their order by one thread, again and again until each succeeds.

    Args:
        name: The thread's.
        where: What it writes to, for errors.
    """

    def __init__(self, name: str, where: str):
        self.where = where
        self.refusal = ""
        """Why the store will never take something, in one line; empty while it does."""
        self._jobs: dict[str, Callable[[], None]] = {}
        self._timers: dict[str, tuple[float, float, Callable[[], None]]] = {}  # key -> (due at, every, job)
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_closed = False
        self._trouble = ""
        self._moved_at = time.monotonic()  # when a job last succeeded, or found nothing before it
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, key: str, job: Callable[[], None]) -> None:
        """Adds a job; one under the same key that has not begun is left out, as the new one does what it would have."""
        with self._changed:
            if not self._jobs and not self._is_busy:
                self._moved_at = time.monotonic()
            self._jobs[key] = job
            self._changed.notify_all()

    def every(self, seconds: float, key: str, job: Callable[[], None]) -> None:
        """Adds a job again and again."""
        with self._changed:
            self._timers[key] = (time.monotonic() + seconds, seconds, job)
            self._changed.notify_all()

    @property
    def trouble(self) -> tuple[float, str]:
        """For how many seconds nothing has gone out that should have, and why; (0, "") when all is well."""
        with self._changed:
            if not self._jobs and not self._is_busy:
                return 0.0, ""
            return time.monotonic() - self._moved_at, self._trouble or "no answer"

    def check(self, patience: float) -> None:
        """Complains of what cannot be written.

        Raises:
            StorageError: The store refuses, or nothing went out for more than `patience` seconds.
        """
        if self.refusal:
            raise StorageError(self.refusal, is_final=True)
        seconds, why = self.trouble
        if seconds > patience:
            raise StorageError(f"{self.where}: {why} (nothing written for {seconds:.0f} s)", is_final=False)

    def flush(self, patience: float) -> None:
        """Waits until all is written.

        Raises:
            StorageError: See `check`.
        """
        with self._changed:
            while self._jobs or self._is_busy:
                self.check(patience)
                self._changed.wait(0.1)
        self.check(patience)

    def close(self) -> None:
        """Lets the thread end, written or not; a job that it is at has a moment to end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        waits = pauses()
        while (taken := self._take()) is not None:
            key, job = taken
            try:
                job()
            except StorageError as error:
                if error.is_final:
                    self._refuse(str(error))
                else:
                    self._postpone(key, job, str(error), next(waits))
                continue
            except Exception as error:  # a fault of ours: said where it shows, and the others still go out
                logger.exception("%s", self.where)
                self._refuse(f"{self.where}: {reason(error)}")
                continue
            waits = pauses()
            with self._changed:
                self._is_busy, self._trouble, self._moved_at = False, "", time.monotonic()
                self._changed.notify_all()

    def _take(self) -> tuple[str, Callable[[], None]] | None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                for key, (due, every, job) in self._timers.items():
                    if due <= now:
                        self._timers[key] = (now + every, every, job)
                        if key not in self._jobs:
                            self._moved_at = self._moved_at if self._jobs else now
                            self._jobs[key] = job
                if self._jobs:
                    self._is_busy = True
                    key = next(iter(self._jobs))
                    return key, self._jobs.pop(key)
                self._changed.wait(min((due - now for due, _, _ in self._timers.values()), default=None))
        return None

    def _postpone(self, key: str, job: Callable[[], None], why: str, pause: float) -> None:
        with self._changed:
            self._trouble, self._is_busy = why, False
            self._jobs = {key: self._jobs.get(key, job), **self._jobs}  # its turn is the next
            until = time.monotonic() + pause
            while not self._is_closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _refuse(self, why: str) -> None:
        with self._changed:
            self.refusal, self._is_busy, self._trouble = self.refusal or why, False, ""
            self._changed.notify_all()


class Background:
    """One daemon thread that does one job at a time."""

    def __init__(self, name: str):
        self.idle = threading.Event()
        self.idle.set()
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Starts a job, which must not raise; the one before it has ended."""
        assert self.idle.is_set()
        self.idle.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            finally:
                del job  # it holds a checkpoint
                self.idle.set()
