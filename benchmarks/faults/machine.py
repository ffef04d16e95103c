"""The faults of one machine: of a trial's processes, of the driver, of storage, memory, numbers and the clock."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.fault import ON_RAY, Fault, Moment, Scene

# Where a trial is caught, by moment: what the witness's line says.
_IN_A_TRIAL: dict[str, dict[str, Any]] = {
    "as it starts": {"point": "begins", "trial": 1},
    "in mid-epoch": {"point": "step", "trial": 1, "epoch": 6, "step": 2},
    "as it saves a checkpoint": {"point": "saves", "trial": 1, "epoch": 7},
    "before the checkpoint's manifest": {"point": "commits", "trial": 1, "epoch": 7},
    "between its last report and its record": {"point": "ends", "trial": 1},
}


def kill_trial(scene: Scene, moment: str | None) -> None:
    """Kills a trial's process with SIGKILL."""
    trap = scene.witness.set_trap(**_IN_A_TRIAL[moment]) if moment else ""
    scene.start(*ON_RAY)
    if moment:
        scene.kill(scene.caught(trap).pid, "a trial's process")
    scene.finish()


FAULTS = [
    Fault(
        "trial-killed",
        "`kill -9` of a trial's process",
        "ray",
        kill_trial,
        tuple(Moment(name, says="lost its process") for name in _IN_A_TRIAL),
    ),
]
