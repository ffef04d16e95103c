"""Rungs: where they lie, who is the best there, and what must never get in."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.schedulers.asha import Asha
from pharos.schedulers.hyperband import Hyperband
from pharos.schedulers.median import Median
from pharos.schedulers.pbt import Pbt
from pharos.schedulers.promotion import Promotion
from pharos.schedulers.rungs import Ladder, Rung, fidelity_at, ladder, ordinal
from pharos.search.fronts import ranking
from pharos.space import Space


@pytest.mark.parametrize(
    ("max_fidelity", "grace", "reduction", "rungs"),
    [
        (90, 0.2, 3, [18, 54]),
        (81, 1 / 81, 3, [1, 3, 9, 27]),
        (100, 0.1, 4, [10, 40]),
        (4, 0.2, 3, [1, 3]),
        (10, 1.0, 3, []),
        (1, 0.2, 3, []),
        (16, 0.25, 2, [4, 8]),
        (100, 0.07, 3, [7, 21, 63]),  # not 8, 22, 64, though 0.07 * 100 > 7 in binary
        (12, 0.01, 2, [1, 2, 4, 8]),  # 0.12, 0.24, 0.48 and 0.96 of an epoch are one rung
    ],
)
def test_rungs_grow_by_the_reduction_and_end_before_a_whole_trial(max_fidelity, grace, reduction, rungs):
    assert ladder(max_fidelity, grace, reduction) == rungs
    assert Asha(max_fidelity, grace, reduction).rungs == rungs
    assert Promotion(max_fidelity, grace, reduction).rungs == rungs


@pytest.mark.parametrize(("share", "max_fidelity", "fidelity"), [(0.5, 9, 5), (1 / 3, 9, 3), (1e-9, 9, 1), (1.0, 9, 9)])
def test_a_share_is_the_first_fidelity_at_which_it_is_done(share, max_fidelity, fidelity):
    assert fidelity_at(share, max_fidelity) == fidelity


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (10, "10th"), (11, "11th"), (12, "12th"), (13, "13th")],
)
def test_ordinals(number, words):
    assert ordinal(number) == words
    if number < 10:
        assert ordinal(number + 20) == f"2{words}"
    assert ordinal(number + 100) == f"1{words}" if number >= 10 else f"10{words}"


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "scheduler",
    [
        Asha(9, 1 / 3, 3),
        Promotion(9, 1 / 3, 3),
        Hyperband(9, 1 / 3, 3),
        Median(9, 1 / 3, 1),
        Pbt(9, Space([]), {}, 4, 1 / 3),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_no_scheduler_hears_what_is_no_number(scheduler, loss):
    for fidelity in (1, 3, 9):
        with pytest.raises(ValueError, match="finite"):
            scheduler.on_report(0, fidelity, (loss,))


def test_a_rung_by_hand():
    rung = Rung()
    for trial, loss in enumerate([5.0, 3.0, 4.0, 3.0]):
        rung.add(trial, (loss,))
    assert rung.best(9) == [1, 3, 2, 0]
    assert rung.best(2) == [1, 3]
    assert [rung.place(trial, (loss,)) for trial, loss in enumerate([5.0, 3.0, 4.0, 3.0])] == [3, 0, 2, 0]
    rung.losers += 2
    assert len(rung) == 6
    assert rung.best(9) == [1, 3, 2, 0]


def test_a_rung_of_two_objectives_puts_the_first_front_first():
    rung = Rung()
    losses = [(2.0, 2.0), (0.0, 3.0), (3.0, 0.0), (1.0, 1.0), (3.0, 3.0)]
    for trial, entry in enumerate(losses):
        rung.add(trial, entry)
    assert set(rung.best(3)) == {1, 2, 3}
    assert rung.best(9)[3:] == [0, 4]
    assert rung.place(4, losses[4]) == 4
    rung.add(5, (-1.0, -1.0))
    assert rung.best(1) == [5]  # though it was asked before it came


LOSSES = st.integers(1, 3).flatmap(
    lambda objectives: st.lists(st.tuples(*[st.integers(0, 4).map(float)] * objectives), min_size=1, max_size=12)
)


@given(LOSSES, st.randoms())
def test_a_rung_does_not_know_in_which_order_trials_came(losses, random):
    arrivals = list(enumerate(losses))
    one, other = Rung(), Rung()
    for trial, entry in arrivals:
        one.add(trial, entry)
    random.shuffle(arrivals)
    for trial, entry in arrivals:
        other.add(trial, entry)
        other.best(1)
    assert one.best(99) == other.best(99)
    assert [one.place(*arrival) for arrival in arrivals] == [other.place(*arrival) for arrival in arrivals]


@given(LOSSES)
def test_places_are_those_of_the_ranking_with_the_trial_first_among_equals(losses):
    rung = Rung()
    for trial, entry in enumerate(losses):
        rung.add(trial, entry)
    for trial, entry in enumerate(losses):
        others = sorted(losses[:trial] + losses[trial + 1 :])
        assert rung.place(trial, entry) == ranking([entry, *others]).index(0)


def test_a_report_counts_at_every_rung_that_it_reaches_first():
    steps = Ladder([1, 3, 9])
    assert steps.enter(0, 2, (5.0,)) == 0
    assert steps.enter(0, 2, (4.0,)) is None
    assert steps.enter(1, 10, (1.0,)) == 2
    assert steps.enter(0, 3, (3.0,)) == 1
    assert [len(rung) for rung in steps.rungs] == [2, 2, 1]
    assert steps.rungs[0].best(2) == [1, 0]
    assert steps.rungs[0].place(0, (5.0,)) == 1
    assert len(steps.ahead(0)) == 1
    assert len(steps.ahead(1)) == 0
    assert len(steps.ahead(2)) == 3


def test_who_starts_in_the_middle_is_in_no_rung_before():
    steps = Ladder([2, 4, 6])
    steps.start_at(0, 4)
    assert steps.enter(0, 4, (1.0,)) == 1
    steps.start_at(0, 7)  # it has started
    assert steps.enter(0, 7, (1.0,)) == 2
    steps.start_at(1, 5)
    assert steps.enter(1, 5, (1.0,)) is None
    assert [len(rung) for rung in steps.rungs] == [0, 1, 1]
