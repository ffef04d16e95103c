"""The claims about recovered spectra, measured: the tables in `trainables/matspectnet/README.md`.

    python benchmarks/matspectnet_claims.py [--seeds 3] [--jobs 2] [--json FILE] [name=value ...] [--only NAME ...]

Trains MatSpectNet, DBAT with the same settings, and MatSpectNet without each of its parts, for each seed (of the model
and of the scenes alike: with one seed all of them see the same scenes and batches) by `platform/train.py` itself.
Settings are passed on. Prints Markdown:

    labels         accuracies of the test by the number of labelled images, and MatSpectNet's difference to DBAT, paired
                   by seed: mean, its 95 % interval, and in how many seeds it is better
    parts          the same at 16 labelled images, against MatSpectNet without each part
    spectra        errors of recovered spectra in both domains, and of what the camera sees of them
    control        without textures, where images say nothing of pairs and only true spectra do
"""

from __future__ import annotations

import argparse

from benchmarks.claims import Results, mean_and_spread, paired, read_options, table, train_all

_STEPS = 300  # of the segmentation, whatever the number of labelled images
_BATCH = 8
_LABELLED = (4, 16, 60)
_FEW = 16  # labelled images of the other tables
_PARTS = {
    "matspectnet": ("MatSpectNet", []),
    "dbat": ("images alone (DBAT)", ["recipe.spectra=none"]),
    "no_camera": ("without the camera", ["recipe.physics=none"]),
    "no_domains": ("without the discriminators", ["recipe.adversarial=0"]),
    "no_translation": ("without both", ["recipe.translation_epochs=0"]),
    "frozen_camera": ("camera as it is known", ["recipe.physics=frozen"]),
    "no_perception": ("without the properties", ["recipe.perception=false"]),
    "identity": ("all bands for the curves", ["recipe.filter_mode=identity"]),
    "static": ("curves that are parameters", ["recipe.filter_mode=static"]),
    "oracle": ("true spectra", ["recipe.spectra=oracle", "recipe.flips=false"]),
}
_COMPARED = ("matspectnet", "dbat")
_CONTROLLED = ("matspectnet", "dbat", "oracle")
_METRICS = {"mean_acc": "mean class accuracy", "pixel_acc": "pixel accuracy"}
_ERRORS = {
    "mrae": "MRAE",
    "rmse": "RMSE",
    "angle": "angle, rad",
    "reprojection": "RMSE of the image",
}


def variants(chosen: list[str]) -> dict[str, list[str]]:
    """Settings of every run: MatSpectNet and DBAT by labels, parts at 16 of them, and the control."""
    runs = {f"{name}@{count}": [*_PARTS[name][1], *_budget(count)] for count in _LABELLED for name in _COMPARED}
    runs |= {f"{name}@{_FEW}": [*_PARTS[name][1], *_budget(_FEW)] for name in chosen}
    without = [*_budget(_FEW), "data.textured=false"]
    return runs | {f"{name}@control": [*_PARTS[name][1], *without] for name in _CONTROLLED}


def _budget(labelled: int) -> list[str]:
    """As many steps for any number of labelled images, judged six times."""
    epochs = _STEPS // max(1, labelled // _BATCH)
    return [f"data.labelled_images={labelled}", f"recipe.epochs={epochs}", f"recipe.evaluate_every={epochs // 6}"]


class _Tables:
    """The runs as columns of numbers over seeds."""

    def __init__(self, results: Results, options: argparse.Namespace):
        self._results = results
        self._seeds = range(options.seeds)

    def _column(self, variant: str, metric: str, scale: float = 1.0) -> list[float]:
        return [scale * self._results[variant, seed]["metrics"][metric] for seed in self._seeds]

    def labels(self) -> str:
        head = ["test, %", "labelled images", "MatSpectNet", "DBAT", "difference"]
        rows = []
        for metric, title in _METRICS.items():
            for count in _LABELLED:
                ours, theirs = (self._column(f"{name}@{count}", f"test/{metric}", 100) for name in _COMPARED)
                rows.append([title, str(count), mean_and_spread(ours), mean_and_spread(theirs), paired(ours, theirs)])
        return table(head, rows)

    def parts(self) -> str:
        head = [
            "test, %",
            "parameters",
            *(cell for title in _METRICS.values() for cell in (title, "MatSpectNet against")),
        ]
        rows = []
        for name, (title, _) in _PARTS.items():
            variant = f"{name}@{_FEW}"
            if (variant, 0) not in self._results:
                continue
            cells = [f"{self._column(variant, 'parameters')[0]:,.0f}"]
            for metric in _METRICS:
                ours, theirs = (self._column(v, f"test/{metric}", 100) for v in (f"matspectnet@{_FEW}", variant))
                cells += [mean_and_spread(theirs), "" if name == "matspectnet" else paired(ours, theirs)]
            rows.append([title, *cells])
        return table(head, rows)

    def spectra(self) -> str:
        """Variants whose recovery differs."""
        domains = {"val/": "own domain", "val/material_": "material domain"}
        head = [
            "recovered spectra",
            *(f"{title}, {domain}" for domain in domains.values() for title in _ERRORS.values()),
        ]
        rows = []
        for name in ("matspectnet", "no_camera", "no_domains", "no_translation", "frozen_camera"):
            variant = f"{name}@{_FEW}"
            if (variant, 0) not in self._results:
                continue
            known = self._results[variant, 0]["metrics"]
            metrics = [f"{prefix}{error}" for prefix in domains for error in _ERRORS]
            cells = [mean_and_spread(self._column(variant, m), 4) if m in known else "" for m in metrics]
            rows.append([_PARTS[name][0], *cells])
        return table(head, rows)

    def control(self) -> str:
        rows = [
            [_PARTS[name][0], *(mean_and_spread(self._column(f"{name}@control", f"test/{m}", 100)) for m in _METRICS)]
            for name in _CONTROLLED
        ]
        return table(["without textures, test, %", *_METRICS.values()], rows)


def main() -> None:
    """Trains all of them and prints the tables."""
    options = read_options(__doc__ or "", seeds=3, variants=[name for name in _PARTS if name not in _COMPARED])
    runs = _Tables(train_all("matspectnet", variants(options.only), options), options)
    print("\n\n".join([runs.labels(), runs.parts(), runs.spectra(), runs.control()]))


if __name__ == "__main__":
    main()
