"""What Ray Tune starts and reuses: a trial's one worker, or the leader of its several."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import ray
from ray import tune

from pharos.backends import watchdog
from pharos.backends.credentials import take
from pharos.backends.gang import Gang, Lost
from pharos.backends.losses import NodeLostError
from pharos.backends.worker import START_SECONDS, Watch, Worker
from pharos.trial import Ending, Report, TrialSpec


class TrialActor(tune.Trainable):
    """One trial after the other, on the same processes."""

    def setup(self, config: dict[str, Any], credentials: dict[str, str]) -> None:  # type: ignore[override]
        logging.getLogger("ray").setLevel(logging.ERROR)
        take(credentials)
        self._crew: Gang | _Alone
        self._waiting: TrialSpec | None
        if config["shape"]["workers"] > 1:
            group = ray.util.get_current_placement_group()
            assert group is not None  # Tune starts every trial in one
            self._crew = Gang(group, config["hang_seconds"], credentials)
        else:
            self._crew = _Alone(config["hang_seconds"])
        self._take(config)

    def step(self) -> dict[str, Any]:
        if self._waiting is not None:
            self._crew.start(self._waiting)
            self._waiting = None
            if self._is_interrupted:
                self._crew.interrupt()
        message = self._crew.next()
        if isinstance(message, Report):
            return {"report": dataclasses.asdict(message)}
        if isinstance(message, Lost):
            if message.by_node:
                raise NodeLostError(message.reason)  # this group of places has one less: Tune asks for another group
            return {"lost": dataclasses.asdict(message), "done": True}
        return {"ending": dataclasses.asdict(message), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._crew.stop()
        self._take(new_config)
        return True

    def cleanup(self) -> None:
        self._crew.close()

    def interrupt(self) -> None:
        """Lets the trial save at the end of its epoch and stop."""
        self._is_interrupted = True
        self._crew.interrupt()

    def _take(self, config: dict[str, Any]) -> None:
        # Not started before the first step: if another process is free by then, Tune gives the trial to that one, and
        # lets this one go.
        self._waiting = TrialSpec(**config["spec"])
        self._is_interrupted = False


class _Alone(Worker):
    """A gang of one, in the actor's own process."""

    def __init__(self, hang_seconds: float):
        super().__init__()
        self._watch = Watch(hang_seconds)
        self._has_hung = False
        watchdog.watch(lambda: hang_seconds + (0 if self.ticks() > 0 else START_SECONDS))

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        self._watch.restart()

    def next(self, timeout: float | None = None) -> Report | Ending:
        while True:
            message = super().next(timeout or self._watch.patience)
            if message is not None:
                return message
            if self._watch.has_hung(self.ticks()):
                self._has_hung = True
                raise TimeoutError(f"it did not get on for {self._watch.seconds:g} s")

    def stop(self) -> bool:
        if self._has_hung or not super().stop():
            # It hangs in a batch. Python cannot end a thread; the driver starts a new process in this one's place, and
            # that waits for the trial's folder, which this one holds as long as it lives.
            os._exit(1)
        return True

    def close(self) -> None:
        """Ends the trial."""
        self.stop()
        self.flush()
