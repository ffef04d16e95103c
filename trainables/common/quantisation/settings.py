"""Settings that both families have, and how many weights are fixed after each round."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharos.errors import InputError
from trainables.common.quantisation.images import ImageDataConfig
from trainables.common.quantisation.models import ModelConfig
from trainables.common.quantisation.training import PretrainConfig
from trainables.common.settings import Checked

SCHEDULES = ("paper10", "fine12", "geometric", "linear")
_FINE12 = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0)


@dataclass
class QuantisationConfig(Checked):
    """What is trained on what, and the rounds in which its weights are fixed."""

    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    """Which images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which network."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Float training beforehand."""
    batch_size: int = 256
    """Images a step, over all workers."""
    schedule: str = "paper10"
    """Which cumulative shares of the weights are fixed: paper10 (the paper's ten), fine12 (twelve),
    geometric (1 - ratio^t) or linear (t/rounds), each ending with all of them."""
    rounds: int = 10
    """geometric and linear: how many rounds."""
    ratio: float = 0.5
    """geometric: what is left of the free weights after a round."""
    recluster: str = "all"
    """all: every round assigns all weights anew, up to its cumulative share; free_only: fixed ones stay."""
    bn_recalibrate: bool = False
    """Whether the statistics of batch normalisation are taken anew after the last fixing."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: One is impossible.
        """
        self.check_choices(schedule=SCHEDULES, recluster=("all", "free_only"))
        if self.batch_size < 1 or self.rounds < 1:
            raise InputError("recipe.batch_size and recipe.rounds must be at least 1")
        if not 0 < self.ratio < 1:
            raise InputError(f"recipe.ratio={self.ratio} must be above 0 and below 1")

    def shares(self, paper10: tuple[float, ...]) -> list[float]:
        """Cumulative shares fixed after each round, strictly increasing to exactly 1.

        Args:
            paper10: The family's own ten.
        """
        if self.schedule in ("paper10", "fine12"):
            return list(paper10 if self.schedule == "paper10" else _FINE12)
        if self.schedule == "linear":
            return [(index + 1) / self.rounds for index in range(self.rounds)]
        return [1 - self.ratio ** (index + 1) for index in range(self.rounds - 1)] + [1.0]
