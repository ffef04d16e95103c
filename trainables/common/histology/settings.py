"""Settings that the segmentation families share."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharos.errors import InputError
from pharos.learner import OptimConfig
from trainables.common.histology.augmentation import KINDS
from trainables.common.histology.data import HistologyDataConfig
from trainables.common.settings import Checked


def one_cycle(lr: float = 1e-3, weight_decay: float = 1e-7) -> OptimConfig:
    """Adam under a one-cycle rate, as the authors' code has it."""
    return OptimConfig(lr=lr, weight_decay=weight_decay, schedule="onecycle")


@dataclass
class HistologyConfig(Checked):
    """What every segmentation family has."""

    data: HistologyDataConfig = field(default_factory=HistologyDataConfig)
    """Which images."""
    optim: OptimConfig = field(default_factory=one_cycle)
    """Of the network."""
    batch_size: int = 8
    """Patches a step, over all workers."""
    augmentation: str = "flips"
    """none, flips, flips+rot90, flips+rot90+stain, flips+scale, or flips+affine (any rotation, scales 0.5 to 2)."""

    def __post_init__(self) -> None:
        """Checks what the networks do not.

        Raises:
            InputError: A value is impossible.
        """
        self.check_choices(augmentation=KINDS)
        self.check_least(2, "batch_size")

    def check_side(self, depth: int) -> None:
        """Refuses images that cannot be halved so often.

        Raises:
            InputError: The side is no multiple of 2^depth.
        """
        for name, side in (("size", self.data.size), ("crop", self.data.side)):
            if side % 2**depth:
                raise InputError(
                    f"recipe.data.{name}={side} must be a multiple of {2**depth}, by which the network divides it"
                )
