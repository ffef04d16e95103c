"""What is trained on and compared: tissue of one magnification and orientation, and the same at others."""

from __future__ import annotations

from trainables.common.histology import grid
from trainables.common.histology.data import HistologyDataConfig

_SCALES = (0.71, 1.0, 1.41)
_ANGLES = (0.0, 45.0, 90.0)


def open_study(config: HistologyDataConfig, multiple: int) -> grid.Study:
    """The tissue, validated at near magnifications times three turns (section 6 of the notes).

    Args:
        config: Which tissue.
        multiple: What the sides of images must be a multiple of.

    Raises:
        InputError: A file is missing or wrong.
    """
    return grid.open_study(config, multiple, _SCALES, _ANGLES)
