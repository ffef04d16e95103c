"""Population-based training: the worst give their places to changed copies of the best.

In Pharos a trial's values never change. Where the paper lets a member of the population take another's weights and
values, here that member's trial ends, and a new trial starts from the other's checkpoint, with values of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.errors import InputError
from pharos.families import suggest
from pharos.ranges import draw
from pharos.schedulers.base import GO_ON, Action, Clone, Decision, Scheduler
from pharos.schedulers.rungs import HAS_ENDED, Ladder, fidelity_at, ordinal, require_finite
from pharos.search.fronts import Losses
from pharos.space import Params, Space
from pharos.trial import Outcome

# Each of a clone's values is drawn anew so often. Otherwise a number is multiplied by one of the factors, and a choice
# stays.
_RESAMPLED = 0.25
_FACTORS = (0.8, 1.2)


class Pbt(Scheduler):
    """Population-based training (Jaderberg et al. 2017: truncation selection, perturb and resample, section 4.1).

    At every interval a trial that is among the worst `quantile` of all that reached that fidelity so far is stopped.
    Its place, and that of a trial that diverged or ran out of memory, goes to a clone of one of the best `quantile`
    that still run, at the newest fidelity that enough of the population reached. A place is free once the trial has
    ended, and filled once a trial was started that replaces it. A clone counts from its own first report on.

    Args:
        max_fidelity: Of a whole trial; nothing is stopped there.
        space: Of the search.
        defaults: The configuration's value of every name that a condition may refer to.
        population: How many trials there are at a time.
        interval: Share of a whole trial between two comparisons, in (0, 1).
        quantile: Share of the population that is replaced, and that donates, in (0, 0.5].
        keep: Names of values that clones take over unchanged.
        seed: Of the clones' values.

    Attributes:
        population: As given.
        interval: In fidelity.
        needed: How many trials must have reached a fidelity before one of them is the worst there: half the
            population, and four if there are so many.

    Raises:
        InputError: A name to keep is none of the space.
    """

    def __init__(  # noqa: PLR0917
        self,
        max_fidelity: int,
        space: Space,
        defaults: Mapping[str, Any],
        population: int,
        interval: float,
        quantile: float = 0.25,
        keep: Sequence[str] = (),
        seed: int = 0,
    ):
        for name in keep:
            if name not in space.names:
                raise InputError(f"scheduler.keep: {name} is no dimension of the search; {suggest(name, space.names)}")
        self.population = population
        self.interval = fidelity_at(interval, max_fidelity)
        self.needed = max(2, population // 2, min(4, population))
        self._max_fidelity = max_fidelity
        self._space = space
        self._defaults = dict(defaults)
        self._quantile = quantile
        self._keep = frozenset(keep)
        self._seed = seed % 2**32
        self._ladder = Ladder(range(self.interval, max_fidelity, self.interval))
        self._living: dict[int, Params] = {}
        self._ended: set[int] = set()
        self._clones: set[int] = set()
        self._vacant: set[int] = set()  # trials whose place is to be filled
        self._filled: set[int] = set()  # trials whose place was

    def on_start(self, trial: int, params: Params, replaces: int | None = None) -> None:
        self._living[trial] = params
        if replaces is not None:
            self._clones.add(trial)
            self._filled.add(replaces)
            self._vacant.discard(replaces)

    def on_report(self, trial: int, fidelity: int, losses: Losses) -> Decision:
        require_finite(losses)
        if trial in self._ended:
            return HAS_ENDED
        if trial in self._clones:
            self._ladder.start_at(trial, fidelity)
        level = self._ladder.enter(trial, fidelity, losses)
        if level is None or fidelity >= self._max_fidelity:
            return GO_ON
        rung = self._ladder.rungs[level]
        place, seen = rung.place(trial, losses), len(rung)
        # Without a donor its place would stay empty, and it may as well go on.
        if seen < self.needed or place < seen - self._share(seen) or not self._donors(but=trial):
            return GO_ON
        worst = "quarter" if self._quantile == 0.25 else f"{self._quantile:.0%}"
        where = f"at epoch {self._ladder.fidelities[level]} ({ordinal(place + 1)} of {seen})"
        return Decision(Action.STOP, f"in the worst {worst} {where}: replaced")

    def on_end(self, trial: int, outcome: Outcome) -> None:
        if not outcome.is_final:
            return
        self._ended.add(trial)
        self._living.pop(trial, None)
        is_replaced = outcome in (Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)
        if is_replaced and trial not in self._filled:
            self._vacant.add(trial)

    def next(self) -> Clone | None:
        donors = self._donors() if self._vacant else []
        if not donors:
            return None
        replaces = min(self._vacant)
        # From the trial's number, not from how many were drawn before: asked again, it says the same.
        rng = np.random.default_rng([self._seed, replaces])
        donor = donors[int(rng.integers(len(donors)))]
        return Clone(donor, replaces, self._explore(rng, self._living[donor]))

    def _share(self, seen: int) -> int:
        """How many of so many are the best, or the worst."""
        return max(1, math.floor(round(seen * self._quantile, 6)))

    def _donors(self, but: int | None = None) -> list[int]:
        """The living of the best at the newest fidelity that enough trials reached; if few live, all of those."""
        for rung in reversed(self._ladder.rungs):
            if len(rung) >= max(1, min(self.needed, len(self._living))):
                best = rung.best(self._share(len(rung)))
                if living := [trial for trial in best if trial in self._living and trial != but]:
                    return living
        return []

    def _explore(self, rng: np.random.Generator, donor: Params) -> Params:
        """A clone's values: the donor's, changed; those that a changed condition brings in are drawn."""
        params: Params = {}
        for dimension in self._space.dimensions:
            name, distribution = dimension.name, dimension.distribution
            if not dimension.exists({**self._defaults, **params}):
                continue
            if name not in donor:
                params[name] = draw(distribution, rng)
            elif name in self._keep:
                params[name] = donor[name]
            elif rng.random() < _RESAMPLED:
                params[name] = draw(distribution, rng)
            elif isinstance(distribution, CategoricalDistribution):
                params[name] = donor[name]
            else:
                params[name] = fitted(donor[name] * _FACTORS[int(rng.integers(2))], distribution)
        return params


def fitted(value: float, distribution: BaseDistribution) -> float | int:
    """The nearest number that a distribution has."""
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    value = min(max(float(value), low), high)
    if step is None:
        return value
    steps = round((value - low) / step)
    if isinstance(distribution, IntDistribution):
        return distribution.low + steps * distribution.step
    # In decimals, as the range was written (`pharos.space`): in binary, three times 0.1 is not 0.3.
    return float(Decimal(str(low)) + steps * Decimal(str(step)))
