"""The claims about JetLOV, measured: the tables in `trainables/jetlov/README.md`.

    python -m trainables.jetlov.generate --preset minutes --output FOLDER
    python benchmarks/jetlov_claims.py data.root=FOLDER [--seeds 3] [--jobs 2] [--json FILE] [--only NAME …]
        [--picture FILE]

W against QCD of Pythia 8. LundNet with half of its channels; every network has eight epochs of LundNet's training in
all, so a pre-trained one has four of them before RegNet comes in front of it. The test split is judged once, by the
epoch of the best validation accuracy. Prints Markdown; intervals by Student's t, differences paired by seed.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch

from benchmarks.claims import Results, interval, mean_and_spread, read_options, table, train_all
from trainables.jetlov.declustering import LUND

_COMMON = [
    *("scale=paper", "tracking=none", "data.source=shards", "recipe.model.width=16", "recipe.batch_size=128"),
    *("recipe.regress.epochs=8", "recipe.regress.train=10000", "recipe.regress.val=1000"),
]
_LONG = ["recipe.epochs=8"]
_SPLIT = ["recipe.pretrain.epochs=4", "recipe.epochs=4"]

VARIANTS = {
    "LundNet-5": [*_COMMON, *_LONG, "recipe.model.features=lund5"],
    "JetLOV, pretrained": [*_COMMON, *_SPLIT],
    "JetLOV, scratch": [*_COMMON, *_LONG, "recipe.init=scratch"],
    "JetLOV, RegNet alone pretrained": [*_COMMON, *_LONG, "recipe.init=regnet_only"],
    "JetLOV, RegNet frozen": [*_COMMON, *_SPLIT, "recipe.model.regnet_frozen=true"],
    "raw momenta, no RegNet": [*_COMMON, *_LONG, "recipe.model.features=raw8"],
    "LundNet-3": [*_COMMON, *_LONG, "recipe.model.features=lund3"],
    "JetLOV, scratch, relative_log": [*(*_COMMON, *_LONG, "recipe.init=scratch", "recipe.model.raw_form=relative_log")],
}
_MAIN = ("LundNet-5", "JetLOV, pretrained")


def main() -> None:
    """Measures everything and prints the tables."""
    options = read_options(__doc__ or "", 3, list(VARIANTS), is_drawn=True)
    results = train_all("jetlov", {name: VARIANTS[name] for name in options.only}, options)
    print(taggers(results, options.only, options.seeds))
    for name in options.only:
        if name.startswith("JetLOV"):
            found = results[name, 0]["metrics"]
            print(f"\n{name}\n\n{variables(found)}")
            if options.picture and name == "JetLOV, pretrained":
                _draw(found, Path(options.picture))


def taggers(results: Results, names: list[str], seeds: int) -> str:
    """Test scores, and the AUC's difference to LundNet-5."""
    rows = []
    for name in names:
        runs = [results[name, seed]["metrics"] for seed in range(seeds)]
        columns = [mean_and_spread([run[f"test/{key}"] for run in runs], 4) for key in ("auc", "accuracy")]
        columns += [mean_and_spread([run[f"test/rejection_{e}"] for run in runs]) for e in (0.3, 0.5, 0.7)]
        difference = ""
        if name != _MAIN[0] and _MAIN[0] in names:
            apart = [run["test/auc"] - results[_MAIN[0], seed]["metrics"]["test/auc"] for seed, run in enumerate(runs)]
            difference = f"{statistics.mean(apart):+.4f}"
            if seeds > 1:
                low, high = interval(apart)
                difference += f" [{low:+.4f}, {high:+.4f}]"
        seconds = mean_and_spread([results[name, seed]["seconds"] for seed in range(seeds)], 0)
        rows.append([name, *columns, difference, seconds])
    head = ["", "AUC", "accuracy", "R at 0.3", "R at 0.5", "R at 0.7", "AUC to LundNet-5", "seconds"]
    return table(head, rows)


def variables(found: dict[str, float]) -> str:
    """What a run's learned variables correlate with."""
    rows = []
    for k in range(sum(name.endswith("/r2") and name.startswith("variable/") for name in found)):
        own = [found[f"variable/{k}/correlation_{index}"] for index in range(len(LUND))]
        about = [found[f"variable/{k}/{name}"] for name in ("mean", "std", "r2")]
        rows.append([str(k), *(f"{value:.2f}" for value in (*about, *own))])
    text = table(["variable", "mean", "std", "linear R²", *LUND], rows)
    rank, turned = found["effective_rank"], found["rotation_violation"]
    return f"{text}\n\nEffective rank {rank:.2f}; turned about the beam by 1 rad, log-odds change by {turned:.2f}."


def _draw(found: dict[str, float], path: Path) -> None:
    from PIL import Image

    from trainables.jetlov.pictures import draw_correlations

    count = sum(name.startswith("variable/") and name.endswith("/r2") for name in found)
    rows = [[found[f"variable/{k}/correlation_{index}"] for index in range(len(LUND))] for k in range(count)]
    picture = draw_correlations(torch.tensor(rows), [found[f"variable/{k}/r2"] for k in range(count)])
    Image.fromarray((picture.movedim(0, -1) * 255).byte().numpy()).save(path)


if __name__ == "__main__":
    main()
