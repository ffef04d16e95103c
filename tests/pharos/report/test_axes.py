import pytest

from pharos.report.axes import axes
from pharos.space import parse_space


def axis(sweep, *params):
    return axes(parse_space({"recipe.x": sweep}, "test").dimensions, [{"recipe.x": value} for value in params])[0]


@pytest.mark.parametrize(
    ("sweep", "texts"),
    [
        ("interval(0, 1)", ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ("interval(-3, 12.5)", ["0", "5", "10"]),
        ("tag(log, interval(1e-5, 1e-3))", ["1e-05", "0.0001", "0.001"]),
        ("tag(log, interval(5e-5, 2e-3))", ["0.0001", "0.0003", "0.001"]),
        ("range(1, 5)", ["1", "2", "3", "4"]),
        ("int(tag(log, interval(64, 1024)))", ["100", "300", "1000"]),
        ("choice(true, false, a_rather_long_word)", ["true", "false", "a_rather_lo…"]),
        ("choice(1, '<b>')", ["1", "&lt;b&gt;"]),
    ],
)
def test_marks_are_at_values_that_people_would_choose(sweep, texts):
    positions, found = axis(sweep).marks()
    assert found == texts
    assert positions == sorted(positions)
    assert all(0 <= position <= 1 for position in positions)


@pytest.mark.parametrize(
    ("sweep", "value", "place"),
    [
        ("interval(2, 4)", 3, 0.5),
        ("interval(2, 4)", 5, 1.5),  # of a trial before the space changed
        ("tag(log, interval(1e-4, 1))", 0.01, 0.5),
        ("choice(a, b)", "b", 0.75),
        ("choice(true, 1)", True, 0.25),
        ("choice(true, 1)", 1, 0.75),
    ],
)
def test_a_value_has_its_place(sweep, value, place):
    assert axis(sweep, value).at(value) == pytest.approx(place)


def test_a_choice_that_is_no_longer_offered_has_a_place_still():
    found = axis("choice(a, b)", "a", "gone")
    assert found.choices == ("a", "b", "gone")
    assert found.at("gone") == pytest.approx(5 / 6)
