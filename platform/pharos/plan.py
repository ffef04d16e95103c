"""A whole sweep, resolved: what it searches, how it runs, and what each trial of it is."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pharos.overrides import in_one_line
from pharos.recipe import Recipe, typed
from pharos.resources import Shape
from pharos.settings import Settings
from pharos.space import Params, Space
from pharos.trial import TrialSpec

SEED = "seed"
"""The name of a dimension that is no value of the recipe: finalists are trained on several seeds."""


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

    def shape(self, params: Params) -> Shape:
        """What a trial with these values asks of a cluster."""
        return self.settings.resources.shape_of({**self.defaults, **params})

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

        return in_one_line(build)

    def trial_spec(
        self,
        sweep: str,
        number: int,
        params: Params,
        *,
        folder: str,
        tracking_folder: str,
        origin: str | None = None,
        max_fidelity: int | None = None,
    ) -> TrialSpec:
        """What a process needs to train these values.

        Args:
            sweep: Name of the sweep, or of the run.
            number: The trial's.
            params: Its searched values.
            folder: URL of its own folder.
            tracking_folder: Where a tracker's own files go.
            origin: Folder of the trial that it starts from, if from one.
            max_fidelity: Of these values, if it is known: to ask the recipe, its whole configuration is built.
        """
        settings = self.settings
        objectives = settings.objectives
        shape = self.shape(params)
        gpus_known = settings.resources.gpus_per_worker is not None
        return TrialSpec(
            sweep=sweep,
            number=number,
            family=settings.family,
            params=params,
            config=self.trial_config(params),
            seed=params.get(SEED, settings.seed),
            folder=folder,
            max_fidelity=max_fidelity or self.recipe.fidelity(self.build_config(params)),
            objective=objectives.first.metric,
            checkpoint_seconds=settings.checkpoint_seconds,
            threads=shape.cpus_per_worker,
            gpus=shape.gpus_per_worker if gpus_known else None,
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


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
