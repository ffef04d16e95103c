"""The claims about RSESF, measured: the tables in `trainables/rsesf/README.md`.

    python benchmarks/rsesf_claims.py [--seeds 3] [--jobs 2] [--json FILE] [--picture FILE] [name=value ...]
        [--only NAME ...]

Trains RSESF (upright), a UNet, and a UNet on images that are turned and magnified at random, each on every seed (of the
model and of the tissue alike) at one magnification and orientation, and tests them on the grid of all: by
`platform/train.py` itself. Prints Markdown; with --picture also writes the grids as heat maps.
"""

from __future__ import annotations

from benchmarks.claims import read_options, train_all
from benchmarks.histology import GridTable

_UNET = ["recipe.network=unet_bilinear", "recipe.optim.lr=4e-3"]
_VARIANTS = {
    "rsesf": [],
    "unet": _UNET,
    "unet_affine": [*_UNET, "recipe.augmentation=flips+affine"],
}
_TITLES = {
    "rsesf": "RSESF",
    "unet": "UNet",
    "unet_affine": "UNet, rotations and scales augmented",
}


def main() -> None:
    """Trains all of them and prints the tables."""
    others = [name for name in _VARIANTS if name != "rsesf"]
    options = read_options(__doc__ or "", seeds=3, variants=others, is_drawn=True)
    variants = {name: _VARIANTS[name] for name in ("rsesf", *options.only)}
    runs = GridTable(train_all("rsesf", variants, options), options, _TITLES)
    ways = runs.ways({"": "8 orientations", "upright": "1 orientation", "mean_fusion": "8, mean of the scales"})
    print("\n\n".join([runs.accuracy(), runs.differences(), runs.curves(), ways]))
    if options.picture:
        runs.picture(options.picture)


if __name__ == "__main__":
    main()
