"""Processes that Ray's memory monitor kills: Tune 2.60 knows no such end of an actor, and would end the whole sweep."""

from __future__ import annotations

from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

_fail = RayActorManager._actor_task_failed


class EvictedError(OutOfMemoryError, RayActorError):
    """A trial's process was killed as its node ran out of memory: an actor that died, with its reason."""

    def __init__(self, message: str):
        RayActorError.__init__(self)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return EvictedError, (self.message,)


def _task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
    if isinstance(exception, OutOfMemoryError):
        exception = EvictedError(exception.message)
    _fail(self, tracked_actor_task, exception)


def take_for_losses() -> None:
    """Lets Tune take such an end for the loss of an actor, in this process."""
    RayActorManager._actor_task_failed = _task_failed
