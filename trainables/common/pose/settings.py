"""Settings of the adversarial stage that the lifting families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pharos.learner import OptimConfig
from pharos.run import Epoch
from trainables.common.pose.adversarial import ObjectiveSettings
from trainables.common.pose.data import PoseDataConfig
from trainables.common.settings import Checked


def keras_adam() -> OptimConfig:
    """Adam as the authors' code has it."""
    return OptimConfig(lr=2e-4, eps=1e-7)  # Keras' epsilon


@dataclass
class AdversarialConfig(Checked):
    """Defaults are the values of the papers' first author's code, where the papers are silent."""

    data: PoseDataConfig = field(default_factory=PoseDataConfig)
    """Which poses."""
    optim: OptimConfig = field(default_factory=keras_adam)
    """Of the lifters (generators)."""
    critic_optim: OptimConfig = field(default_factory=keras_adam)
    """Of the critic."""
    epochs: int = 800
    """Of the adversarial stage."""
    batch_size: int = 8192
    """Poses a step, over all workers."""
    width: int = 1024
    """Features of the lifters' layers."""
    critic_width: int = 1024
    """Features of the critic's layers."""
    critic_blocks: int = 3
    """Residual blocks of the critic."""
    norm: str = "affine"
    """affine (what the authors' batch norm amounts to), batch, layer or none."""
    dropout: float = 0.0
    """In the lifters' blocks; 0.5 with norm=batch is the literal architecture."""
    activation: str = "relu"
    """relu, leaky_relu or gelu."""
    gan_loss: str = "lsgan"
    """bce_smooth, lsgan or hinge."""
    smooth: float = 0.2
    """bce_smooth: how far the real label is from 1."""
    label_flip: float = 10 / 99
    """Share of the critic's steps in which real and fake labels are exchanged."""
    w_adv: float = 1.0
    """Weight of the adversarial term; each part gets its share of it."""
    w_2d: float = 10.0
    """Weight of the 2D cycle."""
    w_90: float = 3.0
    """Weight of the 90-degree consistency; 0 takes it away."""
    reduction: str = "part_mean"
    """part_mean (the papers) or joint_mean: how a part's errors are averaged."""
    azimuth_max: float = 160.0
    """Largest turn of a reprojection, in degrees."""
    elevation_max: float = 10.0
    """Largest tilt of a reprojection, in degrees."""
    rotation_per: str = "batch"
    """batch: one view for all poses of a step (the papers); sample: one each."""
    flip: str = "naive"
    """Of half of the batches: naive mirrors x (the authors' code), swap also exchanges left and right, or none."""
    renorm_fake: bool = False
    """Whether reprojections are scaled to touch the unit box as the data do, before the critic sees them."""
    evaluate_every: int = 10
    """Epochs between two evaluations, which are what is reported; the last epoch of a stage always is."""

    def __post_init__(self) -> None:
        """Checks what the models and losses do not.

        Raises:
            InputError: A value is impossible.
        """
        self.check_choices(
            norm=("affine", "batch", "layer", "none"),
            activation=("relu", "leaky_relu", "gelu"),
            gan_loss=("bce_smooth", "lsgan", "hinge"),
            reduction=("part_mean", "joint_mean"),
            rotation_per=("batch", "sample"),
            flip=("naive", "swap", "none"),
        )
        self.check_least(1, "epochs", "batch_size", "width", "critic_width", "evaluate_every")

    def layers(self) -> dict[str, Any]:
        """What all layers of the lifters have in common."""
        return {"norm": self.norm, "activation": self.activation, "dropout": self.dropout}

    def objective(self, parts: Mapping[str, tuple[int, ...]], **others: Any) -> ObjectiveSettings:
        """The weights and variants of both objectives.

        Args:
            parts: Joints of each separately trained part.
            others: Settings of the objectives that only one family has.
        """
        return ObjectiveSettings(
            parts=parts,
            gan_loss=self.gan_loss,  # type: ignore[arg-type]
            smooth=self.smooth,
            w_adv=self.w_adv,
            w_2d=self.w_2d,
            w_90=self.w_90,
            reduction=self.reduction,  # type: ignore[arg-type]
            renorm_fake=self.renorm_fake,
            joint_calls=self.norm != "batch",
            **others,
        )

    def is_due(self, epoch: Epoch, epochs: int) -> bool:
        """Whether this epoch of a loop of so many is evaluated."""
        return (epoch.index + 1) % self.evaluate_every == 0 or epoch.index == epochs - 1
