"""The recipe: settings, groups, the rate of every step, that it fits; section 7 of the notes, invariants 14, 15, 17."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pharos.config import make_plan
from pharos.engines.optimizers import make_optimizer
from pharos.errors import InputError
from pharos.learner import Learner
from pharos.recipe import build_config
from pharos.run import Run
from pharos.trial import Report
from trainables.common.materials.evaluation import labelled_counts
from trainables.common.materials.losses import focal_sums
from trainables.common.materials.network import NetworkConfig, Segmenter
from trainables.common.materials.scenes import matscale
from trainables.common.materials.settings import swin_adamw
from trainables.dbat.model import centred
from trainables.dbat.recipe import Dbat, DbatConfig

NANO = NetworkConfig(
    width=16,
    depths=[1, 1, 2, 1],
    heads=[1, 2, 4, 8],
    patch=2,
    window=4,
    merge_heads=8,
    merge_window=4,
    pyramid=32,
    features=32,
    groups=8,
    drop_path=0.0,
    merge_drop_path=0.0,
    dropout2d=0.0,
)


def tiny(*typed: str) -> Any:
    plan = make_plan("dbat", ["scale=tiny", "tracking=none", *typed])
    return build_config(plan.recipe.Config, plan.trial_config({}))


def test_norms_and_bias_tables_do_not_decay_and_all_else_does():
    network = Segmenter(NANO, 6, 64)
    groups = make_optimizer(network, swin_adamw()).param_groups
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, others = ([names[id(p)] for p in group["params"]] for group in groups)
    assert sorted(decayed + others) == sorted(names.values())
    assert groups[1]["weight_decay"] == 0
    assert all("norm" in name or "relative_position_bias_table" in name for name in others)
    modules = dict(network.named_modules())
    for name in names.values():
        owner = modules[name.rpartition(".")[0]]
        if isinstance(owner, torch.nn.LayerNorm) or "bias_table" in name:
            assert name in others, name
        if isinstance(owner, torch.nn.GroupNorm | torch.nn.BatchNorm2d | torch.nn.Linear | torch.nn.Conv2d):
            assert name in decayed, name


def test_rates_are_those_of_the_closed_form():
    """Four micro-batches an update: the rate of micro-step m is m/1500 of the whole, counted in updates."""
    learner = Learner("net", torch.nn.Linear(1, 1), DbatConfig().optim)
    rates = {}
    learner.start_epoch(0.0)
    for update in range(1, 377):
        learner.step(learner(torch.ones(1, 1)).sum())
        rates[update] = learner._engine.optimizer.param_groups[0]["lr"]
    assert rates[1] == pytest.approx(6e-5 / 375)
    assert rates[188] == pytest.approx(6e-5 * 188 / 375)
    assert [rates[375], rates[376]] == pytest.approx([6e-5, 6e-5])
    first, last = 1, 200  # e0, in which the warm-up ends, and E
    for epoch in (first, (first + last) // 2, last - 1):
        learner.start_epoch(epoch / last)
        rate = learner._engine.optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(6e-5 * (1 - (epoch - first) / (last - first)))


def test_a_nano_network_learns_four_images_by_heart():
    """More than 0.95 of the labelled pixels in fewer than 200 steps."""
    torch.manual_seed(0)
    scenes = matscale(4, 32, 0)
    # As many patches as 64 pixels have: a map of four by four for the merge.
    network = Segmenter(replace(NANO, patch=1), 6, 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    x, y = centred(scenes.images.float() / 255), scenes.labels
    for _ in range(200):
        logits = network(x)
        known = y != 255
        accuracy = float((logits.argmax(dim=1) == y)[known].double().mean())
        if accuracy > 0.95:
            break
        optimizer.zero_grad()
        (focal_sums(logits, y, 1.0).sum() / labelled_counts(y).sum()).backward()
        optimizer.step()
    assert accuracy > 0.95


def trained(config: DbatConfig, seed: int = 1) -> tuple[list[Report], dict[str, torch.Tensor], Run]:
    reports: list[Report] = []
    pictures: dict[str, torch.Tensor] = {}
    run = Run(
        seed=seed,
        objective="val/pixel_acc",
        on_report=reports.append,
        on_image=lambda step, name, image: pictures.__setitem__(name, image),
    )
    Dbat().train(run, config)
    return reports, pictures, run


def test_the_last_report_is_that_of_the_best_weights_with_the_test_and_pictures():
    reports, pictures, run = trained(tiny("recipe.epochs=3", "recipe.optim.lr=0.01"))
    validations = [report.metrics["val/pixel_acc"] for report in reports[:-1]]
    best = run.state["best"]
    last = reports[-1].metrics
    assert last["val/pixel_acc"] == best["score"] >= max(validations)
    weights = run._learners["network"].weights()
    assert all(torch.equal(value, weights[name]) for name, value in best["network"].items())
    assert {"test/pixel_acc", "test/mean_acc", "test/miou", "attention/map1", "detectors/fine"} <= set(last)
    assert sum(last[f"attention/map{k}"] for k in range(1, 5)) == pytest.approx(1, abs=1e-5)
    assert set(pictures) == {"attention", "alignment", "detectors"}
    assert run.state["classes"][0] == "3 and 12 px"
    assert [report.fidelity for report in reports] == [1, 2, 3]
    again, _, _ = trained(tiny("recipe.epochs=3", "recipe.optim.lr=0.01"))
    assert [report.metrics for report in again] == [report.metrics for report in reports]


def test_a_baseline_has_no_masks_and_scenes_of_metamers_no_periods():
    settings = ["recipe.epochs=2", "recipe.evaluate_every=2", "recipe.network.model=swin_fpn", "data.source=metascene"]
    reports, _, _ = trained(tiny(*settings, "data.labelled_images=8"))
    assert [report.fidelity for report in reports] == [2]
    names = set(reports[0].metrics)
    assert not any(name.startswith("attention/") for name in names)
    assert "detectors/fine" not in names
    assert "detectors/material" in names


def test_the_paper_s_values_are_the_defaults():
    config = DbatConfig()
    assert (config.network.width, config.network.depths, config.network.heads) == (96, [2, 2, 6, 2], [3, 6, 12, 24])
    assert (config.data.crop, config.batch_size, config.epochs, config.focal_gamma) == (512, 16, 200, 3.0)
    optim = config.optim
    assert (optim.name, optim.lr, optim.weight_decay, optim.warmup) == ("adamw", 6e-5, 0.01, 375)
    assert (config.network.drop_path, config.network.merge_drop_path, config.network.dropout2d) == (0.2, 0.3, 0.2)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("recipe.data.crop=48", "must divide"),
        ("recipe.focal_gamma=-1", "must be from 0 to 10"),
        ("recipe.epochs=0", "at least 1"),
        ("recipe.network.merge=most", "must be one of gl, self, add, none"),
    ],
)
def test_impossible_settings_are_refused_in_a_line(typed, said):
    with pytest.raises(InputError, match=said) as caught:
        tiny(typed)
    assert "\n" not in str(caught.value)


def test_what_is_named_is_looked_at_before_a_sweep(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Dbat().check(tiny("data.source=lmd", f"data.root={tmp_path / 'none'}"))
    with pytest.raises(InputError, match="is needed"):
        Dbat().check(tiny(f"recipe.network.weights={tmp_path}"))
    Dbat().check(tiny())


def test_the_space_searches_the_variants_of_the_module_only_where_there_is_one():
    plan = make_plan("dbat", ["tracking=none"])
    assert plan.first_trials[0]["recipe.network.model"] == "dbat"
    controls = [trial for trial in plan.first_trials if trial["recipe.network.model"] != "dbat"]
    assert [trial["recipe.network.model"] for trial in controls] == ["swin_fpn", "swin_fpn_wide"]
    assert all("recipe.network.merge" not in trial for trial in controls)
