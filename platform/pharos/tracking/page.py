"""A sweep's page in Weights & Biases: one W&B sweep of method `custom`, which each trial's run joins by itself.

No agent of W&B runs anything. The driver has the page created while the first trials start and puts its id where the
trials' own processes find it; it never waits for W&B longer than a few seconds, at the end.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pharos.errors import PharosError, StorageError
from pharos.plan import Plan
from pharos.records import TrialRecord
from pharos.space import Space
from pharos.storage import Storage
from pharos.tracking.calls import call
from pharos.tracking.wandb_run import PAGE, is_online, marker, refusal, run_id
from pharos.trial import trial_id

_CREATE_SECONDS = 30.0
_LAST_SECONDS = 30.0  # of the sweep's own run, at its end, with a W&B that answers


class Page:
    """The page of a sweep that a driver runs, and that W&B tracks.

    Args:
        name: The sweep's.
        plan: What it searches.
        home: Its folder.
    """

    def __init__(self, name: str, plan: Plan, home: Storage):
        self._name = name
        self._plan = plan
        self._home = home
        self.is_online = is_online(plan.settings.tracking.mode)

    def open(self) -> None:
        """Has the page created, unless an earlier driver did."""
        if self.is_online and self._plan.settings.tracking.sweep == "attach" and not read_page(self._home).get("id"):
            threading.Thread(target=self._create, name="wandb-page", daemon=True).start()

    def _create(self) -> None:
        page: dict[str, Any]
        try:
            page = create_page(self._name, self._plan, [])
        except PharosError as error:
            page = {"id": None, "why": str(error)}
        with contextlib.suppress(StorageError):
            self._home.write_json(PAGE, page)

    def close(self, summary: Mapping[str, Any], records: Sequence[TrialRecord]) -> list[str]:
        """Sends what is of the sweep as a whole; what a person should know of it, a line each.

        Args:
            summary: The sweep's.
            records: Its trials.
        """
        left = unsent(self._home, records)
        if left or not self.is_online:
            why = "" if self.is_online else " (offline)"
            return [
                f"W&B: {len(left)} of {len(records)} trials were not sent{why}; "
                f"python platform/report.py {_address(self._home)} --sync sends them"
            ]
        try:
            if trouble := refusal(2.0):
                raise PharosError(trouble)
            if self._plan.settings.tracking.sweep == "prior_runs" and not read_page(self._home).get("id"):
                runs = [run_id(self._name, trial_id(record.number)) for record in records]
                self._home.write_json(PAGE, create_page(self._name, self._plan, runs, _LAST_SECONDS))
            conclude_page(self._name, self._plan, self._home, summary, _LAST_SECONDS)
        except PharosError as error:
            return [
                f"W&B: the sweep's summary was not sent ({error}); "
                f"python platform/report.py {_address(self._home)} --sync sends it"
            ]
        url = read_page(self._home).get("url")
        return [f"W&B: {url}"] if url else []


def unsent(home: Storage, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials of which W&B does not have all.

    Args:
        home: The sweep's folder.
        records: Its trials.
    """
    there = set(home.list("wandb"))
    return [record for record in records if marker(trial_id(record.number)).rpartition("/")[2] not in there]


def read_page(home: Storage) -> dict[str, Any]:
    """What is known of a sweep's page: its `id` and `url`, or `why` it has none."""
    try:
        page: dict[str, Any] = json.loads(home.read_bytes(PAGE))
    except FileNotFoundError:
        return {}
    return page


def create_page(name: str, plan: Plan, runs: list[str], seconds: float = _CREATE_SECONDS) -> dict[str, Any]:
    """Creates the page, with runs that are there already; returns its `id` and `url`.

    Raises:
        PharosError: W&B does not answer, or refuses.
    """
    tracking = plan.settings.tracking
    return call(
        "create", seconds, project=tracking.project, entity=tracking.entity, config=sweep_config(name, plan), runs=runs
    )


def conclude_page(name: str, plan: Plan, home: Storage, summary: Mapping[str, Any], seconds: float) -> None:
    """Sends the sweep's own run: its summary and, as an artifact that refers to it, its best checkpoint.

    Raises:
        PharosError: W&B does not answer, or refuses.
    """
    tracking = plan.settings.tracking
    best = summary["best"]
    checkpoint = best["checkpoint"] if best else None
    if checkpoint and home.is_local:
        checkpoint = f"file://{checkpoint}"
    call(
        "conclude",
        seconds,
        project=tracking.project,
        entity=tracking.entity,
        sweep=name,
        summary={key: summary[key] for key in ("family", "trials", "best", "paper_values", "seconds", "stopped")},
        checkpoint=checkpoint,
    )


def sweep_config(name: str, plan: Plan) -> dict[str, Any]:
    """A sweep as W&B describes one."""
    first = plan.settings.objectives.first
    return {
        "name": name,
        "method": "custom",
        "metric": {"name": first.metric, "goal": "minimize" if first.mode == "min" else "maximize"},
        "parameters": parameters(plan.space),
    }


def parameters(space: Space) -> dict[str, Any]:
    """A search space as W&B describes one: under the same names as in the configuration of each run."""
    nested: dict[str, Any] = {}
    for dimension in space.dimensions:
        *groups, last = dimension.name.removeprefix("recipe.").split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {"parameters": {}})["parameters"]
        place[last] = _parameter(dimension.distribution)
    return nested


def _parameter(distribution: BaseDistribution) -> dict[str, Any]:
    if isinstance(distribution, CategoricalDistribution):
        return {"values": list(distribution.choices)}
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution):
        kind = "q_log_uniform_values" if distribution.log else "int_uniform" if step == 1 else "q_uniform"
        return {"distribution": kind, "min": low, "max": high, **({"q": step} if kind.startswith("q") else {})}
    if step is not None:
        return {"distribution": "q_uniform", "min": low, "max": high, "q": step}
    return {"distribution": "log_uniform_values" if distribution.log else "uniform", "min": low, "max": high}


def _address(home: Storage) -> str:
    return home.name if home.is_local else home.root
