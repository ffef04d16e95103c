"""MatSpectNet: material segmentation on hyperspectral images that are recovered from RGB.

Heng, Wu, Chen, Dasmahapatra, Kim, "MatSpectNet: Material Segmentation Network with Domain-Aware and
Physically-Constrained Hyperspectral Reconstruction", arXiv 2307.11466. What the paper's readable parts leave open
follows the authors' code (heng-yuwen/MatSpectNet) where it is public. README.md lists the deviations and what we
measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pharos.errors import InputError
from pharos.learner import Learner
from pharos.recipe import Recipe
from pharos.run import Run
from trainables.common.materials.data import shown
from trainables.common.materials.evaluation import keep_best
from trainables.common.materials.inference import predict_folder
from trainables.common.materials.losses import focal_sums, mean_over_batch
from trainables.common.materials.settings import NANO, TINY
from trainables.common.settings import Means
from trainables.matspectnet.adversarial import ImagePool, accuracy, discriminator_adversarial, generator_adversarial
from trainables.matspectnet.data import (
    Domains,
    open_domains,
    open_samples,
    paired_batch,
    sensitivity,
    spectral_batch,
    standard_scales,
)
from trainables.matspectnet.evaluation import Judge
from trainables.matspectnet.losses import TranslationWeights, mrae, translation_objective
from trainables.matspectnet.model import Translation, segmenter
from trainables.matspectnet.networks import (
    discriminator_networks,
    recovery_network,
    segmentation_network,
    translation_network,
)
from trainables.matspectnet.normalisation import value_range
from trainables.matspectnet.settings import MatSpectNetConfig
from trainables.matspectnet.sources import NoSpectra, RecoveredSpectra, Source, TrueSpectra


class MatSpectNetRecipe(Recipe):
    """Recovery on spectra; then recovery, camera and discriminators on both sets; then segmentation on what results."""

    Config = MatSpectNetConfig
    scales: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {
            **NANO,
            "data.normalise": "none",
            "data.train_images": 60,
            "data.labelled_images": 16,
            "data.validation_images": 30,
            "data.test_images": 100,
            "data.spectral_images": 100,
            "data.spectral_validation": 10,
            "network.backbone": "swin",
            "exposure": "none",
            "filters": 12,
            # Curves that change with the image cannot be learned from a few of them.
            "filter_mode": "static",
            "spectral_width": 32,
            "recovery_stages": 1,
            "recovery_width": 16,
            "filter_pool": 4,
            # Samples are looked up in a tenth of the time.
            "shape": "raw",
            "recovery_epochs": 12,
            "recovery_batch_size": 8,
            "recovery_crop": 32,
            "translation_epochs": 3,
            "translation_batch_size": 8,
            "adversarial_ramp": 1,
            "discriminator_width": 16,
            "epochs": 75,
            "batch_size": 8,
            "evaluate_every": 15,
            # Generated images are dark: values differ by a tenth, and spectra of a pair by less.
            "scale": "standard",
            # From scratch, and in a thousandth of the paper's steps.
            "recovery_optim.lr": 2e-3,
            "translation_optim.lr": 3e-4,
            "discriminator_optim.lr": 3e-4,
            "optim.lr": 2e-3,
            "optim.warmup": 20,
            "optim.final": 0.02,
        },
        "tiny": {
            **TINY,
            # Four patches along the last map of 32 pixels: with fewer, shifted windows have a patch each.
            "network.patch": 1,
            "data.size": 32,
            "data.crop": 32,
            "data.normalise": "none",
            "data.spectral_images": 8,
            "data.spectral_validation": 2,
            "exposure": "none",
            "shape": "raw",
            "filters": 2,
            "spectral_width": 8,
            "recovery_stages": 1,
            "recovery_width": 4,
            "recovery_epochs": 2,
            "recovery_batch_size": 4,
            "recovery_crop": 24,
            "translation_epochs": 2,
            "translation_batch_size": 8,
            "discriminator_width": 4,
            "epochs": 3,
            "batch_size": 4,
            "evaluate_every": 1,
            "optim.lr": 1e-3,
            "optim.final": 0.1,
            # Blocks start as the identity, so that gradients inside of them are at first but rounding, which Adam
            # would magnify.
            "optim.eps": 1e-3,
        },
    }

    def fidelity(self, config: MatSpectNetConfig) -> int:
        earlier = config.recovery_epochs + config.translation_epochs if config.spectra == "recovered" else 0
        return earlier + config.epochs

    def check(self, config: MatSpectNetConfig) -> None:
        data = config.data
        if data.root or data.spectral_root or data.spectra or data.camera or data.samples:
            open_domains(data)
        if config.recovery_weights:
            recovery_network(config)
        if config.network.weights:
            segmenter(config.network, data.classes, data.crop, extra=0)

    def train(self, run: Run, config: MatSpectNetConfig) -> None:
        domains = run.cached(("domains", repr(config.data)), lambda: open_domains(config.data))
        run.state["classes"] = list(domains.materials.classes)
        judge = Judge(domains, config.data.crop, config.batch_size, run.device)
        source: Source = NoSpectra()
        if config.spectra == "oracle":
            source = TrueSpectra(config.data, run.device)

        if config.spectra == "recovered":
            recovery = run.learner("recovery", recovery_network(config), config.recovery_optim)
            scenes = torch.arange(len(domains.spectral), device=run.device)
            for epoch in run.epochs("recover", config.recovery_epochs):
                for chosen in epoch.batches(scenes, config.recovery_batch_size):
                    x, spectra, _ = spectral_batch(domains.spectral, chosen, config.recovery_crop, epoch)
                    found, _ = recovery(x)
                    recovery.step(mrae(found, spectra))
                if config.is_due(epoch, config.recovery_epochs):
                    with recovery.evaluating():
                        run.state["recovery"] = judge.recovery(lambda x: {"spectra": recovery(x)[0]})
                    epoch.report(run.state["recovery"])
            translation = translation_network(config, domains.sensitivity)
            translation.recovery.load_state_dict(recovery.weights())
            if config.translation_epochs:
                translation = translate(run, config, domains, judge, translation)
            source = RecoveredSpectra(translation.to(run.device))

        scales = standard_scales(domains) if config.scale == "standard" else (None, None)
        segmentation = segmentation_network(config, len(domains.materials.classes), domains.samples, *scales)
        size = {"parameters": float(sum(parameter.numel() for parameter in segmentation.parameters()))}
        network = run.learner("segmentation", segmentation, config.optim)
        labelled = torch.arange(domains.materials.labelled, device=run.device)
        for epoch in run.epochs("segment", config.epochs):
            for chosen in epoch.batches(labelled, config.batch_size):
                x, y = shown(
                    domains.materials.train,
                    chosen,
                    config.data.crop,
                    epoch,
                    turns=config.turns,
                    flips=config.flips,
                    jitter=config.jitter,
                )
                logits = network(x, source.training(x, chosen))
                sums = focal_sums(logits, y, config.focal_gamma, config.focal_kind)
                network.step(mean_over_batch(run, sums, y))
            if not config.is_due(epoch, config.epochs):
                continue
            with network.evaluating():
                # All workers keep the same weights, even where their devices round a score differently.
                found = run.mean(source.judged(judge, network, "validation"))
            keep_best(run, network, found["val/mean_acc"])
            if epoch.index == config.epochs - 1:
                network.load_weights(run.state["best"]["network"])
                with network.evaluating():
                    found = source.judged(judge, network, "validation") | source.judged(judge, network, "test")
                found |= run.state.get("recovery", {}) | size
            epoch.report(found)

    def predict(self, run: Run, config: MatSpectNetConfig, folder: Path, output: Path) -> None:
        if config.spectra == "oracle":
            raise InputError("--predict: recipe.spectra=oracle was trained on true spectra, which images do not have")
        classes = run.state["classes"]
        recovered: RecoveredSpectra | None = None
        if config.spectra == "recovered":
            translation = translation_network(config, sensitivity(config.data))
            if config.translation_epochs:
                run.learner("translation", translation, config.translation_optim)
            else:
                run.learner("recovery", translation.recovery, config.recovery_optim)
            recovered = RecoveredSpectra(translation.to(run.device))
        segmentation = segmentation_network(config, len(classes), open_samples(config.data))
        network = run.learner("segmentation", segmentation, config.optim)
        with network.evaluating():
            predict_folder(
                lambda x: network(x, None if recovered is None else recovered(x)),
                folder,
                output,
                classes=classes,
                side=config.data.crop,
                batch=config.batch_size,
                device=run.device,
                is_exact=config.data.resize == "exact",
                prepare=lambda image: value_range(image.cpu(), config.data.normalise)(image),
            )


def translate(
    run: Run, config: MatSpectNetConfig, domains: Domains, judge: Judge, translation: Translation
) -> Translation:
    """The phase of both domains: recovery and camera against discriminators, with the camera as the constraint.

    Args:
        run: The trial.
        config: Its configuration.
        domains: The data.
        judge: Of what is recovered.
        translation: The recovery as it was trained on spectra, and the camera as it is known.

    Returns:
        What was trained, whole on every worker.
    """
    generators = run.learner("translation", translation, config.translation_optim)
    critics: Learner | None = None
    if config.adversarial:
        critics = run.learner("discriminators", discriminator_networks(config, translation), config.discriminator_optim)
    weights = TranslationWeights(config.lambda_rgb2hsi, config.lambda_hsi2rgb, config.lambda_cycle)
    larger = torch.arange(max(len(domains.spectral), len(domains.materials.train)), device=run.device)
    for epoch in run.epochs("translate", config.translation_epochs):
        pool = ImagePool(config.pool, config.translation_batch_size, epoch)
        adversarial = config.adversarial * min(1.0, (epoch.index + 1) / (config.adversarial_ramp + 1))
        seen = Means()
        for chosen in epoch.batches(larger, config.translation_batch_size):
            x, spectra, clean, other = paired_batch(domains, chosen, config.recovery_crop, epoch)
            found = generators(x, spectra, clean, other)
            loss, terms = translation_objective(found, spectra, clean, other, weights)
            if critics is None:
                generators.step(loss)
                seen.add(terms)
                continue
            real, fake = opponents(found, spectra, other, config.judged)
            with critics.frozen():
                judged = generator_adversarial(critics(fake))
                generators.step(loss + adversarial * judged)
            fake = pool.exchange(fake)
            scores = critics({kind: torch.cat([real[kind], fake[kind]]) for kind in fake})
            on_real, on_fake = ({k: score.chunk(2)[half] for k, score in scores.items()} for half in range(2))
            critics.step(discriminator_adversarial(on_real, on_fake))
            seen.add({**terms, "adversarial": judged.detach(), "accuracy": accuracy(on_real, on_fake)})
        if config.is_due(epoch, config.translation_epochs):
            with generators.evaluating():
                run.state["recovery"] = judge.recovery(generators)
            epoch.report(run.state["recovery"] | run.mean(seen.take()))
    trained = translation_network(config, domains.sensitivity)
    trained.load_state_dict(generators.weights())
    return trained


def opponents(
    found: Mapping[str, Tensor], spectra: Tensor, other: Tensor, kinds: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What discriminators are to tell apart: real ones, without gradients, and what generators made.

    Args:
        found: What `model.Translation` gives.
        spectra: (B, 31, H, W) of the spectral set.
        other: (B, 3, H, W) images of the material set.
        kinds: Of `spectra`, `rgb` and `features` (of the recovery: those of the spectral set count as real).
    """
    pairs = {
        "spectra": (spectra, found["other_spectra"]),
        "features": (found["features"].detach(), found["other_features"]),
    }
    if "synthetic" in found:
        pairs["rgb"] = (other, found["synthetic"])
    return {kind: pairs[kind][0] for kind in kinds}, {kind: pairs[kind][1] for kind in kinds}
