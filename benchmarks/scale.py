"""What a long sweep costs its driver: trials that do nothing but wait, at 16 slots, through Ray Tune.

Everything of the driver is real: the study's journal on disk, a `trial.yaml` for each trial, the scheduler, the plain
log. The trials' processes are Ray's, but do nothing (no PyTorch, no storage): they wait and report, in as many epochs
as are asked for, so that two cores can hold 16 of them.

    python benchmarks/scale.py                     10,000 trials of one second
    python benchmarks/scale.py --trials 500 sampler=multifidelity
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pharos.backends.actor import TrialActor
from pharos.backends.tune import run_sweep
from pharos.console import Console
from pharos.sweep import start


class Idle(TrialActor):
    """A trial's process that trains nothing."""

    def setup(self, config: dict[str, Any], credentials: dict[str, str]) -> None:  # type: ignore[override]
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._epoch = 0
        self._spec = new_config["spec"]
        self._epochs, self._seconds = _WORK
        return True

    def step(self) -> dict[str, Any]:
        if self._epoch == self._epochs:
            metrics = {self._spec["objective"]: self._value()}
            ending = {"outcome": "complete", "fidelity": self._epoch, "metrics": metrics, "seconds": self._seconds}
            return {"ending": {**ending, "process": os.getpid()}, "done": True}
        self._epoch += 1
        time.sleep(self._seconds / self._epochs)
        report = {"fidelity": self._epoch, "metrics": {self._spec["objective"]: self._value()}, "seconds": 0.0}
        return {"report": report}

    def interrupt(self) -> None:
        """Nothing."""

    def cleanup(self) -> None:
        """Nothing."""

    def _value(self) -> float:
        return float(sum(value for value in self._spec["params"].values() if isinstance(value, float)))


_WORK = (1, 1.0)  # epochs and seconds of a trial


def main() -> None:
    """Runs the sweep and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the sweep, such as sampler=multifidelity")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pharos-") as folder, (Path(folder) / "log").open("w") as log:
        settings = ["sampler=random", "scheduler=none", *options.settings]
        console = Console()
        with contextlib.redirect_stderr(log):
            sweep = start(
                "tipsy",
                [
                    f"trials={options.trials}",
                    "tracking=none",
                    f"storage.url={folder}",
                    f"resources.cluster_cpus={options.slots}",
                    *settings,
                ],
                console,
            )
            begun = time.monotonic()
            first = last = 0.0
            count = early = 0
            processes: set[int] = set()
            ended = sweep.on_end

            def on_end(number: int, ending: Any) -> None:
                nonlocal first, last, count, early
                last = time.monotonic()
                count += 1
                processes.add(ending.process)
                # Two cores start 16 processes one after the other; the clock starts when each has done a trial.
                if not first and len(processes) == options.slots:
                    first, early = last, count
                if count % max(1, options.trials // 20) == 0:
                    left = (last - begun) / count * (options.trials - count)
                    print(f"{count}/{options.trials} trials, about {left:.0f} s left", file=sys.__stderr__, flush=True)
                ended(number, ending)

            sweep.on_end = on_end  # type: ignore[method-assign]
            run_sweep(sweep, Idle)
            sweep.close()
        wall = last - first
        ideal = (options.trials - early) * _WORK[1] / options.slots
        whole = options.trials * _WORK[1] / options.slots
        figures = {
            "trials": options.trials,
            "slots": options.slots,
            "wall_s": round(wall, 1),
            "ideal_s": round(ideal, 1),
            "over": round(wall / ideal - 1, 4),
            "over_with_start": round((last - begun) / whole - 1, 4),
            "processes": len(processes),
            "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "driver_cpu_ms_a_trial": round(1000 * time.process_time() / options.trials, 1),
        }
    if options.json:
        print(json.dumps(figures))
        return
    print(
        "| trials | slots | processes | wall, s | ideal, s | over it | with Ray's start | "
        "driver's peak memory, MB | its CPU, ms a trial |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    print(
        f"| {figures['trials']} | {figures['slots']} | {figures['processes']} | {figures['wall_s']} | "
        f"{figures['ideal_s']} | {figures['over']:.1%} | {figures['over_with_start']:.1%} | "
        f"{figures['driver_peak_mb']} | {figures['driver_cpu_ms_a_trial']} |"
    )


if __name__ == "__main__":
    main()
