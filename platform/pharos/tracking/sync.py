"""Sends to W&B what it does not have of a sweep: `platform/report.py SWEEP --sync`.

What W&B's own client has spooled goes first, of runs that W&B does not have at all (what it has would be there twice):
the spool has pictures and the machine's own figures. Then each run goes on until it has every row of its trial's
`metrics.jsonl`, how the trial ended, and its place on the sweep's page. So it does not matter how a run came to be
incomplete, and to sync twice changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pharos.errors import InputError, PharosError
from pharos.plan import Plan
from pharos.records import TrialRecord
from pharos.storage import Storage
from pharos.study import read_study
from pharos.summary import summarise
from pharos.tracking.page import conclude_page, create_page, read_page, unsent
from pharos.tracking.wandb_run import (
    PAGE,
    abandon,
    finish_run,
    has_key,
    known_fidelity,
    last_fidelity,
    log_rows,
    marker,
    open_run,
    refusal,
    run_id,
)
from pharos.trial import Outcome, TrialSpec, trial_id

_CALL_SECONDS = 120.0


def sync(home: Storage, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Sends what W&B lacks.

    Args:
        home: The sweep's folder.
        plan: What it searched; its `tracking` says where to.
        say: Hears how far it is.

    Returns:
        `sent`, trials that were sent now; `running`, those that are left to the driver that trains them; the page's
        `url`.

    Raises:
        InputError: There is no key, or W&B does not know it.
        PharosError: W&B does not answer; what was sent by then is not sent again.
    """
    if not has_key():
        raise InputError("--sync: there is no W&B key; set WANDB_API_KEY, or log in with: wandb login")
    if trouble := refusal():
        raise PharosError(f"--sync: W&B takes nothing now: {trouble}")
    records, usage, notes = read_study(home, home.name, plan.settings.study.storage)
    left = unsent(home, records.values())
    running = [record for record in left if record.outcome == Outcome.RUNNING]
    left = [record for record in left if record.outcome != Outcome.RUNNING]
    page = read_page(home)
    way = plan.settings.tracking.sweep
    if way == "attach" and not page.get("id"):
        page = _keep_page(home, create_page(home.name, plan, [], _CALL_SECONDS))
    with tempfile.TemporaryDirectory(prefix="pharos-wandb-") as scratch:
        _send_spools(home, plan, left, Path(scratch), say)
        for count, record in enumerate(left, 1):
            _go_on(home, plan, record, scratch, page.get("id") if way == "attach" else None)
            say(f"W&B: {count} of {len(left)} trials sent")
    if way == "prior_runs" and not page.get("id"):
        runs = [run_id(home.name, trial_id(number)) for number in records]
        page = _keep_page(home, create_page(home.name, plan, runs, _CALL_SECONDS))
    summary = summarise(home.name, plan, home, records, usage=usage, notes=notes)
    conclude_page(home.name, plan, home, summary, _CALL_SECONDS)
    return {
        "sent": [trial_id(record.number) for record in left],
        "running": [trial_id(record.number) for record in running],
        "url": page.get("url"),
    }


def _keep_page(home: Storage, page: dict[str, Any]) -> dict[str, Any]:
    home.write_json(PAGE, page)
    return page


def _send_spools(
    home: Storage, plan: Plan, records: list[TrialRecord], scratch: Path, say: Callable[[str], None]
) -> None:
    """Sends W&B's own spools, those of all attempts, of the trials that W&B does not know."""
    tracking = plan.settings.tracking
    runs = [run_id(home.name, trial_id(record.number)) for record in records]
    spools = {run: [name for name in home.list("wandb") if name.endswith(f"-{run}")] for run in runs}
    folders = [
        _local(home, name, scratch)
        for run, names in spools.items()
        if names and last_fidelity(tracking.project, tracking.entity, run) is None
        for name in names
    ]
    if not folders:
        return
    say(f"W&B: sending {len(folders)} spools")
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced", *folders]
    # W&B keeps files of its own where it is started.
    done = subprocess.run(command, check=False, cwd=scratch, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise PharosError(f"--sync: W&B's own sync failed: {lines[-1]}")


def _local(home: Storage, name: str, scratch: Path) -> str:
    """A spool's folder on this machine."""
    if home.is_local:
        return str(Path(home.path("wandb", name)).absolute())
    for file in home.sizes(f"wandb/{name}"):
        target = scratch / "wandb" / name / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(home.read_bytes(f"wandb/{name}/{file}"))
    return str(scratch / "wandb" / name)


def _go_on(home: Storage, plan: Plan, record: TrialRecord, scratch: str, page: str | None) -> None:
    """Opens a trial's run, sends what it lacks and ends it as its trial ended."""
    spec = _spec(home, plan, record)
    rows = [json.loads(line) for line in home.read_lines(f"trials/{spec.id}/metrics.jsonl")]
    try:
        run = open_run(spec, scratch, "online", page)
        log_rows(run, rows, known_fidelity(run))
        was_sent = finish_run(run, record.outcome, record.reason)
    except Exception as error:  # W&B's are many
        abandon()
        raise PharosError(f"--sync: trial {spec.id} was not sent: {' '.join(str(error).split())}") from None
    if not was_sent:
        abandon()
        raise PharosError(f"--sync: trial {spec.id} was not sent: W&B stopped to answer")
    home.write_bytes(marker(spec.id), b"")


def _spec(home: Storage, plan: Plan, record: TrialRecord) -> TrialSpec:
    folder = home.path("trials", trial_id(record.number))
    return plan.trial_spec(home.name, record.number, record.params, folder=folder, tracking_folder=home.root)
