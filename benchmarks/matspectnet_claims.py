"""The claims about recovered spectra, measured: the tables in `trainables/matspectnet/README.md`.

    python benchmarks/matspectnet_claims.py [--seeds 3] [--jobs 2] [--json FILE] [name=value ...] [--only NAME ...]

Trains MatSpectNet, DBAT with the same settings, and MatSpectNet without each of its parts, for each seed (of the model
and of the scenes alike: with one seed all of them see the same scenes and batches) by `platform/train.py` itself.
What recovers spectra is trained once a seed; the segmentations start from its exported weights. Settings are passed on
to the segmentations. With `--json` a run that was stopped goes on; weights are kept beside the file. Prints Markdown:

    labels         accuracies of the test by the number of labelled images, and MatSpectNet's difference to DBAT, paired
                   by seed: mean, its 95 % interval, and in how many seeds it is better
    parts          the same at 8 labelled images, against MatSpectNet without each part
    spectra        errors of recovered spectra in both domains, of what the camera sees of them, and of two predictors
                   that know nothing but a pixel's colour
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims import Results, mean_and_spread, paired, read_options, table, train_all, train_one

_RECOVERY_EPOCHS = 50  # of 100 scenes
_TRANSLATION_EPOCHS = 3
_STEPS = 120  # of the segmentation, whatever the number of labelled images
_BATCH = 8
_LABELLED = (8, 32)
_FEW = 8  # labelled images of the other tables

# What recovers spectra; the first is what the others go on from.
_RECOVERIES = {
    "no_translation": ["recipe.translation_epochs=0"],
    "matspectnet": [],
    "no_camera": ["recipe.physics=none"],
    "no_domains": ["recipe.adversarial=0"],
}
# What segments: its name, which of those it uses, and settings.
_PARTS: dict[str, tuple[str, str, list[str]]] = {
    "matspectnet": ("MatSpectNet", "matspectnet", []),
    "dbat": ("images alone (DBAT)", "", ["recipe.spectra=none"]),
    "no_camera": ("without the camera", "no_camera", []),
    "no_domains": ("without the discriminators", "no_domains", []),
    "no_translation": ("without both", "no_translation", []),
    "no_perception": ("without the properties", "matspectnet", ["recipe.perception=false"]),
    "identity": ("all bands for the curves", "matspectnet", ["recipe.filter_mode=identity"]),
    "sample": ("curves made from each image", "matspectnet", ["recipe.filter_mode=sample"]),
    "oracle": ("true spectra", "", ["recipe.spectra=oracle", "recipe.flips=false"]),
    "oracle_identity": (
        "true spectra, all bands",
        "",
        ["recipe.spectra=oracle", "recipe.flips=false", "recipe.filter_mode=identity"],
    ),
}
_COMPARED = ("matspectnet", "dbat")
_METRICS = {"mean_acc": "mean class accuracy", "pixel_acc": "pixel accuracy"}
_ERRORS = {"mrae": "MRAE", "rmse": "RMSE", "angle": "angle, rad", "reprojection": "RMSE of the image"}
_DOMAINS = {"val/": "own domain", "val/material_": "material domain"}


def recoveries(seed: int, folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Trains what recovers spectra on a seed, and exports its weights to `folder/NAME-SEED`.

    Args:
        seed: Of the model and of the scenes.
        folder: What it holds already is not trained again.
        names: Of `_RECOVERIES`, the first among them.
    """
    found = {}
    for name in names:
        file = folder / f"{name}-{seed}.json"
        if not file.exists():
            # One epoch of the segmentation, which has to be there.
            settings = [f"seed={seed}", f"data.seed={seed}", "recipe.epochs=1", *_RECOVERIES[name]]
            settings += [f"recipe.recovery_epochs={_RECOVERY_EPOCHS}", f"recipe.evaluate_every={_RECOVERY_EPOCHS}"]
            if name != names[0]:
                first = folder / f"{names[0]}-{seed}" / "recovery.safetensors"
                settings += [f"recipe.recovery_weights={first}", f"recipe.translation_epochs={_TRANSLATION_EPOCHS}"]
                settings.append("recipe.recovery_epochs=0")
            result = train_one("matspectnet", settings, export=folder / f"{name}-{seed}")
            file.write_text(json.dumps(result))
            print(f"{name}/{seed}: {result['seconds']:.0f} s", flush=True)
        found[name] = json.loads(file.read_text())["metrics"]
    return found


def variants(chosen: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Settings of the segmentations: MatSpectNet and DBAT by labels, and parts with few."""
    runs = {f"{name}@{count}": _settings(name, count, folder) for count in _LABELLED for name in _COMPARED}
    return runs | {f"{name}@{_FEW}": _settings(name, _FEW, folder) for name in chosen}


def _settings(name: str, labelled: int, folder: Path) -> list[str]:
    """As many steps for any number of labelled images, judged five times."""
    _, recovery, settings = _PARTS[name]
    epochs = _STEPS // max(1, labelled // _BATCH)
    settings = [*settings, f"data.labelled_images={labelled}", f"recipe.epochs={epochs}"]
    settings.append(f"recipe.evaluate_every={max(1, epochs // 5)}")
    if recovery:
        learner = "recovery" if recovery == "no_translation" else "translation"
        weights = folder / f"{recovery}-{{seed}}" / f"{learner}.safetensors"
        settings += [f"recipe.recovery_weights={weights}", "recipe.recovery_epochs=0", "recipe.translation_epochs=0"]
    return settings


def colour_alone(seed: int) -> dict[str, dict[str, float]]:
    """Errors of the mean spectrum, and of a quadratic function of the RGB of a pixel (least squares)."""
    from pharos.config import make_plan
    from trainables.matspectnet.data import open_domains
    from trainables.matspectnet.losses import mrae, rmse, spectral_angle
    from trainables.matspectnet.settings import MatSpectNetConfig

    config = make_plan("matspectnet", ["tracking=none", f"data.seed={seed}"]).build_config()
    assert isinstance(config, MatSpectNetConfig)
    domains = open_domains(config.data)
    assert domains.hidden is not None

    def pixels(scenes: Any) -> list[Tensor]:
        pairs = [scenes.whole(index, config.data.size)[:2] for index in range(len(scenes))]
        return [torch.cat([part.movedim(1, -1).flatten(0, -2) for part in parts]) for parts in zip(*pairs, strict=True)]

    x, y = pixels(domains.spectral)
    mean = y.mean(dim=0)
    weights = torch.linalg.lstsq(_quadratic(x), y.double()).solution
    predictors: dict[str, Callable[[Tensor], Tensor]] = {
        "mean spectrum": lambda x: mean.expand(len(x), -1),
        "quadratic in a pixel's RGB": lambda x: (_quadratic(x) @ weights).float(),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in predictors}
    for prefix, scenes in (("val/", domains.spectral_validation), ("val/material_", domains.hidden)):
        x, y = pixels(scenes)
        for name, predict in predictors.items():
            guess = predict(x)
            for error, function in {"mrae": mrae, "rmse": rmse, "angle": spectral_angle}.items():
                found[name][prefix + error] = float(function(guess, y))
    return found


def _quadratic(x: Tensor) -> Tensor:
    x = x.double()
    first, second = torch.triu_indices(3, 3)
    return torch.cat([torch.ones_like(x[:, :1]), x, x[:, first] * x[:, second]], dim=1)


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
        for name, (title, *_) in _PARTS.items():
            variant = f"{name}@{_FEW}"
            if (variant, 0) not in self._results:
                continue
            cells = [f"{self._column(variant, 'parameters')[0]:,.0f}"]
            for metric in _METRICS:
                ours, theirs = (self._column(v, f"test/{metric}", 100) for v in (f"matspectnet@{_FEW}", variant))
                cells += [mean_and_spread(theirs), "" if name == "matspectnet" else paired(ours, theirs)]
            rows.append([title, *cells])
        return table(head, rows)


def spectra(found: Sequence[dict[str, dict[str, float]]]) -> str:
    """Errors by seed and by what recovers."""
    head = ["recovered spectra", *(f"{title}, {domain}" for domain in _DOMAINS.values() for title in _ERRORS.values())]
    rows = []
    for name in found[0]:
        title = _PARTS[name][0] if name in _PARTS else name
        columns = [[one[name].get(prefix + error) for one in found] for prefix in _DOMAINS for error in _ERRORS]
        known = [[value for value in column if value is not None] for column in columns]
        cells = [mean_and_spread(column, 4) if column else "" for column in known]
        rows.append([title, *cells])
    return table(head, rows)


def main() -> None:
    """Trains all of them and prints the tables."""
    options = read_options(__doc__ or "", seeds=3, variants=[name for name in _PARTS if name not in _COMPARED])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.json).with_suffix("").absolute() if options.json else Path(scratch)
        folder.mkdir(exist_ok=True)
        used = {_PARTS[name][1] for name in (*_COMPARED, *options.only)} | {next(iter(_RECOVERIES))}
        names = [name for name in _RECOVERIES if name in used]
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(lambda seed: recoveries(seed, folder, names), range(options.seeds)))
        runs = _Tables(train_all("matspectnet", variants(options.only, folder), options), options)
    errors = [colour_alone(seed) | recovered for seed, recovered in enumerate(found)]
    print("\n\n".join([runs.labels(), runs.parts(), spectra(errors)]))


if __name__ == "__main__":
    main()
