"""The memory of the lab: finished trials of other sweeps, and of this one before its space changed, as evidence.

A trial is evidence where it could have been one of this search: its searched values lie in the present space, and all
else of its configuration is what it is now. What is not is left out, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pharos.config import reopen_plan
from pharos.errors import InputError
from pharos.folders import SWEEP_FILE, find_in, read_document
from pharos.plan import SEED, Plan
from pharos.records import TrialRecord
from pharos.storage import Storage
from pharos.study import Evidence, read_study
from pharos.trial import Outcome, trial_id

_TELLING = (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)


class Memory:
    """Collects evidence for a plan, and keeps count of what was carried over and what was not.

    Attributes:
        evidence: What was found to fit.
        note: By sweep: `carried`, a number of trials, and `left`, a number by reason.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self.evidence: list[Evidence] = []
        self.note: dict[str, Any] = {}

    def add(self, name: str, plan: Plan, records: Mapping[int, TrialRecord]) -> None:
        """Takes what fits of a sweep's trials.

        Args:
            name: The sweep's.
            plan: What it searched.
            records: Its trials.
        """
        present = self._plan
        before = [(each.metric, each.mode) for each in plan.settings.objectives]
        wanted = [(each.metric, each.mode) for each in present.settings.objectives]
        left: Counter[str] = Counter()
        carried = 0
        for record in records.values():
            if record.outcome not in _TELLING:
                left[f"{record.outcome}: it says nothing of its values"] += 1
                continue
            if not set(wanted) <= set(before):
                left[f"it compared {', '.join(metric for metric, _ in before)}"] += 1
                continue
            config = {**plan.defaults, **record.params}
            params, why_not = present.space.fit(record.params, config, present.defaults, ignore=(SEED,))
            if params is None:
                left[why_not] += 1
                continue
            columns = [before.index(each) for each in wanted]
            self.evidence.append(Evidence(f"{name}/{trial_id(record.number)}", params, self._seen(record, columns)))
            carried += 1
        self.note[name] = {"carried": carried, "left": dict(left)}

    def add_named(self, names: list[str]) -> None:
        """Takes what fits of the sweeps that were named.

        Raises:
            InputError: There is no such sweep, or it is of another family.
        """
        for name in names:
            folder = find_in(self._plan.settings.storage, name, SWEEP_FILE)
            document = read_document(folder)
            family = document["settings"]["family"]
            if family != self._plan.settings.family:
                raise InputError(f"warm_start: {name} is a sweep of {family}, not of {self._plan.settings.family}")
            self._add_folder(folder, document)

    def add_alike(self, home: Storage, besides: str) -> None:
        """Takes what fits of all sweeps in a folder that are of the same family and had the same data.

        Args:
            home: The folder.
            besides: The name of the sweep that is not to be looked at.
        """
        plan = self._plan
        for name in home.list():
            folder = home.sub(name)
            if name == besides or not folder.exists(SWEEP_FILE):
                continue
            try:
                document = read_document(folder)
                is_alike = document["settings"]["family"] == plan.settings.family and document["recipe"].get(
                    "data"
                ) == plan.config.get("data")
                if is_alike:
                    self._add_folder(folder, document)
            except InputError as error:
                self.note[name] = {"carried": 0, "left": {str(error): 0}}

    def _add_folder(self, folder: Storage, document: Mapping[str, Any]) -> None:
        plan = reopen_plan(document, [])
        records, _, _ = read_study(folder, folder.name, plan.settings.study.storage)
        self.add(folder.name, plan, records)

    def _seen(self, record: TrialRecord, columns: list[int]) -> TrialRecord:
        """A record as this sweep would have it."""

        def pick(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[column] for column in columns)

        violations = record.violations
        if record.outcome in (Outcome.COMPLETE, Outcome.PRUNED):
            found = {bound.metric: bound.violation(record.metrics) for bound in self._plan.settings.bounds}
            violations = {metric: violation for metric, violation in found.items() if violation is not None}
        return TrialRecord(
            record.number,
            record.params,
            record.outcome,
            curve={fidelity: pick(values) for fidelity, values in record.curve.items()},
            values=pick(record.values) if record.values is not None else None,
            violations=violations,
        )


def in_words(note: Mapping[str, Any]) -> list[str]:
    """What was carried over and what was not, a line a sweep."""
    lines = []
    for name, each in note.items():
        left = "; ".join(f"{count} not: {why}" for why, count in each["left"].items())
        lines.append(f"evidence: {each['carried']} trials of {name}" + (f"; {left}" if left else ""))
    return lines
