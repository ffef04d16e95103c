"""Ray Tune runs the trials: one actor process a slot, which the next trial reuses, warm.

Tune starts, stops and reuses processes. What to try, when to stop and how a trial ended is the sweep's to say: Tune's
searcher and scheduler are adapters of it, its checkpoints and its own state files are not used.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pharos.backends import eviction, losses
from pharos.backends.actor import TrialActor
from pharos.backends.cluster import Places, connect
from pharos.backends.credentials import credentials
from pharos.resources import Shape
from pharos.schedulers.base import Action
from pharos.sweep import Sweep
from pharos.trial import Ending, Outcome, Report, trial_id

# A trial that has waited so long for room goes before others are asked for: small ones would take it, one by one.
_PATIENCE_SECONDS = 30.0


class _Guard:
    """Holds back an error of the sweep's own (a full disk, say) until Tune has let its trials go.

    Raised inside Tune, it would come out as a traceback in a traceback.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = self.error or error
        return isinstance(error, Exception)


class _StudySearcher(Searcher):
    """Hands the sweep's trials to Tune, as many as there are slots."""

    def __init__(self, sweep: Sweep, guard: _Guard, places: Places):
        super().__init__()
        self._sweep = sweep
        self._guard = guard
        self._places = places
        self._shapes: dict[int, Shape] = {}  # of the trials that are handed out
        self._asked_at: dict[int, float] = {}  # those of them that wait for their processes
        self.yields = False
        """Whether a place that this sweep does not use now is wanted by another job."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self._guard.error or self._sweep.finished:
            return Searcher.FINISHED
        with self._guard:
            running = self._running()
            self._sweep.resize(self._places.look(running))
            spec = self._sweep.next_trial() if self._has_room(running) else None
            self.yields = spec is None and self._places.others_wait
            if spec is None:
                return None
            shape = self._sweep.plan.shape(spec.params)
            self._shapes[spec.number] = shape
            self._asked_at[spec.number] = time.monotonic()
            return {
                "spec": dataclasses.asdict(spec),
                "shape": dataclasses.asdict(shape),
                "hang_seconds": self._sweep.settings.resources.hang_seconds,
            }
        return Searcher.FINISHED

    def on_start(self, number: int) -> None:
        """A trial has its processes."""
        self._asked_at.pop(number, None)

    def _running(self) -> list[Shape]:
        """The shapes of the trials that are handed out."""
        running = self._sweep.study.having(Outcome.RUNNING)
        self._shapes = {number: self._shapes[number] for number in running}
        return list(self._shapes.values())

    def _has_room(self, running: list[Shape]) -> bool:
        resources = self._sweep.settings.resources
        if resources.shapes and not resources.autoscaling:
            now = time.monotonic()
            longest = min((at for number, at in self._asked_at.items() if number in self._shapes), default=now)
            if now - longest > _PATIENCE_SECONDS:
                return False
        return self._places.has_room(running)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The sweep hears of it from the trial's own ending."""

    def save(self, checkpoint_path: str) -> None:
        """The study is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is the only state."""


class _SweepScheduler(FIFOScheduler):
    """Asks the sweep whether a trial goes on; one that is to pause saves first and ends by itself."""

    def __init__(self, sweep: Sweep, guard: _Guard, searcher: _StudySearcher):
        super().__init__()  # type: ignore[no-untyped-call]
        self._sweep = sweep
        self._guard = guard
        self._searcher = searcher

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The newest trial gets the process that has just become free.

        Tune's own choice is the oldest that waits. That one's own process may be starting: Tune would kill it half
        started, and start another for the new trial. With trials that are short beside a start, most processes never
        got to their first trial.
        """
        if self._searcher.yields:
            # Tune keeps one process warm, and with it a place, for a trial that may come.
            tune_controller._cleanup_cached_actors(force_all=True)
        trials = tune_controller.get_trials()
        return trials[-1] if trials and trials[-1].status == trials[-1].PENDING else None

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # Tune gives its schedulers results flattened; the callback below has the nested one, but comes later.
        report = _nested(result, "report")
        action = Action.STOP if self._guard.error else Action.GO_ON
        with self._guard:
            if report and not self._guard.error:
                action = self._sweep.on_report(_number(trial), Report(**report))
        if action == Action.PAUSE:
            trial.temporary_state.ray_actor.interrupt.remote()
        return TrialScheduler.STOP if action == Action.STOP or self._guard.error else TrialScheduler.CONTINUE


class _Events(Callback):
    """Tells the sweep of endings and losses, and the trials of an interruption."""

    def __init__(self, sweep: Sweep, guard: _Guard, searcher: _StudySearcher):
        self._sweep = sweep
        self._guard = guard
        self._searcher = searcher
        self._told: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._searcher.on_start(_number(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "ending" in result:
            ending = result["ending"]
            with self._guard:
                self._sweep.on_end(_number(trial), Ending(**{**ending, "outcome": Outcome(ending["outcome"])}))
        elif "lost" in result:
            with self._guard:
                self._sweep.on_lost(_number(trial), result["lost"]["reason"], Outcome(result["lost"]["outcome"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self._guard:
            error = _error(trial)
            self._sweep.on_lost(
                _number(trial), losses.why(error), losses.outcome_of(error), by_node=losses.is_node_lost(error)
            )

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._sweep.interrupted:
            return
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if actor is not None and trial.trial_id not in self._told:
                self._told.add(trial.trial_id)
                actor.interrupt.remote()


def run_sweep(sweep: Sweep, actor: type[tune.Trainable] = TrialActor) -> None:
    """Runs a sweep's trials on the cluster that is there, or on a Ray of its own.

    Args:
        sweep: Open.
        actor: What runs a trial; `benchmarks/scale.py` has one that does nothing.

    Raises:
        InputError: No trial fits the cluster.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost process is said by the console, in one line
    resources = sweep.settings.resources
    eviction.take_for_losses()
    is_ours = connect(resources.cluster_cpus)
    try:
        places = Places(resources)
        guard = _Guard()
        searcher = _StudySearcher(sweep, guard, places)
        sweep.open(places.slots)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"  # the searcher says how many; they start side by side
        trainable = tune.with_parameters(actor, credentials=credentials())
        with tempfile.TemporaryDirectory(prefix="pharos-tune-") as scratch:
            tune.run(
                tune.with_resources(trainable, _group),
                name=sweep.name,
                num_samples=-1,
                search_alg=searcher,
                scheduler=_SweepScheduler(sweep, guard, searcher),
                callbacks=[_Events(sweep, guard, searcher)],
                storage_path=scratch,
                trial_dirname_creator=lambda trial: f"{trial_id(_number(trial))}-{trial.trial_id}",
                reuse_actors=True,
                max_failures=0,  # the sweep starts lost trials again, so that their count outlives the driver
                raise_on_failed_trial=False,
                verbose=0,
            )
        if guard.error:
            raise guard.error
    finally:
        if is_ours:
            ray.shutdown()


def _group(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial asks for; several workers are led by an actor that asks for nothing."""
    shape = Shape(**config["shape"])
    bundles = [shape.bundle] if shape.workers == 1 else [{}, *[shape.bundle] * shape.workers]
    return tune.PlacementGroupFactory(bundles, strategy=shape.placement.upper())


def _error(trial: Any) -> BaseException:
    """What a trial's process was lost with.

    Tune's `get_pickled_error` looks for it where Tune copies its files to, which it does now and then; this is the file
    that this process has written just now.
    """
    file = trial.pickled_error_file
    if file is None:
        return RuntimeError("no reason given")
    error: BaseException = cloudpickle.loads(Path(file).read_bytes())
    return error


def _number(trial: Any) -> int:
    return int(trial.config["spec"]["number"])


def _nested(result: dict[str, Any], key: str) -> dict[str, Any]:
    """A part of a result that Tune has flattened with '/'."""
    nested: dict[str, Any] = {}
    for name, value in result.items():
        if name.startswith(f"{key}/metrics/"):
            nested.setdefault("metrics", {})[name.removeprefix(f"{key}/metrics/")] = value
        elif name.startswith(f"{key}/"):
            nested[name.removeprefix(f"{key}/")] = value
    return nested
