"""MatSpectNet: learned responses to a recovered spectrum, what people would see of it, and a DBAT that gets both.

Source: sections 3.4 to 3.6 of the reference notes on MatSpectNet (arXiv 2307.11466).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pharos.errors import InputError
from trainables.common.materials.network import NetworkConfig, Segmenter
from trainables.common.materials.spectra import BANDS
from trainables.matspectnet.backbone import SwinV2
from trainables.matspectnet.camera import Camera, exposed, projected
from trainables.matspectnet.normalisation import Scale
from trainables.matspectnet.perception import PROPERTIES, Perception
from trainables.matspectnet.recovery import Recovery, SpectralAttention

BACKBONES = ("swinv2", "swin")
FILTERS = ("sample", "batch", "static", "identity")
LEAST = 1e-4  # of a recovered reflectance, where ratios are taken of it
_FLAT = 1e-6


@dataclass
class SpectralNetworkConfig(NetworkConfig):
    """DBAT as MatSpectNet has it: on Swin V2, with windows of 8."""

    backbone: str = "swinv2"
    """swinv2, or swin (that of DBAT)."""
    window: int = 8
    """Side of the backbone's windows, in patches."""
    merge_window: int = 8
    """Of the merge; it divides the side of the last map."""

    def __post_init__(self) -> None:
        """Checks values and their combinations.

        Raises:
            InputError: One is impossible.
        """
        super().__post_init__()
        self.check_choices(backbone=BACKBONES)
        if self.backbone == "swinv2" and self.model == "swin_fpn_wide":
            raise InputError("recipe.network.model=swin_fpn_wide takes recipe.network.backbone=swin")


class Translation(nn.Module):
    """Both ways between RGB and spectra.

    Args:
        recovery: RGB -> spectra.
        camera: Spectra -> RGB; None: nothing is known of it.
        exposure: How the camera's images are brought to the exposure of given ones, see `camera.exposed`.
        hard: Whether recovered spectra are moved to where the camera sees exactly the given image.
    """

    def __init__(self, recovery: Recovery, camera: Camera | None, *, exposure: str = "none", hard: bool = False):
        super().__init__()
        self.recovery = recovery
        self.camera = camera
        self._exposure = exposure
        self._hard = hard

    def recovered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (B, 3, H, W) -> spectra (B, 31, H, W) and features of the recovery net."""
        spectra, features = self.recovery(x)
        if self._hard and self.camera is not None:
            spectra = projected(spectra, x, self.camera.matrix())
        return spectra, features

    def forward(
        self, x: Tensor, spectra: Tensor | None = None, clean: Tensor | None = None, other: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What images alone tell; or, with all that is known of them, everything that a training step looks at.

        Args:
            x: (B, 3, H, W) images of the spectral set.
            spectra: (B, 31, H, W) their spectra.
            clean: (B, 3, H, W) the same images without noise.
            other: (B, 3, H, W) images of the material set.

        Returns:
            `spectra` (B, 31, H, W) and `features` of the recovery net; with a camera also `seen`, the RGB image of
            those spectra. In training also the same of the other images (`other_...`), and with a camera `synthetic`,
            the RGB of the true spectra, and `cycle`, the spectra recovered from it.
        """
        found = self._both_ways("", x, x if clean is None else clean)
        if spectra is None or clean is None or other is None:
            return found
        found |= self._both_ways("other_", other, other)
        if self.camera is not None:
            found["synthetic"] = exposed(self.camera(spectra), clean, self._exposure)
            found["cycle"], _ = self.recovered(found["synthetic"])
        return found

    def _both_ways(self, prefix: str, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        spectra, features = self.recovered(x)
        found = {f"{prefix}spectra": spectra, f"{prefix}features": features}
        if self.camera is not None:
            found[f"{prefix}seen"] = exposed(self.camera(spectra), target, self._exposure)
        return found


class ResponseFilters(nn.Module):
    """K response curves over the bands, each with its smallest value at 0 and its largest at 1.

    Args:
        count: K.
        mode: Where a curve comes from: sample (its own attention over the image's spectra, averaged over the image);
            batch (averaged over the batch too, as the authors have it: an image's result then depends on the others);
            static (parameters); identity (no curves: the bands themselves).
        pool: The attention sees the image at this part of its resolution.
    """

    def __init__(self, count: int = 12, mode: str = "sample", pool: int = 1):
        super().__init__()
        self._mode = mode
        self._pool = pool
        self.outputs = BANDS if mode == "identity" else count
        if mode == "static":
            # A row of humps: random curves are all broad, so that their responses are nearly the same.
            middles = torch.linspace(0, BANDS - 1, count)[:, None]
            self.curves = nn.Parameter(torch.exp(-((torch.arange(BANDS) - middles) * count / BANDS).square()))
        elif mode != "identity":
            self.attentions = nn.ModuleList(SpectralAttention(BANDS) for _ in range(count))

    def responses(self, spectra: Tensor) -> Tensor:
        """Spectra (B, 31, H, W) -> curves (B, K, 31) in [0, 1]."""
        if self._mode == "static":
            curves = self.curves.expand(len(spectra), -1, -1)
        else:
            small = functional.avg_pool2d(spectra, self._pool) if self._pool > 1 else spectra
            curves = torch.stack([attention(small).float().mean(dim=(2, 3)) for attention in self.attentions], dim=1)
            if self._mode == "batch":
                curves = curves.mean(dim=0, keepdim=True).expand(len(spectra), -1, -1)
        low = curves.amin(dim=2, keepdim=True)
        span = curves.amax(dim=2, keepdim=True) - low
        # A flat curve responds to nothing.
        return (curves - low) / span.clamp_min(_FLAT)

    def forward(self, spectra: Tensor, shown: Tensor | None = None) -> Tensor:
        """The responses to spectra (B, K, h, w): of 1 to white, as those of a camera (the notes: sums over the bands).

        Args:
            spectra: (B, 31, H, W), from which curves are made.
            shown: (B, 31, h, w), to which they are applied; None: the same. Responses are linear in it.
        """
        shown = spectra if shown is None else shown
        if self._mode == "identity":
            return shown
        curves = self.responses(spectra)
        weights = curves / curves.sum(dim=2, keepdim=True).clamp_min(_FLAT)
        return torch.einsum("bnhw,bkn->bkhw", shown, weights)


class SpectralBranch(nn.Module):
    """Spectra -> features at the resolution of the decoder.

    Responses and properties are taken of the spectra averaged over each patch. For responses, which are linear, that is
    the same as averaging afterwards; the properties of 16 times fewer spectra are looked up.

    Args:
        filters: The response curves.
        perception: The properties; None: none.
        width: Features.
        patch: Side of a pixel of the decoder in pixels of the image.
        scale: On which the response curves see spectra; None: as they are.
    """

    def __init__(
        self,
        filters: ResponseFilters,
        perception: Perception | None,
        width: int = 128,
        patch: int = 4,
        scale: Scale | None = None,
    ):
        super().__init__()
        self.scale = scale or Scale(torch.zeros(BANDS), torch.ones(BANDS))
        self.filters = filters
        self.perception = perception
        self._patch = patch
        inputs = filters.outputs + (len(PROPERTIES) if perception is not None else 0)
        self.layers = nn.Sequential(_mlp(inputs, width // 2, width), _mlp(width, width, width))

    def forward(self, spectra: Tensor) -> Tensor:
        """Spectra (B, 31, H, W) -> (B, width, H/patch, W/patch)."""
        spectra = spectra.clamp_min(LEAST)
        small = functional.avg_pool2d(spectra, self._patch)
        known = [self.filters(self.scale(spectra), self.scale(small))]
        if self.perception is not None:
            known.append(self.perception(small))
        out: Tensor = self.layers(torch.cat(known, dim=1).movedim(1, -1)).movedim(-1, 1)
        return out


class MatSpectNet(nn.Module):
    """Images and their spectra -> logits (B, K, S, S).

    Spectra enter the decoder alone, so that the backbone keeps its pre-trained stem.

    Args:
        segmenter: A DBAT, or its baseline, with as many extra channels as the branch gives.
        branch: Of the spectra; None: images alone, which is DBAT.
        scale: On which the network sees images; None: less 0.5.
    """

    def __init__(self, segmenter: Segmenter, branch: SpectralBranch | None, scale: Scale | None = None):
        super().__init__()
        self.segmenter = segmenter
        self.branch = branch
        self.scale = scale or Scale(torch.full((3,), 0.5), torch.ones(3))

    def forward(self, x: Tensor, spectra: Tensor | None = None) -> Tensor:
        """Logits at the images' size, fp32.

        Args:
            x: (B, 3, S, S) in [0, 1].
            spectra: (B, 31, S, S), if there is a branch.
        """
        features = self.segmenter.look(self.scale(x)).features
        if self.branch is not None:
            assert spectra is not None
            features = torch.cat([features, self.branch(spectra)], dim=1)
        logits: Tensor = self.segmenter.head(features)
        return logits


def segmenter(config: SpectralNetworkConfig, classes: int, side: int, *, extra: int) -> Segmenter:
    """The DBAT, or the baseline, of a configuration.

    Args:
        config: Which.
        classes: K.
        side: S of the images.
        extra: Channels that the spectra add to the decoder's.
    """
    backbone = None
    if config.backbone == "swinv2":
        backbone = SwinV2(
            side,
            patch=config.patch,
            width=config.width,
            depths=config.depths,
            heads=config.heads,
            window=config.window,
            drop_path=config.drop_path,
            weights=config.weights,
        )
    return Segmenter(config, classes, side, extra=extra, backbone=backbone)


def _mlp(inward: int, inner: int, outward: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(inward, inner), nn.GELU(), nn.Linear(inner, outward))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            # As the decoder's convolutions, beside whose features these stand: smaller ones would be passed over.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return layers
