"""Generated tissue: scenes in µm, which can be photographed at any magnification and orientation.

A scene is a pure function of a seed, an image one of a scene, its pixels and the stage's rotation: other magnifications
take another picture of the same tissue, they never resample one, and the labels are exact at each of them.

Source: section 2.4 of the reference notes on ADS_UNet, which are also those of SEUNet and RSESF.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import numpy as np

from trainables.common.histology.optics import Array, Bytes, Grid, Waves, centres, photograph
from trainables.common.histology.populations import Ellipses, cells, scattered, thinned

_STAIN_SPREAD = 0.12  # of the logarithm of each stain's strength, over scenes
_MEAN_STAIN = (0.25, 0.40)  # concentrations that a lower contrast leaves as they are
Stains = tuple[Array, Array, Array]
"""Concentration of haematoxylin, that of eosin, and the label, at every sub-pixel (n, n)."""


class Scene(abc.ABC):
    """A piece of tissue.

    Args:
        seed: Everything follows from it.
        spread: Standard deviation of the tissue's orientation around the x axis; infinite: any.
        field: Side of the square of tissue; what lies outside is not drawn.
        is_varied: Whether scenes differ in how hard they are (section 2.3).
    """

    classes: ClassVar[tuple[str, ...]]
    """Names of the labels 0, 1, ..."""
    salt: ClassVar[int]
    """Tells the tasks' random streams apart."""

    def __init__(self, seed: int, *, spread: float = 0.2, field: float = 288.0, is_varied: bool = False):
        self.seed = seed
        self._field = field
        rng = np.random.default_rng([self.salt, seed])
        self._stain = np.exp(rng.normal(0, _STAIN_SPREAD, 2))
        angle, any_angle = rng.normal(), rng.uniform(0, math.pi)
        self._orientation = any_angle if math.isinf(spread) else angle * spread
        self._spread = spread
        hardness = float(rng.beta(1, 3))
        self.difficulty = hardness if is_varied else 0.0
        """In [0, 1]: how blurred, noisy and pale its images are."""
        self._is_varied = is_varied
        self._draw(rng)

    @abc.abstractmethod
    def _draw(self, rng: np.random.Generator) -> None:
        """Draws the tissue."""

    @abc.abstractmethod
    def stains(self, grid: Grid) -> Stains:
        """What lies at the sub-pixels, before the scene's own staining."""

    def render(self, size: int, mpp: float = 1.0, phi: float = 0.0, *, noise: bool = True) -> tuple[Bytes, Bytes]:
        """A picture and its labels.

        Args:
            size: Pixels along a side.
            mpp: µm per pixel.
            phi: Rotation of the stage, in degrees.
            noise: Whether the sensor is noisy.

        Returns:
            RGB (size, size, 3) and labels (size, size).
        """
        grid = Grid(size, mpp, math.radians(phi))
        haematoxylin, eosin, labels = self.stains(grid)
        contrast = 1 - 0.5 * self.difficulty
        h, e = (
            ((mean + contrast * (stain - mean)) * strength).clip(0)
            for stain, mean, strength in zip((haematoxylin, eosin), _MEAN_STAIN, self._stain, strict=True)
        )
        # Of its own for each picture, as a second photograph of the same tissue has other noise.
        rng = np.random.default_rng([self.salt, self.seed, size, round(mpp * 1e6), round(phi * 1e3) % 360_000])
        image = photograph(h, e, grid, self.difficulty, rng if noise else None)
        return image, np.ascontiguousarray(centres(labels).astype(np.uint8))


class Tissue5(Scene):
    """Five tissue types side by side, which differ in texture more than in colour, and by scale-free cues alone."""

    classes = ("other", "tumour", "stroma", "inflammatory", "necrosis")
    salt = 5

    def _draw(self, rng: np.random.Generator) -> None:
        field = self._field
        # 22 on 288 µm
        count = round(22 * (field / 288) ** 2)
        self._sites = rng.uniform(-field / 2, field / 2, (count, 2))
        self._types = rng.integers(0, 5, count)
        if self._is_varied and rng.uniform() > 0.2:  # necrosis in a fifth of the scenes only
            self._types[self._types == 4] = rng.integers(0, 4, int((self._types == 4).sum()))
        self._warp = [
            Waves(rng.normal(0, 1 / 60, 24), rng.normal(0, 1 / 60, 24), rng.uniform(0, 2 * math.pi, 24))
            for _ in ("along y", "along x")
        ]
        fibre = self._orientation
        self._rings = cells(rng, scattered(rng, 0.0016, field, 16.0), 16.0, (1.0, 1.2))
        self._tumour = cells(rng, scattered(rng, 0.020, field, 0.8 * 8.5), 8.5, (1.3, 1.8))
        self._stroma = cells(rng, scattered(rng, 0.0035, field, 1.6 * 6.0), 6.0, (3.0, 4.5), (fibre, 0.15))
        self._inflammatory = cells(rng, scattered(rng, 0.05, field, 0.8 * 5.0), 5.0, (1.0, 1.15))
        self._w12, self._w5 = Waves.draw(rng, 12.0), Waves.draw(rng, 5.0)
        self._fibres = Waves.draw(rng, 7.0, fibre)

    def _labels(self, grid: Grid) -> Array:
        """Voronoi cells of warped coordinates (n, n): 24 waves of 3 µm each along both."""
        amplitude = 3 * math.sqrt(24 / 2)
        place = [v + amplitude * warp.on(grid) for v, warp in zip(grid.world, self._warp, strict=True)]
        nearest = np.full(place[0].shape, np.inf)
        labels = np.zeros(place[0].shape, dtype=np.int64)
        for (y, x), kind in zip(self._sites, self._types, strict=True):
            distance = (place[0] - y) ** 2 + (place[1] - x) ** 2
            closer = distance < nearest
            nearest[closer] = distance[closer]
            labels[closer] = kind
        return labels

    def stains(self, grid: Grid) -> Stains:
        labels = self._labels(grid)
        h, e = np.zeros_like(grid.world[0]), np.zeros_like(grid.world[0])
        w12, w5 = self._w12.on(grid), self._w5.on(grid)

        membrane = np.abs(self._rings.on(grid, reach=1.12)[0]) < 0.12
        _put(h, e, labels == 0, np.full_like(h, 0.05), 0.12 + 0.5 * membrane)
        t = self._tumour.on(grid)[0]
        rim = (t > 0) & (t < 0.25)
        _put(h, e, labels == 1, 0.12 + 0.55 * (t > 0) + 0.5 * rim + 0.06 * w12, 0.35 + 0.08 * w12)
        t = self._stroma.on(grid)[0]
        _put(h, e, labels == 2, 0.06 + 0.9 * (t > 0), 0.45 + 0.18 * self._fibres.on(grid))
        t = self._inflammatory.on(grid)[0]
        _put(h, e, labels == 3, 0.12 + 0.95 * (t > 0), 0.25 + 0.05 * w12)
        _put(h, e, labels == 4, 0.12 + 0.5 * (w5 - 1).clip(0, 1), 0.45 + 0.12 * w5)
        return h, e, labels


class Glands(Scene):
    """Glands in stroma, with what looks like a lumen or an epithelium and is none."""

    classes = ("background", "gland")
    salt = 2

    def _draw(self, rng: np.random.Generator) -> None:
        field = self._field
        self._glands = _pack_glands(rng, field, self._orientation, self._spread)
        self._basal = _joined([gland.nuclei(rng) for gland in self._glands])
        stroma = cells(rng, scattered(rng, 0.0035, field, 1.6 * 6.0), 6.0, (3.0, 4.5), (self._orientation, 0.15))
        self._fibres, self._w12 = Waves.draw(rng, 7.0, self._orientation), Waves.draw(rng, 12.0)
        self._tears = cells(rng, scattered(rng, 1.5e-4, field, 24.0), (8.0, 28.0), (1.0, 2.2))
        # Lymphoid clusters: as dark and as dense as an epithelium.
        parents = rng.uniform(-field / 2, field / 2, (max(1, round(1e-4 * field**2)), 2))
        members = np.repeat(parents, 40, axis=0) + rng.normal(0, 9.0, (40 * len(parents), 2))
        self._lymphoid = cells(rng, thinned(members, 4.0), 5.0, (1.0, 1.2))
        self._stroma = stroma

    def stains(self, grid: Grid) -> Stains:
        inside, lumen = np.zeros((2, *grid.world[0].shape), dtype=bool)
        for gland in self._glands:
            gland.draw(grid, inside, lumen)
        w12 = self._w12.on(grid)
        nuclei = (self._stroma.on(grid)[0] > 0) | (self._lymphoid.on(grid)[0] > 0)
        h = 0.06 + 0.9 * nuclei
        e = 0.45 + 0.18 * self._fibres.on(grid)
        tear = self._tears.on(grid)[0] > 0
        white = lumen | (tear & ~inside)
        epithelium = inside & ~lumen
        _put(h, e, epithelium, 0.12 + 0.8 * (self._basal.on(grid)[0] > 0) + 0.03 * w12, 0.30 + 0.04 * w12)
        _put(h, e, white, np.full_like(h, 0.02), 0.06 + 0.01 * w12)
        return h, e, inside.astype(np.int64)


class Nuclei(Scene):
    """Nuclei, whose rims and chromatin tell them from smooth dark blobs of any size."""

    classes = ("background", "nucleus")
    salt = 1

    def _draw(self, rng: np.random.Generator) -> None:
        field, diameter = self._field, 8.0
        count = round(0.0045 * field**2)  # before they are thinned; .0035 stay
        clustered = round(0.6 * count)
        parents = rng.uniform(-field / 2, field / 2, (max(1, clustered // 6), 2))
        members = parents[rng.integers(0, len(parents), clustered)] + rng.normal(0, 1.3 * diameter, (clustered, 2))
        points = np.concatenate([members, rng.uniform(-field / 2, field / 2, (count - clustered, 2))])
        self._nuclei = cells(rng, thinned(rng.permutation(points), 0.8 * diameter), diameter, (1.1, 1.6))
        self._darkness = rng.uniform(0.55, 1.15, len(self._nuclei))
        self._chromatin, self._w12 = Waves.draw(rng, 2.2), Waves.draw(rng, 12.0)
        self._blobs = cells(rng, scattered(rng, 0.0016, field, 9.0), (4.0, 24.0), (1.0, 1.6))
        self._smooth = rng.uniform(0.5, 1.0, len(self._blobs))

    def stains(self, grid: Grid) -> Stains:
        blob, which = self._blobs.on(grid)
        h = 0.05 + np.where(which >= 0, self._smooth[which] * (blob / 0.35).clip(0, 1), 0)
        w12 = self._w12.on(grid)
        e = 0.35 + 0.05 * w12
        t, which = self._nuclei.on(grid)
        inside = t > 0
        # As dark as a blob on average: pale within, dark at the rim.
        body = 0.60 + 0.22 * self._chromatin.on(grid) + 0.55 * (t < 0.25)
        h = np.where(inside, (self._darkness[which] * body).clip(0.05, 1.15), h)
        return h, e, inside.astype(np.int64)


SCENES: dict[str, type[Scene]] = {"tissue5": Tissue5, "glands": Glands, "nuclei": Nuclei}
"""The generated tasks by name."""


class _Gland:
    """A closed contour around an epithelium around a lumen."""

    def __init__(self, rng: np.random.Generator, y: float, x: float, radius: float, angle: float):
        self._y, self._x, self._radius, self._angle = y, x, radius, angle
        self._stretch = math.sqrt(rng.uniform(1.3, 1.9))
        self._amplitudes = rng.normal(0, [0.06, 0.04, 0.03, 0.02])
        self._phases = rng.uniform(0, 2 * math.pi, 4)
        self._thickness = rng.uniform(11.0, 16.0)

    def _contour(self, theta: Array) -> Array:
        """Outer radius in the gland's own frame, in which it is not stretched."""
        k = np.arange(2, 6)
        wave = np.cos(theta[..., None] * k + self._phases) @ self._amplitudes
        return np.asarray(self._radius * (1 + wave))

    def draw(self, grid: Grid, inside: Array, lumen: Array) -> None:
        """Marks its sub-pixels."""
        reach = 1.3 * self._radius * self._stretch
        centre = grid.image_of(np.array(self._y), np.array(self._x))
        rows, columns = (slice(*np.searchsorted(grid.axis, [float(c) - reach, float(c) + reach])) for c in centre)
        y, x = (v[rows, columns] for v in grid.world)
        if not y.size:
            return
        dy, dx = y - self._y, x - self._x
        along = (dx * math.cos(self._angle) + dy * math.sin(self._angle)) / self._stretch
        across = (dy * math.cos(self._angle) - dx * math.sin(self._angle)) * self._stretch
        radius = np.hypot(along, across)
        outer = self._contour(np.arctan2(across, along))
        inside[rows, columns] += radius < outer
        lumen[rows, columns] += radius < outer - self._thickness

    def nuclei(self, rng: np.random.Generator) -> Ellipses:
        """Its basal nuclei, 8 by 4 µm, one about every 5 µm of the contour, across it."""
        fine = np.linspace(0, 2 * math.pi, 721)
        y, x = self._world(self._contour(fine), fine)
        length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(y), np.diff(x)))])
        count = max(6, round(length[-1] / 5))
        theta = np.interp(np.arange(count) * length[-1] / count, length, fine)
        dy, dx = (np.interp(theta, fine, np.gradient(v)) for v in (y, x))
        size = np.hypot(dy, dx)
        # The contour runs from x towards y, so that (-dx, dy) turned points inwards.
        inward = np.stack([dx, -dy]) / size
        ey, ex = self._world(self._contour(theta), theta)
        depth = rng.uniform(3.0, 6.0, count)
        return Ellipses(
            ey + depth * inward[0],
            ex + depth * inward[1],
            np.full(count, 4.0),
            np.full(count, 2.0),
            np.arctan2(inward[0], inward[1]),
        )

    def _world(self, radius: Array, theta: Array) -> tuple[Array, Array]:
        along, across = radius * np.cos(theta) * self._stretch, radius * np.sin(theta) / self._stretch
        cosine, sine = math.cos(self._angle), math.sin(self._angle)
        return self._y + along * sine + across * cosine, self._x + along * cosine - across * sine


def _pack_glands(rng: np.random.Generator, field: float, orientation: float, spread: float) -> list[_Gland]:
    """14 glands on 320 µm, or as many as fit; apart from each other as if all lay along the orientation."""
    wanted, stretch = round(14 * (field / 320) ** 2), 1.265
    glands: list[_Gland] = []
    taken = np.empty((0, 3))
    cosine, sine = math.cos(orientation), math.sin(orientation)
    for _ in range(400):
        y, x = rng.uniform(-field / 2, field / 2, 2)
        radius = rng.uniform(24.0, 38.0)
        own = np.array([(x * cosine + y * sine) / stretch, (y * cosine - x * sine) * stretch])
        if len(taken) and (np.hypot(*(taken[:, :2] - own).T) < 1.08 * (taken[:, 2] + radius)).any():
            continue
        taken = np.vstack([taken, [*own, radius]])
        turn = 0.0 if math.isinf(spread) else float(rng.normal(0, spread))
        glands.append(_Gland(rng, y, x, radius, orientation + turn))
        if len(glands) == wanted:
            break
    return glands


def _joined(groups: list[Ellipses]) -> Ellipses:
    names = ("y", "x", "long", "short", "angle")
    return Ellipses(*(np.concatenate([getattr(group, name) for group in groups]) for name in names))


def _put(h: Array, e: Array, where: Array, new_h: Array, new_e: Array) -> None:
    np.copyto(h, new_h, where=where.astype(bool))
    np.copyto(e, new_e, where=where.astype(bool))
