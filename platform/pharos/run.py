"""What a recipe holds while it trains: the device, learners, resumable loops and one way to report.

The timetable, for a recipe with two loops:

    train(run, config)
        learner(...)                      weights come from the checkpoint, if there is one
        for epoch in run.epochs("a", n):  only the epochs that are left; random states set from (seed, loop, epoch)
            for batch in epoch.batches(...):   a stop asked for by the platform ends the trial here
            epoch.report(...)             metrics leave at once; a non-finite loss or objective ends the trial
                                          after the body: a checkpoint, if one is due
        for epoch in run.epochs("b", m):  the same
    the platform                          a last checkpoint; the outcome

Random states are never saved: every epoch sets them from (seed, loop, epoch, rank), so a resumed trial gives the
numbers it would have given.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pharos.checkpoint import Checkpoints
from pharos.learner import Learner, OptimConfig
from pharos.trial import Outcome, Report, TrialStopped

T = TypeVar("T")
Batch = TypeVar("Batch", Tensor, tuple[Tensor, ...])

_SHARED_BETWEEN_TRIALS = 2
_cache: OrderedDict[Hashable, Any] = OrderedDict()
_cache_lock = threading.Lock()


class Run:
    """One trial's training, alone in a debugger or on a cluster alike.

    Args:
        seed: Every random number of the trial follows from it.
        device: Where learners live.
        objective: The metric the search compares; its last value is the trial's result.
        on_report: Receives each report at once; it must not wait for storage or network.
        checkpoints: Where to save and resume; None trains without either.
        checkpoint_seconds: Least time between two checkpoints; there is always one at the end.
        precision: Of the learners' forward passes, `fp32` or `bf16`.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        *,
        seed: int,
        device: torch.device,
        objective: str = "",
        on_report: Callable[[Report], None] = lambda report: None,
        on_image: Callable[[int, str, Tensor], None] = lambda step, name, image: None,
        checkpoints: Checkpoints | None = None,
        checkpoint_seconds: float = 30.0,
        precision: str = "fp32",
    ):
        self.seed = seed
        self.device = device
        self.state: dict[str, Any] = {}
        """Anything else a resumed trial needs: nested dicts and lists of tensors, numbers and strings."""
        self.fidelity = 0
        """Epochs finished, over all loops."""
        self.metrics: dict[str, float] = {}
        """The last metrics reported."""
        self.started_at = 0.0
        """Wall-clock time of the first batch in this process."""
        self._objective = objective
        self._on_report = on_report
        self._on_image = on_image
        self._checkpoints = checkpoints
        self._checkpoint_seconds = checkpoint_seconds
        self._precision = precision
        self._learners: dict[str, Learner] = {}
        self._unclaimed: dict[str, Any] = {}  # restored learners that the recipe has not asked for yet
        self._done: dict[str, int] = {}  # loop -> iterations finished
        self._loops: list[str] = []  # the loops entered, outermost first
        self._broken_loop = ""
        self._stop: TrialStopped | None = None
        self._interrupted = False
        self._saved_fidelity = 0
        self._base_seconds = 0.0
        self._restore()
        self._saved_at = self._entered_at = time.monotonic()
        _seed_everything(self._stream("start"))

    # What a recipe uses

    def learner(self, name: str, module: nn.Module, optim: OptimConfig) -> Learner:
        """Registers a module with its optimiser; a resumed trial gets its weights and moments back here.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._learners:
            raise ValueError(f"this run already has a learner {name!r}")
        learner = Learner(name, module, optim, self.device, self._precision)
        if name in self._unclaimed:
            learner.load_state_dict(self._unclaimed.pop(name))
        self._learners[name] = learner
        return learner

    def epochs(self, name: str, count: int) -> Iterator[Epoch]:
        """The epochs of a loop that are left. To leave it early, call `epoch.end_loop()`; never `break`.

        Raises:
            RuntimeError: A loop before it was left by `break`, which a resumed trial could not know of.
        """
        return self._loop(name, count, lambda key, index: Epoch(self, key, index))

    def stages(self, name: str, count: int) -> Iterator[int]:
        """The stages of an outer loop that are left; loops inside a stage are that stage's own."""
        return self._loop(name, count, lambda key, index: index)

    def log_image(self, name: str, image: Tensor) -> None:
        """Shows a picture, (3, height, width) with values in [0, 1], where the run is tracked."""
        self._on_image(self.fidelity, name, image)

    def cached(self, key: Hashable, build: Callable[[], T]) -> T:
        """What `build` makes, shared by the trials of this process: data that does not change between them."""
        with _cache_lock:
            if key not in _cache:
                _cache[key] = build()
            _cache.move_to_end(key)
            while len(_cache) > _SHARED_BETWEEN_TRIALS:
                _cache.popitem(last=False)
            value: T = _cache[key]
            return value

    # What the platform uses

    @property
    def seconds(self) -> float:
        """Seconds trained, earlier attempts up to their last checkpoints included."""
        return self._base_seconds + time.monotonic() - self._entered_at

    def stop(self, outcome: Outcome, reason: str = "") -> None:
        """Ends the trial at its next batch or report; may be called from another thread."""
        self._stop = TrialStopped(outcome, reason)

    def interrupt(self) -> None:
        """Saves at the end of the epoch and stops, so that the trial can go on later without a loss."""
        self._interrupted = True

    def save(self) -> None:
        """Writes a checkpoint, if there was any progress since the last."""
        if self._checkpoints is not None and self.fidelity > self._saved_fidelity:
            learners = {name: learner.state_dict() for name, learner in self._learners.items()}
            self._checkpoints.save(
                self.fidelity,
                {
                    "fidelity": self.fidelity,
                    "seconds": self.seconds,
                    "done": self._done,
                    "metrics": self.metrics,
                    "learners": self._unclaimed | learners,
                    "state": self.state,
                },
            )
            self._saved_fidelity = self.fidelity
        self._saved_at = time.monotonic()

    def check_loops(self) -> None:
        """Complains of a loop that was left by `break`."""
        if self._broken_loop:
            raise RuntimeError(f"the loop {self._broken_loop!r} was left by break; call epoch.end_loop() instead")

    def _restore(self) -> None:
        newest = self._checkpoints.newest() if self._checkpoints is not None else None
        if newest is None:
            return
        _, saved = newest
        self.fidelity = self._saved_fidelity = saved["fidelity"]
        self._base_seconds = saved["seconds"]
        self._done = saved["done"]
        self.metrics = saved["metrics"]
        self.state = saved["state"]
        self._unclaimed = saved["learners"]

    def _loop(self, name: str, count: int, make: Callable[[str, int], T]) -> Iterator[T]:
        self.check_loops()
        key = "/".join([*self._loops, name])
        self._loops.append(name)
        try:
            for index in range(self._done.get(key, 0), count):
                self._loops[-1] = f"{name}:{index}"
                _seed_everything(self._stream(key, index, self.rank))
                for learner in self._learners.values():
                    learner.start_epoch(index / count)
                item = make(key, index)
                yield item
                ended = isinstance(item, Epoch) and item.ended_loop
                self._done[key] = count if ended else index + 1
                if isinstance(item, Epoch):
                    self._end_epoch()
                if ended:
                    break
        except GeneratorExit:
            self._broken_loop = key
            raise
        finally:
            self._loops.pop()
        # What follows a loop starts from the same random state, whether its epochs ran in this process or before.
        _seed_everything(self._stream(key, "end", self.rank))

    def _end_epoch(self) -> None:
        self.fidelity += 1
        if self._interrupted:
            self.save()
            raise TrialStopped(Outcome.INTERRUPTED)
        if time.monotonic() - self._saved_at >= self._checkpoint_seconds:
            self.save()

    def _report(self, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        for learner in self._learners.values():
            loss = learner.take_mean_loss()
            if loss is not None:
                values[f"loss/{learner.name}"] = loss
        # A report without the objective leaves its last value standing: that is the trial's result.
        self.metrics = {name: value for name, value in self.metrics.items() if name == self._objective} | values
        for name, value in values.items():
            if not math.isfinite(value) and (name == self._objective or name.startswith("loss/")):
                raise self._diverged(name, value)
        self._raise_if_stopped()
        self._on_report(Report(self.fidelity + 1, values, self.seconds))
        self._raise_if_stopped()

    def divergence(self) -> TrialStopped | None:
        """What to make of an error inside the recipe: the end of a diverged trial, if a loss is non-finite."""
        for learner in self._learners.values():
            loss = learner.take_mean_loss()
            if loss is not None and not math.isfinite(loss):
                return self._diverged(f"loss/{learner.name}", loss)
        return None

    def _diverged(self, name: str, value: float) -> TrialStopped:
        return TrialStopped(Outcome.DIVERGED, f"{name} became {value} in epoch {self.fidelity + 1}")

    def _raise_if_stopped(self) -> None:
        if self._stop is not None:
            raise self._stop

    def _stream(self, *parts: object) -> int:
        """A seed for one purpose, from the trial's seed: the same in every process and on every machine."""
        text = "/".join(str(part) for part in (self.seed, *parts))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class Epoch:
    """One pass of a loop.

    Attributes:
        index: Its number in its loop, from 0.
        shared: A random generator that is in the same state on every rank: for decisions a batch shares.
        local: One that differs from rank to rank: for draws per sample. Both live on the CPU.
    """

    def __init__(self, run: Run, key: str, index: int):
        self.index = index
        self.shared = torch.Generator().manual_seed(run._stream(key, index, "shared"))
        self.local = torch.Generator().manual_seed(run._stream(key, index, "local", run.rank))
        self.ended_loop = False
        self._order = torch.Generator().manual_seed(run._stream(key, index, "order"))
        self._run = run

    def batches(self, data: Batch, batch_size: int) -> Iterator[Batch]:
        """Shuffled batches of a tensor, or of several along their first axis; a short last one is left out.

        Args:
            data: (n, ...) or a tuple of such, on any device; batches stay there.
            batch_size: Over all ranks; a rank gets its share. More than n gives one batch of n.
        """
        run = self._run
        first = data if isinstance(data, Tensor) else data[0]
        batch_size = min(batch_size, len(first))
        order = torch.randperm(len(first), generator=self._order).to(first.device)
        if not run.started_at:
            run.started_at = time.time()
        for start in range(0, len(first) - batch_size + 1, batch_size):
            run._raise_if_stopped()
            chosen = order[start : start + batch_size][run.rank :: run.world_size]
            if isinstance(data, Tensor):
                yield data.index_select(0, chosen)
            else:
                yield tuple(part.index_select(0, chosen) for part in data)

    def end_loop(self) -> None:
        """Makes this epoch the last of its loop, here and in a trial that is resumed later."""
        self.ended_loop = True

    def report(self, metrics: Mapping[str, float] | None = None, /, **more: float) -> None:
        """Sends this epoch's metrics, the learners' mean losses added.

        Raises:
            TrialStopped: The trial diverged, or the platform has stopped it.
        """
        self._run._report({**(metrics or {}), **more})


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
