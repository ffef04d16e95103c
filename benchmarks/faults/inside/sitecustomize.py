"""What runs inside the processes of a sweep that is to be struck: the witness, and the traps.

Python imports a module of this name by itself when it starts; only the fault suite puts this folder on PYTHONPATH, and
$PHAROS_FAULTS names the folder that the suite looks into. The platform knows nothing of it. What a process comes past
is appended to `witness.jsonl` there, one line in one write, which neither a kill of the process nor of any other takes
back. `trap.json` names a point at which a process is to be held (until the suite lets it go or kills it), to hang, to
ask for memory or to spoil its weights: so a strike meets the moment that it is meant for.

It wraps functions as their modules are imported. Nothing here reads what the platform records.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_HOME = Path(os.environ.get("PHAROS_FAULTS", ""))
_HELD_SECONDS = 60.0  # a process that nobody lets go goes on by itself
_BATCH_SECONDS = 2.0  # of a batch that is on its way before it stands still: a trial may take longer for its first
_PIECE, _MOST = 32 * 2**20, 8 * 2**30  # bytes that a process asks for at a time, and in all
_now: dict[str, Any] = {}  # what this process trains
_steps = [0]  # of optimisers, in the present epoch


def say(point: str, **more: Any) -> None:
    """Writes that this process is at a point, then looks whether there is a trap."""
    line = {"point": point, **_now, **more}
    _write(line)
    check(line)


def check(line: dict[str, Any], optimizer: Any = None) -> None:
    """Springs the trap, if there is one for this line."""
    trap = _HOME / "trap.json"
    try:
        wanted = json.loads(trap.read_text())
        if any(line.get(key) != value for key, value in wanted["where"].items()):
            return
        trap.rename(_HOME / f"sprung-{wanted['id']}.json")
    except FileNotFoundError:
        return  # there is none, or another process was first
    _write({**line, "point": "trapped", "where": line["point"], "trap": wanted["id"]})
    _ACTS[wanted["act"]](wanted["id"], optimizer)


def _write(line: dict[str, Any]) -> None:
    text = json.dumps({"at": time.monotonic(), "wall": time.time(), "pid": os.getpid(), **line})
    file = os.open(_HOME / "witness.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def _hold(trap: str, optimizer: Any) -> None:
    deadline = time.monotonic() + _HELD_SECONDS
    while not (_HOME / f"released-{trap}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _stand_still(trap: str, optimizer: Any) -> None:
    """As a thread does that waits for what never comes."""
    threading.Event().wait()


def _stand_still_with_the_lock(trap: str, optimizer: Any) -> None:
    """As native code does that never comes back and keeps the interpreter: no other thread of the process runs."""
    time.sleep(_BATCH_SECONDS)
    while True:
        ctypes.PyDLL(None).pause()  # a signal ends one


def _allocate(trap: str, optimizer: Any) -> None:
    """Once let go: memory that is really used, until something ends it; at most 8 GiB, or half of what is free."""
    _hold(trap, optimizer)
    kept: list[bytearray] = []
    free = _available()
    while len(kept) * _PIECE < _MOST and _available() > free / 2:
        kept.append(bytearray(os.urandom(4096) * (_PIECE // 4096)))
        time.sleep(0.02)
    time.sleep(5)  # for a monitor to see it
    say("got it all")


def _available() -> int:
    """Memory that this machine has left, in bytes."""
    text = Path("/proc/meminfo").read_text()
    return 1024 * int(text.partition("MemAvailable:")[2].split()[0])


def _poison(trap: str, optimizer: Any) -> None:
    """A weight of what is being trained is none any more."""
    optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))


_ACTS: dict[str, Callable[[str, Any], None]] = {
    "hold": _hold,
    "stand still": _stand_still,
    "stand still with the lock": _stand_still_with_the_lock,
    "allocate": _allocate,
    "poison": _poison,
}


def _watch_execute(module: Any) -> None:
    execute = module.execute

    @functools.wraps(execute)
    def watched(spec: Any, on_report: Any, on_run: Any = lambda run: None, world: Any = None, log: Any = None) -> Any:
        _now.update(trial=spec.number, attempt=secrets.token_hex(4), rank=world.rank if world else 0, epoch=0)
        say("begins")
        ending = execute(spec, on_report, on_run, world, log)
        say("ends", outcome=str(ending.outcome))
        return ending

    module.execute = watched


def _watch_run(module: Any) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def step(optimizer: Any, *arguments: Any) -> None:
        _steps[0] += 1
        check({"point": "step", **_now, "step": _steps[0]}, optimizer)

    register_optimizer_step_post_hook(step)
    epochs = module.Run.epochs

    @functools.wraps(epochs)
    def watched(run: Any, name: str, count: int) -> Iterator[Any]:
        for epoch in epochs(run, name, count):
            _now["epoch"], _steps[0] = run.fidelity + 1, 0
            say("epoch")
            yield epoch
            say("trained", steps=_steps[0])

    module.Run.epochs = watched


def _watch_storage(module: Any) -> None:
    write_bytes = module.Storage.write_bytes

    @functools.wraps(write_bytes)
    def watched(storage: Any, path: str, data: bytes) -> None:
        found = re.search(r"trials/(\d+)/checkpoints/(\d+)/([a-z]+)", storage.path(path))
        if found is None:
            if path == "summary.json":
                say("summary")
            write_bytes(storage, path, data)
            return
        where = {"trial": int(found[1]), "epoch": int(found[2])}
        is_manifest = found[3] == "manifest"
        say("commits" if is_manifest else "saves", **where)
        write_bytes(storage, path, data)
        if is_manifest:
            say("committed", **where)

    module.Storage.write_bytes = watched


def _watch_study(module: Any) -> None:
    tell = module.Study.tell

    @functools.wraps(tell)
    def watched(study: Any, number: int, ending: Any) -> Any:
        say("ending", trial=number, outcome=str(ending.outcome))
        record = tell(study, number, ending)
        say("recorded", trial=number, outcome=str(record.outcome), values=record.values)
        return record

    module.Study.tell = watched


def _watch_sweep(module: Any) -> None:
    for name, point in (("open", "opens"), ("close", "closes")):
        setattr(module.Sweep, name, _announced(getattr(module.Sweep, name), point))


def _announced(method: Callable[..., Any], point: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def watched(*arguments: Any, **options: Any) -> Any:
        say(point)
        return method(*arguments, **options)

    return watched


_WATCHED: dict[str, Callable[[Any], None]] = {
    "pharos.execute": _watch_execute,
    "pharos.run": _watch_run,
    "pharos.storage": _watch_storage,
    "pharos.study": _watch_study,
    "pharos.sweep": _watch_sweep,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps what is watched of a module when that has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _WATCHED[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _HOME.is_absolute():
    sys.meta_path.insert(0, _Finder())
