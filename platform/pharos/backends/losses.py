"""What became of a process that is gone: why, in one line, and whether it took its trial or a node took it."""

from __future__ import annotations

import re
import socket

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from pharos.trial import Outcome

# Ray's words; there is no flag of it but for nodes whose end was announced.
_NODE_DIED = "node has died"
_ADDRESS = re.compile(r"^\s*ip: (\S+)$", re.MULTILINE)
_PATIENCE_SECONDS = 3.0


class NodeLostError(Exception):
    """A worker of a trial was lost with its node; raised in the trial's leader, so that Tune takes its places back."""


def why(error: BaseException) -> str:
    """What an error says of a lost process, in one line."""
    if isinstance(cause := getattr(error, "cause", None), NodeLostError):
        return str(cause)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if not isinstance(error, RayActorError):
        # What was raised in a trial's own process comes after its traceback.
        return lines[-1] if isinstance(error, RayTaskError) or is_node_lost(error) else lines[0]
    # A sentence that fits all, and the actor's numbers, come before what happened.
    told = [
        line
        for line in lines[1:]
        if not line.startswith(("class_name:", "actor_id:", "pid:", "name:", "namespace:", "ip:"))
    ]
    return (told or lines)[0].split(" Worker exit detail:")[0]


def is_node_lost(error: BaseException) -> bool:
    """Whether the node is gone, and not just the process."""
    if getattr(error, "preempted", False) or isinstance(error, NodeLostError) or _NODE_DIED in str(error):
        return True
    # Ray hears at once that a process is gone, and of its node by default only a quarter of a minute later.
    if not isinstance(error, RayActorError) or isinstance(error, OutOfMemoryError):
        return False
    address = _ADDRESS.search(str(error))
    return _is_silent(address[1] if address else None)


def _is_silent(address: str | None) -> bool:
    """Whether a node does not answer that Ray takes for alive: the one at an address, or if that is not told, any."""
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and address in (None, node["NodeManagerAddress"]):
            try:
                socket.create_connection(
                    (node["NodeManagerAddress"], node["NodeManagerPort"]), _PATIENCE_SECONDS
                ).close()
            except OSError:
                return True
    return False


def outcome_of(error: BaseException) -> Outcome:
    """What a trial ends as that has lost processes too often."""
    return Outcome.OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else Outcome.FAILED
