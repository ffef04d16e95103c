"""Errors and label-free measures: identities and sensitivities of sections 4.4, 5 and 7 of the notes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation
from torch import Tensor

from trainables.common.pose.data import PoseDataConfig, PoseSet, open_poses
from trainables.common.pose.geometry import as_pose, draw_rotations, reproject, rotation_x, rotation_y
from trainables.common.pose.metrics import (
    auc,
    bone_variation,
    cycled,
    depth_sign,
    influence,
    label_free_score,
    leakage,
    mmd2,
    n_mpjpe,
    n_mpjpe_ls,
    norm_matched,
    pa_mpjpe,
    pck,
    relative_sign,
)
from trainables.common.pose.skeleton import SUBSETS

TORSO = SUBSETS[16].two_parts["torso"]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _flipped(poses: Tensor) -> Tensor:
    return poses * torch.tensor([1.0, 1.0, -1.0])


@pytest.fixture(scope="module")
def people() -> PoseSet:
    # Many short sequences: MMD^2 needs the azimuths of many cameras.
    config = PoseDataConfig(
        train_subjects=6, train_sequences=40, train_frames=6, test_subjects=1, test_sequences=1, test_frames=1
    )
    return open_poses(config).train


@pytest.fixture(scope="module")
def depth(people: PoseSet) -> Tensor:
    return people.truth[..., 2] / people.scale[:, None]


@pytest.fixture(scope="module")
def views() -> Tensor:
    return draw_rotations(64, 160, 10, per="sample", generator=torch.Generator().manual_seed(0))


# --- errors ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 100), scale=st.floats(0.01, 100), azimuth=st.floats(-3, 3))
def test_pa_ignores_similarity_transforms(seed: int, scale: float, azimuth: float) -> None:
    truth = 300 * _normal(4, 16, 3, seed=seed)
    turn = rotation_y(torch.tensor(azimuth)) @ rotation_x(torch.tensor(0.3))
    pred = scale * truth @ turn + 50
    for reflection in (True, False):
        assert pa_mpjpe(pred, truth, reflection).max() < 1e-2  # mm; float32 rounding of the input


def test_reflection_is_forgiven_or_not() -> None:
    truth = 300 * _normal(50, 16, 3)
    assert pa_mpjpe(_flipped(truth), truth).max() < 1e-2
    assert pa_mpjpe(_flipped(truth), truth, reflection=False).min() > 10


@pytest.mark.parametrize("reflection", [True, False])
def test_pa_agrees_with_scipy(reflection: bool) -> None:
    truth, pred = 300 * _normal(6, 16, 3), _normal(6, 16, 3, seed=1)
    for p, q, error in zip(pred, truth, pa_mpjpe(pred, truth, reflection), strict=True):
        a, b = (points.double().numpy() - points.double().numpy().mean(axis=0) for points in (p, q))
        if reflection:
            turn, _ = orthogonal_procrustes(a, b)
        else:
            turn = Rotation.align_vectors(b, a)[0].as_matrix().T
        turned = a @ turn
        scaled = turned * ((turned * b).sum() / (a * a).sum())
        assert error.item() == pytest.approx(np.linalg.norm(scaled - b, axis=1).mean(), rel=1e-5)


def test_pa_of_coinciding_joints_is_the_spread_of_the_truth() -> None:
    truth = 300 * _normal(3, 16, 3)
    expected = (truth - truth.mean(dim=1, keepdim=True)).norm(dim=-1).mean(dim=1)
    torch.testing.assert_close(pa_mpjpe(torch.zeros_like(truth), truth), expected)


@settings(deadline=None)
@given(scale=st.floats(0.01, 100))
def test_n_mpjpe_ignores_scale(scale: float) -> None:
    truth, pred = 300 * _normal(8, 16, 3), _normal(8, 16, 3, seed=1)
    for error in (n_mpjpe, n_mpjpe_ls):
        torch.testing.assert_close(error(scale * pred, truth), error(pred, truth), rtol=1e-4, atol=0)
    assert n_mpjpe(scale * truth, truth).max() < 1e-2


def test_least_squares_scale_has_the_smaller_squared_error() -> None:
    truth, pred = 300 * _normal(64, 16, 3), _normal(64, 16, 3, seed=1)
    factor = (pred * truth).sum(dim=(1, 2), keepdim=True) / pred.square().sum(dim=(1, 2), keepdim=True)
    matched = (norm_matched(pred, truth) - truth).square().sum(dim=(1, 2))
    squares = (factor * pred - truth).square().sum(dim=(1, 2))
    assert (squares <= matched * (1 + 1e-5)).all()
    torch.testing.assert_close(n_mpjpe_ls(pred, truth), (factor * pred - truth).norm(dim=-1).mean(dim=1))


def test_pck_is_monotone_and_reaches_100() -> None:
    truth, pred = 200 * _normal(32, 16, 3), 200 * _normal(32, 16, 3, seed=1)
    curve = torch.stack([pck(pred, truth, threshold) for threshold in range(0, 1000, 50)])
    assert (curve.diff(dim=0) >= 0).all()
    assert torch.equal(pck(pred, truth, math.inf), torch.full((32,), 100.0))
    with_root, without = pck(pred, truth), pck(pred, truth, count_root=False)
    torch.testing.assert_close(with_root, (16 * without + 100) / 17)


def test_comparisons_are_strict() -> None:
    truth = 200 * _normal(4, 16, 3)
    torch.testing.assert_close(auc(truth, truth), torch.full((4,), 100 * 30 / 31))
    assert torch.equal(pck(truth, truth, 0.0, count_root=True), torch.zeros(4))
    # One joint on either side of the origin: norm matching leaves errors of exactly 30 mm.
    one = torch.tensor([[[30.0, 0, 0]]])
    other = torch.tensor([[[0.0, 0, 0]]])
    pair_truth, pair_pred = torch.cat([one, other], dim=1), torch.cat([other, one], dim=1)
    assert pck(pair_pred, pair_truth, 30.0, count_root=False).item() == 0
    assert pck(pair_pred, pair_truth, 30.001, count_root=False).item() == 100


def test_auc_is_the_mean_of_pck() -> None:
    truth, pred = 100 * _normal(32, 16, 3), 100 * _normal(32, 16, 3, seed=1)
    curve = torch.stack([pck(pred, truth, threshold) for threshold in range(0, 151, 5)])
    torch.testing.assert_close(auc(pred, truth), curve.mean(dim=0))


def test_unequal_shapes_are_refused() -> None:
    for error in (pa_mpjpe, n_mpjpe, n_mpjpe_ls, pck, auc):
        with pytest.raises(ValueError, match="expected"):
            error(torch.zeros(2, 16, 3), torch.zeros(1, 16, 3))


# --- signs -------------------------------------------------------------------------------------------------


def test_chirality_recovers_a_global_flip(people: PoseSet) -> None:
    assert depth_sign(people.truth) == 1
    assert depth_sign(_flipped(people.truth)) == -1
    assert depth_sign(_flipped(people.truth) / people.scale[:, None, None]) == -1


@pytest.mark.parametrize("joints", [14, 17])
def test_other_skeletons_have_signs_and_bones(joints: int) -> None:
    config = PoseDataConfig(
        joints=joints, train_subjects=2, train_sequences=1, test_subjects=1, test_sequences=1, test_frames=4
    )
    truth = open_poses(config).train.truth
    assert depth_sign(truth) == 1
    assert depth_sign(_flipped(truth)) == -1
    assert bone_variation(_flipped(truth)) < bone_variation(truth * torch.tensor([1.0, 1.0, 0.0])) / 2


def test_relative_sign_finds_the_torso_turned_against_the_legs(people: PoseSet, depth: Tensor, views: Tensor) -> None:
    wrong = depth.clone()
    wrong[:, list(TORSO)] *= -1
    assert relative_sign(people.x, depth, views, TORSO).sign == 1
    assert relative_sign(people.x, wrong, views, TORSO).sign == -1


# --- label-free score --------------------------------------------------------------------------------------


def test_bone_variation_is_least_at_the_true_depth(people: PoseSet, depth: Tensor) -> None:
    scales = (0.5, 0.75, 1.0, 1.25, 1.5)
    values = [bone_variation(as_pose(people.x, scale * depth)).item() for scale in scales]
    assert min(values) == values[2]
    # Section 4.4: .023 at truth (differences between people), .121 and .099 at half and one and a half.
    assert values[2] == pytest.approx(0.023, abs=0.01)
    assert values[0] == pytest.approx(0.121, abs=0.03)
    assert values[4] == pytest.approx(0.099, abs=0.03)


def test_bone_variation_is_blind_to_the_torso_flip_but_mmd_is_not(
    people: PoseSet, depth: Tensor, views: Tensor
) -> None:
    wrong = depth.clone()
    wrong[:, list(TORSO)] *= -1
    variations = [bone_variation(as_pose(people.x, z)) for z in (depth, wrong)]
    torch.testing.assert_close(*variations)
    signs = relative_sign(people.x, depth, views, TORSO)
    assert signs.negated > 5e-3 > signs.as_is


def test_mmd_is_unbiased_and_symmetric() -> None:
    draws = [mmd2(_normal(60, 4, seed=2 * k), _normal(60, 4, seed=2 * k + 1)).item() for k in range(40)]
    assert min(draws) < 0 < max(draws)
    assert abs(sum(draws) / len(draws)) < 2e-3
    assert mmd2(_normal(60, 4), _normal(60, 4, seed=1) + 1).item() > 0.1


def test_mmd_matches_its_definition() -> None:
    a, b = _normal(5, 3).double(), _normal(4, 3, seed=1).double()
    median = torch.stack([(a[i] - a[j]).square().sum() for i in range(5) for j in range(i)]).median()

    def kernel(u: Tensor, v: Tensor) -> float:
        return torch.exp(-(u - v).square().sum() / median).item()

    expected = (
        sum(kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j) / 20
        + sum(kernel(b[i], b[j]) for i in range(4) for j in range(4) if i != j) / 12
        - 2 * sum(kernel(u, v) for u in a for v in b) / 20
    )
    assert mmd2(a, b).item() == pytest.approx(expected, abs=1e-12)


def test_score_adds_its_parts_and_prefers_the_truth(people: PoseSet, depth: Tensor, views: Tensor) -> None:
    class Recorded:
        """True depths for the data, a linear guess for everything else."""

        def __call__(self, x: Tensor) -> Tensor:
            return depth if x is people.x else torch.zeros(x.shape[:2])

    score = label_free_score(Recorded(), people.x, views)
    expected = score.root_l2d + score.root_l90 + score.bone_variation
    assert score.total == pytest.approx(expected + 2 * max(0.0, score.mmd2) ** 0.5)
    flat = label_free_score(lambda x: torch.zeros(x.shape[:2]), people.x, views)
    assert flat.mmd2 > score.mmd2
    assert flat.bone_variation > score.bone_variation
    # A flat lifter: x' = (a cos, b), turned back a cos^2: the cycle is lossy; L90 is 2 mean a^2.
    assert flat.root_l90 == pytest.approx((2 * people.x[..., 0].square().mean()).sqrt().item(), rel=1e-4)


def test_score_compares_with_the_reference(people: PoseSet, views: Tensor) -> None:
    def flat(x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:2])

    seen = reproject(people.x, flat(people.x), cycled(views, len(people)))
    own, other = label_free_score(flat, people.x, views), label_free_score(flat, people.x, views, seen)
    assert other.mmd2 < 1e-3 < own.mmd2
    assert other.bone_variation == own.bone_variation


# --- leakage -----------------------------------------------------------------------------------------------


def test_influence_of_a_linear_lifter() -> None:
    weight = _normal(32, 16)
    rows = influence(lambda x: x.flatten(1) @ weight, _normal(7, 16, 2))
    torch.testing.assert_close(rows, weight.reshape(16, 2, 16).norm(dim=1).T)


def test_leakage_is_the_share_outside_the_blocks() -> None:
    parts = list(SUBSETS[16].two_parts.values())
    assert leakage(torch.ones(16, 16), parts) == pytest.approx(1 - (36 + 100) / 256)
    assert leakage(torch.eye(16), parts) == 0.0


def test_a_lifter_that_depends_on_nothing_leaks_nothing() -> None:
    assert leakage(torch.zeros(16, 16), list(SUBSETS[16].two_parts.values())) == 0.0
