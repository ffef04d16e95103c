"""What ADS_UNet is trained on: tissue of any direction that differs in how hard it is, so that boosting has work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pharos.run import Epoch
from trainables.common.histology.augmentation import augmented
from trainables.common.histology.data import HistologyDataConfig, Tissue, open_tissue, unit

__all__ = ["HistologyDataConfig", "Tissue", "heterogeneous", "open_tissue", "shown"]


def heterogeneous() -> HistologyDataConfig:
    """Generated tissue as section 2.3 of the notes recommends it for this family."""
    return HistologyDataConfig(isotropic=True, varied=True)


def shown(batch: Sequence[Tensor], kind: str, epoch: Epoch, crop: int) -> tuple[Tensor, Tensor, Tensor]:
    """A training batch with its augmentation.

    Args:
        batch: uint8 images (B, 3, H, W), masks (B, H, W), and weights of samples (B,) or of pixels (B, H, W).
        kind: Of `augmented`.
        epoch: Draws.
        crop: Of `augmented`.

    Returns:
        Images in [0, 1], masks, weights; those of pixels go with their pixels.
    """
    images, masks, weights = batch
    if weights.dim() == 1:
        return *augmented(unit(images), masks, kind, epoch, crop), weights
    # A fourth channel is flipped, turned and cut as the others are.
    stacked, masks = augmented(torch.cat([unit(images), weights[:, None]], dim=1), masks, kind, epoch, crop)
    return stacked[:, :3], masks, stacked[:, 3]
