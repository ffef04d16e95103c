"""What is done to a batch of patches before a network sees it. Each sample draws its own, whatever worker has it.

Source: sections 2.1 and 6 of the reference notes on ADS_UNet (flips, quarter turns, stain), and section 2.1 of those on
RSESF (`affine`: the rotations and scales that an augmentation-trained UNet is given).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pharos.run import Epoch
from trainables.common.histology.optics import EOSIN, HAEMATOXYLIN
from trainables.common.segmentation import IGNORED

KINDS = ("none", "flips", "flips+rot90", "flips+rot90+stain", "flips+scale", "flips+affine")
_STAIN = 0.2  # largest relative change of a stain's strength
_SHIFT = 0.02  # largest change of its optical density everywhere
_SCALES = (0.5, 2.0)


def augmented(images: Tensor, masks: Tensor, kind: str, epoch: Epoch, crop: int = 0) -> tuple[Tensor, Tensor]:
    """A batch, each sample in a way of its own.

    Args:
        images: (B, 3, H, W) in [0, 1].
        masks: (B, H, W) classes.
        kind: One of `KINDS`.
        epoch: Draws.
        crop: Side of the square that is cut out of each, 0 for all of it; smaller than H and W.

    Returns:
        The same shapes, or with the sides of the crop; pixels that come from outside of an image are `IGNORED`.
    """
    draws = epoch.per_sample(lambda count, generator: torch.rand(count, 10, generator=generator)).to(images.device)
    if crop:
        images, masks = _cropped(images, masks, crop, draws[:, 8:10])
    if "flips" in kind:
        for axis in (1, 2):
            flip = draws[:, axis - 1] < 0.5
            images = torch.where(flip[:, None, None, None], images.flip(axis + 1), images)
            masks = torch.where(flip[:, None, None], masks.flip(axis), masks)
    if "rot90" in kind:
        turn = draws[:, 2] < 0.5  # with the flips, this makes all eight symmetries equally likely
        images = torch.where(turn[:, None, None, None], images.rot90(1, (2, 3)), images)
        masks = torch.where(turn[:, None, None], masks.rot90(1, (1, 2)), masks)
    if "stain" in kind:
        images = restained(images, 1 + _STAIN * (2 * draws[:, 3:5] - 1), _SHIFT * (2 * draws[:, 5:7] - 1))
    if "affine" in kind or "scale" in kind:
        low, high = map(math.log2, _SCALES)
        scale = torch.exp2(low + (high - low) * draws[:, 7])
        angle = 2 * math.pi * draws[:, 2] if "affine" in kind else torch.zeros_like(scale)
        images, masks = transformed(images, masks, scale, angle)
    return images, masks


def restained(images: Tensor, strength: Tensor, shift: Tensor) -> Tensor:
    """Images as if stained otherwise: haematoxylin and eosin are told apart by their optical densities.

    Args:
        images: (B, 3, H, W) in [0, 1].
        strength: (B, 2) by which the concentrations of both are multiplied.
        shift: (B, 2) what is added to them.
    """
    vectors = torch.tensor([HAEMATOXYLIN, EOSIN], dtype=images.dtype, device=images.device)
    density = -images.clamp_min(1 / 255).log()
    stains = torch.einsum("bchw,cs->bshw", density, torch.linalg.pinv(vectors))
    rest = density - torch.einsum("bshw,sc->bchw", stains, vectors)
    stains = stains * strength[:, :, None, None] + shift[:, :, None, None]
    return (-(torch.einsum("bshw,sc->bchw", stains, vectors) + rest)).exp().clamp(0, 1)


def transformed(images: Tensor, masks: Tensor, scale: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Images magnified and turned counter-clockwise about their centres, on a canvas of the same size.

    Args:
        images: (B, 3, H, W), square.
        masks: (B, H, W).
        scale: (B,) magnification.
        angle: (B,) radians.

    Returns:
        The same shapes: images bilinear, and mirrored outside of their borders; masks nearest, and `IGNORED` there.
    """
    cosine, sine, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # Zero is what lies outside, so the classes are counted from one meanwhile.
    counted = (masks.float() + 1).unsqueeze(1)
    turned = functional.grid_sample(counted, grid, mode="nearest", padding_mode="zeros", align_corners=False).squeeze(1)
    turned = torch.where(turned == 0, float(IGNORED), turned - 1)
    return images, turned.to(masks.dtype)


def _cropped(images: Tensor, masks: Tensor, side: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    height, width = masks.shape[1:]
    tops = (draws[:, 0] * (height - side + 1)).long().tolist()
    lefts = (draws[:, 1] * (width - side + 1)).long().tolist()
    windows = [(slice(top, top + side), slice(left, left + side)) for top, left in zip(tops, lefts, strict=True)]
    return (
        torch.stack([image[:, rows, columns] for image, (rows, columns) in zip(images, windows, strict=True)]),
        torch.stack([mask[rows, columns] for mask, (rows, columns) in zip(masks, windows, strict=True)]),
    )
