"""MPI-INF-3DHP reader on small generated files (tipsy notes 2.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from pharos.errors import InputError
from trainables.common.pose.mpi_inf_3dhp import CAMERAS, load_mpi_inf_3dhp, read_test, read_train
from trainables.common.pose.skeleton import FROM_MPI28, FROM_MPI_TEST17

FRAMES = 6


def cells(dimensions: int, cameras: int = 14, joints: int = 28) -> np.ndarray:
    """A MATLAB cell array (cameras, 1) of (FRAMES, joints * dimensions); values tell their place."""
    array = np.empty((cameras, 1), dtype=object)
    for camera in range(cameras):
        values = 1000.0 * camera + 100.0 * np.arange(FRAMES)[:, None] + np.arange(joints * dimensions) / 10
        array[camera, 0] = values
    return array


def write_train(root: Path, name: str = "S1/Seq1", **replaced: Any) -> Path:
    path = root / name / "annot.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "annot2": cells(2),
        "annot3": cells(3),
        "univ_annot3": cells(3),
        "frames": np.arange(FRAMES),
    } | replaced
    savemat(path, {key: value for key, value in content.items() if value is not None})
    return path


def write_test(root: Path, name: str = "TS1", **replaced: Any) -> Path:
    path = root / name / "annot_data.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "valid_frame": np.array([[1.0], [0.0], [1.0], [1.0], [1.0], [0.0]]),
        "annot2": np.arange(FRAMES * 17 * 2, dtype=float).reshape(FRAMES, 1, 17, 2),
        "univ_annot3": np.arange(FRAMES * 17 * 3, dtype=float).reshape(FRAMES, 1, 17, 3),
    } | replaced
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if value is not None:
                file[key] = value
    return path


def test_train_keeps_the_low_cameras_and_17_joints(tmp_path: Path) -> None:
    clips = read_train(write_train(tmp_path), "S1/Seq1", frame_step=2)
    assert len(clips) == len(CAMERAS) == 8
    clip = clips[CAMERAS.index(8)]
    assert clip.joints.shape == (3, 17, 3)
    assert clip.image is not None
    # Camera 8, frame 4, left wrist (28-id 11), z and image y.
    np.testing.assert_allclose(clip.joints[2, 13, 2], 8000 + 400 + (11 * 3 + 2) / 10)
    np.testing.assert_allclose(clip.image[2, 13, 1], 8000 + 400 + (11 * 2 + 1) / 10)
    np.testing.assert_allclose(clip.joints[0, :, 0], 8000 + np.array(FROM_MPI28) * 3 / 10)


def test_test_keeps_valid_frames(tmp_path: Path) -> None:
    clip = read_test(write_test(tmp_path), "TS1", frame_step=2)
    assert clip.joints.shape == (2, 17, 3)  # frames 0, 2, 3, 4 are valid; every second one is kept
    np.testing.assert_array_equal(clip.joints[1, :, 0], 3 * 51 + np.array(FROM_MPI_TEST17) * 3)
    assert clip.image is not None
    np.testing.assert_array_equal(clip.image[1, :, 0], 3 * 34 + np.array(FROM_MPI_TEST17) * 2)


def test_a_single_frame_keeps_its_axis(tmp_path: Path) -> None:
    one: dict[str, Any] = {
        "valid_frame": np.ones((1, 1)),
        "annot2": np.ones((1, 1, 17, 2)),
        "univ_annot3": np.ones((1, 1, 17, 3)),
    }
    assert read_test(write_test(tmp_path, **one), "TS1").joints.shape == (1, 17, 3)


def test_folder_is_split_by_sequence(tmp_path: Path) -> None:
    for name in ("S1/Seq1", "S1/Seq2", "S8/Seq2"):
        write_train(tmp_path, name)
    for name in ("TS1", "TS6"):
        write_test(tmp_path, name)
    splits = load_mpi_inf_3dhp(tmp_path, frame_step=1)
    labels = {name: sorted({clip.label for clip in clips}) for name, clips in splits.items()}
    assert labels == {"train": ["S1/Seq1", "S1/Seq2"], "validation": ["S8/Seq2"], "test": ["TS1", "TS6"]}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"univ_annot3": None}, "has no variable 'univ_annot3'"),
        ({"annot2": cells(2, cameras=3)}, "annot2 has 3 cells; camera 4 is needed"),
        ({"annot2": np.zeros((3, 56))}, "annot2 has 0 cells"),
        ({"univ_annot3": cells(3, joints=17)}, r"must be numbers \(frames, 84\), found \(6, 51\)"),
    ],
)
def test_a_wrong_train_file_is_named(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_train(write_train(tmp_path, **replaced), "S1/Seq1")


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"valid_frame": None}, "has no data set 'valid_frame'"),
        ({"univ_annot3": np.zeros((FRAMES, 1, 28, 3))}, r"univ_annot3 must have shape \(6, 1, 17, 3\)"),
        (
            {"annot2": np.zeros((FRAMES - 1, 1, 17, 2))},
            r"annot2 must have shape \(6, 1, 17, 2\), found \(5, 1, 17, 2\)",
        ),
        ({"valid_frame": np.zeros((FRAMES, 1))}, "marks no frame as valid"),
    ],
)
def test_a_wrong_test_file_is_named(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_test(write_test(tmp_path, **replaced), "TS1")


def test_frames_that_do_not_match_are_named(tmp_path: Path) -> None:
    shorter = cells(2)
    shorter[0, 0] = shorter[0, 0][:-1]
    with pytest.raises(InputError, match="camera 0 has 5 frames in annot2 and 6 in univ_annot3"):
        read_train(write_train(tmp_path, annot2=shorter), "S1/Seq1", frame_step=2)


def test_damaged_files_and_folders_are_named(tmp_path: Path) -> None:
    for path, read in ((write_train(tmp_path), read_train), (write_test(tmp_path), read_test)):
        whole = path.read_bytes()
        for broken in (b"text", *(whole[: k * len(whole) // 20] for k in range(20))):
            path.write_bytes(broken)
            with pytest.raises(InputError, match=r"not a readable MATLAB|is the file cut off"):
                read(path, "x")
    with pytest.raises(InputError, match=r"no such folder; expected one with S1/Seq1/annot\.mat"):
        load_mpi_inf_3dhp(tmp_path / "absent")
    with pytest.raises(InputError, match=r"found 1 S\*/Seq\*/annot.mat and 1 TS"):
        load_mpi_inf_3dhp(tmp_path)
