"""A distribution's text: Hydra's sweep grammar, read and written, and words for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.errors import InputError

_WORD = re.compile(r"(?!(true|false|null|inf|nan)$)[a-z_][a-z0-9_-]*", re.IGNORECASE)


def parse_sweep(text: str, where: str = "") -> tuple[str, BaseDistribution] | None:
    """The name and the distribution of `name=expression`; None if the expression is a plain value.

    Raises:
        InputError: The text is not in Hydra's override grammar, or the range is empty or impossible.
    """
    prefix = f"{where}: " if where else ""
    try:
        override: Override = OverridesParser.create().parse_override(text)
        if not override.is_sweep_override():
            return None
        return override.key_or_group, _distribution(override)
    except (HydraException, ValueError) as error:
        raise InputError(
            f"{prefix}{text}: {_first_line(error)}; a range is written like interval(0, 1), "
            "tag(log, interval(1e-5, 1e-3)), range(1, 5) or choice(a, b)"
        ) from None


def expression(distribution: BaseDistribution) -> str:
    """A distribution in the sweep grammar, so that reading it gives the same one.

    Raises:
        InputError: The grammar cannot say it, such as an interval with a single value in it.
    """
    for text in _expressions(distribution):
        if _means(text, distribution):
            return text
    raise InputError(f"{describe(distribution)} cannot be written as interval, range or choice")


def describe(distribution: BaseDistribution) -> str:
    """A dimension's range in words."""
    if isinstance(distribution, CategoricalDistribution):
        return extent(distribution)
    kind = "int" if isinstance(distribution, IntDistribution) else "float"
    return f"{extent(distribution)} ({', '.join([kind, *_notes(distribution)])})"


def extent(distribution: BaseDistribution) -> str:
    """A dimension's range without its scale."""
    if isinstance(distribution, CategoricalDistribution):
        return "{" + ", ".join(map(word, distribution.choices)) + "}"
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return f"[{word(distribution.low)}, {word(distribution.high)}]"


def scale(distribution: BaseDistribution) -> str:
    """What a dimension's range is a range of: `choice`, `int`, or for floats `linear` or `log`, and its step."""
    if isinstance(distribution, CategoricalDistribution):
        return "choice"
    notes = _notes(distribution)
    if isinstance(distribution, IntDistribution):
        return ", ".join(["int", *notes])
    return ", ".join(notes if "log" in notes else ["linear", *notes])


def word(value: Any) -> str:
    """A value for people: numbers in ten digits."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _notes(distribution: BaseDistribution) -> list[str]:
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    plain = distribution.step == (1 if isinstance(distribution, IntDistribution) else None)
    return ["log"] * distribution.log + ([] if plain else [f"step {word(distribution.step)}"])


def _distribution(override: Override) -> BaseDistribution:
    sweep = override.value()
    tags = sweep.tags if isinstance(sweep, (ChoiceSweep, RangeSweep, IntervalSweep)) else set()
    if wrong := sorted(tags - ({"log"} if isinstance(sweep, IntervalSweep) else set())):
        raise ValueError(f"the tag {wrong[0]} means nothing here")
    if isinstance(sweep, ChoiceSweep):
        choices = [_plain(choice) for choice in sweep.list]
        if wrong := [choice for choice in choices if not isinstance(choice, (bool, int, float, str, type(None)))]:
            raise ValueError(f"{wrong[0]} cannot be chosen; a choice is a number, a word, true or false")
        return CategoricalDistribution(choices)
    if isinstance(sweep, RangeSweep):
        return _steps(sweep)
    if not isinstance(sweep, IntervalSweep):
        raise ValueError("not a range of values")
    low, high = sweep.start, sweep.end
    if low is None or high is None or not low < high or math.isinf(low) or math.isinf(high):
        raise ValueError("an interval goes from a smaller to a larger number")
    log = "log" in sweep.tags
    # Hydra makes an interval's ends floats, unless int() was applied to it.
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _steps(sweep: RangeSweep) -> BaseDistribution:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    if start is None or stop is None or step <= 0 or not start < stop:
        raise ValueError("an empty range")
    if not all(map(math.isfinite, (start, stop, step))):
        raise ValueError("an endless range")
    # The end is left out, as in Python: the last value is the largest start + k * step below it. In decimals,
    # as it was written: in binary, 0.9 is not three times 0.3.
    first, end, each = (Decimal(str(value)) for value in (start, stop, step))
    last = first + (math.ceil((end - first) / each) - 1) * each
    if all(isinstance(value, int) for value in (start, stop, step)):
        return IntDistribution(int(start), int(last), step=int(step))
    return FloatDistribution(float(start), float(last), step=float(step))


def _expressions(distribution: BaseDistribution) -> Iterator[str]:
    """What might say a distribution, the most readable first."""
    if isinstance(distribution, CategoricalDistribution):
        choices = ", ".join(map(_choice, distribution.choices))
        # Hydra's choice() takes everything but null, which its short form takes.
        yield choices if None in distribution.choices else f"choice({choices})"
        return
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = _end(distribution.low), _end(distribution.high)
    if distribution.log or distribution.step is None:
        interval = f"interval({low}, {high})"
        interval = f"tag(log, {interval})" if distribution.log else interval
        yield f"int({interval})" if isinstance(distribution, IntDistribution) else interval
    elif isinstance(distribution, IntDistribution):
        step = f", {distribution.step}" if distribution.step != 1 else ""
        yield f"range({low}, {distribution.high + 1}{step})"
    else:
        # The end of a range is left out. Half a step beyond is safe where a float has no short decimals.
        each = Decimal(str(distribution.step))
        for beyond in (each, each / 2):
            yield f"range({low}, {_end(float(Decimal(str(distribution.high)) + beyond))}, {distribution.step!r})"


def _means(text: str, distribution: BaseDistribution) -> bool:
    try:
        read = parse_sweep(f"x={text}")
    except InputError:
        return False
    return read is not None and bool(read[1] == distribution)


def _choice(value: Any) -> str:
    """A choice in the grammar."""
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value)


def _end(value: int | float) -> str:
    """An end of an interval: all digits, but no .0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else repr(value)


def _plain(value: Any) -> Any:
    """A choice as JSON has it; Hydra's quoted strings become strings."""
    text = getattr(value, "text", None)
    return text if isinstance(text, str) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
