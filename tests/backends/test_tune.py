"""The Ray Tune backend on a real, small Ray: one for the whole run of the tests."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers import TINY, Listener, outcomes, rows

from pharos.errors import InputError
from pharos.families import ROOT
from pharos.records import TrialRecord
from pharos.sweep import Sweep, reopen, start
from pharos.trial import Outcome, Report


def test_a_sweep_runs_its_trials_on_warm_processes_and_tracks_each(
    run_sweep: Callable[[Sweep], None], tmp_path: Path
) -> None:
    sweep = start("tipsy", [*TINY, f"storage.url={tmp_path}", "trials=6", "tracking.mode=offline"], Listener())
    run_sweep(sweep)
    processes = {trial.user_attrs["process"] for trial in sweep.study._study.trials if trial.user_attrs.get("process")}
    found = outcomes(sweep)
    summary = sweep.close()

    assert len(found) == 6
    assert set(found) == {Outcome.COMPLETE, Outcome.PRUNED}
    assert len(processes) <= 2
    assert summary["trials"] == {str(o): found.count(o) for o in set(found)}
    assert summary["best"]["values"]["val/pa_mpjpe"] <= summary["paper_values"]["values"]["val/pa_mpjpe"]
    assert list(Path(summary["best"]["checkpoint"]).glob("manifest-*.json"))
    spools = [path.name for path in Path(sweep.storage.path("wandb")).glob("offline-run-*")]
    for number in range(6):
        assert sum(name.endswith(f"{sweep.name}-{number:05d}") for name in spools) == 1


def test_trials_of_several_shapes_share_the_machine(run_sweep: Callable[[Sweep], None], tmp_path: Path) -> None:
    """Small ones come without end; the large ones, which take all there is, get their turn."""
    shapes = "resources.shapes=[{when: {recipe.w_90: '>= 10'}, workers: 2}]"
    settings = [*TINY[:3], f"storage.url={tmp_path}", "trials=8", "tracking=none", "scheduler=none", shapes]
    sweep = start("tipsy", [*settings, "sampler=random", "recipe.w_90=interval(0, 20)"], Listener())
    run_sweep(sweep)
    records = sweep.study.records.values()
    assert [record.outcome for record in records] == [Outcome.COMPLETE] * 8
    workers = {record.number: 2 if record.params["recipe.w_90"] >= 10 else 1 for record in records}
    assert set(workers.values()) == {1, 2}
    for number, count in workers.items():
        logs = {path.name for path in Path(sweep.storage.path("trials", f"{number:05d}")).glob("log*")}
        assert logs == ({"log", "log.1"} if count == 2 else {"log"})
    hours = sweep.summary()["cpu_hours"]
    sweep.close()
    spent = sum(record.seconds * workers[record.number] for record in records) / 3600
    assert hours["useful"] == pytest.approx(spent, abs=1e-3)


def test_a_process_that_takes_long_to_start_is_left_alone_while_short_trials_end_beside_it(
    run_sweep: Callable[..., None], tmp_path: Path
) -> None:
    from pharos.backends.actor import TrialActor

    starts = tmp_path / "starts"
    starts.mkdir()

    class Slow(TrialActor):
        """Trains nothing; the second process of the sweep, and every later one, takes two seconds to start."""

        def setup(self, config: dict[str, Any], credentials: dict[str, str]) -> None:
            (starts / str(os.getpid())).touch()
            time.sleep(2.0 if len(list(starts.iterdir())) > 1 else 0.0)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(0.1)
            metrics = {"val/pa_mpjpe": 1.0}
            ending = {"outcome": "complete", "fidelity": 1, "metrics": metrics, "process": os.getpid()}
            return {"ending": ending, "done": True}

        def cleanup(self) -> None:
            """Nothing."""

    settings = [f"storage.url={tmp_path / 'sweeps'}", "trials=60", "tracking=none", "sampler=random", "scheduler=none"]
    sweep = start("tipsy", settings, Listener())
    run_sweep(sweep, Slow)
    processes = [trial.user_attrs["process"] for trial in sweep.study._study.trials]
    sweep.close()
    assert len(processes) == 60
    assert {path.name for path in starts.iterdir()} == set(map(str, processes))
    assert len(set(processes)) == 2


def test_a_killed_trial_goes_on_elsewhere_and_gives_the_numbers_it_would_have_given(
    run_sweep: Callable[[Sweep], None], tmp_path: Path
) -> None:
    settings = [*TINY, "trials=1", "tracking=none", "checkpoint_seconds=0"]
    whole = start("tipsy", [*settings, f"storage.url={tmp_path}"], Listener())
    run_sweep(whole)

    killed: list[int] = []

    def kill(record: TrialRecord, report: Report) -> None:
        if report.fidelity == 4 and not killed:
            holder = int(Path(broken.storage.path("trials", "00000", ".lock")).read_text())
            os.kill(holder, signal.SIGKILL)
            killed.append(holder)

    console = Listener(kill)
    broken = start("tipsy", [*settings, f"storage.url={tmp_path}"], console)
    run_sweep(broken)

    assert killed
    assert any("lost its process" in note for note in console.notes)
    assert outcomes(broken) == [Outcome.COMPLETE]
    assert broken.study.records[0].attempts == 1
    assert rows(broken, 0) == rows(whole, 0)
    assert broken.study.records[0].curve == whole.study.records[0].curve
    whole.close()
    broken.close()


def test_a_sweep_lets_another_one_have_its_share_of_the_machine(
    run_sweep: Callable[[Sweep], None], tmp_path: Path
) -> None:
    """The first would go on for hundreds of trials; the second one has nowhere to go but the first one's places."""
    second: list[subprocess.Popen[bytes]] = []

    def on_report(record: TrialRecord, report: Report) -> None:
        if not second:
            address = ray.get_runtime_context().gcs_address
            command = [sys.executable, str(ROOT / "platform/sweep.py"), "--family", "tipsy", *TINY, "trials=2"]
            second.append(
                subprocess.Popen(
                    [*command, f"storage.url={tmp_path / 'second'}", "tracking=none"],
                    env={**os.environ, "RAY_ADDRESS": address},
                    stdout=subprocess.DEVNULL,
                )
            )
        elif second[0].poll() is not None:
            sweep.interrupt()

    listener = Listener(on_report)
    url = f"storage.url={tmp_path / 'first'}"
    sweep = start("tipsy", [*TINY[:3], url, "trials=400", "tracking=none", "scheduler=none"], listener)
    run_sweep(sweep)
    ended = outcomes(sweep)
    sweep.close()
    assert second[0].wait() == 0
    assert Outcome.COMPLETE in ended
    assert len(ended) < 400
    assert any("room for 1 trials at a time now, 2 before" in note for note in listener.notes)


def test_an_interrupted_sweep_is_finished_later_and_then_extended(
    run_sweep: Callable[[Sweep], None], tmp_path: Path
) -> None:
    first: list[Sweep] = []
    console = Listener(lambda record, report: first[0].interrupt())
    first.append(start("tipsy", [*TINY, f"storage.url={tmp_path}", "trials=3", "tracking=none"], console))
    run_sweep(first[0])
    assert set(outcomes(first[0])) == {Outcome.INTERRUPTED}
    interrupted = len(outcomes(first[0]))
    first[0].close()
    name = first[0].name

    resumed = reopen(name, [f"storage.url={tmp_path}"], Listener())
    assert len(resumed.study.records) == interrupted
    run_sweep(resumed)
    assert len(resumed.study.records) == 3
    assert all(outcome.is_final for outcome in outcomes(resumed))
    before = {number: record.values for number, record in resumed.study.records.items()}
    resumed.close()

    extended = reopen(name, [f"storage.url={tmp_path}", "trials=+2"], Listener(), extend=True)
    run_sweep(extended)
    assert len(extended.study.records) == 5
    assert {n: r.values for n, r in extended.study.records.items() if n < 3} == before
    extended.close()


def test_trials_that_diverge_do_not_end_the_sweep(run_sweep: Callable[[Sweep], None], tmp_path: Path) -> None:
    settings = [*TINY, f"storage.url={tmp_path}", "trials=3", "tracking=none", "recipe.optim.lr=1e30"]
    sweep = start("tipsy", settings, Listener())
    run_sweep(sweep)
    assert outcomes(sweep) == [Outcome.DIVERGED] * 3
    assert sweep.close()["best"] is None


def test_a_trial_that_never_fits_is_refused_at_once(run_sweep: Callable[[Sweep], None], tmp_path: Path) -> None:
    sweep = start("tipsy", [*TINY, f"storage.url={tmp_path}", "resources.cpus_per_worker=64"], Listener())
    began = time.monotonic()
    with pytest.raises(InputError, match="64 CPU, the cluster has 2 CPU"):
        run_sweep(sweep)
    assert time.monotonic() - began < 10
    sweep.discard()
    assert list(tmp_path.iterdir()) == []


def test_two_drivers_of_one_sweep_are_refused(run_sweep: Callable[[Sweep], None], tmp_path: Path) -> None:
    refused: list[str] = []

    def second_driver(record: TrialRecord, report: Report) -> None:
        def try_it() -> None:
            try:
                reopen(sweep.name, [f"storage.url={tmp_path}"], Listener())
            except InputError as error:
                refused.append(str(error))

        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()

    settings = [*TINY, f"storage.url={tmp_path}", "trials=1", "tracking=none"]
    sweep = start("tipsy", settings, Listener(second_driver))
    run_sweep(sweep)
    sweep.close()
    assert refused
    assert "another process" in refused[0]


def test_a_full_disk_ends_the_sweep_with_its_own_error(
    run_sweep: Callable[[Sweep], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = start("tipsy", [*TINY, f"storage.url={tmp_path}", "trials=4", "tracking=none"], Listener())

    def full(number: int, fidelity: int, values: tuple[float, ...]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "study.journal")

    monkeypatch.setattr(sweep.study, "report", full)
    with pytest.raises(OSError, match="No space left"):
        run_sweep(sweep)
    sweep.study.close()
    again = reopen(sweep.name, [f"storage.url={tmp_path}"], Listener())
    assert set(outcomes(again)) == {Outcome.INTERRUPTED}
    again.close()


def test_sigterm_stays_with_the_sweep_when_ray_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    from pharos.backends import cluster

    def init(address: str, **options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init does, with a handler that ends the process

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        assert cluster.connect(1)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == [signal.SIGTERM]


def test_the_nodes_of_a_cluster_import_the_drivers_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts what is around each folder that it sends on the path: of `platform/` nobody could import pharos."""
    from pharos.backends import cluster

    sent: dict[str, Any] = {}
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_init", lambda address, **options: sent.update(options))
    assert cluster.connect(None)
    folders = [Path(each) for each in sent["runtime_env"]["py_modules"]]
    assert [folder.name for folder in folders] == ["pharos", "trainables"]
    assert folders[0] / "backends" / "cluster.py" == Path(cluster.__file__)
