"""Whole trials of ADS_UNet: stages that end and begin, kills in between, two workers, baselines, search spaces."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pair import Pair
from PIL import Image

from pharos.checkpoint import Checkpoint, Checkpoints
from pharos.config import make_plan
from pharos.errors import InputError
from pharos.execute import execute
from pharos.recipe import build_config
from pharos.run import Run
from pharos.storage import Storage
from pharos.trial import Outcome, Report, TrialSpec
from trainables.ads_unet.recipe import AdsUNet, AdsUNetConfig
from trainables.common.histology.data import HistologyDataConfig, generated

SMALLEST = {
    **{"data.train_images": 8, "data.validation_images": 2, "data.test_images": 3},
    **{"epochs": 2, "joint_epochs": 2},
}


def spec_of(folder: Path, **settings: Any) -> TrialSpec:
    given = {**SMALLEST, **settings}
    typed = [f"recipe.{name}={value}" for name, value in given.items()]
    plan = make_plan("ads_unet", ["scale=tiny", "tracking=none", *typed])
    return TrialSpec(
        sweep="stages",
        number=0,
        family="ads_unet",
        params={},
        config=plan.trial_config({}),
        seed=3,
        folder=str(folder),
        max_fidelity=AdsUNet().fidelity(plan.build_config()),
        objective="val/miou",
        checkpoint_seconds=0.0,
        threads=1,
    )


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(Storage(str(folder / "checkpoints"))).newest()
    assert found is not None
    return found


def curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def train(spec: TrialSpec) -> list[Report]:
    reports: list[Report] = []
    ending = execute(spec, reports.append)
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    return reports


def frozen_in(saved: Checkpoint, stage: int) -> list[str]:
    """Of stage k, what stage k - 1 had already: encoder nodes and whole stages, running statistics among them."""
    return list(saved.tensors(f"learners/stage{stage - 1}/weights/"))


def test_a_trial_killed_in_its_third_stage_resumes_there_with_equal_numbers(tmp_path: Path) -> None:
    whole, broken = (spec_of(tmp_path / name, depth=3) for name in ("whole", "broken"))
    train(whole)
    seen: list[Report] = []
    runs: list[Run] = []

    class Killed(BaseException):
        pass

    def die(report: Report) -> None:
        seen.append(report)
        saver = runs[0]._saver
        assert saver is not None
        assert saver.wait(30)
        if len(seen) == 6:  # in the last epoch of the third stage
            raise Killed

    with pytest.raises(Killed):
        execute(broken, die, runs.append)
    again = len(seen)
    assert execute(broken, seen.append).outcome == Outcome.COMPLETE
    assert [report.fidelity for report in seen[again:]] == [6]  # the stages before were not trained again
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    ours, theirs = newest(tmp_path / "broken"), newest(tmp_path / "whole")
    for name, value in theirs.tensors("learners/stage3/weights/").items():
        assert torch.equal(ours.tensor(f"learners/stage3/weights/{name}"), value), name


def test_frozen_stages_are_bit_identical_when_the_last_has_been_trained(tmp_path: Path) -> None:
    train(spec_of(tmp_path, depth=3, freeze_encoder="always"))
    saved = newest(tmp_path)
    for stage in (2, 3):
        names = frozen_in(saved, stage)
        assert any("running_mean" in name for name in names)
        for name in names:
            before, after = (saved.tensor(f"learners/stage{k}/weights/{name}") for k in (stage - 1, stage))
            assert torch.equal(before, after), name


def test_an_encoder_that_is_never_frozen_goes_on_learning(tmp_path: Path) -> None:
    train(spec_of(tmp_path, freeze_encoder="never"))
    saved = newest(tmp_path)
    first, second = (saved.tensor(f"learners/stage{k}/weights/encoder.0.0.weight") for k in (1, 2))
    assert not torch.equal(first, second)


def test_two_workers_freeze_normalise_and_boost_as_one(tmp_path: Path, pair: Pair) -> None:
    settings = {"freeze_encoder": "always", "data.train_images": 11, "batch_size": 6}  # 11: an uneven share
    alone = spec_of(tmp_path / "one", **settings)
    train(alone)
    both = dataclasses.replace(alone, folder=str(tmp_path / "two"))
    ending, _ = pair.train(both)
    assert ending.outcome == Outcome.COMPLETE, ending.reason
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    for name in frozen_in(two, 2):
        assert torch.equal(*(two.tensor(f"learners/stage{k}/weights/{name}") for k in (1, 2))), name
    ours, theirs = (saved.tensors("learners/stage2/weights/") for saved in (two, one))
    statistics = [name for name in theirs if "running" in name]
    assert statistics
    for name in statistics:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    boosts = [saved.state["state"]["boosting"] for saved in (two, one)]
    torch.testing.assert_close(*(boost["weights"] for boost in boosts), rtol=1e-6, atol=0)
    assert boosts[0]["errors"] == pytest.approx(boosts[1]["errors"], rel=1e-6)


@pytest.mark.parametrize("network", ["unet", "unete", "unetpp"])
def test_baselines_train_in_the_same_harness(tmp_path: Path, network: str) -> None:
    reports = train(spec_of(tmp_path, network=network))
    assert [report.fidelity for report in reports] == [1, 2]
    last = reports[-1].metrics
    assert last["parameters"] == last["trained"]
    assert 0 <= last["test/miou"] <= 1
    assert last["saved_mib"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"reweight": "pixel", "augmentation": "flips+rot90", "data.crop": 8},
        {"eta_mode": "top_only", "loss": "iou", "skip": "none", "alpha_rule": "samme"},
        {"eta_mode": "uniform", "loss": "ce+dice", "frozen_bn": "train", "head_mode": "best_head", "vote": "hard"},
    ],
    ids=["pixel", "top_only", "uniform"],
)
def test_variants_train(tmp_path: Path, settings: dict[str, Any]) -> None:
    last = train(spec_of(tmp_path, **settings))[-1].metrics
    assert math.isfinite(last["test/miou"])
    shape = newest(tmp_path).state["state"]["boosting"]["weights"].shape
    assert shape == ((8, 16, 16) if settings.get("reweight") == "pixel" else (8,))


@pytest.mark.parametrize("stop_after", [1, 3, 4], ids=["in the first stage", "in the second", "ended"])
def test_a_trial_predicts_with_the_stages_that_have_ended(tmp_path: Path, stop_after: int) -> None:
    spec = spec_of(tmp_path / "trial")
    runs: list[Run] = []

    def stop(report: Report) -> None:
        if report.fidelity == stop_after < 4:
            runs[0].interrupt()

    execute(spec, stop, runs.append)
    saved = newest(tmp_path / "trial")
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    output.mkdir()
    tiles = generated(HistologyDataConfig(source="nuclei", size=24, test_images=2), "test")
    for name, picture in zip("ab", tiles.images, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(images / f"{name}.png")
    config = build_config(AdsUNetConfig, spec.config)
    run = Run(seed=0, saved=saved)
    AdsUNet().predict(run, config, images, output)
    assert sorted(path.name for path in output.iterdir()) == ["a.png", "a_overlay.png", "b.png", "b_overlay.png"]
    assert list(run._learners) == ["stage2" if stop_after == 4 else "stage1"]


def test_the_score_of_the_ensemble_moves_at_the_ends_of_stages_only(tmp_path: Path) -> None:
    rows = [report.metrics for report in train(spec_of(tmp_path, epochs=3))]
    scores = [row["val/miou"] for row in rows]
    assert scores[0] == rows[0]["val/stage_miou"]
    assert scores[2] == scores[3] == scores[4]
    assert {"boosting/alpha", "boosting/error"} <= set(rows[2]) & set(rows[5])
    assert sum(rows[-1][f"eta/level{k}"] for k in range(3)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 7}, "recipe.width=7 must be even"),
        ({"depth": 6}, "must be a multiple of 64"),
        ({"eta_mode": "free"}, "recipe.eta_mode=free must be one of bounded"),
        ({"eta_floor": 1.5}, "recipe.eta_floor=1.5 must be from 0 to 1"),
        ({"reweight": "pixel", "augmentation": "flips+affine"}, "recipe.reweight=pixel takes"),
        ({"batch_size": 1}, "recipe.batch_size=1 must be at least 2"),
    ],
)
def test_impossible_values_are_refused_in_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        AdsUNetConfig(**{"data": AdsUNetConfig().data, **settings}).check_side(settings.get("depth", 4))


@pytest.mark.parametrize("space", ["default", "stage_weights"])
def test_search_spaces_hold_what_they_say(space: str) -> None:
    plan = make_plan("ads_unet", ["scale=tiny", "tracking=none", f"space={space}"])
    first = plan.first_trials
    assert first[0]["recipe.eta_mode"] == "bounded"
    assert first[0]["recipe.reweight"] == "ada"
    for params in first:
        config = plan.trial_config(params)
        assert config["eta_mode"] == params["recipe.eta_mode"]
        assert ("recipe.eta_floor" in params) == (params["recipe.eta_mode"] == "bounded")
        assert ("recipe.reweight_strength" in params) == (params["recipe.reweight"] == "ada")
    if space == "stage_weights":
        assert {params["recipe.eta_mode"] for params in first} == {"bounded", "uniform", "top_only"}
        assert {params["recipe.reweight"] for params in first} == {"ada", "none", "pixel"}
        assert {params["recipe.alpha_rule"] for params in first} == {"half_logodds", "uniform"}
