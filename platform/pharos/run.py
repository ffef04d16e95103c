"""What a recipe holds while it trains: the device, learners, resumable loops and one way to report.

The timetable, for a recipe with two loops:

    train(run, config)
        learner(...)                      weights come from the checkpoint, if there is one
        for epoch in run.epochs("a", n):  only the epochs that are left; random states set from (seed, loop, epoch)
            for batch in epoch.batches(...):   a stop asked for by the platform ends the trial here
            epoch.report(...)             metrics leave at once; a non-finite loss or objective ends the trial
                                          after the body: a checkpoint, if one is due; it is written meanwhile
        for epoch in run.epochs("b", m):  the same
    the platform                          a last checkpoint; the outcome

Random states are never saved: every epoch sets them from (seed, loop, epoch, rank), so a resumed trial gives the
numbers it would have given.

With several workers the same recipe runs in each of them, on its share of every batch. They keep step by themselves:
what is decided in a recipe must be decided alike in all of them, from `epoch.shared`, from reports or from `run.mean`.
"""

from __future__ import annotations

import hashlib
import math
import random
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pharos.checkpoint import Checkpoint, Checkpoints, Part, folder_of
from pharos.engines.base import EngineConfig
from pharos.errors import PharosError
from pharos.learner import Learner, OptimConfig
from pharos.memory import PEAK_MEMORY, peak_memory, reset_peak
from pharos.probe import Probe
from pharos.saver import Saver
from pharos.storage import Storage
from pharos.trial import Outcome, Report, TrialStopped
from pharos.world import World

T = TypeVar("T")
Batch = TypeVar("Batch", Tensor, tuple[Tensor, ...])

_SHARED_BETWEEN_TRIALS = 2
# Workers ask each other whether to stop about this often, in seconds: at each batch it would cost too much.
_ASK_LEAST, _ASK_MOST = 0.25, 1.0
_cache: OrderedDict[Hashable, Any] = OrderedDict()
_cache_lock = threading.Lock()


class Run:
    """One trial's training, alone in a debugger or on a cluster alike.

    Args:
        seed: Every random number of the trial follows from it.
        world: The workers that train the trial together, and where their learners live.
        objective: The metric the search compares; its last value is the trial's result.
        watched: Other metrics that it compares or bounds; `peak_memory_gb` is measured here.
        on_report: Receives each report at once; it must not wait for storage or network.
        on_image: Receives pictures with the fidelity and their names.
        on_histogram: Receives the gradients of the last step of each epoch, by parameter; None: nobody wants them.
        saver: Saves checkpoints; None trains without.
        saved: The checkpoint to go on from.
        checkpoint_seconds: Least time between two checkpoints; there is always one at the end.
        engine: What runs the learners.
        rescue: A folder of this node that takes the last checkpoint when its own place is lost.
        probe: What chooses the epochs and batches of a trial that is only tried.
    """

    def __init__(
        self,
        *,
        seed: int,
        world: World | None = None,
        objective: str = "",
        watched: Collection[str] = (),
        on_report: Callable[[Report], None] = lambda report: None,
        on_image: Callable[[int, str, Tensor], None] = lambda step, name, image: None,
        on_histogram: Callable[[int, str, Tensor], None] | None = None,
        saver: Saver | None = None,
        saved: Checkpoint | None = None,
        checkpoint_seconds: float = 30.0,
        engine: EngineConfig | None = None,
        rescue: Storage | None = None,
        probe: Probe | None = None,
    ):
        self.seed = seed
        self.world = world or World()
        self.state: dict[str, Any] = {}
        """Anything else a resumed trial needs: nested dicts and lists of tensors, numbers and strings."""
        self.fidelity = 0
        """Epochs finished, over all loops."""
        self.metrics: dict[str, float] = {}
        """The last metrics reported."""
        self.started_at = 0.0
        """Wall-clock time of the first batch in this process."""
        self.ticks = 0
        """Grows while the trial gets on; a watcher takes one that stands still for hung."""
        self._objective = objective
        self._watched = {objective, *watched}
        self._on_report = on_report
        self._on_image = on_image
        self._on_histogram = on_histogram
        self._saver = saver
        self._rescue = rescue
        self.probe = probe
        self._checkpoint_seconds = checkpoint_seconds
        self._engine = engine or EngineConfig()
        self._learners: dict[str, Learner] = {}
        self._saved = saved
        self._unclaimed: list[str] = []  # saved learners that the recipe has not asked for yet
        self._done: dict[str, int] = {}  # loop -> iterations finished
        self._loops: list[str] = []  # the loops entered, outermost first
        self._broken_loop = ""
        self._stop: TrialStopped | None = None
        self._interrupted = False
        self._saved_fidelity = 0
        self._base_seconds = 0.0
        self._asked_at = time.monotonic()
        self._ask_every = self._ask_in = 1  # batches
        if saved is not None:
            self._restore(saved)
        if PEAK_MEMORY in self._watched:
            reset_peak(self.device)
            if math.isnan(peak_memory(self.device)):
                raise PharosError(f"{PEAK_MEMORY} cannot be measured here: it takes a GPU, or Linux")
        self._saved_at = self._entered_at = time.monotonic()
        _seed_everything(self._stream("start"))

    # What a recipe uses

    @property
    def device(self) -> torch.device:
        """Where this worker's learners live."""
        return self.world.device

    @property
    def rank(self) -> int:
        """Which of the trial's workers this is."""
        return self.world.rank

    @property
    def world_size(self) -> int:
        """How many workers train the trial."""
        return self.world.size

    def learner(
        self, name: str, module: nn.Module, optim: OptimConfig, factors: Mapping[str, float] | None = None
    ) -> Learner:
        """Registers a module with its optimiser; a resumed trial gets its weights and moments back here.

        Args:
            name: Its name in checkpoints and reports.
            module: The network.
            optim: Its optimiser.
            factors: Of the learning rate, by the end of parameters' names; for others it is 1.

        Raises:
            ValueError: The name is taken, or has a '/'.
        """
        if name in self._learners or "/" in name:
            raise ValueError(f"this run already has a learner {name!r}, or a name has a '/'")
        saved = self._saved if name in self._unclaimed else None
        self._learners[name] = Learner(
            name, module, optim, engine=self._engine, world=self.world, saved=saved, factors=factors
        )
        if saved is not None:
            self._unclaimed.remove(name)
            self._saved = self._saved if self._unclaimed else None
        return self._learners[name]

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the workers, the same on all of them: for decisions of a recipe."""
        return self.world.mean(values)

    def epochs(self, name: str, count: int) -> Iterator[Epoch]:
        """The epochs of a loop that are left. To leave it early, call `epoch.end_loop()`; never `break`.

        Raises:
            RuntimeError: A loop before it was left by `break`, which a resumed trial could not know of.
        """
        choose = self.probe.epochs if self.probe else None
        return self._loop(name, count, lambda key, index: Epoch(self, key, index), choose)

    def stages(self, name: str, count: int) -> Iterator[int]:
        """The stages of an outer loop that are left; loops inside a stage are that stage's own."""
        return self._loop(name, count, lambda key, index: index)

    def log_image(self, name: str, image: Tensor) -> None:
        """Shows a picture, (3, height, width) with values in [0, 1], where the run is tracked and in its report."""
        # It belongs to the epoch that is being trained, whose report may come before it or after it.
        self._on_image(self.fidelity + 1 if self._loops else max(1, self.fidelity), name, image)

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

    def finish(self) -> None:
        """Comes back when all progress is saved.

        Raises:
            PharosError: It cannot be.
        """
        if self._saver is None:
            return
        self._wait_for_saver(self._saver)
        if self.fidelity > self._saved_fidelity:
            self._save(self._saver)
            self._wait_for_saver(self._saver)

    def close(self) -> None:
        """Gives back what the learners' engines hold, so that the next trial finds the process as this one did."""
        for learner in self._learners.values():
            learner.close()
        self._learners.clear()

    def check_loops(self) -> None:
        """Complains of a loop that was left by `break`."""
        if self._broken_loop:
            raise RuntimeError(f"the loop {self._broken_loop!r} was left by break; call epoch.end_loop() instead")

    def _restore(self, saved: Checkpoint) -> None:
        state = saved.state
        self.fidelity = self._saved_fidelity = state["fidelity"]
        self._base_seconds = state["seconds"]
        self._done = state["done"]
        self.metrics = state["metrics"]
        self.state = state["state"]
        self._unclaimed = state["learners"]

    def _save(self, saver: Saver) -> None:
        """Lets a checkpoint be written, if there was any progress since the last."""
        if self.fidelity > self._saved_fidelity:
            self._hand_over(saver.begin)
            self._saved_fidelity = self.fidelity
            self.ticks += 1
        self._saved_at = time.monotonic()

    def _hand_over(self, save: Callable[..., None]) -> None:
        for learner in self._learners.values():
            learner.share_statistics()
        save(
            self.fidelity,
            {
                "fidelity": self.fidelity,
                "seconds": self.seconds,
                "done": self._done,
                "metrics": self.metrics,
                "learners": [*self._unclaimed, *self._learners],
                "state": self.state,
            },
            self._parts(),
            engine={"name": self._engine.name, "zero": self._engine.zero, "precision": self._engine.precision},
            value=self.metrics.get(self._objective),
        )

    def _wait_for_saver(self, saver: Saver) -> None:
        while True:
            busy, failed = self.world.most([float(saver.is_busy), float(bool(saver.failure))])
            if failed:
                raise self._storage_lost(saver)
            if not busy:
                return
            self.ticks += 1
            saver.wait(0.2)

    def _storage_lost(self, saver: Saver) -> PharosError:
        """What to say of a checkpoint that cannot be saved where it belongs; it is saved on this node."""
        reason = saver.failure or "another worker could not save its part of a checkpoint"
        saver.abandon()
        if self._rescue is None:
            return PharosError(reason)
        try:
            self._hand_over(Saver(Checkpoints(self._rescue), self.world, attempt="rescue").save)
        except PharosError as error:
            return PharosError(f"{reason}; and it could not be saved on {socket.gethostname()} either: {error}")
        path = self._rescue.path(folder_of(self.fidelity))
        return PharosError(f"{reason}; its last checkpoint lies on {socket.gethostname()} in {path}")

    def _parts(self) -> Iterator[Part]:
        for learner in self._learners.values():
            yield from learner.parts()
        if self._saved is not None and self.rank == 0:
            for name in self._unclaimed:
                for key, tensor in self._saved.tensors(f"learners/{name}/").items():
                    yield Part.whole(f"learners/{name}/{key}", tensor)

    def _loop(
        self,
        name: str,
        count: int,
        make: Callable[[str, int], T],
        choose: Callable[[str, range], Iterator[int]] | None = None,
    ) -> Iterator[T]:
        self.check_loops()
        key = "/".join([*self._loops, name])
        self._loops.append(name)
        try:
            left = range(self._done.get(key, 0), count)
            for index in choose(key, left) if choose else left:
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
        self.ticks += 1
        saver = self._saver
        is_due = saver is not None and time.monotonic() - self._saved_at >= self._checkpoint_seconds
        is_busy, has_failed = (saver.is_busy, bool(saver.failure)) if saver is not None else (False, False)
        interrupted, due, busy, failed = self.world.most(
            [float(flag) for flag in (self._interrupted, is_due, is_busy, has_failed)]
        )
        if saver is not None and failed:
            raise self._storage_lost(saver)
        if interrupted:
            self.finish()
            raise TrialStopped(Outcome.INTERRUPTED)
        if saver is not None and due and not busy:
            self._save(saver)

    def _report(self, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        for learner in self._learners.values():
            loss = learner.take_mean_loss()
            if loss is not None:
                values[f"loss/{learner.name}"] = loss
            if self._on_histogram is not None:
                for name, gradient in learner.gradients():
                    self._on_histogram(self.fidelity + 1, f"gradients/{learner.name}/{name}", gradient)
        self.ticks += 1
        # All workers go on with the same numbers, so that they judge them alike.
        values = self.world.mean(values)
        if PEAK_MEMORY in self._watched:
            before = self.metrics.get(PEAK_MEMORY, 0.0)
            values[PEAK_MEMORY] = self.world.most([max(before, peak_memory(self.device))])[0]
        # A report without the objective leaves its last value standing: that is the trial's result.
        self.metrics = {name: value for name, value in self.metrics.items() if name in self._watched} | values
        for name, value in values.items():
            if not math.isfinite(value) and (name in self._watched or name.startswith("loss/")):
                raise self._diverged(name, value)
        self._ask()
        self._on_report(Report(self.fidelity + 1, values, self.seconds))
        if self.world.size == 1:
            self._ask()

    def divergence(self) -> TrialStopped | None:
        """What to make of an error inside the recipe: the end of a diverged trial, if a loss is non-finite."""
        for learner in self._learners.values():
            loss = learner.take_mean_loss()
            if loss is not None and not math.isfinite(loss):
                return self._diverged(f"loss/{learner.name}", loss)
        return None

    def _diverged(self, name: str, value: float) -> TrialStopped:
        return TrialStopped(Outcome.DIVERGED, f"{name} became {value} in epoch {self.fidelity + 1}")

    def _between_batches(self) -> None:
        """Ends the trial here if the platform wants it; workers agree on it, all at the same batch."""
        self.ticks += 1
        if self.world.size > 1:
            self._ask_in -= 1
            if self._ask_in > 0:
                return
        since = self._ask()
        self._asked_at = time.monotonic()
        if since < _ASK_LEAST:
            self._ask_every *= 2
        elif since > _ASK_MOST:
            self._ask_every = max(1, self._ask_every // 2)
        self._ask_in = self._ask_every

    def _ask(self) -> float:
        """Ends the trial here if one of the workers was told to; returns the seconds since it was last asked so."""
        stop, since = self.world.most([float(self._stop is not None), time.monotonic() - self._asked_at])
        if stop:
            raise self._stop or TrialStopped(Outcome.PRUNED, "stopped with the worker of rank 0")
        return since

    def _stream(self, *parts: object) -> int:
        """A seed for one purpose, from the trial's seed: the same in every process and on every machine."""
        text = "/".join(str(part) for part in (self.seed, *parts))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class Epoch:
    """One pass of a loop.

    Attributes:
        index: Its number in its loop, from 0.
        shared: A random generator, on the CPU, that is in the same state on every worker: for what a batch shares.
    """

    def __init__(self, run: Run, key: str, index: int):
        self.index = index
        self.shared = torch.Generator().manual_seed(run._stream(key, index, "shared"))
        self.ended_loop = False
        # The stream's name is as old as the first numbers that were published; another would change them.
        self._samples = torch.Generator().manual_seed(run._stream(key, index, "local", 0))
        self._order = torch.Generator().manual_seed(run._stream(key, index, "order"))
        self._run = run
        self._batch = 0  # samples of the present batch, over all workers

    def batches(self, data: Batch, batch_size: int) -> Iterator[Batch]:
        """Shuffled batches of a tensor, or of several along their first axis; a short last one is left out.

        With `engine.accumulation=k` each comes in k parts, one after the other.

        Args:
            data: (n, ...) or a tuple of such, on any device; batches stay there.
            batch_size: Over all workers; each gets its share. More than n gives one batch of n.

        Raises:
            PharosError: A batch is too small to be shared.
        """
        run = self._run
        first = data if isinstance(data, Tensor) else data[0]
        batch_size = min(batch_size, len(first))
        workers, parts = run.world.size, run._engine.accumulation
        if batch_size < workers * parts:
            raise PharosError(f"a batch of {batch_size} is too small for {workers} workers and {parts} parts")
        order = torch.randperm(len(first), generator=self._order).to(first.device)
        if not run.started_at:
            run.started_at = time.time()
        starts = range(0, len(first) - batch_size + 1, batch_size)
        for start in run.probe.batches(starts) if run.probe else starts:
            whole = order[start : start + batch_size]
            for turn in range(parts):
                run._between_batches()
                shared = whole[turn::parts]
                chosen = shared[run.rank :: workers]
                self._batch = len(shared)
                run.world.loss_weight = len(chosen) * workers * parts / batch_size
                if isinstance(data, Tensor):
                    yield data.index_select(0, chosen)
                else:
                    yield tuple(part.index_select(0, chosen) for part in data)

    def per_sample(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """Random values for the samples of the present batch, the same for a sample however many workers there are.

        Args:
            draw: Makes (count, ...) from the count and a generator on the CPU. It is asked for the whole batch on
                every worker.

        Returns:
            This worker's share of them.
        """
        return draw(self._batch, self._samples)[self._run.rank :: self._run.world_size]

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
