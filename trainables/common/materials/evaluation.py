"""How well materials are found: the confusion matrix over a data set of images of any size, and what is reported of it.

Source: section 5.1 of the reference notes on DBAT. Accuracies follow from the pixels of a whole data set, never from
means over images: with sparse labels these differ much in how many they have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pharos.learner import Learner
from pharos.run import Run
from trainables.common.materials.data import Samples, resized_like
from trainables.common.materials.tiling import tiled
from trainables.common.segmentation import IGNORED, class_accuracy, confusion, mean_accuracy, mean_iou, pixel_accuracy

Predict = Callable[[Tensor], Tensor]
"""Images (B, 3, S, S) in [0, 1] -> logits (B, K, S, S)."""


def confusion_over(
    predict: Predict, samples: Samples, *, classes: int, side: int, batch: int, device: torch.device
) -> Tensor:
    """The confusion matrix (K, K) of a data set at the size of its labels.

    Args:
        predict: The network.
        samples: The data set.
        classes: K.
        side: S: images of this size are predicted as they are, others in tiles.
        batch: Images or tiles at a time.
        device: Where the network is.
    """
    total = torch.zeros(classes, classes, dtype=torch.float64)
    waiting: list[tuple[Tensor, Tensor]] = []

    def count() -> None:
        nonlocal total
        if waiting:
            logits = predict(torch.stack([image for image, _ in waiting]))
            for one, (_, labels) in zip(logits, waiting, strict=True):
                total += confusion(resized_like(one[None], labels)[0].argmax(dim=0).cpu(), labels, classes)
            waiting.clear()

    for index in range(len(samples)):
        pixels, labels = samples.read_whole(index)
        image = pixels.to(device).float() / 255
        if image.shape[1:] == (side, side):
            waiting.append((image, labels))
            if len(waiting) == batch:
                count()
        else:
            logits = tiled(predict, image, side, batch)
            total += confusion(resized_like(logits[None], labels)[0].argmax(dim=0).cpu(), labels, classes)
    count()
    return total


def scores(matrix: Tensor, prefix: str) -> dict[str, float]:
    """`pixel_acc`, `mean_acc` and `miou` after a prefix, and how many classes the truth lacks.

    Mean accuracy leaves out classes that are not in the truth (DBAT's code counts them as 0).

    Args:
        matrix: (K, K) with at least one pixel.
        prefix: Such as `val/`.
    """
    absent = class_accuracy(matrix).isnan().sum()
    found = {
        "pixel_acc": pixel_accuracy(matrix),
        "mean_acc": mean_accuracy(matrix),
        "miou": mean_iou(matrix),
        "absent_classes": float(absent),
    }
    return {prefix + name: value for name, value in found.items()}


def labelled_counts(labels: Tensor) -> Tensor:
    """How many pixels of each sample have a label: (B, H, W) -> (B,)."""
    return (labels != IGNORED).flatten(1).sum(dim=1)


def keep_best(run: Run, learner: Learner, score: float) -> None:
    """Remembers the weights of the best validation so far, as `run.state["best"]["network"]`."""
    best = run.state.get("best")
    if best is None or score > best["score"]:
        run.state["best"] = {"score": score, "network": learner.weights()}
