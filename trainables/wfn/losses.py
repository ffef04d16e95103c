"""The regulariser that draws free weights to the clusters there are.

Section 4.3 of the reference notes on WFN (arXiv 2210.13554). With the distances d_j of a weight to the centres and
q = softmax(-d / tau), its share is R = sum_j q_j d_j, and L_reg the mean of R over the free weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.common.quantisation.fixing import Fixable

_ELEMENTS_AT_ONCE = 2**22
_LEAST = 1e-12  # an L_reg that steers nowhere


class Regulariser:
    """L_reg of the free weights of one forward pass.

    It is computed inside the layers' forward pass, where their weights are whole under every engine, and its gradient
    there too, in closed form: nothing of the size (weights, centres) is kept for the backward pass.

    Args:
        network: With fixable layers, which it observes from now on.
        gamma_0: Weights below it count as zeros.
        tau: Temperature of the softmin.
        tiny: What such a weight contributes: paper (distances are absolute, and that to zero is 0) or zero (nothing).
        nearest: Only so many centres, the nearest to each weight; 0: all.
    """

    def __init__(self, network: nn.Module, *, gamma_0: float, tau: float, tiny: str, nearest: int):
        self._settings = gamma_0, tau, tiny == "paper", nearest
        self._centres: Tensor | None = None
        self._free: list[Tensor] = []
        for module in network.modules():
            if isinstance(module, Fixable):
                module.observer = self._observe

    def set_centres(self, centres: Tensor | None) -> None:
        """The codebook, ascending, (k,), on the network's device; None: there is none, and nothing is computed."""
        self._centres = centres

    def start(self) -> None:
        """Forgets what was seen: before a forward pass, as the one before may have been repeated for its gradient."""
        self._free = []

    def take(self) -> Tensor | None:
        """L_reg of the forward pass since `start`; None if there is no codebook, or no free weight."""
        free, self._free = self._free, []
        if self._centres is None or not sum(part.numel() for part in free):
            return None
        weights = torch.cat(free)
        total: Tensor = SoftDistance.apply(weights, self._centres, *self._settings)  # type: ignore[no-untyped-call]
        return total / len(weights)

    def _observe(self, parameter: Tensor, mask: Tensor) -> None:
        if self._centres is not None:
            self._free.append(parameter[~mask].float())


def whole_loss(cross_entropy: Tensor, regulariser: Tensor | None, alpha: float) -> Tensor:
    """CE + stopgrad(alpha CE / L_reg) L_reg: in value always (1 + alpha) CE, only its gradient is steered.

    Each worker takes the ratio from its own cross-entropy; averaged with the gradients that is the ratio of the whole
    batch's, as L_reg is the same on all of them.
    """
    if regulariser is None or alpha == 0:
        return cross_entropy
    size = regulariser.detach()
    ratio = torch.where(size < _LEAST, 0.0, alpha * cross_entropy.detach() / size)
    return cross_entropy + ratio * regulariser


class SoftDistance(torch.autograd.Function):
    """sum_i R_i over weights, with its closed-form gradient; see `Regulariser`.

    Args (of `apply`):
        weights: (n,).
        centres: Ascending, (k,).
        gamma_0: From this magnitude on distances are relative; below they are absolute, and that to zero is 0.
        tau: Temperature.
        counts_tiny: Whether weights below gamma_0 contribute.
        nearest: Centres looked at a weight; 0: all.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by place
        ctx: Any, weights: Tensor, centres: Tensor, gamma_0: float, tau: float, counts_tiny: bool, nearest: int
    ) -> Tensor:
        """The sum, ()."""
        gradient = torch.empty_like(weights)
        total = weights.new_zeros(())
        count = min(nearest, len(centres)) if nearest else len(centres)
        rows = max(1, _ELEMENTS_AT_ONCE // count)
        for start in range(0, len(weights), rows):
            part = slice(start, start + rows)
            w = weights[part, None]
            c = _window(weights[part], centres, count) if count < len(centres) else centres
            size, offset = w.abs(), w - c
            is_large = size >= gamma_0
            scale = torch.where(is_large, 1 / size, torch.ones_like(size))
            d = offset.abs() * scale
            # d |w - c| / |w| = sign(w - c) / |w| - |w - c| sign(w) / w^2
            slope = torch.sign(offset) * scale - torch.where(is_large, d * torch.sign(w) * scale, torch.zeros_like(d))
            is_free_zero = ~is_large & (c == 0)
            d, slope = d.masked_fill(is_free_zero, 0.0), slope.masked_fill(is_free_zero, 0.0)
            q = torch.softmax(-d / tau, dim=1)
            r = (q * d).sum(dim=1, keepdim=True)
            steer = (q * (1 - (d - r) / tau) * slope).sum(dim=1)
            if not counts_tiny:
                r, steer = r * is_large, steer * is_large[:, 0]
            total += r.sum()
            gradient[part] = steer
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """The gradient of the weights alone."""
        (gradient,) = ctx.saved_tensors
        return outputs[0] * gradient, None, None, None, None, None


def _window(weights: Tensor, centres: Tensor, count: int) -> Tensor:
    """So many neighbouring centres about each weight, (n, count)."""
    first = (torch.searchsorted(centres, weights.detach()) - count // 2).clamp(0, len(centres) - count)
    return centres[first[:, None] + torch.arange(count, device=centres.device)]
