"""What a trial's numbers and pictures are shown with."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from pharos.spool import Spool
from pharos.trial import Ending, TrialSpec

if TYPE_CHECKING:
    from pharos.tracking.wandb_run import WandbTracker

# Asked once, and then waited for once more, when a process ends: Ray Tune kills those that take more than five.
_SPOOL_SECONDS = 1.0

_running: list[WandbTracker] = []


class Tracker(Protocol):
    """Where a trial's numbers and pictures are shown; nothing of it ever waits."""

    def log(self, fidelity: int, metrics: dict[str, float]) -> None: ...

    def image(self, fidelity: int, name: str, image: Tensor) -> None: ...

    def histogram(self, fidelity: int, name: str, values: Tensor) -> None: ...

    def finish(self, ending: Ending) -> None: ...


class NoTracker:
    """Shows nothing."""

    def log(self, fidelity: int, metrics: dict[str, float]) -> None:
        pass

    def image(self, fidelity: int, name: str, image: Tensor) -> None:
        pass

    def histogram(self, fidelity: int, name: str, values: Tensor) -> None:
        pass

    def finish(self, ending: Ending) -> None:
        pass


def open_tracker(spec: TrialSpec, tracked: int, spool: Spool) -> Tracker:
    """The tracker that the sweep's settings ask for.

    Args:
        spec: The trial.
        tracked: The last fidelity that an earlier attempt reported.
        spool: The trial's files on this node, with the rows of `metrics.jsonl` that are kept of earlier attempts; a
            tracker's are among them if the sweep lies in a store.
    """
    if spec.tracking.get("name") != "wandb":
        return NoTracker()
    from pharos.tracking.wandb_run import WandbTracker

    rows = [json.loads(line) for line in spool.folder.read_lines("metrics.jsonl")]
    tracker = WandbTracker(spec, tracked, rows, spool)
    _running[:] = [each for each in _running if each.thread.is_alive()] + [tracker]
    return tracker


def wait_for_trackers(seconds: float) -> None:
    """Gives the trackers of this process that long to finish; what is not sent by then can be sent later."""
    running = [tracker for tracker in _running if tracker.thread.is_alive()]
    if not running:
        return
    from pharos.tracking.wandb_run import abandon, refusal

    if any(tracker.is_online for tracker in running) and refusal(_SPOOL_SECONDS):
        seconds = min(seconds, _SPOOL_SECONDS)  # no more than it takes to spool
    deadline = time.monotonic() + seconds
    for tracker in running:
        tracker.thread.join(max(0.0, deadline - time.monotonic()))
    if any(tracker.thread.is_alive() for tracker in running):
        abandon()
