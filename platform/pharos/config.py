"""Composes a sweep's configuration with Hydra and hands it on as plain dataclasses and dicts.

Hydra composes and does nothing else. Nothing of it crosses a process border.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution

from pharos.cache import configure
from pharos.engines.base import EngineConfig
from pharos.errors import InputError
from pharos.families import ROOT, load_recipe, space_file, suggest
from pharos.notify import check_no_url
from pharos.overrides import expand, in_one_line, opened, quote, split_sweeps, typed_first_trials, value_of
from pharos.plan import Plan, flatten
from pharos.recipe import Recipe, build_config
from pharos.settings import Settings
from pharos.space import Dimension, Params, Space, parse_space
from pharos.storage import StorageConfig

LIMITS = ("hours", "gpu_hours", "stop_at", "plateau", "breaker")
_HOW = ("retries", "checkpoint_seconds", "resources.", "tracking.", "storage.", "study.storage")
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
class _Schema(Settings):
    """What Hydra composes: the settings, and the recipe's own configuration with its own types."""

    recipe: Any = None


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
    typed = list({text.split("=")[0]: text for text in map(expand, overrides)}.values())
    swept, plain = split_sweeps(typed)
    scale, space_name = value_of(plain, "scale", "small"), value_of(plain, "space", "default")
    if scale not in recipe.scales:
        raise InputError(f"scale={scale}: {suggest(scale, recipe.scales)}")
    path = space_file(family, space_name)
    document = _read_space_file(path)
    typed_first = typed_first_trials(plain)
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
        + [each for text in plain for each in opened(text)],
    )
    container = in_one_line(lambda: OmegaConf.to_container(composed, resolve=True))
    assert isinstance(container, dict)
    config = container.pop("recipe")
    settings = in_one_line(lambda: build_config(Settings, {str(key): value for key, value in container.items()}))
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
    settings.resources.check_names(plan.defaults)
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
    searched = [expand(text) for text in overrides if extend and expand(text).startswith("recipe.")]
    overrides = [text for text in overrides if expand(text) not in searched]
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

    settings = in_one_line(merge)
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
    swept, plain = split_sweeps(overrides)
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

    return in_one_line(merge)


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


def _grid_size(space: Space, defaults: Mapping[str, Any], points: int, first_trials: Sequence[Params]) -> int:
    grid = space.grid(points, defaults)
    return len(grid) + sum(params not in grid for params in first_trials)


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

    return in_one_line(composed, lambda: sorted(_known_names(recipe)))


def _known_names(recipe: Recipe) -> list[str]:
    settings = flatten(dataclasses.asdict(Settings()))
    config = OmegaConf.to_container(OmegaConf.structured(recipe.Config))
    assert isinstance(config, dict)
    return [*settings, *flatten({str(k): v for k, v in config.items()}, "recipe.")]
