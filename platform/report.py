"""Shows how a sweep stands: outcome counts, the best trial beside the paper's values, where the files lie."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from pharos.command import run_command

if TYPE_CHECKING:
    from pharos.config import Plan
    from pharos.storage import Storage

_EPILOG = """\
examples:
  python platform/report.py tipsy-2026-11-22-a1b2
  python platform/report.py s3://lab/sweeps/tipsy-2026-11-22-a1b2 --storage
  python platform/report.py tipsy-2026-11-22-a1b2 --storage storage.keep_trials=3 storage.keep_last=1
  python platform/report.py tipsy-2026-11-22-a1b2 --storage storage.keep_trials=3 --remove
  python platform/report.py tipsy-2026-11-22-a1b2 --sync tracking.project=poses
"""


def main(arguments: list[str]) -> int:
    """Prints a sweep's summary, or what its files take; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name, or the path or URL of its folder")
    parser.add_argument(
        "--storage",
        action="store_true",
        help="show what each trial takes, and which checkpoints would go by storage.keep_* (the sweep's, or as given)",
    )
    parser.add_argument(
        "--sync", action="store_true", help="send to W&B what it does not have: runs, the sweep's page, its summary"
    )
    parser.add_argument("--remove", action="store_true", help="with --storage: remove them; no driver may be running")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument(
        "settings", nargs="*", metavar="storage.…=…", help="where to look for it (url, options); what to keep (keep_*)"
    )
    options = parser.parse_intermixed_args(arguments)

    # Imported late: --help and a mistyped flag need no torch.
    from pharos.console import closing, storage_table
    from pharos.errors import InputError
    from pharos.folders import read_plan
    from pharos.summary import summarise_folder
    from pharos.survey import survey_sweep

    if options.remove and not options.storage:
        raise InputError("--remove goes with --storage: it removes what --storage shows")
    folder, plan = read_plan(
        options.sweep, options.settings, ("tracking.", "storage.") if options.sync else ("storage.",)
    )
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
    summary = summarise_folder(folder, plan)
    print(json.dumps(summary, indent=2) if options.json else closing(summary, folder.root, plan.settings.trials))
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


if __name__ == "__main__":
    run_command(main)
