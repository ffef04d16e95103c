"""Which checkpoints stay: of one trial while it saves, and of a sweep's trials when they have ended."""

import contextlib
import math
import secrets
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pharos import mirror, survey
from pharos.checkpoint import Checkpoints, seal
from pharos.errors import InputError, StorageError
from pharos.mirror import StudyMirror
from pharos.records import TrialRecord, Usage
from pharos.retention import Keep, Retention, surplus
from pharos.search.objective import Objective, Objectives
from pharos.storage import Storage, StorageConfig
from pharos.survey import clear
from pharos.trial import Outcome


def new_storage():
    """An empty one; what others hold in memory is forgotten."""
    MemoryFileSystem.store.clear()
    return Storage(f"memory://{secrets.token_hex(8)}/sweep")


@pytest.fixture
def checkpoints():
    return Checkpoints(new_storage())


def commit(checkpoints, step, value=None, files=2):
    """A checkpoint as a saver leaves it, with nothing in it."""
    names = [f"rank-{index:05d}-000.safetensors" for index in range(files)]
    for name in names:
        checkpoints.storage.write_bytes(f"{step:08d}/{name}", b"12345")
    manifest = {"step": step, "value": value, "files": {name: {"bytes": 5} for name in names}} | REST
    checkpoints.storage.write_bytes(f"{step:08d}/manifest.json", seal(manifest))


REST = {"state": "state-000.json", "tensors": {}}  # of a manifest, which nothing here looks at
FILES = ["rank-00000-000.safetensors", "rank-00001-000.safetensors", "manifest.json"]
KEEPS = st.builds(Keep, st.integers(1, 3), st.integers(0, 3), st.integers(0, 5), st.sampled_from(["min", "max"]))
VALUES = st.none() | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, 2.5]) | st.floats(-10, 10)
HISTORIES = st.dictionaries(st.integers(1, 25), VALUES, max_size=12)


def expected(values, keep):
    """What stays, put as the settings are explained."""
    newest = set(sorted(values, reverse=True)[: keep.last])
    finite = {step: value for step, value in values.items() if value is not None and math.isfinite(value)}
    rank = {
        step: sum(
            (other < value if keep.mode == "min" else other > value) or (other == value and later > step)
            for later, other in finite.items()
        )
        for step, value in finite.items()
    }
    best = {step for step, better in rank.items() if better < keep.best}
    multiples = range(keep.every, max(values, default=0) + 1, keep.every) if keep.every else ()
    firsts = {min(step for step in values if step >= multiple) for multiple in multiples}
    return newest | best | firsts


@settings(max_examples=300)
@given(values=HISTORIES, keep=KEEPS)
@example(values={1: 0.5, 2: 0.5, 3: 1.0, 4: 1.0}, keep=Keep(last=1, best=1))
@example(values={3: 1.0, 7: 2.0, 12: 3.0, 13: 4.0}, keep=Keep(last=1, best=0, every=5))
def test_the_newest_the_best_and_the_first_after_each_multiple_stay_and_nothing_else(values, keep):
    assert set(values) - surplus(values, keep) == expected(values, keep)


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Keep(), {2, 8, 9}),
        (Keep(mode="max"), {5, 8, 9}),
        (Keep(last=1, best=0), {9}),
        (Keep(last=1, best=2), {2, 8, 9}),
        (Keep(last=1, best=0, every=4), {4, 8, 9}),
        (Keep(last=0, best=1), {2}),
    ],
)
def test_what_stays_of_a_trial(keep, stay):
    values = {1: 5.0, 2: 1.0, 3: None, 4: math.nan, 5: 7.0, 7: 3.0, 8: 2.0, 9: 4.0}
    assert set(values) - surplus(values, keep) == stay


def test_of_equally_good_ones_the_newest_is_the_best():
    assert surplus({1: 0.5, 2: 0.5, 3: 0.5, 4: 1.0, 5: 1.0}, Keep(last=1, best=1)) == {1, 2, 4}


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_has_no_finite_value_is_never_the_best(value, mode):
    assert 1 in surplus({1: value, 2: 3.0, 3: 4.0, 4: 5.0}, Keep(last=1, best=2, mode=mode))


@settings(max_examples=100)
@given(
    values=HISTORIES,
    keep=KEEPS,
    attempts=st.sets(st.integers(1, 25)),
    holds=st.sets(st.integers(1, 25), max_size=3),
)
def test_a_trial_that_saves_keeps_what_it_would_have_kept_of_all_it_has_ever_saved(values, keep, attempts, holds):
    """Also when another attempt goes on, which knows what went before from the manifests alone."""
    checkpoints = Checkpoints(new_storage())
    retention, history = Retention(checkpoints, keep), {}
    for step, value in sorted(values.items()):
        if step in attempts:
            retention = Retention(Checkpoints(checkpoints.storage), keep)
        commit(checkpoints, step, value)
        if step in holds:
            checkpoints.hold(step, "pbt")
        history[step] = value
        retention.apply(step, value, FILES)
        held = holds & set(history)
        assert set(checkpoints.files()) == expected(history, keep) | held
        assert checkpoints.steps() == sorted(expected(history, keep) | held)
        assert all(len(files) >= 3 for files in checkpoints.files().values())  # whole


def test_what_is_held_stays_until_all_have_let_go_of_it(checkpoints):
    retention = Retention(checkpoints, Keep(last=1, best=0))
    commit(checkpoints, 1)
    retention.apply(1, None, FILES)
    checkpoints.hold(1, "pbt-7")
    checkpoints.hold(1, "promotion")
    for step, steps in ((2, [1, 2]), (3, [1, 3]), (4, [4])):
        commit(checkpoints, step)
        retention.apply(step, None, FILES)
        assert checkpoints.steps() == steps
        checkpoints.release(1, "pbt-7" if step == 2 else "promotion")
    assert list(checkpoints.files()) == [4]


def test_one_that_is_held_by_name_only_is_no_checkpoint(checkpoints):
    checkpoints.hold(5, "pbt")
    assert checkpoints.steps() == []
    assert checkpoints.newest() is None


DAMAGES = [b"", b"{", b"[]", b"null", b"7", b"\xff", b'{"step": 2, "value": 0.0}\n', b'{"value": "x"}']


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_whose_manifest_is_damaged_has_no_value_and_holds_nothing_up(checkpoints, damage):
    for step in (1, 2, 3):
        commit(checkpoints, step, value=float(step))
    checkpoints.storage.write_bytes("00000002/manifest.json", damage)
    retention = Retention(checkpoints, Keep(last=1, best=1))
    commit(checkpoints, 4, value=9.0)
    retention.apply(4, 9.0, FILES)
    assert checkpoints.steps() == [1, 4]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_new_checkpoint_is_not_pushed_out_by_damaged_ones_past_it(checkpoints, damage):
    for step in (7, 8, 9):
        commit(checkpoints, step, value=0.0)
        checkpoints.storage.write_bytes(f"{step:08d}/manifest.json", damage)
    for step in (3, 4, 5):
        commit(checkpoints, step, value=1.0)
        Retention(checkpoints, Keep(last=2, best=0)).apply(step, 1.0, FILES)
        assert {step - 1, step} & {3, 4, 5} <= set(checkpoints.steps())


def test_a_store_that_does_not_answer_says_nothing_of_a_value(checkpoints, monkeypatch):
    """Else the best would be taken for one without a value, and go."""
    for step in (1, 2, 3):
        commit(checkpoints, step, value=float(step))
    read = Storage.read_bytes

    def refuse(storage, path):
        raise StorageError("no answer", is_final=False)

    monkeypatch.setattr(Storage, "read_bytes", refuse)
    retention = Retention(checkpoints, Keep(last=1, best=1))
    with pytest.raises(StorageError):
        retention.apply(4, 4.0, FILES)
    assert checkpoints.steps() == [1, 2, 3]
    monkeypatch.setattr(Storage, "read_bytes", read)
    commit(checkpoints, 4, value=4.0)
    retention.apply(4, 4.0, FILES)
    assert checkpoints.steps() == [1, 4]


def test_a_local_folder_is_left_without_empty_folders(tmp_path):
    checkpoints = Checkpoints(Storage(str(tmp_path / "checkpoints")))
    retention = Retention(checkpoints, Keep(last=1, best=0))
    for step in (1, 2, 3):
        commit(checkpoints, step)
        retention.apply(step, None, FILES)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000003"]


def test_a_trial_that_saves_often_does_not_ask_for_what_it_knows(checkpoints, monkeypatch):
    """An object store takes its time for each request."""
    retention, asked = Retention(checkpoints, Keep(last=50, best=1)), []
    commit(checkpoints, 1, value=1.0)
    retention.apply(1, 1.0, FILES)
    for name in ("read_bytes", "sizes"):
        monkeypatch.setattr(Storage, name, lambda *arguments, name=name: asked.append(name))
    for step in range(2, 20):
        commit(checkpoints, step, value=1.0)
        retention.apply(step, 1.0, FILES)
    assert asked == []


# A whole sweep

FINAL = [Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.FAILED, Outcome.CANCELLED, Outcome.OUT_OF_MEMORY]


def record(number, outcome, value=None):
    return TrialRecord(number, {}, outcome, values=None if value is None else (value,))


def look(home, records, keep, trials):
    """A survey where trials are as good as their checkpoints are."""
    return survey.survey(home, records, keep, Objectives([Objective("error", keep.mode)]), trials)


def checkpoints_of(home, number):
    return Checkpoints(home.sub("trials", f"{number:05d}", "checkpoints"))


def write_trial(home, number, steps=(), unfinished=(), held=()):
    """A trial's folder: checkpoints by step with their values, some that were never finished, and other files."""
    checkpoints = checkpoints_of(home, number)
    for step, value in dict(steps).items():
        commit(checkpoints, step, value)
    for step in unfinished:
        checkpoints.storage.write_bytes(f"{step:08d}/rank-00000-000.safetensors", b"123")
    for step in held:
        checkpoints.hold(step, "pbt")
    for name in ("metrics.jsonl", "log", "trial.yaml"):
        home.write_bytes(f"trials/{number:05d}/{name}", b"text")


def goes_of(uses):
    return {use.number: set(use.goes) for use in uses}


CURVE = {1: 1.0, 2: 0.5, 3: 2.0, 4: 3.0, 5: 4.0}


@pytest.fixture
def home():
    return new_storage()


def test_nothing_of_a_running_trial_or_of_one_that_nobody_knows_goes(home):
    for number in (0, 1):
        write_trial(home, number, CURVE, unfinished=[6])
    uses = look(home, {0: record(0, Outcome.RUNNING)}, Keep(), 0)
    assert goes_of(uses) == {0: set(), 1: set()}
    assert [use.outcome for use in uses] == [Outcome.RUNNING, None]


@pytest.mark.parametrize("outcome", [Outcome.INTERRUPTED, Outcome.PAUSED])
def test_a_trial_that_is_yet_to_go_on_keeps_what_it_goes_on_from(home, outcome):
    write_trial(home, 0, CURVE, unfinished=[6])
    uses = look(home, {0: record(0, outcome)}, Keep(last=2, best=1), 0)
    assert uses[0].goes == {1: "neither new nor good", 3: "neither new nor good", 6: "never finished"}


def test_the_best_trials_keep_checkpoints_and_no_others(home):
    outcomes = {0: 3.0, 1: 1.0, 2: 2.0, 3: None, 4: 0.5}
    records = {
        number: record(number, Outcome.COMPLETE if value is not None else Outcome.PRUNED, value)
        for number, value in outcomes.items()
    }
    for number in records:
        write_trial(home, number, {1: 1.0, 2: 2.0})
    every = {1, 2}
    found = {trials: goes_of(look(home, records, Keep(), trials)) for trials in (None, 0, 1, 2, 3, 9)}
    none = {number: set() for number in records}
    assert found[None] == none
    assert found[0] == dict.fromkeys(records, every)
    assert found[1] == {**dict.fromkeys(records, every), 4: set()}
    assert found[2] == {**dict.fromkeys(records, every), 4: set(), 1: set()}
    assert found[3] == {**dict.fromkeys(records, every), 4: set(), 1: set(), 2: set()}
    assert found[9] == {**none, 3: every}  # one that was pruned is never among the best
    largest = goes_of(look(home, records, Keep(mode="max"), 1))
    assert largest == {**dict.fromkeys(records, every), 0: set()}


def test_with_several_objectives_the_front_is_best_and_of_it_what_is_far_from_the_others(home):
    values = {0: (1.0, 9.0), 1: (2.0, 8.0), 2: (5.0, 5.0), 3: (6.0, 6.0), 4: (9.0, 1.0)}
    records = {n: TrialRecord(n, {}, Outcome.COMPLETE, values=each) for n, each in values.items()}
    records[5] = TrialRecord(5, {}, Outcome.COMPLETE, values=(0.0, 0.0), violations={"memory": 1.0})
    for number in records:
        write_trial(home, number, {1: 1.0})
    objectives = Objectives([Objective("error"), Objective("size")])
    stays = [
        {use.number for use in survey.survey(home, records, Keep(), objectives, trials) if not use.goes}
        for trials in range(6)
    ]
    assert stays == [set(), {0}, {0, 4}, {0, 2, 4}, {0, 1, 2, 4}, {0, 1, 2, 3, 4}]


def test_unfinished_parts_go_of_trials_that_have_ended_alone(home):
    outcomes = [*FINAL, Outcome.INTERRUPTED, Outcome.PAUSED, Outcome.RUNNING]
    for number in range(len(outcomes)):
        write_trial(home, number, {1: 1.0}, unfinished=[2, 3])
    records = {number: record(number, outcome) for number, outcome in enumerate(outcomes)}
    uses = look(home, records, Keep(), None)
    assert [use.goes for use in uses[:-1]] == [{2: "never finished", 3: "never finished"}] * 8
    assert uses[-1].goes == {}


def test_what_is_held_stays_of_any_trial(home):
    write_trial(home, 0, CURVE, unfinished=[6], held=[1, 6])
    write_trial(home, 1, CURVE, held=[2])
    records = {0: record(0, Outcome.COMPLETE, 1.0), 1: record(1, Outcome.PRUNED)}
    uses = look(home, records, Keep(), 1)
    assert goes_of(uses) == {0: {3}, 1: {1, 3, 4, 5}}
    clear(home, uses)
    assert checkpoints_of(home, 0).steps() == [1, 2, 4, 5]
    assert checkpoints_of(home, 1).steps() == [2]


def test_a_survey_adds_up_what_lies_there(home):
    write_trial(home, 3, {1: 1.0, 2: 2.0}, unfinished=[7])
    sizes = home.sizes("trials/00003")
    [absent, use] = look(home, {3: record(3, Outcome.PRUNED), 1: record(1, Outcome.FAILED)}, Keep(), 0)
    assert (absent.number, absent.size, absent.steps, absent.freed) == (1, 0, {}, 0)
    assert use.size == sum(sizes.values())
    assert use.steps == {
        step: sum(size for path, size in sizes.items() if path.startswith(f"checkpoints/{step:08d}/"))
        for step in (1, 2, 7)
    }
    assert use.freed == sum(use.steps.values())
    assert use.to_dict() == {
        "trial": "00003",
        "outcome": "pruned",
        "bytes": use.size,
        "checkpoints": [
            {"step": 1, "bytes": use.steps[1], "goes": "not of the best trials"},
            {"step": 2, "bytes": use.steps[2], "goes": "not of the best trials"},
            {"step": 7, "bytes": 3, "goes": "never finished"},
        ],
    }


def test_what_a_trial_just_stopped_may_be_finishing_is_left_to_it(home):
    write_trial(home, 0, {1: 1.0, 2: 2.0}, unfinished=[3])
    uses = look(home, {0: record(0, Outcome.PRUNED)}, Keep(), 0)
    clear(home, uses, unfinished=False)
    assert list(checkpoints_of(home, 0).files()) == [3]
    clear(home, uses)
    assert checkpoints_of(home, 0).files() == {}


STEPS = st.dictionaries(st.integers(1, 6), st.none() | st.floats(-5, 5), max_size=5)
TRIALS = st.lists(
    st.tuples(
        st.sampled_from([*Outcome, None]),
        STEPS,
        st.sets(st.integers(5, 8), max_size=2),
        st.sets(st.integers(1, 8), max_size=1),
        st.floats(-5, 5),
    ),
    max_size=5,
)


@settings(max_examples=60)
@given(trials=TRIALS, keep=KEEPS, best=st.none() | st.integers(0, 3))
def test_what_goes_of_a_sweep_is_what_nobody_needs_and_the_rest_is_left_as_it_is(trials, keep, best):
    home, records = new_storage(), {}
    for number, (outcome, steps, unfinished, held, value) in enumerate(trials):
        write_trial(home, number, steps, unfinished - set(steps), held)
        if outcome is not None:
            records[number] = record(number, outcome, value if outcome == Outcome.COMPLETE else None)
    everything = home.sizes()
    uses = look(home, records, keep, best)
    assert home.sizes() == everything, "to look changes nothing"
    sign = 1 if keep.mode == "min" else -1
    complete = sorted((sign * each.values[0], number) for number, each in records.items() if each.values is not None)
    good = {number for _, number in complete[:best]} if best is not None else set(records)
    gone = set()
    for use, (outcome, steps, unfinished, held, _) in zip(uses, trials, strict=True):
        loose = (unfinished - set(steps)) | (held - set(steps))
        if outcome in (None, Outcome.RUNNING):
            goes = set()
        elif outcome.is_final and use.number not in good:
            goes = set(steps) | loose
        else:
            goes = (set(steps) - expected(steps, keep)) | loose
        assert set(use.goes) == goes - held
        gone |= {f"trials/{use.number:05d}/checkpoints/{step:08d}/" for step in use.goes}
    assert sum(use.size for use in uses) == sum(everything.values())
    clear(home, uses)
    left = {path: size for path, size in everything.items() if not any(path.startswith(folder) for folder in gone)}
    assert home.sizes() == left
    assert not any(use.goes for use in look(home, records, keep, best)), "the second time nothing is too much"


# A sweep that is not open here


def plan_of(**storage):
    return SimpleNamespace(
        settings=SimpleNamespace(
            storage=StorageConfig(mirror_seconds=0.1, **storage),
            objectives=Objectives([Objective("error")]),
            study=SimpleNamespace(storage=None),
        )
    )


@pytest.fixture
def known(monkeypatch):
    """The trials that the study has."""
    records = {}
    monkeypatch.setattr(survey, "read_study", lambda home, name, rdb: (records, Usage(), {}))
    return records


def test_a_look_at_a_sweep_changes_nothing_and_asks_nobody(home, known):
    write_trial(home, 0, CURVE)
    known[0] = record(0, Outcome.COMPLETE, 1.0)
    everything = home.sizes()
    [use] = survey.survey_sweep(home, plan_of(keep_last=1, keep_best=0))
    assert set(use.goes) == {1, 2, 3, 4}
    assert home.sizes() == everything


def test_a_sweep_that_nobody_drives_is_cleared_by_its_own_settings(home, known):
    write_trial(home, 0, CURVE)
    write_trial(home, 1, CURVE)
    known.update({0: record(0, Outcome.COMPLETE, 1.0), 1: record(1, Outcome.COMPLETE, 2.0)})
    uses = survey.survey_sweep(home, plan_of(keep_last=1, keep_best=1, keep_every=3, keep_trials=1), remove=True)
    assert goes_of(uses) == {0: {1, 4}, 1: {1, 2, 3, 4, 5}}
    assert checkpoints_of(home, 0).steps() == [2, 3, 5]
    assert checkpoints_of(home, 1).files() == {}
    survey.survey_sweep(home, plan_of(keep_trials=0), remove=True)  # another may follow at once
    assert checkpoints_of(home, 0).files() == {}


@pytest.mark.parametrize("kind", ["store", "disk"])
def test_of_a_sweep_that_is_being_driven_nothing_is_removed(home, known, monkeypatch, tmp_path, kind):
    home = home if kind == "store" else Storage(str(tmp_path / "sweep"))
    write_trial(home, 0, CURVE)
    known[0] = record(0, Outcome.COMPLETE, 1.0)
    with contextlib.ExitStack() as stack:
        if kind == "disk":
            stack.enter_context(home.locked(0.0))
        else:
            driver = StudyMirror(home, None, 0.1)
            monkeypatch.setattr(mirror.time, "sleep", lambda seconds: driver.push())
        with pytest.raises(InputError, match="is working on it; wait for it or stop it first"):
            survey.survey_sweep(home, plan_of(keep_trials=0), remove=True)
    assert checkpoints_of(home, 0).steps() == [1, 2, 3, 4, 5]


def test_of_a_sweep_without_trials_there_is_nothing_to_say(home):
    assert look(home, {}, Keep(), None) == []


def test_what_another_attempt_has_written_meanwhile_is_not_removed(checkpoints):
    """This one was thought dead, and the other goes on from what it had found."""
    commit(checkpoints, 1)
    ours = Retention(checkpoints, Keep(last=1, best=0))
    for step in (2, 5):
        checkpoints.storage.write_bytes(f"{step:08d}/rank-00000-000-theirs.safetensors", b"12345")
        manifest = {"step": step, "value": None, "files": {"rank-00000-000-theirs.safetensors": {"bytes": 5}}} | REST
        checkpoints.storage.write_bytes(f"{step:08d}/manifest-theirs.json", seal(manifest))
    for step in (2, 3, 4):
        commit(checkpoints, step)
        ours.apply(step, None, FILES)
    theirs = {"rank-00000-000-theirs.safetensors", "manifest-theirs.json"}
    assert {step: set(files) for step, files in checkpoints.files().items()} == {2: theirs, 4: set(FILES), 5: theirs}
