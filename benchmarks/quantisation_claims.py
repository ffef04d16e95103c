"""What the tables of claims about networks with few distinct weights have in common.

For each data set and seed, of model and data alike, one float network is trained; every variant and every other way to
few distinct values starts from its weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims import interval, mean_and_spread, table

DATA: dict[str, list[str]] = {
    "digits": ["data.source=digits", "recipe.model.name=cnn_s", "recipe.pretrain.epochs=30"],
    "glyph32": [
        *("data.source=glyph32", "recipe.model.name=resnet18_c", "recipe.model.width=8", "recipe.pretrain.epochs=12"),
    ],
}
"""Settings of the float networks."""
LOSSLESS = 0.5
"""Points of accuracy that a lossless network may lose."""
COUNTS = (("unique", 0), ("entropy", 2), ("mean_terms", 2))

Results = dict[tuple[str, int, str], dict[str, float]]
"""Measures by data set, seed and variant."""


@dataclass(frozen=True)
class Variant:
    """One way of quantising a float network.

    Attributes:
        family: Whose recipe.
        settings: By data set.
        equals: If given, the untrained baselines at as many distinct values as this variant has; `family` says which
            weights are quantised, and `settings` how.
    """

    family: str
    settings: Mapping[str, Sequence[str]]
    equals: str = ""


def read_options(description: str, variants: Mapping[str, Variant]) -> argparse.Namespace:
    """What is typed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA), help="which")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--json", metavar="FILE", help="also write all results there; go on with it if it exists")
    parser.add_argument("--floats", metavar="FOLDER", help="keep the float networks there")
    parser.add_argument("--only", nargs="+", choices=list(variants), default=list(variants), help="which variants")
    return parser.parse_args()


def measure(variants: Mapping[str, Variant], options: argparse.Namespace) -> Results:
    """Trains and judges all of them; what the file already holds is not done again."""
    file = Path(options.json) if options.json else None
    kept: dict[str, dict[str, float]] = json.loads(file.read_text()) if file and file.exists() else {}
    results: Results = {}
    with tempfile.TemporaryDirectory() as scratch, multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        folder = Path(options.floats or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        pairs = [(data, seed) for data in options.data for seed in range(options.seeds)]
        chosen = {name: variants[name] for name in options.only}
        for wanted in (
            ["float"],
            [name for name, variant in chosen.items() if not variant.equals],
            [name for name, variant in chosen.items() if variant.equals],
        ):
            tasks = []
            for data, seed, name in [(*pair, name) for pair in pairs for name in wanted]:
                key, weights = f"{data}/{seed}/{name}", folder / f"{data}-{seed}.safetensors"
                if key in kept and (name != "float" or weights.exists()):
                    results[data, seed, name] = kept[key]
                    continue
                variant = chosen.get(name)
                count = int(results[data, seed, variant.equals]["unique"]) if variant and variant.equals else 0
                tasks.append(((data, seed, name), variant, weights, count))
            for name_of, found in pool.imap_unordered(_run, tasks):
                results[name_of] = kept["/".join(map(str, name_of))] = found
                print(f"{name_of}: {_brief(found)}", file=sys.stderr, flush=True)
                if file:
                    file.write_text(json.dumps(kept, indent=1))
    return results


def _brief(found: Mapping[str, float]) -> str:
    if "test/accuracy" not in found:
        return f"{found['seconds']:.0f} s"
    return f"test {found['test/accuracy']:.2f} %, {found.get('unique', 0):.0f} values, {found['seconds']:.0f} s"


def _run(task: tuple[tuple[str, int, str], Variant | None, Path, int]) -> tuple[Any, dict[str, float]]:
    """One task in a process of the pool: a float network, a variant, or the baselines."""
    import torch

    from pharos.run import Run

    torch.set_num_threads(1)
    (data, seed, name), variant, weights, count = task
    started = time.monotonic()
    run = Run(seed=seed)
    if variant is None:
        found = _train_float(run, data, seed, weights)
    else:
        settings = ["recipe.pretrain.epochs=0", f"recipe.model.weights={weights}", *variant.settings.get(data, ())]
        recipe, config = _configured(variant.family, data, seed, settings)
        if variant.equals:
            found = _judge(run, config, count)
        else:
            recipe.train(run, config)
            found = dict(run.metrics)
    return (data, seed, name), {**found, "seconds": time.monotonic() - started}


def _configured(family: str, data: str, seed: int, settings: Sequence[str]) -> tuple[Any, Any]:
    from pharos.config import make_plan

    plan = make_plan(family, ["tracking=none", f"seed={seed}", f"data.seed={seed}", *DATA[data], *settings])
    return plan.recipe, plan.build_config()


def _train_float(run: Any, data: str, seed: int, weights: Path) -> dict[str, float]:
    from safetensors.torch import save_file

    from pharos.learner import OptimConfig
    from trainables.common.quantisation.images import open_images
    from trainables.common.quantisation.training import accuracy, pretrained

    _, config = _configured("wfn", data, seed, [])
    images = open_images(config.data)
    network = pretrained(run, config.pretrain, config.model, images, config.pretrain.batch_size)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)
    learner = run.learner("trained", network, OptimConfig())
    scores: dict[str, float] = accuracy(run, learner, images.test, "test") | accuracy(run, learner, images.val, "val")
    return scores


def _judge(run: Any, config: Any, count: int) -> dict[str, float]:
    from pharos.learner import OptimConfig
    from trainables.common.quantisation.baselines import judge_baselines
    from trainables.common.quantisation.fixing import Layout, make_fixable
    from trainables.common.quantisation.images import open_images
    from trainables.common.quantisation.models import build_model

    images = open_images(config.data)
    network = build_model(config.model, images.classes, images.shape)
    # PWFN leaves batch normalisation alone, and says how small a zero is as 2^-b.
    make_fixable(network, include_bn=getattr(config, "include_bn", False))
    gamma_0 = 2.0**config.gamma0_exp if hasattr(config, "gamma0_exp") else 2.0**-config.b
    layout, trained = Layout.of(network), {name: value.clone() for name, value in network.state_dict().items()}
    learner = run.learner("network", network, OptimConfig())
    found: dict[str, float] = judge_baselines(
        run, learner, layout, trained, images, count=count, gamma_0=gamma_0, batch_size=config.batch_size
    )
    return found


class Table:
    """The results of one data set as columns over seeds."""

    def __init__(self, results: Results, data: str, seeds: int):
        self._results, self._data, self._seeds = results, data, range(seeds)

    def column(self, variant: str, metric: str) -> list[float]:
        """One metric by seed."""
        return [self._results[self._data, seed, variant][metric] for seed in self._seeds]

    def against(self, values: Sequence[float], others: Sequence[float]) -> str:
        """The mean difference of two columns in points, paired by seed, and its 95 % interval."""
        differences = [a - b for a, b in zip(values, others, strict=True)]
        low, high = interval(differences)
        return f"{statistics.mean(differences):+.2f} [{low:+.2f}, {high:+.2f}]"

    def row(self, title: str, variant: str, prefix: str = "", metric: str = "test/accuracy") -> list[str]:
        """Counts, accuracy, and the difference to the float network's."""
        found, trained = self.column(variant, prefix + metric), self.column("float", "test/accuracy")
        is_lossless = statistics.mean(found) >= statistics.mean(trained) - LOSSLESS
        counts = [mean_and_spread(self.column(variant, prefix + key), digits) for key, digits in COUNTS]
        verdict = "yes" if is_lossless else "no"
        return [title, *counts, mean_and_spread(found, 2), self.against(found, trained), verdict]

    def trained(self, variants: Sequence[str]) -> str:
        """Variants that train while they fix."""
        trained = ["float", "", "32", "", mean_and_spread(self.column("float", "test/accuracy"), 2), "", ""]
        return table(self._head(""), [trained, *(self.row(name, name) for name in variants)])

    def untrained(self, variant: str, equals: str) -> str:
        """The baselines at as many values as `equals` has, with the statistics of batch normalisation taken anew."""
        names = [key.split("/")[0] for key in self._results[self._data, 0, variant] if key.endswith("/unique")]
        rows = [self.row(name, variant, f"{name}/", "recalibrated/accuracy") for name in names]
        count = mean_and_spread(self.column(equals, "unique"), 0)
        return table(self._head(f"the float network at {count} values"), rows)

    def _head(self, first: str) -> list[str]:
        counts = ["distinct values", "bits a weight", "powers of two a weight"]
        return [first, *counts, "test accuracy, %", "to the float network", "lossless"]
