"""What MatSpectNet recovers and finds, as a picture: `docs/matspectnet.png`.

    python benchmarks/matspectnet_picture.py --weights FOLDER [--scene N] [--picture FILE] [name=value ...]

Draws a test scene from the weights of a run (`train.py --resume RUN --export FOLDER`) that was trained with the same
settings: the image, its materials and those that were found; true and recovered spectra at a pixel of four materials;
the error of the spectra at each pixel; the camera as it was known and as it was learned; the learned curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pharos.config import make_plan
from trainables.common.materials.spectra import WAVELENGTHS
from trainables.matspectnet.camera import Camera
from trainables.matspectnet.data import open_domains, standard_scales, true_scenes
from trainables.matspectnet.networks import segmentation_network, translation_network
from trainables.matspectnet.settings import MatSpectNetConfig
from trainables.matspectnet.sources import RecoveredSpectra

_SHOWN = 4  # materials whose spectra are drawn


def main() -> None:
    """Reads the weights and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--scene", type=int, default=0, metavar="N")
    parser.add_argument("--picture", default="docs/matspectnet.png", metavar="FILE")
    parser.add_argument("settings", nargs="*", metavar="name=value")
    options = parser.parse_intermixed_args()
    config = make_plan("matspectnet", ["tracking=none", *options.settings]).build_config()
    assert isinstance(config, MatSpectNetConfig)
    domains = open_domains(config.data)
    scenes = true_scenes(config.data, "test")
    translation = translation_network(config, domains.sensitivity)
    translation.load_state_dict(load_file(options.weights / "translation.safetensors"))
    network = segmentation_network(config, len(domains.materials.classes), domains.samples, *standard_scales(domains))
    network.load_state_dict(load_file(options.weights / "segmentation.safetensors"))
    network.eval()
    x = scenes.images[options.scene][None].float() / 255
    spectra = RecoveredSpectra(translation)(x)
    with torch.no_grad():
        found = network(x, spectra).argmax(dim=1)[0]
        curves = network.branch.filters.responses(spectra)[0] if network.branch is not None else None
    assert scenes.spectra is not None
    assert curves is not None
    known = Camera(domains.sensitivity).matrix().detach()
    learned = known if translation.camera is None else translation.camera.matrix().detach()
    draw(
        options.picture,
        classes=domains.materials.classes,
        image=scenes.images[options.scene],
        labels=(scenes.truth[options.scene], found),
        spectra=(scenes.spectra[options.scene], spectra[0]),
        cameras=(known, learned),
        curves=curves,
    )


def draw(
    file: str,
    *,
    classes: tuple[str, ...],
    image: Tensor,
    labels: tuple[Tensor, Tensor],
    spectra: tuple[Tensor, Tensor],
    cameras: tuple[Tensor, Tensor],
    curves: Tensor,
) -> None:
    """Writes the picture.

    Args:
        file: Where.
        classes: Names of the materials.
        image: (3, H, W) bytes.
        labels: The true (H, W) and the found.
        spectra: The true (31, H, W) and the recovered.
        cameras: (3, 31), as it was known and as it was learned.
        curves: (K, 31).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    figure, axes = pyplot.subplots(2, 4, figsize=(15, 7), layout="constrained")
    truth, found = labels
    colours = pyplot.get_cmap("tab20")
    places = _places(truth)
    bright = image.float() / image.max()
    axes[0, 0].imshow(bright.movedim(0, -1).numpy(), interpolation="nearest")
    axes[0, 0].set_title("image (brightened)")
    for number, (row, column) in enumerate(places):
        axes[0, 0].plot(column, row, "o", color=f"C{number}", markeredgecolor="white", markersize=9)
    for axis, codes, title in ((axes[0, 1], truth, "materials"), (axes[0, 2], found, "found")):
        axis.imshow(codes.numpy(), cmap=colours, vmin=0, vmax=20, interpolation="nearest")
        axis.set_title(title)
    seen = sorted(set(truth.flatten().tolist()) | set(found.flatten().tolist()))
    names = [Patch(color=colours(code / 20), label=classes[code]) for code in seen]
    axes[0, 2].legend(handles=names, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    error = (spectra[1] - spectra[0]).square().mean(dim=0).sqrt()
    drawn = axes[0, 3].imshow(error.numpy(), cmap="magma", interpolation="nearest")
    axes[0, 3].set_title("error of the spectra (RMSE)")
    figure.colorbar(drawn, ax=axes[0, 3], shrink=0.8)
    for axis in axes[0]:
        axis.set_xticks([])
        axis.set_yticks([])
    for number, (row, column) in enumerate(places):
        axis = axes[1, number // 2]
        name = classes[int(truth[row, column])]
        axis.plot(WAVELENGTHS, spectra[0][:, row, column].numpy(), color=f"C{number}", label=f"{name}, true")
        axis.plot(WAVELENGTHS, spectra[1][:, row, column].numpy(), "--", color=f"C{number}", label="recovered")
    for axis in axes[1, :2]:
        axis.set_title("reflectance at the dots")
        axis.legend(fontsize=8)
    for channel, colour in enumerate(("tab:red", "tab:green", "tab:blue")):
        axes[1, 2].plot(WAVELENGTHS, cameras[0][channel].numpy(), color=colour, label="known" if not channel else None)
        axes[1, 2].plot(
            WAVELENGTHS, cameras[1][channel].numpy(), "--", color=colour, label="learned" if not channel else None
        )
    axes[1, 2].set_title("the camera")
    axes[1, 2].legend(fontsize=8)
    for curve in curves:
        axes[1, 3].plot(WAVELENGTHS, curve.numpy())
    axes[1, 3].set_title(f"{len(curves)} learned response curves")
    for axis in axes[1]:
        axis.set_xlabel("nm")
        axis.set_ylim(bottom=0)
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def _places(truth: Tensor) -> list[tuple[int, int]]:
    """A pixel in the middle of each of the largest materials."""
    counts = torch.bincount(truth.flatten().long())
    places = []
    for code in counts.argsort(descending=True)[:_SHOWN].tolist():
        at = (truth == code).nonzero().float()
        if len(at):
            middle = at.mean(dim=0)
            places.append(tuple(int(v) for v in at[(at - middle).square().sum(dim=1).argmin()]))
    return [(row, column) for row, column in places]


if __name__ == "__main__":
    main()
