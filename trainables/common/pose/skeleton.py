"""The 17-joint skeleton `h36m17`, as one table, and clips of poses on it.

Source: section 2.1 of the reference notes on TIPSy-GAN (arXiv 2205.05980); "Optimising 2D Pose
Representation" (arXiv 2209.00618) uses the same skeleton. Joint order, index maps and bone tables are those
of the authors' public code (Aswarin/2D-to-3D-Pose, Aswarin/LInKs-3D-Human-Pose-Estimation), of ElePose
(bastianwandt/ElePose) and of VideoPose3D (facebookresearch/VideoPose3D). The *left* arm is at 11-13;
ElePose's loader has the right one there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Joint:
    """One row of the skeleton table.

    Attributes:
        name: Name in plain words.
        parent: 17-id of the parent joint, -1 for the root.
        limb: Finest part: root, right_leg, left_leg, trunk, left_arm or right_arm.
        h36m32: Index among the 32 joints of a Human3.6M recording.
        mpi28: Index among the 28 joints of an MPI-INF-3DHP training file.
        mpi_test17: Index among the 17 joints of an MPI-INF-3DHP test file.
        asf: Bone of the CMU Acclaim skeleton whose *tip* is the joint ("root" for the root's own position).
        bvh: Names of BVH nodes whose origin is the joint: CMU's (cgspeed) first, then those of other rigs.
    """

    name: str
    parent: int
    limb: str
    h36m32: int
    mpi28: int
    mpi_test17: int
    asf: str
    bvh: tuple[str, ...]


def _limb(side: str, joint: str, *others: str) -> tuple[str, ...]:
    """Spellings of one limb node, in order of preference: LeftUpLeg, LUpLeg, LeftThigh, LThigh, ...

    `Shoulder` must come last: beside a LeftArm, LeftShoulder is the clavicle; alone it is the shoulder joint.
    """
    return tuple(prefix + name for name in (joint, *others) for prefix in (side, side[0]))


_LEFT_ARM = _limb("Left", "Arm", "UpArm", "UpperArm", "Shldr", "Shoulder")
_RIGHT_ARM = _limb("Right", "Arm", "UpArm", "UpperArm", "Shldr", "Shoulder")
_RIGHT_FOREARM = _limb("Right", "ForeArm", "LowArm", "Elbow")

# The wrist is the tip of the Acclaim `wrist` bone: `radius` and `wrist` divide the forearm 2 : 1 (the second
# of them only twists, and the hand bends at its tip).
JOINTS: tuple[Joint, ...] = (
    Joint("pelvis", -1, "root", 0, 4, 14, "root", ("Hips", "Hip", "Pelvis", "Root")),
    Joint("right hip", 0, "right_leg", 1, 23, 8, "rhipjoint", _limb("Right", "UpLeg", "Thigh", "Hip")),
    Joint("right knee", 1, "right_leg", 2, 24, 9, "rfemur", _limb("Right", "Leg", "Shin", "LowLeg", "Knee")),
    Joint("right ankle", 2, "right_leg", 3, 25, 10, "rtibia", _limb("Right", "Foot", "Ankle")),
    Joint("left hip", 0, "left_leg", 6, 18, 11, "lhipjoint", _limb("Left", "UpLeg", "Thigh", "Hip")),
    Joint("left knee", 4, "left_leg", 7, 19, 12, "lfemur", _limb("Left", "Leg", "Shin", "LowLeg", "Knee")),
    Joint("left ankle", 5, "left_leg", 8, 20, 13, "ltibia", _limb("Left", "Foot", "Ankle")),
    Joint("spine", 0, "trunk", 12, 3, 15, "lowerback", ("Spine", "Chest", "Abdomen")),
    Joint("thorax", 7, "trunk", 13, 5, 1, "thorax", ("Neck",)),
    Joint("neck", 8, "trunk", 14, 6, 16, "lowerneck", ("Neck1", "Head")),
    Joint("head top", 9, "trunk", 15, 7, 0, "head", ("Head End Site",)),
    Joint("left shoulder", 8, "left_arm", 17, 9, 5, "lclavicle", _LEFT_ARM),
    Joint("left elbow", 11, "left_arm", 18, 10, 6, "lhumerus", _limb("Left", "ForeArm", "LowArm", "Elbow")),
    Joint("left wrist", 12, "left_arm", 19, 11, 7, "lwrist", _limb("Left", "Hand", "Wrist")),
    Joint("right shoulder", 8, "right_arm", 25, 14, 2, "rclavicle", _RIGHT_ARM),
    Joint("right elbow", 14, "right_arm", 26, 15, 3, "rhumerus", _RIGHT_FOREARM),
    Joint("right wrist", 15, "right_arm", 27, 16, 4, "rwrist", _limb("Right", "Hand", "Wrist")),
)

NUM_JOINTS = len(JOINTS)
ROOT = 0
HEAD = 10
PARENTS: tuple[int, ...] = tuple(joint.parent for joint in JOINTS)
SWAP_PAIRS: tuple[tuple[int, int], ...] = ((1, 4), (2, 5), (3, 6), (11, 14), (12, 15), (13, 16))

# Index maps: `source_array[..., MAP, :]` is in the order of JOINTS.
FROM_H36M32: tuple[int, ...] = tuple(joint.h36m32 for joint in JOINTS)
FROM_MPI28: tuple[int, ...] = tuple(joint.mpi28 for joint in JOINTS)
FROM_MPI_TEST17: tuple[int, ...] = tuple(joint.mpi_test17 for joint in JOINTS)

BONES: tuple[tuple[int, int], ...] = (
    *((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8)),
    *((8, 9), (9, 10), (8, 11), (11, 12), (12, 13), (8, 14), (14, 15), (15, 16)),
)
# Mean bone length divided by the mean over the 16 bones, in the order of BONES.
RELATIVE_LENGTHS: dict[str, tuple[float, ...]] = {
    "human36m": (
        *(0.5181, 1.7371, 1.7229, 0.5181, 1.7371, 1.7229, 0.9209, 0.9879),
        *(0.4481, 0.4450, 0.5746, 1.0812, 0.9652, 0.5746, 1.0812, 0.9652),
    ),
    "mpi_inf_3dhp": (
        *(0.4812, 1.8389, 1.4970, 0.4812, 1.8358, 1.4970, 0.9089, 0.9942),
        *(0.3472, 0.6946, 0.5796, 1.2105, 0.9252, 0.5730, 1.2105, 0.9252),
    ),
}


@dataclass(frozen=True)
class JointSubset:
    """The joints a model sees, and their parts.

    Attributes:
        ids: 17-ids of the joints, ascending; position k of a model's input is joint `ids[k]`.
        root_ids: 17-ids whose mean is the origin.
    """

    ids: tuple[int, ...]
    root_ids: tuple[int, ...]

    def positions(self, *limbs: str) -> tuple[int, ...]:
        """Positions (not 17-ids) of the joints of the named limbs."""
        return tuple(k for k, joint in enumerate(self.ids) if JOINTS[joint].limb in limbs)

    @cached_property
    def two_parts(self) -> dict[str, tuple[int, ...]]:
        """Legs (with the root, if present) and torso (trunk, head and arms): a disjoint cover."""
        return {
            "legs": self.positions("root", "right_leg", "left_leg"),
            "torso": self.positions("trunk", "left_arm", "right_arm"),
        }

    @cached_property
    def five_parts(self) -> dict[str, tuple[int, ...]]:
        """Limbs and trunk: a disjoint cover that refines `two_parts`.

        The root counts with the right leg: at the origin it carries no information.
        """
        return {
            "right_leg": self.positions("root", "right_leg"),
            "left_leg": self.positions("left_leg"),
            "trunk": self.positions("trunk"),
            "left_arm": self.positions("left_arm"),
            "right_arm": self.positions("right_arm"),
        }

    @cached_property
    def half_parts(self) -> dict[str, tuple[int, ...]]:
        """Left and right half of the body; both contain the trunk (and the root, if present)."""
        return {
            "left": self.positions("root", "left_leg", "trunk", "left_arm"),
            "right": self.positions("root", "right_leg", "trunk", "right_arm"),
        }

    @cached_property
    def mirror(self) -> tuple[int, ...]:
        """Permutation of positions that exchanges left and right labels."""
        partner = dict(SWAP_PAIRS) | {b: a for a, b in SWAP_PAIRS}
        return tuple(self.ids.index(partner.get(joint, joint)) for joint in self.ids)


# 16: the papers' (the root is dropped). 17: root kept, as in LInKs. 14: the skeleton of MPII and LSP (no
# spine, no nose), centred between the hips.
SUBSETS: dict[int, JointSubset] = {
    16: JointSubset(tuple(range(1, 17)), (ROOT,)),
    17: JointSubset(tuple(range(17)), (ROOT,)),
    14: JointSubset((1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16), (1, 4)),
}


def bone_lengths(joints: Array) -> Array:
    """Lengths of the 16 bones.

    Args:
        joints: Positions, (..., 17, 3).

    Returns:
        (..., 16) in the order of BONES and the unit of `joints`.
    """
    start, end = np.array(BONES).T
    lengths: Array = np.linalg.norm(joints[..., end, :] - joints[..., start, :], axis=-1)
    return lengths


@dataclass(frozen=True)
class Clip:
    """Consecutive poses of one person seen by one camera.

    Attributes:
        joints: (T, 17, 3) mm in the camera frame (x right, y down, z away); any origin.
        label: What the poses are reported under: an action, a recording, a pair of programs.
        recording: The take it comes from. All cameras and pieces of one recording fall into the same split.
        image: (T, 17, 2) px where the camera's own 2D is wanted, else None.
    """

    joints: Array
    label: str
    recording: str
    image: Array | None = None


def hold_out(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Take the last recording, and every tenth before it, out of training clips for validation.

    Args:
        clips: Training clips, the clips of one recording next to each other.

    Returns:
        Training and validation clips; the first is empty if there is one recording only.
    """
    recordings = list(dict.fromkeys(clip.recording for clip in clips))
    held = set(recordings[::-10])
    return [c for c in clips if c.recording not in held], [c for c in clips if c.recording in held]
