"""The figure of a sweep of finalists: each one's runs on fresh seeds, with its interval."""

from __future__ import annotations

from typing import Any

from pharos.report.story import Story
from pharos.report.style import Figure, layout, number, plain, rounded


def finalists(story: Story) -> Figure | None:
    """Means on fresh seeds with their 95 % intervals, beside what the search had; None for any other sweep."""
    standings = story.summary["finalists"]
    if not standings:
        return None
    figure = "finalists", "Finalists on fresh seeds"
    metric = standings["metric"]
    rows = [row for row in standings["finalists"] if row["n"]]
    if not rows:
        return Figure(*figure, f"{_sentence(standings)} No run has a value yet.")
    names = [f"trial {row['trial']}" for row in rows]
    runs = [(name, run) for name, row in zip(names, rows, strict=True) for run in row["runs"] if run["values"]]
    found = [row["values"][metric] for row in rows]
    margins = [0.0 if each["low"] is None else each["mean"] - each["low"] for each in found]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "one seed",
            "x": rounded([run["values"][metric] for _, run in runs]),
            "y": [name for name, _ in runs],
            "marker": {"symbol": "circle-open", "size": 7, "color": "@waiting", "line": {"width": 1.5}},
            "customdata": [run["trial"] for _, run in runs],
            "text": [str(run["seed"]) for _, run in runs],
            "hovertemplate": "trial %{customdata}, seed %{text}: %{x}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "in the search (one seed, chosen for it)",
            "x": rounded([each["search"] for each in found]),
            "y": names,
            "marker": {"symbol": "diamond", "size": 9, "color": "@pruned"},
            "hovertemplate": "%{y} in the search: %{x}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "mean, 95 % interval",
            "x": rounded([each["mean"] for each in found]),
            "y": names,
            "error_x": {"type": "data", "array": rounded(margins), "color": "@complete", "thickness": 2, "width": 6},
            "marker": {"symbol": "circle", "size": 11, "color": "@complete"},
            "text": [f"{number(e['mean'])} [{number(e['low'])}, {number(e['high'])}]" for e in found],
            "hovertemplate": "%{y}: %{text}<extra></extra>",
        },
    ]
    y = {"autorange": "reversed", "type": "category", "categoryorder": "array", "categoryarray": names, "ticks": ""}
    panel = {"data": data, "layout": layout({"title": {"text": plain(metric)}}, y, hovermode="closest")}
    return Figure(*figure, _sentence(standings), [panel], 150 + 44 * len(rows))


def _sentence(standings: dict[str, Any]) -> str:
    verdict: str = standings["verdict"]
    return f"{verdict[:1].upper()}{verdict[1:]}."
