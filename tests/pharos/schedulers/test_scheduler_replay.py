"""A resume: told trial by trial what the study has of each, a scheduler decides on as the one that heard it live."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from pharos.schedulers.asha import Asha
from pharos.schedulers.base import Action, Clone, GoOn
from pharos.schedulers.hyperband import Hyperband
from pharos.schedulers.median import Median
from pharos.schedulers.pbt import Pbt
from pharos.schedulers.promotion import Promotion
from pharos.space import Dimension, Space
from pharos.trial import Outcome

WHOLE = 9
SPACE = Space([Dimension("recipe.a", FloatDistribution(0, 1), {}), Dimension("recipe.b", IntDistribution(1, 99), {})])
SCHEDULERS = {
    "asha": lambda: Asha(WHOLE, 1 / 9, 3),
    "asha by halves": lambda: Asha(WHOLE, 0.2, 2),
    "promotion": lambda: Promotion(WHOLE, 1 / 9, 3),
    "promotion by halves": lambda: Promotion(WHOLE, 0.2, 2),
    "hyperband": lambda: Hyperband(WHOLE, 1 / 9, 3),
    "median": lambda: Median(WHOLE, 0.2, 2),
    "pbt": lambda: Pbt(WHOLE, SPACE, {}, 4, 0.3, seed=5),
    "pbt by halves": lambda: Pbt(WHOLE, SPACE, {}, 2, 0.2, 0.5, ["recipe.b"]),
}


class Caller:
    """What `pharos.search.search` does with a scheduler, and what it keeps of each trial.

    Losses are drawn by trial and epoch, from few numbers, so that there are ties. Trial 0 runs whole, whatever it is
    told. A trial that pauses may report on before it does.
    """

    def __init__(self, scheduler, seed, objectives):
        self.scheduler = scheduler
        self.log = []
        self._seed, self._objectives = seed, objectives
        self._trials = {}  # params, replaces, epochs done, heard reports, final outcome
        self._running, self._pausing = set(), set()

    def do(self, number):
        """One of the things that may happen."""
        kind, pick = number % 16, number // 16
        active = sorted(self._running | self._pausing)
        if not active or kind < 3:
            self._start()
        elif kind == 3 and self._running - {0}:
            self._end(pick_from(self._running - {0}, pick), [*Outcome][2 + pick % 4])
        elif kind == 4:
            self._pausing.clear()
        else:
            self._report(pick_from(active, pick))

    def resumed(self, fresh):
        """The next driver's caller: one trial after the other is told, and those that ran are handed out again."""
        for number, trial in sorted(self._trials.items()):
            fresh.on_start(number, trial["params"], trial["replaces"])
            for fidelity, losses in sorted(trial["curve"].items()):
                fresh.on_report(number, fidelity, losses)
            if trial["outcome"]:
                fresh.on_end(number, trial["outcome"])
        self._pausing.clear()
        self.log.clear()
        other = copy.copy(self)
        other._trials, other._running, other._pausing = copy.deepcopy(self._trials), set(self._running), set()
        other.scheduler, other.log = fresh, []
        for number in sorted(self._running):
            fresh.on_start(number, self._trials[number]["params"], self._trials[number]["replaces"])
        return other

    def _start(self):
        start = self.scheduler.next()
        assert self.scheduler.next() == start
        self.log.append(start)
        number, replaces, params, done = len(self._trials), None, {"recipe.a": 0.5, "recipe.b": len(self._trials)}, 0
        if isinstance(start, GoOn):
            number = start.trial
            if number in self._pausing:
                return
            assert number not in self._running
            assert not self._trials[number]["outcome"]
        elif isinstance(start, Clone):
            replaces, params, done = start.replaces, start.params, self._trials[start.donor]["done"]
            assert start.donor in self._running
        if number not in self._trials:
            self._trials[number] = {"params": params, "replaces": replaces, "done": done, "curve": {}, "outcome": None}
        self._running.add(number)
        self.scheduler.on_start(number, self._trials[number]["params"], self._trials[number]["replaces"])

    def _report(self, number):
        trial = self._trials[number]
        trial["done"] += 1
        losses = np.random.default_rng([self._seed, number, trial["done"]]).integers(0, 6, self._objectives)
        trial["curve"][trial["done"]] = tuple(losses.astype(float).tolist())
        decision = self.scheduler.on_report(number, trial["done"], trial["curve"][trial["done"]])
        self.log.append((number, trial["done"], decision))
        if trial["done"] == WHOLE:
            self._end(number, Outcome.COMPLETE)
        elif number == 0:
            if decision.action == Action.PAUSE:
                self.scheduler.on_start(0, trial["params"])
        elif decision.action == Action.STOP:
            self._end(number, Outcome.PRUNED)
            late = self.scheduler.on_report(number, trial["done"] + 1, (0.0,) * self._objectives)
            assert late.action == Action.STOP
        elif decision.action == Action.PAUSE:
            self._running.discard(number)
            self._pausing.add(number)

    def _end(self, number, outcome):
        assert outcome.is_final
        self._trials[number]["outcome"] = outcome
        self._running.discard(number)
        self._pausing.discard(number)
        self.scheduler.on_end(number, outcome)


def pick_from(trials, pick):
    return sorted(trials)[pick % len(trials)]


HAPPENINGS = st.lists(st.integers(0, 1599), max_size=30) | st.builds(
    lambda seed, count: np.random.default_rng(seed).integers(0, 1600, count).tolist(),
    st.integers(0, 2**32),
    st.integers(50, 300),
)


@pytest.mark.parametrize("name", SCHEDULERS)
@settings(max_examples=50, deadline=None)
@given(HAPPENINGS, HAPPENINGS, st.integers(0, 99), st.integers(1, 2))
def test_after_a_resume_all_goes_on_as_it_would_have(name, before, after, seed, objectives):
    live = Caller(SCHEDULERS[name](), seed, 1 if name == "median" else objectives)
    for number in before:
        live.do(number)
    resumed = live.resumed(SCHEDULERS[name]())
    if isinstance(live.scheduler, Promotion):
        assert resumed.scheduler.paused == live.scheduler.paused
    assert resumed.scheduler.next() == live.scheduler.next()
    for number in after:
        live.do(number)
        resumed.do(number)
        assert resumed.log == live.log


def test_the_game_above_plays_everything():
    """That the happenings above do lead to stops, pauses, promotions and clones."""
    for name, kinds in {
        "asha": {"STOP"},
        "promotion": {"PAUSE", "GoOn"},
        "median": {"STOP"},
        "pbt": {"STOP", "Clone"},
    }.items():
        caller = Caller(SCHEDULERS[name](), 0, 1)
        for number in np.random.default_rng(0).integers(0, 1600, 400):
            caller.do(int(number))
        seen = {type(entry).__name__ if not isinstance(entry, tuple) else entry[2].action.name for entry in caller.log}
        assert kinds <= seen, name
