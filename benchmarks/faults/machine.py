"""Faults of a sweep's processes on one machine: of a trial's, of the driver, of their memory and their numbers."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import secrets
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.fault import LOCAL, ON_RAY, SWEEP, Fault, MissedError, Moment, Scene, alive

_GANG = (
    *(each for each in SWEEP if not each.startswith("trials=")),
    "recipe.optim.lr=choice(2e-4, 4e-4)",
    "trials=2",
    "backend=tune",
    "resources.workers=2",
    "resources.cluster_cpus=2",
)
_HANG_SECONDS = 10
_GIB = 2**30
_WHERE = dict[str, Any]

# Where a process is held, by moment: what the witness's line says.
_MID_EPOCH: _WHERE = {"point": "step", "trial": 1, "epoch": 6, "step": 2}
_IN_A_TRIAL: dict[str, _WHERE] = {
    "as it starts": {"point": "begins", "trial": 1},
    "in mid-epoch": _MID_EPOCH,
    "as it writes a checkpoint": {"point": "saves", "trial": 1, "epoch": 7},
    "before the checkpoint's manifest": {"point": "commits", "trial": 1, "epoch": 7},
    "between its last report and its record": {"point": "ends", "trial": 1},
}
_IN_A_GANG: dict[str, _WHERE] = {
    "the second, as the trial starts": {"point": "begins", "trial": 1, "rank": 1},
    "the second, in mid-epoch": {**_MID_EPOCH, "rank": 1},
    "the first, before the checkpoint's manifest": {"point": "commits", "trial": 1, "epoch": 7},
    "the second, between its last report and its record": {"point": "ends", "trial": 1, "rank": 1},
}
_IN_A_DRIVER: dict[str, list[_WHERE]] = {
    "as a trial starts": [{"point": "begins", "trial": 1}],
    "in mid-epoch": [_MID_EPOCH],
    "as a checkpoint is written": [{"point": "saves", "trial": 1, "epoch": 7}],
    "between a trial's last report and its record": [{"point": "ending", "trial": 1}],
    "just after a trial's record": [{"point": "recorded", "trial": 1}],
    "as the sweep closes": [{"point": "summary"}],
    "twice: in mid-epoch, and as the resumed one goes on": [_MID_EPOCH, {"point": "step", "trial": 2, "epoch": 3}],
}


def kill_trial(scene: Scene, moment: str | None) -> None:
    """Kills a trial's process."""
    _kill(scene, ON_RAY, _IN_A_TRIAL[moment] if moment else None, "a trial's process")


def kill_worker(scene: Scene, moment: str | None) -> None:
    """Kills one of the two workers of a trial."""
    _kill(scene, _GANG, _IN_A_GANG[moment] if moment else None, "a worker of two")


def _kill(scene: Scene, settings: tuple[str, ...], where: _WHERE | None, what: str) -> None:
    trap = scene.witness.set_trap(**where) if where else ""
    scene.start(*settings)
    if where:
        scene.kill(scene.caught(trap).pid, what)
    scene.finish()


def kill_driver(scene: Scene, moment: str | None) -> None:
    """Kills the driver and resumes its sweep, as often as the moment has places."""
    for count, where in enumerate(_IN_A_DRIVER[moment] if moment else []):
        trap = scene.witness.set_trap(**where)
        driver = scene.start(resume=True) if count else scene.start(*ON_RAY)
        scene.caught(trap)
        scene.kill(driver.process.pid, "the driver")
        driver.process.wait()
        # A trial's process may go on until it notices; it must not spoil what the next driver does.
        scene.witness.release(trap)
    if moment:
        scene.start(resume=True)
    else:
        scene.start(*ON_RAY)
    scene.finish()


_STANDING = {
    "a thread waits for ever": "stand still",
    "native code never comes back and keeps the interpreter": "stand still with the lock",
}
_STOPPED = "the process is stopped (SIGSTOP)"
_WORKER_STOPPED = "one worker of two is stopped (SIGSTOP)"


def hang_trial(scene: Scene, moment: str | None) -> None:
    """Lets a trial stand still, in mid-epoch."""
    _hang(scene, ON_RAY, _MID_EPOCH, moment)


def hang_worker(scene: Scene, moment: str | None) -> None:
    """Lets the second of a trial's two workers stand still, in mid-epoch."""
    _hang(scene, _GANG, {**_MID_EPOCH, "rank": 1}, moment)


def _hang(scene: Scene, settings: tuple[str, ...], where: _WHERE, moment: str | None) -> None:
    trap = scene.witness.set_trap(_STANDING.get(moment, "hold"), **where) if moment else ""
    scene.start(*settings, f"resources.hang_seconds={_HANG_SECONDS}")
    if moment:
        pid = scene.caught(trap).pid
        if moment not in _STANDING:
            time.sleep(2)  # its first batch is over, and that is known by now: for that one a trial may take its time
            os.kill(pid, signal.SIGSTOP)
        scene.struck(moment)
    scene.finish()
    if moment and alive(pid):
        scene.broke(f"the process that stood still ({pid}) is still there when the sweep has ended")


def _used_memory() -> tuple[int, int]:
    """What is in use on this machine, and what it has, in bytes."""
    text = Path("/proc/meminfo").read_text()
    found = {name: 1024 * int(kilobytes) for name, kilobytes in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return found["MemTotal"] - found["MemAvailable"], found["MemTotal"]


_MEMORY = {
    "a limit of the process (RLIMIT_AS)": Moment(
        "a limit of the process (RLIMIT_AS)", {"complete": 2, "out_of_memory": 1}
    ),
    "Ray's monitor of the node": Moment("Ray's monitor of the node", says="lost its process"),
    "the kernel (a memory cgroup)": Moment("the kernel (a memory cgroup)", says="lost its process"),
}


def exhaust_memory(scene: Scene, moment: str | None) -> None:
    """A trial asks for memory, and uses it, until something stops it: 8 GiB at most, and half of what is free."""
    used, total = _used_memory()
    if moment == "Ray's monitor of the node":
        scene.environment["RAY_memory_usage_threshold"] = f"{(used + 2.5 * _GIB) / total:.4f}"
    trap = scene.witness.set_trap("allocate", **_MID_EPOCH) if moment else ""
    scene.start(*ON_RAY)
    if moment:
        pid = scene.caught(trap).pid
        if moment == "a limit of the process (RLIMIT_AS)":
            size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(pid, resource.RLIMIT_AS, (size + _GIB // 2, size + _GIB // 2))
        elif moment == "the kernel (a memory cgroup)":
            _confine(scene, pid)
        scene.witness.release(trap)
        scene.until(lambda: _has_stopped_asking(scene, pid) or None)
        scene.struck("memory is exhausted")
    scene.finish()


def _has_stopped_asking(scene: Scene, pid: int) -> bool:
    """Whether a process was stopped as it asked for memory.

    Raises:
        MissedError: It got all that it asked for.
    """
    asked = next((line for line in scene.witness.lines() if line.pid == pid and line.point == "got it all"), None)
    if asked:
        raise MissedError("nothing stopped the trial: it got all that it asked for")
    return not alive(pid) or any(line.pid == pid and line.point == "ends" for line in scene.witness.lines())


def _confine(scene: Scene, pid: int) -> None:
    """Puts a process into a cgroup of its own with 512 MiB more than it has now."""
    parent, limit = _memory_cgroups()
    folder = parent / f"pharos-faults-{secrets.token_hex(4)}"
    folder.mkdir()
    scene.on_end(functools.partial(_remove_cgroup, folder))
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    # In version 1 of cgroups a process leaves its memory behind where it was; in version 2, too.
    (folder / limit).write_text(str(min(resident, _GIB) + _GIB // 2))
    (folder / "cgroup.procs").write_text(str(pid))


def _remove_cgroup(folder: Path) -> None:
    for _ in range(50):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)


def _memory_cgroups() -> tuple[Path, str]:
    """Where a cgroup can be made that bounds memory, and the name of its bound.

    Raises:
        OSError: Nowhere.
    """
    root = Path("/sys/fs/cgroup")
    if (root / "memory").is_dir():
        return root / "memory", "memory.limit_in_bytes"
    if "memory" in (root / "cgroup.subtree_control").read_text().split():
        return root, "memory.max"
    raise OSError("there is no memory controller")


def _cannot_confine() -> str:
    try:
        parent, _ = _memory_cgroups()
        folder = parent / f"pharos-faults-{secrets.token_hex(4)}"
        folder.mkdir()
        folder.rmdir()
    except OSError as error:
        return f"needs root and a memory cgroup ({error.strerror or error})"
    return ""


_DIVERGED = {"complete": 2, "diverged": 1}


def diverge(scene: Scene, moment: str | None) -> None:
    """A trial's numbers stop being numbers."""
    if moment == "by its value: a learning rate of 1e30":
        scene.start(*LOCAL, "recipe.optim.lr=choice(1e-4, 2e-4, 1e30)")
    else:
        trap = scene.witness.set_trap("poison", **_MID_EPOCH) if moment else ""
        scene.start(*LOCAL)
        if moment:
            scene.caught(trap)
    scene.finish()
    if any(line.point == "ends" and line.outcome == "diverged" for line in scene.witness.lines()):
        scene.struck("a trial diverges")


FAULTS = [
    Fault(
        "trial-killed",
        "`kill -9` of a trial's process",
        "ray",
        kill_trial,
        tuple(Moment(name, says="lost its process") for name in _IN_A_TRIAL),
    ),
    Fault(
        "worker-killed",
        "`kill -9` of one worker of two",
        "gang",
        kill_worker,
        tuple(Moment(name, says="lost its process") for name in _IN_A_GANG),
    ),
    Fault(
        "driver-killed",
        "`kill -9` of the driver, then `--resume`",
        "ray",
        kill_driver,
        tuple(Moment(name) for name in _IN_A_DRIVER),
    ),
    Fault(
        "trial-hangs",
        "a trial stands still",
        "ray",
        hang_trial,
        (
            Moment("a thread waits for ever", says="did not get on for 10 s"),
            Moment("native code never comes back and keeps the interpreter", says="lost its process"),
            Moment(_STOPPED, says="lost its process"),
        ),
    ),
    Fault(
        "worker-hangs",
        "a trial stands still",
        "gang",
        hang_worker,
        (Moment(_WORKER_STOPPED, says="lost its process"),),
    ),
    Fault(
        "memory",
        "memory is exhausted in mid-epoch, and ended by",
        "ray",
        exhaust_memory,
        (_MEMORY["a limit of the process (RLIMIT_AS)"], _MEMORY["Ray's monitor of the node"]),
    ),
    Fault(
        "memory-kernel",
        "memory is exhausted in mid-epoch, and ended by",
        "ray",
        exhaust_memory,
        (_MEMORY["the kernel (a memory cgroup)"],),
        _cannot_confine,
    ),
    Fault(
        "nan",
        "a trial's loss becomes NaN",
        "local",
        diverge,
        (
            Moment("by its value: a learning rate of 1e30", _DIVERGED),
            Moment("in mid-epoch, by a weight that is none any more", _DIVERGED),
        ),
    ),
]
