"""Processes that Ray's memory monitor kills: Tune 2.60 knows no such end of an actor, and would end the whole sweep."""

from __future__ import annotations

from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial

_fail = RayActorManager._actor_task_failed
_look_up = Trial._get_default_result_or_future


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


def _default_result(self: Any) -> Any:
    """What an actor says as it starts; Tune asks for it again when the actor has died."""
    try:
        return _look_up(self)
    except OutOfMemoryError:
        self._default_result_or_future = None
        return _look_up(self)


def take_for_losses() -> None:
    """Lets Tune take such an end for the loss of an actor, in this process."""
    RayActorManager._actor_task_failed = _task_failed  # type: ignore[method-assign]
    Trial._get_default_result_or_future = _default_result  # type: ignore[method-assign]
