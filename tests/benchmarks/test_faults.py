"""The fault suite's judge on sweeps that were broken by hand: what is wrong must be seen, and nothing else."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time

import pytest

from benchmarks.faults.__main__ import play
from benchmarks.faults.fault import LOCAL, Driver, Fault, Moment, Scene, alive, nothing_left
from benchmarks.faults.table import table
from benchmarks.faults.verdict import Status, Verdict, judge, judge_undisturbed
from benchmarks.faults.witness import INSIDE, Witness
from pharos.backends.local import run_sweep
from pharos.console import Console
from pharos.sweep import reopen, start

MOMENT = Moment("in a test")


def driver(home, said="", status=0):
    process = subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({status})"])
    process.wait()
    (home / "log").write_text(said)
    (home / "out").write_text("")
    return Driver(process, home / "log", home / "out")


class Account:
    """A witness's, written by hand."""

    def __init__(self, home):
        self.path = home / "witness.jsonl"
        self.lines = []

    def trial(self, number, epochs, values=None, attempt="a", outcome="complete"):
        self.say("begins", trial=number, attempt=f"{attempt}{number}")
        for epoch in epochs:
            self.say("epoch", trial=number, epoch=epoch, attempt=f"{attempt}{number}")
            self.say("committed", trial=number, epoch=epoch)
        if values is not None:
            self.say("recorded", trial=number, outcome=outcome, values=values)

    def say(self, point, **more):
        self.lines.append({"at": float(len(self.lines)), "pid": 1, "point": point, **more})
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))


SHORT = [*LOCAL, "recipe.epochs=3", "recipe.student_epochs=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of three trials of four epochs, as it should be: where it lies, its name, its records."""
    url = tmp_path_factory.mktemp("whole")
    sweep = start("tipsy", [*SHORT, f"storage.url={url}"], Console())
    run_sweep(sweep)
    records = {number: dataclasses.replace(record) for number, record in sweep.study.records.items()}
    sweep.close()
    return url, sweep.name, records


@pytest.fixture
def scene(whole, tmp_path):
    """A copy of it, with an account that fits."""
    url, name, records = whole
    shutil.copytree(url, tmp_path / "sweeps")
    scene = Scene(tmp_path / "scene", 30.0, url=str(tmp_path / "sweeps"))
    scene.drivers.append(driver(scene.home))
    scene.account = Account(scene.home)
    for number, record in records.items():
        scene.account.trial(number, range(1, 5), record.values)
    scene.folder = tmp_path / "sweeps" / name
    scene.undisturbed = judge_undisturbed(scene, 5.0)
    scene.struck("something")
    return scene


def verdict_of(scene, moment=MOMENT, status=Status.HELD):
    verdict = Verdict("name", "title", moment.name, status, seconds=7.5)
    judge(verdict, moment, scene, scene.undisturbed)
    return verdict


def test_nothing_is_wrong_with_a_sweep_to_which_nothing_happened(scene):
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.problems) == (Status.HELD, [])
    assert (verdict.lost, verdict.twice, verdict.again, verdict.changed) == (0, 0, 0, 0)
    assert verdict.completed
    assert verdict.lost_seconds == 2.5


def test_a_finished_trial_that_the_study_does_not_know_is_lost(scene):
    scene.account.trial(3, range(1, 5), [0.25])
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.lost) == (Status.BROKEN, 1)
    assert "trial 00003 is not in the study" in verdict.problems[0]


@pytest.mark.parametrize("change", [{"outcome": "pruned"}, {"values": [0.125]}])
def test_a_finished_trial_with_another_result_is_lost(scene, change):
    scene.account.say("recorded", **{"trial": 1, "outcome": "complete", "values": [0.5], **change})
    assert verdict_of(scene).lost == 1


def test_a_finished_trial_without_its_checkpoint_is_lost(scene):
    for path in scene.folder.glob("trials/00001/checkpoints/*/manifest*"):
        path.unlink()
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.lost) == (Status.BROKEN, 1)
    assert "trial 00001 is complete at 4, its checkpoint is missing" in verdict.problems[0]


def test_a_finished_trial_that_trains_again_ran_twice(scene):
    scene.account.trial(1, [4], attempt="b")
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.twice, verdict.again) == (Status.BROKEN, 1, 1)


def test_a_finished_trial_whose_process_starts_and_trains_nothing_did_not_run_twice(scene):
    scene.account.trial(1, [], attempt="b")
    assert verdict_of(scene).status == Status.HELD


def test_epochs_past_the_last_checkpoint_may_run_again_and_are_counted(scene):
    lines = scene.account.lines
    at = next(index for index, line in enumerate(lines) if line["point"] == "committed" and line["epoch"] == 3)
    lost = [
        {**lines[0], "trial": 0},
        {**lines[1], "epoch": 1},
        {**lines[1], "point": "committed", "epoch": 1},
        {**lines[1], "epoch": 2},
        {**lines[1], "epoch": 3},
    ]
    rest = [{**line, "attempt": "b"} for line in lines[:at] if line.get("epoch") != 1]
    scene.account.lines = lost + rest + lines[at:]
    scene.account.say("closes")
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.again) == (Status.HELD, 2)


def test_an_attempt_that_forgets_a_checkpoint_breaks_the_promise_unless_that_was_spoiled(scene):
    scene.account.lines = [
        line for line in scene.account.lines if not (line["point"] == "recorded" and line["trial"] == 1)
    ]
    scene.account.trial(1, [3, 4], attempt="b")
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.again) == (Status.BROKEN, 2)
    assert "went on with epoch 3, with a checkpoint of 4 there" in verdict.problems[0]
    assert verdict_of(scene, Moment("in a test", restarts=True)).status == Status.HELD


def test_other_numbers_than_undisturbed_are_seen(scene):
    key = next(iter(scene.undisturbed.results))
    scene.undisturbed.results[key] = (0.75,)
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.changed) == (Status.BROKEN, 1)


def test_an_epoch_that_is_twice_in_the_metrics_is_seen(scene):
    path = scene.folder / "trials/00002/metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert "has the rows [1, 2, 3, 4, 4]" in "".join(verdict_of(scene).problems)


def test_a_summary_that_says_something_else_is_seen(scene):
    path = scene.folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trials": {"complete": 2}}))
    assert "summary.json says" in "".join(verdict_of(scene).problems)


def test_a_sweep_with_a_trial_that_is_still_running_is_not_complete(scene):
    sweep = reopen(scene.folder.name, [f"storage.url={scene.url}", "trials=+1"], Console(), extend=True)
    sweep.open(1)
    assert sweep.next_trial() is not None
    sweep.study.close()
    scene.drivers[-1] = driver(scene.home, "all went well\nerror: the store is gone\n", status=2)
    verdict = verdict_of(scene)
    assert (verdict.status, verdict.completed) == (Status.BROKEN, False)
    assert verdict.reason == "error: the store is gone"
    # Where it is not to complete, its reason has to be read, and its status to be other than 0.
    assert verdict_of(scene, Moment("in a test", says="store is gone", completes=False)).status == Status.HELD
    assert verdict_of(scene, Moment("in a test", says="disk is full", completes=False)).status == Status.BROKEN
    scene.drivers[-1] = driver(scene.home, "error: the store is gone\n", status=0)
    assert verdict_of(scene, Moment("in a test", completes=False)).status == Status.BROKEN


def test_a_traceback_and_other_endings_than_are_due_are_seen(scene):
    assert verdict_of(scene, Moment("in a test", {"complete": 2, "diverged": 1})).status == Status.BROKEN
    scene.drivers[-1] = driver(scene.home, "Traceback (most recent call last):\n")
    assert verdict_of(scene).problems == ["the user reads a traceback"]


def played(scene, act, seconds=30.0):
    fault = Fault("name", "title", "local", act, (MOMENT,))
    return play(fault, MOMENT, Scene(scene.home / "case", seconds), scene.undisturbed)


def of(case, scene):
    """Makes a case one of the sweep that is there."""
    case.url, case.drivers = scene.url, scene.drivers
    (case.home / "witness.jsonl").write_text(scene.account.path.read_text())


def test_a_strike_that_missed_is_no_pass(scene):
    def nothing(case, moment):
        of(case, scene)

    def too_late(case, moment):
        of(case, scene)
        case.until(lambda: None)

    def gone(case, moment):
        of(case, scene)
        case.kill(scene.drivers[-1].process.pid, "the driver")

    found = [played(scene, act) for act in (nothing, too_late, gone)]
    assert [each.status for each in found] == [Status.MISSED] * 3
    assert [each.reason[:22] for each in found] == [
        "nothing was struck",
        "the sweep was over bef",
        "the driver (process " + str(scene.drivers[-1].process.pid)[:2],
    ]
    assert table(found).count("missed") == 3


def test_a_study_that_cannot_be_read_any_more_is_a_broken_promise(scene):
    def spoil(case, moment):
        of(case, scene)
        (scene.folder / "study.journal").unlink()
        case.struck("something")

    verdict = played(scene, spoil)
    assert verdict.status == Status.BROKEN
    assert "cannot be read any more" in verdict.problems[0]


def test_a_sweep_that_hangs_is_ended_with_all_that_it_started(scene):
    started = []

    def hang(case, moment):
        of(case, scene)
        # The one that is killed leaves an orphan.
        code = "import subprocess, time; print(subprocess.Popen(['sleep', '100']).pid, flush=True); time.sleep(100)"
        process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True)
        started.extend([process.pid, int(process.stdout.readline())])
        case.struck("something")
        while True:
            case.check()
            time.sleep(0.01)

    before = subprocess.Popen(["sleep", "100"])
    verdict = played(scene, hang, seconds=0.5)
    assert verdict.status == Status.HUNG
    assert "did not end in time" in "".join(verdict.problems)
    assert not any(map(alive, started))
    assert alive(before.pid)
    before.kill()
    before.wait()


def test_a_process_is_held_where_the_trap_says_and_goes_on_when_it_is_let_go(tmp_path):
    witness = Witness(tmp_path)
    code = "import sitecustomize as s; [s.say('epoch', trial=t, epoch=e) for t in (0, 1) for e in (1, 2)]"
    environment = {"PYTHONPATH": str(INSIDE), **witness.environment}
    trap = witness.set_trap(point="epoch", trial=1, epoch=1)
    with nothing_left(), subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        while (caught := witness.trapped(trap)) is None:
            time.sleep(0.01)
        assert (caught.pid, caught.where, caught.trial, caught.epoch) == (process.pid, "epoch", 1, 1)
        time.sleep(0.2)
        assert [(line.trial, line.epoch) for line in witness.lines() if line.point == "epoch"] == [
            (0, 1),
            (0, 2),
            (1, 1),
        ]
        witness.release(trap)
        assert process.wait(20) == 0
    assert len([line for line in witness.lines() if line.point == "epoch"]) == 4


def test_a_real_driver_is_killed_and_the_promise_held(scene):
    def kill(case, moment):
        trap = case.witness.set_trap(point="step", trial=1, epoch=3, step=2)
        process = case.start(*SHORT).process
        assert case.caught(trap).pid == process.pid
        case.kill(process.pid, "the driver")
        process.wait()
        case.start(resume=True)
        case.finish()

    verdict = played(scene, kill, seconds=90)
    assert (verdict.status, verdict.problems) == (Status.HELD, [])
    assert verdict.completed
    assert 1 <= verdict.again <= 3  # the one it died in, and those whose checkpoint was still being written
    assert verdict.strikes == ["kill -9 of the driver"]
