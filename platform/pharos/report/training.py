"""Figures of how trials trained: learning curves, and where they were stopped."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pharos.records import TrialRecord
from pharos.report.story import Story, identity
from pharos.report.style import Figure, colour, count, layout, number, plain, rounded, short, span, words
from pharos.trial import Outcome

_CURVES = 240
_POINTS = 60
_RUNGS = 12


def curves(story: Story) -> Figure:
    """The first objective over epochs, by outcome."""
    figure = "curves", "Learning curves"
    shown = [record for record in story.records if len(record.curve) > 1]
    if not shown:
        return Figure(*figure, "No trial has reported more than once.")
    chosen = _chosen(story, shown)
    limits, outside = span([values[0] for record in chosen for values in record.curve.values()])
    data: list[dict[str, Any]] = []
    for outcome in reversed(Outcome):
        rows = [r for r in chosen if r.outcome == outcome and r is not story.best and r is not story.paper]
        if rows:
            data.append(
                _lines(rows, words(outcome), {"color": colour(outcome), "width": 1.3}, 0.75 if len(rows) < 60 else 0.4)
            )
    if story.paper in chosen and story.paper is not story.best:
        data.append(_lines([story.paper], "paper's values", {"color": "@text", "width": 1.8, "dash": "dash"}))
    if story.best in chosen:
        data.append(_lines([story.best], f"best, trial {identity(story.best)}", {"color": "@text", "width": 2.6}))
    y = {"title": {"text": plain(story.metric)}, **({"range": limits} if limits else {})}
    ends = Counter(record.outcome for record in shown)
    said = ", ".join(f"{amount} {words(outcome)}" for outcome, amount in ends.items())
    sentence = f"How {plain(short(story.metric))} went over the epochs of each trial, coloured by its outcome: {said}."
    if len(chosen) < len(shown):
        sentence += f" {len(chosen)} of {len(shown)} curves are drawn: the best, and others evenly."
    if outside:
        sentence += " Extreme values lie beyond the axis."
    panel = {"data": data, "layout": layout({"title": {"text": "epoch"}, "rangemode": "tozero"}, y)}
    return Figure(*figure, sentence, [panel], 420)


def _chosen(story: Story, shown: list[TrialRecord]) -> list[TrialRecord]:
    """As many curves as can be told apart: the best complete ones, and others evenly."""
    if len(shown) <= _CURVES:
        return shown
    loss = {id(r): (r.values or (0.0,))[0] * (1 if story.is_min else -1) for r in story.complete}
    kept = sorted((r for r in shown if id(r) in loss), key=lambda r: loss[id(r)])[: _CURVES // 3]
    known = {id(record) for record in kept}
    kept += [r for r in shown if r is story.paper and id(r) not in known]
    known = {id(record) for record in kept}
    rest = [record for record in shown if id(record) not in known]
    return kept + rest[:: -(-len(rest) // (_CURVES - len(kept)))]


def _lines(rows: list[Any], name: str, line: dict[str, Any], opacity: float = 1.0) -> dict[str, Any]:
    """Curves in one trace, with gaps between them: a trace each would take a page seconds."""
    xs: list[int | None] = []
    ys: list[float | None] = []
    ids: list[str | None] = []
    for record in rows:
        fidelities = sorted(record.curve)
        # Of a long curve every so many epochs, and its end.
        fidelities = [*fidelities[:-1][:: -(-len(fidelities) // _POINTS)], fidelities[-1]]
        xs += [*fidelities, None]
        ys += [*rounded([record.curve[fidelity][0] for fidelity in fidelities]), None]
        ids += [*[identity(record)] * len(fidelities), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": xs,
        "y": ys,
        "customdata": ids,
        "line": line,
        "opacity": opacity,
        "hovertemplate": "trial %{customdata}, epoch %{x}: %{y}<extra>" + name + "</extra>",
    }


def rungs(story: Story) -> Figure:
    """How many trials reached which epoch, and how many were stopped there."""
    figure = "rungs", "Rungs"
    pruned = [record for record in story.records if record.outcome == Outcome.PRUNED]
    if not pruned:
        return Figure(*figure, "No trial was stopped early.")
    stops = Counter(record.fidelity for record in pruned)
    places = [fidelity for fidelity, _ in stops.most_common(_RUNGS)]
    full = max((record.fidelity for record in story.complete), default=0)
    places = sorted({*places, *([full] if full else [])})
    reached = [sum(record.fidelity >= place for record in story.records) for place in places]
    stopped = [stops.get(place, 0) for place in places]
    at_end = [sum(record.outcome == Outcome.COMPLETE and record.fidelity <= place for record in story.records)
              if place == full else 0 for place in places]  # fmt: skip
    texts = [f"epoch {place}" for place in places]
    on = [all_ - gone - whole for all_, gone, whole in zip(reached, stopped, at_end, strict=True)]
    data = [
        _bars("went on", texts, on, "@faint"),
        _bars("stopped here", texts, stopped, "@pruned"),
        _bars("complete", texts, at_end, "@complete"),
    ]
    most, amount = stops.most_common(1)[0]
    share = amount / max(1, sum(record.fidelity >= most for record in story.records))
    sentence = (
        f"{len(pruned)} of {count(len(story.records), 'trial')} were stopped early, most of them at epoch {most} "
        f"({amount}, {number(round(100 * share))} % of those that reached it)."
    )
    if len(stops) > _RUNGS:
        sentence += f" The {_RUNGS} epochs where most were stopped are shown, of {len(stops)}."
    made = layout({"type": "category"}, {"title": {"text": "trials that reached it"}}, barmode="stack", bargap=0.35)
    return Figure(*figure, sentence, [{"data": data, "layout": made}], 320)


def _bars(name: str, x: list[str], y: list[int], shade: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": x,
        "y": y,
        "text": [str(each) if each else "" for each in y],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "marker": {"color": shade},
        "hovertemplate": "%{x}: %{y} " + name + "<extra></extra>",
    }
