"""DBAT: materials from patches of four sizes, of which the deepest features choose at every place.

Heng, Dasmahapatra, Kim, "DBAT: Dynamic Backward Attention Transformer for Material Segmentation with Cross-Resolution
Patches", arXiv 2305.03919. What the paper leaves open follows the authors' public code
(heng-yuwen/Dynamic-Backward-Attention-Transformer). README.md lists the deviations and what we measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from pharos.learner import OptimConfig
from pharos.recipe import Recipe
from pharos.run import Run
from trainables.common.materials.evaluation import keep_best
from trainables.common.materials.inference import predict_folder
from trainables.common.materials.losses import focal_sums, mean_over_batch
from trainables.common.materials.settings import NANO, TINY, MaterialsConfig, swin_adamw
from trainables.dbat.data import open_materials, shown
from trainables.dbat.evaluation import Judge
from trainables.dbat.model import Segmenter, centred


@dataclass
class DbatConfig(MaterialsConfig):
    """Defaults are the paper's values with Swin-T, or the authors' code's where the paper is silent."""

    optim: OptimConfig = field(default_factory=swin_adamw)
    """Of the network."""
    epochs: int = 200
    """Over the training images."""

    def __post_init__(self) -> None:
        """Checks what the parts do not.

        Raises:
            InputError: A value is impossible.
        """
        super().__post_init__()
        self.check_least(1, "epochs")


class Dbat(Recipe):
    """One network, trained on sparse labels; the weights of the best validation are tested."""

    Config = DbatConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            **NANO,
            # As the paper's: with the notes' 2, in which no period fits, nothing is learned in a thousand steps, which
            # cost four times as much. The last map has two by two places, so that the merge's second, shifted block
            # attends to none but each place itself.
            "network.patch": 4,
            "network.merge_window": 2,
            # Nothing to hold back in so few steps.
            "network.drop_path": 0.0,
            "network.merge_drop_path": 0.0,
            "network.dropout2d": 0.0,
            "data.train_images": 640,
            "data.validation_images": 48,
            "data.test_images": 100,
            # Swin has to find from scratch that textures matter and colours do not: strong textures, dull colours, all
            # surfaces labelled, distances that differ by less.
            "data.octaves": 0.25,
            "data.contrast": 0.3,
            "data.colours": 0.05,
            "data.labelled": 1.0,
            "batch_size": 8,
            "epochs": 10,
            # The first epochs are at chance, and would tell a search nothing.
            "evaluate_every": 4,
            # From scratch and in a thousandth of the paper's steps.
            "optim.lr": 3e-3,
            "optim.warmup": 50,
        },
        "tiny": {
            **TINY,
            "batch_size": 4,
            "epochs": 5,
            "optim.lr": 1e-3,
            "optim.warmup": 4,
        },
    }

    def fidelity(self, config: DbatConfig) -> int:
        return config.epochs

    def check(self, config: DbatConfig) -> None:
        if config.data.root or config.data.spectra:
            open_materials(config.data)
        if config.network.weights:
            Segmenter(config.network, config.data.classes, config.data.crop)

    def train(self, run: Run, config: DbatConfig) -> None:
        materials = run.cached(("materials", repr(config.data)), lambda: open_materials(config.data))
        run.state["classes"] = list(materials.classes)
        network = Segmenter(config.network, len(materials.classes), config.data.crop)
        parameters = float(sum(parameter.numel() for parameter in network.parameters()))
        learner = run.learner("network", network, config.optim)
        judge = Judge(
            run,
            materials,
            side=config.data.crop,
            batch=config.batch_size,
            is_matscale=config.data.source == "matscale",
        )
        labelled = torch.arange(materials.labelled, device=run.device)

        for epoch in run.epochs("train", config.epochs):
            for indices in epoch.batches(labelled, config.batch_size):
                x, y = shown(
                    materials.train,
                    indices,
                    config.data.crop,
                    epoch,
                    turns=config.turns,
                    flips=config.flips,
                    jitter=config.jitter,
                )
                sums = focal_sums(learner(centred(x)), y, config.focal_gamma)
                learner.step(mean_over_batch(run, sums, y))
            if not config.is_due(epoch, config.epochs):
                continue
            with learner.evaluating():
                # All workers keep the same weights, even where their devices round a score differently.
                found = run.mean(judge.validation(learner))
            keep_best(run, learner, found["val/pixel_acc"])
            if epoch.index == config.epochs - 1:
                learner.load_weights(run.state["best"]["network"])
                with learner.evaluating():
                    found = judge.validation(learner) | judge.test(learner) | {"parameters": parameters}
            epoch.report(found)

    def predict(self, run: Run, config: DbatConfig, folder: Path, output: Path) -> None:
        classes = run.state["classes"]
        learner = run.learner("network", Segmenter(config.network, len(classes), config.data.crop), config.optim)
        with learner.evaluating():
            predict_folder(
                lambda images: learner(centred(images)),
                folder,
                output,
                classes=classes,
                side=config.data.crop,
                batch=config.batch_size,
                device=run.device,
            )
