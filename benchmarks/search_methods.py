"""Search methods to be compared with, each the library's own code with the library's own defaults.

    random          uniform draws, every trial to its end
    asha+random     Ray Tune's AsyncHyperBandScheduler over uniform draws
    stock           the same scheduler over Ray Tune's OptunaSearch: what one gets from Tune and Optuna as they come
    optuna          Optuna alone: its default sampler and its HyperbandPruner
    syne-asha       Syne Tune's ASHA
    syne-bore       Syne Tune's ASHABORE: a density-ratio model (Tiao et al. 2021)
    syne-bohb       Syne Tune's BOHB: kernel densities under asynchronous halving (Falkner et al. 2018)
    syne-cqr        Syne Tune's ASHACQR: conformal quantile regression (Salinas et al. 2023)
    pharos          Pharos (benchmarks/search_pharos.py)

What they are told is what their own drivers would tell them; where a choice was to be made it favours them, and stands
with the method. Sources: Ray 2.60.0, Optuna 5.0.0, Syne Tune 0.16.0 (which has MOBSTER no longer).
"""

from __future__ import annotations

import datetime
import importlib
import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from benchmarks.search_clock import GO_ON, STOP, Method, Start
from benchmarks.search_tasks import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Random:
    """Uniform draws; every trial runs to its end."""

    def __init__(self, task: Task, seed: int):
        self._task = task
        self._rng = np.random.default_rng(seed)
        self._count = 0

    def next(self) -> Start:
        self._count += 1
        return Start(self._count - 1, self._task.draw(self._rng))

    def on_report(self, trial: int, fidelity: int, loss: float) -> str:
        return GO_ON

    def on_end(self, trial: int) -> None:
        pass


class TuneAsha:
    """Ray Tune's scheduler, and what its controller would tell a searcher (`ray/tune/execution/tune_controller.py`).

    `_process_trial_result`: the scheduler hears each result, the searcher only those after which the trial goes on.
    `stop_trial`, which is also how a trial ends at `max_t`: the scheduler hears that the trial is complete, then the
    searcher does, with the last result; a trial that was stopped early is thus complete with the loss it had then.
    """

    def __init__(self, task: Task):
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self._scheduler: Any = AsyncHyperBandScheduler(metric="loss", mode="min", max_t=task.max_fidelity)
        self._trials: list[SimpleNamespace] = []

    def _added(self) -> int:
        """Of a trial the scheduler reads the id, and of the controller nothing."""
        trial = SimpleNamespace(trial_id=f"{len(self._trials):05d}")
        self._trials.append(trial)
        self._scheduler.on_trial_add(None, trial)
        return len(self._trials) - 1

    def on_report(self, trial: int, fidelity: int, loss: float) -> str:
        from ray.tune.schedulers import TrialScheduler

        result = {"loss": loss, "training_iteration": fidelity}
        if self._scheduler.on_trial_result(None, self._trials[trial], result) == TrialScheduler.STOP:
            self._scheduler.on_trial_complete(None, self._trials[trial], result)
            self._stopped(self._trials[trial].trial_id, result)
            return STOP
        self._heard(self._trials[trial].trial_id, result)
        return GO_ON

    def on_end(self, trial: int) -> None:
        """Nothing: the scheduler has stopped the trial at `max_t`."""

    def _heard(self, trial_id: str, result: dict[str, Any]) -> None:
        """The searcher's part of a result."""

    def _stopped(self, trial_id: str, result: dict[str, Any]) -> None:
        """The searcher's part of an end."""


class AshaRandom(TuneAsha):
    """Ray Tune's scheduler over uniform draws."""

    def __init__(self, task: Task, seed: int):
        super().__init__(task)
        self._task = task
        self._rng = np.random.default_rng(seed)

    def next(self) -> Start:
        return Start(self._added(), self._task.draw(self._rng))


class Stock(TuneAsha):
    """Ray Tune's scheduler over its OptunaSearch.

    A trial is asked for when a worker is free, as with `max_concurrent_trials`; without that Tune asks for one trial
    ahead, which knows less. A space with conditions is given as a function, which OptunaSearch offers for that.
    """

    def __init__(self, task: Task, seed: int):
        from ray.tune.search.optuna import OptunaSearch

        super().__init__(task)
        if any(dimension.when for dimension in task.space.dimensions):

            def space(trial: optuna.Trial) -> None:
                task.space.ask(trial, {})
        else:
            space = {d.name: d.distribution for d in task.space.dimensions}  # type: ignore[assignment]
        self._searcher: Any = OptunaSearch(space=space, metric="loss", mode="min", seed=seed)

    def next(self) -> Start:
        # Tune asks the searcher before it adds the trial.
        params = self._searcher.suggest(f"{len(self._trials):05d}")
        return Start(self._added(), params)

    def _heard(self, trial_id: str, result: dict[str, Any]) -> None:
        self._searcher.on_trial_result(trial_id, result)

    def _stopped(self, trial_id: str, result: dict[str, Any]) -> None:
        self._searcher.on_trial_complete(trial_id, result)


class Optuna:
    """Optuna's default sampler and its HyperbandPruner, by ask and tell.

    At the last epoch the pruner is not asked, so that what was trained to the end is complete.
    """

    def __init__(self, task: Task, seed: int):
        self._task = task
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=task.max_fidelity)
        default = type(optuna.create_study().sampler)
        assert default is optuna.samplers.TPESampler, default
        # The pruner assigns brackets by the study's name.
        self._study = optuna.create_study(study_name=f"repeat {seed}", sampler=default(seed=seed), pruner=pruner)
        self._trials: list[optuna.Trial] = []
        self._last: dict[int, float] = {}

    def next(self) -> Start:
        trial = self._study.ask()
        self._trials.append(trial)
        return Start(len(self._trials) - 1, self._task.space.ask(trial, {}))

    def on_report(self, trial: int, fidelity: int, loss: float) -> str:
        self._trials[trial].report(loss, fidelity)
        self._last[trial] = loss
        if fidelity < self._task.max_fidelity and self._trials[trial].should_prune():
            self._study.tell(self._trials[trial], state=optuna.trial.TrialState.PRUNED)
            return STOP
        return GO_ON

    def on_end(self, trial: int) -> None:
        self._study.tell(self._trials[trial], self._last[trial])


class SyneTune:
    """A multi-fidelity method of Syne Tune's, told what its `Tuner` would tell it (`syne_tune/tuner.py`).

    A trial that it stops, at `max_t` too, is removed. It has no conditions: all dimensions are searched, and those that
    do not exist mean nothing.

    Args:
        task: What is searched.
        seed: Of the method.
        name: Its class in `syne_tune.optimizer.baselines`.
    """

    def __init__(self, task: Task, seed: int, name: str):
        from syne_tune.backend.trial_status import Trial  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from syne_tune.optimizer import baselines  # type: ignore[import-not-found,import-untyped,unused-ignore]

        self._trial = Trial
        self._space = {d.name: _syne_domain(d.distribution) for d in task.space.dimensions}
        self._scheduler = getattr(baselines, name)(
            self._space, metric="loss", time_attr="epoch", max_t=task.max_fidelity, random_seed=seed
        )
        self._trials: list[Any] = []

    def next(self) -> Start | None:
        suggestion = self._scheduler.suggest()
        if suggestion is None:
            return None
        assert suggestion.spawn_new_trial_id
        trial = self._trial(len(self._trials), suggestion.config, datetime.datetime.now())
        self._trials.append(trial)
        self._scheduler.on_trial_add(trial)
        return Start(trial.trial_id, suggestion.config)

    def on_report(self, trial: int, fidelity: int, loss: float) -> str:
        decision = self._scheduler.on_trial_result(self._trials[trial], {"loss": loss, "epoch": fidelity})
        assert decision in {"CONTINUE", "STOP"}, decision
        if decision == "CONTINUE":
            return GO_ON
        self._scheduler.on_trial_remove(self._trials[trial])
        return STOP

    def on_end(self, trial: int) -> None:
        """Nothing: the scheduler has stopped the trial at `max_t`."""


def _syne_domain(distribution: BaseDistribution) -> Any:
    from syne_tune import config_space  # type: ignore[import-not-found,import-untyped,unused-ignore]

    if isinstance(distribution, CategoricalDistribution):
        return config_space.choice(list(distribution.choices))
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    assert distribution.step in {None, 1}, "Syne Tune's integers have no step"
    if isinstance(distribution, IntDistribution):
        make = config_space.lograndint if distribution.log else config_space.randint
    else:
        make = config_space.loguniform if distribution.log else config_space.uniform
    return make(distribution.low, distribution.high)


def _pharos(task: Task, seed: int) -> Method:
    made: Method = importlib.import_module("benchmarks.search_pharos").make(task, seed)
    return made


METHODS: dict[str, Callable[[Task, int], Method]] = {
    "random": Random,
    "asha+random": AshaRandom,
    "stock": Stock,
    "optuna": Optuna,
    "syne-asha": lambda task, seed: SyneTune(task, seed, "ASHA"),
    "syne-bore": lambda task, seed: SyneTune(task, seed, "ASHABORE"),
    "syne-bohb": lambda task, seed: SyneTune(task, seed, "BOHB"),
    "syne-cqr": lambda task, seed: SyneTune(task, seed, "ASHACQR"),
    "pharos": _pharos,
}
"""By name: from a task and the number of the repeat."""


def available() -> list[str]:
    """Those methods whose packages are there."""
    needs = {"asha+random": "ray", "stock": "ray", "syne": "syne_tune", "pharos": "benchmarks.search_pharos"}
    return [
        name
        for name in METHODS
        if importlib.util.find_spec(needs.get(name) or needs.get(name.partition("-")[0]) or "optuna")
    ]
