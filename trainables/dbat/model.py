"""What DBAT trains: the network that MatSpectNet has too, on images less the mean of ImageNet's.

Source: sections 2.3 and 3 of the reference notes on DBAT (arXiv 2305.03919).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.common.materials.network import NetworkConfig, Segmenter, parameters, widened

__all__ = ["NetworkConfig", "Segmenter", "centred", "parameters", "widened"]

_MEAN = (124 / 255, 117 / 255, 104 / 255)


def centred(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] less the mean colour; they are divided by nothing."""
    return images - torch.tensor(_MEAN, dtype=images.dtype, device=images.device).view(3, 1, 1)
