"""Composes a sweep's configuration with Hydra and hands it on as plain dataclasses and dicts.

Hydra composes and does nothing else. Nothing of it crosses a process border.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pharos.cache import configure
from pharos.engines.base import PRECISIONS, EngineConfig
from pharos.errors import InputError
from pharos.families import ROOT, load_recipe, space_file, suggest
from pharos.recipe import Recipe, build_config
from pharos.space import Dimension, Params, Space, parse_dimension, parse_space
from pharos.storage import StorageConfig, check_options
from pharos.study import check_rdb
from pharos.trial import TrialSpec

T = TypeVar("T")

_HOW = ("retries", "checkpoint_seconds", "resources.", "tracking.", "storage.", "study.storage")
SWEEP_OVERRIDES = ("trials", "backend", *_HOW)
"""What may change when a sweep is resumed or extended."""
RUN_OVERRIDES = ("seed", *_HOW, "engine.")
"""What may change when a sweep's trial is trained again, or a run goes on."""

# What exists changes its engine by name as a new sweep chooses one; precision and accumulation stay.
_ENGINES = {
    "engine=torch": ["engine.name=torch", "engine.zero=0", "engine.offload=false", "engine.config=null"],
    "engine=deepspeed": ["engine.name=deepspeed", "engine.zero=1"],
}
_SPACE_KEYS = {"objective": dict, "space": dict, "first_trials": list}


@dataclass
class Objective:
    """The metric that a search compares."""

    metric: str = MISSING
    mode: str = "min"


@dataclass
class SchedulerConfig:
    """When trials are stopped early."""

    name: str = "asha"
    grace: float = 0.2
    reduction: int = 3


@dataclass
class SamplerConfig:
    """Where new trials come from."""

    name: str = "tpe"
    startup: int = 8


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
    seed: int = 0
    backend: str = "tune"
    retries: int = 2
    checkpoint_seconds: float = 20.0
    objective: Objective = field(default_factory=Objective)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)

    def __post_init__(self) -> None:
        choices = {
            "objective.mode": (self.objective.mode, ("min", "max")),
            "backend": (self.backend, ("tune", "local")),
            "scheduler.name": (self.scheduler.name, ("asha", "none")),
            "sampler.name": (self.sampler.name, ("tpe", "random")),
            "tracking.name": (self.tracking.name, ("wandb", "none")),
            "tracking.mode": (self.tracking.mode, ("auto", "online", "offline")),
            "engine.name": (self.engine.name, ("torch", "deepspeed")),
            "engine.precision": (self.engine.precision, tuple(PRECISIONS)),
            "resources.placement": (self.resources.placement, ("pack", "strict_pack", "spread")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise InputError(f"{name}={value}: {suggest(value, allowed)}")
        least: dict[str, tuple[float | None, float]] = {
            "trials": (self.trials, 1),
            "retries": (self.retries, 0),
            "checkpoint_seconds": (self.checkpoint_seconds, 0),
            "storage.patience": (self.storage.patience, 1),
            "storage.mirror_seconds": (self.storage.mirror_seconds, 0.1),
            "storage.keep_last": (self.storage.keep_last, 1),
            "storage.keep_best": (self.storage.keep_best, 0),
            "storage.keep_every": (self.storage.keep_every, 0),
            "storage.keep_trials": (self.storage.keep_trials, 1),
            "storage.cache_gb": (self.storage.cache_gb, 0),
            "scheduler.reduction": (self.scheduler.reduction, 2),
            "sampler.startup": (self.sampler.startup, 1),
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
        if not 0 < self.scheduler.grace <= 1:
            raise InputError(f"scheduler.grace={self.scheduler.grace}: a share of a whole trial, above 0 and at most 1")
        if self.study.storage:
            check_rdb(self.study.storage)
        check_options(self.storage.options)
        self._check_workers()

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
    space_text: dict[str, Any]
    """The space as it was written, so that `sweep.yaml` can be read back."""
    first_trials: list[Params]

    @property
    def defaults(self) -> dict[str, Any]:
        """The configuration's values by full override name."""
        return flatten(self.config, "recipe.")

    def is_paper_trial(self, params: Params) -> bool:
        """Whether these are the recipe's own values, which are the first trial."""
        return bool(self.first_trials) and params == self.first_trials[0]

    def trial_config(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's configuration with a trial's values in place."""
        config = OmegaConf.create(self.config)
        for name, value in params.items():
            OmegaConf.update(config, name.removeprefix("recipe."), value)
        container = OmegaConf.to_container(config)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}

    def build_config(self, params: Mapping[str, Any] | None = None) -> Any:
        """The recipe's typed configuration.

        Raises:
            InputError: The values contradict its types or its own rules.
        """
        return _in_one_line(lambda: build_config(self.recipe.Config, self.trial_config(params or {})))

    def trial_spec(self, sweep: str, number: int, params: Params, folder: str, tracking_folder: str) -> TrialSpec:
        """What a process needs to train these values.

        Args:
            sweep: Name of the sweep, or of the run.
            number: The trial's.
            params: Its searched values.
            folder: URL of its own folder.
            tracking_folder: Where a tracker's own files go.
        """
        settings = self.settings
        return TrialSpec(
            sweep=sweep,
            number=number,
            family=settings.family,
            params=params,
            config=self.trial_config(params),
            seed=settings.seed,
            folder=folder,
            max_fidelity=self.recipe.fidelity(self.build_config(params)),
            objective=settings.objective.metric,
            checkpoint_seconds=settings.checkpoint_seconds,
            threads=settings.resources.cpus_per_worker,
            gpus=settings.resources.gpus_per_worker,
            engine=dataclasses.asdict(settings.engine),
            tracking=settings.tracking.to_dict(tracking_folder),
            storage=dataclasses.asdict(settings.storage),
            mode=settings.objective.mode,
        )

    def to_dict(self) -> dict[str, Any]:
        """As `sweep.yaml` has it."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "recipe": self.config,
            "space": self.space_text,
            "first_trials": self.first_trials,
        }


def make_plan(family: str, overrides: Sequence[str]) -> Plan:
    """A new sweep's plan from what was typed.

    Args:
        family: Its name.
        overrides: Hydra overrides; `data.` is short for `recipe.data.`, and a range of a `recipe.` value makes it
            a dimension of the search.

    Raises:
        InputError: Anything at all is wrong with them.
    """
    recipe = load_recipe(family)
    # Typed twice, the last one counts, be it a range or a value.
    typed = list({text.split("=")[0]: text for text in map(_expand, overrides)}.values())
    swept, plain = _split_sweeps(typed)
    scale, space_name = _value_of(plain, "scale", "small"), _value_of(plain, "space", "default")
    if scale not in recipe.scales:
        raise InputError(f"scale={scale}: {suggest(scale, recipe.scales)}")
    path = space_file(family, space_name)
    document = _read_space_file(path)
    first_override = _value_of(plain, "first_trials", None)
    if first_override not in (None, "[]"):
        raise InputError(f"first_trials={first_override}: only first_trials=[] (none) can be typed; edit {path.name}")
    plain = [text for text in plain if not text.startswith("first_trials=")]

    composed = _compose(
        family,
        recipe,
        [f"family={family}"]
        + [f"objective.{key}={_quote(value)}" for key, value in document["objective"].items()]
        + [f"recipe.{name}={_quote(value)}" for name, value in recipe.scales[scale].items()]
        + [each for text in plain for each in _opened(text)],
    )
    container = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(container, dict)
    config = container.pop("recipe")
    settings = _in_one_line(lambda: build_config(Settings, {str(key): value for key, value in container.items()}))

    settings.engine = _with_file(settings.engine)
    if settings.tracking.name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError("tracking=wandb needs wandb: pip install -c constraints.txt wandb, or use tracking=none")
    names = flatten(config, "recipe.")
    pinned = [text.split("=")[0].lstrip("+~") for text in plain]
    space = parse_space(document["space"], path.name).with_overrides(swept, pinned)
    text = _written(document["space"], space, typed)
    for dimension in space.dimensions:
        for name in (dimension.name, *dimension.when):
            if name not in names:
                raise InputError(f"{name} is not a value of {family}; {suggest(name, names)}")
    if not len(space):
        raise InputError("nothing is left to search: every dimension has a fixed value")
    wanted = [] if first_override == "[]" else [{}, *document["first_trials"]]
    first = [space.first_trial({k: v for k, v in values.items() if k not in pinned}, names) for values in wanted]
    distinct = [params for index, params in enumerate(first) if params not in first[:index]]
    plan = Plan(settings, recipe, config, space, text, distinct)
    for params in [{}, *distinct]:
        plan.build_config(params)
    configure(settings.storage)
    recipe.check(plan.build_config())
    return plan


def reopen_plan(
    document: Mapping[str, Any], overrides: Sequence[str], allowed: tuple[str, ...] = SWEEP_OVERRIDES
) -> Plan:
    """The plan of a sweep that exists, from its `sweep.yaml`.

    Args:
        document: What `Plan.to_dict` gave.
        overrides: Changes to how it runs; what is searched stays.
        allowed: Names, or beginnings of names, that may be changed.

    Raises:
        InputError: An override would change what is searched, or is malformed.
    """
    overrides = [each for text in overrides for each in _ENGINES.get(text, [text])]
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
    return Plan(
        settings=settings,
        recipe=load_recipe(document["settings"]["family"]),
        config=document["recipe"],
        space=parse_space(document["space"], "sweep.yaml"),
        space_text=document["space"],
        first_trials=document["first_trials"],
    )


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
        text = f"{name}{equals}{_quote(value)}"
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
            return [f"+storage.options.{key}={_quote(item)}" for key, item in value.items()]
    return [f"+{text}" if text.startswith("storage.options.") else text]


def _written(entries: Mapping[str, Any], space: Space, typed: Sequence[str]) -> dict[str, Any]:
    """A space as a YAML file would have it: the file's entries that are left, with what was typed in their place."""
    text = {name: entry for name, entry in entries.items() if name in space.names}
    for name, _, expression in (override.partition("=") for override in typed):
        if name in space.names:
            entry = text.get(name)
            when = entry.get("when") if isinstance(entry, Mapping) else None
            text[name] = {"sweep": expression, "when": when} if when else expression
    return text


def _value_of(overrides: Sequence[str], name: str, default: Any) -> Any:
    values = [text.partition("=")[2] for text in overrides if text.startswith(f"{name}=")]
    return values[-1] if values else default


def _read_space_file(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path.name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not {"objective", "space"} <= set(document) <= set(_SPACE_KEYS):
        raise InputError(f"{path.name}: needs objective: and space:, and may have first_trials:")
    document = {"first_trials": [], **document}
    if not all(isinstance(document[key], kind) for key, kind in _SPACE_KEYS.items()) or not all(
        isinstance(values, dict) for values in document["first_trials"]
    ):
        raise InputError(f"{path.name}: objective: and space: are mappings, first_trials: is a list of mappings")
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


def _quote(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_quote(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_quote(item) for item in value) + "]"
    return str(value)
