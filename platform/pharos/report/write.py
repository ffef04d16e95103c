"""Makes reports: of one sweep in its own folder, of several where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from pharos.errors import InputError
from pharos.pictures import read_pictures
from pharos.plan import Plan
from pharos.report import comparison, finals, machines, page, parameters, png, search, training
from pharos.report.importance import importances
from pharos.report.story import Story, read_story
from pharos.report.style import Figure
from pharos.storage import Storage
from pharos.trial import trial_id

FILE = "index.html"


def write_report(
    sweeps: Sequence[tuple[Storage, Plan]], output: str | None = None, pngs: bool = False
) -> tuple[str, list[Story]]:
    """Writes the report of a sweep, or of several side by side.

    Args:
        sweeps: Their folders and plans.
        output: A file (`.html`) or a folder; None: `report/` in the folder of the sweep, or of the first.
        pngs: Whether the figures become files beside it, too.

    Returns:
        Where it is, and what it tells.

    Raises:
        InputError: A study, a package or a browser is missing.
        PharosError: It cannot be written.
    """
    stories = [read_story(folder, plan) for folder, plan in sweeps]
    folder, file = _place(stories, output)
    if len(stories) == 1:
        groups = figures_of(stories[0])
        drawn = [figure for group in groups.values() for figure in group]
        html = page.render(stories[0], groups, _pictures(stories[0]))
    else:
        drawn = [comparison.over_trials(stories), comparison.over_hours(stories)]
        html = page.render_comparison(stories, drawn)
    files = png.draw(drawn) if pngs else {}
    # The page last: where it is, all of it is.
    for name, data in files.items():
        folder.write_bytes(name, data)
    folder.write_bytes(file, html.encode())
    return folder.path(file), stories


def figures_of(story: Story) -> dict[str, list[Figure]]:
    """One sweep's figures, those that have nothing to show included, by the title of their section."""
    groups: dict[str, list[Figure | None]] = {
        # Finalists were searched elsewhere: what differs here is the seed.
        "Finalists": [finals.finalists(story)],
        "The search": [] if story.plan.finalists else _of_the_search(story),
        "The training": [training.curves(story), training.rungs(story)],
        "The machines": [machines.timeline(story), machines.hours(story)],
    }
    kept = {title: [figure for figure in group if figure is not None] for title, group in groups.items()}
    return {title: group for title, group in kept.items() if group}


def _of_the_search(story: Story) -> list[Figure | None]:
    found = importances(story)
    return [
        search.history(story),
        search.pareto(story),
        parameters.importance(story, found),
        parameters.parallel(story),
        parameters.slices(story, found),
        parameters.contours(story, found),
    ]


def _place(stories: Sequence[Story], output: str | None) -> tuple[Storage, str]:
    """The folder and the file name of a report."""
    if output is None:
        return stories[0].folder.sub("report"), FILE if len(stories) == 1 else "comparison.html"
    options = stories[0].plan.settings.storage.options
    if not output.endswith((".html", ".htm")):
        return Storage(output, options), FILE
    parent, slash, name = output.rpartition("/")
    if not name.removesuffix(".html"):
        raise InputError(f"--output {output}: a file needs a name, such as report.html")
    return Storage((parent or slash) if slash else ".", options), name


def _pictures(story: Story) -> dict[str, bytes]:
    """Those of the best trial."""
    if story.best is None:
        return {}
    return read_pictures(story.folder.sub("trials", trial_id(story.best.number)))
