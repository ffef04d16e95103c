"""A full grid: every point once, in a random order, conditions respected (Optuna's own takes no conditions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from pharos.space import Params


class GridSampler(BaseSampler):
    """Suggests the points of a grid that no trial has had yet; when none is left it begins anew.

    Args:
        points: All of them.
        seed: Of their order.
    """

    def __init__(self, points: Sequence[Params], seed: int):
        order = np.random.default_rng(seed).permutation(len(points))
        self._points = [points[index] for index in order]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        known = {_key(other.params) for other in study.get_trials(deepcopy=False) if other.number != trial.number}
        self._point = next((point for point in self._points if _key(point) not in known), self._points[0])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._point[param_name]


def _key(params: Params) -> frozenset[tuple[str, Any]]:
    return frozenset(params.items())
