"""What a decision costs: seconds for the next trial, by sampler and by how many trials have ended.

    python benchmarks/decisions.py [--trials 100,1000,5000] [--samplers multifidelity,tpe,random]

Trials of a task of several dimensions, stopped early by ASHA, are drawn at random into a study on disk. The study is
then opened anew with each sampler and asked ten times; one trial ends between two of them, as it does in a sweep.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.search_tasks import Task, make
from pharos.schedulers.base import Action
from pharos.schedulers.choice import SchedulerConfig, make_scheduler
from pharos.search.objective import Objective, Objectives
from pharos.search.samplers import SamplerConfig, make_sampler
from pharos.search.search import Search
from pharos.study import Study
from pharos.trial import Ending, Outcome, Report

_ASKED = 10


def open_search(folder: Path, task: Task, sampler: str) -> Search:
    """The search on the study in a folder."""
    objectives = Objectives([Objective("loss")])
    study = Study(
        folder,
        objectives,
        lambda known: make_sampler(
            SamplerConfig(sampler), task.space, {}, task.max_fidelity, objectives=objectives, seed=0, known=known
        ),
    )
    scheduler = make_scheduler(SchedulerConfig(), task.max_fidelity, task.space, {}, 0)
    return Search(study, task.space, {}, scheduler, trials=10**9, max_fidelity=lambda params: task.max_fidelity)


def train(search: Search, task: Task) -> float:
    """Runs one trial; the seconds that it took to be asked for."""
    began = time.perf_counter()
    record = search.next()
    took = time.perf_counter() - began
    assert record is not None
    for fidelity, loss in enumerate(task.curve(record.params, record.number), 1):
        metrics = {"loss": float(loss)}
        if search.on_report(record.number, Report(fidelity, metrics, 0.0)).action == Action.STOP:
            return took
    search.on_end(record.number, Ending(Outcome.COMPLETE, fidelity=task.max_fidelity, metrics=metrics))
    return took


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="100,1000,5000")
    parser.add_argument("--samplers", default="multifidelity,tpe,random")
    options = parser.parse_args()
    task = make("crossing-mild")
    print("| trials that ended | sampler | to open the study, s | a suggestion, ms: median | worst |")
    print("|--:|---|--:|--:|--:|")
    for count in map(int, options.trials.split(",")):
        with tempfile.TemporaryDirectory(prefix="pharos-") as folder:
            search = open_search(Path(folder), task, "random")
            while len(search.study.records) < count:
                train(search, task)
            search.study.close()
            for sampler in options.samplers.split(","):
                began = time.perf_counter()
                search = open_search(Path(folder), task, sampler)
                opened = time.perf_counter() - began
                # The first reads all trials; a driver that opened the study long ago has read them.
                took = [1000 * train(search, task) for _ in range(_ASKED + 1)][1:]
                search.study.close()
                print(
                    f"| {count} | {sampler} | {opened:.1f} | {statistics.median(took):.0f} | {max(took):.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
