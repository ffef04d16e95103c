"""Opens Optuna's dashboard on a sweep's study, while it runs or later.

It is for looking: what would change the study is refused, notes too. It listens on this machine's loopback alone.
What is new shows after a few seconds (a study in a bucket: after storage.mirror_seconds and ten more).
"""

from __future__ import annotations

import argparse
import sys
import threading

from pharos.command import on_stop_signal, run_command

_EPILOG = """\
examples:
  python platform/dashboard.py tipsy-2026-11-22-a1b2
  python platform/dashboard.py s3://lab/sweeps/tipsy-2026-11-22-a1b2 --port 8081
  ssh -L 8080:127.0.0.1:8080 HOST     on your own machine, to see there what HOST serves
"""


def main(arguments: list[str]) -> int:
    """Serves the dashboard until it is stopped; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dashboard.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep's name, or the path or URL of its folder")
    parser.add_argument("--port", type=int, default=8080, help="to listen at (8080); 0: any that is free")
    parser.add_argument("settings", nargs="*", metavar="storage.…=…", help="where to look for it (url, options)")
    options = parser.parse_intermixed_args(arguments)

    # Imported late: --help and a mistyped flag need no torch.
    from pharos.dashboard import serving
    from pharos.folders import read_plan

    folder, plan = read_plan(options.sweep, options.settings, ("storage.",))
    stop = threading.Event()

    def note(text: str) -> None:
        print(text, file=sys.stderr)

    with on_stop_signal(stop.set), serving(folder, folder.name, plan.settings.study.storage, options.port, note) as url:
        print(f"{folder.name}: {url} (Ctrl-C ends it)", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    run_command(main)
