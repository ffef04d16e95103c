"""Distillation of the pair into one student; the adversarial objectives are `common.pose.adversarial`'s.

Source: section 4.3 of the reference notes on TIPSy-GAN (arXiv 2205.05980).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.common.pose.geometry import full_precision
from trainables.common.pose.losses import Lift


def distillation_loss(student: Lift, teacher: Lift, x: Tensor) -> Tensor:
    """Mean squared difference between the student's and the teacher's depths (section 4.3).

    Args:
        student: The TIPSy model: depths (B, J) of image positions (B, J, 2).
        teacher: The trained pair in evaluation mode; gets no gradient.
        x: (B, J, 2) normalised 2D poses.

    Returns:
        Scalar.
    """
    with torch.no_grad():
        target = full_precision(teacher(x))
    return (full_precision(student(x)) - target).square().mean()
