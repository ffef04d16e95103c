"""Segmentations as pictures: classes in colours over the tissue, with their borders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trainables.common.segmentation import IGNORED

# Told apart by people who see colours otherwise, and against pink and violet tissue; the first is the usual background.
_PALETTE = torch.tensor(
    [
        *([0.93, 0.91, 0.80], [0.00, 0.80, 0.35], [0.00, 0.45, 0.85], [0.90, 0.35, 0.00], [0.20, 0.20, 0.20]),
        *([0.34, 0.80, 0.91], [0.95, 0.90, 0.25], [0.55, 0.35, 0.10]),
    ]
)
_WHITE = torch.ones(3)
_GAP = 4  # pixels between pictures


def colours(labels: Tensor) -> Tensor:
    """Labels (H, W) as colours (3, H, W) in [0, 1]; ignored pixels are white."""
    found = _PALETTE[labels.long() % len(_PALETTE)]
    return torch.where((labels == IGNORED)[..., None], _WHITE, found).movedim(-1, 0)


def borders(labels: Tensor) -> Tensor:
    """Pixels (H, W) with a neighbour, to the right or below, of another class."""
    edge = torch.zeros(labels.shape, dtype=torch.bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def overlay(image: Tensor, labels: Tensor, opacity: float = 0.3, clear: Sequence[int] = ()) -> Tensor:
    """Tissue with its classes over it, their borders in full colour.

    Args:
        image: (3, H, W) in [0, 1].
        labels: (H, W).
        opacity: Of the colours.
        clear: Classes that are not coloured, such as the background of two.

    Returns:
        (3, H, W) in [0, 1].
    """
    paint = colours(labels)
    share = torch.full(labels.shape, opacity)
    share[torch.isin(labels.long(), torch.tensor(list(clear), dtype=torch.int64))] = 0
    share[borders(labels)] = 1
    if 0 in clear:  # a border belongs to what is not background, on whichever side it was found
        inside = functional.max_pool2d((labels > 0).float()[None, None], 3, 1, 1)[0, 0] > 0
        paint = torch.where(borders(labels) & inside, colours(labels.clamp_min(1)), paint)
    return image * (1 - share) + paint * share


def draw_segmentation(images: Tensor, truth: Tensor, predicted: Tensor, zoom: int = 2) -> Tensor:
    """Rows of tissue, its labels, and what a network says they are.

    Args:
        images: (N, 3, H, W) in [0, 1].
        truth: (N, H, W).
        predicted: (N, H, W).
        zoom: By which pixels are enlarged.

    Returns:
        (3, height, width) in [0, 1].
    """
    rows = []
    for image, labels, said in zip(images, truth, predicted, strict=True):
        panels = [image, colours(labels), colours(said)]
        rows.append(torch.cat([functional.pad(panel, (0, _GAP, 0, _GAP), value=1.0) for panel in panels], dim=2))
    sheet = torch.cat(rows, dim=1)[:, :-_GAP, :-_GAP]
    return sheet.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
