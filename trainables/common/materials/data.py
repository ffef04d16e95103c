"""The one entry to images and their materials, generated or real: `open_materials(config)`.

Source: section 2 of the reference notes on DBAT and on MatSpectNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pharos.cache import local_copy
from pharos.errors import InputError
from pharos.run import Epoch
from trainables.common.materials.files import Photographs, open_collection
from trainables.common.materials.scenes import (
    MATSCALE_PERIODS,
    METASCENE_CLASSES,
    Scenes,
    chosen_reflectances,
    matscale,
    metascene,
)
from trainables.common.materials.spectra import Spectra, camera
from trainables.common.materials.spectra_files import read_samples
from trainables.common.settings import Checked

GENERATED = ("matscale", "metascene")
SOURCES = (*GENERATED, "lmd", "opensurfaces", "folder")

# The camera and the lights of the material scenes; the spectral set has others (section 2.5 of the notes).
MATERIAL_CAMERA = {"shift": 8.0, "width": 1.1}
MATERIAL_KELVINS = (4000.0, 10000.0)

_FIRST_SEED = {"train": 0, "validation": 1, "test": 2}
_SPLITS = 10  # seeds of one `seed`
_JITTER = 0.2  # largest relative change of brightness, contrast and saturation


class Samples(Protocol):
    """Images with labels, in memory or in files."""

    def __len__(self) -> int: ...

    def read_whole(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) uint8, and its labels (h, w) uint8 at the size they are tested at."""

    def read_many(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Images (3, H, W) and labels (H, W), uint8."""


@dataclass
class MaterialsDataConfig(Checked):
    """Which images, and how they are cut (section 2 of the notes)."""

    where = "recipe.data"

    source: str = "matscale"
    """matscale, metascene (generated, need no files); lmd, opensurfaces, folder."""
    root: str = ""
    """Folder or zip archive of the files; unused by generated scenes."""
    size: int = 512
    """Generated: pixels along a side. Real: what the short side is brought to."""
    crop: int = 512
    """Side of the random square that training takes of each image, and of the tiles of a test."""
    resize: str = "enlarge"
    """Real: enlarge (those whose short side is below the size) or exact (all, as MatSpectNet's code does)."""
    test_at: str = "native"
    """Real: labels are compared at their native size, or resized, as MatSpectNet's code does."""
    split: int = 1
    """Real: which division into training, validation and test."""
    classes: int = 16
    """folder: how many there are."""
    labelled: float = 0.6
    """Generated: share of the surfaces of a training image that are labelled; validation and test are dense."""
    labelled_images: int = 0
    """Training images whose labels are used; 0: all."""
    octaves: float = 1.0
    """Generated: Z; scenes are magnified by 2^u, u from -Z to Z."""
    contrast: float = 0.15
    """matscale: amplitude of each of a material's two textures, relative to its brightness."""
    colours: float = 0.25
    """matscale: how far the channels of a surface's colour are from a middle grey, at most."""
    textured: bool = True
    """metascene: whether materials have textures; without, no image tells the two of a pair apart."""
    spectra: str = ""
    """metascene: a table of measured reflectances, from which the materials are chosen; empty: the built-in ones."""
    seed: int = 0
    """Generated: which scenes."""
    train_images: int = 600
    """Generated: scenes to train on."""
    validation_images: int = 100
    """Generated: scenes to validate on."""
    test_images: int = 200
    """Generated: scenes to test on."""

    def __post_init__(self) -> None:
        """Checks values and their combinations.

        Raises:
            InputError: One is impossible.
        """
        self.check_choices(source=SOURCES, resize=("enlarge", "exact"), test_at=("native", "resized"))
        self.check_least(1, "size", "crop", "split", "classes", "train_images", "validation_images", "test_images")
        self.check_least(0, "octaves", "seed", "labelled_images")
        self.check_range(0, 1, "labelled", "contrast")
        self.check_range(0, 0.5, "colours")
        self.check_range(1, 255, "classes")
        if self.source not in GENERATED and not self.root:
            raise InputError(f"recipe.data.source={self.source} needs data.root=<the folder of its files>")
        if self.crop > self.size:
            raise InputError(f"recipe.data.crop={self.crop} must be at most data.size={self.size}")


@dataclass(frozen=True)
class Materials:
    """All splits of a source.

    Attributes:
        train: To train on; those without labels last.
        labelled: How many of them have labels that may be used.
        validation: To choose by.
        test: Neither.
        classes: Names of the labels.
    """

    train: Samples
    labelled: int
    validation: Samples
    test: Samples
    classes: tuple[str, ...]


def open_materials(config: MaterialsDataConfig) -> Materials:
    """Generates the splits, or finds the files: a pure function of the configuration and the files.

    Raises:
        InputError: A file is missing or wrong, or a split has no image.
    """
    parts: dict[str, Samples]
    if config.source in GENERATED:
        parts = {name: generated(config, name) for name in _FIRST_SEED}
        classes = METASCENE_CLASSES
        if config.spectra:
            classes = tuple(f"pair {k // 2 + 1}{'ab'[k % 2]}" for k in range(len(METASCENE_CLASSES)))
        if config.source == "matscale":
            classes = tuple(f"{fine:g} and {coarse:g} px" for fine, coarse in MATSCALE_PERIODS.tolist())
    else:
        found, classes = open_collection(config.source, local_copy(config.root), config.split, config.classes)
        is_exact, is_native = config.resize == "exact", config.test_at == "native"
        parts = {name: Photographs(part, config.size, is_exact, is_native) for name, part in found.items()}
    known = len(parts["train"])
    if config.labelled_images > known:
        raise InputError(f"recipe.data.labelled_images={config.labelled_images}: there are {known} training images")
    return Materials(parts["train"], config.labelled_images or known, parts["validation"], parts["test"], classes)


def generated(config: MaterialsDataConfig, split: str, *, keeps_spectra: bool = False) -> Scenes:
    """The generated scenes of a split: train with sparse labels, validation and test with dense ones.

    Args:
        config: Which.
        split: train, validation or test.
        keeps_spectra: metascene: whether the hidden spectra are kept.
    """
    count = {"train": config.train_images, "validation": config.validation_images, "test": config.test_images}[split]
    seed = config.seed * _SPLITS + _FIRST_SEED[split]
    labelled = config.labelled if split == "train" else 1.0
    if config.source == "matscale":
        return matscale(
            count,
            config.size,
            seed,
            octaves=config.octaves,
            labelled=labelled,
            contrast=config.contrast,
            colours=config.colours,
        )
    return metascene(
        count,
        config.size,
        seed,
        sensitivity=camera(**MATERIAL_CAMERA),
        kelvins=MATERIAL_KELVINS,
        labelled=labelled,
        is_textured=config.textured,
        keeps_spectra=keeps_spectra,
        octaves=config.octaves,
        reflectances=reflectances(config),
    )


def reflectances(config: MaterialsDataConfig) -> Spectra | None:
    """The spectra (8, 31) of the materials of `metascene` from the user's table; None without one.

    Raises:
        InputError: The table cannot be read, or has too few that make pairs.
    """
    if not config.spectra:
        return None
    table = read_samples(config.spectra).spectra.double().numpy()
    try:
        return chosen_reflectances(table)
    except ValueError as error:
        raise InputError(f"data.spectra={config.spectra}: {error}") from None


def shown(
    samples: Samples,
    indices: Tensor,
    crop: int,
    epoch: Epoch,
    *,
    turns: bool = False,
    flips: bool = False,
    jitter: bool = False,
) -> tuple[Tensor, Tensor]:
    """A training batch: a random square of each image, each changed in a way of its own.

    Args:
        samples: The training set.
        indices: (B,) this worker's share of the batch; what is made goes to its device.
        crop: S.
        epoch: Draws.
        turns: Half of them are turned by 90, 180 or 270 degrees, as DBAT's code does.
        flips: Half of them are mirrored, in each direction.
        jitter: Brightness, contrast and saturation change.

    Returns:
        Images (B, 3, S, S) in [0, 1], labels (B, S, S) uint8.
    """
    draws = epoch.per_sample(lambda count, generator: torch.rand(count, 9, generator=generator))
    images, labels = [], []
    for (image, label), draw in zip(samples.read_many(indices.tolist()), draws, strict=True):
        top, left = (int(draw[axis] * (label.shape[axis] - crop + 1)) for axis in range(2))
        images.append(image[:, top : top + crop, left : left + crop])
        labels.append(label[top : top + crop, left : left + crop])
    x, y = torch.stack(images).to(indices.device).float() / 255, torch.stack(labels).to(indices.device)
    draws = draws.to(indices.device)
    if turns:
        quarters = torch.where(draws[:, 2] < 0.5, 1 + (3 * draws[:, 3]).long(), 0)
        for k in range(1, 4):
            chosen = quarters == k
            x = torch.where(chosen[:, None, None, None], x.rot90(k, (2, 3)), x)
            y = torch.where(chosen[:, None, None], y.rot90(k, (1, 2)), y)
    if flips:
        for axis in (1, 2):
            chosen = draws[:, 3 + axis] < 0.5
            x = torch.where(chosen[:, None, None, None], x.flip(axis + 1), x)
            y = torch.where(chosen[:, None, None], y.flip(axis), y)
    if jitter:
        factors = 1 + _JITTER * (2 * draws[:, 6:9] - 1)
        brightness, contrast, saturation = (factors[:, k, None, None, None] for k in range(3))
        x = x * brightness
        x = x.mean(dim=(1, 2, 3), keepdim=True).lerp(x, contrast)
        x = x.mean(dim=1, keepdim=True).lerp(x, saturation).clamp(0, 1)
    return x, y


def resized_like(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, K, H, W) at the size of labels (..., h, w): the nearest pixel's, as the authors' code does."""
    if logits.shape[-2:] == labels.shape[-2:]:
        return logits
    return functional.interpolate(logits, size=labels.shape[-2:], mode="nearest")
