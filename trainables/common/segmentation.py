"""What all segmentation is judged by: the confusion matrix of a whole data set, and what follows from it.

Scores of a class that does not occur are NaN, and left out of every mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = 255  # in masks: pixels that count for nothing


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts of pixels by class.

    Args:
        predicted: Classes, any shape.
        truth: The same shape; `IGNORED` is left out.
        classes: K.

    Returns:
        (K, K) float64; rows are the truth.
    """
    counted = truth != IGNORED
    codes = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(codes, minlength=classes * classes).reshape(classes, classes).double()


def class_iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class (K,); NaN for one that occurs nowhere."""
    both = matrix.diagonal()
    return both / (matrix.sum(0) + matrix.sum(1) - both)


def class_dice(matrix: Tensor) -> Tensor:
    """Dice of each class (K,), `2 IoU / (1 + IoU)`; NaN for one that occurs nowhere."""
    return 2 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1))


def class_accuracy(matrix: Tensor) -> Tensor:
    """Share of each class's pixels that are found (K,); NaN for one that is not in the truth."""
    return matrix.diagonal() / matrix.sum(1)


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of all pixels whose class is found; NaN without pixels."""
    return float(matrix.diagonal().sum() / matrix.sum())


def mean_accuracy(matrix: Tensor) -> float:
    """`class_accuracy` over the classes that are in the truth."""
    return float(class_accuracy(matrix).nanmean())


def mean_iou(matrix: Tensor) -> float:
    """Over the classes that occur."""
    return float(class_iou(matrix).nanmean())
