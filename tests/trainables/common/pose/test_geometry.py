"""Rotations in the row-vector convention: identities of section 3.1 of the notes on TIPSy-GAN."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainables.common.pose.geometry import (
    as_pose,
    draw_rotations,
    half_turn,
    project,
    quarter_turn,
    reproject,
    rotate,
    rotation_x,
    rotation_y,
    three_quarter_turn,
    unit_box,
)

ANGLES = st.floats(-2 * math.pi, 2 * math.pi)


def _poses(count: int = 5, joints: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, joints, 3, generator=generator, dtype=torch.float64)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(azimuth=ANGLES, elevation=ANGLES)
def test_rotations_are_orthogonal_with_determinant_one(azimuth: float, elevation: float) -> None:
    angles = torch.tensor([azimuth, elevation], dtype=torch.float64)
    matrix = rotation_y(angles[0]) @ rotation_x(angles[1])
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.linalg.det(matrix).item() == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None)
@given(azimuth=ANGLES, elevation=ANGLES)
def test_inverse_is_the_transposes_in_reverse_order(azimuth: float, elevation: float) -> None:
    angles = torch.tensor([azimuth, elevation], dtype=torch.float64)
    ry, rx = rotation_y(angles[0]), rotation_x(angles[1])
    poses = _poses(1)
    torch.testing.assert_close(poses @ ry @ rx @ rx.mT @ ry.mT, poses, atol=1e-12, rtol=0)


def test_matrices_have_the_signs_of_section_3_1() -> None:
    quarter = torch.tensor(math.pi / 2, dtype=torch.float64)
    expected_y = torch.tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)
    expected_x = torch.tensor([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotation_y(quarter), expected_y, atol=1e-12, rtol=0)
    torch.testing.assert_close(rotation_x(quarter), expected_x, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("degrees", "turn"), [(90, quarter_turn), (-90, three_quarter_turn), (180, half_turn)])
def test_exact_turns_equal_the_matrix(degrees: float, turn: Callable[[Tensor], Tensor]) -> None:
    poses = _poses()
    matrix = rotation_y(torch.tensor(math.radians(degrees), dtype=torch.float64))
    torch.testing.assert_close(poses @ matrix, turn(poses), atol=1e-12, rtol=0)


def test_draw_per_sample_and_per_batch() -> None:
    each = draw_rotations(6, 160, 10, per="sample", generator=_generator())
    same = draw_rotations(6, 160, 10, per="batch", generator=_generator())
    assert each.shape == same.shape == (6, 3, 3)
    assert len(torch.unique(each, dim=0)) == 6
    assert len(torch.unique(same, dim=0)) == 1
    assert torch.equal(each, draw_rotations(6, 160, 10, per="sample", generator=_generator()))
    assert not torch.equal(each, draw_rotations(6, 160, 10, per="sample", generator=_generator(1)))


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    views = draw_rotations(4000, 160, 10, per="sample", generator=_generator())
    # Of Ry(a) Rx(e): entry (0, 0) is cos a, (1, 2) is -sin e, (2, 0) is -sin a.
    azimuth = torch.atan2(-views[:, 2, 0], views[:, 0, 0]).rad2deg()
    elevation = torch.asin(-views[:, 1, 2]).rad2deg()
    assert 159 < azimuth.abs().max() <= 160.01
    assert 9.9 < elevation.abs().max() <= 10.01
    assert azimuth.mean().abs() < 5
    assert elevation.mean().abs() < 0.3


def test_zero_elevation_keeps_heights() -> None:
    poses = _poses().float()
    views = draw_rotations(len(poses), 180, 0, per="sample", generator=_generator())
    torch.testing.assert_close(rotate(poses, views)[..., 1], poses[..., 1])


def test_draw_refuses_impossible_arguments() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        draw_rotations(2, -1, 10, per="batch", generator=_generator())
    with pytest.raises(ValueError, match="'batch' or 'sample'"):
        draw_rotations(2, 1, 10, per="pose", generator=_generator())  # type: ignore[arg-type]


def test_reproject_is_rotate_then_project() -> None:
    poses = _poses()
    views = draw_rotations(len(poses), 160, 10, per="sample", generator=_generator()).double()
    expected = project(rotate(poses, views))
    torch.testing.assert_close(reproject(poses[..., :2], poses[..., 2], views), expected)


def test_half_precision_depths_are_rotated_in_float32_under_autocast() -> None:
    x, z = torch.rand(3, 16, 2), torch.rand(3, 16).bfloat16()
    views = draw_rotations(3, 160, 10, per="sample", generator=_generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = reproject(x, z, views)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, rotate(as_pose(x, z.float()), views)[..., :2])


def test_unit_box_touches_the_border() -> None:
    points = unit_box(torch.randn(7, 16, 2, generator=_generator()))
    torch.testing.assert_close(points.abs().amax(dim=(1, 2)), torch.ones(7))
