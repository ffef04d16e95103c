"""A trial's run in Weights & Biases, tracked from the trial's own process without ever making it wait.

Everything that talks to W&B happens in a thread of its own: opening a run takes most of a second and a network may
take for ever. A run is opened online once W&B answers; if it has not by the trial's end, it is spooled on disk, and
`pharos.tracking.sync` sends it later. That all of a trial is there is what its marker says, `wandb/<trial>.sent` in the
sweep's folder.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import math
import netrc
import os
import queue
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from pharos.errors import StorageError
from pharos.spool import Spool
from pharos.storage import Storage, StorageConfig
from pharos.trial import Ending, Outcome, TrialSpec

logger = logging.getLogger(__name__)

PAGE = "wandb/sweep.json"
"""In a sweep's folder: W&B's own id of the sweep, its address, or why it has none."""

_PAGE_SECONDS = 15.0  # how long a run waits for its sweep's page, so that it can join it
_ANSWER_SECONDS = 5.0  # after which W&B does not answer
_AGAIN_SECONDS = 5.0  # between two tries to open a run
_OPEN_SECONDS = 60.0  # that opening may take with a W&B that answers
_FINISH_SECONDS = 120.0  # of uploading after the trial's end
_SETTLE_SECONDS = 20.0
_TAIL = (
    "query RunResumeStatus($project: String, $entity: String, $name: String!) { model(name: $project, "
    "entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail } } }"
)
_PROJECT = (
    "query EntityAndProject($entity: String!, $project: String!) { entity(name: $entity) { id } "
    "project(name: $project, entityName: $entity) { id } }"
)
_BINS = 64
_FAILED = (Outcome.FAILED, Outcome.OUT_OF_MEMORY)
_UNFINISHED = (Outcome.INTERRUPTED, Outcome.PAUSED)


class WandbTracker:
    """One W&B run a trial. The same run goes on when the trial is resumed.

    Args:
        spec: The trial.
        tracked: The last fidelity that an earlier attempt reported.
        rows: What is kept of the reports of earlier attempts: where the run goes on, those that W&B lacks are sent.
        spool: The trial's files on this node.
    """

    def __init__(self, spec: TrialSpec, tracked: int, rows: list[dict[str, Any]], spool: Spool):
        self._spec = spec
        self._tracked = tracked
        self._rows = rows
        self._spool = spool
        self._home = StorageConfig(**spec.storage).open(spec.tracking["dir"])
        self._folder = self._home.root if self._home.is_local else spool.folder.root
        self.is_online = is_online(spec.tracking["mode"])
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._has_ended = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"wandb-{spec.id}", daemon=True)
        self.thread.start()

    def log(self, fidelity: int, metrics: dict[str, float]) -> None:
        self._queue.put(("log", (fidelity, metrics)))

    def image(self, fidelity: int, name: str, image: Tensor) -> None:
        self._queue.put(("image", (fidelity, name, image.detach().cpu())))

    def histogram(self, fidelity: int, name: str, values: Tensor) -> None:
        # Counted where the values are: only the counts leave the device.
        values = values.float().flatten()
        low, high = (float(edge) for edge in values.aminmax())
        if math.isfinite(low) and math.isfinite(high):
            counts = torch.histc(values, _BINS, low, high)
            self._queue.put(("histogram", (fidelity, name, (counts.cpu().numpy(), np.linspace(low, high, _BINS + 1)))))

    def finish(self, ending: Ending) -> None:
        self._queue.put(("finish", ending))
        self._has_ended.set()

    def _work(self) -> None:
        try:
            with contextlib.suppress(StorageError):
                self._home.remove(marker(self._spec.id))
            run = self._open()
            # Rows that come later may repeat one of the attempt before: what W&B knew at first decides.
            known = known_fidelity(run, self._tracked)
            log_rows(run, self._rows, known)
            while True:
                kind, value = self._queue.get()
                if kind == "finish":
                    break
                fidelity = value[0]
                if fidelity <= known:
                    continue
                if kind == "log":
                    log_rows(run, [{"fidelity": fidelity, **value[1]}], known)
                else:
                    import wandb

                    shown = wandb.Image(pixels(value[2])) if kind == "image" else wandb.Histogram(np_histogram=value[2])
                    run.log({"fidelity": fidelity, value[1]: shown})
            was_sent = finish_run(run, value.outcome, value.reason)
            if was_sent:
                self._home.write_bytes(marker(self._spec.id), b"")
            if not self._home.is_local:
                _bring(Path(self._folder, "wandb"), self._home, is_wanted=not was_sent)
                self._spool.forget()
        except Exception as error:  # whatever W&B does, the trial goes on
            logger.warning("W&B: trial %s is no longer tracked: %s", self._spec.id, _line(error))

    def _open(self) -> Any:
        """The run: online as soon as W&B answers, spooled if it does not before the trial ends."""
        if not self.is_online:
            return open_run(self._spec, self._folder, "offline", None)
        # A run that was opened in vain cannot be opened again by the same process (wandb 0.31: "in use").
        while trouble := refusal():
            if self._has_ended.wait(_AGAIN_SECONDS):
                logger.warning("W&B: trial %s is spooled, to be sent later: %s", self._spec.id, trouble)
                return open_run(self._spec, self._folder, "offline", self._page(0))
        return open_run(self._spec, self._folder, "online", self._page())

    def _page(self, seconds: float = _PAGE_SECONDS) -> str | None:
        """W&B's id of the sweep, which its driver asks for as the first trials start."""
        if self._spec.tracking.get("sweep", "group") != "attach":
            return None
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(StorageError, FileNotFoundError):
                identity: str | None = json.loads(self._home.read_bytes(PAGE))["id"]
                return identity
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.5)


def open_run(spec: TrialSpec, folder: str, mode: str, page: str | None) -> Any:
    """Opens a trial's run.

    Args:
        spec: The trial.
        folder: Where W&B keeps its own files.
        mode: online or offline.
        page: W&B's id of the sweep that it joins, if of one.

    Raises:
        Exception: Of W&B's many, when it does not answer, or does not take the key.
    """
    import wandb

    tracking = spec.tracking
    run = wandb.init(
        id=run_id(spec.sweep, spec.id),
        name=run_id(spec.sweep, spec.id),
        group=spec.sweep,
        job_type=spec.family,
        tags=[spec.family],
        project=tracking["project"],
        entity=tracking["entity"],
        config={**spec.config, "params": spec.params, "seed": spec.seed},
        dir=folder,
        mode=mode,  # type: ignore[arg-type]
        # Offline there is no server to ask, and W&B warns that it cannot.
        resume="allow" if mode == "online" else None,
        # A warm process tracks its next trial while the last one's run is still being closed.
        reinit="create_new",
        settings=wandb.Settings(
            # Of this run alone: process-wide it would have the sweep choose the run's id.
            sweep_id=page,
            silent=True,
            console="off",
            init_timeout=_OPEN_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            disable_git=True,
            disable_code=True,
            x_disable_machine_info=False,
        ),
    )
    run.define_metric("fidelity", hidden=True)
    run.define_metric("*", step_metric="fidelity")
    return run


def known_fidelity(run: Any, tracked: int = 0) -> int:
    """The last fidelity that need not be sent: what W&B has of a run that goes on, else what was `tracked` before.

    Raises:
        OSError: W&B does not answer.
    """
    if run.settings.mode == "offline":
        return tracked
    if not run.resumed:
        return 0
    return last_fidelity(run.project, run.entity, run.id) or 0


def last_fidelity(project: str, entity: str | None, identity: str) -> int | None:
    """The last fidelity that W&B has of a run; None if it does not have the run.

    What counts are the rows: the run's summary is missing where its process was killed.

    Raises:
        OSError: W&B does not answer.
    """
    found = _ask(_TAIL, {"project": project, "entity": entity, "name": identity}, _OPEN_SECONDS)
    bucket = (found.get("model") or {}).get("bucket")
    if bucket is None:
        return None
    rows = map(json.loads, json.loads(bucket["historyTail"]))
    return max((int(row["fidelity"]) for row in rows if "fidelity" in row), default=0)


def log_rows(run: Any, rows: Iterable[Mapping[str, Any]], known: int) -> None:
    """Sends the rows past a fidelity."""
    for row in rows:
        if row["fidelity"] > known:
            metrics = {name: value for name, value in row.items() if value is not None and name != "seconds"}
            run.log({name: value for name, value in metrics.items() if math.isfinite(value)})


def finish_run(run: Any, outcome: Outcome, reason: str) -> bool:
    """Ends a run with how its trial ended; whether W&B has all of it.

    A trial that is to go on leaves a run that W&B calls preempted; one that failed, a failed one.
    """
    run.summary["outcome"] = str(outcome)
    run.summary["reason"] = reason[-2000:]
    if outcome in _UNFINISHED:
        run.mark_preempting()
    try:
        run.finish(exit_code=int(outcome in _FAILED or outcome in _UNFINISHED))
    except TimeoutError:
        return False
    return bool(run.settings.mode != "offline")


def run_id(sweep: str, trial: str) -> str:
    """W&B's id of a trial's run."""
    return f"{sweep}-{trial}"


def marker(trial: str) -> str:
    """In a sweep's folder: W&B has all of this trial."""
    return f"wandb/{trial}.sent"


def pixels(image: Tensor) -> Any:
    """A picture as W&B and Pillow take it: (height, width, 3) bytes from (3, height, width) in [0, 1]."""
    return image.movedim(0, -1).clamp(0, 1).mul(255).byte().numpy()


def is_online(mode: str) -> bool:
    """Whether W&B is to be asked: `auto` does where there is a key."""
    return mode == "online" or (mode == "auto" and has_key())


def has_key() -> bool:
    """Whether there is a key, in the environment or in `~/.netrc`."""
    return bool(_key())


def refusal(seconds: float = _ANSWER_SECONDS) -> str:
    """Why W&B takes nothing now, in one line; empty if it answers and knows the key."""
    try:
        return "" if _ask("query Viewer { viewer { id } }", {}, seconds).get("viewer") else "it does not know the key"
    except (OSError, ValueError, HTTPException) as error:
        return f"it does not answer: {_line(error)}"


@dataclass(frozen=True)
class Whereabouts:
    """Where runs would go.

    Attributes:
        url: W&B's.
        trouble: Why nothing can go there; empty if it can.
        entity: Whose the project is.
        has_project: Whether it is there; W&B makes one that is not.
    """

    url: str
    trouble: str = ""
    entity: str = ""
    has_project: bool = False


def find_project(entity: str | None, project: str, seconds: float) -> Whereabouts:
    """Asks W&B who the key is of, and for a project, and makes nothing there.

    Args:
        entity: Whose the project is; None: the key's own default.
        project: Its name.
        seconds: For each of two answers.
    """
    url = _base_url()
    try:
        viewer = _ask("query Viewer { viewer { id entity } }", {}, seconds).get("viewer")
        if not viewer:
            return Whereabouts(url, "it does not know the key")
        entity = entity or str(viewer.get("entity") or "")
        found = _ask(_PROJECT, {"entity": entity, "project": project}, seconds)
    except urllib.error.HTTPError as error:
        refused = error.code in (401, 403)
        return Whereabouts(url, "it refuses the key" if refused else f"it does not answer: {_line(error)}")
    except (OSError, ValueError, HTTPException) as error:
        return Whereabouts(url, f"it does not answer: {_line(error)}")
    if not found.get("entity"):
        return Whereabouts(url, f"there is no entity {entity}, or the key may not see it")
    return Whereabouts(url, entity=entity, has_project=bool(found.get("project")))


def _ask(query: str, variables: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What W&B answers to a query."""
    credentials = base64.b64encode(f"api:{_key()}".encode()).decode()
    request = urllib.request.Request(
        f"{_base_url()}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {credentials}"},
    )
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        data: dict[str, Any] = json.load(answer).get("data") or {}
    return data


def _base_url() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def _key() -> str:
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    try:
        found = netrc.netrc().authenticators(urlsplit(_base_url()).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return ""
    return found[2] if found else ""


def abandon() -> None:
    """Ends W&B's own process, which would hold up the end of this one for as long as W&B does not answer.

    What it has not sent lies in its spool.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().rpartition(") ")
            if name.endswith("(wandb-core") and int(rest.split()[1]) == os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)
    if "wandb" in sys.modules:
        try:
            sys.modules["wandb"].teardown()
        except Exception as error:  # that its process is gone, which is what was wanted
            logger.debug("W&B: %s", _line(error))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _bring(folder: Path, home: Storage, is_wanted: bool) -> None:
    """Takes W&B's files from this node, those of attempts that were killed too, to their sweep if it wants them."""
    # W&B's own process may still be writing when `finish` has returned.
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline and time.time() - max(p.lstat().st_mtime for p in folder.rglob("*")) < 1:
        time.sleep(0.1)
    for file in sorted(folder.glob("*run-*/**/*")) if is_wanted else ():
        if file.is_file():
            home.write_bytes(f"wandb/{file.relative_to(folder)}", file.read_bytes())
    shutil.rmtree(folder)
