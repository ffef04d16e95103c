"""Looks at all that a sweep needs before it is started: a line a check. Nothing is left behind."""

from __future__ import annotations

import argparse
import json
import sys

from pharos.command import run_command
from pharos.families import families

_EPILOG = """\
settings are name=value, the same as for sweep.py (python platform/sweep.py --help)

what is looked at: the configuration; versions here and on every node of a Ray cluster; a round trip to storage.url,
the study's database and W&B; the DeepSpeed configuration; trials at the corners of the space, every loop of the recipe
for a few steps; whether as many as are started side by side fit the memory, and their checkpoints the storage; time
and cost

exit status: 0 nothing failed, 1 something did

examples:
  python platform/doctor.py --family tipsy
  python platform/doctor.py --family tipsy scale=paper storage.url=s3://lab/sweeps tracking.mode=online --price 2.5
  python platform/doctor.py --family wfn resources.workers=2 engine=deepspeed engine.zero=2
  python platform/doctor.py --family tipsy && python platform/sweep.py --family tipsy
"""


def main(arguments: list[str]) -> int:
    """Makes all checks; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="doctor.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", required=True, help=f"what would be searched: {', '.join(families())}")
    parser.add_argument("--price", type=float, metavar="N", help="of an hour of a GPU (of a CPU core, without GPUs)")
    parser.add_argument("--json", action="store_true", help="print the findings alone on standard output, as JSON")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings, see below")
    options = parser.parse_intermixed_args(arguments)

    # Imported late: --help and a mistyped flag need no torch.
    from pharos.doctor.examine import Examination
    from pharos.doctor.sheet import Sheet

    sheet = Sheet(lambda line: print(line, file=sys.stderr if options.json else sys.stdout, flush=True))
    Examination(sheet, options.price).run(options.family, options.settings)
    if options.json:
        print(json.dumps(sheet.to_dict(), indent=2))
    return 0 if sheet.is_well else 1


if __name__ == "__main__":
    run_command(main)
