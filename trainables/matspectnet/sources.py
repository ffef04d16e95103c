"""Where the spectra that the segmentation gets come from: recovered, true or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from trainables.matspectnet.data import MatSpectNetDataConfig, true_scenes
from trainables.matspectnet.evaluation import Judge
from trainables.matspectnet.model import LEAST, Translation

Network = Callable[[Tensor, Tensor | None], Tensor]
"""Images (B, 3, S, S) and spectra (B, 31, S, S), if it takes any -> logits (B, K, S, S)."""


class Source(Protocol):
    """What a segmentation is trained and judged with."""

    def training(self, x: Tensor, chosen: Tensor) -> Tensor | None:
        """Spectra (B, 31, S, S) of training images (B, 3, S, S) and their numbers (B,)."""

    def judged(self, judge: Judge, network: Network, split: str) -> dict[str, float]:
        """Accuracies on a split: validation or test."""


class NoSpectra:
    """Images alone."""

    def training(self, x: Tensor, chosen: Tensor) -> None:
        """See `Source`."""

    def judged(self, judge: Judge, network: Network, split: str) -> dict[str, float]:
        """See `Source`."""
        return judge.segmentation(lambda x: network(x, None), split)


class RecoveredSpectra:
    """Spectra of a trained recovery, which learns nothing any more.

    Args:
        translation: The recovery, and the camera if recovered spectra have to fit it; frozen from now on.
    """

    def __init__(self, translation: Translation):
        self._translation = translation.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """RGB (B, 3, H, W) -> spectra (B, 31, H, W)."""
        spectra, _ = self._translation.recovered(x)
        return spectra.clamp_min(LEAST)

    def training(self, x: Tensor, chosen: Tensor) -> Tensor:
        """See `Source`."""
        return self(x)

    def judged(self, judge: Judge, network: Network, split: str) -> dict[str, float]:
        """See `Source`."""
        return judge.segmentation(lambda x: network(x, self(x)), split)


class TrueSpectra:
    """The true spectra of generated scenes, which nobody has of real images: an oracle.

    Args:
        config: Which scenes.
        device: Where networks are.
    """

    def __init__(self, config: MatSpectNetDataConfig, device: torch.device):
        self._scenes = {split: true_scenes(config, split) for split in ("train", "validation", "test")}
        self._device = device

    def training(self, x: Tensor, chosen: Tensor) -> Tensor:
        """See `Source`."""
        spectra = self._scenes["train"].spectra
        assert spectra is not None
        return spectra[chosen.cpu()].to(self._device)

    def judged(self, judge: Judge, network: Network, split: str) -> dict[str, float]:
        """See `Source`."""
        return judge.with_spectra(network, self._scenes[split], split)
