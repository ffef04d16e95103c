"""What all figures share: outcomes' colours, for light and dark, and Plotly layouts.

A colour in a figure is a name such as `@complete`; the page puts in those of the reader's theme, and a PNG the light
ones. Outcomes differ in lightness and in marker as well, so that they can be told apart without colours; all have a
contrast of 3:1 or more to their background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pharos.trial import Outcome

Panel = dict[str, Any]
"""Plotly's `data` and `layout`, with colours by name, and perhaps a `label` and a `least` width in pixels."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

LIGHT: dict[str, Any] = {
    "text": "#1d2229",
    "muted": "#5b6470",
    "grid": "#e4e7eb",
    "faint": "#b9c0c8",
    "surface": "#ffffff",
    "accent": "#0b4f8a",
    "complete": "#0b6fb8",
    "pruned": "#c07a00",
    "diverged": "#b8478f",
    "out_of_memory": "#6a4fb3",
    "failed": "#c8371b",
    "cancelled": "#6b7480",
    "interrupted": "#8b7a4b",
    "paused": "#3f8f8a",
    "running": "#1d8a4e",
    "waiting": "#a3abb5",
    "scale": [[0, "#08306b"], [0.25, "#2171b5"], [0.5, "#6baed6"], [0.75, "#c6dbef"], [1, "#f2f6fb"]],
}
DARK: dict[str, Any] = {
    "text": "#e6e9ed",
    "muted": "#9aa4b0",
    "grid": "#2b323b",
    "faint": "#4c5663",
    "surface": "#171b21",
    "accent": "#8cc4f5",
    "complete": "#4aa8ea",
    "pruned": "#e3a53c",
    "diverged": "#dd86bf",
    "out_of_memory": "#a993ea",
    "failed": "#f0735a",
    "cancelled": "#9aa4b0",
    "interrupted": "#b8a671",
    "paused": "#67b8b2",
    "running": "#52bd83",
    "waiting": "#5d6875",
    "scale": [[0, "#d6ebff"], [0.25, "#8cc4f5"], [0.5, "#3f8fd0"], [0.75, "#1f4f7d"], [1, "#1b2733"]],
}

SYMBOLS = {
    Outcome.COMPLETE: "circle",
    Outcome.PRUNED: "triangle-down-open",
    Outcome.DIVERGED: "x",
    Outcome.OUT_OF_MEMORY: "square-x-open",
    Outcome.FAILED: "cross",
    Outcome.CANCELLED: "diamond-open",
    Outcome.INTERRUPTED: "hourglass-open",
    Outcome.PAUSED: "square-open",
    Outcome.RUNNING: "circle-open",
}
NONE = "\u2013"
"""Stands for no value, as a dash of a number's width."""
_DIGITS = 6


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        id: Its name in the page, and its file's as a PNG.
        title: In a few words.
        sentence: What it shows; or, without panels, why there is nothing to show.
        panels: What is drawn, side by side where there is room.
        height: Of each panel, in pixels.
    """

    id: str
    title: str
    sentence: str
    panels: list[Panel] = field(default_factory=list)
    height: int = 380


def colour(outcome: Outcome) -> str:
    """The name of an outcome's colour."""
    return f"@{outcome}"


def words(outcome: Outcome) -> str:
    """An outcome for people."""
    return str(outcome).replace("_", " ")


def layout(x: dict[str, Any] | str = "", y: dict[str, Any] | str = "", **more: Any) -> dict[str, Any]:
    """A layout, from titles of the axes or from more of them."""
    axes = ({"title": {"text": plain(each)}} if isinstance(each, str) else each for each in (x, y))
    x_axis, y_axis = ({**_AXIS, **each} for each in axes)
    return {
        "font": {"family": FONT, "size": 12, "color": "@text"},
        "paper_bgcolor": "@surface",
        "plot_bgcolor": "@surface",
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "hoverlabel": {"bgcolor": "@surface", "bordercolor": "@faint", "font": {"color": "@text", "family": FONT}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "@text"}},
        "xaxis": x_axis,
        "yaxis": y_axis,
        **more,
    }


_AXIS = {
    "automargin": True,
    "gridcolor": "@grid",
    "linecolor": "@faint",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "@faint",
    "ticklen": 4,
    "tickfont": {"color": "@muted"},
}


def plain(text: str) -> str:
    """A text that Plotly shows as it is: it would read tags in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(name: str) -> str:
    """A value's name without what all of them begin with."""
    return name.removeprefix("recipe.")


def number(value: Any) -> str:
    """A value for people."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Numbers in as many digits as a screen can show; None for what is no finite number."""
    return [None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}") for value in values]


def span(values: Sequence[float]) -> tuple[list[float] | None, int]:
    """A range for an axis that a few extreme values do not squash, and how many values are outside of it.

    Returns:
        None if all values fit.
    """
    found = sorted(value for value in values if math.isfinite(value))
    if len(found) < 4:
        return None, 0
    low, high = found[len(found) // 4], found[3 * len(found) // 4]
    reach = 6 * (high - low)
    inside = [value for value in found if low - reach <= value <= high + reach]
    outside = len(found) - len(inside)
    if not outside or not reach:
        return None, 0
    pad = 0.05 * (inside[-1] - inside[0])
    return [inside[0] - pad, inside[-1] + pad], outside


def resolve(value: Any, palette: dict[str, Any]) -> Any:
    """A figure with a palette's colours in the place of their names."""
    if isinstance(value, str) and value.startswith("@"):
        return palette.get(value[1:], value)
    if isinstance(value, dict):
        return {key: resolve(each, palette) for key, each in value.items()}
    if isinstance(value, list):
        return [resolve(each, palette) for each in value]
    return value


def count(amount: int, thing: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{amount:,} {thing}{'' if amount == 1 else 's'}"
