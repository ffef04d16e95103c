"""What is reported of a network besides its accuracy: calibration, resilience to noise, standard deviations.

Source: sections 2 and 5 of the reference notes on PWFN (arXiv 2309.13575).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from pharos.learner import Learner
from trainables.common.quantisation.fixing import Layout, Vector
from trainables.common.quantisation.images import Split
from trainables.pwfn.clustering import SIGMA_FLOOR

ETAS = (0.0, 0.02, 0.05, 0.1, 0.2)
"""Noise of the resilience curve, in standard deviations of each tensor's weights."""
SAMPLES = 20
"""Passes with noise of the ensemble."""
_BINS = 20
_AT_ONCE = 500
_DRAWS = 3  # of the noise at each eta
_SEED = 2**20  # of the noise in evaluations: the same for all trials


def logits(predict: Callable[[Tensor], Tensor], split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Outputs (n, classes) for a whole split, and its classes (n,); every worker computes all of them."""
    outs = []
    for chosen in torch.split(split.index, _AT_ONCE):
        x, _ = split.take(chosen, device)
        outs.append(predict(x).float())
    return torch.cat(outs), split.labels.to(device)


def accuracy(out: Tensor, y: Tensor) -> float:
    """Top-1 accuracy in per cent."""
    return 100 * float((out.argmax(dim=1) == y).float().mean())


def calibration_error(probabilities: Tensor, y: Tensor) -> float:
    """Expected calibration error over 20 bins with equally many samples each, in [0, 1].

    Args:
        probabilities: (n, classes).
        y: (n,).
    """
    confidence, guess = probabilities.max(dim=1)
    order = confidence.argsort()
    right = (guess == y).to(confidence.dtype)
    bins = zip(confidence[order].tensor_split(_BINS), right[order].tensor_split(_BINS), strict=True)
    return sum(float((sure.mean() - true.mean()).abs()) * len(sure) for sure, true in bins if len(sure)) / len(y)


def calibration(out: Tensor, y: Tensor) -> dict[str, float]:
    """Of logits: `ece`, `nll` (nats) and `brier` (summed over the classes)."""
    probabilities = out.softmax(dim=1)
    wanted = F.one_hot(y, out.shape[1]).to(probabilities.dtype)
    return {
        "ece": calibration_error(probabilities, y),
        "nll": float(F.cross_entropy(out, y)),
        "brier": float((probabilities - wanted).square().sum(dim=1).mean()),
    }


def noisy(net: Learner, split: Split, device: torch.device) -> dict[str, float]:
    """Accuracy in one pass with noise, `accuracy_noisy`; the same noise for all trials of the same shape.

    Args:
        net: A learner of a `ProbabilisticNetwork`, evaluating.
        split: Which images.
        device: Where the learner lives.
    """
    return {"accuracy_noisy": accuracy(*logits(lambda x: net(x, seed=_SEED), split, device))}


def ensemble(net: Learner, split: Split, device: torch.device) -> dict[str, float]:
    """The mean logits of 20 passes with noise.

    Args:
        net: A learner of a `ProbabilisticNetwork`, evaluating.
        split: Which images.
        device: Where the learner lives.

    Returns:
        `accuracy_ensemble`; and the calibration of single passes, averaged, as the authors' code has it: `noisy_ece`,
        `noisy_nll`, `noisy_brier`.
    """
    outs = []
    for sample in range(SAMPLES):
        out, y = logits(lambda x, seed=_SEED + sample: net(x, seed=seed), split, device)  # type: ignore[misc]
        outs.append(out)
    each = [calibration(out, y) for out in outs]
    means = {f"noisy_{name}": float(np.mean([one[name] for one in each])) for name in each[0]}
    return {"accuracy_ensemble": accuracy(torch.stack(outs).mean(dim=0), y)} | means


def resilience(net: Learner, layout: Layout, split: Split, device: torch.device) -> dict[str, float]:
    """Accuracy under w + eta std N(0, 1), std being that of each tensor; the network is as it was in the end.

    Args:
        net: A learner of a `ProbabilisticNetwork`, evaluating.
        layout: Of the network.
        split: Which images.
        device: Where the learner lives.

    Returns:
        `noise/<eta>`, each the mean over three draws, and `noise/area`, the mean height of the curve.
    """
    weights = net.weights()
    clean = layout.vector(weights)
    scale = np.concatenate([np.full(part.stop - part.start, clean[part].std()) for part in layout.parts()])
    curve = []
    for eta in ETAS:
        found = []
        for draw in range(_DRAWS if eta else 1):
            noise = np.random.default_rng((_SEED, draw)).standard_normal(len(clean), dtype=np.float32)
            net.load_weights(layout.written(weights, clean + np.float32(eta) * scale * noise))
            found.append(accuracy(*logits(net, split, device)))
        curve.append(float(np.mean(found)))
    net.load_weights(weights)
    area = float(np.trapezoid(curve, ETAS)) / (ETAS[-1] - ETAS[0])
    return {f"noise/{eta:g}": value for eta, value in zip(ETAS, curve, strict=True)} | {"noise/area": area}


def sigma_figures(sigma: Vector, is_fixed: np.ndarray, cut_off: float) -> dict[str, float]:  # type: ignore[type-arg]
    """Of the sigmas of free weights: `mean`, `least`, `largest`, `std`, shares at the `floor` and at the `cut_off`."""
    free = sigma[~is_fixed]
    if not len(free):
        return {}
    figures = {"mean": free.mean(), "least": free.min(), "largest": free.max(), "std": free.std()}
    figures |= {"floor": (free <= SIGMA_FLOOR).mean(), "cut_off": (free >= cut_off).mean()}
    return {f"sigma/{name}": float(value) for name, value in figures.items()}
