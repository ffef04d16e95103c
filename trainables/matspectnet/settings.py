"""Settings of MatSpectNet."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharos.errors import InputError
from pharos.learner import OptimConfig
from pharos.run import Epoch
from trainables.common.materials.settings import MaterialsConfig
from trainables.matspectnet.camera import EXPOSURES
from trainables.matspectnet.data import MatSpectNetDataConfig
from trainables.matspectnet.model import FILTERS, SpectralNetworkConfig
from trainables.matspectnet.perception import SHAPES

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

    scale: str = "given"
    """What the segmentation sees: given (images less 0.5, and spectra as they are: the authors' code) or standard (both
    less the mean, divided by the standard deviation, of each channel over the training images: for dark ones)."""
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
            scale=("given", "standard"),
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
