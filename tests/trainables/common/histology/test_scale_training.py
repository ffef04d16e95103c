"""Networks with branches of scale: trained, tried on the grid, used on files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pharos.checkpoint import Checkpoints
from pharos.errors import InputError
from pharos.recipe import Recipe, build_config
from pharos.run import Run
from pharos.saver import Saver
from pharos.storage import Storage
from pharos.trial import Report
from pharos.world import World
from trainables.rsesf.recipe import RSESFRecipe, make_network
from trainables.seunet.recipe import SEUNetRecipe

FAMILIES = {"seunet": SEUNetRecipe(), "rsesf": RSESFRecipe()}


def _config(recipe: Recipe, **changes: Any) -> Any:
    values: dict[str, Any] = {}
    for name, value in {**recipe.scales["tiny"], "epochs": 1, **changes}.items():
        place = values
        *parents, last = name.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return build_config(recipe.Config, values)


def _trained(recipe: Recipe, config: Any, folder: Path) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    reports: list[Report] = []
    images: dict[str, torch.Tensor] = {}
    saver = Saver(Checkpoints(Storage(str(folder))), World())
    run = Run(
        seed=0,
        on_report=reports.append,
        on_image=lambda step, name, image: images.update({name: image}),
        saver=saver,
    )
    recipe.train(run, config)
    run.finish()
    run.close()
    return reports[-1].metrics, images


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_reports_the_grid_and_its_network_predicts_files(family: str, tmp_path: Path) -> None:
    recipe = FAMILIES[family]
    config = _config(recipe)
    metrics, images = _trained(recipe, config, tmp_path / "checkpoints")
    cells = [name for name in metrics if name.startswith("test/s") and "_r" in name]
    assert len(cells) == 25
    assert metrics["test/grid_miou"] == pytest.approx(sum(metrics[name] for name in cells) / 25)
    assert 0 <= metrics["test/mean_fusion/grid_miou"] <= 1
    assert ("test/upright/grid_miou" in metrics) == (family == "rsesf")
    assert 0 < metrics["test/equivariance_error"] <= metrics["test/equivariance_error_unshifted"]
    for name in ("segmentation", "filters"):
        assert images[name].shape[0] == 3
        assert 0 <= images[name].min() <= images[name].max() <= 1

    folder, output = tmp_path / "images", tmp_path / "found"
    folder.mkdir()
    output.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (37, 21, 3), dtype=np.uint8)).save(folder / "piece.png")
    saved = Checkpoints(Storage(str(tmp_path / "checkpoints"))).newest()
    run = Run(seed=0, saved=saved)
    recipe.predict(run, config, folder, output)
    run.close()
    labels = np.asarray(Image.open(output / "piece.png"))
    assert labels.shape == (37, 21)
    assert set(np.unique(labels)) <= {0, 1}
    assert Image.open(output / "piece_overlay.png").size == (21, 37)
    with pytest.raises(InputError, match="no image"):
        recipe.predict(Run(seed=0, saved=saved), config, output / "nothing", output)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("network", ["unet", "unet_bilinear"])
def test_baselines_are_trained_in_the_same_way(family: str, network: str, tmp_path: Path) -> None:
    recipe = FAMILIES[family]
    augmentation = {"seunet": "flips+scale", "rsesf": "flips+affine"}[family]
    config = _config(recipe, network=network, augmentation=augmentation)
    metrics, images = _trained(recipe, config, tmp_path)
    assert metrics["test/grid_miou"] > 0
    assert "filters" not in images
    assert "test/upright/grid_miou" not in metrics


def test_scales_and_orientations_can_be_chosen_after_training() -> None:
    recipe = FAMILIES["rsesf"]
    config = _config(recipe)
    network = make_network(config, 2)
    other = dataclasses.replace(config, orientations=12, selection="max", fusion="mean")
    wider = make_network(other, 2)
    wider.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 16, 16)
    assert network.eval()(x).logits.shape == wider.eval()(x).logits.shape
