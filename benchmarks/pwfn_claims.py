"""The claims about probabilistic weight fixing, measured: the tables in `trainables/pwfn/README.md`.

    python benchmarks/pwfn_claims.py [--data digits glyph32] [--seeds 3] [--jobs 2] [--json FILE] [--only NAME ...]

For each data set and seed (of model and data alike) one float network is trained; everything else starts from its
weights: PWFN and its ablations, WFN (BatchNorm left alone, so that both quantise the same weights), and other ways to
as many distinct values as PWFN's own. Accuracies are of the test split. Prints Markdown, with 95 % intervals by
Student's t of the difference to the float network, paired by seed:

    lossless       accuracy within 0.5 points of the float network, at how many distinct values and bits
    equal counts   the baselines at PWFN's number of distinct values, the statistics of BatchNorm taken anew for all
    position       sigma_mode: learned sigmas, against their layers' means, permuted ones, and one for all
    noise          accuracy under noise on all weights, against training without a Bayesian network
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import interval, mean_and_spread, table

DATA = {
    "digits": (["data.source=digits", "recipe.model.name=cnn_s"], 30),
    "glyph32": (["data.source=glyph32", "recipe.model.name=resnet18_c", "recipe.model.width=8"], 12),
}
"""Settings of both families, and epochs of the float network."""
_PWFN = {"digits": [], "glyph32": ["recipe.baseline_epochs=2", "recipe.rest_epochs=2", "recipe.optim.lr=0.02"]}
_WFN = {"digits": [], "glyph32": ["recipe.epochs_per_round=1", "recipe.optim.lr=2e-4"]}
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "pwfn": ("pwfn", []),
    "pwfn, b = 5": ("pwfn", ["recipe.b=5"]),
    "pwfn, b = 4": ("pwfn", ["recipe.b=4"]),
    "pwfn, layer mean": ("pwfn", ["recipe.sigma_mode=layer_mean"]),
    "pwfn, permuted": ("pwfn", ["recipe.sigma_mode=permuted"]),
    "pwfn, const": ("pwfn", ["recipe.sigma_mode=const"]),
    "no bnn": ("pwfn", ["recipe.train_mode=no_bnn"]),
    "wfn, delta = 0.01": ("wfn", ["recipe.include_bn=false", "recipe.delta=0.01"]),
    "wfn, delta = 0.015": ("wfn", ["recipe.include_bn=false", "recipe.delta=0.015"]),
    "wfn, delta = 0.005": ("wfn", ["recipe.include_bn=false", "recipe.delta=0.005"]),
}
"""Families and settings."""
_POSITION = {"pwfn": "learned", "pwfn, layer mean": "layer mean", "pwfn, permuted": "permuted", "pwfn, const": "const"}
_LOSSLESS = 0.5

Key = tuple[str, int, str]
"""Data set, seed, variant."""


def run_one(task: tuple[Key, str, int]) -> dict[str, float]:
    """The last report of a variant, or what is known of the float network or of the baselines.

    Args:
        task: What; the folder of float networks; and for the baselines how many distinct values they may have.
    """
    import torch

    from pharos.run import Run

    torch.set_num_threads(1)
    (data, seed, variant), folder, count = task
    weights = Path(folder) / f"{data}-{seed}.safetensors"
    run = Run(seed=seed)
    if variant == "float":
        return _float(run, data, seed, weights)
    if variant == "baselines":
        return _baselines(run, data, seed, weights, count)
    family, settings = VARIANTS[variant]
    extra = [*(_PWFN if family == "pwfn" else _WFN)[data], *settings]
    recipe, config = _configured(family, data, seed, [f"recipe.model.weights={weights}", *extra])
    config.pretrain.epochs = 0
    started = time.monotonic()
    recipe.train(run, config)
    return {**run.metrics, **_last(run), "seconds": time.monotonic() - started}


def _last(run: Any) -> dict[str, float]:
    return {name: value for name, value in run.metrics.items() if math.isfinite(value)}


def _configured(family: str, data: str, seed: int, settings: Sequence[str]) -> tuple[Any, Any]:
    from pharos.config import make_plan

    plan = make_plan(family, ["tracking=none", f"seed={seed}", f"data.seed={seed}", *DATA[data][0], *settings])
    return plan.recipe, plan.build_config()


def _float(run: Any, data: str, seed: int, weights: Path) -> dict[str, float]:
    """Trains the float network and keeps its weights."""
    from safetensors.torch import save_file

    from pharos.learner import OptimConfig
    from trainables.common.quantisation.images import open_images
    from trainables.common.quantisation.training import accuracy, pretrained

    _, config = _configured("pwfn", data, seed, [])
    config.pretrain.epochs = DATA[data][1]
    images = open_images(config.data)
    network = pretrained(run, config.pretrain, config.model, images, config.batch_size)
    learner = run.learner("trained", network, OptimConfig())
    scores = accuracy(run, learner, images.test, "test") | accuracy(run, learner, images.val, "val")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)
    return scores


def _baselines(run: Any, data: str, seed: int, weights: Path, count: int) -> dict[str, float]:
    from pharos.learner import OptimConfig
    from trainables.common.quantisation.baselines import judge_baselines
    from trainables.common.quantisation.fixing import Layout, make_fixable
    from trainables.common.quantisation.images import open_images
    from trainables.common.quantisation.models import build_model

    _, config = _configured("pwfn", data, seed, [f"recipe.model.weights={weights}"])
    images = open_images(config.data)
    network = make_fixable(build_model(config.model, images.classes, images.shape), include_bn=False)
    layout = Layout.of(network)
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    learner = run.learner("network", network, OptimConfig())
    found: dict[str, float] = judge_baselines(
        run, learner, layout, trained, images, count=count, gamma_0=2.0**-config.b, batch_size=config.batch_size
    )
    return found


class Table:
    """The results as columns over seeds."""

    def __init__(self, results: dict[Key, dict[str, float]], data: str, seeds: int):
        self._results, self._data, self._seeds = results, data, range(seeds)
        self._variants = [name for name in VARIANTS if (data, 0, name) in results]

    def column(self, variant: str, metric: str) -> list[float]:
        """One metric by seed."""
        return [self._results[self._data, seed, variant][metric] for seed in self._seeds]

    def against_float(self, values: Sequence[float]) -> str:
        """The paired difference to the float network in points, its interval, and whether it is lossless."""
        differences = [a - b for a, b in zip(values, self.column("float", "test/accuracy"), strict=True)]
        low, high = interval(differences)
        mean = statistics.mean(differences)
        verdict = "yes" if mean >= -_LOSSLESS else "no"
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], {verdict}"

    def lossless(self) -> str:
        head = [
            "",
            "distinct values",
            "bits a weight",
            "kB by Huffman (fp32)",
            "test accuracy, %",
            "to float, lossless",
        ]
        rows = [["float", "", "32", "", mean_and_spread(self.column("float", "test/accuracy"), 2), ""]]
        for name in self._variants:
            found = self.column(name, "test/accuracy")
            kept, whole = (self.column(name, metric) for metric in ("huffman_bytes", "fp32_bytes"))
            size = f"{statistics.mean(kept) / 1000:.1f} ({statistics.mean(whole) / 1000:.0f})"
            counts = mean_and_spread(self.column(name, "unique"), 0), mean_and_spread(self.column(name, "entropy"), 2)
            rows.append([name, *counts, size, mean_and_spread(found, 2), self.against_float(found)])
        return table(head, rows)

    def baselines(self) -> str:
        head = ["the float network by", "distinct values", "bits a weight", "test accuracy, %", "to float, lossless"]
        measured = self._results[self._data, 0, "baselines"]
        rows = []
        for name in dict.fromkeys(key.split("/")[0] for key in measured):
            found = self.column("baselines", f"{name}/recalibrated/accuracy")
            counts = [mean_and_spread(self.column("baselines", f"{name}/{key}"), d) for key, d in _COUNTS]
            rows.append([name, *counts, mean_and_spread(found, 2), self.against_float(found)])
        return table(head, rows)

    def position(self) -> str:
        head = ["sigmas that measure", "distinct values", "bits a weight", "val, %", "test, %", "test, to learned"]
        rows = []
        for name, title in _POSITION.items():
            if name not in self._variants:
                continue
            found, learned = (self.column(each, "test/accuracy") for each in (name, "pwfn"))
            differences = [a - b for a, b in zip(found, learned, strict=True)]
            low, high = interval(differences)
            against = "" if name == "pwfn" else f"{statistics.mean(differences):+.2f} [{low:+.2f}, {high:+.2f}]"
            counts = [mean_and_spread(self.column(name, key), digits) for key, digits in _COUNTS]
            val = mean_and_spread(self.column(name, "val/accuracy"), 2)
            rows.append([title, *counts, val, mean_and_spread(found, 2), against])
        return table(head, rows)

    def noise(self) -> str:
        names = [name for name in ("pwfn", "no bnn") if name in self._variants]
        etas = [key for key in self._results[self._data, 0, names[0]] if key.startswith("val/noise/")]
        head = ["val accuracy under noise", *(key.removeprefix("val/noise/") for key in etas), "ECE", "NLL"]
        rows = [
            [
                name,
                *(mean_and_spread(self.column(name, key)) for key in etas),
                *(mean_and_spread(self.column(name, key), 3) for key in ("val/ece", "val/nll")),
            ]
            for name in names
        ]
        return table(head, rows)


_COUNTS = (("unique", 0), ("entropy", 2))


def measure(options: argparse.Namespace, folder: str) -> dict[Key, dict[str, float]]:
    """All results; those that `--json` holds are not measured again."""
    file = Path(options.json) if options.json else None
    kept: dict[str, dict[str, float]] = json.loads(file.read_text()) if file and file.exists() else {}
    context = multiprocessing.get_context("spawn")
    results: dict[Key, dict[str, float]] = {}

    def do(keys: list[Key], count: bool = False) -> None:
        tasks = []
        for key in keys:
            name = "/".join(map(str, key))
            if name in kept and (key[2] != "float" or (Path(folder) / f"{key[0]}-{key[1]}.safetensors").exists()):
                results[key] = kept[name]
            else:
                tasks.append((key, folder, int(results[key[0], key[1], "pwfn"]["unique"]) if count else 0))
        for task, found in zip(tasks, pool.imap(run_one, tasks), strict=True):
            results[task[0]] = kept["/".join(map(str, task[0]))] = found
            said = f"test {found.get('test/accuracy', math.nan):.2f} %, {found.get('unique', 0):.0f} values"
            print(f"{task[0]}: {said}, {found.get('seconds', 0):.0f} s", file=sys.stderr, flush=True)
            if file:
                file.write_text(json.dumps(kept, indent=1))

    with context.Pool(options.jobs) as pool:
        pairs = [(data, seed) for data in options.data for seed in range(options.seeds)]
        do([(*pair, "float") for pair in pairs])
        do([(*pair, name) for pair in pairs for name in options.only])
        if "pwfn" in options.only:
            do([(*pair, "baselines") for pair in pairs], count=True)
    return results


def main() -> None:
    """Measures everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA), help="which")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--json", metavar="FILE", help="also write all results there; go on with it if it exists")
    parser.add_argument("--floats", metavar="FOLDER", help="keep the float networks there")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="which variants")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(options, options.floats or scratch)
    for data in options.data:
        found = Table(results, data, options.seeds)
        parts = [f"## {data}", found.lossless()]
        if "pwfn" in options.only:
            parts += [found.baselines(), found.position(), found.noise()]
        print("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
