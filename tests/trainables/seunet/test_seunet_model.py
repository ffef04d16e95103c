"""SEUNet: sizes, branches that are isolated and share coefficients, shifts between them, training."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pharos.errors import InputError
from trainables.common.histology.branches import BranchLogits
from trainables.common.histology.equivariance import branch_errors
from trainables.common.histology.filters import GaussianConv, Interval, derivative_orders
from trainables.seunet.model import SEUNet, intervals
from trainables.seunet.recipe import SEUNetConfig, SEUNetRecipe, make_network


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _network(**settings: Any) -> SEUNet:
    values = {"branches": 3, "branch_width": 3, "depth": 2, **settings}
    network = make_network(SEUNetConfig(**values), 4)
    assert isinstance(network, SEUNet)
    return network


def _images(count: int = 2, side: int = 16) -> Tensor:
    smooth = torch.nn.functional.interpolate(torch.randn(count, 3, side // 4, side // 4), scale_factor=4.0)
    return smooth + 0.3 * torch.randn(count, 3, side, side)


def _layers(network: SEUNet) -> list[GaussianConv]:
    return [module for module in network.modules() if isinstance(module, GaussianConv)]


# --- sizes (7.1) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "order", "classes", "head", "expected"),
    [
        (60, 1, 2, "split", 366_841),
        (60, 2, 2, "split", 697_861),
        (60, 2, 5, "split", 697_900),
        (60, 3, 2, "split", 1_139_221),
        (60, 4, 2, "split", 1_690_921),
        (40, 2, 2, "split", 312_761),
        (30, 2, 2, "split", 177_403),
        (20, 2, 2, "split", 80_173),
        (60, 2, 5, "fused", 701_025),
    ],
)
def test_the_authors_networks_have_the_documented_parameters(
    width: int, order: int, classes: int, head: str, expected: int
) -> None:
    with torch.device("meta"):
        network = make_network(SEUNetConfig(branch_width=width // 5, order=order, head=head), classes)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(
    ("branches", "depth", "expected"), [(3, 2, 5_198), (3, 3, 20_138), (5, 2, 5_540), (5, 3, 20_872)]
)
def test_small_networks_have_the_documented_parameters(branches: int, depth: int, expected: int) -> None:
    with torch.device("meta"):
        network = make_network(SEUNetConfig(branches=branches, branch_width=4, depth=depth), 5)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_ranges_of_scale_are_the_documented_ladders() -> None:
    sizes = {"branches": 5, "depth": 4, "level_offset": 0.5}
    offset = intervals("offset", 0.5, 0.5, **sizes)  # type: ignore[arg-type]
    assert [(ranges[0].low, ranges[-1].high) for ranges in offset] == [(0.5 + d, 3 + d) for d in (0, 0.5, 1, 1.5, 2)]
    constant = intervals("constant", 0.5, 0.5, **sizes)  # type: ignore[arg-type]
    assert all(ranges == offset[0] for ranges in constant)
    geometric = intervals("geometric", 0.5, 1.41, **sizes)  # type: ignore[arg-type]
    assert [r.high / r.low for r in geometric[3]] == pytest.approx([1.41] * 5)
    for ranges in (*offset, *geometric):
        assert all(a.high == b.low for a, b in itertools.pairwise(ranges))


# --- branches (7.5, 7.6, 7.7, 7.9) -------------------------------------------------------------------------


def test_branches_of_equal_scale_are_the_same_network() -> None:
    def logits(*sigmas: float) -> Tensor:
        ranges = [[Interval(sigma, sigma) for sigma in sigmas]] * 3
        network = SEUNet(4, 3, ranges, head="split", eta="bounded", norm="shared", lift_truncation=3.0).train()
        network(_images())
        with torch.no_grad():
            found: Tensor = network.eval()(_images()).logits
        return found

    same, apart = logits(1.0, 1.0, 1.0), logits(0.8, 1.0, 1.2)
    torch.testing.assert_close(same, same[:1].expand_as(same), rtol=0, atol=1e-5)
    assert (apart[0] - apart[1]).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["shared", "per_branch"])
def test_a_branch_s_features_reach_its_own_logits_alone(norm: str) -> None:
    network = _network(norm=norm).eval()
    x = _images()
    with torch.no_grad():
        before = network(x).logits
        for branch in range(3):

            def blank(module: object, given: object, features: Tensor, branch: int = branch) -> Tensor:
                changed = features.clone()
                changed[branch] = 0
                return changed

            handle = network.body.encoder[0].register_forward_hook(blank)
            differs = (network(x).logits - before).flatten(1).abs().amax(1) > 0
            handle.remove()
            assert differs.tolist() == [other == branch for other in range(3)]


def test_branches_are_normalised_by_themselves() -> None:
    network = _network()
    norm = network.body.encoder[0].norms[0]
    x = torch.randn(3, 4, 3, 8, 8) * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1, 1)
    y = norm(x)
    torch.testing.assert_close(y.std(dim=(1, 3, 4), correction=0), torch.ones(3, 3), rtol=1e-3, atol=1e-3)
    for branch in range(3):
        alone = torch.nn.functional.batch_norm(x[branch], None, None, training=True)
        torch.testing.assert_close(y[branch], alone, rtol=1e-4, atol=1e-5)


def test_one_branch_is_a_plain_network_of_gaussian_filters() -> None:
    network = _network(branches=1)
    out = network(_images())
    assert out.logits.shape == (1, 2, 4, 16, 16)
    assert out.weights.tolist() == [1.0]
    for fusion in ("margin", "margin_mean", "mean", "eta"):
        torch.testing.assert_close(out.probabilities(fusion), out.logits[0].softmax(1))


def test_isotropic_filters_turn_with_the_image() -> None:
    network = _network().double().train()
    x = _images().double()
    network(x)
    network.eval()
    laplacian = {(0, 0): 1.0, (2, 0): 0.5, (0, 2): 0.5}
    with torch.no_grad():
        plain, turned = network(x).logits, network(x.rot90(1, (2, 3))).logits
        assert (turned - plain.rot90(1, (3, 4))).abs().max() > 1e-3
        for layer in _layers(network):
            first = layer.coefficients[2].clone()
            for place, orders in enumerate(derivative_orders(2)):
                layer.coefficients[place] = first * laplacian.get(orders, 0.0)
        plain, turned = network(x).logits, network(x.rot90(1, (2, 3))).logits
    torch.testing.assert_close(turned, plain.rot90(1, (3, 4)), rtol=0, atol=1e-10)


def test_the_best_pair_of_an_image_with_itself_has_no_error() -> None:
    network = _network().eval()
    with torch.no_grad():
        plain, magnified = network(_images()).logits, network(_images(side=32)).logits
    assert branch_errors(plain, plain).diagonal().max() == 0
    assert branch_errors(plain, magnified).isfinite().all()


def test_a_magnified_image_is_answered_by_a_higher_branch() -> None:
    """A layer with its norm and ReLU: exact shifts between branches, as the ladder is geometric (7.7, 7.8)."""
    network = _network(
        ladder="geometric", sigma_low=0.8, branches=3, norm="shared", lift_truncation=4.0, truncation=4.0
    )
    vectors, phases = 0.25 * torch.randn(3, 10, 2), 6 * torch.rand(3, 10)

    def image(half: int, step: float) -> Tensor:
        line = torch.arange(-half, half + 1) * step
        at = torch.einsum("cwa,ahk->cwhk", vectors, torch.stack(torch.meshgrid(line, line, indexing="ij")))
        return (at + phases[..., None, None]).cos().sum(1)[None]

    network.eval()
    block = network.body.encoder[0]
    with torch.no_grad():
        plain = block(image(32, 1.0)[None], [0.0])[..., 24:41, 24:41]
        twice = block(image(64, 1 / 1.41**2)[None], [0.0])
        # Every pixel's place in the magnified image, between its pixels.
        places = (64 + (torch.arange(24, 41) - 32) * 1.41**2) / 64 - 1
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij")[::-1], -1)
        back = torch.nn.functional.grid_sample(
            twice.flatten(0, 1), grid.expand(3, -1, -1, -1), align_corners=True, mode="bicubic"
        ).view_as(plain)
    moved, stayed = ((other - plain[0]).norm() / plain[0].norm() for other in (back[2], back[0]))
    assert moved < 0.02
    assert stayed > 0.15


# --- heads, losses, training (7.12, 7.15, 7.16) ------------------------------------------------------------


def test_a_fused_head_gives_one_map() -> None:
    out = _network(head="fused")(_images())
    assert isinstance(out, BranchLogits)
    assert out.logits.shape == (1, 2, 4, 16, 16)
    assert out.weights.tolist() == [1.0]


def test_uniform_weights_have_no_parameter() -> None:
    network = _network(eta="uniform")
    assert network.eta is None
    assert network(_images()).weights.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("settings", [{}, {"head": "fused"}, {"pool": "avg", "norm": "shared"}, {"sigma_mode": "free"}])
def test_every_parameter_has_a_gradient(settings: dict[str, Any]) -> None:
    network = _network(**settings).train()
    network(_images()).loss(torch.randint(0, 4, (2, 16, 16))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def _fitted(network: SEUNet, x: Tensor, y: Tensor, steps: int) -> float:
    optimiser = torch.optim.Adam(network.train().parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        network(x).loss(y).backward()
        optimiser.step()
    return float((network(x).probabilities("margin").argmax(1) == y).float().mean())


def test_the_mini_network_learns_four_crops_by_heart() -> None:
    x = _images(4)
    y = (torch.nn.functional.avg_pool2d(x, 5, 1, 2)[:, 0] > 0).long()
    assert _fitted(_network(branch_width=6), x, y, 80) > 0.97


def test_smoothing_alone_cannot_tell_directions_apart() -> None:
    rows = torch.arange(16.0)
    stripes = (rows * math.pi / 2 + 0.5).cos()
    x = torch.stack([stripes[:, None].expand(16, 16), stripes[None, :].expand(16, 16)])[:, None].expand(2, 3, 16, 16)
    y = torch.stack([torch.zeros(16, 16), torch.ones(16, 16)]).long()
    # Isotropic filters give a stripe and its quarter turn the same answer up to that turn, which the mask does not do;
    # only the padding tells them apart, so that what lies inside must stay at chance.
    oriented, isotropic = (_network(order=order, depth=1) for order in (2, 0))
    assert _fitted(oriented, x, y, 40) > 0.97
    _fitted(isotropic, x, y, 40)
    plain, turned = (isotropic(image[None]).logits for image in (x[0], x[1]))
    torch.testing.assert_close(plain.rot90(1, (3, 4)).flip(-1), turned.flip(-1), rtol=1e-3, atol=1e-3)


def test_narrow_scales_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SEUNetRecipe().check(SEUNetConfig())
        assert not caplog.records
        SEUNetRecipe().check(SEUNetConfig(sigma_low=0.1))
    assert "sigma_low=0.1: below 0.4 px derivatives cannot be sampled" in caplog.text


def test_impossible_settings_are_refused_in_one_line() -> None:
    for settings, message in {
        ("ladder", "stairs"): "recipe.ladder=stairs must be one of offset",
        ("head", "two"): "recipe.head=two must be one of split, fused",
        ("sigma_ratio", 0.5): "recipe.sigma_ratio=0.5 must be at least 1.01",
        ("branches", 0): "recipe.branches=0 must be at least 1",
        ("sigma_mode", "wild"): "recipe.sigma_mode=wild must be one of constrained",
    }.items():
        with pytest.raises(InputError, match=message):
            SEUNetConfig(**dict([settings]))  # type: ignore[arg-type]
