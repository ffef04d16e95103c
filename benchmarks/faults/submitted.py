"""Shows a sweep on a cluster of three machines, as a user has it: submitted, stopped, submitted again with --resume.

    python -m benchmarks.faults.submitted        or: make cluster-sweep; about 2 minutes

The head holds no trial; two nodes of two cores do, some trials with two workers, over both nodes, others with one.
What lies in the S3 server, and who wrote it there, says what was where. The exit status is 1 if anything that
`cluster/README.md` says of `ray job submit` did not come true.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.faults.cluster import BUCKET, ENDED, Cluster, Job, Node
from pharos.storage import Storage

_URL = f"s3://{BUCKET}/sweeps"
_SETTINGS = (
    "scale=tiny",
    "trials=6",
    "recipe.epochs=40",
    "recipe.student_epochs=10",
    "scheduler=none",
    "tracking=none",
    "resources.shapes=[{when: {recipe.gan_loss: lsgan}, workers: 2, placement: spread}]",
)
_SECONDS = 180.0


def follow(job: Job, until: str = "", shown: int = 0) -> tuple[str, int]:
    """Prints what a job says, from a byte of it on, until it ends or says something; its status, and how far it was."""
    deadline = time.monotonic() + _SECONDS
    while True:
        status, log = job.status, job.log
        end = log.rfind("\n") + 1
        for line in log[shown:end].splitlines():
            print(f"    {line[:150]}", flush=True)
        shown = max(shown, end)
        is_said = until and re.search(until, log)
        if status in ENDED or is_said or time.monotonic() > deadline:
            return status, shown
        time.sleep(0.5)


def holders(cluster: Cluster, sweep: str) -> dict[str, dict[int, set[str]]]:
    """By trial and rank, the machines that wrote to the store what that worker of the trial has to say or to save."""
    found: dict[str, dict[int, set[str]]] = {}
    for request in cluster.store.requests:
        place = re.search(rf"/{sweep}/trials/(\d+)/(?:checkpoints/\d+/rank-(\d+)|log\.?(\d*)$)", request.path)
        if request.method == "PUT" and place:
            rank = int(place[2] or place[3] or 0)
            found.setdefault(place[1], {}).setdefault(rank, set()).add(cluster.name_of(request.client))
    return found


def outcomes(sweep: str) -> dict[str, int]:
    """How many trials ended how, by the sweep's summary."""
    found: dict[str, int] = Storage(f"{_URL}/{sweep}").read_json("summary.json")["trials"]
    return found


def received(node: Node) -> list[str]:
    """The packages of the submitted checkout that a node has got."""
    folder = node.folder / "ray/session_latest/runtime_resources/py_modules_files"
    return sorted(path.parent.name for path in folder.glob("*/*/__init__.py"))


def show(cluster: Cluster) -> Iterator[tuple[str, bool]]:
    """What came true, one by one."""
    first = cluster.submit("--family", "tipsy", f"storage.url={_URL}", *_SETTINGS)
    _, shown = follow(first, until=r"trial \d+ complete")
    print("ray job stop", flush=True)
    first.stop()
    status, _ = follow(first, shown=shown)
    sweep = first.sweep
    counts = outcomes(sweep)
    print(f"the job is {status}, its trials are {counts}", flush=True)
    yield "the job is STOPPED", status == "STOPPED"
    yield "running trials have saved, none is lost", counts.get("interrupted", 0) > 0 and not counts.get("failed", 0)
    yield "the log says how to go on", f"--resume {_URL}/{sweep}" in first.log
    second = cluster.submit("--resume", f"{_URL}/{sweep}")
    status, _ = follow(second)
    counts = outcomes(sweep)
    print(f"the job is {status}, its trials are {counts}", flush=True)
    yield "the resumed job has SUCCEEDED", status == "SUCCEEDED"
    yield "all trials are complete", counts == {"complete": 6}
    for node in cluster.workers:
        print(f"{node.name} has received {', '.join(received(node))}", flush=True)
        yield f"{node.name} has the submitted code", {"pharos", "trainables"} <= set(received(node))
    asked = [job.get("entrypoint_num_gpus") for job in cluster.ask("api/jobs/") if job["submission_id"] is not None]
    yield "the driver asked for no GPU", not any(asked)
    if cluster.why_no_links:
        return  # whose a request was cannot be told
    found = holders(cluster, sweep)
    for number, ranks in sorted(found.items()):
        print(f"trial {number}: {', '.join(f'worker {r} on {_all(ranks[r])}' for r in sorted(ranks))}", flush=True)
    names = {node.name for node in cluster.workers}
    sizes = {len(ranks) for ranks in found.values()}
    yield "trials of one worker and of two ran", sizes == {1, 2}
    yield "each node held some", {name for ranks in found.values() for each in ranks.values() for name in each} == names
    yield (
        "the two workers of a trial were on different nodes",
        all(ranks[0] | ranks[1] == names for ranks in found.values() if len(ranks) == 2),
    )


def _all(names: Sequence[str] | set[str]) -> str:
    return " and then ".join(sorted(names))


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.submitted",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    began = time.monotonic()
    with Cluster(say=lambda text: print(f"{time.monotonic() - began:.0f} s: {text}", flush=True)) as cluster:
        if cluster.why_no_links:
            print(f"no namespaces: {cluster.why_no_links}; all is on loopback", flush=True)
        os.environ.update(cluster.store.variables)  # to read what lies there
        results = list(show(cluster))
    print(f"{time.monotonic() - began:.0f} s in all")
    for text, is_true in results:
        print(f"{'yes' if is_true else 'NO '}  {text}")
    return 0 if all(is_true for _, is_true in results) else 1


if __name__ == "__main__":
    sys.exit(main())
