"""Checkpoints that are not what was written, found by a sweep that is resumed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from benchmarks.faults.fault import LOCAL, Fault, MissedError, Moment, Scene
from pharos.checkpoint import is_manifest, seal

_LAST = "the newest: "


def poison_checkpoint(scene: Scene, moment: str | None) -> None:
    """Kills a sweep in mid-epoch, changes a checkpoint of its running trial, and resumes it."""
    trap = scene.witness.set_trap(point="step", trial=1, epoch=9, step=2) if moment else ""
    driver = scene.start(*LOCAL)
    if not moment:
        scene.finish()
        return
    scene.kill(scene.caught(trap).pid, "the driver")
    driver.process.wait()
    folder = Path(scene.url) / scene.name / "trials/00001/checkpoints"
    committed = sorted(path for path in folder.iterdir() if any(map(is_manifest, os.listdir(path))))  # noqa: PTH208
    if len(committed) < 2:
        raise MissedError(f"there are {len(committed)} checkpoints, not two or more")
    spoiled = committed[-1:] if moment.startswith(_LAST) else committed
    mark = scene.home / "executed"
    for path in spoiled:
        _POISONS[moment](path, mark)
    scene.struck(f"poisoned: {', '.join(path.name for path in spoiled)}")
    before = len(scene.witness.lines())
    scene.start(resume=True)
    scene.finish()
    if mark.exists():
        scene.broke("what was in the checkpoint was executed")
    epochs = [line.epoch for line in scene.witness.lines()[before:] if line.point == "epoch" and line.trial == 1]
    wanted = int(committed[-2].name) + 1 if moment.startswith(_LAST) else 1
    if epochs[:1] != [wanted]:
        scene.broke(f"the trial went on with epoch {epochs[:1] or None}, not {wanted}")


def _shard(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def _flip(folder: Path, mark: Path) -> None:
    data = bytearray(_shard(folder).read_bytes())
    data[-100] ^= 1
    _shard(folder).write_bytes(bytes(data))


def _cut(folder: Path, mark: Path) -> None:
    os.truncate(_shard(folder), _shard(folder).stat().st_size // 2)


def _cut_manifest(folder: Path, mark: Path) -> None:
    path = next(folder.glob("manifest*.json"))
    os.truncate(path, path.stat().st_size // 2)


def _elsewhere(folder: Path, mark: Path) -> None:
    """The manifest is whole and sealed, and names a file of another trial."""
    path = next(folder.glob("manifest*.json"))
    manifest = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "sha256"}
    shard = _shard(folder)
    other = f"../../../00000/checkpoints/{folder.name}/{shard.name}"
    manifest["files"] = {other if name == shard.name else name: entry for name, entry in manifest["files"].items()}
    for tensor in manifest["tensors"].values():
        tensor["pieces"] = [[other if name == shard.name else name, *rest] for name, *rest in tensor["pieces"]]
    path.write_bytes(seal(manifest))


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, int]]:
        return os.mknod, (str(self._mark), 0o600)


def _pickle(folder: Path, mark: Path) -> None:
    """A pickle is where the tensors were, and the manifest has its size and checksum."""
    shard = _shard(folder)
    data = pickle.dumps(_Payload(mark))
    shard.write_bytes(data)
    path = next(folder.glob("manifest*.json"))
    manifest = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "sha256"}
    manifest["files"][shard.name] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    path.write_bytes(seal(manifest))


_POISONS: dict[str, Callable[[Path, Path], None]] = {
    f"{_LAST}a bit of its tensors is flipped": _flip,
    f"{_LAST}its tensors are cut short": _cut,
    f"{_LAST}its manifest is cut short": _cut_manifest,
    f"{_LAST}its manifest names files of another trial": _elsewhere,
    f"{_LAST}a pickle is in place of its tensors, its manifest fits": _pickle,
    "all there are: a bit of each is flipped": _flip,
}

FAULTS = [
    Fault(
        "poison",
        "a poisoned checkpoint is found on `--resume`",
        "local",
        poison_checkpoint,
        tuple(Moment(name, says="damaged", restarts=True) for name in _POISONS),
    )
]
