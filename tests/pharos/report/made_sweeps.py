"""Sweeps of the toy family as a driver would have left them, without training anything."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

from pharos.config import make_plan
from pharos.folders import read_plan, write_plan
from pharos.records import Span, Usage
from pharos.report.story import Story, read_story
from pharos.storage import Storage
from pharos.study import Study
from pharos.trial import Ending, Outcome

Fate = tuple[Outcome, int, Sequence[float]]
"""How a trial ends, at which epoch, and with which objectives."""


def fates(count: int, seed: int = 0) -> list[Fate]:
    """Trials that end in every way."""
    rng = random.Random(seed)
    found: list[Fate] = []
    for number in range(count):
        outcome = (Outcome.COMPLETE, Outcome.PRUNED)[number % 3 == 2]
        if number % 11 == 10:
            outcome = (Outcome.DIVERGED, Outcome.FAILED, Outcome.OUT_OF_MEMORY)[number // 11 % 3]
        found.append((outcome, 4 if outcome == Outcome.COMPLETE else rng.choice((1, 2)), (rng.uniform(0.1, 1),)))
    return found


@dataclasses.dataclass
class Sweeps:
    """Makes sweeps and tells of them."""

    home: Path

    def make(
        self,
        ends: Sequence[Fate],
        overrides: Sequence[str] = (),
        *,
        name: str = "toy-sweep",
        reason: str = "rung 1: 3rd of 4, the best goes on",
        act: Callable[[Study], None] = lambda study: None,
    ) -> Storage:
        """The folder of a sweep whose trials ended so; `act` does something more to its study."""
        plan = make_plan("toy", [f"trials={max(1, len(ends))}", "tracking=none", *overrides])
        folder = Storage(str(self.home / name))
        write_plan(folder, plan)
        settings = plan.settings
        study = Study(
            Path(folder.root),
            settings.objectives,
            lambda known: optuna.samplers.RandomSampler(seed=known),
            constraints=settings.bounds,
        )
        study.enqueue(plan.first_trials)
        clock = {1: 1e9, 2: 1e9}
        for number, (outcome, length, values) in enumerate(ends):
            study.ask(plan.space, plan.defaults)
            for epoch in range(1, length + 1):
                study.report(number, epoch, tuple(value + 1 / epoch - 1 / length for value in values))
            process = 1 + number % 2
            began, clock[process] = clock[process] + 0.5, clock[process] + 0.5 + length
            metrics = {"peak_memory_gb": 1.0 + number, **dict(zip(settings.objectives.metrics, values, strict=True))}
            if outcome == Outcome.RUNNING:
                continue
            if outcome in (Outcome.PAUSED, Outcome.INTERRUPTED):
                study.records[number].attempt = Span(process, began, clock[process])
                (study.pause if outcome == Outcome.PAUSED else study.interrupt)(number)
                continue
            ending = Ending(
                outcome,
                "" if outcome == Outcome.COMPLETE else reason,
                length,
                metrics,
                float(length),
                process=process,
                started_at=began,
                ended_at=clock[process],
            )
            study.tell(number, ending)
        act(study)
        seconds = max(clock.values()) - 1e9
        study.set_usage(Usage(seconds, 2 * seconds))
        study.close()
        return folder

    def tell(self, ends: Sequence[Fate], overrides: Sequence[str] = (), **options: Any) -> Story:
        """The same, as it is told."""
        folder = self.make(ends, overrides, **options)
        return read_story(*read_plan(folder.root))
