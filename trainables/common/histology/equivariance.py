"""How nearly a network's answer to a magnified image is its magnified answer.

Source: section 5 of the reference notes on SEUNet (arXiv 2304.04595).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def branch_errors(plain: Tensor, magnified: Tensor) -> Tensor:
    """Relative errors `|f_s(x) - R f_t(T x)| / |f_s(x)|` of all pairs of branches, over the whole batch.

    Args:
        plain: Logits of the images (S, B, K, H, W).
        magnified: Those of the same images, magnified (S, B, K, H', W').

    Returns:
        (S, S): row s, column t. The least is the best pair's; the diagonal has those without a shift.
    """
    flat = magnified.flatten(0, 1)
    back = functional.interpolate(flat, size=plain.shape[-2:], mode="bilinear", align_corners=True)
    back = back.view(len(magnified), *plain.shape[1:])
    differences: Tensor = torch.linalg.vector_norm((plain[:, None] - back[None]).flatten(2), dim=2)
    sizes: Tensor = torch.linalg.vector_norm(plain.flatten(1), dim=1)
    return differences / sizes[:, None]
