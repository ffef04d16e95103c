"""What a family provides: a typed configuration and a `train` that reads like its paper's algorithm."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from pharos.errors import InputError
from pharos.run import Run


class Recipe(abc.ABC):
    """One model family. Its folder holds `recipe.py` with exactly one subclass of this."""

    Config: ClassVar[type]
    """A dataclass whose defaults are the paper's values, with a docstring under each field."""

    scales: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Named overlays on `Config` by dotted field name. `small` runs on two CPU cores; `paper` is the paper's."""

    @abc.abstractmethod
    def train(self, run: Run, config: Any) -> None:
        """Trains one model: learners from `run`, loops from `run.epochs`, results to `epoch.report`."""

    @abc.abstractmethod
    def fidelity(self, config: Any) -> int:
        """How many epochs, over all loops, a whole trial of this configuration takes."""

    def check(self, config: Any) -> None:  # noqa: B027 - nothing to look at is the usual case
        """Looks at what the configuration names (data, weights) before a sweep starts.

        Raises:
            InputError: Something is missing or broken.
        """

    def predict(self, run: Run, config: Any, folder: Path, output: Path) -> None:
        """Writes what the trained model says of the files in a folder; `train.py --predict` calls it.

        Args:
            run: Has the trial's checkpoint: `run.learner` gives back trained weights, `run.state` is as it was saved.
            config: What the trial was trained with.
            folder: Holds what to predict.
            output: Takes the predictions; it is there and empty.

        Raises:
            InputError: The family has no predictions, or the folder has nothing that it can read.
        """
        name = type(self).__module__.split(".")[-2]
        raise InputError(f"--predict: {name} makes no predictions of files; --export has its weights")


def build_config(kind: type, values: dict[str, Any]) -> Any:
    """A recipe's typed configuration from plain values, checked against its types and its own rules."""
    return OmegaConf.to_object(typed(kind, values))


def typed(kind: type, values: dict[str, Any]) -> DictConfig:
    """Plain values that know their types, which may still be changed."""
    config = OmegaConf.merge(OmegaConf.structured(kind), values)
    assert isinstance(config, DictConfig)
    return config
