"""RSESF: steerable filters whose orientations and scales share their coefficients; trained upright, turned in use.

Yang, Dasmahapatra, Mahmoodi, "Rotation-Scale Equivariant Steerable Filters", MIDL 2023, arXiv 2304.04600. What
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
from trainables.rsesf.data import open_study
from trainables.rsesf.model import OFFSET_RULES, RSESF, SELECTIONS, intervals


def _optim() -> OptimConfig:
    return one_cycle(lr=4e-3, weight_decay=1e-6)


@dataclass
class RSESFConfig(ScaleSpaceConfig):
    """Defaults are the values of the authors' code."""

    network: str = "rsesf"
    """rsesf, or the baselines unet and unet_bilinear (with augmentation=flips+affine: the augmentation-trained one)."""
    optim: OptimConfig = field(default_factory=_optim)
    """Of the network."""
    batch_size: int = 16
    """Patches a step, over all workers."""
    width: int = 16
    """Channels of a slot at the first level, f."""
    branches: int = 4
    """Scales S."""
    orientations_train: int = 1
    """Orientations of every filter in training; memory grows with them."""
    orientations: int = 8
    """Orientations when the network is used: a multiple of 4 makes it equivariant to quarter turns, exactly."""
    selection: str = "image_argmax"
    """How orientations are pooled in use: one for each image (image_argmax), pixel (pixel_argmax) or channel
    (channel_argmax), or max; max is for networks that were trained with several."""
    ladder: str = "arithmetic"
    """How the scales' ranges lie: arithmetic (all of one width), geometric."""
    sigma_low: float = 0.4
    """Where the least range of scale begins, in pixels."""
    sigma_width: float = 0.4
    """arithmetic: width of a range, in pixels."""
    sigma_ratio: float = 1.41
    """geometric: ratio of the ends of a range."""
    offset_rule: str = "floor_half"
    """How many ranges higher a level begins than the first one: floor_half (half of its number), per_level, none."""
    truncation: float = 2.5
    """Half-width of the filters' windows, in scales."""
    norm: str = "shared"
    """Batch normalisation: shared by all slots, or per_branch (by the orientations of a scale)."""

    def __post_init__(self) -> None:
        """Checks what the networks do not.

        Raises:
            InputError: A value is impossible.
        """
        super().__post_init__()
        self.check_choices(
            network=("rsesf", "unet", "unet_bilinear"),
            selection=SELECTIONS,
            ladder=("arithmetic", "geometric"),
            offset_rule=OFFSET_RULES,
            norm=("shared", "per_branch"),
        )
        self.check_least(1, "width", "branches", "orientations_train", "orientations", "truncation")
        self.check_least(0.05, "sigma_low", "sigma_width")
        self.check_least(1.01, "sigma_ratio")


class RSESFRecipe(Recipe):
    """One network, trained at one magnification and orientation; what is compared are other ones."""

    Config = RSESFConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "data.source": "glands",
            "data.size": 48,
            "data.train_images": 64,
            "data.validation_images": 4,
            "data.test_images": 6,
            "batch_size": 8,
            "epochs": 24,
            "evaluate_every": 6,
            "branches": 3,
            "width": 8,
            "depth": 2,
            "unet_width": 16,
            "sigma_low": 0.5,
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
            "width": 2,
            "depth": 1,
            "orientations": 2,
            "unet_width": 2,
            # A bias before a batch norm has no gradient but that of rounding, which Adam would magnify.
            "optim.eps": 1e-3,
        },
    }

    def fidelity(self, config: RSESFConfig) -> int:
        return config.epochs

    def check(self, config: RSESFConfig) -> None:
        config.warn_of_narrow_scales(config.sigma_low)
        if config.data.root:
            open_study(config.data, 2**config.depth)

    def train(self, run: Run, config: RSESFConfig) -> None:
        study = run.cached(("rsesf", repr(config.data), config.depth), lambda: open_study(config.data, 2**config.depth))
        # The same weights upright: what the orientations bring.
        others = {"upright": lambda network, x: network(x, 1)} if config.network == "rsesf" else {}
        train_branches(run, config, study, make_network(config, len(study.tissue.classes)), others)

    def predict(self, run: Run, config: RSESFConfig, folder: Path, output: Path) -> None:
        predict_with_branches(run, config, lambda classes: make_network(config, classes), folder, output)


def make_network(config: RSESFConfig, classes: int) -> nn.Module:
    """The network, or the baseline, of a configuration."""
    if config.network != "rsesf":
        return OneBranch(config.network, classes, config.unet_width, config.depth)
    step = config.sigma_ratio if config.ladder == "geometric" else config.sigma_width
    ranges = intervals(
        config.ladder, config.sigma_low, step, branches=config.branches, depth=config.depth, rule=config.offset_rule
    )
    return RSESF(
        classes,
        config.width,
        ranges,
        eta=config.eta,
        orientations_train=config.orientations_train,
        orientations=config.orientations,
        selection=config.selection,
        norm=config.norm,
        truncation=config.truncation,
        lift_truncation=config.truncation,
        **config.filter_settings(),
    )
