"""Human3.6M reader: cameras recovered from 2D, splits, and pickles that are refused (tipsy notes 2.2)."""

from __future__ import annotations

import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharos.errors import InputError
from trainables.common.pose.articulated import MEAN_LENGTHS, Sizes, generate, rotation
from trainables.common.pose.human36m import load_human36m, read_pickled_npz, recover_camera
from trainables.common.pose.skeleton import FROM_H36M32, bone_lengths

SUBJECTS = ("S1", "S5", "S6", "S7", "S8", "S9", "S11")
INTRINSICS = np.array([[1145.0, 0.0, 512.0], [0.0, 1144.0, 515.0], [0.0, 0.0, 1.0]])
METADATA = {"num_joints": 17, "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]}
FRAMES = 12


def camera(azimuth: float, elevation: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """R and t of a camera 5 m away from a world with z up: columns of the image go right and down."""
    y_up = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    turn = np.diag([1.0, -1.0, -1.0]) @ rotation("x", np.array(elevation)) @ rotation("y", np.array(azimuth)) @ y_up
    return turn, np.array([0.1, 0.9, 5.0])


CAMERAS = [camera(azimuth) for azimuth in (10.0, 100.0, 190.0, 280.0)]


def project(world: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Pixels (..., 2) of points (..., 3)."""
    homogeneous = (world @ turn.T + shift) @ INTRINSICS.T
    pixels: np.ndarray = homogeneous[..., :2] / homogeneous[..., 2:]
    return pixels


def world_people() -> dict[str, dict[str, np.ndarray]]:
    """Generated people walking about in metres, z up, 32 joints of which 17 are used: (FRAMES, 32, 3)."""
    sizes = Sizes(2, 2, FRAMES, 1, 1, 1)
    joints = iter(generate(11, sizes)["train"].joints)
    rng = np.random.default_rng(0)
    people: dict[str, dict[str, np.ndarray]] = {}
    for subject in SUBJECTS:
        people[subject] = {}
        for action in ("Directions", "Walking 1"):
            body = next(joints)
            upright = np.stack([body[..., 0], body[..., 2], -body[..., 1]], axis=-1) / 1000.0
            place = rng.uniform(-1.0, 1.0, (FRAMES, 1, 3)) * [1.0, 1.0, 0.05] + [0.0, 0.0, 0.95]
            world = np.zeros((FRAMES, 32, 3), dtype=np.float32)
            world[:, list(FROM_H36M32)] = upright + place
            people[subject][action] = world
    return people


@pytest.fixture(scope="module")
def people() -> dict[str, dict[str, np.ndarray]]:
    return world_people()


def write_3d(folder: Path, people: dict[str, Any]) -> Path:
    path = folder / "data_3d_h36m.npz"
    np.savez_compressed(path, positions_3d=np.array(people, dtype=object))
    return path


def write_2d(folder: Path, people: dict[str, Any], name: str = "gt", noise: float = 0.0, **metadata: Any) -> Path:
    rng = np.random.default_rng(1)
    views = {
        subject: {
            action: [
                # One frame more than the 3D, as in the real files.
                np.vstack([image, image[-1:]]) + rng.normal(0.0, noise, (FRAMES + 1, 17, 2))
                for image in (project(world[:, list(FROM_H36M32)].astype(float), *c) for c in CAMERAS)
            ]
            for action, world in actions.items()
        }
        for subject, actions in people.items()
    }
    path = folder / f"data_2d_h36m_{name}.npz"
    np.savez_compressed(
        path, positions_2d=np.array(views, dtype=object), metadata=np.array(METADATA | metadata, dtype=object)
    )
    return path


@settings(max_examples=25, deadline=None)
@given(st.floats(-180, 180), st.floats(-30, 30), st.integers(0, 2**32 - 1))
def test_a_camera_is_recovered_exactly(azimuth: float, elevation: float, seed: int) -> None:
    turn, shift = camera(azimuth, elevation)
    world = np.random.default_rng(seed).uniform([-1.0, -1.0, -0.1], [1.0, 1.0, 1.9], (200, 3))
    intrinsics, found_turn, found_shift, rms = recover_camera(world, project(world, turn, shift))
    np.testing.assert_allclose(found_turn, turn, atol=1e-8)
    np.testing.assert_allclose(found_shift, shift, atol=1e-7)
    np.testing.assert_allclose(intrinsics, INTRINSICS, atol=1e-4)
    assert rms < 1e-6


def test_points_that_determine_no_camera_are_refused() -> None:
    flat = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="do not determine a camera"):
        recover_camera(flat, project(flat, *CAMERAS[0]))
    with pytest.raises(ValueError, match="at least 6 points"):
        recover_camera(flat[:5], flat[:5, :2])


def test_camera_frames_follow_from_the_2d_file(tmp_path: Path, people: dict[str, Any]) -> None:
    write_3d(tmp_path, people)
    write_2d(tmp_path, people)
    splits = load_human36m(tmp_path, allow_pickle=True, frame_step=3)
    # 5 subjects x 2 actions x 4 cameras; the last recording is held out; S11 Directions is dropped.
    assert {name: len(clips) for name, clips in splits.items()} == {"train": 36, "validation": 4, "test": 12}
    assert {clip.recording for clip in splits["test"]} == {"S9/Directions", "S9/Walking 1", "S11/Walking 1"}
    assert {clip.label for clip in splits["train"]} == {"Directions", "Walking"}
    clip = splits["train"][1]  # S1, Directions, second camera
    world = people["S1"]["Directions"][::3, list(FROM_H36M32)].astype(float)
    expected = (world - world[:, [0]]) @ CAMERAS[1][0].T * 1000.0
    np.testing.assert_allclose(clip.joints, expected, atol=0.05)  # float32 metres
    assert clip.image is None


def test_image_positions_are_those_of_the_file(tmp_path: Path, people: dict[str, Any]) -> None:
    write_3d(tmp_path, people)
    write_2d(tmp_path, people)
    write_2d(tmp_path, people, "mine", noise=3.0)
    truth = load_human36m(tmp_path, input_2d="gt2d", allow_pickle=True, frame_step=1)["test"][0]
    found = load_human36m(tmp_path, input_2d="detected", detector="mine", allow_pickle=True, frame_step=1)["test"][0]
    world = people["S9"]["Directions"][:, list(FROM_H36M32)].astype(float)
    assert truth.image is not None
    assert found.image is not None
    np.testing.assert_allclose(truth.image, project(world, *CAMERAS[0]), atol=1e-6)
    assert 2.0 < (found.image - truth.image).std() < 4.0
    np.testing.assert_array_equal(found.joints, truth.joints)  # cameras come from the true 2D


def test_without_2d_random_cameras_film_the_world_upright(tmp_path: Path, people: dict[str, Any]) -> None:
    write_3d(tmp_path, people)
    splits = load_human36m(tmp_path, allow_pickle=True, views=2, frame_step=4, seed=1)
    assert len(splits["train"]) == 18
    world = people["S1"]["Directions"][::4, list(FROM_H36M32)].astype(float)
    np.testing.assert_allclose(bone_lengths(splits["train"][0].joints), bone_lengths(world) * 1000.0, atol=0.01)
    heads = np.concatenate([clip.joints[:, 10, 1] for clip in splits["train"]])
    assert (heads < -0.5 * MEAN_LENGTHS[1]).all()  # up is -y
    again = load_human36m(tmp_path, allow_pickle=True, views=2, frame_step=4, seed=1)
    np.testing.assert_array_equal(splits["test"][0].joints, again["test"][0].joints)


def test_pickles_need_consent(tmp_path: Path, people: dict[str, Any]) -> None:
    write_3d(tmp_path, people)
    with pytest.raises(InputError, match="allow_pickle=true"):
        load_human36m(tmp_path)


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.check_call, (["touch", "attacked"],)


@pytest.mark.parametrize(
    "payload",
    [
        _Attack(),
        {"S1": {"Walking": _Attack()}},
        {"S1": Path("x")},
        {"S1": np.array([_Attack()], dtype=object)},
    ],
)
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: object
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data_3d_h36m.npz"
    np.savez(path, positions_3d=np.array(payload, dtype=object))
    with pytest.raises(InputError, match=r"it asks for .*, which is not array data"):
        read_pickled_npz(path, "positions_3d", allow_pickle=True)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_written_by_older_and_newer_numpy_are_read(tmp_path: Path, module: str) -> None:
    value = {"S1": {"Walking": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}}
    path = tmp_path / "a.npz"
    np.savez(path, positions_3d=np.array(value, dtype=object))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("positions_3d.npy")
    header, body = content[: content.index(b"\n") + 1], content[content.index(b"\n") + 1 :]
    body = pickle.dumps(pickle.loads(body), protocol=2).replace(b"numpy._core.multiarray", module.encode())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("positions_3d.npy", header + body)
    (read,) = read_pickled_npz(path, "positions_3d", allow_pickle=True)
    np.testing.assert_array_equal(read["S1"]["Walking"], value["S1"]["Walking"])


def test_files_that_are_not_the_data_set_are_named(tmp_path: Path, people: dict[str, Any]) -> None:
    def load(**options: Any) -> None:
        load_human36m(tmp_path, allow_pickle=True, **options)

    with pytest.raises(InputError, match=r"data_3d_h36m.npz: no such file; expected the npz files of VideoPose3D"):
        load()
    path = write_3d(tmp_path, people)
    whole = path.read_bytes()
    pieces = [whole[: k * len(whole) // 10] for k in range(10)]
    for broken in (b"not a zip", whole[:200] + bytes(500) + whole[700:], *pieces):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="not a readable npz of VideoPose3D"):
            load()
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match="has no array 'positions_3d'"):
        load()
    np.savez(path, positions_3d=np.zeros(3))
    with pytest.raises(InputError, match="not a pickled dictionary"):
        load()
    write_3d(tmp_path, {"S1": [1, 2]})
    with pytest.raises(InputError, match="a dictionary of subjects"):
        load()
    write_3d(tmp_path, {name: people[name] for name in ("S1", "S9")})
    with pytest.raises(InputError, match="no recordings of S5, S6, S7, S8, S11"):
        load()
    write_3d(tmp_path, people | {"S11": {"Directions": people["S11"]["Directions"]}})
    with pytest.raises(InputError, match="no recordings of S11;"):
        load()
    write_3d(tmp_path, people | {"S5": {"Walking": np.zeros((3, 17, 3), dtype=np.float32)}})
    with pytest.raises(InputError, match=r"S5, 'Walking' must be floats \(frames, 32, 3\)"):
        load()
    write_3d(tmp_path, people)
    with pytest.raises(InputError, match=r"data_2d_h36m_gt.npz: no such file"):
        load(input_2d="gt2d")
    write_2d(tmp_path, people)
    with pytest.raises(InputError, match=r"data_2d_h36m_other.npz: no such file"):
        load(input_2d="detected", detector="other")
    write_2d(tmp_path, people, keypoints_symmetry=[[1], [2]])
    with pytest.raises(InputError, match="keypoints_symmetry"):
        load()
    write_2d(tmp_path, {name: {a: w[::-1] for a, w in actions.items()} for name, actions in people.items()})
    with pytest.raises(InputError, match=r"S1, view 0 does not fit the 3D of data_3d_h36m.npz"):
        load()
    write_2d(tmp_path, {name: people[name] for name in SUBJECTS[1:]})
    with pytest.raises(InputError, match="no list of views for S1, 'Directions'"):
        load()
