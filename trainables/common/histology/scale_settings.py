"""Settings that the networks with branches of scale share."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from pharos.run import Epoch
from trainables.common.histology.branches import ETA_MODES, FUSIONS
from trainables.common.histology.settings import HistologyConfig

_SAMPLED_FROM = 0.4  # px: below, the second derivative is nearly the Gaussian itself; the basis has condition 72 here

logger = logging.getLogger(__name__)


@dataclass
class ScaleSpaceConfig(HistologyConfig):
    """Defaults are the values of the authors' code."""

    epochs: int = 70
    """Passes over the training images."""
    order: int = 2
    """The highest derivative of the basis: 0 to 4; it has 1, 3, 6, 10 or 15 functions."""
    depth: int = 4
    """How often the resolution is halved."""
    sigma_mode: str = "constrained"
    """constrained (each scale trainable inside of its range), fixed (the middle of the range), free (any)."""
    sigma_rate: float = 1.0
    """How much faster than the coefficients the scales learn."""
    eta: str = "bounded"
    """How branches' losses are weighed: bounded (learned, each at least half of its equal share), softmax, uniform."""
    fusion: str = "margin"
    """Of the branches' predictions: margin (at each pixel the most decided one), margin_mean, mean, max, eta."""
    unet_width: int = 64
    """Channels of the first level of the UNet that is the baseline."""
    evaluate_every: int = 5
    """Epochs between two validations; the last epoch always is followed by one, and by the test."""

    def __post_init__(self) -> None:
        """Checks what the networks do not.

        Raises:
            InputError: A value is impossible.
        """
        super().__post_init__()
        self.check_choices(sigma_mode=("constrained", "fixed", "free"), eta=ETA_MODES, fusion=FUSIONS)
        self.check_range(0, 4, "order")
        self.check_least(1, "epochs", "depth", "unet_width", "evaluate_every")
        self.check_side(self.depth)

    def filter_settings(self) -> dict[str, Any]:
        """What all layers of filters have in common."""
        return {"order": self.order, "sigma_mode": self.sigma_mode, "sigma_rate": self.sigma_rate}

    def is_due(self, epoch: Epoch) -> bool:
        """Whether a validation follows this epoch."""
        return (epoch.index + 1) % self.evaluate_every == 0 or epoch.index == self.epochs - 1

    def warn_of_narrow_scales(self, lowest: float) -> None:
        """Says so if a scale may become too small for its derivatives to be told apart on the pixels.

        Args:
            lowest: The least scale, in pixels.
        """
        if lowest < _SAMPLED_FROM:
            logger.warning(
                "recipe.sigma_low=%g: below %g px derivatives cannot be sampled, and the basis is ill-conditioned",
                lowest,
                _SAMPLED_FROM,
            )
