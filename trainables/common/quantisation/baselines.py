"""Other ways to few distinct values, applied to the trained float network: k-means, uniform grids, APoT, one shot.

Section 5.3 of the reference notes on WFN (arXiv 2210.13554). Each makes a vector of quantised weights from one of float
weights; none trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pharos.learner import Learner
from pharos.run import Run
from trainables.common.quantisation.clustering import cluster
from trainables.common.quantisation.fixing import Layout
from trainables.common.quantisation.images import Images
from trainables.common.quantisation.measures import describe
from trainables.common.quantisation.training import accuracy, recalibrate

Vector = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_ITERATIONS = 300
_SCALES = np.geomspace(0.05, 1.0, 60)  # clipping points tried, as shares of the largest weight

# Non-negative levels of additive powers of two, by bits, as Li et al. (ICLR 2020) have them in their code.
APOT_LEVELS: dict[int, tuple[float, ...]] = {
    3: (0, 1 / 4, 1 / 2, 1),
    4: (0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1),
    5: (
        *(0, 1 / 48, 1 / 24, 1 / 16, 1 / 12, 1 / 8, 1 / 6, 3 / 16),
        *(1 / 4, 1 / 3, 3 / 8, 1 / 2, 2 / 3, 11 / 16, 3 / 4, 1),
    ),
}


def nearest(weights: Vector, levels: Doubles) -> Vector:
    """Each weight at the nearest of ascending levels."""
    levels = np.unique(levels)
    chosen = np.searchsorted((levels[1:] + levels[:-1]) / 2, weights)
    rounded: Vector = levels.astype(np.float32)[chosen]
    return rounded


def kmeans(weights: Vector, count: int) -> Vector:
    """One-dimensional k-means over all weights: Lloyd's algorithm from evenly spaced centres and from quantiles.

    Returns:
        The weights at their centres, of the start that ends with the smaller squared error.
    """
    ordered = np.sort(weights).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    starts = np.linspace(ordered[0], ordered[-1], count), np.quantile(ordered, (np.arange(count) + 0.5) / count)
    found = []
    for start in starts:
        centres = start
        for _ in range(_ITERATIONS):
            edges = np.concatenate([[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]])
            sizes = np.diff(edges)
            means = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), centres)
            if np.allclose(means, centres, rtol=0, atol=1e-9):
                break
            centres = np.sort(means)
        found.append(nearest(weights, centres))
    return min(found, key=lambda values: float(((values - weights).astype(np.float64) ** 2).sum()))


def uniform(weights: Vector, count: int) -> Vector:
    """One grid of so many levels for all weights, with 0 and the largest magnitude among them."""
    half = count // 2
    step = float(np.abs(weights).max()) / half
    return nearest(weights, np.arange(-half, count - half, dtype=np.float64) * step)


def integers(weights: Vector, bits: int) -> Vector:
    """Signed integers of so many bits times one scale, the largest weight's."""
    most = 2 ** (bits - 1) - 1
    scale = np.float32(np.abs(weights).max() / most) or np.float32(1)
    whole: Vector = (np.round(weights / scale) * scale).astype(np.float32)
    return whole


def apot(weights: Vector, bits: int) -> Vector:
    """Additive powers of two, clipped where the squared error is least."""
    levels = np.array(APOT_LEVELS[bits])
    both = np.unique(np.concatenate([-levels, levels]))
    largest = float(np.abs(weights).max()) or 1.0
    tried = [nearest(weights, both * largest * scale) for scale in _SCALES]
    return min(tried, key=lambda values: float(((values - weights).astype(np.float64) ** 2).sum()))


def one_shot(weights: Vector, count: int, gamma_0: float, distance: str = "relative") -> Vector:
    """WFN's clustering once, of all weights, at the least distance that gives no more values than asked for."""
    low, high = (1e-4, 0.9) if distance == "relative" else (1e-6, float(np.abs(weights).max()))
    best: Vector | None = None
    for _ in range(14):
        middle = float(np.sqrt(low * high))
        found = cluster(weights, 1.0, middle, gamma_0=gamma_0, distance=distance)
        if len(found.codebook) > count:
            low = middle
        else:
            high, best = middle, found.values
    return weights if best is None else best


def methods(layout: Layout, count: int, gamma_0: float) -> dict[str, Callable[[Vector], Vector]]:
    """All of them, those that can at so many distinct values, by name.

    `<name>_tensor` have levels for each tensor, which is why they have many values in the whole network.
    """

    def by_tensor(quantise: Callable[[Vector, int], Vector], bits: int) -> Callable[[Vector], Vector]:
        return lambda weights: np.concatenate([quantise(weights[part], bits) for part in layout.parts()])

    return {
        "kmeans": lambda weights: kmeans(weights, count),
        "uniform": lambda weights: uniform(weights, count),
        "wfn_oneshot": lambda weights: one_shot(weights, count, gamma_0),
        "wfn_euclid": lambda weights: one_shot(weights, count, gamma_0, "euclidean"),
        **{f"apot{bits}": functools.partial(apot, bits=bits) for bits in APOT_LEVELS},
        **{f"apot{bits}_tensor": by_tensor(apot, bits) for bits in APOT_LEVELS},
        **{f"int{bits}_tensor": by_tensor(integers, bits) for bits in (4, 8)},
    }


def judge_baselines(
    run: Run,
    learner: Learner,
    layout: Layout,
    trained: Mapping[str, Tensor],
    images: Images,
    *,
    count: int,
    gamma_0: float,
    batch_size: int,
) -> dict[str, float]:
    """What each method makes of the float network: accuracies on the test split, distinct values, entropy.

    The learner has its own weights again afterwards.

    Args:
        run: The trial's.
        learner: Of a network with the fixable layers of `layout`.
        layout: What is quantised.
        trained: State of the float network.
        images: Which.
        count: Distinct values that a method may have, where it can be asked.
        gamma_0: Of WFN's clustering.
        batch_size: Of the pass that takes the statistics of batch normalisation anew.

    Returns:
        `<method>/test/accuracy`, the same with the statistics taken anew as `<method>/recalibrated/accuracy`,
        `<method>/unique`, `<method>/entropy` and `<method>/mean_terms`.
    """
    before = learner.weights()
    found: dict[str, float] = {}
    weights = layout.vector(trained)
    for name, quantise in methods(layout, count, gamma_0).items():
        values = quantise(weights)
        learner.load_weights(layout.written(trained, values))
        scores = accuracy(run, learner, images.test, "test")
        recalibrate(run, learner, images, batch_size)
        scores["recalibrated/accuracy"] = accuracy(run, learner, images.test, "test")["test/accuracy"]
        measured = describe(values)
        scores |= {key: measured[key] for key in ("unique", "entropy", "mean_terms")}
        found |= {f"{name}/{key}": value for key, value in scores.items()}
    learner.load_weights(before)
    return found
