"""The claims about ADS_UNet, measured: the tables in `trainables/ads_unet/README.md`.

    python benchmarks/ads_unet_claims.py [--seeds 3] [--jobs 2] [--json FILE] [name=value ...] [--only NAME ...]

Trains ADS_UNet, UNet, UNet^e and UNet++ of the same width and depth, and ADS_UNet without one of its parts at a time,
on each seed (of the model and of the tissue alike) by `platform/train.py` itself. A baseline gets as many epochs as all
stages together, or half of them. Prints Markdown:

    methods     test mIoU and Dice of the ensemble; what autograd keeps for a backward pass (the largest stage's, batch
                of the table), seconds of training, parameters, and linear CKA between the top nodes X^{0,1..D}
    votes       test mIoU of each stage by itself and of each way to vote
    parts       ADS_UNet without one of its parts, paired by seed
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.claims import Results, interval, mean_and_spread, read_options, table, train_all

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
        """One metric of a variant, by seed; `seconds` is the time of the whole run."""
        runs = [self._results[variant, seed] for seed in self._seeds]
        return [float(run["seconds"] if metric == "seconds" else run["metrics"][metric]) for run in runs]

    def methods(self) -> str:
        head = ["test", "mIoU, %", "against ADS_UNet", "Dice, %", "kept, MiB", "seconds", "parameters", "CKA"]
        rows = []
        for name, (title, _) in _METHODS.items():
            if not self._has(name):
                continue
            percent = [100 * value for value in self.column(name, "test/miou")]
            dice = [100 * value for value in self.column(name, "test/dice")]
            nodes = "" if name == "unet" else mean_and_spread(self.column(name, "cka"), 3)
            costs = [f"{statistics.mean(self.column(name, metric)):,.0f}" for metric in ("seconds", "parameters")]
            kept = mean_and_spread(self.column(name, "saved_mib"))
            against = "" if name == _OURS else self._against(name)
            rows.append([title, mean_and_spread(percent), against, mean_and_spread(dice), kept, *costs, nodes])
        return table(head, rows)

    def votes(self) -> str:
        metrics = self._results[_OURS, 0]["metrics"]
        stages = sorted(name for name in metrics if name.startswith("test/stage"))
        names = [*stages, "test/vote_soft", "test/vote_mean", "test/vote_hard"]
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


def main() -> None:
    """Trains all of them and prints the tables."""
    others = [*(name for name in _METHODS if name != _OURS), *_PARTS]
    options = read_options(__doc__ or "", seeds=3, variants=others)
    known = _METHODS | _PARTS
    variants = {name: known[name][1] for name in (_OURS, *options.only)}
    runs = _Table(train_all("ads_unet", variants, options), options)
    shown = [runs.methods(), runs.votes(), *([runs.parts()] if set(_PARTS) & set(options.only) else [])]
    print("\n\n".join(shown))


if __name__ == "__main__":
    main()
