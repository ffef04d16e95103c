"""How compressible a vector of quantised weights is: distinct values, entropy, code lengths, additions.

Section 5.1 of the reference notes on WFN (arXiv 2210.13554). All entropies are in bits per weight.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Counts = npt.NDArray[np.int64]


def distinct(weights: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], Counts]:
    """Distinct values in ascending order and how often each occurs; -0 is 0."""
    values, counts = np.unique(weights + np.float32(0), return_counts=True)
    return values, counts.astype(np.int64)


def entropy(counts: Counts) -> float:
    """Entropy of a histogram, in bits: no code of single symbols needs less on average. 0 of an empty one."""
    counts = counts[counts > 0]
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def huffman_lengths(counts: Counts) -> npt.NDArray[np.int64]:
    """Length of each symbol's code in bits, (k,), in an optimal prefix code; a single symbol has one bit.

    Args:
        counts: Of each symbol, (k,), all positive.
    """
    if len(counts) == 1:
        return np.ones(1, np.int64)
    # Nodes by index: leaves first, then inner ones as they are made; `parents` then gives depths from the root down.
    heap = [(int(count), index) for index, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = np.zeros(2 * len(counts) - 1, np.int64)
    for new in range(len(counts), 2 * len(counts) - 1):
        (one, first), (two, second) = heapq.heappop(heap), heapq.heappop(heap)
        parents[first] = parents[second] = new
        heapq.heappush(heap, (one + two, new))
    depths = np.zeros(len(parents), np.int64)
    for index in range(len(parents) - 2, -1, -1):
        depths[index] = depths[parents[index]] + 1
    return depths[: len(counts)]


def signed_digits(values: Floats) -> npt.NDArray[np.int64]:
    """Non-zero digits of each value in non-adjacent form: how many signed powers of two it is the sum of, (k,)."""
    mantissas, _ = np.frexp(np.asarray(values, np.float64))
    whole = np.abs(mantissas * 2.0**53).astype(np.int64)  # exact
    # Non-zero digits of n stand where n and 3n differ.
    unsigned = whole.astype(np.uint64)
    digits: Counts = np.bitwise_count(unsigned ^ (3 * unsigned)).astype(np.int64)
    return digits


def describe(weights: npt.NDArray[np.float32]) -> dict[str, float]:
    """Measures of a vector of weights, with and without its zeros, which the papers' counts leave out.

    Returns:
        `unique`, `unique_nonzero`, `entropy`, `entropy_nonzero`, `huffman_bits` (mean length of a weight's code),
        `sparsity` (share of zeros), `mean_terms` (signed powers of two a weight), `bf16_misfits` (distinct values that
        bfloat16 would change).
    """
    values, counts = distinct(weights)
    is_kept = values != 0
    total = counts.sum()
    as_bf16 = (values.view(np.uint32) & np.uint32(0xFFFF)) != 0
    return {
        "unique": float(len(values)),
        "unique_nonzero": float(is_kept.sum()),
        "entropy": entropy(counts),
        "entropy_nonzero": entropy(counts[is_kept]),
        "huffman_bits": float((huffman_lengths(counts) * counts).sum() / total),
        "sparsity": float(counts[~is_kept].sum() / total),
        "mean_terms": float((signed_digits(values) * counts).sum() / total),
        "bf16_misfits": float(as_bf16.sum()),
    }


def sizes(weights: npt.NDArray[np.float32], others: int) -> dict[str, float]:
    """Bytes that a network takes, by how its quantised weights are kept; the codebook takes 4 bytes a value.

    Args:
        weights: The quantised ones.
        others: Parameters that are not quantised, at 4 bytes.

    Returns:
        `fp32_bytes`, `entropy_bytes` (the bound), `huffman_bytes`, `fixed_bytes` (indices of equal length).
    """
    values, counts = distinct(weights)
    rest = 4 * (others + len(values))
    bits = {
        "entropy_bytes": entropy(counts) * len(weights),
        "huffman_bytes": float((huffman_lengths(counts) * counts).sum()),
        "fixed_bytes": math.ceil(math.log2(len(values))) * len(weights) if len(values) > 1 else 0.0,
    }
    return {"fp32_bytes": 4.0 * (len(weights) + others)} | {name: rest + count / 8 for name, count in bits.items()}
