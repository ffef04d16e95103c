"""The paper's claims about TIPSy-GAN, measured: the table in `trainables/tipsy/README.md`.

    python benchmarks/tipsy_claims.py [--seeds 3] [--jobs 2] [--json FILE] [name=value ...]

Trains, for each seed (of the model and of the built-in data alike):
    pair       two generators and the student distilled from them
    solo       one generator of near-equal size, with the adversarial weight of the authors' solo code
    no_90      two generators without the 90-degree terms
each by `platform/train.py` itself. Settings are passed on, such as `recipe.optim.lr=1e-3`. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

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


def train(variant: str, seed: int, settings: list[str], scratch: str) -> dict[str, Any]:
    """One run; its result as `train.py --json` gives it."""
    command = [sys.executable, str(ROOT / "platform/train.py"), "--family", "tipsy", "--json", f"storage.url={scratch}"]
    command += [f"seed={seed}", f"data.seed={seed}", *_VARIANTS[variant], *settings]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        raise SystemExit(run.stderr.strip().split("\n")[-1])
    result: dict[str, Any] = json.loads(run.stdout)
    print(f"{variant} seed {seed}: {result['outcome']}, {result['seconds']:.0f} s", file=sys.stderr)
    return result


def cell(values: list[float]) -> str:
    """Mean, sample standard deviation, and the worst."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} (worst {max(values):.1f})"


def main() -> None:
    """Trains all of them and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many; the paper's claims are about means over them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--json", metavar="FILE", help="also write every run's metrics there")
    parser.add_argument("settings", nargs="*", metavar="name=value")
    options = parser.parse_intermixed_args()
    tasks = [(variant, seed) for seed in range(options.seeds) for variant in _VARIANTS]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda task: train(task[0], task[1], options.settings, scratch), tasks))
    results = dict(zip(tasks, found, strict=True))
    if options.json:
        Path(options.json).write_text(json.dumps({f"{v}/{s}": r for (v, s), r in results.items()}, indent=1))

    print("| PA-MPJPE, mm | " + " | ".join(_SPLITS) + " |\n" + "|---" * (len(_SPLITS) + 1) + "|")
    means: dict[str, dict[str, float]] = {}
    for title, (variant, prefix) in _ROWS.items():
        runs = [results[variant, seed]["metrics"] for seed in range(options.seeds)]
        columns = {split: [run[f"{prefix}{split}/pa_mpjpe"] for run in runs] for split in _SPLITS}
        means[title] = {split: statistics.mean(values) for split, values in columns.items()}
        print(f"| {title} | " + " | ".join(cell(values) for values in columns.values()) + " |")
    solo, two, bare, student = means.values()
    for text, a, b in (
        ("two generators against solo", two, solo),
        ("without the 90-degree terms against with", bare, two),
        ("student against its teachers", student, two),
    ):
        print(f"\n{text}: " + ", ".join(f"{split} {100 * (a[split] / b[split] - 1):+.1f} %" for split in _SPLITS))


if __name__ == "__main__":
    main()
