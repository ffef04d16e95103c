"""Sweeps that live in a bucket, on a real Ray, with a store that fails now and then, for a while, or for good."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import TINY, Listener, outcomes

from benchmarks.bucket import FaultyProxy, Server, aws_environment
from pharos.checkpoint import Checkpoints
from pharos.errors import StorageError
from pharos.records import TrialRecord
from pharos.storage import Storage
from pharos.study import read_study
from pharos.sweep import Sweep, start
from pharos.trial import Outcome, Report

# How long the store is away for a while; the issue asks for a minute, every run of the tests for less.
OUTAGE = float(os.environ.get("PHAROS_OUTAGE", "6"))
ENVIRONMENT = aws_environment("http://127.0.0.1:1")  # the endpoint is each test's own


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def store(server: Server, request: pytest.FixtureRequest) -> Iterator[FaultyProxy]:
    server.make(_bucket(request))
    with FaultyProxy(server.url, stall_seconds=1.5) as proxy:
        yield proxy


def _bucket(request: pytest.FixtureRequest) -> str:
    return f"b{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


@pytest.fixture
def settings(store: FaultyProxy, request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """What puts a sweep into the bucket, with requests that hang given up soon."""
    timeouts = "{connect_timeout: 1, read_timeout: 1}"
    return [
        *TINY,
        "tracking=none",
        f"storage.url=s3://{_bucket(request)}/sweeps",
        f"storage.options={{endpoint_url: '{store.url}', config_kwargs: {timeouts}}}",
        f"storage.cache={tmp_path}/cache",
        "storage.mirror_seconds=0.5",
        "checkpoint_seconds=0",
    ]


def direct(sweep: Sweep, server: Server) -> Storage:
    """A sweep's folder past the proxy."""
    return Storage(sweep.storage.root, {"endpoint_url": server.url})


def reached(home: Storage, number: int) -> list[int]:
    return [json.loads(line)["fidelity"] for line in home.read_lines(f"trials/{number:05d}/metrics.jsonl")]


def assert_whole(home: Storage, sweep_name: str, trials: int) -> None:
    """What the bucket holds is a finished sweep of so many trials, with nothing missing and nothing left over."""
    records, _, _ = read_study(home, sweep_name, None)
    assert len(records) == trials
    assert all(record.outcome in (Outcome.COMPLETE, Outcome.PRUNED) for record in records.values())
    summary = home.read_json("summary.json")
    assert sum(summary["trials"].values()) == trials
    for number, record in records.items():
        epochs = reached(home, number)
        assert epochs == list(range(1, len(epochs) + 1))
        # A trial that is stopped has gone on while that was decided.
        assert len(epochs) == record.fidelity if record.outcome == Outcome.COMPLETE else len(epochs) >= record.fidelity
        assert home.exists(f"trials/{number:05d}/trial.yaml")
        checkpoints = Checkpoints(home.sub(f"trials/{number:05d}/checkpoints"))
        assert set(checkpoints.files()) == set(checkpoints.steps()), "a checkpoint that was never finished was left"
        newest = checkpoints.newest()
        if record.outcome == Outcome.COMPLETE:
            assert newest is not None
            assert newest.step == record.fidelity
            assert newest.state["metrics"] == record.metrics


def test_under_failures_of_every_kind_a_sweep_ends_with_the_right_counts_and_nothing_is_lost(
    run_sweep: Callable[[Sweep], None], store: FaultyProxy, server: Server, settings: list[str], tmp_path: Path
) -> None:
    store.rate = 0.1
    sweep = start("tipsy", [*settings, "trials=6"], Listener())
    run_sweep(sweep)
    in_memory = {number: (record.outcome, record.curve) for number, record in sweep.study.records.items()}
    sweep.close()
    home = direct(sweep, server)
    assert_whole(home, sweep.name, 6)
    records, _, _ = read_study(home, sweep.name, None)
    assert {number: (record.outcome, record.curve) for number, record in records.items()} == in_memory
    assert set(store.counts) == set(store.kinds), "not every kind of failure happened"
    # No node keeps anything, and no file anywhere holds a credential.
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    everything = b"".join(home.read_bytes(name) for name in home.sizes() if not name.endswith(".safetensors"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert ENVIRONMENT[name].encode() not in everything


def test_while_the_store_is_away_training_goes_on_and_afterwards_uploads_catch_up(
    run_sweep: Callable[[Sweep], None], store: FaultyProxy, server: Server, settings: list[str]
) -> None:
    meanwhile: list[float] = []
    began: list[float] = []

    def go_away(record: TrialRecord, report: Report) -> None:
        if store.down:
            meanwhile.append(time.monotonic())
        if not began and report.fidelity == 4:
            began.append(time.monotonic())
            store.down = True
            threading.Timer(OUTAGE, lambda: setattr(store, "down", False)).start()

    console = Listener(go_away)
    epochs = int(12 + 20 * OUTAGE)
    settings = [text for text in settings if not text.startswith("scheduler.")]  # which scheduler=none has none of
    sweep = start("tipsy", [*settings, "trials=2", f"recipe.epochs={epochs}", "scheduler=none"], console)
    run_sweep(sweep)
    assert outcomes(sweep) == [Outcome.COMPLETE] * 2
    sweep.close()
    assert_whole(direct(sweep, server), sweep.name, 2)
    # Reports came for as long as trials had epochs left to train.
    assert len(meanwhile) >= 20
    if OUTAGE > 20:
        assert any("does not answer" in note for note in console.notes)
        assert any("answers again" in note for note in console.notes)


def test_when_the_store_is_gone_for_good_trials_fail_for_that_reason_with_their_last_checkpoint_named(
    run_sweep: Callable[[Sweep], None], store: FaultyProxy, settings: list[str]
) -> None:
    def go_away(record: TrialRecord, report: Report) -> None:
        store.down = store.down or report.fidelity == 4

    console = Listener(go_away)
    patience = 4
    sweep = start("tipsy", [*settings, "trials=6", "recipe.epochs=400", f"storage.patience={patience}"], console)
    began = time.monotonic()
    run_sweep(sweep)
    records = dict(sweep.study.records)
    with pytest.raises(StorageError, match=rf"{sweep.storage.root}.*--resume {sweep.storage.root}") as error:
        sweep.close()
    assert time.monotonic() - began < 90
    assert "\n" not in str(error.value)
    failed = [record for record in records.values() if record.outcome == Outcome.FAILED]
    assert failed
    assert all(record.outcome in (Outcome.FAILED, Outcome.PRUNED) for record in records.values())
    assert len(records) < 6, "trials were started that had nowhere to go"
    assert any(record.fidelity for record in failed)
    for record in failed:
        assert "127.0.0.1" in record.reason  # who does not answer
        if not record.fidelity:
            continue  # it had not even begun
        place = re.search(r"its last checkpoint lies on \S+ in (\S+)$", record.reason)
        assert place, record.reason
        assert "\n" not in record.reason
        newest = Checkpoints(Storage(str(Path(place[1]).parent))).newest()
        assert newest is not None
        assert newest.step == record.fidelity
