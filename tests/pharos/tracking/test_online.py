"""The real W&B client against a recording server: what a whole sweep sends, and what becomes of what it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from wandb_server import ENTITY, KEY, Recorded, WandbServer

from benchmarks.bucket import Server, aws_environment
from pharos import sweep as sweep_module
from pharos.backends import finish_sweep
from pharos.console import Console
from pharos.errors import InputError, PharosError
from pharos.families import ROOT
from pharos.folders import read_plan
from pharos.sweep import Sweep
from pharos.tracking import tracker, wandb_run
from pharos.tracking.sync import sync
from pharos.trial import Outcome

SECRETS = {"AWS_SECRET_ACCESS_KEY": "bucket-secret-9d1f", "PHAROS_STUDY_PASSWORD": "study-secret-77ab"}


class Listener(Console):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    import wandb

    wandb.teardown()  # it keeps the server that it was first told of
    server = WandbServer()
    for name, value in {**server.environment, **SECRETS}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.become("well")
    wandb.teardown()
    server.close()


def begin(toy: Any, *overrides: str) -> Sweep:
    common = ["backend=local", f"storage.url={toy.url}", "sampler=random", "scheduler=none", "scale=tiny", "trials=3"]
    return sweep_module.start("toy", [*common, "tracking.mode=online", *overrides], Listener())


def notes(sweep: Sweep) -> list[str]:
    assert isinstance(sweep.listener, Listener)
    return [note for note in sweep.listener.notes if note.startswith("W&B")]


def trials(server: WandbServer) -> dict[str, Recorded]:
    return {name: run for name, run in sorted(server.runs.items()) if run.job_type != "sweep"}


def assert_whole(server: WandbServer, sweep: Sweep) -> None:
    """W&B has every trial of a sweep, each row of it once, and how it ended."""
    assert list(trials(server)) == [f"{sweep.name}-{number:05d}" for number in sorted(sweep.study.records)]
    for (_, run), record in zip(trials(server).items(), sweep.study.records.values(), strict=True):
        assert run.fidelities == list(range(1, record.fidelity + 1))
        assert run.history[-1]["error"] == pytest.approx(record.metrics["error"])
        assert run.summary["outcome"] == str(record.outcome)
        assert run.exit_code == int(record.outcome == Outcome.FAILED)
        assert (run.group, run.job_type, run.tags) == (sweep.name, "toy", ["toy"])
        assert run.setting("params") == record.params
        assert run.setting("lr") == record.params["recipe.lr"]


def test_a_search_is_a_sweep_that_each_run_joins_and_nothing_secret_is_sent(toy: Any, server: WandbServer) -> None:
    def fail(run: Any, epoch: Any, config: Any) -> None:
        if len(toy.started) == 3:
            raise RuntimeError("a fault of the third trial")

    toy.in_epoch = fail
    sweep = begin(toy)
    summary = finish_sweep(sweep)
    assert [record.outcome for record in sweep.study.records.values()] == [
        Outcome.COMPLETE,
        Outcome.COMPLETE,
        Outcome.FAILED,
    ]
    assert list(server.sweeps) == ["sweep0"]
    described = server.sweeps["sweep0"]
    assert (described["method"], described["name"]) == ("custom", sweep.name)
    assert described["metric"] == {"name": "error", "goal": "minimize"}
    assert described["parameters"] == {
        "lr": {"distribution": "log_uniform_values", "min": 1e-3, "max": 0.5},
        "kind": {"values": ["plain", "noisy"]},
        "noise": {"distribution": "uniform", "min": 0.0, "max": 0.5},
    }
    assert {run.sweep for run in trials(server).values()} == {"sweep0"}
    whole = {name: run for name, run in trials(server).items() if run.exit_code == 0}
    assert len(whole) == 2
    failed = server.runs[f"{sweep.name}-00002"]
    assert (failed.exit_code, failed.summary["outcome"]) == (1, "failed")
    assert "a fault of the third trial" in failed.summary["reason"]
    # The sweep's own run has what is known at its end; its checkpoint is not copied, only named.
    own = server.runs[sweep.name]
    assert own.summary["best"]["trial"] == summary["best"]["trial"]
    assert [a["artifactCollectionName"] for a in server.artifacts] == [f"{sweep.name}-best"]
    references = [entry["ref"] for entry in server.manifests[-1]["contents"].values()]
    assert len(references) == len(list(Path(summary["best"]["checkpoint"]).iterdir()))
    assert all(reference.startswith(f"file://{summary['best']['checkpoint']}/") for reference in references)
    assert notes(sweep) == [f"W&B: {server.url}/{ENTITY}/pharos/sweeps/sweep0"]
    sent = b"".join(server.received)
    assert not [name for name, value in SECRETS.items() if value.encode() in sent]
    assert KEY.encode() not in sent  # in the clear
    for path in Path(toy.url).rglob("*"):
        assert not path.is_file() or not any(v.encode() in path.read_bytes() for v in (*SECRETS.values(), KEY))


def test_gradients_and_pictures_are_shown_on_demand_on_the_same_axis(toy: Any, server: WandbServer) -> None:
    toy.in_epoch = lambda run, epoch, config: run.log_image("fit", torch.rand(3, 8, 8))
    finish_sweep(begin(toy, "trials=1", "tracking.gradients=true"))
    (run,) = trials(server).values()
    shown = [row for row in run.history if "gradients/net/0.weight" in row]
    assert [row["fidelity"] for row in shown] == [1, 2]
    histogram = shown[0]["gradients/net/0.weight"]
    assert histogram["_type"] == "histogram"
    assert sum(histogram["values"]) == 4  # a weight for each of the four units
    pictures = [row for row in run.history if "fit" in row]
    assert [row["fit"]["_type"] for row in pictures] == ["image-file"] * 2
    assert all(row["fit"]["path"] in run.files for row in pictures)


def test_a_sweep_that_is_extended_stays_the_same_sweep(toy: Any, server: WandbServer) -> None:
    sweep = begin(toy)
    finish_sweep(sweep)
    more = sweep_module.reopen(sweep.name, [f"storage.url={toy.url}", "trials=+1"], Listener(), extend=True)
    finish_sweep(more)
    assert list(server.sweeps) == ["sweep0"]
    assert [run.sweep for run in trials(server).values()] == ["sweep0"] * 4
    assert_whole(server, more)


def test_a_whole_sweep_that_was_spooled_is_sent_later_and_only_once(toy: Any, server: WandbServer) -> None:
    sweep = begin(toy, "tracking.mode=offline")
    finish_sweep(sweep)
    assert notes(sweep) == [
        f"W&B: 3 of 3 trials were not sent (offline); python platform/report.py {sweep.name} --sync sends them"
    ]
    assert server.runs == {}
    said: list[str] = []
    folder, plan = read_plan(sweep.storage.root, [], ())
    result = sync(folder, plan, said.append)
    assert result["sent"] == ["00000", "00001", "00002"]
    assert said[-1] == "W&B: 3 of 3 trials sent"
    assert_whole(server, sweep)
    assert [run.sweep for run in trials(server).values()] == ["sweep0"] * 3
    assert all(run.events for run in trials(server).values())  # what only W&B's spool has
    assert server.runs[sweep.name].summary["best"]
    before = {name: (run.history, run.sweep) for name, run in trials(server).items()}
    assert sync(folder, plan, said.append)["sent"] == []
    assert {name: (run.history, run.sweep) for name, run in trials(server).items()} == before
    assert list(server.sweeps) == ["sweep0"]


def test_a_sweep_in_a_bucket_that_was_spooled_is_sent_from_there(
    toy: Any, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as bucket:
        for name, value in aws_environment(bucket.url).items():
            monkeypatch.setenv(name, value)
        bucket.make("tracked")
        where = ["storage.url=s3://tracked/sweeps", f"storage.cache={tmp_path}/cache"]
        sweep = begin(toy, "tracking.mode=offline", "trials=2", *where)
        finish_sweep(sweep)
        folder, plan = read_plan(sweep.storage.root, [], ())
        assert sync(folder, plan, lambda text: None)["sent"] == ["00000", "00001"]
        assert_whole(server, sweep)
        assert all(run.events for run in trials(server).values())  # W&B's own spool was brought, and sent


def test_a_sweep_that_was_tracked_nowhere_can_still_be_sent(toy: Any, server: WandbServer) -> None:
    sweep = begin(toy, "tracking=none", "trials=2")
    finish_sweep(sweep)
    folder, plan = read_plan(sweep.storage.root, ["tracking.sweep=prior_runs"], ("tracking.",))
    sync(folder, plan, lambda text: None)
    assert_whole(server, sweep)
    assert server.sweeps["sweep0"]["prior_runs"] == list(trials(server))


@pytest.mark.parametrize("mode", ["stall", "refuse", "gone"])
def test_a_wandb_that_takes_nothing_costs_no_trial_and_is_told_later(
    toy: Any, server: WandbServer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(wandb_run, "_AGAIN_SECONDS", 0.1)
    url = server.url
    if mode == "gone":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    else:
        server.become(mode)
    sweep = begin(toy, "trials=2")
    finish_sweep(sweep)
    assert [record.outcome for record in sweep.study.records.values()] == [Outcome.COMPLETE] * 2
    assert notes(sweep) == [
        f"W&B: 2 of 2 trials were not sent; python platform/report.py {sweep.name} --sync sends them"
    ]
    folder, plan = read_plan(sweep.storage.root, [], ())
    with pytest.raises(PharosError, match="--sync: W&B takes nothing now"):
        sync(folder, plan, lambda text: None)
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", url)
    server.become("well")
    sync(folder, plan, lambda text: None)
    assert_whole(server, sweep)


def test_a_wandb_that_stops_to_answer_meanwhile_is_left_and_told_later(
    toy: Any, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "_SPOOL_SECONDS", 0.5)

    def stall(run: Any, epoch: Any, config: Any) -> None:
        if len(toy.started) == 2:
            server.become("stall")

    toy.in_epoch = stall
    sweep = begin(toy, "trials=2")
    finish_sweep(sweep)
    assert "1 of 2 trials were not sent" in notes(sweep)[0] or "2 of 2 trials were not sent" in notes(sweep)[0]
    server.become("well")
    folder, plan = read_plan(sweep.storage.root, [], ())
    sync(folder, plan, lambda text: None)
    assert_whole(server, sweep)


def test_a_driver_killed_and_resumed_sends_every_row_once(tmp_path: Path) -> None:
    server = WandbServer()
    environment = {**os.environ, **server.environment, "OMP_NUM_THREADS": "1"}
    settings = ["backend=local", "scale=tiny", "recipe.epochs=30", "recipe.student_epochs=3", "trials=1"]
    common = [sys.executable, str(ROOT / "platform" / "sweep.py")]
    start = [*common, "--family", "tipsy", *settings, "checkpoint_seconds=0", "tracking.mode=online"]
    with subprocess.Popen(start, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as driver:
        wait_until(lambda: any(len(run.history) >= 5 for run in server.runs.values()))
        driver.send_signal(signal.SIGKILL)
    name = next((tmp_path / "sweeps").iterdir()).name
    done = subprocess.run(
        [*common, "--resume", name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run = server.runs[f"{name}-00000"]
    rows = (tmp_path / "sweeps" / name / "trials" / "00000" / "metrics.jsonl").read_text().splitlines()
    assert run.fidelities == list(range(1, 34)) == [json.loads(row)["fidelity"] for row in rows]
    assert [row["val/pa_mpjpe"] for row in run.history] == [json.loads(row)["val/pa_mpjpe"] for row in rows]
    assert (run.exit_code, run.summary["outcome"], run.sweep) == (0, "complete", "sweep0")
    assert list(server.sweeps) == ["sweep0"]
    server.close()


def test_people_are_told_by_an_alert(toy: Any, server: WandbServer) -> None:
    sweep = begin(toy, "trials=1", "notify.wandb=true")
    finish_sweep(sweep)
    assert [title for title, _ in server.alerts] == [f"sweep {sweep.name} (toy) has ended"]
    assert "all 1 trials have ended" in server.alerts[0][1]


def test_alerts_want_a_sweep_that_is_tracked(toy: Any) -> None:
    with pytest.raises(InputError, match=r"notify\.wandb=true: needs tracking=wandb"):
        begin(toy, "tracking.mode=offline", "notify.wandb=true")
    assert not Path(toy.url).exists() or not list(Path(toy.url).iterdir())


def test_sync_wants_a_key(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    sweep = begin(toy, "tracking=none", "trials=1")
    finish_sweep(sweep)
    folder, plan = read_plan(sweep.storage.root, [], ())
    with pytest.raises(InputError, match="there is no W&B key"):
        sync(folder, plan, lambda text: None)


def wait_until(happened: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
