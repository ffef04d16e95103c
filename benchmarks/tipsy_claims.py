"""The paper's claims about TIPSy-GAN, measured: the table in `trainables/tipsy/README.md`.

    python benchmarks/tipsy_claims.py [--seeds 3] [--jobs 2] [--json FILE] [name=value ...]

Trains, for each seed (of the model and of the built-in data alike):
    pair       two generators and the student distilled from them
    solo       one generator of near-equal size, with the adversarial weight of the authors' solo code
    no_90      two generators without the 90-degree terms
each by `platform/train.py` itself. Settings are passed on, such as `recipe.optim.lr=1e-3`. Prints Markdown.
"""

from __future__ import annotations

import statistics

from benchmarks.claims import mean_and_spread, read_options, table, train_all

_VARIANTS: dict[str, list[str]] = {
    "pair": [],
    # Section 4.1 of the family's document: a solo generator's adversarial weight is 0.15 under bce_smooth.
    "solo": ["recipe.generators=solo", "recipe.w_adv=0.15", "recipe.student_epochs=0"],
    "no_90": ["recipe.w_90=0", "recipe.student_epochs=0"],
}
_ROWS = {
    "one solo generator": ("solo", ""),
    "two generators": ("pair", "teachers/"),
    "two generators without the 90-degree terms": ("no_90", ""),
    "student distilled from the two": ("pair", ""),
}
_SPLITS = ("val", "matched", "recombined")


def main() -> None:
    """Trains all of them and prints the table."""
    options = read_options(__doc__ or "", seeds=3)
    results = train_all("tipsy", _VARIANTS, options)
    rows = []
    means: dict[str, dict[str, float]] = {}
    for title, (variant, prefix) in _ROWS.items():
        runs = [results[variant, seed]["metrics"] for seed in range(options.seeds)]
        columns = {split: [run[f"{prefix}{split}/pa_mpjpe"] for run in runs] for split in _SPLITS}
        means[title] = {split: statistics.mean(values) for split, values in columns.items()}
        rows.append([title, *(f"{mean_and_spread(values)} (worst {max(values):.1f})" for values in columns.values())])
    print(table(["PA-MPJPE, mm", *_SPLITS], rows))
    solo, two, bare, student = means.values()
    for text, a, b in (
        ("two generators against solo", two, solo),
        ("without the 90-degree terms against with", bare, two),
        ("student against its teachers", student, two),
    ):
        print(f"\n{text}: " + ", ".join(f"{split} {100 * (a[split] / b[split] - 1):+.1f} %" for split in _SPLITS))


if __name__ == "__main__":
    main()
