"""ADS_UNet: sub-UNets of growing depth are trained one after the other, re-weight the samples, and vote.

Yang, Dasmahapatra, Mahmoodi, "ADS_UNet: A Nested UNet for Histopathology Image Segmentation", arXiv 2304.04567. What
the paper's readable parts leave open follows the authors' code (ynulonger/ADS_UNet). README.md lists the deviations and
what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pharos.errors import InputError
from pharos.recipe import Recipe
from pharos.run import Run
from trainables.ads_unet.boosting import Boosting, vote
from trainables.ads_unet.data import HistologyDataConfig, heterogeneous, open_tissue, shown
from trainables.ads_unet.evaluation import Judge, Layers
from trainables.ads_unet.losses import MapLoss, class_weights
from trainables.ads_unet.model import Grid, Joint, count
from trainables.common.histology.data import standardised
from trainables.common.histology.inference import predict_folder
from trainables.common.histology.networks import baseline
from trainables.common.histology.settings import HistologyConfig

_BASELINES = ("unet", "unete", "unetpp")


@dataclass
class AdsUNetConfig(HistologyConfig):
    """Defaults are those of the authors' code."""

    data: HistologyDataConfig = field(default_factory=heterogeneous)
    """Which images."""
    network: str = "ads_unet"
    """ads_unet; or a baseline, trained at once: unet, or with deep supervision unete (UNet^e), unetpp (UNet++)."""
    width: int = 64
    """f: channels of the first level, doubled by each."""
    depth: int = 4
    """D: how often the resolution is halved, and how many stages there are."""
    epochs: int = 70
    """Of each stage."""
    joint_epochs: int = 70
    """Of a baseline."""
    batch_size: int = 4
    """Patches a step, over all workers."""
    skip: str = "scse"
    """scse (spatial and channel attention) or none: what the encoder's nodes pass on their way to the decoders."""
    eta_mode: str = "bounded"
    """Layer weights: bounded, softmax, uniform, or top_only (no deep supervision)."""
    eta_floor: float = 0.5
    """bounded: share of the weight that is spread evenly; the authors' code has a half."""
    reweight: str = "ada"
    """Samples between two stages: ada (by their IoU deficit), none, or pixel (every pixel by itself)."""
    reweight_strength: float = 1.0
    """ada: weights grow by exp(strength (1 - IoU))."""
    alpha_rule: str = "half_logodds"
    """A stage's vote: half_logodds (the authors' code), samme, or uniform."""
    head_mode: str = "eta"
    """Who speaks for a stage: eta (all heads, by the layer weights) or best_head (the best on validation)."""
    vote: str = "soft"
    """How stages vote: soft (probabilities by alpha), mean, or hard (decisions by alpha)."""
    freeze_encoder: str = "auto"
    """Earlier encoder nodes: auto (frozen once a stage was better than chance), always, never."""
    frozen_bn: str = "eval"
    """Statistics of frozen batch norms: eval (they stay), train (they drift, as in the authors' code)."""
    loss: str = "ce"
    """ce, iou or ce+dice."""
    class_weighting: str = "complement"
    """none, complement (1 - frequency, as for BCSS) or inverse_sqrt."""

    def __post_init__(self) -> None:
        """Checks values and their combinations.

        Raises:
            InputError: One is impossible.
        """
        super().__post_init__()
        self.check_choices(
            network=("ads_unet", *_BASELINES),
            skip=("scse", "none"),
            eta_mode=("bounded", "softmax", "uniform", "top_only"),
            reweight=("ada", "none", "pixel"),
            alpha_rule=("half_logodds", "samme", "uniform"),
            head_mode=("eta", "best_head"),
            vote=("soft", "mean", "hard"),
            freeze_encoder=("auto", "always", "never"),
            frozen_bn=("eval", "train"),
            loss=("ce", "iou", "ce+dice"),
            class_weighting=("none", "complement", "inverse_sqrt"),
        )
        self.check_least(1, "depth", "epochs", "joint_epochs")
        self.check_least(0, "reweight_strength")
        self.check_range(0, 1, "eta_floor")
        if self.width < 2 or self.width % 2:
            raise InputError(f"recipe.width={self.width} must be even and at least 2: the attention halves it")
        self.check_side(self.depth)
        if self.reweight == "pixel" and any(word in self.augmentation for word in ("stain", "scale", "affine")):
            raise InputError("recipe.reweight=pixel takes recipe.augmentation=none, flips or flips+rot90")

    @property
    def stages(self) -> int:
        """How many times something is trained."""
        return self.depth if self.network == "ads_unet" else 1

    @property
    def stage_epochs(self) -> int:
        """Epochs of each of them."""
        return self.epochs if self.network == "ads_unet" else self.joint_epochs


class AdsUNet(Recipe):
    """Stage-wise additive training of the grid, or a baseline in its place."""

    Config = AdsUNetConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "width": 8,
            "depth": 3,
            "epochs": 12,
            "joint_epochs": 36,
            "batch_size": 8,
            "data.size": 64,
            "data.test_images": 48,
            # A hundredth of the paper's steps.
            "optim.lr": 1e-2,
        },
        "tiny": {
            "width": 4,
            "depth": 2,
            "epochs": 3,
            "joint_epochs": 6,
            "batch_size": 8,
            # Too little is learned to be better than chance.
            "freeze_encoder": "always",
            "data.source": "nuclei",
            "data.size": 16,
            "data.train_images": 24,
            "data.validation_images": 3,
            "data.test_images": 3,
            # A bias before a batch norm has no gradient but that of rounding, which Adam would magnify.
            "optim.eps": 1e-3,
        },
    }

    def fidelity(self, config: AdsUNetConfig) -> int:
        return config.stages * config.stage_epochs

    def check(self, config: AdsUNetConfig) -> None:
        if config.data.root:
            open_tissue(config.data)

    def train(self, run: Run, config: AdsUNetConfig) -> None:
        tissue = run.cached(("tissue", repr(config.data)), lambda: open_tissue(config.data))
        run.state["tissue"] = tissue.about()
        images, masks = (values.to(run.device) for values in (tissue.train.images, tissue.train.masks))
        boosting = _boosting(
            run, config, len(tissue.classes), masks.shape if config.reweight == "pixel" else (len(masks),)
        )
        judge = Judge(
            run,
            tissue,
            boosting,
            how=config.vote,
            heads=lambda: _heads(config, boosting),
            batch_size=config.batch_size,
        )

        for stage in run.stages("stage", config.stages):
            network = stage_network(config, len(tissue.classes), stage + 1, tissue.frequencies)
            if stage:
                network.load_state_dict(run.state["best"]["network"], strict=False)
            if isinstance(network, Grid):
                network.train_last_stage(with_encoder=not _is_frozen(config, boosting, stage))
            parameters = {"parameters": float(count(network)), "trained": float(count(network, trained=True))}
            learner = run.learner(f"stage{stage + 1}", network, config.optim)
            weights = boosting.relative.to(run.device)
            for epoch in run.epochs("epoch", config.stage_epochs):
                layers = Layers()
                for batch in epoch.batches((images, masks, weights), config.batch_size):
                    x, y, w = shown(batch, config.augmentation, epoch, config.data.crop)
                    with judge.measuring(network, stage):
                        loss, losses, etas = learner(standardised(x, tissue.mean, tissue.std), y, w)
                    learner.step(loss)
                    layers.add(losses, etas)
                with learner.evaluating():
                    found = judge.stage(learner, stage)
                judge.keep_best(learner, stage, found["val/stage_miou"])
                if epoch.index == config.stage_epochs - 1:
                    learner.load_weights(run.state["best"]["network"])
                    with learner.evaluating():
                        found |= judge.end_stage(learner, stage)
                        if stage == config.stages - 1:
                            found |= judge.finish(learner)
                epoch.report(layers.means() | parameters | found)

    def predict(self, run: Run, config: AdsUNetConfig, folder: Path, output: Path) -> None:
        about = run.state["tissue"]
        classes = len(about["classes"])
        boosting = _boosting(run, config, classes, ())
        # Stages that have ended; of a trial that was stopped in its first one, that one as it is.
        depth = max(1, len(boosting.alphas))
        alphas = boosting.alphas or [1.0]
        network = stage_network(config, classes, depth, torch.full((classes,), 1 / classes))
        learner = run.learner(f"stage{depth}", network, config.optim)
        with learner.evaluating():
            predict_folder(
                lambda x: vote(learner(x, heads=_heads(config, boosting)), alphas, config.vote),
                folder,
                output,
                about,
                multiple=2**config.depth,
                side=config.data.side,
                device=run.device,
            )


def stage_network(config: AdsUNetConfig, classes: int, depth: int, frequencies: Tensor) -> nn.Module:
    """The grid up to a depth, or the baseline.

    Args:
        config: Which.
        classes: K.
        depth: Of the sub-UNet that is trained; a baseline always has all of its depth.
        frequencies: (K,) shares of the training pixels.
    """
    loss = MapLoss(config.loss, class_weights(config.class_weighting, frequencies))
    if config.network != "ads_unet":
        return Joint(baseline(config.network, classes, config.width, config.depth), loss)
    return Grid(
        classes,
        config.width,
        depth,
        loss,
        skip=config.skip,
        eta_mode=config.eta_mode,
        eta_floor=config.eta_floor,
        frozen_bn=config.frozen_bn,
    )


def _is_frozen(config: AdsUNetConfig, boosting: Boosting, stage: int) -> bool:
    """Whether the encoder's earlier nodes are frozen in a stage, from 0."""
    if not stage or config.freeze_encoder == "never":
        return False
    return config.freeze_encoder == "always" or boosting.is_good


def _boosting(run: Run, config: AdsUNetConfig, classes: int, shape: tuple[int, ...]) -> Boosting:
    return Boosting(
        run.state.setdefault("boosting", {}),
        shape,
        classes=classes,
        rule=config.alpha_rule,
        reweight=config.reweight,
        strength=config.reweight_strength,
    )


def _heads(config: AdsUNetConfig, boosting: Boosting) -> Sequence[int]:
    return boosting.heads if config.head_mode == "best_head" else ()
