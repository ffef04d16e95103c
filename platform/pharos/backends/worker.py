"""One process of a trial. It imports nothing of the search, to start quickly, and knows no Ray."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pharos.trial import Ending, Outcome, Report, TrialSpec

STOP_SECONDS = 60.0
# Before its first batch a trial may have a lot to import and to read, on a busy machine too.
START_SECONDS = 180.0


@dataclass(frozen=True)
class Memory:
    """What a process holds, in bytes."""

    host: int
    """Resident."""
    device: int
    """Allocated on its GPU; 0 without one."""


class Watch:
    """Says when a trial has stood still for too long.

    Args:
        seconds: How long it may; before its first batch, START_SECONDS more.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.patience = min(30.0, seconds / 4)
        """How long to wait between two looks."""
        self.restart()

    def restart(self) -> None:
        """A trial starts now."""
        self._ticks, self._ticked_at = -1, time.monotonic()

    def has_hung(self, ticks: int) -> bool:
        """Takes the trial's count (`Worker.ticks`)."""
        if ticks != self._ticks:
            self._ticks, self._ticked_at = ticks, time.monotonic()
        return time.monotonic() - self._ticked_at > self.seconds + (0 if ticks > 0 else START_SECONDS)


class Worker:
    """Trains one trial after the other, alone or as one of several, and hands out what they say.

    Trials train in a second thread and go on while the driver makes up its mind about their last report, one report
    ahead at most. It is one thread for all of them: each new one would bring its own memory pools and OpenMP team.
    """

    def __init__(self) -> None:
        self._world: Any = None
        self._run: Any = None
        self._specs: queue.Queue[TrialSpec] = queue.Queue()
        self._messages: queue.Queue[Report | Ending] = queue.Queue(maxsize=1)
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._thread = threading.Thread(target=self._train_all, daemon=True)

    def pid(self) -> int:
        """The number of this process."""
        return os.getpid()

    def host(self, address: str, size: int) -> int:
        """Opens the meeting place of a group of so many workers; returns its port."""
        from pharos.world import listen

        self._store = listen(address, size)
        return int(self._store.port)

    def join(self, meeting_place: tuple[str, int], rank: int, size: int, spec: TrialSpec, deadline: float) -> None:
        """Joins the group that one of its members hosts, at its address and port; the process stays in it."""
        from pharos.execute import device_for
        from pharos.world import join, meet

        self._world = join(meet(meeting_place, size), rank, size, device_for(spec), deadline)

    def start(self, spec: TrialSpec) -> None:
        """Starts a trial; the one before it has ended."""
        self._is_idle.wait()  # its ending was read, it may still be closing its log
        self._is_idle.clear()
        self._messages = queue.Queue(maxsize=1)
        self._run = None
        self._stopped = self._interrupted = False
        if not self._thread.is_alive():
            self._thread.start()
        self._specs.put(spec)

    def next(self, timeout: float | None = None) -> Report | Ending | None:
        """Waits for what the trial says next: reports, then its ending; None if it says nothing for so long."""
        with contextlib.suppress(queue.Empty):
            return self._messages.get(timeout=timeout)
        return None

    def memory(self) -> Memory:
        """What this process holds now."""
        import torch

        pages = int(Path("/proc/self/statm").read_text().split()[1])
        device = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        return Memory(pages * os.sysconf("SC_PAGE_SIZE"), device)

    def ticks(self) -> int:
        """A count that grows while the trial gets on."""
        return self._run.ticks if self._run is not None else 0

    def interrupt(self) -> None:
        """Lets the trial save at the end of its epoch and stop."""
        self._interrupted = True
        if self._run is not None:
            self._run.interrupt()

    def ask_to_stop(self) -> None:
        """Lets the trial end at its next batch, without a checkpoint."""
        self._stopped = True
        if self._run is not None:
            self._run.stop(Outcome.PRUNED, "stopped early")

    def stop(self) -> bool:
        """Ends the trial, so that nothing of it runs beside the next one; False if it does not end."""
        self.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._messages.get_nowait()
            if self._is_idle.wait(0.05):
                return True
        return False

    def flush(self) -> None:
        """Waits for what is still being written about the last trial."""
        from pharos.tracking.tracker import wait_for_trackers

        wait_for_trackers(3)

    def _train_all(self) -> None:
        while True:
            spec = self._specs.get()
            try:
                self._train(spec)
            finally:
                self._is_idle.set()

    def _train(self, spec: TrialSpec) -> None:
        from pharos.execute import execute

        messages = self._messages
        rank = self._world.rank if self._world is not None else 0
        log = f"log.{rank}" if rank else "log"
        messages.put(execute(spec, messages.put, self._take_run, self._world, log))

    def _take_run(self, run: Any) -> None:
        # Kept for `interrupt` and `stop`, which may have been called before there was a run.
        self._run = run
        if self._interrupted:
            run.interrupt()
        if self._stopped:
            run.stop(Outcome.PRUNED)
