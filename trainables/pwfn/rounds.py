"""What happens to a network's weights in a fixing round: distances, clustering, and the sigmas that are left.

Source: sections 4.3 and 4.4 of the reference notes on PWFN (arXiv 2309.13575).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.common.quantisation.fixing import VALUE, Layout, Vector
from trainables.pwfn.clustering import Assignment, Rules, cluster, share
from trainables.pwfn.model import SIGMA

PAPER10 = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0)
"""Cumulative shares of fixed weights of the paper's ten rounds (section 4.3)."""

JOINS = ("std_mu", "keep_half", "keep_tenth", "allow_retraining", "rms_sigma", "none")
SIGMA_MODES = ("learned", "layer_mean", "permuted", "const")


@dataclass(frozen=True)
class Fixing:
    """How weights are fixed.

    Attributes:
        rules: Of the clustering.
        join: The sigma of weights that were assigned together: `std_mu`, the standard deviation of their mu before;
            `keep_half`, `keep_tenth` of each one's own; `allow_retraining`, its own, which goes on being trained;
            `rms_sigma`, the root of their mean square; `none`, no noise on fixed weights.
        sigma_mode: Which sigmas of free weights a distance is measured in: `learned`; for ablations `layer_mean`,
            `permuted` within each tensor, or `const`, the mean over all tensors.
        free_only: Whether weights that are fixed stay so; else each round assigns all weights anew, as the paper does.
    """

    rules: Rules = field(default_factory=Rules)
    join: str = "std_mu"
    sigma_mode: str = "learned"
    free_only: bool = False


@dataclass(frozen=True)
class Fixed:
    """The weights after a round.

    Attributes:
        mu: (N,), centres where fixed.
        sigma: (N,), of fixed weights what `join` left them.
        is_fixed: (N,).
        figures: `moved`, the share of the weights fixed before that have another value or none now; `late`, the share
            of those assigned that needed more than twice the first tolerance; `centres`, how many were used.
    """

    mu: Vector
    sigma: Vector
    is_fixed: npt.NDArray[np.bool_]
    figures: dict[str, float]


def tolerances(start: float, end: float, rounds: int) -> list[float]:
    """delta of each round, linearly from `start` to `end`."""
    return [float(delta) for delta in np.linspace(start, end, rounds)]


def sigmas(weights: Mapping[str, Tensor], layout: Layout, join: str) -> Vector:
    """(N,) the standard deviation of each weight's noise."""
    learned = layout.vector(weights, SIGMA)
    if join == "allow_retraining":
        return learned
    return np.where(layout.mask(weights), layout.vector(weights, SIGMA + VALUE), learned)


def replaced(
    sigma: Vector, is_fixed: npt.NDArray[np.bool_], layout: Layout, mode: str, generator: torch.Generator
) -> Vector:
    """The sigmas that distances are measured in; those of fixed weights stay.

    Args:
        sigma: (N,).
        is_fixed: (N,).
        layout: Tensor by tensor.
        mode: One of `SIGMA_MODES`.
        generator: Draws the permutations, on the CPU.
    """
    if mode == "learned" or is_fixed.all():
        return sigma
    if mode == "const":
        return np.where(is_fixed, sigma, sigma[~is_fixed].mean(dtype=np.float64).astype(np.float32))
    out = sigma.copy()
    for part in layout.parts():
        free = np.flatnonzero(~is_fixed[part]) + part.start
        if mode == "layer_mean" and len(free):
            out[free] = sigma[free].mean(dtype=np.float64)
        elif mode == "permuted":
            out[free] = sigma[free][torch.randperm(len(free), generator=generator).numpy()]
    return out


def fix(  # noqa: PLR0917 - what a round consists of
    weights: Mapping[str, Tensor],
    layout: Layout,
    fraction: float,
    delta: float,
    fixing: Fixing,
    generator: torch.Generator,
) -> Fixed:
    """One round: assigns the cumulative share of all weights to centres.

    Args:
        weights: The network's whole state.
        layout: Of the network.
        fraction: The share that is to be fixed after it.
        delta: Sigmas that a weight may move at first.
        fixing: The rest.
        generator: For `permuted` alone, on the CPU; the same on all workers.
    """
    mu, was_fixed, sigma = layout.vector(weights), layout.mask(weights), sigmas(weights, layout, fixing.join)
    measure = replaced(sigma, was_fixed, layout, fixing.sigma_mode, generator)
    count = share(fraction, len(mu))
    taking = ~was_fixed if fixing.free_only else np.ones_like(was_fixed)
    if fixing.free_only:
        count = max(0, count - int(was_fixed.sum()))
    found = cluster(torch.from_numpy(mu[taking]), torch.from_numpy(measure[taking]), count, delta, fixing.rules)
    chosen = found.is_fixed.numpy()
    is_fixed = was_fixed if fixing.free_only else np.zeros_like(was_fixed)
    is_fixed = is_fixed.copy()
    is_fixed[taking] = chosen
    new_mu, new_sigma = mu.copy(), sigma.copy()
    new_mu[taking] = np.where(chosen, found.centres.numpy(), mu[taking])
    new_sigma[taking] = joined(mu[taking], sigma[taking], found, fixing.join)
    moved = was_fixed & (~is_fixed | (new_mu != mu))
    late = found.tolerances[found.is_fixed] > 2 * delta
    figures = {
        "moved": float(moved.sum() / max(1, was_fixed.sum())),
        "late": float(late.float().mean()) if count else 0.0,
        "centres": float(len({group.centre for group in found.groups})),
    }
    return Fixed(new_mu, new_sigma, is_fixed, figures)


def joined(mu: Vector, sigma: Vector, found: Assignment, join: str) -> Vector:
    """(N,) the sigmas after an assignment; those of weights without a centre as they were.

    Args:
        mu: (N,) before they were set to their centres.
        sigma: (N,).
        found: The assignment.
        join: One of `JOINS`.
    """
    group = found.group.numpy()
    is_fixed = group >= 0
    own = {"keep_half": 0.5, "keep_tenth": 0.1, "allow_retraining": 1.0, "none": 0.0}
    if join in own:
        return np.where(is_fixed, np.float32(own[join]) * sigma, sigma)
    members, count = group[is_fixed], len(found.groups)
    sizes = np.bincount(members, minlength=count).clip(1)

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        means: npt.NDArray[np.float64] = np.bincount(members, values, count) / sizes
        return means

    if join == "std_mu":
        exact = mu[is_fixed].astype(np.float64)
        spread = np.sqrt(mean((exact - mean(exact)[members]) ** 2))
    else:
        spread = np.sqrt(mean(sigma[is_fixed].astype(np.float64) ** 2))
    out = sigma.copy()
    out[is_fixed] = spread[members]
    return out


def state(weights: Mapping[str, Tensor], layout: Layout, after: Fixed) -> dict[str, Tensor]:
    """The network's state after a round."""
    held = {
        name + SIGMA + VALUE: torch.from_numpy(after.sigma[part]).reshape(weights[name].shape).to(weights[name])
        for name, part in zip(layout.names, layout.parts(), strict=True)
    }
    return layout.fixed(weights, after.mu, after.is_fixed) | held
