"""Tracking a trial in Weights & Biases from the trial's own process, without ever making it wait.

Everything that talks to W&B happens in a thread of its own: opening a run takes most of a second and a network may
take for ever. What the thread has not sent when the process ends lies in W&B's own spool on disk.
"""

from __future__ import annotations

import logging
import math
import netrc
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pharos.spool import Spool
from pharos.storage import Storage, StorageConfig
from pharos.trial import Ending, Outcome, TrialSpec

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 20.0

_threads: list[threading.Thread] = []


class Tracker(Protocol):
    """Where a trial's numbers and pictures are shown."""

    def log(self, fidelity: int, metrics: dict[str, float]) -> None: ...

    def image(self, fidelity: int, name: str, image: Tensor) -> None: ...

    def finish(self, ending: Ending) -> None: ...


class NoTracker:
    """Shows nothing."""

    def log(self, fidelity: int, metrics: dict[str, float]) -> None:
        pass

    def image(self, fidelity: int, name: str, image: Tensor) -> None:
        pass

    def finish(self, ending: Ending) -> None:
        pass


class WandbTracker:
    """One W&B run a trial. The same run goes on when the trial is resumed.

    Args:
        spec: The trial.
        tracked: The last fidelity that an earlier attempt logged; nothing up to it is logged again.
        folder: Where W&B keeps its own files.
        on_closed: Called when the run has ended, with whether it was tracked offline.
    """

    def __init__(
        self, spec: TrialSpec, tracked: int, folder: str, on_closed: Callable[[bool], None] = lambda offline: None
    ):
        self._spec = spec
        self._tracked = tracked
        self._folder = folder
        self._on_closed = on_closed
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        thread = threading.Thread(target=self._work, name=f"wandb-{spec.id}", daemon=True)
        thread.start()
        _threads[:] = [t for t in _threads if t.is_alive()] + [thread]

    def log(self, fidelity: int, metrics: dict[str, float]) -> None:
        if fidelity > self._tracked:
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self._queue.put(("log", {"fidelity": fidelity, **finite}))

    def image(self, fidelity: int, name: str, image: Tensor) -> None:
        if fidelity > self._tracked:
            self._queue.put(("image", (fidelity, name, image.detach().cpu())))

    def finish(self, ending: Ending) -> None:
        self._queue.put(("finish", ending))

    def _work(self) -> None:
        try:
            run = self._open()
            while True:
                kind, value = self._queue.get()
                if kind == "log":
                    run.log(value)
                elif kind == "image":
                    import wandb

                    fidelity, name, image = value
                    picture = wandb.Image(image.movedim(0, -1).clamp(0, 1).mul(255).byte().numpy())
                    run.log({"fidelity": fidelity, name: picture})
                else:
                    run.summary["outcome"] = str(value.outcome)
                    run.summary["reason"] = value.reason[-2000:]
                    run.finish(exit_code=int(value.outcome in (Outcome.FAILED, Outcome.OUT_OF_MEMORY)))
                    self._on_closed(run.settings.mode == "offline")
                    return
        except Exception as error:  # whatever W&B does, the trial goes on
            logger.warning("W&B: trial %s is no longer tracked: %s", self._spec.id, error)

    def _open(self) -> Any:
        import wandb

        spec, settings = self._spec, self._spec.tracking
        mode = settings["mode"]
        if mode == "auto":
            mode = "online" if _has_key() else "offline"
        run = wandb.init(
            id=f"{spec.sweep}-{spec.id}",
            name=f"{spec.sweep}-{spec.id}",
            group=spec.sweep,
            job_type=spec.family,
            tags=[spec.family],
            project=settings["project"],
            entity=settings["entity"],
            config={**spec.config, "params": spec.params, "seed": spec.seed},
            dir=self._folder,
            mode=mode,
            # Offline there is no server to ask, and W&B warns that it cannot.
            resume="allow" if mode == "online" else None,
            # A warm process tracks its next trial while the last one's run is still being closed.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=60,
                disable_git=True,
                disable_code=True,
                x_disable_machine_info=False,
            ),
        )
        run.define_metric("fidelity", hidden=True)
        run.define_metric("*", step_metric="fidelity")
        return run


def open_tracker(spec: TrialSpec, tracked: int, spool: Spool) -> Tracker:
    """The tracker that the sweep's settings ask for.

    Args:
        spec: The trial.
        tracked: The last fidelity that an earlier attempt logged.
        spool: The trial's files on this node: a tracker's are among them if the sweep lies in a store.
    """
    if spec.tracking.get("name") != "wandb":
        return NoTracker()
    home = StorageConfig(**spec.storage).open(spec.tracking["dir"])
    if home.is_local:
        return WandbTracker(spec, tracked, home.root)

    def bring(offline: bool) -> None:
        _bring(Path(spool.folder.path("wandb")), home, offline)
        spool.forget()

    return WandbTracker(spec, tracked, spool.folder.root, bring)


def wait_for_trackers(seconds: float) -> None:
    """Gives the trackers of this process that long to finish."""
    deadline = time.monotonic() + seconds
    for thread in _threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _bring(folder: Path, home: Storage, is_wanted: bool) -> None:
    """Takes W&B's files from this node, those of attempts that were killed too, to their sweep if it wants them."""
    # W&B's own process may still be writing when `finish` has returned.
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline and time.time() - max(p.lstat().st_mtime for p in folder.rglob("*")) < 1:
        time.sleep(0.1)
    for file in sorted(folder.glob("offline-run-*/**/*")) if is_wanted else ():
        if file.is_file():
            home.write_bytes(f"wandb/{file.relative_to(folder)}", file.read_bytes())
    shutil.rmtree(folder)
