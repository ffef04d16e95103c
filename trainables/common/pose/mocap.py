"""Motion capture as Acclaim ASF/AMC or BVH: readers, the map to `h36m17`, and random cameras.

Source: section 2.4 of the reference notes on TIPSy-GAN (arXiv 2205.05980). Made for the CMU Graphics Lab
Motion Capture Database (mocap.cs.cmu.edu; "The database was created with funding from NSF EIA-0196217") in
its own format and in the `cgspeed` BVH conversion. Worlds have y up; there is no camera in the files, so the
random ones of section 2.5(d) film every recording. Subjects, never recordings, divide training from test.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pharos.errors import InputError
from trainables.common.pose.articulated import apply_rotation, draw_cameras, rotation
from trainables.common.pose.skeleton import JOINTS, ROOT, Array, Clip, hold_out

MM_PER_INCH = 25.4
CMU_BVH_UNIT = MM_PER_INCH / 0.45  # mm; the CMU files measure in 1/0.45 inch


def _read_lines(path: Path) -> list[str]:
    # latin-1 decodes any byte: a wrong file then fails at its first odd line, and old comments do no harm.
    try:
        return path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _numbers(words: list[str], path: Path, line: int) -> list[float]:
    """Convert words to finite numbers, or say which line is wrong (`line` counts from 1)."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise InputError(f"{path}:{line}: expected numbers, found '{' '.join(words)[:60]}'") from None
    if not all(map(math.isfinite, values)):
        raise InputError(f"{path}:{line}: expected finite numbers, found '{' '.join(words)[:60]}'")
    return values


def euler_matrix(order: str, degrees: Array) -> Array:
    """Rotation about several axes, the *first* one applied first (column vectors: R_last ... R_first).

    Args:
        order: Names of the axes, e.g. "xyz"; may be empty.
        degrees: (..., len(order)).

    Returns:
        (..., 3, 3).
    """
    matrix = np.broadcast_to(np.eye(3), (*degrees.shape[:-1], 3, 3))
    for k, axis in enumerate(order):
        matrix = rotation(axis, degrees[..., k]) @ matrix
    return matrix


# --- Acclaim ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bone:
    """One segment of an Acclaim skeleton.

    Attributes:
        parent: Name of the parent segment, "" for the root.
        offset: (3,) from the parent's tip to this bone's tip in the rest pose, in the file's length unit.
        axes: (3, 3) columns are the bone's local axes in the rest pose.
        channels: Names of the AMC values in order: of rx ry rz, for the root of tx ty tz as well.
    """

    parent: str
    offset: Array
    axes: Array
    channels: tuple[str, ...]


@dataclass(frozen=True)
class AcclaimSkeleton:
    """An ASF file: bones by name, parents before children, the root first; `unit` is mm per length unit."""

    bones: dict[str, Bone]
    unit: float
    degrees: bool


_SHIFTS = ("tx", "ty", "tz")
_TURNS = ("rx", "ry", "rz")


def _sections(path: Path) -> dict[str, list[tuple[int, list[str]]]]:
    """Lines as (number, words) by `:keyword`; what follows the keyword on its own line comes first."""
    sections: dict[str, list[tuple[int, list[str]]]] = {}
    current: list[tuple[int, list[str]]] = []
    for number, line in enumerate(_read_lines(path), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0].startswith(":"):
            current = sections.setdefault(words[0][1:].lower(), [])
            words = words[1:]
        current.append((number, words))
    missing = [name for name in ("root", "bonedata", "hierarchy") if name not in sections]
    if missing:
        raise InputError(f"{path}: not a complete Acclaim skeleton, it lacks the section :{missing[0]}")
    return sections


def _fields(lines: list[tuple[int, list[str]]]) -> dict[str, tuple[int, list[str]]]:
    return {words[0].lower(): (number, words[1:]) for number, words in lines if words}


def _field(fields: dict[str, tuple[int, list[str]]], key: str, where: str) -> tuple[int, list[str]]:
    if key not in fields:
        raise InputError(f"{where} has no '{key}' line")
    return fields[key]


def _vector(fields: dict[str, tuple[int, list[str]]], key: str, path: Path, where: str) -> Array:
    number, words = _field(fields, key, where)
    values = _numbers(words[:3], path, number)
    if len(values) != 3:
        raise InputError(f"{path}:{number}: '{key}' needs three numbers")
    return np.array(values)


def _channels(words: list[str], allowed: tuple[str, ...], path: Path, number: int) -> tuple[str, ...]:
    channels = tuple(word.lower() for word in words)
    unknown = [name for name in channels if name not in allowed]
    if unknown or len(set(channels)) < len(channels):
        raise InputError(f"{path}:{number}: expected channels out of {' '.join(allowed)}, each once")
    return channels


def _axis_order(words: list[str], path: Path, number: int) -> str:
    order = words[0].lower() if words else ""
    if sorted(order) != ["x", "y", "z"]:
        raise InputError(f"{path}:{number}: expected an axis order such as XYZ")
    return order


def _parse_bone(lines: list[tuple[int, list[str]]], path: Path, to_degrees: float) -> tuple[str, Bone]:
    """One begin-end block of :bonedata; the parent is filled in from :hierarchy."""
    fields = _fields(lines)
    where = f"{path}:{lines[0][0] if lines else 0}: bone"
    _, name = _field(fields, "name", where)
    where = f"{where} '{' '.join(name)}'"
    direction = _vector(fields, "direction", path, where)
    number, words = _field(fields, "length", where)
    length = _numbers(words[:1], path, number)
    norm = float(np.linalg.norm(direction))
    if len(length) != 1 or norm == 0.0:
        raise InputError(f"{where} needs one length and a direction that is not zero")
    axis_line, axis_words = _field(fields, "axis", where)
    axes = euler_matrix(_axis_order(axis_words[3:], path, axis_line), _vector(fields, "axis", path, where) * to_degrees)
    dof_line, dof = fields.get("dof", (0, []))
    channels = _channels(dof, _TURNS, path, dof_line)
    return " ".join(name), Bone("", direction / norm * length[0], axes, channels)


def _parse_bones(lines: list[tuple[int, list[str]]], path: Path, to_degrees: float) -> dict[str, Bone]:
    bones: dict[str, Bone] = {}
    block: list[tuple[int, list[str]]] | None = None
    for number, words in lines:
        match words[:1]:
            case ["begin"]:
                block = []
            case ["end"] if block is not None:
                name, bone = _parse_bone(block, path, to_degrees)
                bones[name] = bone
                block = None
            case [_] if block is not None:
                block.append((number, words))
            case [_]:
                raise InputError(f"{path}:{number}: expected 'begin', found '{words[0]}'")
    if block is not None:
        raise InputError(f"{path}: the last bone has no 'end'; the file is cut off")
    return bones


def read_asf(path: Path) -> AcclaimSkeleton:
    """Read an Acclaim skeleton.

    Raises:
        InputError: A section, a field or a number is missing or wrong; names file and line.
    """
    sections = _sections(path)
    units = _fields(sections.get("units", []))
    degrees = units.get("angle", (0, ["deg"]))[1] != ["rad"]
    to_degrees = 1.0 if degrees else 180.0 / math.pi
    number, words = units.get("length", (0, ["1.0"]))
    scale = _numbers(words, path, number)
    if len(scale) != 1 or scale[0] <= 0.0:
        raise InputError(f"{path}:{number}: the length unit must be one positive number")

    root = _fields(sections["root"])
    where = f"{path}: the root"
    order_line, order = _field(root, "order", where)
    axis_line, axis = _field(root, "axis", where)
    axes = euler_matrix(_axis_order(axis, path, axis_line), _vector(root, "orientation", path, where) * to_degrees)
    position = _vector(root, "position", path, where)
    unordered = _parse_bones(sections["bonedata"], path, to_degrees)
    bones = {"root": Bone("", position, axes, _channels(order, _SHIFTS + _TURNS, path, order_line))}
    for number, words in sections["hierarchy"]:
        if words in ([], ["begin"], ["end"]):
            continue
        parent, *children = words
        unknown = [name for name in children if name not in unordered]
        if parent not in bones or unknown:
            name = parent if parent not in bones else unknown[0]
            raise InputError(f"{path}:{number}: '{name}' is not a bone, or is used before it is placed")
        for name in children:
            bone = unordered[name]
            bones[name] = Bone(parent, bone.offset, bone.axes, bone.channels)
    if len(bones) != len(unordered) + 1:
        loose = sorted(set(unordered) - set(bones))
        raise InputError(f"{path}: the hierarchy does not place the bones {', '.join(loose)}")
    return AcclaimSkeleton(bones, MM_PER_INCH / scale[0], degrees)


def read_amc(path: Path, skeleton: AcclaimSkeleton) -> dict[str, Array]:
    """Read an Acclaim motion.

    Args:
        path: The AMC file.
        skeleton: The skeleton it was recorded with.

    Returns:
        Channel values by bone, (T, channels of the bone); rotations in degrees.

    Raises:
        InputError: A line is neither a frame number nor a bone with its values, or a frame is incomplete.
    """
    moving = {name: bone.channels for name, bone in skeleton.bones.items() if bone.channels}
    degrees = skeleton.degrees
    frames: list[dict[str, list[float]]] = []
    started = 0
    for number, line in enumerate(_read_lines(path), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].startswith(":"):
            degrees = {":DEGREES": True, ":RADIANS": False}.get(words[0].upper(), degrees)
        elif len(words) == 1 and words[0].isdigit():
            _check_complete(frames, moving, path, started)
            frames.append({})
            started = number
        elif not frames:
            raise InputError(f"{path}:{number}: expected a frame number, found '{line.strip()[:60]}'")
        else:
            name, *values = words
            if name not in moving:
                raise InputError(f"{path}:{number}: '{name[:60]}' is not a moving bone of the skeleton")
            if len(values) != len(moving[name]):
                wanted = f"{len(moving[name])} values ({' '.join(moving[name])})"
                raise InputError(f"{path}:{number}: bone '{name}' needs {wanted}, found {len(values)}")
            frames[-1][name] = _numbers(values, path, number)
    if not frames:
        raise InputError(f"{path}: no frame found; expected frame numbers, each followed by bone lines")
    _check_complete(frames, moving, path, started)
    motion = {name: np.array([frame[name] for frame in frames]) for name in moving}
    if not degrees:
        for name, channels in moving.items():
            motion[name] = np.where([c[0] == "r" for c in channels], np.rad2deg(motion[name]), motion[name])
    return motion


def _check_complete(
    frames: list[dict[str, list[float]]], moving: dict[str, tuple[str, ...]], path: Path, line: int
) -> None:
    missing = [name for name in moving if frames and name not in frames[-1]]
    if missing:
        raise InputError(f"{path}:{line}: this frame lacks bone '{missing[0]}'; is the file cut off?")


def acclaim_positions(skeleton: AcclaimSkeleton, motion: dict[str, Array]) -> dict[str, Array]:
    """Tips of all bones.

    A bone turns by C M C^-1 relative to its parent, where C are its local axes in the rest pose and M its
    motion, both composed in the listed order, first axis first; turns accumulate from the root.

    Args:
        skeleton: The skeleton, lengths in its unit.
        motion: Channel values by bone, (T, channels), degrees and the skeleton's unit.

    Returns:
        World positions by bone, (T, 3) mm, y up; "root" is the pelvis.
    """
    frames = len(motion["root"])
    turns: dict[str, Array] = {}
    tips: dict[str, Array] = {}
    for name, bone in skeleton.bones.items():
        values = motion.get(name, np.zeros((frames, 0)))
        by_channel = dict(zip(bone.channels, values.T, strict=True))
        spins = [channel for channel in bone.channels if channel[0] == "r"]
        angles = np.stack([by_channel[channel] for channel in spins], axis=-1) if spins else np.zeros((frames, 0))
        turn = bone.axes @ euler_matrix("".join(channel[1] for channel in spins), angles) @ bone.axes.T
        if name == "root":
            still = np.zeros(frames)
            shift = np.stack([by_channel.get(channel, still) for channel in _SHIFTS], axis=-1)
            turns[name], tips[name] = turn, bone.offset + shift
        else:
            turns[name] = turns[bone.parent] @ turn
            tips[name] = tips[bone.parent] + turns[name] @ bone.offset
    return {name: tip * skeleton.unit for name, tip in tips.items()}


# --- BVH ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """One node of a BVH hierarchy; an end site is called "<parent> End Site" and has no channels.

    Attributes:
        name: Name in the file.
        parent: Index of the parent node, -1 for the root.
        offset: (3,) from the parent, in the file's length unit.
        channels: Channel names in the listed order, lower case ("xposition", "zrotation", ...).
    """

    name: str
    parent: int
    offset: Array
    channels: tuple[str, ...]


_BVH_SHIFTS = ("xposition", "yposition", "zposition")
_BVH_TURNS = ("xrotation", "yrotation", "zrotation")


class _BvhReader:
    """Reads a BVH file line by line, so that every error can name its line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = [(k, line.split()) for k, line in enumerate(_read_lines(path), start=1) if line.strip()]
        self.at = 0

    def next(self, expected: str) -> tuple[int, list[str]]:
        """The next line that is not empty."""
        if self.at == len(self.lines):
            raise InputError(f"{self.path}: the file ends where {expected} was expected")
        self.at += 1
        return self.lines[self.at - 1]

    def expect(self, first: str) -> tuple[int, list[str]]:
        """The next line, which must begin with the word `first`."""
        number, words = self.next(f"'{first}'")
        if words[0].upper() != first.upper():
            raise InputError(f"{self.path}:{number}: expected '{first}', found '{' '.join(words)[:60]}'")
        return number, words

    def hierarchy(self) -> list[Node]:
        """Nodes in file order, which puts parents before children."""
        self.expect("HIERARCHY")
        number, words = self.expect("ROOT")
        nodes: list[Node] = []
        open_nodes: list[int] = []
        while True:
            parent = open_nodes[-1] if open_nodes else -1
            nodes.append(self._node(number, words, parent, nodes))
            open_nodes.append(len(nodes) - 1)
            number, words = self.next("'JOINT', 'End Site' or '}'")
            while words[0] == "}":
                open_nodes.pop()
                if not open_nodes:
                    return nodes
                number, words = self.next("'JOINT', 'End Site' or '}'")

    def _node(self, number: int, words: list[str], parent: int, nodes: list[Node]) -> Node:
        kind = words[0].upper()
        if kind not in ("ROOT", "JOINT", "END") or len(words) < 2:
            found = " ".join(words)[:60]
            raise InputError(f"{self.path}:{number}: expected a 'JOINT' or 'End Site', found '{found}'")
        name = f"{nodes[parent].name} End Site" if kind == "END" else " ".join(words[1:])
        self.expect("{")
        line, offset = self.expect("OFFSET")
        values = _numbers(offset[1:], self.path, line)
        if len(values) != 3:
            raise InputError(f"{self.path}:{line}: OFFSET needs three numbers")
        if kind == "END":
            return Node(name, parent, np.array(values), ())
        line, words = self.expect("CHANNELS")
        channels = tuple(word.lower() for word in words[2:])
        allowed = _BVH_TURNS if parent >= 0 else _BVH_SHIFTS + _BVH_TURNS
        if words[1:2] != [str(len(channels))] or not set(channels) <= set(allowed):
            names = " ".join(allowed)
            raise InputError(f"{self.path}:{line}: '{name}' needs CHANNELS, their number, and names out of {names}")
        return Node(name, parent, np.array(values), channels)

    def motion(self, width: int) -> Array:
        """The frames, (T, width)."""
        self.expect("MOTION")
        number, words = self.expect("Frames:")
        if len(words) != 2 or not words[1].isdigit():
            raise InputError(f"{self.path}:{number}: expected 'Frames:' and a whole number")
        self.expect("Frame")
        rows = self.lines[self.at :]
        if len(rows) != int(words[1]):
            found = f"announces {words[1]} frames and has {len(rows)}"
            raise InputError(f"{self.path}: {found}; is the file cut off?")
        for line, row in rows:
            if len(row) != width:
                raise InputError(f"{self.path}:{line}: a frame needs {width} values, found {len(row)}")
        return np.array([_numbers(row, self.path, line) for line, row in rows]).reshape(-1, width)


def read_bvh(path: Path) -> tuple[list[Node], Array]:
    """Read a BVH file.

    Returns:
        The nodes and the channel values (T, all channels), without frame 0: the CMU conversion adds a T-pose.

    Raises:
        InputError: The file is not BVH, is cut off, or has no frame beside frame 0; names file and line.
    """
    reader = _BvhReader(path)
    nodes = reader.hierarchy()
    frames = reader.motion(sum(len(node.channels) for node in nodes))
    if len(frames) < 2:
        raise InputError(f"{path}: has {len(frames)} frames, needs 2 or more: frame 0 (a T-pose) is dropped")
    return nodes, frames[1:]


def bvh_positions(nodes: list[Node], frames: Array) -> Array:
    """Origins of all nodes: the product over ancestors of T(offset) R(c1) R(c2) R(c3), channels as listed.

    Args:
        nodes: The hierarchy.
        frames: (T, all channels), degrees and the file's length unit.

    Returns:
        World positions (T, nodes, 3) in the file's length unit.
    """
    turns: list[Array] = []
    origins: list[Array] = []
    column = 0
    for node in nodes:
        by_channel = {name: frames[:, column + k] for k, name in enumerate(node.channels)}
        column += len(node.channels)
        turn = np.broadcast_to(np.eye(3), (len(frames), 3, 3))
        for name in node.channels:
            if name in _BVH_TURNS:
                turn = turn @ rotation(name[0], by_channel[name])
        if node.parent < 0:
            still = np.zeros(len(frames))
            shift = np.stack([by_channel.get(name, still) for name in _BVH_SHIFTS], axis=-1)
            origins.append(node.offset + shift)
            turns.append(turn)
        else:
            origins.append(origins[node.parent] + turns[node.parent] @ node.offset)
            turns.append(turns[node.parent] @ turn)
    return np.stack(origins, axis=1)


# --- recordings ---------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A node name without namespace, separators and case: `mixamorig:Left_Arm` -> `leftarm`."""
    return re.sub(r"[\s_\-]", "", name.rpartition(":")[2]).lower()


def h36m17_from_bvh(nodes: list[Node], path: Path) -> list[int]:
    """Indices of the nodes that stand for the 17 joints.

    Raises:
        InputError: No known name for a joint is among the nodes; lists the names found.
    """
    found = {_plain(node.name): index for index, node in reversed(list(enumerate(nodes)))}
    chosen = []
    for joint in JOINTS:
        matches = [found[_plain(name)] for name in joint.bvh if _plain(name) in found]
        if not matches:
            names, wanted = ", ".join(node.name for node in nodes), " or ".join(joint.bvh)
            raise InputError(f"{path}: no node for the {joint.name} ({wanted}); the file has {names}")
        chosen.append(matches[0])
    return chosen


def h36m17_from_acclaim(skeleton: AcclaimSkeleton, path: Path) -> list[str]:
    """Names of the bones whose tips are the 17 joints.

    Raises:
        InputError: The skeleton is not the CMU one; lists the names found.
    """
    missing = [joint for joint in JOINTS if joint.asf not in skeleton.bones]
    if missing:
        names = ", ".join(skeleton.bones)
        wanted = f"'{missing[0].asf}' for the {missing[0].name}"
        raise InputError(f"{path}: no bone {wanted}; the file has {names}")
    return [joint.asf for joint in JOINTS]


def _subject(path: Path) -> str:
    """`02_01` is a recording of subject `02`; a name without `_` is its own subject."""
    return path.stem.rpartition("_")[0] or path.stem


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key that puts subject 9 before 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _read_acclaim(files: list[Path], frame_step: int) -> dict[str, Array]:
    skeletons: dict[Path, AcclaimSkeleton] = {}
    worlds = {}
    for path in files:
        asf = path.with_name(f"{_subject(path)}.asf")
        if not asf.is_file():
            raise InputError(f"{path}: no skeleton {asf.name} beside it; expected NN.asf with NN_MM.amc")
        if asf not in skeletons:
            skeletons[asf] = read_asf(asf)
        names = h36m17_from_acclaim(skeletons[asf], asf)
        motion = {name: values[::frame_step] for name, values in read_amc(path, skeletons[asf]).items()}
        tips = acclaim_positions(skeletons[asf], motion)
        worlds[path.stem] = np.stack([tips[name] for name in names], axis=1)
    return worlds


def _read_bvh_files(files: list[Path], frame_step: int, unit: float) -> dict[str, Array]:
    worlds = {}
    for path in files:
        nodes, frames = read_bvh(path)
        chosen = h36m17_from_bvh(nodes, path)
        worlds[path.stem] = bvh_positions(nodes, frames[::frame_step])[:, chosen] * unit
    return worlds


def read_recordings(
    root: Path, kind: str, frame_step: int = 5, bvh_unit: float = CMU_BVH_UNIT
) -> dict[str, dict[str, Array]]:
    """Read all recordings below a folder.

    Args:
        root: Folder, searched with its sub-folders, of NN.asf and NN_MM.amc, or of NN_MM.bvh files.
        kind: "asf_amc" or "bvh".
        frame_step: Every how many frames one is kept (native rate of CMU: 120 a second).
        bvh_unit: Millimetres per length unit of BVH files; Acclaim files state their own.

    Returns:
        World positions (T, 17, 3) in mm with y up, by recording, by subject, both in natural order.

    Raises:
        InputError: The folder is missing, has no such files, two recordings of one name, or a wrong file.
    """
    suffix = {"asf_amc": ".amc", "bvh": ".bvh"}[kind]
    layout = {"asf_amc": "NN.asf skeletons and NN_MM.amc motions", "bvh": "NN_MM.bvh files"}[kind]
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one with {layout} (subject NN, recording MM)")
    files = sorted((p for p in root.rglob("*") if p.suffix.lower() == suffix), key=lambda p: _natural(p.stem))
    if not files:
        raise InputError(f"{root}: no {suffix} files; expected {layout} (subject NN, recording MM)")
    twice = [b for a, b in pairwise(files) if a.stem == b.stem]
    if twice:
        raise InputError(f"{twice[0]}: a second file of this name; recordings need distinct names")
    acclaim = kind == "asf_amc"
    worlds = _read_acclaim(files, frame_step) if acclaim else _read_bvh_files(files, frame_step, bvh_unit)
    subjects: dict[str, dict[str, Array]] = {}
    for path in files:
        subjects.setdefault(_subject(path), {})[path.stem] = worlds[path.stem]
    return subjects


def film(rng: np.random.Generator, world: Array, name: str, views: int) -> list[Clip]:
    """Film a recording with random cameras (section 2.5(d)).

    Args:
        rng: Source of randomness.
        world: (T, 17, 3) mm, y up.
        name: Name of the recording.
        views: Number of cameras.

    Returns:
        One clip per camera, pelvis at the origin.
    """
    centred = world - world[:, [ROOT]]
    cameras = draw_cameras(rng, views, len(world))
    return [Clip(apply_rotation(camera, centred), label=name, recording=name) for camera in cameras]


def load_mocap(
    root: Path,
    kind: str,
    *,
    seed: int = 0,
    views: int = 4,
    frame_step: int = 5,
    test_subjects: tuple[str, ...] = (),
    bvh_unit: float = CMU_BVH_UNIT,
) -> dict[str, list[Clip]]:
    """Read, split and film a folder of motion capture.

    Args:
        root: See `read_recordings`.
        kind: "asf_amc" or "bvh".
        seed: Of the cameras.
        views: Cameras per recording.
        frame_step: Every how many frames one is kept.
        test_subjects: Subjects of the test split; none means the last one in natural order.
        bvh_unit: Millimetres per length unit of BVH files.

    Returns:
        `train`, `validation` (the last recording of the training subjects, every tenth before it) and `test`.

    Raises:
        InputError: A file is wrong, or the subjects do not leave something for every split.
    """
    subjects = read_recordings(root, kind, frame_step, bvh_unit)
    held_out = test_subjects or tuple(subjects)[-1:]
    unknown = [name for name in held_out if name not in subjects]
    if unknown:
        raise InputError(f"{root}: no test subject '{unknown[0]}'; the subjects are {', '.join(subjects)}")
    rng = np.random.default_rng(seed)
    clips: dict[bool, list[Clip]] = {True: [], False: []}
    for subject, recordings in subjects.items():
        for name, world in recordings.items():
            clips[subject in held_out] += film(rng, world, name, views)
    train, validation = hold_out(clips[False])
    if not train:
        raise InputError(
            f"{root}: needs two recordings of training subjects beside test subject {', '.join(held_out)}; "
            f"the subjects are {', '.join(subjects)}"
        )
    return {"train": train, "validation": validation, "test": clips[True]}
