"""ASHA: equal fidelity, no hindsight, and the first to arrive goes on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharos.scheduler import Asha, NeverStop


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
    ],
)
def test_rungs_grow_by_the_reduction_and_end_before_a_whole_trial(max_fidelity, grace, reduction, rungs):
    assert Asha(max_fidelity, grace, reduction).rungs == rungs


def test_the_first_to_arrive_goes_on_however_bad():
    assert Asha(9, 1 / 9, 3).goes_on({0: {1: 1e9}}, 0, 1)


def test_arrivals_at_one_rung_by_hand():
    asha = Asha(9, 1 / 9, 3)
    arrivals = [(5.0, True), (4.0, True), (6.0, False), (4.5, False), (3.0, True), (3.5, True), (3.6, False)]
    curves = {}
    for trial, (value, expected) in enumerate(arrivals):
        curves[trial] = {1: value}
        assert asha.goes_on(curves, trial, 1) is expected, (trial, value)


def test_one_in_reduction_goes_on_once_enough_have_arrived():
    asha = Asha(9, 1 / 9, 3)
    curves = {trial: {1: float(trial)} for trial in range(9)}
    assert [asha.goes_on(curves, trial, 1) for trial in range(9)] == [True] * 3 + [False] * 6


def test_nothing_is_decided_between_rungs():
    asha = Asha(9, 1 / 3, 3)  # one rung, at 3
    curves = {0: {1: 0.0, 2: 0.0, 3: 0.0}, 1: {1: 9.0, 2: 9.0, 3: 9.0, 4: 9.0}}
    assert asha.goes_on(curves, 1, 2)
    assert not asha.goes_on(curves, 1, 3)
    assert asha.goes_on(curves, 1, 4)


def test_a_trial_that_reports_seldom_is_judged_at_its_first_report_past_the_rung():
    asha = Asha(9, 1 / 3, 3)
    curves = {0: {2: 5.0, 4: 1.0}, 1: {2: 0.0, 5: 2.0}}
    assert asha.goes_on(curves, 1, 2)
    assert not asha.goes_on(curves, 1, 5)  # 2.0 against 1.0, both first past the rung


def test_a_report_that_passes_two_rungs_is_judged_at_the_higher():
    asha = Asha(9, 1 / 9, 3)  # rungs 1 and 3
    curves = {0: {1: 0.0, 2: 0.0}, 1: {4: 7.0}}
    assert asha.goes_on(curves, 1, 4)  # alone at rung 3, though the worse at rung 1


def test_trials_that_stopped_before_the_rung_are_no_peers():
    asha = Asha(9, 1 / 3, 3)
    curves = {0: {1: 0.0, 2: 0.0}, 1: {1: 9.0, 2: 9.0, 3: 9.0}}
    assert asha.goes_on(curves, 1, 3)


def test_a_tie_with_the_last_that_goes_on_goes_on():
    asha = Asha(9, 1 / 9, 3)
    assert asha.goes_on({trial: {1: 2.0} for trial in range(5)}, 4, 1)


def test_never_stop_never_stops():
    assert NeverStop().goes_on({0: {1: 0.0}, 1: {1: 9.0}}, 1, 1)


VALUES = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
CURVES = st.lists(st.lists(VALUES, min_size=1, max_size=9), min_size=1, max_size=12).map(
    lambda curves: {trial: dict(enumerate(values, 1)) for trial, values in enumerate(curves)}
)
ASHAS = st.builds(Asha, st.integers(1, 12), st.sampled_from([0.1, 0.2, 1 / 3, 0.5, 1.0]), st.integers(2, 4))


@settings(max_examples=150)
@given(ASHAS, CURVES, st.data())
def test_the_best_at_a_rung_always_goes_on(asha, curves, data):
    trial = data.draw(st.sampled_from(sorted(curves)))
    for rung in asha.rungs:
        peers = [curve[rung] for curve in curves.values() if rung in curve]
        if rung in curves[trial] and curves[trial][rung] == min(peers):
            assert asha.goes_on(curves, trial, rung)


@settings(max_examples=150)
@given(ASHAS, CURVES, st.data())
def test_what_others_did_past_the_rung_decides_nothing(asha, curves, data):
    trial = data.draw(st.sampled_from(sorted(curves)))
    fidelity = data.draw(st.sampled_from(sorted(curves[trial])))
    cut = {
        number: curve if number == trial else {f: v for f, v in curve.items() if f <= fidelity}
        for number, curve in curves.items()
    }
    assert asha.goes_on(curves, trial, fidelity) is asha.goes_on(cut, trial, fidelity)


@settings(max_examples=150)
@given(ASHAS, CURVES, st.data())
def test_a_better_value_never_turns_going_on_into_stopping(asha, curves, data):
    trial = data.draw(st.sampled_from(sorted(curves)))
    fidelity = max(curves[trial])
    better = {**curves, trial: {**curves[trial], fidelity: curves[trial][fidelity] - 1}}
    if asha.goes_on(curves, trial, fidelity):
        assert asha.goes_on(better, trial, fidelity)
