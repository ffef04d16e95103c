"""Population-based training: who is replaced, by whose clone, and with which values."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.errors import InputError
from pharos.schedulers.base import GO_ON, Action, Clone
from pharos.schedulers.pbt import Pbt, fitted
from pharos.space import Dimension, Space
from pharos.trial import Outcome

LR = Dimension("recipe.lr", FloatDistribution(1e-5, 1e-1, log=True), {})
LAYERS = Dimension("recipe.layers", IntDistribution(1, 40), {})
LOSS = Dimension("recipe.loss", CategoricalDistribution(("l1", "l2")), {})
SMOOTH = Dimension("recipe.smooth", FloatDistribution(0.0, 0.4, step=0.1), {"recipe.loss": ("l2",)})
SPACE = Space([LR, LAYERS, LOSS, SMOOTH])
DEFAULTS = {"recipe.lr": 1e-3, "recipe.layers": 4, "recipe.loss": "l1", "recipe.smooth": 0.0}
PARAMS = {"recipe.lr": 1e-3, "recipe.layers": 20, "recipe.loss": "l2", "recipe.smooth": 0.2}


def make(population=4, interval=1 / 3, *, quantile=0.25, keep=(), seed=0, max_fidelity=9):
    return Pbt(max_fidelity, SPACE, DEFAULTS, population, interval, quantile, keep, seed)


def started(pbt, count):
    for trial in range(count):
        pbt.on_start(trial, {**PARAMS, "recipe.layers": 10 + trial})
    return pbt


def arrive(pbt, fidelity, losses):
    """Trials report in the order of their numbers; the numbers of those that are stopped, and have ended."""
    stopped = []
    for trial, loss in losses.items():
        if pbt.on_report(trial, fidelity, loss if isinstance(loss, tuple) else (loss,)).action == Action.STOP:
            pbt.on_end(trial, Outcome.PRUNED)
            stopped.append(trial)
    return stopped


def test_the_worst_quarter_is_stopped_and_its_place_goes_to_a_clone_of_the_best():
    pbt = started(make(8), 8)
    assert pbt.needed == 4
    assert pbt.next() is None
    assert arrive(pbt, 3, {trial: float(trial) for trial in range(3)}) == []  # only three so far
    assert arrive(pbt, 3, {6: 0.5}) == []  # the second of four
    assert arrive(pbt, 3, {4: 4.0}) == [4]  # the last of five
    assert arrive(pbt, 3, {3: 3.5}) == []  # the fifth of six: a quarter of six is one
    assert arrive(pbt, 3, {5: 1.5}) == []
    decision = pbt.on_report(7, 3, (3.7,))
    assert decision.action == Action.STOP  # of eight, two
    assert decision.reason == "in the worst quarter at epoch 3 (7th of 8): replaced"
    pbt.on_end(7, Outcome.PRUNED)
    first = pbt.next()
    assert isinstance(first, Clone)
    assert first.replaces == 4
    assert first.donor in (0, 6)
    assert pbt.next() == first
    pbt.on_start(8, first.params, replaces=4)
    second = pbt.next()
    assert second.replaces == 7
    pbt.on_start(9, second.params, replaces=7)
    assert pbt.next() is None


def test_other_shares_are_percentages():
    pbt = started(make(10, quantile=0.2), 10)
    assert pbt.needed == 5
    arrive(pbt, 3, {trial: float(trial) for trial in range(4)})
    assert pbt.on_report(9, 3, (9.0,)).reason == "in the worst 20% at epoch 3 (5th of 5): replaced"


@pytest.mark.parametrize(("population", "needed"), [(2, 2), (3, 3), (4, 4), (7, 4), (8, 4), (9, 4), (10, 5), (40, 20)])
def test_enough_of_the_population_must_have_come(population, needed):
    pbt = started(make(population), needed)
    assert pbt.needed == needed
    for trial in range(needed - 1):
        assert pbt.on_report(trial, 3, (float(trial),)) is GO_ON
    assert pbt.on_report(needed - 1, 3, (99.0,)).action == Action.STOP


def test_the_only_one_is_never_the_worst():
    pbt = started(make(1), 1)
    assert pbt.needed == 2
    for fidelity in range(1, 10):
        assert pbt.on_report(0, fidelity, (float(fidelity),)) is GO_ON


def test_a_tie_is_in_favour_of_who_reports():
    pbt = started(make(4), 8)
    assert arrive(pbt, 3, dict.fromkeys(range(8), 1.0)) == []
    assert arrive(pbt, 6, {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0}) == []


@pytest.mark.parametrize(
    ("interval", "max_fidelity", "fidelities"),
    [(0.25, 10, [3, 6, 9]), (0.5, 4, [2]), (0.01, 4, [1, 2, 3]), (0.9, 5, [])],
)
def test_intervals_are_multiples_below_the_whole(interval, max_fidelity, fidelities):
    pbt = started(make(4, interval, max_fidelity=max_fidelity), 4)
    for fidelity in range(1, max_fidelity + 1):
        for trial in range(3):
            pbt.on_report(trial, fidelity, (float(trial),))
        is_worst = pbt.on_report(3, fidelity, (9.0,)).action == Action.STOP
        assert is_worst is (fidelity in fidelities)


def test_trials_are_compared_at_equal_fidelity():
    pbt = started(make(4), 5)
    arrive(pbt, 3, {trial: 5.0 + trial for trial in range(4)})
    arrive(pbt, 6, {trial: 1.0 + trial for trial in range(3)})
    assert pbt.on_report(4, 3, (6.5,)) is GO_ON  # far above all of epoch 6


def test_who_reports_seldom_is_judged_at_the_first_report_past_the_interval_and_at_the_higher_of_two():
    pbt = started(make(4), 8)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0})
    assert pbt.on_report(3, 5, (9.0,)).reason == "in the worst quarter at epoch 3 (4th of 4): replaced"
    assert pbt.on_report(4, 7, (9.0,)) is GO_ON  # the first at 6, though the last at 3
    arrive(pbt, 6, {0: 1.0, 1: 2.0})
    assert pbt.on_report(5, 8, (9.5,)).reason == "in the worst quarter at epoch 6 (4th of 4): replaced"


def test_without_a_donor_nobody_is_stopped():
    pbt = started(make(4), 4)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0})
    pbt.on_end(0, Outcome.COMPLETE)
    assert pbt.on_report(3, 3, (9.0,)) is GO_ON  # the best has ended, and has no epochs left to give
    assert pbt.next() is None


def test_a_whole_trial_is_neither_stopped_nor_a_donor_for_its_last_epoch():
    pbt = started(make(4), 5)
    assert arrive(pbt, 6, {0: 0.0, 1: 1.0, 2: 2.0}) == []
    assert pbt.on_report(3, 9, (9.0,)) is GO_ON  # its first report
    assert arrive(pbt, 9, {2: 0.0, 1: 1.0, 0: 2.0}) == []
    pbt.on_end(4, Outcome.DIVERGED)
    assert pbt.next().donor == 0  # the best at epoch 6


def test_a_trial_is_not_stopped_for_a_clone_of_itself():
    pbt = started(make(4), 4)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 1.5, 3: 0.0})
    arrive(pbt, 6, {0: 1.0, 1: 2.0, 2: 3.0})
    pbt.on_end(0, Outcome.COMPLETE)
    assert pbt.on_report(3, 6, (9.0,)) is GO_ON  # the only one left of the best, and that at epoch 3


def test_an_interrupted_trial_lives():
    pbt = started(make(4), 5)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0, 3: 2.5})
    pbt.on_end(0, Outcome.INTERRUPTED)
    pbt.on_end(4, Outcome.DIVERGED)
    assert pbt.next().donor == 0
    assert pbt.on_report(0, 4, (1.0,)) is GO_ON


def test_only_the_living_among_the_best_donate():
    pbt = started(make(8), 8)
    arrive(pbt, 3, {trial: float(trial) for trial in range(7)})
    pbt.on_end(0, Outcome.FAILED)
    assert arrive(pbt, 3, {7: 9.0}) == [7]
    assert {make_seeded(pbt, seed).next().donor for seed in range(20)} == {1}


def make_seeded(pbt, seed):
    pbt._seed = seed
    return pbt


def test_each_of_the_best_may_donate():
    pbt = started(make(8), 9)
    arrive(pbt, 3, {0: 5.0, 1: 0.0, 2: 5.0, 3: 0.1, 4: 5.0, 5: 5.0, 6: 5.0})
    assert arrive(pbt, 3, {7: 9.0}) == [7]
    assert {make_seeded(pbt, seed).next().donor for seed in range(40)} == {1, 3}


def test_donors_are_the_best_at_the_newest_fidelity_that_enough_reached():
    pbt = started(make(4), 8)
    arrive(pbt, 3, {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 2.5, 5: 1.5})  # 3 is stopped
    arrive(pbt, 6, {2: 0.5, 1: 0.7, 0: 0.9})
    assert pbt.next().donor == 0  # three at epoch 6 are too few
    assert arrive(pbt, 6, {4: 0.6}) == []
    assert pbt.next().donor == 2
    assert pbt.next().replaces == 3


def test_when_few_live_it_is_enough_that_all_of_them_are_there():
    pbt = started(make(4), 4)
    pbt.on_end(2, Outcome.DIVERGED)
    pbt.on_end(3, Outcome.OUT_OF_MEMORY)
    assert pbt.next() is None
    pbt.on_report(0, 3, (5.0,))
    assert pbt.next() is None  # 1 may be better
    pbt.on_report(1, 3, (1.0,))
    assert (pbt.next().donor, pbt.next().replaces) == (1, 2)
    pbt.on_start(4, PARAMS, replaces=2)
    assert pbt.next() is None  # three live now
    pbt.on_end(4, Outcome.FAILED)
    assert (pbt.next().donor, pbt.next().replaces) == (1, 3)
    pbt.on_start(5, PARAMS, replaces=3)
    assert pbt.next() is None


def test_nobody_is_left_to_donate():
    pbt = started(make(4), 2)
    pbt.on_report(0, 3, (1.0,))
    pbt.on_end(0, Outcome.DIVERGED)
    pbt.on_end(1, Outcome.DIVERGED)
    assert pbt.next() is None


@pytest.mark.parametrize(
    ("outcome", "is_replaced"),
    [
        (Outcome.PRUNED, True),
        (Outcome.DIVERGED, True),
        (Outcome.OUT_OF_MEMORY, True),
        (Outcome.COMPLETE, False),
        (Outcome.FAILED, False),
        (Outcome.CANCELLED, False),
        (Outcome.INTERRUPTED, False),
    ],
)
def test_which_ends_leave_a_place(outcome, is_replaced):
    pbt = started(make(4), 5)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0, 3: 2.5})
    pbt.on_end(4, outcome)
    pbt.on_end(4, outcome)
    assert (pbt.next() is not None) is is_replaced
    pbt.on_start(5, PARAMS, replaces=4)
    pbt.on_end(4, outcome)
    assert pbt.next() is None


def test_a_trial_told_to_stop_keeps_its_place_until_it_has_ended():
    pbt = started(make(4), 4)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0})
    assert pbt.on_report(3, 3, (9.0,)).action == Action.STOP
    assert pbt.next() is None
    assert pbt.on_report(3, 4, (9.0,)) is GO_ON  # the word is on its way, or it must run whole
    pbt.on_end(3, Outcome.PRUNED)
    assert pbt.next().replaces == 3
    assert pbt.on_report(3, 6, (0.0,)).action == Action.STOP  # it no longer counts
    arrive(pbt, 6, {0: 1.0, 1: 2.0})
    assert pbt.on_report(2, 6, (3.0,)) is GO_ON  # the third of three


def test_a_place_that_was_filled_before_the_end_was_heard_is_filled():
    pbt = started(make(4), 4)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0})
    pbt.on_report(3, 3, (9.0,))
    pbt.on_start(4, PARAMS, replaces=3)
    pbt.on_end(3, Outcome.PRUNED)
    assert pbt.next() is None


def test_a_clone_counts_from_its_own_first_report_on():
    pbt = started(make(4), 4)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0})
    pbt.on_start(4, PARAMS, replaces=3)
    assert pbt.on_report(4, 5, (99.0,)) is GO_ON  # it was not there at epoch 3
    assert len(pbt._ladder.rungs[0]) == 4
    arrive(pbt, 6, {0: 1.0, 1: 2.0, 2: 3.0})
    assert pbt.on_report(4, 6, (99.0,)).reason == "in the worst quarter at epoch 6 (4th of 4): replaced"
    pbt.on_end(4, Outcome.PRUNED)
    assert pbt.next().replaces == 4
    pbt.on_start(5, PARAMS, replaces=4)
    assert pbt.on_report(5, 6, (100.0,)).action == Action.STOP  # a first report at the interval itself


def test_a_clone_may_donate():
    pbt = started(make(4), 4)
    arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0})
    values = {**PARAMS, "recipe.layers": 33}
    pbt.on_start(4, values, replaces=3)
    arrive(pbt, 6, {4: 0.0, 0: 1.0, 1: 2.0})
    assert arrive(pbt, 6, {2: 3.0}) == [2]
    assert pbt.next().donor == 4


def test_a_trial_stopped_at_an_older_fidelity_is_no_donor_of_its_own():
    pbt = started(make(2, quantile=0.5), 2)
    pbt.on_report(0, 7, (0.0,))
    pbt.on_report(1, 5, (5.0,))
    assert pbt._donors(but=0) == []
    assert pbt._donors() == [0]


def test_two_objectives_by_fronts():
    pbt = started(make(4), 4)
    arrive(pbt, 3, {0: (0.0, 1.0), 1: (1.0, 2.0), 2: (2.0, 1.5)})
    assert arrive(pbt, 3, {3: (3.0, 3.0)}) == [3]
    assert pbt.next().donor == 0


def test_a_name_to_keep_that_is_unknown_is_said_in_one_line():
    with pytest.raises(
        InputError, match=r"^scheduler.keep: recipe.layer is no dimension .*; did you mean recipe.layers\?$"
    ):
        make(keep=["recipe.layer"])


# Values


def explored(count, donor=PARAMS, **arguments):
    """Values of clones of one donor, each with another seed."""
    pbt = make(**arguments)
    return [pbt._explore(np.random.default_rng(seed), donor) for seed in range(count)]


def test_the_same_seed_and_place_have_the_same_clone_whatever_came_before():
    def clones(seed, order):
        pbt = started(make(4, seed=seed), 6)
        arrive(pbt, 3, {0: 1.0, 1: 2.0, 2: 3.0, 3: 2.5})
        found = {}
        for trial in order:
            pbt.on_end(trial, Outcome.DIVERGED)
            found[trial] = pbt.next()
            pbt.on_start(10 + trial, found[trial].params, replaces=trial)
        return found

    assert clones(1, [4, 5]) == clones(1, [5, 4])
    assert len({str(clones(seed, [4])[4].params) for seed in range(9)}) > 4
    assert any(clones(seed, [4, 5])[4].params != clones(seed, [4, 5])[5].params for seed in range(3))
    assert clones(-1, [4, 5]) == clones(2**32 - 1, [4, 5])


def test_values_are_multiplied_or_drawn_anew():
    clones = explored(2000)
    rates = [clone["recipe.lr"] for clone in clones]
    shares = [np.mean(np.isclose(rates, 1e-3 * factor)) for factor in (0.8, 1.2)]
    assert shares == pytest.approx([0.375, 0.375], abs=0.04)
    others = np.log10([rate for rate in rates if not np.isclose(rate, [0.8e-3, 1.2e-3]).any()])
    assert np.mean(others) == pytest.approx(-3, abs=0.2)  # log-uniform
    assert np.mean([clone["recipe.loss"] == "l1" for clone in clones]) == pytest.approx(0.125, abs=0.03)
    layers = [clone["recipe.layers"] for clone in clones]
    assert {16, 24} < set(layers) <= set(range(1, 41))
    assert all(type(value) is int for value in layers)


def test_values_are_plain_python_for_the_records():
    for clone in explored(50):
        assert {type(value) for value in clone.values()} <= {int, float, str}


def test_what_is_to_be_kept_stays_the_donors():
    for clone in explored(100, keep=["recipe.lr", "recipe.loss", "recipe.smooth"]):
        assert {**clone, "recipe.layers": 20} == PARAMS
    assert len({clone["recipe.layers"] for clone in explored(100, keep=["recipe.lr"])}) > 2


def test_conditions_hold_with_the_new_values():
    with_smooth = explored(300)
    assert {"recipe.smooth" in clone for clone in with_smooth} == {True, False}
    assert all(("recipe.smooth" in clone) is (clone["recipe.loss"] == "l2") for clone in with_smooth)
    without = {name: value for name, value in PARAMS.items() if name != "recipe.smooth"} | {"recipe.loss": "l1"}
    # A value to keep that the donor has not must be drawn all the same.
    grown = [c for c in explored(300, without, keep=["recipe.smooth"]) if c["recipe.loss"] == "l2"]
    assert {clone["recipe.smooth"] for clone in grown} == {0.0, 0.1, 0.2, 0.3, 0.4}


def test_a_condition_may_be_on_what_is_not_searched():
    space = Space([LR, Dimension("recipe.beta", FloatDistribution(0, 1), {"recipe.optim": ("adam",)})])
    donor = {"recipe.lr": 1e-3, "recipe.beta": 0.5}
    for optim, names in (("adam", {"recipe.lr", "recipe.beta"}), ("sgd", {"recipe.lr"})):
        pbt = Pbt(9, space, {"recipe.optim": optim}, 4, 0.5)
        assert set(pbt._explore(np.random.default_rng(0), donor)) == names


@pytest.mark.parametrize(
    ("value", "distribution", "expected"),
    [
        (1.2, FloatDistribution(0, 1), 1.0),
        (-0.1, FloatDistribution(0, 1), 0.0),
        (0.5, FloatDistribution(0, 1), 0.5),
        (1e-9, FloatDistribution(1e-5, 1, log=True), 1e-5),
        (0.32, FloatDistribution(0, 0.4, step=0.1), 0.3),
        (0.26, FloatDistribution(0.1, 0.9, step=0.2), 0.3),
        (9.0, FloatDistribution(0.1, 0.9, step=0.2), 0.9),
        (3.6, IntDistribution(1, 4), 4),
        (4.8, IntDistribution(1, 4), 4),
        (0.8, IntDistribution(1, 4), 1),
        (13.0, IntDistribution(4, 20, step=8), 12),
        (17.0, IntDistribution(4, 20, step=8), 20),
        (76.8, IntDistribution(64, 1024, log=True), 77),
        (-1.2, IntDistribution(-4, 4), -1),
    ],
)
def test_a_number_is_fitted_into_its_distribution(value, distribution, expected):
    result = fitted(value, distribution)
    assert result == expected
    assert type(result) is type(expected)
    assert distribution._contains(distribution.to_internal_repr(result))


NUMBERS = st.one_of(
    st.tuples(st.floats(-5, 5), st.floats(0.01, 5)).map(lambda ends: FloatDistribution(ends[0], ends[0] + ends[1])),
    st.tuples(st.integers(-20, 20), st.integers(0, 30), st.sampled_from([0.1, 0.25, 0.3, 2.0])).map(
        lambda t: FloatDistribution(t[0] / 10, round(t[0] / 10 + t[1] * t[2], 6), step=t[2])
    ),
    st.tuples(st.integers(-20, 20), st.integers(0, 9), st.integers(1, 7)).map(
        lambda t: IntDistribution(t[0], t[0] + t[1] * t[2], step=t[2])
    ),
    st.integers(1, 20).map(lambda low: IntDistribution(low, low * 16, log=True)),
    st.floats(1e-6, 1).map(lambda low: FloatDistribution(low, low * 1e3, log=True)),
    st.just(CategoricalDistribution((True, None, "x", 2.5))),
)


@settings(max_examples=200)
@given(st.lists(NUMBERS, min_size=1, max_size=4), st.integers(0, 2**32))
def test_clones_of_clones_never_leave_the_space(distributions, seed):
    space = Space([Dimension(f"recipe.x{index}", each, {}) for index, each in enumerate(distributions)])
    pbt = Pbt(9, space, {}, 4, 0.5)
    rng = np.random.default_rng(seed)
    values = pbt._explore(rng, {})
    for _ in range(6):
        for dimension in space.dimensions:
            value = values[dimension.name]
            assert dimension.distribution._contains(dimension.distribution.to_internal_repr(value)), value
        values = pbt._explore(rng, values)


def test_ten_thousand_trials_are_no_burden():
    pbt = make(8)
    start = time.process_time()
    for trial in range(10_000):
        pbt.on_start(trial, PARAMS)
        for fidelity in (1, 2, 3, 4, 5, 6):
            pbt.on_report(trial, fidelity, (float(trial * 7919 % 10_007),))
    assert time.process_time() - start < 10  # it takes about 1 s
