"""The domain part: discriminators between two sets of images, and the pool of fakes that they are shown.

Source: section 3.3 of the reference notes on MatSpectNet (arXiv 2307.11466); PatchGAN as in Zhu et al., "CycleGAN",
least squares as in Mao et al., "LSGAN".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pharos.run import Epoch

_SLOPE = 0.2


class PatchDiscriminator(nn.Sequential):
    """Judges patches: 4x4 convolutions of which the first three halve the resolution; a patch of the paper is 70x70.

    Instance norm, so that no image's score depends on the others of its batch.

    Args:
        channels: Of the images.
        width: Channels of the first layer.
    """

    def __init__(self, channels: int, width: int = 64):
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for level, stride in enumerate((2, 2, 1)):
            inward, outward = width * 2**level, width * 2 ** (level + 1)
            layers += [
                nn.Conv2d(inward, outward, 4, stride=stride, padding=1, bias=False),
                nn.InstanceNorm2d(outward, affine=True),
                nn.LeakyReLU(_SLOPE),
            ]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


class PixelDiscriminator(nn.Sequential):
    """Judges every pixel by itself.

    Args:
        channels: Of the features.
        width: Channels of the first layer.
    """

    def __init__(self, channels: int, width: int = 64):
        super().__init__(
            nn.Conv2d(channels, width, 1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(width, 2 * width, 1, bias=False),
            nn.InstanceNorm2d(2 * width, affine=True),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(2 * width, 1, 1),
        )


class Discriminators(nn.ModuleDict):
    """One discriminator for each kind of image."""

    def forward(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images (B, C, H, W) by kind -> scores (B, 1, h, w) by kind."""
        return {kind: self[kind](image) for kind, image in images.items()}


def generator_adversarial(scores: Mapping[str, Tensor]) -> Tensor:
    """Sum over kinds of the mean squared distance of fakes' scores to 1."""
    return torch.stack([(score.float() - 1).square().mean() for score in scores.values()]).sum()


def discriminator_adversarial(real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> Tensor:
    """Sum over kinds of half the mean squared distances of real scores to 1 and of fakes' to 0."""
    terms = [0.5 * ((real[kind].float() - 1).square().mean() + fake[kind].float().square().mean()) for kind in real]
    return torch.stack(terms).sum()


def accuracy(real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> Tensor:
    """Share of scores on the right side of 0.5, over kinds: near a half the domains cannot be told apart."""
    hits = [((real[kind] > 0.5).float().mean() + (fake[kind] < 0.5).float().mean()) / 2 for kind in real]
    return torch.stack(hits).mean()


class ImagePool:
    """Fakes of earlier steps of an epoch, half of which stand in for the present ones.

    Every place in the batch has its own share of the pool, so that it is the same however many workers there are.

    Args:
        size: Fakes that it holds.
        batch: Samples of a batch, over all workers.
        epoch: Draws which fakes are exchanged.
    """

    def __init__(self, size: int, batch: int, epoch: Epoch):
        self._depth = math.ceil(size / batch)
        self._epoch = epoch
        self._held: list[dict[str, Tensor]] = []

    def exchange(self, fakes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Some of the fakes (B, ...) by kind, and older ones for the others, which are kept; without gradients."""
        shown = {kind: fake.detach().clone() for kind, fake in fakes.items()}
        # Drawn in any case: the stream of random numbers must not depend on how full the pool is.
        swap, which = (self._epoch.per_sample(lambda n, g: torch.rand(n, generator=g)) for _ in range(2))
        if len(self._held) < self._depth:
            self._held.append({kind: fake.clone() for kind, fake in shown.items()})
            return shown
        for place in (swap < 0.5).nonzero().flatten().tolist():
            held = self._held[int(which[place] * self._depth)]
            for kind, fake in shown.items():
                older = held[kind][place].clone()
                held[kind][place] = fake[place]
                fake[place] = older
        return shown
