"""The claims about ADS_UNet, measured: the tables in `trainables/ads_unet/README.md`.

    python benchmarks/ads_unet_claims.py [--seeds 3] [--jobs 2] [--json FILE] [name=value ...] [--only NAME ...]

Trains ADS_UNet, UNet, UNet^e and UNet++ of the same width and depth, and ADS_UNet without one of its parts at a time,
on each seed (of the model and of the tissue alike) by `platform/train.py` itself. A baseline gets as many epochs as all
stages together, or half of them. Prints Markdown:

    methods     test mIoU, Dice and share of right pixels of the ensemble, parameters, and linear CKA between the top
                nodes X^{0,1..D}
    costs       what autograd keeps for a backward pass (the largest stage's), and the time of a training step on one
                core; of the paper's size a sixteenth is measured, of which both are multiples
    votes       test mIoU of each stage by itself and of each way to vote
    parts       ADS_UNet without one of its parts, paired by seed
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.claims import Results, interval, mean_and_spread, read_options, table, train_all
from trainables.ads_unet.model import Grid
from trainables.ads_unet.recipe import AdsUNetConfig, stage_network
from trainables.common.histology.cost import saved_activations

_METHODS = {
    "ads_unet": ("ADS_UNet", ["recipe.network=ads_unet"]),
    "unet": ("UNet", ["recipe.network=unet"]),
    "unete": ("UNet^e", ["recipe.network=unete"]),
    "unetpp": ("UNet++", ["recipe.network=unetpp"]),
    "unete_short": ("UNet^e, half the epochs", ["recipe.network=unete", "recipe.joint_epochs=18"]),
    "unetpp_short": ("UNet++, half the epochs", ["recipe.network=unetpp", "recipe.joint_epochs=18"]),
}
_PARTS = {
    "no_reweighting": ("samples all alike", ["recipe.reweight=none"]),
    "uniform": ("layer weights all alike", ["recipe.eta_mode=uniform"]),
    "softmax": ("layer weights unbounded", ["recipe.eta_mode=softmax"]),
    "top_only": ("no deep supervision", ["recipe.eta_mode=top_only"]),
    "no_scse": ("no attention on skips", ["recipe.skip=none"]),
    "unfrozen": ("encoder never frozen", ["recipe.freeze_encoder=never"]),
}
_OURS = "ads_unet"


class _Table:
    """The runs as columns of numbers over seeds."""

    def __init__(self, results: Results, options: argparse.Namespace):
        self._results = results
        self._seeds = range(options.seeds)

    def _has(self, variant: str) -> bool:
        return (variant, 0) in self._results

    def column(self, variant: str, metric: str) -> list[float]:
        """One metric of a variant, by seed."""
        return [float(self._results[variant, seed]["metrics"][metric]) for seed in self._seeds]

    def methods(self) -> str:
        head = ["test", "mIoU, %", "against ADS_UNet", "Dice, %", "pixels, %", "parameters", "CKA"]
        rows = []
        for name, (title, _) in _METHODS.items():
            if not self._has(name):
                continue
            percent = [100 * value for value in self.column(name, "test/miou")]
            dice, pixels = ([100 * v for v in self.column(name, f"test/{metric}")] for metric in ("dice", "accuracy"))
            nodes = "" if name == "unet" else mean_and_spread(self.column(name, "cka"), 3)
            size = f"{self.column(name, 'parameters')[0]:,.0f}"
            against = "" if name == _OURS else self._against(name)
            rows.append(
                [title, mean_and_spread(percent), against, mean_and_spread(dice), mean_and_spread(pixels), size, nodes]
            )
        return table(head, rows)

    def votes(self) -> str:
        metrics = self._results[_OURS, 0]["metrics"]
        stages = sorted(name for name in metrics if name.startswith("test/stage"))
        names = [*stages, *(f"test/{name}" for name in ("vote_soft", "vote_mean", "vote_hard", "head_best"))]
        cells = [mean_and_spread([100 * value for value in self.column(_OURS, name)]) for name in names]
        return table(["mIoU, %", *(name.removeprefix("test/") for name in names)], [["ADS_UNet", *cells]])

    def parts(self) -> str:
        head = ["ADS_UNet with", "mIoU, %", "against all of it", "kept, MiB", "CKA"]
        rows = []
        for name, (title, _) in _PARTS.items():
            if self._has(name):
                percent = [100 * value for value in self.column(name, "test/miou")]
                kept = mean_and_spread(self.column(name, "saved_mib"))
                cka = mean_and_spread(self.column(name, "cka"), 3)
                rows.append([title, mean_and_spread(percent), self._against(name), kept, cka])
        return table(head, rows)

    def _against(self, name: str) -> str:
        """The paired difference to ADS_UNet in points, its 95 % interval, and the seeds in which it is lower."""
        differences = [
            100 * (a - b) for a, b in zip(*(self.column(n, "test/miou") for n in (name, _OURS)), strict=True)
        ]
        low, high = interval(differences)
        lower = f"{sum(d < 0 for d in differences)}/{len(differences)}"
        return f"{statistics.mean(differences):+.1f} [{low:+.1f}, {high:+.1f}], lower in {lower}"


@dataclass(frozen=True)
class _Size:
    """Of a network and what it is trained on.

    Attributes:
        title: In the table.
        width: f.
        depth: D.
        batch: Patches a step.
        side: Pixels along a side, as they are measured.
        share: Of the pixels that are meant: both costs are multiples of them.
    """

    title: str
    width: int
    depth: int
    batch: int
    side: int
    share: int = 1


_SIZES = (
    _Size("as above: 64 pixels, 8 features, 3 levels, batch 8", 8, 3, 8, 64),
    _Size("the paper's: 512 pixels, 64 features, 4 levels, batch 2", 64, 4, 2, 128, 16),
)


def costs(size: _Size) -> str:
    """What training takes at a size, each step on one core."""
    torch.set_num_threads(1)
    found = {name: _steps(name, size) for name in ("ads_unet", "unet", "unete", "unetpp")}
    rows = []
    for name, stages in found.items():
        kept, seconds = zip(*stages, strict=True)
        # As many steps in all, divided among the stages, beside those of UNet.
        share = statistics.mean(seconds) / found["unet"][0][1]
        shown = " + ".join(f"{each:.3g}" for each in seconds)
        rows.append([_METHODS[name][0], f"{max(kept):,.0f}", shown, f"{share:.2f}"])
    return table([size.title, "kept, MiB", "seconds of a step, by stage", "time of as many steps"], rows)


def _steps(name: str, size: _Size) -> list[tuple[float, float]]:
    """MiB kept and CPU seconds of a step, of each stage."""
    config = AdsUNetConfig(network=name, width=size.width, depth=size.depth)
    torch.manual_seed(0)
    x, y = torch.randn(size.batch, 3, size.side, size.side), torch.randint(0, 5, (size.batch, size.side, size.side))
    found = []
    for stage in range(1, config.stages + 1):
        network = stage_network(config, 5, stage, torch.full((5,), 0.2))
        if isinstance(network, Grid):
            network.train_last_stage(with_encoder=False)
        network.train()
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-3, fused=True)
        seconds = []
        for _ in range(3):
            began = time.process_time()
            with saved_activations(network.parameters()) as saved:
                loss = network(x, y, torch.ones(size.batch))[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.process_time() - began)
        found.append((size.share * saved.mib, size.share * min(seconds)))
    return found


def main() -> None:
    """Trains all of them and prints the tables."""
    others = [*(name for name in _METHODS if name != _OURS), *_PARTS]
    options = read_options(__doc__ or "", seeds=3, variants=others)
    known = _METHODS | _PARTS
    variants = {name: known[name][1] for name in (_OURS, *options.only)}
    runs = _Table(train_all("ads_unet", variants, options), options)
    shown = [
        runs.methods(),
        *map(costs, _SIZES),
        runs.votes(),
        *([runs.parts()] if set(_PARTS) & set(options.only) else []),
    ]
    print("\n\n".join(shown))


if __name__ == "__main__":
    main()
