"""The claims about SEUNet, measured: the tables in `trainables/seunet/README.md`.

    python benchmarks/seunet_claims.py [--seeds 3] [--jobs 2] [--json FILE] [--picture FILE] [name=value ...]
        [--only NAME ...]

Trains SEUNet, a UNet, a UNet on images of random magnification, and SEUNet whose branches are shifted exactly (scales
that stay a factor of 1.41 apart in all layers, one batch norm for all), each on every seed (of the model and of the
tissue alike) at one magnification and orientation, and tests them on the grid of all: by `platform/train.py` itself.
Prints Markdown; with --picture also writes the grids as heat maps.
"""

from __future__ import annotations

from benchmarks.claims import read_options, train_all
from benchmarks.histology import GridTable

_UNET = ["recipe.network=unet_bilinear", "recipe.optim.lr=4e-3"]
_VARIANTS = {
    "seunet": [],
    "unet": _UNET,
    "unet_scale": [*_UNET, "recipe.augmentation=flips+scale"],
    "exact": [
        *("recipe.ladder=geometric", "recipe.sigma_low=0.6", "recipe.sigma_ratio=1.414"),
        *("recipe.sigma_mode=fixed", "recipe.norm=shared"),
    ],
}
_TITLES = {
    "seunet": "SEUNet",
    "unet": "UNet",
    "unet_scale": "UNet, scales augmented",
    "exact": "SEUNet, exact shifts",
}


def main() -> None:
    """Trains all of them and prints the tables."""
    others = [name for name in _VARIANTS if name != "seunet"]
    options = read_options(__doc__ or "", seeds=3, variants=others, is_drawn=True)
    variants = {name: _VARIANTS[name] for name in ("seunet", *options.only)}
    runs = GridTable(train_all("seunet", variants, options), options, _TITLES)
    ways = runs.ways({"": "the most decided branch at each pixel", "mean_fusion": "mean of the branches"})
    print("\n\n".join([runs.accuracy(), runs.differences(), runs.curves(), ways]))
    if options.picture:
        runs.picture(options.picture)


if __name__ == "__main__":
    main()
