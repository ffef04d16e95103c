"""How long one clustering of a whole network takes, and how much memory: the aim is 5 s and 1 GB on one core.

    python benchmarks/clustering.py [--weights 11700000] [--delta 0.01 0.1]

The weights are made like a ResNet-18's: layer by layer, with heavy tails and a standard deviation that falls with the
fan-in. All are assigned (p = 1). Each measurement has a process of its own, on one thread; its peak memory is that of
the whole process, interpreter, libraries and weights included. Prints Markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.claims import table

Vector = npt.NDArray[np.float32]
# Channels in, channels out and kernel of ResNet-18's layers, by how often they occur.
_LAYERS = (
    *[((3, 64, 7), 1), ((64, 64, 3), 4), ((64, 128, 3), 1), ((128, 128, 3), 3), ((128, 256, 3), 1), ((256, 256, 3), 3)],
    *[
        ((256, 512, 3), 1),
        ((512, 512, 3), 3),
        ((64, 128, 1), 1),
        ((128, 256, 1), 1),
        ((256, 512, 1), 1),
        ((512, 1000, 1), 1),
    ],
)


def make_weights(count: int, seed: int = 0) -> Vector:
    """So many weights with a trained ResNet-18's spread: layers of its shapes, each with its own scale and tails."""
    rng = np.random.default_rng(seed)
    parts = []
    for (channels, out, kernel), times in _LAYERS:
        size = times * channels * out * kernel**2
        deviation = 0.5 * np.sqrt(2 / (channels * kernel**2))
        # Student's t with 5 degrees of freedom: heavier tails than a normal distribution's.
        parts.append((deviation * rng.standard_t(5, size)).astype(np.float32))
    weights = np.concatenate(parts)
    return np.resize(rng.permutation(weights), count) if count > len(weights) else weights[:count]


def relative(delta: float) -> Callable[[Vector], dict[str, float]]:
    """WFN's clustering."""

    def run(weights: Vector) -> dict[str, float]:
        from trainables.common.quantisation.clustering import cluster

        found = cluster(weights, 1.0, delta)
        return {"values": len(found.codebook), "picks": len(found.groups)}

    return run


def _measure(name: str, arguments: tuple[Any, ...], count: int, pipe: Any) -> None:
    weights = make_weights(count)
    work = _METHODS[name](*arguments)
    work(weights[:10_000])  # imports
    start, cpu = time.perf_counter(), time.process_time()
    found = work(weights)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send({**found, "seconds": seconds, "cpu": cpu, "gb": peak})


# Each makes a function of the weights that clusters all of them and says how many values it has used.
_METHODS: dict[str, Callable[..., Callable[[Vector], dict[str, float]]]] = {"wfn": relative}


def main() -> None:
    """Measures all methods and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=11_700_000)
    parser.add_argument("--delta", type=float, nargs="+", default=[0.01, 0.1], help="wfn: allowed mean distance")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, arguments in [("wfn", (delta,)) for delta in options.delta]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_measure, args=(name, arguments, options.weights, theirs))
        process.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            sys.exit(f"{name}: the process ended early")
        process.join()
        text = [name, str(arguments[0]), f"{found['values']:.0f}", f"{found['seconds']:.1f} ({found['cpu']:.1f})"]
        rows.append([*text, f"{found['gb']:.2f}"])
    head = ["method", "delta", "distinct values", "seconds (of CPU)", "peak GB"]
    print(f"{options.weights:,} weights, all assigned, one core\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
