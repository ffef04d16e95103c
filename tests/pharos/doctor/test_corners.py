"""Which configurations are tried of a space."""

from pharos.doctor.corners import LIMIT, corners
from pharos.space import parse_space

DEFAULTS = {"a": 0.5, "n": 4, "c": "x", "d": True, "deep": 1, "far": 2.0}


def space(**entries):
    return parse_space(entries, "test")


def test_the_defaults_the_low_and_the_high_ends_with_each_choice():
    found = corners(space(a="interval(0, 1)", n="range(1, 9)", c="choice(x, y, z)", d="choice(true, false)"), DEFAULTS)
    assert found == {
        "the defaults": {"a": 0.5, "n": 4, "c": "x", "d": True},
        "all low": {"a": 0.0, "n": 1, "c": "x", "d": True},
        "all high, choices 1": {"a": 1.0, "n": 8, "c": "x", "d": True},
        "all high, choices 2": {"a": 1.0, "n": 8, "c": "y", "d": False},
        "all high, choices 3": {"a": 1.0, "n": 8, "c": "z", "d": True},
    }


def test_conditions_are_kept_and_what_no_corner_has_is_drawn():
    both = {"sweep": "range(1, 5)", "when": {"c": "y", "d": True}}
    found = corners(space(c="choice(x, y)", d="choice(true, false)", deep=both), DEFAULTS)
    assert found.pop("drawn, for deep").keys() == {"c", "d", "deep"}
    assert all("deep" not in params for params in found.values())


def test_a_default_outside_its_dimension_is_the_low_end_and_corners_are_distinct():
    found = corners(space(a="interval(2, 3)"), DEFAULTS)
    assert found == {"the defaults": {"a": 2.0}, "all high": {"a": 3.0}}


def test_there_is_a_limit():
    many = ", ".join(f"v{k}" for k in range(30))
    assert len(corners(space(c=f"choice({many})"), {"c": "v0"})) == LIMIT
