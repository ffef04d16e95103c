"""The Ray cluster that trials run on: joining or starting one, and how many trials it holds as nodes come and go."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from pharos.backends.neighbours import Neighbours, neighbours
from pharos.errors import InputError
from pharos.families import ROOT
from pharos.resources import ResourcesConfig, Shape

_LOOK_SECONDS = 5.0  # from one look at the nodes to the next


def connect(cpus: int | None) -> bool:
    """Joins the cluster that RAY_ADDRESS or this machine has, else starts one; says whether to leave it at the end.

    Args:
        cpus: Cores of one that is started; None: all.

    Raises:
        InputError: RAY_ADDRESS names a cluster that is not there.
    """
    if ray.is_initialized():
        return False
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address != "local":
        try:
            # The working folder of a submitted job is on a worker's path; its platform/ is not. What is named here is
            # imported by its own name: were it platform/, a trial would take whatever pharos its node has installed.
            modules = [str(Path(__file__).resolve().parents[1]), str(ROOT / "trainables")]
            variables = {"RAY_CHDIR_TO_TRIAL_DIR": os.environ["RAY_CHDIR_TO_TRIAL_DIR"]}
            _init(address, runtime_env={"py_modules": modules, "env_vars": variables}, **common)
            return True
        except ConnectionError as error:
            if "RAY_ADDRESS" in os.environ:
                reason = str(error).strip().split("\n")[0]
                raise InputError(
                    f"RAY_ADDRESS={address}: no Ray cluster there ({reason}); start one, or unset it"
                ) from None
    # Trials put nothing into the object store; without a figure Ray would reserve a third of the memory for it.
    _init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 * 2**20, **common)
    return True


def _init(address: str, **options: Any) -> None:
    """`ray.init`, but SIGTERM stays with whoever had it: Ray's own handler ends the process, its trials unsaved."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(address, **options)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


class Places:
    """How many trials of a sweep the cluster has room for, now.

    Jobs that share a cluster get equally many devices of it, if they want them: while another waits, this one takes no
    more than its share, else what is free, too. No trial is stopped for another job's sake: it goes on to its end.

    Settles `gpus_per_worker` where that was left to the cluster.

    Args:
        resources: What trials ask for.

    Raises:
        InputError: Trials of a shape fit no node that is there, and none is to come.
    """

    def __init__(self, resources: ResourcesConfig):
        self._resources = resources
        nodes = _nodes()
        if resources.gpus_per_worker is None:
            if resources.autoscaling:
                raise InputError(
                    "resources.autoscaling=true: say resources.gpus_per_worker=1 (or 0), as no node may be there to ask"
                )
            resources.gpus_per_worker = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        if not resources.autoscaling:
            for shape in resources.all_shapes:
                _check_fits(nodes, shape)
        self.others_wait = False
        self._take(nodes, Neighbours(), 0.0)

    def look(self, running: Sequence[Shape]) -> int:
        """Trials that can run at once; asks for the nodes, and who else is there, every few seconds.

        Args:
            running: This sweep's trials.
        """
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            around = neighbours()
            spare = 0.0
            if around.jobs and not around.waiting:
                kind = "GPU" if self._resources.shape.gpus_per_worker else "CPU"
                free = ray.available_resources()  # type: ignore[no-untyped-call]
                spare = sum(shape.devices for shape in running) + free.get(kind, 0.0)
            self._take(_nodes(), around, spare)
        return self.slots

    def has_room(self, running: Sequence[Shape]) -> bool:
        """Whether one more trial can be asked for beside those that run, or wait for their place."""
        resources = self._resources
        if not resources.shapes or resources.autoscaling:
            return len(running) < self.slots
        smallest = min(resources.all_shapes, key=lambda shape: shape.devices)
        wanted = [*running, smallest]
        if running and sum(shape.devices for shape in wanted) > self._devices:
            return False
        return len(running) < (resources.concurrency or math.inf) and fit_together(self._nodes, wanted)

    def _take(self, nodes: list[dict[str, float]], around: Neighbours, spare: float) -> None:
        """Takes in what there is: the nodes, the other jobs, the devices that this sweep has or could have at once."""
        self._looked_at = time.monotonic()
        self._nodes = nodes
        self.others_wait = around.waiting
        resources = self._resources
        if resources.autoscaling:
            self.slots = resources.concurrency or 1
            return
        # In places of the usual shape, so that a place is as many devices whatever the trials in it look like.
        devices = max(_count(nodes, shape) * shape.devices for shape in resources.all_shapes)
        self._devices = min(devices, share_of(devices, around.jobs, spare))
        slots = math.ceil(devices / resources.shape.devices - 1e-9)
        if self._devices < devices:
            slots = max(1, int(self._devices / resources.shape.devices + 1e-9))
        self.slots = min(slots, resources.concurrency or slots)


def share_of(devices: float, others: int, spare: float) -> float:
    """How many devices of a cluster are a job's to take.

    Args:
        devices: Of all nodes.
        others: Jobs that share them.
        spare: What the job has or could have without taking it from another; 0 while another waits.
    """
    return max(devices / (others + 1), spare)


def trials_that_fit(nodes: Sequence[dict[str, float]], bundle: dict[str, float], workers: int, placement: str) -> int:
    """How many trials the nodes hold at a time.

    Args:
        nodes: What each has.
        bundle: What each worker asks for, on one node.
        workers: Of each trial.
        placement: strict_pack: all on one node; else wherever there is room.
    """
    room = [min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in bundle.items()) for node in nodes]
    return sum(each // workers for each in room) if placement == "strict_pack" else sum(room) // workers


def fit_together(nodes: Sequence[dict[str, float]], shapes: Sequence[Shape]) -> bool:
    """Whether trials of different shapes have room side by side, as far as putting the largest first finds it.

    Args:
        nodes: What each has.
        shapes: Of the trials.
    """
    left = [dict(node) for node in nodes]
    for shape in sorted(
        shapes, key=lambda shape: (shape.placement != "strict_pack", -shape.gpus_per_worker, -shape.devices)
    ):
        room = left
        if shape.placement == "strict_pack":
            # The fullest that has room for all of it.
            room = sorted((node for node in left if _count([node], shape)), key=lambda node: _workers(node, shape))[:1]
        wanted = shape.workers
        for node in room:
            taken = min(wanted, _workers(node, shape))
            for kind, amount in shape.bundle.items():
                node[kind] = node.get(kind, 0) - taken * amount
            wanted -= taken
        if wanted:
            return False
    return True


def _nodes() -> list[dict[str, float]]:
    """What each living node has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _count(nodes: Sequence[dict[str, float]], shape: Shape) -> int:
    return trials_that_fit(nodes, shape.bundle, shape.workers, shape.placement)


def _check_fits(nodes: Sequence[dict[str, float]], shape: Shape) -> None:
    if _count(nodes, shape):
        return
    kinds = Counter(" and ".join(f"{node.get(kind, 0):g} {kind}" for kind in shape.bundle) for node in nodes)
    has = ", ".join(f"{count} nodes of {text}" if len(nodes) > 1 else text for text, count in kinds.items())
    raise InputError(
        f"a trial asks for {shape}, the cluster has {has}; "
        "lower resources.workers, resources.cpus_per_worker or resources.gpus_per_worker"
    )


def _workers(node: dict[str, float], shape: Shape) -> int:
    return trials_that_fit([node], shape.bundle, 1, "pack")
