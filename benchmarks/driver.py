"""What the results of a thousand nodes cost a driver: seconds of each decision, and memory, as a sweep grows.

    python benchmarks/driver.py [--nodes 1000] [--trials 10000] [--json] [name=value …]

The driver is the real one: a sweep with its study's journal on disk, the sampler, the scheduler, a `trial.yaml` for
each trial, the plain log. Its nodes are simulated: each has one trial at a time, whose epochs take it a time of its own
on a simulated clock and come in that order; what they report is made up from the trial's values. So nothing waits, and
what is measured is the driver alone: no process, no Ray (`benchmarks/scale.py` is about that), no training. A row for
each tenth of the sweep.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pharos.console import Console
from pharos.schedulers.base import Action
from pharos.sweep import Sweep, start
from pharos.trial import Ending, Outcome, Report, TrialSpec

_ROWS = 10


@dataclass
class _Costs:
    """Seconds of the calls since the last row."""

    ask: list[float] = field(default_factory=list)
    report: list[float] = field(default_factory=list)


class _Node:
    """A machine that trains one trial after the other, on the simulated clock."""

    def __init__(self, number: int):
        self._random = random.Random(number)
        self.seconds = self._random.uniform(0.5, 2.0)  # an epoch takes it
        self.spec: TrialSpec
        self.epoch = 0

    def take(self, spec: TrialSpec) -> None:
        self.spec, self.epoch = spec, 0

    def train(self) -> Report:
        """The next epoch's report: a curve that falls towards what the values are worth."""
        self.epoch += 1
        worth = sum(abs(value) for value in self.spec.params.values() if isinstance(value, float))
        value = 50.0 + worth + 100.0 / self.epoch + self._random.gauss(0.0, 1.0)
        return Report(self.epoch, {self.spec.objective: value}, self.seconds)


def simulate(sweep: Sweep, nodes: int, trials: int) -> list[dict[str, float]]:
    """Runs a sweep to its end; a row of figures for each tenth."""
    sweep.open(nodes)
    costs, rows = _Costs(), []
    ended, cpu, began = 0, time.process_time(), time.monotonic()
    queue: list[tuple[float, int, _Node]] = []

    def give(node: _Node, number: int, now: float) -> None:
        before = time.perf_counter()
        spec = sweep.next_trial()
        costs.ask.append(time.perf_counter() - before)
        if spec is not None:
            node.take(spec)
            heapq.heappush(queue, (now + node.seconds, number, node))

    for number in range(nodes):
        give(_Node(number), number, 0.0)
    while queue:
        now, number, node = heapq.heappop(queue)
        report = node.train()
        before = time.perf_counter()
        action = sweep.on_report(node.spec.number, report)
        is_over = action == Action.STOP
        if not is_over and node.epoch == node.spec.max_fidelity:
            sweep.on_end(
                node.spec.number, Ending(Outcome.COMPLETE, fidelity=node.epoch, metrics=report.metrics, seconds=now)
            )
            is_over = True
        costs.report.append(time.perf_counter() - before)
        if not is_over:
            heapq.heappush(queue, (now + node.seconds, number, node))
            continue
        ended += 1
        give(node, number, now)
        if ended % max(1, trials // _ROWS) == 0:
            rows.append(_row(ended, sweep.running, costs, time.process_time() - cpu))
            costs, cpu = _Costs(), time.process_time()
            left = (time.monotonic() - began) / ended * (trials - ended)
            print(f"{ended}/{trials} trials, about {left:.0f} s left", file=sys.__stderr__, flush=True)
    return rows


def _row(ended: int, running: int, costs: _Costs, cpu: float) -> dict[str, float]:
    # The resident memory now, not its peak: a curve has to be able to fall.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    asked = sorted(1000 * seconds for seconds in costs.ask) or [0.0]
    heard = sorted(1000 * seconds for seconds in costs.report)
    return {
        "ended": ended,
        "running": running,
        "reports": len(heard),
        "ask_ms": round(statistics.median(asked), 1),
        "ask_99_ms": round(asked[int(0.99 * (len(asked) - 1))], 1),
        "report_ms": round(statistics.median(heard), 2),
        "report_99_ms": round(heard[int(0.99 * (len(heard) - 1))], 2),
        "cpu_s": round(cpu, 1),
        "memory_mb": round(pages * 4096 / 2**20),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000, help="trials at a time")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the sweep, such as sampler=tpe")
    options = parser.parse_intermixed_args()
    with (
        tempfile.TemporaryDirectory(prefix="pharos-") as folder,
        (Path(folder) / "log").open("w") as log,
        contextlib.redirect_stderr(log),
    ):
        common = ["scale=tiny", f"trials={options.trials}", "tracking=none", f"storage.url={folder}"]
        sweep = start("tipsy", [*common, *options.settings], Console())
        rows = simulate(sweep, options.nodes, options.trials)
        sweep.close()
    if options.json:
        print(json.dumps(rows))
        return
    titles: dict[str, Any] = {
        "ended": "trials that ended",
        "running": "running",
        "reports": "reports",
        "ask_ms": "the next trial, ms: median",
        "ask_99_ms": "99 %",
        "report_ms": "a report, ms: median",
        "report_99_ms": "99 %",
        "cpu_s": "CPU, s",
        "memory_mb": "memory, MB",
    }
    print("| " + " | ".join(titles.values()) + " |")
    print("|" + "--:|" * len(titles))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in titles) + " |")


if __name__ == "__main__":
    main()
