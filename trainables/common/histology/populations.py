"""Populations of cells: ellipses spread over a field without overlap, and drawn at any magnification.

Source: section 2.4 of the reference notes on ADS_UNet. Lengths are in µm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from trainables.common.histology.optics import Array, Grid

Ints = npt.NDArray[np.int64]

_SIZE_SPREAD = 0.12  # of the logarithm of the size
NOTHING = -1.0  # depth where there is no object


@dataclass(frozen=True)
class Ellipses:
    """Objects of a field.

    Attributes:
        y, x: (n,) centres.
        long, short: (n,) semi-axes.
        angle: (n,) direction of the long axis, from x towards y.
    """

    y: Array
    x: Array
    long: Array
    short: Array
    angle: Array

    def __len__(self) -> int:
        return len(self.y)

    def where(self, keep: npt.NDArray[np.bool_]) -> Ellipses:
        """Some of them."""
        return Ellipses(*(getattr(self, field.name)[keep] for field in fields(self)))

    def on(self, grid: Grid, reach: float = 1.0) -> tuple[Array, Ints]:
        """How deep each sub-pixel lies in an object: `t = 1 - normalised elliptic radius`, of the deepest.

        Args:
            grid: The sub-pixels.
            reach: Normalised radius up to which t is known; beyond it is `NOTHING`.

        Returns:
            t (n, n), at most 1, positive inside; and the object's index (n, n), -1 where there is none.
        """
        n = len(grid.axis)
        if not len(self):
            return np.full((n, n), NOTHING), np.full((n, n), -1)
        half = math.ceil(reach * float(self.long.max()) / grid.step) + 1
        y, x = grid.image_of(self.y, self.x)
        row, column = (np.rint((v - grid.axis[0]) / grid.step).astype(np.int64) for v in (y, x))
        seen = np.flatnonzero((row > -half) & (row < n + half) & (column > -half) & (column < n + half))
        y, x, row, column = y[seen], x[seen], row[seen], column[seen]
        dy, dx = grid.image_of(np.sin(self.angle[seen]), np.cos(self.angle[seen]))
        long, short = self.long[seen], self.short[seen]
        # A margin on each side of the canvas makes every window lie inside.
        side = n + 4 * half + 2
        offset = np.arange(-half, half + 1)
        from_y = (row[:, None] + offset) * grid.step + grid.axis[0] - y[:, None]
        from_x = (column[:, None] + offset) * grid.step + grid.axis[0] - x[:, None]
        # Of each window; squares of lengths, as roots are dear.
        along = (from_y * (dy / long)[:, None])[:, :, None] + (from_x * (dx / long)[:, None])[:, None, :]
        across = (from_y * (dx / short)[:, None])[:, :, None] - (from_x * (dy / short)[:, None])[:, None, :]
        along *= along
        across *= across
        along += across
        square = along.ravel()
        margin = 2 * half + 1
        places = ((row[:, None] + offset + margin) * side)[:, :, None] + (column[:, None] + offset + margin)[:, None, :]
        near = np.flatnonzero(square <= reach * reach)
        depth, places = 1 - np.sqrt(square[near]), places.ravel()[near]
        owner = seen[near // len(offset) ** 2]
        canvas, owners = np.full(side * side, NOTHING), np.full(side * side, -1)
        np.maximum.at(canvas, places, depth)
        deepest = canvas[places] == depth
        owners[places[deepest]] = owner[deepest]
        inside = slice(margin, margin + n)
        return canvas.reshape(side, side)[inside, inside], owners.reshape(side, side)[inside, inside]


def scattered(rng: np.random.Generator, density: float, field: float, spacing: float) -> tuple[Array, Array]:
    """Poisson points of a square field, thinned in their order so that no two are closer than `spacing`.

    Args:
        rng: Draws them.
        density: Points per µm² before they are thinned.
        field: Side of the field around the origin.
        spacing: Least distance.

    Returns:
        y and x.
    """
    count = rng.poisson(density * field * field)
    return thinned(rng.uniform(-field / 2, field / 2, (count, 2)), spacing)


def thinned(points: Array, spacing: float) -> tuple[Array, Array]:
    """Leaves out every point (n, 2) that is closer than `spacing` to one before it that was kept: y and x."""
    from scipy.spatial import cKDTree

    keep = np.ones(len(points), dtype=bool)
    if len(points):
        pairs = cKDTree(points).query_pairs(spacing, output_type="ndarray")
        # By the later point of each pair: whether the earlier one stays is known by then.
        for early, late in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
            if keep[early]:
                keep[late] = False
    return points[keep, 0], points[keep, 1]


def cells(
    rng: np.random.Generator,
    places: tuple[Array, Array],
    diameter: float | tuple[float, float],
    aspect: tuple[float, float],
    angle: tuple[float, float] | None = None,
) -> Ellipses:
    """Ellipses at points: of equal area as circles of a diameter that varies by an eighth.

    Args:
        rng: Draws them.
        places: y and x.
        diameter: Mean, or a range to draw it from.
        aspect: Range of long over short.
        angle: Mean direction and half its range; None: any.
    """
    y, x = places
    n = len(y)
    low, high = diameter if isinstance(diameter, tuple) else (diameter, diameter)
    half = rng.uniform(low, high, n) / 2 * np.exp(rng.normal(0, _SIZE_SPREAD, n))
    q = np.sqrt(rng.uniform(*aspect, n))
    turn = rng.uniform(0, math.pi, n) if angle is None else angle[0] + rng.uniform(-angle[1], angle[1], n)
    return Ellipses(y, x, half * q, half / q, turn)
