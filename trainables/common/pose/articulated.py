"""`articulated17`: generated people with withheld depth; and the camera of every source that has none.

Source: section 2.5 of the reference notes on TIPSy-GAN (arXiv 2205.05980); the set is not the paper's. Upper-
and lower-body programs are paired in training and re-paired in one test split, so that a model which learned
to infer a wrist's depth from an ankle is found out.

Body frame: x to the person's left, y up, z forward (right-handed); column-vector rotations; angles in
degrees; sides are ordered (right, left). Everything derives from one seed, and each pool of subjects from its
own stream, so that the size of a test split does not alter the training poses.

Read with the phases of the notes: only walk and swing alternate between the sides, the other programs move
both sides together; every U(.) is drawn once per sequence and side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from trainables.common.pose.skeleton import JOINTS, RELATIVE_LENGTHS, Array

FRAMES_PER_SECOND = 25.0
NOISE_FRAMES = 15.0  # time constant of the joint-angle noise
NECK_TILT = 26.0  # the neck bone leans forward of the head's axis, degrees
ELEVATION = (-10.0, 10.0)  # of the camera, degrees

# Mean lengths, mm. Order: half-hip, thigh, shin, spine, chest, neck, head, shoulder, upper arm, forearm.
MEAN_LENGTHS = (134.0, 449.0, 445.0, 238.0, 255.0, 116.0, 115.0, 148.5, 279.5, 249.5)
# Index into MEAN_LENGTHS of each of the 16 bones, in the order of skeleton.BONES.
BONE_OF_LENGTH = (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 8, 9)

# Joint-angle limits, degrees (section 2.5(b)).
LIMITS: dict[str, tuple[float, float]] = {
    "hip_flexion": (-20.0, 115.0),
    "hip_abduction": (-15.0, 45.0),
    "hip_rotation": (-30.0, 30.0),
    "knee_flexion": (0.0, 135.0),
    "trunk_pitch": (-15.0, 60.0),
    "trunk_roll": (-25.0, 25.0),
    "trunk_twist": (-40.0, 40.0),
    "neck_pitch": (-30.0, 45.0),
    "neck_yaw": (-60.0, 60.0),
    "shoulder_flexion": (-45.0, 170.0),
    "shoulder_abduction": (-10.0, 150.0),
    "shoulder_rotation": (-60.0, 80.0),
    "elbow_flexion": (0.0, 145.0),
}

TRAINING_PAIRS: tuple[tuple[str, str], ...] = (
    ("walk", "swing"),
    ("stand", "reach"),
    ("stand", "wave"),
    ("sit", "phone"),
    ("sit", "gesture"),
    ("squat", "reach"),
    ("kick", "rest"),
)
RECOMBINED_PAIRS: tuple[tuple[str, str], ...] = (
    ("walk", "wave"),
    ("walk", "phone"),
    ("walk", "gesture"),
    ("sit", "reach"),
    ("sit", "wave"),
    ("squat", "gesture"),
    ("stand", "swing"),
    ("kick", "reach"),
)


@dataclass(frozen=True)
class Sizes:
    """How much to generate. Sequences are per subject and pair of programs, frames per sequence."""

    train_subjects: int = 8
    train_sequences: int = 6
    train_frames: int = 40
    test_subjects: int = 4
    test_sequences: int = 3
    test_frames: int = 25


@dataclass(frozen=True)
class Sequences:
    """S generated sequences of T frames.

    Attributes:
        joints: (S, T, 17, 3) mm, camera frame, pelvis at the origin.
        angles: Degrees by name (the keys of LIMITS): (S, T, 2) for right and left, (S, T) for trunk and neck.
        subject: (S,) subject number, unique over all splits.
        pair: S labels "lower+upper".
    """

    joints: Array
    angles: dict[str, Array]
    subject: np.ndarray
    pair: tuple[str, ...]

    def select(self, keep: np.ndarray) -> Sequences:
        """The sequences where the mask `keep` (S,) is true."""
        return Sequences(
            self.joints[keep],
            {name: angle[keep] for name, angle in self.angles.items()},
            self.subject[keep],
            tuple(pair for pair, kept in zip(self.pair, keep, strict=True) if kept),
        )


def rotation(axis: str, degrees: Array) -> Array:
    """Column-vector rotation matrices about one axis.

    Args:
        axis: x, y or z.
        degrees: Angles of any shape.

    Returns:
        Matrices, `degrees.shape + (3, 3)`.
    """
    angle = np.deg2rad(degrees)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[..., 3 - first - second, 3 - first - second] = 1.0
    matrix[..., first, first] = matrix[..., second, second] = np.cos(angle)
    matrix[..., second, first] = np.sin(angle)
    matrix[..., first, second] = -matrix[..., second, first]
    return matrix


def draw_cameras(
    rng: np.random.Generator, sequences: int, frames: int, elevation: tuple[float, float] = ELEVATION
) -> Array:
    """Random cameras of section 2.5(d): any azimuth, with a walk of 1 degree a frame, and one elevation each.

    Args:
        rng: Source of randomness.
        sequences: Number of cameras, S.
        frames: Frames that each one films, T.
        elevation: Range of the elevation, degrees.

    Returns:
        (S, T, 3, 3), from a world with y up to axes x right, y down, z away.
    """
    start, steps = rng.uniform(-180.0, 180.0, (sequences, 1)), rng.normal(0.0, 1.0, (sequences, frames))
    azimuth = start + np.cumsum(steps, axis=1)
    tilt = np.broadcast_to(rng.uniform(*elevation, (sequences, 1)), (sequences, frames))
    turn_over = np.diag([1.0, -1.0, -1.0])
    matrices: Array = turn_over @ rotation("x", tilt) @ rotation("y", azimuth)
    return matrices


def apply_rotation(matrices: Array, points: Array) -> Array:
    """Rotate joints: matrices (..., 3, 3) applied to points (..., J, 3)."""
    rotated: Array = points @ np.swapaxes(matrices, -1, -2)
    return rotated


class _Draw:
    """Random quantities for n sequences of `frames` frames, and their common phase `w` (n, frames)."""

    def __init__(self, rng: np.random.Generator, n: int, frames: int) -> None:
        self.rng, self.n, self.frames = rng, n, frames
        frequency, phase = rng.uniform(0.7, 1.2, (n, 1)), rng.uniform(0.0, 2 * np.pi, (n, 1))
        self.w = 2 * np.pi * frequency * np.arange(frames) / FRAMES_PER_SECOND + phase

    def per_side(self, low: float, high: float) -> Array:
        """U(low, high), once per sequence and side: (n, 1, 2)."""
        return self.rng.uniform(low, high, (self.n, 1, 2))

    def normal(self, sd: float) -> Array:
        """N(0, sd²), once per sequence: (n, 1)."""
        return self.rng.normal(0.0, sd, (self.n, 1))

    def one_side(self) -> np.ndarray:
        """A mask (n, 1, 2) that picks one random side of each sequence."""
        mask: np.ndarray = self.rng.integers(2, size=(self.n, 1, 1)) == np.arange(2)
        return mask

    def noise(self, sd: float, sides: int = 0) -> Array:
        """Stationary Ornstein-Uhlenbeck noise: (n, frames), or (n, frames, sides)."""
        shape = (self.n, self.frames, sides) if sides else (self.n, self.frames)
        white = self.rng.normal(0.0, sd, shape)
        keep = np.exp(-1.0 / NOISE_FRAMES)
        white[:, 1:] *= np.sqrt(1.0 - keep**2)
        for frame in range(1, self.frames):
            white[:, frame] += keep * white[:, frame - 1]
        return white


@dataclass(frozen=True)
class _Legs:
    """Flexions (n, T, 2) and the trunk pitch (n, T) that a lower-body program asks for, degrees."""

    hip: Array
    knee: Array
    trunk_pitch: Array | float


@dataclass(frozen=True)
class _Arms:
    """Angles that broadcast to (n, T, 2), degrees, and what the trunk does along (n, T)."""

    flexion: Array
    abduction: Array | float
    elbow: Array
    rotation: Array | float
    trunk_pitch: Array | float = 0.0
    trunk_twist: Array | float = 0.0


_LEG_PHASE = np.array([0.0, np.pi])  # right, left
_ARM_PHASE = np.array([np.pi, 0.0])


def _half_wave(angle: Array) -> Array:
    return np.maximum(np.sin(angle), 0.0)


def _walk(d: _Draw) -> _Legs:
    w = d.w[..., None] + _LEG_PHASE
    return _Legs(6 + d.per_side(20, 32) * np.sin(w), 16 + d.per_side(45, 60) * _half_wave(w + 1.1) ** 2, 4.0)


def _stand(d: _Draw) -> _Legs:
    bend, sway = d.per_side(-4, 8), np.sin(0.3 * d.w)[..., None]
    return _Legs(bend + 4 * sway, np.maximum(0.0, 4 + 2 * bend) + 3 * sway, 2.0)


def _sit(d: _Draw) -> _Legs:
    return _Legs(d.per_side(72, 100) + d.noise(3, 2), d.per_side(65, 110) + d.noise(5, 2), 10.0)


def _squat(d: _Draw) -> _Legs:
    depth = 0.5 - 0.5 * np.cos(d.w)
    both = depth[..., None]
    return _Legs(5 + both * d.per_side(60, 105), 8 + both * d.per_side(75, 120), 22 * depth)


def _kick(d: _Draw) -> _Legs:
    right = np.array([1.0, 0.0])
    swing, follow = _half_wave(d.w)[..., None] ** 2, _half_wave(d.w + 1.2)[..., None]
    return _Legs(3 + right * swing * d.per_side(40, 85), 8 + right * 25 * follow, -2.0)


def _swing(d: _Draw) -> _Arms:
    w, size = d.w[..., None] + _ARM_PHASE, d.per_side(0.8, 1.2)
    twist = 8 * np.sin(d.w + np.pi)
    return _Arms(2 + 22 * size * np.sin(w), 8.0, 22 + 14 * np.sin(w), 0.0, trunk_twist=twist)


def _rest(d: _Draw) -> _Arms:
    return _Arms(d.per_side(-8, 12), d.per_side(4, 14), d.per_side(5, 30), 0.0)


def _reach(d: _Draw) -> _Arms:
    on, extent = d.one_side(), 0.5 - 0.5 * np.cos(0.7 * d.w + 1)
    both = extent[..., None]
    return _Arms(
        flexion=np.where(on, 5 + both * d.per_side(60, 130), d.per_side(-5, 15)),
        abduction=d.per_side(5, 25),
        elbow=np.where(on, 60 - 45 * both, d.per_side(8, 30)),
        rotation=0.0,
        trunk_pitch=12 * extent,
    )


def _wave(d: _Draw) -> _Arms:
    on, beat = d.one_side(), np.sin(3 * d.w)[..., None]
    return _Arms(
        flexion=np.where(on, d.per_side(10, 30), d.per_side(-5, 10)),
        abduction=np.where(on, d.per_side(95, 140) + 10 * beat, 8.0),
        elbow=np.where(on, 60 + 30 * beat, 15.0),
        rotation=np.where(on, d.per_side(20, 60), 0.0),
    )


def _phone(d: _Draw) -> _Arms:
    on = d.one_side()
    return _Arms(
        flexion=np.where(on, d.per_side(35, 60), d.per_side(-5, 25)),
        abduction=np.where(on, d.per_side(15, 40), 8.0),
        elbow=np.where(on, d.per_side(125, 143), d.per_side(10, 60)),
        rotation=np.where(on, d.per_side(-10, 30), 0.0),
    )


def _gesture(d: _Draw) -> _Arms:
    w, phase, other = d.w[..., None], d.per_side(0, 2 * np.pi), d.per_side(0, 2 * np.pi)
    return _Arms(
        flexion=25 + 20 * np.sin(1.7 * w + phase),
        abduction=d.per_side(10, 30),
        elbow=80 + 25 * np.sin(2.1 * w + other),
        rotation=d.per_side(-20, 20),
    )


LOWER_PROGRAMS: dict[str, Callable[[_Draw], _Legs]] = {
    "walk": _walk,
    "stand": _stand,
    "sit": _sit,
    "squat": _squat,
    "kick": _kick,
}
UPPER_PROGRAMS: dict[str, Callable[[_Draw], _Arms]] = {
    "swing": _swing,
    "rest": _rest,
    "reach": _reach,
    "wave": _wave,
    "phone": _phone,
    "gesture": _gesture,
}


def _angles(d: _Draw, lower: str, upper: str) -> dict[str, Array]:
    """Joint angles of n sequences of one pair of programs, clipped to LIMITS (section 2.5(c))."""
    legs, arms = LOWER_PROGRAMS[lower](d), UPPER_PROGRAMS[upper](d)
    angles = {
        "hip_flexion": legs.hip + d.noise(2, 2),
        "hip_abduction": d.per_side(0, 14) + d.noise(2, 2),
        "hip_rotation": d.rng.normal(0.0, 8.0, (d.n, 1, 2)) + d.noise(2, 2),
        "knee_flexion": legs.knee + d.noise(2, 2),
        "trunk_pitch": legs.trunk_pitch + d.normal(4) + arms.trunk_pitch + d.noise(2),
        "trunk_roll": d.normal(3) + d.noise(2),
        "trunk_twist": d.normal(6) + d.noise(4) + arms.trunk_twist,
        "neck_pitch": 8 + d.normal(8) + d.noise(4),
        "neck_yaw": d.normal(15) + d.noise(8),
        "shoulder_flexion": arms.flexion + d.noise(3, 2),
        "shoulder_abduction": arms.abduction + d.noise(2, 2),
        "shoulder_rotation": arms.rotation + d.noise(3, 2),
        "elbow_flexion": arms.elbow + d.noise(3, 2),
    }
    return {name: np.clip(angle, *LIMITS[name]) for name, angle in angles.items()}


def _body_lengths(rng: np.random.Generator, subjects: int, means: Array) -> Array:
    """Lengths (subjects, 10) in mm: stature times a small deviation of each segment; left equals right."""
    stature = np.clip(rng.normal(1.0, 0.05, (subjects, 1)), 0.85, 1.15)
    lengths: Array = means * stature * np.exp(rng.normal(0.0, 0.03, (subjects, len(means))))
    return lengths


def forward_kinematics(angles: dict[str, Array], lengths: Array, pelvis: Array) -> Array:
    """Joint positions from joint angles (section 2.5(d)).

    Args:
        angles: Degrees by name (the keys of LIMITS): (S, T, 2) for right and left, (S, T) for trunk and neck.
        lengths: (S, 10) mm in the order of MEAN_LENGTHS.
        pelvis: (S, 2) pitch and roll of the whole body, degrees.

    Returns:
        (S, T, 17, 3) mm in the body frame, the pelvis at the origin.
    """
    side = np.array([-1.0, 1.0])  # right, left: the sign of "outward" along x
    half_hip, thigh, shin, spine, chest, neck, head, shoulder, upper_arm, forearm = lengths.T[..., None, None]
    down, up, left = np.array([0.0, -1.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])

    whole = (rotation("z", pelvis[:, 1]) @ rotation("x", pelvis[:, 0]))[:, None]
    hips = whole[:, :, None]
    femur = hips @ rotation("z", side * angles["hip_abduction"])
    femur = femur @ rotation("y", side * angles["hip_rotation"]) @ rotation("x", -angles["hip_flexion"])
    tibia = femur @ rotation("x", angles["knee_flexion"])

    # The trunk bends half at the pelvis and half at the spine joint.
    bend = rotation("y", angles["trunk_twist"] / 2) @ rotation("z", angles["trunk_roll"] / 2)
    bend = bend @ rotation("x", angles["trunk_pitch"] / 2)
    lower_trunk = whole @ bend
    upper_trunk = lower_trunk @ bend
    skull = upper_trunk @ rotation("y", angles["neck_yaw"]) @ rotation("x", angles["neck_pitch"])
    neck_up = rotation("x", np.array(NECK_TILT)) @ up

    humerus = upper_trunk[:, :, None] @ rotation("z", side * angles["shoulder_abduction"])
    humerus = humerus @ rotation("x", -angles["shoulder_flexion"])
    humerus = humerus @ rotation("y", -side * angles["shoulder_rotation"])
    ulna = humerus @ rotation("x", -angles["elbow_flexion"])

    joints = np.zeros((*angles["trunk_pitch"].shape, len(JOINTS), 3))
    right_left_hip, right_left_shoulder = [1, 4], [14, 11]
    joints[:, :, right_left_hip] = half_hip[..., None] * side[:, None] * (hips @ left)
    joints[:, :, [2, 5]] = joints[:, :, right_left_hip] + thigh[..., None] * (femur @ down)
    joints[:, :, [3, 6]] = joints[:, :, [2, 5]] + shin[..., None] * (tibia @ down)
    joints[:, :, 7] = spine * (lower_trunk @ up)
    joints[:, :, 8] = joints[:, :, 7] + chest * (upper_trunk @ up)
    joints[:, :, 9] = joints[:, :, 8] + neck * (skull @ neck_up)
    joints[:, :, 10] = joints[:, :, 9] + head * (skull @ up)
    across = side[:, None] * (upper_trunk @ left)[:, :, None]
    joints[:, :, right_left_shoulder] = joints[:, :, [8]] + shoulder[..., None] * across
    joints[:, :, [15, 12]] = joints[:, :, right_left_shoulder] + upper_arm[..., None] * (humerus @ down)
    joints[:, :, [16, 13]] = joints[:, :, [15, 12]] + forearm[..., None] * (ulna @ down)
    return joints


@dataclass(frozen=True)
class _Pool:
    """Subjects that are drawn together, from one random stream."""

    pairs: tuple[tuple[str, str], ...]
    subjects: int
    sequences: int
    frames: int
    first_subject: int
    means: tuple[float, ...] = MEAN_LENGTHS
    elevation: tuple[float, float] = ELEVATION


def _film(rng: np.random.Generator, pool: _Pool) -> Sequences:
    """Generate all sequences of a pool: pairs, then subjects, then repetitions."""
    lengths = _body_lengths(rng, pool.subjects, np.array(pool.means))
    per_pair = pool.subjects * pool.sequences
    parts = [_angles(_Draw(rng, per_pair, pool.frames), lower, upper) for lower, upper in pool.pairs]
    angles = {name: np.concatenate([part[name] for part in parts]) for name in LIMITS}
    subject = np.tile(np.repeat(np.arange(pool.subjects), pool.sequences), len(pool.pairs))
    pair = tuple(f"{lower}+{upper}" for lower, upper in pool.pairs for _ in range(per_pair))
    sitting = np.array([label.startswith("sit+") for label in pair])
    pitch = rng.normal(0.0, 4.0, len(pair)) - 12.0 * sitting
    pelvis = np.stack([pitch, rng.normal(0.0, 3.0, len(pair))], axis=1)
    body = forward_kinematics(angles, lengths[subject], pelvis)
    cameras = draw_cameras(rng, len(pair), pool.frames, pool.elevation)
    return Sequences(apply_rotation(cameras, body), angles, subject + pool.first_subject, pair)


def _mpi_lengths() -> tuple[float, ...]:
    """Mean lengths with the proportions of MPI-INF-3DHP and the mean bone of MEAN_LENGTHS, mm."""
    mean_bone = np.mean([MEAN_LENGTHS[k] for k in BONE_OF_LENGTH])
    table, order = np.array(RELATIVE_LENGTHS["mpi_inf_3dhp"]), np.array(BONE_OF_LENGTH)
    return tuple(float(table[order == k].mean() * mean_bone) for k in range(len(MEAN_LENGTHS)))


def generate(seed: int = 0, sizes: Sizes | None = None, ood_tests: bool = False) -> dict[str, Sequences]:
    """Generate the built-in set (section 2.5).

    Args:
        seed: Non-negative; everything derives from it.
        sizes: How much of it; the default is the documented 13 440 training poses, validation included.
        ood_tests: Add `test_ood_camera` (elevation 10 to 25 degrees) and `test_ood_body` (proportions of
            MPI-INF-3DHP), both with training pairs (section 2.3 of the notes on arXiv 2209.00618).

    Returns:
        `train`, `validation` (a tenth of the training subjects, at least one), `test_matched` (new subjects,
        training pairs), `test_recombined` (new subjects, pairs never seen in training) and the tests of
        `ood_tests`.

    Raises:
        ValueError: A size below 1, fewer than two training subjects, or a negative seed.
    """
    sizes = sizes or Sizes()
    too_small = [field.name for field in fields(sizes) if getattr(sizes, field.name) < 1]
    if too_small or sizes.train_subjects < 2:
        raise ValueError(f"articulated17: sizes must be at least 1, train_subjects at least 2; got {sizes}")
    test = (sizes.test_subjects, sizes.test_sequences, sizes.test_frames)
    first = sizes.train_subjects
    matched = _Pool(TRAINING_PAIRS, *test, first_subject=first)
    pools = {
        "train": _Pool(TRAINING_PAIRS, sizes.train_subjects, sizes.train_sequences, sizes.train_frames, 0),
        "test_matched": matched,
        "test_recombined": _Pool(RECOMBINED_PAIRS, *test, first_subject=first + sizes.test_subjects),
    }
    if ood_tests:
        third, fourth = first + 2 * sizes.test_subjects, first + 3 * sizes.test_subjects
        pools["test_ood_camera"] = replace(matched, first_subject=third, elevation=(10.0, 25.0))
        pools["test_ood_body"] = replace(matched, first_subject=fourth, means=_mpi_lengths())
    streams = enumerate(pools.items())
    splits = {name: _film(np.random.default_rng([seed, stream]), pool) for stream, (name, pool) in streams}
    held_out = max(1, round(0.1 * sizes.train_subjects))
    in_training = splits["train"].subject < sizes.train_subjects - held_out
    everyone = splits.pop("train")
    return {"train": everyone.select(in_training), "validation": everyone.select(~in_training), **splits}


def manifest(splits: dict[str, Sequences], seed: int, sizes: Sizes | None = None) -> dict[str, object]:
    """What identifies a generated set.

    The hash is taken over positions rounded to a micrometre: the last bit of a sine should not change it.

    Returns:
        `set`, `seed`, `sizes`, `poses` per split and `sha256`; ready for JSON.
    """
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(name.encode())
        digest.update(np.rint(split.joints * 1000.0).astype("<i4").tobytes())
        digest.update("\n".join(f"{s} {p}" for s, p in zip(split.subject, split.pair, strict=True)).encode())
    return {
        "set": "articulated17",
        "seed": seed,
        "sizes": asdict(sizes or Sizes()),
        "poses": {name: int(np.prod(split.joints.shape[:2])) for name, split in splits.items()},
        "sha256": digest.hexdigest(),
    }
