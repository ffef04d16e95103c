"""How long a warm process idles between two trials: from one trial's end to the next one's first training step.

    python benchmarks/warm.py [SWEEP ...]     a sweep that exists; without one, a small one is run first

Per process and pair of consecutive trials, from the times in the study: count, median and worst gap in seconds. A
pruned trial ends when the driver says so.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

ROOT = Path(__file__).resolve().parents[1]


def gaps(journal: Path) -> list[float]:
    """Seconds between consecutive trials of the same process."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="sweep", storage=JournalStorage(JournalFileBackend(str(journal))))
    by_process: dict[int, list[tuple[float, float]]] = {}
    for trial in study.trials:
        times = trial.user_attrs
        if times.get("process"):
            by_process.setdefault(times["process"], []).append((times["started_at"], times["ended_at"]))
    return [
        later[0] - earlier[1]
        for trials in by_process.values()
        for earlier, later in zip(sorted(trials), sorted(trials)[1:], strict=False)
    ]


def main() -> None:
    """Prints one line a sweep."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        if not folders:
            command = [sys.executable, str(ROOT / "platform/sweep.py"), "--family", "tipsy", "scale=tiny", "trials=30"]
            subprocess.run([*command, f"storage.url={scratch}"], check=True, stdout=subprocess.DEVNULL)
            folders = [path for path in Path(scratch).iterdir() if path.is_dir()]
        print(f"{'sweep':<28}{'pairs':>7}{'median s':>10}{'worst s':>10}")
        for folder in folders:
            found = gaps(folder / "study.journal")
            print(f"{folder.name:<28}{len(found):>7}{statistics.median(found):>10.3f}{max(found):>10.3f}")


if __name__ == "__main__":
    main()
