"""The physical constraint: a differentiable camera that has to see the given RGB image in the recovered spectra.

Source: section 3.2 of the reference notes on MatSpectNet (arXiv 2307.11466). The authors' own module is not public.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.common.materials.spectra import BANDS

EXPOSURES = ("none", "scale", "affine")
_LEAST = 1e-6  # of a sensitivity, so that softplus can be turned around
_ISP_WIDTH = 16
_ISP_MOST = 0.05  # the largest correction of a value in [0, 1]


class Camera(nn.Module):
    """Image formation `I_c = sum_b S_cb l_b h_b`, with sensitivities that are positive and sum to 1.

    Args:
        sensitivity: (3, 31) spectral sensitivities, gains of the channels included; in any unit.
        trainable: Whether they may change.
        band_gain: Whether each band has a gain l of its own, of mean 1, as an illuminant has.
        isp: Whether two small convolutions after it may correct values by up to 0.05.
    """

    theta: Tensor

    def __init__(self, sensitivity: Tensor, *, trainable: bool = True, band_gain: bool = False, isp: bool = False):
        super().__init__()
        share = (sensitivity / sensitivity.sum(dim=1, keepdim=True)).clamp_min(_LEAST).double()
        theta = torch.log(torch.expm1(share)).float()
        if trainable:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta)
        self.phi = nn.Parameter(torch.zeros(BANDS)) if band_gain else None
        self.isp: nn.Sequential | None = None
        if isp:
            last = nn.Conv2d(_ISP_WIDTH, 3, 3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            self.isp = nn.Sequential(nn.Conv2d(3, _ISP_WIDTH, 3, padding=1), nn.GELU(), last)

    def matrix(self) -> Tensor:
        """(3, 31): what turns spectra into RGB before any correction."""
        positive = nn.functional.softplus(self.theta)
        matrix = positive / positive.sum(dim=1, keepdim=True)
        if self.phi is not None:
            gain = nn.functional.softplus(self.phi)
            matrix = matrix * (gain / gain.mean())
        return matrix

    def forward(self, spectra: Tensor) -> Tensor:
        """Spectra (B, 31, H, W) -> linear RGB (B, 3, H, W), not clipped."""
        # An inner product of 31 terms whose error is to be driven to zero: half precision would be its floor.
        with torch.autocast(spectra.device.type, enabled=False):
            image = torch.einsum("cb,nbhw->nchw", self.matrix(), spectra.float())
        if self.isp is not None:
            image = image + _ISP_MOST * torch.tanh(self.isp(image).float())
        return image


def exposed(image: Tensor, target: Tensor, how: str) -> Tensor:
    """An image at the exposure at which it is nearest to another one, clipped to [0, 1].

    The exposure is a constant for gradients, and so is the clipping (they pass straight through).

    Args:
        image: (B, 3, H, W) linear RGB.
        target: (B, 3, H, W) in [0, 1].
        how: none; scale (one factor an image); affine (a factor and an offset: images that were normalised by their
            own smallest and largest values).
    """
    if how != "none":
        scale, offset = _fit(image.detach(), target.detach(), with_offset=how == "affine")
        image = image * scale + offset
    return image + (image.clamp(0, 1) - image).detach()


def _fit(image: Tensor, target: Tensor, *, with_offset: bool) -> tuple[Tensor, Tensor]:
    """Least squares over all values of each image: factors and offsets (B, 1, 1, 1)."""
    axes = (1, 2, 3)
    centre_image, centre_target = (
        (part.mean(dim=axes, keepdim=True) if with_offset else torch.zeros_like(part[:, :1, :1, :1]))
        for part in (image, target)
    )
    moved, wanted = image - centre_image, target - centre_target
    power = moved.square().sum(dim=axes, keepdim=True)
    # A flat image has no contrast to fit.
    scale = (moved * wanted).sum(dim=axes, keepdim=True) / power.clamp_min(1e-12)
    return scale, centre_target - scale * centre_image


def projected(spectra: Tensor, image: Tensor, matrix: Tensor) -> Tensor:
    """The nearest spectra that the camera sees exactly as the image: `h - M^+ (M h - x)`.

    Args:
        spectra: (B, 31, H, W).
        image: (B, 3, H, W), linear, at the camera's own exposure.
        matrix: (3, 31), M.
    """
    with torch.autocast(spectra.device.type, enabled=False):
        error = torch.einsum("cb,nbhw->nchw", matrix, spectra.float()) - image
        return spectra.float() - torch.einsum("bc,nchw->nbhw", torch.linalg.pinv(matrix), error)
