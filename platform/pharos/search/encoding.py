"""A space as numbers: the unit cube that a sampler draws from, and the features that a model measures distances in.

A configuration is a row of one number in [0, 1] for each dimension of the space, in the space's order:

    dimension       the row's number                                    features
    float           its place in the range (of logarithms, if log)      the same
    int, stepped    the middle of its share of the range; every value   its place between the lowest and the highest
                    has an equal share, or an equal one of logarithms   value, from 0 to 1
    choice          the middle of one of as many equal shares           a column a choice, 1/sqrt(2) at the one that is
                                                                        chosen: two choices are at distance 1
    does not exist  a half                                              a half; a choice: zeros

So uniform rows are uniform configurations, whatever the dimensions' kinds. A dimension that does not exist has no
feature that says so: its parents, which decide it, are features themselves.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Hashable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.conditions import Condition, meets
from pharos.ranges import close, count, inside
from pharos.space import Params, Space

ABSENT = 0.5
"""The row's number for a dimension that does not exist."""


class Encoder:
    """Translates a space's configurations to rows and features, and back.

    Args:
        space: Of D dimensions.
        defaults: The configuration's value of every name that a condition may refer to.

    Attributes:
        groups: For each feature column, the dimension that it belongs to. [F]
        size: How many different configurations there are, conditions left aside; infinite with any float.
    """

    def __init__(self, space: Space, defaults: Mapping[str, Any]):
        self._space = space
        self._defaults = dict(defaults)
        self._axes = [_axis(dimension.distribution) for dimension in space.dimensions]
        self._place = {name: place for place, name in enumerate(space.names)}
        self.groups = np.repeat(np.arange(len(self._axes)), [axis.columns for axis in self._axes])
        self.size = math.prod(axis.size for axis in self._axes)

    def row(self, params: Mapping[str, Any]) -> np.ndarray | None:
        """The row of a configuration; None if it does not lie in the space. [D]"""
        row = np.full(len(self._axes), ABSENT)
        for place, dimension in enumerate(self._space.dimensions):
            if not dimension.exists({**self._defaults, **params}):
                continue
            unit = self._axes[place].unit(params[dimension.name]) if dimension.name in params else None
            if unit is None:
                return None
            row[place] = unit
        return row

    def params(self, row: np.ndarray) -> Params:
        """The configuration of a row, of the dimensions that exist in it."""
        params: Params = {}
        for place, dimension in enumerate(self._space.dimensions):
            if dimension.exists({**self._defaults, **params}):
                params[dimension.name] = self._axes[place].value(float(row[place]))
        return params

    def settle(self, rows: np.ndarray) -> np.ndarray:
        """Rows moved to the middle of their shares, and to a half where a dimension does not exist. [N, D]"""
        exists = self.exists(rows)
        settled = np.full(rows.shape, ABSENT)
        for place, axis in enumerate(self._axes):
            settled[:, place] = np.where(exists[:, place], axis.middle(rows[:, place]), ABSENT)
        return settled

    def exists(self, rows: np.ndarray) -> np.ndarray:
        """Which dimensions exist in which row, as bools. [N, D]"""
        exists = np.ones(rows.shape, dtype=bool)
        for place, dimension in enumerate(self._space.dimensions):
            for name, condition in dimension.when.items():
                # What is no dimension, or one that does not exist, has the configuration's value.
                default = meets(self._defaults.get(name), condition)
                if (parent := self._place.get(name)) is None:
                    exists[:, place] &= default
                else:
                    met = self._axes[parent].meets(rows[:, parent], condition)
                    exists[:, place] &= np.where(exists[:, parent], met, default)
        return exists

    def features(self, rows: np.ndarray) -> np.ndarray:
        """What a model sees of rows that are settled. [N, F]"""
        exists = self.exists(rows)
        return np.concatenate(
            [axis.features(rows[:, place], exists[:, place]) for place, axis in enumerate(self._axes)], axis=1
        )

    def key(self, row: np.ndarray) -> Hashable:
        """The same for rows of the same configuration, different otherwise."""
        return row.round(12).tobytes()


class _Axis(abc.ABC):
    """One dimension's numbers.

    Attributes:
        columns: How many features it has.
        size: How many values.
    """

    columns = 1
    size: float = math.inf

    @abc.abstractmethod
    def unit(self, value: Any) -> float | None:
        """A value's number; None if it is none of the dimension's."""

    @abc.abstractmethod
    def value(self, unit: float) -> Any:
        """The value at a number."""

    @abc.abstractmethod
    def middle(self, units: np.ndarray) -> np.ndarray:
        """The numbers, each moved to the middle of its value's share. [N]"""

    @abc.abstractmethod
    def features(self, units: np.ndarray, exists: np.ndarray) -> np.ndarray:
        """The features of numbers that are in their shares' middles. [N, columns]"""

    def meets(self, units: np.ndarray, condition: Condition) -> np.ndarray:
        """Whether the values at the numbers meet a condition. [N]"""
        different, places = np.unique(self.middle(units), return_inverse=True)
        return np.array([meets(self.value(float(unit)), condition) for unit in different], dtype=bool)[places]


class _Line(_Axis):
    """A float with no step."""

    def __init__(self, distribution: FloatDistribution):
        self._distribution = distribution
        self._low, self._high, self._log = distribution.low, distribution.high, distribution.log
        self._ends = (math.log(self._low), math.log(self._high)) if self._log else (self._low, self._high)

    def unit(self, value: Any) -> float | None:
        if not inside(self._distribution, value):
            return None
        low, high = self._ends
        return min(1.0, max(0.0, ((math.log(value) if self._log else value) - low) / ((high - low) or 1.0)))

    def value(self, unit: float) -> float:
        low, high = self._ends
        at = low + unit * (high - low)
        return min(self._high, max(self._low, math.exp(at) if self._log else at))

    def middle(self, units: np.ndarray) -> np.ndarray:
        return units

    def features(self, units: np.ndarray, exists: np.ndarray) -> np.ndarray:
        return units[:, None]


class _Steps(_Axis):
    """An int, or a float with a step: `low + k * step` for k from 0 to size - 1."""

    def __init__(self, distribution: IntDistribution | FloatDistribution):
        self._distribution = distribution
        self._low, self._step = distribution.low, distribution.step or 1
        self._log, self._whole = distribution.log, isinstance(distribution, IntDistribution)
        self.size = count(distribution)
        # Half a step beyond the ends, so that the end values' shares are as large as the others'.
        self._ends = (math.log(self._low - 0.5), math.log(distribution.high + 0.5)) if self._log else (0.0, self.size)

    def unit(self, value: Any) -> float | None:
        if not inside(self._distribution, value):
            return None
        return float(self._unit_of(np.array(float(round((value - self._low) / self._step)))))

    def value(self, unit: float) -> int | float:
        steps = int(self._steps(np.array([unit]))[0])
        if self._whole:
            return int(self._low + steps * self._step)
        # In decimals: in binary 3 * 0.1 is not 0.3.
        value = float(Decimal(str(self._low)) + steps * Decimal(str(self._step)))
        return min(self._distribution.high, value)

    def middle(self, units: np.ndarray) -> np.ndarray:
        return self._unit_of(self._steps(units))

    def features(self, units: np.ndarray, exists: np.ndarray) -> np.ndarray:
        if self.size == 1:
            return np.full((len(units), 1), ABSENT)
        steps = self._steps(units)
        first, last = self._scale(np.array([0.0, self.size - 1.0]))
        return np.where(exists, (self._scale(steps) - first) / (last - first), ABSENT)[:, None]

    def _scale(self, steps: np.ndarray) -> np.ndarray:
        """Where a value stands: in the middle of its share, on a logarithmic scale its logarithm."""
        return np.log(self._low + steps) if self._log else steps + 0.5

    def _steps(self, units: np.ndarray) -> np.ndarray:
        low, high = self._ends
        at = low + units * (high - low)
        steps = np.round(np.exp(at) - self._low) if self._log else np.floor(at)
        return np.asarray(np.clip(steps, 0, self.size - 1), dtype=float)

    def _unit_of(self, steps: np.ndarray) -> np.ndarray:
        low, high = self._ends
        return np.asarray((self._scale(steps) - low) / (high - low))


class _Choices(_Axis):
    """One of some values that have no order."""

    def __init__(self, distribution: CategoricalDistribution):
        self._choices = distribution.choices
        self.columns = self.size = len(self._choices)

    def unit(self, value: Any) -> float | None:
        places = [index for index, choice in enumerate(self._choices) if close(choice, value)]
        return (places[0] + 0.5) / self.columns if places else None

    def value(self, unit: float) -> Any:
        return self._choices[min(int(unit * self.columns), self.columns - 1)]

    def middle(self, units: np.ndarray) -> np.ndarray:
        return np.asarray((self._indices(units) + 0.5) / self.columns)

    def features(self, units: np.ndarray, exists: np.ndarray) -> np.ndarray:
        chosen = self._indices(units)[:, None] == np.arange(self.columns)
        return np.asarray((chosen & exists[:, None]) * math.sqrt(0.5))

    def _indices(self, units: np.ndarray) -> np.ndarray:
        return np.asarray(np.minimum((units * self.columns).astype(int), self.columns - 1))


def _axis(distribution: BaseDistribution) -> _Axis:
    if isinstance(distribution, CategoricalDistribution):
        return _Choices(distribution)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        return _Line(distribution)
    return _Steps(distribution)
