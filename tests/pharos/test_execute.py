"""One trial in this process: every way it can end, and what it leaves on disk."""

import json
import logging
import math
import sys
from collections import OrderedDict

import pytest
import torch

from pharos import execute as execute_module
from pharos import memory
from pharos import run as run_module
from pharos.checkpoint import Checkpoints
from pharos.errors import PharosError
from pharos.execute import execute
from pharos.storage import Storage
from pharos.trial import Outcome


class Killed(BaseException):
    """The process dies here."""


def run_trial(toy, folder, **changes):
    reports = []
    return execute(toy.spec(folder, **changes), reports.append), reports


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def without_time(folder):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows(folder)]


def newest_weights(folder):
    return Checkpoints(Storage(str(folder / "checkpoints"))).newest().tensors("learners/net/weights/")


def written(run):
    """Waits until no checkpoint is being written: what a kill finds on disk is not left to chance."""
    assert run._saver.wait(30)


def raise_at(epoch_index, error):
    def in_epoch(run, epoch, config):
        if epoch.index == epoch_index:
            raise error

    return in_epoch


def test_a_complete_trial_reports_each_epoch_and_leaves_its_rows_and_a_checkpoint(toy, tmp_path):
    ending, reports = run_trial(toy, tmp_path)
    assert (ending.outcome, ending.reason, ending.fidelity) == (Outcome.COMPLETE, "", 4)
    assert [report.fidelity for report in reports] == [1, 2, 3, 4]
    assert ending.metrics == reports[-1].metrics
    assert set(ending.metrics) == {"error", "loss/net"}
    assert [row["fidelity"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert rows(tmp_path)[-1]["error"] == ending.metrics["error"]
    assert ending.lost_seconds == 0.0
    assert 0 < ending.seconds < 60
    assert ending.started_at <= ending.ended_at
    assert set(newest_weights(tmp_path)) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_there_is_a_checkpoint_at_the_end_even_if_none_was_due(toy, tmp_path):
    run_trial(toy, tmp_path, checkpoint_seconds=1e9)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["00000004"]


def test_the_configuration_is_the_trials_and_is_checked(toy, tmp_path):
    run_trial(toy, tmp_path / "a", config={"epochs": 2, "lr": 0.25})
    assert (toy.started[0].epochs, toy.started[0].lr, toy.started[0].dropout) == (2, 0.25, 0.1)
    ending, _ = run_trial(toy, tmp_path / "b", config={"kind": "nosuch"})
    assert (ending.outcome, ending.reason) == (Outcome.FAILED, "recipe.kind=nosuch must be plain or noisy")


def test_the_same_seed_gives_the_same_trial_and_another_seed_another(toy, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_trial(toy, tmp_path / name, seed=seed)
    assert without_time(tmp_path / "a") == without_time(tmp_path / "b")
    assert without_time(tmp_path / "a") != without_time(tmp_path / "c")


def test_an_error_of_the_recipe_keeps_its_traceback(toy, tmp_path, caplog):
    toy.in_epoch = raise_at(2, KeyError("no such joint"))
    ending, reports = run_trial(toy, tmp_path)
    assert (ending.outcome, ending.fidelity) == (Outcome.FAILED, 2)
    assert ending.reason.startswith("Traceback")
    assert ending.reason.strip().endswith("KeyError: 'no such joint'")
    assert "in train" in ending.reason
    assert ending.metrics == reports[-1].metrics
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_an_error_for_people_is_one_line_without_a_traceback(toy, tmp_path):
    toy.in_epoch = raise_at(0, PharosError("data.root=x: no such folder"))
    assert run_trial(toy, tmp_path)[0].reason == "data.root=x: no such folder"


def test_a_loss_that_is_nan_is_diverged(toy, tmp_path):
    toy.nan_at(1)
    ending, reports = run_trial(toy, tmp_path)
    assert (ending.outcome, ending.fidelity) == (Outcome.DIVERGED, 1)
    assert ending.reason == "error became nan in epoch 2"  # the objective, first of those that are NaN now
    assert [report.fidelity for report in reports] == [1]
    assert [row["fidelity"] for row in rows(tmp_path)] == [1]
    assert ending.metrics["loss/net"] is None  # as JSON has it
    json.dumps(ending.metrics, allow_nan=False)


def test_other_metrics_that_are_nan_are_null_on_disk(toy, tmp_path):
    toy.in_epoch = lambda run, epoch, config: {"extra": math.inf}
    ending, _ = run_trial(toy, tmp_path)
    assert ending.outcome == Outcome.COMPLETE
    assert ending.metrics["extra"] is None
    assert [row["extra"] for row in rows(tmp_path)] == [None] * 4


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), MemoryError("big")]
)
def test_out_of_memory_is_an_outcome_of_its_own(toy, tmp_path, error):
    toy.in_epoch = raise_at(1, error)
    ending, _ = run_trial(toy, tmp_path)
    assert (ending.outcome, ending.fidelity) == (Outcome.OUT_OF_MEMORY, 1)
    assert ending.reason == str(error).split("\n", maxsplit=1)[0]


def test_an_objective_that_is_never_reported_fails_with_what_was(toy, tmp_path):
    ending, _ = run_trial(toy, tmp_path, objective="val/accuracy")
    assert ending.outcome == Outcome.FAILED
    assert ending.reason == "toy never reported its objective val/accuracy; it reported error, loss/net"


def test_a_watched_metric_that_is_never_reported_fails_with_what_was(toy, tmp_path):
    ending, _ = run_trial(toy, tmp_path, watched=["error", "size"])
    assert ending.outcome == Outcome.FAILED
    assert ending.reason == "toy never reported what the search watches, size; it reported error, loss/net"


def test_a_watched_metric_that_is_not_finite_is_a_divergence(toy, tmp_path):
    toy.in_epoch = lambda run, epoch, config: {"size": math.nan if epoch.index == 2 else 1.0}
    ending, reports = run_trial(toy, tmp_path, watched=["size"])
    assert (ending.outcome, ending.fidelity, ending.reason) == (Outcome.DIVERGED, 2, "size became nan in epoch 3")
    assert [report.metrics["size"] for report in reports] == [1.0, 1.0]


def test_a_watched_metric_keeps_its_last_value_and_others_do_not(toy, tmp_path):
    toy.in_epoch = lambda run, epoch, config: {"size": 3.0, "extra": 1.0} if epoch.index == 0 else {}
    ending, reports = run_trial(toy, tmp_path, watched=["size"])
    assert ending.outcome == Outcome.COMPLETE
    assert (ending.metrics["size"], "extra" in ending.metrics) == (3.0, False)
    assert ["size" in report.metrics for report in reports] == [True, False, False, False]


def test_the_memory_that_is_watched_is_the_most_that_was_needed_over_all_attempts(toy, tmp_path):
    def in_epoch(run, epoch, config):
        if epoch.index == 1:
            torch.ones(2**26).sum()  # a quarter of a unit, gone before the report
            run.interrupt()

    toy.in_epoch = in_epoch
    first, before = run_trial(toy, tmp_path, watched=["peak_memory_gb"])
    toy.in_epoch = lambda run, epoch, config: None
    second, after = run_trial(toy, tmp_path, watched=["peak_memory_gb"])
    assert (first.outcome, second.outcome) == (Outcome.INTERRUPTED, Outcome.COMPLETE)
    peaks = [report.metrics["peak_memory_gb"] for report in before + after]
    assert peaks == sorted(peaks)
    assert peaks[1] - peaks[0] > 0.2
    assert second.metrics["peak_memory_gb"] == peaks[-1] == rows(tmp_path)[-1]["peak_memory_gb"]
    assert "peak_memory_gb" not in run_trial(toy, tmp_path / "unwatched")[0].metrics


def test_memory_that_is_watched_and_cannot_be_measured_fails_before_anything_is_trained(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_OWN", tmp_path / "nowhere")
    ending, reports = run_trial(toy, tmp_path, watched=["peak_memory_gb"])
    assert (ending.outcome, ending.reason, reports, toy.started) == (
        Outcome.FAILED,
        "peak_memory_gb cannot be measured here: it takes a GPU, or Linux",
        [],
        [],
    )


@pytest.fixture
def donor(toy, tmp_path):
    """The folder of a trial that was stopped after two epochs of four."""
    toy.in_epoch = lambda run, epoch, config: run.interrupt() if epoch.index == 1 else None
    assert run_trial(toy, tmp_path / "donor", checkpoint_seconds=1e9)[0].fidelity == 2
    toy.in_epoch = lambda run, epoch, config: None
    return tmp_path / "donor"


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_trial_that_starts_from_anothers_checkpoint_goes_on_where_that_was(toy, tmp_path, donor):
    before = files_below(donor)
    clone = {"origin": str(donor), "number": 7}
    ending, reports = run_trial(toy, tmp_path / "same", **clone)
    assert (ending.outcome, [report.fidelity for report in reports]) == (Outcome.COMPLETE, [3, 4])
    assert files_below(donor) == before
    run_trial(toy, tmp_path / "other", config={"lr": 0.3}, **clone)
    assert without_time(tmp_path / "other") != without_time(tmp_path / "same")
    run_trial(toy, tmp_path / "whole")
    assert without_time(tmp_path / "same") == without_time(tmp_path / "whole")[2:]
    expected = newest_weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in newest_weights(tmp_path / "same").items())


def test_a_trial_with_a_checkpoint_of_its_own_no_longer_asks_its_donor(toy, tmp_path, donor):
    clone = {"origin": str(donor), "number": 7, "config": {"lr": 0.3}}
    whole, _ = run_trial(toy, tmp_path / "whole", **clone)
    toy.in_epoch = lambda run, epoch, config: run.interrupt() if epoch.index == 2 else None
    assert run_trial(toy, tmp_path / "parts", **clone)[0].fidelity == 3
    toy.in_epoch = lambda run, epoch, config: None
    # The donor went on meanwhile.
    run_trial(toy, donor)
    (ending, reports) = run_trial(toy, tmp_path / "parts", **clone)
    assert (ending.metrics, [report.fidelity for report in reports]) == (whole.metrics, [4])


def test_a_donors_checkpoint_that_a_dead_attempt_held_is_let_go(toy, tmp_path, donor, monkeypatch):
    before = files_below(donor)
    release = Checkpoints.release

    def dying(self, step, who):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "release", dying)
        with pytest.raises(Killed):
            run_trial(toy, tmp_path / "clone", origin=str(donor), number=7)
    assert release is Checkpoints.release
    assert files_below(donor) != before
    ending, reports = run_trial(toy, tmp_path / "clone", origin=str(donor), number=7)
    assert (ending.outcome, [report.fidelity for report in reports]) == (Outcome.COMPLETE, [3, 4])
    assert files_below(donor) == before


def test_a_trial_whose_donor_has_no_checkpoint_starts_from_nothing_and_says_so(toy, tmp_path, caplog):
    ending, reports = run_trial(toy, tmp_path / "clone", origin=str(tmp_path / "donor"))
    assert (ending.outcome, [report.fidelity for report in reports]) == (Outcome.COMPLETE, [1, 2, 3, 4])
    assert f"there is no checkpoint in {tmp_path}/donor/checkpoints yet; starting from nothing" in caplog.text


def test_an_unknown_family_fails_with_a_suggestion(toy, tmp_path):
    ending, _ = run_trial(toy, tmp_path, family="toi")
    assert (ending.outcome, ending.fidelity) == (Outcome.FAILED, 0)
    assert "did you mean toy?" in ending.reason


@pytest.mark.parametrize("at", ["checkpoint", "metrics"])
def test_a_full_disk_fails_with_the_reason(toy, tmp_path, monkeypatch, at):
    def full(*args):
        raise PharosError("cannot write it: No space left on device")

    monkeypatch.setattr(Storage, "write_bytes" if at == "checkpoint" else "append_line", full)
    ending, _ = run_trial(toy, tmp_path)
    assert (ending.outcome, ending.reason) == (Outcome.FAILED, "cannot write it: No space left on device")


def test_a_loop_left_by_break_fails_with_what_to_write_instead(toy, tmp_path, monkeypatch):
    def train(self, run, config):
        for epoch in run.epochs("fit", 3):
            epoch.report(error=1.0)
            break

    monkeypatch.setattr(type(execute_module.load_recipe("toy")), "train", train)
    ending, _ = run_trial(toy, tmp_path)
    assert ending.outcome == Outcome.FAILED
    assert "left by break" in ending.reason


def test_an_interrupted_trial_goes_on_to_the_same_rows_and_weights(toy, tmp_path):
    run_trial(toy, tmp_path / "whole")
    toy.in_epoch = lambda run, epoch, config: run.interrupt() if epoch.index == 1 else None
    ending, _ = run_trial(toy, tmp_path / "parts", checkpoint_seconds=1e9)
    assert (ending.outcome, ending.fidelity) == (Outcome.INTERRUPTED, 2)
    ending, reports = run_trial(toy, tmp_path / "parts")
    assert (ending.outcome, ending.lost_seconds) == (Outcome.COMPLETE, 0.0)
    assert [report.fidelity for report in reports] == [3, 4]
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")
    expected = newest_weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in newest_weights(tmp_path / "parts").items())


@pytest.mark.parametrize(("mode", "kept"), [("min", [1, 3, 4]), ("max", [2, 3, 4])])
def test_the_two_newest_checkpoints_and_the_best_stay(toy, tmp_path, mode, kept):
    def in_epoch(run, epoch, config):
        written(run)
        return {"error": (1.0, 5.0, 2.0, 3.0)[epoch.index]}

    toy.in_epoch = in_epoch
    run_trial(toy, tmp_path, mode=mode)
    assert sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()) == kept


def test_a_trial_keeps_what_its_storage_says(toy, tmp_path):
    toy.in_epoch = lambda run, epoch, config: written(run)
    run_trial(toy, tmp_path, storage={"keep_last": 1, "keep_best": 0, "keep_every": 2})
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000004"]


def test_what_a_dead_attempt_was_writing_is_gone_when_the_next_one_trains(toy, tmp_path):
    toy.in_epoch = lambda run, epoch, config: run.interrupt() if epoch.index == 1 else None
    run_trial(toy, tmp_path, checkpoint_seconds=1e9)
    left = [f"checkpoints/{name}/rank-00000-000-dead.safetensors" for name in ("00000002", "00000003")]
    for path in left:
        Storage(str(tmp_path)).write_bytes(path, b"half of it")
    seen = []
    toy.in_epoch = lambda run, epoch, config: seen.extend((tmp_path / path).exists() for path in left)
    ending, reports = run_trial(toy, tmp_path, checkpoint_seconds=1e9)
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    assert [report.fidelity for report in reports] == [3, 4]
    assert seen == [False] * 4


@pytest.mark.parametrize("name", ["log", None])
def test_what_a_trial_prints_and_logs_goes_to_its_log_if_it_has_one(toy, tmp_path, capsys, name):
    def in_epoch(run, epoch, config):
        print("printed")
        print("complained", file=sys.stderr)
        if epoch.index == 1:
            raise KeyError("no such joint")

    toy.in_epoch = in_epoch
    handlers = list(logging.getLogger("pharos").handlers)
    execute(toy.spec(tmp_path), lambda report: None, log=name)
    print("afterwards")
    assert logging.getLogger("pharos").handlers == handlers
    out, err = capsys.readouterr()
    if name is None:
        assert not (tmp_path / "log").exists()
        assert (out, err) == ("printed\n" * 2 + "afterwards\n", "complained\n" * 2)
        return
    assert (out, err) == ("afterwards\n", "")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:5] == ["printed", "complained", "printed", "complained", "trial 00000 failed"]
    assert lines[-2:] == ["KeyError: 'no such joint'", ""]


@pytest.mark.parametrize("saved", [0, 1, 2])
def test_rows_past_the_checkpoint_are_dropped_and_come_again(toy, tmp_path, monkeypatch, saved):
    run_trial(toy, tmp_path / "whole")

    def in_epoch(run, epoch, config):
        if epoch.index == saved - 1:
            run._checkpoint_seconds = 0.0
        elif epoch.index >= saved:
            run._checkpoint_seconds = 1e9
        written(run)
        if epoch.index == 3:
            raise Killed

    toy.in_epoch = in_epoch
    with pytest.raises(Killed):
        run_trial(toy, tmp_path / "parts", checkpoint_seconds=1e9)
    assert [row["fidelity"] for row in rows(tmp_path / "parts")] == [1, 2, 3]
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"fidelity": 4, "err')  # and the line it died in
    toy.in_epoch = lambda run, epoch, config: None
    ending, reports = run_trial(toy, tmp_path / "parts")
    assert ending.outcome == Outcome.COMPLETE
    assert [report.fidelity for report in reports] == list(range(saved + 1, 5))
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")


def test_a_row_torn_before_any_was_whole_does_not_spoil_the_next(toy, tmp_path):
    run_trial(toy, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "metrics.jsonl").write_text('{"fidelity": 1, "sec')
    assert run_trial(toy, tmp_path / "parts")[0].outcome == Outcome.COMPLETE
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")


def test_seconds_past_the_checkpoint_of_a_killed_attempt_count_as_lost(toy, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])

    def in_epoch(run, epoch, config):
        now[0] += 10.0
        written(run)
        if epoch.index == 3:
            raise Killed

    toy.in_epoch = in_epoch
    with pytest.raises(Killed):
        run_trial(toy, tmp_path, checkpoint_seconds=20.0)
    # Saved after two epochs, 20 s; the third was reported at 30 s.
    toy.in_epoch = lambda run, epoch, config: now.__setitem__(0, now[0] + 10.0)
    ending, reports = run_trial(toy, tmp_path, checkpoint_seconds=20.0)
    assert [(report.fidelity, report.seconds) for report in reports] == [(3, 30.0), (4, 40.0)]
    assert {report.lost_seconds for report in reports} == {10.0}
    assert (ending.seconds, ending.lost_seconds) == (40.0, 10.0)


def test_a_damaged_checkpoint_is_passed_over_and_the_trial_still_ends_the_same(toy, tmp_path, caplog):
    run_trial(toy, tmp_path / "whole")

    def in_epoch(run, epoch, config):
        written(run)
        if epoch.index == 2:
            run.interrupt()

    toy.in_epoch = in_epoch
    run_trial(toy, tmp_path / "parts")
    newest = max((tmp_path / "parts" / "checkpoints").iterdir())
    assert newest.name == "00000003"
    (tensors,) = newest.glob("rank-00000-000-*.safetensors")
    tensors.write_bytes(b"")
    toy.in_epoch = lambda run, epoch, config: None
    ending, reports = run_trial(toy, tmp_path / "parts")
    assert ending.outcome == Outcome.COMPLETE
    assert [report.fidelity for report in reports] == [3, 4]
    assert str(newest) in caplog.text
    assert without_time(tmp_path / "parts") == without_time(tmp_path / "whole")


def test_a_run_can_be_stopped_from_elsewhere_before_it_trains(toy, tmp_path):
    ending = execute(toy.spec(tmp_path), lambda report: None, lambda run: run.stop(Outcome.CANCELLED, "by hand"))
    assert (ending.outcome, ending.reason, ending.fidelity) == (Outcome.CANCELLED, "by hand", 0)
    assert ending.started_at > 0 or ending.metrics == {}


def test_two_processes_never_train_one_trial(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(execute_module, "_TAKE_OVER_SECONDS", 0.1)
    storage = Storage(str(tmp_path))
    lock = storage.lock()
    ending, _ = run_trial(toy, tmp_path)
    assert ending.outcome == Outcome.FAILED
    assert "another process" in ending.reason
    assert toy.started == []
    storage.unlock(lock)
    assert run_trial(toy, tmp_path)[0].outcome == Outcome.COMPLETE


def test_bf16_trains_too(toy, tmp_path):
    exact, _ = run_trial(toy, tmp_path / "fp32")
    rough, _ = run_trial(toy, tmp_path / "bf16", engine={"precision": "bf16"})
    assert rough.outcome == Outcome.COMPLETE
    assert rough.metrics["error"] != exact.metrics["error"]
    assert rough.metrics["error"] == pytest.approx(exact.metrics["error"], rel=0.2)


def test_trials_of_one_process_leave_nothing_to_each_other(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_cache", OrderedDict())
    run_trial(toy, tmp_path / "alone")
    run_trial(toy, tmp_path / "between", seed=77, config={"dropout": 0.5})
    run_trial(toy, tmp_path / "after")
    assert without_time(tmp_path / "after") == without_time(tmp_path / "alone")
