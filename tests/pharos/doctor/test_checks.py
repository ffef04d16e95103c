"""What each check says of what it finds."""

import json
import math
from dataclasses import replace

import pytest
from wandb_server import KEY, WandbServer

from pharos.config import make_plan
from pharos.doctor import engine, examine, machine, nodes, shown, store
from pharos.doctor.sheet import Sheet, Status, ok, warn
from pharos.engines.base import EngineConfig
from pharos.errors import PharosError
from pharos.memory import PEAK_MEMORY
from pharos.settings import TrackingConfig
from pharos.storage import StorageConfig
from pharos.trial import Ending, Outcome


@pytest.fixture
def plan(toy):
    return make_plan("toy", ["tracking=none", f"storage.url={toy.url}"])


def tried(**changes):
    ending = Ending(Outcome.COMPLETE, metrics={PEAK_MEMORY: 2.0}, probe={"loops": [], "outside": 1.0})
    return examine._Tried({"recipe.lr": 0.1}, replace(ending, **changes), saved=10**6)


# The sheet


def test_an_error_is_a_failed_line_and_the_others_go_on():
    lines = []
    sheet = Sheet(lines.append)

    def breaks():
        raise ZeroDivisionError("by\nzero")

    sheet.check("one", lambda: ok("fine"))
    sheet.check("two", breaks)
    sheet.check("three", lambda: warn("so so"))
    assert lines[0].startswith("ok    one            fine  (0.0 s)")
    assert lines[1].startswith("FAIL  two            ZeroDivisionError: by zero (test_checks.py:")
    assert lines[2].startswith("warn  three          so so")
    assert not sheet.is_well
    assert json.loads(json.dumps(sheet.to_dict()))["checks"][1]["status"] == "FAIL"


def test_a_secret_is_in_no_line(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    lines = []
    Sheet(lines.append).check("one", lambda: ok(f"it is {KEY}"))
    assert KEY not in lines[0]
    assert "***" in lines[0]


# Storage


def test_a_round_trip_leaves_a_token_for_the_nodes_and_nothing_else(tmp_path):
    url = store.scratch(StorageConfig(url=str(tmp_path / "not/there")))
    assert url.startswith(str(tmp_path / "pharos-doctor-"))
    found = store.round_trip({}, url)
    assert min(found["write_mb_s"], found["read_mb_s"], found["free"]) > 0
    assert store.reach({}, url, "me") == ""
    assert "does not see" in store.reach({}, f"{url}-other", "me")
    store.remove({}, url)
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PharosError, match=r"cannot write to .*file \(Not a directory\)"):
        store.scratch(StorageConfig(url=str(tmp_path / "file" / "sweeps")))


# W&B


@pytest.fixture
def server(monkeypatch):
    server = WandbServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


ONLINE = TrackingConfig("wandb", "online")


def test_w_and_b_that_answers_and_the_project_that_will_be_made(server):
    found = shown.look(ONLINE)
    assert found.status == Status.OK
    assert "the key is known; project lab/pharos will be made" in found.text
    assert not server.runs
    assert not server.sweeps


@pytest.mark.parametrize(
    ("mode", "config", "said"),
    [
        ("refuse", ONLINE, "it refuses the key"),
        ("fail", ONLINE, "it does not answer: HTTP Error 500"),
        ("stall", ONLINE, "it does not answer: timed out"),
        ("well", replace(ONLINE, entity="others"), "there is no entity others"),
    ],
)
def test_w_and_b_that_would_take_nothing(server, monkeypatch, mode, config, said):
    monkeypatch.setattr(shown, "_ANSWER_SECONDS", 0.3)
    server.become(mode)
    found = shown.look(config)
    assert found.status == Status.FAIL
    assert said in found.text
    assert KEY not in found.text


def test_offline_is_well_and_online_without_a_key_is_not(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shown.look(TrackingConfig("wandb")).status == Status.OK
    assert shown.look(TrackingConfig("none")).status == Status.OK
    found = shown.look(ONLINE)
    assert found.status == Status.FAIL
    assert "WANDB_API_KEY" in found.text


# Trials, memory, checkpoints, time


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({}, Status.OK, "peak 2.00 GiB"),
        ({"outcome": Outcome.DIVERGED, "reason": "loss/net became nan"}, Status.FAIL, "became nan; at lr=0.1"),
        ({"outcome": Outcome.FAILED, "reason": "Traceback\n  File\nKeyError: 'x'\n"}, Status.FAIL, "KeyError: 'x'"),
        ({"outcome": Outcome.CANCELLED, "reason": "not through in 9 s"}, Status.WARN, "before its first loop"),
    ],
)
def test_what_is_said_of_a_trial(changes, status, said):
    found = tried(**changes).finding()
    assert found.status == status
    assert said in found.text


def test_memory_is_the_largest_peak_times_the_trials_side_by_side(plan):
    node = {"host": "here", "memory_gb": 7.0, "gpus": []}
    one = {"the defaults": tried()}
    assert examine._memory(plan, one, {"slots": 3, "nodes": [node]}).status == Status.OK
    found = examine._memory(plan, one, {"slots": 4, "nodes": [node]})
    assert found.status == Status.WARN
    assert "room for 3; the settings put 4 there: take resources.concurrency=3" in found.text
    assert examine._memory(plan, one, {"slots": 1, "nodes": [{**node, "memory_gb": 1.0}]}).status == Status.FAIL
    assert examine._memory(plan, {"x": tried(metrics={})}, {"nodes": [node]}).status == Status.FAIL


def test_a_share_of_a_gpu_must_be_enough(plan):
    plan.settings.resources.gpus_per_worker = 0.25
    node = {"host": "here", "memory_gb": 7.0, "gpus": [{"memory_gb": 10.0}]}
    found = examine._memory(plan, {"the defaults": tried()}, {"slots": 4, "nodes": [node]})
    assert found.status == Status.WARN
    assert found.facts["fit"] == 3  # 2 GiB and CUDA's own
    assert found.facts["wanted"] == 4


def test_checkpoints_must_fit(plan):
    needed = 10**6 * 3 * 16
    assert examine._space(plan, {"x": tried()}, None).status == Status.OK
    assert examine._space(plan, {"x": tried()}, 3 * needed).status == Status.OK
    assert examine._space(plan, {"x": tried()}, 1.5 * needed).status == Status.WARN
    assert examine._space(plan, {"x": tried()}, 0.5 * needed).status == Status.FAIL


def test_time_is_the_mean_over_what_ran_side_by_side_and_money_follows(plan):
    def timed(step):
        seen = [{"index": k, "batches": 10, "steps": [step, step], "other": 0.0} for k in range(4)]
        return tried(probe={"loops": [{"name": "fit", "epochs": 4, "seen": seen}], "outside": 2.0})

    both = {"the defaults": timed(1.0), "the defaults, process 2": timed(3.0), "all low": timed(99.0)}
    found = examine._time(plan, both, {"slots": 2}, price=3.0)
    assert found.facts["trial_seconds"] == pytest.approx(80)
    assert found.facts["sweep_seconds"][1] == pytest.approx(2 + 80 * 8)
    assert found.facts["cost"][1] == pytest.approx(3 * 642 * 2 / 3600)
    assert found.facts["sweep_seconds"][0] < found.facts["sweep_seconds"][1]
    assert "an estimate" in found.text
    assert examine._time(plan, {"the defaults": tried(outcome=Outcome.FAILED)}, {}, None).status == Status.WARN


# Nodes


def test_a_node_that_differs_is_named_with_what_it_differs_in():
    here = machine.about("~")
    node = {**here, "ip": "1", "clock": 0.1, "storage": ""}
    cluster = {"slots": 2, "is_here": False}
    assert examine._compare(here, {**cluster, "nodes": [node, node]}).status == Status.OK
    other = {**node, "host": "n2", "packages": {**here["packages"], "torch": "1.0"}, "code": "abc", "clock": -9.0}
    found = examine._compare(here, {**cluster, "nodes": [node, {**other, "storage": "access denied"}]})
    assert found.status == Status.FAIL
    for said in ("n2 has torch 1.0", "n2 has code abc", "n2 cannot use storage.url: access denied", "-9.0 s off"):
        assert said in found.text
    silent = {"ip": "10.0.0.9", "resources": {}, "error": "timeout"}
    assert "10.0.0.9 did not answer: timeout" in examine._compare(here, {**cluster, "nodes": [silent]}).text
    slow = examine._compare(here, {**cluster, "nodes": [{**node, "clock": 5.0}]})
    assert slow.status == Status.WARN


def test_what_a_node_says_of_itself_is_plain_data(tmp_path):
    found = nodes._about(str(tmp_path / "cache"), {}, None, "me")
    assert json.loads(json.dumps(found)) == found
    assert len(found["code"]) == 12
    assert math.isfinite(found["memory_gb"])
    assert found["code"] == machine.code()


def test_packages_are_held_against_the_constraints():
    (off,) = machine.off_constraints({"torch": "0.1+cpu", "nothing": "1", "ray": None})
    assert off.startswith("torch 0.1+cpu instead of 2.")


# DeepSpeed


@pytest.mark.parametrize(
    ("content", "changes", "workers", "status", "said"),
    [
        ({}, {}, 2, Status.OK, "ZeRO 1, fp32"),
        ({"train_batch_size": 8}, {}, 2, Status.FAIL, "take it out"),
        ({"gradient_clipping": 1}, {}, 2, Status.WARN, "the recipe's optimiser says it"),
        ({"zero_optimization": {"stage": 3}}, {}, 2, Status.WARN, "engine.zero=1 goes before it"),
        ({"bf16": {"enabled": True}}, {}, 2, Status.WARN, "engine.precision=bf16 keeps fp32 weights"),
        ({"fp16": {"enabled": True}}, {"precision": "bf16"}, 2, Status.WARN, "counts for nothing"),
        ({}, {}, 1, Status.WARN, "shares nothing out with resources.workers=1"),
        ({}, {"offload": True}, 1, Status.OK, "no kernel is compiled"),
    ],
)
def test_a_deepspeed_file_and_the_settings(plan, content, changes, workers, status, said):  # noqa: PLR0917
    plan.settings.engine = EngineConfig("deepspeed", **{"zero": 1, **changes}, deepspeed=content)
    plan.settings.resources.workers = workers
    found = engine.look(plan.settings)
    assert found.status == status
    assert said in found.text


def test_offload_to_nvme_wants_a_compiler(plan, monkeypatch):
    content = {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}
    plan.settings.engine = EngineConfig("deepspeed", zero=3, deepspeed=content)
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    found = engine.look(plan.settings)
    assert found.status == Status.FAIL
    assert "ninja and a C++ compiler" in found.text
