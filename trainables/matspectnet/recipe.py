"""MatSpectNet: material segmentation on hyperspectral images that are recovered from RGB.

Heng, Wu, Chen, Dasmahapatra, Kim, "MatSpectNet: Material Segmentation Network with Domain-Aware and
Physically-Constrained Hyperspectral Reconstruction", arXiv 2307.11466. What the paper's readable parts leave open
follows the authors' code (heng-yuwen/MatSpectNet) where it is public. README.md lists the deviations and what we
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pharos.cache import local_copy
from pharos.errors import InputError
from pharos.learner import Learner, OptimConfig
from pharos.recipe import Recipe
from pharos.run import Epoch, Run
from trainables.common.materials.evaluation import labelled_counts
from trainables.common.materials.inference import predict_folder
from trainables.common.materials.losses import focal_sums, mean_over_pixels
from trainables.common.materials.settings import NANO, MaterialsConfig
from trainables.common.materials.spectra import BANDS
from trainables.common.materials.spectra_files import Samples
from trainables.common.settings import Means
from trainables.matspectnet.adversarial import (
    Discriminators,
    ImagePool,
    PatchDiscriminator,
    PixelDiscriminator,
    accuracy,
    discriminator_adversarial,
    generator_adversarial,
)
from trainables.matspectnet.camera import EXPOSURES, Camera
from trainables.matspectnet.data import (
    Domains,
    MatSpectNetDataConfig,
    open_domains,
    open_samples,
    paired_batch,
    sensitivity,
    shown,
    spectral_batch,
)
from trainables.matspectnet.evaluation import Judge
from trainables.matspectnet.losses import TranslationWeights, mrae, translation_objective
from trainables.matspectnet.model import (
    FILTERS,
    MatSpectNet,
    ResponseFilters,
    SpectralBranch,
    SpectralNetworkConfig,
    Translation,
    segmenter,
)
from trainables.matspectnet.normalisation import value_range
from trainables.matspectnet.perception import SHAPES, Perception
from trainables.matspectnet.recovery import Recovery
from trainables.matspectnet.sources import NoSpectra, RecoveredSpectra, Source, TrueSpectra

_SMALLEST_PATCH = 24  # pixels of an image that the discriminators' convolutions do not reduce to nothing


def recovery_adam() -> OptimConfig:
    """Adam as MST++ has it; its rate falls in a cosine from the first epoch."""
    return OptimConfig(lr=4e-4, schedule="cosine", hold=0.0)


def translation_adamw() -> OptimConfig:
    """AdamW of both sides of the adversarial phase; its rate falls linearly from the second of 20 epochs."""
    return OptimConfig(name="adamw", lr=6e-5, beta1=0.5, weight_decay=0.01, schedule="linear", hold=0.05)


def segmentation_adamw() -> OptimConfig:
    """AdamW, whose rate falls by 0.97 every one of 380 epochs."""
    return OptimConfig(name="adamw", lr=8e-5, weight_decay=0.01, schedule="exponential", final=0.97**380)


@dataclass
class MatSpectNetConfig(MaterialsConfig):
    """Defaults are those of the authors' code, or of the notes where it is not public."""

    data: MatSpectNetDataConfig = field(default_factory=MatSpectNetDataConfig)
    """Which images with materials, and which with spectra."""
    network: SpectralNetworkConfig = field(default_factory=SpectralNetworkConfig)
    """What segments."""
    optim: OptimConfig = field(default_factory=segmentation_adamw)
    """Of the segmentation: network, filters and what follows them."""
    epochs: int = 380
    """Of the segmentation."""
    batch_size: int = 56
    """Images a step of the segmentation, over all workers."""
    flips: bool = True
    """Whether training mirrors images."""
    turns: bool = False
    """Whether training turns half of the images by 90, 180 or 270 degrees."""
    focal_kind: str = "sigmoid"
    """sigmoid: every class against the rest; softmax, as DBAT."""
    evaluate_every: int = 5
    """Epochs from one validation to the next, in all phases; the last one of a phase always is."""

    spectra: str = "recovered"
    """What the segmentation gets beside the image: recovered spectra; none (which is DBAT); or oracle: the true ones,
    which metascene alone has."""
    filters: int = 12
    """Response curves."""
    filter_mode: str = "sample"
    """Where a curve comes from: sample (the image's spectra), batch (those of the worker's whole batch, as in the
    authors' code), static (parameters), identity (no curves: all 31 bands)."""
    filter_pool: int = 1
    """Curves are made from the image at this part of its resolution; 4 takes a sixteenth of the time and memory."""
    perception: bool = True
    """Whether each pixel gets the properties of the measured sample with the most similar spectrum."""
    shape: str = "pairwise"
    """What is similar: pairwise (all differences of two bands), lag1 (of neighbours, the authors' code), raw, sam."""
    standardise: bool = True
    """Whether properties are given in standard deviations from their mean (the authors' code: as they are)."""
    spectral_width: int = 128
    """Features that the spectra add to the decoder's."""

    recovery_weights: str = ""
    """safetensors of a trained recovery, as `train.py --export` writes it (recovery or translation), to start from."""
    recovery_stages: int = 3
    """Stages of the recovery net."""
    recovery_width: int = 31
    """Channels of its stages."""
    recovery_residual: str = "first"
    """What its last convolution is added to: first (what went into the stages, MST++) or body (what came out)."""
    recovery_optim: OptimConfig = field(default_factory=recovery_adam)
    """Of the recovery alone."""
    recovery_epochs: int = 400
    """Of the recovery alone, on images with spectra; 0 with recovery_weights."""
    recovery_batch_size: int = 64
    """Crops a step of the recovery alone, over all workers."""
    recovery_crop: int = 128
    """Side of the crops from which recovery and translation learn."""

    translation_optim: OptimConfig = field(default_factory=translation_adamw)
    """Of recovery and camera together."""
    discriminator_optim: OptimConfig = field(default_factory=translation_adamw)
    """Of the discriminators."""
    translation_epochs: int = 20
    """Of recovery, camera and discriminators, on images of both sets; 0: the recovery stays as it is."""
    translation_batch_size: int = 56
    """Crops of each set a step, over all workers."""
    physics: str = "trainable"
    """The camera that has to see the image in the recovered spectra: trainable, frozen (as it is known), nullspace
    (frozen, and recovered spectra are moved to where it sees exactly the image), none."""
    exposure: str = "affine"
    """Before images are compared: affine or scale (fitted to each image, because it was normalised by its own values),
    none."""
    band_gain: bool = False
    """Whether a trainable camera has a gain for each band too."""
    isp: bool = False
    """Whether two small convolutions may correct what a trainable camera sees, by up to 0.05."""
    lambda_rgb2hsi: float = 10.0
    """Weight of recovered spectra, and of what the camera sees of those of the material set."""
    lambda_hsi2rgb: float = 10.0
    """Weight of what the camera sees of true spectra and of those recovered in the spectral set."""
    lambda_cycle: float = 0.5
    """Weight of spectra that are seen and recovered again, as a share of lambda_hsi2rgb."""
    adversarial: float = 1.0
    """Weight of the discriminators' judgement; 0: no domain adaptation."""
    adversarial_ramp: int = 2
    """Epochs over which that weight rises from 0."""
    judge_features: bool = False
    """Whether the recovery's features are judged too."""
    discriminator_width: int = 64
    """Channels of the discriminators' first layer."""
    pool: int = 30
    """Earlier fakes that discriminators are shown in place of half of the present ones."""

    def __post_init__(self) -> None:
        """Checks values and their combinations.

        Raises:
            InputError: One is impossible.
        """
        super().__post_init__()
        self.check_choices(
            focal_kind=("softmax", "sigmoid"),
            spectra=("recovered", "none", "oracle"),
            filter_mode=FILTERS,
            shape=SHAPES,
            recovery_residual=("first", "body"),
            physics=("trainable", "frozen", "nullspace", "none"),
            exposure=EXPOSURES,
        )
        self.check_least(1, "epochs", "evaluate_every", "filters", "filter_pool", "recovery_stages")
        self.check_least(1, "recovery_batch_size", "translation_batch_size", "discriminator_width", "pool")
        self.check_least(0, "recovery_epochs", "translation_epochs", "adversarial", "adversarial_ramp")
        self.check_least(0, "lambda_rgb2hsi", "lambda_hsi2rgb", "lambda_cycle")
        self.check_least(8, "recovery_crop")
        if self.recovery_width < 4 or (self.recovery_width != 31 and self.recovery_width % 2):
            raise InputError(f"recipe.recovery_width={self.recovery_width} must be 31, or even and at least 4")
        if self.spectral_width < 2 or self.spectral_width % 2:
            raise InputError(f"recipe.spectral_width={self.spectral_width} must be even and at least 2")
        if self.physics == "nullspace" and self.exposure != "none":
            raise InputError(f"recipe.physics=nullspace needs recipe.exposure=none, not {self.exposure}")
        if self.physics != "trainable" and (self.band_gain or self.isp):
            raise InputError(f"recipe.physics={self.physics} has nothing to train: band_gain and isp must be false")
        if self.is_adversarial and self.recovery_crop < _SMALLEST_PATCH:
            name = f"recipe.recovery_crop={self.recovery_crop}"
            raise InputError(f"{name} must be at least {_SMALLEST_PATCH} for the discriminators, or adversarial=0")
        if self.spectra == "oracle" and (self.data.source != "metascene" or self.data.normalise != "none"):
            raise InputError("recipe.spectra=oracle takes recipe.data.source=metascene and recipe.data.normalise=none")
        if self.spectra == "oracle" and (self.data.crop != self.data.size or self.flips or self.turns or self.jitter):
            raise InputError("recipe.spectra=oracle takes whole images: data.crop=data.size, no flips, turns or jitter")

    def is_due(self, epoch: Epoch, epochs: int) -> bool:
        """Whether this epoch of a phase of so many is evaluated."""
        return (epoch.index + 1) % self.evaluate_every == 0 or epoch.index == epochs - 1

    @property
    def is_adversarial(self) -> bool:
        """Whether there are discriminators."""
        return self.adversarial > 0 and self.translation_epochs > 0

    @property
    def judged(self) -> tuple[str, ...]:
        """What discriminators judge; a camera that cannot change has nothing to learn from them."""
        kinds = ("spectra", "rgb" if self.physics == "trainable" else "", "features" if self.judge_features else "")
        return tuple(kind for kind in kinds if kind)


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
            "filters": 4,
            "spectral_width": 32,
            "recovery_stages": 1,
            "recovery_width": 16,
            "recovery_epochs": 10,
            "recovery_batch_size": 8,
            "recovery_crop": 32,
            "translation_epochs": 3,
            "translation_batch_size": 8,
            "adversarial_ramp": 1,
            "discriminator_width": 16,
            "epochs": 60,
            "batch_size": 8,
            "evaluate_every": 10,
            # From scratch, and in a thousandth of the paper's steps.
            "recovery_optim.lr": 2e-3,
            "translation_optim.lr": 3e-4,
            "discriminator_optim.lr": 3e-4,
            "optim.lr": 1e-3,
            "optim.final": 0.02,
        },
        "tiny": {
            **NANO,
            # Workers draw what they drop apart from each other, so that two of them would not train as one does.
            "network.drop_path": 0.0,
            "network.merge_drop_path": 0.0,
            "network.dropout2d": 0.0,
            "network.width": 8,
            "network.depths": [1, 1, 1, 1],
            "network.heads": [1, 1, 2, 2],
            "network.merge_heads": 2,
            # Four patches along the last map of 32 pixels: with fewer, shifted windows have a patch each.
            "network.patch": 1,
            "network.pyramid": 8,
            "network.features": 8,
            "network.groups": 2,
            "data.size": 32,
            "data.crop": 32,
            "data.normalise": "none",
            "data.train_images": 16,
            "data.validation_images": 4,
            "data.test_images": 4,
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
            _load_recovery(recovery_network(config), config.recovery_weights)
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

        segmentation = segmentation_network(config, len(domains.materials.classes), domains.samples)
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
                # Workers hold different numbers of labelled pixels: the mean is over those of the whole batch.
                seen = run.mean({"pixels": float(labelled_counts(y).sum()), "samples": float(len(y))})
                network.step(mean_over_pixels(sums, seen["pixels"] / seen["samples"]))
            if not config.is_due(epoch, config.epochs):
                continue
            with network.evaluating():
                found = source.judged(judge, network, "validation")
            _keep_best(run, network, found["val/mean_acc"])
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
        "rgb": (other, found.get("synthetic")),
        "features": (found["features"].detach(), found["other_features"]),
    }
    chosen = {kind: pairs[kind] for kind in kinds}
    return {kind: pair[0] for kind, pair in chosen.items()}, {kind: pair[1] for kind, pair in chosen.items()}


def recovery_network(config: MatSpectNetConfig) -> Recovery:
    """The recovery of a configuration, with the weights that it names."""
    network = Recovery(config.recovery_stages, config.recovery_width, config.recovery_residual)
    if config.recovery_weights:
        _load_recovery(network, config.recovery_weights)
    return network


def translation_network(config: MatSpectNetConfig, sensitivity: Tensor) -> Translation:
    """Recovery and camera of a configuration.

    Args:
        config: Which.
        sensitivity: (3, 31) what is known of the camera.
    """
    camera = None
    if config.physics != "none":
        is_trainable = config.physics == "trainable"
        camera = Camera(sensitivity, trainable=is_trainable, band_gain=config.band_gain, isp=config.isp)
    recovery = Recovery(config.recovery_stages, config.recovery_width, config.recovery_residual)
    return Translation(recovery, camera, exposure=config.exposure, hard=config.physics == "nullspace")


def discriminator_networks(config: MatSpectNetConfig, translation: Translation) -> Discriminators:
    """A discriminator for each kind that is judged."""
    width = config.discriminator_width
    makers: dict[str, Callable[[], nn.Module]] = {
        "spectra": lambda: PatchDiscriminator(BANDS, width),
        "rgb": lambda: PatchDiscriminator(3, width),
        "features": lambda: PixelDiscriminator(translation.recovery.feature_width, width),
    }
    return Discriminators({kind: makers[kind]() for kind in config.judged})


def segmentation_network(config: MatSpectNetConfig, classes: int, samples: Samples) -> MatSpectNet:
    """What is trained in the last phase.

    Args:
        config: Which.
        classes: K.
        samples: Measured ones, for the properties.
    """
    if config.spectra == "none":
        return MatSpectNet(segmenter(config.network, classes, config.data.crop, extra=0), None)
    branch = SpectralBranch(
        ResponseFilters(config.filters, config.filter_mode, config.filter_pool),
        Perception(samples, config.shape, standardise=config.standardise) if config.perception else None,
        config.spectral_width,
        config.network.patch,
    )
    return MatSpectNet(segmenter(config.network, classes, config.data.crop, extra=config.spectral_width), branch)


def _load_recovery(network: Recovery, url: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(local_copy(url))
    except (OSError, SafetensorError) as error:
        raise InputError(f"recipe.recovery_weights={url}: cannot be read as safetensors ({error})") from None
    prefix = "recovery."  # of a translation's
    if any(name.startswith(prefix) for name in weights):
        weights = {n.removeprefix(prefix): value for n, value in weights.items() if n.startswith(prefix)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"recipe.recovery_weights={url}: not the weights of this recovery ({reason})") from None


def _keep_best(run: Run, learner: Learner, score: float) -> None:
    """Remembers the weights of the best validation so far."""
    best = run.state.get("best")
    if best is None or score > best["score"]:
        run.state["best"] = {"score": score, "network": learner.weights()}
