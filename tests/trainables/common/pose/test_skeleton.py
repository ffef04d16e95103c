"""The skeleton table, its subsets and parts (tipsy notes 2.1 and 7.15)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.common.pose.skeleton import (
    BONES,
    FROM_H36M32,
    FROM_MPI28,
    FROM_MPI_TEST17,
    JOINTS,
    PARENTS,
    RELATIVE_LENGTHS,
    SUBSETS,
    SWAP_PAIRS,
    Clip,
    bone_lengths,
    hold_out,
)

MPI28 = [
    *("spine3", "spine4", "spine2", "spine", "pelvis", "neck", "head", "head_top"),
    *("l_clavicle", "l_shoulder", "l_elbow", "l_wrist", "l_hand"),
    *("r_clavicle", "r_shoulder", "r_elbow", "r_wrist", "r_hand"),
    *("l_hip", "l_knee", "l_ankle", "l_foot", "l_toe", "r_hip", "r_knee", "r_ankle", "r_foot", "r_toe"),
]


def test_human36m_map_is_the_list_of_moving_joints_of_videopose3d() -> None:
    assert FROM_H36M32 == (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)


def test_mpi_maps_name_the_same_joints() -> None:
    names = [MPI28[k] for k in FROM_MPI28]
    assert names[:4] == ["pelvis", "r_hip", "r_knee", "r_ankle"]
    assert names[4:11] == ["l_hip", "l_knee", "l_ankle", "spine", "neck", "head", "head_top"]
    assert names[11:] == ["l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist"]
    assert FROM_MPI_TEST17 == (14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)
    assert sorted(FROM_MPI_TEST17) == list(range(17))


def test_bones_are_the_parent_links() -> None:
    assert PARENTS == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
    assert {(parent, joint) for joint, parent in enumerate(PARENTS) if parent >= 0} == set(BONES)
    assert len({joint.name for joint in JOINTS}) == 17


@pytest.mark.parametrize("source", RELATIVE_LENGTHS)
def test_relative_lengths_have_mean_one(source: str) -> None:
    assert np.mean(RELATIVE_LENGTHS[source]) == pytest.approx(1.0, abs=1e-3)


def test_swap_pairs_exchange_left_and_right() -> None:
    for right, left in SWAP_PAIRS[:3]:
        assert JOINTS[left].name == JOINTS[right].name.replace("right", "left")
    for left, right in SWAP_PAIRS[3:]:
        assert JOINTS[left].name == JOINTS[right].name.replace("right", "left")


def test_parts_of_the_papers() -> None:
    subset = SUBSETS[16]
    assert subset.two_parts == {"legs": tuple(range(6)), "torso": tuple(range(6, 16))}
    assert list(subset.five_parts.values()) == [
        (0, 1, 2),
        (3, 4, 5),
        (6, 7, 8, 9),
        (10, 11, 12),
        (13, 14, 15),
    ]
    assert subset.half_parts["left"] == (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    assert subset.half_parts["right"] == (0, 1, 2, 6, 7, 8, 9, 13, 14, 15)


@pytest.mark.parametrize(("joints", "legs", "torso"), [(16, 6, 10), (17, 7, 10), (14, 6, 8)])
def test_parts_cover_every_joint_once(joints: int, legs: int, torso: int) -> None:
    subset = SUBSETS[joints]
    assert len(subset.ids) == joints
    assert [len(part) for part in subset.two_parts.values()] == [legs, torso]
    for parts in (subset.two_parts, subset.five_parts):
        assert sorted(k for part in parts.values() for k in part) == list(range(joints))
    assert set().union(*subset.half_parts.values()) == set(range(joints))


@pytest.mark.parametrize("joints", SUBSETS)
def test_mirror_is_an_involution_that_exchanges_parts(joints: int) -> None:
    subset = SUBSETS[joints]
    mirror = np.array(subset.mirror)
    assert (mirror[mirror] == np.arange(joints)).all()
    assert sorted(mirror[list(subset.five_parts["left_arm"])]) == list(subset.five_parts["right_arm"])


@given(st.floats(0.1, 10.0), st.integers(0, 2**32 - 1))
def test_bone_lengths_scale_and_ignore_position(scale: float, seed: int) -> None:
    joints = np.random.default_rng(seed).normal(size=(2, 17, 3))
    np.testing.assert_allclose(bone_lengths(scale * joints + 5.0), scale * bone_lengths(joints), rtol=1e-9)


@given(st.integers(1, 45), st.integers(1, 3))
def test_hold_out_divides_by_recording(recordings: int, views: int) -> None:
    clips = [Clip(np.zeros((1, 17, 3)), "x", str(k)) for k in range(recordings) for _ in range(views)]
    train, validation = hold_out(clips)
    assert len(train) + len(validation) == len(clips)
    assert not {c.recording for c in train} & {c.recording for c in validation}
    assert len(validation) == views * -(-recordings // 10)
    assert validation[-1].recording == str(recordings - 1)
