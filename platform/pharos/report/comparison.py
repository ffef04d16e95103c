"""Figures of several sweeps side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pharos.records import TrialRecord
from pharos.report.story import Story
from pharos.report.style import Figure, layout, plain, rounded
from pharos.trial import Outcome

_SHADES = ("complete", "pruned", "running", "diverged", "failed", "out_of_memory", "paused", "cancelled")
_DASHES = ("solid", "dash", "dot", "dashdot")


def difference(stories: Sequence[Story]) -> str:
    """How the sweeps differ in what they compare; empty if they can be compared."""
    asked = {story.name: [(each.metric, each.mode) for each in story.objectives] for story in stories}
    if len({str(each) for each in asked.values()}) > 1:
        said = "; ".join(f"{name}: {', '.join(f'{m} {k}' for k, m in each)}" for name, each in asked.items())
        return f"These sweeps have different objectives, so their values cannot be compared: {said}."
    if len({story.plan.settings.family for story in stories}) > 1:
        return "These sweeps are of different families: a metric of the same name may not mean the same."
    if len({story.plan.settings.scale for story in stories}) > 1:
        return "These sweeps have different scales, so their trials trained for different lengths or on other data."
    return ""


def has_one_objective(stories: Sequence[Story]) -> bool:
    """Whether all of them compare the same."""
    return len({str([(each.metric, each.mode) for each in story.objectives]) for story in stories}) == 1


def over_trials(stories: Sequence[Story]) -> Figure:
    """The best so far over the trials that had ended."""
    return _over(
        stories,
        ("over-trials", "Best over trials"),
        "trials that have ended",
        lambda story, record: 1.0,
        "The best value of each sweep after so many trials, in the order in which they ended.",
    )


def over_hours(stories: Sequence[Story]) -> Figure:
    """The best so far over the hours of training."""
    unit = "GPU" if all("gpu_hours" in story.summary for story in stories) else "CPU"
    return _over(
        stories,
        ("over-hours", f"Best over {unit}-hours"),
        f"{unit}-hours of training",
        lambda story, record: (record.seconds + record.lost_seconds) * story.plan.shape(record.params).devices / 3600,
        f"The best value of each sweep after so many {unit}-hours of training, lost ones included, waiting left out.",
    )


def _over(stories: Sequence[Story], figure: tuple[str, str], title: str, cost: Any, sentence: str) -> Figure:
    if not has_one_objective(stories):
        return Figure(*figure, "Left out, as the sweeps have different objectives.")
    data = []
    for index, story in enumerate(stories):
        xs: list[float] = []
        ys: list[float] = []
        spent, best = 0.0, None
        for record in sorted((r for r in story.records if r.outcome.is_final), key=_ended_at):
            spent += cost(story, record)
            if record.outcome == Outcome.COMPLETE and record.values and record.is_feasible:
                value = record.values[0]
                best = value if best is None or story.is_better(value, best) else best
            if best is not None:
                xs.append(spent)
                ys.append(best)
        line = {"color": f"@{_SHADES[index % len(_SHADES)]}", "width": 2.2, "shape": "hv"}
        line["dash"] = _DASHES[index % len(_DASHES)]
        name = {"name": plain(story.name), "hovertemplate": "%{y} after %{x}<extra></extra>"}
        data.append({"type": "scatter", "mode": "lines", "x": rounded(xs), "y": rounded(ys), "line": line, **name})
    if not any(trace["x"] for trace in data):
        return Figure(*figure, "No trial of any of them is complete.")
    x = {"title": {"text": title}, "rangemode": "tozero"}
    made = layout(x, stories[0].metric, showlegend=True)
    return Figure(*figure, sentence, [{"data": data, "layout": made}], 400)


def _ended_at(record: TrialRecord) -> tuple[float, int]:
    return (record.spans[-1].ended_at if record.spans else 0.0, record.number)
