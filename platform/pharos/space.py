"""Search spaces: dimensions in Hydra's own sweep grammar, their conditions, and the configurations in them.

    recipe.optim.lr: tag(log, interval(1e-5, 1e-3))       a float on a logarithmic scale
    recipe.w_90: interval(0, 10)                          a float
    recipe.blocks: range(1, 5)                            an int: 1, 2, 3 or 4, as in Python and in Hydra
    recipe.width: int(tag(log, interval(64, 1024)))       an int, both ends included
    recipe.gan_loss: choice(lsgan, bce_smooth)            one of these
    recipe.smooth:                                        exists only if another dimension has a value
      sweep: interval(0, 0.3)
      when: {recipe.gan_loss: bce_smooth}                 or one of several: [bce_smooth, hinge]
    recipe.skip:                                          exists only if another one is large enough
      sweep: choice(true, false)
      when: {recipe.blocks: ">= 3"}                       or <, <=, >, !=; in quotes, as YAML wants it

The same expressions work on the command line, where they widen, narrow or add a dimension; a plain value takes the
dimension out of the search.

A trial always runs with a value of everything: where a dimension does not exist, with the configuration's. So that
value is also what decides whether the dimensions below it exist, as the value of what is not searched does.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pharos.conditions import (
    Comparison,
    Condition,
    can_meet,
    condition_entry,
    describe_condition,
    meets,
    parse_condition,
)
from pharos.errors import InputError
from pharos.families import suggest
from pharos.grammar import describe, expression, extent, parse_sweep, scale, word
from pharos.ranges import close, count, draw, inside, is_number, snapped, spread

Params = dict[str, Any]
"""Searched values by full override name."""

GRID_LIMIT = 100_000
"""A grid of more configurations than this is a mistake."""


@dataclass(frozen=True)
class Dimension:
    """One searched value.

    Attributes:
        name: Its full override name, such as `recipe.optim.lr`.
        distribution: What Optuna samples from.
        when: What the values of others must be for this one to exist: a tuple of alternatives, or a comparison.
    """

    name: str
    distribution: BaseDistribution
    when: Mapping[str, Condition]

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether it exists, given the values of the other dimensions and of the configuration."""
        return all(meets(values.get(name), condition) for name, condition in self.when.items())


@dataclass(frozen=True)
class SpaceRow:
    """What `--show-space` says of a dimension.

    Attributes:
        name: Its full override name.
        range: Its values.
        scale: `linear`, `log`, `int` or `choice`, with the step.
        default: The configuration's value.
        inside: Whether that lies in the range.
        condition: When it exists; empty if always.
    """

    name: str
    range: str
    scale: str
    default: Any
    inside: bool
    condition: str

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


class Space:
    """The dimensions of a search, parents before the dimensions that depend on them.

    Two spaces are equal if they have the same dimensions in the same order, which is the order of their draws.

    Raises:
        InputError: Conditions form a circle, compare what is no number, or can never be met.
    """

    def __init__(self, dimensions: Sequence[Dimension]):
        self.dimensions = _parents_first(dimensions)
        distributions = self.distributions
        for dimension in self.dimensions:
            _check_comparisons(dimension, distributions)
            if reason := self._never(dimension):
                raise InputError(f"{dimension.name} never exists: {reason}")

    def __len__(self) -> int:
        return len(self.dimensions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.dimensions == other.dimensions

    def __hash__(self) -> int:
        return hash(tuple(self.names))

    @property
    def names(self) -> list[str]:
        return [dimension.name for dimension in self.dimensions]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna samples from, by name."""
        return {dimension.name: dimension.distribution for dimension in self.dimensions}

    def to_dict(self) -> dict[str, Any]:
        """The `space:` part of a YAML file that `parse_space` reads as this space."""
        entries: dict[str, Any] = {}
        for dimension in self.dimensions:
            sweep = expression(dimension.distribution)
            when = {name: condition_entry(condition) for name, condition in dimension.when.items()}
            entries[dimension.name] = {"sweep": sweep, "when": when} if when else sweep
        return entries

    def ask(self, trial: optuna.Trial, defaults: Mapping[str, Any]) -> Params:
        """Draws the values of a new trial, or reads those it already has.

        Args:
            trial: From `optuna.Study.ask`.
            defaults: The configuration's value of every name that a condition may refer to.
        """
        return self._build(defaults, lambda dimension: _suggest(trial, dimension.name, dimension.distribution))

    def sample(self, rng: np.random.Generator, defaults: Mapping[str, Any]) -> Params:
        """One uniform draw: every value of a range, or every ratio on a logarithmic scale, is as likely as another."""
        return self._build(defaults, lambda dimension: draw(dimension.distribution, rng))

    def first_trial(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Params:
        """A whole trial from some given values, the rest being the configuration's.

        Raises:
            InputError: A value lies outside its dimension, or names none.
        """
        for name in values:
            if name not in self.names:
                raise InputError(f"first_trials: {name} is no dimension of the search; {suggest(name, self.names)}")

        def choose(dimension: Dimension) -> Any:
            value = values.get(dimension.name, defaults[dimension.name])
            if not inside(dimension.distribution, value):
                origin = "" if dimension.name in values else ", which is the configuration's value,"
                raise InputError(
                    f"first trial outside the space: {dimension.name}={value}{origin} is not in "
                    f"{describe(dimension.distribution)}; widen the dimension, or search without "
                    "first trials: 'first_trials=[]'"
                )
            return value

        return self._build(defaults, choose)

    def contains(self, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
        """Why a trial's values do not lie in the space; empty if they do, with a value for all that exists in it."""
        taken, reason = self._take(params, defaults)
        for name in params:
            if not reason and name not in taken:
                known = name in self.names
                reason = f"{name} does not exist with the other values" if known else f"{name} is no dimension any more"
        return reason

    def fit(
        self,
        params: Mapping[str, Any],
        config: Mapping[str, Any],
        defaults: Mapping[str, Any],
        ignore: Collection[str] = (),
    ) -> tuple[Params | None, str]:
        """What an earlier trial, perhaps of another space, is in this one.

        A dimension that it did not search has the value of its configuration. Whatever is no dimension here, or does
        not exist with its values, must have been as it is now, or its result is that of another experiment.

        Args:
            params: What it searched.
            config: Its whole configuration, by full override name.
            defaults: The present configuration, likewise.
            ignore: Names that may differ, such as where the data lie.

        Returns:
            Its values in this space; None if it does not fit, and the reason.
        """
        then = {**config, **params}
        for dimension in self.dimensions:
            if dimension.name in then:
                then[dimension.name] = snapped(dimension.distribution, then[dimension.name])
        taken, reason = self._take(then, defaults)
        for name in dict.fromkeys([*defaults, *then]):
            if not reason and name not in taken and name not in ignore:
                reason = _difference(name, then, defaults)
        return (None, reason) if reason else (taken, "")

    def grid(self, points: int, defaults: Mapping[str, Any]) -> list[Params]:
        """Every combination of values, without those of dimensions that do not exist in it.

        Args:
            points: How many values of a dimension, if it has more: evenly spread, ends included. Choices come all.
            defaults: The configuration's value of every name that a condition may refer to.

        Raises:
            InputError: Fewer than 2 points, or too many combinations.
        """
        if points < 2:
            raise InputError(f"a grid of {points} points a dimension has no ends; take 2 or more")
        combinations: list[Params] = [{}]
        for dimension in self.dimensions:
            exists = [dimension.exists({**defaults, **params}) for params in combinations]
            size = count(dimension.distribution)
            size = size if isinstance(dimension.distribution, CategoricalDistribution) else min(size, points)
            if len(exists) + sum(exists) * (size - 1) > GRID_LIMIT:
                raise InputError(
                    f"the grid has more than {GRID_LIMIT:,} combinations; take fewer points, or fix dimensions"
                )
            values = spread(dimension.distribution, points) if any(exists) else []
            combinations = [
                {**params, **chosen}
                for params, has in zip(combinations, exists, strict=True)
                for chosen in ([{dimension.name: value} for value in values] if has else [{}])
            ]
        return combinations

    def with_overrides(self, swept: Mapping[str, Dimension], pinned: Sequence[str]) -> Space:
        """This space with dimensions replaced or added, and those taken out that have a fixed value now.

        Those that never exist now, since what they depend on was narrowed, go as well.

        Raises:
            InputError: A replaced one never exists now.
        """
        kept = {d.name: d for d in self.dimensions if d.name not in pinned}
        for name, dimension in swept.items():
            when = kept[name].when if name in kept else {}
            kept[name] = Dimension(name, dimension.distribution, when)
        parents = Space([Dimension(d.name, d.distribution, {}) for d in kept.values() if not d.when])
        return Space([d for d in kept.values() if d.name in swept or not parents._never(d)])

    def explain(self, defaults: Mapping[str, Any]) -> list[SpaceRow]:
        """The space for people, a row for each dimension.

        Args:
            defaults: The configuration's value of every dimension, and of every name that a condition refers to.
        """
        return [
            SpaceRow(
                name=dimension.name,
                range=extent(dimension.distribution),
                scale=scale(dimension.distribution),
                default=defaults[dimension.name],
                inside=inside(dimension.distribution, defaults[dimension.name]),
                condition=" and ".join(self._condition(*each, defaults) for each in dimension.when.items()),
            )
            for dimension in self.dimensions
        ]

    def _build(self, defaults: Mapping[str, Any], choose: Callable[[Dimension], Any]) -> Params:
        """Values of the dimensions that exist, parents chosen first."""
        params: Params = {}
        for dimension in self.dimensions:
            if dimension.exists({**defaults, **params}):
                params[dimension.name] = choose(dimension)
        return params

    def _take(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Params, str]:
        """Those of some values that this space searches, and why they are not all it needs."""
        reasons: list[str] = []

        def choose(dimension: Dimension) -> Any:
            value = values.get(dimension.name)
            if dimension.name not in values:
                reasons.append(f"{dimension.name} is new")
            elif not inside(dimension.distribution, value):
                reasons.append(f"{dimension.name}: {value} is not in {describe(dimension.distribution)}")
            return value

        return self._build(defaults, choose), reasons[0] if reasons else ""

    def _never(self, dimension: Dimension) -> str:
        """Why no values of the space can meet a dimension's conditions; empty if some can."""
        for name, condition in dimension.when.items():
            parent = next((each for each in self.dimensions if each.name == name), None)
            # One that may not exist may have the configuration's value, whatever that is.
            if parent is not None and not parent.when and not can_meet(parent.distribution, condition):
                asked = describe_condition(name, condition)
                return f"it asks that {asked}, but {name} is in {describe(parent.distribution)}"
        return ""

    def _condition(self, name: str, condition: Condition, defaults: Mapping[str, Any]) -> str:
        never = name not in self.names and not meets(defaults[name], condition)
        return describe_condition(name, condition) + (f" (never: it is {word(defaults[name])})" if never else "")


def show(space: Space, defaults: Mapping[str, Any]) -> str:
    """A space as a table for people."""
    table = [["name", "range", "scale", "default", "condition"]]
    for row in space.explain(defaults):
        default = word(row.default) + ("" if row.inside else " (outside)")
        table.append([row.name, row.range, row.scale, default, row.condition])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.ljust, cells, widths)) for cells in table)
    return "\n".join(line.rstrip() for line in lines)


def parse_space(entries: Mapping[str, Any], where: str) -> Space:
    """A space from the `space:` part of a YAML file.

    Args:
        entries: By full override name: an expression, or a mapping of `sweep` and `when`.
        where: The file, for messages.

    Raises:
        InputError: An entry is malformed, or the conditions make no sense together.
    """
    dimensions = []
    for name, entry in entries.items():
        sweep, when = entry, {}
        if isinstance(entry, Mapping):
            if not {"sweep"} <= set(entry) <= {"sweep", "when"}:
                raise InputError(f"{where}: {name} needs `sweep:` and may have `when:`, not {', '.join(entry)}")
            sweep, when = entry["sweep"], entry.get("when", {})
            if not isinstance(when, Mapping):
                raise InputError(f"{where}: {name}: `when:` is like {{recipe.other: value}}, not {when}")
        dimension = parse_dimension(f"{name}={sweep}", where)
        if dimension is None:
            raise InputError(f"{where}: {name}: {sweep} is one value, not a range; write interval, range or choice")
        conditions = {key: parse_condition(value, f"{where}: {name}: when {key}") for key, value in when.items()}
        dimensions.append(Dimension(name, dimension.distribution, conditions))
    try:
        return Space(dimensions)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def parse_dimension(text: str, where: str = "") -> Dimension | None:
    """A dimension from `name=expression`; None if the expression is a plain value.

    Raises:
        InputError: The text is not in Hydra's override grammar, or the range is empty or impossible.
    """
    parsed = parse_sweep(text, where)
    return Dimension(*parsed, {}) if parsed else None


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _check_comparisons(dimension: Dimension, distributions: Mapping[str, BaseDistribution]) -> None:
    for name, condition in dimension.when.items():
        choices = getattr(distributions.get(name), "choices", None)
        if isinstance(condition, Comparison) and choices and not any(map(is_number, choices)):
            raise InputError(
                f"{dimension.name}: {describe_condition(name, condition)} compares numbers, but {name} is in "
                f"{describe(distributions[name])}; name the values that it must have"
            )


def _difference(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name not in now:
        return f"{name} was {word(then[name])}, is no value any more"
    if name not in then:
        return f"{name} is new"
    return "" if close(then[name], now[name]) else f"{name} was {word(then[name])}, is {word(now[name])}"


def _parents_first(dimensions: Sequence[Dimension]) -> list[Dimension]:
    for dimension in dimensions:
        if dimension.name in dimension.when:
            raise InputError(f"{dimension.name}: its `when:` names itself; it can only name others")
    waiting = {dimension.name: dimension for dimension in dimensions}
    ordered: list[Dimension] = []
    while waiting:
        ready = [d for d in waiting.values() if not any(name in waiting for name in d.when)]
        if not ready:
            raise InputError(f"the conditions of {', '.join(waiting)} form a circle; one of them must have no `when:`")
        for dimension in ready:
            ordered.append(waiting.pop(dimension.name))
    return ordered
