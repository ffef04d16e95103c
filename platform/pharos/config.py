"""Composes a sweep's configuration with Hydra and hands it on as plain dataclasses and dicts.

Hydra composes and does nothing else. Nothing of it crosses a process border.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import json
import logging
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import CategoricalDistribution

from pharos.cache import configure
from pharos.engines.base import PRECISIONS, EngineConfig
from pharos.errors import InputError
from pharos.families import ROOT, load_recipe, space_file, suggest
from pharos.notify import NotifyConfig, check_no_url
from pharos.recipe import Recipe, build_config, typed
from pharos.schedulers.choice import SchedulerConfig
from pharos.search.objective import Constraint, Objectives, parse_constraints, parse_objectives
from pharos.search.samplers import SamplerConfig
from pharos.space import Dimension, Params, Space, parse_dimension, parse_space
from pharos.storage import StorageConfig, check_options
from pharos.study import check_rdb
from pharos.trial import TrialSpec

T = TypeVar("T")

LIMITS = ("hours", "gpu_hours", "stop_at", "plateau", "breaker")
_HOW = ("retries", "checkpoint_seconds", "resources.", "tracking.", "storage.", "study.storage")
SEED = "seed"
"""The name of a dimension that is no value of the recipe: finalists are trained on several seeds."""
SWEEP_OVERRIDES = ("trials", "backend", "notify.", *LIMITS, *_HOW)
"""What may change when a sweep is resumed or extended."""
RUN_OVERRIDES = ("seed", *_HOW, "engine.")
"""What may change when a sweep's trial is trained again, or a run goes on."""

# What exists changes its engine by name as a new sweep chooses one; precision and accumulation stay.
_ENGINES = {
    "engine=torch": ["engine.name=torch", "engine.zero=0", "engine.offload=false", "engine.config=null"],
    "engine=deepspeed": ["engine.name=deepspeed", "engine.zero=1"],
}
_SPACE_KEYS: dict[str, type | tuple[type, ...]] = {
    "objective": (dict, list),
    "space": dict,
    "first_trials": list,
    "constraints": dict,
}


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
class ResourcesConfig:
    """What a trial gets, and how many run at once."""

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None
    placement: str = "pack"
    hang_seconds: float = 600.0
    concurrency: int | None = None
    cluster_cpus: int | None = None


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
            "resources.placement": (self.resources.placement, ("pack", "strict_pack", "spread")),
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
        """GPUs, else CPU cores, of a trial."""
        return (self.resources.gpus_per_worker or self.resources.cpus_per_worker) * self.resources.workers

    def _check_workers(self) -> None:
        """Refuses what several workers, or an engine, cannot do."""
        gpus, workers = self.resources.gpus_per_worker or 0, self.resources.workers
        if workers > 1 and self.backend == "local":
            raise InputError(f"resources.workers={workers} needs backend=tune: backend=local is this process alone")
        if gpus != int(gpus) and (workers > 1 or gpus > 1):
            raise InputError(f"resources.gpus_per_worker={gpus:g}: only trials of one worker can share a GPU")
        if gpus > 1:
            raise InputError(f"resources.gpus_per_worker={gpus:g}: a worker uses one GPU; ask for more workers instead")
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


@dataclass
class _Schema(Settings):
    """What Hydra composes: the settings, and the recipe's own configuration with its own types."""

    recipe: Any = None


@dataclass(frozen=True)
class Plan:
    """A whole sweep, resolved: what `sweep.yaml` holds and what the driver works from."""

    settings: Settings
    recipe: Recipe
    config: dict[str, Any]
    """The recipe's configuration, searched values at their defaults."""
    space: Space
    first_trials: list[Params]
    generation: int = 0
    """How often the space was changed since the sweep began."""
    finalists: dict[str, Any] | None = None
    """Where the trials come from, if they are finalists: `sweep`, and `trials`, with trial, values and params each."""

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The configuration's values by full override name, and the seed, which a dimension may be of."""
        return {**flatten(self.config, "recipe."), SEED: self.settings.seed}

    def is_paper_trial(self, params: Params) -> bool:
        """Whether these are the recipe's own values."""
        return all(self.defaults[name] == value for name, value in params.items())

    def trial_config(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's configuration with a trial's values in place."""
        config = copy.deepcopy(self.config)
        for name, value in params.items():
            if name != SEED:
                *groups, last = name.removeprefix("recipe.").split(".")
                functools.reduce(operator.getitem, groups, config)[last] = value
        return config

    @functools.cached_property
    def _typed(self) -> DictConfig:
        """The configuration with the recipe's types: made once, as it takes five times as long as a copy of it."""
        return typed(self.recipe.Config, self.config)

    def build_config(self, params: Mapping[str, Any] | None = None) -> Any:
        """The recipe's typed configuration.

        Raises:
            InputError: The values contradict its types or its own rules.
        """

        def build() -> Any:
            config = copy.deepcopy(self._typed)
            for name, value in (params or {}).items():
                if name != SEED:
                    OmegaConf.update(config, name.removeprefix("recipe."), value)
            return OmegaConf.to_object(config)

        return _in_one_line(build)

    def trial_spec(
        self,
        sweep: str,
        number: int,
        params: Params,
        *,
        folder: str,
        tracking_folder: str,
        origin: str | None = None,
    ) -> TrialSpec:
        """What a process needs to train these values.

        Args:
            sweep: Name of the sweep, or of the run.
            number: The trial's.
            params: Its searched values.
            folder: URL of its own folder.
            tracking_folder: Where a tracker's own files go.
            origin: Folder of the trial that it starts from, if from one.
        """
        settings = self.settings
        objectives = settings.objectives
        return TrialSpec(
            sweep=sweep,
            number=number,
            family=settings.family,
            params=params,
            config=self.trial_config(params),
            seed=params.get(SEED, settings.seed),
            folder=folder,
            max_fidelity=self.recipe.fidelity(self.build_config(params)),
            objective=objectives.first.metric,
            checkpoint_seconds=settings.checkpoint_seconds,
            threads=settings.resources.cpus_per_worker,
            gpus=settings.resources.gpus_per_worker,
            engine=dataclasses.asdict(settings.engine),
            tracking=settings.tracking.to_dict(tracking_folder),
            storage=dataclasses.asdict(settings.storage),
            mode=objectives.first.mode,
            watched=[*objectives.metrics[1:], *(bound.metric for bound in settings.bounds)],
            origin=origin,
        )

    def to_dict(self) -> dict[str, Any]:
        """As `sweep.yaml` has it."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "recipe": self.config,
            "space": self.space.to_dict(),
            "first_trials": self.first_trials,
            "generation": self.generation,
            **({"finalists": self.finalists} if self.finalists else {}),
        }


def make_plan(family: str, overrides: Sequence[str], *, searches: bool = True) -> Plan:
    """A new sweep's plan from what was typed.

    Args:
        family: Its name.
        overrides: Hydra overrides; `data.` is short for `recipe.data.`, and a range of a `recipe.` value makes it
            a dimension of the search.
        searches: Whether something has to be left to search.

    Raises:
        InputError: Anything at all is wrong with them.
    """
    check_no_url(overrides)
    recipe = load_recipe(family)
    # Typed twice, the last one counts, be it a range or a value.
    typed = list({text.split("=")[0]: text for text in map(_expand, overrides)}.values())
    swept, plain = _split_sweeps(typed)
    scale, space_name = _value_of(plain, "scale", "small"), _value_of(plain, "space", "default")
    if scale not in recipe.scales:
        raise InputError(f"scale={scale}: {suggest(scale, recipe.scales)}")
    path = space_file(family, space_name)
    document = _read_space_file(path)
    typed_first = _typed_first_trials(plain)
    plain = [text for text in plain if not text.startswith("first_trials=")]
    objective = document["objective"]
    if isinstance(objective, dict):
        objective = {"mode": "min", "reference": None, **objective}
    elif any(text.startswith("objective.") for text in plain):
        raise InputError("there are several objectives: write all of them, as objective=[{metric: NAME, mode: min}, …]")

    composed = _compose(
        family,
        recipe,
        [f"family={family}"]
        # What is typed whole takes the file's place: a list does not merge with a mapping, nor one name with another.
        + [f"objective={quote(objective)}"] * (not any(text.startswith("objective=") for text in plain))
        + [f"constraints={quote(document['constraints'])}"]
        * (bool(document["constraints"]) and not any(text.startswith("constraints=") for text in plain))
        + [f"recipe.{name}={quote(value)}" for name, value in recipe.scales[scale].items()]
        + [each for text in plain for each in _opened(text)],
    )
    container = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(container, dict)
    config = container.pop("recipe")
    settings = _in_one_line(lambda: build_config(Settings, {str(key): value for key, value in container.items()}))
    if MISSING in settings.objectives.metrics:
        raise InputError("objective: none is given; such as {metric: accuracy, mode: max}")

    settings.scheduler.check_used()
    settings.notify.check_used()
    settings.engine = _with_file(settings.engine)
    if settings.tracking.name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError("tracking=wandb needs wandb: pip install -c constraints.txt wandb, or use tracking=none")
    names = flatten(config, "recipe.")
    pinned = [text.split("=")[0].lstrip("+~") for text in plain]
    space = parse_space(document["space"], path.name).with_overrides(swept, pinned)
    for dimension in space.dimensions:
        for name in (dimension.name, *dimension.when):
            if name not in names:
                raise InputError(f"{name} is not a value of {family}; {suggest(name, names)}")
    if searches and not len(space):
        raise InputError("nothing is left to search: every dimension has a fixed value")
    wanted = [{}, *document["first_trials"]] if typed_first is None else typed_first
    first = [space.first_trial({k: v for k, v in values.items() if k not in pinned}, names) for values in wanted]
    distinct = [params for index, params in enumerate(first) if params not in first[:index]]
    if settings.sampler.name == "grid":
        settings.trials = min(settings.trials, _grid_size(space, names, settings.sampler.points, distinct))
    plan = Plan(settings, recipe, config, space, distinct)
    for params in [{}, *distinct]:
        plan.build_config(params)
    configure(settings.storage)
    recipe.check(plan.build_config())
    return plan


def reopen_plan(
    document: Mapping[str, Any],
    overrides: Sequence[str],
    allowed: tuple[str, ...] = SWEEP_OVERRIDES,
    extend: bool = False,
) -> Plan:
    """The plan of a sweep that exists, from its `sweep.yaml`.

    Args:
        document: What `Plan.to_dict` gave.
        overrides: Changes to how it runs; what is searched stays, unless it is extended.
        allowed: Names, or beginnings of names, that may be changed.
        extend: Whether dimensions may be changed, too: a range replaces or adds one, a value leaves it no other.

    Raises:
        InputError: An override would change what may not change, or is malformed.
    """
    check_no_url(overrides)
    check_no_url(f"notify.{name}={value}" for name, value in document["settings"].get("notify", {}).items())
    overrides = [each for text in overrides for each in _ENGINES.get(text, [text])]
    searched = [_expand(text) for text in overrides if extend and _expand(text).startswith("recipe.")]
    overrides = [text for text in overrides if _expand(text) not in searched]
    for text in overrides:
        name = text.split("=")[0]
        if not any(name == a or (a.endswith(".") and name.startswith(a)) for a in allowed) or "=" not in text:
            raise InputError(
                f"{text}: what exists keeps its configuration; only "
                f"{', '.join(a + '*' * a.endswith('.') for a in allowed)} can change"
            )
    total = document["settings"]["trials"]
    changes = [re.sub(r"^trials=\+(\d+)$", lambda m: f"trials={total + int(m[1])}", text) for text in overrides]

    def merge() -> Settings:
        settings = OmegaConf.merge(OmegaConf.structured(Settings), document["settings"])
        merged: Settings = OmegaConf.to_object(OmegaConf.merge(settings, OmegaConf.from_dotlist(changes)))  # type: ignore[assignment]
        return merged

    settings = _in_one_line(merge)
    if any(text.startswith("engine.") for text in overrides):
        settings.engine = _with_file(settings.engine)
    plan = Plan(
        settings=settings,
        recipe=load_recipe(document["settings"]["family"]),
        config=document["recipe"],
        space=parse_space(document["space"], "sweep.yaml"),
        first_trials=document["first_trials"],
        generation=document.get("generation", 0),
        finalists=document.get("finalists"),
    )
    return _with_space(plan, searched) if searched else plan


def _with_space(plan: Plan, overrides: Sequence[str]) -> Plan:
    """The plan with dimensions changed; the recipe's own values stay what they were.

    Raises:
        InputError: A name is unknown, or a value would be changed that was never searched.
    """
    swept, plain = _split_sweeps(overrides)
    for text in plain:
        name = text.partition("=")[0]
        if name not in plan.space.names:
            raise InputError(
                f"{text}: is not searched, and what is not searched stays as it is; "
                f"for other values start a new sweep with warm_start=[SWEEP]"
            )
        value: Any = OverridesParser.create().parse_override(text).value()
        swept[name] = Dimension(name, CategoricalDistribution([value]), {})
    for name in swept:
        if name not in plan.defaults:
            raise InputError(f"{name} is not a value of {plan.settings.family}; {suggest(name, plan.defaults)}")
    space = plan.space.with_overrides(swept, [])
    if space.to_dict() == plan.space.to_dict():
        return plan
    for name, dimension in swept.items():
        _check_ends(plan, name, dimension)
    return dataclasses.replace(plan, space=space, generation=plan.generation + 1)


def _check_ends(plan: Plan, name: str, dimension: Dimension) -> None:
    """Refuses a dimension of which not even the ends are values that the recipe takes."""
    distribution = dimension.distribution
    ends = (
        distribution.choices
        if isinstance(distribution, CategoricalDistribution)
        else (distribution.low, distribution.high)  # type: ignore[attr-defined]
    )
    for value in ends:
        plan.build_config({name: value})


def storage_of(overrides: Sequence[str]) -> StorageConfig:
    """Where to look for what exists, from what was typed.

    Raises:
        InputError: There is no such setting, or a value is of the wrong type.
    """
    typed = [text.removeprefix("storage.") for text in overrides if text.startswith("storage.")]

    def merge() -> StorageConfig:
        merged: StorageConfig = OmegaConf.to_object(  # type: ignore[assignment]
            OmegaConf.merge(OmegaConf.structured(StorageConfig), OmegaConf.from_dotlist(typed))
        )
        return merged

    return _in_one_line(merge)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_file(engine: EngineConfig) -> EngineConfig:
    """The configuration with what its DeepSpeed file holds: a sweep keeps the content, not the name.

    Raises:
        InputError: DeepSpeed is not installed, or the file is not what it should be.
    """
    if engine.name != "deepspeed":
        return dataclasses.replace(engine, deepspeed={})
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("engine=deepspeed needs DeepSpeed: pip install -c constraints.txt 'pharos-sweeps[deepspeed]'")
    path = Path(engine.config) if engine.config else ROOT / "cluster" / "deepspeed" / f"zero{engine.zero}.json"
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"engine.config={path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"engine.config={path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization", {}), dict):
        raise InputError(f"engine.config={path}: must be an object, and zero_optimization in it one too")
    for key in ("optimizer", "scheduler"):
        if key in content:
            raise InputError(f"engine.config={path}: {key} is the recipe's; take it out")
    return dataclasses.replace(engine, deepspeed=content)


def _expand(text: str) -> str:
    """An override as Hydra wants it: names in full, and URLs quoted, which may have any character in them."""
    name, equals, value = text.partition("=")
    if "://" in value and value[0] not in "'\"[{" and "(" not in value:
        text = f"{name}{equals}{quote(value)}"
    return f"recipe.{text}" if text.startswith("data.") else text


def _split_sweeps(overrides: Sequence[str]) -> tuple[dict[str, Dimension], list[str]]:
    """Those that are ranges, by name, and the others."""
    swept: dict[str, Dimension] = {}
    plain: list[str] = []
    for text in overrides:
        if "=" not in text:
            raise InputError(f"{text}: not an override; write name=value, such as trials=8")
        # A count to add belongs to --extend; Hydra would read it as a plain number.
        if re.fullmatch(r"trials=\+\d+", text):
            raise InputError(f"{text}: only --extend adds trials; a new sweep takes trials={text.split('+')[1]}")
        dimension = parse_dimension(text)
        if OverridesParser.create().parse_override(text).type != OverrideType.CHANGE:
            raise InputError(f"{text}: only name=value can be given; nothing is added or taken away")
        if text.startswith("family="):
            raise InputError(f"{text}: the family is named by --family")
        if dimension is None:
            plain.append(text)
        elif dimension.name.startswith("recipe."):
            swept[dimension.name] = dimension
        else:
            raise InputError(f"{text}: only the recipe's values can be searched; name it recipe.…")
    return swept, plain


def _opened(text: str) -> list[str]:
    """An override as Hydra wants it: what `storage.options` holds is anybody's to name, so it is added there."""
    if text.startswith("storage.options="):
        value = OverridesParser.create().parse_override(text).value()
        if isinstance(value, dict):
            return [f"+storage.options.{key}={quote(item)}" for key, item in value.items()]
    return [f"+{text}" if text.startswith("storage.options.") else text]


def _typed_first_trials(overrides: Sequence[str]) -> list[dict[str, Any]] | None:
    """What `first_trials=[{recipe.NAME: VALUE, …}, …]` says; None if it was not typed.

    The recipe's own values are `{}`: what a trial does not name is at its default.
    """
    for text in overrides:
        if text.startswith("first_trials="):
            value = OverridesParser.create().parse_override(text).value()
            if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
                raise InputError(
                    f"{text}: write first_trials=[{{recipe.NAME: VALUE}}, …]; {{}} stands for the recipe's own values"
                )
            return [{str(name): item for name, item in each.items()} for each in value]
    return None


def _grid_size(space: Space, defaults: Mapping[str, Any], points: int, first_trials: Sequence[Params]) -> int:
    grid = space.grid(points, defaults)
    return len(grid) + sum(params not in grid for params in first_trials)


def _value_of(overrides: Sequence[str], name: str, default: Any) -> Any:
    values = [text.partition("=")[2] for text in overrides if text.startswith(f"{name}=")]
    return values[-1] if values else default


def _read_space_file(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path.name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not {"objective", "space"} <= set(document) <= set(_SPACE_KEYS):
        raise InputError(f"{path.name}: needs objective: and space:, and may have constraints: and first_trials:")
    document = {"first_trials": [], "constraints": {}, **document}
    if not all(isinstance(document[key], kind) for key, kind in _SPACE_KEYS.items()) or not all(
        isinstance(values, dict) for values in document["first_trials"]
    ):
        raise InputError(
            f"{path.name}: objective: is a mapping or a list of such, space: and constraints: are mappings, "
            "first_trials: is a list of mappings"
        )
    return document


def _compose(family: str, recipe: Recipe, overrides: list[str]) -> DictConfig:
    store = ConfigStore.instance()
    store.store(name="schema", node=_Schema)
    store.store(name=family, group="recipe", node=recipe.Config)
    # Hydra logs a warning for each group of a schema; its errors come to us as exceptions.
    logging.getLogger("hydra").setLevel(logging.ERROR)

    def composed() -> DictConfig:
        with initialize_config_module("pharos.conf", version_base="1.3"):
            return compose("sweep", [f"recipe={family}", *overrides])

    return _in_one_line(composed, lambda: sorted(_known_names(recipe)))


def _known_names(recipe: Recipe) -> list[str]:
    settings = flatten(dataclasses.asdict(Settings()))
    config = OmegaConf.to_container(OmegaConf.structured(recipe.Config))
    assert isinstance(config, dict)
    return [*settings, *flatten({str(k): v for k, v in config.items()}, "recipe.")]


def _in_one_line(make: Callable[[], T], known: Callable[[], list[str]] = list) -> T:
    """Calls, and turns Hydra's and OmegaConf's errors into ours, with the name that was probably meant."""
    try:
        return make()
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        message = str(cause).strip().split("\n")[0]
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        option = re.search(r"Could not find '(\w+)/([^']+)'", str(error))
        if option:
            files = (Path(__file__).parent / "conf" / option[1]).glob("*.yaml")
            message = f"{option[1]}={option[2]}: {suggest(option[2], sorted(file.stem for file in files))}"
        elif unknown:
            message = f"{unknown[1]}: no such setting; {suggest(unknown[1], known())}"
        else:
            name = getattr(cause, "full_key", None)
            message = f"{name}: {message}" if name and name not in message else message
        raise InputError(message) from None
    except (ValueError, TypeError) as error:
        raise InputError(str(error).strip().split("\n")[0]) from None


def quote(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quote(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(quote(item) for item in value) + "]"
    return str(value)
