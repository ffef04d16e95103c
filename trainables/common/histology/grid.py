"""How a network that was trained at one magnification and orientation of the tissue does at others.

Source: sections 2.4 and 5 of the reference notes on SEUNet and RSESF.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from trainables.common.histology.data import ANGLES, SCALES, HistologyDataConfig, Tiles, Tissue, at, circle, open_tissue
from trainables.common.histology.evaluation import Viewer
from trainables.common.histology.metrics import scores
from trainables.common.segmentation import mean_iou

Cell = tuple[float, float]
"""Magnification relative to training, and orientation in degrees."""


class Grid:
    """A split at magnifications times orientations. With turns, the inscribed circle counts: what all of them show.

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
        self._is_turned = len(angles) > 1
        self.cells: dict[Cell, Tiles] = {
            (scale, angle): at(getattr(tissue, split), config, split, scale=scale, phi=angle, multiple=multiple)
            for scale in scales
            for angle in angles
        }

    def scores(self, predict: Callable[[Tensor], Tensor], viewer: Viewer, ways: Sequence[str]) -> dict[str, float]:
        """mIoU by cell and over the grid; workers share the images.

        Args:
            predict: Classes (V, B, H, W), in V ways, of what a network is given (B, 3, H, W).
            viewer: Shows it the images.
            ways: Their names. The first is reported as it is, of the others the means over cells, as `<way>/...`.

        Returns:
            Of training's own magnification and orientation `miou` and other scores; over all cells `grid_miou`,
            `grid_min`, `grid_std`; over the cells of another magnification `scales_miou`, of another orientation
            `rotations_miou`, of both `both_miou`, if there are such; and `s<scale>_r<angle>` of each cell.
        """
        matrices = {}
        for cell, tiles in self.cells.items():
            within = circle(tiles.masks.shape[-1]) if self._is_turned and _is_square(tiles.masks) else None
            matrices[cell] = viewer.confusions(predict, tiles, self._classes, within)
        found: dict[str, float] = {}
        for number, way in enumerate(ways):
            of_grid = grid_scores({cell: mean_iou(matrix[number]) for cell, matrix in matrices.items()})
            if number == 0:
                found |= scores(matrices[1.0, 0.0][number]) | of_grid
            else:
                found |= {f"{way}/{name}": value for name, value in of_grid.items() if name.endswith("_miou")}
        return found


def _is_square(masks: Tensor) -> bool:
    return masks.shape[-1] == masks.shape[-2]


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
