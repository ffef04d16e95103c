"""What to type to train a sweep's trial again."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from pharos.engines.base import EngineConfig
from pharos.overrides import quote
from pharos.plan import SEED, flatten
from pharos.records import TrialRecord
from pharos.report.story import Story
from pharos.settings import Settings

_PLAIN = re.compile(r"(?!(true|false|null|inf|nan)$)[a-z_][a-z0-9_-]*", re.IGNORECASE)


def from_sweep(story: Story) -> str:
    """The command that takes a trial's values from the sweep's folder, without the trial that it ends with."""
    return f"python platform/train.py --from {shlex.quote(story.folder.root)} --trial "


def from_scratch(story: Story, record: TrialRecord) -> list[str]:
    """The command that needs the code alone, in words: every value that is not the family's own at this scale."""
    settings = story.plan.settings
    seed = record.params.get(SEED, settings.seed)
    workers = story.plan.shape(record.params).workers
    changes = {**_engine(settings, workers), **({SEED: seed} if seed != Settings.seed else {})}
    theirs = _own_values(story)
    for name, value in flatten(story.plan.trial_config(record.params), "recipe.").items():
        if name not in theirs or theirs[name] != value:
            changes[name] = value
    words = [f"scale={settings.scale}", *(f"{name}={_word(value)}" for name, value in changes.items())]
    return ["python platform/train.py --family", *map(shlex.quote, [settings.family, *words])]


def _own_values(story: Story) -> dict[str, Any]:
    """The recipe's values at the sweep's scale."""
    recipe = story.plan.recipe
    scale = recipe.scales[story.plan.settings.scale]
    values = flatten(dataclasses.asdict(recipe.Config()), "recipe.")
    return {**values, **{f"recipe.{name}": value for name, value in scale.items()}}


def _word(value: Any) -> str:
    """A value in Hydra's grammar, without quotes where it needs none: a shell would want them quoted again."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value)
    return value if plain else quote(value)  # type: ignore[no-any-return]


def _engine(settings: Settings, workers: int) -> dict[str, Any]:
    """What of the engine and the workers changes a trial's numbers."""
    usual = EngineConfig()
    found = {
        f"engine.{each.name}": getattr(settings.engine, each.name)
        for each in dataclasses.fields(usual)
        if getattr(settings.engine, each.name) != getattr(usual, each.name)
    }
    if workers > 1:
        found["resources.workers"] = workers
    return found
