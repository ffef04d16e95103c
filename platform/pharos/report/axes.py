"""A dimension as an axis: every kind of range on 0 to 1, with marks at values that people would choose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.grammar import word
from pharos.report.style import plain, short
from pharos.space import Dimension

_MARKS = 5
_WORDS = 14
_LONGEST = 12


@dataclass(frozen=True)
class Axis:
    """One dimension of the space.

    Attributes:
        name: Its full override name.
        distribution: Its range now.
        choices: The values of a choice, those included that trials had before the space changed.
        is_conditional: Whether it exists only with some values of others.
    """

    name: str
    distribution: BaseDistribution
    choices: tuple[Any, ...]
    is_conditional: bool

    @property
    def label(self) -> str:
        return plain(short(self.name))

    def at(self, value: Any) -> float:
        """Where a value lies: 0 and 1 are the ends of the range, or of its first and last choice."""
        if self.choices:
            # True is 1 to Python, not to a search.
            same = [i for i, each in enumerate(self.choices) if each == value and type(each) is type(value)]
            index = same[0] if same else self.choices.index(value)
            return (index + 0.5) / len(self.choices)
        assert isinstance(self.distribution, (FloatDistribution, IntDistribution))
        low, high = float(self.distribution.low), float(self.distribution.high)
        if high == low:
            return 0.5
        if self.distribution.log:
            return math.log(max(float(value), 1e-300) / low) / math.log(high / low)
        return (float(value) - low) / (high - low)

    def marks(self) -> tuple[list[float], list[str]]:
        """Where the axis has marks, and what they say."""
        values = self.choices[:_WORDS] if self.choices else self._values()
        return [round(self.at(value), 5) for value in values], [_cut(_mark(value)) for value in values]

    def layout(self, title: bool = True) -> dict[str, Any]:
        """As Plotly wants it."""
        positions, texts = self.marks()
        return {
            "range": [-0.04, 1.04],
            "tickmode": "array",
            "tickvals": positions,
            "ticktext": texts,
            **({"title": {"text": self.label}} if title else {}),
        }

    def _values(self) -> list[float]:
        assert isinstance(self.distribution, (FloatDistribution, IntDistribution))
        low, high = float(self.distribution.low), float(self.distribution.high)
        return _powers(low, high) if self.distribution.log else _steps(low, high)


def axes(dimensions: Iterable[Dimension], params: Iterable[dict[str, Any]]) -> list[Axis]:
    """The axes of a space, for the values that trials had."""
    rows = list(params)
    found = []
    for each in dimensions:
        choices: list[Any] = []
        if isinstance(each.distribution, CategoricalDistribution):
            for value in [*each.distribution.choices, *(row[each.name] for row in rows if each.name in row)]:
                if not any(value == known and type(value) is type(known) for known in choices):
                    choices.append(value)
        found.append(Axis(each.name, each.distribution, tuple(choices), bool(each.when)))
    return found


def _steps(low: float, high: float) -> list[float]:
    """Round numbers, evenly apart."""
    if not high > low:
        return [low]
    rough = (high - low) / _MARKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten, with what lies between them where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        values = [part * 10.0**exponent for exponent in exponents for part in parts]
        inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            return inside[:: max(1, -(-len(inside) // (_MARKS + 1)))]
    return [low, high]


def _mark(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return word(value)


def _cut(text: str) -> str:
    return plain(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
