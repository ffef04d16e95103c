"""The schedulers by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pharos.errors import InputError
from pharos.families import suggest
from pharos.schedulers.asha import Asha
from pharos.schedulers.base import NeverStop, Scheduler
from pharos.schedulers.hyperband import Hyperband
from pharos.schedulers.median import Median
from pharos.schedulers.pbt import Pbt
from pharos.schedulers.promotion import Promotion
from pharos.space import Space

_USES = {
    "asha": {"grace", "reduction"},
    "promotion": {"grace", "reduction"},
    "hyperband": {"grace", "reduction"},
    "median": {"grace", "min_trials"},
    "pbt": {"population", "interval", "quantile", "keep"},
    "none": set[str](),
}


@dataclass
class SchedulerConfig:
    """When trials are stopped early. The files in `conf/scheduler/` say what each value is for."""

    name: str = "asha"
    grace: float = 0.1
    reduction: int = 3
    min_trials: int = 5
    population: int = 8
    interval: float = 0.1
    quantile: float = 0.25
    keep: list[str] = field(default_factory=list)

    def check(self, objectives: int) -> None:
        """Complains of what no scheduler, or not this one, can do.

        Args:
            objectives: How many there are.

        Raises:
            InputError: There is such a thing.
        """
        if self.name not in _USES:
            raise InputError(f"scheduler.name={self.name}: {suggest(self.name, _USES)}")
        for name, share in (("grace", self.grace), ("interval", self.interval)):
            if not 0 < share <= 1:
                raise InputError(f"scheduler.{name}={share}: a share of a whole trial, above 0 and at most 1")
        if not 0 < self.quantile <= 0.5:
            raise InputError(f"scheduler.quantile={self.quantile}: a share of the population, above 0 and at most 0.5")
        for name, number, least in (
            ("reduction", self.reduction, 2),
            ("min_trials", self.min_trials, 1),
            ("population", self.population, 2),
        ):
            if number < least:
                raise InputError(f"scheduler.{name}={number}: must be at least {least}")
        if self.name == "median" and objectives > 1:
            raise InputError("scheduler=median compares one objective; scheduler=asha takes several")

    @property
    def used(self) -> dict[str, Any]:
        """The settings that mean something to this scheduler."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name in _USES[self.name]}

    def check_used(self) -> None:
        """Complains of a setting that means nothing to this scheduler; a sweep of before may have its own defaults.

        Raises:
            InputError: There is such a thing.
        """
        idle = SchedulerConfig()
        for each in fields(self):
            if each.name not in {"name", *_USES[self.name]} and getattr(self, each.name) != getattr(idle, each.name):
                has = ", ".join(sorted(_USES[self.name])) or "no settings"
                raise InputError(f"scheduler.{each.name} means nothing to scheduler={self.name}, which has {has}")


def make_scheduler(
    config: SchedulerConfig,
    max_fidelity: int,
    space: Space,
    defaults: Mapping[str, Any],
    seed: int,
) -> Scheduler:
    """The scheduler that a configuration names.

    Args:
        config: Checked.
        max_fidelity: Of a whole trial.
        space: What is searched.
        defaults: The configuration's values by full name.
        seed: What a scheduler draws follows from it.
    """
    if config.name == "asha":
        return Asha(max_fidelity, config.grace, config.reduction)
    if config.name == "promotion":
        return Promotion(max_fidelity, config.grace, config.reduction)
    if config.name == "hyperband":
        return Hyperband(max_fidelity, config.grace, config.reduction)
    if config.name == "median":
        return Median(max_fidelity, config.grace, config.min_trials)
    if config.name == "pbt":
        return Pbt(
            max_fidelity, space, defaults, config.population, config.interval, config.quantile, config.keep, seed
        )
    return NeverStop()
