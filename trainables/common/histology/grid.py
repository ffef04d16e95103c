"""How a network does at magnifications and orientations of the tissue at which it was not trained.

Source: sections 2.4 and 5 of the reference notes on SEUNet and RSESF.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pharos.run import Run
from trainables.common.histology.data import HistologyDataConfig, Tissue, at, circle
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
