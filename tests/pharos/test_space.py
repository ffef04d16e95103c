"""Search spaces: every expression means what the docstring says, and what is malformed is one line."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.conditions import Comparison
from pharos.errors import InputError
from pharos.grammar import describe, expression, word
from pharos.ranges import close, inside, snapped, spread
from pharos.space import Dimension, Space, parse_dimension, parse_space, show


def parse(expression):
    return parse_dimension(f"recipe.x={expression}").distribution


def sampled(distribution, count=40, seed=0):
    """What Optuna's samplers draw, through `Space.ask` as a sweep does."""
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
        ("range(0, 4, 1.0)", FloatDistribution(0.0, 3.0, step=1.0), "[0, 3] (float, step 1)"),
        ("range(0, 12345679)", IntDistribution(0, 12345678), "[0, 12345678] (int)"),
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
        "range(0, inf)",
        "range(nan, 1)",
        "range(0, 1, inf)",
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


def test_a_condition_on_itself_is_refused():
    with pytest.raises(InputError, match=r"^x\.yaml: recipe\.a: its `when:` names itself"):
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


# ---- what was read is written again


@pytest.mark.parametrize(
    ("distribution", "text"),
    [
        (FloatDistribution(1e-5, 1e-3, log=True), "tag(log, interval(1e-05, 0.001))"),
        (FloatDistribution(0, 10), "interval(0, 10)"),
        (FloatDistribution(-1.5, 1e16), "interval(-1.5, 1e+16)"),
        (FloatDistribution(0, 0.75, step=0.25), "range(0, 1, 0.25)"),
        (FloatDistribution(0, 0.9, step=0.3), "range(0, 1.2, 0.3)"),
        (FloatDistribution(-3, 3, step=1), "range(-3, 4, 1.0)"),
        (IntDistribution(1, 4), "range(1, 5)"),
        (IntDistribution(-8, 8, step=4), "range(-8, 9, 4)"),
        (IntDistribution(3, 3), "range(3, 4)"),
        (IntDistribution(64, 1024, log=True), "int(tag(log, interval(64, 1024)))"),
        (CategoricalDistribution(("lsgan", "bce-smooth_2")), "choice(lsgan, bce-smooth_2)"),
        (CategoricalDistribution(("a b", "it's", "", "a\\b", "a\\")), r"choice('a b', 'it\'s', '', 'a\b', 'a\\')"),
        (CategoricalDistribution(("true", "Null", "nan", "1", "2.5")), "choice('true', 'Null', 'nan', '1', '2.5')"),
        (CategoricalDistribution((True, False)), "choice(true, false)"),
        (CategoricalDistribution((1, 1.0, -2, -0.5, 1e-05)), "choice(1, 1.0, -2, -0.5, 1e-05)"),
        (CategoricalDistribution((None, "a", 1)), "null, a, 1"),
        (CategoricalDistribution((0, 1)), "choice(0, 1)"),
        (CategoricalDistribution((7,)), "choice(7)"),
    ],
)
def test_a_distribution_is_written_as_a_person_would(distribution, text):
    assert expression(distribution) == text
    assert same(parse(text), distribution)


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(1, 1),
        FloatDistribution(0, math.inf),
        FloatDistribution(1, 1, log=True),
        IntDistribution(4, 4, log=True),
        IntDistribution(1, 2**53 + 1, log=True),
        CategoricalDistribution((None,)),
    ],
)
def test_what_the_grammar_cannot_say_is_refused(distribution):
    with pytest.raises(InputError, match="cannot be written as interval, range or choice") as error:
        expression(distribution)
    assert "\n" not in str(error.value)


def same(a, b):
    """Equal, and choices of the same types: Optuna holds 1, 1.0 and True for one."""
    kinds = [[type(choice) for choice in getattr(each, "choices", ())] for each in (a, b)]
    return type(a) is type(b) and a == b and kinds[0] == kinds[1]


DECIMALS = st.decimals(-1000, 1000, places=3).map(float)
CHOICES = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["true", "NULL", "inf", "-", "a,b", "${x}", "'", '"', "\\", "\\'", " x ", "a=b", "choice(a)"]),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False),
)


def ints(draw):
    low = draw(st.integers(-1000, 1000))
    step = draw(st.integers(1, 20))
    return IntDistribution(low, low + step * draw(st.integers(0, 50)), step=step)


def log_ints(draw):
    low = draw(st.integers(1, 1000))
    return IntDistribution(low, low + draw(st.integers(1, 10**6)), log=True)


def floats(draw):
    low, high = sorted(draw(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2, unique=True)))
    return FloatDistribution(low, high)


def log_floats(draw):
    low = draw(st.floats(1e-12, 1e6))
    return FloatDistribution(low, low * draw(st.floats(1.001, 1e6)), log=True)


def stepped(draw):
    low, step = draw(st.decimals(-1000, 1000, places=3)), draw(st.decimals("0.001", 10, places=3))
    return FloatDistribution(float(low), float(low + step * draw(st.integers(0, 60))), step=float(step))


def categories(draw):
    return CategoricalDistribution(draw(st.lists(CHOICES, min_size=1, max_size=4, unique_by=repr)))


NUMERIC = [st.composite(make)() for make in (ints, log_ints, floats, log_floats, stepped)]
DISTRIBUTIONS = st.one_of(*NUMERIC, st.composite(categories)())


@settings(max_examples=300, deadline=None)
@given(DISTRIBUTIONS)
def test_every_distribution_comes_back_from_its_text(distribution):
    assert same(parse(expression(distribution)), distribution)


@settings(max_examples=50, deadline=None)
@given(st.lists(CHOICES, min_size=1, max_size=3, unique_by=repr))
def test_null_among_others_comes_back_from_its_text(choices):
    distribution = CategoricalDistribution([*choices, None])
    assert same(parse(expression(distribution)), distribution)


@st.composite
def spaces(draw):
    """A space with chains of conditions, and the configuration's values."""
    dimensions, defaults = [], {"recipe.fixed": draw(st.sampled_from(["a", "b"]))}
    for index in range(draw(st.integers(1, 5))):
        distribution, when = draw(DISTRIBUTIONS), {}
        if dimensions and draw(st.booleans()):
            parent = draw(st.sampled_from(dimensions))
            # One of its own values, so that the condition can be met.
            value = draw(st.sampled_from(values_of(parent.distribution)))
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if numeric and draw(st.booleans()):
                when[parent.name] = Comparison(draw(st.sampled_from(["<=", ">="])), value)
            elif not isinstance(value, str) or not value.strip().startswith(("<", ">", "=", "!")):
                when[parent.name] = (value, "other") if draw(st.booleans()) else (value,)
        if draw(st.booleans()):
            when["recipe.fixed"] = ("a",)
        dimensions.append(Dimension(f"recipe.d{index}", distribution, when))
        defaults[f"recipe.d{index}"] = draw(st.sampled_from(values_of(distribution)))
    return Space(draw(st.permutations(dimensions))), defaults


def values_of(distribution):
    """A few values of a distribution, ends included."""
    return spread(distribution, 3)


@settings(max_examples=100, deadline=None)
@given(spaces())
def test_a_space_comes_back_from_its_yaml(made):
    space, _ = made
    assert parse_space(yaml.safe_load(yaml.safe_dump(space.to_dict(), sort_keys=False)), "sweep.yaml") == space


def test_a_space_is_written_as_its_file_has_it():
    entries = {
        "recipe.loss": "choice(bce, lsgan)",
        "recipe.layers": "range(1, 9)",
        "recipe.smooth": {"sweep": "interval(0, 0.3)", "when": {"recipe.loss": "bce", "recipe.layers": ">= 3"}},
        "recipe.deep": {"sweep": "range(1, 3)", "when": {"recipe.mode": ["a", "b"], "recipe.sizes": [[1, 2]]}},
    }
    space = parse_space(entries, "x.yaml")
    assert space.to_dict() == {name: entries[name] for name in space.names}
    assert space == parse_space(entries, "y.yaml")
    assert hash(space) == hash(parse_space(entries, "y.yaml"))
    deep = next(dimension for dimension in space.dimensions if dimension.name == "recipe.deep")
    assert deep.exists({"recipe.mode": "a", "recipe.sizes": [1, 2]})
    assert not deep.exists({"recipe.mode": "a", "recipe.sizes": [1, 3]})


def test_a_space_with_overrides_comes_back_in_the_same_order():
    swept = {"recipe.width": parse_dimension("recipe.width=range(1, 9)")}
    # Without its parent, recipe.smooth is no longer a child, and stays where it is.
    space = conditional().with_overrides(swept, ["recipe.loss"])
    assert parse_space(space.to_dict(), "sweep.yaml") == space
    assert parse_space(space.to_dict(), "sweep.yaml").names == space.names


def test_spaces_differ_by_a_range_by_a_condition_and_by_their_order():
    entries = {"recipe.a": "range(1, 3)", "recipe.b": {"sweep": "range(1, 3)", "when": {"recipe.a": 1}}}
    space = parse_space(entries, "x")
    assert space != parse_space({**entries, "recipe.a": "range(1, 4)"}, "x")
    assert space != parse_space({**entries, "recipe.b": {"sweep": "range(1, 3)", "when": {"recipe.a": 2}}}, "x")
    plain = {"recipe.a": "range(1, 3)", "recipe.b": "range(1, 3)"}
    assert parse_space(plain, "x") != parse_space(dict(reversed(plain.items())), "x")
    assert space != entries


def test_distributions_are_those_of_the_dimensions_by_name():
    assert parse_space({"recipe.a": "range(1, 3)", "recipe.b": "choice(x, y)"}, "x").distributions == {
        "recipe.a": IntDistribution(1, 2),
        "recipe.b": CategoricalDistribution(("x", "y")),
    }


# ---- conditions


def on(condition, parent="range(1, 9)", **other):
    return parse_space(
        {"recipe.n": parent, "recipe.x": {"sweep": "interval(0, 1)", "when": {"recipe.n": condition}}, **other}, "x"
    )


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("< 3", [1, 2]),
        ("<= 3", [1, 2, 3]),
        ("> 3", [4, 5]),
        (">= 3", [3, 4, 5]),
        ("!= 3", [1, 2, 4, 5]),
        (">=3", [3, 4, 5]),
        (" < 2.5 ", [1, 2]),
        (">-1", [1, 2, 3, 4, 5]),
        ("<.3e1", [1, 2]),
        (3, [3]),
        ([1, 4], [1, 4]),
    ],
)
def test_a_comparison_holds_on_its_side(condition, met):
    child = on(condition).dimensions[-1]
    assert [n for n in range(1, 6) if child.exists({"recipe.n": n})] == met
    assert [n for n in range(1, 6) if child.exists({"recipe.n": float(n)})] == met


def test_what_is_no_number_meets_no_comparison():
    child = on("!= 3").dimensions[-1]
    assert not any(child.exists({"recipe.n": value}) for value in (None, "a", True, "4", [4]))
    assert not child.exists({})
    assert not on(">= 3").dimensions[-1].exists({"recipe.n": math.nan})


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("<= 0.3", 3 * 0.1, True),
        ("< 0.3", 3 * 0.1, False),
        ("!= 0.3", 3 * 0.1, False),
        (">= 0.7", 0.7 - 1e-16, True),
        ("> 0.7", 0.7 + 1e-15, False),
        (0.3, 3 * 0.1, True),
        (0.3, 0.31, False),
    ],
)
def test_conditions_see_decimals_where_binary_is_off_by_a_last_digit(condition, value, holds):
    assert on(condition, "range(0, 1, 0.01)").dimensions[-1].exists({"recipe.n": value}) == holds


def test_large_whole_numbers_are_compared_exactly():
    assert on("> 10000000000", "range(1, 10000000009)").dimensions[-1].exists({"recipe.n": 10000000001})


@pytest.mark.parametrize("word", ["<none>", "!", "<", "=a", ">b"])
def test_a_word_that_begins_like_a_comparison_is_a_word(word):
    space = on(word, f"choice('{word}', b)")
    assert space.dimensions[-1].exists({"recipe.n": word})
    assert parse_space(space.to_dict(), "x") == space


@pytest.mark.parametrize(
    ("condition", "parent", "words"),
    [
        (">= three", "range(1, 9)", "x: recipe.x: when recipe.n: '>= three' is no comparison; write <, <=,"),
        ("== 3", "range(1, 9)", "'== 3' is no comparison"),
        ("=> 3", "range(1, 9)", "'=> 3' is no comparison"),
        ("= 3", "range(1, 9)", "'= 3' is no comparison"),
        (">=", "range(1, 9)", "'>=' is no comparison"),
        ("< inf", "range(1, 9)", "'< inf' is no comparison"),
        (">= nan", "range(1, 9)", "'>= nan' is no comparison"),
        (["< 3", 4], "range(1, 9)", "'< 3' is a comparison, which stands alone; a list is of values"),
        ([], "range(1, 9)", "x: recipe.x: when recipe.n: [] has no value"),
        (">= 3", "choice(a, b)", "x: recipe.x: recipe.n >= 3 compares numbers, but recipe.n is in {a, b}"),
        ("!= 1", "choice(true, false)", "compares numbers, but recipe.n is in {True, False}"),
        ("> 8", "range(1, 9)", "x: recipe.x never exists: it asks that recipe.n > 8, but recipe.n is in [1, 8] (int)"),
        ("< 1", "range(1, 9)", "never exists"),
        ("<= 0", "range(1, 9)", "never exists"),
        (">= 9", "range(1, 9)", "never exists"),
        ("!= 3", "range(3, 4)", "never exists"),
        (9, "range(1, 9)", "recipe.x never exists: it asks that recipe.n is 9"),
        (1.5, "range(1, 9)", "never exists"),
        ([0, 9], "range(1, 9)", "it asks that recipe.n is 0 or 9"),
        ("c", "choice(a, b)", "recipe.n is c, but recipe.n is in {a, b}"),
        ("> 2", "choice(1, 2, auto)", "never exists"),
    ],
)
def test_a_condition_that_makes_no_sense_is_one_line(condition, parent, words):
    with pytest.raises(InputError) as error:
        on(condition, parent)
    assert words in str(error.value)
    assert str(error.value).startswith("x: recipe.x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("condition", "parent"),
    [
        ("< 2", "range(1, 9)"),
        ("> 7", "range(1, 9)"),
        (">= 8", "range(1, 9)"),
        ("<= 1", "range(1, 9)"),
        ("!= 1", "range(1, 3)"),
        ("!= 2", "range(1, 3)"),
        ([0, 8], "range(1, 9)"),
        ("> 1", "choice(1, 2, auto)"),
        ("< 0.1", "interval(0, 1)"),
    ],
)
def test_a_condition_that_some_value_meets_is_accepted(condition, parent):
    assert len(on(condition, parent)) == 2


def chain():
    """loss -> smooth -> deep, by comparison."""
    return parse_space(
        {
            "recipe.deep": {"sweep": "range(1, 3)", "when": {"recipe.smooth": ">= 0.1"}},
            "recipe.smooth": {"sweep": "range(0, 0.3, 0.1)", "when": {"recipe.loss": "bce"}},
            "recipe.loss": "choice(bce, lsgan)",
        },
        "x",
    )


@pytest.mark.parametrize(("smooth", "exists"), [(0.2, True), (0.0, False)])
def test_a_parent_that_does_not_exist_has_the_configurations_value_which_is_what_the_trial_runs_with(smooth, exists):
    defaults = {"recipe.loss": "bce", "recipe.smooth": smooth, "recipe.deep": 1}
    rng = np.random.default_rng(0)
    drawn = [chain().sample(rng, defaults) for _ in range(50)]
    without = [params for params in drawn if params["recipe.loss"] == "lsgan"]
    assert without
    assert all("recipe.smooth" not in params for params in without)
    assert all(("recipe.deep" in params) == exists for params in without)
    others = [params for params in drawn if params["recipe.loss"] == "bce"]
    assert all(("recipe.deep" in params) == (params["recipe.smooth"] >= 0.1) for params in others)
    first = chain().first_trial({"recipe.loss": "lsgan"}, defaults)
    assert ("recipe.deep" in first) == exists


def test_a_first_trials_value_of_what_does_not_exist_decides_nothing():
    defaults = {"recipe.loss": "lsgan", "recipe.smooth": 0.0, "recipe.deep": 1}
    first = chain().first_trial({"recipe.smooth": 0.2}, defaults)
    assert first == {"recipe.loss": "lsgan"}
    study = optuna.create_study()
    study.enqueue_trial(first)
    assert chain().ask(study.ask(), defaults) == first


def test_a_parent_that_may_not_exist_may_meet_by_the_configurations_value_what_its_range_cannot():
    space = on("> 8", {"sweep": "range(1, 9)", "when": {"recipe.loss": "bce"}}, **{"recipe.loss": "choice(bce, lsgan)"})
    assert "recipe.x" in space.first_trial({}, {"recipe.loss": "lsgan", "recipe.n": 12, "recipe.x": 0.5})


def narrow(*texts):
    return {name: dimension for text in texts for dimension in [parse_dimension(text)] for name in [dimension.name]}


def test_what_never_exists_after_an_override_goes():
    assert conditional().with_overrides(narrow("recipe.loss=choice(lsgan, hinge)"), []).names == [
        "recipe.loss",
        "recipe.lr",
        "recipe.deep",
    ]
    kept = conditional().with_overrides(narrow("recipe.loss=choice(bce, hinge)"), [])
    assert set(kept.names) == set(conditional().names)


def test_an_override_of_what_never_exists_is_refused():
    with pytest.raises(InputError, match=r"^recipe\.smooth never exists: .*recipe\.loss is bce, .* in \{lsgan\}"):
        conditional().with_overrides(narrow("recipe.loss=choice(lsgan)", "recipe.smooth=interval(0, 1)"), [])


def test_what_is_compared_goes_where_an_override_makes_words_of_numbers():
    assert on(">= 3").with_overrides(narrow("recipe.n=choice(a, b)"), []).names == ["recipe.n"]
    with pytest.raises(InputError, match=r"recipe\.x: recipe\.n >= 3 compares numbers"):
        on(">= 3").with_overrides(narrow("recipe.n=choice(a, b)", "recipe.x=interval(0, 2)"), [])


# ---- what people see


def mixed():
    return parse_space(
        {
            "recipe.optim.lr": "tag(log, interval(5e-5, 2e-3))",
            "recipe.w": "interval(0, 1)",
            "recipe.q": "range(0, 1, 0.25)",
            "recipe.layers": "range(1, 9)",
            "recipe.width": "int(tag(log, interval(64, 1024)))",
            "recipe.loss": "choice(bce, lsgan)",
            "recipe.smooth": {"sweep": "interval(0, 0.3)", "when": {"recipe.loss": "bce", "recipe.layers": ">= 3"}},
            "recipe.deep": {"sweep": "range(0, 9, 4)", "when": {"recipe.mode": ["a", "b"], "recipe.size": "> 2"}},
        },
        "x",
    )


MIXED = {
    "recipe.optim.lr": 2e-4,
    "recipe.w": 3.0,
    "recipe.q": 0.5,
    "recipe.layers": 4,
    "recipe.width": 1025,
    "recipe.loss": "bce",
    "recipe.smooth": 0.2,
    "recipe.deep": 4,
    "recipe.mode": "a",
    "recipe.size": 2,
}


def test_a_space_is_shown_as_a_table():
    assert show(mixed(), MIXED).split("\n") == [
        "name             range           scale              default         condition",
        "recipe.optim.lr  [5e-05, 0.002]  log                0.0002",
        "recipe.w         [0, 1]          linear             3 (outside)",
        "recipe.q         [0, 0.75]       linear, step 0.25  0.5",
        "recipe.layers    [1, 8]          int                4",
        "recipe.width     [64, 1024]      int, log           1025 (outside)",
        "recipe.loss      {bce, lsgan}    choice             bce",
        "recipe.deep      [0, 8]          int, step 4        4               "
        "recipe.mode is a or b and recipe.size > 2 (never: it is 2)",
        "recipe.smooth    [0, 0.3]        linear             0.2             recipe.loss is bce and recipe.layers >= 3",
    ]


def test_an_empty_space_is_shown_as_the_head_of_a_table():
    assert show(Space([]), {}) == "name  range  scale  default  condition"


def test_the_rows_of_a_space_are_plain_values():
    rows = {row.name: row.to_dict() for row in mixed().explain({**MIXED, "recipe.size": 3})}
    assert list(rows) == mixed().names
    assert rows["recipe.w"] == {
        "name": "recipe.w",
        "range": "[0, 1]",
        "scale": "linear",
        "default": 3.0,
        "inside": False,
        "condition": "",
    }
    assert rows["recipe.smooth"]["inside"] is True
    assert rows["recipe.deep"]["condition"] == "recipe.mode is a or b and recipe.size > 2"


# ---- draws


def drawn(distribution, count, seed=0):
    space, rng = Space([Dimension("x", distribution, {})]), np.random.default_rng(seed)
    return [space.sample(rng, {})["x"] for _ in range(count)]


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(1, 4), [1, 2, 3, 4]),
        (IntDistribution(-4, 8, step=4), [-4, 0, 4, 8]),
        (FloatDistribution(0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (CategoricalDistribution(("a", None, True, 3)), ["a", None, True, 3]),
    ],
)
def test_every_value_of_a_grid_is_drawn_as_often_as_another(distribution, values):
    found = drawn(distribution, 4000)
    # Four equal shares of 4000: a standard deviation is 27.
    assert all(abs(found.count(value) - 1000) < 120 for value in values)
    assert sum(map(found.count, values)) == 4000
    assert {type(value) for value in found} == {type(value) for value in values}


def test_floats_are_drawn_evenly():
    found = drawn(FloatDistribution(-1, 3), 4000)
    assert all(type(value) is float for value in found)
    counts, _ = np.histogram(found, bins=4, range=(-1, 3))
    assert sum(counts) == 4000
    assert all(abs(counts - 1000) < 120)


def test_logarithmic_floats_are_drawn_evenly_over_the_decades():
    found = drawn(FloatDistribution(1e-4, 1, log=True), 4000)
    assert all(type(value) is float for value in found)
    counts, _ = np.histogram(np.log10(found), bins=4, range=(-4, 0))
    assert sum(counts) == 4000
    assert all(abs(counts - 1000) < 120)


def test_logarithmic_ints_are_drawn_by_the_share_of_their_roundings():
    found = drawn(IntDistribution(1, 8, log=True), 8000)
    assert all(type(value) is int for value in found)
    whole = math.log(8.5 / 0.5)
    for value in range(1, 9):
        share = math.log((value + 0.5) / (value - 0.5)) / whole
        assert abs(found.count(value) - 8000 * share) < 5 * math.sqrt(8000 * share * (1 - share))


def test_a_draw_is_that_of_its_generator():
    assert drawn(FloatDistribution(0, 1), 3, seed=1) == drawn(FloatDistribution(0, 1), 3, seed=1)
    assert drawn(FloatDistribution(0, 1), 3, seed=1) != drawn(FloatDistribution(0, 1), 3, seed=2)


@settings(max_examples=100, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_what_is_drawn_lies_in_the_space_and_optuna_reads_it_back(made, seed):
    space, defaults = made
    params = space.sample(np.random.default_rng(seed), defaults)
    assert space.contains(params, defaults) == ""
    assert all(inside(space.distributions[name], value) for name, value in params.items())
    study = optuna.create_study()
    study.enqueue_trial(params)
    assert space.ask(study.ask(), defaults) == params


@settings(max_examples=100, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_a_dimension_is_in_a_draw_if_and_only_if_what_the_trial_runs_with_meets_its_conditions(made, seed):
    space, defaults = made
    params = space.sample(np.random.default_rng(seed), defaults)
    runs_with = {**defaults, **params}
    assert set(params) == {dimension.name for dimension in space.dimensions if dimension.exists(runs_with)}


# ---- whether a trial lies in a space


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"recipe.loss": "bce", "recipe.lr": 1e-3, "recipe.smooth": 0.1}, ""),
        ({"recipe.loss": "lsgan", "recipe.lr": 1e-3}, ""),
        ({"recipe.loss": "bce", "recipe.lr": 1e-3, "recipe.smooth": 0.0, "recipe.deep": 2}, ""),
        ({"recipe.loss": "lsgan", "recipe.lr": 1.0}, "recipe.lr: 1.0 is not in [0.0001, 0.01] (float, log)"),
        ({"recipe.loss": "hinge", "recipe.lr": 1e-3}, "recipe.loss: hinge is not in {bce, lsgan}"),
        ({"recipe.loss": "lsgan"}, "recipe.lr is new"),
        ({"recipe.loss": "bce", "recipe.lr": 1e-3}, "recipe.smooth is new"),
        ({"recipe.loss": "lsgan", "recipe.lr": 1e-3, "recipe.y": 3}, "recipe.y is no dimension any more"),
        (
            {"recipe.loss": "lsgan", "recipe.lr": 1e-3, "recipe.smooth": 0.1},
            "recipe.smooth does not exist with the other values",
        ),
        ({"recipe.lr": 1e-3, "recipe.y": 1}, "recipe.loss is new"),
        ({}, "recipe.loss is new"),
        ({"recipe.loss": "lsgan", "recipe.lr": True}, "recipe.lr: True is not in [0.0001, 0.01] (float, log)"),
        ({"recipe.loss": "lsgan", "recipe.lr": math.nan}, "recipe.lr: nan is not in [0.0001, 0.01] (float, log)"),
    ],
)
def test_what_a_trial_lacks_to_lie_in_a_space_is_said(params, reason):
    assert conditional().contains(params, DEFAULTS) == reason


def test_containing_asks_the_configuration_for_what_is_not_searched():
    params = {"recipe.loss": "bce", "recipe.lr": 1e-3, "recipe.smooth": 0.0}
    assert conditional().contains(params, {**DEFAULTS, "recipe.mode": "c"}) == ""
    assert conditional().contains(params, DEFAULTS) == "recipe.deep is new"


FITTING = {"recipe.loss": "lsgan", "recipe.lr": 1e-3}


@pytest.mark.parametrize(
    ("params", "config", "expected"),
    [
        # As it was.
        (FITTING, {}, (FITTING, "")),
        # Not searched then: the value of its configuration.
        ({}, {"recipe.loss": "lsgan", "recipe.lr": 2e-3}, ({"recipe.loss": "lsgan", "recipe.lr": 2e-3}, "")),
        ({}, {}, ({"recipe.loss": "bce", "recipe.lr": 1e-3, "recipe.smooth": 0.2}, "")),
        ({}, {"recipe.lr": 1}, (None, "recipe.lr: 1.0 is not in [0.0001, 0.01] (float, log)")),
        # What was searched counts, whatever its configuration says.
        (FITTING, {"recipe.lr": 1.0, "recipe.loss": "bce"}, (FITTING, "")),
        # Searched then, fixed now.
        ({**FITTING, "recipe.width": 8}, {}, (FITTING, "")),
        ({**FITTING, "recipe.width": 9}, {}, (None, "recipe.width was 9, is 8")),
        # Never searched.
        (FITTING, {"recipe.width": 9}, (None, "recipe.width was 9, is 8")),
        (FITTING, {"recipe.mode": "b"}, (None, "recipe.mode was b, is a")),
        (FITTING, {"recipe.mode": "b", "recipe.width": 9}, (None, "recipe.mode was b, is a")),
        (FITTING, {"recipe.y": 3.0}, (None, "recipe.y was 3, is no value any more")),
        ({**FITTING, "recipe.y": 3}, {}, (None, "recipe.y was 3, is no value any more")),
        # Does not exist with these values: what it ran with has to be what it would run with now.
        (FITTING, {"recipe.smooth": 0.1}, (None, "recipe.smooth was 0.1, is 0.2")),
        ({**FITTING, "recipe.smooth": 0.1}, {}, (None, "recipe.smooth was 0.1, is 0.2")),
        ({**FITTING, "recipe.smooth": 0.2}, {}, (FITTING, "")),
        # The dimension's own reason comes first.
        ({**FITTING, "recipe.loss": "hinge"}, {"recipe.width": 9}, (None, "recipe.loss: hinge is not in {bce, lsgan}")),
    ],
)
def test_an_earlier_trial_fits_if_it_ran_as_it_would_run_now(params, config, expected):
    assert conditional().fit(params, {**DEFAULTS, **config}, DEFAULTS) == expected


def test_a_value_that_the_earlier_recipe_did_not_have_is_new():
    without = {name: value for name, value in DEFAULTS.items() if name not in ("recipe.lr", "recipe.width")}
    assert conditional().fit({}, without, DEFAULTS) == (None, "recipe.lr is new")
    assert conditional().fit(FITTING, without, DEFAULTS) == (None, "recipe.width is new")


def test_names_that_may_differ_are_left_out():
    config = {**DEFAULTS, "recipe.width": 9, "recipe.y": 1}
    assert conditional().fit(FITTING, config, DEFAULTS, ["recipe.width", "recipe.y"]) == (FITTING, "")
    assert conditional().fit(FITTING, config, DEFAULTS, ["recipe.width"])[1] == "recipe.y was 1, is no value any more"
    # A dimension is not left out by it.
    assert conditional().fit({**FITTING, "recipe.lr": 1.0}, DEFAULTS, DEFAULTS, ["recipe.lr"])[0] is None


def test_a_trial_that_fits_has_the_spaces_own_types_and_ends():
    space = parse_space(
        {
            "recipe.i": "range(1, 9)",
            "recipe.f": "interval(0.1, 0.3)",
            "recipe.g": "interval(0, 3)",
            "recipe.c": "choice(0.5, 2)",
            "recipe.b": "choice(true, false)",
        },
        "x",
    )
    names = dict.fromkeys(space.names, 1)
    config = {
        "recipe.i": 3.0,
        "recipe.f": 0.1 * 3,
        "recipe.g": 2,
        "recipe.c": 0.5 + 1e-12,
        "recipe.b": False,
    }
    params, reason = space.fit({}, config, names)
    assert (params, reason) == (
        {"recipe.i": 3, "recipe.f": 0.3, "recipe.g": 2.0, "recipe.c": 0.5, "recipe.b": False},
        "",
    )
    assert [type(params[name]) for name in names] == [int, float, float, float, bool]
    assert space.fit({}, {**config, "recipe.f": 0.3001}, names)[1] == "recipe.f: 0.3001 is not in [0.1, 0.3] (float)"
    assert space.fit({}, {**config, "recipe.i": 3.5}, names)[1] == "recipe.i: 3.5 is not in [1, 8] (int)"
    assert space.fit({}, {**config, "recipe.i": True}, names)[1] == "recipe.i: True is not in [1, 8] (int)"
    assert space.fit({}, {**config, "recipe.i": None}, names)[1] == "recipe.i: None is not in [1, 8] (int)"
    assert space.fit({}, {**config, "recipe.i": math.inf}, names)[1] == "recipe.i: inf is not in [1, 8] (int)"


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (0.3, 0.1 * 3, True),
        (1e-5, 1.0000001e-5, False),
        (1, 1.0, True),
        (10**12, 10**12 + 1, False),
        (1e12, 10**12 + 1, True),
        (True, 1, False),
        (True, True, True),
        (None, None, True),
        (None, 0, False),
        ("a", "a", True),
        ("1", 1, False),
        ([0.3, "a"], (0.1 * 3, "a"), True),
        ([1, 2], [1, 2, 3], False),
        ([1, [2]], [1, [3]], False),
        ([], [], True),
        (0.0, 1e-30, False),
    ],
)
def test_values_are_close_if_a_last_digit_is_all_that_differs(a, b, equal):
    assert close(a, b) == close(b, a) == equal


@settings(max_examples=100, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_what_a_space_drew_fits_it(made, seed):
    space, defaults = made
    params = space.sample(np.random.default_rng(seed), defaults)
    assert space.fit(params, {**defaults, **params}, defaults) == (params, "")
    assert space.fit(params, defaults, defaults) == (params, "")
    # Not searched then, but with the same values: the same trial.
    assert space.fit({}, {**defaults, **params}, defaults) == (params, "")


@settings(max_examples=150, deadline=None)
@given(spaces(), spaces(), st.integers(0, 2**32 - 1))
def test_what_fits_another_space_runs_there_as_it_ran_here(made, other, seed):
    (earlier, then), (space, now) = made, other
    names = {**now, **then}
    then, now = {**names, **then}, {**names, **now}
    params = earlier.sample(np.random.default_rng(seed), then)
    ran = {**then, **params}
    fitted, reason = space.fit(params, then, now)
    assert (fitted is None) == bool(reason)
    if fitted is not None:
        assert space.contains(fitted, now) == ""
        runs = {**now, **fitted}
        assert all(close(runs[name], ran[name]) or runs[name] == ran[name] for name in runs)


@settings(max_examples=100, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1), st.data())
def test_what_is_fixed_now_has_to_be_what_it_was(made, seed, data):
    space, then = made
    params = space.sample(np.random.default_rng(seed), then)
    pinned = data.draw(st.sets(st.sampled_from(space.names)))
    fixed, now = space.with_overrides({}, list(pinned)), {**then, **{n: params[n] for n in pinned if n in params}}
    assert fixed.fit(params, then, now) == ({n: v for n, v in params.items() if n not in pinned}, "")
    for name in pinned:
        changed = fixed.fit(params, {**then, **params}, {**now, name: "changed"})
        assert changed[0] is None
        assert changed[1] == f"{name} was {word(now[name])}, is changed" or any(
            name in d.when for d in fixed.dimensions
        )


@settings(max_examples=100, deadline=None)
@given(DISTRIBUTIONS, st.integers(0, 2**32 - 1))
def test_a_value_of_a_distribution_is_its_own_already(distribution, seed):
    (value,) = drawn(distribution, 1, seed)
    assert snapped(distribution, value) == value
    assert type(snapped(distribution, value)) is type(value)


# ---- grids


@pytest.mark.parametrize(
    ("distribution", "points", "values"),
    [
        (CategoricalDistribution(("a", "b", "c")), 2, ["a", "b", "c"]),
        (CategoricalDistribution(("a", "b", "a")), 2, ["a", "b"]),
        (IntDistribution(1, 4), 4, [1, 2, 3, 4]),
        (IntDistribution(1, 4), 9, [1, 2, 3, 4]),
        (IntDistribution(1, 5), 4, [1, 2, 4, 5]),
        (IntDistribution(0, 100), 5, [0, 25, 50, 75, 100]),
        (IntDistribution(0, 96, step=4), 3, [0, 48, 96]),
        (IntDistribution(7, 7), 2, [7]),
        (FloatDistribution(0, 0.4, step=0.1), 5, [0.0, 0.1, 0.2, 0.3, 0.4]),
        (FloatDistribution(0, 0.4, step=0.1), 3, [0.0, 0.2, 0.4]),
        (FloatDistribution(-1, 1), 2, [-1.0, 1.0]),
        (FloatDistribution(0, 1), 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (IntDistribution(1, 1000, log=True), 4, [1, 10, 100, 1000]),
        (IntDistribution(1, 11, log=True), 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]),
        (IntDistribution(1, 3, log=True), 3, [1, 2, 3]),
    ],
)
def test_the_values_of_a_grid(distribution, points, values):
    found = [params["x"] for params in Space([Dimension("x", distribution, {})]).grid(points, {})]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_a_logarithmic_grid_is_even_in_ratios():
    space = parse_space({"x": "tag(log, interval(1e-5, 1e-1))"}, "x")
    values = [params["x"] for params in space.grid(5, {})]
    assert values == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert (values[0], values[-1]) == (1e-5, 1e-1)


def test_a_grid_is_every_combination_that_exists_once():
    space = parse_space(
        {
            "recipe.loss": "choice(bce, lsgan)",
            "recipe.smooth": {"sweep": "interval(0, 0.3)", "when": {"recipe.loss": "bce"}},
            "recipe.deep": {"sweep": "range(1, 3)", "when": {"recipe.smooth": "> 0.2", "recipe.mode": "a"}},
        },
        "x",
    )
    defaults = {"recipe.loss": "bce", "recipe.smooth": 0.1, "recipe.deep": 1, "recipe.mode": "a"}
    assert space.grid(2, defaults) == [
        {"recipe.loss": "bce", "recipe.smooth": 0.0},
        {"recipe.loss": "bce", "recipe.smooth": 0.3, "recipe.deep": 1},
        {"recipe.loss": "bce", "recipe.smooth": 0.3, "recipe.deep": 2},
        {"recipe.loss": "lsgan"},
    ]
    # The configuration's value decides for lsgan, where recipe.smooth does not exist.
    assert len(space.grid(2, {**defaults, "recipe.smooth": 0.25})) == 5
    assert len(space.grid(2, {**defaults, "recipe.mode": "b"})) == 3


def test_a_grid_may_have_a_hundred_thousand_combinations_and_no_more():
    space = parse_space({"a": "range(0, 400)", "b": "range(0, 250)", "c": "range(7, 8)"}, "x")
    assert len(space.grid(400, {})) == 100_000
    space = parse_space({"a": "range(0, 401)", "b": "range(0, 250)"}, "x")
    with pytest.raises(InputError, match="the grid has more than 100,000 combinations; take fewer points"):
        space.grid(401, {})
    with pytest.raises(InputError, match="more than 100,000 combinations"):
        parse_space({"a": "interval(0, 1)"}, "x").grid(10**12, {})


def test_what_does_not_exist_does_not_count_in_a_grid():
    space = parse_space(
        {"a": "range(0, 400)", "b": {"sweep": "range(0, 400)", "when": {"a": "< 100"}}, "c": "choice(x, y)"}, "x"
    )
    assert len(space.grid(400, {})) == (100 * 400 + 300) * 2


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_grid_has_two_ends(points):
    with pytest.raises(InputError, match=f"a grid of {points} points a dimension has no ends; take 2 or more"):
        parse_space({"a": "range(1, 9)"}, "x").grid(points, {})


@settings(max_examples=150, deadline=None)
@given(st.one_of(*NUMERIC), st.integers(2, 40))
def test_values_of_a_grid_are_spread_from_end_to_end(distribution, points):
    values = spread(distribution, points)
    span = distribution.high - distribution.low
    assert len(values) == (points if distribution.step is None else min(round(span / distribution.step) + 1, points))
    assert all(a < b for a, b in itertools.pairwise(values))
    assert all(inside(distribution, value) for value in values)
    assert (values[0], values[-1]) == (distribution.low, distribution.high)
    if len(values) > 2 and not distribution.log:
        even = span / (len(values) - 1)
        gaps = [b - a for a, b in itertools.pairwise(values)]
        slack = (distribution.step or 0) + 1e-6 * abs(even)
        assert all(abs(gap - even) <= slack for gap in gaps)


@settings(max_examples=60, deadline=None)
@given(spaces())
def test_every_combination_of_a_grid_lies_in_the_space_and_comes_once(made):
    space, defaults = made
    grid = space.grid(3, defaults)
    assert grid
    assert all(space.contains(params, defaults) == "" for params in grid[:500])
    keys = [tuple(sorted(params.items())) for params in grid]
    assert len(set(keys)) == len(keys)
