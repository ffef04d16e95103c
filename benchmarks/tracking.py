"""What W&B may cost a sweep: the same one with a W&B that is well, that stalls, fails and goes, and with none.

    python benchmarks/tracking.py                  12 trials on the two slots of this machine
    python benchmarks/tracking.py --stall 60       how long it stalls before it answers 500 and then goes, in seconds

The client is the real one, the server records on loopback. What it lacks at the end is sent with report.py --sync, and
counted. Rounds alternate; each column is the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from wandb_server import WandbServer  # type: ignore[import-not-found]  # noqa: E402 - where the tests have it

WAYS = ("none", "well", "ill")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stall", type=float, default=60.0, help="seconds; then it answers 500 for 5 s, then it goes")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    missing = rows = 0
    for round_ in range(options.rounds):
        for way in WAYS:
            taken, lacks, has = run(way, options.trials, options.stall)
            seconds[way].append(taken)
            missing += lacks
            rows = has or rows
            print(f"round {round_ + 1}/{options.rounds}, {way}: {taken:.1f} s", file=sys.stderr)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    print("| W&B | sweep, s | more than with none, s | than with one that is well, s |")
    print("|--|--:|--:|--:|")
    for way, name in (("none", "none"), ("well", "well"), ("ill", f"stalls {options.stall:g} s, fails, goes")):
        more = medians[way] - medians["none"]
        print(f"| {name} | {medians[way]:.1f} | {more:+.1f} | {medians[way] - medians['well']:+.1f} |")
    print(f"\nTrials that W&B lacked after --sync: {missing}; it has {rows} rows of each.")


def run(way: str, trials: int, stall: float) -> tuple[float, int, int]:
    """One sweep: the seconds it took, the trials that W&B lacks in the end, and the rows that it has of each."""
    server = WandbServer()
    environment = {**os.environ, **server.environment, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    tiny = ["scale=tiny", "recipe.epochs=12", "recipe.student_epochs=3", "scheduler=none", f"trials={trials}"]
    tracking = "tracking=none" if way == "none" else "tracking.mode=online"
    with tempfile.TemporaryDirectory(prefix="pharos-") as folder:
        command = [sys.executable, str(ROOT / "platform" / "sweep.py"), "--family", "tipsy", "--json"]
        began = time.monotonic()
        driver = subprocess.Popen(
            [*command, *tiny, tracking], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if way == "ill":
            threading.Thread(target=sicken, args=(server, stall), daemon=True).start()
        output, _ = driver.communicate()
        taken = time.monotonic() - began
        name = json.loads(output)["sweep"]
        if way == "none":
            server.close()
            return taken, 0, 0
        well = WandbServer() if way == "ill" else server
        if well is not server:  # it has come back, with what it had
            well.runs, well.sweeps = server.runs, server.sweeps
        subprocess.run(
            [sys.executable, str(ROOT / "platform" / "report.py"), name, "--sync"],
            cwd=folder,
            env={**environment, **well.environment},
            check=True,
            capture_output=True,
        )
        well.close()
    counts = {len(run.fidelities) for run in well.runs.values() if run.job_type == "tipsy"}
    whole = sum(run.fidelities == list(range(1, 16)) for run in well.runs.values() if run.job_type == "tipsy")
    return taken, trials - whole, max(counts)


def sicken(server: WandbServer, stall: float) -> None:
    """Stalls once the first trial is under way, then fails, then goes."""
    while not any(run.history for run in server.runs.values()):
        time.sleep(0.05)
    server.become("stall")
    time.sleep(stall)
    server.become("fail")
    time.sleep(5)
    server.close()


if __name__ == "__main__":
    main()
