"""Figures of what the machines did: a row a process, and where the hours went."""

from __future__ import annotations

from typing import Any

from pharos.records import Span, TrialRecord
from pharos.report.story import Story, identity, purpose
from pharos.report.style import Figure, count, layout, number, rounded, words
from pharos.trial import Outcome

_ROWS = 40
_PURPOSES = {
    "useful": ("@complete", "complete, or still to go on"),
    "pruned": ("@pruned", "stopped early by the scheduler"),
    "lost": ("@failed", "failed, diverged, or trained past a checkpoint in vain"),
    "waiting": ("@waiting", "no trial trained: starting, saving, deciding, or nothing left to do"),
}


def timeline(story: Story) -> Figure:
    """What each process trained when."""
    figure = "timeline", "What the workers did"
    spans = [(record, span) for record in story.records for span in record.spans if span.ended_at > span.started_at]
    if not spans:
        return Figure(*figure, "No trial has ended yet, so no process has a row.")
    begin = min(span.started_at for _, span in spans)
    end = max(span.ended_at for _, span in spans)
    unit, name = _unit(end - begin)
    busy: dict[int, float] = {}
    for _, span in sorted(spans, key=lambda each: each[1].started_at):
        busy[span.process] = busy.get(span.process, 0.0) + span.ended_at - span.started_at
    shown = sorted(busy, key=lambda process: -busy[process])[:_ROWS]
    rows = {process: f"process {index + 1}" for index, process in enumerate(p for p in busy if p in shown)}
    data = []
    for kind in _PURPOSES:
        mine = [(r, s) for r, s in spans if _kind(r, s) == kind and s.process in rows]
        if mine:
            data.append(_bars(kind, mine, rows, begin, unit))
    share = sum(busy.values()) / max(1e-9, (end - begin) * len(busy))
    sentence = "Each process is a row, each bar a trial's training in it; the gaps are time without. "
    sentence += f"{count(len(busy), 'process').replace('processs', 'processes')}, training {share:.0%} of the time "
    sentence += "between the first step and the last end."
    if len(busy) > len(rows):
        sentence += f" The {len(rows)} that trained longest are shown."
    if any(span.is_lost for _, span in spans):
        sentence += " Red counts attempts whose process was lost, too, though what their last checkpoint had was kept."
    if any(record.outcome == Outcome.RUNNING for record in story.records):
        sentence += " Trials that run now have no bar until they end."
    y = {"autorange": "reversed", "type": "category", "showgrid": False, "ticks": "", "categoryorder": "array",
         "categoryarray": list(rows.values())}  # fmt: skip
    x = {"title": {"text": f"{name} since the first step"}, "rangemode": "tozero"}
    made = layout(x, y, barmode="overlay", bargap=0.3, hovermode="closest")
    return Figure(*figure, sentence, [{"data": data, "layout": made}], 130 + 26 * len(rows))


def _bars(
    kind: str, mine: list[tuple[TrialRecord, Span]], rows: dict[int, str], begin: float, unit: float
) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": kind,
        "y": [rows[s.process] for _, s in mine],
        "base": rounded([(s.started_at - begin) / unit for _, s in mine]),
        "x": rounded([(s.ended_at - s.started_at) / unit for _, s in mine]),
        "marker": {"color": _PURPOSES[kind][0], "line": {"color": "@surface", "width": 1}},
        "customdata": [identity(r) for r, _ in mine],
        "text": [f"{words(r.outcome)}, {number(s.ended_at - s.started_at)} s, pid {s.process}" for r, s in mine],
        "textposition": "none",
        "hovertemplate": "trial %{customdata}: %{text}<extra>" + kind + "</extra>",
    }


def _kind(record: TrialRecord, span: Span) -> str:
    return "lost" if span.is_lost else purpose(record)


def _unit(seconds: float) -> tuple[float, str]:
    return (3600.0, "hours") if seconds > 7200 else (60.0, "minutes") if seconds > 180 else (1.0, "seconds")


def hours(story: Story) -> Figure:
    """Where the hours of GPUs, or of CPU cores, went."""
    kind = "gpu_hours" if "gpu_hours" in story.summary else "cpu_hours"
    words_of_kind = "GPU-hours" if kind == "gpu_hours" else "CPU-hours"
    figure = "hours", f"Where the {words_of_kind} went"
    spent: dict[str, float] = story.summary[kind]
    total = sum(spent.values())
    if not total:
        return Figure(*figure, "No time was spent yet that the study knows of.")
    seconds = total < 0.1
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": list(_PURPOSES),
            "x": rounded([spent[name] * (3600 if seconds else 1) for name in _PURPOSES]),
            "text": [f"{spent[name] / total:.0%}" for name in _PURPOSES],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": [shade for shade, _ in _PURPOSES.values()]},
            "customdata": [text for _, text in _PURPOSES.values()],
            "hovertemplate": "%{y}: %{x} (%{text})<br>%{customdata}<extra></extra>",
        }
    ]
    unit = f"{words_of_kind[:3]}-seconds" if seconds else words_of_kind
    said = f"{number(round(total * 3600, 1))} {unit}" if seconds else f"{total:.3g} {unit}"
    sentence = (
        f"Of {said}, {spent['useful'] / total:.0%} trained trials that count, "
        f"{spent['pruned'] / total:.0%} trials that were stopped early, {spent['lost'] / total:.0%} were lost to "
        f"faults and divergence, and {spent['waiting'] / total:.0%} were spent waiting."
    )
    y = {"autorange": "reversed", "showgrid": False, "ticks": "", "type": "category"}
    most = max(spent.values()) * (3600 if seconds else 1)
    x = {"title": {"text": unit}, "range": [0, 1.15 * most]}
    return Figure(*figure, sentence, [{"data": data, "layout": layout(x, y, bargap=0.35)}], 240)
