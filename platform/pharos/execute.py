"""Runs one trial in this process, from its specification to its ending. Every backend ends up here."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pharos.background import Background
from pharos.cache import configure
from pharos.checkpoint import Checkpoint, Checkpoints
from pharos.claim import Claim
from pharos.engines.base import EngineConfig
from pharos.errors import PharosError
from pharos.families import load_recipe
from pharos.pictures import Pictures
from pharos.probe import Probe
from pharos.recipe import build_config
from pharos.retention import Keep
from pharos.retry import redact
from pharos.run import Run
from pharos.saver import Saver
from pharos.spool import Spool, node_folder
from pharos.storage import StorageConfig
from pharos.tracking.tracker import Tracker, open_tracker
from pharos.trial import Ending, Outcome, Report, TrialSpec, TrialStopped
from pharos.world import World, is_lost_link

_TAKE_OVER_SECONDS = 60.0
_CLOSE_SECONDS = 10.0
# One for all trials of this process: a checkpoint that a stopped trial still writes has the line to itself.
_saving = Background("checkpoints")

logger = logging.getLogger(__name__)


def execute(
    spec: TrialSpec,
    on_report: Callable[[Report], None],
    on_run: Callable[[Run], None] = lambda run: None,
    world: World | None = None,
    log: str | None = None,
) -> Ending:
    """Trains a trial, or this worker's share of it, resuming it from its newest checkpoint if it has one.

    Args:
        spec: What to train.
        on_report: Receives each report, after it is on disk; rank 0's only.
        on_run: Receives the run before training starts, so that it can be stopped from elsewhere.
        world: The workers that train it together; all of them call this with the same specification.
        log: A file of the trial that takes what is printed; None leaves it where it is.

    Returns:
        How it ended. An error of the recipe is an ending too; only a lost process has none.
    """
    world = world or World(device=device_for(spec))
    try:
        config = StorageConfig(**spec.storage)
        home = config.open(spec.folder)
        folder = node_folder(home, config.cache)
        names = [*([log] if log else []), *(["metrics.jsonl"] if world.rank == 0 else [])]
        # A killed driver's process may still be at this trial for a moment: two must never write its folder.
        with folder.locked(_TAKE_OVER_SECONDS) if world.rank == 0 else contextlib.nullcontext():
            claim = Claim(home) if world.rank == 0 and not home.is_local else None
            spool = Spool(home, folder, names, config.mirror_seconds, claim)
            with _logging(folder.path(log) if log else None):
                ending = _execute(spec, spool, on_report, on_run, world)
                # A trial that failed may have waited for its store already.
                failed = ending.outcome == Outcome.FAILED
                spool.close(min(config.patience, _CLOSE_SECONDS) if failed else config.patience)
            spool.forget()
        return ending
    except PharosError as error:
        return Ending(Outcome.FAILED, str(error), process=os.getpid(), ended_at=time.time())
    finally:
        _tidy(world.device)


@contextlib.contextmanager
def _logging(path: str | None) -> Iterator[None]:
    """Within the block, what is printed or logged goes to a file; None leaves it where it is."""
    if path is None:
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        handler = logging.StreamHandler(file)
        logging.getLogger("pharos").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("pharos").removeHandler(handler)


def _tidy(device: torch.device) -> None:
    """Frees what a trial has left: engines are full of cycles, and the next trial wants the memory now."""
    gc.collect()
    if not gc.get_freeze_count():
        # What is left after the first trial stays for good: modules, mostly. Walking over it took 0.2 s a trial.
        gc.freeze()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_for(spec: TrialSpec) -> torch.device:
    """Where a worker's learners live."""
    return torch.device("cuda" if spec.gpus != 0 and torch.cuda.is_available() else "cpu")


def _execute(
    spec: TrialSpec,
    spool: Spool,
    on_report: Callable[[Report], None],
    on_run: Callable[[Run], None],
    world: World,
) -> Ending:
    if spec.threads:
        torch.set_num_threads(spec.threads)
    tracker = None
    pictures = Pictures(spool)
    run = None
    lost = 0.0
    link_lost = False
    try:
        saved, attempt = _find(Checkpoints(spool.home.sub("checkpoints")), _donor(spec), spec.id, world)
        if world.rank == 0:
            lost, tracked = _take_up(spool, saved)
            tracker = open_tracker(spec, tracked, spool)

        def report(report: Report) -> None:
            if tracker is None:
                return
            row = {"fidelity": report.fidelity, "seconds": round(report.seconds, 3), **_finite(report.metrics)}
            spool.folder.append_line("metrics.jsonl", json.dumps(row))
            tracker.log(report.fidelity, report.metrics)
            on_report(
                dataclasses.replace(
                    report,
                    metrics={name: value for name, value in report.metrics.items() if math.isfinite(value)},
                    lost_seconds=lost,
                    process=os.getpid(),
                    started_at=run.started_at if run else 0.0,
                )
            )

        run = Run(
            seed=spec.seed,
            world=world,
            objective=spec.objective,
            watched=spec.watched,
            on_report=report,
            on_image=_show(tracker, pictures),
            on_histogram=tracker.histogram if tracker and spec.tracking.get("gradients") else None,
            saver=_saver(spec, spool, world, attempt),
            saved=saved,
            rescue=None if spool.home.is_local else spool.folder.sub("checkpoints"),
            checkpoint_seconds=spec.checkpoint_seconds,
            engine=EngineConfig(**spec.engine),
            probe=Probe(spec.probe, world) if spec.probe is not None else None,
        )
        on_run(run)
        configure(StorageConfig(**spec.storage))
        recipe = load_recipe(spec.family)
        recipe.train(run, build_config(recipe.Config, spec.config))
        run.check_loops()
        run.finish()
        for metric in (spec.objective, *spec.watched):
            if metric not in run.metrics:
                what = "its objective" if metric == spec.objective else "what the search watches,"
                raise PharosError(
                    f"{spec.family} never reported {what} {metric}; "
                    f"it reported {', '.join(sorted(run.metrics)) or 'nothing'}"
                )
        outcome, reason = Outcome.COMPLETE, ""
    except TrialStopped as stop:
        outcome, reason = stop.outcome, stop.reason
    except (torch.OutOfMemoryError, MemoryError) as error:
        outcome, reason = Outcome.OUT_OF_MEMORY, str(error).split("\n")[0]
    except PharosError as error:
        outcome, reason = Outcome.FAILED, str(error)
    except Exception as error:
        # A recipe may well stumble over its own non-finite numbers before it reports them.
        diverged = run.divergence() if run else None
        link_lost = world.size > 1 and is_lost_link(error)
        if diverged is not None:
            outcome, reason = diverged.outcome, diverged.reason
        else:
            outcome, reason = Outcome.FAILED, redact(traceback.format_exc())
            logger.error("trial %s failed\n%s", spec.id, reason)
    ending = Ending(
        outcome=outcome,
        reason=reason,
        fidelity=run.fidelity if run else 0,
        metrics=_finite(run.metrics) if run else {},
        seconds=run.seconds if run else 0.0,
        lost_seconds=lost,
        process=os.getpid(),
        started_at=run.started_at if run else 0.0,
        ended_at=time.time(),
        is_lost_link=link_lost,
        probe=run.probe.found() if run and run.probe else {},
    )
    pictures.close()
    if tracker is not None:
        tracker.finish(ending)
    if run is not None:
        run.close()
    return ending


def _show(tracker: Tracker | None, pictures: Pictures) -> Callable[[int, str, Tensor], None]:
    """What takes a recipe's pictures; those of other workers than the first go nowhere."""

    def show(fidelity: int, name: str, image: Tensor) -> None:
        if tracker is not None:
            tracker.image(fidelity, name, image)
            pictures.keep(name, image)

    return show


def _saver(spec: TrialSpec, spool: Spool, world: World, attempt: str) -> Saver:
    config = StorageConfig(**spec.storage)
    return Saver(
        Checkpoints(spool.home.sub("checkpoints")),
        world,
        keep=Keep(config.keep_last, config.keep_best, config.keep_every, spec.mode),
        attempt=attempt,
        patience=config.patience,
        before_commit=spool.mirror,
        background=_saving,
    )


def _donor(spec: TrialSpec) -> Checkpoints | None:
    """The checkpoints of the trial that a trial starts from, if from one."""
    if spec.origin is None:
        return None
    return Checkpoints(StorageConfig(**spec.storage).open(spec.origin).sub("checkpoints"))


def _find(
    checkpoints: Checkpoints, donor: Checkpoints | None, name: str, world: World
) -> tuple[Checkpoint | None, str]:
    """The checkpoint to go on from, the one that rank 0 finds, and a word for this attempt: the same on all workers."""
    newest = None
    if world.rank == 0:
        checkpoints.remove_stale()
        newest = checkpoints.newest()
        if donor is not None:
            donor.release_all(name)  # an attempt that died may have left a hold
        if newest is None and donor is not None:
            if donor.copy_newest(checkpoints, name):
                newest = checkpoints.newest()
            else:
                logger.warning("there is no checkpoint in %s yet; starting from nothing", donor.storage.root)
    place, attempt = world.gather(((newest.step, newest.name) if newest else None, secrets.token_hex(4)))[0]
    return checkpoints.at(*place) if place and newest is None else newest, attempt


def _take_up(spool: Spool, saved: Checkpoint | None) -> tuple[float, int]:
    """Prepares a trial's folder for going on from a checkpoint.

    Rows of `metrics.jsonl` past the checkpoint are dropped: those epochs run again, to the same numbers.

    Returns:
        The seconds that were trained past the checkpoint and lost, and the last fidelity that had been reported.
    """
    fidelity, saved_seconds = (saved.step, saved.state["seconds"]) if saved else (0, 0.0)
    lines = spool.folder.read_lines("metrics.jsonl")
    rows = [json.loads(line) for line in lines]
    if not rows:
        spool.folder.remove("metrics.jsonl")  # it may hold a torn line
        return 0.0, 0
    kept = [line for line, row in zip(lines, rows, strict=True) if row["fidelity"] <= fidelity]
    spool.replace("metrics.jsonl", "".join(f"{line}\n" for line in kept).encode())
    last = rows[-1]
    # What an orderly stop saved is not lost, though its row was rounded.
    lost = max(0.0, last["seconds"] - saved_seconds) if last["fidelity"] > fidelity else 0.0
    return lost, last["fidelity"]


def _finite(metrics: dict[str, float]) -> dict[str, Any]:
    """Metrics as JSON has them: null for what is not a finite number."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
