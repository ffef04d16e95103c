"""Human3.6M in the files of VideoPose3D.

Source: section 2.2 of the reference notes on TIPSy-GAN (arXiv 2205.05980); file layout and splits of
facebookresearch/VideoPose3D. The data set is licensed to registered users and is never downloaded here:

    data_3d_h36m.npz           positions_3d: {subject: {action: (T, 32, 3)}}, metres, world with z up
    data_2d_h36m_gt.npz        positions_2d: {subject: {action: [4 x (T', 17, 2)]}}, px; metadata  (optional)
    data_2d_h36m_<name>.npz    the same layout with detected joints                                (optional)

The arrays are pickles, which can run code when loaded. They are read only on request, and then by an
unpickler that knows numpy arrays, dicts, lists, strings and numbers, and nothing else. Other layouts of the
data set (the pickled list of H36M-Toolbox, the HDF5 files of H36M-fetch) are not read.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from pharos.errors import InputError
from trainables.common.arrays import unpickle_arrays
from trainables.common.pose.articulated import apply_rotation, draw_cameras
from trainables.common.pose.skeleton import FROM_H36M32, NUM_JOINTS, ROOT, Array, Clip, hold_out

TRAIN_SUBJECTS = ("S1", "S5", "S6", "S7", "S8")
TEST_SUBJECTS = ("S9", "S11")
_CORRUPT = ("S11", "Directions")  # one trial, dropped by all
MM_PER_METRE = 1000.0
MAX_CALIBRATION_POINTS = 5000
# Left and right joints, as the files of 2D positions state them.
_SYMMETRY = [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]
# Lens distortion, which a pinhole camera cannot follow, costs a few px; mismatched 2D costs hundreds.
MAX_CALIBRATION_RMS = 20.0
# World with z up -> world with y up, as the random cameras expect.
_Z_UP_TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def _read_member(stream: IO[bytes]) -> Any:
    """The value of one .npy stream: an array, or what a zero-dimensional object array holds."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(stream)
    if not dtype.hasobject:
        raise pickle.UnpicklingError("it is not a pickled dictionary")
    value = unpickle_arrays(stream)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


def read_pickled_npz(path: Path, *names: str, allow_pickle: bool) -> list[Any]:
    """Read dictionaries of arrays out of an npz file.

    Args:
        path: The file.
        names: Arrays wanted.
        allow_pickle: Must be true: the user's consent to reading pickles from this file.

    Returns:
        One value per name.

    Raises:
        InputError: No consent, no such file or array, a damaged file, or a pickle of more than array data.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the npz files of VideoPose3D in this folder")
    if not allow_pickle:
        raise InputError(f"{path}: holds pickles; set allow_pickle=true to read them (array data only)")
    values = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                with archive.open(f"{name}.npy") as stream:
                    values.append(_read_member(stream))
    except KeyError:
        raise InputError(f"{path}: has no array '{name}'; expected {' and '.join(names)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle or zip can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable npz of VideoPose3D: {reason}") from error
    return values


def _checked(path: Path, value: Any, name: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(actions, dict) for actions in value.values()):
        raise InputError(f"{path}: {name} must be a dictionary of subjects, each a dictionary of actions")
    return value


def _checked_array(path: Path, value: Any, where: str, shape: tuple[int, int]) -> Array:
    array = np.asarray(value)
    if array.ndim != 3 or array.shape[1:] != shape or array.dtype.kind != "f" or not len(array):
        raise InputError(f"{path}: {where} must be floats (frames, {shape[0]}, {shape[1]}), found {array.shape}")
    return array.astype(np.float64)


def _normaliser(points: Array) -> Array:
    """Similarity (homogeneous) that centres points (N, d) and gives them a mean distance of sqrt(d)."""
    dimensions = points.shape[1]
    centre = points.mean(axis=0)
    spread = np.linalg.norm(points - centre, axis=1).mean()
    scale = np.sqrt(dimensions) / max(spread, np.finfo(np.float64).tiny)
    matrix = np.diag([scale] * dimensions + [1.0])
    matrix[:-1, -1] = -scale * centre
    return matrix


def recover_camera(world: Array, image: Array) -> tuple[Array, Array, Array, float]:
    """Fit a pinhole camera to matched points: direct linear transform, then RQ decomposition.

    Args:
        world: (N, 3).
        image: (N, 2) px.

    Returns:
        Intrinsics K (3, 3) with positive diagonal and K[2, 2] = 1, rotation R (3, 3) and translation t (3,)
        such that `K (R X + t)` projects onto the image and depths are positive, and the root-mean-square
        residual in px.

    Raises:
        ValueError: Fewer than 6 points, or points that do not determine a camera (all in one plane, say).
    """
    from scipy.linalg import rq

    if len(world) < 6:
        raise ValueError(f"a camera needs at least 6 points, got {len(world)}")
    to_world, to_image = _normaliser(world), _normaliser(image)
    ones = np.ones((len(world), 1))
    points = np.hstack([world, ones]) @ to_world.T
    u, v, _ = (np.hstack([image, ones]) @ to_image.T).T
    zeros = np.zeros_like(points)
    rows = np.vstack(
        [np.hstack([points, zeros, -u[:, None] * points]), np.hstack([zeros, points, -v[:, None] * points])]
    )
    _, singular, axes = np.linalg.svd(rows, full_matrices=False)
    if singular[-2] <= 1e-9 * singular[0]:
        raise ValueError("the points do not determine a camera")
    projection = np.linalg.inv(to_image) @ axes[-1].reshape(3, 4) @ to_world
    # The sign of a homogeneous matrix is free: choose the one that makes the rotation proper.
    projection *= np.sign(np.linalg.det(projection[:, :3]))
    intrinsics, turn = rq(projection[:, :3])
    signs = np.diag(np.sign(np.diag(intrinsics)))
    intrinsics, turn = intrinsics @ signs, signs @ turn
    shift = np.linalg.solve(intrinsics, projection[:, 3])
    if np.median(world @ turn[2] + shift[2]) <= 0:
        raise ValueError("the fitted camera sees the points behind it")
    projected = np.hstack([world, ones]) @ projection.T
    residual = projected[:, :2] / projected[:, 2:] - image
    rms = float(np.sqrt((residual**2).sum(axis=1).mean()))
    return intrinsics / intrinsics[2, 2], turn, shift, rms


def _read_2d(path: Path, allow_pickle: bool) -> dict[str, dict[str, Any]]:
    positions, metadata = read_pickled_npz(path, "positions_2d", "metadata", allow_pickle=allow_pickle)
    symmetry = metadata.get("keypoints_symmetry") if isinstance(metadata, dict) else None
    if symmetry != _SYMMETRY:
        raise InputError(f"{path}: metadata must have keypoints_symmetry {_SYMMETRY}, the 17 joints of VideoPose3D")
    return _checked(path, positions, "positions_2d")


def _images(path: Path, positions: dict[str, dict[str, Any]], subject: str, action: str, frames: int) -> list[Array]:
    """The views of one recording, each cut to the length of its 3D: (frames, 17, 2)."""
    views = positions.get(subject, {}).get(action)
    if not isinstance(views, list) or not views:
        raise InputError(f"{path}: no list of views for {subject}, '{action}', which data_3d_h36m.npz has")
    arrays = [_checked_array(path, v, f"{subject}, '{action}', view {k}", (NUM_JOINTS, 2)) for k, v in enumerate(views)]
    short = [array for array in arrays if len(array) < frames]
    if short:
        raise InputError(f"{path}: {subject}, '{action}' has {len(short[0])} frames in 2D and {frames} in 3D")
    return [array[:frames] for array in arrays]


def _fit_rotation(path: Path, where: str, world: list[Array], image: list[Array]) -> Array:
    """Rotation of one camera of one subject, from all recordings that it saw."""
    points, pixels = np.concatenate(world).reshape(-1, 3), np.concatenate(image).reshape(-1, 2)
    seen = np.isfinite(points).all(axis=1) & np.isfinite(pixels).all(axis=1)
    points, pixels = points[seen], pixels[seen]
    some = np.linspace(0, len(points) - 1, min(len(points), MAX_CALIBRATION_POINTS)).astype(int)
    try:
        _, turn, _, rms = recover_camera(points[some], pixels[some])
    except ValueError as error:
        raise InputError(f"{path}: {where} does not fit the 3D of data_3d_h36m.npz ({error})") from None
    if not rms <= MAX_CALIBRATION_RMS:
        raise InputError(f"{path}: {where} does not fit the 3D of data_3d_h36m.npz (residual {rms:.0f} px)")
    return turn


def _worlds(path: Path, positions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Array]]:
    """Joints (T, 17, 3) in metres by action, by subject; without the corrupt recording of S11."""
    subjects = {
        subject: [name for name in sorted(positions.get(subject, {})) if (subject, name) != _CORRUPT]
        for subject in (*TRAIN_SUBJECTS, *TEST_SUBJECTS)
    }
    missing = [subject for subject, actions in subjects.items() if not actions]
    if missing:
        raise InputError(f"{path}: has no recordings of {', '.join(missing)}; all seven subjects are needed")
    return {
        subject: {
            name: _checked_array(path, positions[subject][name], f"{subject}, '{name}'", (32, 3))[:, FROM_H36M32]
            for name in actions
        }
        for subject, actions in subjects.items()
    }


def _label(action: str) -> str:
    """`Walking 1`, the second trial, is reported under `Walking`."""
    return re.sub(r" \d+$", "", action)


def _rotations(path: Path, subject: str, worlds: dict[str, Array], seen: dict[str, list[Array]]) -> list[Array]:
    """Rotations of all cameras of one subject; `worlds` and `seen` are by action."""
    counts = {len(views) for views in seen.values()}
    if len(counts) != 1:
        raise InputError(f"{path}: {subject} has {min(counts)} to {max(counts)} views; all actions need the same")
    return [
        _fit_rotation(path, f"{subject}, view {k}", list(worlds.values()), [seen[name][k] for name in worlds])
        for k in range(counts.pop())
    ]


def load_human36m(
    root: Path,
    *,
    input_2d: str = "ortho3d",
    detector: str = "cpn_ft_h36m_dbb",
    allow_pickle: bool = False,
    seed: int = 0,
    views: int = 4,
    frame_step: int = 5,
) -> dict[str, list[Clip]]:
    """Read Human3.6M and turn it into the frames of its cameras.

    The rotations of the cameras are not in the files; they are recovered from ground-truth 2D, one per
    subject and camera (`recover_camera`). With `ortho3d` and no 2D file, random cameras of section 2.5(d)
    film the world.

    Args:
        root: Folder of the npz files.
        input_2d: "ortho3d" (no image positions), "gt2d" or "detected" (px of the file named by `detector`).
        detector: Middle of the file name of detected 2D.
        allow_pickle: Consent to read pickles.
        seed: Of the random cameras.
        views: Number of random cameras per recording.
        frame_step: Every how many frames (50 a second) one is kept.

    Returns:
        `train` (S1, S5, S6, S7, S8), `validation` (the last recording of these and every tenth before it) and
        `test` (S9, S11).

    Raises:
        InputError: See `read_pickled_npz`; or a wrong shape, missing subjects, 2D that does not fit.
    """
    path = root / "data_3d_h36m.npz"
    positions = _checked(path, read_pickled_npz(path, "positions_3d", allow_pickle=allow_pickle)[0], "positions_3d")
    worlds = _worlds(path, positions)
    true_path, found_path = root / "data_2d_h36m_gt.npz", root / f"data_2d_h36m_{detector}.npz"
    # Cameras are fitted on ground truth even for detected 2D, whose errors would tilt them.
    true_2d = _read_2d(true_path, allow_pickle) if true_path.is_file() or input_2d != "ortho3d" else None
    found_2d = _read_2d(found_path, allow_pickle) if input_2d == "detected" else None
    rng = np.random.default_rng(seed)
    clips: dict[str, list[Clip]] = {}
    for subject, actions in worlds.items():
        clips[subject] = []
        seen: dict[str, list[Array]] = {}
        turns: list[Array] = []
        if true_2d is not None:
            seen = {name: _images(true_path, true_2d, subject, name, len(w)) for name, w in actions.items()}
            turns = _rotations(true_path, subject, actions, seen)
        if found_2d is not None:
            seen = {name: _images(found_path, found_2d, subject, name, len(w)) for name, w in actions.items()}
            if any(len(found) != len(turns) for found in seen.values()):
                raise InputError(f"{found_path}: {subject} must have {len(turns)} views, as in {true_path.name}")
        for action, world in actions.items():
            centred = (world - world[:, [ROOT]])[::frame_step] * MM_PER_METRE
            cameras = turns or list(draw_cameras(rng, views, len(centred)) @ _Z_UP_TO_Y_UP)
            for view, camera in enumerate(cameras):
                image = None if input_2d == "ortho3d" else seen[action][view][::frame_step]
                joints = apply_rotation(camera, centred)
                clips[subject].append(Clip(joints, _label(action), f"{subject}/{action}", image))
    train, validation = hold_out([clip for subject in TRAIN_SUBJECTS for clip in clips[subject]])
    test = [clip for subject in TEST_SUBJECTS for clip in clips[subject]]
    return {"train": train, "validation": validation, "test": test}
