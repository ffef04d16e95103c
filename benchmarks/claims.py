"""What the tables of papers' claims have in common: training variants on several seeds, and how means are written."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

Results = dict[tuple[str, int], dict[str, Any]]
"""What `train.py --json` gives, by variant and seed."""


def read_options(
    description: str, seeds: int, variants: Sequence[str] = (), *, is_drawn: bool = False
) -> argparse.Namespace:
    """What is typed: `--seeds`, `--jobs`, `--json` and settings that are passed on.

    Args:
        description: Of the benchmark.
        seeds: How many by default.
        variants: If given, `--only` chooses some of them.
        is_drawn: Whether there is `--picture`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="how many; the claims are about means over them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument(
        "--json", metavar="FILE", help="also write every run's metrics there; go on with it if it exists"
    )
    if variants:
        parser.add_argument("--only", nargs="+", choices=variants, default=list(variants), help="which to train")
    if is_drawn:
        parser.add_argument("--picture", metavar="FILE", help="also draw the result there")
    parser.add_argument("settings", nargs="*", metavar="name=value")
    return parser.parse_intermixed_args()


def train_all(family: str, variants: Mapping[str, Sequence[str]], options: argparse.Namespace) -> Results:
    """Trains every variant on every seed, of the model and of the data alike; all variants of a seed first.

    Args:
        family: The family.
        variants: Settings of each; `{seed}` in them becomes the number of the seed.
        options: Of `read_options`. Runs that its file already holds are not trained again.
    """
    file = Path(options.json) if options.json else None
    kept: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    tasks = [(variant, seed) for seed in range(options.seeds) for variant in variants]

    def train(task: tuple[str, int]) -> dict[str, Any]:
        variant, seed = task
        key = f"{variant}/{seed}"
        if key not in kept:
            own = [setting.replace("{seed}", str(seed)) for setting in variants[variant]]
            kept[key] = train_one(family, [f"seed={seed}", f"data.seed={seed}", *own, *options.settings])
            print(f"{key}: {kept[key]['outcome']}, {kept[key]['seconds']:.0f} s", file=sys.stderr, flush=True)
            if file:
                file.write_text(json.dumps(dict(kept), indent=1))
        result: dict[str, Any] = kept[key]
        return result

    with ThreadPoolExecutor(options.jobs) as pool:
        return dict(zip(tasks, pool.map(train, tasks), strict=True))


def train_one(family: str, settings: Sequence[str], export: Path | None = None) -> dict[str, Any]:
    """One run of `platform/train.py`; its result as `--json` gives it.

    Args:
        family: The family.
        settings: Of the run.
        export: A new folder for the trained weights.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result: dict[str, Any] = json.loads(_train("--family", family, "--json", f"storage.url={scratch}", *settings))
        if export is not None:
            _train("--resume", result["run"], "--export", str(export), f"storage.url={scratch}")
    return result


def _train(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "platform/train.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        raise SystemExit(run.stderr.strip().split("\n")[-1])
    return run.stdout


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and sample standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean, by Student's t; it has no end for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return -float("inf"), float("inf")
    mean = statistics.mean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def paired(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The difference in points of two columns, paired by seed: mean, 95 % interval, and where it is positive."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = interval(differences)
    wins = f"{sum(d > 0 for d in differences)}/{len(differences)}"
    return f"{statistics.mean(differences):+.1f} [{low:+.1f}, {high:+.1f}], {wins}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
