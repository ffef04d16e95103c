"""What is reported: how well spectra are recovered on both domains, and materials found.

Source: section 5 of the reference notes on MatSpectNet (arXiv 2307.11466).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

import torch
from torch import Tensor

from trainables.common.materials.data import Samples
from trainables.common.materials.evaluation import Predict, confusion_over, scores
from trainables.common.materials.scenes import Scenes
from trainables.common.segmentation import confusion
from trainables.matspectnet.data import Domains
from trainables.matspectnet.losses import mrae, psnr, rmse, spectral_angle
from trainables.matspectnet.spectral_set import SpectralSet

Look = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (1, 3, H, W) -> their `spectra` (1, 31, H, W) and, if a camera is known, what it sees of them: `seen`."""

_LONGEST = 512  # pixels of an image's side that are recovered at a time
_REAL = 16  # images without spectra on which the camera is tested
_PREFIX = {"validation": "val/", "test": "test/"}


class Judge:
    """Judges a trial's networks.

    Args:
        domains: The data.
        side: S of crops and tiles.
        batch: Images at a time.
        device: Where networks are.
    """

    def __init__(self, domains: Domains, side: int, batch: int, device: torch.device):
        self._domains = domains
        self._side = side
        self._batch = batch
        self._device = device

    def recovery(self, look: Look) -> dict[str, float]:
        """Errors of recovered spectra: `val/mrae`, `rmse`, `psnr`, `angle`, and `val/material_...` in the other domain.

        With a camera also `reprojection`, the RMSE of what it sees of them to the image; that needs no spectra.
        """
        found = self._errors(look, self._domains.spectral_validation, "val/")
        if self._domains.hidden is not None:
            return found | self._errors(look, self._domains.hidden, "val/material_")
        return found | self._reprojection(look, self._domains.materials.validation)

    def segmentation(self, predict: Predict, split: str) -> dict[str, float]:
        """`val/pixel_acc` and so on, or `test/...`, of a split: validation or test."""
        materials = self._domains.materials
        matrix = confusion_over(
            predict,
            materials.test if split == "test" else materials.validation,
            classes=len(materials.classes),
            side=self._side,
            batch=self._batch,
            device=self._device,
        )
        return scores(matrix, _PREFIX[split])

    def with_spectra(self, network: Callable[[Tensor, Tensor], Tensor], scenes: Scenes, split: str) -> dict[str, float]:
        """The same of a network that is given the true spectra of generated scenes."""
        assert scenes.spectra is not None
        classes = len(self._domains.materials.classes)
        total = torch.zeros(classes, classes, dtype=torch.float64)
        for part in torch.split(torch.arange(len(scenes)), self._batch):
            x, spectra = scenes.images[part].to(self._device).float() / 255, scenes.spectra[part].to(self._device)
            total += confusion(network(x, spectra).argmax(dim=1).cpu(), scenes.truth[part], classes)
        return scores(total, _PREFIX[split])

    def _errors(self, look: Look, scenes: SpectralSet, prefix: str) -> dict[str, float]:
        rows = []
        for index in range(len(scenes)):
            x, spectra, _ = (part.to(self._device) for part in scenes.whole(index, _LONGEST))
            found = look(x)
            row = {
                "mrae": mrae(found["spectra"], spectra),
                "rmse": rmse(found["spectra"], spectra),
                "psnr": psnr(found["spectra"], spectra),
                "angle": spectral_angle(found["spectra"], spectra),
            }
            if "seen" in found:
                row["reprojection"] = rmse(found["seen"], x)
            rows.append({name: float(value) for name, value in row.items()})
        return {f"{prefix}{name}": fmean(row[name] for row in rows) for name in rows[0]}

    def _reprojection(self, look: Look, samples: Samples) -> dict[str, float]:
        errors = []
        for index in range(min(_REAL, len(samples))):
            image, _ = samples.read_whole(index)
            x = image[None, :, :_LONGEST, :_LONGEST].to(self._device).float() / 255
            found = look(x)
            if "seen" not in found:
                return {}
            errors.append(float(rmse(found["seen"], x)))
        return {"val/material_reprojection": fmean(errors)}
