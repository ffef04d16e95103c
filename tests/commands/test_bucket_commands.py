"""The commands on sweeps in a bucket: killed at the worst moments, on machines that are wiped, with damaged shards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bucket import Fault, FaultyProxy, Server, aws_environment
from pharos.checkpoint import Checkpoints
from pharos.console import Console
from pharos.errors import InputError
from pharos.families import ROOT
from pharos.storage import Storage
from pharos.study import read_study
from pharos.sweep import start
from pharos.trial import Outcome

LONG = ["scale=tiny", "recipe.epochs=30", "recipe.student_epochs=3", "checkpoint_seconds=0", "scheduler=none"]
MACHINE = ["backend=local", "tracking=none", "storage.mirror_seconds=0.3"]


class Lab:
    """A bucket, and machines that come and go."""

    def __init__(self, server: Server, proxy: FaultyProxy, home: Path):
        self.proxy = proxy
        self.url = f"s3://lab/{home.name}"
        self.home = home
        self._server = server

    def storage(self, url: str) -> Storage:
        """Past the proxy."""
        return Storage(url, {"endpoint_url": self._server.url})

    def command(self, machine: str, script: str, *arguments: str) -> list[str]:
        cache = f"storage.cache={self.home / machine}"
        return [sys.executable, str(ROOT / "platform" / f"{script}.py"), *arguments, cache]

    def start(self, machine: str, script: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(machine, script, *arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, machine: str, script: str, *arguments: str) -> tuple[dict[str, Any], str]:
        """Runs a command to its end with --json; its result, and what it said meanwhile."""
        process = self.start(machine, script, *arguments, "--json")
        out, err = process.communicate(timeout=110)
        assert process.returncode == 0, err
        return json.loads(out), err

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **aws_environment(self.proxy.url), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, Server() as server:
        for name, value in aws_environment(server.url).items():
            patch.setenv(name, value)
        server.make("lab")
        yield server


@pytest.fixture
def lab(server: Server, tmp_path: Path) -> Iterator[Lab]:
    with FaultyProxy(server.url) as proxy:
        yield Lab(server, proxy, tmp_path)


def rows(folder: Storage) -> list[dict[str, Any]]:
    lines = folder.read_lines("metrics.jsonl")
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def kill_at(process: subprocess.Popen[str], wanted: str) -> Callable[[str, str], str | None]:
    """Kills a process when it sends a request that fits, which then never arrives."""

    def before(method: str, path: str) -> str | None:
        if process.poll() is None and re.search(wanted, f"{method} {path}"):
            process.send_signal(signal.SIGKILL)
            return "down"
        return None

    return before


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of a run to which nothing happened."""
    with FaultyProxy(server.url) as proxy:
        lab = Lab(server, proxy, tmp_path_factory.mktemp("whole"))
        settings = [*LONG, f"storage.url={lab.url}"]
        result, _ = lab.run("a", "train", "--family", "tipsy", *settings)
        return rows(lab.storage(result["folder"]))


def test_killed_between_shard_and_manifest_it_goes_on_from_the_checkpoint_before(
    lab: Lab, whole: list[dict[str, Any]]
) -> None:
    process = lab.start("a", "train", "--family", "tipsy", *LONG, f"storage.url={lab.url}")
    # Checkpoints are taken as fast as they can be written: the first past epoch 8 is the one that dies.
    lab.proxy.before = kill_at(process, r"PUT .*/000000(09|[12]\d)/manifest-")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    lab.proxy.before = None
    home = lab.storage(lab.url)
    name = next(iter(home.list()))
    checkpoints = Checkpoints(home.sub(name, "checkpoints"))
    committed, seen = checkpoints.steps(), set(checkpoints.files())
    (unfinished,) = seen - set(committed)
    assert unfinished > max(committed), "the shards of the last checkpoint had arrived"
    assert any(file.endswith(".safetensors") for file in home.sizes(f"{name}/checkpoints/{unfinished:08d}"))

    result, said = lab.run("b", "train", "--resume", f"{lab.url}/{name}")
    assert f"goes on from epoch {max(committed)}" in said
    assert result["outcome"] == "complete"
    assert rows(home.sub(name)) == whole
    assert set(checkpoints.files()) == set(checkpoints.steps())


def test_while_a_checkpoint_hangs_on_its_way_training_goes_on_and_metrics_arrive(lab: Lab) -> None:
    lab.proxy.stall_seconds = 100
    lab.proxy.before = lambda method, path: Fault.STALL if method == "PUT" and ".safetensors" in path else None
    settings = [*LONG, "recipe.epochs=500", f"storage.url={lab.url}", "storage.mirror_seconds=0.2"]
    process = lab.start("a", "train", "--family", "tipsy", *settings)
    home = lab.storage(lab.url)

    def arrived() -> int:
        return sum(len(rows(home.sub(name))) for name in home.list())

    try:
        wait_until(lambda: lab.proxy.counts[Fault.STALL] > 0)
        before = arrived()
        wait_until(lambda: arrived() >= before + 30)
    finally:
        process.kill()
        process.communicate()
    assert not [path for path in home.sizes() if "/manifest-" in path]
    # One checkpoint is under way, not one for each epoch.
    assert lab.proxy.counts[Fault.STALL] <= 2


def test_a_flipped_byte_in_a_shard_is_named_and_the_checkpoint_before_is_used(
    lab: Lab, whole: list[dict[str, Any]]
) -> None:
    process = lab.start("a", "train", "--family", "tipsy", *LONG, f"storage.url={lab.url}")
    lab.proxy.before = kill_at(process, r"PUT .*/000000(09|[12]\d)/state-")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    lab.proxy.before = None
    home = lab.storage(lab.url)
    name = next(iter(home.list()))
    checkpoints = Checkpoints(home.sub(name, "checkpoints"))
    before, last = checkpoints.steps()[-2:]
    folder = checkpoints.storage.sub(f"{last:08d}")
    shard = next(file for file in folder.list() if file.endswith(".safetensors"))
    data = bytearray(folder.read_bytes(shard))
    data[-100] ^= 1
    folder.write_bytes(shard, bytes(data))

    result, said = lab.run("b", "train", "--resume", f"{lab.url}/{name}")
    assert f"{last:08d} is damaged ({shard} does not match the manifest); using the one before" in said
    assert f"goes on from epoch {before}" in said
    assert result["outcome"] == "complete"
    assert rows(home.sub(name)) == whole


def test_a_sweep_whose_drivers_machine_is_wiped_goes_on_elsewhere_without_losing_a_trial(lab: Lab) -> None:
    process = lab.start("a", "sweep", "--family", "tipsy", *LONG, *MACHINE, f"storage.url={lab.url}", "trials=4")
    # In the middle of the third trial.
    lab.proxy.before = kill_at(process, r"PUT .*/trials/00002/checkpoints/000000[12]\d/manifest-")
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    lab.proxy.before = None
    shutil.rmtree(lab.home / "a")
    home = lab.storage(lab.url)
    sweep = home.sub(next(iter(home.list())))
    before, _, _ = read_study(sweep, sweep.name, None)
    assert [record.outcome for record in before.values()] == [Outcome.COMPLETE, Outcome.COMPLETE, Outcome.RUNNING]
    finished = {n: sweep.read_bytes(f"trials/{n:05d}/metrics.jsonl") for n in (0, 1)}
    saved = Checkpoints(sweep.sub("trials/00002/checkpoints")).steps()[-1]

    summary, said = lab.run("b", "sweep", "--resume", sweep.root)
    assert "trial 00002 goes on" in said
    assert summary["trials"] == {"complete": 4}
    after, _, _ = read_study(sweep, sweep.name, None)
    assert {n: (r.params, r.curve, r.values) for n, r in after.items() if n < 2} == {
        n: (r.params, r.curve, r.values) for n, r in before.items() if n < 2
    }
    assert after[2].params == before[2].params
    assert before[2].curve.items() <= after[2].curve.items()
    assert {n: sweep.read_bytes(f"trials/{n:05d}/metrics.jsonl") for n in (0, 1)} == finished
    assert [row["fidelity"] for row in rows(sweep.sub("trials/00002"))] == list(range(1, 34))
    assert saved >= 1
    # It may be extended, exported from and reported on from a third machine.
    report, _ = lab.run("c", "report", sweep.root)
    assert report["trials"] == summary["trials"]
    lab.run("c", "train", "--from", sweep.root, "--export", str(lab.home / "export"))
    assert (lab.home / "export" / "model.json").is_file()


def test_a_second_driver_is_refused_while_the_first_lives(lab: Lab) -> None:
    process = lab.start("a", "sweep", "--family", "tipsy", *LONG, *MACHINE, f"storage.url={lab.url}", "trials=3")
    refused: list[str] = []

    def before(method: str, path: str) -> None:
        if not refused and "/trials/00001/metrics.jsonl" in path:
            refused.append("")
            name = re.search(r"(tipsy-[^/]+)/trials", path)
            assert name
            second = lab.start("b", "sweep", "--resume", f"{lab.url}/{name[1]}")
            second.wait(60)
            refused.append(f"{second.returncode} {second.communicate()[1]}")

    lab.proxy.before = before
    _, err = process.communicate(timeout=110)
    assert process.returncode == 0, err
    assert refused[1].startswith("2 ")
    assert "is working on it; wait for it or stop it first" in refused[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["storage.url=s3://nobody/x"], "there is no such bucket"),
        (["storage.url=s3://me:secret1@lab/x"], "credentials come from the environment"),
        (["storage.url=s3://lab/x", "storage.options.secret=secret1"], "storage.options.secret: credentials come from"),
        (["study.storage=postgresql://me:secret1@db/x"], "a password in it"),
        (["study.storage=nonsense"], "not a database URL"),
        (["storage.url=nonsense://x"], "nonsense"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_without_the_secret(lab: Lab, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        start("tipsy", [*MACHINE, f"storage.cache={lab.home}/a", *arguments], Console())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret1" not in str(error.value)
    assert list(lab.home.iterdir()) == []
