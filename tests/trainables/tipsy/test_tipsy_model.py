"""Networks of TIPSy-GAN: sizes, initialisation, independence of the parts, equivalence of `affine`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trainables.common.pose.metrics import influence, leakage
from trainables.common.pose.networks import Activation, Block, Critic, Lifter, Norm
from trainables.tipsy.model import PARTS, Pair


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _x(count: int = 4, joints: int = 16) -> Tensor:
    return torch.rand(count, joints, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("joints", "width", "blocks", "norm", "expected"),
    [
        (6, 1024, 3, "affine", 6_331_398),
        (10, 1024, 3, "affine", 6_343_690),
        (16, 1024, 6, "affine", 12_672_016),
        (16, 1024, 6, "batch", 12_672_016),
        (16, 1024, 3, "affine", 6_362_128),
        (16, 1024, 6, "none", 12_645_392),
        (6, 1024, 3, "none", 6_317_062),
        (10, 1024, 3, "none", 6_329_354),
        (16, 128, 6, "none", 204_432),
        (16, 256, 6, "none", 802_064),
        (16, 128, 6, "affine", 207_760),
        (16, 256, 6, "layer", 808_720),
    ],
)
def test_lifter_has_the_papers_parameters(joints: int, width: int, blocks: int, norm: Norm, expected: int) -> None:
    with torch.device("meta"):
        assert _count(Lifter(joints, width, blocks, norm=norm)) == expected


@pytest.mark.parametrize(
    ("width", "norm", "expected"),
    [(1024, "affine", 12_675_088), (128, "none", 204_560), (256, "none", 802_320), (256, "affine", 809_488)],
)
def test_pair_has_the_papers_parameters(width: int, norm: Norm, expected: int) -> None:
    with torch.device("meta"):
        assert _count(Pair(width, norm=norm)) == expected


def test_critic_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        assert _count(Critic()) == 6_332_417


@pytest.mark.parametrize("norm", ["affine", "batch", "layer", "none"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu"])
def test_every_variant_lifts_and_trains_all_parameters(norm: Norm, activation: Activation) -> None:
    model = Pair(16, 1, 2, norm=norm, activation=activation, dropout=0.1)
    z = model(_x())
    assert z.shape == (4, 16)
    assert z.abs().max() < 1
    z.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="affine, batch, layer, none"):
        Lifter(norm="group")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="relu, leaky_relu, gelu"):
        Critic(activation="elu")  # type: ignore[arg-type]


def test_initialisation_is_glorot_uniform_with_zero_bias() -> None:
    for module in Lifter(16, 64, 2).modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()


def test_affine_is_batch_normalisation_with_its_initial_statistics() -> None:
    frozen = Lifter(16, 32, 2, norm="batch").double().eval()
    affine = Lifter(16, 32, 2, norm="affine").double()
    state = {
        name.replace("norm.weight", "norm.gain").replace("norm.bias", "norm.shift"): value
        for name, value in frozen.state_dict().items()
        if "running" not in name and "batches" not in name
    }
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}
    affine.load_state_dict(state)
    frozen.load_state_dict(
        {n.replace("norm.gain", "norm.weight").replace("norm.shift", "norm.bias"): v for n, v in state.items()},
        strict=False,
    )
    torch.testing.assert_close(affine(_x().double()), frozen(_x().double()), rtol=0, atol=1e-12)


def test_input_is_read_joint_by_joint() -> None:
    lifter = Lifter(16, 8, 0)
    x = _x(1)
    unit = lifter.stem.linear.weight @ torch.cat(list(x[0]))
    torch.testing.assert_close(lifter.stem.linear(x.flatten(1))[0], unit)


def test_block_has_no_activation_after_the_addition() -> None:
    block = Block(8)
    h = -torch.ones(2, 8)
    torch.testing.assert_close(block(h), h + block.second(block.first(h)))
    assert (block(h) < 0).any()


def test_parts_of_the_pair_are_independent() -> None:
    pair, x = Pair(32, 2, 2), _x()
    moved = x.clone()
    moved[:, list(PARTS["legs"])] += 0.3
    legs, torso = list(PARTS["legs"]), list(PARTS["torso"])
    assert torch.equal(pair(x)[:, torso], pair(moved)[:, torso])
    assert not torch.equal(pair(x)[:, legs], pair(moved)[:, legs])
    rows = influence(pair, x)
    assert not rows[torso][:, legs].any()
    assert not rows[legs][:, torso].any()
    assert leakage(rows, list(PARTS.values())) == 0.0


def test_joints_of_a_full_lifter_depend_on_all() -> None:
    rows = influence(Lifter(16, 32, 2), _x())
    assert leakage(rows, list(PARTS.values())) > 0.1


@pytest.mark.parametrize(("legs", "torso"), [(6, 8), (7, 10)])
def test_pair_of_other_skeletons(legs: int, torso: int) -> None:
    assert Pair(16, 1, 1, legs=legs, torso=torso)(_x(3, legs + torso)).shape == (3, legs + torso)


def test_critic_scores_are_one_per_pose_and_unbounded() -> None:
    critic = Critic(16, 32, 1)
    assert critic(_x()).shape == (4,)
    assert critic(1000 * _x()).abs().max() > 1


def test_inference_is_deterministic_with_dropout() -> None:
    lifter, x = Lifter(16, 32, 2, dropout=0.5), _x()
    assert not torch.equal(lifter(x), lifter(x))
    lifter.eval()
    assert torch.equal(lifter(x), lifter(x))
