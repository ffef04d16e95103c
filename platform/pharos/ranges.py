"""What a dimension's distribution holds: which values lie in it, random ones, and evenly spread ones."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, TypeGuard

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether this is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def close(a: Any, b: Any) -> bool:
    """Whether two values are one: numbers with a part per billion between them, lists element by element."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(close, a, b))
    if is_number(a) and is_number(b) and (isinstance(a, float) or isinstance(b, float)):
        return math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def inside(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return is_number(value) and bool(distribution._contains(value))


def snapped(distribution: BaseDistribution, value: Any) -> Any:
    """A value as the distribution has it: its own type, and its ends where it is close to them."""
    if isinstance(distribution, CategoricalDistribution):
        return next((choice for choice in distribution.choices if close(choice, value)), value)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if not is_number(value):
        return value
    if isinstance(distribution, IntDistribution):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    return next((end for end in (distribution.low, distribution.high) if close(end, value)), float(value))


def count(distribution: BaseDistribution) -> float:
    """How many values it has; infinite for floats without a step."""
    if isinstance(distribution, CategoricalDistribution):
        return len(dict.fromkeys(distribution.choices))
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.step is None:
        return math.inf
    return round((distribution.high - distribution.low) / distribution.step) + 1


def draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A random value, each as likely as any other; on a logarithmic scale, each ratio."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[rng.integers(len(distribution.choices))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution) and distribution.log:
        # Half beyond the ends, as Optuna does, so that the end values' shares are whole, too.
        value: int | float = round(math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))
    elif distribution.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    elif distribution.step is None:
        value = float(rng.uniform(low, high))
    else:
        value = _step(distribution, int(rng.integers(int(count(distribution)))))
    # Rounding may lead out of it by a last digit.
    return min(high, max(low, value))


def spread(distribution: BaseDistribution, points: int) -> list[Any]:
    """All values if they are at most so many, else so many of them, evenly spread from end to end.

    Args:
        distribution: Choices come all.
        points: At least 2.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(dict.fromkeys(distribution.choices))
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, size = distribution.low, distribution.high, count(distribution)
    if size <= points:
        return [_step(distribution, step) for step in range(int(size))]
    if distribution.step is None:
        evenly = np.geomspace if distribution.log else np.linspace
        return list(dict.fromkeys(evenly(low, high, points).tolist()))
    if not distribution.log:
        # Whole numbers all the way: spread over size > points steps and rounded, no two are the same.
        gaps = points - 1
        return [_step(distribution, (2 * i * (int(size) - 1) + gaps) // (2 * gaps)) for i in range(points)]
    values: list[int] = []
    for even in np.geomspace(low, high, points).tolist():
        # Small ones round to the same number: each goes up to the next that is free. The gaps grow, so that none
        # is pushed beyond what is left for those above.
        values.append(max(round(even), values[-1] + 1) if values else round(even))
    return values


def _step(distribution: FloatDistribution | IntDistribution, steps: int) -> int | float:
    """The value so many steps above the lowest: in decimals, since in binary 3 * 0.1 is not 0.3."""
    if isinstance(distribution, IntDistribution):
        return distribution.low + steps * distribution.step
    return min(distribution.high, float(Decimal(str(distribution.low)) + steps * Decimal(str(distribution.step))))
