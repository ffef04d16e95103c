"""A trial that is only tried: every loop of a recipe is entered, and of each a few epochs and batches are run.

`platform/doctor.py` asks for it (`TrialSpec.probe`). A recipe does not know: it gets its first epochs and its last one,
as it would have them, each with fewer batches than it has. All iterations of `run.stages` are run, as each may train
something else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pharos.world import World

# A loop may take this share of the seconds that are left for all, and an epoch's batches this share of its loop's.
_OF_THE_REST, _OF_THE_LOOP = 0.25, 0.2


@dataclass
class Seen:
    """An epoch that was run in part.

    Attributes:
        index: Its number in its loop.
        batches: How many it would have had.
        steps: Seconds of each batch that was run.
        other: Seconds of the rest of it: evaluation, mostly.
    """

    index: int
    batches: int = 0
    steps: list[float] = field(default_factory=list)
    other: float = 0.0


@dataclass
class Loop:
    """A loop that was tried.

    Attributes:
        name: Its name, after those of the stages that it is in.
        epochs: How many it would have had.
        seen: Those that were run; the last of them is unfinished if the trial did not get through.
    """

    name: str
    epochs: int
    seen: list[Seen] = field(default_factory=list)


class Probe:
    """Chooses what of a trial is run, and takes the time of it.

    Args:
        seconds: For more than the least, which is each loop's first and last epoch with a batch each; about.
        world: The trial's workers, who choose alike.
    """

    def __init__(self, seconds: float, world: World):
        self.loops: list[Loop] = []
        self._left = seconds
        self._world = world
        self._share = 0.0  # of the present loop
        self._started_at = self._now()

    def epochs(self, name: str, left: Sequence[int]) -> Iterator[int]:
        """Of a loop's epochs the first, as many more as there is time for, and the last."""
        loop = Loop(name, len(left))
        self.loops.append(loop)
        entered_at = self._now()
        self._share = self._left * _OF_THE_REST
        for index in left:
            if index not in (left[0], left[-1]) and self._is_over(entered_at, self._share):
                continue
            seen = Seen(index)
            loop.seen.append(seen)
            began_at = self._now()
            try:
                yield index
            finally:
                seen.other = self._now() - began_at - sum(seen.steps)
        self._left = max(0.0, self._left - (self._now() - entered_at))

    def batches(self, starts: Sequence[int]) -> Iterator[int]:
        """Of an epoch's batches the first, and as many more as there is time for."""
        seen = self.loops[-1].seen[-1]
        seen.batches += len(starts)
        entered_at = before = self._now()
        for number, start in enumerate(starts):
            if number and self._is_over(entered_at, self._share * _OF_THE_LOOP):
                break
            try:
                yield start
            except GeneratorExit:  # the recipe takes no more of them
                seen.batches -= len(starts) - number - 1
                raise
            finally:
                now = self._now()
                seen.steps.append(now - before)
                before = now

    def found(self) -> dict[str, Any]:
        """What was seen, as JSON has it: `loops`, and the seconds `outside` of their epochs."""
        inside = sum(seen.other + sum(seen.steps) for loop in self.loops for seen in loop.seen)
        outside = self._now() - self._started_at - inside
        return {"loops": [dataclasses.asdict(loop) for loop in self.loops], "outside": outside}

    def _is_over(self, since: float, seconds: float) -> bool:
        return self._world.most([self._now() - since])[0] >= seconds

    def _now(self) -> float:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return time.monotonic()
