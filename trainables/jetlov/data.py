"""The one entry to the trees that are trained on: `open_study(config)`; every worker gets the same."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pharos.cache import local_copy, made
from pharos.errors import InputError
from trainables.jetlov import readers, toy
from trainables.jetlov.settings import JetDataConfig
from trainables.jetlov.trees import Trees, build, some, together

__all__ = ["JetDataConfig", "Study", "open_study"]

SPLITS = ("train", "val", "test")
_TOY_SIZES = {"train": 10_000, "val": 2_000, "test": 5_000}  # of each class
_LAYOUT = 1  # of the cached trees
_BYTES_PER_CONSTITUENT = 60  # of its node


@dataclass(frozen=True)
class Study:
    """Trees of all splits."""

    train: Trees
    """Of the domains that are trained on, mixed."""
    val: dict[str, Trees]
    """By domain, those that are trained on first."""
    test: dict[str, Trees]
    """The same."""
    trained: tuple[str, ...]
    """The domains that are trained on."""


def open_study(config: JetDataConfig) -> Study:
    """The trees that a configuration names.

    Raises:
        InputError: Files are missing or broken, or there are not enough jets.
    """
    share = -(-config.train // len(config.trained)) if config.train else 0
    train = together([_open(config, "train", domain, share) for domain in config.trained])
    val, test = (
        {domain: _open(config, split, domain, count) for domain in config.all_domains}
        for split, count in (("val", config.val), ("test", config.test))
    )
    return Study(train, val, test, tuple(config.trained))


def _open(config: JetDataConfig, split: str, domain: str, per_class: int) -> Trees:
    """The trees of one split of one domain, so many of each class; 0: all."""
    if config.source == "toy":
        if domain not in toy.DOMAINS:
            raise InputError(f"recipe.data.domains: {domain} is none of the toy's: {', '.join(toy.DOMAINS)}")
        seed = zlib.crc32(f"{config.seed}/{split}/{domain}".encode())
        return build(toy.make_jets(config.task, per_class or _TOY_SIZES[split], domain, seed), config.cuts)
    if not config.root:
        raise InputError(f"recipe.data.root: source={config.source} needs it; built in is source=toy")
    files = readers.find(config.source, local_copy(config.root), config.task, split, domain)
    whole = _cached(config, files, split, domain)
    return _balanced(whole, per_class, config.seed) if per_class else whole


def _cached(config: JetDataConfig, files: Sequence[readers.Source], split: str, domain: str) -> Trees:
    """Declustered once on a node: the jets decide, by their files' sizes and times, and how they are declustered."""
    identity = [
        *("jetlov", _LAYOUT, config.source, config.task, split, domain, asdict(config.cuts)),
        [(str(file.path), file.path.stat().st_size, file.path.stat().st_mtime_ns, file.part) for file in files],
    ]
    size = sum(file.path.stat().st_size for file in files) * _BYTES_PER_CONSTITUENT // 16

    def fill(folder: Path) -> None:
        jets = readers.read(config.source, files, config.task, domain)
        if len(np.unique(jets.label)) < 2:
            raise InputError(f"recipe.data.root: {split} of {domain} has jets of one class alone")
        build(jets, config.cuts).save(folder)

    return Trees.load(made(identity, size, fill))


def _balanced(trees: Trees, per_class: int, seed: int) -> Trees:
    """So many jets of each class, drawn by a seed, in their order."""
    rng, chosen = np.random.default_rng(seed), []
    for label in (0, 1):
        own = np.flatnonzero(trees.label == label)
        if len(own) < per_class:
            raise InputError(f"recipe.data: {per_class} jets of each class are wanted, class {label} has {len(own)}")
        chosen.append(rng.permutation(own)[:per_class])
    return some(trees, np.sort(np.concatenate(chosen)))
