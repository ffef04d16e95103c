"""Errors of 3D poses, and measures of a lifter that need no labels.

Source: sections 4.4 and 5 of the reference notes on TIPSy-GAN (arXiv 2205.05980); "Optimising 2D Pose
Representation" (arXiv 2209.00618) uses the same. Poses are (N, J, 3), root-centred, in the camera frame (x
right, y down, z away), J one of `skeleton.SUBSETS`. All errors are (N,), in the unit of the truth (mm), means
over the J joints; callers average over poses or groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.common.pose.geometry import as_pose, full_precision, reproject
from trainables.common.pose.losses import Lift, cycle_errors, quarter_turn_errors, quarter_turn_inputs
from trainables.common.pose.skeleton import JOINTS, SUBSETS

AUC_THRESHOLDS = tuple(range(0, 151, 5))  # mm
_MMD_POSES = 800


# --- errors against the truth ------------------------------------------------------------------------------


def _checked(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if pred.shape != truth.shape or pred.ndim != 3 or pred.shape[-1] != 3:
        raise ValueError(f"poses of shape {tuple(pred.shape)} and {tuple(truth.shape)}; expected (N, J, 3) twice")
    return full_precision(pred), full_precision(truth)


def _mean_distance(pred: Tensor, truth: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(pred - truth, dim=-1)
    mean: Tensor = distance.mean(dim=-1)
    return mean


def pa_mpjpe(pred: Tensor, truth: Tensor, reflection: bool = True) -> Tensor:
    """Mean joint error after the best similarity transform of each pose (section 5.1).

    Args:
        pred: (N, J, 3) in any unit.
        truth: (N, J, 3) mm.
        reflection: Allow improper rotations, as the authors' evaluation does: the sign of the depth is then
            free *for each pose*. False gives the strict `pa_mpjpe_proper`.

    Returns:
        (N,) mm. A prediction whose joints all coincide maps to the centre of the truth.

    Raises:
        ValueError: The shapes are not equal and (N, J, 3).
    """
    pred, truth = _checked(pred, truth)
    # Float64: the 3x3 products square the poses, and flat predictions make them singular.
    p = pred.double() - pred.double().mean(dim=1, keepdim=True)
    q = truth.double() - truth.double().mean(dim=1, keepdim=True)
    u, singular, vt = torch.linalg.svd(p.mT @ q)
    if not reflection:
        # The improper optimum becomes proper by turning the direction of the least singular value.
        sign = torch.linalg.det(u) * torch.linalg.det(vt)
        last = singular.new_tensor([0.0, 0.0, 1.0])
        flip = torch.where(sign[:, None] < 0, 1 - 2 * last, torch.ones_like(last))
        u, singular = u * flip[:, None, :], singular * flip
    size = p.square().sum(dim=(1, 2))
    scale = torch.where(size > 0, singular.sum(dim=1) / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
    aligned = scale[:, None, None] * (p @ (u @ vt))
    return _mean_distance(aligned, q).to(truth.dtype)


def norm_matched(pred: Tensor, truth: Tensor) -> Tensor:
    """The prediction scaled by |truth| / |pred| (Frobenius norms of root-centred poses), (N, J, 3).

    Raises:
        ValueError: The shapes are not equal and (N, J, 3).
    """
    pred, truth = _checked(pred, truth)
    target, size = (torch.linalg.vector_norm(pose, dim=(1, 2), keepdim=True) for pose in (truth, pred))
    scaled: Tensor = pred * (target / size.clamp_min(torch.finfo(pred.dtype).tiny))
    return scaled


def n_mpjpe(pred: Tensor, truth: Tensor) -> Tensor:
    """Mean joint error after matching the norms of the root-centred poses (section 5.1, ElePose's form).

    Args:
        pred: (N, J, 3) root-centred, any unit.
        truth: (N, J, 3) root-centred, mm.

    Returns:
        (N,) mm.

    Raises:
        ValueError: The shapes are not equal and (N, J, 3).
    """
    return _mean_distance(norm_matched(pred, truth), full_precision(truth))


def n_mpjpe_ls(pred: Tensor, truth: Tensor) -> Tensor:
    """Mean joint error after the least-squares scale <P,Q> / <P,P> (section 5.1, VideoPose3D's form).

    Args:
        pred: (N, J, 3) root-centred, any unit.
        truth: (N, J, 3) root-centred, mm.

    Returns:
        (N,) mm.

    Raises:
        ValueError: The shapes are not equal and (N, J, 3).
    """
    pred, truth = _checked(pred, truth)
    size = pred.square().sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(pred.dtype).tiny)
    return _mean_distance(pred * ((pred * truth).sum(dim=(1, 2), keepdim=True) / size), truth)


def _matched_distances(pred: Tensor, truth: Tensor, count_root: bool) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(norm_matched(pred, truth) - full_precision(truth), dim=-1)
    return torch.nn.functional.pad(distance, (1, 0)) if count_root else distance


def pck(pred: Tensor, truth: Tensor, threshold: float = 150.0, count_root: bool = True) -> Tensor:
    """Percentage of joints with an error *strictly below* the threshold after norm matching (section 5.1).

    Args:
        pred: (N, J, 3) root-centred, any unit.
        truth: (N, J, 3) root-centred, mm.
        threshold: mm.
        count_root: Count the root as one more joint, without error: 17 joints, as in the code of the authors.
            Set it to False if the root is among the joints.

    Returns:
        (N,) in [0, 100].

    Raises:
        ValueError: The shapes are not equal and (N, J, 3).
    """
    return 100 * (_matched_distances(pred, truth, count_root) < threshold).to(torch.float32).mean(dim=1)


def auc(pred: Tensor, truth: Tensor, count_root: bool = True) -> Tensor:
    """Mean PCK over the 31 thresholds 0, 5, ..., 150 mm (section 5.1).

    The comparison is strict, so threshold 0 counts no joint and a perfect pose has 30/31 of 100.

    Args:
        pred: (N, J, 3) root-centred, any unit.
        truth: (N, J, 3) root-centred, mm.
        count_root: As for `pck`.

    Returns:
        (N,) in [0, 100].

    Raises:
        ValueError: The shapes are not equal and (N, J, 3).
    """
    thresholds = torch.tensor(AUC_THRESHOLDS, dtype=torch.float32, device=pred.device)
    below = _matched_distances(pred, truth, count_root)[..., None] < thresholds
    return 100 * below.to(torch.float32).mean(dim=(1, 2))


# --- signs that 2D cannot tell -----------------------------------------------------------------------------


def depth_sign(poses: Tensor) -> int:
    """One bit per model: +1 if knees bend as they do in people, -1 if all depths have the wrong sign.

    The objective is the same for G and -G (section 5.2), so the global sign of a trained lifter is a coin
    toss. With the hip vector u from right to left, ((knee - hip) x (ankle - knee)) . u is positive in
    expectation for correct poses, and odd in the depth. No labels are used, but the poses must not be
    mirrored without exchanging left and right.

    Args:
        poses: (N, J, 3) predicted poses, any unit.

    Returns:
        +1 or -1; multiply the predicted depths by it.
    """
    poses = full_precision(poses)
    ids = SUBSETS[poses.shape[1]].ids
    right, left = (poses[:, [ids.index(joint) for joint in leg]] for leg in ((1, 2, 3), (4, 5, 6)))
    across = left[:, 0] - right[:, 0]
    bends = [torch.linalg.cross(leg[:, 1] - leg[:, 0], leg[:, 2] - leg[:, 1]) for leg in (right, left)]
    chirality = torch.stack([(bend * across).sum(dim=1) for bend in bends])
    return 1 if float(chirality.mean()) >= 0 else -1


@dataclass(frozen=True)
class RelativeSign:
    """Whether the depths of one part agree in sign with the rest.

    Attributes:
        as_is: MMD^2 of real and reprojected poses.
        negated: The same with the depths of the part negated.
    """

    as_is: float
    negated: float

    @property
    def sign(self) -> int:
        """-1 where negating wins: multiply the depths of the part by it, and warn."""
        return -1 if self.negated < self.as_is else 1


def relative_sign(x: Tensor, z: Tensor, rotations: Tensor, part: Sequence[int]) -> RelativeSign:
    """Label-free test of the relative depth sign of separately lifted parts (section 5.2).

    It is invisible to the cycle, to the 90-degree consistency and to bone lengths; reprojections show it.

    Args:
        x: (N, J, 2) 2D poses.
        z: (N, J) predicted depths.
        rotations: (R, 3, 3) fixed views, used in turn.
        part: Joints of the part, for instance the torso.

    Returns:
        The two values of MMD^2.
    """
    negated = z.clone()
    negated[:, list(part)] *= -1
    views = cycled(rotations, len(x))
    as_is, other = (float(mmd2(*_spread(x, reproject(x, depths, views)))) for depths in (z, negated))
    return RelativeSign(as_is, other)


# --- the label-free score ----------------------------------------------------------------------------------


def cycled(rotations: Tensor, count: int) -> Tensor:
    """Use R fixed views in turn: (R, 3, 3) -> (count, 3, 3)."""
    return rotations[torch.arange(count, device=rotations.device) % len(rotations)]


def _spread(*sets: Tensor) -> list[Tensor]:
    """At most 800 poses of each set, evenly spaced: neighbouring frames are nearly equal."""
    return [s[torch.linspace(0, len(s) - 1, min(len(s), _MMD_POSES), device=s.device).round().long()] for s in sets]


def mmd2(real: Tensor, fake: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy, kernel exp(-d^2 / median d^2) (section 4.4).

    The median is that of the real poses, so that scores of different models share one kernel.

    Args:
        real: (M, ...) samples, M at least 2.
        fake: (N, ...) samples of the same size, N at least 2.

    Returns:
        Scalar; it may be slightly negative.
    """
    # Float64: the differences of interest are of order 1e-3, and distances come from differences of squares.
    a, b = real.flatten(1).double(), fake.flatten(1).double()
    between_real, between_fake, across = (_squared_distances(*pair) for pair in ((a, a), (b, b), (a, b)))
    m, n = len(a), len(b)
    median = between_real[torch.ones_like(between_real, dtype=torch.bool).triu(diagonal=1)].median()
    kernels = [torch.exp(-d / median) for d in (between_real, between_fake, across)]
    # The diagonals hold k(x, x) = 1; leaving them out makes the estimate unbiased.
    within = (kernels[0].sum() - m) / (m * (m - 1)) + (kernels[1].sum() - n) / (n * (n - 1))
    discrepancy: Tensor = within - 2 * kernels[2].mean()
    return discrepancy


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between all rows of (M, D) and (N, D): (M, N)."""
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return (squares - 2 * a @ b.mT).clamp_min(0)


def bone_variation(poses: Tensor) -> Tensor:
    """CV_bone (section 4.4): coefficient of variation of relative bone lengths over poses.

    Lengths are divided by the mean of their pose; the result is the mean over bones of sd / mean. A bone
    starts at the nearest ancestor among the joints, or at the root (the origin).

    Args:
        poses: (N, J, 3), any unit.

    Returns:
        Scalar. It does not change if the depths of a part of the body change sign.
    """
    poses = full_precision(poses)
    bones = [(joint, parent) for joint, parent in enumerate(_parents(poses.shape[1])) if parent is not None]
    ends, starts = torch.tensor(bones, device=poses.device).T
    # Position -1 is the origin.
    with_root = torch.cat([poses, torch.zeros_like(poses[:, :1])], dim=1)
    lengths = torch.linalg.vector_norm(with_root[:, ends] - with_root[:, starts], dim=-1)
    relative = lengths / lengths.mean(dim=1, keepdim=True)
    variation: Tensor = (relative.std(dim=0, correction=0) / relative.mean(dim=0)).mean()
    return variation


def _parents(joints: int) -> list[int | None]:
    """Position of the nearest ancestor within the subset; -1 for the origin, None for the root itself."""
    ids = SUBSETS[joints].ids
    found: list[int | None] = []
    for joint in ids:
        ancestor = JOINTS[joint].parent
        while ancestor >= 0 and ancestor not in ids:
            ancestor = JOINTS[ancestor].parent
        found.append(None if joint == 0 else ids.index(ancestor) if ancestor >= 0 else -1)
    return found


@dataclass(frozen=True)
class LabelFreeScore:
    """Parts of the label-free score S; lower is better.

    Attributes:
        root_l2d: Root of the 2D cycle error, mean over joints.
        root_l90: Root of the 90-degree consistency error (three terms), mean over joints.
        bone_variation: CV_bone.
        mmd2: Unbiased MMD^2 of real and reprojected poses.
    """

    root_l2d: float
    root_l90: float
    bone_variation: float
    mmd2: float

    @property
    def total(self) -> float:
        """S = sqrt(L2D) + sqrt(L90) + CV_bone + 2 sqrt(max(0, MMD^2))."""
        return self.root_l2d + self.root_l90 + self.bone_variation + 2 * math.sqrt(max(0.0, self.mmd2))


@torch.no_grad()
def label_free_score(lift: Lift, x: Tensor, rotations: Tensor, reference: Tensor | None = None) -> LabelFreeScore:
    """Score a lifter on held-out 2D poses (section 4.4, item 2).

    Args:
        lift: Depths (N, J) of image positions (N, J, 2), in evaluation mode.
        x: (N, J, 2) held-out 2D poses.
        rotations: (R, 3, 3) views, used in turn; keep the same (64) for all evaluations of a run.
        reference: (M, J, 2) real 2D poses that MMD^2 compares the reprojections with, by default `x`.
            Held-out poses from few sequences have few camera azimuths, which random views do not reproduce: the
            validation subject of articulated17 has an MMD^2 of 6e-3 with the true depths, and of 3e-3 if
            training poses are the reference.

    Returns:
        The score and its parts.
    """
    views = cycled(rotations, len(x))
    z = full_precision(lift(x))
    seen = reproject(x, z, views)
    back = reproject(seen, lift(seen), views.mT)
    turned = [lift(image) for image in quarter_turn_inputs(x, z)]
    return LabelFreeScore(
        root_l2d=float(cycle_errors(x, back).mean().sqrt()),
        root_l90=float(quarter_turn_errors(x, z, turned).mean().sqrt()),
        bone_variation=float(bone_variation(as_pose(x, z))),
        mmd2=float(mmd2(*_spread(x if reference is None else reference, seen))),
    )


# --- dependence of joints on joints ------------------------------------------------------------------------


def influence(lift: Lift, x: Tensor) -> Tensor:
    """Mean size of the gradient of each depth in each image position (section 5.3).

    Args:
        lift: Depths (N, J) of image positions (N, J, 2); poses must not influence each other.
        x: (N, J, 2).

    Returns:
        (J, J): row j, column i is the mean over poses of |d z_j / d x_i|.
    """
    count, joints = x.shape[:2]
    # A copy of the poses for each depth: one pass backward gives all rows, and gathers sharded weights once.
    at = x.detach().repeat(joints, 1, 1).requires_grad_(True)
    z = lift(at).reshape(joints, count, joints)
    (slope,) = torch.autograd.grad(z.diagonal(dim1=0, dim2=2).sum(), at)
    sizes: Tensor = torch.linalg.vector_norm(slope, dim=-1).reshape(joints, count, joints).mean(dim=1)
    return sizes


def leakage(influences: Tensor, parts: Sequence[Sequence[int]]) -> float:
    """Share of the influence that crosses parts: 0 for independent lifters (section 5.3).

    Args:
        influences: (J, J) of `influence`.
        parts: Joints of each part, disjoint.

    Returns:
        In [0, 1]; 0 for a lifter that depends on nothing.
    """
    inside = torch.zeros_like(influences, dtype=torch.bool)
    for part in parts:
        rows = torch.tensor(list(part), device=influences.device)
        inside[rows[:, None], rows] = True
    everything = float(influences.sum())
    return float(influences[~inside].sum()) / everything if everything else 0.0
