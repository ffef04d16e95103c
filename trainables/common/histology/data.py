"""The one entry to tissue and its labels, generated or real: `open_tissue(config)`.

Source: section 2 of the reference notes on ADS_UNet, SEUNet and RSESF.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pharos.cache import local_copy
from pharos.errors import InputError
from trainables.common.histology.augmentation import transformed
from trainables.common.histology.files import Collection, Sample, open_collection
from trainables.common.histology.tissue import SCENES
from trainables.common.image_files import read_image
from trainables.common.segmentation import IGNORED
from trainables.common.settings import Checked

GENERATED = tuple(SCENES)
SOURCES = (*GENERATED, "folder", "bcss", "crag", "glas", "monuseg", "instances")
SCALES = (0.5, 0.71, 1.0, 1.41, 2.0)  # magnifications of the test grid, relative to training
ANGLES = (0.0, 22.5, 45.0, 90.0, 180.0)  # orientations of the test grid, degrees
_FIRST_SEED = {"train": 0, "validation": 1000, "test": 2000}
_SEEDS = 10_000  # of the scenes of one `seed`


@dataclass
class HistologyDataConfig(Checked):
    """Which images, and how they are cut (section 2 of the notes)."""

    where = "recipe.data"

    source: str = "tissue5"
    """tissue5, glands, nuclei (generated, need no files); folder, bcss, crag, glas, monuseg, instances."""
    root: str = ""
    """Folder of the files; unused by generated tissue."""
    size: int = 96
    """Pixels along a side: of generated images, and of the patches that real ones are cut into."""
    crop: int = 0
    """Side of the random square that training takes of each; 0 takes all of it."""
    stride: int = 0
    """Real images: pixels from one training patch to the next; 0: as many as the size, without overlap."""
    mpp: float = 0.0
    """µm per pixel: of generated images (0: 1), or to which real ones are resampled (0: they stay as they are)."""
    isotropic: bool = False
    """Generated: whether tissue lies in any direction; else about along the x axis (see spread)."""
    spread: float = 0.2
    """Generated: standard deviation of the tissue's direction, radians."""
    varied: bool = False
    """Generated: whether scenes differ in blur, noise, contrast, and rarity of necrosis."""
    seed: int = 0
    """Generated: which scenes. Real: which patients are drawn for validation and test."""
    train_images: int = 64
    """Generated: scenes to train on."""
    validation_images: int = 16
    """Generated: scenes to validate on."""
    test_images: int = 24
    """Generated: scenes to test on."""
    validation_share: float = 0.2
    """Real: share of the images, patient by patient, unless the data set has the split."""
    test_share: float = 0.2
    """Real: the same of the test."""
    held_out: list[str] = field(default_factory=list)
    """Real: beginnings of patients' names that make the test, such as [TCGA-OL, TCGA-LL]; empty: see test_share."""
    patient: str = ""
    """folder: regular expression whose first group in a file's name is the patient; empty: each image its own."""

    def __post_init__(self) -> None:
        """Checks values and their combinations.

        Raises:
            InputError: One is impossible.
        """
        self.check_choices(source=SOURCES)
        self.check_least(1, "size", "train_images", "validation_images", "test_images")
        self.check_least(0, "crop", "stride", "mpp", "spread", "seed")
        self.check_range(0, 0.9, "validation_share", "test_share")
        if self.source not in GENERATED and not self.root:
            raise InputError(f"recipe.data.source={self.source} needs data.root=<the folder of its files>")
        if self.crop > self.size:
            raise InputError(f"recipe.data.crop={self.crop} must be at most data.size={self.size}")
        try:
            re.compile(self.patient)
        except re.error as error:
            raise InputError(f"recipe.data.patient={self.patient}: not a regular expression ({error})") from None

    @property
    def side(self) -> int:
        """Pixels along a side of what a network is trained on."""
        return self.crop or self.size


@dataclass(frozen=True)
class Tiles:
    """N images of equal size.

    Attributes:
        images: (N, 3, H, W) uint8.
        masks: (N, H, W) uint8, classes; `IGNORED` counts for nothing.
        mpp: (N,) µm per pixel; 0 where nobody knows.
        names: Of the images, or of those they are patches of.
        patients: Whose they are.
        difficulty: (N,) how hard generated scenes are, in [0, 1].
    """

    images: Tensor
    masks: Tensor
    mpp: Tensor
    names: list[str]
    patients: list[str]
    difficulty: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Tissue:
    """All splits of a source.

    Attributes:
        train: To train on.
        validation: To choose by.
        test: Neither.
        classes: Names of the labels.
        mean: (3,) of the training images, RGB in [0, 1].
        std: (3,) the same.
        frequencies: (K,) shares of the training pixels.
    """

    train: Tiles
    validation: Tiles
    test: Tiles
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    frequencies: Tensor

    def about(self) -> dict[str, Any]:
        """What inference must know: names of the classes, mean and standard deviation, µm per pixel."""
        return {
            "classes": list(self.classes),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "mpp": float(self.train.mpp.double().mean()),
        }


def unit(images: Tensor) -> Tensor:
    """uint8 images as floats in [0, 1]."""
    return images.float() / 255


def standardised(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], less the mean (3,), over the standard deviation (3,)."""
    mean, std = (torch.as_tensor(v, dtype=images.dtype, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images - mean) / std


def open_tissue(config: HistologyDataConfig) -> Tissue:
    """Reads or generates all splits: a pure function of the configuration and the files.

    Raises:
        InputError: A file is missing or wrong, or a split has no image.
    """
    if config.source in GENERATED:
        splits = {name: generated(config, name) for name in _FIRST_SEED}
        classes = SCENES[config.source].classes
    else:
        collection = open_collection(config.source, local_copy(config.root))
        classes = collection.classes
        stride = config.stride or config.size
        divided = divide(collection.samples, config)
        splits = {
            name: _cut(collection, samples, config, stride if name == "train" else config.size)
            for name, samples in divided.items()
        }
    train = splits["train"]
    pixels = unit(train.images).double().transpose(0, 1).reshape(3, -1)
    counts = torch.bincount(train.masks.flatten().long(), minlength=256)[: len(classes)].double()
    return Tissue(
        **splits,
        classes=classes,
        mean=pixels.mean(dim=1).float(),
        std=pixels.std(dim=1).float().clamp_min(1e-3),
        frequencies=(counts / counts.sum()).float(),
    )


def generated(config: HistologyDataConfig, split: str, scale: float = 1.0, phi: float = 0.0) -> Tiles:
    """Pictures of the generated scenes of a split.

    Args:
        config: Which.
        split: train, validation or test.
        scale: Magnification relative to that of training.
        phi: Rotation of the stage, degrees.
    """
    kind = SCENES[config.source]
    count = {"train": config.train_images, "validation": config.validation_images, "test": config.test_images}[split]
    mpp = (config.mpp or 1.0) / scale
    # The field holds the image in any orientation at the smallest magnification of the grid: the same scene for all.
    field = max(288.0, math.sqrt(2) * config.size * (config.mpp or 1.0) / SCALES[0])
    spread = math.inf if config.isotropic else config.spread
    seeds = [config.seed * _SEEDS + _FIRST_SEED[split] + k for k in range(count)]
    scenes = [kind(seed, spread=spread, field=field, is_varied=config.varied) for seed in seeds]
    pictures = [scene.render(config.size, mpp, phi) for scene in scenes]
    names = [f"{config.source}-{seed}" for seed in seeds]
    return Tiles(
        images=torch.from_numpy(np.stack([image for image, _ in pictures])).permute(0, 3, 1, 2).contiguous(),
        masks=torch.from_numpy(np.stack([mask for _, mask in pictures])),
        mpp=torch.full((count,), mpp),
        names=names,
        patients=names,
        difficulty=torch.tensor([scene.difficulty for scene in scenes]),
    )


def at(tiles: Tiles, config: HistologyDataConfig, split: str, *, scale: float, phi: float, multiple: int = 16) -> Tiles:
    """A split at another magnification and orientation.

    Generated tissue is photographed again. Real images are resampled (bilinear; masks nearest), turned on their canvas
    and padded to a multiple: mirrored, with `IGNORED` masks. What a turn that is no quarter brings in is ignored too.

    Args:
        tiles: The split, as it was opened.
        config: What it was opened from.
        split: Its name.
        scale: Magnification relative to training.
        phi: Rotation, degrees, counter-clockwise.
        multiple: What both sides of real images must be a multiple of.
    """
    if config.source in GENERATED:
        return tiles if (scale, phi) == (1.0, 0.0) else generated(config, split, scale, phi)
    images, masks = tiles.images, tiles.masks
    if phi % 90 == 0:
        images, masks = images.rot90(round(phi / 90), (2, 3)), masks.rot90(round(phi / 90), (1, 2))
    else:
        turn = torch.full((len(images),), math.radians(phi))
        turned, masks = transformed(images.float(), masks, torch.ones(len(images)), turn)
        images = turned.round().to(torch.uint8)
    if scale != 1:
        images, masks = _resampled(images, masks, scale)
    images, masks = padded(images, masks, *(-side % multiple for side in images.shape[2:]))
    return replace(tiles, images=images, masks=masks, mpp=tiles.mpp / scale)


def circle(side: int) -> Tensor:
    """The pixels (side, side) of the inscribed circle, which no rotation takes out of a square image."""
    axis = torch.arange(side) - (side - 1) / 2
    return axis[:, None] ** 2 + axis[None, :] ** 2 < (side / 2) ** 2


def padded(images: Tensor, masks: Tensor, below: int, right: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) mirrored, and masks (N, H, W) `IGNORED`, beyond their lower and right borders."""
    if not below and not right:
        return images, masks
    rows = torch.from_numpy(np.pad(np.arange(images.shape[2]), (0, below), mode="symmetric"))
    columns = torch.from_numpy(np.pad(np.arange(images.shape[3]), (0, right), mode="symmetric"))
    return images[:, :, rows][:, :, :, columns], functional.pad(masks, (0, right, 0, below), value=IGNORED)


def divide(samples: Sequence[Sample], config: HistologyDataConfig) -> dict[str, list[Sample]]:
    """Samples by split: no patient is in two of them.

    Splits that the data set has stay; what it calls train gives validation, and all gives the test if it has none.

    Raises:
        InputError: A split would be empty.
    """
    pattern = re.compile(config.patient) if config.patient else None

    def patient(sample: Sample) -> str:
        found = pattern.search(sample.image.stem) if pattern else None
        return (found.group(1) if found and found.groups() else sample.patient) if pattern else sample.patient

    known: dict[str, list[Sample]] = {"train": [], "validation": [], "test": [], "": []}
    for sample in samples:
        name = sample.split if sample.split in known else ""
        is_held_out = any(patient(sample).startswith(start) for start in config.held_out)
        known["test" if is_held_out else name].append(sample)
    free = known["train"] + known[""] if not known["validation"] else known[""]
    fixed_train = [] if not known["validation"] else known["train"]
    wanted = {
        "test": 0.0 if known["test"] else config.test_share,
        "validation": 0.0 if known["validation"] else config.validation_share,
    }
    by_patient: dict[str, list[Sample]] = {}
    for sample in free:
        by_patient.setdefault(patient(sample), []).append(sample)
    drawn = sorted(by_patient, key=lambda name: hashlib.sha256(f"{config.seed}/{name}".encode()).digest())
    parts: dict[str, list[Sample]] = {"train": fixed_train, "validation": known["validation"], "test": known["test"]}
    for name in drawn:
        place = "train"
        for split in ("test", "validation"):
            if wanted[split] and len(parts[split]) < max(1, round(wanted[split] * len(free))):
                place = split
                break
        parts[place] = parts[place] + by_patient[name]
    for split, chosen in parts.items():
        if not chosen:
            raise InputError(
                f"data.root={config.root}: no image is left for {split}; {len(by_patient)} patients, "
                f"data.validation_share={config.validation_share}, data.test_share={config.test_share}"
            )
    return parts


def _cut(collection: Collection, samples: Sequence[Sample], config: HistologyDataConfig, stride: int) -> Tiles:
    """Patches of real images on a regular grid that reaches all borders."""
    images, masks, mpps, names, patients = [], [], [], [], []
    for sample in samples:
        image = torch.from_numpy(read_image(sample.image).copy()).permute(2, 0, 1)[None]
        mask = torch.from_numpy(collection.read_mask(sample, tuple(image.shape[2:])).copy())[None]  # type: ignore[arg-type]
        mpp = collection.mpp(sample)
        if config.mpp and mpp:
            image, mask = _resampled(image, mask, mpp / config.mpp)
            mpp = config.mpp
        elif config.mpp:
            raise InputError(f"{sample.image}: its µm per pixel are unknown, so data.mpp={config.mpp} cannot be met")
        image, mask = padded(image, mask, *(max(0, config.size - side) for side in image.shape[2:]))
        for top in starts(image.shape[2], config.size, stride):
            for left in starts(image.shape[3], config.size, stride):
                window = slice(top, top + config.size), slice(left, left + config.size)
                images.append(image[0, :, window[0], window[1]])
                masks.append(mask[0, window[0], window[1]])
                mpps.append(mpp)
                names.append(sample.image.stem)
                patients.append(sample.patient)
    return Tiles(torch.stack(images), torch.stack(masks), torch.tensor(mpps), names, patients, torch.zeros(len(images)))


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin that cover a length: every `stride`, the last one at the end."""
    last = length - size
    return [*range(0, last, stride), last] if last > 0 else [0]


def _resampled(images: Tensor, masks: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Images magnified: bilinear, against aliasing when they shrink; masks nearest."""
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    larger = functional.interpolate(
        images.float(), size=size, mode="bilinear", antialias=scale < 1, align_corners=False
    )
    nearest = functional.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0]
    return larger.round().clamp(0, 255).to(torch.uint8), nearest.to(torch.uint8)
