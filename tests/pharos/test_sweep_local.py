"""Whole sweeps on the local backend: nothing runs twice, nothing is lost, and no driver's death matters."""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from optuna.storages.journal import JournalFileBackend

from pharos import summary as summary_module
from pharos import sweep as sweep_module
from pharos.backends.local import run_sweep
from pharos.checkpoint import Checkpoints
from pharos.console import Console
from pharos.errors import InputError
from pharos.run import Run
from pharos.storage import Storage
from pharos.study import read_study
from pharos.trial import Ending, Outcome, Report


class Quiet(Console):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def note(self, text):
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _no_git(monkeypatch):
    monkeypatch.setattr(summary_module, "_revision", lambda: "abc")


def start(toy, *overrides):
    common = ["backend=local", "tracking=none", f"storage.url={toy.url}", "sampler=random", "scale=tiny", "trials=5"]
    return sweep_module.start("toy", [*common, *overrides], Quiet())


def reopen(toy, name, *overrides, extend=False):
    return sweep_module.reopen(name, [f"storage.url={toy.url}", *overrides], Quiet(), extend)


def run(sweep):
    run_sweep(sweep)
    return sweep.close()


def outcomes(sweep):
    return [sweep.study.records[number].outcome for number in sorted(sweep.study.records)]


def journal_of(sweep):
    return Path(sweep.storage.path("study.journal"))


def values_of(sweep):
    """The objective of each trial, of those that are complete."""
    return {number: r.values[0] if r.values else None for number, r in sweep.study.records.items()}


def records_on_disk(sweep):
    return read_study(sweep.storage, sweep.name, None)[0]


def test_a_sweep_runs_the_trials_asked_for_and_sums_them_up(toy):
    sweep = start(toy, "scheduler=none")
    summary = run(sweep)
    assert outcomes(sweep) == [Outcome.COMPLETE] * 5
    assert len(toy.started) == 5
    assert sweep.finished
    records = sweep.study.records
    assert records[0].params == {"recipe.lr": 0.1, "recipe.kind": "plain"}
    assert records[1].params == {"recipe.lr": 0.1, "recipe.kind": "noisy", "recipe.noise": 0.25}
    assert [config.lr for config in toy.started] == [records[number].params["recipe.lr"] for number in range(5)]
    assert summary["trials"] == {"complete": 5}
    assert json.loads(Path(sweep.storage.path("summary.json")).read_text()) == summary


def test_the_files_of_a_trial_say_what_it_was(toy):
    sweep = start(toy, "seed=3", "trials=2", "scheduler=none")
    run(sweep)
    assert sweep.storage.list("trials") == ["00000", "00001"]
    trial = yaml.safe_load(sweep.storage.read_bytes("trials/00001/trial.yaml"))
    assert trial["params"] == sweep.study.records[1].params
    assert trial["seed"] == 3
    assert (trial["config"]["noise"], trial["config"]["epochs"]) == (0.25, 2)
    assert len(sweep.storage.read_lines("trials/00001/metrics.jsonl")) == 2
    assert Checkpoints(sweep.storage.sub("trials/00001/checkpoints")).newest().step == 2


def test_the_summary_has_the_fields_that_its_docstring_names(toy):
    sweep = start(toy, "scheduler=none")
    summary = run(sweep)
    assert set(summary) == {
        "sweep",
        "family",
        "objective",
        "constraints",
        "trials",
        "stopped",
        "best",
        "paper_values",
        "pareto",
        "finalists",
        "evidence",
        "seconds",
        "cpu_hours",
        "versions",
    }
    assert (summary["sweep"], summary["family"], summary["pareto"]) == (sweep.name, "toy", None)
    assert summary["objective"] == {"metric": "error", "mode": "min"}
    assert (summary["constraints"], summary["evidence"]) == ({}, {})
    assert (summary["stopped"], summary["finalists"]) == (None, None)
    best, paper = summary["best"], summary["paper_values"]
    for result in (best, paper):
        assert set(result) == {"trial", "outcome", "fidelity", "values", "params", "checkpoint", "metrics"}
    values = values_of(sweep)
    assert int(best["trial"]) == min(values, key=values.get)
    assert best["values"] == {"error": min(values.values())} == {"error": best["metrics"]["error"]}
    assert best["checkpoint"] == sweep.storage.path("trials", best["trial"], "checkpoints", "00000002")
    assert paper["trial"] == "00000"
    assert (best["outcome"], best["fidelity"]) == ("complete", 2)
    assert set(summary["cpu_hours"]) == {"useful", "pruned", "lost", "waiting"}
    assert summary["versions"]["code"] == "abc"
    json.dumps(summary, allow_nan=False)


def test_time_goes_to_its_purpose(toy, monkeypatch):
    sweep = start(toy, "trials=4", "resources.cpus_per_worker=2")
    sweep.open(slots=1)
    endings = [
        Ending(Outcome.COMPLETE, fidelity=2, metrics={"error": 1.0}, seconds=3600.0),
        Ending(Outcome.DIVERGED, seconds=360.0, lost_seconds=360.0),
        Ending(Outcome.FAILED, seconds=180.0),
    ]
    for ending in endings:
        sweep.on_end(sweep.next_trial().number, ending)
    number = sweep.next_trial().number
    sweep.on_report(number, Report(1, {"error": 9.0}, 720.0))
    sweep.study.tell(number, Ending(Outcome.PRUNED, fidelity=1, metrics={"error": 9.0}, seconds=720.0))
    hours = sweep.close()["cpu_hours"]
    assert hours == {"useful": 2.0, "pruned": 0.4, "lost": 0.5, "waiting": 0.0}


def test_asha_stops_some_early_and_never_the_papers_values(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": config.lr}
    sweep = start(toy, "scale=small", "trials=12", "scheduler.grace=0.25")
    summary = run(sweep)
    counts = summary["trials"]
    assert counts["complete"] + counts["pruned"] == 12
    assert counts["pruned"] >= 3
    complete = {n for n, record in sweep.study.records.items() if record.outcome == Outcome.COMPLETE}
    assert 0 in complete
    values = {number: record.params["recipe.lr"] for number, record in sweep.study.records.items()}
    assert min(values, key=values.get) in complete
    for number, record in sweep.study.records.items():
        assert record.fidelity in ((4,) if number in complete else (1, 3))  # the rungs
        assert len(sweep.storage.read_lines(f"trials/{number:05d}/metrics.jsonl")) == record.fidelity
        assert (record.values is None) == (number not in complete)
    assert summary["best"]["outcome"] == "complete"


def test_a_maximised_objective_prefers_large_values(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": config.lr}
    sweep = start(toy, "scale=small", "trials=12", "scheduler.grace=0.25", "objective.mode=max")
    summary = run(sweep)
    lrs = {number: record.params["recipe.lr"] for number, record in sweep.study.records.items()}
    assert int(summary["best"]["trial"]) == max(lrs, key=lrs.get)
    assert summary["trials"]["pruned"] >= 1
    pruned = [lrs[n] for n, record in sweep.study.records.items() if record.outcome == Outcome.PRUNED]
    assert max(pruned) < summary["best"]["values"]["error"]


def test_a_trial_that_turns_nan_is_diverged_and_the_sweep_goes_on(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": math.nan} if config.kind == "noisy" else None
    sweep = start(toy, "scheduler=none")
    summary = run(sweep)
    kinds = [record.params["recipe.kind"] for record in sweep.study.records.values()]
    assert outcomes(sweep) == [Outcome.DIVERGED if kind == "noisy" else Outcome.COMPLETE for kind in kinds]
    assert summary["trials"]["diverged"] >= 1
    assert summary["trials"]["complete"] >= 1


def test_a_trial_that_raises_is_failed_and_the_sweep_goes_on(toy):
    def in_epoch(run, epoch, config):
        if len(toy.started) == 2:
            raise ValueError("broken head")

    toy.in_epoch = in_epoch
    sweep = start(toy, "scheduler=none")
    run(sweep)
    assert outcomes(sweep).count(Outcome.FAILED) == 1
    assert "broken head" in sweep.study.records[1].reason
    assert any("trial 00001 failed" in line and "broken head" in line for line in sweep.listener.lines)


def test_a_lost_trial_is_started_again_until_it_was_lost_too_often(toy):
    sweep = start(toy, "retries=2", "trials=2")
    sweep.open(slots=1)
    params = None
    for attempt in range(1, 3):
        spec = sweep.next_trial()
        params = params or spec.params
        assert (spec.number, spec.params) == (0, params)
        sweep.on_report(0, Report(1, {"error": 1.0}, 5.0))
        sweep.on_lost(0, "killed by the system")
        record = sweep.study.records[0]
        assert (record.outcome, record.attempts) == (Outcome.INTERRUPTED, attempt)
        assert not sweep.finished
    sweep.next_trial()
    sweep.on_lost(0, "killed by the system")
    assert (record.outcome, record.attempts) == (Outcome.FAILED, 3)
    assert record.reason == "lost its process 3 times; last: killed by the system"
    assert sweep.next_trial().number == 1
    sweep.on_lost(0, "again")  # what is final stays final
    assert record.outcome == Outcome.FAILED
    sweep.close()
    assert records_on_disk(sweep)[0].outcome == Outcome.FAILED


def test_losses_count_over_drivers_and_the_last_outcome_may_be_out_of_memory(toy):
    sweep = start(toy, "retries=1", "trials=1")
    for _ in range(2):
        sweep.open(slots=1)
        sweep.next_trial()
        sweep.on_lost(0, "memory", Outcome.OUT_OF_MEMORY)
        sweep.close()
        sweep = reopen(toy, sweep.name)
    assert outcomes(sweep) == [Outcome.OUT_OF_MEMORY]
    assert sweep.next_trial() is None
    assert sweep.finished
    sweep.close()


def test_no_retries_means_the_first_loss_is_the_end(toy):
    sweep = start(toy, "retries=0", "trials=1")
    sweep.open(slots=1)
    sweep.next_trial()
    sweep.on_lost(0, "killed")
    assert outcomes(sweep) == [Outcome.FAILED]
    sweep.close()


def test_an_interrupted_sweep_goes_on_without_running_anything_twice(toy):
    epochs, sweeps = [], []

    def in_epoch(run, epoch, config):
        epochs.append((len(sweeps[0].study.records) if len(sweeps) == 1 else None, config.lr, epoch.index))
        if len(epochs) == 7:  # the fourth trial's first epoch
            sweeps[0].interrupt()

    toy.in_epoch = in_epoch
    sweeps.append(start(toy, "scheduler=none"))
    first = run(sweeps[0])
    assert first["trials"] == {"complete": 3, "interrupted": 1}
    assert sweeps[0].interrupted
    before = dict(sweeps[0].study.records)
    sweeps.append(reopen(toy, sweeps[0].name))
    second = run(sweeps[1])
    assert second["trials"] == {"complete": 5}
    assert len(toy.started) == 6  # the interrupted one twice, the others once
    assert len({(lr, index) for _, lr, index in epochs if lr != 0.1}) == len([1 for _, lr, _ in epochs if lr != 0.1])
    assert len(epochs) == 10
    after = sweeps[1].study.records
    assert all(after[number].values == before[number].values for number in (0, 1, 2))
    assert after[3].params == before[3].params
    assert len(sweeps[1].storage.read_lines("trials/00003/metrics.jsonl")) == 2
    assert second["seconds"] >= first["seconds"]


def test_an_interruption_between_two_trials_starts_no_more(toy):
    sweep = start(toy)
    sweep.interrupt()
    assert run(sweep)["trials"] == {}
    assert toy.started == []
    assert sweep.finished


def test_a_finished_sweep_that_is_reopened_runs_nothing(toy):
    sweep = start(toy)
    first = run(sweep)
    started = len(toy.started)
    second = run(reopen(toy, sweep.name))
    assert len(toy.started) == started
    for part in ("trials", "best", "paper_values"):
        assert second[part] == first[part]


def test_extending_adds_trials_and_keeps_the_finished(toy):
    sweep = start(toy, "trials=3", "scheduler=none")
    run(sweep)
    with pytest.raises(InputError, match="--extend needs more trials than the 3"):
        reopen(toy, sweep.name, extend=True)
    with pytest.raises(InputError, match="--resume keeps the 3 trials asked for"):
        reopen(toy, sweep.name, "trials=5")
    extended = reopen(toy, sweep.name, "trials=+2", extend=True)
    assert run(extended)["trials"] == {"complete": 5}
    assert len(toy.started) == 5
    params = [tuple(sorted(record.params.items())) for record in extended.study.records.values()]
    assert len(set(params)) == 5  # the second driver does not draw the first one's numbers again
    assert yaml.safe_load(extended.storage.read_bytes("sweep.yaml"))["settings"]["trials"] == 5
    run(reopen(toy, sweep.name))  # and that is now what is asked for
    assert len(toy.started) == 5


def test_a_sweep_is_found_by_its_name_or_by_its_path(toy):
    sweep = start(toy)
    sweep.close()
    for name in (sweep.name, sweep.storage.root, sweep.storage.root + "/"):
        found = reopen(toy, name)
        assert (found.name, found.storage.root.rstrip("/")) == (sweep.name, sweep.storage.root)
        found.close()


def test_where_a_sweep_is_looked_for_changes_nothing_of_it(toy, tmp_path):
    sweep = start(toy, "trials=1")
    run(sweep)
    before = sweep.storage.read_bytes("sweep.yaml")
    shutil.move(toy.url, tmp_path / "moved")
    moved = sweep_module.reopen(sweep.name, [f"storage.url={tmp_path / 'moved'}"], Quiet())
    assert moved.storage.read_bytes("sweep.yaml") == before
    assert moved.settings.storage.url == toy.url
    assert run(moved)["trials"] == {"complete": 1}


def test_an_unknown_sweep_is_one_line_that_names_those_there_are(toy):
    with pytest.raises(InputError, match="there is none"):
        reopen(toy, "toy-nowhere")
    sweep = start(toy)
    sweep.close()
    with pytest.raises(InputError, match=f"toy-nowhere: nothing of that name in .*there are {sweep.name}") as error:
        reopen(toy, "toy-nowhere")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "just text", "settings: {}"])
def test_a_spoilt_sweep_file_is_one_line(toy, text):
    sweep = start(toy)
    sweep.close()
    sweep.storage.write_bytes("sweep.yaml", text.encode())
    with pytest.raises(InputError, match=r"sweep\.yaml: not ") as error:
        reopen(toy, sweep.name)
    assert "\n" not in str(error.value)


def test_two_drivers_of_one_sweep_are_refused(toy):
    sweep = start(toy)
    with pytest.raises(InputError, match="another process"):
        reopen(toy, sweep.name)
    sweep.close()


def test_a_request_that_is_wrong_leaves_nothing_behind(toy):
    with pytest.raises(InputError):
        start(toy, "trials=0")
    assert not Path(toy.url).exists()


def test_a_storage_that_cannot_be_written_is_refused_before_anything_starts(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        start(toy, f"storage.url={tmp_path / 'file' / 'sweeps'}")


def test_a_sweep_keeps_the_checkpoints_of_so_many_of_its_best_trials(toy):
    sweep = start(toy, "trials=4", "scheduler=none", "storage.keep_trials=2", "storage.keep_last=1")
    summary = run(sweep)
    values = values_of(sweep)
    best = sorted(values, key=values.get)[:2]
    for number in values:
        steps = sweep.storage.list(f"trials/{number:05d}/checkpoints")
        assert bool(steps) == (number in best)
        assert len(sweep.storage.read_lines(f"trials/{number:05d}/metrics.jsonl")) == 2
    assert int(summary["best"]["trial"]) == best[0]
    assert list(Path(summary["best"]["checkpoint"]).glob("manifest-*.json"))


def test_discarding_takes_back_a_sweep_without_trials_only(toy):
    sweep = start(toy)
    sweep.discard()
    assert not sweep.storage.exists()
    sweep = start(toy)
    sweep.next_trial()
    sweep.discard()
    assert sweep.storage.exists("study.journal")
    reopen(toy, sweep.name).close()  # and the lock was given back


class Killed(BaseException):
    """The driver dies here."""


def assert_whole(sweep, trials):
    assert run(sweep)["trials"].keys() <= {"complete", "pruned"}
    assert sorted(sweep.study.records) == list(range(trials))
    assert all(record.outcome.is_final for record in sweep.study.records.values())
    first = [sweep.study.records[number].params for number in (0, 1)]
    assert first == sweep.plan.first_trials
    on_disk = records_on_disk(sweep)
    assert {n: r.outcome for n, r in on_disk.items()} == {n: r.outcome for n, r in sweep.study.records.items()}


def test_a_new_trial_takes_up_no_folder_of_a_trial_that_the_study_has_lost(toy):
    sweep = start(toy, "trials=3", "scheduler=none")
    run(sweep)
    whole = journal_of(sweep).read_bytes()
    lines = whole.splitlines(keepends=True)
    count = next(n for n in range(len(lines)) if b'"number":2' in lines[n].replace(b" ", b""))
    journal_of(sweep).write_bytes(b"".join(lines[:count]))
    before = sweep.storage.read_bytes("trials/00002/metrics.jsonl")
    with pytest.raises(InputError, match="it does not know the trials 00002, which have folders") as error:
        reopen(toy, sweep.name)
    assert "\n" not in str(error.value)
    assert sweep.storage.read_bytes("trials/00002/metrics.jsonl") == before
    journal_of(sweep).write_bytes(whole)
    reopen(toy, sweep.name).close()  # the lock was given back


def forget_unknown(folder):
    """Removes the folders of trials that the journal does not know: it had them before they had a folder."""
    try:
        known = read_study(Storage(str(folder)), folder.name, None)[0]
    except InputError:  # not even a study
        known = {}
    for trial in (folder / "trials").iterdir():
        if int(trial.name) not in known:
            shutil.rmtree(trial)


def known_to(folder):
    """The trials that a sweep's study knows."""
    try:
        return read_study(Storage(str(folder)), folder.name, None)[0]
    except InputError:  # it has not begun
        return ()


def drop_folders(folder, keep):
    for trial in (folder / "trials").iterdir():
        if int(trial.name) not in keep:
            shutil.rmtree(trial)


@pytest.mark.parametrize("folders", ["kept", "gone"])
def test_a_driver_killed_between_any_two_lines_of_its_journal_is_taken_up(toy, folders):
    sweep = start(toy, "trials=3", "scheduler.grace=0.5")
    run(sweep)
    values = values_of(sweep)
    lines = journal_of(sweep).read_bytes().splitlines(keepends=True)
    copy = Path(toy.url) / "copy"
    for count in range(0, len(lines), 1 if folders == "kept" else 6):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sweep.storage.root, copy)
        (copy / "study.journal").write_bytes(b"".join(lines[:count]))
        forget_unknown(copy)
        again = reopen(toy, "copy")
        if folders == "gone":
            shutil.rmtree(copy / "trials", ignore_errors=True)
        assert_whole(again, 3)
        assert values_of(again)[0] == values[0]


def test_a_driver_that_pauses_trials_is_taken_up_wherever_it_was_killed_and_trains_nothing_twice(toy):
    trained = []

    def in_epoch(run, epoch, config):
        trained.append((config.lr, config.kind, config.noise, epoch.index))
        return {"error": config.lr}

    toy.in_epoch = in_epoch
    sweep = start(toy, "trials=4", "scale=small", "scheduler=promotion", "scheduler.grace=0.25", "checkpoint_seconds=0")
    run(sweep)
    assert outcomes(sweep).count(Outcome.COMPLETE) >= 2
    assert len(trained) == len(set(trained)) == sum(record.fidelity for record in sweep.study.records.values())
    lines = journal_of(sweep).read_bytes().splitlines(keepends=True)
    copy = Path(toy.url) / "copy"
    paused = set()
    for count in range(0, len(lines), 8):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sweep.storage.root, copy)
        (copy / "study.journal").write_bytes(b"".join(lines[:count]))
        forget_unknown(copy)
        again = reopen(toy, "copy")
        paused.add(len(again.study.having(Outcome.PAUSED)))
        trained.clear()
        assert_whole(again, 4)
        assert len(trained) == len(set(trained))
    assert max(paused) >= 2


@pytest.mark.parametrize("kill_at", range(1, 50, 8))
def test_a_driver_killed_at_a_write_of_its_journal_is_taken_up_with_the_same_results(toy, kill_at):
    whole = start(toy, "trials=3", "scheduler=none")
    run(whole)
    sweep = start(toy, "trials=3", "scheduler=none")
    append, left = JournalFileBackend.append_logs, [kill_at - 1]

    def dying(self, logs):
        # What is written at once may still be cut off after any line of it.
        if kept := logs[: left[0]]:
            append(self, kept)
        left[0] -= len(kept)
        if kept != logs:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", dying)
        with pytest.raises(Killed):
            run_sweep(sweep)
    sweep.study.close()
    again = reopen(toy, sweep.name)
    assert_whole(again, 3)
    for number in (0, 1):
        assert again.study.records[number].values == whole.study.records[number].values
        assert again.study.records[number].curve == whole.study.records[number].curve


def test_a_stop_that_comes_from_a_signal_reaches_the_run_at_its_next_report(toy, monkeypatch):
    seen = []
    interrupt = Run.interrupt
    monkeypatch.setattr(Run, "interrupt", lambda self: seen.append(self.fidelity) or interrupt(self))
    sweep = start(toy, "trials=1")
    toy.in_epoch = lambda run, epoch, config: sweep.interrupt() if epoch.index == 0 else None
    run(sweep)
    assert seen == [0]
    assert outcomes(sweep) == [Outcome.INTERRUPTED]
    assert Checkpoints(Storage(sweep.storage.path("trials/00000/checkpoints"))).newest().step == 1


def test_time_lost_in_several_attempts_adds_up(toy):
    sweep = sweep_module.start("toy", [f"storage.url={toy.url}", "trials=1", "tracking=none"], Console())
    sweep.open(1)
    for lost in (0.0, 10.0, 5.0):
        spec = sweep.next_trial()
        assert spec is not None
        sweep.on_report(spec.number, Report(1, {"error": 1.0}, seconds=1.0, lost_seconds=lost))
        sweep.on_report(spec.number, Report(2, {"error": 1.0}, seconds=2.0, lost_seconds=lost))
        sweep.on_lost(spec.number, "killed")
    assert sweep.study.records[0].lost_seconds == 15.0
    sweep.close()


def test_a_resumed_sweep_without_trials_is_not_discarded(toy):
    sweep = sweep_module.start("toy", [f"storage.url={toy.url}", "tracking=none"], Console())
    sweep.close()
    again = sweep_module.reopen(sweep.name, [f"storage.url={toy.url}"], Console())
    again.discard()
    assert again.storage.exists("sweep.yaml")


def test_trials_that_search_their_own_length_know_it(toy):
    settings = [f"storage.url={toy.url}", "tracking=none", "recipe.epochs=range(2, 9)", "first_trials=[]"]
    sweep = sweep_module.start("toy", settings, Console())
    sweep.open(1)
    spec = sweep.next_trial()
    assert spec is not None
    assert spec.max_fidelity == spec.params["recipe.epochs"]
    sweep.close()
