"""The claims about Weight Fixing Networks, measured: the tables in `trainables/wfn/README.md`.

    python benchmarks/wfn_claims.py [--data digits glyph32] [--seeds 3] [--jobs 2] [--json FILE] [--only NAME …]

For each data set and seed one float network is trained; WFN at several delta, its ablations, and the untrained ways to
as many distinct values all start from it. Accuracies are of the test split. Prints Markdown with 95 % intervals by
Student's t, differences paired by seed.
"""

from __future__ import annotations

from benchmarks.quantisation_claims import Table, Variant, measure, read_options

_OWN = {"glyph32": ["recipe.epochs_per_round=1", "recipe.optim.lr=2e-4"]}


def _wfn(*settings: str, equals: str = "") -> Variant:
    return Variant("wfn", {data: [*_OWN.get(data, []), *settings] for data in ("digits", "glyph32")}, equals)


VARIANTS = {
    **{f"delta = {delta}": _wfn(f"recipe.delta={delta}") for delta in (0.0025, 0.005, 0.01, 0.015, 0.02)},
    "delta = 0.01, no regulariser": _wfn("recipe.delta=0.01", "recipe.alpha=0"),
    "delta = 0.01, powers of two alone": _wfn("recipe.delta=0.01", "recipe.max_order=0"),
    "delta = 0.01, batch norm left alone": _wfn("recipe.delta=0.01", "recipe.include_bn=false"),
    "euclidean distance, delta = 0.002": _wfn("recipe.delta=0.002", "recipe.distance=euclidean"),
    "as many as 0.01": _wfn(equals="delta = 0.01"),
    "as many as 0.015": _wfn(equals="delta = 0.015"),
    "as many as 0.02": _wfn(equals="delta = 0.02"),
}


def main() -> None:
    """Measures everything and prints the tables."""
    options = read_options(__doc__ or "", VARIANTS)
    results = measure(VARIANTS, options)
    for data in options.data:
        found = Table(results, data, options.seeds)
        print(f"## {data}\n\n{found.trained([name for name in options.only if not VARIANTS[name].equals])}\n")
        for name in options.only:
            if VARIANTS[name].equals:
                print(f"{found.untrained(name, VARIANTS[name].equals)}\n")


if __name__ == "__main__":
    main()
