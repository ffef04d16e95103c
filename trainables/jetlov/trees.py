"""Trees of splittings as arrays, and batches of them as the networks take them.

Section 2.3 of the reference notes on JetLOV (arXiv 2311.14654), layer 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.jetlov.declustering import Cuts, Nodes, decluster
from trainables.jetlov.jets import Jets, ragged

Ints = npt.NDArray[np.int64]

_ARRAYS = ("raw", "lund", "parent", "offsets", "label")


@dataclass(frozen=True)
class Batch:
    """Trees of several jets: first the root of each, then all other nodes, jet after jet.

    Whatever has a parent is a slice then, and so are the messages of a graph network.
    """

    raw: Tensor
    """Momenta of both subjets of each node, (N, 8), fp32."""
    lund: Tensor
    """Lund variables, (N, 5), fp32."""
    parent: Tensor
    """The node before each that is no root, (N - J,)."""
    children: Tensor
    """Each node's up to two children: 1 + their place among those that are no roots, 0: none, (N, 2)."""
    degree: Tensor
    """Neighbours of each node, at least 1, (N, 1), fp32."""
    below: Tensor
    """Nodes of each jet beside its root, (J,)."""
    tree: Tensor
    """The jet of each node, (N,)."""
    label: Tensor
    """(J,), int64."""

    def __len__(self) -> int:
        return len(self.label)


class Trees:
    """The trees of many jets; the arrays may lie in files.

    Args:
        nodes: Their splittings.
        label: 1 of signal, (J,).
    """

    def __init__(self, nodes: Nodes, label: npt.NDArray[np.int8]):
        self.raw, self.lund, self.parent, self.offsets = nodes.raw, nodes.lund, nodes.parent, nodes.offsets
        self.label = label
        self.index = torch.arange(len(label))
        """0 to J - 1: what `epoch.batches` draws from."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def counts(self) -> Ints:
        """Nodes of each jet, (J,)."""
        return np.diff(self.offsets)

    def take(self, chosen: Tensor, device: torch.device) -> Batch:
        """The trees of some jets.

        Args:
            chosen: Of `index`.
            device: Where they go.
        """
        jets = chosen.numpy()
        first, below = self.offsets[:-1][jets], self.counts[jets] - 1
        rows = np.concatenate([first, ragged(first + 1, below)])
        count, starts = len(jets), np.cumsum(below) - below
        jet = np.repeat(np.arange(count), below)
        up = self.parent[rows[count:]]
        parent = np.where(up == 0, jet, count + starts[jet] + up - 1)
        children = np.zeros((len(rows), 2), dtype=np.int64)
        # In depth-first order the first child follows its parent at once.
        own = np.arange(count, len(rows))
        is_second = (parent != own - 1) & ~((up == 0) & (own - count == starts[jet]))
        children[parent, is_second.astype(np.int64)] = own - count + 1
        degree = np.maximum(1, (children > 0).sum(axis=1) + (np.arange(len(rows)) >= count))
        label = self.label[jets].astype(np.int64)
        trees = np.concatenate([np.arange(count), jet])
        # Copies: the arrays may be views of files that nobody may write.
        arrays = (self.raw[rows], self.lund[rows], parent, children, degree[:, None].astype(np.float32), below, trees)
        return Batch(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (*arrays, label)))

    def batches(
        self, size: int, device: torch.device, *, rank: int = 0, workers: int = 1
    ) -> Iterator[tuple[Tensor, Batch]]:
        """All jets in order, a share of each batch on every worker; all workers see as many batches.

        Yields:
            Which jets (B,), the last maybe twice; and their trees.
        """
        mine = torch.arange(rank, -(-len(self) // workers) * workers, workers).clamp_max(len(self) - 1)
        for chosen in mine.split(size):  # type: ignore[no-untyped-call]
            yield chosen, self.take(chosen, device)

    def save(self, folder: Path) -> None:
        """Writes each array as a file."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Trees:
        """What `save` wrote; only what is used of it comes into memory."""
        found = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        nodes = Nodes(found["raw"], found["lund"], found["parent"], np.asarray(found["offsets"]))
        return cls(nodes, np.asarray(found["label"]))


def build(jets: Jets, cuts: Cuts) -> Trees:
    """Declusters jets."""
    return Trees(decluster(jets, cuts), jets.label)


def together(parts: list[Trees]) -> Trees:
    """All jets of several."""
    if len(parts) == 1:
        return parts[0]
    raw, lund, parent, label = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("raw", "lund", "parent", "label")
    )
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.counts for part in parts]))])
    return Trees(Nodes(raw, lund, parent, offsets), label)


def some(trees: Trees, chosen: Ints) -> Trees:
    """Some of the jets, in that order."""
    counts = trees.counts[chosen]
    rows = ragged(trees.offsets[:-1][chosen], counts)
    nodes = Nodes(trees.raw[rows], trees.lund[rows], trees.parent[rows], np.concatenate([[0], np.cumsum(counts)]))
    return Trees(nodes, trees.label[chosen])
