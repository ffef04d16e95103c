"""Losses of the recovery and of the translation between RGB and spectra, and errors of what is recovered.

Source: sections 4.1, 4.2 and 5 of the reference notes on MatSpectNet (arXiv 2307.11466). The wiring of the translation
is the notes' own: the authors' training step is not public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_DARK = 1e-3  # a relative error below it would be noise
_MOST_PSNR = 100.0  # dB, of images without any difference


def mrae(found: Tensor, truth: Tensor) -> Tensor:
    """Mean relative absolute error, `mean(|found - truth| / max(truth, 0.001))`."""
    return ((found.float() - truth).abs() / truth.clamp_min(_DARK)).mean()


def rmse(found: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared error."""
    return (found.float() - truth).square().mean().sqrt()


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of values in [0, 1], in dB, at most 100."""
    power = (found.float() - truth).square().mean()
    return (-10 * power.clamp_min(1e-20).log10()).clamp_max(_MOST_PSNR)


def spectral_angle(found: Tensor, truth: Tensor) -> Tensor:
    """Mean angle between spectra (B, 31, ...), in radians."""
    a, b = (functional.normalize(part.double(), dim=1) for part in (found, truth))
    # Half the angle from the distance: the arc cosine would lose small angles to rounding.
    return (2 * torch.asin(((a - b).square().sum(dim=1).sqrt() / 2).clamp_max(1))).mean()


@dataclass(frozen=True)
class TranslationWeights:
    """Weights of the terms of `translation_objective`.

    Attributes:
        rgb2hsi: Of the spectra recovered from RGB.
        hsi2rgb: Of the RGB images that the camera sees.
        cycle: Of spectra -> RGB -> spectra, as a share of hsi2rgb.
    """

    rgb2hsi: float = 10.0
    hsi2rgb: float = 10.0
    cycle: float = 0.5


def translation_objective(
    found: Mapping[str, Tensor], spectra: Tensor, clean: Tensor, other: Tensor, weights: TranslationWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Everything that the generators learn from but the adversarial term (section 4.2).

    `rgb2hsi (L_hsi + L_phys_m) + hsi2rgb (L_rgb + L_phys_a + cycle L_cyc)`; without a camera L_hsi alone is left.

    Args:
        found: What `model.Translation` gives.
        spectra: (B, 31, H, W) true spectra of the spectral set.
        clean: (B, 3, H, W) their RGB image without noise.
        other: (B, 3, H, W) unrelated images of the material set.
        weights: Of the terms.

    Returns:
        The scalar loss, and its detached terms: hsi, and with a camera physics_spectral, physics_material, rgb, cycle.
    """
    terms = {"hsi": mrae(found["spectra"], spectra)}
    loss = weights.rgb2hsi * terms["hsi"]
    if "seen" in found:
        terms |= {
            "physics_spectral": functional.mse_loss(found["seen"], clean),
            "physics_material": functional.mse_loss(found["other_seen"], other),
            "rgb": functional.l1_loss(found["synthetic"], clean),
            "cycle": mrae(found["cycle"], spectra),
        }
        loss = loss + weights.rgb2hsi * terms["physics_material"]
        loss = loss + weights.hsi2rgb * (terms["rgb"] + terms["physics_spectral"] + weights.cycle * terms["cycle"])
    return loss, {name: term.detach() for name, term in terms.items()}
