"""Search spaces: dimensions in Hydra's own sweep grammar, conditions, and the first trials.

    recipe.optim.lr: tag(log, interval(1e-5, 1e-3))       a float on a logarithmic scale
    recipe.w_90: interval(0, 10)                          a float
    recipe.blocks: range(1, 5)                            an int: 1, 2, 3 or 4, as in Python and in Hydra
    recipe.width: int(tag(log, interval(64, 1024)))       an int, both ends included
    recipe.gan_loss: choice(lsgan, bce_smooth)            one of these
    recipe.smooth:                                        exists only if another dimension has a value
      sweep: interval(0, 0.3)
      when: {recipe.gan_loss: bce_smooth}

The same expressions work on the command line, where they widen, narrow or add a dimension; a plain value takes the
dimension out of the search. Imports neither torch nor Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pharos.errors import InputError
from pharos.families import suggest

Params = dict[str, Any]
"""Searched values by full override name."""


@dataclass(frozen=True)
class Dimension:
    """One searched value.

    Attributes:
        name: Its full override name, such as `recipe.optim.lr`.
        distribution: What Optuna samples from.
        when: The values that other dimensions must have for this one to exist; several values are alternatives.
    """

    name: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[Any, ...]]

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether it exists, given the values of the other dimensions and of the configuration."""
        return all(values.get(name) in allowed for name, allowed in self.when.items())


class Space:
    """The dimensions of a search, parents before the dimensions that depend on them.

    Raises:
        InputError: A condition names no dimension and no known value, or conditions form a circle.
    """

    def __init__(self, dimensions: Sequence[Dimension]):
        self.dimensions = _parents_first(dimensions)

    def __len__(self) -> int:
        return len(self.dimensions)

    @property
    def names(self) -> list[str]:
        return [dimension.name for dimension in self.dimensions]

    def ask(self, trial: optuna.Trial, defaults: Mapping[str, Any]) -> Params:
        """Draws the values of a new trial, or reads those it already has.

        Args:
            trial: From `optuna.Study.ask`.
            defaults: The configuration's value of every name that a condition may refer to.
        """
        params: Params = {}
        for dimension in self.dimensions:
            if dimension.exists({**defaults, **params}):
                params[dimension.name] = _suggest(trial, dimension.name, dimension.distribution)
        return params

    def first_trial(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Params:
        """A whole trial from some given values, the rest being the configuration's.

        Raises:
            InputError: A value lies outside its dimension, or names none.
        """
        for name in values:
            if name not in self.names:
                raise InputError(f"first_trials: {name} is no dimension of the search; {suggest(name, self.names)}")
        params: Params = {}
        for dimension in self.dimensions:
            if not dimension.exists({**defaults, **values, **params}):
                continue
            value = values.get(dimension.name, defaults[dimension.name])
            if not _contains(dimension.distribution, value):
                origin = "" if dimension.name in values else ", which is the configuration's value,"
                raise InputError(
                    f"first trial outside the space: {dimension.name}={value}{origin} is not in "
                    f"{describe(dimension.distribution)}; widen the dimension, or search without "
                    "first trials: 'first_trials=[]'"
                )
            params[dimension.name] = value
        return params

    def with_overrides(self, swept: Mapping[str, Dimension], pinned: Sequence[str]) -> Space:
        """This space with dimensions replaced or added, and those taken out that have a fixed value now."""
        kept = {d.name: d for d in self.dimensions if d.name not in pinned}
        for name, dimension in swept.items():
            when = kept[name].when if name in kept else {}
            kept[name] = Dimension(name, dimension.distribution, when)
        return Space(list(kept.values()))


def parse_space(entries: Mapping[str, Any], where: str) -> Space:
    """A space from the `space:` part of a YAML file.

    Args:
        entries: By full override name: an expression, or a mapping of `sweep` and `when`.
        where: The file, for messages.

    Raises:
        InputError: An entry is malformed.
    """
    dimensions = []
    for name, entry in entries.items():
        expression, when = entry, {}
        if isinstance(entry, Mapping):
            if not {"sweep"} <= set(entry) <= {"sweep", "when"}:
                raise InputError(f"{where}: {name} needs `sweep:` and may have `when:`, not {', '.join(entry)}")
            expression, when = entry["sweep"], entry.get("when", {})
            if not isinstance(when, Mapping):
                raise InputError(f"{where}: {name}: `when:` is like {{recipe.other: value}}, not {when}")
        dimension = parse_dimension(f"{name}={expression}", where)
        if dimension is None:
            raise InputError(
                f"{where}: {name}: {expression} is one value, not a range; write interval, range or choice"
            )
        dimensions.append(
            Dimension(name, dimension.distribution, {key: _alternatives(value) for key, value in when.items()})
        )
    return Space(dimensions)


def parse_dimension(text: str, where: str = "") -> Dimension | None:
    """A dimension from `name=expression`; None if the expression is a plain value.

    Raises:
        InputError: The text is not in Hydra's override grammar, or the range is empty or impossible.
    """
    prefix = f"{where}: " if where else ""
    try:
        override: Override = OverridesParser.create().parse_override(text)
        if not override.is_sweep_override():
            return None
        distribution = _distribution(override)
    except (HydraException, ValueError) as error:
        raise InputError(
            f"{prefix}{text}: {_first_line(error)}; a range is written like interval(0, 1), "
            "tag(log, interval(1e-5, 1e-3)), range(1, 5) or choice(a, b)"
        ) from None
    return Dimension(override.key_or_group, distribution, {})


def describe(distribution: BaseDistribution) -> str:
    """A dimension's range in words."""
    if isinstance(distribution, CategoricalDistribution):
        return "{" + ", ".join(str(choice) for choice in distribution.choices) + "}"
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    scale = ", log" if distribution.log else ""
    step = f", step {distribution.step:g}" if distribution.step not in (None, 1) else ""
    kind = "int" if isinstance(distribution, IntDistribution) else "float"
    return f"[{distribution.low:g}, {distribution.high:g}] ({kind}{scale}{step})"


def _distribution(override: Override) -> BaseDistribution:
    sweep = override.value()
    tags = sweep.tags if isinstance(sweep, (ChoiceSweep, RangeSweep, IntervalSweep)) else set()
    if wrong := sorted(tags - ({"log"} if isinstance(sweep, IntervalSweep) else set())):
        raise ValueError(f"the tag {wrong[0]} means nothing here")
    if isinstance(sweep, ChoiceSweep):
        choices = [_plain(choice) for choice in sweep.list]
        if wrong := [choice for choice in choices if not isinstance(choice, (bool, int, float, str, type(None)))]:
            raise ValueError(f"{wrong[0]} cannot be chosen; a choice is a number, a word, true or false")
        return CategoricalDistribution(choices)
    if isinstance(sweep, RangeSweep):
        start, stop, step = sweep.start, sweep.stop, sweep.step
        if start is None or stop is None or step <= 0 or start >= stop:
            raise ValueError("an empty range")
        # The end is left out, as in Python: the last value is the largest start + k * step below it. In decimals,
        # as it was written: in binary, 0.9 is not three times 0.3.
        first, end, each = (Decimal(str(value)) for value in (start, stop, step))
        last = first + (math.ceil((end - first) / each) - 1) * each
        if all(isinstance(value, int) for value in (start, stop, step)):
            return IntDistribution(int(start), int(last), step=int(step))
        return FloatDistribution(float(start), float(last), step=float(step))
    if not isinstance(sweep, IntervalSweep):
        raise ValueError("not a range of values")
    low, high = sweep.start, sweep.end
    if low is None or high is None or not low < high or math.isinf(low) or math.isinf(high):
        raise ValueError("an interval goes from a smaller to a larger number")
    log = "log" in sweep.tags
    # Hydra makes an interval's ends floats, unless int() was applied to it.
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return bool(distribution._contains(value))


def _parents_first(dimensions: Sequence[Dimension]) -> list[Dimension]:
    waiting = {dimension.name: dimension for dimension in dimensions}
    ordered: list[Dimension] = []
    while waiting:
        ready = [d for d in waiting.values() if not any(name in waiting for name in d.when)]
        if not ready:
            raise InputError(f"the conditions of {', '.join(waiting)} form a circle; one of them must have no `when:`")
        for dimension in ready:
            ordered.append(waiting.pop(dimension.name))
    return ordered


def _alternatives(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _plain(value: Any) -> Any:
    """A choice as JSON has it; Hydra's quoted strings become strings."""
    text = getattr(value, "text", None)
    return text if isinstance(text, str) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
