"""What a terminal shows of a sweep while it runs: a few lines that fit it, however many trials there are.

From the top: the sweep, the best trial and the one with the paper's values, trials that run, those that ended last, how
many came to what, how far it is and how long it may take. What does not fit is left out, the last line never.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console as Terminal
from rich.console import ConsoleOptions
from rich.live import Live
from rich.text import Text

from pharos.console import Console, number, plain, progress
from pharos.trial import Outcome, Report, trial_id

if TYPE_CHECKING:
    from pharos.records import TrialRecord
    from pharos.sweep import Sweep

# More than so many would push all else out of a large terminal.
_MOST_LINES = 24
_KEPT = 32  # of the trials that ended last
_TIED = "\u00a0"  # a space at which no line is broken
_BAR = 10
_FIXED = 4  # columns that are always there
_FOR_VALUES = 20  # characters of a line that metrics' titles and bars leave to a trial's values
_SHORTEST_TITLE = 8
_LONGEST_VALUE = 16
_GAP = "  "
_STYLES = {
    Outcome.COMPLETE: "green",
    Outcome.RUNNING: "cyan",
    Outcome.PRUNED: "dim",
    Outcome.INTERRUPTED: "yellow",
    Outcome.PAUSED: "blue",
    Outcome.CANCELLED: "yellow",
}


class LiveConsole(Console):
    """Redraws the table four times a second, in a thread of its own."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        super().__init__()
        # Replaced, never changed: the thread that draws reads it.
        self._recent: tuple[int, ...] = ()
        self._paper: int | None = None
        self._live = Live(
            console=terminal or Terminal(stderr=True), get_renderable=lambda: self, refresh_per_second=4, transient=True
        )

    def start(self, sweep: Sweep, slots: int) -> None:
        self.take_up(sweep)
        super().start(sweep, slots)
        self._live.start()

    def take_up(self, sweep: Sweep) -> None:
        """Learns what a sweep that goes on has already."""
        self._sweep = sweep
        for record in sweep.study.records.values():
            self._look_for_paper(record)
            if record.outcome != Outcome.RUNNING:
                self._recent = (*self._recent[1 - _KEPT :], record.number)

    def started(self, record: TrialRecord) -> None:
        self._look_for_paper(record)

    def reported(self, record: TrialRecord, report: Report) -> None:
        """The table has it."""

    def ended(self, record: TrialRecord) -> None:
        others = [each for each in self._recent if each != record.number]
        self._recent = (*others[1 - _KEPT :], record.number)
        if record.outcome not in (Outcome.COMPLETE, Outcome.PRUNED):
            super().ended(record)

    def note(self, text: str) -> None:
        self._live.console.print(f"{time.strftime('%H:%M:%S')} {plain(text)}", markup=False, highlight=False)

    def stop(self) -> None:
        self._live.stop()

    def __rich_console__(self, console: Terminal, options: ConsoleOptions) -> Iterator[Text]:
        if self._sweep is not None:
            yield from self._lines(self._sweep, options.max_width, options.size.height)

    def _look_for_paper(self, record: TrialRecord) -> None:
        if self._paper is None and self._sweep is not None and self._sweep.plan.is_paper_trial(record.params):
            self._paper = record.number

    def _lines(self, sweep: Sweep, width: int, height: int) -> list[Text]:
        """What fits; the terminal keeps a line for its cursor."""
        room = max(1, min(height - 1, _MOST_LINES))
        final = sum(count for outcome, count in sweep.study.counts.items() if outcome.is_final)
        last = progress(sweep, self._opened_at)
        if cell_len(last) + _BAR + 1 <= width:
            last = f"{_bar(final, max(sweep.settings.trials, final), _BAR)} {last}"
        below = [Text(line.replace(_TIED, " "), style="bold") for line in textwrap.wrap(_counts(sweep), width)]
        below = [*below[: min(3, room // 4)], Text(last, style="bold")]
        goals = ", ".join(f"{each.mode} {each.metric}" for each in sweep.objectives)
        above = [Text(f"{cut(sweep.name, max(8, width - len(_GAP) - cell_len(goals)))}{_GAP}{goals}", style="dim")]
        space = room - len(below) - len(above) - 1  # and a line of titles
        lines = [*above, *self._table(sweep, width, space), *below] if space > 0 else below
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow="ellipsis")
        return lines

    def _table(self, sweep: Sweep, width: int, space: int) -> list[Text]:
        records = sweep.study.records
        best = sweep.search.best
        marks = {} if self._paper is None else {self._paper: "paper"}
        marks |= {best.number: "best"} if best is not None else {}
        pinned = sorted(marks, key=lambda each: marks[each])[:space]
        left = space - len(pinned)
        running = [each for each in sorted(sweep.study.having(Outcome.RUNNING)) if each not in marks]
        ended = [each for each in self._recent if each not in marks and records[each].outcome != Outcome.RUNNING]
        # A third for those that ended, more where fewer run.
        some = min(len(running), left - min(len(ended), left // 3))
        hidden = len(running) - some
        some -= bool(hidden and some)  # its line says how many more there are
        rest = left - some - bool(hidden and left)
        shown = [*pinned, *running[:some], *(ended[-rest:] if rest > 0 else [])]
        lines = _rows(sweep, [records[each] for each in shown], marks, width)
        if hidden and left:
            lines.insert(1 + len(pinned) + some, Text(f"… {len(running) - some} more run", "cyan"))
        return lines


def _rows(sweep: Sweep, records: Sequence[TrialRecord], marks: dict[int, str], width: int) -> list[Text]:
    """A line of titles and one for each trial."""
    metrics = sweep.objectives.metrics
    wholes = [sweep.max_fidelity(record) for record in records]
    values = [record.last_values or (None,) * len(metrics) for record in records]
    epochs = [f"{record.fidelity}/{whole}" for record, whole in zip(records, wholes, strict=True)]
    columns = [
        _Column("", [marks.get(record.number, "") for record in records]),
        _Column("trial", [trial_id(record.number) for record in records]),
        state := _Column("state", [str(record.outcome) for record in records]),
        _Column("epoch", epochs, is_number=True),
    ]
    for index, metric in enumerate(metrics):
        columns.append(_Column(metric, [number(each[index]) for each in values], is_number=True))
    _fit(columns, width)
    if _total(columns) + len(_GAP) + _BAR + 2 * _FOR_VALUES <= width:
        bars = [_bar(record.fidelity, whole, _BAR) for record, whole in zip(records, wholes, strict=True)]
        columns.insert(3, _Column("", bars))
    names = short_names(name for record in records for name in record.params)
    for count, name in enumerate(names):
        cells = [cut(number(r.params[name]), _LONGEST_VALUE) if name in r.params else "" for r in records]
        column = _Column(names[name], cells, is_value=True)
        # What is left out is counted in the line of titles.
        more = f"{_GAP}+{len(names) - count - 1}" if count + 1 < len(names) else ""
        left = width - _total(columns) - len(_GAP) - len(more)
        if column.give_way(max(_SHORTEST_TITLE, left)) > left:
            break
        columns.append(column)
    hidden = len(names) - sum(column.is_value for column in columns)
    lines = [Text(_GAP.join(column.title() for column in columns) + (f"{_GAP}+{hidden}" if hidden else ""))]
    for index, record in enumerate(records):
        line = Text()
        for column in columns:
            style = _STYLES.get(record.outcome, "red") if column is state else "dim" if column.is_value else None
            line.append(column.cell(index) + _GAP, style)
        line.rstrip()
        lines.append(line)
    return lines


def _fit(columns: list[_Column], width: int) -> None:
    """Cuts the titles of metrics, then leaves out the last of them, so that values have some room."""
    for column in reversed(columns[_FIXED:]):
        too_much = _total(columns) + _FOR_VALUES - width
        column.give_way(max(_SHORTEST_TITLE, column.width - max(0, too_much)))
    while len(columns) > _FIXED + 1 and _total(columns) > width:
        del columns[-1]


class _Column:
    """Cells of a kind, below each other."""

    def __init__(self, name: str, cells: list[str], *, is_number: bool = False, is_value: bool = False):
        self.name = name
        self.is_value = is_value
        self._cells = cells
        self._is_number = is_number
        self._least = max(map(cell_len, cells), default=0)
        self.width = max(self._least, cell_len(name))

    def give_way(self, width: int) -> int:
        """Takes no more than that for its title; what it takes then."""
        self.width = max(self._least, min(self.width, width))
        return self.width

    def title(self) -> str:
        return self._fit(cut(self.name, self.width))

    def cell(self, index: int) -> str:
        return self._fit(self._cells[index])

    def _fit(self, text: str) -> str:
        return " " * (self.width - cell_len(text)) + text if self._is_number else set_cell_size(text, self.width)


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _counts(sweep: Sweep) -> str:
    """How many trials run, and how many came to what."""
    counts = sweep.study.counts
    ordered = sorted(counts, key=lambda outcome: outcome != Outcome.RUNNING)
    return ", ".join(f"{counts[outcome]}{_TIED}{outcome}" for outcome in ordered if counts[outcome])


def _bar(done: int, whole: int, width: int) -> str:
    filled = min(width, width * done // max(1, whole))
    return "━" * filled + "─" * (width - filled)


def make_console(json_only: bool) -> Console:
    """A live table where standard error is a terminal, else plain lines."""
    return LiveConsole() if sys.stderr.isatty() and not json_only else Console()


def cut(text: str, width: int) -> str:
    """A text in so many columns; of a longer one, its beginning and its end."""
    text = plain(text)
    if cell_len(text) <= width:
        return text
    if width < 3:
        return set_cell_size(text, max(0, width))
    head = (width - 1) // 2
    tail = text
    while cell_len(tail) > width - 1 - head:
        tail = tail[1:]
    return set_cell_size(text, head) + "…" + tail


def short_names(names: Iterable[str]) -> dict[str, str]:
    """For each dotted name, in their order, the shortest end of it that no other one has."""
    parts = {name: name.split(".") for name in names}
    short: dict[str, str] = {}
    for name, words in parts.items():
        ends = (words[-count:] for count in range(1, len(words) + 1))
        own = next((end for end in ends if sum(w[-len(end) :] == end for w in parts.values()) == 1), words)
        short[name] = plain(".".join(own))
    return short
