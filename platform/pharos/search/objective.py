"""What a search compares and what it insists on: objectives and constraints on metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pharos.errors import InputError
from pharos.families import suggest
from pharos.search.fronts import Losses


@dataclass(frozen=True)
class Objective:
    """A metric that the search compares.

    Attributes:
        metric: Its name.
        mode: `min` or `max`.
        reference: The worst value that counts for the hypervolume; None: the worst of the complete trials.
    """

    metric: str
    mode: str = "min"
    reference: float | None = None


class Objectives:
    """What a search compares: one metric, or several that pull against each other.

    Raises:
        InputError: There is none, one is named twice, or a mode is unknown.
    """

    def __init__(self, objectives: Sequence[Objective]):
        if not objectives:
            raise InputError("objective: none is given; such as {metric: accuracy, mode: max}")
        self._all = tuple(objectives)
        self.metrics = [objective.metric for objective in objectives]
        for objective in objectives:
            if objective.mode not in ("min", "max"):
                raise InputError(f"objective.mode={objective.mode}: {suggest(objective.mode, ('min', 'max'))}")
            if self.metrics.count(objective.metric) > 1:
                raise InputError(f"objective: {objective.metric} is named twice")

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Any:
        return iter(self._all)

    @property
    def first(self) -> Objective:
        return self._all[0]

    def values(self, metrics: Mapping[str, float | None]) -> tuple[float, ...] | None:
        """Their values, in order; None if a metric is missing or not finite."""
        found = [metrics.get(name) for name in self.metrics]
        finite = tuple(value for value in found if value is not None and math.isfinite(value))
        return finite if len(finite) == len(found) else None

    def losses(self, values: Sequence[float]) -> Losses:
        """Values as losses: lower is better. The same turns losses into values."""
        return tuple(
            value if objective.mode == "min" else -value for objective, value in zip(self._all, values, strict=True)
        )


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric, which a trial's last value of it must keep."""

    metric: str
    operator: str
    bound: float

    def violation(self, metrics: Mapping[str, float | None]) -> float | None:
        """By how much a trial's metrics break it, in the metric's unit; 0 or less: they keep it; None: not reported."""
        value = metrics.get(self.metric)
        if value is None:
            return None
        return value - self.bound if self.operator == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.bound:g}"


def parse_objectives(document: Any) -> Objectives:
    """Objectives from a mapping `{metric: …, mode: …}`, or a list of such.

    Raises:
        InputError: They are malformed.
    """
    entries = document if isinstance(document, (list, tuple)) else [document]
    objectives = []
    for entry in entries:
        if not isinstance(entry, Mapping) or not {"metric"} <= set(entry) <= {"metric", "mode", "reference"}:
            raise InputError(f"objective={entry}: write {{metric: NAME, mode: min|max}}, or a list of such")
        reference = entry.get("reference")
        if not isinstance(entry["metric"], str) or not isinstance(reference, (int, float, type(None))):
            raise InputError(f"objective={dict(entry)}: `metric` is a name, `reference` a number")
        objectives.append(Objective(entry["metric"], str(entry.get("mode", "min")), reference))
    return Objectives(objectives)


def parse_constraints(document: Any) -> list[Constraint]:
    """Constraints from `{metric: "<= 20"}`.

    Raises:
        InputError: One is malformed.
    """
    if not isinstance(document, Mapping):
        raise InputError(f'constraints={document}: write {{METRIC: "<= 20"}}')
    constraints = []
    for metric, text in document.items():
        match = re.fullmatch(r"\s*(<=|>=)\s*([-+.\deE]+)\s*", str(text))
        try:
            constraints.append(Constraint(metric, match[1], float(match[2])))  # type: ignore[index]
        except (TypeError, ValueError):
            raise InputError(f'constraints.{metric}={text}: a bound is written like "<= 20" or ">= 0.9"') from None
    return constraints
