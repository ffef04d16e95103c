"""Figures of how the search went: its history, and what is traded for what."""

from __future__ import annotations

import itertools

from pharos.records import front
from pharos.report.marks import dots_of, mark_line, with_marks
from pharos.report.story import Story, identity, is_finite
from pharos.report.style import (
    Figure,
    count,
    layout,
    number,
    plain,
    rounded,
    span,
    words,
)
from pharos.trial import Outcome


def history(story: Story) -> Figure:
    """Each trial's value in the order of the trials, and the best so far."""
    figure = "history", "Optimisation history"
    shown = [r for r in story.records if r.last_values and is_finite(r.last_values)]
    if not shown:
        return Figure(*figure, "No trial has reported a finite value yet.")
    limits, outside = span([(r.last_values or (0.0,))[0] for r in shown])
    data = []
    for outcome in Outcome:
        rows = [r for r in shown if r.outcome == outcome]
        if rows:
            stopped = "" if outcome == Outcome.COMPLETE else " (last value, not final)"
            data.append(dots_of(rows, [r.number for r in rows], [(r.last_values or ())[0] for r in rows], outcome))
            data[-1] |= {"name": f"{words(outcome)}{stopped}"}
    steps = _best_so_far(story)
    if steps:
        numbers, values = zip(*steps, strict=True)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [*numbers, story.records[-1].number],
                "y": rounded([*values, values[-1]]),
                "line": {"color": "@text", "width": 2, "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    paper = story.paper
    shapes = []
    if paper is not None and paper.values is not None:
        shapes = [mark_line(y=paper.values[0], text="paper's values")]
    y = {"title": {"text": plain(story.metric)}, **({"range": limits} if limits else {})}
    axis = {"title": {"text": "trial"}, "rangemode": "tozero", "tickformat": "d"}
    made = layout(axis, y, **with_marks(shapes), hovermode="closest")
    return Figure(*figure, _said_of_history(story, outside), [{"data": data, "layout": made}], 400)


def _said_of_history(story: Story, outside: int) -> str:
    best, paper = story.best, story.paper
    beyond = f" {count(outside, 'extreme value')} beyond the axis." if outside else ""
    if best is None or best.values is None:
        return f"No trial is complete yet; markers show the last values reported.{beyond}"
    text = f"The best of {count(len(story.complete), 'complete trial')} is {number(best.values[0])} (trial "
    text += f"{identity(best)})"
    if paper is not None and paper.values is not None and paper is not best:
        text += f"; the paper's values give {number(paper.values[0])}"
    return f"{text}. Only complete trials have a final value.{beyond}"


def pareto(story: Story) -> Figure | None:
    """What is traded for what; None for a sweep of one objective."""
    if len(story.objectives) < 2:
        return None
    figure = "pareto", "Pareto front"
    best = front(story.trials, story.objectives)
    if not best:
        return Figure(*figure, "No trial is complete yet.")
    metrics = story.objectives.metrics
    panels = []
    for x, y in itertools.combinations(range(len(metrics)), 2):
        ids = {r.number for r in best}
        rest = [r for r in story.complete if r.number not in ids]
        data = [
            dots_of(rest, [(r.values or ())[x] for r in rest], [(r.values or ())[y] for r in rest], Outcome.COMPLETE)
            | {"name": "dominated", "marker": {"symbol": "circle-open", "size": 7, "color": "@waiting"}}
        ]
        line = sorted(((r.values or ())[x], (r.values or ())[y], r.number) for r in best)
        chosen = [story.trials[each] for *_, each in line]
        dots = dots_of(chosen, [each[0] for each in line], [each[1] for each in line], Outcome.COMPLETE)
        mode = "lines+markers" if len(metrics) == 2 else "markers"
        data.append(
            dots | {"name": "front", "mode": mode, "line": {"color": "@complete", "width": 1.5, "shape": "linear"}}
        )
        modes = [each.mode for each in story.objectives]
        titles = [f"{metrics[i]} ({'less' if modes[i] == 'min' else 'more'} is better)" for i in (x, y)]
        label = f"{metrics[x]} and {metrics[y]}"
        panels.append({"data": data, "layout": layout(*titles, hovermode="closest"), "label": label})
    sentence = f"{count(len(best), 'trial')} of {len(story.complete)} complete: no other is as good as "
    sentence += f"{'it' if len(best) == 1 else 'one of these'} in all objectives and better in one."
    return Figure(*figure, sentence, panels, 380)


def _best_so_far(story: Story) -> list[tuple[int, float]]:
    """Each complete trial that was better than all before, and its value."""
    steps: list[tuple[int, float]] = []
    for record in story.complete:
        value = (record.values or ())[0]
        if record.is_feasible and (not steps or story.is_better(value, steps[-1][1])):
            steps.append((record.number, value))
    return steps
