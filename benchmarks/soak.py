"""Many trials, one after the other, on the same processes: what they leave behind.

    python benchmarks/soak.py [--trials 200] [name=value ...]     settings as for platform/sweep.py

Runs a sweep of tiny trials and looks, each second, at the processes that train them: resident memory, open files and
threads, after the tenth trial and at the end; then at what is left when the sweep is over: its processes, and files in
the system's temporary and shared-memory folders. One row a process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TITLES = ("ray::TrialActor", "ray::_RemoteWorker")


@dataclass
class Sample:
    """A process at one moment."""

    trials: int
    megabytes: float
    files: int
    threads: int


def trainers() -> dict[int, str]:
    """The processes that train trials, by number, with their titles."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if title.startswith(TITLES):
            found[int(folder.name)] = title.split(".")[0]
    return found


def look(process: int, trials: int) -> Sample | None:
    """What a process holds now; None if it is gone."""
    folder = Path("/proc") / str(process)
    try:
        lines = (folder / "status").read_text().splitlines()
        values = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        files = len(os.listdir(folder / "fd"))  # noqa: PTH208 - the entries are not files to open
        return Sample(trials, int(values["VmRSS"].split()[0]) / 1024, files, int(values["Threads"]))
    except (OSError, KeyError):
        return None


def leftovers() -> set[str]:
    """Files that trials could have left in folders of the system."""
    return {
        str(path)
        for folder in ("/dev/shm", tempfile.gettempdir())
        for path in Path(folder).glob("*")
        if not path.name.startswith(("ray", "session_"))
    }


def main() -> int:
    """Prints the table; the exit status is the sweep's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    options = parser.parse_intermixed_args()
    before, files_before = set(trainers()), leftovers()
    samples: dict[int, list[Sample]] = {}
    titles: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, str(ROOT / "platform/sweep.py"), "--family", "tipsy", "scale=tiny"]
        command += [f"trials={options.trials}", "tracking=none", "scheduler=none", "sampler=random"]
        command += ["resources.concurrency=1", f"storage.url={home}", *options.settings]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as sweep:
            while sweep.poll() is None:
                trials = len(list(Path(home).glob("*/trials/*")))
                for process, title in trainers().items():
                    sample = look(process, trials)
                    if process not in before and sample is not None:
                        titles[process] = title
                        samples.setdefault(process, []).append(sample)
                print(f"\r{trials}/{options.trials} trials, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
                time.sleep(1)
            error = sweep.stderr.read() if sweep.stderr else ""
    print(file=sys.stderr)
    if sweep.returncode:
        print(f"the sweep failed: {error.strip().splitlines()[-1] if error.strip() else 'no reason'}", file=sys.stderr)
        return sweep.returncode
    print(f"{'process':<24}{'MB after 10':>12}{'MB at the end':>14}{'change':>9}{'files':>12}{'threads':>12}")
    for process, seen in samples.items():
        first = next((sample for sample in seen if sample.trials > 10), seen[-1])
        last = seen[-1]
        change = last.megabytes / first.megabytes - 1
        print(
            f"{titles[process]:<24}{first.megabytes:>12.0f}{last.megabytes:>14.0f}{change:>9.1%}"
            f"{f'{first.files} -> {last.files}':>12}{f'{first.threads} -> {last.threads}':>12}"
        )
    time.sleep(2)
    print(f"processes left: {len(set(trainers()) - before)}; files left: {sorted(leftovers() - files_before) or 0}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
