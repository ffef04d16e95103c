"""What a person reads of a sweep: one plain line an event while it runs, and what is said at its end.

The lines go to standard error, so that standard output holds the result alone. In a terminal `pharos.live` has a table.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pharos.records import TrialRecord
from pharos.trial import Outcome, Report, trial_id

if TYPE_CHECKING:
    from pharos.survey import TrialUse
    from pharos.sweep import Sweep

_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# A log has a word at least so often while trials report.
_SILENT_SECONDS = 600.0


class Console:
    """Hears of a sweep's events; this one writes a plain line for each."""

    def __init__(self) -> None:
        self._sweep: Sweep | None = None
        self._opened_at = self._said_at = time.monotonic()

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
        """A line a report would drown those of starts and ends; where these are rare, one shows that all is well."""
        if self._sweep is not None and time.monotonic() - self._said_at > _SILENT_SECONDS:
            self.note(
                f"trial {trial_id(record.number)} at {record.fidelity}/{self._sweep.max_fidelity(record)}: "
                f"{results(self._sweep.objectives.metrics, record.last_values)}, {self._sweep.running} running; "
                f"{progress(self._sweep, self._opened_at)}"
            )

    def ended(self, record: TrialRecord) -> None:
        assert self._sweep is not None
        reached = f"{record.fidelity}/{self._sweep.max_fidelity(record)}"
        self.note(
            f"trial {trial_id(record.number)} {record.outcome} at {reached} in {clock(record.seconds)}: "
            + results(self._sweep.objectives.metrics, record.last_values)
            + _best(self._sweep, ", best ")
            + (f"; {last_line(record.reason)}" if record.reason else "")
            + f"; {progress(self._sweep, self._opened_at)}"
        )

    def note(self, text: str) -> None:
        """A line of its own."""
        self._said_at = time.monotonic()
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {plain(text)}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        pass

    def closed(self) -> None:
        """What came of it, the command says."""


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
            rows.append((metric, number(value), number(theirs["values"].get(metric)) + note))
        for name in sorted({*best["params"], *theirs["params"]}):
            rows.append((name, number(best["params"].get(name)), number(theirs["params"].get(name))))
        lines += _aligned(rows if paper else [row[:2] for row in rows])
    if summary["pareto"] and summary["pareto"]["front"] and not finalists:
        pareto = summary["pareto"]
        against = " ".join(f"{metric}={number(value)}" for metric, value in pareto["reference"].items())
        volume = f"hypervolume {pareto['hypervolume']:.4g} to {against}"
        lines.append(f"Pareto front: {len(pareto['front'])} trials, {volume}")
        metrics = list(pareto["reference"])
        lines += _aligned(
            [
                ("trial", *metrics, "values"),
                *(
                    (each["trial"], *(number(each["values"][metric]) for metric in metrics), _short(each["params"]))
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
            cells += [number(each["search"]), _with_margin(each["mean"], each["low"]), number(each["sd"])]
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
            f"the search had {number(first['search'])}, {'better' if first['flattery'] > 0 else 'worse'} "
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


def number(value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _with_margin(mean: float | None, low: float | None) -> str:
    """A mean and half the width of its interval, in as many digits as that leaves to tell."""
    if mean is None or low is None:
        return number(mean)
    margin = mean - low
    if not margin or not math.isfinite(margin):
        return f"{number(mean)} ± {number(margin)}"
    decimals = max(0, 2 - math.floor(math.log10(margin)))
    return f"{mean:.{decimals}f} ± {margin:.{decimals}f}"


def results(metrics: Sequence[str], values: Sequence[float] | None) -> str:
    """Metrics and their values, in one line."""
    shown = map(number, values) if values else ["-"] * len(metrics)
    return " ".join(f"{metric}={value}" for metric, value in zip(metrics, shown, strict=True))


def _best(sweep: Sweep, before: str) -> str:
    """The best trial so far; with several objectives, the one that is best in the first."""
    best = sweep.search.best
    if best is None:
        return ""
    return f"{before}{' '.join(map(number, best.values or ()))} ({trial_id(best.number)})"


def _short(params: dict[str, Any]) -> str:
    return " ".join(f"{name.removeprefix('recipe.')}={number(value)}" for name, value in params.items())


def plain(text: str) -> str:
    """A text in one line, without what would change a terminal's colours or move its cursor."""
    return _CONTROL.sub(" ", _ESCAPE.sub("", text)).strip()


def last_line(text: str) -> str:
    """What a traceback says in the end."""
    return text.strip().rsplit("\n", 1)[-1]
