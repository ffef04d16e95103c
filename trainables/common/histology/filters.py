"""Filters that are linear combinations of Gaussian derivatives: the basis, its steering, scale ranges and a layer.

Source: sections 3.1 to 3.3 and 3.7 of the reference notes on SEUNet (arXiv 2304.04595), sections 3.1 to 3.3 of those on
RSESF (arXiv 2304.04600), which follow the authors' public code (ynulonger/RSESF).

With a Gaussian of unit sum and derivatives that carry sigma**n, a filter of scale r sigma answers to an image that is
r times as large exactly as the filter of scale sigma does to the image itself; and the derivatives of one order span a
representation of the rotations, so that a filter is turned by mixing its coefficients. Both are exact before sampling.
Axes: "x" are rows, "y" are columns; an angle grows clockwise in the displayed array, as in `W(90) = rot90(W(0), -1)`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SigmaMode = Literal["constrained", "fixed", "free"]

_LARGEST_HALF_WIDTH = 31  # of a window that follows a free scale
# How many products of the separable form cost as much as one of the convolution, as `benchmarks/filters.py` measures it
# on a core: convolutions are at their best with channels in eights.
_WORTH, _WORTH_IN_EIGHTS = 2.0, 0.6


def derivative_orders(order: int) -> list[tuple[int, int]]:
    """The basis up to a total order: (along rows, along columns), in the order of all stacks of coefficients."""
    return [(p, q) for p in range(order + 1) for q in range(order - p, -1, -1)]


def gaussian_jet(sigma: Tensor, order: int, half_widths: Sequence[int]) -> Tensor:
    """Scale-normalised derivatives of a sampled 1-D Gaussian of unit sum: B^n = sigma^n d^n g.

    Args:
        sigma: Scales (S,), in pixels.
        order: The highest derivative o.
        half_widths: Of each scale's window; what is outside of it is 0.

    Returns:
        (S, o + 1, 2 h + 1), h the largest half-width.
    """
    half = max(half_widths)
    x = torch.arange(-half, half + 1, device=sigma.device, dtype=sigma.dtype)
    inside = x.abs() <= torch.tensor(half_widths, device=sigma.device, dtype=sigma.dtype)[:, None]
    z = x / sigma[:, None]
    gaussian = torch.exp(-z.square() / 2) * inside
    gaussian = gaussian / gaussian.sum(dim=1, keepdim=True)
    # B^n = (-1)^n He_n(z) g, with He_n+1 = z He_n - n He_n-1.
    before, hermite = torch.zeros_like(z), torch.ones_like(z)
    jet = []
    for n in range(order + 1):
        jet.append((-1) ** n * hermite * gaussian)
        before, hermite = hermite, z * hermite - n * before
    return torch.stack(jet, dim=1)


def gaussian_basis(jet: Tensor) -> Tensor:
    """The 2-D basis of a 1-D one: (S, o + 1, k) -> (S, N, k, k), N = (o + 1) (o + 2) / 2."""
    orders = derivative_orders(jet.shape[1] - 1)
    return torch.stack([jet[:, p, :, None] * jet[:, q, None, :] for p, q in orders], dim=1)


@functools.lru_cache(maxsize=256)
def steering(angle: float, order: int) -> Tensor:
    """The matrix Q (N, N), float64, with which `B'_j = sum_i Q_ji B_i` is the basis turned by an angle.

    Args:
        angle: In degrees, clockwise in the displayed array.
        order: The highest total order of the basis.
    """
    orders = derivative_orders(order)
    c, s = _cosine_and_sine(angle)
    matrix = torch.zeros(len(orders), len(orders), dtype=torch.float64)
    # Along the turned axes: d'_x = c d_x - s d_y and d'_y = s d_x + c d_y, multiplied out.
    for row, (p, q) in enumerate(orders):
        for i in range(p + 1):
            for j in range(q + 1):
                factor = math.comb(p, i) * c**i * (-s) ** (p - i) * math.comb(q, j) * s**j * c ** (q - j)
                matrix[row, orders.index((i + j, p + q - i - j))] += factor
    return matrix


def _cosine_and_sine(angle: float) -> tuple[float, float]:
    """Exact at multiples of 90 degrees, so that the filters turn exactly there."""
    quarters = angle / 90
    if quarters == round(quarters):
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[round(quarters) % 4]
    return math.cos(math.radians(angle)), math.sin(math.radians(angle))


class Interval(NamedTuple):
    """The range that a trainable scale cannot leave, in pixels of its level."""

    low: float
    high: float


def ladder(kind: str, low: float, step: float, count: int, first: int = 0) -> list[Interval]:
    """Neighbouring intervals of scale.

    Args:
        kind: arithmetic (all of width `step`) or geometric (each `step` times the one before).
        low: Where interval 0 begins.
        step: Width or ratio.
        count: How many.
        first: The number of the first that is returned.
    """
    bounds = [low + i * step if kind == "arithmetic" else low * step**i for i in range(first, first + count + 1)]
    return [Interval(*pair) for pair in itertools.pairwise(bounds)]


class GaussianConv(nn.Module):
    """Each branch's own features filtered at its own scale, with coefficients that all branches share; no bias.

    `W_s[k, c] = sum_j a[j, c, k] B_j(sigma_s)`. Filters are made in fp32 (or fp64) whatever the autocast, and on a
    grid that the largest scale of an interval needs, so that nothing jumps when a scale moves. Stride 1, zeros around.

    Where it is cheaper, the filters are never made: as each is a sum of products of 1-D derivatives, rows are filtered,
    mixed, then columns, all three as matrix products (1-D filters as banded matrices). The function is the same.

    Args:
        inputs: Channels of each branch before.
        outputs: Channels of each branch after.
        intervals: Of each branch's scale, S of them.
        order: The highest total order of the derivatives.
        truncation: Half-width of the windows, in scales.
        sigma_mode: constrained (inside of its interval, the paper's), free (any positive), fixed (the mid-point).
        sigma_rate: By how much faster than the coefficients the scales learn.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        intervals: Sequence[Interval],
        *,
        order: int = 2,
        truncation: float = 2.0,
        sigma_mode: SigmaMode = "constrained",
        sigma_rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.order, self.truncation, self.sigma_mode, self.sigma_rate = order, truncation, sigma_mode, sigma_rate
        self.coefficients = nn.Parameter(torch.randn(len(derivative_orders(order)), inputs, outputs))
        self.rho = None if sigma_mode == "fixed" else nn.Parameter(torch.zeros(len(intervals)))
        # Not in checkpoints: they follow from the settings.
        self.register_buffer("low", torch.tensor([i.low for i in intervals]), persistent=False)
        self.register_buffer("high", torch.tensor([i.high for i in intervals]), persistent=False)
        self._half_widths = [_half_width(truncation * i.high) for i in intervals]
        self._kept: dict[tuple[object, ...], tuple[Tensor, ...]] = {}

    def sigmas(self) -> Tensor:
        """The present scales (S,), in pixels."""
        middle = (self.high + self.low) / 2
        if self.rho is None:
            return middle
        raw = self.sigma_rate * self.rho
        if self.sigma_mode == "free":
            return middle * torch.exp2(raw)
        return (self.high - self.low) / 2 * torch.tanh(raw) + middle

    def jets(self) -> Tensor:
        """The present 1-D derivatives (S, o + 1, 2 h + 1)."""
        with torch.autocast(self.coefficients.device.type, enabled=False):
            sigma = self.sigmas()
            return gaussian_jet(sigma, self.order, self._windows(sigma))

    def filters(self, angle: float = 0.0) -> Tensor:
        """The present filters (S, outputs, inputs, k, k), turned by an angle in degrees."""
        with torch.autocast(self.coefficients.device.type, enabled=False):
            return torch.einsum("nck,snxy->skcxy", self._turned(angle), gaussian_basis(self.jets()))

    def forward(self, x: Tensor, angles: Sequence[float] = (0.0,)) -> Tensor:
        """Features (R S, B, inputs, H, W) -> (R S, B, outputs, H, W); slot r S + s has angle r and scale s.

        Args:
            x: All slots' features, or one image (1, B, inputs, H, W) that all of them see.
            angles: In degrees, R of them.
        """
        groups = [x] * len(angles) if len(x) == 1 else x.chunk(len(angles))
        turned = [self._filtered(group, angle) for group, angle in zip(groups, angles, strict=True)]
        return turned[0] if len(turned) == 1 else torch.cat(turned)

    def train(self, mode: bool = True) -> GaussianConv:
        """Filters that were kept are forgotten: an optimiser may have been at work."""
        self._kept.clear()
        return super().train(mode)

    def _filtered(self, x: Tensor, angle: float) -> Tensor:
        """One orientation: (S or 1, B, C, H, W) -> (S, B, K, H, W)."""
        height, width = x.shape[-2:]
        if self._is_separable(height, width):
            return _separable(x, *self._made("bands", angle, height, width))
        return _direct(x, *self._made("filters", angle))

    def _is_separable(self, height: int, width: int) -> bool:
        """Whether the separable form is the cheaper one, by its products for one pixel of one input channel."""
        _, inputs, outputs = self.coefficients.shape
        terms, side = self.order + 1, 2 * max(self._half_widths) + 1
        separable = terms * width + terms**2 * outputs + terms * height * outputs / inputs
        worth = _WORTH if inputs % 8 or outputs % 8 else _WORTH_IN_EIGHTS
        return separable <= worth * side**2 * outputs

    def _made(self, form: str, angle: float, *size: int) -> tuple[Tensor, ...]:
        """What a form of the layer needs, kept as long as neither weights nor mode change."""
        if self.training or torch.is_grad_enabled():
            return self._make(form, angle, *size)
        rho = None if self.rho is None else self.rho._version
        key = (form, angle, size, self.coefficients._version, rho, self.coefficients.dtype, self.coefficients.device)
        if key not in self._kept:
            self._kept[key] = self._make(form, angle, *size)
        return self._kept[key]

    def _make(self, form: str, angle: float, *size: int) -> tuple[Tensor, ...]:
        if form == "filters":
            return (self.filters(angle),)
        height, width = size
        with torch.autocast(self.coefficients.device.type, enabled=False):
            jets, terms = self.jets(), self.order + 1
            _, inputs, outputs = self.coefficients.shape
            # One matrix (K P, P C) mixes what the derivatives along columns gave into what those along rows take.
            grid = self.coefficients.new_zeros(terms * terms, inputs, outputs)
            places = [p * terms + q for p, q in derivative_orders(self.order)]
            grid = grid.index_copy(0, torch.tensor(places, device=grid.device), self._turned(angle))
            mix = grid.view(terms, terms, inputs, outputs).permute(3, 0, 1, 2).reshape(outputs * terms, terms * inputs)
            along_columns = _bands(jets, width).transpose(2, 3)
            along_rows = _bands(jets, height).transpose(1, 2).reshape(len(jets), height, terms * height)
            return along_columns, mix, along_rows

    def _turned(self, angle: float) -> Tensor:
        """The coefficients of the filters that are turned by an angle: steering acts on them alone."""
        if angle == 0:
            return self.coefficients
        matrix = steering(angle, self.order).to(self.coefficients)
        return torch.einsum("ji,jck->ick", matrix, self.coefficients)

    def _windows(self, sigma: Tensor) -> list[int]:
        if self.sigma_mode != "free":
            return self._half_widths
        # It has to follow the scale, in steps: the one mode whose filters change their size.
        widths = (self.truncation * sigma.detach()).nan_to_num(1.0).clamp(max=_LARGEST_HALF_WIDTH)
        return [_half_width(value) for value in widths.tolist()]


def _half_width(value: float) -> int:
    return max(1, math.ceil(value - 1e-6))


def _direct(x: Tensor, filters: Tensor) -> Tensor:
    """One grouped convolution: (S or 1, B, C, H, W) and (S, K, C, k, k) -> (S, B, K, H, W)."""
    branches, outputs, _, side, _ = filters.shape
    seen = len(x)  # 1: all branches see the same
    stacked = x.transpose(0, 1).flatten(1, 2)
    y = functional.conv2d(stacked, filters.flatten(0, 1), padding=side // 2, groups=seen)
    return y.view(len(y), branches, outputs, *y.shape[2:]).transpose(0, 1).contiguous()


def _separable(x: Tensor, along_columns: Tensor, mix: Tensor, along_rows: Tensor) -> Tensor:
    """The same by matrix products: derivatives along columns, mixing, derivatives along rows.

    Args:
        x: (S or 1, B, C, H, W).
        along_columns: (S, P, W, W).
        mix: (K P, P C).
        along_rows: (S, H, P H).
    """
    branches, terms, width, _ = along_columns.shape
    _, batch, inputs, height, _ = x.shape
    lines = x.reshape(len(x), batch * inputs * height, width).expand(branches, -1, -1)
    derived = [torch.bmm(lines, along_columns[:, q]).view(-1, inputs, height * width) for q in range(terms)]
    columns = torch.cat(derived, dim=1)
    mixed = torch.bmm(mix.expand(len(columns), -1, -1), columns).view(branches, -1, terms * height, width)
    rows = [torch.bmm(matrix.expand(len(maps), -1, -1), maps) for matrix, maps in zip(along_rows, mixed, strict=True)]
    return torch.stack(rows).view(branches, batch, -1, height, width)


def _bands(jets: Tensor, size: int) -> Tensor:
    """1-D filters (S, P, k) as matrices (S, P, size, size) that filter a line with zeros around."""
    half = jets.shape[-1] // 2
    places = torch.arange(size, device=jets.device)
    offset = places[None, :] - places[:, None] + half
    inside = (offset >= 0) & (offset <= 2 * half)
    return jets[:, :, offset.clamp(0, 2 * half)] * inside
