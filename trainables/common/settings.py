"""What the settings of all families have in common: how impossible values are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pharos.errors import InputError


class Checked:
    """Of a dataclass of settings: says in one line which value is impossible and what would be right.

    Attributes:
        where: What its fields are called by who types them.
    """

    where = "recipe"

    def check_choices(self, **choices: tuple[str, ...]) -> None:
        """Refuses a value that is not one of those allowed, by field.

        Raises:
            InputError: There is one.
        """
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{self.where}.{name}={getattr(self, name)} must be one of {', '.join(allowed)}")

    def check_least(self, low: float, *names: str) -> None:
        """Refuses a number below the least allowed.

        Raises:
            InputError: There is one.
        """
        for name in names:
            if getattr(self, name) < low:
                raise InputError(f"{self.where}.{name}={getattr(self, name)} must be at least {low}")

    def check_range(self, low: float, high: float, *names: str) -> None:
        """Refuses a number outside of an interval, both ends allowed.

        Raises:
            InputError: There is one.
        """
        for name in names:
            value: Any = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{self.where}.{name}={value} must be from {low} to {high}")


class Means:
    """Means of named scalars over an epoch, summed on the device so that no step waits."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Takes up one step's."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means so far, as `train/<name>`."""
        return {f"train/{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
