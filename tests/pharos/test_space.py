"""Search spaces: every expression means what the docstring says, and what is malformed is one line."""

import math
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.errors import InputError
from pharos.space import Space, describe, parse_dimension, parse_space


def parse(expression):
    return parse_dimension(f"recipe.x={expression}").distribution


def sampled(distribution, count=40, seed=0):
    """What Optuna's samplers draw, through `Space.ask` as a sweep does."""
    from pharos.space import Dimension

    space = Space([Dimension("recipe.x", distribution, {})])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.ask(study.ask(), {})["recipe.x"] for _ in range(count)]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize(
    ("expression", "distribution", "words"),
    [
        ("tag(log, interval(1e-5, 1e-3))", FloatDistribution(1e-5, 1e-3, log=True), "[1e-05, 0.001] (float, log)"),
        ("interval(0, 10)", FloatDistribution(0.0, 10.0), "[0, 10] (float)"),
        ("interval(-1, 0.5)", FloatDistribution(-1.0, 0.5), "[-1, 0.5] (float)"),
        ("range(1, 5)", IntDistribution(1, 4), "[1, 4] (int)"),
        ("range(3)", IntDistribution(0, 2), "[0, 2] (int)"),
        ("range(0, 10, 4)", IntDistribution(0, 8, step=4), "[0, 8] (int, step 4)"),
        ("range(0, 8, 4)", IntDistribution(0, 4, step=4), "[0, 4] (int, step 4)"),
        ("range(0, 1, 0.25)", FloatDistribution(0.0, 0.75, step=0.25), "[0, 0.75] (float, step 0.25)"),
        ("range(0, 1, 0.3)", FloatDistribution(0.0, 0.9, step=0.3), "[0, 0.9] (float, step 0.3)"),
        ("range(0, 0.4, 0.1)", FloatDistribution(0.0, 0.3, step=0.1), "[0, 0.3] (float, step 0.1)"),
        ("int(interval(0, 10))", IntDistribution(0, 10), "[0, 10] (int)"),
        ("int(tag(log, interval(64, 1024)))", IntDistribution(64, 1024, log=True), "[64, 1024] (int, log)"),
        ("choice(lsgan, bce_smooth)", CategoricalDistribution(("lsgan", "bce_smooth")), "{lsgan, bce_smooth}"),
        ("choice(true, false)", CategoricalDistribution((True, False)), "{True, False}"),
        ("choice(1, 2.5, 'x y')", CategoricalDistribution((1, 2.5, "x y")), "{1, 2.5, x y}"),
        ("lsgan, hinge", CategoricalDistribution(("lsgan", "hinge")), "{lsgan, hinge}"),
    ],
)
def test_an_expression_means_its_distribution_and_is_described_by_it(expression, distribution, words):
    assert parse(expression) == distribution
    assert [type(value) for value in getattr(parse(expression), "choices", [])] == [
        type(value) for value in getattr(distribution, "choices", [])
    ]
    assert describe(distribution) == words


def test_a_plain_value_is_no_dimension():
    assert [parse_dimension(f"recipe.x={value}") for value in ("3", "abc", "[1,2]", "null", "'a b'")] == [None] * 5


@pytest.mark.parametrize(
    "expression",
    [
        "interval(5, 1)",
        "interval(5, 5)",
        "interval(1",
        "interval(a, b)",
        "interval(1, 2, 3)",
        "interval(0, inf)",
        "interval(nan, 1)",
        "tag(log, interval(0, 1))",
        "tag(log, interval(-1, 1))",
        "tag(lgo, interval(1, 2))",
        "tag(log, range(1, 5))",
        "tag(log, choice(1, 2))",
        "range(5, 1)",
        "range(5, 5)",
        "range(1, 5, 0)",
        "range(5, 1, -1)",
        "choice()",
        "choice([1, 2], [3])",
        "choice({a: 1}, 2)",
        "glob(*)",
        "intervall(1, 2)",
        "str(interval(1, 2))",
    ],
)
def test_what_is_malformed_is_one_line_that_names_it_and_shows_how_it_is_written(expression):
    with pytest.raises(InputError) as error:
        parse_space({"recipe.lr": expression}, "default.yaml")
    message = str(error.value)
    assert message.startswith(f"default.yaml: recipe.lr={expression}: ")
    assert "interval(0, 1)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (3, "recipe.lr: 3 is one value, not a range"),
        ("adam", "recipe.lr: adam is one value"),
        ({"sweep": 3}, "recipe.lr: 3 is one value"),
        ({"when": {"a": 1}}, "recipe.lr needs `sweep:`"),
        ({"sweep": "interval(0, 1)", "if": {}}, "recipe.lr needs `sweep:` and may have `when:`, not sweep, if"),
    ],
)
def test_an_entry_that_is_no_range_is_one_line_that_names_it(entry, words):
    with pytest.raises(InputError, match=r"^default\.yaml: ") as error:
        parse_space({"recipe.lr": entry}, "default.yaml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


NUMBERS = st.floats(-1e6, 1e6).map(lambda value: round(value, 4))


@settings(max_examples=40)
@given(NUMBERS, NUMBERS)
def test_values_of_an_interval_lie_inside_it(a, b):
    low, high = sorted((a, b))
    if low == high:
        with pytest.raises(InputError):
            parse(f"interval({low}, {high})")
        return
    distribution = parse(f"interval({low}, {high})")
    assert (distribution.low, distribution.high, distribution.log) == (low, high, False)
    assert all(low <= value <= high for value in sampled(distribution, 5))


@settings(max_examples=40)
@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e4))
def test_values_of_a_logarithmic_interval_lie_inside_it(low, factor):
    distribution = parse(f"tag(log, interval({low!r}, {low * factor!r}))")
    assert distribution.log
    assert all(low <= value <= low * factor for value in sampled(distribution, 5))


@settings(max_examples=40)
@given(st.integers(-50, 50), st.integers(1, 60), st.integers(1, 7))
def test_values_of_a_range_are_those_of_python(start, length, step):
    expected = list(range(start, start + length, step))
    distribution = parse(f"range({start}, {start + length}, {step})")
    assert list(range(distribution.low, distribution.high + 1, distribution.step)) == expected
    assert set(sampled(distribution, 10)) <= set(expected)


@settings(max_examples=60)
@given(st.integers(-20, 20), st.integers(1, 40), st.sampled_from(["0.1", "0.3", "0.25", "0.7", "1.5"]))
def test_a_range_of_floats_has_every_step_below_its_end_and_none_past_it(start, steps, step):
    stop = start + steps * 0.5
    distribution = parse(f"range({start}, {stop}, {step})")
    last = round((distribution.high - start) / float(step))
    assert distribution.high == pytest.approx(start + last * float(step))
    assert distribution.high < stop
    assert distribution.high + float(step) >= stop - 1e-9
    assert all(start <= value <= distribution.high + 1e-9 for value in sampled(distribution, 5))


@settings(max_examples=40)
@given(st.lists(st.from_regex(r"[a-z][a-z_0-9]{0,6}", fullmatch=True), min_size=1, max_size=5, unique=True))
def test_choices_come_back_in_their_order(words):
    words = [f"w{word}" for word in words]  # not true, null or the like
    distribution = parse(f"choice({','.join(words)})")
    assert distribution.choices == tuple(words)
    assert set(sampled(distribution, 10)) <= set(words)


def conditional():
    return parse_space(
        {
            "recipe.smooth": {"sweep": "interval(0, 0.3)", "when": {"recipe.loss": "bce"}},
            "recipe.deep": {"sweep": "range(1, 3)", "when": {"recipe.smooth": 0.0, "recipe.mode": ["a", "b"]}},
            "recipe.loss": "choice(bce, lsgan)",
            "recipe.lr": "tag(log, interval(1e-4, 1e-2))",
        },
        "x.yaml",
    )


DEFAULTS = {
    "recipe.smooth": 0.2,
    "recipe.deep": 1,
    "recipe.loss": "bce",
    "recipe.lr": 1e-3,
    "recipe.mode": "a",
    "recipe.width": 8,
}


def test_parents_come_before_what_depends_on_them():
    names = conditional().names
    assert set(names) == {"recipe.smooth", "recipe.deep", "recipe.loss", "recipe.lr"}
    assert names.index("recipe.loss") < names.index("recipe.smooth") < names.index("recipe.deep")
    assert len(conditional()) == 4


def test_conditions_that_form_a_circle_are_refused():
    with pytest.raises(InputError, match=r"the conditions of recipe\.a, recipe\.b form a circle"):
        parse_space(
            {
                "recipe.a": {"sweep": "range(1, 3)", "when": {"recipe.b": 1}},
                "recipe.b": {"sweep": "range(1, 3)", "when": {"recipe.a": 1}},
                "recipe.c": "range(1, 3)",
            },
            "x.yaml",
        )


def test_a_condition_on_itself_is_a_circle():
    with pytest.raises(InputError, match="form a circle"):
        parse_space({"recipe.a": {"sweep": "range(1, 3)", "when": {"recipe.a": 1}}}, "x.yaml")


def test_a_dimension_exists_only_where_its_condition_holds():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [conditional().ask(study.ask(), DEFAULTS) for _ in range(30)]
    assert {params["recipe.loss"] for params in drawn} == {"bce", "lsgan"}
    assert all(("recipe.smooth" in params) == (params["recipe.loss"] == "bce") for params in drawn)


def test_several_values_of_a_condition_are_alternatives_and_several_conditions_must_all_hold():
    deep = next(dimension for dimension in conditional().dimensions if dimension.name == "recipe.deep")
    assert deep.exists({"recipe.smooth": 0.0, "recipe.mode": "a"})
    assert deep.exists({"recipe.smooth": 0.0, "recipe.mode": "b"})
    assert not deep.exists({"recipe.smooth": 0.0, "recipe.mode": "c"})
    assert not deep.exists({"recipe.smooth": 0.1, "recipe.mode": "a"})
    assert not deep.exists({"recipe.mode": "a"})


def test_the_first_trial_is_the_configurations_values_where_none_are_given():
    assert conditional().first_trial({}, DEFAULTS) == {"recipe.loss": "bce", "recipe.lr": 1e-3, "recipe.smooth": 0.2}
    assert conditional().first_trial({"recipe.loss": "lsgan", "recipe.lr": 2e-3}, DEFAULTS) == {
        "recipe.loss": "lsgan",
        "recipe.lr": 2e-3,
    }


@pytest.mark.parametrize(
    ("values", "defaults", "words"),
    [
        ({"recipe.lr": 1.0}, {}, r"recipe\.lr=1\.0 is not in \[0\.0001, 0\.01\] \(float, log\)"),
        ({"recipe.loss": "hinge"}, {}, r"recipe\.loss=hinge is not in \{bce, lsgan\}"),
        ({"recipe.lr": "big"}, {}, r"recipe\.lr=big is not in"),
        ({"recipe.lr": True}, {}, r"recipe\.lr=True is not in"),
        ({}, {"recipe.lr": 5e-5}, r"recipe\.lr=5e-05, which is the configuration's value, is not in"),
        ({"recipe.smooth": 0.0, "recipe.deep": 1.5}, {}, r"recipe\.deep=1\.5 is not in \[1, 2\] \(int\)"),
        ({"recipe.los": "bce"}, {}, r"recipe\.los is no dimension of the search; did you mean recipe\.loss\?"),
    ],
)
def test_a_first_trial_outside_the_space_is_one_line(values, defaults, words):
    with pytest.raises(InputError, match=words) as error:
        conditional().first_trial(values, {**DEFAULTS, **defaults})
    assert "\n" not in str(error.value)


def test_a_value_of_a_dimension_that_does_not_exist_may_lie_anywhere():
    assert "recipe.smooth" not in conditional().first_trial(
        {"recipe.loss": "lsgan"}, {**DEFAULTS, "recipe.smooth": 9.0}
    )


def test_a_first_trial_is_asked_for_with_exactly_its_values():
    space, study = conditional(), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    first = space.first_trial({"recipe.loss": "lsgan"}, DEFAULTS)
    study.enqueue_trial(first)
    assert space.ask(study.ask(), DEFAULTS) == first


def test_overrides_replace_add_and_take_out_dimensions():
    swept = {
        name: parse_dimension(f"{name}={expression}")
        for name, expression in {"recipe.smooth": "interval(0, 1)", "recipe.width": "range(1, 9)"}.items()
    }
    space = conditional().with_overrides(swept, ["recipe.lr", "recipe.loss"])
    assert set(space.names) == {"recipe.smooth", "recipe.deep", "recipe.width"}
    smooth = next(dimension for dimension in space.dimensions if dimension.name == "recipe.smooth")
    assert smooth.distribution == FloatDistribution(0.0, 1.0)
    assert smooth.when == {"recipe.loss": ("bce",)}  # its condition stays
    assert not smooth.exists({"recipe.loss": "lsgan"})
    assert set(conditional().with_overrides({}, []).names) == set(conditional().names)


def test_logarithmic_draws_are_even_over_the_decades():
    values = sampled(parse("tag(log, interval(1e-4, 1))"), 400)
    decades = [math.floor(math.log10(value)) for value in values if value < 1]
    assert all(60 < decades.count(decade) < 140 for decade in (-4, -3, -2, -1))


def test_asking_for_an_existing_trial_reads_its_values():
    space = conditional()
    known = {"recipe.loss": "lsgan", "recipe.lr": 2e-3}
    calls = []

    def suggest(name, *args, **kwargs):
        calls.append(name)
        return known[name]

    trial = SimpleNamespace(suggest_categorical=suggest, suggest_float=suggest, suggest_int=suggest)
    assert space.ask(trial, DEFAULTS) == known
    assert calls == ["recipe.loss", "recipe.lr"]
