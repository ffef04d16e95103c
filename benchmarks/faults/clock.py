"""A clock that jumps by an hour, for all processes of a sweep at once: `inside/clock.c` says what of it."""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.faults.fault import ON_RAY, Fault, MissedError, Moment, Scene
from benchmarks.faults.witness import INSIDE

_HOUR = 3600
_WHERE: dict[str, tuple[int, dict[str, Any]]] = {
    "an hour forwards, in mid-epoch": (_HOUR, {"point": "step", "trial": 1, "epoch": 6, "step": 2}),
    "an hour back, in mid-epoch": (-_HOUR, {"point": "step", "trial": 1, "epoch": 6, "step": 2}),
    "an hour forwards, as a checkpoint is written": (_HOUR, {"point": "saves", "trial": 1, "epoch": 7}),
    "an hour back, as a trial's end is recorded": (-_HOUR, {"point": "ending", "trial": 1}),
}


@functools.cache
def _library() -> Path:
    """The clock for LD_PRELOAD, built by the system's compiler."""
    built = Path(tempfile.mkdtemp(prefix="pharos-faults-")) / "clock.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", built, INSIDE / "clock.c", "-ldl", "-lpthread"], check=True)
    return built


def move_clock(scene: Scene, moment: str | None) -> None:
    """The wall clock jumps."""
    clock = scene.home / "clock"
    clock.write_bytes(struct.pack("q", 0))
    scene.environment |= {"LD_PRELOAD": str(_library()), "PHAROS_CLOCK": str(clock)}
    seconds, where = _WHERE[moment] if moment else (0, {})
    trap = scene.witness.set_trap(**where) if moment else ""
    scene.start(*ON_RAY)
    if moment:
        before = scene.caught(trap)
        with clock.open("r+b") as file:
            file.write(struct.pack("q", seconds * 10**9))
        scene.witness.release(trap)
    scene.finish()
    if moment:
        later = [line for line in scene.witness.lines() if line.at > before.at]
        moved = {line.pid for line in later if abs(line.wall - line.at - (before.wall - before.at) - seconds) < 60}
        if not {before.pid, scene.drivers[-1].process.pid} <= moved:
            raise MissedError("the trial or the driver did not see the clock jump")
        scene.struck(f"the clock jumps by {seconds} s")


def _no_compiler() -> str:
    return "" if shutil.which("cc") else "needs a C compiler (cc)"


FAULTS = [Fault("clock", "the clock jumps", "ray", move_clock, tuple(Moment(name) for name in _WHERE), _no_compiler)]
