"""What is reported of segmented tissue, and how alike two sets of features are.

Source: section 5 of the reference notes on ADS_UNet. Scores of a class that is neither in the truth nor in the
prediction are NaN, and left out of every mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainables.common.segmentation import class_dice, class_iou, confusion, pixel_accuracy


def scores(matrix: Tensor, names: tuple[str, ...] = ()) -> dict[str, float]:
    """What is reported of a data set.

    Args:
        matrix: Its confusion matrix (K, K).
        names: Of the classes, to report the IoU of each; empty: of none.

    Returns:
        `miou`, `dice` (mean over classes), `accuracy`; of two classes also `foreground_iou`, that of the second.
        What is unknown, as the IoU of a class that does not occur, is left out.
    """
    iou = class_iou(matrix)
    found = {
        "miou": float(iou.nanmean()),
        "dice": float(class_dice(matrix).nanmean()),
        "accuracy": pixel_accuracy(matrix),
    }
    if len(matrix) == 2:
        found["foreground_iou"] = float(iou[1])
    found |= {f"iou/{name}": float(value) for name, value in zip(names, iou, strict=False)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def image_iou(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Each image's IoU (N,), averaged over the classes in its truth.

    Args:
        predicted: (N, H, W).
        truth: (N, H, W); `IGNORED` is left out.
        classes: K.
    """
    found = []
    for ours, theirs in zip(predicted, truth, strict=True):
        matrix = confusion(ours, theirs, classes)
        present = matrix.sum(1) > 0
        found.append(class_iou(matrix)[present].mean() if present.any() else matrix.new_zeros(()))
    return torch.stack(found)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features, 1 for the same up to rotation and scale.

    Args:
        x: (n, p) features of n samples.
        y: (n, q) those of the same samples.
    """
    x, y = (values.double() - values.double().mean(dim=0) for values in (x, y))
    norm = torch.linalg.matrix_norm
    return float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)).clamp_min(1e-300))
