"""Nodes that go and come in the middle of a sweep, on a cluster of real raylets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(folder: Path, *settings: str) -> dict[str, Any]:
    """What `nodes.py` found, in a process of its own: it has a cluster of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).parent / "nodes.py"), str(folder), *settings],
        stdout=subprocess.PIPE,
        timeout=110,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "settings",
    [
        ("trials=3", "scheduler=none"),
        ("trials=2", "scheduler=none", "resources.workers=2", "resources.placement=spread"),
    ],
    ids=["alone", "gang"],
)
def test_a_trial_whose_node_is_lost_goes_on_where_another_comes_and_no_retry_is_counted(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    found = run(tmp_path, *settings, "retries=0")
    (killed,) = found["killed"]
    assert [record["outcome"] for record in found["records"]] == ["complete"] * len(found["records"])
    assert [record["attempts"] for record in found["records"]] == [0] * len(found["records"])
    assert [record["preemptions"] for record in found["records"]] == [
        int(number == killed) for number in range(len(found["records"]))
    ]
    assert any(f"trial {killed:05d} lost its node" in note for note in found["notes"])
