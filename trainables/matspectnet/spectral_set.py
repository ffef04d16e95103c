"""Pairs of an RGB image and its spectra, of which the same window is cut from both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.matspectnet.normalisation import Range, value_range

Read = Callable[[int, int, int, int], Tensor]
"""Spectra (31, height, width) of a window: its top, left, height and width."""


@dataclass(frozen=True)
class Scene:
    """One pair.

    Attributes:
        name: Of the scene.
        rgb: (3, H, W), bytes or in [0, 1].
        read: Its spectra.
        clean: (3, H, W) the image without noise, in the unit of `rgb`; None: there is none.
    """

    name: str
    rgb: Tensor
    read: Read
    clean: Tensor | None = None

    @classmethod
    def of(cls, name: str, rgb: Tensor, cube: Tensor, clean: Tensor | None = None) -> Scene:
        """A scene whose spectra (31, H, W) are in memory."""
        return cls(name, rgb, lambda top, left, h, w: cube[:, top : top + h, left : left + w], clean)


class SpectralSet:
    """Scenes for training or validation.

    Args:
        scenes: At least one.
        normalise: See `normalisation.value_range`.
    """

    def __init__(self, scenes: Sequence[Scene], normalise: str):
        self._scenes = scenes
        self._ranges: list[Range] = [value_range(scene.rgb, normalise) for scene in scenes]
        self._shortest = min(min(scene.rgb.shape[1:]) for scene in scenes)

    def __len__(self) -> int:
        return len(self._scenes)

    def whole(self, index: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """One pair as a batch of one: RGB (1, 3, H, W), spectra (1, 31, H, W), RGB without noise.

        Args:
            index: Which.
            most: Longest side; of larger images the middle is given.
        """
        sides = self._scenes[index].rgb.shape[1:]
        height, width = (min(side, most) for side in sides)
        top, left = ((side - min(side, most)) // 2 for side in sides)
        x, spectra, clean = self._window(index, top, left, height, width)
        return x[None], spectra[None], clean[None]

    def crops(self, chosen: Tensor, draws: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Windows of scenes, turned and mirrored, each the same in all three.

        Args:
            chosen: (B,) numbers of scenes.
            draws: (B, 5) uniform in [0, 1): where the window is, the quarter turns, and both mirrorings.
            side: Of the window, or the shortest side of any scene if that is less.

        Returns:
            RGB (B, 3, side, side), spectra (B, 31, side, side), RGB without noise.
        """
        side = min(side, self._shortest)
        parts = [self._crop(int(index), draw.tolist(), side) for index, draw in zip(chosen, draws, strict=True)]
        x, spectra, clean = (torch.stack(part) for part in zip(*parts, strict=True))
        return x, spectra, clean

    def _crop(self, index: int, draw: list[float], side: int) -> list[Tensor]:
        height, width = self._scenes[index].rgb.shape[1:]
        top, left = int(draw[0] * (height - side + 1)), int(draw[1] * (width - side + 1))
        mirrored = [axis for axis, value in ((1, draw[3]), (2, draw[4])) if value < 0.5]
        window = self._window(index, top, left, side, side)
        return [part.rot90(int(4 * draw[2]), (1, 2)).flip(mirrored) for part in window]

    def _window(self, index: int, top: int, left: int, height: int, width: int) -> list[Tensor]:
        scene, scale = self._scenes[index], self._ranges[index]
        cut = (slice(None), slice(top, top + height), slice(left, left + width))
        clean = scene.rgb if scene.clean is None else scene.clean
        # The image without noise at the exposure of the one with it.
        return [scale(scene.rgb[cut]), scene.read(top, left, height, width), scale(clean[cut])]
