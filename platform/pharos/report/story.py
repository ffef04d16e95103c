"""What a report tells: a sweep's plan, trials and summary, read once and at one moment."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pharos.folders import read_document
from pharos.plan import Plan
from pharos.records import TrialRecord, best_record
from pharos.report.axes import Axis, axes
from pharos.search.objective import Objectives
from pharos.storage import Storage
from pharos.study import read_study
from pharos.summary import summarise
from pharos.trial import Outcome, trial_id

_USEFUL = (Outcome.COMPLETE, Outcome.RUNNING, Outcome.INTERRUPTED, Outcome.PAUSED)
_ENOUGH = 20


@dataclass(frozen=True)
class Judged:
    """Trials that can be compared, and by what.

    Attributes:
        records: The trials.
        values: Their first objective, of each.
        fidelity: At which; None: when they were complete.
    """

    records: list[TrialRecord]
    values: list[float]
    fidelity: int | None

    @property
    def where(self) -> str:
        """In words."""
        return "at the end" if self.fidelity is None else f"at epoch {self.fidelity}"


@dataclass(frozen=True)
class Story:
    """One sweep.

    Attributes:
        folder: Its folder.
        plan: What it searches.
        document: Its `sweep.yaml`.
        trials: By number.
        summary: See `pharos.summary`.
        told_at: When it was read, in seconds since 1970.
    """

    folder: Storage
    plan: Plan
    document: Mapping[str, Any]
    trials: dict[int, TrialRecord]
    summary: dict[str, Any]
    told_at: float

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def objectives(self) -> Objectives:
        return self.plan.settings.objectives

    @property
    def metric(self) -> str:
        """The first objective."""
        return self.objectives.first.metric

    @property
    def is_min(self) -> bool:
        """Whether less of the first objective is better."""
        return bool(self.objectives.first.mode == "min")

    @functools.cached_property
    def records(self) -> list[TrialRecord]:
        """In the order of their numbers."""
        return [self.trials[number] for number in sorted(self.trials)]

    @functools.cached_property
    def complete(self) -> list[TrialRecord]:
        """Those with a final value, that keep the constraints or do not."""
        return [r for r in self.records if r.outcome == Outcome.COMPLETE and r.values and is_finite(r.values)]

    @functools.cached_property
    def best(self) -> TrialRecord | None:
        return best_record(self.trials, self.objectives)

    @functools.cached_property
    def paper(self) -> TrialRecord | None:
        """The trial with the recipe's own values."""
        return next((record for record in self.records if self.plan.is_paper_trial(record.params)), None)

    @functools.cached_property
    def axes(self) -> list[Axis]:
        """Of the space as it is now."""
        return axes(self.plan.space.dimensions, (record.params for record in self.records))

    @functools.cached_property
    def judged(self) -> Judged:
        """As many trials as can be compared fairly: complete ones if they are enough, else all at an earlier epoch.

        Trials that were stopped early have no final value, but at the epochs that they reached they have one as good
        as any other's.
        """
        whole = Judged(self.complete, [(r.values or ())[0] for r in self.complete], None)
        fidelities = sorted({fidelity for record in self.records for fidelity in record.curve}, reverse=True)
        reached = {f: [r for r in self.records if f in r.curve and is_finite(r.curve[f])] for f in fidelities}
        wanted = min(_ENOUGH, max(map(len, reached.values()), default=0))
        if len(whole.records) >= wanted:
            return whole
        fidelity = next(f for f in fidelities if len(reached[f]) >= wanted)
        return Judged(reached[fidelity], [r.curve[fidelity][0] for r in reached[fidelity]], fidelity)

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value of the first objective is better than another."""
        return value < than if self.is_min else value > than

    def at_best(self, values: list[float]) -> float:
        """The best of values of the first objective."""
        return min(values) if self.is_min else max(values)


def read_story(folder: Storage, plan: Plan) -> Story:
    """A sweep as it stands, also while it runs.

    Raises:
        InputError: Its study is missing.
    """
    trials, usage, notes = read_study(folder, folder.name, plan.settings.study.storage)
    summary = summarise(folder.name, plan, folder, trials, usage=usage, notes=notes)
    return Story(folder, plan, read_document(folder), trials, summary, time.time())


def is_finite(values: tuple[float, ...]) -> bool:
    """Whether all are numbers to draw."""
    return all(math.isfinite(value) for value in values)


def purpose(record: TrialRecord) -> str:
    """What a trial's time was for: `useful`, `pruned` or `lost`, as `cpu_hours` in the summary counts it."""
    if record.outcome in _USEFUL:
        return "useful"
    return "pruned" if record.outcome == Outcome.PRUNED else "lost"


def identity(record: TrialRecord) -> str:
    """A trial's name in the page."""
    return trial_id(record.number)
