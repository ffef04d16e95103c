"""Invariants 1, 5 and 6 of the reference notes, and the sizes of the whole network."""

import pytest
import torch

from trainables.common.materials.network import NetworkConfig, Segmenter
from trainables.common.materials.settings import NANO_NETWORK
from trainables.matspectnet.backbone import SwinV2
from trainables.matspectnet.camera import Camera
from trainables.matspectnet.data import generated_samples
from trainables.matspectnet.model import (
    MatSpectNet,
    ResponseFilters,
    SpectralBranch,
    SpectralNetworkConfig,
    Translation,
    segmenter,
)
from trainables.matspectnet.perception import Perception
from trainables.matspectnet.recovery import Recovery


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_whole_has_the_paper_s_size() -> None:
    with torch.device("meta"):  # sizes without numbers
        dbat = segmenter(SpectralNetworkConfig(), 17, 512, extra=128)
    assert count(dbat.backbone) == 27_579_498
    assert count(dbat) == 56_038_587
    branch = SpectralBranch(ResponseFilters(), Perception(generated_samples(0)))
    assert count(branch.filters) == 53_208
    assert count(branch.layers) == 42_688
    network = MatSpectNet(dbat, branch)
    assert count(network) == 56_134_483
    assert count(network) + count(Recovery()) == 57_754_108


def test_the_nano_preset_has_the_notes_size() -> None:
    config = SpectralNetworkConfig(backbone="swin", **NANO_NETWORK)
    branch = SpectralBranch(ResponseFilters(4), Perception(generated_samples(0)), width=32, patch=2)
    network = MatSpectNet(segmenter(config, 8, 64, extra=32), branch)
    assert count(branch) == 20_600
    assert count(network.segmenter) == 1_175_739
    assert count(network) + count(Recovery(stages=1, width=16)) == 1_348_653


def test_swin_v2_s_maps_have_four_strides_and_its_blocks_start_as_the_identity() -> None:
    torch.manual_seed(0)
    net = SwinV2(64, patch=2, width=16, depths=[1, 1, 2, 1], heads=[1, 2, 4, 8], window=4, drop_path=0.0).eval()
    maps = net(torch.rand(2, 3, 64, 64))
    assert [tuple(x.shape) for x in maps] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8), (2, 128, 4, 4)]
    blocks = [(n, m) for n, m in net.named_modules() if type(m).__name__ == "Swinv2Layer"]
    assert len(blocks) == 5
    for _, block in blocks:
        side = block.input_resolution
        x = torch.randn(1, side[0] * side[1], block.layernorm_before.normalized_shape[0])
        torch.testing.assert_close(block(x, side)[0], x)


@pytest.mark.parametrize("mode", ["sample", "batch", "static"])
def test_curves_go_from_0_to_1_and_responses_are_linear(mode: str) -> None:
    torch.manual_seed(0)
    filters = ResponseFilters(5, mode)
    h, other = torch.rand(3, 31, 8, 8), torch.rand(3, 31, 4, 4)
    curves = filters.responses(h)
    assert curves.shape == (3, 5, 31)
    torch.testing.assert_close(curves.amin(dim=2), torch.zeros(3, 5))
    torch.testing.assert_close(curves.amax(dim=2), torch.ones(3, 5))
    torch.testing.assert_close(filters(h, 2 * other + 1), 2 * filters(h, other) + filters(h, torch.ones_like(other)))
    expected = torch.einsum("bnhw,bkn->bkhw", h, curves) / curves.sum(dim=2)[:, :, None, None]
    torch.testing.assert_close(filters(h), expected)
    torch.testing.assert_close(filters(h, torch.ones_like(other)), torch.ones(3, 5, 4, 4))


def test_an_image_s_responses_depend_on_the_others_only_where_it_says_so() -> None:
    torch.manual_seed(0)
    h = torch.rand(3, 31, 8, 8)
    changed = torch.cat([h[:1], torch.rand(2, 31, 8, 8)])
    sample, batch = ResponseFilters(4, "sample"), ResponseFilters(4, "batch")
    torch.testing.assert_close(sample(h)[0], sample(changed)[0])
    assert not torch.allclose(batch(h)[0], batch(changed)[0])


def test_identity_passes_the_bands_on_without_parameters() -> None:
    filters = ResponseFilters(4, "identity")
    h = torch.rand(1, 31, 4, 4)
    assert filters.outputs == 31
    assert not list(filters.parameters())
    assert filters(h) is h


def test_a_flat_curve_gives_no_nan_and_no_response() -> None:
    filters = ResponseFilters(2, "static")
    torch.nn.init.constant_(filters.curves, 0.7)
    out = filters(torch.rand(1, 31, 4, 4))
    assert not out.any()
    out.sum().backward()
    assert filters.curves.grad is not None
    assert filters.curves.grad.isfinite().all()


def test_pooling_before_the_responses_is_pooling_after_them() -> None:
    torch.manual_seed(0)
    filters = ResponseFilters(3)
    h = torch.rand(2, 31, 8, 8)
    pool = torch.nn.functional.avg_pool2d
    torch.testing.assert_close(filters(h, pool(h, 4)), pool(filters(h), 4))


def test_curves_from_a_smaller_image_have_the_same_form() -> None:
    torch.manual_seed(0)
    small = ResponseFilters(3, pool=4)
    flat = torch.rand(1, 31, 1, 1).expand(1, 31, 16, 16)
    assert small(flat).shape == (1, 3, 16, 16)


def test_spectra_reach_the_logits_and_images_alone_are_dbat() -> None:
    torch.manual_seed(0)
    config = SpectralNetworkConfig(backbone="swin", dropout2d=0.0, **NANO_NETWORK)
    x, h = torch.rand(1, 3, 64, 64), torch.rand(1, 31, 64, 64)
    branch = SpectralBranch(ResponseFilters(4), Perception(generated_samples(0)), width=32, patch=2)
    network = MatSpectNet(segmenter(config, 8, 64, extra=32), branch).eval()
    logits = network(x, h)
    assert logits.shape == (1, 8, 64, 64)
    assert not torch.allclose(logits, network(x, h.flip(1)))
    plain = MatSpectNet(segmenter(config, 8, 64, extra=0), None).eval()
    assert isinstance(plain.segmenter, Segmenter)
    torch.testing.assert_close(plain(x), plain.segmenter(x - 0.5))


def test_a_wider_baseline_has_no_swin_v2() -> None:
    with pytest.raises(ValueError, match="backbone=swin"):
        SpectralNetworkConfig(model="swin_fpn_wide")
    assert NetworkConfig(model="swin_fpn_wide").model == "swin_fpn_wide"


def translation(**options: object) -> Translation:
    bands = torch.arange(400, 701, 10.0)
    sensitivity = torch.stack([torch.exp(-0.5 * ((bands - m) / 40) ** 2) for m in (600, 540, 450)])
    hard = bool(options.get("hard"))
    return Translation(Recovery(1, 8), Camera(sensitivity, trainable=not hard), hard=hard)


def test_training_looks_both_ways_in_both_domains_and_inference_in_one() -> None:
    torch.manual_seed(0)
    net = translation()
    x, clean, other = torch.rand(3, 2, 3, 16, 16)
    h = torch.rand(2, 31, 16, 16)
    found = net(x, h, clean, other)
    assert set(found) == {
        "spectra",
        "features",
        "seen",
        "other_spectra",
        "other_features",
        "other_seen",
        "synthetic",
        "cycle",
    }
    assert net.camera is not None
    torch.testing.assert_close(found["synthetic"], net.camera(h))
    torch.testing.assert_close(found["cycle"], net.recovery(found["synthetic"])[0])
    torch.testing.assert_close(found["other_spectra"], net.recovery(other)[0])
    assert set(net(x)) == {"spectra", "features", "seen"}
    alone = Translation(net.recovery, None)
    assert set(alone(x, h, clean, other)) == {"spectra", "features", "other_spectra", "other_features"}


def test_the_hard_constraint_holds_for_what_is_recovered() -> None:
    torch.manual_seed(0)
    net = translation(hard=True)
    x = torch.rand(2, 3, 16, 16)
    assert net.camera is not None
    assert (net.camera(net.recovered(x)[0]) - x).square().mean() < 1e-10
    assert not [name for name, _ in net.named_parameters() if name.startswith("camera")]
