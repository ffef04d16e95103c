"""One command from nothing to jets that can be trained on: generates, declusters, caches, and shows the Lund plane.

    python -m trainables.jetlov.generate --preset minutes --output FOLDER [--signal w top] [--domains nominal mpi]
    python platform/sweep.py --family jetlov data.source=shards data.root=FOLDER

A folder holds shards `jets-<split>-<process>-<domain>-<number>.npz`. Each has a seed of its own, so that events are
never split between training and test, shards are made side by side, and a command that was interrupted goes on with
those that are missing. Sizes are section 2.6's of the reference notes on JetLOV (arXiv 2311.14654).
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from pharos.errors import PharosError
from trainables.jetlov.data import open_study
from trainables.jetlov.declustering import LUND
from trainables.jetlov.jets import save
from trainables.jetlov.pictures import draw_lund_planes, lund_density
from trainables.jetlov.pythia import DOMAINS, PROCESSES, generate
from trainables.jetlov.settings import JetDataConfig
from trainables.jetlov.trees import some

PRESETS = {"smoke": (1_000, 500, 1_000), "minutes": (10_000, 2_000, 5_000), "hour": (100_000, 10_000, 20_000)}
"""Jets of each class for training, validation and test."""

_SPLITS = ("train", "val", "test")
_SHARD = 1_000  # jets
_MOST_SEED = 900_000_000  # Pythia's


@dataclass(frozen=True)
class Shard:
    """One file that is to be made."""

    split: str
    process: str
    domain: str
    index: int
    count: int
    seed: int

    @property
    def name(self) -> str:
        return f"jets-{self.split}-{self.process}-{self.domain}-{self.index:04d}.npz"


def plan(sizes: Sequence[int], processes: Sequence[str], domains: Sequence[str], seed: int) -> list[Shard]:
    """All shards, each with a seed that no other has.

    Args:
        sizes: Jets of each class for training, validation and test.
        processes: Of `pythia.PROCESSES`.
        domains: Of `pythia.DOMAINS`.
        seed: Whatever is generated with another has nothing in common with it.
    """
    shards: list[Shard] = []
    seeds: set[int] = set()
    for domain in domains:
        for process in processes:
            for split, size in zip(_SPLITS, sizes, strict=True):
                for index, start in enumerate(range(0, size, _SHARD)):
                    own = _seed(seed, split, process, domain, index)
                    while own in seeds:
                        own = own % _MOST_SEED + 1
                    seeds.add(own)
                    shards.append(Shard(split, process, domain, index, min(_SHARD, size - start), own))
    return shards


def _seed(*parts: object) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") % _MOST_SEED + 1


def make(shard: Shard, folder: Path) -> int:
    """Makes one shard; how many jets it has."""
    jets = generate(shard.process, shard.domain, shard.count, shard.seed)
    about = {"generator": "Pythia 8", "process": shard.process, "domain": shard.domain, "seed": shard.seed}
    save(jets, folder / shard.name, about | {"settings": [*PROCESSES[shard.process], *DOMAINS[shard.domain]]})
    return len(jets)


def make_all(shards: Sequence[Shard], folder: Path, processes: int) -> None:
    """Makes those that are not there, and says how far it is.

    Args:
        shards: What is wanted.
        folder: Takes them.
        processes: How many work side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob("jets-*.part"):  # of a process that was killed
        part.unlink()
    missing = [shard for shard in shards if not (folder / shard.name).exists()]
    total, done, started = sum(shard.count for shard in missing), 0, time.monotonic()
    print(f"{folder}: {len(shards) - len(missing)} of {len(shards)} shards are there, {total:,} jets to make")
    # Spawned: a Pythia that was forked would share its random numbers.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(make, shard, folder): shard for shard in missing}
        try:
            for future in as_completed(futures):
                done += future.result()
                rate = done / (time.monotonic() - started)
                left = (total - done) / rate
                print(
                    f"{futures[future].name}  {done:,} of {total:,} jets, {rate:.0f}/s, {left:.0f} s left", flush=True
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _show(folder: Path, signal: str, domain: str) -> None:
    """Declusters all splits, which caches them, and draws the Lund planes of the test's signal and background."""
    from PIL import Image

    config = JetDataConfig(source="shards", root=str(folder), task=signal, domains=domain)
    started = time.monotonic()
    study = open_study(config)
    trees = study.test[domain]
    jets = len(study.train) + len(study.val[domain]) + len(trees)
    print(f"{signal} and qcd, {domain}: {jets:,} trees in {time.monotonic() - started:.1f} s")
    planes = {name: some(trees, (trees.label == label).nonzero()[0]) for label, name in ((1, signal), (0, "qcd"))}
    for name, own in planes.items():
        means = ", ".join(f"{about} {value:.2f}" for about, value in zip(LUND, own.lund.mean(axis=0), strict=True))
        print(f"  {name}: {own.counts.mean():.1f} splittings a jet; mean {means}")
    picture = draw_lund_planes({name: lund_density(own) for name, own in planes.items()})
    path = folder / f"lund-{signal}-{domain}.png"
    Image.fromarray((picture.movedim(0, -1) * 255).byte().numpy()).save(path)
    print(f"  {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--preset", choices=PRESETS, default="minutes", help="how many jets")
    parser.add_argument("--signal", nargs="+", choices=[p for p in PROCESSES if p != "qcd"], default=["w"])
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=["nominal"], help="how they are simulated")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that work side by side")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is generated")
    options = parser.parse_args(arguments)
    try:
        shards = plan(PRESETS[options.preset], ["qcd", *options.signal], options.domains, options.seed)
        make_all(shards, options.output, options.processes)
        for signal in options.signal:
            for domain in options.domains:
                _show(options.output, signal, domain)
    except PharosError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
