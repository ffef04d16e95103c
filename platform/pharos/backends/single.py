"""One trial of its own on Ray: what `platform/train.py` does when it has several workers."""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pharos.backends.cluster import Places, connect
from pharos.backends.credentials import credentials
from pharos.backends.gang import Gang, Lost
from pharos.errors import InputError
from pharos.plan import SEED, flatten
from pharos.settings import Settings
from pharos.trial import Ending, Report, TrialSpec

_PLACE_SECONDS = 60.0


def run_trial(
    spec: TrialSpec,
    settings: Settings,
    on_report: Callable[[Report], None],
    on_gang: Callable[[Gang], None],
    note: Callable[[str], None],
) -> Ending:
    """Trains one trial on a gang of its own; workers that are lost are replaced, as often as `retries` says.

    Args:
        spec: What to train.
        settings: Its resources and retries.
        on_report: Receives each report.
        on_gang: Receives the gang before training starts, so that it can be interrupted from elsewhere.
        note: Receives what a person should know.

    Raises:
        InputError: The workers do not fit the cluster, or others hold what they need.
    """
    resources = settings.resources
    is_ours = connect(resources.cluster_cpus)
    try:
        Places(resources)
        shape = resources.shape_of({**flatten(spec.config, "recipe."), SEED: spec.seed})
        group = placement_group([shape.bundle] * shape.workers, strategy=shape.placement.upper())
        if not group.wait(_PLACE_SECONDS):
            remove_placement_group(group)
            raise InputError(
                f"{shape.workers} workers found no room in {_PLACE_SECONDS:g} s: others use the cluster; try later"
            )
        gang = Gang(group, resources.hang_seconds, credentials())
        on_gang(gang)
        try:
            return _run(gang, spec, settings.retries, on_report, note)
        finally:
            gang.close()
            remove_placement_group(group)
    finally:
        if is_ours:
            ray.shutdown()


def _run(
    gang: Gang, spec: TrialSpec, retries: int, on_report: Callable[[Report], None], note: Callable[[str], None]
) -> Ending:
    losses = 0
    while True:
        gang.start(spec)
        while isinstance(message := gang.next(), Report):
            on_report(message)
        if isinstance(message, Ending):
            return message
        assert isinstance(message, Lost)
        losses += 1
        if losses > retries:
            return Ending(message.outcome, f"lost its workers {losses} times; last: {message.reason}")
        note(f"lost its workers ({message.reason}); goes on from its checkpoint")
