"""Motion capture readers: hand-computed positions, conventions, failures; real CMU files where present."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharos.errors import InputError
from trainables.common.pose.mocap import (
    CMU_BVH_UNIT,
    acclaim_positions,
    bvh_positions,
    euler_matrix,
    h36m17_from_bvh,
    load_mocap,
    read_amc,
    read_asf,
    read_bvh,
    read_recordings,
)
from trainables.common.pose.skeleton import BONES, JOINTS, PARENTS, bone_lengths

REAL = Path(__file__).resolve().parents[5] / "shared" / "data" / "mocap"

TWO_BONES = """HIERARCHY
ROOT Hips
{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Knee
  {
    OFFSET 0 -2 0
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {
      OFFSET 0 -1 0
    }
  }
}
MOTION
Frames: 3
Frame Time: 0.0083333
9 9 9 0 0 0 0 0 0
1 2 3 0 0 0 0 90 0
1 2 3 90 0 0 0 -90 0
"""

ASF = """:version 1.10
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name upper
     direction 0 -2 0
     length 4.5
     axis 0 0 90 XYZ
    dof rx ry rz
  end
  begin
     id 2
     name lower
     direction 0 -1 0
     length 9
     axis 0 0 0 XYZ
    dof rx
  end
:hierarchy
  begin
    root upper
    upper lower
  end
"""
AMC = """#comment
:FULLY-SPECIFIED
:DEGREES
1
root 0.45 0 0 0 0 0
upper 90 0 0
lower 0
2
root 0 0 0 0 90 0
upper 0 0 0
lower 90
"""


def bvh_of(joints: list[tuple[str, str, tuple[float, float, float]]], frames: int = 4) -> str:
    """A BVH of (name, parent name, offset) nodes, depth first, at rest; the root moves along z."""

    def node(name: str, kind: str) -> str:
        offset = next(o for n, _, o in joints if n == name)
        channels = "CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation"
        if kind == "JOINT":
            channels = "CHANNELS 3 Zrotation Yrotation Xrotation"
        children = [n for n, p, _ in joints if p == name]
        inner = "\n".join(node(child, "JOINT") for child in children) or "End Site\n{\nOFFSET 0 1 0\n}"
        return f"{kind} {name}\n{{\nOFFSET {offset[0]} {offset[1]} {offset[2]}\n{channels}\n{inner}\n}}"

    rows = "\n".join(" ".join(["0", "0", str(k), *["0"] * 3 * len(joints)]) for k in range(frames))
    return f"HIERARCHY\n{node(joints[0][0], 'ROOT')}\nMOTION\nFrames: {frames}\nFrame Time: 0.01\n{rows}\n"


CMU_NAMES = [joint.bvh[0] for joint in JOINTS]


def cmu_bvh(frames: int = 4, rename: dict[str, str] | None = None) -> str:
    """A person with CMU's node names, one length unit per bone; the end site of Head is the head top."""
    rename = rename or {}
    limbs = {"right": (-1.0, -0.5, 0.0), "left": (1.0, -0.5, 0.0)}
    joints = []
    for k, joint in enumerate(JOINTS):
        if joint.name == "head top":
            joints.append(("Head", "Neck1", (0.0, 1.0, 0.0)))
            continue
        parent = CMU_NAMES[PARENTS[k]] if k else ""
        offset = limbs.get(joint.limb.split("_")[0], (0.0, 1.0, 0.0)) if k else (0.0, 0.0, 0.0)
        joints.append((rename.get(CMU_NAMES[k], CMU_NAMES[k]), rename.get(parent, parent), offset))
    return bvh_of(joints, frames)


def cmu_asf() -> str:
    """A skeleton of the 16 bones that the 17 joints need."""
    directions = {"right": "-1 -1 0", "left": "1 -1 0"}
    bones, links = [], []
    for k, joint in enumerate(JOINTS[1:], start=1):
        direction = directions.get(joint.limb.split("_")[0], "0 1 0")
        bones.append(f"begin\nid {k}\nname {joint.asf}\ndirection {direction}\nlength 2\naxis 0 0 0 XYZ\ndof rx\nend")
        links.append(f"{JOINTS[PARENTS[k]].asf} {joint.asf}")
    return (
        ":units\nlength 0.45\nangle deg\n"
        ":root\norder TX TY TZ RX RY RZ\naxis XYZ\nposition 0 0 0\norientation 0 0 0\n"
        ":bonedata\n" + "\n".join(bones) + "\n:hierarchy\nbegin\n" + "\n".join(links) + "\nend\n"
    )


def cmu_amc(frames: int = 6) -> str:
    values = "\n".join(f"{joint.asf} 5" for joint in JOINTS[1:])
    return ":DEGREES\n" + "\n".join(f"{k}\nroot 0 {k} 0 0 {k} 0\n{values}" for k in range(1, frames + 1)) + "\n"


@pytest.fixture
def acclaim_folder(tmp_path: Path) -> Path:
    for subject in ("02", "03", "10"):
        (tmp_path / f"{subject}.asf").write_text(cmu_asf())
        for clip in ("01", "02"):
            (tmp_path / f"{subject}_{clip}.amc").write_text(cmu_amc())
    return tmp_path


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_bvh_positions_are_the_hand_computed_ones_without_frame_0(tmp_path: Path) -> None:
    nodes, frames = read_bvh(write(tmp_path, "a.bvh", TWO_BONES))
    assert [node.name for node in nodes] == ["Hips", "Knee", "Knee End Site"]
    assert frames.shape == (2, 9)  # frame 0, the added T-pose, is gone
    positions = bvh_positions(nodes, frames)
    # Hips at (1, 2, 3), knee 2 below; Rx(90) takes the shin's -y to -z.
    np.testing.assert_allclose(positions[0], [[1, 2, 3], [1, 0, 3], [1, 0, 2]], atol=1e-12)
    # Rz(90) at the hips takes -y to +x; the shin's Rx(-90) takes -y to +z, which Rz(90) keeps.
    np.testing.assert_allclose(positions[1], [[1, 2, 3], [3, 2, 3], [3, 2, 4]], atol=1e-12)


def test_bvh_channels_apply_in_the_listed_order(tmp_path: Path) -> None:
    turned = TWO_BONES.replace("1 2 3 0 0 0 0 90 0", "0 0 0 90 90 0 0 0 0")
    nodes, frames = read_bvh(write(tmp_path, "a.bvh", turned))
    # Listed Z then X: R = Rz Rx; Rx takes -y to -z, which Rz keeps. (Rx Rz would give +x.)
    np.testing.assert_allclose(bvh_positions(nodes, frames)[0, 1], [0, 0, -2], atol=1e-12)


def test_bvh_folder_is_scaled_split_by_subject_and_filmed(tmp_path: Path) -> None:
    for name in ("9_01", "9_02", "10_01"):
        write(tmp_path, f"{name}.bvh", cmu_bvh(frames=11))
    subjects = read_recordings(tmp_path, "bvh", frame_step=5)
    assert list(subjects) == ["9", "10"]
    world = subjects["9"]["9_01"]
    assert world.shape == (2, 17, 3)
    assert world[0, 0, 2] == pytest.approx(CMU_BVH_UNIT)  # frame 0 dropped: z starts at 1 unit
    assert world[1, 0, 2] == pytest.approx(6 * CMU_BVH_UNIT)
    assert pytest.approx(56.44, abs=0.01) == CMU_BVH_UNIT
    clips = load_mocap(tmp_path, "bvh", views=2)
    assert [(name, [c.label for c in split]) for name, split in clips.items()] == [
        ("train", ["9_01"] * 2),
        ("validation", ["9_02"] * 2),
        ("test", ["10_01"] * 2),
    ]
    for clip in clips["train"]:
        np.testing.assert_allclose(bone_lengths(clip.joints), bone_lengths(world), atol=1e-9)
        assert (clip.joints[:, 10, 1] < 0).all()  # the head is up, y points down


def test_bvh_synonyms_are_found_and_a_clavicle_is_not_taken_for_an_arm(tmp_path: Path) -> None:
    renamed = {"LeftUpLeg": "LThigh", "RightUpLeg": "RThigh", "Hips": "mixamorig:Hips", "Spine": "Chest"}
    nodes, _ = read_bvh(write(tmp_path, "a.bvh", cmu_bvh(rename=renamed)))
    names = [nodes[k].name for k in h36m17_from_bvh(nodes, tmp_path / "a.bvh")]
    assert names[0] == "mixamorig:Hips"
    assert (names[1], names[4], names[7]) == ("RThigh", "LThigh", "Chest")
    assert names[10] == "Head End Site"
    joints = [
        ("Hips", "", (0, 0, 0)),
        ("LeftShoulder", "Hips", (1, 0, 0)),
        ("LeftArm", "LeftShoulder", (1, 0, 0)),
    ]
    both, _ = read_bvh(write(tmp_path, "b.bvh", bvh_of([(n, p, (float(o[0]), 0.0, 0.0)) for n, p, o in joints])))
    with pytest.raises(InputError, match=r"no node for the right hip .*the file has Hips, LeftShoulder, LeftArm"):
        h36m17_from_bvh(both, tmp_path / "b.bvh")
    assert JOINTS[11].bvh.index("LeftArm") < JOINTS[11].bvh.index("LeftShoulder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("HIERARCHY", "nonsense"), r":1: expected 'HIERARCHY'"),
        (lambda t: t.replace("OFFSET 0 -1 0", "OFFSET 0 x 0"), r":12: expected numbers"),
        (lambda t: t.replace("OFFSET 0 -1 0", "OFFSET 0 -1"), "OFFSET needs three numbers"),
        (lambda t: t.replace("CHANNELS 3", "CHANNELS 4"), "needs CHANNELS"),
        (
            lambda t: t.replace("Zrotation Xrotation Yrotation\n    End", "Xposition Xrotation Yrotation\n    End"),
            "CHANNELS",
        ),
        (lambda t: t[: t.index("MOTION")], "the file ends where 'MOTION' was expected"),
        (lambda t: t[: t.index("End Site")], "the file ends where"),
        (lambda t: t.replace("Frames: 3", "Frames: 4"), "announces 4 frames and has 3; is the file cut off"),
        (lambda t: t.replace("Frames: 3", "Frames: many"), "whole number"),
        (lambda t: t.replace("1 2 3 90 0 0 0 -90 0", "1 2 3 90"), "a frame needs 9 values, found 4"),
        (lambda t: t.replace("1 2 3 90", "1 2 nan 90"), "expected finite numbers"),
        (lambda t: t[: t.index("1 2 3 0")].replace("Frames: 3", "Frames: 1"), "frame 0 .* is dropped"),
        (lambda t: t.replace("JOINT Knee", "KNEE"), "expected a 'JOINT' or 'End Site'"),
        (lambda _: "", "the file ends where 'HIERARCHY'"),
    ],
)
def test_a_wrong_bvh_is_named_with_its_line(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_bvh(write(tmp_path, "a.bvh", change(TWO_BONES)))
    assert "a.bvh" in str(error.value)
    assert "\n" not in str(error.value)


@given(st.permutations("xyz"), st.lists(st.floats(-180, 180), min_size=3, max_size=3))
def test_euler_matrix_applies_the_first_axis_first(order: list[str], degrees: list[float]) -> None:
    whole = euler_matrix("".join(order), np.array(degrees))
    step = np.eye(3)
    for axis, angle in zip(order, degrees, strict=True):
        step = euler_matrix(axis, np.array([angle])) @ step
    np.testing.assert_allclose(whole, step, atol=1e-12)
    np.testing.assert_allclose(whole @ whole.T, np.eye(3), atol=1e-12)


def test_acclaim_positions_are_the_hand_computed_ones(tmp_path: Path) -> None:
    skeleton = read_asf(write(tmp_path, "a.asf", ASF))
    motion = read_amc(write(tmp_path, "a_01.amc", AMC), skeleton)
    tips = acclaim_positions(skeleton, motion)
    mm = 25.4 / 0.45
    # Frame 1. The upper bone's local x is the world's y (axis 0 0 90): a turn about it leaves the bone, which
    # lies along -y, where it is. Directions are normalised.
    np.testing.assert_allclose(tips["root"][0], [25.4, 0, 0], atol=1e-9)
    np.testing.assert_allclose(tips["upper"][0], [25.4, -4.5 * mm, 0], atol=1e-9)
    np.testing.assert_allclose(tips["lower"][0], [25.4, -13.5 * mm, 0], atol=1e-9)
    # Frame 2. The lower bone turns -y to -z; the root's Ry(90) then takes -z to -x.
    np.testing.assert_allclose(tips["upper"][1], [0, -4.5 * mm, 0], atol=1e-9)
    np.testing.assert_allclose(tips["lower"][1], [-9 * mm, -4.5 * mm, 0], atol=1e-9)


def test_acclaim_radians(tmp_path: Path) -> None:
    skeleton = read_asf(write(tmp_path, "a.asf", ASF))
    degrees = acclaim_positions(skeleton, read_amc(write(tmp_path, "a_01.amc", AMC), skeleton))
    text = AMC.replace(":DEGREES", ":RADIANS").replace(" 90", f" {np.pi / 2}")
    radians = acclaim_positions(skeleton, read_amc(write(tmp_path, "a_02.amc", text), skeleton))
    np.testing.assert_allclose(radians["lower"], degrees["lower"], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("lower 90", "lower ninety"), r"a_01\.amc:11: expected numbers, found 'ninety'"),
        (lambda t: t.replace("lower 90\n", ""), r":8: this frame lacks bone 'lower'; is the file cut off"),
        (
            lambda t: t.replace("upper 90 0 0", "upper 90"),
            r":6: bone 'upper' needs 3 values \(rx ry rz\), found 1",
        ),
        (lambda t: t.replace("lower 0", "tail 0"), r":7: 'tail' is not a moving bone"),
        (lambda t: t.replace("\n1\n", "\n", 1), r":4: expected a frame number"),
        (lambda _: "#nothing\n", "no frame found"),
    ],
)
def test_a_wrong_amc_is_named_with_its_line(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    skeleton = read_asf(write(tmp_path, "a.asf", ASF))
    with pytest.raises(InputError, match=message):
        read_amc(write(tmp_path, "a_01.amc", change(AMC)), skeleton)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace(":bonedata", ":bones"), "lacks the section :bonedata"),
        (lambda t: t[: t.index("     axis 0 0 0")], "lacks the section :hierarchy"),
        (lambda t: t.replace("length 4.5", "length long"), ":16: expected numbers, found 'long'"),
        (lambda t: t.replace("direction 0 -2 0", "direction 0 0 0"), "a direction that is not zero"),
        (lambda t: t.replace("     direction 0 -2 0\n", ""), "bone 'upper' has no 'direction' line"),
        (lambda t: t.replace("axis 0 0 90 XYZ", "axis 0 0 90"), "expected an axis order"),
        (lambda t: t.replace("dof rx\n", "dof l\n"), "expected channels out of rx ry rz"),
        (lambda t: t.replace("upper lower", "upper tail"), "'tail' is not a bone"),
        (lambda t: t.replace("    upper lower\n", ""), "does not place the bones lower"),
        (lambda t: t.replace("length 0.45", "length 0"), "one positive number"),
        (lambda t: t.replace("   axis XYZ\n   position", "   position"), "the root has no 'axis' line"),
        (lambda t: t.replace("  end\n:hierarchy", ":hierarchy"), "the last bone has no 'end'"),
        (lambda t: t.replace("  begin\n     id 2", "     id 2"), "expected 'begin'"),
    ],
)
def test_a_wrong_asf_is_named(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_asf(write(tmp_path, "a.asf", change(ASF)))


def test_acclaim_folder_splits_by_subject(acclaim_folder: Path) -> None:
    clips = load_mocap(acclaim_folder, "asf_amc", views=1, frame_step=2)
    labels = {name: [clip.label for clip in split] for name, split in clips.items()}
    assert labels == {
        "train": ["02_01", "02_02", "03_01"],
        "validation": ["03_02"],
        "test": ["10_01", "10_02"],
    }
    assert clips["train"][0].joints.shape == (3, 17, 3)
    chosen = load_mocap(acclaim_folder, "asf_amc", views=1, test_subjects=("02",))
    assert {clip.label for clip in chosen["test"]} == {"02_01", "02_02"}


def test_acclaim_cameras_follow_the_seed(acclaim_folder: Path) -> None:
    one, same, other = (load_mocap(acclaim_folder, "asf_amc", seed=s)["train"][0].joints for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_folders_that_cannot_be_used_are_named(acclaim_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match=r"no such folder; expected one with NN\.asf"):
        load_mocap(empty / "absent", "asf_amc")
    with pytest.raises(InputError, match=r"no \.bvh files; expected NN_MM.bvh"):
        load_mocap(empty, "bvh")
    with pytest.raises(InputError, match="no test subject '77'; the subjects are 02, 03, 10"):
        load_mocap(acclaim_folder, "asf_amc", test_subjects=("77",))
    with pytest.raises(InputError, match="needs two recordings of training subjects"):
        load_mocap(acclaim_folder, "asf_amc", test_subjects=("02", "03", "10"))
    (acclaim_folder / "03.asf").write_text(cmu_asf().replace("rtibia", "wheel"))
    with pytest.raises(InputError, match="no bone 'rtibia' for the right ankle; the file has root, rhipjoint"):
        load_mocap(acclaim_folder, "asf_amc")
    (acclaim_folder / "03.asf").unlink()
    with pytest.raises(InputError, match=r"03_01.amc: no skeleton 03.asf beside it"):
        load_mocap(acclaim_folder, "asf_amc")
    (acclaim_folder / "again").mkdir()
    (acclaim_folder / "again" / "02_01.amc").write_text(cmu_amc())
    with pytest.raises(InputError, match="a second file of this name"):
        load_mocap(acclaim_folder, "asf_amc")


@pytest.mark.skipif(not REAL.is_dir(), reason="the CMU recordings are not beside the checkout")
def test_real_people_are_upright_walk_forward_and_bend_the_right_way() -> None:
    subjects = read_recordings(REAL, "asf_amc", frame_step=10)
    assert list(subjects) == ["02", "03"]
    for recordings in subjects.values():
        for world in recordings.values():
            above = world[:, 10, 1] - world[:, 0, 1]
            assert (above > 0).all()  # the head over the pelvis, even in the crouch before a jump
            assert np.median(above) > 500
            assert (world[:, 0, 1] > world[:, [3, 6], 1].max(axis=1)).all()
            # Thighs, shins, upper arms and forearms are single bones or straight pairs of them.
            rigid = [k for k, (_, end) in enumerate(BONES) if end in (2, 3, 5, 6, 12, 13, 15, 16)]
            lengths = bone_lengths(world)[:, rigid]
            assert (lengths.std(axis=0) / lengths.mean(axis=0)).max() < 1e-9
            assert (lengths.mean(axis=0) > 240).all()
            assert (lengths.mean(axis=0) < 500).all()
            across = world[:, 4] - world[:, 1]
            for hip, knee, ankle in ((1, 2, 3), (4, 5, 6)):
                bend = np.cross(world[:, knee] - world[:, hip], world[:, ankle] - world[:, knee])
                assert ((bend * across).sum(axis=1) > 0).mean() > 0.9
    walk = subjects["02"]["02_01"]
    forward = np.cross(walk[:, 4] - walk[:, 1], [0.0, 1.0, 0.0])  # left x up
    assert ((np.diff(walk[:, 0], axis=0) * forward[:-1]).sum(axis=1) > 0).all()
