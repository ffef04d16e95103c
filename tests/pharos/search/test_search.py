"""A search keeps its word whatever happens: no trial is left running, lost, or run twice, and the best is the best."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.storages.journal import JournalFileBackend

from pharos.schedulers.base import Action
from pharos.schedulers.choice import SchedulerConfig, make_scheduler
from pharos.search.limits import Breaker
from pharos.search.objective import Constraint, Objective, Objectives
from pharos.search.samplers import SamplerConfig, make_sampler
from pharos.search.search import Search
from pharos.space import parse_space
from pharos.storage import Storage
from pharos.study import Study, read_study
from pharos.trial import Ending, Outcome, Report

MAX = 9
DEFAULTS = {"recipe.lr": 0.01, "recipe.kind": "plain", "recipe.noise": 0.5, "recipe.width": 4}
ENTRIES = {
    "recipe.lr": "tag(log, interval(1e-4, 1e-1))",
    "recipe.kind": "choice(plain, noisy)",
    "recipe.noise": {"sweep": "interval(0, 1)", "when": {"recipe.kind": "noisy"}},
    "recipe.width": "range(1, 9)",
}
ONE = (Objective("error"),)
TWO = (Objective("error"), Objective("size", "max"))


def metrics_of(params, fidelity):
    """What a trial with these values reports: always the same."""
    error = abs(params["recipe.lr"] - 0.02) * 10 + params.get("recipe.noise", 0.0) + 1 / fidelity
    return {"error": error, "size": float(params["recipe.width"]), "memory": params["recipe.width"] / 2}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the driver may catch it."""


class Life:
    """A driver after the other on one study; each may be killed at any write of its journal."""

    def __init__(
        self, folder, *, scheduler="asha", sampler="random", objectives=ONE, trials=8, space=None, constraints=()
    ):
        self.folder = Path(folder)
        self.objectives = Objectives(objectives)
        self.constraints = constraints
        self.scheduler = SchedulerConfig(
            name=scheduler, **({"population": 4, "interval": 0.3} if scheduler == "pbt" else {})
        )
        self.sampler = SamplerConfig(name=sampler, startup=3)
        self.trials = trials
        self.space = space or parse_space(ENTRIES, "test")
        self.generation = 0
        self.writes_left = None
        self.search = None

    def open(self):
        study = Study(
            self.folder,
            self.objectives,
            lambda known: make_sampler(
                self.sampler, self.space, DEFAULTS, MAX, objectives=self.objectives, seed=1, known=known
            ),
            generation=self.generation,
            constraints=self.constraints,
        )
        try:
            study.enqueue([self.space.first_trial({}, DEFAULTS)])
        except Killed:
            study._unlock()  # the process is gone
            raise
        self.search = Search(
            study,
            self.space,
            DEFAULTS,
            make_scheduler(self.scheduler, MAX, self.space, DEFAULTS, 1),
            trials=self.trials,
            max_fidelity=lambda params: MAX,
            runs_whole=lambda params: all(DEFAULTS[name] == value for name, value in params.items()),
            retries=2,
            breaker=Breaker(0),
        )
        return self.search

    @contextlib.contextmanager
    def mortal(self):
        """Within the block the driver dies at the write that was chosen; `killed` says whether it did."""
        real = JournalFileBackend.append_logs
        life = self

        def append_logs(self, logs):
            # What is written at once may still be cut off after any line of it.
            if life.writes_left is not None and life.writes_left < len(logs):
                if life.writes_left:
                    real(self, logs[: life.writes_left])
                raise Killed
            real(self, logs)
            if life.writes_left is not None:
                life.writes_left -= len(logs)

        JournalFileBackend.append_logs = append_logs
        try:
            yield
        except Killed:
            self.die()
        finally:
            JournalFileBackend.append_logs = real
            self.writes_left = None

    def die(self):
        """The process is gone, its locks with it; nothing was closed."""
        if self.search is not None:
            self.search.study._unlock()
        self.search = None

    def on_disk(self):
        records, _, _ = read_study(Storage(str(self.folder)), "sweep", None)
        return records


class Interleavings(RuleBasedStateMachine):
    """Trials start, report, end, fail, get lost, are interrupted; drivers close, die and come back."""

    @initialize(
        scheduler=st.sampled_from(["asha", "promotion", "hyperband", "median", "pbt", "none"]),
        sampler=st.sampled_from(["random", "tpe", "quasi_random"]),
        objectives=st.sampled_from([ONE, TWO]),
        trials=st.integers(1, 9),
        bounded=st.booleans(),
    )
    def begin(self, scheduler, sampler, objectives, trials, bounded):
        if scheduler == "median":
            objectives = ONE
        self.scratch = tempfile.TemporaryDirectory(prefix="pharos-")
        constraints = [Constraint("memory", "<=", 3.0)] if bounded else []
        self.life = Life(
            self.scratch.name,
            scheduler=scheduler,
            sampler=sampler,
            objectives=objectives,
            trials=trials,
            constraints=constraints,
        )
        self.life.open()
        self.running = {}  # number -> epochs done, in this process
        self.asked_to_pause = set()
        self.final = {}  # number -> (outcome, values), once a driver has said so
        self.params = {}

    def teardown(self):
        if hasattr(self, "life"):
            self.drain()
            self.life.search.study.close()
            self.scratch.cleanup()

    @property
    def is_open(self):
        return hasattr(self, "life") and self.life.search is not None

    def act(self, what):
        """Does something that a kill may cut short; what was running then runs no more."""
        with self.life.mortal():
            what()
        if self.life.search is None:
            self.running.clear()
            self.asked_to_pause.clear()

    # What may happen

    @precondition(lambda self: self.is_open)
    @rule(writes=st.none() | st.integers(0, 8))
    def start(self, writes):
        self.life.writes_left = writes
        self.act(self._start)

    def _start(self):
        record = self.life.search.next()
        if record is None:
            return
        assert record.outcome == Outcome.RUNNING
        assert record.number not in self.running, "handed out twice"
        assert record.number not in self.final, "run again after its end"
        assert self.params.setdefault(record.number, record.params) == record.params
        if record.origin is not None:
            assert record.origin.replaces in self.final
        self.running[record.number] = max(record.curve, default=0)

    @precondition(lambda self: self.is_open and self.running)
    @rule(data=st.data(), writes=st.none() | st.integers(0, 14))
    def advance(self, data, writes):
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.life.writes_left = writes
        self.act(lambda: self._advance(number))

    def _advance(self, number):
        search = self.life.search
        record = search.study.records[number]
        fidelity = self.running[number] + 1
        self.running[number] = fidelity
        metrics = metrics_of(record.params, fidelity)
        action = search.on_report(number, Report(fidelity, metrics, 1.0 * fidelity)).action
        if action == Action.STOP:
            self._ended(number)
        elif fidelity == MAX:
            search.on_end(number, Ending(Outcome.COMPLETE, fidelity=MAX, metrics=metrics, seconds=1.0 * MAX))
            self._ended(number)
        elif action == Action.PAUSE:
            self.asked_to_pause.add(number)

    @precondition(lambda self: self.is_open and self.running)
    @rule(
        data=st.data(),
        outcome=st.sampled_from([Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.FAILED, Outcome.INTERRUPTED]),
        writes=st.none() | st.integers(0, 14),
    )
    def end(self, data, outcome, writes):
        number = data.draw(st.sampled_from(sorted(self.running)))
        if number in self.asked_to_pause:
            outcome = Outcome.INTERRUPTED
        self.life.writes_left = writes
        self.act(lambda: self._end(number, outcome))

    def _end(self, number, outcome):
        self.life.search.on_end(number, Ending(outcome, "why", fidelity=self.running[number]))
        self._ended(number)

    @precondition(lambda self: self.is_open and self.running)
    @rule(data=st.data(), writes=st.none() | st.integers(0, 14))
    def lose(self, data, writes):
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.life.writes_left = writes
        self.act(lambda: (self.life.search.on_lost(number, "killed"), self._ended(number)))

    @precondition(lambda self: self.is_open)
    @rule(orderly=st.booleans())
    def stop(self, orderly):
        if orderly:
            for number in list(self.running):
                self._end(number, Outcome.INTERRUPTED)
            self.life.search.study.close()
            self.life.search = None
        else:
            self.life.die()
        self.running.clear()
        self.asked_to_pause.clear()

    @precondition(lambda self: hasattr(self, "life") and not self.is_open)
    @rule(more=st.integers(0, 2), writes=st.none() | st.integers(0, 4))
    def come_back(self, more, writes):
        self.life.trials += more
        self.life.writes_left = writes
        with self.life.mortal():
            self.life.open()

    def _ended(self, number):
        self.running.pop(number)
        self.asked_to_pause.discard(number)
        record = self.life.search.study.records[number]
        if record.outcome.is_final:
            self.final[number] = (record.outcome, record.values)

    def drain(self):
        """Lets everything run to its end, as a sweep that nobody disturbs."""
        if self.life.search is None:
            self.life.open()
        search = self.life.search
        for _ in range(2000):
            if search.finished:
                break
            self._start()
            if self.running:
                number = min(self.running)
                if number in self.asked_to_pause:
                    self._end(number, Outcome.INTERRUPTED)
                else:
                    self._advance(number)
        assert search.finished, "it never ends"
        records = self.life.on_disk()
        assert all(record.outcome.is_final for record in records.values())
        assert sorted(records) == list(range(len(records)))
        replaced = sum(record.origin is not None for record in records.values())
        assert len(records) - replaced == self.life.trials
        self.check_the_best(search, records)

    # What must hold

    @invariant()
    def what_was_final_stays_as_it_was(self):
        if not self.is_open:
            return
        records = self.life.search.study.records
        for number, (outcome, values) in self.final.items():
            assert (records[number].outcome, records[number].values) == (outcome, values)
        self.check_the_best(self.life.search, records)

    @precondition(lambda self: self.is_open)
    @rule()
    def what_the_driver_believes_is_what_is_on_disk(self):
        mine = self.life.search.study.records
        on_disk = self.life.on_disk()
        assert set(on_disk) == set(mine)
        for number, record in on_disk.items():
            for name in ("params", "outcome", "curve", "values", "violations", "attempts", "origin"):
                assert getattr(record, name) == getattr(mine[number], name), (number, name)
        counts = self.life.search.study.counts
        for outcome in Outcome:
            assert counts[outcome] == sum(record.outcome == outcome for record in mine.values())

    @invariant()
    def only_what_runs_is_running(self):
        if self.is_open:
            assert set(self.life.search.study.having(Outcome.RUNNING)) == set(self.running)

    def check_the_best(self, search, records):
        bound = 3.0 if self.life.constraints else float("inf")
        complete = {
            number: metrics_of(record.params, MAX)
            for number, record in records.items()
            if record.outcome == Outcome.COMPLETE
        }
        for number, metrics in complete.items():
            expected = tuple(metrics[objective.metric] for objective in self.life.objectives)
            assert records[number].values == pytest.approx(expected)
        allowed = [each["error"] for each in complete.values() if each["memory"] <= bound]
        best = search.best
        assert (best.values[0] if best else None) == (pytest.approx(min(allowed)) if allowed else None)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_trial_that_hears_of_its_pause_in_its_last_epoch_goes_on_to_its_end(tmp_path):
    life = Life(tmp_path, scheduler="promotion", trials=2)
    search = life.open()
    search.next()  # the paper's values, which run whole
    number = search.next().number
    params = search.study.records[number].params
    actions = [search.on_report(number, Report(at, metrics_of(params, at), 1.0)).action for at in range(1, MAX + 1)]
    assert Action.PAUSE in actions
    assert actions[-1] == Action.GO_ON
    search.on_end(number, Ending(Outcome.INTERRUPTED, fidelity=MAX))
    assert search.study.records[number].outcome == Outcome.INTERRUPTED
    assert search.next().number == number
    search.on_end(number, Ending(Outcome.COMPLETE, fidelity=MAX, metrics=metrics_of(params, MAX)))
    assert search.study.records[number].outcome == Outcome.COMPLETE
    search.study.close()
