"""MPI-INF-3DHP: training annotations of subjects S1-S8, test sequences TS1-TS6.

Source: section 2.3 of the reference notes on TIPSy-GAN (arXiv 2205.05980). The data set is licensed for
research by its owners and is never downloaded here. Layout of the folder:

    S{1..8}/Seq{1,2}/annot.mat   annot2, univ_annot3: one cell per camera, (N, 56) px and (N, 84) mm
    TS{1..6}/annot_data.mat      MATLAB 7.3 (HDF5): valid_frame, annot2, univ_annot3 of 17 joints

Poses are `univ_annot3`, in the frame of their camera: the skeleton scaled to one size for all people, as in
the public evaluations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pharos.errors import InputError
from trainables.common.pose.skeleton import FROM_MPI28, FROM_MPI_TEST17, Array, Clip, hold_out

# The cameras at chest and knee height, which the public loaders keep; the others look down from the ceiling.
CAMERAS = (0, 1, 2, 4, 5, 6, 7, 8)
_TRAIN_JOINTS = 28
_TEST_JOINTS = 17


def _read_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path, variable_names=["annot2", "univ_annot3"])
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path}: not a readable MATLAB file ({type(error).__name__})") from error
    missing = [name for name in ("annot2", "univ_annot3") if name not in content]
    if missing:
        raise InputError(f"{path}: has no variable '{missing[0]}'; is the file cut off?")
    return content


def _camera_array(path: Path, name: str, value: Any, camera: int, dimensions: int) -> Array:
    """Frames of one camera out of a cell array: (N, 28, dimensions)."""
    cells = np.asarray(value, dtype=object).ravel() if np.asarray(value).dtype == object else np.empty(0)
    if len(cells) <= camera:
        raise InputError(f"{path}: {name} has {len(cells)} cells; camera {camera} is needed (14 cells expected)")
    array = np.asarray(cells[camera])
    width = _TRAIN_JOINTS * dimensions
    if array.ndim != 2 or array.shape[1] != width or array.dtype.kind not in "fiu":
        raise InputError(f"{path}: {name}, camera {camera} must be numbers (frames, {width}), found {array.shape}")
    return array.astype(np.float64).reshape(len(array), _TRAIN_JOINTS, dimensions)


def read_train(path: Path, label: str, frame_step: int = 5) -> list[Clip]:
    """Read an annot.mat.

    Args:
        path: The file.
        label: Name of the recording, "S1/Seq1".
        frame_step: Every how many frames one is kept.

    Returns:
        One clip for each of CAMERAS, with image positions.

    Raises:
        InputError: The file is damaged or lacks a variable, a camera or a column.
    """
    content = _read_mat(path)
    clips = []
    for camera in CAMERAS:
        joints = _camera_array(path, "univ_annot3", content["univ_annot3"], camera, 3)
        image = _camera_array(path, "annot2", content["annot2"], camera, 2)
        if len(image) != len(joints):
            counts = f"{len(image)} frames in annot2 and {len(joints)} in univ_annot3"
            raise InputError(f"{path}: camera {camera} has {counts}")
        kept = slice(None, None, frame_step), list(FROM_MPI28)
        clips.append(Clip(joints[kept], label, label, image[kept]))
    return clips


def read_test(path: Path, label: str, frame_step: int = 5) -> Clip:
    """Read the valid frames of an annot_data.mat.

    Args:
        path: The file.
        label: Name of the sequence, "TS1".
        frame_step: Every how many valid frames one is kept.

    Returns:
        The clip, with image positions.

    Raises:
        InputError: The file is damaged, lacks a data set or has one of a wrong shape.
    """
    import h5py

    names = ("valid_frame", "annot2", "univ_annot3")
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in names if name not in file]
            arrays = {} if missing else {name: np.asarray(file[name][()]) for name in names}
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path}: not a readable MATLAB 7.3 (HDF5) file ({type(error).__name__})") from error
    if missing:
        raise InputError(f"{path}: has no data set '{missing[0]}'; expected {', '.join(names)}")
    valid = arrays["valid_frame"].ravel() != 0
    frames = len(valid)
    for name, dimensions in (("annot2", 2), ("univ_annot3", 3)):
        # MATLAB keeps axes of length one: (frames, 1, 17, dimensions).
        if arrays[name].size != frames * _TEST_JOINTS * dimensions or arrays[name].shape[-2:] != (
            17,
            dimensions,
        ):
            wanted = f"({frames}, 1, {_TEST_JOINTS}, {dimensions})"
            raise InputError(f"{path}: {name} must have shape {wanted}, found {arrays[name].shape}")
    if not valid.any():
        raise InputError(f"{path}: valid_frame marks no frame as valid")
    joints = arrays["univ_annot3"].reshape(frames, _TEST_JOINTS, 3).astype(np.float64)
    image = arrays["annot2"].reshape(frames, _TEST_JOINTS, 2).astype(np.float64)
    order = list(FROM_MPI_TEST17)
    return Clip(joints[valid][::frame_step, order], label, label, image[valid][::frame_step, order])


def load_mpi_inf_3dhp(root: Path, *, frame_step: int = 5) -> dict[str, list[Clip]]:
    """Read all sequences there are.

    Args:
        root: Folder of S1 ... S8 and TS1 ... TS6 (some may be absent).
        frame_step: Every how many frames one is kept.

    Returns:
        `train`, `validation` (the last training sequence, and every tenth before it) and `test`.

    Raises:
        InputError: A file is wrong, or fewer than two training sequences or no test sequence are there.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one with S1/Seq1/annot.mat ... and TS1/annot_data.mat ...")
    train_files = [root / f"S{s}" / f"Seq{q}" / "annot.mat" for s in range(1, 9) for q in (1, 2)]
    test_files = [root / f"TS{s}" / "annot_data.mat" for s in range(1, 7)]
    train_files, test_files = [f for f in train_files if f.is_file()], [f for f in test_files if f.is_file()]
    if len(train_files) < 2 or not test_files:
        found = f"{len(train_files)} S*/Seq*/annot.mat and {len(test_files)} TS*/annot_data.mat"
        raise InputError(f"{root}: found {found}; at least 2 of the first and 1 of the second are needed")
    clips: list[Clip] = []
    for path in train_files:
        clips += read_train(path, f"{path.parent.parent.name}/{path.parent.name}", frame_step)
    train, validation = hold_out(clips)
    test = [read_test(path, path.parent.name, frame_step) for path in test_files]
    return {"train": train, "validation": validation, "test": test}
