"""Lifters of a pose in parts: with nothing in common, or joined half-way.

Source: sections 2.1 and 3.2 of the reference notes on "Optimising 2D Pose Representation" (arXiv 2209.00618), which
follow the first author's public code (Aswarin/2D-to-3D-Pose). Everything is defined by one partition of the joints, so
that other skeletons and free partitions take the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainables.common.pose.networks import Block, Dense, Lifter, linear
from trainables.common.pose.skeleton import NUM_JOINTS, ROOT, SUBSETS

Partition = Mapping[str, tuple[int, ...]]
"""Joints of each part by its name; together they cover all joints."""


def partition(representation: str, joints: int, custom: Sequence[Sequence[int]] = ()) -> dict[str, tuple[int, ...]]:
    """The parts in which a representation gives a pose to its networks.

    Args:
        representation: full, two_*, five_*, left_right (the trunk is in both halves), or custom.
        joints: Number of joints J, a key of `skeleton.SUBSETS`.
        custom: The parts of custom.

    Raises:
        ValueError: The parts of custom do not cover all joints, name one that is not there, or name one twice.
    """
    subset = SUBSETS[joints]
    match representation.split("_", maxsplit=1)[0]:
        case "full":
            return {"full": tuple(range(joints))}
        case "two":
            return subset.two_parts
        case "five":
            return subset.five_parts
        case "left":
            return subset.half_parts
    parts = {f"part{number}": tuple(part) for number, part in enumerate(custom)}
    if any(len(set(part)) != len(part) or not part for part in parts.values()):
        raise ValueError("a part is empty or has a joint twice")
    covered = {joint for part in parts.values() for joint in part}
    if covered != set(range(joints)):
        raise ValueError(f"the parts cover joints {sorted(covered)}; expected all of 0..{joints - 1}")
    return parts


def split(x: Tensor, parts: Partition) -> dict[str, Tensor]:
    """Image positions (B, J, 2) by part, each (B, n, 2)."""
    return {name: x[:, _selector(part)] for name, part in parts.items()}


def _selector(part: Sequence[int]) -> slice | list[int]:
    """Neighbours are a view; a list of indices would be sent to the device at each call."""
    first, last = part[0], part[-1]
    return slice(first, last + 1) if tuple(part) == tuple(range(first, last + 1)) else list(part)


class Combine(nn.Module):
    """Puts the depths of the parts in the order of the joints; a joint of several parts gets the mean of them.

    Args:
        parts: Joints of each part.
        joints: Number of joints J.
    """

    _order: Tensor
    _places: Tensor
    _times: Tensor

    def __init__(self, parts: Partition, joints: int) -> None:
        super().__init__()
        places = [joint for part in parts.values() for joint in part]
        self._joints = joints
        self._is_disjoint = len(places) == joints
        # Not in checkpoints: they follow from the partition.
        self.register_buffer("_places", torch.tensor(places), persistent=False)
        self.register_buffer("_order", torch.tensor([places.index(joint) for joint in range(joints)]), persistent=False)
        self.register_buffer("_times", torch.tensor([places.count(joint) for joint in range(joints)]), persistent=False)

    def forward(self, depths: Sequence[Tensor]) -> Tensor:
        """Depths (B, n) of each part, in the order of the parts -> (B, J)."""
        together = torch.cat(list(depths), dim=1)
        if self._is_disjoint:
            return together.index_select(1, self._order)
        total = together.new_zeros(len(together), self._joints).index_add(1, self._places, together)
        return total / self._times


def _rooted(depths: Tensor) -> Tensor:
    """Depths (B, J), that of the root 0 if it is among the joints: it is the origin."""
    if depths.shape[1] != NUM_JOINTS:
        return depths
    return torch.cat([torch.zeros_like(depths[:, : ROOT + 1]), depths[:, ROOT + 1 :]], dim=1)


class Independent(nn.Module):
    """A lifter for each part; no part sees another. With one part it is the lifter of the whole pose.

    Args:
        parts: Joints of each part.
        blocks: Residual blocks of each part's lifter.
        joints: Number of joints J.
        width: Features H of all lifters.
        layers: norm, activation and dropout of all lifters.
    """

    def __init__(
        self, parts: Partition, blocks: Mapping[str, int], *, joints: int = 16, width: int = 1024, **layers: Any
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.lifters = nn.ModuleDict(
            {name: Lifter(len(part), width, blocks[name], **layers) for name, part in parts.items()}
        )
        self.combine = Combine(parts, joints)

    def forward(self, x: Tensor) -> Tensor:
        """Image positions (B, J, 2) -> depths (B, J) in (-1, 1)."""
        pieces = split(x, self.parts)
        depths: Tensor = self.combine([lifter(pieces[name]) for name, lifter in self.lifters.items()])
        return _rooted(depths)


class Joined(nn.Module):
    """A branch for each part, whose features are put side by side and lifted together.

    Branch: Linear H, norm, activation -> blocks -> Linear H n / J, without norm or activation. The features of all
    branches, H together, go through further blocks -> Linear J -> tanh.

    Args:
        parts: Joints of each part, disjoint; their features are put together in this order.
        blocks_part: Residual blocks of each branch.
        blocks_shared: Residual blocks after the branches are joined.
        joints: Number of joints J.
        width: Features H.
        layers: norm, activation and dropout of all layers.

    Raises:
        ValueError: The width cannot be divided among the joints.
    """

    def __init__(
        self,
        parts: Partition,
        blocks_part: int,
        blocks_shared: int,
        *,
        joints: int = 16,
        width: int = 1024,
        dropout: float = 0.0,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.branches = nn.ModuleDict(
            {
                name: nn.Sequential(
                    Dense(2 * len(part), width, **layers),
                    *(Block(width, dropout=dropout, **layers) for _ in range(blocks_part)),
                    linear(width, features),
                )
                for (name, part), features in zip(parts.items(), shared_features(parts, width), strict=True)
            }
        )
        self.blocks = nn.Sequential(*(Block(width, dropout=dropout, **layers) for _ in range(blocks_shared)))
        self.head = linear(width, joints)

    def features(self, x: Tensor) -> Tensor:
        """Image positions (B, J, 2) -> what the branches say of them, side by side (B, H)."""
        pieces = split(x, self.parts)
        return torch.cat([branch(pieces[name].flatten(1)) for name, branch in self.branches.items()], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Image positions (B, J, 2) -> depths (B, J) in (-1, 1)."""
        depths: Tensor = self.head(self.blocks(self.features(x)))
        return _rooted(depths.tanh())


def shared_features(parts: Partition, width: int) -> list[int]:
    """Features of each branch of `Joined`, in proportion to its joints; together they are the width.

    Raises:
        ValueError: The width is no multiple of the number of joints.
    """
    joints = sum(len(part) for part in parts.values())
    if width % joints:
        raise ValueError(f"width={width} must be a multiple of the {joints} joints where parts share features")
    return [width * len(part) // joints for part in parts.values()]
