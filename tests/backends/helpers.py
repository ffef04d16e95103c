"""What the tests of the Ray backend look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pharos.console import Console
from pharos.records import TrialRecord
from pharos.sweep import Sweep
from pharos.trial import Outcome, Report

TINY = ["scale=tiny", "recipe.epochs=12", "recipe.student_epochs=3", "scheduler.grace=0.4"]


class Listener(Console):
    """Remembers what a sweep says; may act on a report."""

    def __init__(self, on_report: Callable[[TrialRecord, Report], None] = lambda record, report: None) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.reported = on_report  # type: ignore[method-assign]

    def note(self, text: str) -> None:
        self.notes.append(text)


def rows(sweep: Sweep, number: int) -> list[dict[str, Any]]:
    text = Path(sweep.storage.path("trials", f"{number:05d}", "metrics.jsonl")).read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


def outcomes(sweep: Sweep) -> list[Outcome]:
    return [record.outcome for record in sweep.study.records.values()]
