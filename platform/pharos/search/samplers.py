"""Where new trials come from, by name: Optuna's samplers, and ours."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from pharos.errors import InputError
from pharos.families import suggest
from pharos.records import curve_of
from pharos.search.fronts import Losses
from pharos.search.grid import GridSampler
from pharos.search.objective import Objectives
from pharos.space import Space

NAMES = ("multifidelity", "tpe", "gp", "cmaes", "nsga2", "nsga3", "quasi_random", "random", "grid")
_SINGLE = ("cmaes",)


@dataclass
class SamplerConfig:
    """Where new trials come from. The files in `conf/sampler/` say what each value is for."""

    name: str = "multifidelity"
    startup: int = 8
    points: int = 5
    population: int = 20

    @property
    def used(self) -> dict[str, Any]:
        """The settings that mean something to this sampler."""
        uses = {
            "startup": ("multifidelity", "tpe", "gp", "cmaes"),
            "points": ("grid",),
            "population": ("nsga2", "nsga3"),
        }
        return {name: getattr(self, name) for name, those in uses.items() if self.name in those}

    def check(self, objectives: int) -> None:
        """Complains of what no sampler, or not this one, can do.

        Args:
            objectives: How many there are.

        Raises:
            InputError: There is such a thing.
        """
        if self.name not in NAMES:
            raise InputError(f"sampler.name={self.name}: {suggest(self.name, NAMES)}")
        for name, number, least in (
            ("startup", self.startup, 1),
            ("points", self.points, 1),
            ("population", self.population, 2),
        ):
            if number < least:
                raise InputError(f"sampler.{name}={number}: must be at least {least}")
        if self.name in _SINGLE and objectives > 1:
            raise InputError(
                f"sampler={self.name} takes one objective; several take sampler=multifidelity, tpe or nsga2"
            )
        if self.name == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise InputError("sampler=cmaes needs cmaes: pip install -c constraints.txt 'pharos-sweeps[cmaes]'")


def make_sampler(
    config: SamplerConfig,
    space: Space,
    defaults: Mapping[str, Any],
    max_fidelity: int,
    *,
    objectives: Objectives,
    seed: int,
    known: int,
) -> BaseSampler:
    """The sampler that a configuration names.

    Args:
        config: Checked.
        space: What is searched.
        defaults: The configuration's values by full name.
        max_fidelity: Of a whole trial.
        objectives: What is compared.
        seed: What it draws follows from it,
        known: and from how many trials there are when it starts: the driver that takes a study up would repeat
            the draws of the one before.
    """
    if config.name in ("multifidelity", "quasi_random"):
        from pharos.search.multifidelity import MultiFidelitySampler

        def losses(trial: FrozenTrial) -> dict[int, Losses]:
            return {fidelity: objectives.losses(values) for fidelity, values in curve_of(trial).items()}

        # Its model begins with a quasi-random design, which takes conditions; Optuna's own does not.
        startup = config.startup if config.name == "multifidelity" else sys.maxsize
        return MultiFidelitySampler(space, defaults, max_fidelity, seed=seed, startup=startup, curve_of=losses)
    if config.name == "grid":
        return GridSampler(space.grid(config.points, defaults), seed)
    return _optunas(config, (seed * 1_000_003 + known) % 2**32)


def _optunas(config: SamplerConfig, seed: int) -> BaseSampler:
    samplers = optuna.samplers
    made: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: samplers.TPESampler(
            n_startup_trials=config.startup, multivariate=True, group=True, constant_liar=True, seed=seed
        ),
        "gp": lambda: samplers.GPSampler(n_startup_trials=config.startup, seed=seed),
        "cmaes": lambda: samplers.CmaEsSampler(
            n_startup_trials=config.startup, seed=seed, warn_independent_sampling=False
        ),
        "nsga2": lambda: samplers.NSGAIISampler(population_size=config.population, seed=seed),
        "nsga3": lambda: samplers.NSGAIIISampler(population_size=config.population, seed=seed),
        "random": lambda: samplers.RandomSampler(seed=seed),
    }
    return made[config.name]()
