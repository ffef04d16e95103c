"""`glyph32`: ten shapes of 32x32 pixels in colour, with pose, background, occlusion and noise, made from a seed.

Section 2.4 of the reference notes on WFN (arXiv 2210.13554). Each image has a generator of its own, seeded by (seed,
split, index), so that any of them is the same wherever it is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

SIDE = 32
SPLITS = ("train", "val", "test")

Array = npt.NDArray[np.float64]


_COLOURS = 24  # drawn for the one far enough from the background; a single one is so with a probability above 0.6
_AT_ONCE = 500
_GRID = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="xy")) - (SIDE - 1) / 2  # x, y from the middle


def make_glyphs(seed: int, split: str, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The first `count` images of a split.

    Returns:
        Images, (count, 3, 32, 32), and their classes, (count,).
    """
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    labels = np.empty(count, np.int64)
    for start in range(0, count, _AT_ONCE):
        indices = range(start, min(start + _AT_ONCE, count))
        generators = [np.random.default_rng((seed, SPLITS.index(split), index)) for index in indices]
        labels[start : indices.stop], images[start : indices.stop] = _draw(generators)
    return images, labels


def _draw(generators: list[np.random.Generator]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """One image of each generator; numbers are drawn one image after the other, and drawn upon together."""
    labels = np.array([rng.integers(len(CLASSES)) for rng in generators])
    drawn = np.array([rng.random(36 + 3 * _COLOURS) for rng in generators])
    noise = np.array([rng.standard_normal((3, SIDE, SIDE)) for rng in generators])

    def uniform(first: int, low: float, high: float, *shape: int) -> Array:
        """The numbers from place `first` on, as (n, *shape, 1, 1)."""
        part = drawn[:, first : first + int(np.prod(shape))]
        numbers: Array = low + (high - low) * part.reshape(-1, *shape, 1, 1)
        return numbers

    def along(angle: Array) -> Array:
        distance: Array = np.cos(angle) * _GRID[0] + np.sin(angle) * _GRID[1]
        return distance

    centre, scale, turn = uniform(0, -5, 5, 2), uniform(2, 6, 11, 1)[:, 0], uniform(3, 0, 2 * np.pi, 1)[:, 0]
    x, y = (_GRID[0] - centre[:, 0]) / scale, (_GRID[1] - centre[:, 1]) / scale
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    wave, phase = uniform(10, 8, 40, 3, 2), uniform(16, 0, 2 * np.pi, 3, 2)
    waves = uniform(22, 0, 0.18, 3, 2) * np.sin(2 * np.pi * along(uniform(4, 0, 2 * np.pi, 3, 2)) / wave + phase)
    background = 0.5 + waves.sum(axis=2)
    # The first colour at least 0.35 from the background's mean.
    offered = uniform(36, 0, 1, _COLOURS, 3)
    distant = np.linalg.norm(offered[..., 0, 0] - background.mean(axis=(2, 3))[:, None], axis=2) >= 0.35
    colour = offered[np.arange(len(labels)), distant.argmax(axis=1)]
    # A mild linear shading over the shape.
    shading = 1 + uniform(28, 0, 0.15, 1) * along(uniform(29, 0, 2 * np.pi, 1)) / (SIDE / 2)
    distances = np.empty_like(u)
    for label, distance in enumerate(_DISTANCES.values()):
        chosen = labels == label
        distances[chosen] = distance(u[chosen], v[chosen])
    alpha = _soft(distances * scale / 0.7)[:, None]
    image = background * (1 - alpha) + alpha * colour * shading
    # An occluding bar, 3 pixels wide, over some of them.
    across = np.abs(along(uniform(30, 0, np.pi, 1)) - uniform(31, -8, 8, 1))
    is_barred = (across < 1.5) & (uniform(32, 0, 1, 1) < 0.3)
    image = np.where(is_barred, uniform(33, 0, 1, 3), image) + 0.06 * noise
    return labels, np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _soft(f: Array) -> Array:
    """The share of a pixel inside a shape, sigmoid(-f)."""
    share: Array = 0.5 - 0.5 * np.tanh(f / 2)
    return share


def _box(u: Array, v: Array, width: float, height: float) -> Array:
    distance: Array = np.maximum(np.abs(u) - width, np.abs(v) - height)
    return distance


def _triangle(u: Array, v: Array) -> Array:
    angles = np.pi / 2 + 2 * np.pi / 3 * np.arange(3)
    distance: Array = np.max([np.cos(angle) * u + np.sin(angle) * v - 0.5 for angle in angles], axis=0)
    return distance


# Signed distance to each shape in its own coordinates, negative inside.
_DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: np.hypot(u, v) - 1,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.25,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.85,
    "triangle": _triangle,
    "plus": lambda u, v: np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95)),
    "star": lambda u, v: np.hypot(u, v) - (0.75 + 0.25 * np.cos(5 * np.arctan2(v, u))),
    "L": lambda u, v: np.minimum(_box(u + 0.6, v, 0.3, 0.95), _box(u, v - 0.6, 0.95, 0.3)),
    "bar": lambda u, v: _box(u, v, 1.0, 0.22),
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.85 - np.hypot(u - 0.45, v)),
    "two discs": lambda u, v: np.minimum(np.hypot(u - 0.5, v), np.hypot(u + 0.5, v)) - 0.42,
}
CLASSES = tuple(_DISTANCES)
