"""What several figures draw: dots of trials that open them, and lines that say something of an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pharos.records import TrialRecord
from pharos.report.axes import Axis
from pharos.report.story import identity
from pharos.report.style import (
    SYMBOLS,
    colour,
    number,
    plain,
    rounded,
    words,
)
from pharos.trial import Outcome


def dots_of(
    rows: Sequence[TrialRecord],
    x: Sequence[float],
    y: Sequence[float],
    outcome: Outcome,
    axis: Axis | None = None,
) -> dict[str, Any]:
    """Trials of one outcome as markers."""
    strong = outcome == Outcome.COMPLETE
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": words(outcome),
        "x": rounded(x),
        "y": rounded(y),
        "marker": {
            "symbol": SYMBOLS[outcome],
            "size": 8,
            "color": colour(outcome),
            "line": {"width": 0 if strong else 1.6, "color": colour(outcome)},
        },
        "opacity": 0.9 if strong and len(rows) < 300 else 0.7,
        "customdata": [identity(r) for r in rows],
        "hovertemplate": "trial %{customdata}: %{y}<extra>" + words(outcome) + "</extra>",
    }
    if axis is not None:
        trace["text"] = [plain(number(r.params[axis.name])) for r in rows]
        trace["hovertemplate"] = "trial %{customdata}: %{y} at %{text}<extra>" + words(outcome) + "</extra>"
    return trace


def mark_line(*, x: float | None = None, y: float | None = None, text: str = "") -> dict[str, Any]:
    """A dotted line through a panel."""
    across = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": y, "y1": y}
    along = {"yref": "paper", "y0": 0, "y1": 1, "xref": "x", "x0": x, "x1": x}
    style = {"type": "line", "line": {"color": "@muted", "width": 1.2, "dash": "dot"}, "layer": "below"}
    label = {"text": text, "textposition": "end", "font": {"color": "@muted", "size": 11}}
    return {**style, **(along if y is None else across), **({"label": label} if text else {})}


def with_marks(shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """What a layout says of lines drawn, if any."""
    return {"shapes": shapes} if shapes else {}
