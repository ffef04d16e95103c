"""Generated scenes whose materials are known at every pixel: `matscale` and `metascene`.

matscale    materials differ in the scales of their textures, seen from different distances; colour says nothing
            (section 2.6 of the reference notes on DBAT).
metascene   pairs of materials have exactly the same colour to the camera, and differ in their spectra and in their
            textures (section 2.5 of the reference notes on MatSpectNet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.common.materials.spectra import (
    PAIRS,
    REFLECTANCES,
    WAVELENGTHS,
    Spectra,
    camera,
    metamer,
    planck,
    response,
    seen,
)
from trainables.common.materials.textures import band_noise, inside, voronoi
from trainables.common.segmentation import IGNORED

MATSCALE_PERIODS = torch.tensor([(3, 12), (3, 24), (4.5, 12), (4.5, 24), (6.5, 12), (6.5, 24)])
"""(6, 2) fine and coarse period of each class of `matscale`, pixels at zoom 1."""
METASCENE_PERIODS = torch.tensor([(3.0, 10), (3, 20), (5, 10), (5, 20), (3, 10), (5, 20), (5, 10), (3, 20)])
"""(8, 2) the same of `metascene`; the classes are those of `PAIRS`, one after the other."""
METASCENE_CLASSES = tuple(name for pair in PAIRS for name in pair)

_GRAIN = 0.02  # matscale's sensor noise
_WEAVE = 0.12  # amplitude of each of metascene's two textures
_SPREAD = 0.006  # standard deviation of each of the three smooth deviations from a material's spectrum
_SHADE = 0.1  # of the shading
_SHADE_PERIOD = 64.0  # pixels
_REFERENCE_KELVIN = 6500.0  # pairs of a user's table are chosen by it
_DARKEST = 0.03  # mean response of a spectrum that can be a material
_REFLECTED = (0.01, 0.95)  # what a metamer may reflect
_COLOUR_APART = 0.05  # least difference of colour between two pairs
_SHOT = 0.01  # standard deviation of the noise of a pixel of value 1


@dataclass(frozen=True)
class Scenes:
    """N generated scenes of H x W pixels.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N, H, W) uint8, with `IGNORED` where nobody has labelled.
        truth: (N, H, W) uint8, the class of every pixel.
        cells: (N, H, W) uint8, which surface a pixel belongs to.
        zoom: (N,) magnification; more brings the scene nearer.
        spectra: (N, 31, H, W) what the camera's pixels come from, if it was asked for; reflectances, shaded.
        response: (N, 3, 31) of the camera and the light, with the spectra.
    """

    images: Tensor
    labels: Tensor
    truth: Tensor
    cells: Tensor
    zoom: Tensor
    spectra: Tensor | None = None
    response: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read_whole(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) and its labels (H, W), both uint8."""
        return self.images[index], self.labels[index]

    def read_many(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """`read_whole` of several."""
        return [self.read_whole(index) for index in indices]


def sparse(truth: Tensor, cells: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Labels as people give them: whole surfaces, but not all of them, and not up to their borders.

    Args:
        truth: (N, H, W) classes.
        cells: (N, H, W) numbers of surfaces.
        share: Probability that a surface is labelled; at least one of an image is.
        generator: Draws.

    Returns:
        (N, H, W), `IGNORED` where there is no label.
    """
    count = int(cells.max()) + 1
    draws = torch.rand(len(truth), count, generator=generator)
    # One that covers pixels, so that the image has a label at all.
    present = torch.zeros(len(truth), count).scatter_(1, cells.flatten(1).long(), 1.0)
    draws = torch.where(present > 0, draws, 2.0)
    labelled = (draws < share) | (draws == draws.amin(dim=1, keepdim=True))
    shown = labelled.gather(1, cells.flatten(1).long()).view_as(cells)
    return torch.where(shown & inside(cells), truth, torch.full_like(truth, IGNORED))


def matscale(
    count: int,
    side: int,
    seed: int,
    *,
    octaves: float = 1.0,
    labelled: float = 0.6,
    contrast: float = 0.15,
    colours: float = 0.25,
) -> Scenes:
    """Scenes of six materials whose identity is a pair of texture scales.

    Args:
        count: N.
        side: H = W.
        seed: Which scenes.
        octaves: Z; the zoom is 2^u, u ~ U(-Z, Z).
        labelled: Share of the surfaces that are labelled; 1: every pixel is.
        contrast: Amplitude of each of the two textures.
        colours: How far the channels of a surface's colour are from a middle grey, at most.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = voronoi(count, 5, side, generator)
    classes = torch.randint(len(MATSCALE_PERIODS), (count, 5), generator=generator)
    zoom = torch.exp2(octaves * (2 * torch.rand(count, generator=generator) - 1))
    albedo = 0.5 + colours * (2 * torch.rand(count, 5, 3, generator=generator) - 1)
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for k in range(count):
        # Every surface has noise of its own: a texture that went on over a border would betray a common period.
        noise = band_noise(MATSCALE_PERIODS[classes[k]] * zoom[k], side, generator).sum(dim=1)
        texture = (1 + contrast * noise).gather(0, cells[k][None])
        picture = albedo[k].T[:, cells[k]] * texture
        picture = picture + _GRAIN * torch.randn(3, side, side, generator=generator)
        images[k] = _bytes(picture)
    truth = classes.gather(1, cells.flatten(1)).view_as(cells).to(torch.uint8)
    cells = cells.to(torch.uint8)
    labels = truth if labelled >= 1 else sparse(truth, cells, labelled, generator)
    return Scenes(images, labels, truth, cells, zoom)


def metascene(
    count: int,
    side: int,
    seed: int,
    *,
    sensitivity: Spectra,
    kelvins: tuple[float, float],
    labelled: float = 0.6,
    is_textured: bool = True,
    is_noisy: bool = True,
    keeps_spectra: bool = False,
    octaves: float = 0.5,
    reflectances: Spectra | None = None,
) -> Scenes:
    """Scenes of four pairs of materials; both of a pair have one colour under the light of their scene.

    The metamers are made for the camera and the light of each scene, so that no scene gives them away: the deviations
    from a class's spectrum, textures and shading are the same for both of a pair.

    Args:
        count: N.
        side: H = W.
        seed: Which scenes.
        sensitivity: (3, 31) of the camera.
        kelvins: Colour temperatures between which each scene's light is drawn.
        labelled: Share of the surfaces that are labelled; 1: every pixel is.
        is_textured: Whether the classes have textures; without, nothing in an image tells a pair apart.
        is_noisy: Whether the camera has noise.
        keeps_spectra: Whether the spectra and the responses are returned.
        octaves: Z of the zoom, as in `matscale`.
        reflectances: (8, 31) before they are made metamers, pair by pair; None: those of `PAIRS`.
    """
    generator = torch.Generator().manual_seed(seed)
    if reflectances is None:
        reflectances = np.stack([REFLECTANCES[name] for name in METASCENE_CLASSES])
    points = 6
    cells = voronoi(count, points, side, generator)
    classes = torch.randint(len(METASCENE_CLASSES), (count, points), generator=generator)
    zoom = torch.exp2(octaves * (2 * torch.rand(count, generator=generator) - 1))
    low, high = kelvins
    light = low + (high - low) * torch.rand(count, generator=generator)
    amounts = _SPREAD * torch.randn(count, points, 3, generator=generator)
    along = (WAVELENGTHS - 400) / 300
    smooth = np.stack([np.ones_like(along), np.cos(np.pi * along), np.cos(2 * np.pi * along)])
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    spectra = torch.empty(count, len(WAVELENGTHS), side, side) if keeps_spectra else None
    responses = torch.empty(count, 3, len(WAVELENGTHS)) if keeps_spectra else None
    for k in range(count):
        matrix = response(sensitivity, planck(float(light[k])))
        known = torch.from_numpy(metamers(reflectances, matrix))
        surfaces = known[classes[k]] + amounts[k].double() @ torch.from_numpy(smooth)
        shade = torch.exp(_SHADE * band_noise(torch.tensor(_SHADE_PERIOD), side, generator))
        if is_textured:
            noise = band_noise(METASCENE_PERIODS[classes[k]] * zoom[k], side, generator).sum(dim=1)
            shade = shade * (1 + _WEAVE * noise).gather(0, cells[k][None])[0]
        # A camera is linear: colours of the surfaces, shaded, are those of the shaded spectra.
        colours = surfaces @ torch.from_numpy(matrix).T
        picture = colours.float().T[:, cells[k]] * shade
        if is_noisy:
            picture = picture + _SHOT * picture.clamp_min(0).sqrt() * torch.randn(3, side, side, generator=generator)
        images[k] = _bytes(picture)
        if spectra is not None and responses is not None:
            spectra[k] = surfaces.float().T[:, cells[k]] * shade
            responses[k] = torch.from_numpy(matrix)
    truth = classes.gather(1, cells.flatten(1)).view_as(cells).to(torch.uint8)
    cells = cells.to(torch.uint8)
    labels = truth if labelled >= 1 else sparse(truth, cells, labelled, generator)
    return Scenes(images, labels, truth, cells, zoom, spectra, responses)


def metamers(reflectances: Spectra, matrix: Spectra) -> Spectra:
    """Spectra (2 n, 31) of which each second one has the colour of the one before it, to a response (3, 31)."""
    return np.stack(
        [
            metamer(reflectances[k - 1], reflectances[k], matrix) if k % 2 else reflectances[k]
            for k in range(len(reflectances))
        ]
    )


def chosen_reflectances(table: Spectra) -> Spectra:
    """Four pairs of a table of spectra whose metamers differ most, each pair of a colour of its own.

    Args:
        table: (N, 31) reflectances.

    Returns:
        (8, 31), pair by pair, for `metamers`.

    Raises:
        ValueError: There are no four such pairs.
    """
    matrix = response(camera(), planck(_REFERENCE_KELVIN))
    unseen = np.eye(len(WAVELENGTHS)) - seen(matrix)
    colours = table @ matrix.T
    bright = colours.mean(axis=1)
    usable = np.flatnonzero(bright > _DARKEST)
    pairs: list[tuple[float, int, int]] = []
    for a in usable.tolist():
        gains = bright[a] / bright[usable]
        gap = (gains[:, None] * table[usable] - table[a]) @ unseen
        other = table[a] + gap
        inside_range = (other.min(axis=1) > _REFLECTED[0]) & (other.max(axis=1) < _REFLECTED[1])
        distance = np.where(inside_range, np.sqrt((gap**2).mean(axis=1)), 0.0)
        best = int(distance.argmax())
        pairs.append((float(distance[best]), a, int(usable[best])))
    taken: list[tuple[int, int]] = []
    for gap_of, a, b in sorted(pairs, reverse=True):
        used = {index for pair in taken for index in pair}
        is_new = all(np.abs(colours[a] - colours[first]).max() > _COLOUR_APART for first, _ in taken)
        if gap_of > 0 and a not in used and b not in used and is_new:
            taken.append((a, b))
        if len(taken) == len(PAIRS):
            return table[[index for pair in taken for index in pair]]
    raise ValueError(
        f"of {len(table)} spectra {len(taken)} pairs can be made whose metamers lie between 0 and 1; 4 needed"
    )


def _bytes(picture: Tensor) -> Tensor:
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)
