"""The workers of a trial: one process each, placed together, in one process group, alive from trial to trial."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pharos.backends import losses
from pharos.backends.credentials import take
from pharos.backends.worker import START_SECONDS, STOP_SECONDS, Memory, Watch, Worker
from pharos.trial import Ending, Outcome, Report, TrialSpec

# How long the others have to end, once one worker has failed, before they count as hung.
_GRACE_SECONDS = 10.0
_FAILURES = (Outcome.FAILED, Outcome.OUT_OF_MEMORY, Outcome.DIVERGED)


# A worker that holds so much more than after its first trial, on the host or on its device, is replaced.
_GROWTH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Lost:
    """A trial has lost a worker, and with it the others; it can go on from its checkpoint."""

    reason: str
    outcome: Outcome = Outcome.FAILED
    by_node: bool = False
    """Whether a node took the worker with it."""


class _RemoteWorker(Worker):
    """A worker in a process of its own."""

    def __init__(self, credentials: Mapping[str, str]):
        from pharos.world import talk_over

        take(credentials)
        talk_over(self.address())
        super().__init__()

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


class Gang:
    """As many workers as a placement group has bundles. When one is lost, all are replaced, in the same places.

    Args:
        group: Where they are placed, a bundle each.
        hang_seconds: A trial that does not get on for so long has hung.
        credentials: The driver's, for the workers' environment.
    """

    def __init__(self, group: PlacementGroup, hang_seconds: float, credentials: Mapping[str, str]):
        self._group = group
        self._credentials = credentials
        self._watch = Watch(hang_seconds)
        self._bundles = group.bundle_specs
        self.size = len(self._bundles)
        self._workers: list[Any] = []
        self._waiting: dict[Any, int] = {}  # what each worker says next -> its rank
        self._endings: dict[int, Ending] = {}
        self._ends_by: float | None = None  # when the rest must have ended, once one has failed
        self._why_not, self._is_by_node = "", False
        self._memory: list[Memory] = []  # of each worker, after its first trial

    def start(self, spec: TrialSpec) -> None:
        """Starts a trial on all of them; if a trial before has left too much memory behind, on new ones."""
        self._endings = {}
        self._waiting = {}
        try:
            if self._workers and self._has_grown():
                self.disband()
            if not self._workers:
                self._assemble(spec)
            ray.get([worker.start.remote(spec) for worker in self._workers], timeout=START_SECONDS)
            self._waiting = {worker.next.remote(): rank for rank, worker in enumerate(self._workers)}
        except RayError as error:
            self._why_not, self._is_by_node = losses.why(error), losses.is_node_lost(error)
            self.disband()
        self._watch.restart()
        self._ends_by = None

    def next(self) -> Report | Ending | Lost:
        """Waits for the trial's next report, for its ending, or for the loss of a worker."""
        if not self._workers:
            return Lost(f"its workers did not start: {self._why_not}", by_node=self._is_by_node)
        while True:
            ready, _ = ray.wait(list(self._waiting), timeout=self._watch.patience if self._ends_by is None else 0.2)
            for reference in ready:
                rank = self._waiting.pop(reference)
                try:
                    message = ray.get(reference)
                except RayError as error:
                    return self._lose(rank, error)
                if isinstance(message, Report):
                    self._waiting[self._workers[rank].next.remote()] = rank
                    return message
                self._endings[rank] = message
                if message.outcome in _FAILURES:
                    self._ends_by = min(self._ends_by or 1e12, time.monotonic() + _GRACE_SECONDS)
            is_over = self._ends_by is not None and time.monotonic() > self._ends_by
            if is_over or len(self._endings) == self.size:
                return self._settle()
            if not ready and self._has_hung():
                self.disband()
                return Lost(f"it did not get on for {self._watch.seconds:g} s")

    def interrupt(self) -> None:
        """Lets the trial save at the end of its epoch and stop."""
        if self._workers:
            self._workers[0].interrupt.remote()

    def stop(self) -> None:
        """Ends the trial, if one runs; workers that do not end are replaced."""
        if not self._waiting:
            return
        self._workers[0].ask_to_stop.remote()
        deadline = time.monotonic() + STOP_SECONDS
        while self._waiting and time.monotonic() < deadline:
            ready, _ = ray.wait(list(self._waiting), timeout=1.0)
            for reference in ready:
                rank = self._waiting.pop(reference)
                try:
                    message = ray.get(reference)
                except RayError:
                    self.disband()
                    return
                if isinstance(message, Report):
                    self._waiting[self._workers[rank].next.remote()] = rank
        if self._waiting:
            self.disband()

    def close(self) -> None:
        """Ends the trial and the workers, in order."""
        self.stop()
        with contextlib.suppress(RayError):
            ray.get([worker.flush.remote() for worker in self._workers], timeout=10)
        self.disband()

    def disband(self) -> None:
        """Kills the workers; the next trial gets new ones."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        self._waiting = {}
        self._memory = []

    def _has_grown(self) -> bool:
        now: list[Memory] = ray.get([worker.memory.remote() for worker in self._workers], timeout=START_SECONDS)
        self._memory = self._memory or now
        return any(
            new.host > old.host + _GROWTH_BYTES or new.device > old.device + _GROWTH_BYTES
            for old, new in zip(self._memory, now, strict=True)
        )

    def _assemble(self, spec: TrialSpec) -> None:
        remote: Any = ray.remote(_RemoteWorker)
        self._workers = [
            remote.options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                max_concurrency=4,  # it is asked how it gets on while it is waited for
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=index, placement_group_capture_child_tasks=True
                ),
            ).remote(self._credentials)
            for index, bundle in enumerate(self._bundles)
        ]
        address: str = ray.get(self._workers[0].address.remote(), timeout=START_SECONDS)
        port = ray.get(self._workers[0].host.remote(address, self.size), timeout=START_SECONDS)
        ray.get(
            [
                # The group's own deadline comes into play only if this process is gone.
                worker.join.remote((address, port), rank, self.size, spec, START_SECONDS + self._watch.seconds)
                for rank, worker in enumerate(self._workers)
            ],
            timeout=START_SECONDS,
        )

    def _has_hung(self) -> bool:
        """Whether rank 0 stands still: where another one does, it soon waits for it."""
        try:
            ticks: int = ray.get(self._workers[0].ticks.remote(), timeout=self._watch.seconds)
        except RayActorError:
            return False  # the next look at it says so
        except RayError:
            return True
        return self._watch.has_hung(ticks)

    def _lose(self, rank: int, error: RayError) -> Lost:
        self.disband()
        reason = f"worker {rank} of {self.size} died: {losses.why(error)}"
        return Lost(reason, losses.outcome_of(error), losses.is_node_lost(error))

    def _settle(self) -> Ending | Lost:
        """What the trial's ending is, all workers having ended or had the time to."""
        own = {rank: ending for rank, ending in self._endings.items() if not ending.is_lost_link}
        outcomes = {ending.outcome for ending in own.values()}
        missing = [rank for rank in range(self.size) if rank not in self._endings]
        if len(own) == self.size and len(outcomes) == 1:
            return own[0]
        self.disband()
        failed = {rank: ending for rank, ending in own.items() if ending.outcome in _FAILURES}
        if not failed:
            who = f"worker {missing[0]} is silent" if missing else "they lost touch"
            return Lost(f"its workers did not end together: {who}")
        # Out of memory explains what came after it; else the first rank's own failure does.
        rank = min(failed, key=lambda rank: (failed[rank].outcome != Outcome.OUT_OF_MEMORY, rank))
        reason = f"worker {rank} of {self.size}: {failed[rank].reason}"
        return dataclasses.replace(failed[rank], reason=reason, lost_seconds=own.get(0, failed[rank]).lost_seconds)
