"""What is trained on and compared: tissue of one magnification, and the same at others."""

from __future__ import annotations

from trainables.common.histology import grid
from trainables.common.histology.data import SCALES, HistologyDataConfig


def open_study(config: HistologyDataConfig, multiple: int) -> grid.Study:
    """The tissue, validated at all magnifications, upright: what is searched for (section 6 of the notes).

    Args:
        config: Which tissue.
        multiple: What the sides of images must be a multiple of.

    Raises:
        InputError: A file is missing or wrong.
    """
    return grid.open_study(config, multiple, SCALES, (0.0,))
