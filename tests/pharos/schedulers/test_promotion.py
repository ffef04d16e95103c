"""Promotion: everyone pauses at every rung, and a free place goes to the best of the highest rung."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharos.schedulers.base import Action, GoOn
from pharos.schedulers.promotion import Promotion
from pharos.search.fronts import ranking
from pharos.trial import Outcome


def report(scheduler, trial, fidelity, *losses):
    return scheduler.on_report(trial, fidelity, losses).action


def at_first_rung(values, *arguments):
    """With trials paused at their first rung, in the order of their numbers."""
    promotion = Promotion(*arguments)
    for trial, value in enumerate(values):
        promotion.on_start(trial, {})
        assert report(promotion, trial, promotion.rungs[0], value) == Action.PAUSE
    return promotion


def test_arrivals_by_hand():
    promotion = Promotion(9, 1 / 9, 3)  # rungs 1 and 3
    assert promotion.next() is None
    for trial, (value, then) in enumerate(
        [(5.0, None), (4.0, None), (6.0, GoOn(1)), (3.0, GoOn(3)), (7.0, GoOn(3)), (2.0, GoOn(5))]
    ):
        promotion.on_start(trial, {})
        assert report(promotion, trial, 1, value) == Action.PAUSE
        assert promotion.next() == then, trial
    promotion.on_start(5, {})
    assert promotion.next() == GoOn(3)  # six make room for two
    promotion.on_start(3, {})
    assert promotion.next() is None
    assert report(promotion, 5, 2, 1.0) == Action.GO_ON
    assert report(promotion, 5, 3, 1.0) == Action.PAUSE
    assert promotion.paused == {0: 1, 1: 1, 2: 1, 4: 1, 5: 3}
    assert promotion.next() is None  # alone at rung 3


def test_the_highest_rung_comes_first():
    promotion = at_first_rung(range(9), 9, 1 / 9, 3)
    for trial in (0, 1, 2):
        assert promotion.next() == GoOn(trial)
        promotion.on_start(trial, {})
        assert report(promotion, trial, 3, 9.0 - trial) == Action.PAUSE
    promotion.on_start(9, {})
    assert report(promotion, 9, 1, -1.0) == Action.PAUSE
    assert promotion.next() == GoOn(2)  # the best at rung 3, not 9, the best at rung 1
    promotion.on_start(2, {})
    assert promotion.next() == GoOn(9)
    assert report(promotion, 2, 9, 0.0) == Action.GO_ON
    promotion.on_end(2, Outcome.COMPLETE)
    assert promotion.next() == GoOn(9)


def test_the_reason_says_the_place():
    promotion = at_first_rung([1.0, 2.0], 90, 0.2, 3)
    assert promotion.on_report(2, 18, (1.5,)).reason == "rung 18: 2nd of 3, the best 1/3 go on"


def test_of_equals_the_earlier_goes_on_and_no_more_than_have_room():
    promotion = at_first_rung([2.0] * 6, 9, 1 / 9, 3)
    assert promotion.next() == GoOn(0)
    promotion.on_start(0, {})
    assert promotion.next() == GoOn(1)
    promotion.on_start(1, {})
    assert promotion.next() is None


def test_a_whole_trial_is_never_paused():
    promotion = Promotion(9, 1 / 9, 3)
    assert report(promotion, 0, 9, 1.0) == Action.GO_ON  # its first report: it counts at both rungs
    assert promotion.paused == {}
    for trial in (1, 2):
        report(promotion, trial, 3, 2.0)
    assert promotion.next() is None  # the best is not paused, and of the others none has room
    promotion = Promotion(9, 1.0, 3)
    assert promotion.rungs == []
    assert report(promotion, 0, 8, 1.0) == report(promotion, 0, 9, 1.0) == Action.GO_ON
    assert promotion.next() is None


def test_a_paused_trial_whose_last_epochs_all_come_late_is_whole():
    promotion = at_first_rung([1.0, 2.0, 3.0], 9, 1 / 3, 3)
    assert report(promotion, 0, 9, 1.0) == Action.GO_ON
    assert promotion.next() is None


def test_a_late_report_short_of_the_next_rung_changes_nothing():
    promotion = at_first_rung([1.0, 2.0, 3.0], 9, 1 / 9, 3)
    assert report(promotion, 2, 2, 0.0) == Action.PAUSE
    assert promotion.paused == {0: 1, 1: 1, 2: 1}
    assert promotion.next() == GoOn(0)  # not 2, which was better only afterwards
    promotion.on_start(0, {})
    assert report(promotion, 0, 2, 1.0) == Action.GO_ON
    assert report(promotion, 0, 4, 1.0) == Action.PAUSE  # judged at rung 3


def test_a_late_report_that_reaches_the_next_rung_stands_there_and_is_not_passed_over():
    promotion = at_first_rung([1.0, 2.0, 3.0], 9, 1 / 9, 3)
    assert report(promotion, 2, 3, 0.0) == Action.PAUSE
    assert promotion.paused == {0: 1, 1: 1, 2: 3}
    assert promotion.next() == GoOn(0)
    for trial, value in ((0, 5.0), (1, 6.0)):
        promotion.on_start(trial, {})
        report(promotion, trial, 3, value)
    assert promotion.next() == GoOn(2)  # one of three, by its value there
    promotion.on_start(2, {})
    assert report(promotion, 2, 4, 0.0) == Action.GO_ON


def test_a_report_that_passes_two_rungs_pauses_at_the_higher_and_counts_in_both():
    promotion = at_first_rung([1.0, 2.0], 9, 1 / 9, 3)
    promotion.on_start(2, {})
    assert report(promotion, 2, 4, 0.0) == Action.PAUSE
    assert promotion.paused[2] == 3
    assert promotion.next() is None  # the one place at rung 1 is that of 2, which has had it
    for trial in (3, 4, 5):
        promotion.on_start(trial, {})
        report(promotion, trial, 1, 9.0)
    assert promotion.next() == GoOn(0)


def test_a_trial_that_must_run_whole_does_no_harm():
    promotion = Promotion(9, 1 / 9, 3)
    for fidelity in range(1, 10):
        if report(promotion, 0, fidelity, 9.0) == Action.PAUSE:
            promotion.on_start(0, {})
        assert promotion.next() is None
        assert promotion.paused == {}
    promotion.on_end(0, Outcome.COMPLETE)
    for trial, value in ((1, 1.0), (2, 2.0)):
        report(promotion, trial, 1, value)
    assert promotion.next() == GoOn(1)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED, Outcome.PRUNED])
def test_an_ended_trial_keeps_its_value_and_never_goes_on(outcome):
    promotion = at_first_rung([1.0, 2.0, 3.0], 9, 1 / 9, 3)
    promotion.on_end(0, outcome)
    assert promotion.paused == {1: 1, 2: 1}
    assert promotion.next() is None
    assert report(promotion, 0, 3, 0.0) == Action.STOP
    assert promotion.paused == {1: 1, 2: 1}
    report(promotion, 3, 1, 4.0)
    report(promotion, 4, 1, 4.0)
    assert promotion.next() is None
    report(promotion, 5, 1, 4.0)
    assert promotion.next() == GoOn(1)  # the second of six
    promotion = at_first_rung([1.0], 9, 1 / 9, 3)
    for trial in range(1, 9):
        promotion.on_end(trial, outcome)
    assert promotion.next() is None  # those make no room


@pytest.mark.parametrize("outcome", [Outcome.INTERRUPTED, Outcome.PAUSED])
def test_an_interruption_is_no_end(outcome):
    promotion = at_first_rung([1.0, 2.0, 3.0], 9, 1 / 9, 3)
    promotion.on_end(0, outcome)
    assert promotion.next() == GoOn(0)


@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.OUT_OF_MEMORY])
def test_a_trial_without_a_value_makes_room_at_the_next_rung_only(outcome):
    promotion = at_first_rung([1.0], 9, 1 / 9, 3)
    promotion.on_end(1, outcome)
    promotion.on_end(1, outcome)  # heard twice
    assert promotion.next() is None
    promotion.on_end(2, outcome)
    assert promotion.next() == GoOn(0)  # one value and two losers
    promotion.on_start(0, {})
    report(promotion, 0, 3, 1.0)
    assert promotion.next() is None  # at rung 3 it is alone
    for trial in (3, 4):
        report(promotion, trial, 1, 0.0)
        promotion.on_start(trial, {})
        promotion.on_end(trial, outcome)  # on its way to rung 3
    assert promotion.next() == GoOn(0)


def test_two_objectives_take_a_spread_of_the_front():
    promotion = Promotion(9, 1 / 9, 2)
    for trial, losses in enumerate([(4.0, 4.0), (0.0, 3.0), (3.0, 0.0), (3.5, 3.5)]):
        report(promotion, trial, 1, *losses)
    first = promotion.next()
    promotion.on_start(first.trial, {})
    second = promotion.next()
    promotion.on_start(second.trial, {})
    assert {first.trial, second.trial} == {1, 2}
    assert promotion.next() is None


@settings(max_examples=200)
@given(
    st.integers(1, 2).flatmap(
        lambda objectives: st.lists(
            st.tuples(st.integers(0, 5), st.tuples(*[st.integers(0, 4).map(float)] * objectives)), max_size=60
        )
    ),
    st.integers(2, 3),
)
def test_what_goes_on_is_what_the_algorithm_says(steps, reduction):
    """`get_job` of the paper over whole tables, against any order in which a few workers come in."""
    promotion = Promotion(12, 1 / 12, reduction)
    tables = [{} for _ in promotion.rungs]
    promoted = [set() for _ in promotion.rungs]
    running, new = [], 0

    def get_job():
        for level in reversed(range(len(tables))):
            trials = sorted(tables[level])
            order = ranking([losses for losses, _ in sorted((tables[level][t], t) for t in trials)])
            ranked = [t for _, t in sorted((tables[level][t], t) for t in trials)]
            for index in order[: len(trials) // reduction]:
                if ranked[index] not in promoted[level]:
                    return level, ranked[index]
        return None

    for pick, losses in steps:
        if pick < len(running):
            trial, level = running.pop(pick)
            fidelity = promotion.rungs[level] if level < len(tables) else 12
            action = report(promotion, trial, fidelity, *losses)
            assert action == (Action.PAUSE if level < len(tables) else Action.GO_ON)
            if level < len(tables):
                tables[level][trial] = losses
            continue
        job, start = get_job(), promotion.next()
        assert promotion.next() == start
        if job is None:
            assert start is None
            running.append((new, 0))
            promotion.on_start(new, {})
            new += 1
        else:
            level, trial = job
            assert start == GoOn(trial)
            promotion.on_start(trial, {})
            promoted[level].add(trial)
            running.append((trial, level + 1))
