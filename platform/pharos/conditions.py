"""Conditions under which a dimension exists: what the value of another one must be."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.errors import InputError
from pharos.grammar import word
from pharos.ranges import close, inside, is_number

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "!=": operator.ne}
# Two signs, or one with a number or a space after it: a word such as <none> is no comparison.
_COMPARISON = re.compile(r"([<>=!]{2}|[<>=](?=[\s\d.+-]))\s*(.*)")


@dataclass(frozen=True)
class Comparison:
    """The numbers on one side of another, such as `>= 3`; `value in comparison` says whether one is among them."""

    operator: str
    number: int | float

    def __contains__(self, value: object) -> bool:
        if not is_number(value):
            return False
        # 3 * 0.1 is 0.3 here as well, whatever binary makes of it.
        if close(value, self.number):
            return self.operator in ("<=", ">=")
        return bool(_OPERATORS[self.operator](value, self.number))

    def __str__(self) -> str:
        return f"{self.operator} {self.number}"


Condition = tuple[Any, ...] | Comparison
"""What another dimension's value must be: one of some, or a number on one side of another."""


def parse_condition(value: Any, where: str) -> Condition:
    """A condition from its YAML: a comparison such as `">= 3"`, a value, or a list of alternative values.

    Raises:
        InputError: A comparison is not with a number or not one of those known, or there are no alternatives.
    """
    if isinstance(value, list):
        if mixed := [each for each in value if isinstance(each, str) and _COMPARISON.fullmatch(each.strip())]:
            raise InputError(f"{where}: '{mixed[0]}' is a comparison, which stands alone; a list is of values")
        if not value:
            raise InputError(f"{where}: [] has no value; write one, or a list of alternatives")
        return tuple(value)
    found = _COMPARISON.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        return (value,)
    number = _number(found[2])
    if found[1] not in _OPERATORS or number is None:
        raise InputError(
            f"{where}: '{value}' is no comparison; write <, <=, >, >= or != and a number, or the value alone"
        )
    return Comparison(found[1], number)


def condition_entry(condition: Condition) -> Any:
    """A condition as YAML has it."""
    if isinstance(condition, Comparison):
        return str(condition)
    alone = len(condition) == 1 and not isinstance(condition[0], list)
    return condition[0] if alone else list(condition)


def describe_condition(name: str, condition: Condition) -> str:
    """A condition in words."""
    if isinstance(condition, Comparison):
        return f"{name} {condition}"
    return f"{name} is {' or '.join(map(word, condition))}"


def meets(value: Any, condition: Condition) -> bool:
    """Whether a value meets a condition."""
    if value in condition:
        return True
    return isinstance(condition, tuple) and any(close(value, alternative) for alternative in condition)


def can_meet(distribution: BaseDistribution, condition: Condition) -> bool:
    """Whether a value in a distribution meets a condition."""
    if isinstance(condition, tuple):
        return any(inside(distribution, value) for value in condition)
    if isinstance(distribution, CategoricalDistribution):
        return any(choice in condition for choice in distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    # If any number in a range meets a comparison, one of its ends does.
    return distribution.low in condition or distribution.high in condition


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if isinstance(number, int) or math.isfinite(number) else None
    return None
