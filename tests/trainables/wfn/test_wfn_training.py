"""A trial of WFN: what it fixes when, that it goes on from any round with equal numbers, on one worker and on two."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from pharos.checkpoint import Checkpoints
from pharos.config import make_plan
from pharos.errors import InputError
from pharos.execute import execute
from pharos.recipe import build_config
from pharos.storage import Storage
from pharos.trial import Outcome, TrialSpec
from trainables.common.quantisation.fixing import MASK, VALUE
from trainables.common.quantisation.measures import describe
from trainables.common.quantisation.packing import pack, plain, unpack
from trainables.wfn.recipe import Wfn, WfnConfig

# Four rounds, all of them within a second.
SETTINGS = (
    *("scale=tiny", "tracking=none", "recipe.schedule=linear", "recipe.rounds=4", "recipe.epochs_per_round=1"),
    *("recipe.pretrain.epochs=1", "recipe.include_bn=true", "recipe.gamma0_exp=-7"),
)


def spec_of(folder, *settings):
    plan = make_plan("wfn", [*SETTINGS, *settings])
    config = plan.trial_config({})
    return TrialSpec(
        sweep="test",
        number=0,
        family="wfn",
        params={},
        config=config,
        seed=1,
        folder=str(folder),
        max_fidelity=plan.recipe.fidelity(build_config(WfnConfig, config)),
        objective="val/accuracy",
        checkpoint_seconds=0.0,
        threads=1,
        engine=dataclasses.asdict(plan.settings.engine),
    )


def trained(folder, *settings):
    reports = []
    ending = execute(spec_of(folder, *settings), reports.append)
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    return reports


def state_of(folder):
    newest = Checkpoints(Storage(f"{folder}/checkpoints")).newest()
    assert newest is not None
    return newest.tensors("learners/network/weights/"), newest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the reports of a trial that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(folder)


def test_shares_rise_to_all_and_at_the_end_every_weight_is_in_the_codebook(whole):
    folder, reports = whole
    shares = [report.metrics["fixed_share"] for report in reports if "fixed_share" in report.metrics]
    state, saved = state_of(folder)
    names = [name.removesuffix(MASK) for name in state if name.endswith(MASK)]
    vector = torch.cat([state[name + VALUE].flatten() for name in names]).numpy()
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1 / len(vector))
    assert all(state[name + MASK].all() for name in names)
    assert set(vector.tolist()) <= set(saved.state["state"]["codebook"].tolist())
    last = reports[-1].metrics
    assert {name: last[name] for name in describe(vector)} == describe(vector)
    assert last["unique"] <= 60
    assert last["coverage"] == 1
    assert last["packed_bytes"] == len(pack(*plain(state)))
    back = unpack(pack(*plain(state)))
    assert all(torch.equal(back[name], state[name + VALUE]) for name in names)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_it_goes_on_from_any_round_with_equal_numbers(tmp_path, whole, stop_after):
    broken = tmp_path / "broken"
    seen, runs = [], []

    class Killed(BaseException):
        pass

    def die(report):
        seen.append(report)
        assert runs[0]._saver.wait(30)  # each epoch before this one has its checkpoint
        if len(seen) == stop_after:
            raise Killed

    with pytest.raises(Killed):
        execute(spec_of(broken), die, runs.append)
    assert execute(spec_of(broken), seen.append).outcome == Outcome.COMPLETE

    def curve(folder):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    assert curve(broken) == curve(whole[0])
    ours, theirs = state_of(broken)[0], state_of(whole[0])[0]
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_two_workers_under_zero_2_fix_the_same_weights_at_the_same_values(tmp_path, pair, whole):
    engine = ("engine=deepspeed", "engine.zero=2")
    ending, _ = pair.train(spec_of(tmp_path / "two", *engine))
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    state, saved = state_of(tmp_path / "two")
    assert saved.world_size == 2
    for name in (name.removesuffix(MASK) for name in state if name.endswith(MASK)):
        # The parameters are pieces of both workers, the values are those of the first.
        assert state[name + MASK].all()
        assert torch.equal(state[name], state[name + VALUE]), name
    alone = state_of(whole[0])[0]
    fixed = [name for name in state if name.endswith(VALUE)]
    same = np.mean(np.concatenate([(state[name] == alone[name]).flatten().numpy() for name in fixed]))
    assert same > 0.99


def test_weights_that_are_fixed_draw_others_to_their_values_only_if_they_vote(tmp_path, whole):
    free_only = trained(tmp_path, "recipe.recluster=free_only")[-1].metrics
    # That is where a shared codebook comes from.
    assert whole[1][-1].metrics["unique"] < free_only["unique"]


def test_a_larger_delta_gives_fewer_values_and_less_entropy(tmp_path, whole):
    found = [trained(tmp_path / str(delta), f"recipe.delta={delta}")[-1].metrics for delta in (0.01, 0.2)]
    for more, less in itertools.pairwise([found[0], whole[1][-1].metrics, found[1]]):  # at 0.05
        assert more["unique"] > less["unique"]
        assert more["entropy"] > less["entropy"]


def test_batch_normalisation_and_biases_can_be_left_out(tmp_path):
    last = trained(tmp_path, "recipe.include_bn=false", "recipe.include_bias=false")[-1].metrics
    assert 0.9 < last["coverage"] < 1
    names = {name.removesuffix(MASK) for name in state_of(tmp_path)[0] if name.endswith(MASK)}
    assert names == {
        "features.0.weight",
        "features.3.weight",
        "features.7.weight",
        "hidden.weight",
        "classifier.weight",
    }


def test_baselines_are_judged_on_the_float_network_and_leave_the_trial_s_own_weights(tmp_path, whole):
    last = trained(tmp_path, "recipe.baselines=true")[-1].metrics
    assert last["val/accuracy"] == whole[1][-1].metrics["val/accuracy"]
    ours, theirs = state_of(tmp_path)[0], state_of(whole[0])[0]
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert last["kmeans/unique"] <= last["unique"]
    assert last["int8_tensor/unique"] > 2 * last["unique"]
    # 255 levels a tensor change hardly anything of the float network.
    assert last["int8_tensor/test/cross_entropy"] == pytest.approx(last["float/test/cross_entropy"], rel=0.02)


# Settings


def test_shares_and_distances_of_the_schedules():
    paper = WfnConfig()
    assert paper.fractions == [0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0]
    assert paper.deltas == pytest.approx([0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01])
    assert Wfn().fidelity(paper) == 1 + 9 * 3
    for schedule, rounds in itertools.product(("fine12", "geometric", "linear"), (1, 3, 14)):
        config = WfnConfig(schedule=schedule, rounds=rounds)
        shares = config.fractions
        assert shares[-1] == 1
        assert all(a < b for a, b in itertools.pairwise([0.0, *shares]))
        assert len(config.deltas) == len(shares) == (12 if schedule == "fine12" else rounds)
    assert WfnConfig(delta_decay="constant").deltas == [0.01] * 10
    assert WfnConfig(delta_decay="geometric", schedule="linear", rounds=5).deltas == [0.08, 0.08, 0.04, 0.02, 0.01]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"delta": 0.1}, "what the first round allows"),
        ({"delta": 0.0}, "must be above 0"),
        ({"schedule": "steep"}, "must be one of paper10"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"max_order": 21}, "max_order must be 0 to 20"),
        ({"ratio": 1.0}, "must be above 0 and below 1"),
        ({"epochs_per_round": 0}, "epochs_per_round must be at least 1"),
        ({"distance": "manhattan"}, "must be one of relative"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings, said):
    with pytest.raises(InputError, match=said):
        WfnConfig(**settings)


def test_a_network_that_learned_nothing_is_refused(tmp_path):
    ending = execute(spec_of(tmp_path, "recipe.pretrain.epochs=0"), lambda report: None)
    assert ending.outcome == Outcome.FAILED
    assert "needs trained weights" in ending.reason
