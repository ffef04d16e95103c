"""Finalists: a sweep's best trials once more, each on several fresh seeds, by the same machinery.

They are a sweep of their own whose trials are the pairs of finalist and seed. So whatever finishes a sweep that was
stopped finishes them too (`platform/sweep.py --resume`), and they run side by side on whatever the sweep ran on.
`pharos.standings` says what came of them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution

from pharos.config import RUN_OVERRIDES, reopen_plan
from pharos.errors import InputError
from pharos.folders import SWEEP_FILE, find_folder, read_document, without_url
from pharos.listener import Listener
from pharos.plan import SEED, Plan
from pharos.records import TrialRecord, ranked
from pharos.schedulers.choice import SchedulerConfig
from pharos.search.samplers import SamplerConfig
from pharos.space import Dimension, Params, Space
from pharos.study import read_study
from pharos.sweep import Sweep, create
from pharos.trial import trial_id

OVERRIDES = ("backend", "notify.", *RUN_OVERRIDES)
"""What may differ from the sweep that the finalists come from; of another `seed` follow other fresh seeds."""


def start(sweep: str, top: int, seeds: int, overrides: Sequence[str], listener: Listener) -> Sweep:
    """A new sweep of a sweep's best trials on fresh seeds, its folder written beside the other's.

    Args:
        sweep: The name of one that exists, or the path or URL of its folder.
        top: How many of its trials; fewer if it has completed fewer.
        seeds: How many fresh seeds each.
        overrides: `storage.url=…` to find it, and changes to how it runs.
        listener: Hears of every event.

    Raises:
        InputError: Something in the request is wrong; nothing was written.
    """
    if top < 1:
        raise InputError(f"--top {top}: must be at least 1")
    if seeds < 2:
        raise InputError(f"--seeds {seeds}: needs at least 2 seeds; one value has no interval")
    folder = find_folder(sweep, SWEEP_FILE, overrides)
    document = read_document(folder)
    plan = reopen_plan(document, without_url(overrides), OVERRIDES)
    if plan.finalists:
        raise InputError(
            f"--from {sweep}: finalists already; to train more, or on more seeds: --from {plan.finalists['sweep']}"
        )
    records, _, _ = read_study(folder, folder.name, plan.settings.study.storage)
    best = _best(plan, records, top)
    if not best:
        among = " within its constraints" if plan.settings.constraints else ""
        raise InputError(f"--from {sweep}: none of its trials was completed{among}; there is nothing to train again")
    if len(best) < top:
        listener.note(f"--top {top}: {folder.name} has only {len(best)} different completed trials; these are taken")
    ended = sum(record.outcome.is_final for record in records.values())
    if ended < plan.settings.trials:
        listener.note(f"{folder.name}: {ended} of {plan.settings.trials} trials have ended; taken are the best so far")
    if continued := [trial_id(record.number) for record in best if record.origin]:
        listener.note(f"{', '.join(continued)}: went on from others' weights; here trained from scratch, same values")
    fresh = fresh_seeds(plan.settings.seed, seeds, {document["settings"]["seed"]})
    return create(
        _plan(plan, folder.name, best, fresh),
        folder.parent().patient(plan.settings.storage.patience),
        f"{folder.name}-finals",
        listener,
    )


def fresh_seeds(seed: int, count: int, used: set[int]) -> list[int]:
    """Seeds that follow from a sweep's; of more, the first are the same.

    Args:
        seed: The sweep's.
        count: How many.
        used: What they must not be, besides that.
    """
    rng = random.Random(f"finalists/{seed}")
    found: list[int] = []
    while len(found) < count:
        if (drawn := rng.randrange(1, 1_000_000)) not in {seed, *used, *found}:
            found.append(drawn)
    return found


def _best(plan: Plan, records: dict[int, TrialRecord], top: int) -> list[TrialRecord]:
    """The best completed trials, no two with the same values."""
    found: dict[str, TrialRecord] = {}
    for record in ranked(records, plan.settings.objectives):
        found.setdefault(repr(plan.trial_config(record.params)), record)
    return list(found.values())[:top]


def _plan(plan: Plan, sweep: str, best: Sequence[TrialRecord], seeds: Sequence[int]) -> Plan:
    space, values = _space(plan, [record.params for record in best])
    seed = Dimension(SEED, CategoricalDistribution(seeds), {})
    settings = dataclasses.replace(
        plan.settings,
        trials=len(values) * len(seeds),
        scheduler=SchedulerConfig(name="none"),
        sampler=SamplerConfig(name="random"),
        hours=None,
        gpu_hours=None,
        stop_at=None,
        plateau=None,
        breaker=0,
        warm_start=[],
    )
    metrics = settings.objectives.metrics
    trials: list[dict[str, Any]] = [
        {
            "trial": trial_id(record.number),
            "values": dict(zip(metrics, record.values or (), strict=True)),
            "params": record.params,
        }
        for record in best
    ]
    return Plan(
        settings,
        plan.recipe,
        plan.config,
        Space([*space.dimensions, seed]),
        # A round of all finalists a seed: whenever it is stopped, they have equally many, but for one.
        [{**params, SEED: each} for each in seeds for params in values],
        finalists={"sweep": sweep, "trials": trials},
    )


def _space(plan: Plan, trials: Sequence[Params]) -> tuple[Space, list[Params]]:
    """A space that holds these trials, and their values in it.

    That is the sweep's own, unless one lies outside, as the space changed since: then choices of their values.
    """
    if not any(plan.space.contains(params, plan.defaults) for params in trials):
        return plan.space, [dict(params) for params in trials]
    names = dict.fromkeys(name for params in trials for name in params)
    # One that does not exist for a trial has the configuration's value there.
    whole = [{name: params.get(name, plan.defaults[name]) for name in names} for params in trials]
    dimensions = []
    for name in names:
        choices = list(dict.fromkeys(values[name] for values in whole))
        if choices == [None]:  # which no choice can be alone
            choices.append(plan.defaults[name] or "")
        dimensions.append(Dimension(name, CategoricalDistribution(choices), {}))
    return Space(dimensions), whole
