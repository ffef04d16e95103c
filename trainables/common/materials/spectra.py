"""Reflectances of materials, cameras, light, and metamers: spectra that a camera cannot tell apart.

Source: section 2.5 of the reference notes on MatSpectNet. All spectra have the 31 bands of `WAVELENGTHS`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Spectra = npt.NDArray[np.float64]

WAVELENGTHS = np.arange(400.0, 701.0, 10.0)  # nm
BANDS = len(WAVELENGTHS)


def _hump(middle: float, width: float) -> Spectra:
    return np.asarray(np.exp(-((WAVELENGTHS - middle) ** 2) / (2 * width**2)))


def _edge(middle: float, width: float) -> Spectra:
    return 1 / (1 + np.exp(-(WAVELENGTHS - middle) / width))


def _fall(length: float) -> Spectra:
    return np.exp(-(WAVELENGTHS - 400) / length)


_ALONG = (WAVELENGTHS - 400) / 300

REFLECTANCES: dict[str, Spectra] = {
    "foliage": 0.045 + 0.105 * _hump(552, 24) - 0.012 * _hump(676, 16) + 0.40 * _edge(712, 8.5),
    "fabric": 0.10 + 0.10 * _hump(520, 38) + 0.45 * _edge(675, 14),
    "wood": 0.09 + 0.40 * _edge(590, 55),
    "plastic": 0.06 + 0.55 * _edge(585, 9),
    "glass": 0.09 + 0.035 * _hump(530, 60) - 0.01 * _edge(640, 20),
    "water": 0.02 + 0.07 * _fall(70) + 0.02 * _hump(490, 40),
    "soil": 0.06 + 0.22 * _ALONG**1.3,
    "rubber": 0.045 + 0.005 * _ALONG,
    "skin": 0.12 + 0.43 * _edge(598, 24) + 0.07 * _hump(510, 40) - 0.05 * _hump(545, 12) - 0.06 * _hump(577, 10),
    "food": 0.07 + 0.20 * _edge(560, 18) + 0.30 * _edge(620, 20) - 0.05 * _hump(545, 12) - 0.05 * _hump(577, 10),
    "metal": 0.42 - 0.13 * _fall(30),
    "stone": 0.32 - 0.13 * _fall(90),
    "concrete": 0.355 - 0.155 * _fall(55),
    "paper": 0.52 - 0.26 * np.exp(-(((WAVELENGTHS - 400) / 22) ** 1.5)) + 0.06 * _hump(445, 16),
    "plaster": 0.742 - 0.385 * _fall(22),
    "ceramic": 0.56 - 0.15 * _fall(60) + 0.02 * _edge(600, 40),
    "asphalt": 0.134 - 0.045 * _fall(50),
}
"""Each of the 17 materials' own reflectance (31,) in [0, 1]."""

PAIRS = (("foliage", "fabric"), ("wood", "plastic"), ("glass", "water"), ("soil", "rubber"))
"""The second of each becomes a metamer of the first in the generated scenes."""


def camera(shift: float = 0.0, width: float = 1.0) -> Spectra:
    """Sensitivities (3, 31) of a camera's red, green and blue.

    Args:
        shift: nm by which all peaks are moved.
        width: By what all widths are multiplied.
    """

    def hump(middle: float, spread: float) -> Spectra:
        return _hump(middle + shift, spread * width)

    red = 0.46 * hump(600, 30) + 0.05 * hump(450, 30)
    return np.stack([red, 0.60 * hump(535, 42), 0.52 * hump(455, 32)])


def planck(kelvin: float) -> Spectra:
    """Relative power (31,) of a black body at a temperature, 1 at 560 nm."""

    def power(nm: Spectra | float) -> Spectra:
        metres = np.asarray(nm) * 1e-9
        return np.asarray(metres**-5 / np.expm1(1.438777e-2 / (metres * kelvin)))

    return np.asarray(power(WAVELENGTHS) / power(560.0))


def response(sensitivity: Spectra, light: Spectra) -> Spectra:
    """M (3, 31): what a camera sees of a reflectance under a light; rows sum to one, so that white is (1, 1, 1)."""
    matrix = sensitivity * light
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))


def seen(matrix: Spectra) -> Spectra:
    """P (31, 31), the projector on what a response M (3, 31) sees; `1 - P` is the projector on what it does not."""
    return np.linalg.pinv(matrix) @ matrix


def metamer(first: Spectra, second: Spectra, matrix: Spectra) -> Spectra:
    """A reflectance (31,) with the colour of the first, and otherwise the second's spectrum as bright as the first.

    `P a + (1 - P) (g b)`, where `g` makes the mean response to b that to a.

    Args:
        first: a (31,).
        second: b (31,).
        matrix: M (3, 31), to which both look the same; to another they do not.
    """
    gain = (matrix @ first).mean() / (matrix @ second).mean()
    projector = seen(matrix)
    mixed: Spectra = projector @ first + gain * second - projector @ (gain * second)
    return mixed


def angle(first: Spectra, second: Spectra) -> float:
    """Spectral angle between two spectra, radians."""
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.arccos(np.clip(cosine, -1, 1)))
