"""How well search methods search, at equal budgets, on a simulated clock: one command, one table.

    python benchmarks/search.py [--methods a,b] [--tasks a,b] [--repeats 20] [--jobs 2] [--json FILE]
    python benchmarks/search.py --yahpo FOLDER [--instances dev|report] [--count N]    with the learning-curve surrogate
    python benchmarks/search.py --from FILE [--plot FILE.png]                          the table again, nothing is run

Tasks are in search_tasks.py, methods in search_methods.py, the clock in search_clock.py. A repeat has a seed of its
own for the method and for the task's noise. A method's budget is --full average trainings, of all workers together.
--json keeps one line a run, and runs that the file has are not done again: a method can be added to it, but one that
has changed needs a new file.

The table, a row a task and method, medians over the repeats:

    regret           at the end: the true loss of the best complete trial minus the task's best; and at 25 % and 50 %
    x stock's time   how long it takes to reach stock's regret: the median share of the budget (of those in the middle
                     the lower) after which the regret is first at most stock's median final one, over stock's own such
                     share; >x where half of the repeats never got there
    trials           complete ones of all
    ms               real milliseconds for a suggestion, reports not included
    random           worse (or better) than random: a one-sided Mann-Whitney test on the final regrets, p < 0.01

The rows `all` have the mean over the tasks of the method's rank by median regret, and the median over the tasks of
its ratio of times (- if it is infinite), with the number of tasks where the method never got there.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import search_tasks
from benchmarks.search_clock import simulate
from benchmarks.search_methods import METHODS, available

SLOW = ["syne-bore", "syne-cqr"]
"""Methods that take a minute and more for a run; only if they are named."""
DEFAULT_TASKS = ["mfh3", "mfh6", "mfh3-good", "mfh6-good", "crossing-mild", "crossing-strong", "branches"]
DEFAULT_TASKS += ["nb201-cifar10", "nb201-cifar100", "nb201-imagenet", "hpobench-segment", "hpobench-vehicle"]
DEFAULT_TASKS += ["hpolib-naval_propulsion", "hpolib-protein_structure"]
SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Job:
    """One run: a method on a task, with a seed."""

    task: str
    method: str
    repeat: int
    workers: int
    full: float
    count_decisions: bool


Record = dict[str, Any]
"""What `run` gives: the job, and what came of it."""


def run(job: Job, yahpo: Path | None) -> Record:
    """Does it, in this process."""
    logging.getLogger("syne_tune").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # the libraries' own, of their dependencies and of what is experimental
    # Ray Tune and Syne Tune draw from the generators of the process.
    random.seed(job.repeat)
    np.random.seed(job.repeat)
    task = _task(job.task, yahpo)
    began = time.perf_counter()
    method = METHODS[job.method](task, job.repeat)
    found = simulate(task, method, job.repeat, workers=job.workers, full=job.full, count_decisions=job.count_decisions)
    return {
        **asdict(job),
        "steps": found.steps,
        "trials": len(found.trials),
        "complete": found.count("complete"),
        "stopped": found.count("stopped"),
        "epochs": sum(len(trial.losses) for trial in found.trials.values()),
        "suggests": found.suggests,
        "suggest_seconds": found.suggest_seconds,
        "report_seconds": found.report_seconds,
        "seconds": time.perf_counter() - began,
    }


@functools.lru_cache(maxsize=2)
def _task(name: str, yahpo: Path | None) -> search_tasks.Task:
    return search_tasks.make(name, yahpo)


def run_all(jobs: Sequence[Job], yahpo: Path | None, processes: int, file: Path | None) -> list[Record]:
    """All of them in processes, with their progress on stderr, and each in the file once it is done."""
    records = []
    began = shown = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, job, yahpo) for job in jobs]
        for done, future in enumerate(as_completed(futures), 1):
            record = future.result()
            records.append(record)
            if file:
                with file.open("a") as lines:
                    lines.write(json.dumps(record) + "\n")
            now = time.monotonic()
            if now > shown + 10 or done == len(jobs):
                shown = now
                left = (now - began) / done * (len(jobs) - done)
                print(f"{done} of {len(jobs)} runs, about {left / 60:.1f} min left", file=sys.stderr)
    return records


def read(file: Path) -> list[Record]:
    """The runs in a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def regret(record: Record, share: float) -> float:
    """The incumbent's at a share of the budget."""
    return float([value for moment, value in record["steps"] if moment <= share][-1])


def reached(records: Iterable[Record], target: float) -> float:
    """The median share of the budget after which the regret was at most the target; infinite if never."""
    return statistics.median_low(
        next((float(moment) for moment, value in record["steps"] if value <= target), float("inf"))
        for record in records
    )


def beside_random(own: Sequence[Record], others: Sequence[Record]) -> str:
    """`worse` or `better` than random, or nothing."""
    from scipy.stats import mannwhitneyu

    ours, theirs = ([regret(record, 1.0) for record in records] for records in (own, others))
    for word, side in (("worse", "greater"), ("better", "less")):
        if theirs and mannwhitneyu(ours, theirs, alternative=side).pvalue < 0.01:
            return word
    return ""


def table(records: Sequence[Record]) -> str:
    """The table, in Markdown."""
    by: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: list(METHODS).index(record["method"])):
        by.setdefault(record["task"], {}).setdefault(record["method"], []).append(record)
    rows: list[list[str]] = []
    ratios: dict[str, list[float]] = {}
    ranks: dict[str, list[list[float]]] = {}
    suggest: dict[str, list[float]] = {}
    flags: dict[str, list[str]] = {}
    for task in sorted(by, key=_place):
        methods = by[task]
        medians = {
            name: [statistics.median(regret(record, share) for record in found) for share in SHARES]
            for name, found in methods.items()
        }
        target = medians["stock"][-1] if "stock" in medians else float("nan")
        stock = reached(methods["stock"], target) if "stock" in methods else float("nan")
        for name, found in methods.items():
            ratios.setdefault(name, []).append(reached(found, target) / stock)
            ranks.setdefault(name, []).append([_rank(name, medians, index) for index in range(len(SHARES))])
            suggest.setdefault(name, []).append(
                1000 * statistics.median(record["suggest_seconds"] / record["suggests"] for record in found)
            )
            flags.setdefault(name, []).append(beside_random(found, methods.get("random", [])))
            cells = [f"{value:.4g}" for value in (medians[name][-1], *medians[name][:-1])]
            trials = "/".join(
                f"{statistics.median(record[what] for record in found):.0f}" for what in ("complete", "trials")
            )
            time_cell = f"{ratios[name][-1]:.2f}" if ratios[name][-1] < float("inf") else f">{1 / stock:.2f}"
            rows.append([task, name, *cells, time_cell, trials, f"{suggest[name][-1]:.1f}", flags[name][-1]])
    for name, places in ranks.items():
        mean = [f"{statistics.fmean(row[index] for row in places):.1f}" for index in (-1, *range(len(SHARES) - 1))]
        middle = statistics.median(ratios[name])
        words = ", ".join(f"{word} {flags[name].count(word)}" for word in ("worse", "better") if word in flags[name])
        never = sum(ratio == float("inf") for ratio in ratios[name])
        time_cell = ("-" if middle == float("inf") else f"{middle:.2f}") + (f" ({never} never)" if never else "")
        rows.append(
            [
                "all",
                name,
                *(f"rank {place}" for place in mean),
                time_cell,
                "",
                f"{statistics.median(suggest[name]):.1f}",
                words,
            ]
        )
    head = ["task", "method", "regret", "at 25 %", "at 50 %", "x stock's time", "trials", "ms", "random"]
    lines = [head, ["---"] * 2 + ["---:"] * 6 + ["---"], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rank(name: str, medians: dict[str, list[float]], index: int) -> float:
    """From 1; equals share theirs."""
    own = medians[name][index]
    others = [values[index] for other, values in medians.items() if other != name]
    return 1 + sum(value < own for value in others) + sum(value == own for value in others) / 2


def _place(task: str) -> tuple[int, str]:
    """The order of the tasks: as in search_tasks.py, then by name."""
    known = search_tasks.FUNCTIONS + search_tasks.TABLES
    return (known.index(task) if task in known else len(known), task)


def plot(records: Sequence[Record], file: Path) -> None:
    """Median regret over the share of the budget, a small picture a task."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    tasks = sorted({record["task"] for record in records}, key=_place)
    methods = [name for name in METHODS if any(record["method"] == name for record in records)]
    across = min(4, len(tasks))
    down = -(-len(tasks) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(4 * across, 3 * down), squeeze=False)
    shares = np.linspace(0, 1, 101)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for number, name in enumerate(methods):
            found = [record for record in records if (record["task"], record["method"]) == (task, name)]
            if found:
                middle = [statistics.median(regret(record, share) for record in found) for share in shares]
                axis.plot(shares, middle, label=name, color=f"C{number}", drawstyle="steps-post")
        axis.set(title=task, yscale="log", xlim=(0, 1))
    for axis in list(axes.flat)[len(tasks) :]:
        axis.set_axis_off()
    axes.flat[0].legend(fontsize="small")
    figure.supxlabel("share of the budget")
    figure.supylabel("median regret")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def options_from(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help=f"of {', '.join(METHODS)}; all but {' and '.join(SLOW)} if not given")
    parser.add_argument("--tasks", help="names, with commas between; `none` for the surrogate alone")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first repeat, which is its seed")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--full", type=float, default=50, help="the budget in average full-length trainings")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--count-decisions", action="store_true", help="count real seconds of suggestions as simulated")
    parser.add_argument("--yahpo", type=Path, help="folder with the surrogate, lcbench/model.onnx")
    parser.add_argument("--instances", choices=["dev", "report"], default="dev", help="which half of the surrogate's")
    parser.add_argument("--count", type=int, help="only the first of these instances")
    parser.add_argument("--json", type=Path, help="a line a run is added to this file")
    parser.add_argument("--from", type=Path, dest="source", help="a file of --json: only the table is made")
    parser.add_argument("--plot", type=Path, help="a picture, with matplotlib")
    return parser.parse_args(arguments)


def jobs_from(options: argparse.Namespace) -> list[Job]:
    """What is to be run; all of a task one after another, so that a process keeps few of them in memory."""
    methods = options.methods.split(",") if options.methods else [name for name in available() if name not in SLOW]
    for name in methods:
        if name not in METHODS:
            raise SystemExit(f"no method {name}; there are {', '.join(METHODS)}")
    tasks = DEFAULT_TASKS if options.tasks is None else options.tasks.replace("none", "").split(",")
    tasks = [name for name in tasks if name]
    if options.yahpo and (options.tasks is None or "lcbench" not in options.tasks):
        instances = search_tasks.lcbench_instances(options.yahpo, options.instances)[: options.count]
        tasks = tasks + [f"lcbench-{instance}" for instance in instances]
    for name in tasks:
        try:
            search_tasks.check(name, options.yahpo)
        except ValueError as error:
            raise SystemExit(str(error)) from None
    return [
        Job(task, method, repeat, options.workers, options.full, options.count_decisions)
        for task in tasks
        for repeat in range(options.first, options.first + options.repeats)
        for method in methods
    ]


def main() -> None:
    """Runs, and prints the table."""
    options = options_from()
    if options.source:
        records = read(options.source)
    else:
        # A process that searches has one thread; those that are started inherit this.
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", RAY_AIR_NEW_OUTPUT="0")
        jobs = jobs_from(options)
        kept = read(options.json) if options.json and options.json.exists() else []
        fields = list(Job.__dataclass_fields__)
        known = {Job(**{field: record[field] for field in fields}): record for record in kept}
        records = [known[job] for job in jobs if job in known]
        records += run_all([job for job in jobs if job not in known], options.yahpo, options.jobs, options.json)
    print(table(records))
    if options.plot:
        plot(records, options.plot)


if __name__ == "__main__":
    main()
