"""A search on a simulated clock: workers, an event queue, and what the user would have had at each moment.

Each worker trains one trial at a time, epoch by epoch; an epoch lasts as long as the task says, and nothing is really
trained. After each epoch the method is asked whether the trial goes on. The search ends when its budget of simulated
seconds is used up; an epoch that would end later is never reported. So asynchrony is what it is on a cluster, apart
from what a cluster's software costs: starting, stopping and resuming a trial take no time here.

What is measured is the simple regret of the incumbent. The incumbent is the trial, of those that reached the full
fidelity, with the lowest loss that the method saw there (that loss has the task's noise); its regret is its true loss
at full fidelity minus the task's best. Before any trial is complete the regret is the task's worst one. This is the
same for all methods: whatever they believe, the user has what was trained to the end.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.search_tasks import Array, Task

GO_ON, STOP, PAUSE = "go_on", "stop", "pause"


@dataclass(frozen=True)
class Start:
    """What a free worker is to do.

    Attributes:
        trial: Its number; of a new trial or of one that was paused.
        params: Its values.
        resume_from: The fidelity that it was paused at; 0 for a new trial.
    """

    trial: int
    params: dict[str, Any]
    resume_from: int = 0


class Method(Protocol):
    """A search method: sampler and scheduler together."""

    def next(self) -> Start | None:
        """What a free worker is to do; None: nothing until the next report."""

    def on_report(self, trial: int, fidelity: int, loss: float) -> str:
        """A trial's loss after an epoch, lower is better; answers `go_on`, `stop` or `pause`."""

    def on_end(self, trial: int) -> None:
        """A trial is complete: it has reached the full fidelity, whatever the answer to its last report was."""


@dataclass
class Trial:
    """What became of a trial.

    Attributes:
        params: Its values.
        curve: What it reports by epoch.
        seconds: How long each epoch takes.
        losses: What it has reported so far.
        state: `running`, `complete`, `stopped` or `paused`; running ones were cut off by the end of the budget.
    """

    params: dict[str, Any]
    curve: Array = field(repr=False)
    seconds: Array = field(repr=False)
    losses: list[float] = field(default_factory=list)
    state: str = "running"


@dataclass
class Run:
    """What a search gave.

    Attributes:
        steps: Shares of the budget and the incumbent's regret from there on, the first at 0.
        trials: All of them, by number.
        suggests: How often a trial was asked for.
        suggest_seconds: Real seconds of all of that.
        report_seconds: Real seconds of the answers to all reports.
    """

    steps: list[tuple[float, float]]
    trials: dict[int, Trial] = field(default_factory=dict)
    suggests: int = 0
    suggest_seconds: float = 0.0
    report_seconds: float = 0.0

    def regret(self, share: float = 1.0) -> float:
        """The incumbent's regret at a share of the budget."""
        return [regret for moment, regret in self.steps if moment <= share][-1]

    def reached(self, target: float) -> float | None:
        """The share of the budget after which the regret was first at most a target; None: never."""
        return next((moment for moment, regret in self.steps if regret <= target), None)

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials.values())


def simulate(
    task: Task, method: Method, seed: int, *, workers: int = 4, full: float = 50, count_decisions: bool = False
) -> Run:
    """Runs a search.

    Args:
        task: What is trained.
        method: Used up by it.
        seed: Of the task's noise; each trial has noise of its own.
        workers: How many train at the same time.
        full: The budget, in average full-length trainings, of all workers together.
        count_decisions: Whether the real seconds of `next` count as simulated ones, in which the worker waits.
    """
    budget = full * task.mean_seconds / workers
    run = Run([(0.0, task.worst - task.true_best)])
    lowest = float("inf")
    events: list[tuple[float, int, int]] = []  # end of an epoch, a running number so that ties are in order, trial
    pushed = 0
    idle = workers
    now = 0.0

    def push(trial: int, at: float) -> None:
        nonlocal pushed
        epoch = len(run.trials[trial].losses)
        heapq.heappush(events, (at + float(run.trials[trial].seconds[epoch]), pushed, trial))
        pushed += 1

    while True:
        while idle:
            began = time.perf_counter()
            start = method.next()
            took = time.perf_counter() - began
            run.suggest_seconds += took
            if start is None:
                break
            run.suggests += 1
            _enter(run, task, start, seed)
            push(start.trial, now + took if count_decisions else now)
            idle -= 1
        if not events:
            return run
        now, _, number = heapq.heappop(events)
        if now > budget:
            return run
        trial = run.trials[number]
        loss = float(trial.curve[len(trial.losses)])
        trial.losses.append(loss)
        complete = len(trial.losses) == task.max_fidelity
        began = time.perf_counter()
        decision = method.on_report(number, len(trial.losses), loss)
        if complete:
            method.on_end(number)
        run.report_seconds += time.perf_counter() - began
        if complete:
            trial.state = "complete"
            if loss < lowest:
                lowest = loss
                run.steps.append((now / budget, task.final(trial.params) - task.true_best))
        elif decision == GO_ON:
            push(number, now)
            continue
        else:
            trial.state = {STOP: "stopped", PAUSE: "paused"}[decision]
        idle += 1


def _enter(run: Run, task: Task, start: Start, seed: int) -> None:
    """Notes that a trial starts or goes on."""
    if not start.resume_from:
        assert start.trial not in run.trials, f"trial {start.trial} was started twice"
        curve = task.curve(start.params, 1_000_003 * seed + start.trial)
        run.trials[start.trial] = Trial(dict(start.params), curve, task.seconds(start.params))
        return
    trial = run.trials[start.trial]
    assert trial.state == "paused", f"trial {start.trial} is {trial.state}; it cannot go on"
    assert len(trial.losses) == start.resume_from, f"trial {start.trial} was paused at {len(trial.losses)}"
    trial.state = "running"
