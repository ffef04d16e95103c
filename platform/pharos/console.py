"""What a person sees of a sweep while it runs: a live table in a terminal, one plain line an event elsewhere.

Both go to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pharos.study import TrialRecord, best_record, count_outcomes
from pharos.trial import Outcome, Report, trial_id

if TYPE_CHECKING:
    from pharos.survey import TrialUse
    from pharos.sweep import Sweep

_ROWS = 14
_STYLES = {
    Outcome.COMPLETE: "green",
    Outcome.RUNNING: "cyan",
    Outcome.PRUNED: "dim",
    Outcome.INTERRUPTED: "yellow",
    Outcome.CANCELLED: "yellow",
}


class Console:
    """Hears of a sweep's events; this one writes a plain line for each."""

    def __init__(self) -> None:
        self._sweep: Sweep | None = None
        self._opened_at = time.monotonic()

    def start(self, sweep: Sweep, slots: int) -> None:
        self._sweep = sweep
        self._opened_at = time.monotonic()
        settings = sweep.settings
        known = len(sweep.study.records)
        self.note(
            f"sweep {sweep.name}: {settings.trials} trials"
            + (f" ({sum(r.outcome.is_final for r in sweep.study.records.values())} done)" if known else "")
            + f", {slots} at a time, {len(sweep.plan.space)} dimensions, "
            f"{settings.objective.mode} {sweep.objective}, scale={settings.scale}"
        )

    def started(self, record: TrialRecord) -> None:
        verb = "goes on" if record.curve else "starts"
        self.note(f"trial {trial_id(record.number)} {verb}: {_short(record.params)}")

    def reported(self, record: TrialRecord, report: Report) -> None:
        """A plain log has a line a trial's start and end; one a report would drown them."""

    def ended(self, record: TrialRecord) -> None:
        assert self._sweep is not None
        best = best_record(self._sweep.study.records, self._sweep.settings.objective.mode)
        reached = f"{record.fidelity}/{self._sweep.max_fidelity(record)}"
        self.note(
            f"trial {trial_id(record.number)} {record.outcome} at {reached}: "
            f"{self._sweep.objective}={_number(record.last_value)}"
            + (f", best {_number(best.value)} ({trial_id(best.number)})" if best else "")
            + (f"; {_last_line(record.reason)}" if record.reason else "")
            + f"; {progress(self._sweep, self._opened_at)}"
        )

    def note(self, text: str) -> None:
        """A line of its own."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        pass


class LiveConsole(Console):
    """A table that is redrawn four times a second: trials that run, those that ended last, the best, the time left."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console as Terminal
        from rich.live import Live

        self._live = Live(
            console=Terminal(stderr=True), get_renderable=self._table, refresh_per_second=4, transient=True
        )

    def start(self, sweep: Sweep, slots: int) -> None:
        super().start(sweep, slots)
        self._live.start()

    def started(self, record: TrialRecord) -> None:
        pass

    def ended(self, record: TrialRecord) -> None:
        if record.outcome not in (Outcome.COMPLETE, Outcome.PRUNED):
            super().ended(record)

    def note(self, text: str) -> None:
        self._live.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False)

    def stop(self) -> None:
        self._live.stop()

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        sweep = self._sweep
        if sweep is None:
            return Text("")
        # A copy: the backend's thread adds to it while this one draws.
        records = list(sweep.study.records.values())
        running = [r for r in records if r.outcome == Outcome.RUNNING]
        ended = [r for r in records if r.outcome != Outcome.RUNNING]
        room = max(2, _ROWS - len(running[:_ROWS]))
        shown = sorted(ended[-room:] + running[:_ROWS], key=lambda r: r.number)
        best = best_record(sweep.study.records, sweep.settings.objective.mode)
        table = Table(box=None, pad_edge=False, expand=False)
        for title in ("trial", "state", "", "epoch", sweep.objective):
            table.add_column(title, justify="left" if title in ("trial", "state") else "right", no_wrap=True)
        # The one column that gives way in a narrow terminal; its text is cut, not wrapped.
        table.add_column("values")
        for record in shown:
            mark = "*" if best is not None and record.number == best.number else " "
            table.add_row(
                trial_id(record.number) + mark,
                Text(str(record.outcome), style=_STYLES.get(record.outcome, "red")),
                ProgressBar(total=sweep.max_fidelity(record), completed=record.fidelity, width=8),
                f"{record.fidelity}/{sweep.max_fidelity(record)}",
                _number(record.last_value),
                Text(_short(record.params), style="dim", no_wrap=True, overflow="ellipsis"),
            )
        counts = ", ".join(
            f"{count} {outcome}" for outcome, count in count_outcomes(dict(sweep.study.records)).items() if count
        )
        line = f"{sweep.name}  {counts}" + (f"  best {_number(best.value)} ({trial_id(best.number)})" if best else "")
        return Group(table, Text(line, style="bold"), Text(progress(sweep, self._opened_at), style="dim"))


def make_console(json_only: bool) -> Console:
    """A live table where standard error is a terminal, else plain lines."""
    return LiveConsole() if sys.stderr.isatty() and not json_only else Console()


def progress(sweep: Sweep, opened_at: float) -> str:
    """How far a sweep is and how long it may take still, from the trials so far."""
    records = list(sweep.study.records.values())
    final = [r for r in records if r.outcome.is_final]
    text = f"{len(final)}/{sweep.settings.trials} trials, {clock(time.monotonic() - opened_at)}"
    if not final or sweep.interrupted:
        return text
    # A trial yet to start takes what the average took; one that runs, what is left of a whole one at most.
    mean = sum(r.seconds for r in final) / len(final)
    to_start = max(0, sweep.settings.trials - len(records)) * mean
    running = sum(
        min(mean, r.seconds / r.fidelity * (sweep.max_fidelity(r) - r.fidelity)) if r.fidelity else mean
        for r in records
        if not r.outcome.is_final
    )
    return f"{text}, about {clock((to_start + running) / max(1, sweep.slots))} left"


def closing(summary: dict[str, Any], folder: str, total: int) -> str:
    """What is said at the end: the best trial beside the paper's values, where things lie, what to type next."""
    metric = summary["objective"]["metric"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in summary["trials"].items())
    lines = [f"sweep {summary['sweep']}: {counts}; {clock(summary['seconds'])}"]
    best, paper = summary["best"], summary["paper_values"]
    if best is None:
        lines.append("no trial was completed")
    else:
        rows = [("", f"best ({best['trial']})", f"paper's values ({paper['trial']})" if paper else "")]
        theirs = paper or {"values": {}, "params": {}, "outcome": ""}
        note = "" if theirs["outcome"] in ("complete", "") else f" ({theirs['outcome']} at {theirs['fidelity']})"
        rows.append((metric, _number(best["values"][metric]), _number(theirs["values"].get(metric)) + note))
        for name in sorted({*best["params"], *theirs["params"]}):
            rows.append((name, _number(best["params"].get(name)), _number(theirs["params"].get(name))))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    name = folder if "://" in folder else summary["sweep"]
    lines.append(f"files: {folder}")
    finished = sum(summary["trials"].get(str(o), 0) for o in Outcome if o.is_final)
    if finished < total:
        lines.append(f"next:  python platform/sweep.py --resume {name}")
    else:
        lines.append(f"next:  python platform/train.py --from {name}")
        lines.append(f"   or: python platform/sweep.py --extend {name} trials=+{total}")
    return "\n".join(lines)


def storage_table(uses: Sequence[TrialUse], removed: bool) -> str:
    """What a sweep's trials take, a line each, and which checkpoints go or went."""
    rows = [("trial", "outcome", "bytes", "checkpoints", "went" if removed else "would go")]
    for use in uses:
        reasons = sorted(set(use.goes.values()))
        gone = "; ".join(
            f"{why}: {', '.join(str(step) for step, each in use.goes.items() if each == why)}" for why in reasons
        )
        rows.append(
            (
                trial_id(use.number),
                str(use.outcome or "unknown"),
                _bytes(use.size),
                ", ".join(f"{step} ({_bytes(size)})" for step, size in sorted(use.steps.items())) or "-",
                f"{_bytes(use.freed)} ({gone})" if use.goes else "-",
            )
        )
    total, freed = sum(use.size for use in uses), sum(use.freed for use in uses)
    rows.append(("all", "", _bytes(total), str(sum(len(use.steps) for use in uses)), _bytes(freed) if freed else "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if freed and not removed:
        lines.append("nothing was removed: this is what --remove would do")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """A length of time for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _bytes(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.4g} TB"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(params: dict[str, Any]) -> str:
    return " ".join(f"{name.removeprefix('recipe.')}={_number(value)}" for name, value in params.items())


def _last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]
