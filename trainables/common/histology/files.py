"""Real images and their masks, as the data sets lay them out: which files there are, and how a mask is read.

Source: section 2.1 of the reference notes on ADS_UNet and of those on RSESF. Nothing is read before it is asked for.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pharos.errors import InputError
from trainables.common.histology.optics import Bytes
from trainables.common.image_files import images_in, read_codes
from trainables.common.segmentation import IGNORED

_TCGA = re.compile(r"TCGA-\w\w-\w{4}")
_BCSS_MPP = re.compile(r"MPP-(\d+\.\d+)")
# The 22 codes of BCSS in five groups: 0 lies outside of the annotated region.
_BCSS_GROUPS = {0: IGNORED, 1: 1, 19: 1, 20: 1, 2: 2, 3: 3, 10: 3, 11: 3, 4: 4}
_BCSS_CODES = 22


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        image: Its file.
        mask: The file of its mask or annotation.
        patient: Whose it is: images of a patient stay in one split.
        split: train or test where the data set says so, else empty.
    """

    image: Path
    mask: Path
    patient: str
    split: str = ""


@dataclass(frozen=True)
class Collection:
    """The files of a data set.

    Attributes:
        samples: In a fixed order.
        classes: Names of the labels.
        read_mask: Labels (H, W) of a sample's mask, given the image's height and width.
        mpp: µm per pixel of a sample; 0 where nobody knows.
    """

    samples: list[Sample]
    classes: tuple[str, ...]
    read_mask: Callable[[Sample, tuple[int, int]], Bytes]
    mpp: Callable[[Sample], float] = field(default=lambda sample: 0.0)


def open_collection(source: str, root: Path) -> Collection:
    """The files of a data set.

    Args:
        source: folder, bcss, crag, glas, monuseg or instances.
        root: Its folder.

    Raises:
        InputError: The folder does not hold what the layout says.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root}: there is no such folder")
    collection = {
        "folder": _folder,
        "bcss": _bcss,
        "crag": _crag,
        "glas": _glas,
        "monuseg": _monuseg,
        "instances": _instances,
    }[source](root)
    if not collection.samples:
        raise InputError(f"{root}: no image with a mask as data.source={source} has them ({_LAYOUTS[source]})")
    return collection


_LAYOUTS = {
    "folder": "images/NAME.png with masks/NAME.png",
    "bcss": "images/TCGA-*.png with masks/TCGA-*.png",
    "crag": "train/Images with train/Annotation, valid/Images with valid/Annotation",
    "glas": "train_1.bmp with train_1_anno.bmp, testA_1.bmp, …",
    "monuseg": "NAME.tif with NAME.xml, or with NAME.png in a folder of masks",
    "instances": "images/NAME.png with instances/NAME.png",
}


def _paired(images: Path, masks: Path, of: Callable[[Path], tuple[str, str]]) -> list[Sample]:
    """Images with the mask of the same stem; patient and split by name."""
    by_stem = {path.stem: path for path in images_in(masks)}
    missing = [path for path in images_in(images) if path.stem not in by_stem]
    if missing and by_stem:
        raise InputError(f"{missing[0]}: has no mask in {masks}; masks and images have equal names")
    return [Sample(path, by_stem[path.stem], *of(path)) for path in images_in(images) if path.stem in by_stem]


def _folder(root: Path) -> Collection:
    meta: dict[str, Any] = _json(root / "meta.json")
    splits: dict[str, list[str]] = _json(root / "splits.json")
    split_of = {stem: name for name, stems in splits.items() for stem in stems}
    samples = _paired(root / "images", root / "masks", lambda path: (path.stem, split_of.get(path.stem, "")))
    names = meta.get("class_names")
    if not names:
        count = meta.get("num_classes") or 1 + max((_largest(sample.mask) for sample in samples), default=1)
        names = [f"class{k}" for k in range(count)]

    def read_mask(sample: Sample, size: tuple[int, int]) -> Bytes:
        codes = read_codes(sample.mask, size)
        if len(names) == 2:  # 0/1 or 0/255
            codes = (codes > 0).astype(np.int64)
        allowed = codes[codes != IGNORED]
        if allowed.size and allowed.max() >= len(names):
            raise InputError(f"{sample.mask}: has label {allowed.max()}, but there are {len(names)} classes")
        return np.asarray(codes, dtype=np.uint8)

    return Collection(samples, tuple(names), read_mask, lambda sample: float(meta.get("mpp", 0)))


def _largest(path: Path) -> int:
    """The highest label of a mask, at least 1: one of 0 and 255 has two classes."""
    codes = read_codes(path)
    return max(1, int(codes.max(where=codes != IGNORED, initial=0)))


def _json(path: Path) -> Any:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def _tcga(path: Path) -> str:
    found = _TCGA.match(path.stem)
    return found.group() if found else path.stem


def _bcss(root: Path) -> Collection:
    groups = np.zeros(256, dtype=np.uint8)
    for code, group in _BCSS_GROUPS.items():
        groups[code] = group

    def read_mask(sample: Sample, size: tuple[int, int]) -> Bytes:
        codes = read_codes(sample.mask, size)
        if codes.max() >= _BCSS_CODES:
            raise InputError(f"{sample.mask}: has code {codes.max()}; those of BCSS end at {_BCSS_CODES - 1}")
        return np.asarray(groups[codes])

    def mpp(sample: Sample) -> float:
        found = _BCSS_MPP.search(sample.image.stem)
        return float(found.group(1)) if found else 0.25

    samples = _paired(root / "images", root / "masks", lambda path: (_tcga(path), ""))
    return Collection(samples, ("other", "tumour", "stroma", "inflammatory", "necrosis"), read_mask, mpp)


def _foreground(sample: Sample, size: tuple[int, int]) -> Bytes:
    """Labels of an instance map; the first instance counts as any other."""
    return np.asarray(read_codes(sample.mask, size) > 0, dtype=np.uint8)


def _crag(root: Path) -> Collection:
    samples = []
    for folder, split in (("train", "train"), ("valid", "test"), ("test", "test")):
        found = _paired(root / folder / "Images", root / folder / "Annotation", lambda path: (path.stem, ""))
        samples += [replace(sample, patient=f"{folder}/{sample.patient}", split=split) for sample in found]
    return Collection(samples, ("background", "gland"), _foreground, lambda sample: 0.5)


def _glas(root: Path) -> Collection:
    patients: dict[str, str] = {}
    grades = root / "Grade.csv"
    if grades.exists():
        with grades.open(newline="") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                values = {(key or "").strip().lower(): (value or "").strip() for key, value in row.items()}
                patients[values.get("name", "")] = values.get("patient id", "")
    samples = [
        Sample(path, anno, patients.get(path.stem, path.stem), "train" if path.stem.startswith("train") else "test")
        for path in images_in(root)
        if (anno := path.with_name(f"{path.stem}_anno{path.suffix}")).exists()
    ]
    return Collection(samples, ("background", "gland"), _foreground, lambda sample: 0.62)


def _monuseg(root: Path) -> Collection:
    annotations = {path.stem: path for path in sorted(root.rglob("*.xml"))}
    masks = {path.stem: path for path in sorted(root.rglob("*.png"))}
    samples = []
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in (".tif", ".tiff")):
        annotation = annotations.get(path.stem) or masks.get(path.stem)
        if annotation is not None:
            is_test = "test" in "/".join(path.relative_to(root).parts[:-1]).lower()
            samples.append(Sample(path, annotation, _tcga(path), "test" if is_test else ""))

    def read_mask(sample: Sample, size: tuple[int, int]) -> Bytes:
        return polygons(sample.mask, size) if sample.mask.suffix == ".xml" else _foreground(sample, size)

    return Collection(samples, ("background", "nucleus"), read_mask, lambda sample: 0.25)


def polygons(path: Path, size: tuple[int, int]) -> Bytes:
    """The annotated outlines of MoNuSeg's XML, filled: (H, W) of 0 and 1.

    Raises:
        InputError: The file is no such annotation.
    """
    from PIL import Image, ImageDraw

    try:
        regions = ElementTree.parse(path).getroot().iter("Region")
        outlines = [[(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")] for region in regions]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not an annotation as MoNuSeg has them ({error})") from None
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        if len(outline) > 2:
            draw.polygon(outline, fill=1, outline=1)
    return np.asarray(canvas)


def _instances(root: Path) -> Collection:
    samples = _paired(root / "images", root / "instances", lambda path: (path.stem, ""))
    return Collection(samples, ("background", "nucleus"), _foreground)
