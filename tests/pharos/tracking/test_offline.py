"""W&B, the real client, offline: what its spools on disk hold."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pharos.execute import execute
from pharos.run import Run
from pharos.tracking.tracker import wait_for_trackers
from pharos.trial import Outcome, TrialSpec

KEY = "0123456789abcdef0123456789abcdef01234567"


def tracked(toy: Any, folder: Path) -> TrialSpec:
    tracking = {"name": "wandb", "mode": "offline", "project": "tests", "entity": None, "dir": str(folder)}
    return dataclasses.replace(toy.spec(folder / "trial"), sweep="toy-sweep", number=7, tracking=tracking)


def messages(data: bytes) -> Iterator[bytes]:
    """What a spool holds: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def spools(folder: Path) -> list[list[Any]]:
    """The records of every run's spool, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    # W&B's own process may still be writing when `finish` has returned.
    deadline = time.monotonic() + 20
    while True:
        found = [[Record.FromString(message) for message in messages(path.read_bytes())] for path in paths]
        if all("exit" in [r.WhichOneof("record_type") for r in records] for records in found):
            return found
        assert time.monotonic() < deadline, "a spool was not finished"
        time.sleep(0.1)


def history(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def test_a_resumed_trial_is_the_same_run_and_repeats_no_step(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    spec = tracked(toy, tmp_path)
    runs: list[Run] = []
    first = execute(spec, lambda report: runs[0].interrupt() if report.fidelity == 2 else None, runs.append)
    wait_for_trackers(30)
    time.sleep(1.1)  # W&B names a spool by the second
    second = execute(spec, lambda report: None)
    wait_for_trackers(30)

    assert (first.outcome, second.outcome) == (Outcome.INTERRUPTED, Outcome.COMPLETE)
    before, after = spools(tmp_path)
    opened = [next(r.run for r in records if r.WhichOneof("record_type") == "run") for records in (before, after)]
    assert [run.run_id for run in opened] == ["toy-sweep-00007"] * 2
    assert {run.run_group for run in opened} == {"toy-sweep"}
    assert [row["fidelity"] for row in history(before)] == [1, 2]
    assert [row["fidelity"] for row in history(after)] == list(range(3, second.fidelity + 1))
    assert all("error" in row for row in history(before) + history(after))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_a_wandb_that_cannot_be_opened_does_not_touch_the_trial(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**settings: Any) -> None:
        raise RuntimeError("no W&B today")

    monkeypatch.setattr("wandb.init", refuse)
    ending = execute(tracked(toy, tmp_path), lambda report: None)
    wait_for_trackers(30)
    assert ending.outcome == Outcome.COMPLETE
    assert "no longer tracked: no W&B today" in caplog.text


def test_a_wandb_that_hangs_does_not_hold_the_trial_up(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.init", lambda **settings: time.sleep(5))
    began = time.monotonic()
    ending = execute(tracked(toy, tmp_path), lambda report: None)
    assert ending.outcome == Outcome.COMPLETE
    assert time.monotonic() - began < 5
    wait_for_trackers(10)
