"""Pharos' own search, as its driver runs it, on a study in memory: sampler, scheduler, study and all."""

from __future__ import annotations

from benchmarks.search_clock import GO_ON, PAUSE, STOP, Start
from benchmarks.search_tasks import Task
from pharos.schedulers.base import Action
from pharos.schedulers.choice import SchedulerConfig, make_scheduler
from pharos.search.objective import Objective, Objectives
from pharos.search.samplers import SamplerConfig, make_sampler
from pharos.search.search import Search
from pharos.study import Study
from pharos.trial import Ending, Outcome, Report

_WORDS = {Action.GO_ON: GO_ON, Action.STOP: STOP, Action.PAUSE: PAUSE}


class Pharos:
    """A search with the settings that are given; by default, those that a sweep has by default.

    Args:
        task: What is searched.
        seed: The search's.
        sampler: As `sampler=` and its settings.
        scheduler: As `scheduler=` and its settings.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        sampler: SamplerConfig | None = None,
        scheduler: SchedulerConfig | None = None,
    ):
        objectives = Objectives([Objective("loss")])
        space = task.space
        sampler, scheduler = sampler or SamplerConfig(), scheduler or SchedulerConfig()
        study = Study(
            None,
            objectives,
            lambda known: make_sampler(
                sampler, space, {}, task.max_fidelity, objectives=objectives, seed=seed, known=known
            ),
        )
        self._search = Search(
            study,
            space,
            {},
            make_scheduler(scheduler, task.max_fidelity, space, {}, seed),
            trials=1_000_000,
            max_fidelity=lambda params: task.max_fidelity,
        )

    def next(self) -> Start | None:
        record = self._search.next()
        return Start(record.number, record.params, max(record.curve, default=0)) if record else None

    def on_report(self, trial: int, fidelity: int, loss: float) -> str:
        decision = self._search.on_report(trial, Report(fidelity, {"loss": loss}, 0.0))
        if decision.action == Action.PAUSE:
            self._search.on_end(trial, Ending(Outcome.INTERRUPTED, fidelity=fidelity))
        return _WORDS[decision.action]

    def on_end(self, trial: int) -> None:
        metrics = self._search.study.records[trial].metrics
        self._search.on_end(trial, Ending(Outcome.COMPLETE, fidelity=max(self._curve(trial)), metrics=metrics))

    def _curve(self, trial: int) -> dict[int, tuple[float, ...]]:
        return self._search.study.records[trial].curve


def make(task: Task, seed: int, sampler: str = "", scheduler: str = "") -> Pharos:
    """A search by the names of its parts and settings, such as `tpe` and `asha,grace=0.02,reduction=4`.

    What is not named is what a sweep has by default.
    """
    parts: list[SamplerConfig | SchedulerConfig] = [SamplerConfig(), SchedulerConfig()]
    for part, text in zip(parts, (sampler, scheduler), strict=True):
        name, *settings = text.split(",")
        part.name = name or part.name
        for setting in settings:
            key, value = setting.split("=")
            setattr(part, key, type(getattr(part, key))(value))
    return Pharos(task, seed, parts[0], parts[1])  # type: ignore[arg-type]
