"""The networks of a configuration."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pharos.cache import local_copy
from pharos.errors import InputError
from trainables.common.materials.spectra import BANDS
from trainables.common.materials.spectra_files import Samples
from trainables.matspectnet.adversarial import Discriminators, PatchDiscriminator, PixelDiscriminator
from trainables.matspectnet.camera import Camera
from trainables.matspectnet.model import MatSpectNet, ResponseFilters, SpectralBranch, Translation, segmenter
from trainables.matspectnet.normalisation import Scale
from trainables.matspectnet.perception import Perception
from trainables.matspectnet.recovery import Recovery
from trainables.matspectnet.settings import MatSpectNetConfig


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
        gain, isp = config.band_gain and is_trainable, config.isp and is_trainable
        camera = Camera(sensitivity, trainable=is_trainable, band_gain=gain, isp=isp)
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


def segmentation_network(
    config: MatSpectNetConfig,
    classes: int,
    samples: Samples,
    image_scale: Scale | None = None,
    spectral_scale: Scale | None = None,
) -> MatSpectNet:
    """What is trained in the last phase.

    Args:
        config: Which.
        classes: K.
        samples: Measured ones, for the properties.
        image_scale: See `MatSpectNet`; a checkpoint has its own, and the next.
        spectral_scale: See `SpectralBranch`.
    """
    if config.spectra == "none":
        return MatSpectNet(segmenter(config.network, classes, config.data.crop, extra=0), None, image_scale)
    branch = SpectralBranch(
        ResponseFilters(config.filters, config.filter_mode, config.filter_pool),
        Perception(samples, config.shape, standardise=config.standardise) if config.perception else None,
        config.spectral_width,
        config.network.patch,
        spectral_scale,
    )
    network = segmenter(config.network, classes, config.data.crop, extra=config.spectral_width)
    return MatSpectNet(network, branch, image_scale)


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
