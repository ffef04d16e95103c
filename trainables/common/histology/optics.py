"""The microscope of the generated tissue: where its pixels lie in the world, and how stain becomes colour.

Source: section 2.4 of the reference notes on ADS_UNet ("imaging model"). Lengths are in µm, angles in radians.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

SUPERSAMPLING = 3  # sub-pixels along a pixel's side; odd, so that one of them is its centre
HAEMATOXYLIN = (0.650, 0.704, 0.286)  # optical density of R, G, B (Ruifrok and Johnston)
EOSIN = (0.072, 0.990, 0.105)
_PSF = 0.4  # standard deviation of the point spread, µm
_NOISE = 0.015  # standard deviation of the sensor's noise, of intensities in [0, 1]


@dataclass(frozen=True)
class Grid:
    """The sub-pixels of a square image, in the world.

    Attributes:
        size: Pixels along a side.
        mpp: µm along a pixel's side.
        phi: By how much the stage is turned, counter-clockwise.
    """

    size: int
    mpp: float = 1.0
    phi: float = 0.0

    @property
    def step(self) -> float:
        """µm between two sub-pixels."""
        return self.mpp / SUPERSAMPLING

    @functools.cached_property
    def axis(self) -> Array:
        """Where rows, and columns, of sub-pixels lie around the image's centre (n,)."""
        n = self.size * SUPERSAMPLING
        return (np.arange(n) - (n - 1) / 2) * self.step

    @functools.cached_property
    def turn(self) -> tuple[float, float]:
        """Cosine and sine of `phi`, exact for quarter turns."""
        cosine, sine = (round(v, 15) for v in (math.cos(self.phi), math.sin(self.phi)))
        return cosine, sine

    @functools.cached_property
    def world(self) -> tuple[Array, Array]:
        """World coordinates y and x of every sub-pixel, (n, n) each."""
        cosine, sine = self.turn
        y, x = self.axis[:, None], self.axis[None, :]
        return cosine * y + sine * x, cosine * x - sine * y

    def image_of(self, y: Array, x: Array) -> tuple[Array, Array]:
        """Image coordinates, in µm around the centre, of points or directions of the world."""
        cosine, sine = self.turn
        return cosine * y - sine * x, sine * y + cosine * x


@dataclass(frozen=True)
class Waves:
    """A stationary texture of unit variance: a sum of plane waves `cos(a y + b x + p)`.

    Attributes:
        a: (m,) wave numbers along y, radians per µm.
        b: (m,) the same along x.
        p: (m,) phases.
    """

    a: Array
    b: Array
    p: Array

    @classmethod
    def draw(
        cls, rng: np.random.Generator, wavelength: float, direction: float | None = None, count: int = 40
    ) -> Waves:
        """Waves of about one length.

        Args:
            rng: Draws them.
            wavelength: µm.
            direction: Of fibres, along which the texture hardly changes; None: of no direction.
            count: How many.
        """
        k = 2 * math.pi / (wavelength * np.exp(rng.normal(0, 0.25, count)))
        if direction is None:
            theta = rng.uniform(0, 2 * math.pi, count)
        else:
            theta = direction + math.pi / 2 + rng.uniform(-0.12, 0.12, count)
        return cls(k * np.sin(theta), k * np.cos(theta), rng.uniform(0, 2 * math.pi, count))

    def on(self, grid: Grid) -> Array:
        """Its values at the sub-pixels (n, n).

        The grid is affine in rows and columns, so that `cos(u + v) = cos u cos v - sin u sin v` makes two matrix
        products of it.
        """
        cosine, sine = grid.turn
        rows = np.outer(grid.axis, cosine * self.a - sine * self.b) + self.p
        columns = np.outer(sine * self.a + cosine * self.b, grid.axis)
        total = np.cos(rows) @ np.cos(columns) - np.sin(rows) @ np.sin(columns)
        return np.asarray(total / math.sqrt(len(self.a) / 2))


def photograph(
    haematoxylin: Array, eosin: Array, grid: Grid, difficulty: float = 0.0, rng: np.random.Generator | None = None
) -> Bytes:
    """Concentrations as an 8-bit RGB image: Beer and Lambert's law, point spread, pixels, noise.

    Args:
        haematoxylin: Concentration at the sub-pixels (n, n), at least 0.
        eosin: The same.
        grid: The sub-pixels.
        difficulty: In [0, 1]: makes point spread and noise up to three times as large.
        rng: Draws the noise; None: there is none.

    Returns:
        (size, size, 3).
    """
    from scipy.ndimage import gaussian_filter1d

    density = np.multiply.outer(haematoxylin, HAEMATOXYLIN) + np.multiply.outer(eosin, EOSIN)
    intensity: Any = np.exp(-density.astype(np.float32))
    sigma = _PSF * (1 + 2 * difficulty) / grid.step
    for axis in (0, 1):
        intensity = gaussian_filter1d(intensity, sigma, axis=axis, mode="nearest", truncate=3.0)
    size, ss = grid.size, SUPERSAMPLING
    image = intensity.reshape(size, ss, size, ss, 3).mean(axis=(1, 3))
    if rng is not None:
        image = image + rng.normal(0, _NOISE * (1 + 2 * difficulty), image.shape)
    return np.asarray((image.clip(0, 1) * 255).round(), dtype=np.uint8)


def centres(labels: Any) -> Any:
    """The label of each pixel, which is its central sub-pixel's: (n, n) -> (size, size)."""
    return labels[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
