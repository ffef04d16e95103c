"""The doctor as people type it: what it says, its status, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pharos.families import ROOT


def doctor(folder: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Its status, the checks by name (trials by corner) and the lines."""
    home = folder / "home"
    home.mkdir()
    here = folder / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "platform" / "doctor.py"), "--family", "tipsy", "scale=tiny", *arguments, "--json"],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(home), "TMPDIR": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] == (done.returncode == 0)
    assert list(here.iterdir()) == []
    assert [path for path in home.rglob("*pharos*") if path.is_file()] == []
    checks = {row.get("facts", {}).get("corner", row["name"]): row for row in result["checks"]}
    return done.returncode, checks, done.stderr


def test_a_sweep_that_can_start(tmp_path: Path) -> None:
    status, checks, lines = doctor(tmp_path, "backend=local", "tracking=none", "--price", "2")
    assert status == 0, lines
    assert {row["status"] for row in checks.values()} <= {"ok", "warn"}
    corners = {"the defaults", "all low", "all high, choices 1", "all high, choices 2"}
    others = {"configuration", "versions", "storage", "tracking", "nodes", "memory", "checkpoints", "time and cost"}
    assert set(checks) == corners | others
    assert "2 loops visited" in checks["the defaults"]["found"]
    assert checks["checkpoints"]["facts"]["checkpoint_bytes"] > 1000
    low, high = checks["time and cost"]["facts"]["cost"]
    assert 0 < low < high


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="takes a file that is no folder")
def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    status, checks, lines = doctor(
        tmp_path,
        "backend=local",
        "tracking.mode=online",
        "storage.url=/dev/null/sweeps",
        "recipe.w_2d=tag(log, interval(1, 1e39))",
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="0123456789" * 4,
    )
    assert status == 1
    assert "cannot write to /dev/null (Not a directory)" in checks["storage"]["found"]
    assert "it does not answer: <urlopen error [Errno 111] Connection refused>" in checks["tracking"]["found"]
    assert "0123456789" not in lines
    assert checks["the defaults"]["status"] == "ok"
    high = checks["all high, choices 1"]
    assert high["status"] == "FAIL"
    assert "diverged in adversarial, epoch 1 of 4: loss/generators became" in high["found"]
    assert "w_2d=1e+39" in high["found"]


def test_a_wrong_setting_is_a_failed_line(tmp_path: Path) -> None:
    status, checks, _ = doctor(tmp_path, "recipe.optim.lrr=3")
    assert status == 1
    assert set(checks) == {"configuration", "versions"}
    assert "did you mean" in checks["configuration"]["found"]
