"""What people see of a material: properties of the measured sample whose spectrum has the same shape.

Source: sections 2.3 and 3.5 of the reference notes on MatSpectNet (arXiv 2307.11466). The properties are those of the
collection SpectralDB; the generated table computes them by the formulas that reproduce the collection's own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pharos.errors import InputError
from trainables.common.materials.spectra import BANDS, WAVELENGTHS
from trainables.common.materials.spectra_files import Samples

PROPERTIES = ("visible", "melanopic", "melanopic/visible", "red", "green", "blue", "specularity", "roughness")
SHAPES = ("pairwise", "lag1", "raw", "sam")
_CHUNK = 1 << 16  # spectra looked up at a time
_DARK = 1e-6

# Weights of the properties that are weighted means of a spectrum: centre and width in nm.
_SEEN_WITH_GLOSS = {"visible": (560, 40), "melanopic": (490, 35)}
_SEEN_WITHOUT = {"red": (625, 15), "green": (545, 20), "blue": (445, 10)}


def shape(spectra: Tensor, kind: str = "pairwise") -> Tensor:
    """What is compared of a spectrum; the first two do not change when a constant is added to it.

    Args:
        spectra: (N, 31).
        kind: pairwise (all differences |s_i - s_j|, i < j); lag1 (what the authors' code computes: |s_k - s_k+1|, k+1
            times); raw; or sam (raw, of unit length).

    Returns:
        (N, 465), or (N, 31) for raw and sam.
    """
    match kind:
        case "pairwise":
            first, second = torch.triu_indices(BANDS, BANDS, 1, device=spectra.device)
            return (spectra[:, first] - spectra[:, second]).abs()
        case "lag1":
            steps = (spectra[:, :-1] - spectra[:, 1:]).abs()
            return torch.cat([steps[:, start:] for start in range(BANDS - 1)], dim=1)
        case "sam":
            return nn.functional.normalize(spectra, dim=1)
        case _:
            return spectra


def nearest(queries: Tensor, known: Tensor) -> Tensor:
    """Index of the nearest (L2) of known vectors (M, D) to each query (N, D): (N,)."""
    # |q - k|^2 without |q|^2, which is the same for all k.
    lengths = known.square().sum(dim=1) / 2
    return (lengths - queries @ known.T).argmin(dim=1)


def properties(samples: Samples) -> Tensor:
    """The eight properties (M, 8) of measured samples, in the order of `PROPERTIES`.

    What the samples come with is taken as it is; the others are computed: means of the spectrum weighted by Gaussians,
    with the specular reflection for `visible` and `melanopic` and without it for red, green and blue.
    """
    given = samples.properties
    glossy = samples.spectra + samples.specularity[:, None]
    found = {
        **{name: given.get(name, _weighted(glossy, *place)) for name, place in _SEEN_WITH_GLOSS.items()},
        **{name: given.get(name, _weighted(samples.spectra, *place)) for name, place in _SEEN_WITHOUT.items()},
        "specularity": samples.specularity,
        "roughness": samples.roughness,
    }
    found["melanopic/visible"] = found["melanopic"] / found["visible"].clamp_min(_DARK)
    return torch.stack([found[name] for name in PROPERTIES], dim=1)


def _weighted(spectra: Tensor, centre: float, width: float) -> Tensor:
    weights = torch.from_numpy(np.exp(-0.5 * ((WAVELENGTHS - centre) / width) ** 2)).to(spectra)
    return spectra @ (weights / weights.sum())


class Perception(nn.Module):
    """Gives each pixel the properties of the sample whose spectrum has the shape most like its own.

    Args:
        samples: The table.
        kind: See `shape`.
        standardise: Whether properties are given in standard deviations from their mean over the table.
    """

    known: Tensor
    values: Tensor

    def __init__(self, samples: Samples, kind: str = "pairwise", *, standardise: bool = True):
        super().__init__()
        self._kind = kind
        values = properties(samples)
        if not values.isfinite().all():
            raise InputError(f"{samples.source}: a property of a sample is not finite")
        if standardise:
            spread = values.std(dim=0)
            values = (values - values.mean(dim=0)) / torch.where(spread > _DARK, spread, torch.ones_like(spread))
        # They follow from the table, so that a checkpoint needs none of it.
        self.register_buffer("known", shape(samples.spectra.float(), kind), persistent=False)
        self.register_buffer("values", values.float(), persistent=False)

    @torch.no_grad()
    def forward(self, spectra: Tensor) -> Tensor:
        """Spectra (B, 31, H, W) -> properties (B, 8, H, W), without gradients."""
        with torch.autocast(spectra.device.type, enabled=False):
            pixels = spectra.float().movedim(1, -1).flatten(0, -2)
            chosen = torch.cat([nearest(shape(part, self._kind), self.known) for part in torch.split(pixels, _CHUNK)])
        found: Tensor = self.values[chosen]
        return found.reshape(len(spectra), *spectra.shape[2:], -1).movedim(-1, 1)
