"""A plan is what was typed, resolved; what was typed wrongly is one line that says what would be right."""

import dataclasses
import importlib.util
import json
import re

import pytest
import yaml

from pharos.config import RUN_OVERRIDES, make_plan, reopen_plan
from pharos.engines.base import EngineConfig
from pharos.errors import InputError
from pharos.families import families, load_recipe, space_file, suggest
from pharos.plan import flatten
from pharos.settings import Settings


@pytest.fixture(autouse=True)
def _toy(toy):
    """Every test plans sweeps of the toy family."""


def plan(*overrides):
    return make_plan("toy", overrides)


def reread(plan):
    """As `sweep.yaml` gives it back."""
    return yaml.safe_load(yaml.safe_dump({**plan.to_dict(), "versions": {"python": "3"}}, sort_keys=False))


def parts(plan):
    return (plan.settings, plan.config, plan.space, plan.space.to_dict(), plan.first_trials, plan.generation)


def refused(*overrides):
    with pytest.raises(InputError) as error:
        plan(*overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_typed_is_the_embedded_default():
    made = plan()
    assert made.settings.family == "toy"
    assert (made.settings.trials, made.settings.seed, made.settings.backend) == (16, 0, "tune")
    assert (made.settings.scheduler.name, made.settings.sampler.name) == ("asha", "multifidelity")
    assert (made.settings.tracking.name, made.settings.storage.url) == ("wandb", "sweeps")
    assert made.settings.objective == [{"metric": "error", "mode": "min", "reference": None}]
    assert (made.settings.objectives.first.metric, made.settings.objectives.first.mode) == ("error", "min")
    assert (made.settings.constraints, made.settings.bounds, made.settings.warm_start) == ({}, [], [])
    assert (made.settings.hours, made.settings.gpu_hours, made.settings.stop_at, made.settings.plateau) == (None,) * 4
    assert made.generation == 0
    assert made.config == {
        "lr": 0.1,
        "kind": "plain",
        "noise": 0.0,
        "dropout": 0.1,
        "width": 4,
        "epochs": 4,
        "batch_size": 16,
    }
    assert set(made.space.names) == {"recipe.lr", "recipe.kind", "recipe.noise"}


def test_the_schema_and_the_files_agree_on_every_default():
    composed = plan().settings
    written = Settings(family="toy", objective=composed.objective)
    written.tracking.name = composed.tracking.name  # the file that sweep.yaml chooses
    assert composed == written


def test_the_papers_values_come_first_then_the_files_first_trials():
    assert plan().first_trials == [
        {"recipe.lr": 0.1, "recipe.kind": "plain"},
        {"recipe.lr": 0.1, "recipe.kind": "noisy", "recipe.noise": 0.25},
    ]
    assert plan("first_trials=[]").first_trials == []
    assert plan("recipe.lr=0.2").first_trials[0] == {"recipe.kind": "plain"}


def test_first_trials_that_pinning_makes_equal_are_run_once():
    assert plan("recipe.kind=plain").first_trials == [{"recipe.lr": 0.1}]


def test_settings_and_groups_are_overridden():
    made = plan(
        "trials=3", "scheduler=none", "sampler.startup=2", "tracking=none", "resources.gpus_per_worker=0.5", "seed=9"
    )
    assert (made.settings.trials, made.settings.seed) == (3, 9)
    assert (made.settings.scheduler.name, made.settings.sampler.startup) == ("none", 2)
    assert (made.settings.tracking.name, made.settings.resources.gpus_per_worker) == ("none", 0.5)


def test_a_pinned_value_leaves_the_search_and_enters_the_configuration():
    made = plan("recipe.lr=0.02", "recipe.width=8")
    assert set(made.space.names) == {"recipe.kind", "recipe.noise"}
    assert "recipe.lr" not in made.space.to_dict()
    assert (made.config["lr"], made.config["width"]) == (0.02, 8)


def test_a_range_widens_replaces_or_adds_a_dimension():
    made = plan("recipe.lr=interval(0.01, 1)", "recipe.width=choice(4, 8)", "recipe.noise=interval(0, 2)")
    by_name = {dimension.name: dimension for dimension in made.space.dimensions}
    assert set(by_name) == {"recipe.lr", "recipe.kind", "recipe.noise", "recipe.width"}
    assert (by_name["recipe.lr"].distribution.high, by_name["recipe.lr"].distribution.log) == (1.0, False)
    assert by_name["recipe.width"].distribution.choices == (4, 8)
    assert by_name["recipe.noise"].distribution.high == 2.0
    assert by_name["recipe.noise"].when == {"recipe.kind": ("noisy",)}
    assert made.first_trials[0]["recipe.width"] == 4


def test_scales_change_the_recipes_values_and_what_is_typed_wins():
    assert plan("scale=tiny").config["epochs"] == 2
    assert plan("scale=tiny", "recipe.epochs=3").config["epochs"] == 3
    assert plan("scale=tiny").settings.scale == "tiny"


def test_data_is_short_for_the_recipes_data():
    made = make_plan_tipsy("data.train_subjects=3")
    assert made.config["data"]["train_subjects"] == 3
    with pytest.raises(InputError, match=r"recipe\.data\.train_subject: .*did you mean recipe\.data\.train_subjects\?"):
        make_plan_tipsy("data.train_subject=3")


def make_plan_tipsy(*overrides):
    """The one family that there is, for what the toy family does not have."""
    from pathlib import Path

    from pharos import families as module

    checkout = Path(module.__file__).parents[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROOT", checkout)
        return make_plan("tipsy", ["scale=tiny", *overrides])


def test_a_trials_configuration_has_its_values_in_place_and_leaves_the_plan_alone():
    made = plan()
    config = made.trial_config({"recipe.lr": 0.3, "recipe.kind": "noisy"})
    assert (config["lr"], config["kind"], config["epochs"]) == (0.3, "noisy", 4)
    assert made.config["lr"] == 0.1
    assert type(made.build_config({"recipe.lr": 0.3})).__name__ == "ToyConfig"
    assert made.defaults["recipe.lr"] == 0.1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trails=3", "trails: no such setting; did you mean trials?"),
        ("recipe.widht=3", "recipe.widht: no such setting; did you mean recipe.width?"),
        ("scheduler.gracee=0.1", "did you mean scheduler.grace?"),
        ("recipe.lrr=interval(0, 1)", "recipe.lrr is not a value of toy; did you mean recipe.lr?"),
        ("scheduler=ashaa", "scheduler=ashaa: did you mean asha?"),
        ("scale=tinny", "scale=tinny: did you mean tiny?"),
        ("space=defalt", "space=defalt: toy has no such search space; did you mean default?"),
        ("sampler.name=tpee", "sampler.name=tpee: did you mean tpe?"),
        ("objective.mode=minimum", "objective.mode=minimum: did you mean min?"),
        ("engine.precision=bf15", "engine.precision=bf15: did you mean bf16?"),
        ("backend=ray", "backend=ray: choose from tune, local"),
        ("engine=deepsped", "engine=deepsped: did you mean deepspeed?"),
        ("engine.name=torhc", "engine.name=torhc: did you mean torch?"),
        ("resources.placement=spred", "resources.placement=spred: did you mean spread?"),
        ("resources.gpus=1", "resources.gpus: no such setting; did you mean resources."),
    ],
)
def test_a_typo_gets_a_suggestion(override, words):
    assert words in refused(override)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("trials=many", "trials"),
        ("trials=1.5", "trials"),
        ("seed=null", "seed"),
        ("resources.gpus_per_worker=one", "resources.gpus_per_worker"),
        ("recipe.epochs=2.5", "recipe.epochs"),
        ("recipe.lr=fast", "recipe.lr"),
        ("recipe.lr=[1,2]", "recipe.lr"),
        ("scheduler.grace=none", "scheduler.grace"),
        ("resources.workers=1.5", "resources.workers"),
        ("resources.workers=null", "resources.workers"),
        ("resources.hang_seconds=long", "resources.hang_seconds"),
        ("storage.keep_last=all", "storage.keep_last"),
        ("storage.keep_trials=1.5", "storage.keep_trials"),
        ("storage.options=endpoint", "storage.options"),
        ("engine.zero=two", "engine.zero"),
        ("engine.accumulation=0.5", "engine.accumulation"),
        ("engine.offload=maybe", "engine.offload"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_line_that_names_it(override, name):
    assert name in refused(override)


@pytest.mark.parametrize(
    "override",
    [
        "trials=0",
        "retries=-1",
        "checkpoint_seconds=-1",
        "storage.patience=0.5",
        "storage.mirror_seconds=0",
        "storage.keep_last=0",
        "storage.keep_best=-1",
        "storage.keep_every=-1",
        "storage.keep_trials=0",
        "storage.cache_gb=-1",
        "scheduler.reduction=1",
        "scheduler.grace=0",
        "scheduler.grace=1.5",
        "sampler.startup=0",
        "resources.cpus_per_worker=0",
        "resources.gpus_per_worker=-1",
        "resources.concurrency=0",
        "resources.cluster_cpus=0",
        "resources.workers=0",
        "resources.hang_seconds=0.5",
        "engine.zero=-1",
        "engine.accumulation=0",
    ],
)
def test_a_value_out_of_range_is_one_line_that_names_it(override):
    name, _, value = override.partition("=")
    assert re.match(rf"{re.escape(name)}={re.escape(value)}(\.0)?: ", refused(override))


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("storage.options={key: hunter22}", "storage.options.key"),
        ("storage.options={secret: hunter22}", "storage.options.secret"),
        ("storage.options={token: hunter22}", "storage.options.token"),
        ("storage.options={account_key: hunter22}", "storage.options.account_key"),
        ("storage.options={client_kwargs: {aws_secret_access_key: hunter22}}", "storage.options.aws_secret_access_key"),
        ("storage.options={client_kwargs: {proxy: 'http://lab:hunter22@proxy'}}", "storage.options.proxy"),
        ("study.storage='postgresql://lab:hunter22@db/studies'", "study.storage=postgresql://lab:***@db/studies"),
        ("study.storage='mysql://lab@db/studies?passwd=hunter22'", "study.storage=mysql://lab@db/studies"),
        ("study.storage='no URL, hunter22'", "study.storage"),
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_shown(override, name):
    line = refused(override)
    assert line.startswith(f"{name}: ")
    assert "hunter22" not in line


def test_where_a_store_is_and_who_asks_are_no_secrets():
    options = {"endpoint_url": "http://minio:9000", "profile": "lab", "client_kwargs": {"region_name": "eu-1"}}
    typed = 'storage.options={endpoint_url: "http://minio:9000", profile: lab, client_kwargs: {region_name: eu-1}}'
    made = plan(typed, "study.storage='postgresql://lab@db/studies'")
    assert made.settings.storage.options == options
    assert made.settings.study.storage == "postgresql://lab@db/studies"
    assert parts(reopen_plan(reread(made), [])) == parts(made)


@pytest.mark.parametrize(
    "override", ["+x=1", "++x=1", "~recipe.lr=3", "+recipe.width=range(2, 9)", "~recipe.lr=range(1,3)"]
)
def test_nothing_is_added_or_taken_away(override):
    assert refused(override) == f"{override}: only name=value can be given; nothing is added or taken away"


@pytest.mark.parametrize("override", ["~x", "trials", "--trials", ""])
def test_what_is_no_override_is_shown_one(override):
    assert refused(override).startswith(f"{override}: not an override; write name=value")


@pytest.mark.parametrize("override", ["trials=range(1, 5)", "seed=1,2", "scheduler=asha,none", "width=range(1, 5)"])
def test_only_the_recipes_values_can_be_searched(override):
    assert "only the recipe's values can be searched" in refused(override)


def test_the_family_is_no_setting():
    assert refused("family=other") == "family=other: the family is named by --family"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["resources.workers=2", "backend=local"],
            "resources.workers=2 needs backend=tune: backend=local is this process alone",
        ),
        (
            ["resources.workers=2", "resources.gpus_per_worker=0.5"],
            "resources.gpus_per_worker=0.5: only trials of one worker can share a GPU",
        ),
        (
            ["resources.gpus_per_worker=1.5"],
            "resources.gpus_per_worker=1.5: only trials of one worker can share a GPU",
        ),
        (
            ["resources.gpus_per_worker=2"],
            "resources.gpus_per_worker=2: a worker uses one GPU; ask for more workers instead",
        ),
        (["engine=deepspeed", "engine.zero=4"], "engine.zero=4: ZeRO has the stages 0, 1, 2 and 3"),
        (["engine.zero=1"], "engine.zero, engine.offload and engine.config are DeepSpeed's: add engine=deepspeed"),
        (
            ["engine.offload=true"],
            "engine.zero, engine.offload and engine.config are DeepSpeed's: add engine=deepspeed",
        ),
        (
            ["engine.config=x.json"],
            "engine.zero, engine.offload and engine.config are DeepSpeed's: add engine=deepspeed",
        ),
        (
            ["engine=deepspeed", "engine.precision=fp16", "engine.zero=0"],
            "engine.precision=fp16 needs engine.zero=1, 2 or 3; without ZeRO take engine=torch",
        ),
        (
            ["engine=deepspeed", "engine.offload=true", "engine.zero=0"],
            "engine.offload needs engine.zero=1, 2 or 3: without ZeRO the optimiser stays where it is",
        ),
    ],
)
def test_what_workers_or_an_engine_cannot_do_is_refused_in_one_line(overrides, line):
    assert refused(*overrides) == line


@pytest.mark.parametrize(
    "overrides",
    [
        ["resources.workers=8", "resources.gpus_per_worker=1", "resources.placement=spread"],
        ["resources.workers=2", "resources.gpus_per_worker=0", "resources.placement=strict_pack"],
        ["resources.gpus_per_worker=0.25", "backend=local"],
        ["resources.hang_seconds=1"],
        ["engine.precision=fp16"],
        ["engine=deepspeed", "engine.zero=0", "engine.precision=bf16"],
        ["engine=deepspeed", "engine.zero=2", "engine.precision=fp16", "engine.offload=true"],
        ["engine=deepspeed", "resources.workers=2", "engine.accumulation=4", "engine.activation_checkpointing=true"],
    ],
)
def test_what_they_can_do_is_not(overrides):
    plan(*overrides)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_each_zero_stage_comes_with_its_file(zero):
    engine = plan("engine=deepspeed", f"engine.zero={zero}").settings.engine
    assert engine.deepspeed["zero_optimization"]["stage"] == zero
    assert (engine.name, engine.zero, engine.config) == ("deepspeed", zero, None)


def test_the_engine_torch_has_no_file_and_deepspeed_begins_with_the_first_stage():
    assert plan().settings.engine == EngineConfig()
    engine = plan("engine=deepspeed").settings.engine
    assert engine == EngineConfig("deepspeed", zero=1, deepspeed=engine.deepspeed)
    assert engine.deepspeed["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"zero: 1", "not JSON (Expecting value"),
        (b"", "not JSON (Expecting value"),
        (b"\xff{}", "not JSON ("),
        (b"[1]", "must be an object, and zero_optimization in it one too"),
        (b'{"zero_optimization": 2}', "must be an object, and zero_optimization in it one too"),
        (b'{"optimizer": {"type": "Adam"}}', "optimizer is the recipe's; take it out"),
        (b'{"scheduler": {"type": "WarmupLR"}}', "scheduler is the recipe's; take it out"),
    ],
)
def test_a_deepspeed_file_that_is_not_what_it_should_be_is_one_line_that_names_it(tmp_path, content, words):
    file = tmp_path / "ds.json"
    if content is not None:
        file.write_bytes(content)
    message = refused("engine=deepspeed", f"engine.config={file}")
    assert message.startswith(f"engine.config={file}: {words}")


def test_a_folder_is_no_deepspeed_file(tmp_path):
    message = refused("engine=deepspeed", f"engine.config={tmp_path}")
    assert message == f"engine.config={tmp_path}: cannot be read (Is a directory)"


def test_without_deepspeed_its_engine_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: find(name) if name != "deepspeed" else None)
    assert refused("engine=deepspeed").startswith("engine=deepspeed needs DeepSpeed: pip install")
    plan()


@pytest.fixture
def deepspeed_file(tmp_path):
    """A file of one's own; it is written anew by what a test calls it with."""
    file = tmp_path / "ds.json"

    def write(bucket):
        content = {"zero_optimization": {"reduce_bucket_size": bucket}, "communication_data_type": "fp32"}
        file.write_text(json.dumps(content))
        return content

    write.path = file
    return write


def test_a_sweep_keeps_what_its_deepspeed_file_held_when_it_started(deepspeed_file):
    content = deepspeed_file(1000)
    made = plan("engine=deepspeed", f"engine.config={deepspeed_file.path}")
    assert made.to_dict()["settings"]["engine"]["deepspeed"] == content
    document = reread(made)
    deepspeed_file(2000)
    assert reopen_plan(document, ["trials=20", "resources.workers=2"]).settings.engine.deepspeed == content
    assert reopen_plan(document, ["seed=4"], RUN_OVERRIDES).settings.engine.deepspeed == content
    deepspeed_file.path.unlink()
    assert reopen_plan(document, []).settings.engine.deepspeed == content


def test_a_file_is_read_again_where_the_engine_s_settings_change(deepspeed_file):
    deepspeed_file(1000)
    document = reread(plan("engine=deepspeed", f"engine.config={deepspeed_file.path}"))
    other = deepspeed_file(2000)
    assert reopen_plan(document, ["engine.zero=2"], RUN_OVERRIDES).settings.engine.deepspeed == other
    deepspeed_file.path.unlink()
    with pytest.raises(InputError, match="cannot be read") as error:
        reopen_plan(document, ["engine.zero=2"], RUN_OVERRIDES)
    assert "\n" not in str(error.value)
    engine = reopen_plan(document, ["engine.zero=3", "engine.config=null"], RUN_OVERRIDES).settings.engine
    assert engine.deepspeed["zero_optimization"]["stage"] == 3
    with pytest.raises(InputError, match="what exists keeps its configuration"):
        reopen_plan(document, ["engine.zero=2"])


def test_a_trial_s_specification_has_what_each_of_its_workers_gets():
    made = plan(
        "resources.workers=2",
        "resources.cpus_per_worker=3",
        "resources.gpus_per_worker=1",
        "engine=deepspeed",
        "engine.zero=2",
    )
    spec = made.trial_spec("sweep", 0, {}, folder="folder", tracking_folder="tracking")
    assert (spec.threads, spec.gpus) == (3, 1.0)
    assert EngineConfig(**spec.engine) == made.settings.engine
    assert json.loads(json.dumps(dataclasses.asdict(spec))) == dataclasses.asdict(spec)


def test_trials_are_added_by_extend_alone():
    assert refused("trials=+4") == "trials=+4: only --extend adds trials; a new sweep takes trials=4"


def test_a_space_with_nothing_left_is_refused():
    assert "nothing is left to search" in refused("recipe.lr=0.1", "recipe.kind=plain", "recipe.noise=0")


def test_a_first_trial_outside_the_space_is_refused_with_the_way_out():
    message = refused("recipe.lr=interval(0.2, 0.4)")
    assert "recipe.lr=0.1, which is the configuration's value, is not in [0.2, 0.4]" in message
    assert "first_trials=[]" in message
    plan("recipe.lr=interval(0.2, 0.4)", "first_trials=[]")
    plan("recipe.lr=interval(0.05, 0.4)")


def test_first_trials_that_are_typed_replace_those_of_the_file():
    plain = {"recipe.lr": 0.1, "recipe.kind": "plain"}
    made = plan("first_trials=[{recipe.lr: 0.3}, {}, {recipe.kind: noisy, recipe.noise: 0.5}]")
    assert made.first_trials == [
        {**plain, "recipe.lr": 0.3},
        plain,
        {"recipe.lr": 0.1, "recipe.kind": "noisy", "recipe.noise": 0.5},
    ]
    assert plan("first_trials=[{}, {recipe.lr: 0.1}]").first_trials == [plain]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("[{recipe.l: 0.3}]", "recipe.l is no dimension of the search; did you mean recipe.lr?"),
        ("[{recipe.lr: 3}]", "first trial outside the space: recipe.lr=3 is not in [0.001, 0.5]"),
        ("[0.3]", "write first_trials=[{recipe.NAME: VALUE}"),
        ("none", "write first_trials=[{recipe.NAME: VALUE}"),
    ],
)
def test_first_trials_that_are_typed_wrongly_are_one_line(typed, words):
    assert words in refused(f"first_trials={typed}")


def test_the_papers_values_are_those_of_the_configuration():
    made = plan()
    assert made.is_paper_trial({"recipe.lr": 0.1, "recipe.kind": "plain"})
    assert not made.is_paper_trial({"recipe.lr": 0.2, "recipe.kind": "plain"})
    assert not made.is_paper_trial({"recipe.lr": 0.1, "recipe.kind": "noisy", "recipe.noise": 0.0})
    assert plan("recipe.lr=0.2", "first_trials=[]").is_paper_trial({"recipe.kind": "plain"})


TWO = "objective=[{metric: error, mode: min}, {metric: size, mode: max, reference: 2.5}]"


def test_several_objectives_are_typed_as_a_list_or_come_from_the_file(toy):
    objectives = [
        {"metric": "error", "mode": "min", "reference": None},
        {"metric": "size", "mode": "max", "reference": 2.5},
    ]
    assert plan(TWO).settings.objective == objectives
    assert parts(reopen_plan(reread(plan(TWO)), [])) == parts(plan(TWO))
    text = toy.space_file.read_text()
    toy.space_file.write_text(text.replace("objective: {", "objective: [{metric: loss}, {").replace("min}", "max}]"))
    made = plan().settings
    assert [(each["metric"], each["mode"]) for each in made.objective] == [("loss", "min"), ("error", "max")]
    assert plan(TWO).settings.objective == objectives
    one = plan("objective={metric: size, mode: max}").settings.objectives
    assert (len(one), one.first.metric, one.first.mode) == (1, "size", "max")
    assert "several objectives: write all of them" in refused("objective.mode=max")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective=[]"], "objective: none is given"),
        (["objective={}"], "objective: none is given"),
        (["objective=null"], "objective: none is given"),
        (["objective=[{metric: error}, {metric: error, mode: max}]"], "error is named twice"),
        (["objective=[{metric: error, mode: lowest}]"], "objective.mode=lowest"),
        (["objective=[{metric: error, sense: min}]"], "write {metric: NAME, mode: min|max}"),
        (["objective=[error, size]"], "objective=error: write {metric: NAME"),
        (["objective={metric: error, reference: worst}"], "`reference` a number"),
        ([TWO, "stop_at=0.5"], "stop_at is for one objective"),
        ([TWO, "sampler=cmaes"], "sampler=cmaes takes one objective"),
        ([TWO, "scheduler=median"], "scheduler=median compares one objective"),
        (["warm_start=toy-2026-01-01-abcd"], "write warm_start=auto, or names as [SWEEP, SWEEP]"),
        (["constraints={peak_memory_gb: 20}"], 'a bound is written like "<= 20"'),
        (["constraints={peak_memory_gb: '< 20'}"], 'a bound is written like "<= 20"'),
        (["constraints={peak_memory_gb: '<= much'}"], 'a bound is written like "<= 20"'),
        (["constraints=[peak_memory_gb]"], "write {METRIC:"),
        (["scheduler=none", "scheduler.grace=0.5"], "scheduler.grace means nothing to scheduler=none"),
        (["hours=0"], "hours=0: must be above 0"),
        (["gpu_hours=-1"], "gpu_hours=-1: must be above 0"),
        (["plateau=0"], "plateau=0: must be at least 1"),
        (["breaker=-1"], "breaker=-1: must be at least 0"),
    ],
)
def test_what_a_search_cannot_do_is_refused_in_one_line(overrides, words):
    assert words in refused(*overrides)


def test_constraints_and_limits_read_back_and_every_trial_hears_what_is_watched(toy):
    made = plan(TWO, "constraints={peak_memory_gb: '<= 20', accuracy: '>=0.9'}", "hours=1.5", "plateau=30")
    assert made.settings.constraints == {"peak_memory_gb": "<= 20.0", "accuracy": ">= 0.9"}
    assert [str(bound) for bound in made.settings.bounds] == ["peak_memory_gb <= 20", "accuracy >= 0.9"]
    assert parts(reopen_plan(reread(made), [])) == parts(made)
    spec = made.trial_spec("sweep", 0, {}, folder="folder", tracking_folder="tracking")
    assert (spec.objective, spec.mode, list(spec.watched)) == ("error", "min", ["size", "peak_memory_gb", "accuracy"])
    toy.space_file.write_text(toy.space_file.read_text() + "constraints: {accuracy: '>= 0.5'}\n")
    assert plan().settings.constraints == {"accuracy": ">= 0.5"}
    assert plan("constraints={size: '<= 3'}").settings.constraints == {"size": "<= 3.0"}
    assert plan("constraints={accuracy: '>= 0.75'}").settings.constraints == {"accuracy": ">= 0.75"}
    assert plan("constraints=null").settings.constraints == {}


def test_an_extension_changes_the_space_and_counts_how_often():
    made = plan()
    document = reread(made)
    wider = reopen_plan(document, ["recipe.lr=interval(0.01, 1)", "trials=+4"], extend=True)
    assert (wider.generation, wider.settings.trials) == (1, 20)
    assert wider.space.to_dict() == {**made.space.to_dict(), "recipe.lr": "interval(0.01, 1)"}
    assert wider.config == made.config
    assert parts(reopen_plan(reread(wider), [])) == parts(wider)
    again = reopen_plan(reread(wider), ["recipe.kind=noisy", "recipe.width=choice(4, 8)"], extend=True)
    assert again.generation == 2
    assert again.space.distributions["recipe.kind"].choices == ("noisy",)
    assert again.space.distributions["recipe.width"].choices == (4, 8)
    assert again.config == made.config
    same = reopen_plan(document, ["recipe.kind=choice(plain, noisy)"], extend=True)
    assert (same.generation, same.space) == (0, made.space)
    with pytest.raises(InputError, match="what exists keeps its configuration"):
        reopen_plan(document, ["recipe.lr=interval(0.01, 1)"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe.width=8", "is not searched, and what is not searched stays as it is"),
        ("recipe.widht=choice(4, 8)", "recipe.widht is not a value of toy; did you mean recipe.width?"),
        ("recipe.kind=choice(plain, loud)", "recipe.kind=loud must be plain or noisy"),
        ("recipe.epochs=interval(1, 2.5)", "epochs: Value '1.0'"),
    ],
)
def test_an_extension_that_does_not_fit_is_one_line(override, words):
    with pytest.raises(InputError) as error:
        reopen_plan(reread(plan()), [override], extend=True)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_grid_has_as_many_trials_as_points():
    made = plan("sampler=grid", "sampler.points=2", "trials=100")
    # lr at its ends: plain, or noisy with noise at its ends; and two first trials that are no points of it.
    assert made.settings.trials == 2 * (1 + 2) + 2
    assert plan("sampler=grid", "sampler.points=2", "trials=3").settings.trials == 3


def test_a_value_that_the_recipe_forbids_is_refused_before_anything_starts(toy):
    assert refused("recipe.kind=loud") == "recipe.kind=loud must be plain or noisy"
    toy.space_file.write_text(toy.space_file.read_text().replace("noisy", "loud"))
    assert refused() == "recipe.kind=loud must be plain or noisy"  # from a first trial


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("objective: {metric: error", "default.yaml: not YAML"),
        ("- a", "default.yaml: needs objective: and space:"),
        ("objective: {metric: error}", "default.yaml: needs objective: and space:"),
        (
            "objective: error\nspace: {recipe.lr: 'interval(0, 1)'}",
            "default.yaml: objective: is a mapping or a list of such, space: and constraints: are mappings",
        ),
        (
            "objective: {metric: error}\nspace:",
            "default.yaml: objective: is a mapping or a list of such, space: and constraints: are mappings",
        ),
        (
            "objective: {metric: error}\nspace: {recipe.lr: 'interval(0, 1)'}\nfirst_trials: [fast]",
            "first_trials: is a list of mappings",
        ),
        ("objective: {metric: error}\nspace: {recipe.lr: range(1,3)}\nwhat: 1", "default.yaml: needs"),
        ("objective: {metric: error}\nspace: {recipe.lr: 3}", "recipe.lr: 3 is one value, not a range"),
        ("objective: {metric: error}\nspace: {recipe.rl: 'range(1, 3)'}", "recipe.rl is not a value of toy"),
        (
            "objective: {metrics: error}\nspace: {recipe.lr: 'range(1, 3)'}",
            "'metrics': 'error'}: write {metric: NAME, mode: min|max}",
        ),
        (
            "objective: {metric: error}\nspace: {recipe.lr: {sweep: 'interval(0, 1)', when: {recipe.knd: a}}}",
            "recipe.knd is not a value of toy; did you mean recipe.kind?",
        ),
        (
            "objective: {metric: error}\nspace: {recipe.lr: {sweep: 'interval(0, 1)', when: noisy}}",
            "default.yaml: recipe.lr",
        ),
        (
            "objective: {metric: error}\nspace: {recipe.lr: 'interval(0, 1)'}\nfirst_trials: [{recipe.l: 0.1}]",
            "recipe.l is no dimension of the search; did you mean recipe.lr?",
        ),
    ],
)
def test_a_malformed_space_file_is_one_line(toy, text, words):
    toy.space_file.write_text(text)
    assert words in refused()


def test_a_named_space_is_another_file(toy):
    text = "objective: {metric: 'loss/net', mode: max}\nspace: {recipe.width: 'range(2, 9)'}\n"
    toy.space_file.with_name("sizes.yaml").write_text(text)
    made = plan("space=sizes")
    assert made.space.names == ["recipe.width"]
    objectives = made.settings.objectives
    assert (objectives.metrics, objectives.first.mode) == (["loss/net"], "max")
    assert plan("space=sizes", "objective.metric=error").settings.objectives.metrics == ["error"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["scale=tiny", "trials=3", "scheduler=none", "resources.gpus_per_worker=0.5"],
        ["recipe.lr=0.02", "recipe.noise=interval(0, 2)", "recipe.width=choice(4, 8)", "first_trials=[]"],
        ["recipe.lr=tag(log, interval(1e-6, 0.5))", "recipe.kind=choice(plain, noisy)", "recipe.noise=0.5"],
        ["recipe.dropout=range(0, 0.5, 0.1)", "recipe.width=int(tag(log, interval(2, 64)))"],
        ["resources.workers=4", "resources.placement=strict_pack", "engine.accumulation=2"],
        ["engine=deepspeed", "engine.zero=3", "engine.offload=true", "engine.precision=fp16"],
    ],
)
def test_a_plan_reads_back_from_its_yaml_as_it_was(overrides):
    made = plan(*overrides)
    reopened = reopen_plan(reread(made), [])
    assert parts(reopened) == parts(made)
    assert reopened.to_dict() == made.to_dict()


def test_a_reopened_plan_takes_new_ways_to_run_only():
    made = plan("trials=5")
    changed = reopen_plan(reread(made), ["retries=7", "tracking.name=none", "resources.cpus_per_worker=2", "trials=9"])
    assert (changed.settings.retries, changed.settings.tracking.name) == (7, "none")
    assert (changed.settings.resources.cpus_per_worker, changed.settings.trials) == (2, 9)
    assert parts(changed)[1:] == parts(made)[1:]


def test_how_a_reopened_sweep_is_stored_may_change_and_what_is_typed_beside_it_stays():
    made = plan("storage.url=s3://lab/sweeps", "storage.keep_best=3")
    typed = ["storage.keep_last=5", "storage.options.endpoint_url=http://minio:9000", "study.storage=sqlite:///s.db"]
    changed = reopen_plan(reread(made), typed)
    expected = dataclasses.replace(made.settings.storage, keep_last=5, options={"endpoint_url": "http://minio:9000"})
    assert changed.settings.storage == expected
    assert (changed.settings.study.storage, made.settings.study.storage) == ("sqlite:///s.db", None)
    assert parts(changed)[1:] == parts(made)[1:]
    spec = changed.trial_spec("s", 0, {}, folder="folder", tracking_folder="folder")
    assert spec.storage == dataclasses.asdict(expected)
    assert spec.mode == "min"


@pytest.mark.parametrize(
    "override",
    [
        "recipe.lr=0.1",
        "recipe.lr=interval(0, 1)",
        "seed=3",
        "scheduler.grace=0.5",
        "scheduler=none",
        "space=default",
        "tracking=none",
        "retriess=1",
        "+retries=1",
        "retries",
        "storage",
        "study=x",
    ],
)
def test_a_reopened_plan_keeps_what_is_searched(override):
    with pytest.raises(InputError, match="what exists keeps its configuration; only trials, backend") as error:
        reopen_plan(reread(plan()), [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trials=many", "trials"),
        ("trials=0", "trials=0: must be at least 1"),
        ("resources.cpu=2", "resources.cpu"),
        ("tracking.mode=onlin", "tracking.mode=onlin: did you mean online?"),
        ("retries=null", "retries"),
    ],
)
def test_a_wrong_change_to_a_reopened_plan_is_one_line(override, words):
    with pytest.raises(InputError) as error:
        reopen_plan(reread(plan()), [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_added_trials_count_from_those_asked_for_before():
    document = reread(plan("trials=5"))
    assert reopen_plan(document, ["trials=+3"]).settings.trials == 8
    assert reopen_plan(document, ["trials=8"]).settings.trials == 8
    assert reopen_plan(document, []).settings.trials == 5


def test_what_may_change_depends_on_what_is_reopened():
    document = reread(plan())
    assert reopen_plan(document, ["seed=3", "engine.precision=bf16"], RUN_OVERRIDES).settings.seed == 3
    with pytest.raises(InputError):
        reopen_plan(document, ["trials=3"], RUN_OVERRIDES)


def test_a_hand_edited_yaml_with_an_unknown_setting_is_one_line():
    document = reread(plan())
    document["settings"]["nonsense"] = 1
    with pytest.raises(InputError, match="nonsense") as error:
        reopen_plan(document, [])
    assert "\n" not in str(error.value)


def test_nested_values_flatten_to_dotted_names():
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": [1]}}, "x.") == {"x.a": 1, "x.b.c.d": 2, "x.b.e": [1]}


def test_families_are_found_by_their_two_files(toy):
    assert families() == ["toy"]
    (toy.space_file.parents[1] / "half").mkdir()
    (toy.space_file.parents[1] / "half" / "default.yaml").write_text("")
    assert families() == ["toy"]
    assert load_recipe("toy").scales["tiny"] == {"epochs": 2}
    assert space_file("toy", "default") == toy.space_file


@pytest.mark.parametrize(("name", "words"), [("toi", "did you mean toy?"), ("zzz", "choose from toy")])
def test_an_unknown_family_is_one_line(name, words):
    with pytest.raises(InputError, match=f"--family {name}: no such family") as error:
        make_plan(name, [])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_suggestions_without_anything_known():
    assert suggest("x", []) == "choose from none"


def test_what_exists_goes_on_with_another_engine_by_its_name():
    document = reread(plan("engine=deepspeed", "engine.zero=2", "engine.precision=bf16", "engine.accumulation=2"))
    engine = reopen_plan(document, ["engine=torch"], RUN_OVERRIDES).settings.engine
    assert (engine.name, engine.zero, engine.precision, engine.accumulation) == ("torch", 0, "bf16", 2)
    engine = reopen_plan(document, ["engine=deepspeed", "engine.zero=3"], RUN_OVERRIDES).settings.engine
    assert (engine.name, engine.zero, engine.deepspeed["zero_optimization"]["stage"]) == ("deepspeed", 3, 3)
    with pytest.raises(InputError, match="what exists keeps its configuration"):
        reopen_plan(document, ["engine=torch"])
