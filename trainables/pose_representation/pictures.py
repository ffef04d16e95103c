"""The correlation study as a picture: three labelled heat maps, joints by joints."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.common.drawing import lettering, write
from trainables.common.pose.skeleton import JOINTS, SUBSETS
from trainables.pose_representation.evaluation import Correlations

_CELL = 13  # pixels
_MARGIN = 68  # for the longest label
_TITLE, _BAR, _GAP = 14, 26, 14
_BETWEEN = torch.tensor([0.55, 0.55, 0.55])
# From nothing to most, evenly spaced.
_COLOURS = torch.tensor(
    [
        [1.0, 1.0, 1.0],
        [0.99, 0.85, 0.55],
        [0.95, 0.55, 0.30],
        [0.75, 0.20, 0.33],
        [0.40, 0.06, 0.38],
        [0.10, 0.02, 0.18],
    ]
)


def colours(values: Tensor) -> Tensor:
    """Values in [0, 1] of any shape (...) as colours (3, ...)."""
    place = values.clamp(0, 1) * (len(_COLOURS) - 1)
    below = place.floor().long().clamp_max(len(_COLOURS) - 2)
    share = (place - below)[..., None]
    return ((1 - share) * _COLOURS[below] + share * _COLOURS[below + 1]).movedim(-1, 0)


def draw_correlations(found: Correlations) -> Tensor:
    """The three tables side by side; rows are depths, columns image positions, lines divide the five parts.

    Returns:
        (3, height, width) in [0, 1].
    """
    panels = [
        _panel("influence of image on depth", found.influence),
        _panel("learned correlation", found.learned),
        _panel("learned minus real", found.induced),
    ]
    gap = torch.ones(3, panels[0].shape[1], _GAP)
    return torch.cat([piece for panel in panels for piece in (gap, panel)] + [gap], dim=2)


def _panel(title: str, table: Tensor) -> Tensor:
    table = table.detach().float().cpu()
    joints = len(table)
    most = float(table.max())
    size = joints * _CELL
    top = _TITLE + _MARGIN
    canvas = torch.ones(3, top + size + _BAR, _MARGIN + size)
    squares = colours(table / (most or 1.0)).repeat_interleave(_CELL, 1).repeat_interleave(_CELL, 2)
    canvas[:, top : top + size, _MARGIN:] = squares
    subset = SUBSETS[joints]
    legs = len(subset.two_parts["legs"])
    for part in subset.five_parts.values():
        line = part[0] * _CELL
        width = 2 if part[0] == legs else 1
        if line:
            canvas[:, top + line - 1 : top + line - 1 + width, _MARGIN:] = _BETWEEN[:, None, None]
            canvas[:, top : top + size, _MARGIN + line - 1 : _MARGIN + line - 1 + width] = _BETWEEN[:, None, None]
    write(canvas, lettering(title), 2, _MARGIN)
    for place, joint in enumerate(subset.ids):
        label = lettering(_short(JOINTS[joint].name))
        middle = place * _CELL + (_CELL - 7) // 2
        write(canvas, label, top + middle, _MARGIN - label.shape[1] - 2)
        # Turned by a quarter, read upwards.
        upright = label.T.flip(0)
        write(canvas, upright, top - len(upright) - 2, _MARGIN + middle)
    bar = colours(torch.linspace(0, 1, size)).unsqueeze(1).expand(3, 8, size)
    canvas[:, top + size + 5 : top + size + 13, _MARGIN:] = bar
    high = lettering(f"{most:.2f}")
    write(canvas, lettering("0"), top + size + 16, _MARGIN)
    write(canvas, high, top + size + 16, _MARGIN + size - high.shape[1])
    return canvas


def _short(name: str) -> str:
    """`right shoulder` -> `r shoulder`; `head top` -> `head`."""
    first, _, second = name.partition(" ")
    return f"{first[0]} {second}" if first in ("left", "right") else first
