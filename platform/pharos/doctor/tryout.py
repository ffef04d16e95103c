"""Tries trials for a moment, in the process that calls: what they take in memory, time and storage."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

import torch

from pharos.execute import execute
from pharos.memory import PEAK_MEMORY, peak_memory
from pharos.plan import Plan
from pharos.run import Run
from pharos.space import Params
from pharos.storage import Storage
from pharos.trial import Ending, Outcome, TrialSpec


def spec_of(plan: Plan, params: Params, url: str, number: int, *, is_local: bool, seconds: float) -> TrialSpec:
    """What tries a configuration: tracked nowhere, with one checkpoint.

    Args:
        plan: The sweep's.
        params: Its searched values.
        url: The folder that takes what trials write.
        number: The trial's.
        is_local: Whether that folder is this machine's own.
        seconds: For more than the least of each loop.

    Raises:
        InputError: The recipe refuses the values.
    """
    spec = plan.trial_spec("doctor", number, params, folder=f"{url}/{number}", tracking_folder=url)
    storage = spec.storage | {"patience": 15.0} | ({"url": url, "options": {}} if is_local else {})
    measured = [] if math.isnan(peak_memory(torch.device("cpu"))) else [PEAK_MEMORY]
    return dataclasses.replace(
        spec,
        tracking={"name": "none"},
        storage=storage,
        watched=[*spec.watched, *(name for name in measured if name not in spec.watched)],
        checkpoint_seconds=math.inf,
        probe=seconds,
    )


def ready() -> None:
    """Comes back once all that trials share is imported, which on a busy machine takes longer than the trial."""


def try_here(spec: TrialSpec, seconds: float) -> tuple[Ending, int]:
    """Tries a trial in this process; one that takes longer is stopped where it is. Its ending, and bytes saved."""
    runs: list[Run] = []

    def stop() -> None:
        for run in runs:
            run.stop(Outcome.CANCELLED, f"not through in {seconds:g} s")

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        ending = execute(spec, lambda report: None, runs.append, log="log")
    finally:
        timer.cancel()
    return ending, saved_bytes(spec)


def saved_bytes(spec: TrialSpec) -> int:
    """What a tried trial's checkpoint takes."""
    folder = Storage(spec.folder, spec.storage.get("options"), 15.0)
    return sum(folder.sizes("checkpoints").values())


def position(ending: Ending) -> str:
    """How far a trial came."""
    loops: list[dict[str, Any]] = ending.probe.get("loops", [])
    if not loops:
        return "before its first loop"
    last = loops[-1]
    index = last["seen"][-1]["index"] + 1 if last["seen"] else 0
    return f"in {last['name']}, epoch {index} of {last['epochs']}"
