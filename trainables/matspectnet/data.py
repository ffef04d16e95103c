"""What MatSpectNet is given: a set of images with spectra, a set with materials, and measured samples.

Source: section 2 of the reference notes on MatSpectNet (arXiv 2307.11466).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pharos.cache import local_copy
from pharos.errors import InputError
from pharos.run import Epoch
from trainables.common.materials import data as common
from trainables.common.materials.data import (
    MATERIAL_CAMERA,
    MATERIAL_KELVINS,
    Materials,
    MaterialsDataConfig,
    generated,
    open_materials,
    reflectances,
    shown,
)
from trainables.common.materials.scenes import Scenes, metascene
from trainables.common.materials.spectra import REFLECTANCES, WAVELENGTHS, Spectra, camera, planck
from trainables.common.materials.spectra_files import Samples, read_camera, read_samples
from trainables.matspectnet.normalisation import NORMALISATIONS, Scale, value_range
from trainables.matspectnet.spectral_files import arad, cave
from trainables.matspectnet.spectral_set import Scene, SpectralSet

# The lights of the generated spectral set; the material set has another camera and other lights.
SPECTRAL_KELVINS = (2856.0, 6500.0)

_SEEDS = 10  # of one `seed`; the images with materials take the first three
_SPECTRAL_SEEDS = {"train": 3, "validation": 4}
_HIDDEN_SEED = 5
_LOOKED_AT = 100  # images, and pixels along a side of spectra, whose mean and deviation stand for all of them
_DATABASE = 1294  # samples of the generated table, as many as the paper's has
_ROUGHNESS = (0.0, 0.05, 0.1, 0.2, 0.3)
_GLOSS = (0.0024, 1.87)  # median and logarithmic spread of the samples' specularity


@dataclass
class MatSpectNetDataConfig(MaterialsDataConfig):
    """The images with materials, as for DBAT; the images with spectra; cameras and samples."""

    source: str = "metascene"
    """Images with materials: metascene, matscale (generated, need no files); lmd, opensurfaces, folder."""
    resize: str = "exact"
    """Real: exact (the short side of all is brought to the size, the authors' code) or enlarge (of smaller ones)."""
    test_at: str = "resized"
    """Real: labels are compared at the size of the resized image (the authors' code), or at their native one."""
    octaves: float = 0.5
    """Generated: Z; scenes are magnified by 2^u, u from -Z to Z."""
    normalise: str = "minmax"
    """Values of an image in [0, 1]: minmax (by its own smallest and largest), percentile (without the outermost
    thousandth at either end), none."""
    spectral_source: str = "generated"
    """Images with spectra: generated (scenes as metascene has them, by another camera in other light), arad, cave."""
    spectral_root: str = ""
    """Folder of the images with spectra; unused by generated."""
    spectral_images: int = 300
    """Generated: how many to train on."""
    spectral_validation: int = 30
    """How many to validate on: generated or, of cave, taken from the end; arad has its own."""
    photons: float = 750.0
    """cave: electrons of a value of 1; less is more noise."""
    camera: str = ""
    """A file of the sensitivities of the camera of the images with spectra (see `common.materials.spectra_files`);
    empty: the built-in one. cave's RGB images are made with it, and the re-projection starts from it."""
    samples: str = ""
    """A table of measured samples with the properties that people see, such as SpectralDB's; empty: a generated one."""

    def __post_init__(self) -> None:
        """Checks values and their combinations.

        Raises:
            InputError: One is impossible.
        """
        super().__post_init__()
        self.check_choices(normalise=NORMALISATIONS, spectral_source=("generated", "arad", "cave"))
        self.check_least(1, "spectral_images", "spectral_validation")
        self.check_least(0, "photons")
        if self.spectral_source != "generated" and not self.spectral_root:
            raise InputError(
                f"recipe.data.spectral_source={self.spectral_source} needs data.spectral_root=<its folder>"
            )


@dataclass(frozen=True)
class Domains:
    """Everything that a trial is given.

    Attributes:
        materials: Images with labels.
        spectral: Images with spectra to train on.
        spectral_validation: The same to validate on.
        hidden: As many generated images with materials and their spectra, to measure how well these are recovered;
            None: the images with materials are real, or have no spectra.
        sensitivity: (3, 31) what is known of the camera of the images with spectra.
        samples: Measured ones.
    """

    materials: Materials
    spectral: SpectralSet
    spectral_validation: SpectralSet
    hidden: SpectralSet | None
    sensitivity: Tensor
    samples: Samples


class Normalised:
    """Images whose values fill the range of a byte, by a rule.

    Args:
        samples: Theirs.
        how: See `normalisation.value_range`.
    """

    def __init__(self, samples: common.Samples, how: str):
        self._samples = samples
        self._how = how

    def __len__(self) -> int:
        return len(self._samples)

    def read_whole(self, index: int) -> tuple[Tensor, Tensor]:
        """See `common.materials.data.Samples`."""
        image, labels = self._samples.read_whole(index)
        return self._stretched(image), labels

    def read_many(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """See `common.materials.data.Samples`."""
        return [(self._stretched(image), labels) for image, labels in self._samples.read_many(indices)]

    def _stretched(self, image: Tensor) -> Tensor:
        if self._how == "none":
            return image
        return (255 * value_range(image, self._how)(image)).round().to(torch.uint8)


def open_domains(config: MatSpectNetDataConfig) -> Domains:
    """Generates the data, or finds the files: a pure function of the configuration and the files.

    Raises:
        InputError: A file is missing or wrong.
    """
    found = open_materials(config)
    train, validation = _spectral_scenes(config)
    return Domains(
        replace(
            found,
            train=Normalised(found.train, config.normalise),
            validation=Normalised(found.validation, config.normalise),
            test=Normalised(found.test, config.normalise),
        ),
        SpectralSet(train, config.normalise),
        SpectralSet(validation, config.normalise),
        SpectralSet(_hidden_scenes(config), config.normalise) if config.source == "metascene" else None,
        sensitivity(config),
        open_samples(config),
    )


def open_samples(config: MatSpectNetDataConfig) -> Samples:
    """The measured samples, or the generated ones.

    Raises:
        InputError: The file is missing or wrong.
    """
    return read_samples(config.samples) if config.samples else generated_samples(config.seed)


def true_scenes(config: MatSpectNetDataConfig, split: str) -> Scenes:
    """The generated images with materials of a split, with their hidden spectra: for oracles and for tests.

    Raises:
        InputError: The images are real, or have no spectra.
    """
    if config.source != "metascene":
        raise InputError(f"recipe.data.source={config.source}: only metascene knows the true spectra of its images")
    return generated(config, split, keeps_spectra=True)


def sensitivity(config: MatSpectNetDataConfig) -> Tensor:
    """(3, 31) of the camera of the images with spectra; of the generated ones, under the light in the middle."""
    known = read_camera(config.camera).double().numpy() if config.camera else camera()
    if config.spectral_source == "generated":
        known = known * planck(sum(SPECTRAL_KELVINS) / 2)
    return torch.from_numpy(known).float()


def _spectral_scenes(config: MatSpectNetDataConfig) -> tuple[list[Scene], list[Scene]]:
    if config.spectral_source == "generated":
        train, validation = (_generated_scenes(config, split) for split in _SPECTRAL_SEEDS)
        return train, validation
    root = local_copy(config.spectral_root)
    if config.spectral_source == "arad":
        return arad(root, "Train"), arad(root, "Valid")
    scenes = cave(root, sensitivity(config), photons=config.photons, seed=config.seed)
    if len(scenes) <= config.spectral_validation:
        name = f"recipe.data.spectral_validation={config.spectral_validation}"
        raise InputError(f"{name} leaves none of {len(scenes)} scenes to train on")
    return scenes[: -config.spectral_validation], scenes[-config.spectral_validation :]


def _generated_scenes(config: MatSpectNetDataConfig, split: str) -> list[Scene]:
    count = config.spectral_images if split == "train" else config.spectral_validation
    taken_with = read_camera(config.camera).double().numpy() if config.camera else camera()
    return _scenes(config, count, _SPECTRAL_SEEDS[split], taken_with, SPECTRAL_KELVINS)


def _hidden_scenes(config: MatSpectNetDataConfig) -> list[Scene]:
    return _scenes(config, config.spectral_validation, _HIDDEN_SEED, camera(**MATERIAL_CAMERA), MATERIAL_KELVINS)


def _scenes(
    config: MatSpectNetDataConfig, count: int, seed: int, taken_with: Spectra, kelvins: tuple[float, float]
) -> list[Scene]:
    found = metascene(
        count,
        config.size,
        _SEEDS * config.seed + seed,
        sensitivity=taken_with,
        kelvins=kelvins,
        is_textured=config.textured,
        keeps_spectra=True,
        octaves=config.octaves,
        reflectances=reflectances(config),
    )
    assert found.spectra is not None
    assert found.response is not None
    clean = 255 * torch.einsum("ncb,nbhw->nchw", found.response, found.spectra)
    parts = zip(found.images, found.spectra, clean, strict=True)
    return [Scene.of(str(k), image, cube, seen) for k, (image, cube, seen) in enumerate(parts)]


def spectral_batch(spectral: SpectralSet, chosen: Tensor, crop: int, epoch: Epoch) -> tuple[Tensor, Tensor, Tensor]:
    """A training batch of images with spectra, cut, turned and mirrored.

    Args:
        spectral: The set.
        chosen: (B,) this worker's share of the batch; what is made goes to its device.
        crop: Side of the windows.
        epoch: Draws.

    Returns:
        RGB (B, 3, S, S), spectra (B, 31, S, S), RGB without noise.
    """
    draws = epoch.per_sample(lambda count, generator: torch.rand(count, 5, generator=generator))
    x, spectra, clean = (part.to(chosen.device) for part in spectral.crops(chosen, draws, crop))
    return x, spectra, clean


def paired_batch(domains: Domains, chosen: Tensor, crop: int, epoch: Epoch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A training batch of both sets, which have nothing to do with each other.

    Args:
        domains: Both.
        chosen: (B,) this worker's share of images of the larger set; partners are drawn from the other.
        crop: Side of the windows.
        epoch: Draws.

    Returns:
        RGB (B, 3, S, S), spectra (B, 31, S, S) and RGB without noise of images with spectra; RGB of images with
        materials.
    """
    sizes = len(domains.spectral), len(domains.materials.train)
    partners = epoch.per_sample(lambda count, generator: torch.randint(min(sizes), (count,), generator=generator))
    partners = partners.to(chosen.device)
    ours, others = (chosen, partners) if sizes[0] >= sizes[1] else (partners, chosen)
    x, spectra, clean = spectral_batch(domains.spectral, ours, crop, epoch)
    images, _ = shown(domains.materials.train, others, x.shape[-1], epoch, flips=True)
    return x, spectra, clean, images


def standard_scales(domains: Domains) -> tuple[Scale, Scale]:
    """The scales of images with materials in [0, 1] and of spectra, by at most some hundred training images of each."""
    images, scenes = domains.materials.train, domains.spectral
    return (
        Scale.of(images.read_whole(index)[0] / 255 for index in _some(len(images))),
        Scale.of(scenes.whole(index, _LOOKED_AT)[1][0] for index in _some(len(scenes))),
    )


def _some(count: int) -> range:
    return range(0, count, max(1, count // _LOOKED_AT))


def generated_samples(seed: int) -> Samples:
    """A table like SpectralDB's: the 17 built-in materials, each sample a little different, glossy and rough.

    Args:
        seed: Which samples.
    """
    generator = torch.Generator().manual_seed(seed)
    names = list(REFLECTANCES)
    kinds = torch.arange(_DATABASE) % len(names)
    known = torch.from_numpy(np.stack([REFLECTANCES[name] for name in names])).float()[kinds]
    along = torch.from_numpy((WAVELENGTHS - 400) / 300).float()
    smooth = torch.stack([torch.ones_like(along), torch.cos(torch.pi * along), torch.cos(2 * torch.pi * along)])
    bright = 0.7 + 0.6 * torch.rand(_DATABASE, 1, generator=generator)
    spectra = known * bright + 0.02 * torch.randn(_DATABASE, 3, generator=generator) @ smooth
    median, spread = _GLOSS
    gloss = median * torch.exp(spread * torch.randn(_DATABASE, generator=generator))
    rough = torch.tensor(_ROUGHNESS)[torch.randint(len(_ROUGHNESS), (_DATABASE,), generator=generator)]
    return Samples(
        "the generated samples", [names[k] for k in kinds], spectra.clamp(0.005, 0.99), gloss.clamp_max(0.2), rough
    )
