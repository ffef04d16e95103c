"""Rotations and orthographic projection of root-centred poses.

Source: section 3.1 of the reference notes on TIPSy-GAN (arXiv 2205.05980); "Optimising 2D Pose
Representation" (arXiv 2209.00618) uses the same. Poses are row vectors in the camera frame (x right, y down,
z away) and a rotation multiplies from the right: `P' = P Ry(azimuth) Rx(elevation)`. The origin is the root
joint, so no translation occurs anywhere.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RotationPer = Literal["batch", "sample"]


def full_precision(values: Tensor) -> Tensor:
    """The tensor in float32 if it is of half precision, else unchanged (float64 stays float64)."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def rotation_y(angle: Tensor) -> Tensor:
    """Ry of section 3.1: rotation about the vertical axis, for row vectors.

    Args:
        angle: Azimuth in radians, any shape (...).

    Returns:
        (..., 3, 3).
    """
    cos, sin, zero, one = _entries(angle)
    rows = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1)
    return rows.reshape(*angle.shape, 3, 3)


def rotation_x(angle: Tensor) -> Tensor:
    """Rx of section 3.1: rotation about the horizontal image axis, for row vectors.

    Args:
        angle: Elevation in radians, any shape (...).

    Returns:
        (..., 3, 3).
    """
    cos, sin, zero, one = _entries(angle)
    rows = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=-1)
    return rows.reshape(*angle.shape, 3, 3)


def _entries(angle: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)


def draw_rotations(
    count: int,
    azimuth_max: float,
    elevation_max: float,
    *,
    per: RotationPer,
    generator: torch.Generator,
) -> Tensor:
    """Random views `Ry(azimuth) Rx(elevation)`, both angles uniform in their symmetric ranges (section 3.1).

    Args:
        count: Number of poses to rotate.
        azimuth_max: Largest absolute azimuth in degrees (the authors' 8 pi / 9 is 160).
        elevation_max: Largest absolute elevation in degrees.
        per: `sample` draws one view for each pose, `batch` one for all of them (as the authors do).
        generator: Source of the angles; the result lies on its device.

    Returns:
        (count, 3, 3) float32. With `batch` it is an expanded view of one matrix.

    Raises:
        ValueError: A range is negative or `per` is unknown.
    """
    if azimuth_max < 0 or elevation_max < 0:
        raise ValueError(f"azimuth_max={azimuth_max} and elevation_max={elevation_max} must be at least 0 degrees")
    if per not in ("batch", "sample"):
        raise ValueError(f"per={per!r} must be 'batch' or 'sample'")
    draws = count if per == "sample" else 1
    unit = torch.rand(2, draws, generator=generator, device=generator.device) * 2 - 1
    limits = torch.deg2rad(unit.new_tensor([azimuth_max, elevation_max]))
    azimuth, elevation = unit * limits[:, None]
    # A product of 3x3 matrices is cheap, and autocast must not round it to bfloat16.
    with torch.autocast(unit.device.type, enabled=False):
        views = rotation_y(azimuth) @ rotation_x(elevation)
    return views.expand(count, 3, 3)


def as_pose(x: Tensor, z: Tensor) -> Tensor:
    """Join image positions (..., J, 2) and depths (..., J) to a pose (..., J, 3)."""
    return torch.cat([x, full_precision(z)[..., None]], dim=-1)


def rotate(poses: Tensor, rotations: Tensor) -> Tensor:
    """Rotate poses as row vectors, in at least float32.

    Args:
        poses: (N, J, 3), root at the origin.
        rotations: (N, 3, 3). Also (N, 3, 2): the first two columns rotate and project at once.

    Returns:
        (N, J, 3), or (N, J, 2).
    """
    with torch.autocast(poses.device.type, enabled=False):
        return full_precision(poses) @ rotations


def reproject(x: Tensor, z: Tensor, rotations: Tensor) -> Tensor:
    """Orthographic image of the lifted pose `[x, z]` from another view: `project(rotate([x, z]))`.

    Args:
        x: (N, J, 2) image positions.
        z: (N, J) depths in the unit of `x`.
        rotations: (N, 3, 3).

    Returns:
        (N, J, 2).
    """
    return rotate(as_pose(x, z), rotations[..., :2])


def project(poses: Tensor) -> Tensor:
    """Orthographic projection: drop the depth. (..., 3) -> (..., 2)."""
    return poses[..., :2]


def quarter_turn(poses: Tensor) -> Tensor:
    """Rotate by azimuth +90 degrees without rounding: (x, y, z) -> (-z, y, x). Shape (..., 3)."""
    x, y, z = poses.unbind(-1)
    return torch.stack([-z, y, x], dim=-1)


def three_quarter_turn(poses: Tensor) -> Tensor:
    """Rotate by azimuth -90 degrees without rounding: (x, y, z) -> (z, y, -x). Shape (..., 3)."""
    x, y, z = poses.unbind(-1)
    return torch.stack([z, y, -x], dim=-1)


def half_turn(poses: Tensor) -> Tensor:
    """Rotate by azimuth 180 degrees without rounding: (x, y, z) -> (-x, y, -z). Shape (..., 3)."""
    x, y, z = poses.unbind(-1)
    return torch.stack([-x, y, -z], dim=-1)


def unit_box(points: Tensor) -> Tensor:
    """Divide each pose by its largest absolute image coordinate, as `per_pose_maxabs` does to the data.

    Args:
        points: (N, J, 2), not all zero.

    Returns:
        (N, J, 2) within [-1, 1].
    """
    return points / points.abs().amax(dim=(-2, -1), keepdim=True)
