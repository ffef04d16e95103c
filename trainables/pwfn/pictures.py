"""What a trial shows: where each weight lies between its value and its sigma, and how much each centre is used."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.common.drawing import lettering, write
from trainables.common.quantisation.fixing import Vector
from trainables.common.quantisation.measures import distinct, entropy
from trainables.pwfn.clustering import SIGMA_FLOOR
from trainables.pwfn.rounds import Fixed

_WIDTH, _HEIGHT = 640, 320  # pixels of a panel
_LEFT, _TOP, _BOTTOM, _RIGHT = 52, 18, 16, 14
_FREE = (0.80, 0.80, 0.80)
_MOST = 50_000  # points of a picture
_GOLDEN = 0.61803398875


def palette(count: int) -> Tensor:
    """(count, 3) colours; those of neighbours are far apart."""
    turns = [(index * _GOLDEN) % 1.0 for index in range(count)]
    colours = [colorsys.hsv_to_rgb(turn, 0.85, 0.55 + 0.35 * (i % 2)) for i, turn in enumerate(turns)]
    return torch.tensor(colours).reshape(count, 3)


def draw_weights(mu: Vector, sigma: Vector, after: Fixed) -> Tensor:
    """Every weight by its value (across) and sigma (up, logarithmic), in the colour of the centre it was given.

    Weights without a centre are grey; of many, an even selection is drawn.

    Args:
        mu: (N,) before the round.
        sigma: (N,), which distances were measured in.
        after: The weights after it.

    Returns:
        (3, height, width) in [0, 1].
    """
    step = -(-len(mu) // _MOST)
    mu, sigma, centre, is_fixed = mu[::step], sigma[::step], after.mu[::step], after.is_fixed[::step]
    reach = float(np.abs(mu).max()) or 1.0
    heights = np.log10(np.maximum(sigma, SIGMA_FLOOR))
    # At the lower end lie all those without any freedom.
    moving = heights[sigma > SIGMA_FLOOR]
    high = float(heights.max())
    low = min(float(np.quantile(moving, 0.02)) if len(moving) else high, high - 1)
    across = _place(mu, -reach, reach, _WIDTH)
    up = _HEIGHT - 1 - _place(heights, low, high, _HEIGHT)
    panel = torch.ones(3, _HEIGHT, _WIDTH)
    panel[:, up[~is_fixed], across[~is_fixed]] = torch.tensor(_FREE)[:, None]
    values, which = np.unique(centre[is_fixed], return_inverse=True)
    panel[:, up[is_fixed], across[is_fixed]] = palette(len(values))[torch.from_numpy(which)].T
    title = f"log sigma by weight. {100 * is_fixed.mean():.1f}% fixed to {len(values)} centres"
    return _framed(panel, title, (f"{-reach:.2f}", "0", f"{reach:.2f}"), (f"{10**high:.2g}", f"{10**low:.2g}"))


def draw_codebook(weights: Vector) -> Tensor:
    """How many weights have each value: bars on a logarithmic scale, at the value.

    Args:
        weights: (N,) of few distinct values.

    Returns:
        (3, height, width) in [0, 1].
    """
    values, counts = distinct(weights)
    reach = float(np.abs(values).max()) or 1.0
    across = _place(values, -reach, reach, _WIDTH)
    tall = np.log10(counts + 1) / np.log10(counts.max() + 1)
    panel = torch.ones(3, _HEIGHT, _WIDTH)
    for place, height, colour in zip(across, (tall * (_HEIGHT - 1)).astype(int), palette(len(values)), strict=True):
        panel[:, _HEIGHT - 1 - height :, max(0, place - 1) : place + 1] = colour[:, None, None]
    title = f"use of {len(values)} values. {entropy(counts):.2f} bits"
    return _framed(panel, title, (f"{-reach:.2f}", "0", f"{reach:.2f}"), (f"{counts.max()}", "0"))


def _place(values: npt.NDArray[np.floating], low: float, high: float, size: int) -> npt.NDArray[np.int64]:
    """Pixels of values between two ends."""
    pixels: npt.NDArray[np.int64] = ((values - low) / (high - low) * (size - 1)).round().astype(np.int64)
    return pixels.clip(0, size - 1)


def _framed(panel: Tensor, title: str, across: tuple[str, str, str], up: tuple[str, str]) -> Tensor:
    """A panel with a title, and labels at its left, middle and right, and at its upper and lower end."""
    canvas = torch.full((3, _TOP + _HEIGHT + _BOTTOM, _LEFT + _WIDTH + _RIGHT), 1.0)
    canvas[:, _TOP - 1 : _TOP + _HEIGHT + 1, _LEFT - 1 : _LEFT + _WIDTH + 1] = 0.6
    canvas[:, _TOP : _TOP + _HEIGHT, _LEFT : _LEFT + _WIDTH] = panel
    write(canvas, lettering(title), 5, _LEFT)
    for text, share in zip(across, (0.0, 0.5, 1.0), strict=True):
        label = lettering(text)
        column = _LEFT + int(share * _WIDTH) - label.shape[1] // 2
        write(canvas, label, _TOP + _HEIGHT + 5, min(max(0, column), canvas.shape[2] - label.shape[1]))
    for text, row in zip(up, (_TOP, _TOP + _HEIGHT - 7), strict=True):
        label = lettering(text)
        write(canvas, label, row, max(0, _LEFT - 4 - label.shape[1]))
    return canvas
