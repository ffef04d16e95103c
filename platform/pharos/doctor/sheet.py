"""What was found: a line a check."""

from __future__ import annotations

import enum
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pharos.errors import PharosError
from pharos.retry import redact


class Status(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        status: How it ended.
        text: What was found; if something is wrong, where, and what would be right.
        facts: More of it, for scripts: JSON.
    """

    status: Status
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


def ok(text: str, **facts: Any) -> Finding:
    """All is well."""
    return Finding(Status.OK, text, facts)


def warn(text: str, **facts: Any) -> Finding:
    """It would run, and somebody should know."""
    return Finding(Status.WARN, text, facts)


def fail(text: str, **facts: Any) -> Finding:
    """It would not run."""
    return Finding(Status.FAIL, text, facts)


class Sheet:
    """The checks so far.

    Args:
        say: Receives each line.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._rows: list[dict[str, Any]] = []

    def check(self, name: str, act: Callable[[], Finding]) -> Finding:
        """Makes a check; an error in it is what it found."""
        began_at = time.monotonic()
        try:
            found = act()
        except PharosError as error:
            found = fail(str(error))
        except Exception as error:  # one check must not take the others down
            found = fail(in_a_line(error))
        self.add(name, found, time.monotonic() - began_at)
        return found

    def add(self, name: str, found: Finding, seconds: float) -> None:
        """Takes up what a check found."""
        text = redact(" ".join(found.text.split()))
        row = {"name": name, "status": str(found.status), "found": text, "seconds": round(seconds, 2)}
        self._rows.append(row | ({"facts": found.facts} if found.facts else {}))
        self._say(f"{found.status:<4}  {name:<15}{text}  ({seconds:.1f} s)")

    @property
    def is_well(self) -> bool:
        """Whether nothing failed."""
        return all(row["status"] != Status.FAIL for row in self._rows)

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"ok": self.is_well, "checks": self._rows}


def in_a_line(error: BaseException) -> str:
    """An error that nobody expected, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"
