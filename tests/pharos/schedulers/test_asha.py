"""ASHA: equal fidelity, no hindsight, and the first to arrive goes on."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharos.schedulers.asha import Asha
from pharos.schedulers.base import GO_ON, Action, NeverStop
from pharos.search.fronts import ranking
from pharos.trial import Outcome


def goes_on(scheduler, trial, fidelity, *losses):
    decision = scheduler.on_report(trial, fidelity, losses)
    assert decision.action in (Action.GO_ON, Action.STOP)
    assert bool(decision.reason) is (decision.action == Action.STOP)
    return decision.action == Action.GO_ON


def test_the_first_to_arrive_goes_on_however_bad():
    assert goes_on(Asha(9, 1 / 9, 3), 0, 1, 1e9)


def test_arrivals_at_one_rung_by_hand():
    asha = Asha(9, 1 / 9, 3)
    arrivals = [(5.0, True), (4.0, True), (6.0, False), (4.5, False), (3.0, True), (3.5, True), (3.6, False)]
    for trial, (value, expected) in enumerate(arrivals):
        assert goes_on(asha, trial, 1, value) is expected, (trial, value)


def test_one_in_reduction_goes_on_once_enough_have_arrived():
    asha = Asha(9, 1 / 9, 3)
    assert [goes_on(asha, trial, 1, -float(trial)) for trial in range(9)] == [True] * 9  # each the best so far
    # With 2, one more would go on than a third of all so far; 12 make room for the fourth.
    later = [(9, -5.5, False), (10, -5.5, False), (11, -5.5, True), (12, -5.4, False)]
    for trial, value, expected in later:
        assert goes_on(asha, trial, 1, value) is expected, trial


def test_the_reason_says_place_and_limit():
    asha = Asha(90, 0.2, 3)
    for trial in range(18):
        asha.on_report(trial, 18, (float(trial),))
    assert asha.on_report(18, 18, (12.5,)).reason == "rung 18: 14th of 19, the best 6 go on"
    asha = Asha(90, 0.2, 3)
    asha.on_report(0, 54, (0.0,))
    assert asha.on_report(1, 55, (1.0,)).reason == "rung 54: 2nd of 2, the best goes on"


def test_nothing_is_decided_between_rungs():
    asha = Asha(9, 1 / 3, 3)  # one rung, at 3
    for fidelity in (1, 2, 3):
        asha.on_report(0, fidelity, (0.0,))
    assert goes_on(asha, 1, 1, 9.0)
    assert goes_on(asha, 1, 2, 9.0)
    assert not goes_on(asha, 1, 3, 9.0)
    assert goes_on(asha, 1, 4, 9.0)


def test_a_trial_that_reports_seldom_is_judged_at_its_first_report_past_the_rung():
    asha = Asha(9, 1 / 3, 3)
    asha.on_report(0, 2, (5.0,))
    asha.on_report(0, 4, (1.0,))
    assert goes_on(asha, 1, 2, 0.0)
    assert not goes_on(asha, 1, 5, 2.0)  # 2.0 against 1.0, both first past the rung


def test_a_report_that_passes_two_rungs_counts_in_both_and_is_judged_at_the_higher():
    asha = Asha(9, 1 / 9, 3)  # rungs 1 and 3
    asha.on_report(0, 1, (0.0,))
    assert goes_on(asha, 1, 4, 7.0)  # alone at rung 3, though the worse at rung 1
    assert asha.on_report(2, 1, (8.0,)).reason == "rung 1: 3rd of 3, the best goes on"


def test_trials_that_stopped_before_the_rung_are_no_peers():
    asha = Asha(9, 1 / 3, 3)
    asha.on_report(0, 2, (0.0,))
    asha.on_end(0, Outcome.PRUNED)
    assert goes_on(asha, 1, 3, 9.0)


def test_a_tie_with_the_last_that_goes_on_goes_on():
    asha = Asha(9, 1 / 9, 3)
    assert all(goes_on(asha, trial, 1, 2.0) for trial in range(5))


def test_a_whole_trial_is_never_stopped_but_counts():
    asha = Asha(9, 1 / 9, 3)
    asha.on_report(0, 9, (1.0,))
    assert goes_on(asha, 1, 9, 2.0)
    assert not goes_on(asha, 2, 3, 3.0)


def test_an_epoch_told_again_changes_nothing():
    asha = Asha(9, 1 / 3, 3)
    asha.on_report(0, 3, (1.0,))
    asha.on_report(0, 3, (0.0,))
    asha.on_report(0, 2, (0.0,))
    assert asha.on_report(1, 3, (2.0,)).reason == "rung 3: 2nd of 2, the best goes on"


def test_what_is_reported_after_the_end_is_ignored():
    asha = Asha(9, 1 / 9, 3)
    asha.on_report(0, 1, (0.0,))
    assert not goes_on(asha, 1, 1, 1.0)
    asha.on_end(1, Outcome.PRUNED)
    assert not goes_on(asha, 1, 3, -1.0)
    assert goes_on(asha, 2, 3, 5.0)  # the first at rung 3


@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.OUT_OF_MEMORY])
def test_a_trial_without_a_value_makes_room_in_the_next_rung_like_a_bad_one(outcome):
    asha = Asha(9, 1 / 9, 3)  # rungs 1 and 3
    for trial, value in enumerate([0.0, 1.0]):
        asha.on_report(trial, 1, (value,))
    asha.on_end(1, outcome)  # after rung 1
    asha.on_end(1, outcome)  # heard twice
    asha.on_report(2, 3, (0.5,))  # in both rungs
    asha.on_end(3, outcome)  # before rung 1
    asha.on_end(4, outcome)
    # Rung 1: 0.0, 0.5, 1.0 and two losers; with this one 6, of which 2 go on.
    assert asha.on_report(5, 1, (0.7,)).reason == "rung 1: 3rd of 6, the best 2 go on"
    # Rung 3: 0.5, and the loser 1; with this one 3.
    assert asha.on_report(0, 3, (0.6,)).reason == "rung 3: 2nd of 3, the best goes on"


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED, Outcome.PRUNED, Outcome.COMPLETE])
def test_no_other_end_makes_room(outcome):
    asha = Asha(9, 1 / 9, 3)
    asha.on_report(0, 1, (0.0,))
    for trial in range(1, 9):
        asha.on_end(trial, outcome)
    assert asha.on_report(9, 1, (1.0,)).reason == "rung 1: 2nd of 2, the best goes on"


def test_an_interruption_is_no_end():
    asha = Asha(9, 1 / 9, 3)
    asha.on_report(0, 1, (0.0,))
    asha.on_end(0, Outcome.INTERRUPTED)
    asha.on_report(0, 3, (0.0,))
    assert not goes_on(asha, 1, 3, 1.0)


def test_two_objectives_spare_the_front():
    asha = Asha(9, 1 / 9, 2)
    assert goes_on(asha, 0, 1, 0.0, 3.0)
    assert goes_on(asha, 1, 1, 3.0, 0.0)  # neither is better than the other, and the one that asks has the benefit
    assert not goes_on(asha, 2, 1, 4.0, 4.0)
    assert asha.on_report(3, 1, (3.5, 3.5)).reason == "rung 1: 3rd of 4, the best 2 go on"
    assert goes_on(asha, 4, 1, -1.0, -1.0)


def test_never_stop_never_stops():
    never = NeverStop()
    never.on_start(0, {})
    assert never.on_report(0, 1, (9.0,)) is GO_ON
    assert never.next() is None
    never.on_end(0, Outcome.COMPLETE)


def test_ten_thousand_trials_are_no_burden():
    asha = Asha(81, 1 / 81, 3)
    start = time.process_time()
    for trial in range(10_000):
        for fidelity in (1, 3, 9, 27):
            asha.on_report(trial, fidelity, (float(trial * 7919 % 10_007),))
    assert time.process_time() - start < 5  # it takes about 0.2 s; with a walk over all trials, minutes


def at(curve, rung):
    """By the definition: the value at the first report at or past the rung."""
    past = [fidelity for fidelity in curve if fidelity >= rung]
    return curve[min(past)] if past else None


def judged(rungs, reduction, curves, trial, fidelity):
    """By the definition, from everybody's curves: whether the trial that has just reported goes on."""
    reached = [r for r in rungs if min((f for f in curves[trial] if f >= r), default=0) == fidelity]
    if not reached:
        return True
    others = [value for n, curve in curves.items() if n != trial and (value := at(curve, max(reached))) is not None]
    order = ranking([curves[trial][fidelity], *sorted(others)])
    return order.index(0) < max(1, len(order) // reduction)


VALUES = st.floats(-1e6, 1e6).map(lambda value: round(value, 3)) | st.integers(0, 3).map(float)
CURVES = st.integers(1, 2).flatmap(
    lambda objectives: st.lists(
        st.dictionaries(st.integers(1, 9), st.tuples(*[VALUES] * objectives), min_size=1), min_size=1, max_size=12
    )
)
ASHAS = st.tuples(st.integers(1, 12), st.sampled_from([0.1, 0.2, 1 / 3, 0.5, 1.0]), st.integers(2, 4))


@settings(max_examples=150)
@given(ASHAS, CURVES, st.randoms())
def test_every_decision_is_that_of_the_definition(arguments, curves, random):
    asha = Asha(*arguments)
    waiting = {trial: sorted(curve) for trial, curve in enumerate(curves)}
    seen = {trial: {} for trial in waiting}
    while any(waiting.values()):
        trial = random.choice([trial for trial, left in waiting.items() if left])
        fidelity = waiting[trial].pop(0)
        seen[trial][fidelity] = curves[trial][fidelity]
        expected = fidelity >= arguments[0] or judged(asha.rungs, arguments[2], seen, trial, fidelity)
        assert goes_on(asha, trial, fidelity, *curves[trial][fidelity]) is expected


def after_all_others(arguments, curves, trial, until):
    """What is said to a trial whose report at `until` is the last of all."""
    asha = Asha(*arguments)
    for other, curve in enumerate(curves):
        for fidelity in sorted(curve):
            if other != trial or fidelity < until:
                asha.on_report(other, fidelity, curve[fidelity])
    return goes_on(asha, trial, until, *curves[trial][until])


@settings(max_examples=150)
@given(ASHAS, CURVES, st.data())
def test_the_best_at_a_rung_always_goes_on(arguments, curves, data):
    trial = data.draw(st.integers(0, len(curves) - 1))
    for rung in Asha(*arguments).rungs:
        peers = [curve[rung] for curve in curves if rung in curve]
        if rung in curves[trial] and curves[trial][rung] == tuple(map(min, zip(*peers, strict=True))):
            assert after_all_others(arguments, [{rung: c[rung]} if rung in c else {} for c in curves], trial, rung)


@settings(max_examples=150)
@given(ASHAS, CURVES, st.data())
def test_what_others_did_past_the_rung_decides_nothing(arguments, curves, data):
    trial = data.draw(st.integers(0, len(curves) - 1))
    fidelity = data.draw(st.sampled_from(sorted(curves[trial])))
    rungs = Asha(*arguments).rungs
    if fidelity not in rungs:
        return
    # Whoever reported at the rung itself is there with that value, whatever followed.
    curves = [curve if fidelity in curve or number == trial else {} for number, curve in enumerate(curves)]
    cut = [{f: v for f, v in curve.items() if f <= fidelity} for curve in curves]
    assert after_all_others(arguments, curves, trial, fidelity) is after_all_others(arguments, cut, trial, fidelity)


@settings(max_examples=150)
@given(ASHAS, CURVES, st.data())
def test_a_better_value_never_turns_going_on_into_stopping(arguments, curves, data):
    curves = [{fidelity: losses[:1] for fidelity, losses in curve.items()} for curve in curves]
    trial = data.draw(st.integers(0, len(curves) - 1))
    until = max(curves[trial])
    better = [dict(curve) for curve in curves]
    better[trial][until] = (curves[trial][until][0] - 1,)
    if after_all_others(arguments, curves, trial, until):
        assert after_all_others(arguments, better, trial, until)
