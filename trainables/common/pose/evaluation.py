"""How good a lifter is: errors against withheld depth, the label-free score, the sign bits, the collapse guard.

Source: sections 4.4 and 5 of the reference notes on TIPSy-GAN (arXiv 2205.05980); "Optimising 2D Pose
Representation" (arXiv 2209.00618) uses the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainables.common.pose.data import Poses, PoseSet
from trainables.common.pose.geometry import as_pose, draw_rotations
from trainables.common.pose.losses import Lift
from trainables.common.pose.metrics import (
    auc,
    depth_sign,
    influence,
    label_free_score,
    leakage,
    n_mpjpe,
    pa_mpjpe,
    pck,
    relative_sign,
)
from trainables.common.pose.skeleton import NUM_JOINTS, SUBSETS

_VIEWS = 64  # fixed, the same at every evaluation of every trial
_LEAKAGE_POSES = 128

_SEPARATION = {
    "lsgan": ("train/d_loss", 0.02),
    "bce_smooth": ("train/d_accuracy", 0.98),
    "hinge": ("train/d_accuracy", 0.98),
}
_SUSPICIOUS_EVALUATIONS = 5
_LEAST_STD = 0.02


class Judge:
    """Measures lifters on the held-out splits, always on the same views.

    Args:
        poses: The data; depths of the training split are never looked at.
        device: Where lifters live.
    """

    def __init__(self, poses: Poses, device: torch.device):
        self._poses = poses
        self._device = device
        views = draw_rotations(_VIEWS, 160.0, 10.0, per="sample", generator=torch.Generator().manual_seed(0))
        self._views = views.to(device)
        self._x = poses.validation.x.to(device)
        self._truth = poses.validation.truth.to(device)
        self._reference = poses.train.x.to(device)

    def validation(self, lift: Lift) -> dict[str, float]:
        """`val/` errors in mm, and the label-free score; the lifter in evaluation mode."""
        pose = as_pose(self._x, lift(self._x))
        sign = depth_sign(pose)
        free = label_free_score(lift, self._x, self._views, self._reference)
        return {
            **{f"val/{name}": value for name, value in _errors(pose, self._truth, sign).items()},
            "val/depth_sign": float(sign),
            "val/label_free": free.total,
            "val/root_l2d": free.root_l2d,
            "val/root_l90": free.root_l90,
            "val/bone_variation": free.bone_variation,
            "val/mmd2": free.mmd2,
        }

    def tests(self, lift: Lift, influences: Tensor | None = None) -> dict[str, float]:
        """Errors in mm on every test split, and the leakage between legs and torso.

        The sign of the depth is one bit a model, taken from validation.

        Args:
            lift: The lifter, in evaluation mode.
            influences: Its `influences`, if they are known.
        """
        sign = depth_sign(as_pose(self._x, lift(self._x)))
        found: dict[str, float] = {}
        for name, split in self._poses.tests.items():
            pose = as_pose(split.x.to(self._device), lift(split.x.to(self._device)))
            errors = _errors(pose, split.truth.to(self._device), sign)
            found |= {f"{name}/{metric}": value for metric, value in errors.items()}
            found[f"{name}/pa_mpjpe_by_group"] = _mean_of_groups(pa_mpjpe(pose, split.truth.to(self._device)), split)
        parts = SUBSETS[self._x.shape[1]].two_parts
        influences = self.influences(lift) if influences is None else influences
        found["leakage"] = leakage(influences, list(parts.values()))
        return found

    def influences(self, lift: Lift) -> Tensor:
        """(J, J): how much each depth depends on each image position, over validation poses."""
        with torch.enable_grad():
            return influence(lift, self._x[:: max(1, len(self._x) // _LEAKAGE_POSES)])

    def relative_sign(self, lift: Lift) -> dict[str, float]:
        """-1 where the torso's depths would fit the legs' better negated (section 5.2)."""
        torso = SUBSETS[self._x.shape[1]].two_parts["torso"]
        return {"val/relative_sign": float(relative_sign(self._x, lift(self._x), self._views, torso).sign)}


class CollapseGuard:
    """Says when adversarial training has collapsed (section 4.4): the critic separates real from fake in five
    evaluations in a row while the cycle error is above twice its running minimum, or depths have gone flat.

    Args:
        state: Its memory, kept with the run.
        gan_loss: Decides what separation is.
    """

    def __init__(self, state: dict[str, Any], gan_loss: str):
        self._state = state
        self._metric, self._bound = _SEPARATION[gan_loss]

    def update(self, terms: dict[str, float]) -> float:
        """1 from the evaluation on at which training is found to have collapsed, 0 before."""
        state = self._state
        root_l2d = max(value for name, value in terms.items() if name.startswith("train/l2d_")) ** 0.5
        state["least_l2d"] = min(root_l2d, state.get("least_l2d", root_l2d))
        separated = (
            terms[self._metric] < self._bound if self._metric == "train/d_loss" else terms[self._metric] > self._bound
        )
        suspicious = separated and root_l2d > 2 * state["least_l2d"]
        state["suspicious"] = state.get("suspicious", 0) + 1 if suspicious else 0
        flat = terms["train/std_z"] < _LEAST_STD
        if state["suspicious"] >= _SUSPICIOUS_EVALUATIONS or flat:
            state["collapsed"] = True
        return float(state.get("collapsed", False))


def _errors(pose: Tensor, truth: Tensor, sign: int) -> dict[str, float]:
    """Mean errors over poses; those that know a depth sign get the model's one bit."""
    signed = pose * pose.new_tensor([1.0, 1.0, float(sign)])
    count_root = pose.shape[1] != NUM_JOINTS  # else it is among the joints
    return {
        "pa_mpjpe": float(pa_mpjpe(pose, truth).mean()),
        "pa_mpjpe_proper": float(pa_mpjpe(signed, truth, reflection=False).mean()),
        "n_mpjpe": float(n_mpjpe(signed, truth).mean()),
        "n_mpjpe_raw": float(n_mpjpe(pose, truth).mean()),
        "pck": float(pck(signed, truth, count_root=count_root).mean()),
        "auc": float(auc(signed, truth, count_root=count_root).mean()),
    }


def _mean_of_groups(errors: Tensor, split: PoseSet) -> float:
    """Mean of the groups' (actions', program pairs') means."""
    codes = split.group_code.to(errors.device)
    return float(torch.stack([errors[codes == code].mean() for code in range(len(split.group))]).mean())
