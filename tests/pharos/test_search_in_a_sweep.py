"""What a search can do, in whole sweeps of the toy family on the local backend."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from test_sweep_local import outcomes, records_on_disk, reopen, run, start

from pharos import summary as summary_module
from pharos.checkpoint import Checkpoints, is_hold
from pharos.errors import InputError
from pharos.execute import execute
from pharos.schedulers.base import Action
from pharos.trial import Outcome


@pytest.fixture(autouse=True)
def _no_git(monkeypatch):
    monkeypatch.setattr(summary_module, "_revision", lambda: "abc")


def error_is_the_rate(run, epoch, config):
    return {"error": config.lr + 1 / (run.fidelity + 1)}


def known(records):
    """Records but their times, which the study rounds."""
    return {number: dataclasses.replace(record, seconds=0.0) for number, record in records.items()}


def checkpoints_of(sweep, number):
    return Checkpoints(sweep.storage.sub(f"trials/{number:05d}/checkpoints"))


def rows_of(sweep, number):
    return [json.loads(line)["fidelity"] for line in sweep.storage.read_lines(f"trials/{number:05d}/metrics.jsonl")]


# Schedulers that need more than a stop


def test_paused_trials_go_on_from_their_checkpoints_once_they_are_promoted(toy):
    toy.in_epoch = error_is_the_rate
    sweep = start(
        toy, "scale=small", "scheduler=promotion", "scheduler.grace=0.25", "scheduler.reduction=2", "trials=9"
    )
    summary = run(sweep)
    records = sweep.study.records
    assert set(outcomes(sweep)) == {Outcome.COMPLETE, Outcome.PRUNED}
    by_rate = sorted(records, key=lambda number: records[number].params["recipe.lr"])
    assert records[by_rate[0]].outcome == Outcome.COMPLETE
    assert int(summary["best"]["trial"]) == by_rate[0]
    assert len(toy.started) > 9  # some were started again
    for number, record in records.items():
        assert rows_of(sweep, number) == list(range(1, record.fidelity + 1))  # no epoch twice, none missing
        if record.outcome == Outcome.PRUNED:
            assert record.reason == "paused, and never promoted"
            assert record.fidelity in (1, 2)


def test_paused_trials_wait_over_an_interruption(toy):
    toy.in_epoch = error_is_the_rate
    settings = ["scale=small", "scheduler=promotion", "scheduler.grace=0.25", "scheduler.reduction=2", "trials=9"]
    whole = start(toy, *settings)
    run(whole)

    sweep = start(toy, *settings)

    def stop_in_the_fifth(run, epoch, config):
        if len(toy.started) == before + 5:
            sweep.interrupt()
        return error_is_the_rate(run, epoch, config)

    before = len(toy.started)
    toy.in_epoch = stop_in_the_fifth
    run(sweep)
    assert Outcome.PAUSED in outcomes(sweep)
    assert {r.outcome for r in records_on_disk(sweep).values()} >= {Outcome.PAUSED}
    toy.in_epoch = error_is_the_rate
    again = reopen(toy, sweep.name)
    run(again)
    assert all(outcome.is_final for outcome in outcomes(again))
    assert len(again.study.records) == 9


def test_the_worst_of_a_population_make_room_for_copies_of_the_best(toy):
    toy.in_epoch = error_is_the_rate
    sweep = start(
        toy, "recipe.epochs=8", "scheduler=pbt", "scheduler.population=4", "scheduler.interval=0.25", "trials=6",
        "checkpoint_seconds=0", "storage.keep_last=3",
    )  # fmt: skip
    sweep.open(slots=6)
    summary = side_by_side(sweep)
    records = sweep.study.records
    clones = {number: record for number, record in records.items() if record.origin is not None}
    assert clones
    assert len(records) == 6 + len(clones)
    for number, record in clones.items():
        assert records[record.origin.replaces].outcome == Outcome.PRUNED
        first = rows_of(sweep, number)[0]
        assert first > 1  # it did not start from nothing
        assert rows_of(sweep, number) == list(range(first, record.fidelity + 1))
        document = yaml.safe_load(sweep.storage.read_bytes(f"trials/{number:05d}/trial.yaml"))
        assert document["origin"]["donor"] == record.origin.donor
        files = checkpoints_of(sweep, record.origin.donor).files().values()
        assert not any(map(is_hold, (name for names in files for name in names)))  # held while it was copied, no longer
    assert summary["trials"]["complete"] >= 4


def side_by_side(sweep):
    """Trains the trials of all slots in turns, two epochs each, as if they ran at the same time."""
    running = {}

    def turn(spec):
        runs = []
        stops = []

        def on_report(report):
            if sweep.on_report(spec.number, report) == Action.STOP:
                stops.append(spec.number)
                runs[0].stop(Outcome.PRUNED)
            elif report.fidelity % 2 == 0 and report.fidelity < spec.max_fidelity:
                runs[0].interrupt()

        ending = execute(spec, on_report, runs.append)
        if stops or ending.outcome != Outcome.INTERRUPTED:  # else it only waits for its next turn
            sweep.on_end(spec.number, ending)
            del running[spec.number]

    while not sweep.finished:
        while len(running) < sweep.slots and (spec := sweep.next_trial()) is not None:
            running[spec.number] = spec
        for spec in list(running.values()):
            turn(spec)
    return sweep.close()


# Objectives and constraints


def test_two_objectives_give_a_front(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": config.lr, "size": float(config.width)}
    sweep = start(
        toy, "objective=[{metric: error}, {metric: size, mode: max}]", "recipe.width=range(1,9)", "trials=8",
        "scheduler=none",
    )  # fmt: skip
    summary = run(sweep)
    records = sweep.study.records
    assert summary["objective"] == [{"metric": "error", "mode": "min"}, {"metric": "size", "mode": "max"}]
    points = {number: (r.params["recipe.lr"], -r.params["recipe.width"]) for number, r in records.items()}
    best = {
        number
        for number, point in points.items()
        if not any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points.values())
    }
    front = summary["pareto"]["front"]
    assert {int(each["trial"]) for each in front} == best
    assert [each["values"]["error"] for each in front] == sorted(each["values"]["error"] for each in front)
    assert summary["best"] == front[0]
    reference = summary["pareto"]["reference"]
    assert reference == {"error": max(p[0] for p in points.values()), "size": -max(p[1] for p in points.values())}
    boxes = sorted((points[number] for number in best), reverse=True)
    right, volume = reference["error"], 0.0
    for error, size in boxes:
        volume += (right - error) * (-reference["size"] - size)
        right = error
    assert summary["pareto"]["hypervolume"] == pytest.approx(volume)


def test_two_objectives_stop_early_too(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": config.lr, "cost": config.lr * 2}
    objective = "objective=[{metric: error}, {metric: cost}]"
    sweep = start(toy, objective, "scale=small", "scheduler.grace=0.25", "trials=10")
    run(sweep)
    assert outcomes(sweep).count(Outcome.PRUNED) >= 3
    rates = {n: r.params["recipe.lr"] for n, r in sweep.study.records.items()}
    assert sweep.study.records[min(rates, key=rates.get)].outcome == Outcome.COMPLETE
    assert known(records_on_disk(sweep)) == known(sweep.study.records)


def test_a_trial_that_breaks_a_constraint_is_never_the_best(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": config.lr, "cost": 1 / config.lr}
    sweep = start(toy, 'constraints={cost: "<= 50"}', "scheduler=none", "trials=8")
    summary = run(sweep)
    rates = [record.params["recipe.lr"] for record in sweep.study.records.values()]
    assert min(rates) < 1 / 50
    assert summary["best"]["values"]["error"] == min(rate for rate in rates if 1 / rate <= 50)
    assert summary["constraints"] == {"cost": "<= 50.0"}


def test_memory_can_be_bounded_without_the_recipe_knowing(toy):
    sweep = start(toy, 'constraints={peak_memory_gb: "<= 0.0001"}', "trials=2", "scheduler=none")
    summary = run(sweep)
    assert summary["best"] is None
    assert all(record.metrics["peak_memory_gb"] > 0.01 for record in sweep.study.records.values())


def test_a_metric_that_is_bounded_and_never_reported_is_named(toy):
    sweep = start(toy, 'constraints={speed: ">= 1"}', "trials=1")
    run(sweep)
    assert "never reported what the search watches, speed" in sweep.study.records[0].reason


# Budgets


def test_a_target_ends_the_sweep_and_says_so(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": 5.0 - len(toy.started)}
    sweep = start(toy, "stop_at=2", "trials=20", "scheduler=none")
    summary = run(sweep)
    assert summary["trials"] == {"complete": 3}
    assert summary["stopped"] == "error=2 reached stop_at=2"
    assert json.loads(Path(sweep.storage.path("summary.json")).read_text())["stopped"] == summary["stopped"]
    again = reopen(toy, sweep.name, "stop_at=1", extend=True)
    assert run(again)["trials"] == {"complete": 4}


def test_a_plateau_ends_the_sweep(toy):
    toy.in_epoch = lambda run, epoch, config: {"error": float(abs(len(toy.started) - 3))}
    sweep = start(toy, "plateau=4", "trials=20", "scheduler=none")
    summary = run(sweep)
    assert summary["trials"] == {"complete": 7}  # the third was the best
    assert summary["stopped"].startswith("4 trials in a row brought nothing better")


def test_hours_are_counted_over_drivers_and_what_ran_goes_on_with_more(toy, monkeypatch):
    sweep = start(toy, "hours=1", "trials=5", "scheduler=none")
    clock = [0.0]
    usage = type(sweep).usage.fget
    monkeypatch.setattr(
        type(sweep), "usage", property(lambda self: type(usage(self))(usage(self).seconds + clock[0], clock[0]))
    )

    def pass_time(run, epoch, config):
        clock[0] += 900.0

    toy.in_epoch = pass_time
    summary = run(sweep)
    assert summary["stopped"] == "it has had its time (hours=1)"
    assert summary["trials"]["complete"] + summary["trials"].get("interrupted", 0) == 2
    clock[0] = 0.0
    again = reopen(toy, sweep.name, "hours=9", extend=True)
    assert run(again)["trials"] == {"complete": 5}


def test_the_same_fault_everywhere_ends_the_sweep(toy):
    def in_epoch(run, epoch, config):
        if config.kind == "noisy":
            raise ValueError(f"no noise like {config.noise}")

    toy.in_epoch = in_epoch
    sweep = start(toy, "trials=40", "scheduler=none", "breaker=3")
    summary = run(sweep)
    assert summary["trials"]["failed"] == 3
    assert summary["stopped"] == "different configurations failed at the same place"
    assert "no noise like" in sweep.search.fault
    assert sweep.search.fault.count("Traceback") == 1
    toy.in_epoch = lambda run, epoch, config: None  # mended
    assert run(reopen(toy, sweep.name))["trials"] == {"failed": 3, "complete": 37}


def test_memory_that_runs_out_is_no_fault_and_no_breaker(toy):
    def in_epoch(run, epoch, config):
        raise MemoryError("too big")

    toy.in_epoch = in_epoch
    sweep = start(toy, "trials=5", "scheduler=none", "breaker=2")
    assert run(sweep)["trials"] == {"out_of_memory": 5}


# The memory of the lab


def test_earlier_trials_are_evidence_where_they_fit(toy):
    earlier = start(toy, "trials=5", "scheduler=none")
    run(earlier)
    sweep = start(
        toy, "trials=2", "scheduler=none", f"warm_start=[{earlier.name}]", "recipe.lr=tag(log, interval(0.09, 1))"
    )
    inside = [r for r in earlier.study.records.values() if r.params["recipe.lr"] >= 0.09]
    assert 0 < len(inside) < 5
    evidence = [t for t in sweep.study._study.trials if "evidence" in t.user_attrs]
    assert len(evidence) == len(inside)
    assert {t.value for t in evidence} == {r.values[0] for r in inside}
    summary = run(sweep)
    assert sorted(sweep.study.records) == [0, 1]
    assert summary["trials"] == {"complete": 2}
    assert summary["evidence"][earlier.name]["carried"] == len(inside)
    assert sum(summary["evidence"][earlier.name]["left"].values()) == 5 - len(inside)
    assert any(f"evidence: {len(inside)} trials of {earlier.name}" in line for line in sweep.listener.lines)
    resumed = reopen(toy, sweep.name)
    assert sum("evidence" in t.user_attrs for t in resumed.study._study.trials) == len(inside)
    resumed.close()


def test_auto_takes_what_is_alike_and_leaves_the_rest(toy):
    alike = start(toy, "trials=2", "scheduler=none")
    run(alike)
    other = start(toy, "trials=2", "scheduler=none", "scale=small")  # more epochs: another experiment
    run(other)
    sweep = start(toy, "trials=1", "warm_start=auto")
    note = sweep.study.notes["evidence"]
    assert note[alike.name] == {"carried": 2, "left": {}}
    assert note[other.name]["carried"] == 0
    assert any("recipe.epochs was 4, is 2" in why for why in note[other.name]["left"])
    sweep.close()


def test_nothing_is_carried_over_unless_asked_for(toy):
    run(start(toy, "trials=2", "scheduler=none"))
    sweep = start(toy, "trials=1")
    assert sweep.study.notes["evidence"] == {}
    sweep.close()


def test_an_unknown_sweep_to_learn_from_is_refused_and_nothing_is_left(toy):
    with pytest.raises(InputError, match="nothing of that name"):
        start(toy, "warm_start=[no-such-sweep]")
    assert not Path(toy.url).exists() or not list(Path(toy.url).iterdir())


# A space that changes


def test_a_space_may_change_when_a_sweep_is_extended(toy):
    sweep = start(toy, "trials=4", "scheduler=none")
    run(sweep)
    before = records_on_disk(sweep)
    again = reopen(
        toy, sweep.name, "trials=+3", "recipe.lr=tag(log, interval(0.2, 2))", "recipe.width=range(2,6)",
        "recipe.kind=plain", extend=True,
    )  # fmt: skip
    summary = run(again)
    records = again.study.records
    assert summary["trials"] == {"complete": 7}
    assert known({number: records[number] for number in before}) == known(before)
    for number in range(4, 7):
        params = records[number].params
        assert 0.2 <= params["recipe.lr"] <= 2
        assert params["recipe.width"] in range(2, 6)
        assert params["recipe.kind"] == "plain"
        assert "recipe.noise" not in params
    assert known(records_on_disk(again)) == known(records)
    fits = [r for r in before.values() if r.params["recipe.kind"] == "plain" and r.params["recipe.lr"] >= 0.2]
    assert summary["evidence"][sweep.name]["carried"] == len(fits)
    # And once more, from what is on disk alone.
    third = reopen(toy, sweep.name)
    assert third.finished
    assert third.plan.generation == 1
    third.close()


def test_extending_with_the_same_space_starts_no_new_one(toy):
    sweep = start(toy, "trials=2", "scheduler=none")
    run(sweep)
    again = reopen(toy, sweep.name, "trials=+1", "recipe.lr=tag(log, interval(1e-3, 0.5))", extend=True)
    assert again.plan.generation == 0
    again.close()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("recipe.epochs=9", "is not searched"),
        ("recipe.nothing=interval(0, 1)", "not a value of toy"),
        ("recipe.lr=interval(1, 0)", "an interval goes from"),
        ("recipe.kind=choice(plain, loud)", "must be plain or noisy"),
    ],
)
def test_a_space_that_cannot_be_is_refused_and_the_sweep_stays_as_it_was(toy, override, says):
    sweep = start(toy, "trials=1", "scheduler=none")
    run(sweep)
    before = sweep.storage.read_bytes("sweep.yaml")
    with pytest.raises(InputError, match=says) as error:
        reopen(toy, sweep.name, "trials=+1", override, extend=True)
    assert "\n" not in str(error.value)
    assert sweep.storage.read_bytes("sweep.yaml") == before


# Samplers and schedulers by name


@pytest.mark.parametrize(
    "sampler", ["multifidelity", "tpe", "gp", "cmaes", "nsga2", "nsga3", "quasi_random", "random", "grid"]
)
def test_every_sampler_runs_a_space_with_conditions(toy, sampler):
    sweep = start(
        toy, f"sampler={sampler}", "trials=6", "scheduler=none", *["sampler.startup=2"] * (sampler in ("gp", "tpe"))
    )
    assert run(sweep)["trials"] == {"complete": 6}
    assert len({json.dumps(record.params) for record in sweep.study.records.values()}) == 6


@pytest.mark.parametrize("scheduler", ["asha", "promotion", "hyperband", "median", "pbt", "none"])
def test_every_scheduler_ends_every_trial(toy, scheduler):
    sweep = start(toy, f"scheduler={scheduler}", "scale=small", "trials=6")
    run(sweep)
    assert all(outcome in (Outcome.COMPLETE, Outcome.PRUNED) for outcome in outcomes(sweep))
    assert all(r.reason for r in sweep.study.records.values() if r.outcome == Outcome.PRUNED)


def test_a_grid_has_every_point_once(toy):
    sweep = start(toy, "sampler=grid", "sampler.points=2", "trials=50", "scheduler=none")
    run(sweep)
    points = [tuple(sorted(record.params.items())) for record in sweep.study.records.values()]
    grid = 2 + 2 * 2  # plain, and noisy with two noises; two rates each
    assert len(points) == len(set(points)) == grid + 2  # and the first trials, which lie beside it


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["scheduler=median", "scheduler.reduction=4"], "means nothing to scheduler=median"),
        (["scheduler=median", "objective=[{metric: a}, {metric: b}]"], "compares one objective"),
        (["sampler=cmaes", "objective=[{metric: a}, {metric: b}]"], "takes one objective"),
        (["stop_at=1", "objective=[{metric: a}, {metric: b}]"], "stop_at is for one objective"),
        (["objective=[{metric: a}, {metric: a}]"], "named twice"),
        (["objective=[{metric: a, mode: up}]"], "objective.mode=up"),
        (["objective=[{mode: min}]"], "write {metric: NAME"),
        (["constraints={a: lots}"], 'a bound is written like "<= 20"'),
        (["constraints=3"], "write {METRIC"),
        (["hours=0"], "must be above 0"),
        (["plateau=0"], "must be at least 1"),
        (["warm_start=sometimes"], "write warm_start=auto"),
        (["scheduler.grace=0"], "a share of a whole trial"),
        (["first_trials=[{recipe.lr: 9}]"], "outside the space"),
        (["first_trials=3"], "write first_trials=["),
        (["scheduler=pbt", "scheduler.keep=[recipe.nothing]"], "recipe.nothing"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(toy, settings, says):
    with pytest.raises(InputError) as error:
        start(toy, *settings)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path(toy.url).exists() or not list(Path(toy.url).iterdir())


def test_first_trials_can_be_typed(toy):
    sweep = start(toy, "first_trials=[{recipe.lr: 0.3}, {}]", "trials=2", "scheduler=none")
    run(sweep)
    assert [r.params["recipe.lr"] for r in sweep.study.records.values()] == [0.3, 0.1]


def test_a_sweep_of_before_with_other_defaults_goes_on(toy):
    sweep = start(toy, "scheduler=none", "trials=1")
    run(sweep)
    path = Path(sweep.storage.path("sweep.yaml"))
    document = yaml.safe_load(path.read_text())
    document["settings"]["scheduler"]["grace"] = 0.2  # what it was when sweeps had no other scheduler than ASHA
    path.write_text(yaml.safe_dump(document))
    assert reopen(toy, sweep.name).close()["trials"] == {"complete": 1}
