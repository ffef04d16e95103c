"""Layouts and textures of generated scenes.

Source: section 2.6 of the reference notes on DBAT.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_OCTAVES = 0.3  # standard deviation of a band's spectrum, in octaves


def band_noise(periods: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise of unit variance around a period: white noise times `exp(-log2(f p)^2 / (2 0.3^2))`.

    Args:
        periods: (...) p, pixels.
        side: H = W.
        generator: Draws the white noise.

    Returns:
        (..., H, W).
    """
    white = torch.randn(*periods.shape, side, side, generator=generator)
    return filtered(white, periods)


def filtered(white: Tensor, periods: Tensor) -> Tensor:
    """White noise (..., H, W) through the band of `band_noise` with periods (...), to zero mean and unit variance."""
    side = white.shape[-1]
    rows, columns = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    frequency = (rows[:, None].square() + columns[None, :].square()).sqrt()
    octaves = (frequency.clamp_min(1e-12) * periods[..., None, None]).log2()
    band = torch.exp(-octaves.square() / (2 * _OCTAVES**2))
    noise: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * band, s=(side, side))
    return noise / noise.square().mean(dim=(-2, -1), keepdim=True).sqrt()


def voronoi(count: int, cells: int, side: int, generator: torch.Generator) -> Tensor:
    """Which of uniformly drawn points is nearest: (N, H, W) int64, numbers of cells."""
    points = torch.rand(count, cells, 2, generator=generator) * side
    axis = torch.arange(side) + 0.5
    nearest = torch.empty(count, side, side, dtype=torch.int64)
    for place, spots in enumerate(points):
        distance = (axis[:, None] - spots[:, 0, None, None]) ** 2 + (axis[None, :] - spots[:, 1, None, None]) ** 2
        nearest[place] = distance.argmin(dim=0)
    return nearest


def inside(cells: Tensor) -> Tensor:
    """Pixels (N, H, W) whose eight neighbours are all of their own cell: what is left when a border pixel is eroded."""
    padded = functional.pad(cells[:, None].float(), (1, 1, 1, 1), mode="replicate")
    lowest, highest = -functional.max_pool2d(-padded, 3, 1), functional.max_pool2d(padded, 3, 1)
    return (lowest == highest)[:, 0]
