"""The one entry: shapes, normalisation, determinism, bad poses and messages (tipsy notes 2.6, 7.16)."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pharos.errors import InputError
from trainables.common.pose import data
from trainables.common.pose.data import PoseDataConfig, Poses, PoseSet, open_poses
from trainables.common.pose.skeleton import SUBSETS, Clip

SMALL = PoseDataConfig(
    train_subjects=3, train_sequences=1, train_frames=10, test_subjects=1, test_sequences=1, test_frames=5
)


def splits_of(poses: Poses) -> dict[str, PoseSet]:
    return {"train": poses.train, "validation": poses.validation, **poses.tests}


@pytest.fixture(scope="session")
def small_poses() -> Poses:
    return open_poses(SMALL)


def test_shapes_types_and_groups(small_poses: Poses) -> None:
    assert {name: len(split) for name, split in splits_of(small_poses).items()} == {
        "train": 140,
        "validation": 70,
        "matched": 35,
        "recombined": 40,
    }
    for split in splits_of(small_poses).values():
        assert split.x.shape == (len(split), 16, 2)
        assert split.truth.shape == (len(split), 16, 3)
        assert split.scale.shape == split.group_code.shape == (len(split),)
        assert {t.dtype for t in (split.x, split.truth, split.scale)} == {torch.float32}
        assert split.group_code.dtype == torch.int64
        assert set(split.group_code.tolist()) == set(range(len(split.group)))
    assert small_poses.train.group[0] == "kick+rest"


def test_per_pose_inputs_touch_one_and_scale_back_to_the_truth(small_poses: Poses) -> None:
    for split in splits_of(small_poses).values():
        torch.testing.assert_close(split.x.abs().amax(dim=(1, 2)), torch.ones(len(split)))
        torch.testing.assert_close(split.x * split.scale[:, None, None], split.truth[..., :2], rtol=1e-5, atol=1e-2)


def test_head_global_divisor_comes_from_training_only(small_poses: Poses) -> None:
    poses = open_poses(replace(SMALL, normalise="head_global"))
    head = SUBSETS[16].ids.index(10)
    expected = 10 * small_poses.train.truth[:, head, :2].norm(dim=-1).mean()
    for split in splits_of(poses).values():
        torch.testing.assert_close(split.scale, expected.expand(len(split)), rtol=1e-5, atol=1e-3)
    assert poses.manifest["global_scale"] == pytest.approx(float(expected), rel=1e-5)
    other_test = open_poses(replace(SMALL, normalise="head_global", test_frames=7))
    assert other_test.manifest["global_scale"] == poses.manifest["global_scale"]


def test_same_configuration_same_poses(small_poses: Poses) -> None:
    again = open_poses(replace(SMALL))
    assert json.dumps(again.manifest) == json.dumps(small_poses.manifest)
    torch.testing.assert_close(again.train.x, small_poses.train.x, rtol=0, atol=0)
    assert open_poses(replace(SMALL, seed=1)).manifest["sha256"] != again.manifest["sha256"]


@pytest.mark.parametrize("joints", SUBSETS)
def test_joint_subsets(joints: int, small_poses: Poses) -> None:
    poses = open_poses(replace(SMALL, joints=joints))
    assert poses.train.x.shape == (140, joints, 2)
    if joints == 17:
        assert not poses.train.x[:, 0].any()
        torch.testing.assert_close(poses.train.x[:, 1:], small_poses.train.x)
    if joints == 14:  # centred between the hips
        torch.testing.assert_close(poses.train.truth[:, 0], -poses.train.truth[:, 3], rtol=1e-4, atol=1e-2)


def test_perspective_enlarges_what_is_near(small_poses: Poses) -> None:
    poses = open_poses(replace(SMALL, projection="perspective"))
    torch.testing.assert_close(poses.train.truth, small_poses.train.truth, rtol=0, atol=0)
    image = poses.train.x * poses.train.scale[:, None, None]
    truth = poses.train.truth
    far_from_axis = truth[..., :2].norm(dim=-1) > 50
    ratio = (image.norm(dim=-1) / truth[..., :2].norm(dim=-1))[far_from_axis]
    depth = truth[..., 2][far_from_axis]
    assert ((ratio > 1) == (depth < 0))[depth.abs() > 1].all()
    distance = depth / (1 / ratio - 1)
    sure = depth.abs() > 100
    assert float(distance[sure].min()) > 2990
    assert float(distance[sure].max()) < 6010


def test_ood_tests_are_added_on_request() -> None:
    assert list(open_poses(replace(SMALL, ood_tests=True)).tests) == [
        "matched",
        "recombined",
        "ood_camera",
        "ood_body",
    ]


def clip(joints: np.ndarray, name: str = "a") -> Clip:
    return Clip(joints, name, name)


def read_as(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[Clip]]) -> None:
    """Let the motion-capture reader deliver given clips."""
    monkeypatch.setattr(data, "load_mocap", lambda *_args, **_options: splits)


MOCAP = PoseDataConfig(source="bvh", root="somewhere")


def test_degenerate_and_incomplete_poses_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    good = np.random.default_rng(0).normal(0.0, 300.0, (6, 17, 3))
    bad = good.copy()
    bad[1] = bad[1, 0]  # all joints at the root
    bad[3, 5, 2] = np.nan  # a missing depth
    bad[4, 0] = np.nan  # a missing root
    bad[5, :, :2] = bad[5, 0, :2]  # seen along one line: no extent in the image
    read_as(monkeypatch, {"train": [clip(bad), clip(good, "b")], "validation": [clip(good)], "test": [clip(good)]})
    for normalise in data.NORMALISATIONS:
        poses = open_poses(replace(MOCAP, normalise=normalise))
        assert poses.manifest["poses"] == {"train": 8, "validation": 6, "test": 6}
        assert poses.manifest["rejected_missing_joints"] == {"train": 2, "validation": 0, "test": 0}
        assert poses.manifest["skipped_degenerate"] == {"train": 2, "validation": 0, "test": 0}
        assert poses.train.group_code.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
        assert all(bool(torch.isfinite(t).all()) for t in (poses.train.x, poses.train.truth, poses.train.scale))


def test_a_split_without_a_usable_pose_is_refused_with_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    good, gone, still = (
        np.random.default_rng(0).normal(size=(2, 17, 3)),
        np.full((2, 17, 3), np.nan),
        np.ones((3, 17, 3)),
    )
    read_as(monkeypatch, {"train": [clip(good)], "validation": [clip(good)], "test": [clip(gone), clip(still)]})
    with pytest.raises(InputError, match=r"somewhere: no usable pose in the test split: 2 of 5 poses .* 3 have all"):
        open_poses(MOCAP)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e4), st.integers(0, 2**32 - 1), st.sampled_from(sorted(SUBSETS)))
def test_any_pose_gives_finite_inputs_in_range(size: float, seed: int, joints: int) -> None:
    clips = [clip(np.random.default_rng(seed).normal(0.0, size, (4, 17, 3)) + 1e3)]
    with pytest.MonkeyPatch.context() as patch:
        read_as(patch, {"train": clips, "validation": clips, "test": clips})
        poses = open_poses(replace(MOCAP, joints=joints))
    assert bool(torch.isfinite(poses.train.x).all())
    assert float(poses.train.x.abs().max()) == pytest.approx(1.0)


def test_another_set_s_tests_are_added_and_nothing_else_changes(small_poses: Poses) -> None:
    crossed = open_poses(replace(SMALL, cross_source="articulated17"))
    assert list(crossed.tests) == ["matched", "recombined", "cross_matched", "cross_recombined"]
    for name in ("matched", "recombined"):
        assert torch.equal(crossed.tests[name].x, small_poses.tests[name].x)
        assert torch.equal(crossed.tests[f"cross_{name}"].x, small_poses.tests[name].x)
    assert torch.equal(crossed.train.x, small_poses.train.x)
    assert crossed.manifest["cross"] == small_poses.manifest
    json.dumps(crossed.manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": "cmu"},
            "source='cmu' is not possible; it must be one of articulated17, asf_amc, bvh, human36m",
        ),
        ({"input_2d": "gt2d"}, r"input_2d \(source articulated17\)='gt2d' .* one of ortho3d"),
        ({"source": "mpi_inf_3dhp", "root": "x", "input_2d": "detected"}, "one of ortho3d, gt2d"),
        ({"projection": "fisheye"}, "one of orthographic, perspective"),
        ({"normalise": "none"}, "one of per_pose_maxabs, head_global"),
        ({"joints": 15}, "one of 16, 17, 14"),
        ({"source": "bvh"}, "needs root="),
        (
            {"source": "human36m", "root": "x", "input_2d": "gt2d", "projection": "perspective"},
            "needs input_2d=ortho3d",
        ),
        ({"train_subjects": 1}, "train_subjects=1 is too small; it must be at least 2"),
        ({"test_frames": 0}, "test_frames=0 is too small; it must be at least 1"),
        ({"seed": -1}, "seed=-1 is too small"),
        ({"views": 0}, "views=0"),
        ({"bvh_unit": 0.0}, "bvh_unit=0.0 must be positive"),
        ({"cross_source": "cmu"}, "cross_source='cmu' is not possible"),
        ({"cross_source": "bvh"}, "cross_source=bvh needs cross_root="),
        (
            {"source": "human36m", "root": "x", "input_2d": "gt2d", "cross_source": "bvh", "cross_root": "y"},
            r"input_2d \(cross_source bvh\)='gt2d' .* one of ortho3d",
        ),
    ],
)
def test_impossible_configurations_say_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PoseDataConfig(**changes)


@pytest.mark.parametrize("source", ["asf_amc", "bvh", "human36m", "mpi_inf_3dhp"])
def test_missing_and_empty_folders_give_one_line(source: str, tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError) as error:
            open_poses(PoseDataConfig(source=source, root=str(root), allow_pickle=True))
        assert str(root) in str(error.value)
        assert "expected" in str(error.value) or "needed" in str(error.value)
        assert "\n" not in str(error.value)


def test_configuration_is_a_structured_one() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    node = omegaconf.OmegaConf.structured(PoseDataConfig)
    assert omegaconf.OmegaConf.to_object(node) == PoseDataConfig()
    merged = omegaconf.OmegaConf.merge(node, {"source": "asf_amc", "root": "x", "held_out_subjects": ["03"]})
    assert omegaconf.OmegaConf.to_object(merged).held_out_subjects == ["03"]
    assert {str(f.type) for f in fields(PoseDataConfig)} <= {"str", "int", "float", "bool", "list[str]"}
