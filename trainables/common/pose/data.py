"""The one entry to 2D poses with withheld depth: `open_poses(config)`.

Source: section 2 of the reference notes on TIPSy-GAN (arXiv 2205.05980) and on "Optimising 2D Pose
Representation" (arXiv 2209.00618). Readers deliver clips in the camera frame; this module rejects bad poses,
projects, centres on the root and normalises (section 2.6), the same way for every source.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pharos.cache import local_copy
from pharos.errors import InputError
from trainables.common.pose import articulated
from trainables.common.pose.human36m import load_human36m
from trainables.common.pose.mocap import CMU_BVH_UNIT, load_mocap
from trainables.common.pose.mpi_inf_3dhp import load_mpi_inf_3dhp
from trainables.common.pose.skeleton import HEAD, ROOT, SUBSETS, Array, Clip

# Allowed inputs by source.
SOURCES: dict[str, tuple[str, ...]] = {
    "articulated17": ("ortho3d",),
    "asf_amc": ("ortho3d",),
    "bvh": ("ortho3d",),
    "human36m": ("ortho3d", "gt2d", "detected"),
    "mpi_inf_3dhp": ("ortho3d", "gt2d"),
}
PROJECTIONS = ("orthographic", "perspective")
NORMALISATIONS = ("per_pose_maxabs", "head_global")
CAMERA_DISTANCE = (3000.0, 6000.0)  # of the perspective projection, mm
DEGENERATE = 1e-6  # a pose no larger than this (mm or px) has all joints at the root


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r} is not possible; it must be one of {', '.join(map(str, allowed))}")


@dataclass
class PoseDataConfig:
    """Which poses, and how they are given to a model (section 2 of the notes)."""

    source: str = "articulated17"
    """articulated17 (generated, needs no files), asf_amc, bvh, human36m or mpi_inf_3dhp."""
    root: str = ""
    """Folder of the files; unused by articulated17."""
    input_2d: str = "ortho3d"
    """ortho3d: x, y of the 3D pose in the camera frame; gt2d: image positions; detected: detected joints."""
    detector: str = "cpn_ft_h36m_dbb"
    """human36m with detected input: the file is data_2d_h36m_<detector>.npz."""
    projection: str = "orthographic"
    """orthographic or perspective (a camera 3 to 6 m away); applies to ortho3d input."""
    normalise: str = "per_pose_maxabs"
    """per_pose_maxabs: each pose touches +-1; head_global: all are divided by 10 mean root-head distances."""
    joints: int = 16
    """16 (root dropped, the papers), 17 (root kept) or 14 (no spine and nose, centred between the hips)."""
    allow_pickle: bool = False
    """human36m: consent to read the pickles in its npz files (by an unpickler limited to array data)."""
    frame_step: int = 5
    """Recordings: every how many frames one is kept (CMU has 120 a second, Human3.6M 50)."""
    views: int = 4
    """Sources without cameras: random cameras per recording."""
    held_out_subjects: list[str] = field(default_factory=list)
    """asf_amc and bvh: subjects of the test split; empty for the last one."""
    bvh_unit: float = CMU_BVH_UNIT
    """bvh: millimetres per length unit of the files; the default is that of the CMU conversion."""
    cross_source: str = ""
    """Another source whose tests are added as cross_<name>: trained on one set, tested on another."""
    cross_root: str = ""
    """Folder of the files of cross_source."""
    ood_tests: bool = False
    """articulated17: add the tests ood_camera (higher elevation) and ood_body (other proportions)."""
    seed: int = 0
    """Seed of the generated set and of all random cameras."""
    train_subjects: int = 8
    """articulated17: training subjects, a tenth of them (at least one) for validation."""
    train_sequences: int = 6
    """articulated17: training sequences per subject and pair of programs."""
    train_frames: int = 40
    """articulated17: frames per training sequence."""
    test_subjects: int = 4
    """articulated17: subjects of each test."""
    test_sequences: int = 3
    """articulated17: test sequences per subject and pair of programs."""
    test_frames: int = 25
    """articulated17: frames per test sequence."""

    def __post_init__(self) -> None:
        """Check values and their combinations.

        Raises:
            InputError: A value is not allowed; the message lists what is.
        """
        _one_of("source", self.source, tuple(SOURCES))
        _one_of(f"input_2d (source {self.source})", self.input_2d, SOURCES[self.source])
        _one_of("projection", self.projection, PROJECTIONS)
        _one_of("normalise", self.normalise, NORMALISATIONS)
        _one_of("joints", self.joints, tuple(SUBSETS))
        if self.input_2d != "ortho3d" and self.projection != "orthographic":
            raise InputError(
                f"projection={self.projection} needs input_2d=ortho3d; "
                f"{self.input_2d} has the projection of its camera, leave projection=orthographic"
            )
        if self.source != "articulated17" and not self.root:
            raise InputError(f"source={self.source} needs root=<the folder of its files>")
        if self.cross_source:
            _one_of("cross_source", self.cross_source, tuple(SOURCES))
            _one_of(f"input_2d (cross_source {self.cross_source})", self.input_2d, SOURCES[self.cross_source])
            if self.cross_source != "articulated17" and not self.cross_root:
                raise InputError(f"cross_source={self.cross_source} needs cross_root=<the folder of its files>")
        at_least = dict.fromkeys(("frame_step", "views", *articulated.Sizes.__dataclass_fields__), 1)
        for name, least in (at_least | {"seed": 0, "train_subjects": 2}).items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} is too small; it must be at least {least}")
        if not self.bvh_unit > 0:
            raise InputError(f"bvh_unit={self.bvh_unit} must be positive (mm per length unit of the files)")


@dataclass(frozen=True)
class PoseSet:
    """N poses of J joints (`skeleton.SUBSETS[J]`), root-centred, the root dropped unless J is 17.

    Attributes:
        x: (N, J, 2) float32, normalised input.
        truth: (N, J, 3) float32, mm, camera frame (x right, y down, z away). For evaluation only.
        scale: (N,) float32, what the input was divided by: mm, or px for image positions.
        group: Names of the groups that errors are reported by (actions, recordings, pairs of programs).
        group_code: (N,) int64, index into `group` of each pose.
    """

    x: Tensor
    truth: Tensor
    scale: Tensor
    group: list[str]
    group_code: Tensor

    def __len__(self) -> int:
        """Number of poses."""
        return len(self.x)


@dataclass(frozen=True)
class Poses:
    """All splits of a source.

    Attributes:
        train: Depth must not be used for training.
        validation: Held out of the training data.
        tests: `matched` and `recombined` (and those of `ood_tests`) for articulated17, else `test`; and the tests of
            `cross_source`.
        manifest: What was read: source, seed, poses, rejected and skipped ones, and a hash; for JSON.
    """

    train: PoseSet
    validation: PoseSet
    tests: dict[str, PoseSet]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class _Raw:
    """Root-centred poses of one split before normalisation: `image` in mm or px, `truth` in mm."""

    image: Array
    truth: Array
    head_distance: Array
    labels: list[str]
    missing: int
    degenerate: int


def _read(config: PoseDataConfig) -> tuple[dict[str, list[Clip]], dict[str, Any]]:
    """Clips by split, and what the manifest says about their origin."""
    root = local_copy(config.root) if config.root else Path()
    match config.source:
        case "articulated17":
            sizes = articulated.Sizes(
                **{name: getattr(config, name) for name in articulated.Sizes.__dataclass_fields__}
            )
            splits = articulated.generate(config.seed, sizes, config.ood_tests)
            clips = {
                name: [
                    Clip(joints, pair, f"{name} {k}")
                    for k, (joints, pair) in enumerate(zip(split.joints, split.pair, strict=True))
                ]
                for name, split in splits.items()
            }
            return clips, {"generated": articulated.manifest(splits, config.seed, sizes)}
        case "human36m":
            return load_human36m(
                root,
                input_2d=config.input_2d,
                detector=config.detector,
                allow_pickle=config.allow_pickle,
                seed=config.seed,
                views=config.views,
                frame_step=config.frame_step,
            ), {}
        case "mpi_inf_3dhp":
            return load_mpi_inf_3dhp(root, frame_step=config.frame_step), {}
        case _:
            return load_mocap(
                root,
                config.source,
                seed=config.seed,
                views=config.views,
                frame_step=config.frame_step,
                test_subjects=tuple(config.held_out_subjects),
                bvh_unit=config.bvh_unit,
            ), {}


def _project(joints: list[Array], projection: str, rng: np.random.Generator) -> Array:
    """Image positions (N, 17, 2) in mm of clips of root-centred joints; one camera distance per clip."""
    if projection == "orthographic":
        return np.concatenate([clip[..., :2] for clip in joints])
    distances = rng.uniform(*CAMERA_DISTANCE, len(joints))
    return np.concatenate(
        [clip[..., :2] * (d / (d + clip[..., 2:])) for clip, d in zip(joints, distances, strict=True)]
    )


def _prepare(config: PoseDataConfig, name: str, clips: list[Clip], rng: np.random.Generator) -> _Raw:
    """Project, centre and select joints; drop poses with missing joints or without extent."""
    subset = SUBSETS[config.joints]
    ids, origin = list(subset.ids), list(subset.root_ids)
    joints = [clip.joints - clip.joints[:, [ROOT]] for clip in clips]
    if config.input_2d == "ortho3d":
        image = _project(joints, config.projection, rng)
    else:
        image = np.concatenate([clip.image for clip in clips if clip.image is not None])
    truth = np.concatenate(joints)
    labels = [clip.label for clip in clips for _ in clip.joints]

    complete = np.isfinite(image).all(axis=(1, 2)) & np.isfinite(truth).all(axis=(1, 2))
    head_distance = np.linalg.norm(image[:, HEAD] - image[:, ROOT], axis=-1)
    image = (image - image[:, origin].mean(axis=1, keepdims=True))[:, ids]
    truth = (truth - truth[:, origin].mean(axis=1, keepdims=True))[:, ids]
    with np.errstate(invalid="ignore"):
        extended = np.abs(image).max(axis=(1, 2)) > DEGENERATE
    keep = complete & extended
    missing, degenerate = int((~complete).sum()), int((complete & ~extended).sum())
    if not keep.any():
        reasons = f"{missing} of {len(keep)} poses lack joints (NaN), {degenerate} have all joints at the root"
        raise InputError(f"{config.root or config.source}: no usable pose in the {name} split: {reasons}")
    kept_labels = [label for label, kept in zip(labels, keep, strict=True) if kept]
    return _Raw(image[keep], truth[keep], head_distance[keep], kept_labels, missing, degenerate)


def _pose_set(raw: _Raw, global_scale: float | None) -> PoseSet:
    scale = np.abs(raw.image).max(axis=(1, 2)) if global_scale is None else np.full(len(raw.image), global_scale)
    group = sorted(set(raw.labels))
    code = {label: index for index, label in enumerate(group)}
    return PoseSet(
        x=torch.from_numpy((raw.image / scale[:, None, None]).astype(np.float32)),
        truth=torch.from_numpy(raw.truth.astype(np.float32)),
        scale=torch.from_numpy(scale.astype(np.float32)),
        group=group,
        group_code=torch.tensor([code[label] for label in raw.labels], dtype=torch.int64),
    )


def _hash(splits: dict[str, PoseSet]) -> str:
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(name.encode())
        for tensor in (split.x, split.truth, split.scale, split.group_code):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _cross(config: PoseDataConfig) -> PoseDataConfig:
    """The configuration of the other source, given to a model in the same way."""
    return replace(
        config, source=config.cross_source, root=config.cross_root, held_out_subjects=[], cross_source="", cross_root=""
    )


def open_poses(config: PoseDataConfig) -> Poses:
    """Read or generate all splits of a source; a pure function of the configuration and the files.

    Args:
        config: Which poses, and how they are normalised.

    Returns:
        The splits. Inputs lie in [-1, 1] with `per_pose_maxabs`; true depth divided by `scale` exceeds 1 in
        one to three per cent of articulated17.

    Raises:
        InputError: A file is missing or wrong, or a split has no usable pose.
    """
    clips, origin = _read(config)
    # A stream of its own: the distances of a perspective camera must not move the cameras.
    rng = np.random.default_rng([config.seed, 1])
    raw = {name: _prepare(config, name, split, rng) for name, split in clips.items()}
    global_scale = None
    if config.normalise == "head_global":
        global_scale = 10.0 * float(raw["train"].head_distance.mean())
        if global_scale <= DEGENERATE:
            raise InputError(f"{config.root or config.source}: head and root coincide in all training poses")
    splits = {name: _pose_set(part, global_scale) for name, part in raw.items()}
    manifest: dict[str, Any] = {
        "source": config.source,
        "seed": config.seed,
        "normalise": config.normalise,
        "global_scale": global_scale,
        "poses": {name: len(split) for name, split in splits.items()},
        "rejected_missing_joints": {name: part.missing for name, part in raw.items()},
        "skipped_degenerate": {name: part.degenerate for name, part in raw.items()},
        "sha256": _hash(splits),
        **origin,
    }
    tests = {n.removeprefix("test_"): s for n, s in splits.items() if n not in ("train", "validation")}
    if config.cross_source:
        # With head_global, each set has a divisor of its own: they may be measured in different units.
        other = open_poses(_cross(config))
        tests |= {f"cross_{name}": split for name, split in other.tests.items()}
        manifest["cross"] = other.manifest
    return Poses(splits["train"], splits["validation"], tests, manifest)
