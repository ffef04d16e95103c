"""How a network that was trained at one magnification and orientation of the tissue does at others.

Source: sections 2.4 and 5 of the reference notes on SEUNet and RSESF.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pharos.run import Run
from trainables.common.histology.data import ANGLES, SCALES, HistologyDataConfig, Tissue, at, circle, open_tissue
from trainables.common.histology.metrics import IGNORED, confusion_over, mean_iou, scores

_BATCH = 16  # images at a time

Cell = tuple[float, float]
"""Magnification relative to training, and orientation in degrees."""


class Grid:
    """A split at magnifications times orientations. Only pixels of the inscribed circle count: those of all turns.

    Args:
        tissue: Where the split is from.
        config: What the tissue was opened with.
        split: validation or test.
        scales: Magnifications relative to training; 1 is among them.
        angles: Orientations in degrees; 0 is among them.
        multiple: What sides of real images must be a multiple of.
    """

    def __init__(
        self,
        tissue: Tissue,
        config: HistologyDataConfig,
        split: str,
        *,
        scales: Sequence[float],
        angles: Sequence[float],
        multiple: int,
    ) -> None:
        self._classes = len(tissue.classes)
        self.cells: dict[Cell, tuple[Tensor, Tensor]] = {}
        """Images (N, 3, H, W) uint8 and masks (N, H, W) of each."""
        for scale in scales:
            for angle in angles:
                tiles = at(getattr(tissue, split), config, split, scale=scale, phi=angle, multiple=multiple)
                masks = tiles.masks
                if len(angles) > 1 and masks.shape[1] == masks.shape[2]:
                    masks = torch.where(circle(masks.shape[-1]), masks, IGNORED)
                self.cells[scale, angle] = tiles.images, masks

    def scores(self, predict: Callable[[Tensor], Tensor], run: Run) -> dict[str, float]:
        """mIoU by cell and over the grid; workers share the images.

        Args:
            predict: Classes (B, H, W) of images (B, 3, H, W) uint8.
            run: The trial's.

        Returns:
            Of training's own magnification and orientation `miou` and other scores; over all cells `grid_miou`,
            `grid_min`, `grid_std`; over the cells of another magnification `scales_miou`, of another orientation
            `rotations_miou`, of both `both_miou`, if there are such; and `s<scale>_r<angle>` of each cell.
        """
        mine = slice(run.rank, None, run.world_size)
        counts: dict[str, float] = {}
        for (scale, angle), (images, masks) in self.cells.items():
            matrix = confusion_over(predict, images[mine], masks[mine], self._classes, _BATCH)
            counts |= {f"{scale}/{angle}/{place}": float(count) for place, count in enumerate(matrix.flatten())}
        counts = run.mean(counts)
        found = {}
        for scale, angle in self.cells:
            flat = [counts[f"{scale}/{angle}/{place}"] for place in range(self._classes**2)]
            found[scale, angle] = torch.tensor(flat, dtype=torch.float64).view(self._classes, -1)
        return scores(found[1.0, 0.0]) | grid_scores({cell: mean_iou(matrix) for cell, matrix in found.items()})


def grid_scores(by_cell: dict[Cell, float]) -> dict[str, float]:
    """What is reported of the mIoU of all cells, see `Grid.scores`."""
    groups = {
        "scales": [value for (scale, angle), value in by_cell.items() if scale != 1 and angle == 0],
        "rotations": [value for (scale, angle), value in by_cell.items() if scale == 1 and angle != 0],
        "both": [value for (scale, angle), value in by_cell.items() if scale != 1 and angle != 0],
    }
    values = list(by_cell.values())
    return {
        "grid_miou": statistics.mean(values),
        "grid_min": min(values),
        "grid_std": statistics.pstdev(values),
        **{f"{name}_miou": statistics.mean(group) for name, group in groups.items() if group},
        **{f"s{scale:g}_r{angle:g}": value for (scale, angle), value in by_cell.items()},
    }


@dataclass(frozen=True)
class Study:
    """What a network is trained on, chosen by and tested with.

    Attributes:
        tissue: To train on, at one magnification and orientation.
        validation: At some others.
        test: At all others.
    """

    tissue: Tissue
    validation: Grid
    test: Grid

    def scores(self, predict: Callable[[Tensor], Tensor], run: Run, *, is_last: bool) -> dict[str, float]:
        """`val/...`, and at the end of training `test/...`: see `Grid.scores`."""
        found = {f"val/{name}": value for name, value in self.validation.scores(predict, run).items()}
        if is_last:
            found |= {f"test/{name}": value for name, value in self.test.scores(predict, run).items()}
        return found


def open_study(config: HistologyDataConfig, multiple: int, scales: Sequence[float], angles: Sequence[float]) -> Study:
    """Reads or generates all of it.

    Args:
        config: Which tissue.
        multiple: What the sides of images must be a multiple of.
        scales: Magnifications of the validation; those of the test are all.
        angles: Its orientations, in degrees.

    Raises:
        InputError: A file is missing or wrong.
    """
    tissue = open_tissue(config)
    return Study(
        tissue,
        Grid(tissue, config, "validation", scales=scales, angles=angles, multiple=multiple),
        Grid(tissue, config, "test", scales=SCALES, angles=ANGLES, multiple=multiple),
    )
