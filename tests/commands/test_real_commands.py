"""The commands as people type them, in processes of their own: killed, stopped, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pharos.families import ROOT
from pharos.storage import Storage
from pharos.study import read_study
from pharos.trial import Outcome, trial_id

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
LONG = ["scale=tiny", "recipe.epochs=30", "recipe.student_epochs=3", "checkpoint_seconds=0"]


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "platform" / f"{script}.py"), *arguments]


def run(folder: Path, script: str, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Runs a command to its end with --json; its result."""
    done = subprocess.run(  # noqa: PLW1510 - the status is asserted below
        command(script, *arguments, "--json"), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == status, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def start(folder: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(script, *arguments),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def rows(trial: Path) -> list[dict[str, Any]]:
    lines = (trial / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def last_writes(folder: Path, trials: list[str]) -> dict[Path, int]:
    """When each checkpoint of these trials was written."""
    manifests = (path for trial in trials for path in (folder / "trials" / trial).glob("checkpoints/*/manifest-*.json"))
    return {path: path.stat().st_mtime_ns for path in manifests}


def test_train_is_resumed_after_a_kill_with_the_numbers_it_would_have_had(tmp_path: Path) -> None:
    whole = run(tmp_path, "train", "--family", "tipsy", *LONG)
    process = start(tmp_path, "train", "--family", "tipsy", *LONG)
    others = lambda: [p for p in (tmp_path / "sweeps").iterdir() if p.name != whole["run"]]  # noqa: E731
    # Whichever is written past the twelfth: one that is due while another is being written is left out.
    manifests = lambda: [m for p in others() for m in p.glob("checkpoints/*/manifest-*.json")]  # noqa: E731
    wait_until(lambda: any(int(manifest.parent.name) >= 12 for manifest in manifests()))
    process.kill()
    process.communicate()
    folder = others()[0]
    assert rows(folder)[-1]["fidelity"] < 33
    resumed = run(tmp_path, "train", "--resume", folder.name)
    assert resumed["outcome"] == "complete"
    assert resumed["metrics"] == whole["metrics"]
    assert rows(folder) == rows(tmp_path / "sweeps" / whole["run"])


@pytest.mark.parametrize("backend", ["local", "tune"])
def test_a_sweep_whose_driver_was_killed_is_finished_without_running_anything_twice(
    tmp_path: Path, backend: str
) -> None:
    settings = [*LONG, "trials=4", f"backend={backend}", "tracking=none"]
    process = start(tmp_path, "sweep", "--family", "tipsy", *settings)
    sweeps = tmp_path / "sweeps"
    # Killed when one trial has ended, be it the first or its neighbour.
    wait_until(lambda: any('"outcome":"complete"' in path.read_text() for path in sweeps.glob("*/study.journal")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = next(sweeps.iterdir())
    records, _, _ = read_study(Storage(str(folder)), folder.name, None)
    ended = [trial_id(record.number) for record in records.values() if record.outcome == Outcome.COMPLETE]
    finished = last_writes(folder, ended)
    assert finished

    summary = run(tmp_path, "sweep", "--resume", folder.name)
    assert sum(summary["trials"].values()) == 4
    assert set(summary["trials"]) <= {"complete", "pruned"}
    assert last_writes(folder, ended) == finished
    for trial in folder.glob("trials/*"):
        reached = [row["fidelity"] for row in rows(trial)]
        assert reached == list(range(1, len(reached) + 1))
    # The numbers are those of trials that nothing ever happened to.
    best = summary["best"]["trial"]
    again = run(tmp_path, "train", "--from", folder.name, "--trial", best)
    assert again["metrics"]["val/pa_mpjpe"] == summary["best"]["values"]["val/pa_mpjpe"]


def test_ctrl_c_stops_in_order_and_says_how_to_go_on(tmp_path: Path) -> None:
    settings = [*LONG, "trials=3", "backend=local", "tracking=none"]
    process = start(tmp_path, "sweep", "--family", "tipsy", *settings)
    wait_until(lambda: any((tmp_path / "sweeps").glob("*/trials/00000/metrics.jsonl")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    name = next((tmp_path / "sweeps").iterdir()).name
    assert f"--resume {name}" in out
    assert list((tmp_path / "sweeps").glob("*/trials/00000/checkpoints/*/manifest-*.json"))
    summary = json.loads((tmp_path / "sweeps" / name / "summary.json").read_text())
    assert summary["trials"] == {"interrupted": 1}
    resumed = run(tmp_path, "sweep", "--resume", name)
    assert sum(resumed["trials"].values()) == 3


def test_help_comes_at_once_and_names_every_family() -> None:
    for script in ("sweep", "train", "report"):
        done = subprocess.run(command(script, "--help"), capture_output=True, text=True, timeout=30, check=True)
        assert "tipsy" in done.stdout or script == "report"


def test_the_dashboard_shows_a_sweeps_trials_until_it_is_stopped(tmp_path: Path) -> None:
    tiny = ["scale=tiny", "recipe.epochs=2", "recipe.student_epochs=1", "trials=2", "scheduler=none"]
    result = run(tmp_path, "sweep", "--family", "tipsy", "backend=local", "tracking=none", *tiny)
    process = start(tmp_path, "dashboard", result["sweep"], "--port", "0")
    assert process.stdout is not None
    url = process.stdout.readline().split()[1]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url.replace("/dashboard/", "/api/"), timeout=30) as answer:
        assert [trial["state"] for trial in json.load(answer)["trials"]] == ["Complete", "Complete"]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
