"""What the network has learned: how alike its layers are, and which of its units stand for a concept.

Source: section 5.4 of the reference notes on DBAT (Nguyen et al. 2020 for the first, Bau et al. 2017 for the second).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

EXCEEDED = 0.005
"""Share of all places at which a unit counts as active."""
DETECTS = 0.5
"""Selectivity above which a unit is a detector of its best concept."""
_FEWEST = 4


class Alignment:
    """Centred kernel alignment of all pairs of layers, from unbiased HSIC of mini-batches."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sum: Tensor | None = None

    def add(self, layers: Mapping[str, Tensor]) -> None:
        """Takes up a batch.

        Args:
            layers: By name (n, ...), features of the same n samples.

        Raises:
            ValueError: There are fewer than 4.
        """
        kernels = [_centred_kernel(x) for x in layers.values()]
        found = torch.stack([torch.stack([hsic(k, other) for other in kernels]) for k in kernels])
        self._names = list(layers)
        self._sum = found if self._sum is None else self._sum + found

    def result(self) -> tuple[list[str], Tensor]:
        """Names of the layers, and their alignment (layers, layers)."""
        if self._sum is None:
            raise ValueError("no batch was added")
        own = self._sum.diagonal().clamp_min(0).sqrt()
        return self._names, self._sum / (own[:, None] * own[None, :]).clamp_min(1e-30)


def alignment(x: Tensor, y: Tensor) -> float:
    """CKA of two sets of features (n, p) and (n, q) of the same n samples, n at least 4."""
    one = Alignment()
    one.add({"x": x, "y": y})
    return float(one.result()[1][0, 1])


def _centred_kernel(x: Tensor) -> Tensor:
    """`X X^T` without its diagonal (n, n)."""
    if len(x) < _FEWEST:
        raise ValueError(f"the alignment of layers takes at least {_FEWEST} samples a batch, not {len(x)}")
    flat = x.detach().double().flatten(1)
    # HSIC does not change with the mean, but its rounding errors do.
    flat = flat - flat.mean(dim=0)
    kernel = flat @ flat.T
    return kernel - kernel.diagonal().diag()


def hsic(k: Tensor, other: Tensor) -> Tensor:
    """The unbiased estimate from two kernels (n, n) whose diagonals are zero."""
    n = len(k)
    first = (k * other.T).sum()
    second = k.sum() * other.sum() / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (k.sum(dim=0) @ other.sum(dim=1))
    return (first + second - third) / (n * (n - 3))


def thresholds(activations: Tensor) -> Tensor:
    """T of each unit: the value that a share `EXCEEDED` of its places exceed.

    Args:
        activations: (n, units, h, w).

    Returns:
        (units,).
    """
    flat = activations.transpose(0, 1).flatten(1)
    above = int(EXCEEDED * flat.shape[1])
    return flat.topk(above + 1, dim=1).values[:, -1]


@dataclass(frozen=True)
class Dissection:
    """How well each unit's active places are those of each concept.

    The IoU cannot be more than `EXCEEDED` over the share of the places that a concept covers. Bau et al.'s bound of
    0.04 is for concepts that are small in many photographs; the generated scenes' cover an eighth and more of them.

    Attributes:
        groups: Of each concept.
        iou: (units, concepts).
        selectivity: (units, concepts): how much more often a unit's active places are the concept's than all places
            are, (precision - share) / (1 - share): 0 by chance, 1 if they always are.
    """

    groups: list[str]
    iou: Tensor
    selectivity: Tensor

    def detectors(self) -> dict[str, float]:
        """Share of all units that detect a concept of each group: their best one, if they select it enough."""
        best, which = self.selectivity.max(dim=1)
        found = [self.groups[k] for k in which[best > DETECTS].tolist()]
        return {group: found.count(group) / len(best) for group in dict.fromkeys(self.groups)}

    def best_iou(self) -> dict[str, float]:
        """Mean over the units of the IoU with the best concept of each group."""
        return {
            group: float(self.iou[:, [name == group for name in self.groups]].amax(dim=1).mean())
            for group in dict.fromkeys(self.groups)
        }


def dissected(activations: Tensor, concepts: Mapping[str, Tensor]) -> Dissection:
    """Compares the active places of units with the places of concepts.

    Args:
        activations: (n, units, h, w).
        concepts: By group (n, concepts, H, W), boolean. Activations are enlarged to their size.
    """
    activations = activations.float()
    units = activations.shape[1]
    groups = [group for group, masks in concepts.items() for _ in range(masks.shape[1])]
    limit = thresholds(activations)
    both, active, there = torch.zeros(units, len(groups)), torch.zeros(units), torch.zeros(len(groups))
    size = next(iter(concepts.values())).shape[-2:]
    for place, small in enumerate(activations):
        large = functional.interpolate(small[None], size=size, mode="bilinear", align_corners=False)[0]
        is_active = (large > limit[:, None, None].to(large.device)).flatten(1).float().cpu()
        masks = torch.cat([group[place] for group in concepts.values()]).flatten(1).float()
        both += is_active @ masks.T
        active += is_active.sum(dim=1)
        there += masks.sum(dim=1)
    share = there / (len(activations) * size[0] * size[1])
    precision = both / active[:, None].clamp_min(1)
    return Dissection(
        groups=groups,
        iou=both / (active[:, None] + there - both).clamp_min(1),
        selectivity=(precision - share) / (1 - share).clamp_min(1e-9),
    )


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation of two series (n,) without ties."""
    ranks = [values.argsort().argsort().double() for values in (x, y)]
    centred = [rank - rank.mean() for rank in ranks]
    spread = (centred[0].square().sum() * centred[1].square().sum()).sqrt()
    return float((centred[0] * centred[1]).sum() / spread)
