"""Seconds a trial that are not training: Pharos, stock Ray Tune + Ray Train + DeepSpeed, and a bare PyTorch loop.

    python benchmarks/overhead.py [--only pharos] [--workers 1] [--json FILE] [name=value ...]

All rows make the same steps of the same model, `tipsy` with two generators and without a student, on the built-in
data; trials run one at a time, on one thread a worker, and differ in the learning rate alone. Prints one Markdown
table:

    not training    wall time from the end of a trial's last epoch to the first training step of the next: checkpoint,
                    teardown, scheduling, start-up, data, building the model; median over consecutive trials
    of Pharos       against Pharos with as many workers and the same engine: `torch` for one worker; for two, ZeRO-1
    first trial     from the launch of the command, imports included, to the first step of its first trial
    ms a step       from the end of one epoch to that of the next, over its steps; median over all epochs but each
                    trial's first. An epoch's evaluation is its part
    of bare         against the bare loop, which has one worker

The bare loop runs before and after Pharos, and both count, because a machine's speed drifts. `benchmarks/stock.py`
says what the rows without Pharos do. Further settings (`recipe.` and `data.` alone) hold for all rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pharos.config import make_plan
from pharos.errors import InputError
from trainables.common.pose.data import open_poses

ROOT = Path(__file__).resolve().parents[1]

_DEADLINE = 3600.0  # of one row, seconds; stock trials that do not fit the machine would wait for ever

# Steps of some tens of milliseconds, 32 an epoch, beside which an evaluation is short. All dimensions of the search
# but one are fixed: some values cost more than others.
_SETTINGS = [
    "scale=tiny",
    "recipe.width=128",
    "recipe.critic_width=128",
    "recipe.batch_size=256",
    "recipe.epochs=4",
    "recipe.student_epochs=0",
    "data.train_subjects=17",
    "data.train_sequences=2",
    "data.train_frames=40",
    "recipe.optim.lr=tag(log, interval(1e-4, 4e-4))",
    "recipe.optim.schedule=constant",
    "recipe.critic_optim.lr=2e-4",
    "recipe.w_adv=1",
    "recipe.w_2d=10",
    "recipe.w_90=3",
    "recipe.label_flip=0.1",
    "recipe.flip=naive",
    "recipe.gan_loss=bce_smooth",
    "recipe.smooth=0.2",
]

# For the estimates, by kind and workers: about how many seconds the first trial takes to start, and each next one.
_SECONDS = {
    ("bare", 1): (3.0, 0.02),
    ("pharos", 1): (15.0, 0.1),
    ("pharos", 2): (30.0, 0.5),
    ("stock", 1): (30.0, 22.0),
    ("stock", 2): (40.0, 30.0),
}


@dataclass(frozen=True)
class Trial:
    """Wall-clock times of one trial: its first training step, and the end of each epoch."""

    started_at: float
    reports: list[float]


@dataclass
class Row:
    """One row of the table, and what was measured for it.

    Attributes:
        kind: bare, pharos or stock.
        title: In the table.
        workers: Of each trial.
        settings: Pharos: settings of this row alone.
        trials: How many were measured.
        not_training: Seconds from each trial to the next.
        first_trial: Seconds from the launch of each command to its first step.
        epochs: Seconds of each epoch but the trials' first ones.
        error: Why it failed.
    """

    kind: str
    title: str
    workers: int
    settings: list[str] = field(default_factory=list)
    trials: int = 0
    not_training: list[float] = field(default_factory=list)
    first_trial: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    error: str = ""

    def add(self, launched_at: float, trials: list[Trial]) -> None:
        """Takes up what one command ran."""
        trials = sorted(trials, key=lambda trial: trial.started_at)
        self.trials += len(trials)
        self.first_trial.append(trials[0].started_at - launched_at)
        for trial, following in itertools.pairwise(trials):
            self.not_training.append(following.started_at - trial.reports[-1])
        for trial in trials:
            self.epochs += [end - begin for begin, end in itertools.pairwise(trial.reports)]


def all_rows() -> list[Row]:
    """The table's rows, in its order."""
    zero = ["resources.workers=2", "engine=deepspeed", "engine.zero=1"]
    stock = "stock Tune + Train + DeepSpeed, ZeRO-1"
    return [
        Row("bare", "bare PyTorch loop", 1),
        Row("pharos", "Pharos, engine=torch", 1),
        Row("stock", stock, 1),
        Row("pharos", "Pharos, engine=torch", 2, ["resources.workers=2", "engine=torch"]),
        Row("pharos", "Pharos, engine=deepspeed, ZeRO-1", 2, zero),
        Row("stock", stock, 2),
    ]


def call(command: list[str]) -> float:
    """Runs a command in silence; returns when it was launched.

    Raises:
        RuntimeError: It failed, or took too long; with the last lines of what it said.
    """
    # A Ray of its own, whatever runs on this machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    launched_at = time.time()
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {_DEADLINE:.0f} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise RuntimeError(f"status {done.returncode}: {' / '.join(lines[-3:])}")
    return launched_at


def run_without_pharos(row: Row, config: dict[str, Any], trials: int, scratch: Path) -> None:
    """Measures the bare loop or stock Ray."""
    times = scratch / "times.jsonl"
    job = {"config": config, "trials": trials, "workers": row.workers, "folder": str(scratch), "times": str(times)}
    path = scratch / "job.json"
    path.write_text(json.dumps(job))
    kind = "ray" if row.kind == "stock" else row.kind
    launched_at = call([str(ROOT / "benchmarks/stock.py"), kind, str(path)])
    row.add(launched_at, [Trial(**json.loads(line)) for line in times.read_text().splitlines()])


def run_pharos(row: Row, settings: list[str], trials: int, scratch: Path) -> None:
    """Measures a sweep, from what it leaves behind.

    Raises:
        RuntimeError: A trial did not complete.
    """
    fixed = ["scheduler=none", "sampler=random", "tracking=none", "resources.concurrency=1"]
    command = [str(ROOT / "platform/sweep.py"), "--family", "tipsy", *settings, *fixed, *row.settings]
    launched_at = call([*command, f"trials={trials}", f"storage.url={scratch}"])
    journal = next(scratch.glob("*/study.journal"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="sweep", storage=JournalStorage(JournalFileBackend(str(journal))))
    found = []
    for trial in study.trials:
        attributes = trial.user_attrs
        if attributes.get("outcome") != "complete":
            raise RuntimeError(f"trial {trial.number}: {attributes.get('outcome')}: {attributes.get('reason')}")
        lines = (journal.parent / f"trials/{trial.number:05d}/metrics.jsonl").read_text().splitlines()
        # Reports are timed from the trial's beginning, as is its end.
        began_at = attributes["ended_at"] - attributes["seconds"]
        found.append(Trial(attributes["started_at"], [began_at + json.loads(line)["seconds"] for line in lines]))
    row.add(launched_at, found)


def median(values: list[float], factor: float = 1.0) -> float | None:
    """The median, times a factor; None of nothing."""
    return statistics.median(values) * factor if values else None


def ratio(value: float | None, base: float | None) -> str:
    """One value against another, for the table."""
    return "" if value is None or not base else f"{value / base:.3g}"


def number(value: float | None, decimals: int) -> str:
    """A value for the table."""
    return "" if value is None else f"{value:.{decimals}f}"


def table(rows: list[Row], steps: int) -> str:
    """The Markdown table; a row that failed has no figures."""
    pharos = {row.workers: median(row.not_training) for row in rows if row.kind == "pharos"}  # for two, ZeRO-1 is last
    bare = next((median(row.epochs) for row in rows if row.kind == "bare"), None)
    header = ["", "workers", "trials", "not training, s a trial", "of Pharos", "first trial, s", "ms a step", "of bare"]
    lines = [header, ["---", *["--:"] * (len(header) - 1)]]
    for row in rows:
        idle, epoch = median(row.not_training), median(row.epochs)
        lines.append(
            [
                row.title,
                str(row.workers),
                "failed" if row.error else str(row.trials),
                number(idle, 2),
                ratio(idle, pharos.get(row.workers)),
                number(median(row.first_trial), 1),
                number(median(row.epochs, 1000 / steps), 1),
                ratio(epoch, bare),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    """Runs the rows that were asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, default=12, help="of Pharos, and of each of the two runs of the bare loop"
    )
    parser.add_argument("--stock-trials", type=int, default=3, help="of stock Ray, for each number of workers")
    parser.add_argument("--only", choices=("pharos", "stock", "bare"), action="append", help="may be repeated")
    parser.add_argument("--workers", type=int, choices=(1, 2), help="only rows with so many")
    parser.add_argument("--json", metavar="FILE", help="also write everything that was measured there")
    parser.add_argument("settings", nargs="*", metavar="name=value")
    options = parser.parse_intermixed_args()
    if min(options.trials, options.stock_trials) < 2:
        parser.error("time between trials needs at least two of them")

    settings = [*_SETTINGS, *options.settings]
    try:
        plan = make_plan("tipsy", [*settings, "tracking=none"])
    except InputError as error:
        parser.error(str(error))
    config = plan.build_config()
    steps = len(open_poses(config.data).train) // config.batch_size
    if steps < 1 or config.generators != "pair" or config.student_epochs or config.critic_steps != 1:
        parser.error("the rows without Pharos have whole batches, two generators, one critic step and no student")

    rows = [
        row
        for row in all_rows()
        if row.kind in (options.only or row.kind) and row.workers == (options.workers or row.workers)
    ]
    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in ("bare", "pharos", "stock")}
    for row in by_kind["bare"] + by_kind["pharos"] + by_kind["bare"] + by_kind["stock"]:
        if row.error:
            continue
        trials = options.stock_trials if row.kind == "stock" else options.trials
        first, following = _SECONDS[row.kind, row.workers]
        minutes = (first + trials * (following + 0.05 * steps * config.epochs)) / 60
        name = f"{row.title}, {row.workers} worker{'s' * (row.workers > 1)}"
        print(f"{name}: {trials} trials, about {minutes:.1f} min", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                if row.kind == "pharos":
                    run_pharos(row, settings, trials, Path(scratch))
                else:
                    run_without_pharos(row, plan.trial_config({}), trials, Path(scratch))
            except Exception as error:
                # One row that fails takes no other with it.
                row.error = str(error) or type(error).__name__
                print(f"{name}: failed: {row.error}", file=sys.stderr)
    if options.json:
        found = {"steps_per_epoch": steps, "settings": settings, "rows": [vars(row) for row in rows]}
        Path(options.json).write_text(json.dumps(found, indent=1))
    print(table(rows, steps))


if __name__ == "__main__":
    main()
