"""The median rule: a trial's best against the others' averages, at equal fidelity."""

import statistics
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharos.errors import InputError
from pharos.schedulers.base import GO_ON, Action
from pharos.schedulers.median import Median
from pharos.trial import Outcome


def tell(median, trial, *values):
    """Reports from fidelity 1 on; the last decision."""
    for fidelity, value in enumerate(values, 1):
        decision = median.on_report(trial, fidelity, (value,))
    return decision


def test_by_hand():
    median = Median(10, 0.2, 3)  # from epoch 2 on
    tell(median, 0, 9.0, 3.0, 3.0)  # averages 9, 6, 5
    tell(median, 1, 2.0, 2.0, 2.0)  # 2, 2, 2
    tell(median, 2, 4.0, 6.0, 5.0)  # 4, 5, 5
    # At epoch 1 too early; at epoch 2 the median of 6, 2, 5 is 5; at epoch 3 that of 5, 2, 5.
    assert tell(median, 3, 100.0) is GO_ON
    decision = median.on_report(3, 2, (5.5,))
    assert decision.action == Action.STOP
    assert decision.reason == "epoch 2: its best, 5.5, is worse than 5, the median of 3 others"
    assert tell(median, 4, 5.0, 7.0) is GO_ON  # its best is 5, the median of 6, 2, 5 and 52.75 is 5.5
    assert median.on_report(4, 3, (6.0,)) is GO_ON


def test_it_is_the_best_so_far_that_counts_not_the_last():
    median = Median(10, 0.1, 1)
    tell(median, 0, 3.0, 3.0, 3.0)
    assert tell(median, 1, 2.0, 9.0, 9.0) is GO_ON
    assert tell(median, 2, 3.0, 9.0, 9.0) is GO_ON  # no worse than the median


def test_it_is_the_average_of_others_that_counts_not_their_last():
    median = Median(10, 0.1, 1)
    tell(median, 0, 9.0, 1.0)
    assert tell(median, 1, 9.0, 4.9) is GO_ON
    median = Median(10, 0.1, 1)
    tell(median, 0, 9.0, 1.0)
    assert tell(median, 1, 9.0, 5.1).action == Action.STOP


def test_an_even_number_of_others_has_its_median_in_the_middle():
    median = Median(10, 0.1, 2)
    tell(median, 0, 1.0)
    tell(median, 1, 2.0)
    assert tell(median, 2, 1.5) is GO_ON
    assert Median(10, 0.1, 2).on_report(0, 1, (1.5,)) is GO_ON
    median = Median(10, 0.1, 2)
    tell(median, 0, 1.0)
    tell(median, 1, 2.0)
    assert tell(median, 2, 1.6).action == Action.STOP


@pytest.mark.parametrize("needed", [1, 2, 5])
def test_enough_others_must_have_reported_there(needed):
    median = Median(10, 0.1, needed)
    for trial in range(needed):
        assert tell(median, trial, float(trial)) is GO_ON
    assert tell(median, 99, 1e3).action == Action.STOP
    median = Median(10, 0.1, needed)
    for trial in range(needed - 1):
        tell(median, trial, float(trial))
    assert tell(median, 99, 1e3) is GO_ON


def test_a_trial_is_none_of_its_own_others():
    median = Median(10, 0.1, 1)
    assert tell(median, 0, 1.0, 2.0, 3.0) is GO_ON
    median.on_report(1, 3, (0.0,))
    assert median.on_report(0, 4, (9.0,)) is GO_ON


def test_nothing_is_stopped_in_the_grace_nor_at_the_end():
    median = Median(3, 0.5, 1)  # epoch 2
    tell(median, 0, 1.0, 1.0, 1.0)
    assert median.on_report(1, 1, (9.0,)) is GO_ON
    assert median.on_report(1, 2, (9.0,)).action == Action.STOP
    assert median.on_report(1, 3, (9.0,)) is GO_ON


@pytest.mark.parametrize("outcome", [Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED, Outcome.FAILED])
def test_ended_trials_count_with_what_they_reported_and_with_nothing_later(outcome):
    median = Median(10, 0.1, 1)
    tell(median, 0, 1.0)
    median.on_end(0, outcome)
    assert median.on_report(0, 2, (1.0,)).action == Action.STOP
    assert tell(median, 1, 2.0).action == Action.STOP
    assert median.on_report(1, 2, (2.0,)) is GO_ON  # the first there


def test_an_interrupted_trial_goes_on_with_its_average():
    median = Median(10, 0.1, 1)
    tell(median, 0, 9.0)
    median.on_end(0, Outcome.INTERRUPTED)
    median.on_report(0, 2, (1.0,))
    assert median.on_report(1, 2, (5.1,)).reason.endswith("worse than 5, the median of 1 other")


def test_an_epoch_told_again_changes_nothing():
    median = Median(10, 0.1, 1)
    tell(median, 0, 5.0, 5.0)
    tell(median, 0, 0.0, 0.0)
    assert median.on_report(1, 2, (4.0,)) is GO_ON
    assert median.on_report(2, 2, (4.6,)).reason.endswith("worse than 4.5, the median of 2 others")


def test_several_objectives_are_refused_in_one_line():
    with pytest.raises(
        InputError, match="scheduler=median compares one objective, not 2; scheduler=asha takes several"
    ):
        Median(10, 0.1, 1, objectives=2)


def test_ten_thousand_trials_are_no_burden():
    median = Median(100, 0.1, 5)
    start = time.process_time()
    for trial in range(10_000):
        for fidelity in range(1, 11):
            median.on_report(trial, fidelity, (float(trial * 7919 % 10_007),))
    assert time.process_time() - start < 10  # it takes about 0.3 s


@settings(max_examples=150)
@given(
    st.lists(st.dictionaries(st.integers(1, 6), st.integers(-5, 5), min_size=1), min_size=1, max_size=10),
    st.integers(1, 3),
    st.randoms(),
)
def test_every_decision_is_that_of_the_definition(curves, min_trials, random):
    median = Median(6, 1 / 3, min_trials)
    seen = {trial: {} for trial in range(len(curves))}
    waiting = {trial: sorted(curve) for trial, curve in enumerate(curves)}
    while any(waiting.values()):
        trial = random.choice([trial for trial, left in waiting.items() if left])
        fidelity = waiting[trial].pop(0)
        seen[trial][fidelity] = curves[trial][fidelity]
        averages = [
            sum(value for f, value in curve.items() if f <= fidelity) / len([f for f in curve if f <= fidelity])
            for other, curve in seen.items()
            if other != trial and fidelity in curve
        ]
        stops = (
            2 <= fidelity < 6
            and len(averages) >= min_trials
            and min(seen[trial].values()) > statistics.median(averages)
        )
        decision = median.on_report(trial, fidelity, (float(curves[trial][fidelity]),))
        assert (decision.action == Action.STOP) is stops
