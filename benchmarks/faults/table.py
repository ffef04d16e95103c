"""The fault suite's table, for the terminal and for docs/faults.md."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Sequence

from benchmarks.faults.fault import ROOT
from benchmarks.faults.verdict import Status, Verdict

PAGE = ROOT / "docs/faults.md"
_BEGIN, _END = "<!-- the table: make faults ARGS=--write -->", "<!-- the table ends -->"
_HEADER = (
    "struck",
    "moment",
    "the promise",
    "finished lost",
    "run twice",
    "epochs again",
    "numbers changed",
    "sweep completed",
    "time lost, s",
)


def table(found: Sequence[Verdict]) -> str:
    """In Markdown, a row for each case."""
    rows = [_HEADER, ("---", "---", "---", "--:", "--:", "--:", "--:", "---", "--:"), *map(_row, found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def put_into_page(found: Sequence[Verdict], there_are: int) -> None:
    """Replaces the table in docs/faults.md, and says how it came about.

    Args:
        found: The cases that were played.
        there_are: How many cases the suite has.
    """
    before, rest = PAGE.read_text().split(_BEGIN)
    _, after = rest.split(_END)
    counts = Counter(each.status for each in found)
    others = "".join(f", {count} {status}" for status, count in counts.items() if status != Status.HELD)
    some = f" of {there_are}" if len(found) < there_are else ""
    measured = (
        f"Measured on {machine_in_words()}, {datetime.date.today().isoformat()}: {len(found)}{some} cases, "
        f"{counts[Status.HELD]} held{others}; {sum(each.seconds for each in found) / 60:.0f} minutes of sweeps, those "
        "that were left undisturbed apart."
    )
    PAGE.write_text(f"{before}{_BEGIN}\n\n{measured}\n\n{table(found)}\n\n{_END}{after}")


def machine_in_words() -> str:
    """What this was measured on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} core{'s' if cores > 1 else ''} with {pages:.0f} GiB of memory"


def _row(each: Verdict) -> tuple[str, ...]:
    head = (each.title, each.moment)
    if each.status in (Status.MISSED, Status.SKIPPED):
        return (*head, f"{each.status}: {_cell(each.reason)}", *[""] * (len(_HEADER) - 3))
    status = f"**{each.status}**: {_cell('; '.join(each.problems))}" if each.problems else str(each.status)
    completed = "yes" if each.completed else f"no: {_cell(each.reason)}"
    counts = (str(number) for number in (each.lost, each.twice, each.again, each.changed))
    return (*head, status, *counts, completed, f"{each.lost_seconds:+.0f}")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
