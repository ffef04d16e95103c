"""What a scheduler is: decisions from plain numbers, the same under every backend.

A scheduler hears what happens to each trial and answers; it touches nothing. All that it knows follows from what it
was told, so that on a resume the study's records are told to it again and it knows what it knew.
"""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass

from pharos.search.fronts import Losses
from pharos.space import Params
from pharos.trial import Outcome


class Action(enum.Enum):
    """What becomes of a trial that has just reported."""

    GO_ON = "go on"
    STOP = "stop"
    PAUSE = "pause"
    """It saves and gives its place to another; `Scheduler.next` may name it again."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a trial, and why: the reason is kept with the trial for people to read."""

    action: Action
    reason: str = ""


GO_ON = Decision(Action.GO_ON)


@dataclass(frozen=True)
class GoOn:
    """A paused trial is to go on."""

    trial: int


@dataclass(frozen=True)
class Clone:
    """A new trial is to start from another's newest checkpoint, with values of its own.

    Attributes:
        donor: Whose checkpoint.
        replaces: The trial that was stopped to make room.
        params: The new trial's values.
    """

    donor: int
    replaces: int
    params: Params


class Scheduler(abc.ABC):
    """Decides when trials stop, pause and go on.

    Fidelities are positive ints (epochs). Losses are finite and lower-better, one number an objective.
    """

    def on_start(self, trial: int, params: Params, replaces: int | None = None) -> None:  # noqa: B027
        """A trial was handed out: a new one, or again after a pause or an interruption.

        Args:
            trial: Its number.
            params: Its values.
            replaces: The stopped trial whose place it has (`Clone`), if any.
        """

    @abc.abstractmethod
    def on_report(self, trial: int, fidelity: int, losses: Losses) -> Decision:
        """Hears a trial's losses at a fidelity, once for each, in rising order; says what becomes of it.

        A trial may report past a fidelity at which it was stopped or paused, when the word has not reached it yet.
        """

    def on_end(self, trial: int, outcome: Outcome) -> None:  # noqa: B027
        """A trial has ended for good."""

    def next(self) -> GoOn | Clone | None:
        """What to start in a free place before the sampler is asked for a new trial; None: nothing.

        Asked again, without anything having happened, it says the same.
        """
        return None


class NeverStop(Scheduler):
    """Every trial runs to its end."""

    def on_report(self, trial: int, fidelity: int, losses: Losses) -> Decision:
        return GO_ON
