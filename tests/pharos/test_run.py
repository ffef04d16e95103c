"""A trial that is stopped anywhere and resumed gives the numbers it would have given."""

import gc
import itertools
import math
import random
import secrets
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pharos import run as run_module
from pharos.checkpoint import Checkpoints
from pharos.engines.base import EngineConfig
from pharos.errors import PharosError
from pharos.learner import OptimConfig
from pharos.run import Run
from pharos.saver import Saver
from pharos.storage import Storage
from pharos.trial import Outcome, TrialStopped
from pharos.world import World

X = torch.linspace(-1, 1, 24)[:, None]
Y = X.square()


class Killed(BaseException):
    """The process dies here."""


class Recorder:
    """What a trial leaves: every report by fidelity, its weights and its state."""

    def __init__(self):
        self.reports = {}
        self.final = None

    def hear(self, report):
        known = self.reports.setdefault(report.fidelity, report.metrics)
        assert known == report.metrics, "a repeated epoch gave other numbers"


def make_net():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))


def fit(learner, epoch, kill):
    for index, (x, y) in enumerate(epoch.batches((X, Y), 8)):
        kill(index)
        jitter = 0.1 * torch.randn(x.shape) + 0.1 * torch.rand((), generator=epoch.shared)
        jitter = jitter + 0.1 * epoch.per_sample(lambda count, generator: torch.rand(count, 1, generator=generator))
        learner.step(nn.functional.mse_loss(learner(x + jitter), y) * (1 + random.random() + np.random.rand()))


def staged_recipe(run, kill=lambda batch: None):
    """Two loops, the first left early, and stages with a loop and a new learner each between them."""
    first = run.learner("first", make_net(), OptimConfig(lr=0.05))
    history = run.state.setdefault("history", [])
    for epoch in run.epochs("warm", 6):
        fit(first, epoch, kill)
        history.append(epoch.index)
        if epoch.index == 2:
            epoch.end_loop()
        epoch.report(error=float(first.module[0].weight.detach().sum()))
    run.state["between"] = random.random()
    for stage in run.stages("grow", 2):
        grown = run.learner(f"grown{stage}", make_net(), OptimConfig("sgd", lr=0.05))
        for epoch in run.epochs("inner", 2):
            fit(grown, epoch, kill)
            history.append((stage, epoch.index))
            epoch.report(error=float(grown.module[0].weight.detach().sum()))
        run.state[f"drawn{stage}"] = torch.rand(2)
    for epoch in run.epochs("last", 2):
        fit(first, epoch, kill)
        history.append(("last", epoch.index))
        epoch.report(error=float(first.module[0].weight.detach().sum()))


EPOCHS = 3 + 2 * 2 + 2


class Prompt(Saver):
    """Has written a checkpoint when it comes back, so that the next one that is due is not left out."""

    def begin(self, *what, **about):
        super().begin(*what, **about)
        assert self.wait(30)


def make_run(folder=None, recorder=None, saver=Prompt, **settings):
    """A run, resumed from the newest checkpoint in a folder if there is one."""
    values: dict[str, Any] = {"seed": 3, "objective": "error", "checkpoint_seconds": 0.0, **settings}
    if folder is not None:
        checkpoints = Checkpoints(Storage(str(folder)))
        checkpoints.remove_stale()
        values["saved"] = checkpoints.newest()
        values["saver"] = saver(checkpoints, values.get("world"), attempt=secrets.token_hex(4))
    return Run(on_report=recorder.hear if recorder else lambda report: None, **values)


def finish(run, recorder, recipe=staged_recipe):
    recipe(run)
    run.check_loops()
    run.finish()
    recorder.final = (
        {part.name: part.values.detach().clone() for part in run._parts()},
        run.state,
        run.metrics,
        run.fidelity,
    )


def identical(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(identical, a, b))
    return a == b


def assert_same_trial(recorder, expected):
    assert recorder.reports == expected.reports
    weights, state, metrics, fidelity = recorder.final
    assert identical(weights, expected.final[0])
    assert identical(state, expected.final[1])
    assert (metrics, fidelity) == expected.final[2:]


@pytest.fixture(scope="module")
def uninterrupted():
    recorder = Recorder()
    finish(make_run(recorder=recorder), recorder)
    return recorder


def test_the_recipe_runs_as_it_is_written(uninterrupted):
    assert sorted(uninterrupted.reports) == list(range(1, EPOCHS + 1))
    weights, state, metrics, fidelity = uninterrupted.final
    assert state["history"] == [0, 1, 2, (0, 0), (0, 1), (1, 0), (1, 1), ("last", 0), ("last", 1)]
    assert {name.split("/")[1] for name in weights} == {"first", "grown0", "grown1"}
    assert set(metrics) == {"error", "loss/first"}
    assert fidelity == EPOCHS


def test_another_seed_gives_other_numbers(uninterrupted):
    recorder = Recorder()
    finish(make_run(seed=4, recorder=recorder), recorder)
    assert recorder.reports[1] != uninterrupted.reports[1]


@pytest.mark.parametrize("after", range(1, EPOCHS + 1))
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_an_interruption_after_any_epoch_loses_nothing(tmp_path, uninterrupted, seconds, after):
    """Also when a checkpoint is still being written, or was due and left out."""
    recorder = Recorder()
    run = make_run(tmp_path, recorder, Saver, checkpoint_seconds=seconds)

    def stop_at(batch):
        if run.fidelity == after - 1:
            run.interrupt()

    with pytest.raises(TrialStopped) as stopped:
        staged_recipe(run, stop_at)
    assert stopped.value.outcome == Outcome.INTERRUPTED
    resumed = make_run(tmp_path, recorder)
    assert resumed.fidelity == after
    finish(resumed, recorder)
    assert_same_trial(recorder, uninterrupted)


@settings(max_examples=16)
@given(
    kills=st.lists(st.tuples(st.integers(0, EPOCHS - 1), st.integers(0, 2)), min_size=1, max_size=4),
    every=st.integers(1, 4),
)
def test_kills_in_any_batch_lose_no_number(tmp_path_factory, uninterrupted, kills, every):
    """With a checkpoint after each `every`-th epoch only, so that kills lose epochs."""
    folder, recorder = tmp_path_factory.mktemp("killed"), Recorder()

    class Sparse(Prompt):
        def begin(self, step, *what, **about):
            if step % every == 0 or step == EPOCHS:
                super().begin(step, *what, **about)

    def fresh():
        return make_run(folder, recorder, Sparse)

    for fidelity, batch in kills:
        run = fresh()
        if fidelity < run.fidelity:
            continue

        def die(index, run=run, at=fidelity, batch=batch):
            if run.fidelity == at and index == batch:
                raise Killed

        with pytest.raises(Killed):
            staged_recipe(run, die)
    finish(fresh(), recorder)
    assert_same_trial(recorder, uninterrupted)


def test_a_finished_trial_that_is_resumed_trains_nothing_and_keeps_its_result(tmp_path, uninterrupted):
    recorder = Recorder()
    finish(make_run(tmp_path), recorder)
    again = Recorder()
    finish(make_run(tmp_path), again, lambda run: staged_recipe(run, lambda batch: pytest.fail("trained")))
    assert again.reports == {}
    assert again.final[2:] == uninterrupted.final[2:]
    assert identical(again.final[0], uninterrupted.final[0])


def test_the_loss_of_epochs_without_a_report_survives_a_resume(tmp_path):
    def recipe(run, kill=lambda batch: None):
        net = run.learner("net", make_net(), OptimConfig())
        for epoch in run.epochs("fit", 4):
            fit(net, epoch, kill)
            if epoch.index % 2:
                epoch.report(error=0.0)

    whole, resumed = Recorder(), Recorder()
    finish(make_run(recorder=whole), whole, recipe)
    run = make_run(tmp_path, resumed)

    def die(index):
        if run.fidelity == 3:
            raise Killed

    with pytest.raises(Killed):
        recipe(run, die)
    again = make_run(tmp_path, resumed)
    assert again.fidelity == 3  # saved between two reports
    finish(again, resumed, recipe)
    assert resumed.reports == whole.reports


def test_a_loop_left_by_end_loop_stays_left_when_it_was_the_last_thing_saved(tmp_path):
    def recipe(run, end_at):
        seen = []
        for epoch in run.epochs("a", 10):
            seen.append(epoch.index)
            if epoch.index == end_at:
                epoch.end_loop()
        return seen

    first = make_run(tmp_path)
    assert recipe(first, 1) == [0, 1]
    first.finish()
    second = make_run(tmp_path)
    assert recipe(second, 99) == []
    assert second.fidelity == 2


def leave_by_break(run):
    for _ in run.epochs("a", 3):
        break


def leave_by_return(run):
    for _ in run.epochs("a", 3):
        return


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_return])
def test_leaving_a_loop_by_hand_is_an_error_that_names_it(leave):
    run = make_run()
    leave(run)
    with pytest.raises(RuntimeError, match=r"the loop 'a' was left by break; call epoch.end_loop\(\) instead"):
        next(run.epochs("b", 1))
    with pytest.raises(RuntimeError, match="'a' was left by break"):
        run.check_loops()


def test_leaving_an_inner_loop_by_break_is_noticed_too():
    run = make_run()

    def recipe():
        for _ in run.stages("outer", 2):
            for _ in run.epochs("inner", 2):
                break

    with pytest.raises(RuntimeError, match="inner"):
        recipe()


def test_a_whole_loop_is_no_broken_one():
    run = make_run()
    assert [epoch.index for epoch in run.epochs("a", 3)] == [0, 1, 2]
    assert list(run.stages("s", 2)) == [0, 1]
    assert list(run.epochs("none", 0)) == []
    run.check_loops()
    assert run.fidelity == 3


def draws(epoch):
    seen = [float(torch.rand((), generator=epoch.shared))]
    for _ in epoch.batches(torch.zeros(4), 4):
        seen += epoch.per_sample(lambda count, generator: torch.rand(count, generator=generator))[:1].tolist()
    return [*seen, float(torch.rand(())), random.random(), float(np.random.rand())]


def test_every_epoch_of_every_loop_has_random_streams_of_its_own():
    run = make_run()
    seen = [draws(epoch) for loop in ("a", "b") for epoch in run.epochs(loop, 3)]
    for stream in zip(*seen, strict=True):
        assert len(set(stream)) == 6
    assert len({value for row in seen for value in row[:3]}) == 18
    assert seen == [draws(epoch) for run in [make_run()] for loop in ("a", "b") for epoch in run.epochs(loop, 3)]


class Apart(World):
    """One of several workers, without the others: what it would ask them it asks itself."""

    def _reduced(self, values, how, divisor):
        return values


def test_ranks_share_one_stream_and_differ_in_the_others():
    def of_rank(rank):
        return draws(next(make_run(world=Apart(rank, 2)).epochs("a", 1)))

    (shared0, sample0, global0, *_), (shared1, sample1, global1, *_) = of_rank(0), of_rank(1)
    assert shared0 == shared1
    assert sample0 != sample1
    assert global0 != global1


def first_epoch(run, index=0):
    return next(epoch for epoch in run.epochs("a", 9) if epoch.index == index)


def test_batches_are_shuffled_whole_and_the_same_for_a_seed():
    data = torch.arange(10)
    batches = list(first_epoch(make_run()).batches(data, 4))
    assert [len(batch) for batch in batches] == [4, 4]
    seen = torch.cat(batches)
    assert len(set(seen.tolist())) == 8
    assert seen.tolist() != sorted(seen.tolist())
    assert torch.equal(seen, torch.cat(list(first_epoch(make_run()).batches(data, 4))))
    assert not torch.equal(seen, torch.cat(list(first_epoch(make_run(seed=9)).batches(data, 4))))
    assert not torch.equal(seen, torch.cat(list(first_epoch(make_run(), 1).batches(data, 4))))


def test_batches_of_several_tensors_keep_their_rows_together():
    left, right = torch.arange(12).view(6, 2), torch.arange(6) * 2
    batches = list(first_epoch(make_run()).batches((left, right), 3))
    assert [(tuple(a.shape), tuple(b.shape)) for a, b in batches] == [((3, 2), (3,))] * 2
    assert all(torch.equal(a[:, 0], b) for a, b in batches)


def test_a_batch_larger_than_the_data_is_all_of_it_once():
    batches = list(first_epoch(make_run()).batches(torch.arange(5), 64))
    assert [sorted(batch.tolist()) for batch in batches] == [[0, 1, 2, 3, 4]]


@settings(max_examples=30)
@given(n=st.integers(1, 30), size=st.integers(1, 12), world=st.integers(1, 4), parts=st.integers(1, 3))
def test_ranks_and_parts_divide_every_batch_among_them(n, size, world, parts):
    def batches(run):
        return [batch.tolist() for batch in first_epoch(run).batches(torch.arange(n), size)]

    def of_rank(rank):
        return make_run(world=Apart(rank, world), engine=EngineConfig(accumulation=parts))

    if min(n, size) < world * parts:
        with pytest.raises(PharosError) as error:
            batches(of_rank(0))
        assert str(error.value) == (f"a batch of {min(n, size)} is too small for {world} workers and {parts} parts")
        return
    whole = batches(make_run())
    shares = [batches(of_rank(rank)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole) * parts}
    for index, batch in enumerate(whole):
        pieces = [share[index * parts + turn] for share in shares for turn in range(parts)]
        assert sorted(itertools.chain(*pieces)) == sorted(batch)
        assert len(set(itertools.chain(*pieces))) == sum(map(len, pieces))
        for turn in range(parts):
            lengths = [len(share[index * parts + turn]) for share in shares]
            assert max(lengths) - min(lengths) <= 1


def worker_views(workers, parts, batch_size):
    """By worker, what it sees of each part of one epoch's batches: samples, draws for them, and the loss's weight."""
    seen = []
    for rank in range(workers):
        run = make_run(world=Apart(rank, workers), engine=EngineConfig(accumulation=parts))
        epoch = first_epoch(run)
        seen.append(
            [
                (batch, [epoch.per_sample(normal) for _ in range(2)], run.world.loss_weight)
                for batch in epoch.batches(torch.arange(20), batch_size)
            ]
        )
    return seen


def normal(count, generator):
    return torch.randn(count, 2, generator=generator)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_a_sample_s_draws_are_the_same_however_many_workers_share_the_batch(workers, parts):
    def by_sample(views):
        found = {}
        for worker in views:
            for part in worker:
                batch, draws, _ = part
                assert [draw.shape for draw in draws] == [(len(batch), 2)] * 2
                found |= {int(sample): [draw[i].tolist() for draw in draws] for i, sample in enumerate(batch)}
        return found

    alone, shared = by_sample(worker_views(1, parts, 10)), by_sample(worker_views(workers, parts, 10))
    assert shared == alone
    assert len(shared) == 20
    values = [tuple(draw) for draws in shared.values() for draw in draws]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_weighted_means_of_uneven_shares_average_to_the_mean_over_the_batch(workers, parts):
    loss = torch.linspace(-1, 2, 20).square()
    views = worker_views(workers, parts, 10)
    whole = [batch for (worker,) in [worker_views(1, 1, 10)] for batch, _, _ in worker]
    for index, batch in enumerate(whole):
        shares = [part for worker in views for part in worker[index * parts : (index + 1) * parts]]
        mean = sum(float(loss[share].mean()) * weight for share, _, weight in shares) / (workers * parts)
        assert mean == pytest.approx(float(loss[batch].mean()), rel=1e-6)
    lengths = {len(share) for worker in views for share, _, _ in worker}
    weights = {weight for worker in views for _, _, weight in worker}
    assert (len(lengths) == 1) == (weights == {1.0})


def test_the_draws_of_one_worker_are_those_of_the_whole_batch():
    epoch = first_epoch(make_run())
    counts = []

    def draw(count, generator):
        counts.append(count)
        return torch.rand(count, generator=generator)

    for batch in epoch.batches(torch.arange(7), 3):
        assert len(epoch.per_sample(draw)) == len(batch) == 3
    assert counts == [3, 3]


def test_several_workers_are_asked_whether_to_stop_at_the_same_batches(monkeypatch):
    """Rank 0 alone has heard that it is to stop; what the workers agree on stops the other too."""
    now = [0.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    asked = []

    class Told(Apart):
        def most(self, values):
            asked.append(len(seen))
            return [1.0 if len(seen) >= 20 else values[0], *values[1:]]

    run = make_run(world=Told(1, 2))
    seen = []

    def recipe():
        for epoch in run.epochs("a", 1):
            for batch in epoch.batches(torch.arange(200), 2):
                now[0] += 0.1
                seen.append(batch)

    with pytest.raises(TrialStopped) as stopped:
        recipe()
    assert stopped.value.outcome == Outcome.PRUNED
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert gaps[0] < gaps[-1]
    assert max(gaps) * 0.1 <= 1.0
    assert run.ticks == len(seen) + 1


def test_what_a_worker_reports_and_decides_from_is_the_mean_over_all_of_them():
    class Halved(Apart):
        def _reduced(self, values, how, divisor):
            return [value / 2 for value in values] if divisor == 2 else values

    reports = []
    run = Run(seed=1, world=Halved(0, 2), objective="error", on_report=reports.append)
    assert run.mean({"a": 3.0, "b": 1.0}) == {"a": 1.5, "b": 0.5}
    for epoch in run.epochs("a", 1):
        epoch.report(error=4.0)
    assert (reports[0].metrics, run.metrics) == ({"error": 2.0}, {"error": 2.0})


def test_the_memory_of_a_trial_is_that_of_the_worker_that_needs_most():
    class Beside(Apart):
        """Another worker has needed a hundred units."""

        def most(self, values):
            return [max(value, 100.0) for value in values] if values[0] > 0 else values

    reports = []
    run = Run(seed=1, world=Beside(1, 2), objective="error", watched=["peak_memory_gb"], on_report=reports.append)
    for epoch in run.epochs("a", 2):
        epoch.report(error=4.0)
    assert [report.metrics["peak_memory_gb"] for report in reports] == [100.0, 100.0]


def test_ticks_grow_with_batches_reports_and_epochs(tmp_path):
    run = make_run(tmp_path)
    seen = [run.ticks]
    for epoch in run.epochs("a", 1):
        for _ in epoch.batches(X, 8):
            seen.append(run.ticks)
        epoch.report(error=1.0)
        seen.append(run.ticks)
    seen.append(run.ticks)
    assert seen == sorted(set(seen))


def test_a_learner_s_name_has_no_slash():
    with pytest.raises(ValueError, match="'a/b', or a name has a '/'"):
        make_run().learner("a/b", make_net(), OptimConfig())


def test_what_is_written_meanwhile_draws_none_of_the_trial_s_random_numbers(tmp_path):
    def states():
        return random.getstate(), [np.array(part).tolist() for part in np.random.get_state()], torch.get_rng_state()

    saver = make_run(tmp_path, saver=Saver)._saver
    before = states()
    saver.save(1, {"t": torch.ones(3)})
    assert identical(states(), before)


def test_a_closed_run_leaves_no_module_behind():
    run = make_run()
    module = weakref.ref(run.learner("net", make_net(), OptimConfig()).module)
    run.close()
    gc.collect()
    assert module() is None


def one_epoch(run, **metrics):
    net = run.learner("net", make_net(), OptimConfig())
    for epoch in run.epochs("a", 1):
        net.step(net(X).square().mean() * metrics.pop("factor", 1.0))
        epoch.report(metrics)


@pytest.mark.parametrize(
    ("metrics", "name"),
    [({"error": math.nan}, "error"), ({"error": -math.inf}, "error"), ({"error": 0.0, "factor": math.nan}, "loss/net")],
)
def test_a_loss_or_objective_that_is_not_finite_is_a_divergence_and_is_not_reported(metrics, name):
    recorder = Recorder()
    with pytest.raises(TrialStopped) as stopped:
        one_epoch(make_run(recorder=recorder), **metrics)
    assert stopped.value.outcome == Outcome.DIVERGED
    assert stopped.value.reason.startswith(f"{name} became ")
    assert stopped.value.reason.endswith("in epoch 1")
    assert recorder.reports == {}


def test_other_metrics_may_be_nan():
    run = make_run()
    one_epoch(run, error=0.5, extra=math.nan)
    assert run.metrics["error"] == 0.5
    assert math.isnan(run.metrics["extra"])


def test_a_report_has_the_mean_loss_and_the_number_of_the_epoch():
    reports = []
    run = Run(seed=1, objective="error", on_report=reports.append)
    net = run.learner("net", make_net(), OptimConfig("sgd", lr=0.0))
    for epoch in run.epochs("a", 2):
        for factor in (1.0, 3.0):
            net.step(net(X).sum() * 0 + factor)
        epoch.report({"error": 1}, more=2)
    assert [(report.fidelity, report.metrics) for report in reports] == [
        (fidelity, {"error": 1.0, "more": 2.0, "loss/net": 2.0}) for fidelity in (1, 2)
    ]


def test_stop_ends_the_trial_at_its_next_batch():
    run = make_run()
    batches = []

    def recipe():
        for epoch in run.epochs("a", 3):
            for batch in epoch.batches(X, 8):
                batches.append(batch)
                if len(batches) == 2:
                    run.stop(Outcome.PRUNED, "enough")

    with pytest.raises(TrialStopped) as stopped:
        recipe()
    assert (stopped.value.outcome, stopped.value.reason) == (Outcome.PRUNED, "enough")
    assert len(batches) == 2


def test_stop_from_within_a_report_ends_the_trial_right_there():
    run = Run(seed=1, on_report=lambda report: run.stop(Outcome.PRUNED))

    def recipe():
        for epoch in run.epochs("a", 3):
            epoch.report(error=1.0)
            pytest.fail("went on")

    with pytest.raises(TrialStopped):
        recipe()
    assert run.fidelity == 0


def test_no_exception_handler_of_a_recipe_swallows_a_stop():
    assert not issubclass(TrialStopped, Exception)


def test_a_stop_without_an_interruption_saves_nothing_new(tmp_path):
    run = make_run(tmp_path, checkpoint_seconds=1e9)

    def recipe():
        for epoch in run.epochs("a", 3):
            if epoch.index == 1:
                run.stop(Outcome.PRUNED)
            epoch.report(error=1.0)

    with pytest.raises(TrialStopped):
        recipe()
    assert Checkpoints(Storage(str(tmp_path))).newest() is None


class Idle(Saver):
    """Notes what it is given, and writes nothing."""

    def __init__(self, *what, **settings):
        super().__init__(*what, **settings)
        self.given = []

    def begin(self, step, *what, **about):
        self.given.append(step)


def test_checkpoints_are_written_no_more_often_than_asked(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    run = make_run(tmp_path, saver=Idle, checkpoint_seconds=10.0)
    for _ in run.epochs("a", 9):
        now[0] += 4.0
    run.finish()
    assert run._saver.given == [3, 6, 9]  # at 12, 24 and 36 seconds; the last call had nothing new to save


def test_a_checkpoint_that_is_due_while_one_is_written_is_left_out_and_the_last_is_saved_all_the_same(tmp_path):
    class Busy(Idle):
        is_busy = False

    run = make_run(tmp_path, saver=Busy)
    saver, held_up = run._saver, []
    for epoch in run.epochs("a", 6):
        saver.is_busy = epoch.index in (1, 2, 5)
        held_up.append(saver.is_busy)
    assert held_up == [False, True, True, False, False, True]
    assert saver.given == [1, 4, 5]
    finishing = threading.Thread(target=run.finish)
    finishing.start()
    finishing.join(0.5)
    assert finishing.is_alive()  # it waits for the one that is written
    assert saver.given == [1, 4, 5]
    saver.is_busy = False
    finishing.join(30)
    assert saver.given == [1, 4, 5, 6]
    assert run.fidelity == 6


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path, monkeypatch):
    let_go, write = threading.Event(), Storage.write_bytes

    def slow(self, path, data):
        assert let_go.wait(30)
        write(self, path, data)

    monkeypatch.setattr(Storage, "write_bytes", slow)
    run = make_run(tmp_path, saver=Saver)
    learner = run.learner("net", make_net(), OptimConfig(lr=0.5))
    weights = []
    for epoch in run.epochs("a", 3):
        fit(learner, epoch, lambda batch: None)
        run.state["epoch"] = epoch.index
        weights.append({name: value.clone() for name, value in learner.weights().items()})
    assert Checkpoints(Storage(str(tmp_path))).newest() is None  # all three epochs went by meanwhile
    let_go.set()
    assert run._saver.wait(30)
    first = Checkpoints(Storage(str(tmp_path))).newest()
    assert (first.step, first.state["state"]) == (1, {"epoch": 0})
    assert identical(first.tensors("learners/net/weights/"), weights[0])
    run.finish()
    last = Checkpoints(Storage(str(tmp_path))).newest()
    assert (last.step, last.state["state"]) == (3, {"epoch": 2})
    assert identical(last.tensors("learners/net/weights/"), weights[2])


def test_seconds_of_earlier_attempts_count_up_to_their_checkpoint(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    run = make_run(tmp_path)
    for _ in run.epochs("a", 1):
        now[0] += 5.0
    now[0] += 70.0  # lost
    resumed = make_run(tmp_path)
    now[0] += 2.0
    assert resumed.seconds == 7.0


def test_two_learners_of_one_name_are_refused():
    run = make_run()
    run.learner("net", make_net(), OptimConfig())
    with pytest.raises(ValueError, match="already has a learner 'net'"):
        run.learner("net", make_net(), OptimConfig())


def test_learners_that_are_not_asked_for_yet_stay_in_the_checkpoint(tmp_path):
    first = make_run(tmp_path)
    weights = first.learner("late", make_net(), OptimConfig()).weights()
    for _ in first.epochs("a", 1):
        pass
    second = make_run(tmp_path)
    for _ in second.epochs("a", 2):
        pass  # saved again without asking for it
    third = make_run(tmp_path)
    assert identical(third.learner("late", make_net(), OptimConfig()).weights(), weights)


def test_a_picture_goes_where_the_run_is_tracked():
    shown = []
    run = Run(seed=1, on_image=lambda *image: shown.append(image))
    image = torch.zeros(3, 2, 2)
    run.log_image("before", image)
    for epoch in run.epochs("fit", 2):
        run.log_image("early", image)
        epoch.report(error=1.0)
        run.log_image("late", image)
    run.log_image("after", image)
    assert [each[:2] for each in shown] == [
        (1, "before"),
        (1, "early"),
        (1, "late"),
        (2, "early"),
        (2, "late"),
        (2, "after"),
    ]
    assert shown[0][2] is image


def test_the_cache_shares_between_runs_and_forgets_what_was_not_used_longest(monkeypatch):
    monkeypatch.setattr(run_module, "_cache", OrderedDict())
    built = []

    def get(key):
        return make_run().cached(key, lambda: built.append(key) or [key])

    assert get("a") is get("a")
    get("b")
    get("a")
    get("c")  # the third: b goes, a was used later
    get("a")
    assert built == ["a", "b", "c"]
    get("b")
    assert built == ["a", "b", "c", "b"]


def test_what_fails_to_build_is_not_cached(monkeypatch):
    monkeypatch.setattr(run_module, "_cache", OrderedDict())
    with pytest.raises(KeyError):
        make_run().cached("a", {}.popitem)
    assert make_run().cached("a", lambda: 5) == 5
