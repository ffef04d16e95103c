"""How a network with branches of scale is trained at one magnification, tried at others, and used.

Source: section 4 of the reference notes on SEUNet (arXiv 2304.04595) and of those on RSESF (arXiv 2304.04600): the same
algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pharos.learner import Learner
from pharos.run import Run
from trainables.common.histology.augmentation import augmented
from trainables.common.histology.branches import BranchLogits
from trainables.common.histology.data import standardised, unit
from trainables.common.histology.equivariance import branch_errors
from trainables.common.histology.evaluation import Viewer
from trainables.common.histology.grid import Study
from trainables.common.histology.inference import predict_folder
from trainables.common.histology.pictures import draw_segmentation
from trainables.common.histology.scale_settings import ScaleSpaceConfig


@runtime_checkable
class Drawn(Protocol):
    """A network that can show its filters."""

    def drawn_filters(self, weights: Mapping[str, Tensor]) -> Tensor:
        """A picture (3, height, width) with values in [0, 1], of all weights of the network by name."""


Answer = Callable[[Learner, Tensor], BranchLogits]
"""What a network says of images, in one of the ways in which it can be used."""

_BATCH = 16  # images at a time that are not trained on
_SHOWN = 4


def train_branches(
    run: Run, config: ScaleSpaceConfig, study: Study, module: nn.Module, others: Mapping[str, Answer]
) -> None:
    """The whole training: the weighted sum of the branches' losses, at training's own magnification and orientation.

    Args:
        run: The trial.
        config: Its settings.
        study: What it is trained on and tried with.
        module: The network.
        others: More ways to use it, whose scores are reported of the test too.
    """
    tissue = study.tissue
    images, masks = tissue.train.images.to(run.device), tissue.train.masks.to(run.device)
    run.state["tissue"] = tissue.about()
    network = run.learner("network", module, config.optim)
    viewer = Viewer(run, tissue.mean, tissue.std, _BATCH)
    size = float(sum(parameter.numel() for parameter in module.parameters()))

    def classes_in_ways(x: Tensor) -> Tensor:
        branches = network(x)
        ways = [branches.probabilities(config.fusion), branches.probabilities("mean")]
        ways += [answer(network, x).probabilities(config.fusion) for answer in others.values()]
        return torch.stack([probabilities.argmax(dim=1) for probabilities in ways])

    for epoch in run.epochs("train", config.epochs):
        for image, mask in epoch.batches((images, masks), config.batch_size):
            x, y = augmented(unit(image), mask, config.augmentation, epoch, config.data.crop)
            branches: BranchLogits = network(standardised(x, tissue.mean, tissue.std))
            network.step(branches.loss(y))
        if not config.is_due(epoch):
            continue
        with network.evaluating():
            found = _prefixed("val", study.validation.scores(lambda x: classes(network(x), config), viewer, ["fused"]))
            if epoch.index == config.epochs - 1:
                ways = ["fused", "mean_fusion", *others]
                found |= _prefixed("test", study.test.scores(classes_in_ways, viewer, ways))
                shown = tissue.test.images[:_SHOWN]
                said = classes(network(viewer.seen(shown)), config)[0].to(torch.uint8).cpu()
                found |= _prefixed("test", equivariance(network, viewer.seen(shown)))
                run.log_image("segmentation", draw_segmentation(unit(shown), tissue.test.masks[:_SHOWN], said))
                if isinstance(module, Drawn):
                    run.log_image("filters", module.drawn_filters(network.weights()))
        epoch.report(found, parameters=size)


def classes(branches: BranchLogits, config: ScaleSpaceConfig) -> Tensor:
    """What branches say together (1, B, H, W)."""
    return branches.probabilities(config.fusion).argmax(dim=1)[None]


def equivariance(network: Learner, x: Tensor) -> dict[str, float]:
    """How far the logits of magnified images are from the magnified logits, relative to them.

    Args:
        network: Whose.
        x: What it is given (B, 3, H, W); magnified twice, bilinearly.

    Returns:
        `equivariance_error`, of the pair of branches that agree best, and `equivariance_error_unshifted`, of the best
        branch with itself. Both are the same for a network of one branch.
    """
    twice = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    errors = branch_errors(network(x).logits.float(), network(twice).logits.float())
    return {
        "equivariance_error": float(errors.min()),
        "equivariance_error_unshifted": float(errors.diagonal().min()),
    }


def predict_with_branches(
    run: Run, config: ScaleSpaceConfig, make: Callable[[int], nn.Module], folder: Path, output: Path
) -> None:
    """Writes labels and overlays of the images in a folder.

    Args:
        run: Has the trained weights.
        config: What they were trained with.
        make: The network for so many classes.
        folder: Of images.
        output: Takes what is written.

    Raises:
        InputError: There is no image, or one that cannot be read.
    """
    about = run.state["tissue"]
    network = run.learner("network", make(len(about["classes"])), config.optim)

    def probabilities(x: Tensor) -> Tensor:
        branches: BranchLogits = network(x)
        return branches.probabilities(config.fusion)

    multiple = 2**config.depth
    with network.evaluating():
        predict_folder(
            probabilities, folder, output, about, side=config.data.side, multiple=multiple, device=run.device
        )


def _prefixed(name: str, found: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in found.items()}
