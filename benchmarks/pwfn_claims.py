"""The claims about probabilistic weight fixing, measured: the tables in `trainables/pwfn/README.md`.

    python benchmarks/pwfn_claims.py [--data digits glyph32] [--seeds 3] [--jobs 2] [--json FILE] [--only NAME …]

For each data set and seed (of model and data alike) one float network is trained; all else starts from its weights:
PWFN and its ablations, WFN (batch normalisation left alone, so that both quantise the same weights), and the untrained
ways to as many distinct values. Accuracies are of the test split. Prints Markdown, with 95 % intervals by Student's t
of differences that are paired by seed:

    lossless       at how many distinct values and bits the float network's accuracy is kept
    equal counts   the untrained ways, at PWFN's numbers of distinct values
    position       learned sigmas as the measure, against their layers' means, permuted ones, and one for all
    noise          accuracy under noise on all weights, against training without a Bayesian network
"""

from __future__ import annotations

from benchmarks.claims import mean_and_spread, table
from benchmarks.quantisation_claims import Table, Variant, measure, read_options

_OWN = {
    "pwfn": {"glyph32": ["recipe.baseline_epochs=2", "recipe.rest_epochs=1", "recipe.optim.lr=0.02"]},
    "wfn": {"glyph32": ["recipe.epochs_per_round=1", "recipe.optim.lr=2e-4"]},
}


def _variant(family: str, *settings: str, equals: str = "") -> Variant:
    return Variant(family, {data: [*_OWN[family].get(data, []), *settings] for data in ("digits", "glyph32")}, equals)


VARIANTS = {
    "pwfn": _variant("pwfn"),
    "pwfn, b = 5": _variant("pwfn", "recipe.b=5"),
    "pwfn, b = 4": _variant("pwfn", "recipe.b=4"),
    "pwfn, layer mean": _variant("pwfn", "recipe.sigma_mode=layer_mean"),
    "pwfn, permuted": _variant("pwfn", "recipe.sigma_mode=permuted"),
    "pwfn, const": _variant("pwfn", "recipe.sigma_mode=const"),
    "no bnn": _variant("pwfn", "recipe.train_mode=no_bnn"),
    "wfn, delta = 0.005": _variant("wfn", "recipe.include_bn=false", "recipe.delta=0.005"),
    "wfn, delta = 0.01": _variant("wfn", "recipe.include_bn=false", "recipe.delta=0.01"),
    "wfn, delta = 0.015": _variant("wfn", "recipe.include_bn=false", "recipe.delta=0.015"),
    "as many as pwfn": _variant("pwfn", equals="pwfn"),
    "as many as pwfn, b = 4": _variant("pwfn", "recipe.b=4", equals="pwfn, b = 4"),
}
_POSITION = {"pwfn": "learned", "pwfn, layer mean": "layer mean", "pwfn, permuted": "permuted", "pwfn, const": "const"}


class _Table(Table):
    """With what only PWFN has."""

    def position(self) -> str:
        head = ["sigmas that measure", "distinct values", "bits a weight", "val, %", "test, %", "test, to learned"]
        rows = []
        for name, title in _POSITION.items():
            found = self.column(name, "test/accuracy")
            against = "" if name == "pwfn" else self.against(found, self.column("pwfn", "test/accuracy"))
            columns = [("unique", 0), ("entropy", 2), ("val/accuracy", 2), ("test/accuracy", 2)]
            rows.append([title, *(mean_and_spread(self.column(name, key), digits) for key, digits in columns), against])
        return table(head, rows)

    def noise(self) -> str:
        curve = [key for key in self._results[self._data, 0, "pwfn"] if key.startswith("val/noise/")]
        scores = ["val/ece", "val/nll", "val/brier"]
        head = ["val, % under noise", *(key.removeprefix("val/noise/") for key in curve), "ECE", "NLL", "Brier"]
        rows = [
            [
                name,
                *(mean_and_spread(self.column(name, key)) for key in curve),
                *(mean_and_spread(self.column(name, key), 3) for key in scores),
            ]
            for name in ("pwfn", "no bnn")
        ]
        return table(head, rows)


def main() -> None:
    """Measures everything and prints the tables."""
    options = read_options(__doc__ or "", VARIANTS)
    results = measure(VARIANTS, options)
    for data in options.data:
        found = _Table(results, data, options.seeds)
        parts = [f"## {data}", found.trained([name for name in options.only if not VARIANTS[name].equals])]
        parts += [found.untrained(name, VARIANTS[name].equals) for name in options.only if VARIANTS[name].equals]
        if set(_POSITION) <= set(options.only):
            parts.append(found.position())
        if {"pwfn", "no bnn"} <= set(options.only):
            parts.append(found.noise())
        print("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
