"""Gaussian-derivative filters: the basis, steering, scale ranges, and both forms of the layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite
from torch import Tensor

from trainables.common.histology import filters
from trainables.common.histology.filters import (
    GaussianConv,
    Interval,
    derivative_orders,
    gaussian_basis,
    gaussian_jet,
    ladder,
    steering,
)

ANGLES = (0.0, 17.0, 45.0, 90.0, 135.0, 200.0, 359.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _jet(sigma: float, order: int, half: int) -> Tensor:
    return gaussian_jet(torch.tensor([sigma], dtype=torch.float64), order, [half])[0]


def _layer(*sigmas: float, inputs: int = 2, outputs: int = 3, **settings: object) -> GaussianConv:
    intervals = [Interval(sigma, sigma) for sigma in sigmas]
    return GaussianConv(inputs, outputs, intervals, sigma_mode="fixed", **settings).double().eval()  # type: ignore[arg-type]


def _waves(count: int, shortest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth images, known everywhere: wave vectors (n, 40, 2), phases and amplitudes (n, 40)."""
    length = shortest * (1 + 2 * torch.rand(count, 40, dtype=torch.float64))
    angle = 2 * math.pi * torch.rand(count, 40, dtype=torch.float64)
    vectors = 2 * math.pi / length[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    return (
        vectors,
        2 * math.pi * torch.rand(count, 40, dtype=torch.float64),
        torch.randn(count, 40, dtype=torch.float64),
    )


def _sampled(waves: tuple[Tensor, Tensor, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """(1, 1, n, H, W): all images as channels of one."""
    vectors, phases, amplitudes = waves
    at = torch.einsum("nwa,ahk->nwhk", vectors, torch.stack([rows, columns])) + phases[..., None, None]
    return (amplitudes[..., None, None] * at.cos()).sum(1)[None, None]


def _grid(half: int, step: float = 1.0) -> tuple[Tensor, Tensor]:
    line = torch.arange(-half, half + 1, dtype=torch.float64) * step
    return torch.meshgrid(line, line, indexing="ij")


# --- the basis (SEUNet 7.2, RSESF 7.2) ---------------------------------------------------------------------


def test_jets_have_the_documented_values() -> None:
    jet = _jet(1.0, 2, 3)
    expected = [
        [0.004433, 0.054006, 0.242036, 0.399050],
        [0.013299, 0.108011, 0.242036, 0.0],
        [0.035464, 0.162017, 0.0, -0.399050],
    ]
    torch.testing.assert_close(jet[:, :4], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-7)
    narrow = torch.tensor([0.002566, 0.165525, 0.663818], dtype=torch.float64)
    torch.testing.assert_close(_jet(0.6, 0, 2)[0, :3], narrow, rtol=0, atol=6e-7)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.7, 3.0])
def test_jets_are_of_unit_sum_and_even_or_odd(sigma: float) -> None:
    jet = _jet(sigma, 4, 9)
    assert float(jet[0].sum()) == pytest.approx(1, abs=1e-15)
    for n in range(5):
        torch.testing.assert_close(jet[n].flip(0), (-1) ** n * jet[n], rtol=0, atol=1e-16)
    assert abs(float(jet[1].sum())) < 1e-16


@pytest.mark.parametrize("sigma", [0.7, 1.3])
def test_jets_are_the_derivatives_of_the_gaussian_and_hermite_polynomials_times_it(sigma: float) -> None:
    half = 6
    x = torch.arange(-half, half + 1, dtype=torch.float64, requires_grad=True)
    derivative = torch.exp(-x.square() / (2 * sigma**2))
    total = derivative.sum().detach()
    jet = _jet(sigma, 4, half)
    z = np.arange(-half, half + 1) / (math.sqrt(2) * sigma)
    for n in range(5):
        closed = (-1 / math.sqrt(2)) ** n * hermite.hermval(z, [0] * n + [1]) * jet[0].numpy()
        np.testing.assert_allclose(jet[n].numpy(), closed, atol=1e-14)
        torch.testing.assert_close(jet[n], (sigma**n * derivative / total).detach(), rtol=0, atol=1e-13)
        derivative = torch.autograd.grad(derivative.sum(), x, create_graph=True)[0]


def test_the_basis_is_stacked_as_documented() -> None:
    assert derivative_orders(2) == [(0, 2), (0, 1), (0, 0), (1, 1), (1, 0), (2, 0)]
    jet = _jet(1.1, 2, 4)
    basis = gaussian_basis(jet[None])[0]
    for (p, q), plane in zip(derivative_orders(2), basis, strict=True):
        torch.testing.assert_close(plane, jet[p][:, None] * jet[q][None, :])


def test_narrow_scales_have_an_ill_conditioned_basis() -> None:
    def condition(sigma: float) -> float:
        values = torch.linalg.svdvals(gaussian_basis(_jet(sigma, 2, 8)[None])[0].flatten(1))
        return float(values[0] / values[-1])

    assert condition(0.25) > 1e5
    assert condition(0.4) == pytest.approx(72, rel=0.02)
    assert condition(0.6) == pytest.approx(5.0, rel=0.02)
    assert condition(1.0) == pytest.approx(2.6, rel=0.02)


# --- steering (RSESF 7.3, 7.4, 7.8) ------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_steering_is_a_representation_of_the_rotations(order: int) -> None:
    count = len(derivative_orders(order))
    assert torch.equal(steering(0.0, order), torch.eye(count, dtype=torch.float64))
    for first in ANGLES:
        torch.testing.assert_close(steering(first + 360, order), steering(first, order), rtol=0, atol=1e-12)
        opposite = torch.tensor([(-1.0) ** (p + q) for p, q in derivative_orders(order)], dtype=torch.float64)
        half_turn = opposite[:, None] * steering(first, order)
        torch.testing.assert_close(steering(first + 180, order), half_turn, rtol=0, atol=1e-12)
        for second in ANGLES:
            both = steering(first, order) @ steering(second, order)
            torch.testing.assert_close(both, steering(first + second, order), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("angle", ANGLES)
def test_a_steered_basis_is_the_analytically_turned_one(order: int, angle: float) -> None:
    sigma, half = 1.3, 6
    rows, columns = _grid(half)
    rows, columns = rows.clone().requires_grad_(), columns.clone().requires_grad_()
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    gaussian = torch.exp(-(rows.square() + columns.square()) / (2 * sigma**2))
    gaussian = gaussian / gaussian.sum().detach()

    def derived(field: Tensor, along_rows: float, along_columns: float) -> Tensor:
        gradient = torch.autograd.grad(field.sum(), (rows, columns), create_graph=True)
        return sigma * (along_rows * gradient[0] + along_columns * gradient[1])

    basis = gaussian_basis(_jet(sigma, order, half)[None])[0]
    steered = torch.einsum("ji,ixy->jxy", steering(angle, order), basis)
    for (p, q), plane in zip(derivative_orders(order), steered, strict=True):
        field = gaussian
        for _ in range(p):
            field = derived(field, c, -s)
        for _ in range(q):
            field = derived(field, s, c)
        torch.testing.assert_close(plane, field.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", ANGLES)
def test_the_mixed_derivative_is_also_the_product_of_the_first_ones(angle: float) -> None:
    basis = gaussian_basis(_jet(1.0, 2, 5)[None])[0]
    _, along_columns, gaussian, mixed, along_rows, _ = torch.einsum("ji,ixy->jxy", steering(angle, 2), basis)
    scale = mixed.abs().max()
    torch.testing.assert_close(along_rows * along_columns / gaussian / scale, mixed / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("angle", ANGLES)
def test_a_filter_turns_exactly_by_ninety_degrees(angle: float) -> None:
    layer = _layer(0.7, 1.4, order=3, truncation=2.5)
    turned = layer.filters(angle).rot90(-1, (-2, -1))
    torch.testing.assert_close(layer.filters(angle + 90), turned, rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", [10.0, 45.0])
def test_a_layer_answers_to_a_turned_image_as_to_the_image(angle: float) -> None:
    waves = _waves(64, 8.0)
    rows, columns = _grid(7)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Only the middle pixel of the image lies on the grid of the turned one.
    before = _sampled(waves, rows, columns)
    after = _sampled(waves, c * rows - s * columns, s * rows + c * columns)
    layer = _layer(1.0, 1.4, 1.8, inputs=64, outputs=32, truncation=2.5)
    plain, turned = layer(before)[..., 7, 7], layer(after, [angle])[..., 7, 7]
    errors = (turned - plain).norm(dim=(1, 2)) / plain.norm(dim=(1, 2))
    assert (errors < 0.03).all(), errors
    unturned = layer(after)[..., 7, 7]
    assert ((unturned - plain).norm(dim=(1, 2)) / plain.norm(dim=(1, 2)) > 3 * errors).all()


# --- scales (SEUNet 7.3, 7.4, 7.7, RSESF 7.9 to 7.11) ------------------------------------------------------


@pytest.mark.parametrize(("truncation", "most"), [(3.0, 0.02), (4.0, 0.005)])
def test_a_rescaled_image_moves_to_another_branch(truncation: float, most: float) -> None:
    waves = _waves(8, 10.0)
    ratio = math.sqrt(2)
    layer = _layer(*(0.8 * ratio**i for i in range(4)), inputs=8, outputs=8, truncation=truncation)
    image, twice = _sampled(waves, *_grid(24)), _sampled(waves, *_grid(48, 0.5))
    plain = layer(image)[:, 0, :, 16:33, 16:33]
    large = layer(twice)[:, 0, :, 32:65:2, 32:65:2]
    for branch in (0, 1):
        size = plain[branch].norm()
        assert (large[branch + 2] - plain[branch]).norm() / size < most
        assert (large[branch] - plain[branch]).norm() / size > 0.15


@pytest.mark.parametrize("rho", [-50.0, -1.0, 0.0, 0.3, 50.0])
def test_scales_stay_inside_of_their_intervals(rho: float) -> None:
    layer = GaussianConv(1, 1, ladder("arithmetic", 0.5, 0.5, 5)).double()
    assert layer.rho is not None
    torch.nn.init.constant_(layer.rho, rho)
    sigma = layer.sigmas()
    assert (sigma >= layer.low).all()
    assert (sigma <= layer.high).all()
    assert (sigma.diff() >= 0).all()
    gradient = torch.autograd.grad(sigma.sum(), layer.rho)[0]
    torch.testing.assert_close(gradient, (layer.high - layer.low) / 2 * (1 - math.tanh(rho) ** 2))
    if rho == 0:
        torch.testing.assert_close(sigma, (layer.low + layer.high) / 2)


def test_other_modes_of_scale() -> None:
    intervals = ladder("geometric", 0.5, math.sqrt(2), 3)
    fixed, free = (GaussianConv(1, 1, intervals, sigma_mode=mode) for mode in ("fixed", "free"))
    assert fixed.rho is None
    torch.testing.assert_close(free.sigmas(), fixed.sigmas())
    assert free.rho is not None
    torch.nn.init.constant_(free.rho, 1.0)
    torch.testing.assert_close(free.sigmas(), 2 * fixed.sigmas())
    assert free.jets().shape[-1] > GaussianConv(1, 1, intervals).jets().shape[-1]
    faster = GaussianConv(1, 1, intervals, sigma_rate=3.0)
    assert faster.rho is not None
    torch.nn.init.constant_(faster.rho, 0.1)
    middle, half = (faster.high + faster.low) / 2, (faster.high - faster.low) / 2
    torch.testing.assert_close(faster.sigmas(), middle + half * math.tanh(0.3))


def test_ladders_are_neighbouring_intervals() -> None:
    arithmetic, geometric = ladder("arithmetic", 0.4, 0.4, 4, 1), ladder("geometric", 0.5, 2.0, 3)
    np.testing.assert_allclose([i.low for i in arithmetic], [0.8, 1.2, 1.6, 2.0])
    np.testing.assert_allclose([i.high for i in arithmetic], [1.2, 1.6, 2.0, 2.4])
    assert geometric == [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0)]


@pytest.mark.parametrize("angle", [0.0, 30.0])
@pytest.mark.parametrize("low", [0.4, 1.0])
def test_filters_have_the_gradients_of_coefficients_and_scales(angle: float, low: float) -> None:
    layer = GaussianConv(1, 2, ladder("arithmetic", low, 0.4, 2), truncation=2.5).double()

    def made(coefficients: Tensor, rho: Tensor) -> Tensor:
        values = {"coefficients": coefficients, "rho": rho}
        return torch.func.functional_call(_Filters(layer, angle), {f"layer.{k}": v for k, v in values.items()}, ())

    rho = torch.tensor([-0.4, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (layer.coefficients.detach().requires_grad_(), rho))


class _Filters(torch.nn.Module):
    def __init__(self, layer: GaussianConv, angle: float) -> None:
        super().__init__()
        self.layer, self.angle = layer, angle

    def forward(self) -> Tensor:
        return self.layer.filters(self.angle)


def test_a_longer_window_changes_a_filter_by_its_tail_only() -> None:
    # At k = 2.5, a scale of 2 has a half-width of 5; just above it would be 6.
    shorter, longer = _jet(2.0, 0, 5)[0], _jet(2.0, 0, 6)[0]
    assert (longer[1:-1] - shorter).norm() / longer.norm() < 1e-2
    assert longer[0] / longer.norm() < 1e-2


# --- the layer (SEUNet 7.5, 7.10, 7.11; RSESF 7.12) --------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("angle", [0.0, 33.0])
@pytest.mark.parametrize("seen", [1, 3])
def test_both_forms_are_the_same_function(order: int, angle: float, seen: int) -> None:
    layer = _layer(0.7, 1.0, 1.9, order=order)
    x = torch.randn(seen, 2, 2, 12, 9, dtype=torch.float64)
    direct = filters._direct(x, layer.filters(angle))
    separable = filters._separable(x, *layer._make("bands", angle, 12, 9))
    torch.testing.assert_close(separable, direct, rtol=0, atol=1e-10)
    for branch, filter_ in enumerate(layer.filters(angle)):
        image = x[branch if seen > 1 else 0]
        plain = torch.nn.functional.conv2d(image, filter_, padding=filter_.shape[-1] // 2)
        torch.testing.assert_close(direct[branch], plain, rtol=0, atol=1e-10)


def test_each_slot_is_filtered_by_its_own_copy() -> None:
    layer, angles = _layer(0.7, 1.0, 1.9), [0.0, 45.0]
    x = torch.randn(6, 1, 2, 12, 12, dtype=torch.float64)
    before = layer(x, angles)
    for slot in range(6):
        changed = x.clone()
        changed[slot] += 1
        differs = (layer(changed, angles) - before).flatten(1).abs().amax(1) > 0
        assert differs.tolist() == [other == slot for other in range(6)]
        alone = torch.nn.functional.conv2d(x[slot], layer.filters(angles[slot // 3])[slot % 3], padding=4)
        torch.testing.assert_close(before[slot], alone)


def test_branches_of_equal_scale_compute_the_same() -> None:
    image = torch.randn(1, 1, 2, 12, 12, dtype=torch.float64)
    same, other = _layer(1.2, 1.2, 1.2)(image), _layer(1.0, 1.2, 1.4)(image)
    torch.testing.assert_close(same[1:], same[:1].expand(2, -1, -1, -1, -1))
    assert (other[0] - other[1]).abs().max() > 1e-3


def test_a_constant_image_is_seen_by_even_derivatives_alone() -> None:
    layer = _layer(1.2, 1.5, inputs=3)
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    image = colour[None, None, :, None, None].expand(1, 1, 3, 24, 24)
    with torch.no_grad():
        odd = torch.tensor([(p % 2 or q % 2) for p, q in derivative_orders(2)], dtype=torch.bool)
        layer.coefficients[~odd] = 0
        assert layer(image)[..., 8:-8, 8:-8].abs().max() < 1e-15
        layer.coefficients.zero_()
        layer.coefficients[derivative_orders(2).index((0, 0))] = 2.0
        torch.testing.assert_close(
            layer(image)[..., 8:-8, 8:-8], torch.full((2, 1, 3, 8, 8), 2 * float(colour.sum()), dtype=torch.float64)
        )


@pytest.mark.parametrize("side", [8, 80])
def test_filters_are_kept_while_nothing_changes_and_made_again_when_it_does(side: int) -> None:
    layer = GaussianConv(2, 2, ladder("arithmetic", 0.5, 0.1, 2)).eval()
    assert layer._is_separable(side, side) == (side == 8)
    x = torch.randn(2, 1, 2, side, side)
    made = []
    original = layer._make
    layer._make = lambda *args: made.append(args) or original(*args)  # type: ignore[method-assign, func-returns-value]
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
        assert len(made) == 1
        layer.coefficients.mul_(2)
        torch.testing.assert_close(layer(x), 2 * first)
        assert layer.rho is not None
        layer.rho.add_(1)
        assert not torch.allclose(layer(x), 2 * first)
        layer.load_state_dict({name: value / 2 for name, value in layer.state_dict().items()})
        layer(x)
        layer(x, [90.0])
        assert len(made) == 5
    layer.train()
    assert layer(x).requires_grad
    layer(x)
    assert len(made) == 7
    assert not layer._kept


def test_filters_are_made_in_full_precision_under_autocast() -> None:
    layer = GaussianConv(2, 2, ladder("arithmetic", 0.5, 0.5, 2))
    x = torch.randn(2, 1, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.filters().dtype == layer.jets().dtype == torch.float32
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
