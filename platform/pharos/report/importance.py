"""Which dimensions matter: PED-ANOVA (Watanabe et al. 2023), as Optuna has it.

It asks how much the best trials' values of a dimension differ from all trials' values, one dimension at a time. That
needs no model, so a thousand trials take a fraction of a second, and dimensions that exist for some trials only are
judged among those.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from pharos.ranges import inside
from pharos.report.story import Judged, Story

LEAST = 10
"""Fewer trials say nothing."""


@dataclass(frozen=True)
class Importance:
    """How much a dimension matters.

    Attributes:
        name: The dimension's.
        share: Of all dimensions' together.
        trials: How many have it.
    """

    name: str
    share: float
    trials: int


def importances(story: Story) -> list[Importance]:
    """The dimensions, the most important first; none if there are too few trials to say."""
    judged = story.judged
    if len(judged.records) < LEAST or len(set(judged.values)) < 2:
        return []
    study = study_of(story, judged)
    found: dict[str, tuple[float, int]] = {}
    for axis in story.axes:
        trials = sum(axis.name in record.params for record in judged.records)
        distinct = {str(record.params[axis.name]) for record in judged.records if axis.name in record.params}
        if trials >= LEAST and len(distinct) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's, of experimental options that we chose on purpose
                evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, 5 / trials)))
                value = get_param_importances(
                    study, evaluator=evaluator, params=[axis.name], target=_first, normalize=False
                )[axis.name]
            found[axis.name] = (max(0.0, float(value)), trials)
    total = sum(value for value, _ in found.values())
    if not total:
        return []
    shares = [Importance(name, value / total, trials) for name, (value, trials) in found.items()]
    return sorted(shares, key=lambda each: -each.share)


def study_of(story: Story, judged: Judged) -> optuna.Study:
    """The trials as Optuna sees complete ones, lower is better."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    now = {axis.name: axis for axis in story.axes}
    for record, value in zip(judged.records, judged.values, strict=True):
        # What lies outside of the present range would have to be another dimension to Optuna.
        params = {
            name: each for name, each in record.params.items() if name in now and inside(now[name].distribution, each)
        }
        study.add_trial(
            optuna.trial.create_trial(
                value=value if story.is_min else -value,
                params=params,
                distributions={name: now[name].distribution for name in params},
            )
        )
    return study


def _first(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])
