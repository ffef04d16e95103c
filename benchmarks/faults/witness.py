"""What really ran, by an account that the platform does not write: `inside/sitecustomize.py` appends to it.

Its lines are in the order in which they were written, over all processes of a machine. Points, in a trial's process:

    begins      an attempt at a trial starts           epoch       an epoch's training starts
    trained     it is over, after so many steps        saves       a file of a checkpoint is about to be written
    commits     a checkpoint's manifest is             committed   it was
    ends        the attempt is over; the driver does not know yet

and in a driver's: `opens`, `ending` (of a trial, about to be recorded), `recorded`, `closes`, `summary` (about to be
written). `trapped`: a process is held at the point `where`.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).parent / "inside"
"""To be on the PYTHONPATH of all processes of a sweep that is watched."""


@dataclass(frozen=True)
class Line:
    """What one process came past."""

    at: float
    """Seconds of the machine's monotonic clock."""
    pid: int
    point: str
    wall: float = 0.0
    """Seconds of the clock as the process saw it."""
    trial: int = -1
    attempt: str = ""
    """One word for each time that a trial was started in a process."""
    rank: int = 0
    epoch: int = 0
    """From 1, over all loops; of a checkpoint, the last epoch that is in it."""
    steps: int = 0
    outcome: str = ""
    values: tuple[float, ...] | None = None
    where: str = ""
    trap: str = ""


class Witness:
    """The account of one sweep.

    Args:
        home: A folder for it alone, on a file system that all its processes see.
    """

    def __init__(self, home: Path):
        self.home = home

    @property
    def environment(self) -> dict[str, str]:
        """What its processes need beside INSIDE on their PYTHONPATH."""
        return {"PHAROS_FAULTS": str(self.home.resolve())}

    def lines(self) -> list[Line]:
        """The account so far."""
        path = self.home / "witness.jsonl"
        return [_line(text) for text in path.read_text().splitlines()] if path.exists() else []

    def set_trap(self, act: str = "hold", **where: Any) -> str:
        """Lets the first process hold that comes to a point from now on; the word for the trap.

        Args:
            act: hold; or, for good, stand still, stand still with the lock (of the interpreter); or allocate, once it
                is released; or poison, which makes a weight NaN (at a `step` alone).
            where: What its line must say: `point`, which may also be `step` (with the number of the step in its epoch)
                beside those of the account, `trial`, `epoch`, `rank`, `outcome`.
        """
        trap = secrets.token_hex(4)
        draft = self.home / f"draft-{trap}"
        draft.write_text(json.dumps({"id": trap, "act": act, "where": where}))
        draft.rename(self.home / "trap.json")
        return trap

    def trapped(self, trap: str) -> Line | None:
        """Who is in a trap; None while nobody is."""
        return next((line for line in self.lines() if line.trap == trap), None)

    def release(self, trap: str) -> None:
        """Lets who is held in a trap go on, and nobody get into it any more."""
        (self.home / f"released-{trap}").touch()
        (self.home / "trap.json").unlink(missing_ok=True)


def _line(text: str) -> Line:
    found = {key: value for key, value in json.loads(text).items() if key in Line.__dataclass_fields__}
    if found.get("values") is not None:
        found["values"] = tuple(found["values"])
    return Line(**found)
