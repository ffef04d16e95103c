"""How a network with branches of scale is trained at one magnification, and tried at others.

Source: section 4 of the reference notes on SEUNet (arXiv 2304.04595) and of those on RSESF (arXiv 2304.04600): the same
algorithm.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pharos.learner import Learner
from pharos.run import Run
from trainables.common.histology.augmentation import augmented
from trainables.common.histology.branches import BranchLogits
from trainables.common.histology.data import Tissue, standardised, unit
from trainables.common.histology.grid import Study
from trainables.common.histology.scale_settings import ScaleSpaceConfig


def train_branches(run: Run, config: ScaleSpaceConfig, study: Study, module: nn.Module) -> None:
    """The whole training: the weighted sum of the branches' losses, at training's own magnification and orientation."""
    tissue = study.tissue
    images, masks = tissue.train.images.to(run.device), tissue.train.masks.to(run.device)
    run.state["about"] = tissue.about()
    network = run.learner("network", module, config.optim)
    size = float(sum(parameter.numel() for parameter in module.parameters()))

    for epoch in run.epochs("train", config.epochs):
        for image, mask in epoch.batches((images, masks), config.batch_size):
            x, y = augmented(unit(image), mask, config.augmentation, epoch, config.data.crop)
            branches: BranchLogits = network(standardised(x, tissue.mean, tissue.std))
            network.step(branches.loss(y))
        if config.is_due(epoch):
            is_last = epoch.index == config.epochs - 1
            with network.evaluating():
                found = study.scores(classifier(network, config, tissue, run), run, is_last=is_last)
            epoch.report(found, parameters=size)


def classifier(network: Learner, config: ScaleSpaceConfig, tissue: Tissue, run: Run) -> Callable[[Tensor], Tensor]:
    """Classes (B, H, W) of images (B, 3, H, W) uint8."""

    def classify(images: Tensor) -> Tensor:
        branches: BranchLogits = network(standardised(unit(images.to(run.device)), tissue.mean, tissue.std))
        return branches.probabilities(config.fusion).argmax(dim=1).cpu()

    return classify
