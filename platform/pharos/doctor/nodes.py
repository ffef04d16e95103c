"""The nodes of a Ray cluster, asked one by one; and a trial tried on workers there. Called in a child's process."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharos.backends.cluster import Places, connect
from pharos.backends.single import run_trial
from pharos.doctor import machine, store
from pharos.errors import PharosError
from pharos.settings import Settings
from pharos.trial import Ending, TrialSpec

SECONDS = 75.0
_NODE_SECONDS = 45.0


def look(settings: Settings, url: str | None) -> dict[str, Any]:
    """Joins the cluster as a sweep would, and asks each node what it is.

    Args:
        settings: The sweep's.
        url: A folder with a file `token` that all nodes should see; None: it is known not to work.

    Returns:
        `slots`, trials at a time; `gpus_per_worker`; `nodes`: by each `pharos.doctor.machine.about`, its resources, the
        seconds that its clock is ahead, `storage` (why it cannot reach it) or `error`; `is_here`: there is no other.

    Raises:
        PharosError: There is no cluster where there should be one, or no trial fits it.
    """
    connect(settings.resources.cluster_cpus)
    slots = Places(settings.resources).slots
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    rows = [{"ip": node["NodeManagerAddress"], "resources": node["Resources"]} for node in alive]
    config = settings.storage
    asked = [_on(node, _about).remote(config.cache, config.options, url, node["NodeID"]) for node in alive]
    ray.wait(asked, num_returns=len(asked), timeout=_NODE_SECONDS)
    for node, row, reference in zip(alive, rows, asked, strict=True):
        try:
            row.update(ray.get(reference, timeout=0.1), clock=_ahead(node))
        except (RayError, TimeoutError) as error:
            row["error"] = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    is_here = len(alive) == 1 and rows[0]["ip"] == here
    if is_here:
        ray.shutdown()
    return {
        "slots": slots,
        "gpus_per_worker": settings.resources.gpus_per_worker,
        "nodes": rows,
        "is_here": is_here,
    }


def try_on_workers(spec: TrialSpec, settings: Settings) -> Ending:
    """Tries a trial on workers of its own, placed as a sweep's trials are.

    Raises:
        PharosError: They found no room.
    """
    connect(settings.resources.cluster_cpus)  # it stays for the next one
    settings = dataclasses.replace(settings, retries=0)
    with contextlib.suppress(RayError):
        return run_trial(spec, settings, lambda report: None, lambda gang: None, lambda note: None)
    raise PharosError("the cluster was lost")


def _on(node: dict[str, Any], function: Any) -> Any:
    """A task that runs on that node or nowhere, also if all of its cores are taken."""
    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=where, max_retries=0)


def _about(cache: str, options: dict[str, Any], url: str | None, who: str) -> dict[str, Any]:
    return machine.about(cache) | {"storage": "" if url is None else store.reach(options, url, who)}


def _clock() -> float:
    return time.time()


def _ahead(node: dict[str, Any]) -> float:
    """Seconds that a node's clock is ahead of this one's, to the length of a call."""
    task = _on(node, _clock)
    ray.get(task.remote(), timeout=10)  # the next call finds a process that runs
    before = time.time()
    theirs: float = ray.get(task.remote(), timeout=10)
    return theirs - (before + time.time()) / 2
