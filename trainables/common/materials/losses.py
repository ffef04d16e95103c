"""Losses of sparsely labelled pixels. Source: section 4.1 of the notes on DBAT, section 4.3 of those on MatSpectNet."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainables.common.segmentation import IGNORED

_LEAST = 1e-7  # probabilities are kept so far from 0 and 1


def focal_sums(logits: Tensor, labels: Tensor, gamma: float, kind: str = "softmax") -> Tensor:
    """Focal loss of each sample, summed over its labelled pixels.

    softmax: `-(1 - p)^gamma log p` of the true class's probability (DBAT). sigmoid: every class against the rest, the
    same of the probability of being right, summed over the classes (MatSpectNet).

    Args:
        logits: (B, K, H, W), any precision; the loss is computed in fp32.
        labels: (B, H, W), `IGNORED` where there is none.
        gamma: 0 gives cross-entropy.
        kind: softmax or sigmoid.

    Returns:
        (B,); 0 with no gradient for a sample without labels.
    """
    counted = labels != IGNORED
    # Gathered first: unlabelled pixels are most of them, and need no softmax.
    chosen = logits.movedim(1, -1)[counted].float()
    truth = labels[counted].long()
    if kind == "softmax":
        p = chosen.softmax(dim=1).gather(1, truth[:, None]).squeeze(1)
    else:
        is_true = functional.one_hot(truth, logits.shape[1]).bool()
        p = torch.where(is_true, chosen.sigmoid(), (-chosen).sigmoid())
    p = p.clamp(_LEAST, 1 - _LEAST)
    losses = -(1 - p).pow(gamma) * p.log()
    if losses.dim() == 2:
        losses = losses.sum(dim=1)
    return losses.new_zeros(labels.shape).masked_scatter(counted, losses).flatten(1).sum(dim=1)


def mean_over_pixels(sums: Tensor, pixels_per_sample: float) -> Tensor:
    """The mean over the labelled pixels of the whole batch, written as a mean over samples.

    Workers hold different numbers of labelled pixels, so the mean of their means would not be it.

    Args:
        sums: (B,) this worker's samples.
        pixels_per_sample: Mean number of labelled pixels of all workers' samples.
    """
    return sums.mean() / max(pixels_per_sample, 1e-9)
