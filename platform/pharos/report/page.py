"""The HTML of a report: what is said, in which order, and the one file that holds it."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from pharos.console import clock
from pharos.errors import InputError
from pharos.grammar import word
from pharos.records import TrialRecord, count_outcomes
from pharos.report import comparison, repeat
from pharos.report.story import Story, identity
from pharos.report.style import DARK, LIGHT, NONE, Figure, count, number, short, words
from pharos.retry import redact
from pharos.trial import Outcome

Part = dict[str, Any]
Section = dict[str, Any]

_TIMES = "\u00d7"
_REASON = 160
_FULL_REASON = 3000
_WITH_METRICS = 200
_INSTALL = "pip install -c constraints.txt -e '.[report]'"


def render(story: Story, groups: Mapping[str, Sequence[Figure]], pictures: Mapping[str, bytes]) -> str:
    """One sweep's page.

    Args:
        story: The sweep.
        groups: Its figures, by the title of their section.
        pictures: PNGs of the best trial, by name.

    Raises:
        InputError: A package is missing.
    """
    body = [_result(story), *(_drawn(title, figures) for title, figures in groups.items()), _asked(story)]
    if pictures:
        body.insert(1, _pictures(story, pictures))
    body += [_trials(story), _repeat(story)]
    figures = [figure for group in groups.values() for figure in group]
    return _page(
        title=story.name,
        kind=f"Report of a {'sweep of finalists' if story.plan.finalists else 'sweep'}, {_moment(story.told_at)}",
        lead=lead(story),
        running=_running(story),
        notes=[],
        body=[section for section in body if section["parts"]],
        figures=figures,
        details=_details(story),
    )


def render_comparison(stories: Sequence[Story], figures: Sequence[Figure]) -> str:
    """Several sweeps' page.

    Raises:
        InputError: A package is missing.
    """
    difference = comparison.difference(stories)
    rows, head = _compared(stories)
    side_by_side = {
        "id": "table",
        "title": "Side by side",
        "parts": [{"kind": "table", "rows": rows, "head": head, "class": "numbers", "title": ""}],
    }
    return _page(
        title=f"{len(stories)} sweeps side by side",
        kind=f"Report of {', '.join(story.name for story in stories)}, {_moment(stories[0].told_at)}",
        lead=_lead_of_comparison(stories),
        running="",
        notes=[difference] if difference else [],
        body=[side_by_side, _drawn("The search", figures)],
        figures=figures,
        details={"again": "", "common": [], "trials": {}},
    )


def lead(story: Story) -> str:
    """The result in one or two sentences."""
    summary = story.summary
    if summary["finalists"]:
        verdict = summary["finalists"]["verdict"]
        return f"{verdict[:1].upper()}{verdict[1:]}."
    best, paper = story.best, story.paper
    total = count(len(story.records), "trial")
    if best is None or best.values is None:
        within = " within the constraints" if story.plan.settings.constraints else ""
        return f"None of {total} was completed{within}."
    text = f"The best of {total} reaches {story.metric} {number(best.values[0])}"
    if paper is None or paper.values is None:
        return f"{text}; there is no complete trial of the paper's values to compare it with."
    if paper is best:
        return f"{text}: that is the trial with the paper's own values; the search has found nothing better."
    return (
        f"{text}, {_gain(story, best.values[0], paper.values[0])} than the paper's values ({number(paper.values[0])})."
    )


def _gain(story: Story, mine: float, theirs: float) -> str:
    """How much better one value is than another."""
    word_of_it = "better" if story.is_better(mine, theirs) else "worse" if mine != theirs else "no better"
    amount = number(abs(mine - theirs))
    return f"{amount} ({_percent(mine, theirs)}) {word_of_it}" if theirs else f"{amount} {word_of_it}"


def _percent(mine: float, theirs: float) -> str:
    return f"{100 * abs((mine - theirs) / theirs):.2g} %" if theirs else ""


def _running(story: Story) -> str:
    counts = count_outcomes(story.trials)
    waiting = {o: counts[o] for o in (Outcome.RUNNING, Outcome.PAUSED, Outcome.INTERRUPTED) if counts[o]}
    asked = story.plan.settings.trials
    final = sum(amount for outcome, amount in counts.items() if outcome.is_final)
    if not waiting and (final >= asked or story.summary["stopped"]):
        return ""
    said = ", ".join(f"{amount} {words(outcome)}" for outcome, amount in waiting.items()) or "none running"
    at = _moment(story.told_at)
    return f"Not finished: {final} of {asked} trials have ended ({said}). This is how it stood at {at}."


def _result(story: Story) -> Section:
    summary, best, paper = story.summary, story.best, story.paper
    counts = {outcome: amount for outcome, amount in count_outcomes(story.trials).items() if amount}
    kind = "gpu_hours" if "gpu_hours" in summary else "cpu_hours"
    spent = sum(summary[kind].values())
    cards = []
    if best is not None and best.values is not None and not story.plan.finalists:
        cards.append((f"best {story.metric}", number(best.values[0]), f"trial {identity(best)}"))
        if paper is not None and paper.values is not None:
            cards.append(("the paper's values", number(paper.values[0]), f"trial {identity(paper)}"))
            if paper is not best:
                mine, theirs = best.values[0], paper.values[0]
                gain = _gain(story, mine, theirs).rpartition(" ")[2]
                cards.append(("difference", number(abs(mine - theirs)), f"{_percent(mine, theirs)} {gain}".strip()))
        elif paper is not None:
            cards.append(("the paper's values", NONE, f"{words(paper.outcome)} at epoch {paper.fidelity}"))
    cards += [
        ("trials", f"{len(story.records):,}", f"{counts.get(Outcome.COMPLETE, 0):,} complete"),
        ("wall-clock", clock(summary["seconds"]), ""),
        (f"{kind[:3].upper()}-hours", f"{spent:.3g}", _share_useful(summary[kind])),
    ]
    parts: list[Part] = [{"kind": "cards", "entries": cards}]
    if counts:
        parts.append({"kind": "outcomes", "entries": [(words(o), str(o), amount) for o, amount in counts.items()]})
    why = summary["stopped"] or _ended(story)
    if why:
        parts.append({"kind": "text", "text": f"Why it ended: {redact(why)}."})
    if summary["finalists"]:
        rows, head = _standing(summary["finalists"])
        parts.append({"kind": "table", "rows": rows, "head": head, "class": "numbers", "title": "The finalists"})
    elif best is not None:
        rows, head = _beside(story, best, paper)
        parts.append(
            {"kind": "table", "rows": rows, "head": head, "class": "numbers", "title": "The best beside the paper"}
        )
    return {"id": "result", "title": "Result", "parts": parts}


def _standing(standings: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Each finalist's runs in a line."""
    metric = standings["metric"]
    head = ["finalist", f"{metric} in the search", "fresh mean", "95 % interval", "runs", "behind the winner"]
    rows = []
    for row in standings["finalists"]:
        value, behind = row["values"][metric], row["behind"]
        interval = NONE if value["low"] is None else f"{number(value['low'])} to {number(value['high'])}"
        gap = (
            number(behind["mean"]) + (", beaten" if behind["beaten"] else ", may be as good") if behind else "best mean"
        )
        runs = f"{row['n']} of {len(row['runs'])}"
        rows.append([f"trial {row['trial']}", number(value["search"]), number(value["mean"]), interval, runs, gap])
    return rows, head


def _share_useful(spent: Mapping[str, float]) -> str:
    total = sum(spent.values())
    return f"{(spent['useful'] + spent['pruned']) / total:.0%} of it training" if total else ""


def _ended(story: Story) -> str:
    final = sum(record.outcome.is_final for record in story.records)
    asked = story.plan.settings.trials
    return f"all {count(asked, 'trial')} asked for have ended" if final >= asked else ""


def _beside(story: Story, best: TrialRecord, paper: TrialRecord | None) -> tuple[list[list[str]], list[str]]:
    """The best trial's values beside the paper's."""
    theirs = paper if paper is not best else None
    head = ["", f"best ({identity(best)})"]
    if theirs is not None:
        head += [f"paper's values ({identity(theirs)})", "difference"]
    rows = []
    for index, metric in enumerate(story.objectives.metrics):
        mine = (best.values or ())[index]
        row = [metric, number(mine)]
        if theirs is not None:
            other = theirs.last_values[index] if theirs.last_values else None
            final = theirs.outcome == Outcome.COMPLETE
            row.append(number(other) + ("" if final else f" ({words(theirs.outcome)} at epoch {theirs.fidelity})"))
            row.append(f"{mine - other:+.4g}" if final and other is not None else NONE)
        rows.append(row)
    for name in story.plan.space.names:
        value = best.params.get(name)
        row = [short(name), number(value)]
        if theirs is not None:
            usual = theirs.params.get(name)
            row += [number(usual), "same" if value == usual else _ratio(value, usual)]
        rows.append(row)
    return rows, head


def _ratio(mine: Any, other: Any) -> str:
    """How two values of a dimension differ."""
    numeric = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (mine, other))
    if not numeric:
        return "other"
    return f"{_TIMES} {mine / other:.3g}" if other and mine / other > 0 else f"{mine - other:+.4g}"


def _pictures(story: Story, pictures: Mapping[str, bytes]) -> Section:
    best = story.best
    text = f"What trial {identity(best)}, the best, drew last." if best else ""
    entries = [(name, base64.b64encode(data).decode()) for name, data in pictures.items()]
    return {
        "id": "pictures",
        "title": "Pictures",
        "parts": [{"kind": "text", "text": text}, {"kind": "pictures", "entries": entries}],
    }


def _drawn(title: str, figures: Sequence[Figure]) -> Section:
    parts: list[Part] = [{"kind": "figure", "figure": each} for each in figures if each.panels]
    left_out = [each for each in figures if not each.panels]
    if left_out:
        parts.append({"kind": "left-out", "figures": left_out})
    return {"id": title.lower().replace(" ", "-"), "title": title, "parts": parts}


def _asked(story: Story) -> Section:
    settings, plan = story.plan.settings, story.plan
    facts = [
        ("family", f"{settings.family}, scale {settings.scale}"),
        ("objective", ", ".join(f"{each.mode} {each.metric}" for each in story.objectives)),
        ("constraints", ", ".join(map(str, settings.bounds)) or "none"),
        ("trials", f"{settings.trials:,}, seed {settings.seed}"),
        ("sampler", _options(settings.sampler)),
        ("scheduler", _options(settings.scheduler)),
        ("resources", _resources(story)),
        ("limits", _limits(story)),
        ("engine", f"{settings.engine.name}, {settings.engine.precision}"),
        ("evidence", _evidence(story)),
    ]
    if plan.generation:
        facts.append(
            ("space", f"changed {count(plan.generation, 'time')} since the sweep began; this is the present one")
        )
    rows = [
        [
            row.name,
            row.range,
            row.scale,
            word(row.default) + ("" if row.inside else " (outside)"),
            row.condition or NONE,
        ]
        for row in plan.space.explain(plan.defaults)
    ]
    head = ["name", "range", "scale", "paper's value", "exists if"]
    versions = story.document.get("versions") or {}
    said = [(name, str(version)) for name, version in versions.items() if version]
    parts = [
        {"kind": "facts", "entries": [(name, redact(value)) for name, value in facts]},
        {"kind": "table", "rows": rows, "head": head, "class": "", "title": "The space"},
        {"kind": "facts", "entries": [("code revision" if name == "code" else name, value) for name, value in said]},
    ]
    return {"id": "asked", "title": "What was asked", "parts": parts}


def _options(config: Any) -> str:
    values = [f"{name} {number(value)}" for name, value in config.used.items() if value != []]
    return f"{config.name} ({', '.join(values)})" if values else str(config.name)


def _resources(story: Story) -> str:
    resources_, settings = story.plan.settings.resources, story.plan.settings
    text = f"{count(resources_.workers, 'worker')} a trial, {resources_.cpus_per_worker} CPU"
    if resources_.gpus_per_worker:
        text += f" and {resources_.gpus_per_worker:g} GPU"
    at_once = f"at most {resources_.concurrency}" if resources_.concurrency else "as many as fit"
    special = f"; {count(len(resources_.shapes), 'other shape')} by their values" if resources_.shapes else ""
    return f"{text} each{special}; {at_once} at once; backend {settings.backend}"


def _limits(story: Story) -> str:
    settings = story.plan.settings
    values = {name: getattr(settings, name) for name in ("hours", "gpu_hours", "stop_at", "plateau", "breaker")}
    return ", ".join(f"{name}={number(value)}" for name, value in values.items() if value is not None)


def _evidence(story: Story) -> str:
    noted = story.summary["evidence"]
    if not noted:
        return "none from other sweeps"
    return "; ".join(f"{name}: {_said(what)}" for name, what in noted.items())


def _said(what: Any) -> str:
    if isinstance(what, Mapping):
        return ", ".join(f"{key} {_said(each)}" for key, each in what.items() if each)
    return str(what)


def _trials(story: Story) -> Section:
    names = story.plan.space.names + sorted(
        {name for record in story.records for name in record.params} - set(story.plan.space.names)
    )
    metrics = story.objectives.metrics
    head = [("trial", False), ("outcome", False), *((metric, True) for metric in metrics), ("last report", False)]
    head += [("epochs", True), *((short(name), True) for name in names), ("seconds", True), ("reason", False)]
    rows = []
    for record in story.records:
        cells: list[tuple[str, Any]] = [(identity(record), None), (words(record.outcome), None)]
        for index in range(len(metrics)):
            value = record.values[index] if record.values is not None else None
            cells.append((number(value), _key(value)))
        cells.append((_last(record), None))
        cells.append((str(record.fidelity), record.fidelity))
        for name in names:
            cells.append((number(record.params.get(name)), _key(record.params.get(name))))
        cells.append((f"{record.seconds:.1f}", round(record.seconds, 3)))
        cells.append((_short_reason(record), None))
        mark = "best" if record is story.best else "paper" if record is story.paper else ""
        rows.append({"outcome": str(record.outcome), "cells": cells, "mark": mark})
    outcomes = [(str(o), words(o)) for o, amount in count_outcomes(story.trials).items() if amount]
    text = (
        "Only complete trials have a value; what others reported last stands beside it. A click on a trial, here or in "
        "a figure, shows all of it and how to train it again. ★ is the best trial, ¶ the paper's values."
    )
    parts: list[Part] = [{"kind": "text", "text": text}]
    if rows:
        parts.append({"kind": "trials", "head": head, "rows": rows, "outcomes": outcomes})
    return {"id": "trials-section", "title": "All trials", "parts": parts}


def _key(value: Any) -> Any:
    """What a cell is sorted by: a number, nothing, or (None) its text."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def _last(record: TrialRecord) -> str:
    """What a trial without a final value reported last."""
    if record.values is not None or not record.curve:
        return ""
    fidelity = max(record.curve)
    return f"{' '.join(map(number, record.curve[fidelity]))} at {fidelity}"


def _short_reason(record: TrialRecord) -> str:
    lines = redact(record.reason).strip().splitlines()
    last = lines[-1] if lines else ""
    return last if len(last) <= _REASON else f"{last[: _REASON - 1]}…"


def _repeat(story: Story) -> Section:
    shown = story.best or next(iter(story.records), None)
    parts: list[Part] = []
    if shown is not None:
        name = "the best trial" if shown is story.best else f"trial {identity(shown)}"
        again = repeat.from_sweep(story) + identity(shown)
        alone = " ".join(repeat.from_scratch(story, shown))
        parts = [
            {"kind": "text", "text": "In a checkout of the code; a click on a trial above shows the same for it. Each "
             "trial starts from its seed, so on the same machine the numbers are the same."},
            {"kind": "code", "title": f"Train {name} again, from this sweep's folder", "text": redact(again)},
            {"kind": "code", "title": "The same from the code alone", "text": redact(alone)},
        ]  # fmt: skip
        if any(record.origin for record in story.records):
            parts[0]["text"] += (
                " A trial that started from another's checkpoint is trained from nothing by these commands, and ends"
                " with other numbers."
            )
    document = yaml.safe_dump(dict(story.document), sort_keys=False)
    parts.append({"kind": "file", "title": "sweep.yaml, all that was asked", "text": redact(document)})
    return {"id": "repeat", "title": "To repeat it", "parts": parts}


def _details(story: Story) -> dict[str, Any]:
    """What the page shows of a trial that is clicked on."""
    commands = {record.number: repeat.from_scratch(story, record) for record in story.records}
    everywhere = set.intersection(*map(set, commands.values())) if commands else set()
    first = next(iter(commands.values()), [])
    trials: dict[str, Any] = {}
    for record in story.records:
        facts = [
            (name, number(value)) for name, value in zip(story.objectives.metrics, record.values or (), strict=False)
        ]
        if last := _last(record):
            facts.append(("last report", last))
        facts += [("epochs", str(record.fidelity)), ("seconds", f"{record.seconds:.1f}")]
        if record.lost_seconds:
            facts.append(("seconds lost", f"{record.lost_seconds:.1f}"))
        if record.origin is not None:
            facts.append(("started from the checkpoint of", f"trial {record.origin.donor:05d}"))
        broken = [name for name, violation in record.violations.items() if violation > 0]
        if broken and record.outcome in (Outcome.COMPLETE, Outcome.PRUNED):
            facts.append(("breaks the constraint on", ", ".join(broken)))
        facts += [(short(name), word(value)) for name, value in record.params.items()]
        trials[identity(record)] = {
            "outcome": words(record.outcome),
            "facts": [(name, redact(value)) for name, value in facts],
            # Of a thousand trials they would be as large as all the rest.
            "metrics": [(name, number(value)) for name, value in sorted(record.metrics.items())]
            if len(story.records) <= _WITH_METRICS
            else [],
            "reason": redact(record.reason)[-_FULL_REASON:],
            "alone": [text for text in commands[record.number] if text not in everywhere],
        }
    common = [redact(text) for text in first if text in everywhere]
    return {"again": redact(repeat.from_sweep(story)), "common": common, "trials": trials}


def _lead_of_comparison(stories: Sequence[Story]) -> str:
    found = [story for story in stories if story.best is not None]
    if not comparison.has_one_objective(stories):
        return "Their objectives differ: each is shown for itself."
    if not found:
        return "None of them has a complete trial yet."
    value = {story.name: (story.best.values or (0.0,))[0] for story in found if story.best}
    first = found[0]
    leader = (min if first.is_min else max)(found, key=lambda story: value[story.name])
    return f"{leader.name} has the best trial: {first.metric} {number(value[leader.name])}."


def _compared(stories: Sequence[Story]) -> tuple[list[list[str]], list[str]]:
    rows: dict[str, list[str]] = {}

    def add(name: str, values: Sequence[str]) -> None:
        rows[name] = list(values)

    add("family", [f"{s.plan.settings.family}, scale {s.plan.settings.scale}" for s in stories])
    add("objective", [", ".join(f"{each.mode} {each.metric}" for each in s.objectives) for s in stories])
    bests = [s.best for s in stories]
    add("best value", [number(b.values[0]) if b and b.values else NONE for b in bests])
    add("best trial", [identity(b) if b else NONE for b in bests])
    papers = [s.paper for s in stories]
    add("the paper's values", [number(p.values[0]) if p and p.values else NONE for p in papers])
    add("trials", [f"{len(s.records):,}" for s in stories])
    for outcome in Outcome:
        amounts = [sum(record.outcome == outcome for record in s.records) for s in stories]
        if any(amounts):
            add(words(outcome), [str(amount) for amount in amounts])
    add("wall-clock", [clock(s.summary["seconds"]) for s in stories])
    for purpose in ("useful", "pruned", "lost", "waiting"):
        add(f"hours {purpose}", [_hours(s, purpose) for s in stories])
    add("sampler", [s.plan.settings.sampler.name for s in stories])
    add("scheduler", [s.plan.settings.scheduler.name for s in stories])
    add("code revision", [str((s.document.get("versions") or {}).get("code") or NONE) for s in stories])
    return [[name, *values] for name, values in rows.items()], ["", *(story.name for story in stories)]


def _hours(story: Story, purpose: str) -> str:
    kind = "gpu_hours" if "gpu_hours" in story.summary else "cpu_hours"
    return f"{story.summary[kind][purpose]:.3g} {kind[:3].upper()}"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _page(*, figures: Sequence[Figure], details: Mapping[str, Any], body: Sequence[Section], **text: Any) -> str:
    """Puts a page together; whatever is not the page's own is escaped."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError(f"a report needs {error.name}: {_INSTALL}") from None
    here = resources.files("pharos.report")
    panels = [
        {"id": f"plot-{figure.id}-{index}", "panel": {"data": panel["data"], "layout": panel["layout"]}}
        for figure in figures
        for index, panel in enumerate(figure.panels)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["length"] = len
    template = environment.from_string((here / "page.html.j2").read_text())
    return template.render(
        **text,
        body=body,
        sections=[(section["id"], section["title"]) for section in body],
        css=Markup((here / "page.css").read_text()),
        js=Markup((here / "page.js").read_text()),
        plotly=Markup(get_plotlyjs()) if panels else "",
        figures=Markup(_json(panels)),
        palettes=Markup(_json({"light": LIGHT, "dark": DARK})),
        details=Markup(_json(details)),
        footer=f"Made by platform/report.py {_moment(time.time())}; all that it needs is in this file.",
    )


def _json(value: Any) -> str:
    """JSON that can stand in HTML, whatever text is in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
