"""What a person sees of a sweep while it runs: a live table in a terminal, one plain line an event elsewhere.

Both go to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pharos.study import TrialRecord
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
    Outcome.PAUSED: "blue",
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
        known = sum(count for outcome, count in sweep.study.counts.items() if outcome.is_final)
        self.note(
            f"sweep {sweep.name}: {settings.trials} trials"
            + (f" ({known} done)" if known else "")
            + f", {slots} at a time, {len(sweep.plan.space)} dimensions, "
            + ", ".join(f"{each.mode} {each.metric}" for each in sweep.objectives)
            + "".join(f", {bound}" for bound in settings.bounds)
            + f", scale={settings.scale}"
        )

    def started(self, record: TrialRecord) -> None:
        verb = "goes on" if record.curve else "starts"
        self.note(f"trial {trial_id(record.number)} {verb}: {_short(record.params)}")

    def reported(self, record: TrialRecord, report: Report) -> None:
        """A plain log has a line a trial's start and end; one a report would drown them."""

    def ended(self, record: TrialRecord) -> None:
        assert self._sweep is not None
        reached = f"{record.fidelity}/{self._sweep.max_fidelity(record)}"
        self.note(
            f"trial {trial_id(record.number)} {record.outcome} at {reached}: "
            + results(self._sweep.objectives.metrics, record.last_values)
            + _best(self._sweep, ", best ")
            + (f"; {last_line(record.reason)}" if record.reason else "")
            + f"; {progress(self._sweep, self._opened_at)}"
        )

    def note(self, text: str) -> None:
        """A line of its own."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        pass

    def closed(self) -> None:
        """What came of it, the command says."""


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
        best = sweep.search.best
        metrics = sweep.objectives.metrics
        table = Table(box=None, pad_edge=False, expand=False)
        for title in ("trial", "state", "", "epoch", *metrics):
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
                *map(_number, record.last_values or [None] * len(metrics)),
                Text(_short(record.params), style="dim", no_wrap=True, overflow="ellipsis"),
            )
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sweep.study.counts.items() if count)
        line = f"{sweep.name}  {counts}{_best(sweep, '  best ')}"
        return Group(table, Text(line, style="bold"), Text(progress(sweep, self._opened_at), style="dim"))


def make_console(json_only: bool) -> Console:
    """A live table where standard error is a terminal, else plain lines."""
    return LiveConsole() if sys.stderr.isatty() and not json_only else Console()


def progress(sweep: Sweep, opened_at: float) -> str:
    """How far a sweep is and how long it may take still, from the trials so far."""
    search, settings = sweep.search, sweep.settings
    counts = sweep.study.counts
    final = sum(count for outcome, count in counts.items() if outcome.is_final)
    text = f"{final}/{settings.trials} trials, {clock(time.monotonic() - opened_at)}"
    if not final or sweep.interrupted:
        return text
    # A trial yet to start takes what the average took; one that runs, what is left of a whole one at most.
    mean = search.seconds / final
    begun = [
        sweep.study.records[number]
        for outcome in (Outcome.RUNNING, Outcome.INTERRUPTED)
        for number in sweep.study.having(outcome)
    ]
    seconds = search.left * mean + sum(
        min(mean, r.seconds / r.fidelity * (sweep.max_fidelity(r) - r.fidelity)) if r.fidelity else mean for r in begun
    )
    left = seconds / max(1, sweep.slots)
    usage = sweep.usage
    budgets = (
        ("hours", settings.hours, usage.seconds, 1.0),
        ("gpu_hours", settings.gpu_hours, usage.slot_seconds * settings.devices, settings.devices * sweep.slots),
    )
    for name, hours, used, a_second in budgets:
        if hours is not None and (rest := max(0.0, (hours * 3600 - used) / a_second)) < left:
            return f"{text}, {clock(rest)} left of {name}={hours:g}"
    return f"{text}, about {clock(left)} left"


def closing(summary: dict[str, Any], folder: str, total: int) -> str:
    """What is said at the end: the best trial beside the paper's values, where things lie, what to type next."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in summary["trials"].items())
    lines = [f"sweep {summary['sweep']}: {counts}; {clock(summary['seconds'])}"]
    if summary["stopped"]:
        lines.append(f"stopped: {summary['stopped']}")
    best, paper, finalists = summary["best"], summary["paper_values"], summary.get("finalists")
    if finalists:
        lines += _finalists(finalists)
    elif best is None:
        lines.append("no trial was completed" + (" within the constraints" if summary["constraints"] else ""))
    else:
        rows = [("", f"best ({best['trial']})", f"paper's values ({paper['trial']})" if paper else "")]
        theirs = paper or {"values": {}, "params": {}, "outcome": ""}
        note = "" if theirs["outcome"] in ("complete", "") else f" ({theirs['outcome']} at {theirs['fidelity']})"
        for metric, value in best["values"].items():
            rows.append((metric, _number(value), _number(theirs["values"].get(metric)) + note))
        for name in sorted({*best["params"], *theirs["params"]}):
            rows.append((name, _number(best["params"].get(name)), _number(theirs["params"].get(name))))
        lines += _aligned(rows if paper else [row[:2] for row in rows])
    if summary["pareto"] and summary["pareto"]["front"] and not finalists:
        pareto = summary["pareto"]
        against = " ".join(f"{metric}={_number(value)}" for metric, value in pareto["reference"].items())
        volume = f"hypervolume {pareto['hypervolume']:.4g} to {against}"
        lines.append(f"Pareto front: {len(pareto['front'])} trials, {volume}")
        metrics = list(pareto["reference"])
        lines += _aligned(
            [
                ("trial", *metrics, "values"),
                *(
                    (each["trial"], *(_number(each["values"][metric]) for metric in metrics), _short(each["params"]))
                    for each in pareto["front"]
                ),
            ]
        )
    name = folder if "://" in folder else summary["sweep"]
    lines.append(f"files: {folder}")
    finished = sum(summary["trials"].get(str(o), 0) for o in Outcome if o.is_final)
    if summary["stopped"] and "=" in summary["stopped"]:
        lines.append(f"next:  python platform/sweep.py --extend {name}, with more of what stopped it")
    elif finished < total:
        lines.append(f"next:  python platform/sweep.py --resume {name}")
    elif finalists:
        lines += _after_finalists(finalists, folder)
    else:
        lines.append(f"next:  python platform/train.py --from {name}")
        lines.append(f"   or: python platform/sweep.py --extend {name} trials=+{total}")
    return "\n".join(lines)


def _finalists(standings: dict[str, Any]) -> list[str]:
    """How finalists did, a line each, and whether the winner wins."""
    rows, metrics = standings["finalists"], list(standings["finalists"][0]["values"])
    titles = [title for metric in metrics for title in (f"{metric} in the search", "fresh mean", "sd")]
    table = [("trial", *titles, "runs", "behind the winner", "", "where values differ")]
    names = {name: {repr(row["params"].get(name)) for row in rows} for row in rows for name in row["params"]}
    for row in rows:
        cells = []
        for each in row["values"].values():
            cells += [_number(each["search"]), _with_margin(each["mean"], each["low"]), _number(each["sd"])]
        lost = [f"{count} {outcome}" for outcome, count in row["missing"].items()]
        lost += [f"{row['infeasible']} infeasible"] if row["infeasible"] else []
        runs = f"{row['n']}/{len(standings['seeds'])}" + (f" ({', '.join(lost)})" if lost else "")
        behind, state = row["behind"], ""
        gap = "-" if behind is None or behind["mean"] is None else f"{behind['mean']:.3g}"
        if behind and behind["low"] is not None:
            gap += f" [{behind['low']:.3g}, {behind['high']:.3g}]"
        if row["trial"] == standings["winner"]:
            state = "best mean"
        elif behind and row["n"]:
            state = "beaten" if behind["beaten"] else "tied"
        differing = {name: value for name, value in row["params"].items() if len(names[name]) > 1}
        table.append((row["trial"], *cells, runs, gap, state, _short(differing)))
    title = f"finalists of {standings['sweep']} on {len(standings['seeds'])} fresh seeds; t-intervals at 95 %"
    if standings["comparisons"] > 1:
        title += f", differences at 95 % for all {standings['comparisons']}"
    lines = [title, *_aligned(table), standings["verdict"]]
    first = rows[0]["values"][standings["metric"]]
    if first["low"] is not None:
        lines.append(
            f"expect {standings['metric']} {_with_margin(first['mean'], first['low'])} of trial {standings['winner']}; "
            f"the search had {_number(first['search'])}, {'better' if first['flattery'] > 0 else 'worse'} "
            f"by {abs(first['flattery']):.2g}"
        )
    return lines


def _after_finalists(standings: dict[str, Any], folder: str) -> list[str]:
    """What to type after the finals."""
    sweep = standings["sweep"]
    if "://" in folder:
        sweep = f"{folder.rstrip('/').rpartition('/')[0]}/{sweep}"
    lines = [f"python platform/train.py --from {sweep} --trial {standings['winner']}"] if standings["winner"] else []
    if standings["tied"]:
        more = f"--top {len(standings['finalists'])} --seeds {2 * len(standings['seeds'])}"
        lines.append(f"python platform/train.py --from {sweep} {more}, as more seeds tell more")
    return [f"{word}{line}" for word, line in zip(("next:  ", "   or: "), lines, strict=False)]


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
    lines = _aligned(rows)
    if freed and not removed:
        lines.append("nothing was removed: this is what --remove would do")
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


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


def _with_margin(mean: float | None, low: float | None) -> str:
    """A mean and half the width of its interval, in as many digits as that leaves to tell."""
    if mean is None or low is None:
        return _number(mean)
    margin = mean - low
    if not margin or not math.isfinite(margin):
        return f"{_number(mean)} ± {_number(margin)}"
    decimals = max(0, 2 - math.floor(math.log10(margin)))
    return f"{mean:.{decimals}f} ± {margin:.{decimals}f}"


def results(metrics: Sequence[str], values: Sequence[float] | None) -> str:
    """Metrics and their values, in one line."""
    shown = map(_number, values) if values else ["-"] * len(metrics)
    return " ".join(f"{metric}={value}" for metric, value in zip(metrics, shown, strict=True))


def _best(sweep: Sweep, before: str) -> str:
    """The best trial so far; with several objectives, the one that is best in the first."""
    best = sweep.search.best
    if best is None:
        return ""
    return f"{before}{' '.join(map(_number, best.values or ()))} ({trial_id(best.number)})"


def _short(params: dict[str, Any]) -> str:
    return " ".join(f"{name.removeprefix('recipe.')}={_number(value)}" for name, value in params.items())


def last_line(text: str) -> str:
    """What a traceback says in the end."""
    return text.strip().rsplit("\n", 1)[-1]
