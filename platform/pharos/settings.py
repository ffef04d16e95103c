"""A sweep's settings, apart from the recipe's own, and what contradicts in them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pharos.engines.base import PRECISIONS, EngineConfig
from pharos.errors import InputError
from pharos.families import suggest
from pharos.notify import NotifyConfig
from pharos.rdb import check_rdb
from pharos.resources import PLACEMENTS, ResourcesConfig
from pharos.schedulers.choice import SchedulerConfig
from pharos.search.objective import Constraint, Objectives, parse_constraints, parse_objectives
from pharos.search.samplers import SamplerConfig
from pharos.storage import StorageConfig, check_options


@dataclass
class StudyConfig:
    """Where the study is kept."""

    storage: str | None = None


@dataclass
class TrackingConfig:
    """Where trials are shown."""

    name: str = "none"
    mode: str = "auto"
    project: str = "pharos"
    entity: str | None = None
    sweep: str = "attach"
    gradients: bool = False

    def to_dict(self, folder: str) -> dict[str, Any]:
        """As a trial needs it, with the folder that a tracker's own files go to."""
        return {**dataclasses.asdict(self), "dir": folder}


@dataclass
class Settings:
    """A sweep's settings, apart from the recipe's own. The files in `conf/` say what each is for."""

    family: str = MISSING
    scale: str = "small"
    space: str = "default"
    trials: int = 16
    hours: float | None = None
    gpu_hours: float | None = None
    stop_at: float | None = None
    plateau: int | None = None
    breaker: int = 3
    warm_start: Any = field(default_factory=list)
    seed: int = 0
    backend: str = "tune"
    retries: int = 2
    checkpoint_seconds: float = 20.0
    objective: Any = None
    constraints: Any = None
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)

    def __post_init__(self) -> None:
        choices = {
            "backend": (self.backend, ("tune", "local")),
            "tracking.name": (self.tracking.name, ("wandb", "none")),
            "tracking.mode": (self.tracking.mode, ("auto", "online", "offline")),
            "tracking.sweep": (self.tracking.sweep, ("attach", "prior_runs", "group")),
            "engine.name": (self.engine.name, ("torch", "deepspeed")),
            "engine.precision": (self.engine.precision, tuple(PRECISIONS)),
            "resources.placement": (self.resources.placement, PLACEMENTS),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise InputError(f"{name}={value}: {suggest(value, allowed)}")
        least: dict[str, tuple[float | None, float]] = {
            "trials": (self.trials, 1),
            "plateau": (self.plateau, 1),
            "breaker": (self.breaker, 0),
            "retries": (self.retries, 0),
            "checkpoint_seconds": (self.checkpoint_seconds, 0),
            "storage.patience": (self.storage.patience, 1),
            "storage.mirror_seconds": (self.storage.mirror_seconds, 0.1),
            "storage.keep_last": (self.storage.keep_last, 1),
            "storage.keep_best": (self.storage.keep_best, 0),
            "storage.keep_every": (self.storage.keep_every, 0),
            "storage.keep_trials": (self.storage.keep_trials, 1),
            "storage.cache_gb": (self.storage.cache_gb, 0),
            "engine.zero": (self.engine.zero, 0),
            "engine.accumulation": (self.engine.accumulation, 1),
            "resources.workers": (self.resources.workers, 1),
            "resources.cpus_per_worker": (self.resources.cpus_per_worker, 1),
            "resources.gpus_per_worker": (self.resources.gpus_per_worker, 0),
            "resources.hang_seconds": (self.resources.hang_seconds, 1),
            "resources.concurrency": (self.resources.concurrency, 1),
            "resources.cluster_cpus": (self.resources.cluster_cpus, 1),
        }
        for name, (number, low) in least.items():
            if number is not None and number < low:
                raise InputError(f"{name}={number}: must be at least {low:g}")
        for name, number in (("hours", self.hours), ("gpu_hours", self.gpu_hours)):
            if number is not None and number <= 0:
                raise InputError(f"{name}={number:g}: must be above 0")
        objectives = parse_objectives(self.objective or {"metric": MISSING})
        # Given as a mapping or a list, kept as a list.
        self.objective = [dataclasses.asdict(each) for each in objectives]
        self.constraints = {bound.metric: f"{bound.operator} {bound.bound!r}" for bound in self.bounds}
        self.scheduler.check(len(objectives))
        self.sampler.check(len(objectives))
        self.notify.check()
        if len(objectives) > 1 and self.stop_at is not None:
            raise InputError("stop_at is for one objective; with several, plateau=… stops when the front stands still")
        if self.warm_start != "auto" and not isinstance(self.warm_start, list):
            raise InputError(f"warm_start={self.warm_start}: write warm_start=auto, or names as [SWEEP, SWEEP]")
        if self.study.storage:
            check_rdb(self.study.storage)
        check_options(self.storage.options)
        self._check_workers()

    @property
    def objectives(self) -> Objectives:
        """What the search compares."""
        return parse_objectives(self.objective)

    @property
    def bounds(self) -> list[Constraint]:
        """What trials have to keep."""
        return parse_constraints(self.constraints or {})

    @property
    def devices(self) -> float:
        """GPUs, else CPU cores, of a trial of the usual shape."""
        return self.resources.shape.devices

    def _check_workers(self) -> None:
        """Refuses what several workers, or an engine, cannot do."""
        self.resources.check()
        workers = max(shape.workers for shape in self.resources.all_shapes)
        if workers > 1 and self.backend == "local":
            raise InputError(f"resources.workers={workers} needs backend=tune: backend=local is this process alone")
        if self.engine.zero > 3:
            raise InputError(f"engine.zero={self.engine.zero}: ZeRO has the stages 0, 1, 2 and 3")
        if self.tracking.gradients and (self.engine.name != "torch" or self.tracking.name != "wandb"):
            raise InputError("tracking.gradients=true needs tracking=wandb and engine=torch: DeepSpeed keeps none")
        if self.engine.name == "torch" and (self.engine.zero or self.engine.offload or self.engine.config):
            raise InputError("engine.zero, engine.offload and engine.config are DeepSpeed's: add engine=deepspeed")
        if self.engine.name == "deepspeed" and self.engine.precision == "fp16" and not self.engine.zero:
            raise InputError("engine.precision=fp16 needs engine.zero=1, 2 or 3; without ZeRO take engine=torch")
        if self.engine.offload and not self.engine.zero:
            raise InputError("engine.offload needs engine.zero=1, 2 or 3: without ZeRO the optimiser stays where it is")
