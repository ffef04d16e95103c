"""Finalists: fresh seeds that really reach the trials, intervals by hand, and verdicts that chance does not make."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pharos import summary as summary_module
from pharos import sweep as sweep_module
from pharos.backends.local import run_sweep
from pharos.command import run_command
from pharos.config import make_plan, reopen_plan
from pharos.console import Console, closing
from pharos.errors import InputError
from pharos.families import ROOT
from pharos.finalists import _space, fresh_seeds
from pharos.finalists import start as start_finalists
from pharos.folders import read_document
from pharos.plan import Plan
from pharos.records import TrialRecord
from pharos.standings import interval, standings
from pharos.study import read_study
from pharos.summary import summarise_folder
from pharos.sweep import Sweep
from pharos.trial import Outcome

# The quantiles 0.975 of Student's t with 2 and 4 degrees of freedom, and 0.9875 (two comparisons), from tables.
T_2, T_4, T_4_TWO = 4.302653, 2.776445, 3.495406


class Quiet(Console):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "_revision", lambda: "abc")


def search(toy: Any, *overrides: str) -> Sweep:
    """A finished sweep of the toy family."""
    common = ["backend=local", "tracking=none", f"storage.url={toy.url}", "sampler=random", "scale=tiny", "trials=6"]
    sweep = sweep_module.start("toy", [*common, "scheduler=none", *overrides], Quiet())
    run_sweep(sweep)
    sweep.close()
    return sweep


def finals(toy: Any, sweep: Sweep, top: int = 3, seeds: int = 2, *overrides: str) -> Sweep:
    return start_finalists(sweep.name, top, seeds, [f"storage.url={toy.url}", *overrides], Quiet())


def run(sweep: Sweep) -> dict[str, Any]:
    run_sweep(sweep)
    return sweep.close()


def noise(*key: Any) -> float:
    return random.Random("/".join(map(str, key))).gauss(0, 1)


# Statistics, by hand


def plan_of(toy: Any, searched: Sequence[Any], seeds: int, *overrides: str) -> Plan:
    """A plan of finalists with these values in the search."""
    plan = make_plan("toy", ["tracking=none", "scale=tiny", "backend=local", *overrides])
    metrics = plan.settings.objectives.metrics
    rows = [value if isinstance(value, tuple) else (value,) for value in searched]
    trials = [
        {"trial": f"{n:05d}", "values": dict(zip(metrics, row, strict=True)), "params": {"recipe.lr": 0.01 + 0.01 * n}}
        for n, row in enumerate(rows)
    ]
    first = [{**each["params"], "seed": 100 + s} for s in range(seeds) for each in trials]
    return Plan(
        plan.settings,
        plan.recipe,
        plan.config,
        plan.space,
        first,
        finalists={"sweep": "toy-sweep", "trials": trials},
    )


def records_of(plan: Plan, *rounds: Sequence[Any]) -> dict[int, TrialRecord]:
    """What came of it: for each seed a value a finalist; an outcome where there is none."""
    records = {}
    for number, result in enumerate(each for row in rounds for each in row):
        params = plan.first_trials[number]
        if isinstance(result, Outcome):
            records[number] = TrialRecord(number, params, result)
        else:
            values = result if isinstance(result, tuple) else (result,)
            records[number] = TrialRecord(number, params, Outcome.COMPLETE, values=values)
    return records


def test_the_interval_of_a_mean_is_students() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3.0
    assert found["sd"] == pytest.approx(math.sqrt(2.5))
    margin = T_4 * math.sqrt(2.5 / 5)
    assert (found["low"], found["high"]) == pytest.approx((3 - margin, 3 + margin), rel=1e-6)
    wide = interval([1.0, 2.0, 3.0, 4.0, 5.0], comparisons=2)
    assert wide["high"] == pytest.approx(3 + T_4_TWO * math.sqrt(2.5 / 5), rel=1e-6)


def test_too_few_values_have_no_interval() -> None:
    assert interval([]) == {"mean": None, "sd": None, "low": None, "high": None}
    assert interval([2.0]) == {"mean": 2.0, "sd": None, "low": None, "high": None}
    assert interval([2.0, 2.0]) == {"mean": 2.0, "sd": 0.0, "low": 2.0, "high": 2.0}


def test_a_finalist_has_its_mean_its_interval_and_how_much_the_search_flattered_it(toy: Any) -> None:
    plan = plan_of(toy, [0.5, 0.6], 3)
    found = standings(plan, records_of(plan, (1.0, 2.0), (2.0, 4.0), (3.0, 6.0)))
    first, second = found["finalists"]
    assert [each["trial"] for each in found["finalists"]] == ["00000", "00001"]
    assert (found["sweep"], found["seeds"], found["metric"]) == ("toy-sweep", [100, 101, 102], "error")
    margin = T_2 / math.sqrt(3)
    values = first["values"]["error"]
    assert (values["search"], values["mean"], values["sd"], values["flattery"]) == (0.5, 2.0, 1.0, 1.5)
    assert (values["low"], values["high"]) == pytest.approx((2 - margin, 2 + margin), rel=1e-6)
    assert (first["n"], first["missing"], first["behind"]) == (3, {}, None)
    assert first["runs"][1] == {"trial": "00002", "seed": 101, "outcome": "complete", "values": {"error": 2.0}}
    assert second["values"]["error"]["mean"] == 4.0


def test_differences_are_paired_by_seed(toy: Any) -> None:
    """What a seed does to all of them says nothing of any: means that overlap may be far apart in pairs."""
    plan = plan_of(toy, [1.0, 1.0], 3)
    found = standings(plan, records_of(plan, (1.0, 1.1), (11.0, 11.2), (6.0, 6.15)))
    winner, other = found["finalists"]
    assert winner["values"]["error"]["high"] > other["values"]["error"]["low"]
    behind = other["behind"]
    assert (behind["pairs"], behind["mean"]) == (3, pytest.approx(0.15))
    assert behind["low"] == pytest.approx(0.15 - T_2 * 0.05 / math.sqrt(3), rel=1e-6)
    assert behind["beaten"]
    assert found["wins"]
    assert found["tied"] == []
    assert found["verdict"].startswith("trial 00000 really wins: on the same seeds it is better than the other")


def test_more_comparisons_ask_for_more(toy: Any) -> None:
    """The same pair of finalists, alone and with a third."""
    rounds = [(1.0, 1.1, 9.0), (1.0, 1.2, 9.1), (1.0, 1.15, 9.3)]
    two, three = plan_of(toy, [1.0] * 2, 3), plan_of(toy, [1.0] * 3, 3)
    alone = standings(two, records_of(two, *(row[:2] for row in rounds)))
    among = standings(three, records_of(three, *rounds))
    assert (alone["comparisons"], among["comparisons"]) == (1, 2)
    narrow, wide = alone["finalists"][1]["behind"], among["finalists"][1]["behind"]
    assert narrow["mean"] == pytest.approx(wide["mean"])
    assert wide["low"] < narrow["low"] - 0.01


def test_a_difference_that_chance_explains_is_a_tie(toy: Any) -> None:
    plan = plan_of(toy, [1.0] * 3, 3)
    found = standings(plan, records_of(plan, (1.0, 1.3, 9.0), (1.2, 1.1, 9.1), (1.1, 1.2, 9.3)))
    assert (found["winner"], found["wins"], found["tied"]) == ("00000", False, ["00001"])
    assert found["verdict"] == "no clear winner: trial 00000 has the best mean, but 00001 may be as good"


def test_equal_results_are_a_tie(toy: Any) -> None:
    plan = plan_of(toy, [1.0, 1.0], 2)
    found = standings(plan, records_of(plan, (2.0, 2.0), (2.0, 2.0)))
    assert (found["wins"], found["tied"]) == (False, ["00001"])
    assert found["finalists"][1]["behind"]["low"] == 0.0


def test_a_maximised_objective_prefers_large_means(toy: Any) -> None:
    plan = plan_of(toy, [0.9, 0.8], 3, "objective.mode=max")
    found = standings(plan, records_of(plan, (0.1, 0.71), (0.2, 0.8), (0.3, 0.92)))
    assert (found["winner"], found["wins"]) == ("00001", True)
    other = found["finalists"][1]
    assert other["behind"]["mean"] == pytest.approx(0.61)
    assert other["values"]["error"]["flattery"] == pytest.approx(0.7)


def test_a_winner_that_diverged_on_a_seed_is_no_clear_one(toy: Any) -> None:
    plan = plan_of(toy, [1.0] * 2, 4)
    found = standings(plan, records_of(plan, (1.0, 5.0), (1.1, 5.2), (Outcome.DIVERGED, 5.1), (1.2, 5.1)))
    winner, other = found["finalists"]
    assert (winner["n"], winner["missing"]) == (3, {"diverged": 1})
    assert winner["runs"][2] == {"trial": "00004", "seed": 102, "outcome": "diverged", "values": None}
    assert (other["n"], other["behind"]["pairs"], other["behind"]["beaten"]) == (4, 3, True)
    assert found["wins"] is False
    assert found["verdict"] == ("no clear winner: trial 00000 has the best mean, but 1 of its 4 runs ended diverged")


def test_a_winner_that_broke_a_constraint_is_no_clear_one(toy: Any) -> None:
    plan = plan_of(toy, [1.0] * 2, 2)
    records = records_of(plan, (1.0, 5.0), (1.0, 5.0))
    records[0].violations = {"size": 0.5}
    found = standings(plan, records)
    assert (found["wins"], found["finalists"][0]["infeasible"]) == (False, 1)
    assert "1 of its 2 runs broke a constraint" in found["verdict"]


def test_others_that_lack_runs_are_compared_by_what_they_have(toy: Any) -> None:
    plan = plan_of(toy, [1.0] * 4, 3)
    bad = Outcome.DIVERGED
    found = standings(plan, records_of(plan, (1.0, 5.0, 0.2, bad), (1.1, 5.2, bad, bad), (1.2, 5.2, bad, bad)))
    assert [each["trial"] for each in found["finalists"]] == ["00000", "00001", "00002", "00003"]
    _, beaten, once, never = found["finalists"]
    assert beaten["behind"]["beaten"]
    # One good value is no mean, and no difference to trust.
    assert (once["behind"]["pairs"], once["behind"]["low"], once["behind"]["beaten"]) == (1, None, False)
    assert never["behind"]["pairs"] == 0
    assert found["tied"] == ["00002"]
    assert not found["wins"]


def test_only_one_that_finishes_has_beaten_nobody(toy: Any) -> None:
    plan = plan_of(toy, [1.0] * 2, 2)
    bad = Outcome.FAILED
    found = standings(plan, records_of(plan, (1.0, bad), (1.1, bad)))
    assert (found["wins"], found["tied"]) == (False, [])
    assert found["verdict"].endswith("but no other has completed a run to compare it with")
    found = standings(plan, records_of(plan, (bad, bad), (bad, bad)))
    assert (found["winner"], found["verdict"]) == (None, "no verdict: no run was completed")


def test_nothing_is_decided_before_the_last_run(toy: Any) -> None:
    plan = plan_of(toy, [1.0] * 2, 3)
    found = standings(plan, records_of(plan, (1.0, 5.0), (1.0, 5.1)))
    assert found["finalists"][1]["behind"]["beaten"]
    assert (found["winner"], found["wins"]) == ("00000", False)
    assert found["verdict"] == "not decided yet: 4 of 6 runs have ended; trial 00000 leads"
    assert standings(plan, {})["verdict"] == "not decided yet: 0 of 6 runs have ended"


def test_a_single_finalist_has_a_mean_and_no_rival(toy: Any) -> None:
    plan = plan_of(toy, [1.0], 2)
    found = standings(plan, records_of(plan, (1.0,), (3.0,)))
    assert found["finalists"][0]["values"]["error"]["mean"] == 2.0
    assert (found["wins"], found["verdict"]) == (False, "trial 00000 has nothing to be compared with")


def test_each_of_several_objectives_has_its_mean_and_the_first_decides(toy: Any) -> None:
    plan = plan_of(
        toy, [(0.5, 9.0), (0.6, 1.0)], 3, "objective=[{metric: error, mode: min}, {metric: speed, mode: max}]"
    )
    found = standings(
        plan, records_of(plan, ((1.0, 3.0), (5.0, 9.0)), ((1.1, 4.0), (5.2, 9.0)), ((1.2, 5.0), (5.3, 9.0)))
    )
    assert (found["winner"], found["metric"], found["wins"]) == ("00000", "error", True)
    speed = found["finalists"][0]["values"]["speed"]
    assert (speed["mean"], speed["sd"], speed["flattery"]) == (4.0, 1.0, 5.0)


def test_on_pure_noise_the_search_flatters_and_a_clear_winner_is_rare(toy: Any) -> None:
    """200 searches of 16 trials that differ by luck alone: 3 finalists on 5 seeds tell that, at a level of 5 %."""
    rng = random.Random(0)
    flattered = wins = 0
    plan = plan_of(toy, [0.0] * 3, 5)
    for _ in range(200):
        searched = sorted(rng.gauss(0, 1) for _ in range(16))[:3]
        for each, value in zip((plan.finalists or {})["trials"], searched, strict=True):
            each["values"] = {"error": value}
        found = standings(plan, records_of(plan, *([rng.gauss(0, 1) for _ in range(3)] for _ in range(5))))
        flattered += all(each["values"]["error"]["flattery"] > 0 for each in found["finalists"])
        wins += found["wins"]
    assert flattered > 150
    assert wins <= 15


# Seeds and spaces


def test_fresh_seeds_follow_from_the_sweeps_and_are_none_of_it() -> None:
    seeds = fresh_seeds(0, 50, {3})
    assert seeds == fresh_seeds(0, 50, {3})
    assert len({*seeds, 0, 3}) == 52
    assert fresh_seeds(0, 5, {3}) == seeds[:5]
    assert not set(seeds) & set(fresh_seeds(1, 50, {3}))
    assert seeds[7] not in fresh_seeds(0, 50, {3, seeds[7]})


def test_finalists_of_a_space_that_changed_since_keep_their_values(toy: Any) -> None:
    plan = make_plan("toy", ["tracking=none", "recipe.lr=interval(0.05, 0.2)"])
    trials = [
        {"recipe.lr": 0.001, "recipe.kind": "plain"},
        {"recipe.lr": 0.1, "recipe.kind": "noisy", "recipe.noise": 0.2},
    ]
    space, values = _space(plan, trials)
    assert all(not space.contains(each, plan.defaults) for each in values)
    assert [plan.trial_config(each) for each in values] == [plan.trial_config(each) for each in trials]
    assert space == type(space)(space.dimensions)
    same, kept = _space(plan, trials[1:])
    assert (same, kept) == (plan.space, trials[1:])


# Whole finals


def test_finalists_are_the_best_trials_on_seeds_that_reach_them(toy: Any) -> None:
    seen: list[tuple[int, float]] = []

    def in_epoch(run: Any, epoch: Any, config: Any) -> dict[str, float]:
        if epoch.index == 1:
            seen.append((run.seed, config.lr))
        return {"error": config.lr + 1e-4 * noise(run.seed, config.lr)}

    toy.in_epoch = in_epoch
    sweep = search(toy, "seed=3")
    assert {seed for seed, _ in seen} == {3}
    seen.clear()
    final = finals(toy, sweep, 3, 4)
    assert final.name.startswith(f"{sweep.name}-finals-")
    assert final.storage.parent().root == sweep.storage.parent().root
    summary = run(final)
    ranked = sorted(sweep.study.records.values(), key=lambda record: record.values)[:3]
    lrs = [record.params["recipe.lr"] for record in ranked]
    # All finalists on one seed, then all on the next.
    assert [lr for _, lr in seen] == lrs * 4
    seeds = [seed for seed, _ in seen[::3]]
    assert [seed for seed, _ in seen] == [seed for seed in seeds for _ in range(3)]
    assert len({*seeds, 3}) == 5
    assert summary["trials"] == {"complete": 12}
    found = summary["finalists"]
    assert (found["sweep"], found["seeds"]) == (sweep.name, seeds)
    assert sorted(each["trial"] for each in found["finalists"]) == sorted(f"{r.number:05d}" for r in ranked)
    for each in found["finalists"]:
        record = sweep.study.records[int(each["trial"])]
        assert each["params"] == record.params
        assert each["values"]["error"]["search"] == record.values[0]
        lr = record.params["recipe.lr"]
        mean = lr + sum(1e-4 * noise(seed, lr) for seed in seeds) / 4
        assert each["values"]["error"]["mean"] == pytest.approx(mean)
    trial = yaml.safe_load(final.storage.read_bytes("trials/00004/trial.yaml"))
    assert (trial["seed"], trial["config"]["lr"]) == (seeds[1], lrs[1])
    json.dumps(summary, allow_nan=False)
    assert json.loads(Path(final.storage.path("summary.json")).read_text()) == summary


def test_the_seed_changes_the_training_itself(toy: Any) -> None:
    final = finals(toy, search(toy), 1, 3)
    row = run(final)["finalists"]["finalists"][0]
    results = [each["values"]["error"] for each in row["runs"]]
    assert len({*results, row["values"]["error"]["search"]}) == 4
    again = run(finals(toy, search(toy), 1, 3))["finalists"]["finalists"][0]
    assert [each["values"]["error"] for each in again["runs"]] == results


def test_whoever_reads_a_search_sees_no_finalists(toy: Any) -> None:
    sweep = search(toy)
    assert summarise_folder(sweep.storage, sweep.plan)["finalists"] is None


def test_nothing_stops_finals_early_and_they_know_nothing_from_elsewhere(toy: Any) -> None:
    sweep = search(toy, "hours=100", "plateau=50", "stop_at=-1", "warm_start=auto", "scheduler=asha", "sampler=tpe")
    final = finals(toy, sweep, 1)
    settings = final.settings
    assert (settings.scheduler.name, settings.sampler.name, settings.trials) == ("none", "random", 2)
    assert (settings.hours, settings.stop_at, settings.plateau, settings.warm_start) == (None, None, None, [])
    assert settings.breaker == 0
    final.close()


def test_an_interrupted_finals_sweep_is_resumed_with_the_results_of_one_that_was_not(toy: Any) -> None:
    sweep = search(toy)
    whole = run(finals(toy, sweep))
    finals_of: list[Sweep] = []

    def in_epoch(run: Any, epoch: Any, config: Any) -> None:
        if len(finals_of[0].study.records) == 4:
            finals_of[0].interrupt()

    finals_of.append(finals(toy, sweep))
    toy.in_epoch = in_epoch
    first = run(finals_of[0])
    assert first["trials"] == {"complete": 3, "interrupted": 1}
    assert first["finalists"]["verdict"].startswith("not decided yet: 3 of 6 runs have ended; trial ")
    said = closing(first, finals_of[0].storage.root, 6)
    assert f"next:  python platform/sweep.py --resume {finals_of[0].name}" in said
    toy.in_epoch = lambda run, epoch, config: None
    toy.started.clear()
    # A change of how it runs is kept, and what the finalists are as well.
    again = sweep_module.reopen(finals_of[0].name, [f"storage.url={toy.url}", "retries=5"], Quiet())
    second = run(again)
    assert len(toy.started) == 3
    assert second["finalists"] == whole["finalists"]
    document = read_document(again.storage)
    assert document["settings"]["retries"] == 5
    assert reopen_plan(document, []).finalists == again.plan.finalists
    assert summarise_folder(again.storage, reopen_plan(document, []))["finalists"] == whole["finalists"]


class Killed(BaseException):
    """The driver dies here."""


@pytest.mark.parametrize("kill_at", [0, 2, 5])
def test_a_killed_driver_of_finals_is_taken_up(toy: Any, kill_at: int) -> None:
    sweep = search(toy)
    whole = run(finals(toy, sweep))
    final = finals(toy, sweep)

    def in_epoch(run: Any, epoch: Any, config: Any) -> None:
        if len(final.study.records) == kill_at + 1 and epoch.index == 1:
            raise Killed

    toy.in_epoch = in_epoch
    with pytest.raises(Killed):
        run_sweep(final)
    final.study.close()
    toy.in_epoch = lambda run, epoch, config: None
    again = sweep_module.reopen(final.name, [f"storage.url={toy.url}"], Quiet())
    assert run(again)["finalists"] == whole["finalists"]
    records, _, _ = read_study(again.storage, again.name, None)
    assert [records[number].params for number in sorted(records)] == again.plan.first_trials


def test_finalists_with_the_same_values_are_one(toy: Any) -> None:
    toy.space_file.write_text("objective: {metric: error, mode: min}\nspace:\n  recipe.kind: choice(plain, noisy)\n")
    toy.in_epoch = lambda run, epoch, config: {"error": float(config.kind == "noisy") + 0.01 * noise(run.seed)}
    sweep = search(toy)
    final = finals(toy, sweep)
    assert [each["params"]["recipe.kind"] for each in final.plan.finalists["trials"]] == ["plain", "noisy"]
    assert final.listener.lines == [  # type: ignore[attr-defined]
        f"--top 3: {sweep.name} has only 2 different completed trials; these are taken"
    ]
    assert final.settings.trials == 4
    final.close()


def test_trials_that_break_a_constraint_or_did_not_end_are_no_finalists(toy: Any) -> None:
    def in_epoch(run: Any, epoch: Any, config: Any) -> dict[str, float]:
        return {"error": math.nan if config.kind == "noisy" else config.lr, "size": config.lr}

    toy.in_epoch = in_epoch
    sweep = search(toy, 'constraints={size: "<= 0.2"}', "trials=12")
    final = finals(toy, sweep, 12)
    taken = final.plan.finalists["trials"]
    assert 0 < len(taken) < 12
    assert all(each["params"]["recipe.kind"] == "plain" and each["params"]["recipe.lr"] <= 0.2 for each in taken)
    final.close()


def test_diverged_runs_count_and_are_shown(toy: Any) -> None:
    diverges: list[int] = []

    def in_epoch(run: Any, epoch: Any, config: Any) -> dict[str, float]:
        return {"error": math.nan if run.seed in diverges and config.lr == best[0] else config.lr}

    best = [0.0]
    toy.in_epoch = in_epoch
    sweep = search(toy)
    best[0] = min(record.params["recipe.lr"] for record in sweep.study.records.values())
    final = finals(toy, sweep, 2, 3)
    diverges.append(final.plan.first_trials[-1]["seed"])
    summary = run(final)
    assert summary["trials"] == {"complete": 5, "diverged": 1}
    said = closing(summary, final.storage.root, 6)
    assert "2/3 (1 diverged)" in said
    assert "no clear winner" in said
    assert "1 of its 3 runs ended diverged" in said


def test_another_seed_gives_other_fresh_seeds(toy: Any) -> None:
    sweep = search(toy)
    one, two = finals(toy, sweep), finals(toy, sweep, 3, 2, "seed=8")
    seeds = [{params["seed"] for params in each.plan.first_trials} for each in (one, two)]
    assert not seeds[0] & seeds[1]
    assert not {0, 8} & (seeds[0] | seeds[1])
    one.close()
    two.close()


def test_a_sweep_that_goes_on_still_gives_its_best_so_far(toy: Any) -> None:
    sweep = search(toy)
    document = yaml.safe_load(sweep.storage.read_bytes("sweep.yaml"))
    document["settings"]["trials"] = 9
    sweep.storage.write_bytes("sweep.yaml", yaml.safe_dump(document).encode())
    final = finals(toy, sweep)
    assert final.listener.lines == [  # type: ignore[attr-defined]
        f"{sweep.name}: 6 of 9 trials have ended; taken are the best so far"
    ]
    final.close()


def test_on_a_toy_of_pure_noise_the_search_flatters_itself_and_finals_say_so(toy: Any) -> None:
    toy.in_epoch = lambda run, epoch, config: {"error": noise(run.seed, config.lr, config.noise)}
    verdicts, flatteries = [], []
    for seed in range(4):
        summary = run(finals(toy, search(toy, f"seed={seed}", "trials=8", "recipe.epochs=1"), 2, 3))
        found = summary["finalists"]
        verdicts.append(found["wins"])
        flatteries += [each["values"]["error"]["flattery"] for each in found["finalists"]]
    assert verdicts.count(False) >= 3
    assert sum(flattery > 0 for flattery in flatteries) >= 6


# Wrong requests


def test_finals_of_finals_and_more_trials_are_refused(toy: Any) -> None:
    sweep = search(toy)
    final = finals(toy, sweep)
    run(final)
    before = sorted(Path(toy.url).iterdir())
    with pytest.raises(InputError, match=f"finalists already; .*: --from {sweep.name}$"):
        finals(toy, final)
    with pytest.raises(InputError, match=f"--from {sweep.name} --top 3 --seeds 4$") as error:
        sweep_module.reopen(final.name, [f"storage.url={toy.url}", "trials=+2"], Quiet(), extend=True)
    assert "\n" not in str(error.value)
    assert sorted(Path(toy.url).iterdir()) == before


@pytest.mark.parametrize(
    ("top", "seeds", "overrides", "says"),
    [
        (0, 5, (), "--top 0: must be at least 1"),
        (3, 1, (), "--seeds 1: needs at least 2 seeds"),
        (3, 2, ("trials=9",), "trials=9: what exists keeps its configuration"),
        (3, 2, ("recipe.lr=0.1",), "what exists keeps its configuration"),
        (3, 2, ("backend=slurm",), "backend=slurm"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    toy: Any, top: int, seeds: int, overrides: tuple[str, ...], says: str
) -> None:
    sweep = search(toy, "trials=1")
    with pytest.raises(InputError) as error:
        finals(toy, sweep, top, seeds, *overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in Path(toy.url).iterdir()] == [sweep.name]


def test_a_sweep_without_a_completed_trial_has_no_finalists(toy: Any) -> None:
    toy.in_epoch = lambda run, epoch, config: {"error": math.nan}
    sweep = search(toy, "trials=2")
    with pytest.raises(InputError, match="none of its trials was completed; there is nothing to train again"):
        finals(toy, sweep)


# The command


def command(*arguments: str) -> int:
    """Runs `platform/train.py` in this process, as its own `__main__` would; returns the exit status."""
    spec = importlib.util.spec_from_file_location("command_train", ROOT / "platform" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = sys.argv
    sys.argv = ["train", *arguments]
    try:
        with pytest.raises(SystemExit) as raised:
            run_command(module.main)
    finally:
        sys.argv = before
    return int(raised.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--family", "toy", "--top", "3"], "--top goes with --from SWEEP; finalists that were stopped go on with"),
        (["--resume", "toy", "--seeds", "3"], "--seeds goes with --from SWEEP"),
        (["--from", "toy", "--top", "3", "--trial", "1"], "--trial is for one"),
        (["--from", "toy", "--seeds", "3", "--export", "best"], "--export is for one"),
        (["--from", "toy", "--top", "three"], "--top three: must be a whole number, such as --top 3"),
        (["--from", "toy", "--seeds", "1"], "--seeds 1: needs at least 2 seeds"),
        (["--from", "toy", "--top", "0"], "--top 0: must be at least 1"),
        (["--from", "toy", "--top", "2"], "toy: nothing of that name in sweeps"),
    ],
)
def test_the_command_complains_in_one_line(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_command_runs_finals_and_prints_a_table(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy.in_epoch = lambda run, epoch, config: {"error": config.lr + 1e-5 * noise(run.seed, config.lr)}
    sweep = search(toy)
    assert command("--from", sweep.name, "--seeds", "2", f"storage.url={toy.url}") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1] == (
        f"finalists of {sweep.name} on 2 fresh seeds; t-intervals at 95 %, differences at 95 % for all 2"
    )
    assert lines[2].split("  ")[0] == "trial"
    assert "error in the search" in lines[2]
    assert len([line for line in lines if " 2/2 " in line]) == 3
    assert "best mean" in lines[3]
    assert any(line.startswith("expect error ") and "; the search had " in line for line in lines)
    assert any(line.startswith(f"next:  python platform/train.py --from {sweep.name} --trial ") for line in lines)
    assert "paper's values" not in out
    assert "6/6 trials" in err


def test_the_command_prints_json_alone_and_says_how_many_by_default(
    toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = search(toy)
    assert command("--from", sweep.storage.root, "--top", "2", "--json", f"storage.url={toy.url}") == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["finalists"]["seeds"]) == 5
    assert len(summary["finalists"]["finalists"]) == 2
    assert summary["trials"] == {"complete": 10}
    assert summary["paper_values"] is None


def test_a_stop_by_hand_is_130_and_says_how_to_go_on(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = search(toy)
    toy.in_epoch = lambda run, epoch, config: signal_myself() if epoch.index == 0 else None
    assert command("--from", sweep.name, "--top", "2", f"storage.url={toy.url}") == 130
    out = capsys.readouterr().out
    assert "not decided yet: 0 of 10 runs have ended" in out
    assert f"next:  python platform/sweep.py --resume {sweep.name}-finals-" in out


def signal_myself() -> None:
    import signal

    signal.raise_signal(signal.SIGTERM)


def test_the_help_names_the_finalists() -> None:
    script = str(ROOT / "platform" / "train.py")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "--top 3 --seeds 5" in done.stdout
