"""Whole trials of PWFN: rounds that go on where they were, workers that agree, and what its settings do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pair import Pair

from pharos.checkpoint import Checkpoint, Checkpoints
from pharos.config import Plan, make_plan
from pharos.errors import InputError
from pharos.execute import execute
from pharos.recipe import build_config
from pharos.run import Run
from pharos.storage import Storage
from pharos.trial import Outcome, Report, TrialSpec
from trainables.pwfn.model import SIGMA
from trainables.pwfn.recipe import PwfnConfig

NETWORK = "learners/network/weights/"


def plan_of(*typed: str) -> Plan:
    return make_plan("pwfn", ["scale=tiny", "tracking=none", *typed])


def spec_of(plan: Plan, folder: Path, **changes: Any) -> TrialSpec:
    config = plan.trial_config({})
    spec = TrialSpec(
        sweep="pwfn",
        number=0,
        family="pwfn",
        params={},
        config=config,
        seed=4,
        folder=str(folder),
        max_fidelity=plan.recipe.fidelity(build_config(plan.recipe.Config, config)),
        objective="val/accuracy",
        checkpoint_seconds=0.0,
        threads=1,
    )
    return dataclasses.replace(spec, **changes)


def trained(folder: Path, *typed: str) -> list[Report]:
    reports: list[Report] = []
    ending = execute(spec_of(plan_of(*typed), folder), reports.append)
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    return reports


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(Storage(str(folder / "checkpoints"))).newest()
    assert found is not None
    return found


def curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Report]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(folder)


def test_each_round_fixes_its_share_and_in_the_end_all_weights_have_a_centre(whole: tuple[Path, list[Report]]) -> None:
    folder, reports = whole
    rounds = [report.metrics for report in reports if "round/fraction" in report.metrics]
    assert [metrics["round/fraction"] for metrics in rounds] == pytest.approx([1 / 3, 2 / 3, 1])
    saved = newest(folder)
    masks = [name for name in saved.names(NETWORK) if name.endswith("_mask")]
    assert masks
    assert all(saved.tensor(NETWORK + name).all() for name in masks)
    values = torch.cat([saved.tensor(NETWORK + name.replace("_mask", "_value")).flatten() for name in masks])
    assert len(values.unique()) == reports[-1].metrics["unique"]
    assert torch.equal(values * 2**7, (values * 2**7).round())


@pytest.mark.parametrize("after", [2, 3, 4])
def test_a_trial_goes_on_from_any_round_with_the_numbers_it_would_have_had(
    whole: tuple[Path, list[Report]], tmp_path: Path, after: int
) -> None:
    runs: list[Run] = []

    class Killed(BaseException):
        """Not an Exception, so that nothing of the trial is recorded, as after a kill."""

    def die(report: Report) -> None:
        assert runs[0]._saver is not None
        assert runs[0]._saver.wait(30)
        if report.fidelity == after + 1:
            raise Killed

    spec = spec_of(plan_of(), tmp_path)
    with pytest.raises(Killed):
        execute(spec, die, runs.append)
    assert newest(tmp_path).state["fidelity"] == after
    assert execute(spec, lambda report: None).outcome == Outcome.COMPLETE
    assert curve(tmp_path) == curve(whole[0])
    ours, theirs = newest(tmp_path), newest(whole[0])
    for name in theirs.names(NETWORK):
        assert torch.equal(ours.tensor(NETWORK + name), theirs.tensor(NETWORK + name)), name


def test_two_workers_under_zero_2_fix_the_same_weights_and_have_the_same_sigmas(
    whole: tuple[Path, list[Report]], pair: Pair, tmp_path: Path
) -> None:
    # Each round compares what both workers hold, bit for bit, and would fail.
    engine = dataclasses.asdict(plan_of("engine=deepspeed", "engine.zero=2").settings.engine)
    ending, _ = pair.train(spec_of(plan_of(), tmp_path, engine=engine))
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    ours, theirs = newest(tmp_path), newest(whole[0])
    assert ours.world_size == 2
    for name in theirs.names(NETWORK):
        a, b = ours.tensor(NETWORK + name), theirs.tensor(NETWORK + name)
        if name.endswith(("_mask", "_value")) and SIGMA not in name:
            assert torch.equal(a, b), name
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_the_regulariser_raises_sigmas_by_its_strength(tmp_path: Path) -> None:
    def mean(reg: float, *typed: str) -> float:
        reports = trained(tmp_path / f"{reg}{typed}", f"recipe.reg={reg}", "recipe.optim.clip_norm=0", *typed)
        return reports[-1].metrics["round/sigma/mean"]

    means = [mean(reg) for reg in (0.0, 5.0)]
    assert means[1] > 2 * means[0]
    assert mean(5.0, "recipe.reg_form=none") == means[0]


@pytest.mark.parametrize(
    "typed",
    [
        ["recipe.train_mode=mu_then_sigma"],
        ["recipe.join=allow_retraining", "recipe.sigma_mode=permuted", "recipe.bn_recalibrate=true"],
        ["recipe.recluster=free_only", "recipe.sigma_mode=layer_mean"],
        ["recipe.sigma_init=const", "recipe.reg_form=constant", "recipe.delta_end=0.5", "recipe.sigma_mode=const"],
        ["engine.activation_checkpointing=true", "engine.accumulation=2"],
    ],
    ids=lambda typed: " ".join(typed).replace("recipe.", ""),
)
def test_other_settings_train_to_the_end(typed: list[str], tmp_path: Path) -> None:
    plan = plan_of(*typed)
    reports: list[Report] = []
    engine = dataclasses.asdict(plan.settings.engine)
    ending = execute(spec_of(plan, tmp_path, engine=engine), reports.append)
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    assert reports[-1].fidelity == plan.recipe.fidelity(plan.build_config())
    assert reports[-1].metrics["round/fraction"] == 1


def test_without_a_bayesian_network_sigmas_stay_where_they_start(tmp_path: Path) -> None:
    figures = []
    for folder, rate in (("slow", 0.001), ("fast", 0.01)):
        reports = trained(tmp_path / folder, "recipe.train_mode=no_bnn", f"recipe.optim.lr={rate}")
        figures.append(next(r.metrics["round/sigma/mean"] for r in reports if "round/sigma/mean" in r.metrics))
    assert figures[0] == figures[1]


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_weights_that_run_away_end_as_diverged_before_they_are_fixed(tmp_path: Path, rate: float) -> None:
    spec = spec_of(plan_of(f"recipe.optim.lr={rate}", "recipe.optim.clip_norm=0"), tmp_path)
    ending = execute(spec, lambda report: None)
    assert ending.outcome == Outcome.DIVERGED, ending.reason
    assert "became" in ending.reason


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("recipe.inc=1", "recipe.inc=1"),
        ("recipe.join=mean_mu", "recipe.join=mean_mu must be one of std_mu"),
        ("recipe.sigma_scale=0.1", "recipe.sigma_scale=0.1 must be at most cut_off=0.05"),
        ("recipe.delta_start=0", "recipe.delta_start=0.0 must be above 0"),
        ("recipe.start_fraction=0", "recipe.start_fraction=0.0"),
        ("recipe.max_powl=7", "recipe.max_powl=7 must be 1 to 6"),
        ("recipe.b=0", "recipe.b=0 must be 1 to 16"),
        ("recipe.rest_epochs=0", "recipe.rest_epochs=0 must be at least 1"),
        ("recipe.reg=-1", "recipe.reg=-1.0 must be at least 0"),
        ("recipe.optim.name=adam", "recipe.optim.name=adam moves sigmas"),
    ],
)
def test_an_impossible_value_is_one_line(typed: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        plan_of(typed)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_paper_s_settings_are_the_defaults() -> None:
    config = PwfnConfig()
    assert config.fractions == [0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0]
    assert (config.reg, config.cut_off, config.sigma_scale, config.b) == (2**-11, 0.05, 0.0025, 7)
    assert (config.optim.name, config.optim.lr, config.optim.clip_norm) == ("sgd", 1e-3, 1.0)
    assert plan_of().recipe.fidelity(config) == 1 + 1 + 9 * 3


def test_the_study_of_the_regulariser_starts_with_the_recipe_s_values_and_the_grid_of_the_authors_code() -> None:
    plan = plan_of("space=regularisation", "scale=paper")
    assert [objective.metric for objective in plan.settings.objectives] == ["val/accuracy", "unique"]
    first = plan.first_trials
    assert first[0]["recipe.reg"] == 2**-11
    grid = [0.0 if trial["recipe.reg_form"] == "none" else trial["recipe.reg"] for trial in first[1:]]
    assert grid == [0, 2**-12, 2**-9, 2**-7, 2**-5, 2**-3, 2**-1]
    assert "recipe.reg" not in first[1]
    for trial in first:  # all else as it is
        assert {name: value for name, value in trial.items() if "reg" not in name and "cut_off" not in name} == {
            name: value for name, value in first[0].items() if "reg" not in name and "cut_off" not in name
        }


def test_both_studies_have_two_objectives_and_trials_of_one_length() -> None:
    for space in ("default", "regularisation"):
        plan = plan_of(f"space={space}")
        assert [objective.mode for objective in plan.settings.objectives] == ["max", "min"]
        lengths = {plan.recipe.fidelity(plan.build_config(trial)) for trial in plan.first_trials}
        assert len(lengths) == 1
