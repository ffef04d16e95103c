"""Branches of scale: their weighted losses, and how they are fused into one prediction.

Source: section 4 of the reference notes on SEUNet (arXiv 2304.04595), sections 3.6 and 4 of those on RSESF (arXiv
2304.04600).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.histology.networks import baseline
from trainables.common.segmentation import IGNORED

FUSIONS = ("margin", "margin_mean", "mean", "max", "eta")
ETA_MODES = ("bounded", "softmax", "uniform")


class BranchLogits(NamedTuple):
    """What a network of branches says."""

    logits: Tensor
    """(S, B, K, H, W)."""
    weights: Tensor
    """Of the branches' losses (S,), of sum 1."""

    @classmethod
    def weighed(cls, logits: Tensor, eta: Tensor | None, mode: str) -> BranchLogits:
        """Logits with the weights that were learned, see `branch_weights`, or equal ones where none are."""
        if eta is None:
            return cls(logits, logits.new_full((len(logits),), 1 / len(logits)))
        return cls(logits, branch_weights(eta, mode))

    def loss(self, mask: Tensor) -> Tensor:
        """The weighted sum of the branches' cross-entropies; pixels of `IGNORED` count for nothing.

        Each image has the same weight, so that the mean over the batch is the mean over its parts.

        Args:
            mask: Classes (B, H, W).
        """
        branches = self.logits.float().flatten(0, 1)
        repeated = mask.long().expand(len(self.logits), *mask.shape).flatten(0, 1)
        pixels = functional.cross_entropy(branches, repeated, ignore_index=IGNORED, reduction="none").flatten(1).sum(1)
        counted = (repeated != IGNORED).flatten(1).sum(1).clamp_min(1)
        return torch.dot(self.weights.float(), (pixels / counted).view(len(self.logits), -1).mean(dim=1))

    def probabilities(self, fusion: str) -> Tensor:
        """What the branches say together: (B, K, H, W), see `fuse`."""
        return fuse(self.logits.float().softmax(dim=2), self.weights, fusion)


def branch_weights(eta: Tensor, mode: str) -> Tensor:
    """The weights of the branches' losses (S,), of sum 1, from the learned numbers.

    Args:
        eta: (S,).
        mode: bounded (halfway between softmax and equal, so that each branch keeps 1 / 2S), softmax, or uniform.
    """
    equal = torch.full_like(eta, 1 / len(eta))
    if mode == "uniform":
        return equal
    learned = eta.softmax(dim=0)
    return learned if mode == "softmax" else (learned + equal) / 2


def fuse(probabilities: Tensor, weights: Tensor, fusion: str) -> Tensor:
    """One map of probabilities from those of the branches.

    Args:
        probabilities: (S, B, K, H, W).
        weights: Of the branches' losses (S,).
        fusion: margin (at each pixel the branch whose first class leads its second most), margin_mean (the mean
            weighted by the softmax of those margins), mean, max (of each class, divided by their sum), or eta (the
            branch of the largest weight).

    Returns:
        (B, K, H, W).
    """
    match fusion:
        case "mean":
            return probabilities.mean(dim=0)
        case "eta":
            return probabilities[int(weights.argmax())]
        case "max":
            largest = probabilities.amax(dim=0)
            return largest / largest.sum(dim=1, keepdim=True)
    first, second = probabilities.topk(2, dim=2).values.unbind(dim=2)
    margin = (first - second).unsqueeze(2)
    if fusion == "margin_mean":
        return (margin.softmax(dim=0) * probabilities).sum(dim=0)
    chosen = margin.argmax(dim=0, keepdim=True).expand(1, *probabilities.shape[1:])
    return probabilities.gather(0, chosen).squeeze(0)


class OneBranch(nn.Module):
    """A baseline as if it were a network of branches that has one.

    Args:
        name: What `networks.baseline` calls it; one with a single map of logits.
        classes: K.
        width: Channels of the first level.
        depth: How often the resolution is halved.
    """

    def __init__(self, name: str, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.network = baseline(name, classes, width, depth)

    def forward(self, x: Tensor) -> BranchLogits:
        """(B, 3, H, W) -> logits (1, B, K, H, W)."""
        (logits,) = self.network(x)
        return BranchLogits(logits.unsqueeze(0), logits.new_ones(1))
