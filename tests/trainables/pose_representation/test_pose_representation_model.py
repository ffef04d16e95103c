"""Representations: sizes, partitions, what depends on what, joined and independent networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pharos.errors import InputError
from trainables.common.pose.metrics import influence, leakage
from trainables.common.pose.skeleton import SUBSETS
from trainables.pose_representation.model import Combine, Independent, Joined, partition, shared_features, split
from trainables.pose_representation.recipe import PoseRepresentationConfig, lifter, loss_groups

PAPERS = ("full", "two_independent", "two_shared", "five_independent", "five_shared")
ALL = (*PAPERS, "left_right")
TWO = SUBSETS[16].two_parts
LEGS, TORSO = (list(part) for part in TWO.values())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _x(count: int = 4, joints: int = 16) -> Tensor:
    return torch.rand(count, joints, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _config(representation: str, **others: object) -> PoseRepresentationConfig:
    return PoseRepresentationConfig(representation=representation, **{"width": 32, **others})  # type: ignore[arg-type]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("representation", "expected"),
    [
        ("full", {"affine": 12_672_016, "none": 12_645_392, 256: 808_720, 128: 207_760}),
        ("two_independent", {"affine": 12_675_088, "none": 12_646_416, 256: 809_488, 128: 208_144}),
        ("two_shared", {"affine": 13_724_688, "none": 13_696_016, 256: 875_280, 128: 224_656}),
        ("five_independent", {"affine": 10_581_008, "none": 10_550_288, 256: 679_184, 128: 175_760}),
        ("five_shared", {"affine": 13_733_904, "none": 13_699_088, 256: 877_584, 128: 225_808}),
        ("left_right", {"affine": 12_687_380, "none": 12_658_708, 256: 812_564, 128: 209_684}),
    ],
)
def test_representations_have_the_documented_parameters(representation: str, expected: dict[str | int, int]) -> None:
    found = {}
    with torch.device("meta"):
        for key in expected:
            size = {"norm": key, "width": 1024} if isinstance(key, str) else {"width": key}
            found[key] = _count(lifter(_config(representation, **size)))
    assert found == expected


def test_whole_and_two_parts_are_of_near_identical_size() -> None:
    with torch.device("meta"):
        full, two = (_count(lifter(_config(name, width=1024))) for name in ("full", "two_independent"))
        assert abs(two / full - 1) < 3e-4
        assert _count(lifter(_config("five_independent", width=1024, blocks_trunk=2))) == 12_684_304


def test_joined_features_have_the_width_of_the_whole() -> None:
    assert shared_features(TWO, 1024) == [384, 640]
    assert shared_features(SUBSETS[16].five_parts, 1024) == [192, 192, 256, 192, 192]
    for name in ("two_shared", "five_shared"):
        network = lifter(_config(name))
        assert isinstance(network, Joined)
        assert network.features(_x()).shape == (4, 32)
    with pytest.raises(InputError, match="multiple of the 16 joints"):
        _config("two_shared", width=40)


# --- partitions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joints", [14, 16, 17])
@pytest.mark.parametrize("representation", ALL)
def test_partitions_cover_and_come_back(representation: str, joints: int) -> None:
    parts = partition(representation, joints)
    places = [joint for part in parts.values() for joint in part]
    assert set(places) == set(range(joints))
    trunk = {joint for joint in places if places.count(joint) > 1}
    assert trunk == (set(parts["left"]) & set(parts["right"]) if representation == "left_right" else set())
    x = _x(3, joints)
    pieces = split(x, parts)
    for axis in range(2):
        back = Combine(parts, joints)([piece[..., axis] for piece in pieces.values()])
        assert torch.equal(back, x[..., axis])


def test_parts_come_in_the_order_of_the_joints() -> None:
    assert list(partition("five_shared", 16)) == ["right_leg", "left_leg", "trunk", "left_arm", "right_arm"]
    for name in PAPERS:
        assert [joint for part in partition(name, 16).values() for joint in part] == list(range(16))
    assert set(partition("left_right", 16)["left"]) & set(partition("left_right", 16)["right"]) == {6, 7, 8, 9}


def test_custom_parts_may_come_in_any_order_and_overlap() -> None:
    scrambled = [[9, 8, 7, 6, 0], list(range(1, 6)), list(range(10, 16))]
    network = lifter(_config("custom", parts=scrambled))
    assert network(_x()).shape == (4, 16)
    assert loss_groups(_config("custom", parts=scrambled))["part0"] == (9, 8, 7, 6, 0)
    overlapping = Combine({"a": (0, 1, 2), "b": (2, 1)}, 3)
    merged = overlapping([torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5.0, 4.0]])])
    assert merged.tolist() == [[1.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"representation": "three_independent"}, "must be one of full, two_independent"),
        ({"representation": "custom"}, r"cover joints \[\]"),
        ({"representation": "custom", "parts": [[0, 0], list(range(1, 16))]}, "joint twice"),
        ({"representation": "custom", "parts": [list(range(17))]}, "expected all of 0..15"),
        ({"representation": "custom", "parts": [[k] for k in range(16)]}, "6 blocks cannot be divided evenly"),
        ({"blocks_legs": 6}, "leaves the torso none of 6"),
        ({"representation": "two_shared", "blocks_shared": 3}, "3 blocks cannot be divided evenly among 2"),
        ({"representation": "two_shared", "blocks_shared": 6}, "0 blocks"),
        ({"representation": "left_right", "blocks": 5}, "5 blocks"),
        ({"seeds": 0}, "recipe.seeds=0 must be at least 1"),
        ({"adv_share": "most"}, "by_joints, equal, one"),
        ({"norm": "group"}, "affine, batch, layer, none"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        PoseRepresentationConfig(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


# --- what depends on what ----------------------------------------------------------------------------------


@pytest.mark.parametrize("representation", ["two_independent", "five_independent"])
def test_depths_of_a_part_do_not_see_the_others(representation: str) -> None:
    network, x = lifter(_config(representation)), _x()
    parts = partition(representation, 16)
    for part in map(list, parts.values()):
        others = [joint for joint in range(16) if joint not in part]
        moved = x.clone()
        moved[:, part] += 0.3
        assert torch.equal(network(x)[:, others], network(moved)[:, others])
        assert (network(x)[:, part] != network(moved)[:, part]).any()
    rows = influence(network, x)
    assert leakage(rows, list(parts.values())) == 0.0
    assert leakage(rows, list(TWO.values())) == 0.0


@pytest.mark.parametrize("representation", ["full", "two_shared", "five_shared", "left_right"])
def test_shared_features_let_torso_and_legs_depend_on_each_other(representation: str) -> None:
    network, x = lifter(_config(representation)), _x()
    moved = x.clone()
    moved[:, TORSO] += 0.3
    assert not torch.equal(network(x)[:, LEGS], network(moved)[:, LEGS])
    assert leakage(influence(network, x), list(TWO.values())) > 0.1


def test_a_block_diagonal_stem_of_the_whole_is_the_stems_of_two_parts() -> None:
    pair = Independent(TWO, {"legs": 0, "torso": 0}, width=8)
    whole = Independent({"full": tuple(range(16))}, {"full": 0}, width=16)
    legs, torso, full = (
        network.lifters[name].stem for network, name in ((pair, "legs"), (pair, "torso"), (whole, "full"))
    )
    with torch.no_grad():
        full.linear.weight.copy_(torch.block_diag(legs.linear.weight, torso.linear.weight))
        full.linear.bias.copy_(torch.cat([legs.linear.bias, torso.linear.bias]))
    x = _x()
    pieces = split(x, TWO)
    apart = torch.cat([legs(pieces["legs"].flatten(1)), torso(pieces["torso"].flatten(1))], dim=1)
    torch.testing.assert_close(full(x.flatten(1)), apart)


def test_joined_parts_with_a_block_diagonal_head_are_independent() -> None:
    network, x = Joined(TWO, 1, 0, width=32), _x()
    with torch.no_grad():
        network.head.weight[:6, 12:] = 0
        network.head.weight[6:, :12] = 0
    assert leakage(influence(network, x), list(TWO.values())) == 0.0
    legs = network.branches["legs"](x[:, :6].flatten(1))
    alone = (legs @ network.head.weight[:6, :12].T + network.head.bias[:6]).tanh()
    torch.testing.assert_close(network(x)[:, :6], alone)


@pytest.mark.parametrize("representation", ALL)
def test_other_skeletons_take_the_same_way(representation: str) -> None:
    for joints, width in ((14, 28), (17, 34)):
        z = lifter(_config(representation, width=width, data=_skeleton(joints)))(_x(3, joints))
        assert z.shape == (3, joints)
        # The root is the origin.
        assert (z[:, 0] == 0).all() == (joints == 17)


def _skeleton(joints: int) -> object:
    config = PoseRepresentationConfig().data
    config.joints = joints
    return config


@pytest.mark.parametrize("representation", ALL)
def test_a_pose_without_extent_and_a_huge_one_have_finite_depths(representation: str) -> None:
    network = lifter(_config(representation))
    for x in (torch.zeros(2, 16, 2), torch.full((2, 16, 2), 1e6)):
        z = network(x)
        assert z.isfinite().all()
        assert z.abs().max() <= 1
