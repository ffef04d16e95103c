"""SEUNet: branches of Gaussian-derivative filters with shared coefficients, each with trainable scales of its own.

Yang, Dasmahapatra, Mahmoodi, "Scale-Equivariant UNet for Histopathology Image Segmentation", arXiv 2304.04595. What
the paper leaves open follows the authors' public code (ynulonger/RSESF). README.md lists the deviations and what we
measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from pharos.learner import OptimConfig
from pharos.recipe import Recipe
from pharos.run import Run
from trainables.common.histology.branches import OneBranch
from trainables.common.histology.scale_settings import ScaleSpaceConfig
from trainables.common.histology.scale_training import predict_with_branches, train_branches
from trainables.common.histology.settings import one_cycle
from trainables.seunet.data import open_study
from trainables.seunet.model import LADDERS, SEUNet, intervals


@dataclass
class SEUNetConfig(ScaleSpaceConfig):
    """Defaults are the values of the authors' code."""

    network: str = "seunet"
    """seunet, or the baselines unet and unet_bilinear (with augmentation=flips+scale: the augmentation-trained one)."""
    optim: OptimConfig = field(default_factory=one_cycle)
    """Of the network."""
    batch_size: int = 20
    """Patches a step, over all workers."""
    branches: int = 5
    """Branches of scale S."""
    branch_width: int = 12
    """Channels of a branch at the first level; the authors' f is S times that, 60."""
    ladder: str = "offset"
    """How the scales' ranges lie: offset (each level's above those of the last), constant, geometric."""
    sigma_low: float = 0.5
    """Where the least range of scale begins, in pixels; the authors' is 0, where derivatives vanish."""
    sigma_width: float = 0.5
    """offset and constant: width of a range, in pixels."""
    sigma_ratio: float = 1.41
    """geometric: ratio of the ends of a range."""
    level_offset: float = 0.5
    """offset: how much higher each level's ranges begin, in pixels of that level."""
    truncation: float = 2.0
    """Half-width of the filters' windows, in scales; 3 is more exact, 2 the authors'."""
    lift_truncation: float = 3.0
    """The same of the first layer."""
    norm: str = "per_branch"
    """Batch normalisation: per_branch (the authors'), or shared by the branches (strictly equivariant)."""
    head: str = "split"
    """split (logits of each branch), or fused (a 5x5 convolution of the branches' probabilities)."""
    pool: str = "max"
    """How the resolution is halved: max or avg."""

    def __post_init__(self) -> None:
        """Checks what the networks do not.

        Raises:
            InputError: A value is impossible.
        """
        super().__post_init__()
        self.check_choices(
            network=("seunet", "unet", "unet_bilinear"),
            ladder=LADDERS,
            norm=("per_branch", "shared"),
            head=("split", "fused"),
            pool=("max", "avg"),
        )
        self.check_least(1, "branches", "branch_width", "truncation", "lift_truncation")
        self.check_least(0.05, "sigma_low", "sigma_width")
        self.check_least(1.01, "sigma_ratio")
        self.check_least(0, "level_offset")


class SEUNetRecipe(Recipe):
    """One network, trained at one magnification; what is compared are other ones."""

    Config = SEUNetConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "data.source": "nuclei",
            "data.size": 48,
            "data.train_images": 64,
            "data.validation_images": 8,
            "data.test_images": 6,
            "batch_size": 8,
            "epochs": 24,
            "evaluate_every": 6,
            "branches": 3,
            "branch_width": 8,
            "depth": 2,
            "unet_width": 16,
            # Coefficients are O(1) under a batch norm: in a hundredth of the paper's steps each must be larger.
            "optim.lr": 3e-2,
        },
        "tiny": {
            "data.source": "nuclei",
            "data.size": 16,
            "data.train_images": 16,
            "data.validation_images": 2,
            "data.test_images": 2,
            "batch_size": 8,
            "epochs": 6,
            "evaluate_every": 1,
            "branches": 2,
            "branch_width": 2,
            "depth": 1,
            "unet_width": 2,
        },
    }

    def fidelity(self, config: SEUNetConfig) -> int:
        return config.epochs

    def check(self, config: SEUNetConfig) -> None:
        config.warn_of_narrow_scales(config.sigma_low)
        if config.data.root:
            open_study(config.data, 2**config.depth)

    def train(self, run: Run, config: SEUNetConfig) -> None:
        study = run.cached(
            ("seunet", repr(config.data), config.depth), lambda: open_study(config.data, 2**config.depth)
        )
        train_branches(run, config, study, make_network(config, len(study.tissue.classes)), {})

    def predict(self, run: Run, config: SEUNetConfig, folder: Path, output: Path) -> None:
        predict_with_branches(run, config, lambda classes: make_network(config, classes), folder, output)


def make_network(config: SEUNetConfig, classes: int) -> nn.Module:
    """The network, or the baseline, of a configuration."""
    if config.network != "seunet":
        return OneBranch(config.network, classes, config.unet_width, config.depth)
    step = config.sigma_ratio if config.ladder == "geometric" else config.sigma_width
    ranges = intervals(
        config.ladder,
        config.sigma_low,
        step,
        branches=config.branches,
        depth=config.depth,
        level_offset=config.level_offset,
    )
    return SEUNet(
        classes,
        config.branch_width,
        ranges,
        head=config.head,
        eta=config.eta,
        norm=config.norm,
        pool=config.pool,
        truncation=config.truncation,
        lift_truncation=config.lift_truncation,
        **config.filter_settings(),
    )
