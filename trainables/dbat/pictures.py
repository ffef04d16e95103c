"""Masks over images, the alignment of layers, and what units detect, as pictures for the report."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from trainables.common.drawing import lettering, write
from trainables.common.segmentation import IGNORED

_SIDE = 96  # pixels of an image in the picture of the masks
_GAP, _TITLE = 6, 16
_CELL = 26  # of the alignment's table
_BAR, _ROW = 240, 16  # of the detectors
_UNLABELLED = torch.tensor([0.85, 0.85, 0.85])
_BLUE = torch.tensor([0.15, 0.35, 0.65])


def class_colours(classes: int) -> Tensor:
    """A colour for each class (K, 3): hues a golden ratio apart, in turns light and dark."""
    hues = (torch.arange(classes) * 0.618034) % 1
    values = torch.where(torch.arange(classes) % 2 == 0, 0.9, 0.6)
    sectors = (hues[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    return values[:, None] * (1 - 0.65 * torch.minimum(sectors, 4 - sectors).clamp(0, 1))


def draw_attention(images: Tensor, labels: Tensor, predicted: Tensor, masks: Tensor | None, classes: int) -> Tensor:
    """A row for each image: itself, its labels, what is predicted, and the four masks: bright is a large share.

    Args:
        images: (n, 3, S, S) uint8.
        labels: (n, S, S).
        predicted: (n, S, S).
        masks: (n, 4, h, w), or None.
        classes: K.

    Returns:
        (3, height, width) in [0, 1].
    """
    colours = torch.cat([class_colours(classes), _UNLABELLED.expand(IGNORED + 1 - classes, 3)])
    columns = {
        "image": _sized(images.float() / 255),
        "labels": _sized(colours[labels.long()].movedim(-1, 1), "nearest"),
        "predicted": _sized(colours[predicted.long()].movedim(-1, 1), "nearest"),
    }
    for k in range(0 if masks is None else masks.shape[1]):
        assert masks is not None
        grey = _sized(images.float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1) / 255)
        share = _sized(masks[:, k : k + 1])
        # A share of a quarter is what a mask would be that says nothing.
        columns[f"map {k + 1}"] = (0.3 * grey + 0.7 * share * torch.tensor([1.0, 0.75, 0.3]).view(3, 1, 1)).clamp(0, 1)
    canvas = torch.ones(3, _TITLE + len(images) * (_SIDE + _GAP), len(columns) * (_SIDE + _GAP))
    for column, (title, pictures) in enumerate(columns.items()):
        left = column * (_SIDE + _GAP)
        write(canvas, lettering(title), 4, left)
        for row, picture in enumerate(pictures):
            top = _TITLE + row * (_SIDE + _GAP)
            canvas[:, top : top + _SIDE, left : left + _SIDE] = picture
    return canvas


def _sized(pictures: Tensor, mode: str = "bilinear") -> Tensor:
    corners = {} if mode == "nearest" else {"align_corners": False}
    return functional.interpolate(pictures.float(), size=(_SIDE, _SIDE), mode=mode, **corners)


def draw_alignment(names: list[str], values: Tensor) -> Tensor:
    """The table of the layers' alignment: dark is alike.

    Args:
        names: Of the layers.
        values: (layers, layers), 1 for the same.

    Returns:
        (3, height, width) in [0, 1].
    """
    labels = [lettering(name) for name in names]
    left = max(label.shape[1] for label in labels) + 8
    size = len(names) * _CELL
    canvas = torch.ones(3, _TITLE + size + 4, left + size + 4)
    write(canvas, lettering("alignment")[:, : canvas.shape[2] - left], 4, left)
    for row, label in enumerate(labels):
        write(canvas, label, _TITLE + row * _CELL + (_CELL - 7) // 2, left - label.shape[1] - 4)
        for column in range(len(names)):
            value = float(values[row, column])
            top, place = _TITLE + row * _CELL, left + column * _CELL
            shade = 1 - min(max(value, 0.0), 1.0) * (1 - _BLUE)
            canvas[:, top : top + _CELL - 1, place : place + _CELL - 1] = shade[:, None, None]
            text = lettering(f"{max(value, 0.0):.1f}")
            inked = canvas[:, top + 9 : top + 16, place + 4 : place + 4 + text.shape[1]]
            inked[:, text] = 0.0 if value < 0.6 else 1.0
    return canvas


def draw_detectors(shares: Mapping[str, float]) -> Tensor:
    """A bar for each group of concepts: the share of units that detect one of them.

    Returns:
        (3, height, width) in [0, 1].
    """
    labels = {group: lettering(group) for group in shares}
    left = max(label.shape[1] for label in labels.values()) + 8
    title = lettering("share of units that detect a concept")
    canvas = torch.ones(3, _TITLE + len(shares) * _ROW + 4, left + max(_BAR + 40, title.shape[1]))
    write(canvas, title, 4, left)
    for row, (group, share) in enumerate(shares.items()):
        top = _TITLE + row * _ROW
        write(canvas, labels[group], top + 4, 2)
        length = max(1, round(_BAR * share))
        canvas[:, top + 2 : top + _ROW - 2, left : left + length] = _BLUE[:, None, None]
        write(canvas, lettering(f"{share:.2f}"), top + 4, left + length + 4)
    return canvas
