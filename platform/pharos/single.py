"""One configuration, trained in this process: what `platform/train.py` does. No search, no Ray."""

from __future__ import annotations

import datetime
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pharos.backends import check_ray
from pharos.checkpoint import Checkpoints
from pharos.command import on_stop_signal
from pharos.config import RUN_OVERRIDES, make_plan, reopen_plan
from pharos.console import clock
from pharos.errors import InputError
from pharos.execute import execute
from pharos.folders import find_folder, read_plan, without_url
from pharos.plan import Plan
from pharos.records import TrialRecord, best_record
from pharos.run import Run
from pharos.space import Params
from pharos.storage import Storage
from pharos.study import read_study
from pharos.summary import versions
from pharos.tracking.tracker import wait_for_trackers
from pharos.trial import Ending, Outcome, Report, trial_id

_FILE = "run.yaml"


@dataclass(frozen=True)
class Single:
    """A training run and the folder it has to itself."""

    name: str
    plan: Plan
    params: Params
    folder: Storage

    def train(self) -> Ending:
        """Trains, or goes on from the newest checkpoint; a line a report goes to standard error."""
        spec = self.plan.trial_spec(
            self.name, 0, self.params, folder=self.folder.root, tracking_folder=self.folder.root
        )
        spec.tracking["sweep"] = "group"  # there is none to join
        started = time.monotonic()
        runs: list[Run] = []
        gangs: list[Any] = []

        def on_report(report: Report) -> None:
            done = report.fidelity - first
            left = (time.monotonic() - started) / done * (spec.max_fidelity - report.fidelity)
            shown = {n: v for n, v in report.metrics.items() if n == spec.objective or n.startswith("loss/")}
            values = "  ".join(f"{name}={value:<10.4g}" for name, value in shown.items())
            _say(f"epoch {report.fidelity}/{spec.max_fidelity}  {values}{clock(left)} left")

        def interrupt() -> None:
            _say("stopping: saves at the end of the epoch (once more to stop at once)")
            for running in (*runs, *gangs):
                running.interrupt()

        first = 0

        def on_run(run: Run) -> None:
            nonlocal first
            first = run.fidelity
            runs.append(run)
            if first:
                _say(f"goes on from epoch {first}")

        with on_stop_signal(interrupt):
            if self.plan.shape(spec.params).workers > 1:
                check_ray("resources.workers above 1")
                from pharos.backends.single import run_trial

                saved = Checkpoints(self.folder.sub("checkpoints")).newest_path()
                first = int(saved.rpartition("/")[2]) if saved else 0
                return run_trial(spec, self.plan.settings, on_report, gangs.append, _say)
            ending = execute(spec, on_report, on_run)
        wait_for_trackers(30)
        return ending


def new_run(family: str, overrides: Sequence[str]) -> Single:
    """A run of the recipe's own values, with overrides.

    Raises:
        InputError: Something in the request is wrong; nothing was written.
    """
    plan = make_plan(family, ["tracking=none", *overrides], searches=False)
    return _create(plan, {}, plan.settings.storage.open())


def run_from_sweep(sweep: str, trial: str | None, overrides: Sequence[str]) -> Single:
    """A run of a sweep's best trial, or of the one named.

    Raises:
        InputError: There is no such sweep or trial, or no trial of it was completed.
    """
    folder, plan, record = find_trial(sweep, trial, ["tracking.name=none", *overrides])
    return _create(plan, record.params, folder.parent())


def find_trial(sweep: str, trial: str | None, overrides: Sequence[str]) -> tuple[Storage, Plan, TrialRecord]:
    """A sweep's folder and plan, and its best trial's record or that of the one named.

    Raises:
        InputError: There is no such sweep or trial, or no trial of it was completed.
    """
    folder, plan = read_plan(sweep, overrides, RUN_OVERRIDES)
    records, _, _ = read_study(folder, folder.name, plan.settings.study.storage)
    if trial is None:
        record = best_record(records, plan.settings.objectives)
        if record is None:
            raise InputError(f"--from {sweep}: none of its trials was completed; name one with --trial")
    else:
        numbers = {trial_id(number): r for number, r in records.items()}
        if trial.zfill(5) not in numbers:
            raise InputError(f"--trial {trial}: {sweep} has no such trial; it has {', '.join(numbers)}")
        record = numbers[trial.zfill(5)]
    return folder, plan, record


def reopen_run(name: str, overrides: Sequence[str]) -> Single:
    """A run that was stopped.

    Raises:
        InputError: There is no such run.
    """
    folder = find_folder(name, _FILE, overrides)
    document = yaml.safe_load(folder.read_bytes(_FILE))
    plan = reopen_plan(document, without_url(overrides), RUN_OVERRIDES)
    return Single(folder.name, plan, document["params"], folder)


def closing(single: Single, ending: Ending) -> str:
    """What is said at the end of a run."""
    lines = [f"{single.name}: {ending.outcome} at epoch {ending.fidelity}, {clock(ending.seconds)} of training"]
    if ending.reason:
        lines.append(ending.reason)
    lines += [f"  {name} = {value:.5g}" for name, value in sorted(ending.metrics.items()) if value is not None]
    lines.append(f"files: {single.folder.root}")
    if ending.outcome == Outcome.INTERRUPTED:
        name = single.name if single.folder.is_local else single.folder.root
        lines.append(f"next:  python platform/train.py --resume {name}")
    return "\n".join(lines)


def as_dict(single: Single, ending: Ending) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": single.name,
        "family": single.plan.settings.family,
        "outcome": str(ending.outcome),
        "reason": ending.reason,
        "fidelity": ending.fidelity,
        "seconds": round(ending.seconds, 3),
        "metrics": ending.metrics,
        "folder": single.folder.root,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _create(plan: Plan, params: Params, home: Storage) -> Single:
    home.check_writable()
    name = f"{plan.settings.family}-run-{datetime.date.today().isoformat()}-{secrets.token_hex(2)}"
    folder = home.sub(name)
    document = {**plan.to_dict(), "params": params, "versions": versions()}
    folder.write_bytes(_FILE, yaml.safe_dump(document, sort_keys=False).encode())
    return Single(name, plan, params, folder)
