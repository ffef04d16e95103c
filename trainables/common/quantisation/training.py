"""What both families do with a network besides quantising it: float training beforehand, accuracy, statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from pharos.errors import InputError
from pharos.learner import Learner, OptimConfig
from pharos.run import Epoch, Run
from trainables.common.quantisation.images import Images, Split
from trainables.common.quantisation.models import ModelConfig, build_model

_EVALUATED_AT_ONCE = 500


@dataclass
class PretrainConfig:
    """Float training before anything is fixed; not part of the papers, which start from published weights."""

    epochs: int = 0
    """0: the network starts from model.weights."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(name="adamw", lr=2e-3, schedule="cosine", hold=0.0))
    """Of the float network."""
    batch_size: int = 64
    """Images a step, over all workers; no more than the recipe's own batch_size."""

    def check(self, model: ModelConfig) -> None:
        """Refuses a network that nothing was learned by.

        Raises:
            InputError: Neither weights are given nor is it trained; or the values are impossible.
        """
        if self.epochs < 0 or self.batch_size < 1:
            raise InputError("recipe.pretrain: epochs must be at least 0 and batch_size at least 1")
        if not self.epochs and not model.weights:
            raise InputError(
                f"recipe.model.weights: {model.name} needs trained weights (safetensors or a state dict), "
                "or recipe.pretrain.epochs=N to train it first"
            )


def pretrained(run: Run, config: PretrainConfig, model: ModelConfig, images: Images, batch_size: int) -> nn.Module:
    """A trained float network on the CPU, of its own: from the user's weights, trained further if epochs are asked for.

    Reports `val/accuracy` each epoch. It is the same network on every worker and after a resumption.

    Args:
        run: The trial's.
        config: How it is trained.
        model: Which it is.
        images: What on.
        batch_size: The recipe's.

    Raises:
        InputError: There is nothing that it could have learned from, or its weights do not fit.
    """
    config.check(model)
    network = build_model(model, images.classes, images.shape)
    if not config.epochs:
        return network
    learner = run.learner("float", network, config.optim)
    for epoch in run.epochs("pretrain", config.epochs):
        for x, y in batches(epoch, images, min(config.batch_size, batch_size), run.device):
            learner.step(F.cross_entropy(learner(x), y))
        epoch.report(accuracy(run, learner, images.val, "val"))
    copy = build_model(ModelConfig(model.name, model.width), images.classes, images.shape)
    copy.load_state_dict(learner.weights())
    return copy


def batches(epoch: Epoch, images: Images, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented training batches of an epoch: images and classes."""
    draw = images.draw()
    for chosen in epoch.batches(images.train.index, batch_size):
        yield images.train.take(chosen, device, epoch.per_sample(draw) if draw is not None else None)


def accuracy(run: Run, learner: Learner, split: Split, name: str) -> dict[str, float]:
    """Top-1 accuracy in percent, `<name>/accuracy`, and `<name>/cross_entropy` of a whole split."""
    with learner.evaluating():
        return _scores(run, learner, split, name)


def _scores(run: Run, predict: Callable[[Tensor], Tensor], split: Split, name: str) -> dict[str, float]:
    """Of an evaluating network: each worker judges a share of every batch, so that all call it alike often."""
    right = torch.zeros((), device=run.device)
    loss = torch.zeros((), device=run.device)
    for start in range(0, len(split), _EVALUATED_AT_ONCE):
        mine = split.index[start : start + _EVALUATED_AT_ONCE][run.rank :: run.world_size]
        x, y = split.take(mine, run.device)
        logits = predict(x)
        right += (logits.argmax(dim=1) == y).sum()
        loss += F.cross_entropy(logits, y, reduction="sum")
    sums = run.mean({"right": float(right), "loss": float(loss)})
    count = len(split) / run.world_size
    return {f"{name}/accuracy": 100 * sums["right"] / count, f"{name}/cross_entropy": sums["loss"] / count}


def recalibrate(run: Run, learner: Learner, images: Images, batch_size: int) -> None:
    """Takes the statistics of batch normalisation anew, as means over the training images, augmented as in training.

    The layers behind were trained with what augmented images give: on shifted shapes, statistics of unshifted ones
    cost a network ten points of accuracy.
    """
    norms = [module for module in learner.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    before = [(norm.momentum, norm.training) for norm in norms]
    is_training = learner.module.training
    learner.module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    with torch.no_grad():
        order, draw, generator = images.train.index, images.draw(), torch.Generator().manual_seed(0)
        batch_size = min(batch_size, len(order))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            draws = draw(batch_size, generator) if draw is not None else None
            mine = slice(start + run.rank, start + batch_size, run.world_size)
            x, _ = images.train.take(
                order[mine], run.device, draws[run.rank :: run.world_size] if draws is not None else None
            )
            learner(x)
    learner.module.train(is_training)
    for norm, (momentum, training) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.train(training)
    learner.share_statistics()
