"""What trials and the generator show: Lund planes, and what the learned variables correlate with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from trainables.common.drawing import lettering, write
from trainables.jetlov.declustering import LUND
from trainables.jetlov.trees import Trees

_X, _Y = (0.0, 6.0), (-4.0, 6.0)  # ln 1/Delta, ln kt
_BINS = (48, 50)
_ZOOM, _MARGIN = 6, 26  # pixels
_CELL = 44


def primary(trees: Trees) -> npt.NDArray[np.bool_]:
    """Whether each node is reached by harder branches alone, (N,)."""
    place = np.arange(len(trees.parent)) - np.repeat(trees.offsets[:-1], trees.counts)
    # In depth-first order the harder branch's node follows at once; a softer one may too, if the harder has no node.
    ln_pt = np.log(np.maximum(trees.raw[:, 0] + trees.raw[:, 4], 1e-9))
    result = np.zeros(len(place), dtype=bool)
    result[trees.offsets[:-1]] = trees.raw[trees.offsets[:-1], 0] > 0
    starts = np.repeat(trees.offsets[:-1], trees.counts)
    for depth in range(1, int(trees.counts.max())):
        rows = np.flatnonzero(place == depth)
        up = starts[rows] + trees.parent[rows]
        is_harder = np.abs(np.exp(ln_pt[rows]) - trees.raw[up, 0]) <= np.abs(np.exp(ln_pt[rows]) - trees.raw[up, 4])
        result[rows] = result[up] & is_harder & (trees.parent[rows] == depth - 1)
    return result


def lund_density(trees: Trees) -> npt.NDArray[np.float64]:
    """Splittings a jet and unit area of the primary Lund plane, (bins of ln 1/Delta, bins of ln kt)."""
    chosen = primary(trees)
    counts, _, _ = np.histogram2d(-trees.lund[chosen, 1], trees.lund[chosen, 4], bins=_BINS, range=[_X, _Y])
    area = (_X[1] - _X[0]) / _BINS[0] * (_Y[1] - _Y[0]) / _BINS[1]
    return np.asarray(counts / len(trees) / area)


def draw_lund_planes(planes: dict[str, npt.NDArray[np.float64]]) -> Tensor:
    """Densities side by side, on one scale; (3, height, width) in [0, 1]."""
    most = max(float(np.quantile(plane, 0.995)) for plane in planes.values()) or 1.0
    tiles = []
    for name, plane in planes.items():
        share = torch.from_numpy(np.clip(plane / most, 0, 1)).float().T.flip(0)
        picture = functional.interpolate(_heat(share)[None], scale_factor=_ZOOM)[0]
        tile = functional.pad(picture, (_MARGIN, 8, 16, 24), value=1.0)
        write(tile, lettering(name), 4, _MARGIN)
        low = tile.shape[1] - 20
        for value in range(int(_X[0]), int(_X[1]) + 1, 2):
            write(tile, lettering(str(value)), low, _MARGIN + int(value / (_X[1] - _X[0]) * (picture.shape[2] - 6)))
        for value in range(int(_Y[0]), int(_Y[1]) + 1, 2):
            row = 16 + int((_Y[1] - value) / (_Y[1] - _Y[0]) * (picture.shape[1] - 7))
            write(tile, lettering(f"{value:2d}"), row, 6)
        write(tile, lettering("-ln Delta right. ln kt up"), low + 10, _MARGIN)
        tiles.append(tile)
    return torch.cat(tiles, dim=2)


def draw_correlations(table: Tensor, r2: list[float]) -> Tensor:
    """Learned variables (rows) against the Lund variables: red positive, blue negative; (3, height, width)."""
    rows, columns = table.shape
    canvas = torch.ones(3, 18 + _CELL * rows, 60 + _CELL * (columns + 1) + 8)
    for column, name in enumerate([*LUND, "R2"]):
        label = lettering(name.removeprefix("ln ")[:6] if name != "R2" else name)
        write(canvas, label, 6, 64 + column * _CELL)
    for row in range(rows):
        top = 18 + row * _CELL
        write(canvas, lettering(f"learned {row}"[:9]), top + _CELL // 2 - 4, 4)
        for column, value in enumerate([*table[row].tolist(), r2[row]]):
            colour = torch.tensor([1.0, 1 - abs(value), 1 - abs(value)] if value > 0 else [1 + value, 1 + value, 1.0])
            if column == columns:
                colour = torch.full((3,), 0.92)
            left = 60 + column * _CELL
            canvas[:, top + 1 : top + _CELL - 1, left + 1 : left + _CELL - 1] = colour.clamp(0, 1)[:, None, None]
            write(canvas, lettering(f"{value:.2f}"), top + _CELL // 2 - 4, left + 6)
    return canvas


def _heat(share: Tensor) -> Tensor:
    """White through orange to dark red, (3, h, w)."""
    stops = torch.tensor([[1.0, 1.0, 1.0], [0.99, 0.78, 0.42], [0.87, 0.30, 0.14], [0.40, 0.02, 0.10]])
    place = share * (len(stops) - 1)
    low = place.long().clamp_max(len(stops) - 2)
    rest = (place - low)[..., None]
    return (stops[low] * (1 - rest) + stops[low + 1] * rest).movedim(-1, 0)
