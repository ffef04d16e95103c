"""The study: one truthful record, whatever happens to its driver."""

import dataclasses
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
from pharos.records import Span, TrialRecord, Usage, best_record, count_outcomes, front, ranked
from pharos.search.objective import Constraint, Objective, Objectives
from pharos.space import parse_space
from pharos.storage import Storage
from pharos.study import Evidence, Study, read_study
from pharos.trial import Ending, Origin, Outcome

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
MIN, MAX = Objectives([Objective("error", "min")]), Objectives([Objective("error", "max")])
BOTH = Objectives([Objective("error", "min"), Objective("accuracy", "max")])


def open_study(folder, objectives=MIN, sampler=None, **options):
    return Study(Path(folder), objectives, lambda known: sampler or optuna.samplers.RandomSampler(known), **options)


def optuna_study(folder, name="sweep"):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(Path(folder) / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage)


def optuna_trials(folder):
    return optuna_study(folder).trials


def read(folder):
    """What somebody who has not the study open reads of it: its trials, its usage and its notes."""
    return read_study(Storage(str(folder)), "toy-sweep", None)


def states(folder):
    return [trial.state for trial in optuna_trials(folder)]


def ask(study):
    return study.ask(SPACE, DEFAULTS)


def go_on(study):
    """Hands out the trial that was interrupted first."""
    return study.hand_out(study.having(Outcome.INTERRUPTED)[0])


def run_to(study, outcome, value=1.0, fidelity=3, reported=None):
    """Asks for a trial and ends it; returns its number."""
    number = ask(study).number
    for at in range(1, fidelity + 1):
        study.report(number, at, (reported if reported is not None else value + 10 - at,))
    ending = Ending(outcome, "why", fidelity, {"error": value}, seconds=2.5, process=7)
    study.records[number].lost_seconds = 0.5
    study.tell(number, ending)
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
    records, usage, notes = read(tmp_path)
    assert optuna_study(tmp_path).direction == optuna.study.StudyDirection.MINIMIZE
    assert records == {number: before}
    assert usage == Usage()
    assert notes == {"over": "", "evidence": {}}
    assert (before.reason, before.fidelity, before.metrics) == ("why", 3, {"error": 1.0})
    assert (before.seconds, before.lost_seconds, before.curve) == (2.5, 0.5, {1: (10.0,), 2: (9.0,), 3: (8.0,)})
    assert (before.values, before.last_values) == (None, (8.0,))


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
        study.tell(record.number, Ending(outcome, fidelity=1, metrics={"error": 1.0}))
    study.close()
    assert sum(lr > 0.3 for lr in asked[:8]) >= 4
    assert sum(lr > 0.3 for lr in asked[20:]) <= 8


def test_a_stopped_trial_is_never_the_best(study):
    run_to(study, Outcome.PRUNED, value=-5.0, reported=-5.0)
    run_to(study, Outcome.DIVERGED, value=-9.0)
    assert best_record(study.records, MIN) is None
    assert front(study.records, MIN) == ranked(study.records, MIN) == []
    worst, best = run_to(study, Outcome.COMPLETE, value=3.0), run_to(study, Outcome.COMPLETE, value=-1.0)
    assert best_record(study.records, MIN).number == best
    assert best_record(study.records, MAX).number == worst
    assert [record.number for record in ranked(study.records, MIN)] == [best, worst]
    assert [record.number for record in front(study.records, MAX)] == [worst]


def test_a_value_of_zero_is_compared_as_zero(study):
    for value in (0.5, 0.0, -0.5):
        run_to(study, Outcome.COMPLETE, value=value)
    assert best_record(study.records, MIN).values == (-0.5,)
    assert best_record(study.records, MAX).values == (0.5,)


def test_maximising_is_recorded(tmp_path):
    study = open_study(tmp_path, MAX)
    run_to(study, Outcome.COMPLETE)
    study.close()
    assert optuna_study(tmp_path).direction == optuna.study.StudyDirection.MAXIMIZE


def test_an_interrupted_trial_is_handed_out_with_its_number_and_values_the_first_to_be_interrupted_first(study):
    numbers = [ask(study).number for _ in range(3)]
    params = {number: dict(study.records[number].params) for number in numbers}
    study.report(1, 1, (4.0,))
    study.interrupt(1)
    study.interrupt(0)
    assert study.having(Outcome.INTERRUPTED) == [1, 0]
    for expected in (1, 0):
        record = go_on(study)
        assert (record.number, record.params, record.outcome) == (expected, params[expected], Outcome.RUNNING)
    assert study.records[1].curve == {1: (4.0,)}
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
    asked = [go_on(study), *(ask(study) for _ in range(5))]
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
        study.report(0, 1, (value,))
    study.report(0, 2, (2.5,))
    assert study.records[0].curve == {1: (3.0,), 2: (2.5,)}
    assert study.records[0].fidelity == 2
    assert optuna_trials(tmp_path)[0].intermediate_values == {1: 3.0, 2: 2.5}


def test_losses_are_counted_over_reopening(tmp_path):
    for count in (1, 2, 3):
        study = open_study(tmp_path)
        assert (ask(study) if count == 1 else go_on(study)).number == 0
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
    assert go_on(study).params == params
    assert states(tmp_path) == [TrialState.RUNNING]
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
    records, usage, _ = read(tmp_path)
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
        study = Study(tmp_path, MIN, lambda n: known.append(n) or optuna.samplers.RandomSampler(0))
        study.enqueue(FIRST)
        run_to(study, Outcome.COMPLETE)
        study.close()
    assert known == [0, 1]


def test_every_outcome_is_counted(study):
    for outcome in FINAL:
        run_to(study, outcome)
    ask(study)
    study.pause(ask(study).number)
    study.interrupt(ask(study).number)
    assert study.counts == count_outcomes(study.records) == dict.fromkeys(Outcome, 1)
    assert [study.having(outcome) for outcome in FINAL] == [[number] for number in range(len(FINAL))]


@pytest.fixture
def rdb(tmp_path):
    return f"sqlite:///{tmp_path}/lab.db"


def open_in(rdb, folder, name):
    return Study(folder, MAX, optuna.samplers.RandomSampler, name, rdb)


def test_studies_in_a_database_are_apart_and_read_back_as_they_were(tmp_path, rdb):
    studies = {name: open_in(rdb, tmp_path / name, name) for name in ("ours", "theirs")}
    for outcome in FINAL:
        run_to(studies["ours"], outcome)
    studies["ours"].set_usage(Usage(3.0, 6.0))
    ask(studies["theirs"])
    for name, study in studies.items():
        study.close()
        assert not (tmp_path / name / "study.journal").exists()
        records, usage, _ = read_study(Storage(str(tmp_path / name)), name, rdb)
        assert records == study.records
        assert usage == (Usage(3.0, 6.0) if name == "ours" else Usage())
    again = open_in(rdb, tmp_path / "theirs", "theirs")
    assert {n: record.outcome for n, record in again.records.items()} == {0: Outcome.INTERRUPTED}
    assert go_on(again).params == studies["theirs"].records[0].params
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


def run_to_both(study, error, accuracy, outcome=Outcome.COMPLETE, **metrics):
    """Asks for a trial of two objectives and ends it; returns its number."""
    number = ask(study).number
    study.report(number, 1, (error + 1, accuracy / 2))
    study.report(number, 3, (error, accuracy))
    study.tell(number, Ending(outcome, "why", 3, {"error": error, "accuracy": accuracy, **metrics}))
    return number


def test_several_objectives_are_kept_at_every_fidelity_and_read_back(tmp_path):
    study = open_study(tmp_path, BOTH)
    complete, pruned = run_to_both(study, 1.0, 0.5), run_to_both(study, 2.0, 0.25, Outcome.PRUNED)
    before = dict(study.records)
    study.close()
    trials = optuna_trials(tmp_path)
    assert optuna_study(tmp_path).directions == [
        optuna.study.StudyDirection.MINIMIZE,
        optuna.study.StudyDirection.MAXIMIZE,
    ]
    assert [(trial.state, trial.values) for trial in trials] == [
        (TrialState.COMPLETE, [1.0, 0.5]),
        (TrialState.PRUNED, None),
    ]
    assert [trial.intermediate_values for trial in trials] == [{}, {}]  # of which Optuna takes none here
    assert {name: trials[1].user_attrs[name] for name in ("at:1", "at:3")} == {
        "at:1": [3.0, 0.125],
        "at:3": [2.0, 0.25],
    }
    assert read(tmp_path)[0] == before
    assert (before[complete].curve, before[complete].values) == ({1: (2.0, 0.25), 3: (1.0, 0.5)}, (1.0, 0.5))
    assert (before[pruned].values, before[pruned].last_values) == (None, (2.0, 0.25))
    again = open_study(tmp_path, BOTH)
    assert again.records == before
    again.close()


def test_the_front_is_of_complete_trials_that_no_other_beats_and_begins_with_the_best_in_the_first_objective(tmp_path):
    study = open_study(tmp_path, BOTH)
    for error, accuracy in ((3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (2.0, 0.7)):
        run_to_both(study, error, accuracy)
    run_to_both(study, 0.0, 1.0, Outcome.PRUNED)
    run_to_both(study, 0.0, 1.0, Outcome.DIVERGED)
    assert [record.number for record in front(study.records, BOTH)] == [1, 3, 0]
    assert best_record(study.records, BOTH).number == 1
    assert ranked(study.records, BOTH)[-1].number == 2
    study.close()


BOUNDS = (Constraint("memory", "<=", 20.0), Constraint("accuracy", ">=", 0.75))


@pytest.mark.parametrize("outcome", [Outcome.COMPLETE, Outcome.PRUNED])
def test_how_far_a_trial_is_from_its_constraints_is_told_to_the_sampler_and_read_back(tmp_path, outcome):
    study = open_study(tmp_path, BOTH, constraints=BOUNDS)
    run_to_both(study, 1.0, 0.5, outcome, memory=25.0)
    run_to_both(study, 1.0, 1.0, outcome, memory=16.0)
    run_to_both(study, 1.0, 1.0, outcome)  # not reported: not known
    run_to_both(study, 1.0, 0.5, Outcome.FAILED, memory=25.0)
    before = dict(study.records)
    study.close()
    told = [{"memory": 5.0, "accuracy": 0.25}, {"memory": -4.0, "accuracy": -0.25}, {"accuracy": -0.25}, {}]
    assert [dict(trial.constraints) for trial in optuna_trials(tmp_path)] == told
    assert [record.violations for record in before.values()] == told
    assert [record.is_feasible for record in before.values()] == [False, True, True, True]
    assert read(tmp_path)[0] == before


def test_what_breaks_a_constraint_is_never_the_best_nor_on_the_front(tmp_path):
    study = open_study(tmp_path, BOTH, constraints=BOUNDS)
    run_to_both(study, 0.0, 1.0, memory=20.5)
    assert best_record(study.records, BOTH) is None
    kept = run_to_both(study, 5.0, 0.75, memory=20.0)
    run_to_both(study, 0.0, 0.7, memory=1.0)
    study.close()
    records = read(tmp_path)[0]
    assert best_record(records, BOTH).number == kept
    assert [record.number for record in front(records, BOTH)] == [kept]
    assert [record.number for record in ranked(records, BOTH)] == [kept]


def test_a_region_that_breaks_a_constraint_turns_the_sampler_away(tmp_path):
    """The best values take too much memory; TPE must then ask for others."""
    space = parse_space({"recipe.lr": "interval(0, 1)"}, "test")
    too_large = []
    for constraints in ([], [Constraint("memory", "<=", 0.3)]):
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=8)
        study = open_study(tmp_path / str(len(constraints)), sampler=sampler, constraints=constraints)
        for _ in range(40):
            record = study.ask(space, {})
            lr = record.params["recipe.lr"]
            study.tell(record.number, Ending(Outcome.COMPLETE, fidelity=1, metrics={"error": 1 - lr, "memory": lr}))
        study.close()
        asked = [record.params["recipe.lr"] for record in study.records.values()]
        too_large.append(sum(lr > 0.5 for lr in asked[20:]))
    assert too_large[0] >= 15
    assert too_large[1] <= 4
    assert best_record(study.records, MIN).params["recipe.lr"] <= 0.3


def unlock(study):
    """As the system does with the lock of a process that is gone."""
    study._unlock()


def test_every_attempt_s_time_is_kept_and_which_of_them_lost_their_process(study, tmp_path):
    number = ask(study).number
    record = study.records[number]
    attempts = [Span(11, 1.0, 2.0), Span(12, 3.0, 4.5), Span(13, 5.0, 6.0)]
    for attempt, leave in zip(attempts, (study.pause, study.lose, study.interrupt), strict=True):
        record.attempt = attempt
        leave(number)
        study.hand_out(number)
    study.interrupt(number)  # of an attempt that reported nothing, there is nothing to keep
    study.hand_out(number)
    study.report(number, 3, (1.0,))
    record.attempt = Span(14, 7.0, 8.0)
    study.tell(number, Ending(Outcome.COMPLETE, "", 3, {"error": 1.0}, process=14, started_at=7.0, ended_at=9.0))
    kept = [attempts[0], dataclasses.replace(attempts[1], is_lost=True), attempts[2], Span(14, 7.0, 9.0)]
    assert record.spans == kept
    assert read(tmp_path)[0][number].spans == kept


@pytest.mark.parametrize("leave", [Study.close, unlock], ids=["closed", "killed"])
def test_a_paused_trial_stays_aside_over_any_reopening_until_it_is_handed_out(tmp_path, leave):
    study = open_study(tmp_path)
    params = dict(ask(study).params)
    study.report(0, 1, (4.0,))
    study.records[0].metrics, study.records[0].seconds = {"error": 4.0}, 2.5
    study.pause(0)
    before = dict(study.records)
    assert states(tmp_path) == [TrialState.RUNNING]  # its place is taken
    leave(study)
    assert read(tmp_path)[0] == before
    assert states(tmp_path) == [TrialState.WAITING if leave is Study.close else TrialState.RUNNING]
    for opening in range(2):
        study = open_study(tmp_path)
        assert study.having(Outcome.PAUSED) == [0]
        assert study.records[0] == before[0]
        assert ask(study).number == 1 + opening  # Optuna takes it for none of those that wait to be asked for
        run_to(study, Outcome.COMPLETE) if opening else study.interrupt(1)
        assert states(tmp_path)[0] == TrialState.RUNNING
        if opening == 0:
            go_on(study)
            study.tell(1, Ending(Outcome.FAILED))
        leave(study)
    study = open_study(tmp_path)
    assert study.hand_out(0).outcome == Outcome.RUNNING
    assert study.records[0].params == params
    study.report(0, 2, (3.0,))
    study.tell(0, Ending(Outcome.COMPLETE, fidelity=2, metrics={"error": 3.0}))
    study.close()
    assert (optuna_trials(tmp_path)[0].state, optuna_trials(tmp_path)[0].value) == (TrialState.COMPLETE, 3.0)
    assert read(tmp_path)[0][0].curve == {1: (4.0,), 2: (3.0,)}


def test_a_clone_is_a_trial_of_its_own_that_says_where_it_started_from(tmp_path):
    study = open_study(tmp_path)
    study.enqueue(FIRST)
    donor, stopped = ask(study).number, run_to(study, Outcome.PRUNED)
    record = study.clone(FIRST[1], Origin(donor, stopped), SPACE)
    assert (record.number, record.params, record.outcome) == (2, FIRST[1], Outcome.RUNNING)
    assert record.origin == Origin(donor=0, replaces=1)
    trial = optuna_trials(tmp_path)[2]
    assert (trial.state, trial.params) == (TrialState.RUNNING, FIRST[1])
    assert trial.distributions == {name: SPACE.distributions[name] for name in FIRST[1]}
    study.report(2, 4, (1.0,))
    study.close()
    study = open_study(tmp_path)
    study.enqueue(FIRST)
    assert study.records[2] == read(tmp_path)[0][2]
    assert study.records[2].origin == Origin(donor=0, replaces=1)
    assert [study.records[n].outcome for n in (0, 2)] == [Outcome.INTERRUPTED] * 2
    assert [go_on(study).number for _ in range(2)] == [0, 2]
    study.tell(2, Ending(Outcome.COMPLETE, fidelity=4, metrics={"error": 1.0}))
    assert best_record(study.records, MIN).number == 2
    assert ask(study).number == 3
    study.close()


WIDER = parse_space({"recipe.lr": "interval(0, 1)", "recipe.kind": "choice(plain, noisy, loud)"}, "test")


def known(source, value, **changes):
    """What is known of a trial elsewhere, whose learning rate was its value."""
    params = {"recipe.lr": value, "recipe.kind": "plain"}
    record = TrialRecord(0, {}, Outcome.COMPLETE, {1: (value + 1,), 2: (value,)}, (value,))
    for name, each in changes.items():
        setattr(record, name, each)
    return Evidence(source, params, record)


EVIDENCE = [
    known("there/00000", 0.25),
    known("there/00001", 0.5, outcome=Outcome.PRUNED, values=None, curve={1: (1.5,)}),
    known("there/00002", 0.75, outcome=Outcome.DIVERGED, values=None, curve={}, violations={"diverged": 1.0}),
    known("here/00000", 0.125, violations={"memory": 3.0}),
]
NOTE = {"there": {"carried": 3, "left": {}}, "here": {"carried": 1, "left": {"it failed": 2}}}


def test_evidence_is_there_for_the_sampler_alone(tmp_path):
    study = open_study(tmp_path)
    assert study.evidence is None
    study.learn(EVIDENCE, WIDER, NOTE)
    assert study.records == {}
    assert sum(study.counts.values()) == 0
    assert best_record(study.records, MIN) is None
    record = study.ask(WIDER, {})
    assert record.number == 0
    assert study.evidence == NOTE
    study.close()
    records, _, notes = read(tmp_path)
    assert list(records) == [0]
    assert notes["evidence"] == NOTE
    trials = optuna_trials(tmp_path)[:4]
    assert [trial.user_attrs for trial in trials] == [{"evidence": each.source} for each in EVIDENCE]
    assert [(trial.state, trial.values) for trial in trials] == [
        (TrialState.COMPLETE, [0.25]),
        (TrialState.PRUNED, None),
        (TrialState.PRUNED, None),
        (TrialState.COMPLETE, [0.125]),
    ]
    assert [trial.params["recipe.lr"] for trial in trials] == [0.25, 0.5, 0.75, 0.125]
    assert [trial.intermediate_values for trial in trials] == [{1: 1.25, 2: 0.25}, {1: 1.5}, {}, {1: 1.125, 2: 0.125}]
    assert [dict(trial.constraints) for trial in trials] == [{}, {}, {"diverged": 1.0}, {"memory": 3.0}]


def test_evidence_of_two_objectives_has_both(tmp_path):
    study = open_study(tmp_path, BOTH)
    study.learn([known("there/00000", 0.5, curve={1: (0.75, 0.25)}, values=(0.5, 0.5))], WIDER, NOTE)
    study.close()
    (trial,) = optuna_trials(tmp_path)
    assert (trial.values, trial.user_attrs["at:1"], trial.intermediate_values) == ([0.5, 0.5], [0.75, 0.25], {})


def test_evidence_teaches_the_sampler(tmp_path):
    """All that is known is good near 0.2; TPE starts there, without trials of its own."""
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=8)
    study = open_study(tmp_path, sampler=sampler)
    space = parse_space({"recipe.lr": "interval(0, 1)"}, "test")
    lrs = [index / 40 for index in range(40)]
    evidence = [
        Evidence(f"there/{lr}", {"recipe.lr": lr}, TrialRecord(0, {}, Outcome.COMPLETE, {}, (abs(lr - 0.2),)))
        for lr in lrs
    ]
    study.learn(evidence, space, NOTE)
    assert sum(abs(study.ask(space, {}).params["recipe.lr"] - 0.2) < 0.2 for _ in range(10)) >= 8
    study.close()


def test_evidence_that_is_learned_again_after_a_crash_at_any_write_is_there_once(tmp_path):
    study = open_study(tmp_path / "whole")
    study.learn(EVIDENCE, WIDER, NOTE)
    study.close()
    lines = (tmp_path / "whole" / "study.journal").read_bytes().splitlines(keepends=True)
    assert len(lines) >= len(EVIDENCE) + 1
    for count in range(len(lines) + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "study.journal").write_bytes(b"".join(lines[:count]))
        study = open_study(folder)
        assert (study.evidence is None) is (count < len(lines))
        for _ in range(2):
            study.learn(EVIDENCE, WIDER, NOTE)
        study.close()
        found = [trial.user_attrs["evidence"] for trial in optuna_trials(folder)]
        assert sorted(found) == sorted(each.source for each in EVIDENCE)


def test_a_space_that_changes_starts_a_new_study_in_the_same_journal_and_numbers_go_on(tmp_path):
    asked = []
    study = open_study(tmp_path, sampler=optuna.samplers.TPESampler(n_startup_trials=2, seed=0))
    run_to(study, Outcome.COMPLETE, value=2.0)
    run_to(study, Outcome.FAILED)
    left = dict(ask(study).params)
    study.set_usage(Usage(3.0, 6.0))
    study.close()

    study = Study(
        tmp_path,
        MIN,
        lambda n: asked.append(n) or optuna.samplers.TPESampler(n_startup_trials=2, seed=0),
        generation=1,
    )
    assert asked == [3]
    assert {n: record.outcome for n, record in study.records.items()} == {
        0: Outcome.COMPLETE,
        1: Outcome.FAILED,
        2: Outcome.INTERRUPTED,
    }
    assert study.evidence is None
    study.learn([known("here/00000", 0.25)], WIDER, NOTE)
    assert go_on(study).params == left  # it finishes in the space that it began in
    for number in (3, 4, 5):
        record = study.ask(WIDER, DEFAULTS)
        assert record.number == number
        assert not WIDER.contains(record.params, DEFAULTS)
        study.tell(number, Ending(Outcome.COMPLETE, fidelity=1, metrics={"error": float(number)}))
    study.tell(2, Ending(Outcome.COMPLETE, fidelity=1, metrics={"error": 0.5}))
    before = dict(study.records)
    assert best_record(before, MIN).number == 2
    study.set_usage(Usage(4.0, 8.0))
    study.close()

    records, usage, notes = read(tmp_path)
    assert records == before
    assert sorted(records) == list(range(6))
    assert (usage, notes["evidence"]) == (Usage(4.0, 8.0), NOTE)
    assert [len(optuna_study(tmp_path, name).trials) for name in ("sweep", "sweep/2")] == [3, 4]
    study = open_study(tmp_path, generation=1)
    assert (study.records, study.evidence) == (before, NOTE)
    study.close()
    study = open_study(tmp_path, generation=2)
    assert study.evidence is None
    assert ask(study).number == 6
    study.close()
    assert sorted(read(tmp_path)[0]) == list(range(7))


def test_a_database_keeps_every_generation_and_lets_all_of_them_go(tmp_path, rdb):
    study = open_in(rdb, tmp_path, "ours")
    run_to(study, Outcome.COMPLETE)
    study.close()
    study = Study(tmp_path, MAX, optuna.samplers.RandomSampler, "ours", rdb, generation=1)
    study.learn([known("there/00000", 0.25)], WIDER, NOTE)
    assert study.ask(WIDER, DEFAULTS).number == 1
    assert sorted(read_study(Storage(str(tmp_path)), "ours", rdb)[0]) == [0, 1]
    storage = study._storage
    assert sorted(optuna.get_all_study_names(storage)) == ["ours", "ours/2"]
    study.delete()
    assert optuna.get_all_study_names(storage) == []


def test_a_trial_that_was_asked_for_and_never_handed_out_counts_for_nothing(tmp_path):
    study = open_study(tmp_path / "whole")
    study.enqueue(FIRST)
    journal = tmp_path / "whole" / "study.journal"
    before = len(journal.read_bytes().splitlines())
    assert ask(study).params == FIRST[0]
    study.close()
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > before + 2
    for count in range(before, len(lines)):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "study.journal").write_bytes(b"".join(lines[:count]))
        assert read(folder)[0] == {}
        study = open_study(folder)
        assert study.records == {}
        assert TrialState.RUNNING not in states(folder)
        study.enqueue(FIRST)
        asked = [ask(study) for _ in range(3)]
        study.close()
        assert [record.number for record in asked] == [0, 1, 2]
        assert [record.params for record in asked[:2]] == FIRST
        assert asked[2].params not in FIRST
        assert read(folder)[0] == {record.number: record for record in study.records.values()}


def test_a_study_from_before_trials_had_numbers_of_their_own_is_taken_up(tmp_path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    before = optuna.create_study(study_name="sweep", storage=storage, direction="minimize")
    for number, outcome in enumerate((Outcome.COMPLETE, Outcome.RUNNING)):
        trial = before.ask()
        SPACE.ask(trial, DEFAULTS)
        trial.set_user_attr("outcome", outcome)
        if outcome == Outcome.COMPLETE:
            trial.report(2.0, 1)
            before.tell(number, 1.5)
    before.enqueue_trial(FIRST[0])
    study = open_study(tmp_path)
    assert {n: (r.outcome, r.values, r.curve) for n, r in study.records.items()} == {
        0: (Outcome.COMPLETE, (1.5,), {1: (2.0,)}),
        1: (Outcome.INTERRUPTED, None, {}),
    }
    assert go_on(study).number == 1
    assert (ask(study).params, ask(study).number) == (FIRST[0], 3)
    study.close()


def session(study):
    """All that may happen to trials, in one study."""
    study.enqueue(FIRST)
    for _ in range(3):
        ask(study)
    for number in range(3):
        study.report(number, 1, (float(number),))
    study.pause(0)
    study.lose(1)
    study.interrupt(2)
    go_on(study)
    study.tell(1, Ending(Outcome.DIVERGED, "", 1, {"error": 1.0}))
    study.hand_out(0)
    study.report(0, 2, (0.5,))
    study.clone(FIRST[1], Origin(0, 1), SPACE)
    study.tell(0, Ending(Outcome.COMPLETE, "", 2, {"error": 0.5}))
    study.report(3, 3, (0.25,))
    study.pause(3)
    go_on(study)
    study.tell(2, Ending(Outcome.PRUNED, "", 1, {"error": 2.0}))


def test_a_kill_at_any_write_leaves_no_trial_running_none_lost_and_none_twice(tmp_path):
    study = open_study(tmp_path / "whole")
    session(study)
    journal = tmp_path / "whole" / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)  # killed: never closed
    final = {number: record for number, record in study.records.items() if record.outcome.is_final}
    study.close()
    for count in range(len(lines) + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "study.journal").write_bytes(b"".join(lines[:count]))
        study = open_study(folder)
        study.enqueue(FIRST)
        records = study.records
        assert sorted(records) == list(range(len(records)))
        assert not study.having(Outcome.RUNNING)
        paused = study.having(Outcome.PAUSED)
        assert states(folder).count(TrialState.RUNNING) == len(paused)
        for number in [*study.having(Outcome.INTERRUPTED), *paused]:
            study.hand_out(number)
            study.report(number, 4, (-1.0,))
            study.tell(number, Ending(Outcome.COMPLETE, "", 4, {"error": -1.0}))
        while len(records) < 4:
            run_to(study, Outcome.COMPLETE)
        study.close()
        assert [records[number].params for number in (0, 1)] == FIRST
        assert read(folder)[0] == records
        assert TrialState.RUNNING not in states(folder)
        assert TrialState.WAITING not in states(folder)
        for number, record in final.items():
            if count == len(lines):
                assert records[number] == record
        assert all(record.is_feasible for record in records.values() if record.outcome == Outcome.COMPLETE)


class Interleavings(RuleBasedStateMachine):
    """Any order of asking, reporting, pausing, ending, losing and crashing, against a model of plain dictionaries."""

    def __init__(self):
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.study = open_study(self.home.name)
        self.model = {}
        self.queue = []
        self.interrupted = []

    @initialize(first=st.booleans())
    def enqueue(self, first):
        self.first = FIRST if first else []
        self.study.enqueue(self.first)
        self.queue = list(self.first)

    def having(self, outcome):
        return [number for number, trial in self.model.items() if trial["outcome"] == outcome]

    def running(self):
        return self.having(Outcome.RUNNING)

    def pick(self, data, outcome=Outcome.RUNNING):
        return data.draw(st.sampled_from(self.having(outcome)))

    def begin(self, record, origin=None):
        assert record.number == len(self.model)
        self.model[record.number] = {
            "params": dict(record.params),
            "outcome": Outcome.RUNNING,
            "curve": {},
            "lost": 0,
            "origin": origin,
        }

    @precondition(lambda self: len(self.running()) < 3 and not self.interrupted)
    @rule()
    def ask(self):
        record = ask(self.study)
        if self.queue:
            assert record.params == self.queue.pop(0)
        self.begin(record)

    @precondition(lambda self: len(self.running()) < 3 and self.model)
    @rule(data=st.data(), params=st.sampled_from(FIRST))
    def clone(self, data, params):
        donor, replaces = (data.draw(st.sampled_from(sorted(self.model))) for _ in range(2))
        origin = Origin(donor, replaces)
        record = self.study.clone(params, origin, SPACE)
        assert record.params == params
        self.begin(record, origin)

    @precondition(lambda self: len(self.running()) < 3 and self.interrupted)
    @rule()
    def go_on(self):
        number = self.interrupted.pop(0)
        record = go_on(self.study)
        assert (record.number, record.params) == (number, self.model[number]["params"])
        self.model[number]["outcome"] = Outcome.RUNNING

    @precondition(lambda self: self.running())
    @rule(data=st.data(), value=st.floats(-10, 10))
    def report(self, data, value):
        number = self.pick(data)
        curve = self.model[number]["curve"]
        fidelity = len(curve) + 1
        curve[fidelity] = (value,)
        self.study.report(number, fidelity, (value,))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), outcome=st.sampled_from(FINAL), value=st.floats(-10, 10))
    def tell(self, data, outcome, value):
        number = self.pick(data)
        trial = self.model[number]
        if outcome == Outcome.PRUNED and not trial["curve"]:
            return
        self.study.tell(number, Ending(outcome, "", len(trial["curve"]), {"error": value}))
        trial.update(outcome=outcome, value=value)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def interrupt(self, data):
        number = self.pick(data)
        self.study.interrupt(number)
        self.model[number]["outcome"] = Outcome.INTERRUPTED
        self.interrupted.append(number)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def lose(self, data):
        number = self.pick(data)
        self.model[number]["lost"] += 1
        assert self.study.lose(number) == self.model[number]["lost"]
        self.model[number]["outcome"] = Outcome.INTERRUPTED
        self.interrupted.append(number)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def pause(self, data):
        number = self.pick(data)
        self.study.pause(number)
        self.model[number]["outcome"] = Outcome.PAUSED

    @precondition(lambda self: len(self.running()) < 3 and self.having(Outcome.PAUSED))
    @rule(data=st.data())
    def promote(self, data):
        number = self.pick(data, Outcome.PAUSED)
        assert self.study.hand_out(number).params == self.model[number]["params"]
        self.model[number]["outcome"] = Outcome.RUNNING

    @rule(torn=st.booleans(), killed=st.booleans())
    def crash_and_reopen(self, torn, killed):
        unlock(self.study) if killed else self.study.close()
        if torn:
            with (Path(self.home.name) / "study.journal").open("ab") as file:
                file.write(b'{"op_code": 6, "wor')
        self.study = open_study(self.home.name)
        self.study.enqueue(self.first)
        for number in self.running():
            self.model[number]["outcome"] = Outcome.INTERRUPTED
        self.interrupted = self.having(Outcome.INTERRUPTED)
        assert states(self.home.name).count(TrialState.RUNNING) == len(self.having(Outcome.PAUSED))

    @invariant()
    def the_study_agrees_with_the_model(self):
        records = self.study.records
        assert sorted(records) == sorted(self.model)
        for number, trial in self.model.items():
            record = records[number]
            seen = (record.params, record.outcome, record.curve, record.attempts, record.origin)
            assert seen == (trial["params"], trial["outcome"], trial["curve"], trial["lost"], trial["origin"])
        assert self.study.counts == count_outcomes(records)
        assert all(sorted(self.study.having(outcome)) == self.having(outcome) for outcome in Outcome)
        complete = [trial["value"] for trial in self.model.values() if trial["outcome"] == Outcome.COMPLETE]
        best = best_record(records, MIN)
        assert (best.values[0] if best else None) == min(complete, default=None)

    def teardown(self):
        self.study.close()
        on_disk, _, _ = read(self.home.name)
        assert {n: r.outcome for n, r in on_disk.items()} == {n: t["outcome"] for n, t in self.model.items()}
        self.home.cleanup()


Interleavings.TestCase.settings = settings(max_examples=20, stateful_step_count=20)
TestInterleavings = Interleavings.TestCase
