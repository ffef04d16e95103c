"""How well jets are told apart, how much that depends on where they come from, and what the learned variables are.

Section 5 of the reference notes on JetLOV (arXiv 2311.14654).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pharos.learner import Learner
from pharos.run import Run
from trainables.jetlov.model import Tagger
from trainables.jetlov.trees import Batch, Trees

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

EFFICIENCIES = (0.3, 0.5, 0.7)
"""Of the signal, at which the rejection of background is told."""
_AT_ONCE = 256  # jets
_SHOWN = 1000


def scores(run: Run, learner: Learner, trees: Trees) -> Floats:
    """ln(P(signal) / P(background)) of each jet, (J,), the same on all workers, each of which judges a share."""
    found = np.zeros(len(trees))
    with learner.evaluating():
        for chosen, batch in trees.batches(_AT_ONCE, run.device, rank=run.rank, workers=run.world_size):
            logits: Tensor = learner(batch)
            found[chosen.numpy()] = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
    if run.world_size > 1:
        rest = len(trees) % run.world_size
        if rest and run.rank >= rest:  # it judged the last jet for company alone
            found[-1] = 0.0
        means = run.mean({str(index): value for index, value in enumerate(found.tolist())})
        found = np.array(list(means.values())) * run.world_size
    return found


def describe(score: Floats, label: npt.NDArray[np.int8]) -> dict[str, float]:
    """accuracy at even odds, auc, and rejection_0.3, _0.5, _0.7."""
    is_signal = label == 1
    result = {"accuracy": float(((score > 0) == is_signal).mean()), "auc": auc(score, is_signal)}
    return result | {f"rejection_{e}": rejection(score, is_signal, e) for e in EFFICIENCIES}


def auc(score: Floats, is_signal: Flags) -> float:
    """How often signal scores higher than background; a tie counts half (Mann and Whitney). NaN of scores that are."""
    if not np.isfinite(score).all():
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    signal = int(is_signal.sum())
    return float((middle[place][is_signal].sum() - signal * (signal + 1) / 2) / (signal * (len(score) - signal)))


def roc(score: Floats, is_signal: Flags) -> tuple[Floats, Floats]:
    """Efficiencies of signal and background as the threshold falls, from 0 to 1, one point a distinct score."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(is_signal[order])[ends]
    signal = np.concatenate([[0.0], hits / is_signal.sum()])
    background = np.concatenate([[0.0], (ends + 1 - hits) / (~is_signal).sum()])
    return signal, background


def background_efficiency(score: Floats, is_signal: Flags, efficiency: float) -> float:
    """The share of background that passes where so much signal does, interpolated on the ROC curve."""
    signal, background = roc(score, is_signal)
    return float(np.interp(efficiency, signal, background))


def rejection(score: Floats, is_signal: Flags, efficiency: float) -> float:
    """1 / background efficiency; where less than one jet of the background passes, their number: a lower bound."""
    return 1 / max(background_efficiency(score, is_signal, efficiency), 1 / int((~is_signal).sum()))


def resilience(own: tuple[Floats, Flags], other: tuple[Floats, Flags], efficiency: float = 0.5) -> float:
    """zeta: how little the efficiencies of one threshold move between two domains.

    Args:
        own: Scores and labels of the domain that the threshold is set in.
        other: The same of another.
        efficiency: Of the signal, at which it is set.
    """
    threshold = np.quantile(own[0][own[1]], 1 - efficiency)
    moved = 0.0
    for kind in (True, False):
        a, b = (float((score[label == kind] >= threshold).mean()) for score, label in (own, other))
        moved += ((a - b) / max((a + b) / 2, 1e-12)) ** 2
    return float(max(moved, 1e-12) ** -0.5)


def generalisation(results: dict[str, tuple[Floats, npt.NDArray[np.int8]]], trained: Iterable[str]) -> dict[str, float]:
    """auc/<domain> of each; of those that were not trained on gap/ and zeta/, and the worst of both.

    Args:
        results: Scores and labels by domain.
        trained: The domains that were trained on, whose mean is what others are compared with.
    """
    own = list(trained)
    areas = {name: auc(score, label == 1) for name, (score, label) in results.items()}
    found = {f"auc/{name}": value for name, value in areas.items()}
    here = float(np.mean([areas[name] for name in own]))
    others = [name for name in results if name not in own]
    if not others:
        return found
    score, label = (np.concatenate([results[name][part] for name in own]) for part in (0, 1))
    for name in others:
        found[f"gap/{name}"] = here - areas[name]
        found[f"zeta/{name}"] = resilience((score, label == 1), (results[name][0], results[name][1] == 1))
    found["worst_gap"] = max(found[f"gap/{name}"] for name in others)
    found["least_zeta"] = min(found[f"zeta/{name}"] for name in others)
    return found


def learned_variables(tagger: Tagger, trees: Trees, device: torch.device) -> tuple[dict[str, float], Tensor, Tensor]:
    """What RegNet's variables have to do with the Lund variables.

    Args:
        tagger: With its weights whole, in evaluation mode.
        trees: Whose first jets are looked at.
        device: Where the tagger is.

    Returns:
        variable/<k>/mean, /std and /r2 (linear, from all Lund variables), effective_rank; the variables (N, n); the
        Lund variables (N, 5).
    """
    batch = trees.take(trees.index[:_SHOWN], device)
    with torch.no_grad():
        made = tagger.variables(batch).double().cpu()
    lund = batch.lund.double().cpu()
    design = torch.cat([lund, torch.ones(len(lund), 1, dtype=torch.float64)], dim=1)
    rest = made - design @ torch.linalg.lstsq(design, made).solution
    variance = made.var(0).clamp_min(1e-12)
    r2 = 1 - rest.var(0) / variance
    found: dict[str, float] = {}
    for k in range(made.shape[1]):
        found |= {f"variable/{k}/mean": float(made[:, k].mean()), f"variable/{k}/std": float(variance[k].sqrt())}
        found[f"variable/{k}/r2"] = float(r2[k])
    found["effective_rank"] = effective_rank(made)
    # The last digits of a fit depend on where its matrices lie in memory; a resumed trial has to say the same.
    return {name: round(value, 6) for name, value in found.items()}, made, lund


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the eigenvalues of the correlation matrix of (N, n)."""
    scaled = (values - values.mean(0)) / values.std(0).clamp_min(1e-9)
    eigenvalues = torch.linalg.eigvalsh(scaled.T @ scaled / len(scaled)).clamp_min(0)
    share = eigenvalues / eigenvalues.sum().clamp_min(1e-12)
    return float(torch.special.entr(share).sum().exp())


def correlations(made: Tensor, lund: Tensor) -> Tensor:
    """Pearson's, (n, 5)."""
    a, b = ((x - x.mean(0)) / x.std(0).clamp_min(1e-9) for x in (made, lund))
    return (a.T @ b / len(a)).float()


def rotation_violation(tagger: Tagger, batch: Batch, angle: float = 1.0) -> float:
    """Mean change of the log-odds when every jet is turned about the beam, which changes nothing physical."""
    raw = batch.raw.clone()
    is_real = raw[:, [0]] > 0
    raw[:, [2, 6]] = torch.where(is_real, (raw[:, [2, 6]] + angle) % (2 * torch.pi), raw[:, [2, 6]])
    turned = Batch(**{**vars(batch), "raw": raw})
    with torch.no_grad():
        before, after = tagger(batch), tagger(turned)
    return float(((before[:, 1] - before[:, 0]) - (after[:, 1] - after[:, 0])).abs().mean())
