"""The study: one truthful record, whatever happens to its driver."""

import json
import tempfile
from pathlib import Path

import optuna
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pharos.errors import InputError
from pharos.space import parse_space
from pharos.storage import Storage
from pharos.study import Study, Usage, best_record, count_outcomes, read_study
from pharos.trial import Ending, Outcome

SPACE = parse_space(
    {
        "recipe.lr": "tag(log, interval(1e-4, 1e-1))",
        "recipe.kind": "choice(plain, noisy)",
        "recipe.noise": {"sweep": "interval(0, 1)", "when": {"recipe.kind": "noisy"}},
    },
    "test",
)
DEFAULTS = {"recipe.lr": 1e-3, "recipe.kind": "plain", "recipe.noise": 0.5}
FIRST = [{"recipe.lr": 1e-3, "recipe.kind": "plain"}, {"recipe.lr": 1e-3, "recipe.kind": "noisy", "recipe.noise": 0.5}]
FINAL = [outcome for outcome in Outcome if outcome.is_final]


def open_study(folder, mode="min", sampler=None):
    return Study(Path(folder), mode, lambda known: sampler or optuna.samplers.RandomSampler(known))


def optuna_study(folder):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(Path(folder) / "study.journal")))
    return optuna.load_study(study_name="sweep", storage=storage)


def optuna_trials(folder):
    return optuna_study(folder).trials


def read(folder):
    """What somebody who has not the study open reads of it: its trials and its usage."""
    return read_study(Storage(str(folder)), "toy-sweep", None)


def states(folder):
    return [trial.state for trial in optuna_trials(folder)]


def ask(study):
    return study.ask(SPACE, DEFAULTS)


def run_to(study, outcome, value=1.0, fidelity=3, reported=None):
    """Asks for a trial and ends it; returns its number."""
    number = ask(study).number
    for at in range(1, fidelity + 1):
        study.report(number, at, reported if reported is not None else value + 10 - at)
    ending = Ending(outcome, "why", fidelity, {"error": value}, seconds=2.5, process=7)
    study.records[number].lost_seconds = 0.5
    study.tell(number, ending, "error")
    return number


@pytest.fixture
def study(tmp_path):
    study = open_study(tmp_path)
    yield study
    study.close()


@pytest.mark.parametrize(
    ("outcome", "state", "value"),
    [
        (Outcome.COMPLETE, TrialState.COMPLETE, 1.0),
        (Outcome.PRUNED, TrialState.PRUNED, 8.0),
        (Outcome.DIVERGED, TrialState.PRUNED, None),
        (Outcome.OUT_OF_MEMORY, TrialState.PRUNED, None),
        (Outcome.FAILED, TrialState.FAIL, None),
        (Outcome.CANCELLED, TrialState.FAIL, None),
    ],
)
def test_each_outcome_has_its_state_its_value_and_its_constraint(study, tmp_path, outcome, state, value):
    run_to(study, outcome)
    (trial,) = optuna_trials(tmp_path)
    assert (trial.state, trial.user_attrs["outcome"]) == (state, outcome)
    assert trial.value == value
    assert trial.intermediate_values == {1: 10.0, 2: 9.0, 3: 8.0}
    infeasible = outcome in (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)
    assert [constraint > 0 for constraint in trial.constraints.values()] == [True] * infeasible
    assert set(FINAL) == {*map(Outcome, ("complete", "pruned", "diverged", "out_of_memory", "failed", "cancelled"))}


def test_what_is_known_of_a_trial_reads_back_as_it_was(study, tmp_path):
    number = run_to(study, Outcome.PRUNED)
    before = study.records[number]
    records, usage = read(tmp_path)
    assert study.mode == "min"
    assert optuna_study(tmp_path).direction == optuna.study.StudyDirection.MINIMIZE
    assert records == {number: before}
    assert usage == Usage()
    assert (before.reason, before.fidelity, before.metrics) == ("why", 3, {"error": 1.0})
    assert (before.seconds, before.lost_seconds, before.curve) == (2.5, 0.5, {1: 10.0, 2: 9.0, 3: 8.0})


def test_a_sampler_is_never_told_a_value_at_low_fidelity_as_if_it_were_final(study, tmp_path):
    for outcome in FINAL:
        run_to(study, outcome, value=-100.0, reported=-99.0)
    run_to(study, Outcome.COMPLETE, value=5.0)
    complete = [trial.value for trial in optuna_trials(tmp_path) if trial.state == TrialState.COMPLETE]
    assert complete == [-100.0, 5.0]


def test_infeasible_regions_turn_the_sampler_away(tmp_path):
    """Every trial with a large learning rate diverges; TPE must then mostly ask for small ones."""
    space = parse_space({"recipe.lr": "interval(0, 1)"}, "test")
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=8)
    study = open_study(tmp_path, sampler=sampler)
    asked = []
    for _ in range(40):
        record = study.ask(space, {})
        asked.append(record.params["recipe.lr"])
        diverged = asked[-1] > 0.3
        outcome = Outcome.DIVERGED if diverged else Outcome.COMPLETE
        study.tell(record.number, Ending(outcome, fidelity=1, metrics={"error": 1.0}), "error")
    study.close()
    assert sum(lr > 0.3 for lr in asked[:8]) >= 4
    assert sum(lr > 0.3 for lr in asked[20:]) <= 8


def test_a_stopped_trial_is_never_the_best(study):
    run_to(study, Outcome.PRUNED, value=-5.0, reported=-5.0)
    run_to(study, Outcome.DIVERGED, value=-9.0)
    assert best_record(study.records, "min") is None
    worst, best = run_to(study, Outcome.COMPLETE, value=3.0), run_to(study, Outcome.COMPLETE, value=-1.0)
    assert best_record(study.records, "min").number == best
    assert best_record(study.records, "max").number == worst


def test_a_value_of_zero_is_compared_as_zero(study):
    for value in (0.5, 0.0, -0.5):
        run_to(study, Outcome.COMPLETE, value=value)
    assert best_record(study.records, "min").value == -0.5
    assert best_record(study.records, "max").value == 0.5


def test_maximising_is_recorded(tmp_path):
    study = open_study(tmp_path, "max")
    run_to(study, Outcome.COMPLETE)
    assert study.mode == "max"
    study.close()
    assert optuna_study(tmp_path).direction == optuna.study.StudyDirection.MAXIMIZE


def test_an_interrupted_trial_is_handed_out_first_with_its_number_and_values(study):
    numbers = [ask(study).number for _ in range(3)]
    params = {number: dict(study.records[number].params) for number in numbers}
    study.report(1, 1, 4.0)
    study.interrupt(1)
    study.interrupt(0)
    for expected in (0, 1):
        record = ask(study)
        assert (record.number, record.params, record.outcome) == (expected, params[expected], Outcome.RUNNING)
    assert study.records[1].curve == {1: 4.0}
    assert ask(study).number == 3


def test_first_trials_come_first_and_once_over_any_reopening(tmp_path):
    for opening in range(3):
        study = open_study(tmp_path)
        study.enqueue(FIRST)
        study.enqueue(FIRST)
        if opening == 0:
            assert ask(study).params == FIRST[0]
            study.interrupt(0)
        study.close()
    study = open_study(tmp_path)
    study.enqueue(FIRST)
    asked = [ask(study) for _ in range(6)]
    study.close()
    assert [record.params for record in asked[:2]] == FIRST
    assert [record.number for record in asked] == list(range(6))
    assert all(record.params not in FIRST for record in asked[2:])


def test_first_trials_that_wait_are_no_trials_yet(study, tmp_path):
    study.enqueue(FIRST)
    assert study.records == {}
    assert read(tmp_path)[0] == {}


def test_a_repeated_report_changes_nothing(study, tmp_path):
    ask(study)
    for value in (3.0, 4.0):
        study.report(0, 1, value)
    study.report(0, 2, 2.5)
    assert study.records[0].curve == {1: 3.0, 2: 2.5}
    assert study.records[0].fidelity == 2
    assert optuna_trials(tmp_path)[0].intermediate_values == {1: 3.0, 2: 2.5}


def test_losses_are_counted_over_reopening(tmp_path):
    for count in (1, 2, 3):
        study = open_study(tmp_path)
        assert ask(study).number == 0
        assert study.lose(0) == count
        assert study.records[0].outcome == Outcome.INTERRUPTED
        study.close()


def test_a_running_trial_of_a_dead_driver_is_interrupted_when_the_next_opens(tmp_path):
    study = open_study(tmp_path)
    params = ask(study).params
    study.close()
    assert states(tmp_path) == [TrialState.RUNNING]
    study = open_study(tmp_path)
    assert study.records[0].outcome == Outcome.INTERRUPTED
    assert states(tmp_path) == [TrialState.WAITING]
    assert ask(study).params == params
    study.close()


def test_a_torn_last_line_is_mended(tmp_path):
    study = open_study(tmp_path)
    run_to(study, Outcome.COMPLETE)
    study.close()
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    last = whole[:-1].rsplit(b"\n", 1)[1]
    for cut in (1, len(last) // 2, len(last)):
        journal.write_bytes(whole + last[:cut])
        study = open_study(tmp_path)
        assert study.records[0].outcome == Outcome.COMPLETE
        study.close()
        assert journal.read_bytes().startswith(whole)
        assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_optunas_own_lock_of_a_dead_driver_does_not_hold_the_next_up(tmp_path):
    open_study(tmp_path).close()
    journal = tmp_path / "study.journal"
    Path(f"{journal}.lock").symlink_to(journal)
    study = open_study(tmp_path)  # Optuna alone would wait half a minute for it
    run_to(study, Outcome.COMPLETE)
    study.close()


def test_a_second_driver_is_refused_in_one_line_until_the_first_closes(tmp_path):
    study = open_study(tmp_path)
    with pytest.raises(InputError, match="another process") as error:
        open_study(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    run_to(study, Outcome.COMPLETE)
    study.close()
    open_study(tmp_path).close()


def test_readers_are_let_in_while_a_driver_works(study, tmp_path):
    run_to(study, Outcome.COMPLETE)
    study.set_usage(Usage(3.0, 6.0))
    ask(study)
    records, usage = read(tmp_path)
    assert [record.outcome for record in records.values()] == [Outcome.COMPLETE, Outcome.RUNNING]
    assert usage == Usage(3.0, 6.0)


def test_a_missing_study_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"study\.journal: no such study") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_sampler_learns_how_many_trials_there_are(tmp_path):
    known = []
    for _ in range(2):
        study = Study(tmp_path, "min", lambda n: known.append(n) or optuna.samplers.RandomSampler(0))
        study.enqueue(FIRST)
        run_to(study, Outcome.COMPLETE)
        study.close()
    assert known == [0, 1]


def test_every_outcome_is_counted(study):
    for outcome in FINAL:
        run_to(study, outcome)
    ask(study)
    study.interrupt(ask(study).number)
    assert count_outcomes(study.records) == dict.fromkeys(Outcome, 1)


@pytest.fixture
def rdb(tmp_path):
    return f"sqlite:///{tmp_path}/lab.db"


def open_in(rdb, folder, name):
    return Study(folder, "max", optuna.samplers.RandomSampler, name, rdb)


def test_studies_in_a_database_are_apart_and_read_back_as_they_were(tmp_path, rdb):
    studies = {name: open_in(rdb, tmp_path / name, name) for name in ("ours", "theirs")}
    for outcome in FINAL:
        run_to(studies["ours"], outcome)
    studies["ours"].set_usage(Usage(3.0, 6.0))
    ask(studies["theirs"])
    for name, study in studies.items():
        study.close()
        assert not (tmp_path / name / "study.journal").exists()
        records, usage = read_study(Storage(str(tmp_path / name)), name, rdb)
        assert records == study.records
        assert usage == (Usage(3.0, 6.0) if name == "ours" else Usage())
    again = open_in(rdb, tmp_path / "theirs", "theirs")
    assert {n: record.outcome for n, record in again.records.items()} == {0: Outcome.INTERRUPTED}
    assert ask(again).params == studies["theirs"].records[0].params
    again.delete()
    with pytest.raises(InputError, match="its study has no trial yet"):
        read_study(Storage(str(tmp_path / "theirs")), "theirs", rdb)
    assert len(read_study(Storage(str(tmp_path / "ours")), "ours", rdb)[0]) == len(FINAL)


def test_a_second_driver_of_a_study_in_a_database_is_refused_too(tmp_path, rdb):
    study = open_in(rdb, tmp_path / "home", "ours")
    with pytest.raises(InputError, match="another process"):
        open_in(rdb, tmp_path / "home", "ours")
    study.close()
    open_in(rdb, tmp_path / "home", "ours").close()


@pytest.mark.parametrize(
    ("rdb", "says"),
    [
        ("sqlite:////nowhere/at/all/lab.db", "cannot be opened"),
        ("nosuch://db/studies", "study.storage=nosuch://db/studies: "),
        ("postgresql://me:hunter22@db/studies", "study.storage=postgresql://me:***@db/studies: a password in it"),
        ("mysql://me@db/studies?password=hunter22", "study.storage=mysql://me@db/studies: a password in it"),
        ("just a text with hunter22", "not a database URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_and_the_folder_is_free_again(tmp_path, rdb, says):
    for act in (lambda: open_in(rdb, tmp_path, "ours"), lambda: read_study(Storage(str(tmp_path)), "ours", rdb)):
        with pytest.raises(InputError) as error:
            act()
        assert says in str(error.value)
        assert "\n" not in str(error.value)
        assert "hunter22" not in str(error.value)
    open_study(tmp_path).close()


class Interleavings(RuleBasedStateMachine):
    """Any order of asking, reporting, ending, losing and crashing, against a model of plain dictionaries."""

    def __init__(self):
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.study = open_study(self.home.name)
        self.model = {}
        self.queue = []

    @initialize(first=st.booleans())
    def enqueue(self, first):
        self.first = FIRST if first else []
        self.study.enqueue(self.first)
        self.queue = list(range(len(self.first)))

    def running(self):
        return [number for number, trial in self.model.items() if trial["outcome"] == Outcome.RUNNING]

    def pick(self, data):
        return data.draw(st.sampled_from(self.running()))

    @precondition(lambda self: len(self.running()) < 3)
    @rule()
    def ask(self):
        waiting = [number for number, trial in self.model.items() if trial["outcome"] == Outcome.INTERRUPTED]
        record = ask(self.study)
        expected = min(waiting + self.queue, default=len(self.model))
        assert record.number == expected
        if expected in self.model:
            assert record.params == self.model[expected]["params"]
            self.model[expected]["outcome"] = Outcome.RUNNING
            return
        if expected in self.queue:
            self.queue.remove(expected)
            assert record.params == self.first[expected]
        self.model[expected] = {"params": dict(record.params), "outcome": Outcome.RUNNING, "curve": {}, "lost": 0}

    @precondition(lambda self: self.running())
    @rule(data=st.data(), value=st.floats(-10, 10))
    def report(self, data, value):
        number = self.pick(data)
        curve = self.model[number]["curve"]
        fidelity = len(curve) + 1
        curve[fidelity] = value
        self.study.report(number, fidelity, value)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), outcome=st.sampled_from(FINAL), value=st.floats(-10, 10))
    def tell(self, data, outcome, value):
        number = self.pick(data)
        trial = self.model[number]
        if outcome == Outcome.PRUNED and not trial["curve"]:
            return
        self.study.tell(number, Ending(outcome, "", len(trial["curve"]), {"error": value}), "error")
        trial.update(outcome=outcome, value=value)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def interrupt(self, data):
        number = self.pick(data)
        self.study.interrupt(number)
        self.model[number]["outcome"] = Outcome.INTERRUPTED

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def lose(self, data):
        number = self.pick(data)
        self.model[number]["lost"] += 1
        assert self.study.lose(number) == self.model[number]["lost"]
        self.model[number]["outcome"] = Outcome.INTERRUPTED

    @rule(torn=st.booleans())
    def crash_and_reopen(self, torn):
        self.study.close()
        if torn:
            with (Path(self.home.name) / "study.journal").open("ab") as file:
                file.write(b'{"op_code": 6, "wor')
        self.study = open_study(self.home.name)
        self.study.enqueue(self.first)
        for trial in self.model.values():
            if trial["outcome"] == Outcome.RUNNING:
                trial["outcome"] = Outcome.INTERRUPTED
        assert TrialState.RUNNING not in states(self.home.name)

    @invariant()
    def the_study_agrees_with_the_model(self):
        records = self.study.records
        assert sorted(records) == sorted(self.model)
        for number, trial in self.model.items():
            record = records[number]
            seen = (record.params, record.outcome, record.curve, record.attempts)
            assert seen == (trial["params"], trial["outcome"], trial["curve"], trial["lost"])
        complete = [trial["value"] for trial in self.model.values() if trial["outcome"] == Outcome.COMPLETE]
        best = best_record(records, "min")
        assert (best.value if best else None) == min(complete, default=None)

    def teardown(self):
        self.study.close()
        on_disk, _ = read(self.home.name)
        assert {n: r.outcome for n, r in on_disk.items()} == {n: t["outcome"] for n, t in self.model.items()}
        self.home.cleanup()


Interleavings.TestCase.settings = settings(max_examples=20, stateful_step_count=20)
TestInterleavings = Interleavings.TestCase
