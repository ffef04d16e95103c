"""The configurations at the corners of a space that are tried before a search of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution

from pharos.ranges import count, inside, spread
from pharos.space import Dimension, Params, Space

LIMIT = 12
_DRAWS = 500


def corners(space: Space, defaults: Mapping[str, Any]) -> dict[str, Params]:
    """Configurations by what they are: at most LIMIT, distinct.

    The defaults; all numbers at their low ends; and all at their high ends, once with the first of all choices, once
    with the second of each, and so on, until each was there. What none of them has, as it takes other choices
    together, is drawn. So shapes and memory are at their extremes, and every value of a choice is in one of them.

    Args:
        space: What is searched.
        defaults: The configuration's values.
    """

    def at(choose: Callable[[Dimension], Any]) -> Params:
        return space.first_trial({each.name: choose(each) for each in space.dimensions}, defaults)

    def default(each: Dimension) -> Any:
        value = defaults[each.name]
        return value if inside(each.distribution, value) else spread(each.distribution, 2)[0]

    def is_choice(each: Dimension) -> bool:
        return isinstance(each.distribution, CategoricalDistribution)

    choices = [int(count(each.distribution)) for each in space.dimensions if is_choice(each)]
    found = {"the defaults": at(default)}
    found["all low"] = at(lambda each: default(each) if is_choice(each) else spread(each.distribution, 2)[0])
    for turn in range(max(choices, default=1)):

        def high(each: Dimension, turn: int = turn) -> Any:
            values = spread(each.distribution, 2)
            return values[turn % len(values)] if is_choice(each) else values[-1]

        found["all high" + (f", choices {turn + 1}" if choices else "")] = at(high)
    rng = np.random.default_rng(0)
    missing = set(space.names) - {name for params in found.values() for name in params}
    for _ in range(_DRAWS if missing else 0):
        drawn = space.sample(rng, defaults)
        if new := missing & set(drawn):
            found[f"drawn, for {min(new)}"] = drawn
            missing -= new
    distinct: dict[str, Params] = {}
    for name, params in found.items():
        if params not in distinct.values():
            distinct[name] = params
    return dict(list(distinct.items())[:LIMIT])
