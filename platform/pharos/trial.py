"""What a trial is, in values that cross a process border: what to run, how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Outcome(enum.StrEnum):
    """How a trial ended. Kept apart, because each means something else to a sampler and to a person."""

    COMPLETE = "complete"  # reached its full fidelity
    PRUNED = "pruned"  # stopped by the scheduler at the fidelity in its record
    DIVERGED = "diverged"  # a loss or metric became non-finite
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"  # raised, or lost its process too often
    CANCELLED = "cancelled"  # given up by a person
    INTERRUPTED = "interrupted"  # stopped in order; goes on from its checkpoint on --resume
    PAUSED = "paused"  # by the scheduler, at the fidelity in its record; goes on from its checkpoint if promoted
    RUNNING = "running"

    @property
    def is_final(self) -> bool:
        """Whether the trial never runs again."""
        return self not in (Outcome.RUNNING, Outcome.INTERRUPTED, Outcome.PAUSED)


@dataclass(frozen=True)
class Origin:
    """Where a trial starts from that does not start from nothing: the newest checkpoint of another.

    Attributes:
        donor: The other trial's number.
        replaces: The trial that was stopped to make room.
    """

    donor: int
    replaces: int


@dataclass(frozen=True)
class TrialSpec:
    """All that a process needs to train one trial: plain data, resolved on the driver."""

    sweep: str
    number: int
    family: str
    params: dict[str, Any]
    """The searched values, by their full override names (`recipe.optim.lr`)."""
    config: dict[str, Any]
    """The recipe's whole configuration, the searched values included."""
    seed: int
    folder: str
    """URL of the trial's folder."""
    max_fidelity: int
    objective: str
    checkpoint_seconds: float
    threads: int
    """CPU threads each worker may use; 0 leaves PyTorch's own choice."""
    gpus: float | None = None
    """GPUs each worker has; 0 keeps it on the CPU, None takes one if the process sees any."""
    engine: dict[str, Any] = field(default_factory=dict)
    """What runs the learners: the fields of `pharos.engines.base.EngineConfig`."""
    tracking: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    """How its folder is reached and what of it stays: the fields of `pharos.storage.StorageConfig`."""
    mode: str = "min"
    """Whether a better objective is smaller (`min`) or larger (`max`)."""
    watched: list[str] = field(default_factory=list)
    """Other metrics that the search compares or bounds; `peak_memory_gb` is the platform's, the others the recipe's."""
    origin: str | None = None
    """URL of the folder of a trial whose newest checkpoint it starts from, if it has none of its own."""
    probe: float | None = None
    """It is only tried, in about so many seconds more than it takes to see each loop (`pharos.probe`)."""

    @property
    def id(self) -> str:
        return trial_id(self.number)


def trial_id(number: int) -> str:
    """The name of a trial's folder, from its number in the study."""
    return f"{number:05d}"


@dataclass(frozen=True)
class Report:
    """Metrics at one fidelity, on their way from a trial to the driver."""

    fidelity: int
    metrics: dict[str, float]
    seconds: float
    """Seconds the trial has trained for, earlier attempts up to their checkpoints included."""
    lost_seconds: float = 0.0
    """Seconds that the attempt before this one trained past its last checkpoint, in vain."""
    process: int = 0
    started_at: float = 0.0
    """Wall-clock time of the attempt's first training step."""


@dataclass(frozen=True)
class Ending:
    """How one attempt at a trial ended."""

    outcome: Outcome
    reason: str = ""
    fidelity: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Seconds of training that counted, over all attempts."""
    lost_seconds: float = 0.0
    """Seconds that the attempt before this one trained past its last checkpoint, in vain."""
    process: int = 0
    started_at: float = 0.0
    """Wall-clock time of the attempt's first training step (0: none was made)."""
    ended_at: float = 0.0
    is_lost_link: bool = False
    """Whether it failed because another worker of the trial was gone or silent."""
    probe: dict[str, Any] = field(default_factory=dict)
    """What was seen of a trial that was only tried: `pharos.probe.Probe.found`."""


class TrialStopped(BaseException):
    """Raised inside a recipe to end it early; a BaseException, so that no `except Exception` swallows it."""

    def __init__(self, outcome: Outcome, reason: str = ""):
        super().__init__(f"{outcome}: {reason}" if reason else str(outcome))
        self.outcome = outcome
        self.reason = reason
