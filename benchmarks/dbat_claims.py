"""The claims about dynamic backward attention, measured: the tables in `trainables/dbat/README.md`.

    python benchmarks/dbat_claims.py [--seeds 3] [--jobs 2] [--json FILE] [name=value ...] [--only NAME ...]

Trains DBAT and its controls for each seed (of the model and of the scenes alike: with one seed all of them see the same
scenes and batches) by `platform/train.py` itself. Settings are passed on, such as `data.source=metascene`;
`data.seed=0` leaves the scenes alone, so that seeds differ in their initial weights and batches only. Prints Markdown:

    accuracy       of the test, in per cent: mean, standard deviation, and DBAT's difference to each control, paired by
                   seed: mean, its 95 % interval, and in how many seeds DBAT is better
    masks          the mean share of each map, and whether nearer scenes are given larger patches
    detectors      share of the deepest map's units that select a concept, by its group
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.claims import Results, mean_and_spread, paired, read_options, table, train_all

_SUBJECT = "dbat"
_VARIANTS = {
    "dbat": ("DBAT", []),
    "swin_fpn": ("without the module", ["recipe.network.model=swin_fpn"]),
    "swin_fpn_wide": ("that, as many parameters", ["recipe.network.model=swin_fpn_wide"]),
    "uniform": ("a quarter of each map", ["recipe.network.aggregate=uniform"]),
    "last": ("the last map alone", ["recipe.network.aggregate=last"]),
    "merge_none": ("the aggregate alone", ["recipe.network.merge=none"]),
    "merge_self": ("the aggregate to itself", ["recipe.network.merge=self"]),
    "merge_add": ("last map + aggregate", ["recipe.network.merge=add"]),
    "conv": ("enlarged by convolution", ["recipe.network.enlarge=conv"]),
    "avgpool": ("enlarged by averages", ["recipe.network.enlarge=avgpool"]),
}
_METRICS = {"pixel_acc": "pixel accuracy", "mean_acc": "mean class accuracy", "miou": "mIoU"}
_MASKS = {
    **{f"attention/map{k}": f"share of map {k}" for k in range(1, 5)},
    "attention/zoom_rank_correlation": "rank correlation of patch size and zoom",
}


class _Tables:
    """The runs as columns of numbers over seeds."""

    def __init__(self, results: Results, options: argparse.Namespace):
        self._results = results
        self._seeds = range(options.seeds)
        self._titles = {name: title for name, (title, _) in _VARIANTS.items() if (name, 0) in results}

    def _column(self, variant: str, metric: str, scale: float = 1.0) -> list[float]:
        return [scale * self._results[variant, seed]["metrics"][metric] for seed in self._seeds]

    def accuracy(self) -> str:
        head = ["test, %", "parameters", *(cell for title in _METRICS.values() for cell in (title, "DBAT against it"))]
        rows = []
        for variant, title in self._titles.items():
            cells = []
            for metric in _METRICS:
                ours, theirs = (self._column(name, f"test/{metric}", 100) for name in (_SUBJECT, variant))
                cells += [mean_and_spread(theirs), "" if variant == _SUBJECT else paired(ours, theirs)]
            rows.append([title, f"{self._column(variant, 'parameters')[0]:,.0f}", *cells])
        return table(head, rows)

    def masks(self) -> str:
        rows = []
        for variant, title in self._titles.items():
            known = [m for m in _MASKS if m in self._results[variant, 0]["metrics"]]
            if known:
                found = {m: mean_and_spread(self._column(variant, m), 2) for m in known}
                rows.append([title, *(found.get(m, "") for m in _MASKS)])
        return table(["masks", *_MASKS.values()], rows)

    def detectors(self) -> str:
        groups = [m for m in self._results[_SUBJECT, 0]["metrics"] if m.startswith("detectors/")]
        head = ["units that detect, %", *(group.removeprefix("detectors/") for group in groups)]
        rows = [
            [title, *(f"{statistics.mean(self._column(variant, group, 100)):.1f}" for group in groups)]
            for variant, title in self._titles.items()
        ]
        return table(head, rows)


def main() -> None:
    """Trains all of them and prints the tables."""
    options = read_options(__doc__ or "", seeds=3, variants=[name for name in _VARIANTS if name != _SUBJECT])
    variants = {name: _VARIANTS[name][1] for name in (_SUBJECT, *options.only)}
    runs = _Tables(train_all("dbat", variants, options), options)
    print("\n\n".join([runs.accuracy(), runs.masks(), runs.detectors()]))


if __name__ == "__main__":
    main()
