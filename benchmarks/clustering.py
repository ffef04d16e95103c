"""How long one clustering of a whole network takes, and how much memory: the aim is 5 s and 1 GB on one core.

    python benchmarks/clustering.py [--weights 11700000] [--delta 0.01 0.1] [--sigma init 0.0001]

The weights are made like a ResNet-18's: layer by layer, with heavy tails and a standard deviation that falls with the
fan-in. All are assigned (p = 1). Each measurement has a process of its own, on one thread; its peak memory is that of
the whole process, interpreter, libraries and weights included. `wfn` is the
clustering by relative distance; `pwfn` is that in units of each weight's sigma, at delta 1, with sigmas as they start
(`init`) or so small that most weights take many relaxations. Prints Markdown.
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


def relative(weights: Vector, delta: float) -> Callable[[], dict[str, float]]:
    """WFN's clustering."""

    def run() -> dict[str, float]:
        from trainables.common.quantisation.clustering import cluster

        found = cluster(weights, 1.0, delta)
        return {"values": len(found.codebook), "picks": len(found.groups)}

    return run


def by_sigma(weights: Vector, sigma: str) -> Callable[[], dict[str, float]]:
    """PWFN's clustering."""
    import torch

    from trainables.pwfn.clustering import Rules, cluster
    from trainables.pwfn.sigma import initial_sigma

    torch.set_num_threads(1)
    mu = torch.from_numpy(weights)
    parts = mu.chunk(64)  # of many tensors
    values = [
        initial_sigma(part, 0.0025, 0.05) if sigma == "init" else torch.full_like(part, float(sigma)) for part in parts
    ]
    sigmas = torch.cat(values)

    def run() -> dict[str, float]:
        found = cluster(mu, sigmas, len(mu), 1.0, Rules())
        return {"values": len({group.centre for group in found.groups}), "picks": len(found.groups)}

    return run


def _measure(name: str, arguments: tuple[Any, ...], count: int, pipe: Any) -> None:
    weights = make_weights(count)
    _METHODS[name](weights[:10_000], *arguments)()  # imports
    work = _METHODS[name](weights, *arguments)
    start, cpu = time.perf_counter(), time.process_time()
    found = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send({**found, "seconds": seconds, "cpu": cpu, "gb": peak})


# Each makes a function that clusters all of the weights and says how many values it has used.
_METHODS: dict[str, Callable[..., Callable[[], dict[str, float]]]] = {"wfn": relative, "pwfn": by_sigma}


def main() -> None:
    """Measures all methods and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=11_700_000)
    parser.add_argument("--delta", type=float, nargs="+", default=[0.01, 0.1], help="wfn: allowed mean distance")
    parser.add_argument("--sigma", nargs="+", default=["init", "0.0001"], help="pwfn: init, or a number for all")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    rows = []
    runs: list[tuple[str, tuple[Any, ...]]] = [("wfn", (delta,)) for delta in options.delta]
    for name, arguments in [*runs, *(("pwfn", (sigma,)) for sigma in options.sigma)]:
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
    head = ["method", "delta or sigma", "distinct values", "seconds (of CPU)", "peak GB"]
    print(f"{options.weights:,} weights, all assigned, one core\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
