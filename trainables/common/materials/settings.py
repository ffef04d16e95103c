"""Settings that the material segmentation families share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pharos.learner import OptimConfig
from pharos.run import Epoch
from trainables.common.materials.data import MaterialsDataConfig
from trainables.common.materials.network import NetworkConfig
from trainables.common.settings import Checked

UNDECAYED = ("norm", "relative_position_bias_table", "absolute_pos_embed")
"""Names of parameters without weight decay, in the authors' code; batch and group norms are not among them."""

NANO_NETWORK = {
    "width": 16,
    "depths": [1, 1, 2, 1],
    "heads": [1, 2, 4, 8],
    "patch": 2,
    "window": 4,
    "merge_heads": 8,
    "merge_window": 4,
    "pyramid": 32,
    "features": 32,
    "groups": 8,
}
NANO: dict[str, Any] = {f"network.{name}": value for name, value in NANO_NETWORK.items()} | {
    "data.size": 64,
    "data.crop": 64,
}
"""The notes' nano preset: of 64 pixels, patches of 2 to 16 of them."""
TINY: dict[str, Any] = NANO | {
    # Workers draw what they drop apart from each other, so that two of them would not train as one does.
    "network.drop_path": 0.0,
    "network.merge_drop_path": 0.0,
    "network.dropout2d": 0.0,
    "network.width": 8,
    "network.depths": [1, 1, 1, 1],
    "network.heads": [1, 1, 2, 2],
    "network.merge_heads": 2,
    "network.pyramid": 8,
    "network.features": 8,
    "network.groups": 2,
    "data.train_images": 16,
    "data.validation_images": 4,
    "data.test_images": 4,
}
"""A network that is trained in a blink, for tests."""


def swin_adamw() -> OptimConfig:
    """AdamW, a warm-up of 375 updates (1,500 quarter batches) and a linear decay from the second of 200 epochs."""
    return OptimConfig(
        name="adamw",
        lr=6e-5,
        weight_decay=0.01,
        undecayed=list(UNDECAYED),
        schedule="linear",
        hold=0.005,
        warmup=375,
    )


@dataclass
class MaterialsConfig(Checked):
    """What every material segmentation family has."""

    data: MaterialsDataConfig = field(default_factory=MaterialsDataConfig)
    """Which images."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """What segments them."""
    batch_size: int = 16
    """Images a step, over all workers."""
    focal_gamma: float = 3.0
    """How little pixels count that are right already; 0: cross-entropy."""
    flips: bool = False
    """Whether training mirrors images."""
    turns: bool = True
    """Whether training turns half of the images by 90, 180 or 270 degrees."""
    jitter: bool = False
    """Whether training changes brightness, contrast and saturation."""
    evaluate_every: int = 1
    """Epochs from one validation to the next; the last one is always validated."""

    def __post_init__(self) -> None:
        """Checks what the parts do not.

        Raises:
            InputError: A value is impossible.
        """
        self.check_least(1, "batch_size", "evaluate_every")
        self.check_range(0, 10, "focal_gamma")
        self.network.check_side(self.data.crop)

    def is_due(self, epoch: Epoch, epochs: int) -> bool:
        """Whether this epoch of a phase of so many is evaluated."""
        return (epoch.index + 1) % self.evaluate_every == 0 or epoch.index == epochs - 1
