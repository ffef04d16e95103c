"""Networks: the papers' parameter counts, user weights in every naming, layers whose weights stay fixed."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pharos.errors import InputError, PharosError
from pharos.learner import Learner, OptimConfig
from pharos.run import Run
from trainables.common.quantisation.fixing import MASK, VALUE, Layout, check_alike, make_fixable
from trainables.common.quantisation.models import ModelConfig, build_model

IMAGENET, CIFAR, DIGITS = (3, 224, 224), (3, 32, 32), (1, 8, 8)


@pytest.mark.parametrize(
    ("config", "classes", "image", "counts"),
    [
        (("resnet18", 64), 1000, IMAGENET, (11_689_512, 11_689_512, 11_679_912)),
        (("resnet34", 64), 1000, IMAGENET, (21_797_672, 21_797_672, 21_780_648)),
        (("resnet50", 64), 1000, IMAGENET, (25_557_032, 25_557_032, 25_503_912)),
        (("resnet18_c", 64), 10, CIFAR, (11_173_962, 11_173_962, 11_173_962 - 9_600)),
        (("resnet34_c", 64), 10, CIFAR, (21_282_122, 21_282_122, 21_282_122 - 17_024)),
        (("resnet50_c", 64), 10, CIFAR, (23_520_842, 23_520_842, 23_520_842 - 53_120)),
        (("resnet18_c", 8), 10, CIFAR, (176_402, 176_402, 175_202)),
        (("resnet18_c", 16), 10, CIFAR, (701_466, 701_466, 701_466 - 2_400)),
        (("deit_tiny", 64), 1000, IMAGENET, (5_717_416, 5_669_800, 5_669_800)),
        (("deit_small", 64), 1000, IMAGENET, (22_050_664, 21_955_432, 21_955_432)),
        (("vit_digits", 64), 10, DIGITS, (114_778, 113_050, 113_050)),
        (("vit_glyph", 64), 10, CIFAR, (208_074, 202_698, 202_698)),
        (("cnn_s", 64), 10, DIGITS, (23_034, 23_034, 22_874)),
    ],
)
def test_parameters_are_as_many_as_the_papers_have(config, classes, image, counts):
    count, with_bn, without_bn = counts
    with torch.device("meta"):
        network = build_model(ModelConfig(*config), classes, image)
    assert sum(p.numel() for p in network.parameters()) == count
    whole = Layout.of(make_fixable(copy.deepcopy(network), include_bn=True))
    assert (whole.size, whole.total) == (with_bn, count)
    assert Layout.of(make_fixable(network, include_bn=False)).size == without_bn


def test_resnet_18_has_the_papers_62_quantised_tensors():
    with torch.device("meta"):
        network = build_model(ModelConfig("resnet18"), 1000, IMAGENET)
    assert len(Layout.of(make_fixable(network, include_bn=True)).names) == 62


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="vit_digits takes images of 1x8x8"):
        build_model(ModelConfig("vit_digits"), 10, CIFAR)
    with pytest.raises(InputError, match="halves images twice"):
        build_model(ModelConfig("cnn_s"), 10, (1, 9, 9))
    with pytest.raises(InputError, match="must be one of"):
        ModelConfig("vgg")


# User weights


def as_torchvision(state):
    """A CIFAR ResNet's state with torchvision's (and timm's) names."""
    named = {}
    for key, value in state.items():
        parts = key.removeprefix("backbone.").split(".")
        kind = {"convolution": "conv", "normalization": "bn"}
        if parts[0] == "classifier":
            named[f"fc.{parts[2]}"] = value
        elif parts[1] == "embedder":
            named[f"{kind[parts[3]]}1.{parts[4]}"] = value
        elif parts[6] == "shortcut":
            place = 0 if parts[7] == "convolution" else 1
            named[f"layer{int(parts[3]) + 1}.{parts[5]}.downsample.{place}.{parts[8]}"] = value
        else:
            named[f"layer{int(parts[3]) + 1}.{parts[5]}.{kind[parts[8]]}{int(parts[7]) + 1}.{parts[9]}"] = value
    return named


def as_timm(state):
    """A vision transformer's state with timm's names: queries, keys and values are one tensor."""
    named = {}
    for key, value in state.items():
        name = key.removeprefix("backbone.vit.").removeprefix("backbone.")
        if "_proj" in name and "o_proj" not in name:
            if "q_proj" not in name:
                continue
            parts = [state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            value = torch.cat(parts)  # noqa: PLW2901
        for old, new in (
            ("layers.", "blocks."),
            ("attention.q_proj", "attn.qkv"),
            ("attention.o_proj", "attn.proj"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm", "norm"),
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("classifier", "head"),
        ):
            name = name.replace(old, new)
        named[name] = value
    return named


@pytest.mark.parametrize(
    ("name", "image", "renamed"),
    [
        ("resnet18_c", CIFAR, as_torchvision),
        ("resnet50_c", CIFAR, as_torchvision),
        ("vit_digits", DIGITS, as_timm),
        ("vit_digits", DIGITS, dict),
        ("vit_digits", DIGITS, lambda state: {key.removeprefix("backbone."): value for key, value in state.items()}),
        ("cnn_s", DIGITS, lambda state: {f"module.{key}": value for key, value in state.items()}),
    ],
    ids=["torchvision", "torchvision-bottleneck", "timm", "own", "transformers", "data-parallel"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_user_s_weights_come_in_whatever_their_names(tmp_path, name, image, renamed, suffix):
    torch.manual_seed(1)
    theirs = build_model(ModelConfig(name, 2), 10, image)
    path = tmp_path / f"weights{suffix}"
    state = renamed(theirs.state_dict())
    if suffix == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    ours = build_model(ModelConfig(name, 2, str(path)), 10, image)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    def load(path, width=4):
        build_model(ModelConfig("cnn_s", width, str(path)), 10, DIGITS)

    state = build_model(ModelConfig("cnn_s", 4), 10, DIGITS).state_dict()
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.pt")
    torch.save({key: value for key, value in state.items() if key != "hidden.bias"}, tmp_path / "less.pt")
    with pytest.raises(InputError, match=r"1 tensors are missing, among them hidden\.bias"):
        load(tmp_path / "less.pt")
    torch.save(state, tmp_path / "narrow.pt")
    with pytest.raises(InputError, match=r"features\.0\.weight is \(4, 1, 3, 3\), this network has \(5, 1, 3, 3\)"):
        load(tmp_path / "narrow.pt", width=5)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InputError, match=r"not safetensors|more than tensors"):
        load(tmp_path / "text.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match="holds more than tensors"):
        load(tmp_path / "module.pt")


# Fixable layers


class Everything(nn.Module):
    """Each kind of layer that can be fixed, with all that convolutions may have."""

    def __init__(self):
        super().__init__()
        self.two = nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1, groups=2, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Conv1d(4, 3, 2, bias=False)
        self.norm_1 = nn.BatchNorm1d(3, momentum=None)
        self.three = nn.Conv3d(1, 2, 2)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        x = self.norm_1(self.one(self.norm(self.two(x)).flatten(2)))
        return self.out(
            self.three(x[:, None, :, :, None].expand(-1, -1, -1, -1, 2))
            .mean(dim=(3, 4))
            .flatten(1)[:, :6]
            .repeat(1, 2)[:, :6]
        )


def make_everything():
    torch.manual_seed(0)
    return Everything()


@pytest.mark.parametrize("training", [True, False])
def test_a_fixable_network_computes_what_the_plain_one_does_and_learns_the_same(training):
    plain, fixable = make_everything().train(training), make_fixable(make_everything(), include_bn=True).train(training)
    for _ in range(2):
        x = torch.randn(3, 2, 8, 8)
        ours, theirs = fixable(x), plain(x)
        assert torch.equal(ours, theirs)
        ours.square().sum().backward()
        theirs.square().sum().backward()
    for (name, mine), other in zip(fixable.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad), name
    state = fixable.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    "optim",
    [OptimConfig(lr=0.1), OptimConfig("adamw", lr=0.1, weight_decay=0.1), OptimConfig("sgd", 0.1, weight_decay=0.1)],
    ids=["adam", "adamw", "sgd"],
)
def test_fixed_weights_keep_their_bits_and_the_others_train(optim):
    learner = Learner("net", make_fixable(make_everything(), include_bn=True), optim)
    layout = Layout.of(learner.module)
    for step in range(3):  # moments that would move them
        learner.step(learner(torch.randn(3, 2, 8, 8)).square().sum() + step)
    weights = learner.weights()
    mask = np.random.default_rng(0).random(layout.size) < 0.5
    values = np.where(mask, np.float32(0.125), layout.vector(weights)).astype(np.float32)
    learner.load_weights(layout.fixed(weights, values, mask))
    assert np.array_equal(layout.vector(learner.weights()), values)
    assert np.array_equal(layout.mask(learner.weights()), mask)
    for _ in range(3):
        learner.step(learner(torch.randn(3, 2, 8, 8)).square().sum())
    after = layout.vector(learner.weights())
    assert np.array_equal(after[mask], values[mask])
    assert (after[~mask] != values[~mask]).mean() > 0.8
    gradients = dict(learner.gradients())
    for name in layout.names:
        assert not gradients[name][learner.weights()[name + MASK]].any()


def test_with_all_weights_fixed_training_leaves_the_outputs_alone():
    learner = Learner("net", make_fixable(make_everything(), include_bn=True), OptimConfig(lr=0.1, weight_decay=0.1))
    layout = Layout.of(learner.module)
    everything = np.ones(layout.size, bool)
    learner.load_weights(layout.fixed(learner.weights(), layout.vector(learner.weights()), everything))
    learner.module.eval()  # running statistics would move
    x = torch.randn(3, 2, 8, 8)
    before = learner(x).detach()
    for _ in range(3):
        learner.step(learner(x).square().sum())
    assert torch.equal(learner(x), before)


def test_a_state_with_other_weights_has_none_fixed():
    network = make_fixable(make_everything(), include_bn=True)
    layout = Layout.of(network)
    state = layout.fixed(network.state_dict(), layout.vector(network.state_dict()), np.ones(layout.size, bool))
    free = layout.written(state, np.zeros(layout.size, np.float32))
    assert not layout.mask(free).any()
    assert not layout.vector(free).any()
    assert not free["out.weight" + VALUE].any()


def test_layers_that_share_a_parameter_are_refused():
    first = nn.Linear(2, 2)
    second = nn.Linear(2, 2)
    second.weight = first.weight
    with pytest.raises(ValueError, match="two that share a parameter"):
        Layout.of(make_fixable(nn.Sequential(first, second), include_bn=True))
    assert Layout.of(make_fixable(nn.Sequential(first, first), include_bn=True)).size == 6  # counted once


def test_biases_can_be_left_alone():
    layout = Layout.of(make_fixable(make_everything(), include_bn=False, include_bias=False))
    assert layout.names == ("two.weight", "one.weight", "three.weight", "out.weight")


def test_workers_that_decide_differently_are_found(monkeypatch):
    run = Run(seed=0)
    check_alike(run, np.arange(3.0))
    monkeypatch.setattr(run, "mean", lambda values: {name: value + 0.5 for name, value in values.items()})
    with pytest.raises(PharosError, match="fixed different weights"):
        check_alike(run, np.arange(3.0))
