"""Ray Tune runs the trials: one actor process a slot, which the next trial reuses, warm.

Tune starts, stops and reuses processes. What to try, when to stop and how a trial ended is the sweep's to say: Tune's
searcher and scheduler are adapters of it, its checkpoints and its own state files are not used.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from pharos.errors import InputError
from pharos.families import ROOT
from pharos.sweep import Sweep
from pharos.trial import Ending, Outcome, Report, trial_id

# Read by Ray when it is imported.
for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables: the console has ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its csv, json and TensorBoard files: metrics.jsonl has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: running trials save first
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its pickled driver state: the study is the only record
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a trial as on the driver
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)

try:
    import ray
    from ray import tune
    from ray.exceptions import OutOfMemoryError
    from ray.tune import Callback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    from pharos.backends.actor import TrialActor
except ImportError as _error:
    raise InputError(
        f"backend=tune needs Ray ({_error}): pip install -c constraints.txt 'pharos-sweeps[tune]', or use backend=local"
    ) from None


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

    def __init__(self, sweep: Sweep, guard: _Guard):
        super().__init__()
        self._sweep = sweep
        self._guard = guard

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self._guard.error or self._sweep.finished:
            return Searcher.FINISHED
        running = sum(r.outcome == Outcome.RUNNING for r in self._sweep.study.records.values())
        with self._guard:
            spec = self._sweep.next_trial() if running < self._sweep.slots else None
            return None if spec is None else {"spec": dataclasses.asdict(spec)}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The sweep hears of it from the trial's own ending."""

    def save(self, checkpoint_path: str) -> None:
        """The study is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is the only state."""


class _SweepScheduler(FIFOScheduler):
    """Asks the sweep whether a trial goes on."""

    def __init__(self, sweep: Sweep, guard: _Guard):
        super().__init__()  # type: ignore[no-untyped-call]
        self._sweep = sweep
        self._guard = guard

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # Tune gives its schedulers results flattened; the callback below has the nested one, but comes later.
        report = _nested(result, "report")
        goes_on = not self._guard.error
        with self._guard:
            if report and goes_on:
                goes_on = self._sweep.on_report(_number(trial), Report(**report))
        return TrialScheduler.CONTINUE if goes_on and not self._guard.error else TrialScheduler.STOP


class _Events(Callback):
    """Tells the sweep of endings and losses, and the trials of an interruption."""

    def __init__(self, sweep: Sweep, guard: _Guard):
        self._sweep = sweep
        self._guard = guard
        self._told: set[str] = set()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "ending" in result:
            ending = result["ending"]
            with self._guard:
                self._sweep.on_end(_number(trial), Ending(**{**ending, "outcome": Outcome(ending["outcome"])}))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error()
        outcome = Outcome.OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else Outcome.FAILED
        reason = str(error).strip().split("\n")[0] if error else "no reason given"
        with self._guard:
            self._sweep.on_lost(_number(trial), reason, outcome)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._sweep.interrupted:
            return
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if actor is not None and trial.trial_id not in self._told:
                self._told.add(trial.trial_id)
                actor.interrupt.remote()


def run_sweep(sweep: Sweep) -> None:
    """Runs a sweep's trials on the cluster that is there, or on a Ray of its own.

    Raises:
        InputError: No trial fits the cluster.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost process is said by the console, in one line
    started = _connect(sweep.settings.resources.cluster_cpus)
    try:
        bundle, slots = _fit(sweep)
        guard = _Guard()
        sweep.open(slots)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots)  # their processes start side by side
        with tempfile.TemporaryDirectory(prefix="pharos-tune-") as scratch:
            tune.run(
                tune.with_resources(TrialActor, tune.PlacementGroupFactory([bundle])),
                name=sweep.name,
                num_samples=-1,
                search_alg=_StudySearcher(sweep, guard),
                scheduler=_SweepScheduler(sweep, guard),
                callbacks=[_Events(sweep, guard)],
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
        if started:
            ray.shutdown()


def _connect(cpus: int | None) -> bool:
    """Joins the cluster that RAY_ADDRESS or this machine has, else starts one; says whether it was started."""
    if ray.is_initialized():
        return False
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address != "local":
        try:
            # The working folder of a submitted job is on a worker's path; its platform/ is not.
            modules = [str(Path(__file__).resolve().parents[1]), str(ROOT / "trainables")]
            variables = {"RAY_CHDIR_TO_TRIAL_DIR": os.environ["RAY_CHDIR_TO_TRIAL_DIR"]}
            ray.init(address, runtime_env={"py_modules": modules, "env_vars": variables}, **common)
            return True
        except ConnectionError as error:
            if "RAY_ADDRESS" in os.environ:
                reason = str(error).strip().split("\n")[0]
                raise InputError(
                    f"RAY_ADDRESS={address}: no Ray cluster there ({reason}); start one, or unset it"
                ) from None
    # Trials put nothing into the object store; without a figure Ray would reserve a third of the memory for it.
    ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 * 2**20, **common)
    return True


def _fit(sweep: Sweep) -> tuple[dict[str, float], int]:
    """What one trial asks for, and how many of it fit the cluster."""
    cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]
    resources = sweep.settings.resources
    if resources.gpus is None:
        resources.gpus = 1.0 if cluster.get("GPU", 0) >= 1 else 0.0
    bundle = {"CPU": float(resources.cpus)} | ({"GPU": resources.gpus} if resources.gpus else {})
    slots = min(int(cluster.get(kind, 0) / amount + 1e-9) for kind, amount in bundle.items())
    if slots < 1:
        raise InputError(
            f"a trial asks for {_amounts(bundle)}, the cluster has "
            f"{_amounts({kind: cluster.get(kind, 0) for kind in bundle})}; lower resources.cpus or resources.gpus"
        )
    return bundle, min(slots, resources.concurrency or slots)


def _amounts(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())


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
