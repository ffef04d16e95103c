"""What a model-based sampler asks its model: how much better than the best a configuration may be, and where that is.

Configurations are rows of numbers in [0, 1] (`pharos.search.encoding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, log_ndtr

Score = Callable[[np.ndarray], np.ndarray]
"""How promising settled rows are. [N, D] -> [N]"""

_EVERYWHERE = 1000
_AROUND = (0.1, 0.02)
_NEAR = 40
_REFINE = (0.2, 0.05, 0.0125)
_TOP = 5
_EACH = 20


def log_expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
    """The logarithm of how much a normal value is below the best in expectation (above counting as zero).

    Stable where the improvement is too small for a float, so that hopeless configurations still have an order (Ament et
    al., NeurIPS 2023, section 4).

    Args:
        mean: [N]
        deviation: [N]
        best: What is to be improved on.
    """
    z = (best - mean) / deviation
    density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    far = np.maximum(-z, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.log(np.exp(density) + z * np.exp(log_ndtr(z)))
        tail = density + np.log1p(-far * math.sqrt(math.pi / 2) * erfcx(far / math.sqrt(2)))
    # 1 - far * ... loses its digits in the end, where it goes as 1 / far².
    log_h = np.where(z > -1, near, np.where(z > -1e3, tail, density - 2 * np.log(far)))
    return np.asarray(np.log(deviation) + log_h)


def most_promising(
    score: Score, settle: Callable[[np.ndarray], np.ndarray], centres: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The best row that a search finds: of many everywhere and some around centres, then around the best of these.

    Args:
        score: What is to be high.
        settle: Moves rows to where configurations are.
        centres: Rows that are known to be good; may be none. [M, D]
        rng: Where the rows come from.

    Returns:
        A settled row. [D]
    """
    near = [perturbed(centres, _NEAR, scale, rng) for scale in _AROUND] if len(centres) else []
    rows = settle(np.concatenate([rng.random((_EVERYWHERE, centres.shape[1])), *near]))
    scores = score(rows)
    for scale in _REFINE:
        top = np.argsort(-scores, kind="stable")[:_TOP]
        more = settle(perturbed(rows[top], _EACH, scale, rng))
        rows, scores = np.concatenate([rows[top], more]), np.concatenate([scores[top], score(more)])
    return np.asarray(rows[np.argmax(scores)])


def perturbed(centres: np.ndarray, each: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Rows around others: normal steps in some dimensions, reflected at the ends, and now and then a fresh number.

    A step rarely leaves a choice's share, so fresh numbers are how choices change.

    Args:
        centres: [M, D]
        each: Rows around each.
        scale: The steps' standard deviation.
        rng: Where they come from.

    Returns:
        [M * each, D]
    """
    rows = np.repeat(centres, each, axis=0)
    count, dimensions = rows.shape
    moved = rng.random(rows.shape) < max(0.3, min(1.0, 2 / dimensions))
    moved[np.arange(count), rng.integers(dimensions, size=count)] = True
    stepped = rows + moved * scale * rng.standard_normal(rows.shape)
    reflected = 1 - np.abs(1 - np.abs(stepped))
    fresh = moved & (rng.random(rows.shape) < 0.1)
    return np.clip(np.where(fresh, rng.random(rows.shape), reflected), 0.0, 1.0)
