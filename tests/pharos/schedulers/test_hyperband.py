"""HyperBand: its brackets' sizes are the paper's, and a trial's bracket is a matter of its number."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.schedulers.asha import Asha
from pharos.schedulers.base import GO_ON, Action
from pharos.schedulers.hyperband import Hyperband
from pharos.trial import Outcome


def test_brackets_start_one_rung_later_each():
    hyperband = Hyperband(81, 1 / 81, 3)
    assert [bracket.rungs for bracket in hyperband.brackets] == [[1, 3, 9, 27], [3, 9, 27], [9, 27], [27], []]
    assert [bracket.rungs for bracket in Hyperband(10, 1.0, 3).brackets] == [[]]
    assert [bracket.rungs for bracket in Hyperband(100, 0.07, 3).brackets] == [[7, 21, 63], [21, 63], [63], []]


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ((81, 1 / 81, 3), [81, 34, 15, 8, 5]),  # Li et al. 2018, table 1, but for 33.75, which algorithm 1 rounds up
        ((90, 0.2, 3), [9, 5, 3]),  # 3/3 * 9, 3/2 * 3, 3/1 * 1
        ((16, 0.25, 2), [4, 3, 3]),
        ((10, 1.0, 3), [1]),
    ],
)
def test_each_round_has_the_papers_brackets(arguments, sizes):
    hyperband = Hyperband(*arguments)
    for start in (0, sum(sizes), 7 * sum(sizes)):
        trials = Counter(hyperband.bracket(trial) for trial in range(start, start + sum(sizes)))
        assert [trials[bracket] for bracket in range(len(sizes))] == sizes


def test_the_first_trials_by_hand():
    # Sizes 9, 5 and 3 of 17: each time the one that is owed most.
    assert [Hyperband(90, 0.2, 3).bracket(trial) for trial in range(8)] == [0, 1, 0, 2, 0, 1, 0, 2]


@given(st.integers(2, 81), st.sampled_from([1 / 81, 0.1, 0.3]), st.integers(2, 4), st.integers(0, 400))
def test_brackets_are_well_mixed_from_the_first_trial_on(max_fidelity, grace, reduction, trials):
    hyperband = Hyperband(max_fidelity, grace, reduction)
    whole = Counter(hyperband._round)
    so_far = Counter(hyperband.bracket(trial) for trial in range(trials))
    for bracket, size in whole.items():
        assert abs(so_far[bracket] - trials * size / whole.total()) < len(whole)


def test_each_bracket_is_an_asha_of_its_own():
    hyperband = Hyperband(90, 0.2, 3)
    zeroth = [trial for trial in range(17) if hyperband.bracket(trial) == 0]
    first = [trial for trial in range(17) if hyperband.bracket(trial) == 1]
    last = [trial for trial in range(17) if hyperband.bracket(trial) == 2]
    alone = Asha(90, 0.2, 3)
    for place, trial in enumerate(zeroth):
        expected = alone.on_report(trial, 18, (float(place % 4),))
        decision = hyperband.on_report(trial, 18, (float(place % 4),))
        assert decision.action == expected.action
        assert decision.reason == (f"bracket 0, {expected.reason}" if expected.reason else "")
    for trial in first + last:
        assert hyperband.on_report(trial, 18, (1e6,)) is GO_ON  # no rung of theirs
    for trial in last:
        assert hyperband.on_report(trial, 54, (1e6 + trial,)) is GO_ON
    assert hyperband.on_report(first[0], 54, (1.0,)) is GO_ON  # the first of its bracket there
    assert hyperband.on_report(first[1], 54, (2.0,)).reason == "bracket 1, rung 54: 2nd of 2, the best goes on"


def test_ends_are_heard_by_their_bracket():
    hyperband = Hyperband(90, 0.2, 3)
    first = [trial for trial in range(60) if hyperband.bracket(trial) == 1]
    hyperband.on_report(first[0], 54, (1.0,))
    for trial in first[1:5]:
        hyperband.on_end(trial, Outcome.DIVERGED)
    assert hyperband.on_report(first[5], 54, (2.0,)).action == Action.GO_ON  # the 2nd of 6
    assert hyperband.on_report(first[1], 54, (0.0,)).action == Action.STOP  # it has ended
    zeroth = [trial for trial in range(60) if hyperband.bracket(trial) == 0]
    hyperband.on_report(zeroth[0], 54, (1.0,))
    assert hyperband.on_report(zeroth[1], 54, (2.0,)).action == Action.STOP
