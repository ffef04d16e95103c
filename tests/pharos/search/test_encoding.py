"""Rows and features say the same as configurations, in any space."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.conditions import Comparison
from pharos.search.encoding import ABSENT, Encoder
from pharos.space import Dimension, Space, parse_space


@st.composite
def floats(draw):
    low = draw(st.floats(1e-6, 10))
    high = low * draw(st.floats(1.5, 1e4))
    return FloatDistribution(low, high, log=draw(st.booleans()))


@st.composite
def stepped(draw):
    low, step = draw(st.integers(-20, 20)), draw(st.integers(1, 7))
    if draw(st.booleans()):
        return IntDistribution(low, low + step * draw(st.integers(0, 50)), step=step)
    return FloatDistribution(low / 10, (low + step * draw(st.integers(1, 30))) / 10, step=step / 10)


@st.composite
def log_ints(draw):
    low = draw(st.integers(1, 50))
    return IntDistribution(low, low + draw(st.integers(0, 2000)), log=True)


CHOICES = st.lists(st.sampled_from(["a", "b", True, False, 1, 2, 0.5, None]), min_size=1, max_size=5, unique_by=repr)
DISTRIBUTIONS = st.one_of(floats(), stepped(), log_ints(), CHOICES.map(CategoricalDistribution))


@st.composite
def spaces(draw):
    """Up to six dimensions, some of which exist only with some values of an earlier one."""
    dimensions = []
    for index, distribution in enumerate(draw(st.lists(DISTRIBUTIONS, min_size=1, max_size=6))):
        when = {}
        if dimensions and draw(st.booleans()):
            parent = draw(st.sampled_from(dimensions))
            if isinstance(parent.distribution, CategoricalDistribution):
                when = {parent.name: (draw(st.sampled_from(parent.distribution.choices)),)}
            else:
                when = {parent.name: Comparison(">=", parent.distribution.low)}
        dimensions.append(Dimension(f"x{index}", distribution, when))
    return Space(dimensions)


@given(spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_configuration_comes_back_from_its_row(space, seed):
    encoder = Encoder(space, {})
    rng = np.random.default_rng(seed)
    for _ in range(5):
        params = space.sample(rng, {})
        row = encoder.row(params)
        assert ((row >= 0) & (row <= 1)).all()
        back = encoder.params(row)
        assert list(back) == list(params)
        for name, value in params.items():
            assert back[name] == (pytest.approx(value, rel=1e-9) if type(value) is float else value)
            assert type(back[name]) is type(value)
        np.testing.assert_allclose(encoder.settle(row[None])[0], row, atol=1e-9)


@given(spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_row_is_a_configuration_of_the_space(space, seed):
    encoder = Encoder(space, {})
    rows = encoder.settle(
        np.vstack([np.random.default_rng(seed).random((6, len(space))), np.zeros(len(space)), np.ones(len(space))])
    )
    exists = encoder.exists(rows)
    features = encoder.features(rows)
    assert features.shape == (len(rows), len(encoder.groups))
    assert ((features >= 0) & (features <= 1)).all()
    for row, there in zip(rows, exists, strict=True):
        params = encoder.params(row)
        assert space.contains(params, {}) == ""
        assert [name in params for name in space.names] == there.tolist()
        np.testing.assert_allclose(encoder.row(params), row, atol=1e-9)


def encoder(entries, defaults=None):
    return Encoder(parse_space(entries, "test"), defaults or {})


def test_equal_ratios_of_a_logarithmic_dimension_are_equal_steps():
    lr = encoder({"lr": "tag(log, interval(1e-5, 1e-1))"})
    rows = [lr.row({"lr": value})[0] for value in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
    np.testing.assert_allclose(rows, [0, 0.25, 0.5, 0.75, 1], atol=1e-12)


def test_every_int_has_an_equal_share_and_the_ends_are_features_0_and_1():
    blocks = encoder({"blocks": "range(1, 5)"})
    drawn = [blocks.params(np.array([at]))["blocks"] for at in np.linspace(0, 1, 4000, endpoint=False)]
    assert {value: drawn.count(value) for value in set(drawn)} == {1: 1000, 2: 1000, 3: 1000, 4: 1000}
    rows = np.array([blocks.row({"blocks": value}) for value in (1, 2, 3, 4)])
    np.testing.assert_allclose(blocks.features(rows)[:, 0], [0, 1 / 3, 2 / 3, 1])


def test_two_choices_are_at_distance_one():
    optimiser = encoder({"optimiser": "choice(sgd, adam, lion)"})
    features = optimiser.features(np.array([optimiser.row({"optimiser": name}) for name in ("sgd", "adam", "lion")]))
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.testing.assert_allclose(distances, 1 - np.eye(3))
    assert optimiser.groups.tolist() == [0, 0, 0]


def test_what_does_not_exist_is_half_and_adds_no_distance():
    space = encoder(
        {
            "optimiser": "choice(sgd, adam)",
            "momentum": {"sweep": "interval(0, 1)", "when": {"optimiser": "sgd"}},
            "nesterov": {"sweep": "choice(true, false)", "when": {"optimiser": "sgd"}},
        }
    )
    rows = space.settle(np.array([[0.9, 0.1, 0.1], [0.9, 0.8, 0.9]]))
    assert (rows == [[0.75, ABSENT, ABSENT]] * 2).all()
    assert space.params(rows[0]) == {"optimiser": "adam"}
    assert space.features(rows)[0].tolist() == [0, math.sqrt(0.5), 0.5, 0, 0]
    assert space.key(rows[0]) == space.key(rows[1])


def test_a_parent_that_does_not_exist_has_the_configurations_value():
    entries = {
        "kind": "choice(a, b)",
        "depth": {"sweep": "range(1, 5)", "when": {"kind": "a"}},
        "skip": {"sweep": "interval(0, 1)", "when": {"depth": ">= 3"}},
    }
    for depth, there in ((2, False), (4, True)):
        space = encoder(entries, {"depth": depth})
        rows = np.array([[0.9, 0.1, 0.3]])
        assert space.exists(rows).tolist() == [[True, False, there]]
        assert ("skip" in space.params(rows[0])) is there


def test_a_condition_may_refer_to_what_is_not_searched():
    entries = {"x": "interval(0, 1)", "y": {"sweep": "interval(0, 1)", "when": {"mode": ["fast", "slow"]}}}
    assert encoder(entries, {"mode": "slow"}).exists(np.zeros((2, 2))).all()
    assert encoder(entries, {"mode": "none"}).exists(np.zeros((1, 2))).tolist() == [[True, False]]


@pytest.mark.parametrize("params", [{"x": 2.0}, {}, {"x": "a"}, {"x": True}, {"x": math.nan}])
def test_what_lies_outside_the_space_has_no_row(params):
    assert encoder({"x": "interval(0, 1)"}).row(params) is None


def test_true_is_not_one():
    space = Encoder(Space([Dimension("x", CategoricalDistribution([1, True, 2.0]), {})]), {})
    assert space.params(space.row({"x": 1}))["x"] is not True
    assert space.params(space.row({"x": True}))["x"] is True
    assert space.row({"x": 3}) is None


def test_steps_are_counted_in_decimals():
    space = encoder({"x": "range(0, 1, 0.1)"})
    values = [space.params(np.array([(k + 0.5) / 10]))["x"] for k in range(10)]
    assert values == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_sizes():
    assert encoder({"x": "range(0, 5)", "y": "choice(a, b, c)"}).size == 15
    assert encoder({"x": "interval(0, 1)", "y": "choice(a, b, c)"}).size == math.inf
