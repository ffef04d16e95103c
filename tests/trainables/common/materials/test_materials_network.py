"""The network part by part: section 7 of the reference notes on DBAT, invariants 1 to 7."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pharos.errors import InputError
from trainables.common.materials.attention import BackwardAttention, Enlarge, MaskHead, Merge, gathered, spread
from trainables.common.materials.decoder import Head, Pyramid
from trainables.common.materials.network import NetworkConfig, Segmenter, parameters, widened
from trainables.common.materials.swin import Swin, swin_parameters
from trainables.common.materials.windows import DropPath, WindowBlock, joined, partitioned, region_mask

PAPER = NetworkConfig()
SMALL = replace(PAPER, patch=2, window=4, merge_heads=8, merge_window=4, pyramid=32, features=32, groups=8)
TINY = replace(SMALL, width=24, depths=[2, 2, 2, 2], heads=[2, 2, 4, 8])
NANO = replace(SMALL, width=16, depths=[1, 1, 2, 1], heads=[1, 2, 4, 8])


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_dbat_with_swin_t_has_the_paper_s_parameters_part_by_part():
    with torch.device("meta"):
        attention, pyramid, head = BackwardAttention(96), Pyramid(96), Head(128, 16, 4, 0.2)
    assert attention.masks is not None
    assert attention.merge is not None
    assert count(attention.masks) == 3_984_384
    assert [count(layer) for layer in attention.enlarge] == [4_732_416, 2_366_976, 1_184_256]
    assert count(attention.merge) == 14_240_320
    assert [count(block) for block in attention.merge.blocks] == [7_120_160, 7_118_624]
    assert count(pyramid) + count(head) == 1_995_536
    backbone = swin_parameters(4, 96, [2, 2, 6, 2], [3, 6, 12, 24], 7)
    assert backbone == 27_520_698
    assert count(attention) + count(pyramid) + count(head) + backbone == 56_024_586


@pytest.mark.parametrize(
    ("changes", "classes", "dbat", "baseline"),
    [
        ({}, 16, 56_024_586, 29_516_234),
        ({}, 27, 56_026_005, 29_517_653),
        ({"depths": [2, 2, 18, 2]}, 16, 77_342_490, 50_834_138),
        ({"depths": [2, 2, 18, 2], "width": 128, "heads": [4, 8, 16, 32]}, 16, 135_918_344, 88_863_432),
    ],
)
def test_the_formula_gives_the_notes_totals(changes, classes, dbat, baseline):
    config = replace(PAPER, **changes)
    assert parameters(config, classes) == dbat
    assert parameters(replace(config, model="swin_fpn"), classes) == baseline


@pytest.mark.parametrize(
    ("config", "classes", "dbat", "baseline"), [(TINY, 8, 3_025_536, 1_362_032), (NANO, 6, 1_175_417, 432_745)]
)
def test_built_networks_have_what_the_formula_gives(config, classes, dbat, baseline):
    plain = replace(config, model="swin_fpn")
    assert count(Segmenter(config, classes, 64)) == parameters(config, classes) == dbat
    assert count(Segmenter(plain, classes, 64)) == parameters(plain, classes) == baseline


def test_the_backbone_of_the_paper_is_built_with_its_parameters():
    with torch.device("meta"):
        backbone = Swin(512, patch=4, width=96, depths=[2, 2, 6, 2], heads=[3, 6, 12, 24], window=7, drop_path=0.2)
    assert count(backbone) == 27_520_698


@pytest.mark.parametrize("config", [PAPER, NANO])
def test_the_wide_control_costs_what_dbat_costs(config):
    wide, wanted = widened(config, 16), parameters(config, 16)
    assert abs(parameters(wide, 16) / wanted - 1) < 0.02
    assert wide.width > config.width
    if config is NANO:
        assert count(Segmenter(replace(config, model="swin_fpn_wide"), 16, 64)) == parameters(wide, 16)


def test_stages_have_their_shapes_and_norms():
    maps = Segmenter(NANO, 6, 64).backbone(torch.rand(2, 3, 64, 64))
    assert [tuple(x.shape) for x in maps] == [(2, 16 * 2**k, 32 // 2**k, 32 // 2**k) for k in range(4)]
    for x in maps:
        torch.testing.assert_close(x.mean(dim=1), torch.zeros_like(x[:, 0]), atol=1e-5, rtol=0)


def test_drop_path_leaves_out_both_branches_of_a_block():
    swin = Swin(32, patch=2, width=8, depths=[2, 1, 1, 1], heads=[1, 1, 1, 1], window=4, drop_path=0.999)
    block = swin.body.swin.encoder.layers[-1].blocks[-1]
    x = torch.randn(4, 4, 64)
    swin.train()
    torch.manual_seed(0)
    assert torch.equal(block(x, (2, 2), always_partition=True)[0], x)
    swin.eval()
    assert not torch.equal(block(x, (2, 2), always_partition=True)[0], x)


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 2))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(torch.ones(3)), torch.ones(3))


def maps(width=4, side=32, batch=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, width * 2**k, side // 2**k, side // 2**k, generator=generator) for k in range(4)]


def module(**changes):
    torch.manual_seed(0)
    return BackwardAttention(4, **({"heads": 4, "window": 4, "drop_path": 0.0} | changes))


def test_masks_are_positive_sum_to_one_and_follow_from_the_last_map_alone():
    attention, x = module().eval(), maps()
    masks = attention(x)[2]
    assert masks.shape == (2, 4, 4, 4)
    assert (masks > 0).all()
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(2, 4, 4), atol=1e-6, rtol=0)
    others = [torch.randn_like(level) for level in x[:3]] + [x[3]]
    assert torch.equal(attention(others)[2], masks)
    assert not torch.equal(attention([*x[:3], torch.randn_like(x[3])])[2], masks)


def test_a_low_temperature_chooses():
    torch.manual_seed(0)
    head, x = MaskHead(4).eval(), torch.randn(2, 32, 4, 4)
    cold = copy.deepcopy(head)
    cold.temperature = 1e-3
    assert cold(x).amax(dim=1).mean() > 0.95 > head(x).amax(dim=1).mean()


def test_controls_of_the_masks():
    x = maps()
    last = module(aggregate="last")
    assert torch.equal(last.aggregated(x, last.weights(x[3])), x[3])
    assert count(last.enlarge) == 0
    assert last.masks is None
    uniform = module(aggregate="uniform")
    enlarged = [layer(level) for layer, level in zip(uniform.enlarge, x[:3], strict=True)] + [x[3]]
    torch.testing.assert_close(uniform.aggregated(x, uniform.weights(x[3])), torch.stack(enlarged).mean(dim=0))


def test_the_aggregate_is_the_masked_sum():
    attention, x = module().eval(), maps()
    enlarged = [layer(level) for layer, level in zip(attention.enlarge, x[:3], strict=True)] + [x[3]]
    _, z, masks = attention(x)
    torch.testing.assert_close(z, torch.einsum("nkhw,knchw->nchw", masks, torch.stack(enlarged)))


@pytest.mark.parametrize("merge", ["gl", "self", "add", "none"])
def test_what_merges_decide(merge):
    attention, x = module(merge=merge).eval(), maps()
    merged, z, _ = attention(x)
    match merge:
        case "none":
            assert torch.equal(merged, z)
        case "add":
            assert torch.equal(merged, x[3] + z)
        case "self":
            assert torch.equal(merged, attention.merge(z, z))
        case _:
            assert torch.equal(merged, attention.merge(x[3], z))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_space_to_depth_and_back(factor):
    x = torch.randn(2, 3, 16, 24)
    out = gathered(x, factor)
    for y, column, i, j, channel in [(0, 0, 0, 1, 2), (1, 2, 1, 0, 0), (0, 1, factor - 1, factor - 1, 1)]:
        value = x[0, channel, factor * y + i, factor * column + j]
        assert out[0, y, column, (i * factor + j) * 3 + channel] == value
    assert torch.equal(spread(out, factor), x)
    shuffled = nn.functional.pixel_unshuffle(x, factor).unflatten(1, (3, factor**2)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(out.permute(0, 3, 1, 2), shuffled)


@pytest.mark.parametrize("how", ["patchmerge", "conv", "avgpool"])
def test_enlarged_maps_have_the_last_one_s_shape(how):
    for k, factor in enumerate((8, 4, 2)):
        assert Enlarge(4 * 2**k, factor, how)(maps()[k]).shape == (2, 32, 4, 4)


def test_averages_cannot_tell_patches_apart_that_tokens_can():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    mixed = x.flatten(2)[:, :, torch.randperm(64)].view_as(x)
    pool, merge = Enlarge(4, 8, "avgpool"), Enlarge(4, 8, "patchmerge")
    torch.testing.assert_close(pool(x), pool(mixed), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merge(x), merge(mixed), atol=1e-2)


def test_the_merge_keeps_the_last_map_s_residual_and_not_the_aggregate_s():
    torch.manual_seed(0)
    merge = Merge(32, 4, 4, 0.0)
    for block in merge.blocks:
        for layer in (block.project, block.mlp[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    x = torch.randn(2, 32, 4, 4)
    for z in (torch.zeros_like(x), torch.randn_like(x)):
        expected = merge.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.equal(merge(x, z), expected)


def test_a_cross_block_given_one_map_twice_is_a_plain_block():
    torch.manual_seed(0)
    cross = WindowBlock(16, 2, 4, 2, is_cross=True, drop_path=0.0)
    plain = WindowBlock(16, 2, 4, 2, is_cross=False, drop_path=0.0)
    plain.load_state_dict({name: value for name, value in cross.state_dict().items() if "value_norm" not in name})
    x = torch.randn(2, 8, 8, 16)
    torch.testing.assert_close(cross(x, x), plain(x))
    assert not torch.allclose(cross(x, torch.randn_like(x)), plain(x))


def test_a_plain_block_is_the_swin_block_of_transformers():
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    torch.manual_seed(0)
    ours = WindowBlock(16, 2, 4, 2, is_cross=False, drop_path=0.0)
    theirs = SwinLayer(SwinConfig(window_size=4), 16, (8, 8), 2, shift_size=2)
    wanted = dict(theirs.state_dict())
    order = [n for n in wanted if "relative_position_index" not in n]

    def source(name):
        kind = name.rpartition(".")[2]
        if "relative_position_bias_table" in name:
            return "relative_position_bias_table"
        if "layernorm_before" in name:
            return f"norm.{kind}"
        if "layernorm_after" in name:
            return f"mlp_norm.{kind}"
        for part in ("query", "key", "value"):
            if part in name or f"{part[0]}_proj" in name:
                return f"{part}.{kind}"
        if "attention" in name:
            return f"project.{kind}"
        return f"mlp.0.{kind}" if "fc1" in name or "intermediate" in name else f"mlp.2.{kind}"

    theirs.load_state_dict({name: ours.state_dict()[source(name)] for name in order}, strict=False)
    x = torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        out = theirs.eval()(x.flatten(1, 2), (8, 8), always_partition=True)[0]
    torch.testing.assert_close(ours(x).detach(), out.view_as(x), atol=1e-5, rtol=1e-4)


def test_windows_there_and_back():
    x = torch.randn(2, 8, 12, 3)
    windows = partitioned(x, 4)
    assert windows.shape == (12, 16, 3)
    assert torch.equal(windows[1].view(4, 4, 3), x[0, :4, 4:8])
    assert torch.equal(joined(windows, 4, 8, 12), x)


def test_a_shifted_map_of_one_window_falls_into_four_groups_and_an_unshifted_one_does_not():
    mask = region_mask(16, 16, 16, 8)[0]
    assert len({tuple(row) for row in (mask == 0).tolist()}) == 4
    assert math.exp(float(mask.min())) < 1e-30
    assert (region_mask(16, 16, 16, 0) == 0).all()


def test_the_shift_is_undone_and_groups_do_not_see_each_other():
    torch.manual_seed(0)
    block = WindowBlock(8, 2, 4, 2, is_cross=False, drop_path=0.0)
    x = torch.randn(1, 4, 4, 8, requires_grad=True)
    block(x)[0, 0, 0].sum().backward()
    seen = x.grad.abs().sum(dim=(0, 3)) > 0
    assert seen.tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2


def test_logits_are_of_the_image_s_size_and_features_at_the_first_stride():
    network = Segmenter(NANO, 6, 64).eval()
    logits, look = network(torch.rand(2, 3, 64, 64), with_look=True)
    assert logits.shape == (2, 6, 64, 64)
    assert look.features.shape == (2, 32, 32, 32)
    assert list(look.layers) == ["map 1", "map 2", "map 3", "map 4", "aggregate", "merged"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "swin_fpn"},
        {"aggregate": "uniform"},
        {"aggregate": "last"},
        {"merge": "self"},
        {"merge": "add"},
        {"merge": "none"},
        {"enlarge": "conv"},
        {"enlarge": "avgpool"},
        {"mask_dilation": 2},
    ],
    ids=str,
)
def test_every_variant_uses_all_that_it_has(changes):
    network = Segmenter(replace(NANO, **changes), 6, 64)
    network(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": [3, 6, 12, 24], "width": 16}, "stage 1 has 16 channels"),
        ({"depths": [1, 1]}, "four numbers"),
        ({"merge_heads": 7}, "must divide 768 channels"),
        ({"groups": 7}, "must divide features=128"),
        ({"aggregate": "most"}, "must be one of"),
        ({"drop_path": 1.0}, "must be from 0 to 0.9"),
    ],
)
def test_impossible_networks_are_refused_in_a_line(changes, said):
    with pytest.raises(InputError, match=said) as caught:
        replace(PAPER, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("side", "said"), [(500, "multiple of 32"), (256, "must divide 8")])
def test_sides_that_do_not_divide_are_refused(side, said):
    with pytest.raises(InputError, match=said):
        PAPER.check_side(side)
    replace(PAPER, model="swin_fpn").check_side(256)


def test_weights_of_a_classifier_start_the_backbone(tmp_path):
    from transformers import SwinConfig, SwinForImageClassification

    torch.manual_seed(0)
    shape = {"patch_size": 2, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}
    classifier = SwinForImageClassification(SwinConfig(image_size=64, num_labels=3, **shape))
    classifier.save_pretrained(tmp_path, safe_serialization=True)
    network = Segmenter(replace(NANO, weights=str(tmp_path)), 6, 64)
    own = dict(network.backbone.body.swin.named_parameters())
    for name, value in classifier.swin.named_parameters():
        if not name.startswith("layernorm."):
            assert torch.equal(own[name], value), name
    assert count(network) == 1_175_417
    with pytest.raises(InputError, match="not the weights of this backbone"):
        Segmenter(replace(TINY, weights=str(tmp_path)), 6, 64)
    with pytest.raises(InputError, match="is needed"):
        Segmenter(replace(NANO, weights=str(tmp_path / "no")), 6, 64)
