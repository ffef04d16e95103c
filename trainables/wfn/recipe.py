"""Weight Fixing Networks: train, fix the weights that a few shared values fit, train the others, until all are fixed.

Subia-Waud, Dasmahapatra, "Weight Fixing Networks", ECCV 2022, arXiv 2210.13554. What the paper leaves open follows
the authors' public code (subiawaud/Weight_Fix_Networks). README.md lists the deviations and what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from pharos.errors import InputError, PharosError
from pharos.learner import Learner, OptimConfig
from pharos.recipe import Recipe
from pharos.run import Run
from trainables.common.quantisation.baselines import judge_baselines
from trainables.common.quantisation.clustering import MAX_ORDER, Clustering, cluster
from trainables.common.quantisation.fixing import check_alike
from trainables.common.quantisation.measures import describe, distinct, sizes
from trainables.common.quantisation.packing import pack, plain
from trainables.common.quantisation.settings import QuantisationConfig
from trainables.common.quantisation.training import accuracy, batches, pretrained, recalibrate
from trainables.wfn.data import Images, open_images
from trainables.wfn.losses import Regulariser, whole_loss
from trainables.wfn.model import Layout, build_model, make_fixable
from trainables.wfn.pictures import count_columns, draw_rounds

_PAPER10 = (0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0)


@dataclass
class WfnConfig(QuantisationConfig):
    """Defaults are those of the paper's ImageNet models, from the authors' code where the paper is silent."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-5, clip_norm=0.5))
    """Of the free weights, made anew each round."""
    epochs_per_round: int = 3
    """Before each fixing but the first."""
    warm_epochs: int = 0
    """Before the first fixing."""
    delta: float = 0.01
    """Mean relative distance that a group of weights may be moved by in the last round: fewer and simpler values when
    larger."""
    delta_decay: str = "linear_T"
    """What earlier rounds allow: linear_T (T*delta, …, 2*delta, delta over T rounds), geometric (halved from 8*delta at
    most), or constant (delta)."""
    gamma0_exp: int = -7
    """Weights below 2 to this power go to zero for free."""
    alpha: float = 0.4
    """Weight of the regulariser relative to the cross-entropy; 0 leaves it out."""
    tau: float = 0.05
    """Temperature of the regulariser's softmin, in units of relative distance."""
    reg_tiny: str = "paper"
    """What weights below 2^gamma0_exp contribute to the regulariser: paper (absolute distances) or zero (nothing)."""
    reg_nearest: int = 0
    """Centres that the regulariser looks at for each weight, the nearest ones; 0: all (the paper)."""
    distance: str = "relative"
    """relative (the paper) or euclidean (its ablation; delta is then in units of the weights)."""
    max_order: int = MAX_ORDER
    """Powers of two that a value may have beyond the first, before the distance is loosened instead."""
    include_bn: bool = True
    """Whether gamma and beta of batch normalisation are quantised, too."""
    include_bias: bool = True
    """Whether biases are."""
    baselines: bool = False
    """Whether other ways to as few distinct values are judged at the end, on the same float network, as
    `<method>/…`."""

    def __post_init__(self) -> None:
        """Checks what the shared settings do not.

        Raises:
            InputError: A value is impossible.
        """
        super().__post_init__()
        self.check_choices(
            delta_decay=("linear_T", "geometric", "constant"),
            distance=("relative", "euclidean"),
            reg_tiny=("paper", "zero"),
        )
        if self.epochs_per_round < 1 or self.warm_epochs < 0:
            raise InputError("recipe.epochs_per_round must be at least 1 and recipe.warm_epochs at least 0")
        if not 0 <= self.max_order <= MAX_ORDER or self.reg_nearest < 0:
            raise InputError(f"recipe.max_order must be 0 to {MAX_ORDER} and recipe.reg_nearest at least 0")
        if self.tau <= 0 or self.alpha < 0:
            raise InputError("recipe.tau must be above 0 and recipe.alpha at least 0")
        if self.delta <= 0 or max(self.deltas) >= 1:
            raise InputError(
                f"recipe.delta={self.delta}: must be above 0, and what the first round allows "
                f"({max(self.deltas):g} with {len(self.deltas)} rounds and delta_decay={self.delta_decay}) below 1"
            )

    @property
    def fractions(self) -> list[float]:
        """Cumulative shares of the weights that are fixed after each round."""
        return self.shares(_PAPER10)

    @property
    def deltas(self) -> list[float]:
        """The distance that each round allows."""
        rounds = len(self.fractions)
        match self.delta_decay:
            case "linear_T":
                return [self.delta * (rounds - index) for index in range(rounds)]
            case "geometric":
                return [self.delta * 2.0 ** min(3, rounds - 1 - index) for index in range(rounds)]
            case _:
                return [self.delta] * rounds

    def epochs(self, index: int) -> int:
        """Of a round; one that trains nothing has an epoch nevertheless, in which it fixes and reports."""
        return self.epochs_per_round if index else max(1, self.warm_epochs)


class Wfn(Recipe):
    """The whole method: from a trained network to one whose weights share a codebook."""

    Config = WfnConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            "data.source": "digits",
            "model.name": "cnn_s",
            "pretrain.epochs": 30,
            "batch_size": 64,
            # A hundredth of the paper's steps a round: at its 2e-5 no weight would get anywhere.
            "optim.lr": 5e-4,
            # Three times as fast; farther centres weigh next to nothing at this temperature.
            "reg_nearest": 16,
            "bn_recalibrate": True,
        },
        "tiny": {
            "data.source": "digits",
            "data.limit": 96,
            "model.name": "cnn_s",
            "model.width": 4,
            "pretrain.epochs": 2,
            "pretrain.optim.lr": 0.02,
            "batch_size": 32,
            "optim.lr": 1e-3,
            "schedule": "geometric",
            "rounds": 2,
            "ratio": 0.7,
            "epochs_per_round": 2,
            "delta": 0.05,
            "gamma0_exp": -9,
            # Four weights of a normalisation are soon fixed all at once, and then nothing of them is trained.
            "include_bn": False,
            "bn_recalibrate": True,
        },
    }

    def fidelity(self, config: WfnConfig) -> int:
        return config.pretrain.epochs + sum(config.epochs(index) for index in range(len(config.fractions)))

    def check(self, config: WfnConfig) -> None:
        if config.data.root or config.model.weights:
            config.pretrain.check(config.model)
            images = open_images(config.data)
            build_model(config.model, images.classes, images.shape)

    def train(self, run: Run, config: WfnConfig) -> None:
        images = run.cached(("images", repr(config.data)), lambda: open_images(config.data))
        network = pretrained(run, config.pretrain, config.model, images, config.batch_size)
        make_fixable(network, include_bn=config.include_bn, include_bias=config.include_bias)
        layout, trained = Layout.of(network), {name: value.clone() for name, value in network.state_dict().items()}
        regulariser = Regulariser(
            network,
            gamma_0=2.0**config.gamma0_exp,
            tau=config.tau,
            tiny=config.reg_tiny,
            nearest=config.reg_nearest,
        )
        learner = run.learner("network", network, config.optim)
        if "float" not in run.state:
            run.state["float"] = {
                f"float/{name}": value
                for split in (images.val, images.test)
                for name, value in accuracy(run, learner, split, "val" if split is images.val else "test").items()
            }

        rounds = list(zip(config.fractions, config.deltas, strict=True))
        for index in run.stages("round", len(rounds)):
            share, delta = rounds[index]
            if index and config.alpha > 0:
                regulariser.set_centres(run.state["codebook"].to(run.device))
            for epoch in run.epochs("train", config.epochs(index)):
                if index or config.warm_epochs:
                    for x, y in batches(epoch, images, config.batch_size, run.device):
                        regulariser.start()
                        cross_entropy = F.cross_entropy(learner(x), y)
                        learner.step(whole_loss(cross_entropy, regulariser.take(), config.alpha))
                scores: dict[str, float] = {}
                is_last = epoch.index == config.epochs(index) - 1
                if is_last:
                    scores |= accuracy(run, learner, images.val, "before_fixing")
                    scores |= _fix(run, config, learner, layout, share=share, delta=delta)
                if is_last and share == 1:
                    if config.bn_recalibrate:
                        recalibrate(run, learner, images, config.batch_size)
                    scores |= _outcome(run, config, learner, layout, images=images, trained=trained)
                    scores |= accuracy(run, learner, images.val, "val") | describe(layout.vector(learner.weights()))
                else:
                    scores |= _as_if_fixed(run, config, learner, layout, images)
                epoch.report(scores)


def _clustered(config: WfnConfig, layout: Layout, weights: dict[str, Tensor], share: float, delta: float) -> Clustering:
    """A share of the weights at the values of a new codebook."""
    return cluster(
        layout.vector(weights),
        share,
        delta,
        gamma_0=2.0**config.gamma0_exp,
        max_order=config.max_order,
        distance=config.distance,
        kept=layout.mask(weights) if config.recluster == "free_only" else None,
    )


def _as_if_fixed(run: Run, config: WfnConfig, learner: Learner, layout: Layout, images: Images) -> dict[str, float]:
    """What the network would be if all of its weights were fixed now, with the last round's delta; it stays as it is.

    Free weights cost no accuracy and have no entropy worth the name, so trials are compared by this before their end.
    """
    weights = learner.weights()
    found = _clustered(config, layout, weights, 1.0, config.delta)
    learner.load_weights(layout.fixed(weights, found.values, found.mask))
    if config.bn_recalibrate:
        recalibrate(run, learner, images, config.batch_size)
    scores = accuracy(run, learner, images.val, "val")
    learner.load_weights(weights)
    return scores | describe(found.values)


def _fix(
    run: Run, config: WfnConfig, learner: Learner, layout: Layout, *, share: float, delta: float
) -> dict[str, float]:
    """Fixes a share of the weights at the values of a new codebook, on every worker alike; what that did."""
    weights = learner.weights()
    found = _clustered(config, layout, weights, share, delta)
    check_alike(run, found.values)
    check_alike(run, found.mask)
    learner.load_weights(layout.fixed(weights, found.values, found.mask))
    if not np.array_equal(layout.vector(learner.weights())[found.mask], found.values[found.mask]):
        raise PharosError(
            "the engine keeps weights in half precision, which cannot hold the codebook: take bf16 or fp32"
        )
    run.state["codebook"] = torch.from_numpy(found.codebook)
    run.state.setdefault("rounds", []).append(count_columns(found.values, found.mask))
    run.log_image("rounds", draw_rounds(run.state["rounds"]))
    if share < 1:  # the next round's optimiser is a new one
        learner.reset_optimizer()
    return _moves(layout.vector(weights), found, 2.0**config.gamma0_exp) | {"fixed_share": float(found.mask.mean())}


def _moves(before: npt.NDArray[np.float32], found: Clustering, gamma_0: float) -> dict[str, float]:
    """How far weights were moved relative to their size, in the whole of those above gamma_0, and at which order."""
    is_large = found.mask & (np.abs(before) >= gamma_0)
    moved = np.abs(found.values[is_large] - before[is_large]) / np.abs(before[is_large])
    moved = moved if len(moved) else np.zeros(1)
    moves = {"mean": moved.mean(), "median": np.median(moved), "most": moved.max()}
    orders = found.by_order()
    loosened = orders.pop(MAX_ORDER + 1, 0)
    counts = {f"order/{order}": float(count) for order, count in orders.items()}
    return {f"move/{name}": float(value) for name, value in moves.items()} | counts | {"order/loosened": loosened}


def _outcome(
    run: Run, config: WfnConfig, learner: Learner, layout: Layout, *, images: Images, trained: dict[str, Tensor]
) -> dict[str, float]:
    """What is reported of the finished network beside its accuracy on validation."""
    state, names = plain(learner.weights())
    vector = layout.vector(learner.weights())
    scores: dict[str, float] = run.state["float"] | accuracy(run, learner, images.test, "test")
    scores |= sizes(vector, layout.total - layout.size)
    scores |= {"packed_bytes": float(len(pack(state, names))), "coverage": layout.size / layout.total}
    if config.baselines:
        count = len(distinct(vector)[0])
        gamma_0 = 2.0**config.gamma0_exp
        scores |= judge_baselines(
            run, learner, layout, trained, images, count=count, gamma_0=gamma_0, batch_size=config.batch_size
        )
    return scores
