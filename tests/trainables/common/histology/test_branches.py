"""Branches of scale: their losses, how they are fused, and what is reported of a grid of magnifications."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pharos.run import Run
from trainables.common.histology.branches import ETA_MODES, FUSIONS, BranchLogits, OneBranch, branch_weights, fuse
from trainables.common.histology.data import HistologyDataConfig, Tissue, circle, open_tissue
from trainables.common.histology.equivariance import branch_errors
from trainables.common.histology.evaluation import Viewer
from trainables.common.histology.grid import Grid, grid_scores
from trainables.common.segmentation import IGNORED, confusion, mean_iou

SMALL = HistologyDataConfig(source="nuclei", size=16, train_images=2, validation_images=3, test_images=2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _probabilities(branches: int, classes: int = 3) -> Tensor:
    return torch.randn(branches, 2, classes, 5, 6, dtype=torch.float64).softmax(dim=2)


@pytest.mark.parametrize("branches", [1, 2, 5])
def test_bounded_weights_keep_every_branch(branches: int) -> None:
    for _ in range(20):
        weights = branch_weights(10 * torch.randn(branches, dtype=torch.float64), "bounded")
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
        assert (weights >= 1 / (2 * branches)).all()
        assert (weights <= 1 / (2 * branches) + 0.5).all()
    for mode in ETA_MODES:
        equal = branch_weights(torch.full((branches,), 0.3), mode)
        torch.testing.assert_close(equal, torch.full((branches,), 1 / branches))


def test_the_loss_is_the_weighted_sum_of_the_branches_losses() -> None:
    logits, mask = torch.randn(3, 2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    each = torch.stack([functional.cross_entropy(branch, mask) for branch in logits])
    uniform = BranchLogits(logits, branch_weights(torch.zeros(3), "uniform"))
    torch.testing.assert_close(uniform.loss(mask), each.mean())
    weights = torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(BranchLogits(logits, weights).loss(mask), (weights * each).sum())


def test_ignored_pixels_count_for_nothing_and_parts_of_a_batch_as_the_whole() -> None:
    logits, mask = torch.randn(2, 4, 3, 5, 5), torch.randint(0, 3, (4, 5, 5))
    mask[0, :4] = IGNORED
    whole = BranchLogits(logits, torch.tensor([0.5, 0.5]))
    changed = logits.clone()
    changed[:, 0, :, :4] += torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(BranchLogits(changed, whole.weights).loss(mask), whole.loss(mask))
    parts = [BranchLogits(logits[:, part], whole.weights).loss(mask[part]) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole.loss(mask))
    nothing = BranchLogits(logits, whole.weights).loss(torch.full_like(mask, IGNORED))
    assert nothing == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_identical_branches_are_fused_into_any_of_them(fusion: str) -> None:
    one = _probabilities(1)
    torch.testing.assert_close(fuse(one.expand(4, -1, -1, -1, -1), torch.full((4,), 0.25), fusion), one[0])
    torch.testing.assert_close(fuse(one, torch.ones(1), fusion), one[0])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fused_probabilities_are_of_unit_sum(fusion: str) -> None:
    fused = fuse(_probabilities(4), torch.tensor([0.1, 0.5, 0.2, 0.2]), fusion)
    torch.testing.assert_close(fused.sum(dim=1), torch.ones_like(fused[:, 0]))


def test_the_margin_takes_the_most_decided_branch_at_each_pixel() -> None:
    probabilities = _probabilities(4)
    fused = fuse(probabilities, torch.full((4,), 0.25), "margin")
    ordered = probabilities.sort(dim=2, descending=True).values
    margin = ordered[:, :, 0] - ordered[:, :, 1]
    for image in range(2):
        for row in range(5):
            for column in range(6):
                best = int(margin[:, image, row, column].argmax())
                expected = probabilities[best, image, :, row, column]
                torch.testing.assert_close(fused[image, :, row, column], expected)


def test_other_fusions_are_what_they_say() -> None:
    probabilities, weights = _probabilities(3), torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(fuse(probabilities, weights, "mean"), probabilities.mean(0))
    torch.testing.assert_close(fuse(probabilities, weights, "eta"), probabilities[1])
    largest = probabilities.max(dim=0).values
    assert torch.equal(fuse(probabilities, weights, "max").argmax(1), largest.argmax(1))


def test_a_baseline_is_one_branch() -> None:
    network = OneBranch("unet_bilinear", 5, 16, 2).eval()
    assert sum(p.numel() for p in network.parameters()) == 110_069
    x = torch.rand(2, 3, 8, 8)
    out = network(x)
    assert out.logits.shape == (1, 2, 5, 8, 8)
    assert torch.equal(out.probabilities("margin"), network.network(x)[0].softmax(1))


# --- the grid ----------------------------------------------------------------------------------------------


def _grid(**settings: object) -> tuple[Tissue, Grid]:
    tissue = open_tissue(SMALL)
    values = {"scales": (1.0, 2.0), "angles": (0.0, 90.0), "multiple": 4, **settings}
    return tissue, Grid(tissue, SMALL, "validation", **values)  # type: ignore[arg-type]


def test_a_grid_has_each_cell_s_own_pictures() -> None:
    _, grid = _grid()
    assert list(grid.cells) == [(1.0, 0.0), (1.0, 90.0), (2.0, 0.0), (2.0, 90.0)]
    assert torch.equal(grid.cells[1.0, 0.0].masks.rot90(1, (1, 2)), grid.cells[1.0, 90.0].masks)
    assert not torch.equal(grid.cells[1.0, 0.0].images, grid.cells[2.0, 0.0].images)


@pytest.mark.parametrize("angles", [(0.0,), (0.0, 45.0)])
def test_the_scores_of_a_grid_are_those_of_its_cells_in_the_circle(angles: tuple[float, ...]) -> None:
    tissue, grid = _grid(angles=angles)

    def dark(x: Tensor, limit: float) -> Tensor:
        return (x[:, 0] < limit).long()

    viewer = Viewer(Run(seed=0), tissue.mean, tissue.std, 2)
    found = grid.scores(lambda x: torch.stack([dark(x, -0.2), dark(x, 0.1)]), viewer, ["dark", "less"])
    counted = circle(16) if len(angles) > 1 else torch.ones(16, 16, dtype=torch.bool)
    assert float(circle(16).float().mean()) == pytest.approx(torch.pi / 4, abs=0.03)

    def by_hand(limit: float) -> dict[str, float]:
        masks = {cell: torch.where(counted, tiles.masks, IGNORED) for cell, tiles in grid.cells.items()}
        said = {cell: dark(viewer.seen(tiles.images), limit) for cell, tiles in grid.cells.items()}
        return grid_scores({cell: mean_iou(confusion(said[cell], masks[cell], 2)) for cell in masks})

    first, second = by_hand(-0.2), by_hand(0.1)
    assert {name: found[name] for name in first} == pytest.approx(first)
    assert found["miou"] == pytest.approx(first["s1_r0"])
    assert found["less/grid_miou"] == pytest.approx(second["grid_miou"])
    assert ("both_miou" in found) == (len(angles) > 1)


def test_means_over_the_grid() -> None:
    cells = {(1.0, 0.0): 0.9, (1.0, 45.0): 0.8, (2.0, 0.0): 0.6, (2.0, 45.0): 0.5}
    found = grid_scores(cells)
    expected = {"grid_miou": 0.7, "grid_min": 0.5, "scales_miou": 0.6, "rotations_miou": 0.8, "both_miou": 0.5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["grid_std"] == pytest.approx(0.025**0.5)
    assert found["s2_r45"] == 0.5


def test_real_images_are_resampled_by_one_as_they_are() -> None:
    config = dataclasses.replace(SMALL, source="folder", root="unused")
    tissue = open_tissue(SMALL)
    grid = Grid(tissue, config, "validation", scales=(1.0,), angles=(0.0,), multiple=4)
    assert torch.equal(grid.cells[1.0, 0.0].images, tissue.validation.images)
    assert torch.equal(grid.cells[1.0, 0.0].masks, tissue.validation.masks)


def test_errors_of_equivariance_find_the_shift() -> None:
    plain = torch.randn(3, 2, 4, 9, 9, dtype=torch.float64)
    assert branch_errors(plain, plain).diagonal().abs().max() < 1e-12
    shifted = torch.nn.functional.interpolate(
        plain.roll(1, 0).flatten(0, 1), size=(17, 17), mode="bilinear", align_corners=True
    ).view(3, 2, 4, 17, 17)
    errors = branch_errors(plain, shifted)
    assert errors.argmin(dim=1).tolist() == [1, 2, 0]
    assert errors.min() < 1e-12
    assert errors.diagonal().min() > 0.5
