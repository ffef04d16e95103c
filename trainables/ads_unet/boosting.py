"""What the stages leave each other: weights of the samples, their own votes, and whether the encoder is good enough.

Source: sections 3.4, 4.2 and 4.4 of the reference notes on ADS_UNet. Everything here is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CLAMP = 1e-6  # of the error, which is 0 for a perfect stage


def alpha_of(error: float, classes: int, rule: str) -> float:
    """A stage's vote by its weighted error: 0 for one that is no better than chance.

    Args:
        error: ε, the weighted mean IoU deficit.
        classes: K.
        rule: half_logodds (½ log((1-ε)/ε) + log(K-1), the authors' code), samme (without the ½), or uniform (1).
    """
    if error >= 1 - 1 / classes or math.isnan(error):
        return 0.0
    if rule == "uniform":
        return 1.0
    error = min(max(error, _CLAMP), 1 - _CLAMP)
    odds = math.log((1 - error) / error)
    return (0.5 * odds if rule == "half_logodds" else odds) + math.log(classes - 1)


class Boosting:
    """The sample weights and the votes of the stages.

    Args:
        state: Its memory, kept with the run.
        shape: (N,) of samples, or (N, H, W) where pixels are weighted.
        classes: K.
        rule: Of `alpha_of`.
        reweight: ada, none or pixel.
        strength: β of ada: weights grow by `exp(β (1 - m))`.
    """

    def __init__(
        self, state: dict[str, Any], shape: Sequence[int], *, classes: int, rule: str, reweight: str, strength: float
    ):
        self._state = state
        self._classes, self._rule, self._reweight, self._strength = classes, rule, reweight, strength
        if not state:
            even = torch.full(tuple(shape), 1 / math.prod(shape), dtype=torch.float64)
            state.update(weights=even, alphas=[], errors=[], heads=[], is_good=False)

    @property
    def weights(self) -> Tensor:
        """w, all together 1."""
        weights: Tensor = self._state["weights"]
        return weights

    @property
    def relative(self) -> Tensor:
        """w times their number, float32: 1 on average, so that losses and weight decay stay comparable."""
        return (self.weights * self.weights.numel()).float()

    @property
    def alphas(self) -> list[float]:
        """α of the stages that have ended."""
        alphas: list[float] = self._state["alphas"]
        return alphas

    @property
    def errors(self) -> list[float]:
        """ε of the stages that have ended."""
        errors: list[float] = self._state["errors"]
        return errors

    @property
    def heads(self) -> list[int]:
        """The best head of each stage that has ended."""
        heads: list[int] = self._state["heads"]
        return heads

    @property
    def is_good(self) -> bool:
        """Whether the last stage was better than chance, so that its encoder may be frozen."""
        return bool(self._state["is_good"])

    def end_stage(self, quality: Tensor, head: int) -> None:
        """Takes up how well a stage does on the training set, and re-weights it for the next one.

        Args:
            quality: m in [0, 1] of each sample (N,); under pixel whether each is right (N, H, W).
            head: Its best head.
        """
        quality = quality.double().cpu()
        error = float((self.weights * (1 - quality)).sum())
        alpha = alpha_of(error, self._classes, self._rule)
        self._state["is_good"] = error < 1 - 1 / self._classes
        self.alphas.append(alpha)
        self.errors.append(error)
        self.heads.append(head)
        if not self.is_good or self._reweight == "none":
            return
        if self._reweight == "ada":
            grown = self.weights * torch.exp(self._strength * (1 - quality))
        else:
            grown = self.weights * torch.exp(alpha * (1 - 2 * quality))
        self._state["weights"] = grown / grown.sum()


def vote(probabilities: Tensor, alphas: Sequence[float], how: str) -> Tensor:
    """What the stages say together (B, K, H, W), summing to 1 over classes.

    Args:
        probabilities: (S, B, K, H, W).
        alphas: α of each; where all are 0 none knows anything, and all count the same.
        how: soft (α-weighted probabilities), mean, or hard (α-weighted decisions).
    """
    alpha = probabilities.new_tensor(alphas)
    if how == "mean" or not bool(alpha.sum() > 0):
        alpha = torch.ones_like(alpha)
    if how == "hard":
        winners = probabilities.argmax(dim=2)
        probabilities = torch.nn.functional.one_hot(winners, probabilities.shape[2]).movedim(-1, 2).to(alpha.dtype)
    return torch.einsum("s,sbkyx->bkyx", alpha / alpha.sum(), probabilities)
