"""Faults of where a sweep is stored: a bucket that stalls or refuses, a disk that is full."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bucket import Fault as Refusal
from benchmarks.bucket import FaultyProxy, Server, aws_environment
from benchmarks.faults.fault import LOCAL, Fault, MissedError, Moment, Scene

_SECONDS = 6.0  # that a trouble which passes lasts
_PATIENCE = 8.0  # of a sweep with one that does not
_BUCKET = "faults"
_IN_A_BUCKET = (
    *LOCAL,
    "storage.mirror_seconds=0.3",
    f"storage.patience={_PATIENCE + _SECONDS}",
    "storage.options={config_kwargs: {connect_timeout: 1, read_timeout: 2}}",
)

# What a request looks like that is met, by moment.
_CHECKPOINT = r"PUT .*/trials/00001/checkpoints/0000000[4-9]/rank-"
_MANIFEST = r"PUT .*/trials/00001/checkpoints/0000000[4-9]/manifest-"
_METRICS = r"PUT .*/trials/00001/metrics\.jsonl"
_SUMMARY = r"PUT .*/summary\.json"

_STALLS = {
    "6 s, as a checkpoint is written": _CHECKPOINT,
    "6 s, at a checkpoint's manifest": _MANIFEST,
    "6 s, as the sweep closes": _SUMMARY,
    "for good, as a checkpoint is written; then `--resume`": _CHECKPOINT,
    "for good, as the sweep closes; then `--resume`": _SUMMARY,
}
_REFUSALS = {
    "503 for 6 s, as a checkpoint is written": (_CHECKPOINT, Refusal.SLOW_DOWN),
    "503 for 6 s, as the sweep closes": (_SUMMARY, Refusal.SLOW_DOWN),
    "403 for 6 s, of a clock that differs": (_METRICS, Refusal.SKEW),
    "403 for good, access denied at a checkpoint; then `--resume`": (_CHECKPOINT, "denied"),
    "403 for good, access denied as the sweep closes; then `--resume`": (_SUMMARY, "denied"),
}


@functools.cache
def _server() -> Server:
    """An S3 server in this process, for all cases; the verdict asks it too."""
    server = Server().start()
    os.environ.update(aws_environment(server.url))
    server.make(_BUCKET)
    return server


@contextlib.contextmanager
def _in_a_bucket(scene: Scene) -> Iterator[FaultyProxy]:
    """Stores a scene's sweep in a bucket, with a proxy between."""
    server = _server()
    scene.url = f"s3://{_BUCKET}/{scene.home.name}"
    with FaultyProxy(server.url) as proxy:
        scene.environment |= aws_environment(proxy.url)
        yield proxy


def _after(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def stall_store(scene: Scene, moment: str | None) -> None:
    """No request is answered any more, for a while or until the sweep has given up."""
    with _in_a_bucket(scene) as proxy:
        passes = moment is not None and moment.startswith("6 s")

        def before(method: str, path: str) -> None:
            if moment and not scene.strikes and re.search(_STALLS[moment], f"{method} {path}"):
                proxy.stalled = True
                scene.struck("the bucket stalls")
                if passes:
                    _after(_SECONDS, functools.partial(setattr, proxy, "stalled", False))

        proxy.before = before
        _start_and_resume(scene, lambda: setattr(proxy, "stalled", False), moment is not None and not passes)


def refuse_store(scene: Scene, moment: str | None) -> None:
    """Every request is refused, for a while or until the sweep has given up."""
    with _in_a_bucket(scene) as proxy:
        refuses = threading.Event()

        def before(method: str, path: str) -> Refusal | str | None:
            if moment is None:
                return None
            wanted, refusal = _REFUSALS[moment]
            if not scene.strikes and re.search(wanted, f"{method} {path}"):
                refuses.set()
                scene.struck("the bucket refuses")
                if "for good" not in moment:
                    _after(_SECONDS, refuses.clear)
            return refusal if refuses.is_set() else None

        proxy.before = before  # type: ignore[assignment]
        _start_and_resume(scene, refuses.clear, moment is not None and "for good" in moment)


def _start_and_resume(scene: Scene, mend: Callable[[], None], is_for_good: bool) -> None:
    scene.start(*_IN_A_BUCKET, f"storage.cache={scene.home / 'cache'}")
    status = scene.finish()
    if is_for_good:
        if status == 0:
            raise MissedError("the sweep ended well all the same")
        mend()
        scene.start(resume=True)
        scene.finish()


_DISK_MEGABYTES = 48
_DISK: dict[str, dict[str, Any]] = {
    "as a checkpoint is written; then `--resume`": {"point": "saves", "trial": 1, "epoch": 7},
    "as a trial's end is recorded; then `--resume`": {"point": "ending", "trial": 1},
    "as the sweep closes; then `--resume`": {"point": "summary"},
}


def fill_disk(scene: Scene, moment: str | None) -> None:
    """Not a byte is left on the file system that the sweep lies on; it is small and its own."""
    disk = scene.home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MEGABYTES}m", "none", str(disk)], check=True)
    scene.on_end(functools.partial(subprocess.run, ["umount", "--lazy", str(disk)], check=True))
    scene.url = str(disk / "sweeps")
    trap = scene.witness.set_trap(**_DISK[moment]) if moment else ""
    scene.start(*LOCAL)
    if moment:
        scene.caught(trap)
        _fill(disk / "filler")
        scene.struck("the disk is full")
        scene.witness.release(trap)
    status = scene.finish()
    if moment:
        if status == 0:
            raise MissedError("the sweep ended well all the same")
        (disk / "filler").unlink()
        scene.start(resume=True)
        scene.finish()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def _cannot_mount() -> str:
    return "" if os.geteuid() == 0 else "needs root, to mount a small file system"


def _moments(names: Iterable[str], says: str) -> tuple[Moment, ...]:
    """A trial that cannot save for good ends as failed, and says why; whatever else happens, all complete."""
    return tuple(
        Moment(name, {"complete": 2, "failed": 1}, says)
        if "checkpoint" in name and "--resume" in name
        else Moment(name, says=says if "--resume" in name else "")
        for name in names
    )


FAULTS = [
    Fault("store-stalls", "storage stalls", "bucket", stall_store, _moments(_STALLS, "cannot write s3://.*: ")),
    Fault("store-refuses", "storage refuses", "bucket", refuse_store, _moments(_REFUSALS, "access denied")),
    Fault("disk-full", "the disk is full", "disk", fill_disk, _moments(_DISK, "No space left"), _cannot_mount),
]
