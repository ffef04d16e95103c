"""The contract that every family keeps; it finds the families by itself, so that a new one is tested unasked."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pair import Pair

from pharos.checkpoint import Checkpoints
from pharos.config import make_plan
from pharos.execute import execute
from pharos.families import ROOT, families, load_recipe
from pharos.plan import Plan, flatten
from pharos.recipe import build_config
from pharos.run import Run
from pharos.storage import Storage
from pharos.trial import Outcome, Report, TrialSpec

FILES = ("__init__.py", "recipe.py", "model.py", "data.py", "README.md")

# Stages 2 and 3 of ZeRO do all that 0 and 1 do, so that one family is enough for these.
ENGINES = {"torch": {}, **{f"zero{stage}": {"name": "deepspeed", "zero": stage} for stage in (2, 3)}}
OTHER_ENGINES = {f"zero{stage}": {"name": "deepspeed", "zero": stage} for stage in (0, 1)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every family goes through every test."""
    if "engine" not in metafunc.fixturenames:
        metafunc.parametrize("family", families())
        return
    cases = [(family, name, engine) for family in families() for name, engine in ENGINES.items()]
    cases += [(families()[0], name, engine) for name, engine in OTHER_ENGINES.items()]
    ids = [f"{name}-{family}" for family, name, _ in cases]
    metafunc.parametrize(("family", "engine"), [(family, engine) for family, _, engine in cases], ids=ids)


@pytest.fixture
def plan(family: str) -> Plan:
    return make_plan(family, ["scale=tiny", "tracking=none"])


def spec_of(plan: Plan, folder: Path, config: dict[str, Any] | None = None) -> TrialSpec:
    config = config or plan.trial_config({})
    return TrialSpec(
        sweep="contract",
        number=0,
        family=plan.settings.family,
        params={},
        config=config,
        seed=3,
        folder=str(folder),
        max_fidelity=plan.recipe.fidelity(build_config(plan.recipe.Config, config)),
        objective=plan.settings.objectives.first.metric,
        checkpoint_seconds=0.0,
        threads=1,
    )


def curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_every_family_has_the_same_files(family: str) -> None:
    missing = [name for name in FILES if not (ROOT / "trainables" / family / name).is_file()]
    assert not missing


def test_every_setting_is_documented_where_it_is_defined(family: str) -> None:
    config = load_recipe(family).Config
    body = ast.parse(inspect.getsource(config)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert documented, f"{ast.unparse(field.target)} has no docstring"


def test_it_has_the_three_scales_and_the_paper_s_is_its_defaults(family: str) -> None:
    scales = load_recipe(family).scales
    assert {"small", "paper", "tiny"} <= set(scales)
    assert not scales["paper"]


@pytest.mark.parametrize("scale", ["small", "paper", "tiny"])
def test_the_first_trial_is_the_recipe_s_own_values(family: str, scale: str) -> None:
    plan = make_plan(family, [f"scale={scale}", "tracking=none"])
    own = plan.defaults
    assert plan.first_trials[0] == {name: own[name] for name in plan.first_trials[0]}
    assert plan.recipe.fidelity(plan.build_config()) >= 1


def test_the_paper_scale_searches_around_the_paper_s_values(family: str) -> None:
    plan = make_plan(family, ["scale=paper", "tracking=none"])
    assert plan.config == flatten_to_nested(dataclasses.asdict(load_recipe(family).Config()))


def flatten_to_nested(config: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config))


def test_a_specification_crosses_a_process_border_as_plain_data(plan: Plan, tmp_path: Path) -> None:
    spec = spec_of(plan, tmp_path)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert json.loads(json.dumps(dataclasses.asdict(spec))) == dataclasses.asdict(spec)


def test_a_tiny_trial_completes_and_reports_its_objective_up_to_its_whole_fidelity(plan: Plan, tmp_path: Path) -> None:
    reports: list[Report] = []
    spec = spec_of(plan, tmp_path)
    ending = execute(spec, reports.append)
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    assert reports[-1].fidelity == spec.max_fidelity == ending.fidelity
    # A phase that comes before what is judged has nothing to say of it.
    values = [report.metrics.get(spec.objective) for report in reports]
    assert values[-1] is not None
    assert all(math.isfinite(value) for value in values if value is not None)
    assert [row["fidelity"] for row in curve(tmp_path)] == sorted({report.fidelity for report in reports})


def test_every_parameter_is_trained(plan: Plan, tmp_path: Path) -> None:
    execute(spec_of(plan, tmp_path), lambda report: None)
    newest = Checkpoints(Storage(str(tmp_path / "checkpoints"))).newest()
    assert newest is not None
    for name in newest.state["learners"]:
        moments = newest.tensors(f"learners/{name}/optimizer/")
        means = {key: value for key, value in moments.items() if key.endswith(("/exp_avg", "/momentum_buffer"))}
        assert means, f"{name} was never stepped"
        for key, value in means.items():
            assert value.abs().sum() > 0, f"{key} of {name} never had a gradient"


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny trial that nothing has interrupted."""

    @functools.cache
    def train(family: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{family}-whole")
        execute(spec_of(make_plan(family, ["scale=tiny", "tracking=none"]), folder), lambda report: None)
        return folder

    return train


@pytest.fixture
def whole(family: str, whole_runs: Callable[[str], Path]) -> Path:
    return whole_runs(family)


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_a_trial_that_lost_its_process_gives_the_numbers_it_would_have_given(
    plan: Plan, whole: Path, tmp_path: Path, stop_after: int
) -> None:
    broken = tmp_path / "broken"

    seen: list[Report] = []
    runs: list[Run] = []

    class Killed(BaseException):
        """Not an Exception, so that nothing of the trial is recorded, as after a kill."""

    def die(report: Report) -> None:
        seen.append(report)
        assert runs[0]._saver is not None
        assert runs[0]._saver.wait(30)  # each epoch before this one has its checkpoint
        if len(seen) == stop_after:
            raise Killed

    with pytest.raises(Killed):
        execute(spec_of(plan, broken), die, runs.append)
    ending = execute(spec_of(plan, broken), seen.append)

    assert ending.outcome == Outcome.COMPLETE
    assert curve(broken) == curve(whole)
    ours, theirs = (Checkpoints(Storage(str(f / "checkpoints"))).newest() for f in (broken, whole))
    assert ours is not None
    assert theirs is not None
    weights = [name for name in theirs.names("") if "/weights/" in name]
    assert {name.split("/")[1] for name in weights} == set(theirs.state["learners"])
    for name in weights:
        assert torch.equal(ours.tensor(name), theirs.tensor(name)), name


def test_an_interruption_saves_and_the_trial_goes_on_where_it_was(plan: Plan, whole: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    runs: list[Run] = []
    first = execute(spec_of(plan, stopped), lambda report: runs[0].interrupt(), runs.append)
    assert first.outcome == Outcome.INTERRUPTED
    second = execute(spec_of(plan, stopped), lambda report: None)
    assert second.outcome == Outcome.COMPLETE
    assert second.lost_seconds == 0
    assert curve(stopped) == curve(whole)


def test_absurd_learning_rates_end_as_diverged_and_not_as_a_crash(plan: Plan, tmp_path: Path) -> None:
    config = plan.trial_config({name: 1e30 for name in plan.defaults if name.endswith(".lr")})
    ending = execute(spec_of(plan, tmp_path, config), lambda report: None)
    assert ending.outcome == Outcome.DIVERGED
    assert "became" in ending.reason


def test_it_trains_in_bf16(plan: Plan, tmp_path: Path) -> None:
    ending = execute(dataclasses.replace(spec_of(plan, tmp_path), engine={"precision": "bf16"}), lambda report: None)
    assert ending.outcome == Outcome.COMPLETE, ending.reason


def test_settings_that_are_flat_names_exist(plan: Plan) -> None:
    names = flatten(plan.config, "recipe.")
    assert set(plan.space.names) <= set(names)


# Steps enough for a difference to grow: 20 and more in each family's loops.
SMALL_BATCHES = {"batch_size": 8}


def losses(reports: list[Report]) -> list[dict[str, float]]:
    return [{k: v for k, v in report.metrics.items() if k.startswith("loss/")} for report in reports]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TrialSpec, list[Report]]]:
    """What a family's trial of small batches reports with one worker."""

    @functools.cache
    def train(family: str) -> tuple[TrialSpec, list[Report]]:
        plan = make_plan(family, ["scale=tiny", "tracking=none"])
        spec = spec_of(plan, tmp_path_factory.mktemp(family), {**plan.trial_config({}), **SMALL_BATCHES})
        reports: list[Report] = []
        assert execute(spec, reports.append).outcome == Outcome.COMPLETE
        return spec, reports

    return train


def test_two_workers_train_as_one_does(
    family: str,
    engine: dict[str, Any],
    one_worker: Callable[[str], tuple[TrialSpec, list[Report]]],
    pair: Pair,
    tmp_path: Path,
) -> None:
    spec, alone = one_worker(family)
    engine = dataclasses.asdict(make_plan(family, overrides(engine)).settings.engine)
    if engine["zero"] == 3:  # else no parameter of so small a model would leave its worker
        engine["deepspeed"]["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ending, together = pair.train(dataclasses.replace(spec, folder=str(tmp_path), engine=engine))
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    assert [report.fidelity for report in together] == [report.fidelity for report in alone]
    for ours, theirs in zip(losses(together), losses(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    # Whoever wrote it, the last checkpoint is the same model.
    written = [Checkpoints(Storage(f"{folder}/checkpoints")).newest() for folder in (tmp_path, spec.folder)]
    assert written[0] is not None
    assert written[1] is not None
    assert written[0].world_size == 2
    for name, value in written[1].tensors("learners/").items():
        torch.testing.assert_close(written[0].tensor(f"learners/{name}"), value, rtol=1e-3, atol=1e-5, msg=name)


def overrides(engine: dict[str, Any]) -> list[str]:
    typed = [f"engine={engine['name']}", f"engine.zero={engine['zero']}"] if engine else []
    return ["scale=tiny", "tracking=none", *typed]


def test_a_trial_that_is_only_tried_visits_every_loop_and_reports_its_objective(
    plan: Plan, whole: Path, tmp_path: Path
) -> None:
    newest = Checkpoints(Storage(str(whole / "checkpoints"))).newest()
    assert newest is not None
    spec = dataclasses.replace(spec_of(plan, tmp_path), probe=0.0)
    tried = execute(spec, lambda report: None)
    assert tried.outcome == Outcome.COMPLETE, tried.reason
    assert spec.objective in tried.metrics
    loops = {loop["name"]: loop for loop in tried.probe["loops"]}
    stages = {name.split(":")[0] for name in loops if ":" in name}  # a loop of loops
    assert set(newest.state["done"]) - stages == set(loops)
    for loop in loops.values():
        assert [seen["index"] for seen in loop["seen"]] == sorted({0, loop["epochs"] - 1})
