"""Shows how a sweep stands: outcome counts, the best trial beside the paper's values, where the files lie."""

from __future__ import annotations

import argparse
import json

from pharos.command import run_command


def main(arguments: list[str]) -> int:
    """Prints a sweep's summary; returns the exit status."""
    parser = argparse.ArgumentParser(prog="report.py", description=__doc__)
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name, or the path of its folder")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("settings", nargs="*", metavar="storage.url=…", help="where to look for it")
    options = parser.parse_intermixed_args(arguments)

    # Imported late: --help and a mistyped flag need no torch.
    from pharos.console import closing
    from pharos.summary import summarise_folder
    from pharos.sweep import read_plan

    folder, plan = read_plan(options.sweep, options.settings)
    summary = summarise_folder(folder, plan)
    print(json.dumps(summary, indent=2) if options.json else closing(summary, folder.root, plan.settings.trials))
    return 0


if __name__ == "__main__":
    run_command(main)
