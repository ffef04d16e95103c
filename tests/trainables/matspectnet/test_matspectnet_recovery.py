"""Invariants 1, 4 and 17 of the reference notes: spectral recovery."""

import pytest
import torch

from trainables.matspectnet.recovery import Recovery, SpectralAttention


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts_are_those_of_the_paper_and_of_the_nano_preset() -> None:
    assert count(Recovery()) == 1_619_625
    assert count(Recovery(stages=1, width=16)) == 152_314
    assert count(SpectralAttention(31)) == 4_434


@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 19), (17, 32)])
def test_any_size_comes_back_as_it_was(height: int, width: int) -> None:
    torch.manual_seed(0)
    net = Recovery(stages=2, width=16)
    spectra, features = net(torch.rand(2, 3, height, width))
    assert spectra.shape == (2, 31, height, width)
    assert features.shape == (2, net.feature_width, -(-height // 8) * 2, -(-width // 8) * 2)


def test_padding_changes_nothing_of_what_needs_none() -> None:
    torch.manual_seed(0)
    net = Recovery(stages=1, width=16)
    x = torch.rand(1, 3, 16, 16)
    mirrored = torch.nn.functional.pad(x[..., :13], (0, 3, 0, 0), mode="reflect")
    torch.testing.assert_close(net(x[..., :13])[0], net(mirrored)[0][..., :13])


def test_rows_of_the_attention_sum_to_one() -> None:
    torch.manual_seed(0)
    module = SpectralAttention(32, heads=2, head_width=16)
    torch.nn.init.constant_(module.scale, 5.0)
    weights, values = module.attention(torch.randn(3, 50, 32))
    assert weights.shape == (3, 2, 16, 16)
    assert values.shape == (3, 2, 16, 50)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 16))
    assert weights.std() > 1e-3


def test_without_positions_pixels_may_be_in_any_order() -> None:
    torch.manual_seed(0)
    module = SpectralAttention(31)
    x = torch.randn(2, 31, 6, 7)
    order = torch.randperm(42)
    mixed = x.flatten(2)[..., order].reshape(x.shape)
    with_positions = module(mixed) - module(x).flatten(2)[..., order].reshape(x.shape)
    assert with_positions.abs().max() > 1e-4
    torch.nn.init.zeros_(module.position[2].weight)
    torch.testing.assert_close(module(mixed), module(x).flatten(2)[..., order].reshape(x.shape))


def test_residuals_are_those_of_the_two_versions() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    for residual in ("first", "body"):
        net = Recovery(stages=2, residual=residual)
        torch.nn.init.zeros_(net.out.weight)
        first = body = net.into(x)
        for stage in net.stages:
            body, _ = stage(body)
        torch.testing.assert_close(net(x)[0], first if residual == "first" else body)
        assert not torch.allclose(first, body)


def test_features_are_the_middle_stage_s() -> None:
    torch.manual_seed(0)
    net = Recovery(stages=3)
    seen: list[torch.Tensor] = []
    net.stages[1].bottleneck.register_forward_hook(lambda module, given, out: seen.append(out))
    _, features = net(torch.rand(1, 3, 16, 16))
    assert features is seen[0]
