"""The Ray cluster that trials run on: joining or starting one, and whether a trial fits it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import ray

from pharos.errors import InputError
from pharos.families import ROOT
from pharos.settings import ResourcesConfig


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
            # The working folder of a submitted job is on a worker's path; its platform/ is not.
            modules = [str(Path(__file__).resolve().parents[2]), str(ROOT / "trainables")]
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


def fit(resources: ResourcesConfig) -> tuple[dict[str, float], int]:
    """What each worker of a trial asks for, and how many trials fit the cluster at a time.

    Sets `gpus_per_worker` where it was left to the cluster.

    Raises:
        InputError: Not even one does.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if resources.gpus_per_worker is None:
        resources.gpus_per_worker = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    bundle = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        bundle["GPU"] = resources.gpus_per_worker
    slots = trials_that_fit(nodes, bundle, resources.workers, resources.placement)
    if slots < 1:
        wanted = _amounts(bundle)
        if resources.workers > 1:
            where = " on one node" if resources.placement == "strict_pack" else ""
            wanted = f"{resources.workers} workers{where} of {wanted}"
        kinds = Counter(_amounts({kind: node.get(kind, 0) for kind in bundle}) for node in nodes)
        has = ", ".join(f"{count} nodes of {text}" if len(nodes) > 1 else text for text, count in kinds.items())
        raise InputError(
            f"a trial asks for {wanted}, the cluster has {has}; "
            "lower resources.workers, resources.cpus_per_worker or resources.gpus_per_worker"
        )
    return bundle, min(slots, resources.concurrency or slots)


def trials_that_fit(nodes: list[dict[str, float]], bundle: dict[str, float], workers: int, placement: str) -> int:
    """How many trials the nodes hold at a time.

    Args:
        nodes: What each has.
        bundle: What each worker asks for, on one node.
        workers: Of each trial.
        placement: strict_pack: all on one node; else wherever there is room.
    """
    room = [min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in bundle.items()) for node in nodes]
    return sum(each // workers for each in room) if placement == "strict_pack" else sum(room) // workers


def _amounts(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
