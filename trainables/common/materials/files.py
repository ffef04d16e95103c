"""Photographs and their sparse material labels as the data sets lay them out; nothing is read before it is asked for.

Source: sections 2.1 and 2.2 of the reference notes on DBAT.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pharos.errors import InputError
from trainables.common.image_files import SUFFIXES, Bytes, read_codes, read_image
from trainables.common.segmentation import IGNORED

LMD_CLASSES = (
    *("asphalt", "ceramic", "concrete", "fabric", "foliage", "food", "glass", "metal"),
    *("paper", "plaster", "plastic", "rubber", "soil", "stone", "water", "wood"),
)
# Substances of OpenSurfaces that the authors leave out, by how their names begin.
_EXCLUDED = (
    *("chalkboard", "cork", "dirt", "fire", "granite", "linoleum", "marble", "paper towel", "plaster", "sky"),
    *("sponge", "styrofoam", "wallboard", "water", "wax", "wood - "),
)
_SHARES = (0.7, 0.15)  # of training and validation; the rest is the test
_FIRST_SPLIT = 41  # with the first split, OpenSurfaces is shuffled by the authors' seed, 42

File = Path | zipfile.Path
Labels = Callable[[tuple[int, int]], Bytes]
"""Labels (H, W) of a photograph, given its height and width."""


@dataclass(frozen=True)
class Photograph:
    """One image of a data set.

    Attributes:
        name: Its file's name.
        image: Its file.
        labels: Reads its labels.
    """

    name: str
    image: File
    labels: Labels


@dataclass(frozen=True)
class Photographs:
    """Photographs that are read when they are needed, with their short sides brought to what a network takes.

    Attributes:
        samples: Which.
        short: Pixels of the short side.
        is_exact: Whether all are resized to it; else only those that are smaller.
        is_native: Whether `read_whole` leaves labels at the size of the file, which the authors test at.
    """

    samples: Sequence[Photograph]
    short: int
    is_exact: bool
    is_native: bool

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) and its labels (H, W), both uint8 and resized."""
        return self._read(index, with_labels=True)

    def read_whole(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W), resized, and its labels at the size that they are tested at."""
        return self._read(index, with_labels=not self.is_native)

    def read_many(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """`read` of several, side by side."""
        with ThreadPoolExecutor(min(len(indices), os.cpu_count() or 1)) as pool:
            return list(pool.map(self.read, indices))

    def _read(self, index: int, with_labels: bool) -> tuple[Tensor, Tensor]:
        from PIL import Image

        sample = self.samples[index]
        picture = Image.fromarray(read_image(sample.image))
        codes = Image.fromarray(sample.labels((picture.height, picture.width)))
        factor = self.short / min(picture.size)
        if factor > 1 or (self.is_exact and factor != 1):
            size = (max(self.short, round(picture.width * factor)), max(self.short, round(picture.height * factor)))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
            if with_labels:
                codes = codes.resize(size, Image.Resampling.NEAREST)
        image, labels = torch.from_numpy(np.array(picture)), torch.from_numpy(np.array(codes))
        return image.permute(2, 0, 1).contiguous(), labels


def open_collection(
    source: str, root: Path, split: int, classes: int
) -> tuple[dict[str, list[Photograph]], tuple[str, ...]]:
    """The photographs of a data set by split (train, validation, test), and the names of its classes.

    Args:
        source: lmd, opensurfaces or folder.
        root: Its folder, or a zip archive of it.
        split: Which division; drawn from its number unless `splits/train_<number>.txt` and so on name the files.
        classes: folder: how many there are.

    Raises:
        InputError: The folder does not hold what the layout says.
    """
    place: File
    if root.is_file() and zipfile.is_zipfile(root):
        place = zipfile.Path(root)
        children = list(place.iterdir())
        if len(children) == 1 and children[0].is_dir():
            place = children[0]
    elif root.is_dir():
        place = root
    else:
        raise InputError(f"data.root={root}: there is no such folder or zip archive")
    names: tuple[str, ...]
    if source == "lmd":
        samples, names = _lmd(place), LMD_CLASSES
    elif source == "opensurfaces":
        samples, names = _opensurfaces(place)
    else:
        samples, names = _folder(place, classes), tuple(str(k) for k in range(classes))
    if not samples:
        raise InputError(f"{root}: no image with labels as data.source={source} has them ({_LAYOUTS[source]})")
    return _divided(place, samples, split), names


_LAYOUTS = {
    "lmd": "images/NAME.jpg with masks/NAME_..._<material>_mask.png",
    "opensurfaces": "photos/<pk>.jpg with photos.photo.json, shapes.materialshape.json, …",
    "folder": "images/NAME.png with labels/NAME.png",
}


def merged(masks: Sequence[tuple[str, Bytes]], size: tuple[int, int]) -> Bytes:
    """One label map (H, W) from a mask for each material: the first one wins, and the rest is `IGNORED`.

    Args:
        masks: Materials with masks (H, W), non-zero where they are.
        size: Height and width.
    """
    labels = np.full(size, IGNORED, np.uint8)
    for material, mask in masks:
        labels[(mask != 0) & (labels == IGNORED)] = LMD_CLASSES.index(material)
    return labels


def chosen_masks(names: Sequence[str]) -> list[str]:
    """The masks of an image that count: by name, without a plain one of a material that has a refined one."""
    refined = {_material(name) for name in names if name.endswith("_refinedmask.png")}
    return [name for name in sorted(names) if name.endswith("_refinedmask.png") or _material(name) not in refined]


def _material(name: str) -> str:
    return name.split("_")[-2]


def _lmd(place: File) -> list[Photograph]:
    images = {file.name: file for file in _files(place / "images") if _suffix(file.name) in SUFFIXES}
    stems = {name.rsplit(".", 1)[0]: name for name in images} | {name: name for name in images}
    masks: dict[str, list[File]] = {}
    for file in _files(place / "masks"):
        if not file.name.endswith(("_mask.png", "_refinedmask.png")):
            continue
        if _material(file.name) not in LMD_CLASSES:
            raise InputError(f"{file}: {_material(file.name)} is none of LMD's materials: {', '.join(LMD_CLASSES)}")
        tokens = file.name.split("_")[:-2]
        runs = ["_".join(tokens[a:b]) for a in range(len(tokens)) for b in range(len(tokens), a, -1)]
        found = max((run for run in runs if run in stems), key=len, default=None)
        if found is None:
            raise InputError(f"{file}: no image has a name that is part of its own")
        masks.setdefault(stems[found], []).append(file)

    def labels(files: list[File]) -> Labels:
        by_name = {file.name: file for file in files}
        order = chosen_masks(list(by_name))
        return lambda size: merged([(_material(name), read_codes(by_name[name], size)) for name in order], size)

    return [Photograph(name, images[name], labels(masks[name])) for name in sorted(masks)]


def _folder(place: File, classes: int) -> list[Photograph]:
    codes = {file.name.rsplit(".", 1)[0]: file for file in _files(place / "labels") if _suffix(file.name) == ".png"}

    def labels(file: File) -> Labels:
        def read(size: tuple[int, int]) -> Bytes:
            found = read_codes(file, size)
            wrong = found[(found != IGNORED) & ((found < 0) | (found >= classes))]
            if wrong.size:
                raise InputError(f"{file}: label {wrong[0]}; data.classes={classes} allows 0 to {classes - 1}, or 255")
            return np.asarray(found, np.uint8)

        return read

    images = sorted(_files(place / "images"), key=lambda file: file.name)
    pairs = [(file, codes.get(file.name.rsplit(".", 1)[0])) for file in images if _suffix(file.name) in SUFFIXES]
    return [Photograph(file.name, file, labels(mask)) for file, mask in pairs if mask is not None]


def _opensurfaces(place: File) -> tuple[list[Photograph], tuple[str, ...]]:
    substances = {
        row["pk"]: row["fields"]["name"]
        for row in _rows(place / "shapes.shapesubstance.json")
        if not row["fields"].get("fail") and not row["fields"]["name"].lower().startswith(_EXCLUDED)
    }
    names = tuple(sorted(set(substances.values())))
    right = {
        row["pk"]
        for row in _rows(place / "photos.photo.json")
        if row["fields"].get("scene_category_correct") and not row["fields"].get("special")
    }
    shapes: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(place / "shapes.materialshape.json"):
        fields = row["fields"]
        is_good = fields.get("high_quality") and not fields.get("special")
        if is_good and fields.get("photo") in right and fields.get("substance") in substances:
            shapes.setdefault(fields["photo"], []).append(fields)
    photos = place / "photos"

    def labels(found: list[dict[str, Any]]) -> Labels:
        # Large ones first, so that small ones are drawn over them.
        order = sorted(found, key=lambda fields: -fields["num_vertices"])
        return lambda size: drawn([(names.index(substances[f["substance"]]), f) for f in order], size)

    there = {file.name: file for file in _files(photos)}
    return [
        Photograph(f"{key}.jpg", there[f"{key}.jpg"], labels(shapes[key]))
        for key in sorted(shapes)
        if f"{key}.jpg" in there
    ], names


def drawn(shapes: Sequence[tuple[int, dict[str, Any]]], size: tuple[int, int]) -> Bytes:
    """Triangulated shapes as labels (H, W), `IGNORED` elsewhere; later ones are drawn over earlier ones.

    Args:
        shapes: Classes with fields of OpenSurfaces: `vertices`, x and y in [0, 1]; `triangles`, triples of their
            numbers. Both are comma-separated text.
        size: Height and width.
    """
    from PIL import Image, ImageDraw

    height, width = size
    canvas = Image.new("L", (width, height), IGNORED)
    draw = ImageDraw.Draw(canvas)
    for code, fields in shapes:
        numbers = [float(v) for v in fields["vertices"].split(",")]
        points = [(x * width, y * height) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        corners = [int(v) for v in fields["triangles"].split(",")]
        for k in range(0, len(corners), 3):
            draw.polygon([points[c] for c in corners[k : k + 3]], fill=code)
    return np.array(canvas)


def _rows(file: File) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: not a list of records that can be read ({error})") from None
    return rows


def _divided(place: File, samples: list[Photograph], split: int) -> dict[str, list[Photograph]]:
    """By the lists that lie beside the data, or drawn: 70, 15 and 15 of a hundred."""
    lists = {name: place / "splits" / f"{file}_{split}.txt" for name, file in _LISTS.items()}
    if lists["train"].exists():
        by_name = {sample.name: sample for sample in samples} | {s.name.rsplit(".", 1)[0]: s for s in samples}
        parts = {}
        for name, file in lists.items():
            wanted = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            missing = [line for line in wanted if line not in by_name]
            if missing:
                raise InputError(f"{file}: there is no labelled image {missing[0]}")
            parts[name] = [by_name[line] for line in wanted]
    else:
        order = np.random.RandomState(_FIRST_SPLIT + split).permutation(len(samples))
        first, second = (round(sum(_SHARES[: k + 1]) * len(samples)) for k in range(2))
        cut = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
        parts = {name: [samples[k] for k in chosen] for name, chosen in cut.items()}
    for name, part in parts.items():
        if not part:
            raise InputError(f"{place}: of {len(samples)} images none is left for {name}")
    return parts


_LISTS = {"train": "train", "validation": "validate", "test": "test"}


def _files(folder: File) -> list[File]:
    return [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []


def _suffix(name: str) -> str:
    return "." + name.rsplit(".", 1)[-1].lower()
