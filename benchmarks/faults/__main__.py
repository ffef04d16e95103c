"""Breaks sweeps on purpose, and says what became of them: docs/faults.md.

    python -m benchmarks.faults [--only NAME ...] [--moment TEXT] [--json FILE] [--write] [--keep FOLDER]

Each fault is struck at each of its moments, in a sweep of its own; the sweeps are run undisturbed, too, for the time
that is lost. Prints a table; the exit status is 1 if a promise was broken, a sweep hung, or a strike missed. The
processes that are started are ended, whatever happens, and no others.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.fault import Fault, HungError, MissedError, Moment, Place, Scene, SceneMaker
from benchmarks.faults.table import put_into_page, table
from benchmarks.faults.verdict import Status, Undisturbed, Verdict, judge, judge_undisturbed, last_words
from pharos.errors import PharosError

_LONGEST = 300.0  # an undisturbed sweep may take, seconds


def all_faults() -> list[Fault]:
    """In the order of the table."""
    from benchmarks.faults import clock, machine, nodes, poison, stores

    return [*machine.FAULTS, *stores.FAULTS, *poison.FAULTS, *clock.FAULTS, *nodes.FAULTS]


class Places:
    """Where cases are played: one place at a time."""

    def __init__(self, stack: contextlib.ExitStack):
        self._stack = stack
        self._place: Place | None = None
        self._make: SceneMaker = Scene

    def go(self, place: Place) -> SceneMaker:
        """What makes a scene there; the place before is left."""
        if place is not self._place:
            self._stack.close()
            self._place = None  # if it cannot be entered
            self._make = self._stack.enter_context(place())
            self._place = place
        return self._make


def play(fault: Fault, moment: Moment, scene: Scene, undisturbed: Undisturbed) -> Verdict:
    """One case, from the start of its sweep to the verdict."""
    verdict = Verdict(fault.name, fault.title, moment.name)
    with contextlib.closing(scene), scene.alone():
        try:
            fault.act(scene, moment.name)
        except MissedError as error:
            verdict.status, verdict.reason = Status.MISSED, f"{error}; the last that was said: {last_words(scene)}"
        except HungError:
            verdict.status = Status.HUNG if scene.strikes else Status.MISSED
            verdict.reason = "" if scene.strikes else "its moment did not come"
        verdict.seconds = time.monotonic() - scene.began_at
        if not scene.strikes and verdict.status == Status.HELD:
            verdict.status, verdict.reason = Status.MISSED, "nothing was struck"
        if verdict.status != Status.MISSED:
            try:
                judge(verdict, moment, scene, undisturbed)
            except (MissedError, PharosError) as error:
                verdict.status = Status.BROKEN
                verdict.problems.append(f"the sweep cannot be read any more: {error}")
    return verdict


def play_undisturbed(fault: Fault, scene: Scene) -> Undisturbed:
    """The sweep that a fault strikes, without it.

    Raises:
        RuntimeError: It did not complete.
    """
    with contextlib.closing(scene), scene.alone():
        try:
            fault.act(scene, None)
        except (MissedError, HungError) as error:
            raise RuntimeError(f"the undisturbed sweep: {error}") from None
        return judge_undisturbed(scene, time.monotonic() - scene.began_at)


def play_all(cases: list[tuple[Fault, Moment]], home: Path, places: Places) -> Iterator[Verdict]:
    """One case after the other, with a line each."""
    undisturbed: dict[str, Undisturbed | str] = {}  # by sweep; or why there is none
    began = time.monotonic()
    for index, (fault, moment) in enumerate(cases):
        lacks = fault.needs()
        make = Scene if lacks else places.go(fault.place)
        if not lacks and fault.sweep not in undisturbed:
            try:
                undisturbed[fault.sweep] = play_undisturbed(fault, make(home / f"undisturbed-{fault.sweep}", _LONGEST))
            except RuntimeError as error:
                undisturbed[fault.sweep] = str(error)
        base = undisturbed.get(fault.sweep, "")
        if lacks:
            verdict = Verdict(fault.name, fault.title, moment.name, Status.SKIPPED, reason=lacks)
        elif isinstance(base, str):
            verdict = Verdict(fault.name, fault.title, moment.name, Status.MISSED, reason=base)
        else:
            limit = fault.seconds + 8 * base.seconds
            verdict = play(fault, moment, make(home / f"{index:02d}-{fault.name}", limit), base)
        yield verdict
        spent = time.monotonic() - began
        left = spent / (index + 1) * (len(cases) - index - 1)
        print(
            f"{index + 1}/{len(cases)} {fault.name}, {moment.name}: {verdict.status} in {verdict.seconds:.0f} s"
            f"{''.join(f'; {text}' for text in [verdict.reason, *verdict.problems] if text)}"
            f" (about {left / 60:.0f} min left)",
            file=sys.stderr,
            flush=True,
        )


def _read(path: Path | None) -> dict[tuple[str, str], Verdict]:
    """What an earlier run has found, by fault and moment."""
    if path is None or not path.exists():
        return {}
    each = [Verdict(**{**entry, "status": Status(entry["status"])}) for entry in json.loads(path.read_text())]
    return {(verdict.fault, verdict.moment): verdict for verdict in each}


def main() -> int:
    """Plays what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    faults = all_faults()
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in faults], help="these faults")
    parser.add_argument("--moment", default="", metavar="TEXT", help="only moments with this text in their names")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all that was found there; cases that it has from before and that are not played now stay",
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/faults.md")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the sweeps there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    cases = [
        (fault, moment)
        for fault in faults
        for moment in fault.moments
        if (not options.only or fault.name in options.only) and options.moment in moment.name
    ]
    home = options.keep or Path(tempfile.mkdtemp(prefix="pharos-faults-"))
    found = _read(options.json)
    played = 0
    try:
        with contextlib.ExitStack() as stack:
            for verdict in play_all(cases, home.resolve(), Places(stack)):
                found[verdict.fault, verdict.moment] = verdict
                played += 1
                if options.json:
                    options.json.write_text(
                        json.dumps([dataclasses.asdict(each) for each in found.values()], indent=2) + "\n"
                    )
    except KeyboardInterrupt:
        print(f"stopped after {played} of {len(cases)} cases", file=sys.stderr)
    finally:
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    order = [(fault.name, moment.name) for fault in faults for moment in fault.moments]
    shown = [found[case] for case in order if case in found]
    print(table(shown))
    if options.write:
        put_into_page(shown, len(order))
    if played < len(cases):
        return 130
    return 0 if {each.status for each in shown} <= {Status.HELD, Status.SKIPPED} else 1


if __name__ == "__main__":
    sys.exit(main())
