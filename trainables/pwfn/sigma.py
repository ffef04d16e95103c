"""Where sigmas start, and what keeps them from collapsing.

Source: sections 3.2, 4.1 and 4.4 of the reference notes on PWFN (arXiv 2309.13575).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

PenaltyForm = Literal["linear", "constant"]
LEAST = 2.0**-30
"""Least sigma in a forward pass, and at the start."""


def relative_gap(weights: Tensor) -> Tensor:
    """r(w): the product of the relative distances to the powers of two above and below a weight (section 3.2).

    For |w| = m 2^k with m in [1, 2) it is (2/m - 1)(1 - 1/m): 0 on a power of two, at most 1/8, at m = 4/3. Weights
    below 2^-30, zeros among them, count as powers of two.

    Args:
        weights: Of any shape.

    Returns:
        float64, of the same shape.
    """
    mantissa = 2 * torch.frexp(weights.double().abs())[0]
    gap = (2 / mantissa - 1) * (1 - 1 / mantissa)
    return gap.where(weights.abs() >= LEAST, torch.zeros_like(gap))


def initial_sigma(weights: Tensor, scale: float, largest: float) -> Tensor:
    """sigma_0 of one tensor: most freedom for weights in the middle of an octave, none on a power of two (section 3.2).

    Args:
        weights: The trained weights, of any shape.
        scale: What a weight at the upper quartile of r gets; 0.0025 in the paper.
        largest: The cut-off S.

    Returns:
        float32, of the same shape, within [2^-30, `largest`].
    """
    gap = relative_gap(weights)
    # NumPy's quantile takes any number of elements, PyTorch's at most 2^24.
    quartile = float(np.quantile(gap.detach().cpu().numpy(), 0.75)) if weights.numel() else 0.0
    if not quartile:
        return torch.full_like(weights, LEAST, dtype=torch.float32)
    return (scale / quartile * gap).clamp(LEAST, largest).float()


def sigma_penalty(sigma: Tensor, noise: Tensor, cut_off: float, form: PenaltyForm) -> Tensor:
    """R / lambda of one tensor: what raises sigmas that are below the cut-off (section 4.1).

    `linear` is the authors' push on the gradient, -lambda relu(S - sigma) |eps|, as the gradient of a loss: sum of
    |eps| relu(S - sigma)^2 / 2. `constant` is the literal penalty, the sum of relu(S - sigma).

    Args:
        sigma: Of the weights that are not fixed, or of all.
        noise: The draws eps of the same forward pass; taken as constants.
        cut_off: S.
        form: `linear` or `constant`.

    Returns:
        A scalar.
    """
    room = (cut_off - sigma).relu()
    return room.sum() if form == "constant" else (0.5 * noise.detach().abs() * room.square()).sum()
