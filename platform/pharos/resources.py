"""What trials get of a cluster: how many processes, what each of them has, and where trials differ in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pharos.conditions import Condition, meets, parse_condition
from pharos.errors import InputError
from pharos.families import suggest

PLACEMENTS = ("pack", "strict_pack", "spread")
_WHEN = "when"


@dataclass(frozen=True)
class Shape:
    """What one trial asks for.

    Attributes:
        workers: Processes.
        cpus_per_worker: Cores of each.
        gpus_per_worker: GPUs of each.
        placement: One of `PLACEMENTS`.
    """

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    placement: str

    @property
    def bundle(self) -> dict[str, float]:
        """What a worker asks for, as Ray names it."""
        cpus = {"CPU": float(self.cpus_per_worker)}
        return {**cpus, "GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else cpus

    @property
    def devices(self) -> float:
        """GPUs of the trial, else its CPU cores."""
        return (self.gpus_per_worker or self.cpus_per_worker) * self.workers

    def __str__(self) -> str:
        amounts = " and ".join(f"{amount:g} {kind}" for kind, amount in self.bundle.items())
        if self.workers == 1:
            return amounts
        where = " on one node" if self.placement == "strict_pack" else ""
        return f"{self.workers} workers{where} of {amounts}"


@dataclass
class ResourcesConfig:
    """What a trial gets, and how many run at once. `conf/resources/auto.yaml` says what each is for."""

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None
    placement: str = "pack"
    shapes: Any = field(default_factory=list)
    hang_seconds: float = 600.0
    concurrency: int | None = None
    autoscaling: bool = False
    cluster_cpus: int | None = None

    @property
    def shape(self) -> Shape:
        """Of trials that no entry of `shapes` is about."""
        return Shape(self.workers, self.cpus_per_worker, self.gpus_per_worker or 0.0, self.placement)

    @property
    def all_shapes(self) -> list[Shape]:
        """The shapes that trials may have, the usual one first."""
        return [self.shape, *(shape for _, shape in self._special())]

    def shape_of(self, values: Mapping[str, Any]) -> Shape:
        """What a trial gets.

        Args:
            values: All of its values, by full name (`recipe.optim.lr`).
        """
        for conditions, shape in self._special():
            if all(meets(values[name], condition) for name, condition in conditions.items()):
                return shape
        return self.shape

    def check(self) -> None:
        """Raises InputError for values that no trial can have."""
        if self.autoscaling and self.concurrency is None:
            raise InputError("resources.autoscaling=true needs resources.concurrency: trials to bring nodes for")
        if not isinstance(self.shapes, list):
            raise InputError(f"resources.shapes={self.shapes}: must be a list, [{{when: {{...}}, workers: 2}}]")
        for number, entry in enumerate(self.shapes):
            _check_entry(entry, f"resources.shapes[{number}]")
        for shape in self.all_shapes:
            gpus = f"resources.gpus_per_worker={shape.gpus_per_worker:g}"
            if shape.gpus_per_worker != int(shape.gpus_per_worker) and (shape.workers > 1 or shape.gpus_per_worker > 1):
                raise InputError(f"{gpus}: only trials of one worker can share a GPU")
            if shape.gpus_per_worker > 1:
                raise InputError(f"{gpus}: a worker uses one GPU; ask for more workers instead")

    def check_names(self, known: Iterable[str]) -> None:
        """Raises InputError for a condition on a value that trials do not have."""
        for conditions, _ in self._special():
            for name in conditions:
                if name not in known:
                    raise InputError(f"resources.shapes: when: {name}: no such value; {suggest(name, known)}")

    def _special(self) -> list[tuple[dict[str, Condition], Shape]]:
        usual = self.shape
        return [
            (
                {
                    _full(name): parse_condition(value, f"resources.shapes: when: {name}")
                    for name, value in entry[_WHEN].items()
                },
                dataclasses.replace(usual, **{name: value for name, value in entry.items() if name != _WHEN}),
            )
            for entry in self.shapes
        ]


_SHAPE_FIELDS = tuple(each.name for each in dataclasses.fields(Shape))


def _check_entry(entry: Any, where: str) -> None:
    """Raises InputError for an entry of `shapes` that says nothing, or what it cannot."""
    if not isinstance(entry, dict) or not isinstance(entry.get(_WHEN), dict) or not entry[_WHEN]:
        raise InputError(f"{where}: must say which trials it is for: {{when: {{recipe.NAME: VALUE}}, workers: 2}}")
    for name in entry:
        if name not in (_WHEN, *_SHAPE_FIELDS):
            raise InputError(f"{where}: {name}: {suggest(name, (_WHEN, *_SHAPE_FIELDS))}")
    for name in ("workers", "cpus_per_worker"):
        if (value := entry.get(name, 1)) is True or not isinstance(value, int) or value < 1:
            raise InputError(f"{where}: {name}={value}: must be a whole number of at least 1")
    if isinstance(gpus := entry.get("gpus_per_worker", 0), bool | str) or gpus < 0:
        raise InputError(f"{where}: gpus_per_worker={gpus}: must be a number of at least 0")
    if (placement := entry.get("placement", "pack")) not in PLACEMENTS:
        raise InputError(f"{where}: placement={placement}: {suggest(str(placement), PLACEMENTS)}")


def _full(name: str) -> str:
    return f"recipe.{name}" if name.startswith("data.") else name
