"""Shows how a sweep stands: a summary here, and a page with figures, report/index.html, in the sweep's folder."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

from pharos.command import run_command

if TYPE_CHECKING:
    from pharos.plan import Plan
    from pharos.storage import Storage

_EPILOG = """\
examples:
  python platform/report.py tipsy-2026-11-22-a1b2
  python platform/report.py tipsy-2026-11-22-a1b2 --output tipsy.html --png
  python platform/report.py tipsy-2026-11-22-a1b2 tipsy-2026-11-23-c3d4 --output both.html
  python platform/report.py s3://lab/sweeps/tipsy-2026-11-22-a1b2 --storage
  python platform/report.py tipsy-2026-11-22-a1b2 --storage storage.keep_trials=3 storage.keep_last=1
  python platform/report.py tipsy-2026-11-22-a1b2 --storage storage.keep_trials=3 --remove
  python platform/report.py tipsy-2026-11-22-a1b2 --sync tracking.project=poses
"""


def main(arguments: list[str]) -> int:
    """Prints a sweep's summary and writes its report, or shows what its files take; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="SWEEP",
        help="a sweep's name, or the path or URL of its folder; several are shown side by side; "
        "and storage.…=…: where to look for it (url, options), what to keep (keep_*)",
    )
    parser.add_argument(
        "--output", metavar="PATH", help="write the report to this file (….html) or folder, not into the sweep's own"
    )
    parser.add_argument("--png", action="store_true", help="write each figure as a PNG beside it, too (needs Chromium)")
    parser.add_argument(
        "--storage",
        action="store_true",
        help="show what each trial takes, and which checkpoints would go by storage.keep_* (the sweep's, or as given)",
    )
    parser.add_argument(
        "--sync", action="store_true", help="send to W&B what it does not have: runs, the sweep's page, its summary"
    )
    parser.add_argument("--remove", action="store_true", help="with --storage: remove them; no driver may be running")
    parser.add_argument("--json", action="store_true", help="print it as JSON, and write nothing")
    options = parser.parse_intermixed_args(arguments)
    settings = [word for word in options.words if re.match(r"[\w.]+=", word)]
    sweeps = [word for word in options.words if word not in settings]

    # Imported late: --help and a mistyped flag need no torch.
    from pharos.console import closing, storage_table
    from pharos.folders import read_plan
    from pharos.summary import summarise_folder
    from pharos.survey import survey_sweep

    _check(options, sweeps)
    found = [
        read_plan(sweep, settings, ("tracking.", "storage.") if options.sync else ("storage.",)) for sweep in sweeps
    ]
    folder, plan = found[0]
    if options.sync:
        return _sync(folder, plan, options.json)
    if options.storage:
        uses = survey_sweep(folder, plan, remove=options.remove)
        print(
            json.dumps([use.to_dict() for use in uses], indent=2)
            if options.json
            else storage_table(uses, options.remove)
        )
        return 0
    if options.json:
        summaries = [summarise_folder(*each) for each in found]
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2))
        return 0
    # Imported now: it takes the packages of figures.
    from pharos.report.write import write_report

    path, stories = write_report(found, options.output, options.png)
    for story in stories:
        print(closing(story.summary, story.folder.root, story.plan.settings.trials))
    print(f"report: {path}")
    return 0


def _sync(folder: Storage, plan: Plan, as_json: bool) -> int:
    from pharos.tracking.sync import sync

    result = sync(folder, plan, lambda text: print(text, file=sys.stderr))
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    lines = [f"{len(result['sent'])} trials sent, the others were there already"]
    if result["running"]:
        lines.append(f"left to the driver that trains them: {', '.join(result['running'])}")
    print("\n".join([*lines, result["url"]] if result["url"] else lines))
    return 0


def _check(options: argparse.Namespace, sweeps: list[str]) -> None:
    """Refuses flags that mean nothing together."""
    from pharos.errors import InputError

    if not sweeps:
        raise InputError("name a sweep: its name, or the path or URL of its folder")
    if options.remove and not options.storage:
        raise InputError("--remove goes with --storage: it removes what --storage shows")
    if options.storage and len(sweeps) > 1:
        raise InputError("--storage shows one sweep's files; name one")
    if options.sync and (options.storage or options.output or options.png or len(sweeps) > 1):
        raise InputError("--sync sends one sweep, and takes no other flag but --json")
    if (options.output or options.png) and (options.storage or options.json):
        other = "--storage" if options.storage else "--json"
        raise InputError(f"{other} writes no report; leave {'--output' if options.output else '--png'} out")


if __name__ == "__main__":
    run_command(main)
