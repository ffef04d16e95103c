"""What DBAT is trained on, and what is known of the generated scenes beside their labels: the concepts of a dissection.

Source: sections 2.6 and 5.4 of the reference notes on DBAT.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.common.materials.data import Materials, MaterialsDataConfig, Samples, open_materials, shown
from trainables.common.materials.scenes import MATSCALE_PERIODS, Scenes

__all__ = ["Materials", "MaterialsDataConfig", "Samples", "concepts", "open_materials", "shown"]

_ZOOMS = (0.8, 1.25)  # between far, middle and near


def concepts(scenes: Scenes, indices: Sequence[int], classes: int, *, is_matscale: bool) -> dict[str, Tensor]:
    """Where in the scenes a concept is, by its group.

    Args:
        scenes: Generated ones.
        indices: n of them.
        classes: K.
        is_matscale: Whether classes are pairs of periods.

    Returns:
        `material`, `colour` (the strongest channel), `distance` (far, middle, near) and, of matscale, `fine` and
        `coarse` (periods): each (n, concepts, H, W), boolean.
    """
    chosen = torch.as_tensor(list(indices))
    truth, cells = scenes.truth[chosen].long(), scenes.cells[chosen].long()
    found = {"material": _is(truth, torch.arange(classes))}
    if is_matscale:
        for group, periods in zip(("fine", "coarse"), MATSCALE_PERIODS.T, strict=True):
            found[group] = _is(periods[truth], periods.unique())
    found["colour"] = _is(_strongest_channel(scenes.images[chosen], cells), torch.arange(3))
    far = torch.bucketize(scenes.zoom[chosen], torch.tensor(_ZOOMS))
    found["distance"] = _is(far[:, None, None].expand_as(truth), torch.arange(len(_ZOOMS) + 1))
    return found


def _is(values: Tensor, wanted: Tensor) -> Tensor:
    return values[:, None] == wanted.view(1, -1, 1, 1)


def _strongest_channel(images: Tensor, cells: Tensor) -> Tensor:
    """Which of red, green and blue is the mean colour's largest, of each pixel's surface (n, H, W)."""
    count = int(cells.max()) + 1
    flat = cells.flatten(1)[:, None].expand(-1, 3, -1)
    sums = torch.zeros(len(images), 3, count).scatter_add_(2, flat, images.flatten(2).float())
    return sums.argmax(dim=1).gather(1, cells.flatten(1)).view_as(cells)
