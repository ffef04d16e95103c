"""One trial after the other, in this process: no Ray, breakpoints work."""

from __future__ import annotations

import time

from pharos.execute import execute
from pharos.run import Run
from pharos.schedulers.base import Action
from pharos.sweep import Sweep
from pharos.tracking.tracker import wait_for_trackers
from pharos.trial import Outcome, Report, TrialSpec


def run_sweep(sweep: Sweep) -> None:
    """Runs a sweep's trials until none is left or it is interrupted."""
    sweep.open(slots=1)
    while not sweep.finished:
        spec = sweep.next_trial()
        if spec is None:
            time.sleep(0.2)  # its store does not answer; soon it does, or the sweep is finished
        else:
            _run_trial(sweep, spec)
    wait_for_trackers(10)


def _run_trial(sweep: Sweep, spec: TrialSpec) -> None:
    runs: list[Run] = []

    def on_report(report: Report) -> None:
        action = sweep.on_report(spec.number, report)
        if action == Action.STOP:
            runs[0].stop(Outcome.PRUNED, f"stopped by {sweep.settings.scheduler.name}")
        elif action == Action.PAUSE or sweep.interrupted:
            runs[0].interrupt()

    sweep.on_end(spec.number, execute(spec, on_report, runs.append))
