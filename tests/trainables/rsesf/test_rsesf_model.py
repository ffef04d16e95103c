"""RSESF: sizes, exact equivariance of the whole network, slots, selections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pharos.errors import InputError
from trainables.common.histology.filters import GaussianConv
from trainables.common.histology.scale_space import SharedNorm
from trainables.rsesf.model import RSESF, SELECTIONS, intervals, pooled
from trainables.rsesf.recipe import RSESFConfig, make_network


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _network(**settings: Any) -> RSESF:
    values = {"width": 3, "branches": 2, "depth": 2, "orientations": 8, **settings}
    network = make_network(RSESFConfig(**values), 2)
    assert isinstance(network, RSESF)
    return network


def _settled(dtype: torch.dtype = torch.float64, **settings: Any) -> RSESF:
    """A network whose normalisation has seen images, in evaluation."""
    network = _network(**settings).to(dtype).train()
    with torch.no_grad():
        for _ in range(3):
            network(_images(4, dtype))
    return network.eval()


def _images(count: int = 2, dtype: torch.dtype = torch.float64, side: int = 16) -> Tensor:
    smooth = torch.nn.functional.interpolate(torch.randn(count, 3, side // 4, side // 4, dtype=dtype), scale_factor=4)
    return smooth + 0.3 * torch.randn(count, 3, side, side, dtype=dtype)


def _turn(x: Tensor, quarters: int = 1) -> Tensor:
    return x.rot90(quarters, (-2, -1))


# --- sizes (7.1, 7.10, 7.13) -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "classes", "expected"),
    [
        ({}, 2, 1_224_158),
        ({"order": 1}, 2, 635_726),
        ({"order": 3}, 2, 2_008_734),
        ({"width": 12}, 2, 689_370),
        ({"width": 8}, 2, 307_094),
        ({"width": 12, "order": 1, "branches": 3}, 5, 358_370),
        ({"width": 8, "branches": 3, "depth": 2}, 2, 18_891),
        ({"width": 8, "branches": 3, "depth": 3}, 2, 76_727),
        ({"width": 8, "branches": 3, "depth": 2}, 5, 18_918),
        ({"width": 4, "branches": 3, "depth": 2}, 5, 4_902),
    ],
)
def test_networks_have_the_documented_parameters_whatever_the_orientations(
    settings: dict[str, Any], classes: int, expected: int
) -> None:
    with torch.device("meta"):
        for orientations in (1, 8):
            network = make_network(RSESFConfig(orientations=orientations, **settings), classes)
            assert sum(p.numel() for p in network.parameters()) == expected


def test_the_papers_ranges_of_scale() -> None:
    with torch.device("meta"):
        network = make_network(RSESFConfig(), 2)
    layers = [module for module in network.modules() if isinstance(module, GaussianConv)]
    assert len(layers) == 18
    levels = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    sides = [11, 11, 13, 13, 15]
    for layer, level in zip(layers, levels, strict=True):
        assert 2 * max(layer._half_widths) + 1 == sides[level]
    found = intervals("arithmetic", 0.4, 0.4, branches=4, depth=4, rule="floor_half")
    for level, ranges in enumerate(found):
        expected = [0.4 + 0.4 * (s + level // 2) for s in range(5)]
        torch.testing.assert_close(
            torch.tensor([*(r.low for r in ranges), ranges[-1].high]), torch.tensor(expected), rtol=0, atol=1e-6
        )
    apart = intervals("arithmetic", 0.4, 0.4, branches=4, depth=2, rule="per_level")
    assert [ranges[0].low for ranges in apart] == pytest.approx([0.4, 0.8, 1.2])


def test_normalisation_is_shared_by_all_slots() -> None:
    network = _settled(branches=3)
    norms = [module for module in network.modules() if isinstance(module, SharedNorm)]
    assert [norm.num_features for norm in norms[:4]] == [3, 3, 6, 6]
    x = torch.randn(6, 2, 3, 4, 4, dtype=torch.float64)
    norm = norms[0]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    expected = (x - norm.running_mean.view(3, 1, 1)) * scale.view(3, 1, 1) + norm.bias.view(3, 1, 1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(norm(x), expected)


# --- equivariance (7.5 to 7.7) -----------------------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("norm", ["shared", "per_branch"])
def test_the_whole_network_turns_exactly_with_its_image(selection: str, norm: str) -> None:
    network, x = _settled(selection=selection, norm=norm), _images()
    with torch.no_grad():
        plain = network(x).logits
        for orientations in (4, 8):
            network.orientations = orientations
            plain = network(x).logits
            for quarters in (1, 2, 3):
                turned = network(_turn(x, quarters)).logits
                torch.testing.assert_close(turned, _turn(plain, quarters), rtol=0, atol=1e-9)
        network.orientations = 1
        assert (network(_turn(x)).logits - _turn(network(x).logits)).abs().max() > 0.01


def test_it_turns_in_single_precision_too() -> None:
    network, x = _settled(torch.float32), _images(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(network(_turn(x)).logits, _turn(network(x).logits), rtol=1e-4, atol=1e-4)


def test_a_network_of_one_orientation_turns_if_its_filters_have_none() -> None:
    network, x = _settled(orientations=1), _images()
    with torch.no_grad():
        for layer in [module for module in network.modules() if isinstance(module, GaussianConv)]:
            layer.coefficients[[1, 3, 4]] = 0  # y, xy, x
            layer.coefficients[5] = layer.coefficients[0]  # xx as yy: the Laplacian
        torch.testing.assert_close(network(_turn(x)).logits, _turn(network(x).logits), rtol=0, atol=1e-9)


def test_slots_permute_as_the_image_turns() -> None:
    network, x = _settled(branches=3), _images()
    angles = [45.0 * r for r in range(8)]
    with torch.no_grad():
        plain, turned = (network.body(image, angles).view(8, 3, 2, 3, 16, 16) for image in (x, _turn(x)))
        # Angles grow clockwise, rot90 turns counter-clockwise.
        torch.testing.assert_close(turned, _turn(plain.roll(-2, 0)), rtol=0, atol=1e-9)
        assert (turned - _turn(plain)).abs().max() > 0.01


def test_a_slot_is_the_upright_network_between_two_turns() -> None:
    network, x = _settled(), _images()
    with torch.no_grad():
        all_at_once = network.body(x, [0.0, 45.0, 90.0])
        torch.testing.assert_close(all_at_once[:2], network.body(x))
        torch.testing.assert_close(all_at_once[2:4], network.body(x, [45.0]))
        torch.testing.assert_close(all_at_once[4:], _turn(network.body(_turn(x)), -1), rtol=0, atol=1e-9)


def test_more_orientations_lessen_the_error_at_other_angles() -> None:
    network = _settled(selection="max", branches=2, width=4)
    rows, columns = torch.meshgrid(*[torch.arange(-16, 16, dtype=torch.float64) + 0.5] * 2, indexing="ij")
    vectors = torch.randn(3, 12, 2, dtype=torch.float64) * 0.35
    phases = 6 * torch.rand(3, 12, dtype=torch.float64)

    def image(turned: bool) -> Tensor:
        c = 0.5**0.5 if turned else 1.0
        s = 0.5**0.5 if turned else 0.0
        at = torch.stack([c * rows - s * columns, s * rows + c * columns])
        return (torch.einsum("cwa,ahk->cwhk", vectors, at) + phases[..., None, None]).cos().sum(1)[None]

    def error(orientations: int) -> float:
        network.orientations = orientations
        with torch.no_grad():
            # The four pixels around the centre, on average: they turn into each other's middles.
            plain, turned = (network(image(turn)).logits[..., 15:17, 15:17].mean((-2, -1)) for turn in (False, True))
        return float((plain - turned).norm() / plain.norm())

    assert error(8) < 0.5 * error(1)


# --- slots and pooling (7.12, 7.14) ------------------------------------------------------------------------


def test_a_slot_of_hidden_features_changes_only_itself() -> None:
    network = _settled(branches=3)
    block, angles = network.body.encoder[1], [0.0, 90.0]
    x = torch.randn(6, 1, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = block(x, angles)
        for slot in range(6):
            changed = x.clone()
            changed[slot] += torch.randn(1, 3, 8, 8, dtype=torch.float64)
            differs = (block(changed, angles) - before).flatten(1).abs().amax(1) > 0
            assert differs.tolist() == [other == slot for other in range(6)]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selections_agree_where_there_is_no_choice(selection: str) -> None:
    features = torch.rand(2, 3, 4, 5, 5)
    assert torch.equal(pooled([features], selection), features)
    assert torch.equal(pooled([features] * 4, selection), features)


def test_selections_are_what_they_say() -> None:
    turned = torch.rand(5, 2, 3, 4, 6, 6)  # R, S, B, C, H, W
    order = torch.randperm(5).tolist()
    for selection in SELECTIONS:
        torch.testing.assert_close(pooled(turned, selection), pooled(turned[order], selection))
    assert torch.equal(pooled(turned, "max"), turned.amax(0))
    for selection, axes in {"pixel_argmax": (3,), "channel_argmax": (4, 5), "image_argmax": (3, 4, 5)}.items():
        best = turned.sum(axes, keepdim=True).argmax(0, keepdim=True).expand(1, *turned.shape[1:])
        assert torch.equal(pooled(turned, selection), turned.gather(0, best)[0]), selection


def test_training_with_several_orientations_is_the_evaluation_of_their_largest_features() -> None:
    network = _settled(orientations_train=4, orientations=4, selection="max")
    x = _images()
    with torch.no_grad():
        evaluated = network(x).logits
        network.train()
        for module in network.modules():
            if isinstance(module, SharedNorm):
                module.eval()
        torch.testing.assert_close(network(x).logits, evaluated)


# --- training (7.10, 7.13, 7.17) ---------------------------------------------------------------------------


def test_scales_and_branch_weights_have_gradients() -> None:
    network = _network(orientations_train=2).train()
    network(_images(dtype=torch.float32)).loss(torch.randint(0, 2, (2, 16, 16))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_mini_network_learns_four_crops_by_heart() -> None:
    network = _network(width=8, branches=3).train()
    x = _images(4, torch.float32)
    y = (torch.nn.functional.avg_pool2d(x, 5, 1, 2)[:, 0] > 0).long()
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss = network(x).loss(y)
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    found = network(x).probabilities("margin").argmax(1)
    assert (found == y).float().mean() > 0.97


def test_impossible_settings_are_refused_in_one_line() -> None:
    for settings, message in {
        ("selection", "best"): "recipe.selection=best must be one of image_argmax",
        ("fusion", "vote"): "recipe.fusion=vote must be one of margin",
        ("order", 7): "recipe.order=7 must be from 0 to 4",
        ("sigma_low", 0.0): "recipe.sigma_low=0.0 must be at least 0.05",
        ("orientations", 0): "recipe.orientations=0 must be at least 1",
        ("depth", 7): "recipe.data.size=96 must be a multiple of 128",
    }.items():
        with pytest.raises(InputError, match=message):
            RSESFConfig(**dict([settings]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiples of 4"):
        _network()(torch.rand(1, 3, 16, 18))
