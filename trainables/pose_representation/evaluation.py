"""Which joints a lifter's depths depend on, and how alike several trainings of it end.

Source: sections 5.2 and 5.3 of the reference notes on "Optimising 2D Pose Representation" (arXiv 2209.00618). The
statistic of the paper's own correlation study is not known; these are ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.common.pose.data import Poses
from trainables.common.pose.geometry import as_pose, full_precision
from trainables.common.pose.losses import Lift
from trainables.common.pose.metrics import depth_sign, leakage
from trainables.common.pose.skeleton import SUBSETS
from trainables.pose_representation.data import exchanged, mm_per_unit

_LATE = 0.2  # the share of a run over which its error should stand still
_FIGURE = "val/pa_mpjpe"


def correlations(x: Tensor, z: Tensor) -> Tensor:
    """Pearson's correlation over poses of every depth with every image coordinate.

    Args:
        x: (N, J, 2) image positions.
        z: (N, J) depths.

    Returns:
        (J, J, 2): row j, column i is that of z_j with x_i and with y_i; 0 where one of them never changes.
    """
    a, b = (values.double() - values.double().mean(dim=0) for values in (x, z))
    a, b = (values / _norm(values).clamp_min(1e-12) for values in (a, b))
    return torch.einsum("nj,nic->jic", b, a)


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=0)
    return norm


@dataclass(frozen=True)
class Correlations:
    """What a lifter's depths depend on, (J, J) each: rows are depths, columns image positions.

    Attributes:
        influence: Mean size of the gradient, each row divided by its sum.
        learned: Size of the correlation of the predicted depth with both coordinates.
        induced: Size of the difference to the correlation of the *true* depth: what the model made up.
        flipped: How many of the five parts have depths that run against the truth while most run with it.
    """

    influence: Tensor
    learned: Tensor
    induced: Tensor
    flipped: int = 0


class CorrelationStudy:
    """Studies lifters on one test split: that with pairs of arms and legs never seen in training, if there is one.

    There the true correlation across the parts is small by construction, so that a learned one is made up.

    Args:
        poses: The data.
        device: Where lifters live.
    """

    def __init__(self, poses: Poses, device: torch.device):
        self._poses = poses.tests.get("recombined", next(iter(poses.tests.values())))
        self._x = self._poses.x.to(device)
        self._mm = mm_per_unit(self._poses).to(device)
        self._truth = self._poses.truth.to(device)[..., 2] / self._mm[:, None]
        self._subset = SUBSETS[self._x.shape[1]]
        legs, torso = self._subset.two_parts.values()
        self._legs, self._torso = list(legs), list(torso)
        # The same exchange for all models.
        self._mixed = exchanged(self._x, torso, torch.Generator().manual_seed(0))

    def of(self, lift: Lift, influences: Tensor) -> Correlations:
        """The three tables of a lifter in evaluation mode.

        Args:
            lift: Depths (N, J) of image positions (N, J, 2).
            influences: (J, J) of `common.pose.metrics.influence`.
        """
        z = full_precision(lift(self._x))
        z = z * depth_sign(as_pose(self._x, z))
        learned, real = correlations(self._x, z), correlations(self._x, self._truth)
        rows = influences.sum(dim=1, keepdim=True)
        return Correlations(
            influence=influences / rows.clamp_min(torch.finfo(rows.dtype).tiny),
            learned=torch.linalg.vector_norm(learned, dim=-1),
            induced=torch.linalg.vector_norm(learned - real, dim=-1),
            flipped=self._flipped(z),
        )

    def _flipped(self, z: Tensor) -> int:
        """Parts with the wrong sign, which neither cycle nor quarter turns can tell (pitfall P10); at most 2 of 5."""
        parts = self._subset.five_parts.values()
        against = sum(float((z * self._truth)[:, list(part)].sum()) < 0 for part in parts)
        return min(against, len(parts) - against)

    def measures(self, found: Correlations, influences: Tensor) -> dict[str, float]:
        """The tables in numbers, the parts the same for all representations.

        Returns:
            `five`: share of the influence that crosses the five parts; `opposite`: share of the limbs' that comes from
            the limb on the other side; `mirror`: by how much left on right and right on left differ, as a share of
            their sum; `across` and `within`: mean induced correlation between legs and torso, and inside of them;
            `flipped`: parts with the wrong sign of the depth.
        """
        five = self._subset.five_parts
        pairs = [("left_leg", "right_leg"), ("left_arm", "right_arm")]
        onto = {(a, b): _block(influences, five[a], five[b]) for p, q in pairs for a, b in ((p, q), (q, p))}
        of_limbs = sum(float(influences[list(five[name])].sum()) for pair in pairs for name in pair)
        both = sum(onto.values())
        differences = sum(abs(onto[p, q] - onto[q, p]) for p, q in pairs)
        across = torch.cat([found.induced[self._legs][:, self._torso].T, found.induced[self._torso][:, self._legs]])
        within = [found.induced[part][:, part].flatten() for part in (self._legs, self._torso)]
        return {
            "correlation/five": leakage(influences, list(five.values())),
            "correlation/opposite": both / of_limbs if of_limbs else 0.0,
            "correlation/mirror": differences / both if both else 0.0,
            "correlation/across": float(across.mean()),
            "correlation/within": float(torch.cat(within).mean()),
            "correlation/flipped": float(found.flipped),
        }

    def swap(self, lift: Lift) -> dict[str, float]:
        """How far depths move, in mm, when every pose gets the torso of another one.

        Exactly 0 for the legs, whose image has not changed, if they are lifted alone.
        """
        moved = (full_precision(lift(self._mixed)) - full_precision(lift(self._x))).abs() * self._mm[:, None]
        return {"swap/legs": float(moved[:, self._legs].mean()), "swap/torso": float(moved[:, self._torso].mean())}


def _block(influences: Tensor, rows: Sequence[int], columns: Sequence[int]) -> float:
    return float(influences[list(rows)][:, list(columns)].sum())


class Stability:
    """What several trainings of one configuration say together: a result of its own, not the best run.

    Args:
        state: Its memory, kept with the run.
        seeds: How many trainings there are.
    """

    def __init__(self, state: dict[str, Any], seeds: int):
        # By epoch: one that is trained again after a stop is not counted twice.
        self._by_epoch: list[dict[str, float]] = state.setdefault("curves", [{} for _ in range(seeds)])
        self._seeds = seeds

    @property
    def _curves(self) -> list[list[float]]:
        return [list(errors.values()) for errors in self._by_epoch]

    def report(self, found: Sequence[dict[str, float]], epoch: int, at_end: bool) -> dict[str, float]:
        """Takes up one evaluation of each training and gives what is reported of all.

        Args:
            found: Metrics of each training.
            epoch: Which one, from 0.
            at_end: Whether it is the last evaluation.

        Returns:
            The mean of every metric; `seed<k>/` error of each training and `stability/spread`, the standard deviation
            over them, where there are several. At the end, of the error on validation: `worst`, `best`; and as means
            over trainings `late_drop` (last minus best evaluation) and `late_noise` (standard deviation over the last
            fifth of the evaluations); `collapsed`: how many trainings did.
        """
        for errors, metrics in zip(self._by_epoch, found, strict=True):
            errors[str(epoch)] = metrics[_FIGURE]
        scores = {name: statistics.fmean(metrics[name] for metrics in found) for name in found[0]}
        if self._seeds > 1:
            last = [curve[-1] for curve in self._curves]
            scores |= {f"seed{k}/{_FIGURE}": error for k, error in enumerate(last)}
            scores["stability/spread"] = statistics.stdev(last)
        if at_end:
            scores |= self._summary(found)
        return scores

    def _summary(self, found: Sequence[dict[str, float]]) -> dict[str, float]:
        last = [curve[-1] for curve in self._curves]
        late = [curve[-max(1, round(_LATE * len(curve))) :] for curve in self._curves]
        return {
            "stability/worst": max(last),
            "stability/best": min(last),
            "stability/late_drop": statistics.fmean(curve[-1] - min(curve) for curve in self._curves),
            "stability/late_noise": statistics.fmean(statistics.pstdev(errors) for errors in late),
            "stability/collapsed": sum(metrics["collapsed"] for metrics in found),
        }
