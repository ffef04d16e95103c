"""The one entry to images and their classes: `open_images(config)`; every worker gets the same splits.

Section 2 of the reference notes on WFN (arXiv 2210.13554), which those on PWFN share. Images stay uint8 in memory, or
in their files, and become normalised fp32 batches when they are taken.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pharos.cache import local_copy
from pharos.errors import InputError
from trainables.common.arrays import unpickle_arrays
from trainables.common.quantisation.glyphs import make_glyphs

SOURCES = ("image_folder", "cifar10", "npz", "digits", "glyph32")
BUILT_IN = ("digits", "glyph32")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

Array = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass
class ImageDataConfig:
    """Which images, and how they are given to a network."""

    source: str = "image_folder"
    """image_folder (train/CLASS/*, val/CLASS/*, maybe test/CLASS/*), cifar10 (the python batches), npz; built in:
    digits (8x8, scikit-learn's), glyph32 (32x32 shapes in colour, generated)."""
    root: str = ""
    """Folder (npz: file) of the images, a path or URL; unused by the built-in ones."""
    seed: int = 0
    """Of the splits that are drawn, and of glyph32."""
    val_fraction: float = 0.1
    """Share of the training images that becomes the validation split, where the files have none of their own to spare:
    cifar10, npz without x_val, and image folders, whose val/ is the test split unless there is a test/."""
    size: int = 224
    """image_folder: side of the images that the network is given."""
    resize: int = 256
    """image_folder: both sides of an image before it is cropped, whatever its aspect ratio, as in the authors' code."""
    layout: str = "NHWC"
    """npz: NHWC or NCHW."""
    augment: bool = True
    """Whether training images are shifted (32x32 by up to 4 pixels, 8x8 by 1, folders by a random crop) and mirrored
    (all but digits and glyph32)."""
    limit: int = 0
    """Of each split, the first so many images alone; 0: all."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: One is impossible.
        """
        if self.source not in SOURCES:
            raise InputError(f"recipe.data.source={self.source} must be one of {', '.join(SOURCES)}")
        if self.layout not in ("NHWC", "NCHW"):
            raise InputError(f"recipe.data.layout={self.layout} must be NHWC or NCHW")
        if not 0 < self.val_fraction < 1:
            raise InputError(f"recipe.data.val_fraction={self.val_fraction} must be above 0 and below 1")
        if not 0 < self.size <= self.resize:
            raise InputError(f"recipe.data.size={self.size} must be at least 1 and at most resize={self.resize}")
        if self.limit < 0:
            raise InputError(f"recipe.data.limit={self.limit} must be at least 0")


@dataclass(frozen=True)
class Augmentation:
    """What becomes of a training image: shifted within a border of zeros, perhaps mirrored."""

    shift: int
    """Most pixels, either way, along both axes."""
    mirror: bool


class Store(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def read(self, indices: Labels, draws: Tensor | None) -> Tensor:
        """Images, (n, channels, height, width), uint8 or floating point.

        Args:
            indices: Which, (n,).
            draws: Numbers in [0, 1), (n, 3): place along y and x, and mirroring; None for images as they are.
        """


class Split:
    """Images of one split and their classes.

    Args:
        store: Where images come from.
        labels: Classes by the store's index.
        chosen: Indices of the split's images in the store; None for all.
        statistics: Mean and standard deviation by channel, of values in [0, 1].
    """

    def __init__(self, store: Store, labels: Labels, chosen: Labels | None, statistics: tuple[Tensor, Tensor]):
        self._store = store
        self._chosen = np.arange(len(labels)) if chosen is None else chosen
        self._statistics = statistics
        self.labels = torch.from_numpy(labels[self._chosen].astype(np.int64))
        """(n,), int64."""
        self.index = torch.arange(len(self._chosen))
        """0 to n - 1: what `epoch.batches` draws from."""

    def __len__(self) -> int:
        return len(self._chosen)

    def take(self, chosen: Tensor, device: torch.device, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalised fp32 images, (n, channels, height, width), and their classes.

        Args:
            chosen: Of `index`.
            device: Where they go.
            draws: Of `draw_augmentation`, to augment.
        """
        images = self._store.read(self._chosen[chosen.numpy()], draws).to(device)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        mean, deviation = (part.to(device)[:, None, None] for part in self._statistics)
        return (images.float() / scale - mean) / deviation, self.labels[chosen].to(device)


@dataclass(frozen=True)
class Images:
    """A data set."""

    train: Split
    val: Split
    test: Split
    classes: int
    shape: tuple[int, int, int]
    """Channels, height and width."""
    augment: bool

    def draw(self) -> Callable[[int, torch.Generator], Tensor] | None:
        """What `epoch.per_sample` draws for a training batch; None without augmentation."""
        return draw_augmentation if self.augment else None


def draw_augmentation(count: int, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1) for so many images, (count, 3)."""
    return torch.rand(count, 3, generator=generator)


def open_images(config: ImageDataConfig) -> Images:
    """The data set that a configuration names.

    Raises:
        InputError: Files are missing, damaged or of another kind.
    """
    if config.source not in BUILT_IN and not config.root:
        built_in = " or ".join(BUILT_IN)
        raise InputError(f"recipe.data.root: source={config.source} needs it; built in are source={built_in}")
    readers: dict[str, Callable[[ImageDataConfig], Images]] = {
        "image_folder": _open_folder,
        "cifar10": _open_cifar10,
        "npz": _open_npz,
        "digits": _open_digits,
        "glyph32": _open_glyphs,
    }
    return readers[config.source](config)


class _Memory:
    """Images in memory.

    Args:
        images: (n, channels, height, width), uint8 or fp32 in [0, 1].
        augmentation: What `draws` do.
    """

    def __init__(self, images: Tensor, augmentation: Augmentation):
        self._images = images
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Labels, draws: Tensor | None) -> Tensor:
        images = self._images[torch.from_numpy(indices)]
        return images if draws is None else shifted(images, draws, self._augmentation)


def shifted(images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Each image moved by up to `shift` pixels, zeros moving in, and half of them mirrored if they may be."""
    reach = augmentation.shift
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (reach, reach, reach, reach))
    first = (draws[:, :2] * (2 * reach + 1)).long()
    rows = first[:, 0, None] + torch.arange(height)
    columns = first[:, 1, None] + torch.arange(width)
    if augmentation.mirror:
        columns = torch.where(draws[:, 2, None] < 0.5, columns.flip(1), columns)
    every = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _in_memory(
    config: ImageDataConfig,
    parts: dict[str, tuple[npt.NDArray[Any], Labels]],
    augmentation: Augmentation,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Images:
    """A data set of arrays, (n, channels, height, width), by split; without statistics, with its training split's."""
    if config.limit:
        parts = {name: (x[: config.limit], y[: config.limit]) for name, (x, y) in parts.items()}
    x_train = parts["train"][0]
    if statistics is None:
        scale = 255.0 if x_train.dtype == np.uint8 else 1.0
        channels = x_train.astype(np.float64).transpose(1, 0, 2, 3).reshape(x_train.shape[1], -1) / scale
        found = channels.mean(axis=1), np.maximum(channels.std(axis=1), 1e-6)
    else:
        found = np.array(statistics[0]), np.array(statistics[1])
    tensors = torch.from_numpy(found[0]).float(), torch.from_numpy(found[1]).float()
    splits = {
        name: Split(_Memory(torch.from_numpy(np.ascontiguousarray(x)), augmentation), y, None, tensors)
        for name, (x, y) in parts.items()
    }
    classes = 1 + max(int(y.max()) for _, y in parts.values())
    return Images(**splits, classes=classes, shape=x_train.shape[1:], augment=config.augment)


def _held_out(config: ImageDataConfig, labels: Labels) -> tuple[Labels, Labels]:
    """Indices of a training and a validation split, drawn from the seed and sorted."""
    order = np.random.default_rng(config.seed).permutation(len(labels))
    count = max(1, round(config.val_fraction * len(labels)))
    return np.sort(order[count:]), np.sort(order[:count])


# Sources


def _open_digits(config: ImageDataConfig) -> Images:
    """1,797 handwritten digits of 8x8 pixels; 60/20/20 %, stratified."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images, labels = (data.images / 16.0).astype(np.float32)[:, None], data.target.astype(np.int64)
    train, rest = _stratified(labels, np.arange(len(labels)), 0.6, config.seed)
    val, test = _stratified(labels, rest, 0.5, config.seed)
    parts = {
        name: (images[chosen], labels[chosen]) for name, chosen in (("train", train), ("val", val), ("test", test))
    }
    return _in_memory(config, parts, Augmentation(shift=1, mirror=False))


def _stratified(labels: Labels, chosen: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Divides indices in two so that every class is divided alike; shuffled, so that a first part has all classes."""
    from sklearn.model_selection import train_test_split

    first, second = train_test_split(chosen, train_size=share, stratify=labels[chosen], random_state=seed % 2**32)
    return first, second


def _open_glyphs(config: ImageDataConfig) -> Images:
    """6,000/1,000/1,000 generated shapes."""
    counts = {"train": 6000, "val": 1000, "test": 1000}
    parts = {name: make_glyphs(config.seed, name, min(count, config.limit or count)) for name, count in counts.items()}
    return _in_memory(config, parts, Augmentation(shift=4, mirror=False))


def _open_cifar10(config: ImageDataConfig) -> Images:
    """data_batch_1 to 5 and test_batch, or one npz of the same arrays; 45,000/5,000/10,000."""
    root = local_copy(config.root)
    if (root / "cifar-10-batches-py").is_dir():
        root = root / "cifar-10-batches-py"
    batches = [_read_cifar_batch(root / f"data_batch_{index}") for index in range(1, 6)]
    x, y = np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
    train, val = _held_out(config, y)
    parts = {"train": (x[train], y[train]), "val": (x[val], y[val]), "test": _read_cifar_batch(root / "test_batch")}
    return _in_memory(config, parts, Augmentation(shift=4, mirror=True), _CIFAR10)


def _read_cifar_batch(path: Path) -> tuple[Array, Labels]:
    """Images, (n, 3, 32, 32), and classes of one of CIFAR-10's python files, which Python 2 pickled."""
    if not path.is_file():
        raise InputError(f"recipe.data.root: {path} is not there; expected data_batch_1 to 5 and test_batch")
    try:
        with path.open("rb") as stream:
            batch = unpickle_arrays(stream, encoding="bytes")
        images = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[b"labels"], np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"recipe.data.root: {path} is not one of CIFAR-10's python batches: {error}") from None
    if len(images) != len(labels):
        raise InputError(f"recipe.data.root: {path} has {len(images)} images and {len(labels)} classes")
    return images, labels


def _open_npz(config: ImageDataConfig) -> Images:
    """Arrays x_train, y_train, x_val, …; without x_val some are held out, without x_test validation serves."""
    path = local_copy(config.root)
    parts: dict[str, tuple[npt.NDArray[Any], Labels]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in ("train", "val", "test"):
                if f"x_{name}" in file:
                    parts[name] = _images_of(file[f"x_{name}"], file[f"y_{name}"], config)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"recipe.data.root: {path} is not an npz of images (x_train, y_train, …): {error}") from None
    if "train" not in parts:
        raise InputError(f"recipe.data.root: {path} has no array x_train")
    if "val" not in parts:
        x, y = parts["train"]
        train, val = _held_out(config, y)
        parts |= {"train": (x[train], y[train]), "val": (x[val], y[val])}
    parts.setdefault("test", parts["val"])
    side = min(parts["train"][0].shape[2:])
    return _in_memory(config, parts, Augmentation(shift=max(1, side // 8), mirror=True))


def _images_of(x: npt.NDArray[Any], y: npt.NDArray[Any], config: ImageDataConfig) -> tuple[npt.NDArray[Any], Labels]:
    if x.ndim == 3:  # grey
        x = x[..., None] if config.layout == "NHWC" else x[:, None]
    if x.ndim != 4 or len(x) != len(y) or y.ndim != 1:
        raise ValueError(f"images are {x.shape} and classes {y.shape}")
    if config.layout == "NHWC":
        x = x.transpose(0, 3, 1, 2)
    return (x if x.dtype == np.uint8 else x.astype(np.float32)), y.astype(np.int64)


def _open_folder(config: ImageDataConfig) -> Images:
    """ImageNet's layout. Its val/ is the test split, and the validation split is held out of train/ (notes, 2.1)."""
    root = local_copy(config.root)
    names = sorted(path.name for path in (root / "train").glob("*/"))
    if not names:
        raise InputError(f"recipe.data.root: {root} has no folders train/CLASS; expected train/CLASS/* and val/CLASS/*")
    files = {split: _list_files(root / split, names) for split in ("train", "val", "test") if (root / split).is_dir()}
    if "val" not in files:
        raise InputError(f"recipe.data.root: {root} has no folder val")
    labels = {split: np.array([label for _, label in found], np.int64) for split, found in files.items()}
    stores = {split: _Files([path for path, _ in found], config) for split, found in files.items()}
    statistics = torch.tensor(_IMAGENET[0]), torch.tensor(_IMAGENET[1])
    if "test" in files:
        chosen: dict[str, tuple[str, Labels]] = {
            name: (name, np.arange(len(labels[name]))) for name in ("train", "val", "test")
        }
    else:
        train, val = _held_out(config, labels["train"])
        chosen = {"train": ("train", train), "val": ("train", val), "test": ("val", np.arange(len(labels["val"])))}
    # Folders list class by class; the first of them alone would be of one class.
    mixed = np.random.default_rng(config.seed)
    splits = {}
    for name, (source, indices) in chosen.items():
        some = mixed.permutation(indices)[: config.limit] if config.limit else indices
        splits[name] = Split(stores[source], labels[source], some, statistics)
    shape = (3, config.size, config.size)
    return Images(**splits, classes=len(names), shape=shape, augment=config.augment)


def _list_files(folder: Path, names: list[str]) -> list[tuple[Path, int]]:
    found = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).glob("*"))]
    if not found:
        raise InputError(f"recipe.data.root: {folder} has no images of the classes of train/")
    return found


class _Files:
    """Images in files of any format that Pillow reads.

    Args:
        paths: By index.
        config: Sizes.
    """

    def __init__(self, paths: list[Path], config: ImageDataConfig):
        self._paths = paths
        self._resize, self._size = config.resize, config.size

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: Labels, draws: Tensor | None) -> Tensor:
        # Pillow decodes and resizes without Python's lock.
        from concurrent.futures import ThreadPoolExecutor

        rows: list[list[float]] = [[0.5, 0.5, 1.0]] * len(indices) if draws is None else draws.tolist()
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(self._read_one, indices.tolist(), rows))
        return torch.from_numpy(np.stack(images))

    def _read_one(self, index: int, draw: list[float]) -> Array:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(self._paths[index]) as file:
                image = file.convert("RGB").resize((self._resize, self._resize), Image.Resampling.BILINEAR)
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"recipe.data.root: {self._paths[index]} is no image that can be read: {error}") from None
        room = self._resize - self._size
        top, left = (int(value * (room + 1)) for value in draw[:2])
        pixels = np.asarray(image, np.uint8)[top : top + self._size, left : left + self._size]
        if draw[2] < 0.5:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
