"""The loss of one supervised layer: against masks that are pooled to its resolution, weighted by sample or by pixel.

Source: section 4.1 of the reference notes on ADS_UNet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common.segmentation import IGNORED

_SMOOTH = 1e-6


def soft_targets(masks: Tensor, classes: int) -> Tensor:
    """Masks (B, H, W) as (B, K, H, W): 1 for a pixel's class, 0 everywhere for an ignored one."""
    hard = functional.one_hot(torch.where(masks == IGNORED, 0, masks.long()), classes)
    return (hard * (masks != IGNORED)[..., None]).movedim(-1, 1).float()


def targets_at(soft: Tensor, weights: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Targets and weights at a lower resolution: mean over the pixels of each place, so that nothing is up-sampled.

    Args:
        soft: (B, K, H, W) of `soft_targets`.
        weights: (B,), or (B, H, W) of pixels.
        factor: H over the height of the layer.

    Returns:
        (B, K, H / factor, W / factor), which sums to the share of pixels that count; weights (B,) or (B, H / factor, W
        / factor).
    """
    if factor == 1:
        return soft, weights
    pooled = functional.avg_pool2d(weights[:, None], factor)[:, 0] if weights.dim() == 3 else weights
    return functional.avg_pool2d(soft, factor), pooled


class MapLoss(nn.Module):
    """The loss of each sample of a map of logits.

    Args:
        kind: ce (soft cross-entropy), iou, or ce+dice.
        class_weights: κ, (K,).
    """

    def __init__(self, kind: str, class_weights: Tensor):
        super().__init__()
        self.kind = kind
        self.register_buffer("class_weights", class_weights.clone(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(B, K, h, w) logits and soft targets, weights (B,) or (B, h, w) -> (B,)."""
        by_pixel = weights if weights.dim() == 3 else None
        if self.kind == "iou":
            per_sample = 1 - _overlap(logits, targets, by_pixel, union=True)
        else:
            kappa: Tensor = self.class_weights  # type: ignore[assignment]
            entropy = -(kappa.view(1, -1, 1, 1) * targets * logits.log_softmax(dim=1)).sum(dim=1)
            counted = targets.sum(dim=(1, 2, 3)).clamp_min(_SMOOTH)
            per_sample = (entropy if by_pixel is None else entropy * by_pixel).sum(dim=(1, 2)) / counted
            if self.kind == "ce+dice":
                per_sample = per_sample + 1 - _overlap(logits, targets, by_pixel, union=False)
        return per_sample if by_pixel is not None else per_sample * weights


def _overlap(logits: Tensor, targets: Tensor, weights: Tensor | None, *, union: bool) -> Tensor:
    """Soft IoU, or soft Dice, of each sample (B,): the mean over classes."""
    counted = targets.sum(dim=1, keepdim=True) * (1 if weights is None else weights[:, None])
    p, y = logits.softmax(dim=1) * counted, targets * (1 if weights is None else weights[:, None])
    both = (logits.softmax(dim=1) * y).sum(dim=(2, 3))
    either = p.sum(dim=(2, 3)) + y.sum(dim=(2, 3))
    share = both / (either - both + _SMOOTH) if union else 2 * both / (either + _SMOOTH)
    return share.mean(dim=1)


def class_weights(kind: str, frequencies: Tensor) -> Tensor:
    """κ of each class (K,).

    Args:
        kind: none, complement (1 - frequency, as for BCSS), or inverse_sqrt (1 / √frequency, 1 on average).
        frequencies: (K,) shares of pixels.
    """
    if kind == "complement":
        return 1 - frequencies
    if kind == "inverse_sqrt":
        weights = frequencies.clamp_min(1e-4).rsqrt()
        return weights / weights.mean()
    return torch.ones_like(frequencies)
