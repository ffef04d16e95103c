"""Figures of the searched values: which are good, which matter, and how they go together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pharos.records import TrialRecord
from pharos.report.axes import Axis
from pharos.report.importance import LEAST, Importance
from pharos.report.marks import dots_of, mark_line, with_marks
from pharos.report.story import Judged, Story, identity
from pharos.report.style import (
    Figure,
    Panel,
    colour,
    count,
    layout,
    number,
    plain,
    rounded,
    short,
    span,
)
from pharos.trial import Outcome

_SLICES = 12
_LINES = 300
_LINE = 13
_GRID = 36
_WIDTH = 0.09
_LEAST_WEIGHT = 0.35
_CONTOUR_LEAST = 12
_CONTOURS = 3
_BEST = 15


def parallel(story: Story) -> Figure:
    """The values of trials as lines through the axes of all dimensions, the best ones in colour."""
    figure = "parallel", "Parallel coordinates"
    judged, dimensions = story.judged, story.axes
    if len(dimensions) < 2:
        return Figure(*figure, "One dimension needs no parallel axes; its slice shows all.")
    if len(judged.records) < 3:
        return Figure(*figure, "Too few trials can be compared yet.")
    order = np.argsort(np.array(judged.values) * (1 if story.is_min else -1), kind="stable")
    thinned = ""
    if len(order) > _LINES:
        rest = order[_LINES // 2 :]
        order = np.concatenate([order[: _LINES // 2], rest[:: -(-len(rest) // (_LINES // 2))]])
        thinned = f" {len(order)} of {len(judged.records)} lines are drawn: the best {_LINES // 2}, and others evenly."
    first = max(1, min(_BEST, len(order) // 4))
    half = max(first, len(order) // 2)
    groups = [order[:first], order[first:half], order[half:]]
    names = [f"best {first}", "better half", "worse half"]
    missing = any(a.is_conditional for a in dimensions)
    data: list[dict[str, Any]] = []
    for index in reversed(range(len(groups))):
        xs, ys, ids = [], [], []
        for row in groups[index]:
            record = judged.records[row]
            line = [a.at(record.params[a.name]) if a.name in record.params else -0.14 for a in dimensions]
            line.append(_unit(judged.values[row], judged.values, story.is_min))
            xs += [*range(len(line)), None]
            ys += [*rounded(line), None]
            ids += [*[identity(record)] * len(line), None]
        style = _GROUP_STYLES[index]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": names[index],
                "x": xs,
                "y": ys,
                "customdata": ids,
                "line": {"color": style[0], "width": style[1]},
                "opacity": style[2],
                "hovertemplate": "trial %{customdata}<extra></extra>",
                "legendrank": 1000 + index,
            }
        )
    made = layout(
        {
            "range": [-0.35, len(dimensions) + 0.35],
            "tickmode": "array",
            "tickvals": list(range(len(dimensions) + 1)),
            "ticktext": [*(_in_lines(a.name) for a in dimensions), f"<b>{_in_lines(story.metric)}</b>"],
            "showgrid": True,
            "gridcolor": "@faint",
            "ticks": "",
            "tickangle": 0,
            "tickfont": {"color": "@text"},
        },
        {"visible": False, "range": [-0.2 if missing else -0.06, 1.06]},
        annotations=_axis_marks(dimensions, judged, story, missing),
    )
    sentence = (
        f"Each line is a trial, judged {judged.where}; the best {first} of {len(judged.records)} are in strong "
        "colour, so where those lines meet on an axis is a good range."
    )
    if missing:
        sentence += " A line at the bottom mark (-) has no such dimension."
    panel = {"data": data, "layout": made, "least": 110 + 88 * len(dimensions)}
    return Figure(*figure, sentence + thinned, [panel], 440)


_GROUP_STYLES = [("@complete", 2.0, 0.95), ("@complete", 1.0, 0.3), ("@waiting", 1.0, 0.35)]


def _in_lines(name: str) -> str:
    """A dimension's name in lines of at most 13 letters, where it can be broken."""
    lines = [""]
    for piece in re.split(r"(?<=[._/])", short(name)):
        if lines[-1] and len(lines[-1]) + len(piece) > _LINE:
            lines.append("")
        lines[-1] += piece
    return "<br>".join(plain(line) for line in lines)


def _axis_marks(dimensions: Sequence[Axis], judged: Judged, story: Story, missing: bool) -> list[dict[str, Any]]:
    """The values along each axis."""
    marks = []
    for index, axis in enumerate(dimensions):
        for position, text in zip(*axis.marks(), strict=True):
            marks.append((index, position, text))
        if missing and axis.is_conditional:
            marks.append((index, -0.14, "-"))
    best = story.at_best(judged.values)
    worst = max(judged.values) if story.is_min else min(judged.values)
    marks += [(len(dimensions), 1.0, number(worst)), (len(dimensions), 0.0, number(best))]
    return [
        {
            "x": x,
            "y": y,
            "text": text,
            "showarrow": False,
            "xanchor": "left",
            "xshift": 4,
            "font": {"size": 10, "color": "@muted"},
            "bgcolor": "@surface",
            "opacity": 0.9,
            "borderpad": 1,
        }
        for x, y, text in marks
    ]


def importance(story: Story, found: Sequence[Importance]) -> Figure:
    """How much each dimension matters."""
    figure = "importance", "Parameter importances"
    if len(story.axes) < 2:
        return Figure(*figure, "One dimension is all the importance there is.")
    if not found:
        return Figure(*figure, f"Fewer than {LEAST} trials can be compared: too few to say which dimension matters.")
    judged = story.judged
    rows = list(reversed(found))
    conditional = {axis.name for axis in story.axes if axis.is_conditional}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": rounded([each.share for each in rows]),
            "y": [plain(short(each.name)) + (" *" if each.name in conditional else "") for each in rows],
            "text": [f"{each.share:.0%}" for each in rows],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": "@complete"},
            "customdata": [each.trials for each in rows],
            "hovertemplate": "%{y}: %{x:.1%}, from %{customdata} trials<extra></extra>",
        }
    ]
    first = found[0]
    sentence = (
        f"{short(first.name)} sets the best trials apart from the others the most ({first.share:.0%} of all); "
        f"PED-ANOVA over the values of {len(judged.records)} trials {judged.where}."
    )
    if len(judged.records) < 50:
        sentence += " So few trials give a rough order, no more."
    if any(each.name in conditional for each in found):
        sentence += " * among the trials that have it."
    left_out = [short(a.name) for a in story.axes if a.name not in {each.name for each in found}]
    if left_out:
        sentence += f" Of {', '.join(left_out)} nothing can be said: too few trials have it, or all the same value."
    x = {"tickformat": ".0%", "range": [0, 1.18 * found[0].share], "title": {"text": "share of the importance"}}
    panel = {"data": data, "layout": layout(x, {"showgrid": False, "ticks": ""}, bargap=0.35)}
    return Figure(*figure, sentence, [panel], 110 + 26 * len(rows))


def slices(story: Story, found: Sequence[Importance]) -> Figure:
    """The values over each dimension."""
    figure = "slices", "Slices"
    judged = story.judged
    if len(judged.records) < 2:
        return Figure(*figure, "Fewer than two trials can be compared.")
    rank = {each.name: index for index, each in enumerate(found)}
    chosen = sorted(story.axes, key=lambda axis: rank.get(axis.name, len(rank)))[:_SLICES]
    limits, outside = span(judged.values)
    infeasible = [r for r in story.records if r.outcome in (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)]
    panels = [_slice(story, axis, judged, limits, infeasible) for axis in chosen]
    sentence = f"The value of {count(len(judged.records), 'trial')} {judged.where} over each dimension alone"
    sentence += ", the most important first, coloured by outcome; the star is the best trial, the dotted line the "
    sentence += "paper's value."
    if infeasible:
        sentence += " Marks along the top are trials that diverged or ran out of memory, which have no value."
    if outside:
        sentence += f" {count(outside, 'extreme value')} beyond the axis."
    if len(story.axes) > len(chosen):
        sentence += f" {len(chosen)} of {len(story.axes)} dimensions are shown."
    return Figure(*figure, sentence, panels, 260)


def _slice(
    story: Story, axis: Axis, judged: Judged, limits: list[float] | None, infeasible: Sequence[TrialRecord]
) -> Panel:
    rows = [(r, v) for r, v in zip(judged.records, judged.values, strict=True) if axis.name in r.params]
    data = []
    for outcome in Outcome:
        some = [(r, v) for r, v in rows if r.outcome == outcome]
        if some:
            records = [r for r, _ in some]
            data.append(dots_of(records, [_place(axis, r) for r in records], [v for _, v in some], outcome, axis))
    best = next(((r, v) for r, v in rows if r is story.best), None)
    if best is not None:
        data.append(
            dots_of([best[0]], [_place(axis, best[0])], [best[1]], Outcome.COMPLETE, axis)
            | {"marker": {"symbol": "star", "size": 15, "color": "@text", "line": {"color": "@surface", "width": 1}}}
        )
    bad = [r for r in infeasible if axis.name in r.params]
    if bad:
        rug = dots_of(bad, [_place(axis, r) for r in bad], [0.97] * len(bad), Outcome.DIVERGED, axis)
        rug["marker"] = {"symbol": "x", "size": 6, "color": [colour(r.outcome) for r in bad]}
        data.append({**rug, "yaxis": "y2"})
    theirs = story.plan.defaults.get(axis.name)
    position = axis.at(theirs) if theirs is not None and (axis.choices == () or theirs in axis.choices) else None
    shapes = [] if position is None or not -0.04 <= position <= 1.04 else [mark_line(x=position)]
    y = {"title": {"text": plain(short(story.metric)), "standoff": 14}, **({"range": limits} if limits else {})}
    hidden = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
    made = layout(axis.layout(title=False), y, showlegend=False, yaxis2=hidden, **with_marks(shapes))
    return {"data": data, "layout": made, "label": short(axis.name)}


def _place(axis: Axis, record: TrialRecord) -> float:
    """Where a trial lies on an axis; those with the same choice are spread a little, or they would hide each other."""
    place = axis.at(record.params[axis.name])
    return place + (record.number * 0.618 % 1 - 0.5) * 0.4 / len(axis.choices) if axis.choices else place


def contours(story: Story, found: Sequence[Importance]) -> Figure:
    """The value over two dimensions at a time, of the most important ones."""
    figure = "contours", "Contours"
    judged = story.judged
    if len(story.axes) < 2:
        return Figure(*figure, "One dimension has no contours.")
    if not found or len(judged.records) < _CONTOUR_LEAST:
        return Figure(*figure, f"Fewer than {_CONTOUR_LEAST} trials can be compared: too few for a surface.")
    axes = {axis.name: axis for axis in story.axes if not axis.choices}
    chosen = [axes[each.name] for each in found if each.name in axes][:_CONTOURS]
    panels = []
    for x, y in itertools.combinations(chosen, 2):
        panel = _contour(story, x, y, judged)
        if panel:
            panels.append(panel)
    if not panels:
        return Figure(*figure, "There are no two numeric dimensions that enough trials have in common.")
    sentence = (
        f"The value {judged.where} over pairs of the {len(chosen)} most important numeric dimensions, averaged over "
        "nearby trials (the dots); dark is better (in a dark theme: light), and where no trial is near, nothing is "
        "drawn."
    )
    return Figure(*figure, sentence, panels, 320)


def _contour(story: Story, x: Axis, y: Axis, judged: Judged) -> Panel | None:
    rows = [
        (r, v) for r, v in zip(judged.records, judged.values, strict=True) if x.name in r.params and y.name in r.params
    ]
    if len(rows) < _CONTOUR_LEAST:
        return None
    places = np.array([[x.at(r.params[x.name]), y.at(r.params[y.name])] for r, _ in rows])
    values = np.array([v for _, v in rows])
    limits, _ = span(judged.values)
    grid, surface = _smooth(places, np.clip(values, limits[0], limits[1]) if limits else values)
    colours = {"colorscale": "@scale", "reversescale": not story.is_min}
    data = [
        {
            "type": "contour",
            "x": rounded(list(grid)),
            "y": rounded(list(grid)),
            "z": [rounded(list(row)) for row in surface],
            **colours,
            "ncontours": 9,
            "contours": {"coloring": "fill", "showlines": False},
            "line": {"smoothing": 1.0},
            "hoverinfo": "skip",
            "colorbar": {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": "@muted"}},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": rounded(list(places[:, 0])),
            "y": rounded(list(places[:, 1])),
            "marker": {"size": 5, "color": "@surface", "line": {"width": 1.2, "color": "@text"}},
            "customdata": [identity(r) for r, _ in rows],
            "text": [number(float(v)) for _, v in rows],
            "hovertemplate": "trial %{customdata}: %{text}<extra></extra>",
            "showlegend": False,
        },
    ]
    made = layout({**x.layout(), "showgrid": False}, {**y.layout(), "showgrid": False})
    return {"data": data, "layout": made, "label": f"{short(x.name)} and {short(y.name)}"}


def _smooth(places: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Averages of the values near each point of a grid, by a Gaussian kernel; NaN where there are none near."""
    grid = np.linspace(0, 1, _GRID)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    square = ((points[:, None] - places[None]) ** 2).sum(-1)
    weights = np.exp(-square / (2 * _WIDTH**2))
    total = weights.sum(1)
    averages = np.full(len(points), np.nan)
    near = total > _LEAST_WEIGHT
    averages[near] = (weights[near] @ values) / total[near]
    return grid, averages.reshape(_GRID, _GRID)


def _unit(value: float, values: Sequence[float], is_min: bool) -> float:
    """Where a value lies between the best (0) and the worst (1)."""
    low, high = min(values), max(values)
    place = (value - low) / (high - low) if high > low else 0.5
    return place if is_min else 1 - place
