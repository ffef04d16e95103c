"""Trials of two workers on a real, small Ray: warm, killed, hung, refused, taken up by another number of workers."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, Listener, outcomes, rows

from pharos.backends.gang import Gang, Lost
from pharos.config import make_plan
from pharos.errors import InputError
from pharos.families import ROOT
from pharos.records import TrialRecord
from pharos.sweep import Sweep, reopen, start
from pharos.trial import Ending, Outcome, Report

RunSweep = Callable[[Sweep], None]
LONG = [*TINY, "recipe.epochs=40", "trials=1", "tracking=none", "checkpoint_seconds=0", "resources.workers=2"]


def processes(title: str) -> set[int]:
    """The processes of this Ray that it has given a title which begins so; others may run on this machine."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
            state, parent = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(folder.name)] = int(parent)

    def is_ours(pid: int) -> bool:
        while pid not in (0, os.getpid()):
            pid = parents.get(pid, 0)
        return pid != 0

    return {pid for pid in parents if titles[pid].startswith(title) and is_ours(pid)}


def workers() -> set[int]:
    return processes("ray::_RemoteWorker")


def rank_0(sweep: Sweep) -> int:
    return int(Path(sweep.storage.path("trials", "00000", ".lock")).read_text())


def other(sweep: Sweep) -> int:
    (pid,) = workers() - {rank_0(sweep)}
    return pid


def losses(console: Listener) -> list[str]:
    return [note for note in console.notes if "lost its process" in note]


def same_losses(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """Whether two curves agree as far as rounding lets them: to 1e-4 over 20 steps, one an epoch."""
    keys = ("loss/generators", "loss/critic")
    return all(
        a[key] == pytest.approx(b[key], rel=1e-4) for a, b in zip(ours[:20], theirs[:20], strict=True) for key in keys
    )


@pytest.fixture(scope="module")
def whole(run_sweep: RunSweep, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What a trial of two workers reports when nothing happens to it."""
    sweep = start("tipsy", [*LONG, f"storage.url={tmp_path_factory.mktemp('whole')}"], Listener())
    run_sweep(sweep)
    assert outcomes(sweep) == [Outcome.COMPLETE]
    yield rows(sweep, 0)
    sweep.close()


def test_two_workers_report_what_one_does(run_sweep: RunSweep, tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    sweep = start("tipsy", [*LONG, f"storage.url={tmp_path}", "resources.workers=1"], Listener())
    run_sweep(sweep)
    assert same_losses(rows(sweep, 0), whole)
    sweep.close()


def test_trials_of_two_workers_share_their_processes(run_sweep: RunSweep, tmp_path: Path) -> None:
    seen: set[int] = set()
    console = Listener(lambda record, report: seen.update(workers()))
    settings = [*TINY, f"storage.url={tmp_path}", "trials=4", "tracking.mode=offline", "engine=deepspeed"]
    sweep = start("tipsy", [*settings, "resources.workers=2"], console)
    run_sweep(sweep)
    found = outcomes(sweep)
    sweep.close()

    assert len(found) == 4
    assert set(found) <= {Outcome.COMPLETE, Outcome.PRUNED}
    assert len(seen) == 2
    assert not losses(console)
    spools = [path.name for path in Path(sweep.storage.path("wandb")).glob("offline-run-*")]
    assert len(spools) == 4  # rank 0's alone
    deadline = time.monotonic() + 10
    while workers() & seen and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers() & seen


def test_killing_a_worker_rank_0_or_their_leader_changes_no_number(
    run_sweep: RunSweep, tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    victims = [other, rank_0, lambda sweep: min(processes("ray::TrialActor"))]
    killed: list[int] = []

    def kill(record: TrialRecord, report: Report) -> None:
        if len(killed) < len(victims) and report.fidelity >= 6 * (len(killed) + 1):
            killed.append(victims[len(killed)](broken))
            os.kill(killed[-1], signal.SIGKILL)

    console = Listener(kill)
    broken = start("tipsy", [*LONG, f"storage.url={tmp_path}", "retries=3"], console)
    run_sweep(broken)
    broken.close()

    assert len(set(killed)) == 3
    assert len(losses(console)) == 3
    assert [("of 2 died" in note) for note in losses(console)] == [True, True, False]
    assert outcomes(broken) == [Outcome.COMPLETE]
    assert broken.study.records[0].attempts == 3
    assert rows(broken, 0) == whole


def test_a_worker_that_hangs_is_replaced(run_sweep: RunSweep, tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    stopped: list[int] = []

    def hang(record: TrialRecord, report: Report) -> None:
        if report.fidelity >= 8 and not stopped:
            stopped.append(other(sweep))
            os.kill(stopped[0], signal.SIGSTOP)

    console = Listener(hang)
    sweep = start("tipsy", [*LONG, f"storage.url={tmp_path}", "resources.hang_seconds=4"], console)
    run_sweep(sweep)
    sweep.close()
    assert stopped
    assert len(losses(console)) == 1, losses(console)
    assert outcomes(sweep) == [Outcome.COMPLETE]
    assert rows(sweep, 0) == whole
    assert stopped[0] not in workers()


def test_an_interrupted_trial_goes_on_with_another_number_of_workers_and_another_engine(
    run_sweep: RunSweep, tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    def interrupt(record: TrialRecord, report: Report) -> None:
        if report.fidelity >= 5:
            first.interrupt()

    first = start("tipsy", [*LONG, f"storage.url={tmp_path}", "engine=deepspeed", "engine.zero=2"], Listener(interrupt))
    run_sweep(first)
    assert outcomes(first) == [Outcome.INTERRUPTED]
    first.close()
    resumed = reopen(first.name, [f"storage.url={tmp_path}", "resources.workers=1"], Listener())
    run_sweep(resumed)
    assert outcomes(resumed) == [Outcome.COMPLETE]
    assert same_losses(rows(resumed, 0), whole)
    resumed.close()


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (["resources.workers=3"], "3 workers of 1 CPU, the cluster has 2 CPU"),
        (["resources.workers=2", "resources.cpus_per_worker=2"], "2 workers of 2 CPU, the cluster has 2 CPU"),
        (["resources.workers=2", "resources.gpus_per_worker=1"], "1 CPU and 1 GPU, the cluster has 2 CPU and 0 GPU"),
    ],
)
def test_workers_that_never_fit_are_refused_at_once(
    run_sweep: RunSweep, tmp_path: Path, request_: list[str], says: str
) -> None:
    sweep = start("tipsy", [*TINY, f"storage.url={tmp_path}", *request_], Listener())
    began = time.monotonic()
    with pytest.raises(InputError, match=says):
        run_sweep(sweep)
    assert time.monotonic() - began < 10
    sweep.discard()


def test_one_run_of_its_own_trains_on_a_gang(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "platform/train.py"), "--family", "tipsy", "scale=tiny", "--json"]
    settings = [f"storage.url={tmp_path}", "resources.workers=2", "engine=deepspeed", "engine.zero=3"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"outcome": "complete"' in done.stdout
    assert "epoch 6/6" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_that_a_trial_has_left_too_big_are_replaced(
    run_sweep: RunSweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    from pharos.backends import gang as module

    group = ray.util.placement_group([{"CPU": 1}] * 2)
    gang = Gang(group, 60.0, {})
    plan = make_plan("tipsy", ["scale=tiny", "tracking=none"])

    def train(number: int) -> set[int]:
        gang.start(
            plan.trial_spec("grown", number, {}, folder=str(tmp_path / str(number)), tracking_folder=str(tmp_path))
        )
        while isinstance(message := gang.next(), Report):
            pass
        assert isinstance(message, Ending)
        assert message.outcome == Outcome.COMPLETE, message.reason
        return {ray.get(worker.pid.remote()) for worker in gang._workers}

    first, second = train(0), train(1)
    assert first == second
    monkeypatch.setattr(module, "_GROWTH_BYTES", -(2**40))
    assert not train(2) & first
    gang.close()
    ray.util.remove_placement_group(group)


def ending(outcome: Outcome, reason: str = "", *, lost_link: bool = False) -> Ending:
    return Ending(outcome, reason, fidelity=3, is_lost_link=lost_link)


@pytest.mark.parametrize(
    ("endings", "expected"),
    [
        ({0: ending(Outcome.COMPLETE), 1: ending(Outcome.COMPLETE)}, ending(Outcome.COMPLETE)),
        ({0: ending(Outcome.PRUNED), 1: ending(Outcome.PRUNED)}, ending(Outcome.PRUNED)),
        # One fails, the other one's link breaks over it, or it waits in vain.
        (
            {0: ending(Outcome.FAILED, "gloo", lost_link=True), 1: ending(Outcome.OUT_OF_MEMORY, "full")},
            ending(Outcome.OUT_OF_MEMORY, "worker 1 of 2: full"),
        ),
        ({1: ending(Outcome.FAILED, "a bug")}, ending(Outcome.FAILED, "worker 1 of 2: a bug")),
        (
            {0: ending(Outcome.FAILED, "a bug"), 1: ending(Outcome.OUT_OF_MEMORY, "full")},
            ending(Outcome.OUT_OF_MEMORY, "worker 1 of 2: full"),
        ),
        (
            {0: ending(Outcome.FAILED, lost_link=True)},
            Lost("its workers did not end together: worker 1 is silent"),
        ),
        (
            {rank: ending(Outcome.FAILED, lost_link=True) for rank in range(2)},
            Lost("its workers did not end together: they lost touch"),
        ),
    ],
)
def test_a_gang_ends_as_the_worker_that_failed_first_of_all(
    endings: dict[int, Ending], expected: Ending | Lost
) -> None:
    gang = Gang.__new__(Gang)
    gang.size, gang._endings, gang._workers, gang._waiting = 2, endings, [], {}
    settled = gang._settle()
    assert dataclasses.asdict(settled) == dataclasses.asdict(expected)
