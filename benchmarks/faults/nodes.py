"""The faults of a cluster: nodes that are lost or cut off, a head or a driver that dies, a store that nobody reaches.

One cluster (`benchmarks.faults.cluster`) serves case after case; sweeps come to it by `ray job submit`. Its two workers
have two cores each: room for two trials of one worker, and for one of two, a gang that is spread over both nodes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from benchmarks.faults.cluster import BUCKET, FAST, Cluster, Job, Node, why_no_links
from benchmarks.faults.fault import SWEEP, Driver, Fault, MissedError, Moment, Scene, SceneMaker
from benchmarks.faults.witness import INSIDE

# A node that is lost must not cost a retry.
ON_NODES = (*SWEEP, "backend=tune", "retries=0", "trials=2", "recipe.optim.lr=choice(1e-4, 2e-4)")
MIXED = (
    *SWEEP,
    "backend=tune",
    "retries=0",
    "resources.shapes=[{when: {recipe.optim.lr: 4e-4}, workers: 2, placement: spread}]",
)
_RAYLET = r"/raylet\b"
_LOOK_SECONDS = 0.5  # from one question to Ray's dashboard to the next

_ALONE, _GANG = 0, 1  # trials of MIXED, of one worker and of two; all of ON_NODES have one
# Where a trial is caught, by moment.
_MOMENTS: dict[str, dict[str, Any]] = {
    "as it starts": {"point": "begins"},
    "in mid-epoch": {"point": "step", "epoch": 6, "step": 2},
    "as it saves a checkpoint": {"point": "saves"},
    "between its last report and its record": {"point": "ends"},
}


class _JobProcess:
    """A job of Ray's in the place of a driver's process: whether it has ended, and how."""

    def __init__(self, job: Job):
        self.job = job
        self.returncode: int | None = None
        self._looked_at = 0.0

    def poll(self) -> int | None:
        """The exit status of the job's driver; None while it runs."""
        if self.returncode is None and time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self.returncode = self.job.exit_status
            self._looked_at = time.monotonic()
        return self.returncode


@dataclass
class ClusterScene(Scene):
    """A sweep that is submitted to a cluster and stored in its S3 server."""

    cluster: Cluster = dataclasses.field(default_factory=Cluster)

    def __post_init__(self) -> None:
        self.url = f"s3://{BUCKET}/{self.home.name}"
        super().__post_init__()
        self.jobs: list[Job] = []

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Puts the cluster in order again: nobody's job runs, and two workers are there for the next case."""
        try:
            yield
        finally:
            for job in self.jobs:
                job.end()
            self.cluster.put_in_order()

    def start(self, *settings: str, resume: bool = False) -> Driver:
        """Submits a new sweep of tipsy with these settings, or the present one once more; see `Scene.start`."""
        count = len(self.drivers)
        what = ["--resume", f"{self.url}/{self.name}"] if resume else ["--family", "tipsy", f"storage.url={self.url}"]
        variables = {"PYTHONPATH": str(INSIDE), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **self.witness.environment}
        job = self.cluster.submit(*what, *settings, variables=variables)
        log, output = self.home / f"driver-{count}.log", self.home / f"driver-{count}.out"
        output.touch()
        while not job.log_file.exists():
            self.check()
            time.sleep(0.1)
        os.link(job.log_file, log)  # what was said stays when its head is gone
        # Of a driver's process only those two are asked for that a job's can answer.
        self.drivers.append(Driver(cast("subprocess.Popen[bytes]", _JobProcess(job)), log, output))
        self.jobs.append(job)
        return self.drivers[-1]

    def catch(
        self, moment: str | None, trial: int = _ALONE, rank: int = 0, sweep: Sequence[str] = ON_NODES
    ) -> Node | None:
        """Starts a sweep, and waits until a worker of a trial is held at a moment; its node. None: no moment."""
        trap = self.witness.set_trap(**_MOMENTS[moment], trial=trial, rank=rank) if moment else ""
        self.start(*sweep)
        return self.cluster.node_of(self.caught(trap).pid) if moment else None

    def let_go(self) -> None:
        """Lets whoever is held go on."""
        for line in self.witness.lines():
            if line.trap:
                self.witness.release(line.trap)

    def hears(self, text: str) -> None:
        """Waits until the driver has said something.

        Raises:
            MissedError: The driver ended first.
            HungError: It is not said in time.
        """
        self.until(lambda: text in self.drivers[-1].said or None)


@contextlib.contextmanager
def on_a_cluster(system: Mapping[str, int] = FAST) -> Iterator[SceneMaker]:
    """Where the cases are played, all on one cluster."""
    before = dict(os.environ)
    with Cluster(system=system) as cluster:
        os.environ.update(cluster.store.variables)  # for the verdict, which reads what is stored there
        try:
            yield lambda home, seconds: ClusterScene(home, seconds, cluster=cluster)
        finally:
            os.environ.clear()
            os.environ.update(before)


def lose_node(scene: Scene, moment: str | None, *, trial: int = _ALONE, rank: int = 0) -> None:
    """Kills the raylet of the node that holds a worker of a trial; another node joins."""
    assert isinstance(scene, ClusterScene)
    node = scene.catch(moment, trial, rank, MIXED)
    if node is not None:
        node.kill(_RAYLET)
        scene.struck(f"kill -9 of the raylet of {node.name}")
        scene.cluster.replace(node)
    scene.finish()


def lose_head(scene: Scene, moment: str | None) -> None:
    """Kills the head's processes; a new head and new workers come, while the old workers are still there."""
    assert isinstance(scene, ClusterScene)
    if scene.catch(moment) is not None:
        cluster = scene.cluster
        cluster.head.kill(rf"gcs_server|{_RAYLET}")
        scene.struck("kill -9 of the head's gcs_server and raylet")
        scene.let_go()
        cluster.workers.clear()
        cluster.start_head()
        cluster.add_workers(2)
        scene.start(resume=True)
    scene.finish()


def kill_driver(scene: Scene, moment: str | None) -> None:
    """Kills the driver, and resumes the sweep."""
    assert isinstance(scene, ClusterScene)
    if scene.catch(moment) is not None:
        (driver,) = scene.jobs[-1].driver
        scene.kill(driver, "the driver")
        while scene.drivers[-1].process.poll() is None:
            scene.check()
            time.sleep(0.1)
        scene.start(resume=True)
    scene.finish()


def cut_for(scene: Scene, moment: str | None, *, seconds: float) -> None:
    """Cuts a node off for so long, which is shorter than it takes to be given up."""
    assert isinstance(scene, ClusterScene)
    node = scene.catch(moment)
    if node is not None:
        node.cut()
        scene.struck(f"{node.name} is cut off")
        scene.let_go()
        time.sleep(seconds)
        node.mend()
        scene.struck(f"{node.name} is back")
    scene.finish()
    if node is not None and "lost its node" in scene.drivers[-1].said:
        raise MissedError(f"{node.name} was given up within {seconds:g} s")


def make_zombie(scene: Scene, moment: str | None) -> None:
    """Cuts a node off until it is given up; it comes back while its trials go on elsewhere."""
    _cut_till_given_up(scene, moment, wait_for_end=False)


def make_late_zombie(scene: Scene, moment: str | None) -> None:
    """Cuts a node off until it is given up; it comes back when all is over elsewhere."""
    _cut_till_given_up(scene, moment, wait_for_end=True)


def _cut_till_given_up(scene: Scene, moment: str | None, *, wait_for_end: bool) -> None:
    assert isinstance(scene, ClusterScene)
    node = scene.catch(moment)
    if node is not None:
        node.cut()
        scene.struck(f"{node.name} is cut off")
        scene.let_go()
        scene.hears("lost its node")
        scene.cluster.replace(node)
        if not wait_for_end:
            node.mend()
            scene.struck(f"{node.name} is back")
    scene.finish()
    if node is not None:
        if wait_for_end:
            node.mend()
            scene.struck(f"{node.name} is back")
        time.sleep(_ZOMBIE_SECONDS)


def make_writing_zombie(scene: Scene, moment: str | None) -> None:
    """Cuts a node off from all nodes, but not from the store, until it is given up and its trials ended elsewhere."""
    assert isinstance(scene, ClusterScene)
    node = scene.catch(moment)
    if node is not None:
        others = scene.cluster.nodes_but(node)
        node.cut(*others)
        scene.struck(f"{node.name} is cut off from all but the store")
        scene.hears("lost its node")
        scene.let_go()  # it goes on when another process may have begun to
        scene.cluster.replace(node)
    scene.finish()
    if node is not None:
        time.sleep(_ZOMBIE_SECONDS)


def freeze_node(scene: Scene, moment: str | None) -> None:
    """Freezes a node until it is given up and all is over elsewhere; then it goes on, and reaches the store alone."""
    assert isinstance(scene, ClusterScene)
    node = scene.catch(moment)
    if node is not None:
        node.freeze()
        scene.struck(f"{node.name} stands still")
        scene.let_go()
        scene.hears("lost its node")
        others = scene.cluster.nodes_but(node)
        scene.cluster.replace(node)
    scene.finish()
    if node is not None:
        node.cut(*others)  # else its raylet learns at once that it was given up, and ends what it has
        node.thaw()
        scene.struck(f"{node.name} goes on")
        time.sleep(_ZOMBIE_SECONDS)


_ZOMBIE_SECONDS = 15.0  # more than `storage.mirror_seconds`: what it still writes has come


def cut_store(scene: Scene, moment: str | None) -> None:
    """Cuts the store off from all for 20 seconds."""
    assert isinstance(scene, ClusterScene)
    if scene.catch(moment) is not None:
        scene.cluster.store.cut()
        scene.struck("nobody reaches the store")
        scene.let_go()
        time.sleep(20)
        scene.cluster.store.mend()
        scene.struck("the store is back")
    scene.finish()


def _moments(*names: str, **options: Any) -> tuple[Moment, ...]:
    return tuple(Moment(name, **options) for name in names or _MOMENTS)


_START, _MID, _SAVE, _END = _MOMENTS
_LOST = "lost its node"

_on_a_slow_cluster = functools.partial(on_a_cluster, {})


def _fault(
    name: str, title: str, act: Callable[[Scene, str | None], None], moments: tuple[Moment, ...], **options: Any
) -> Fault:
    defaults: dict[str, Any] = {"sweep": "nodes", "seconds": 90.0, "place": on_a_cluster, "needs": why_no_links}
    return Fault(name, title, act=act, moments=moments, **{**defaults, **options})


def _nothing() -> str:
    """What those faults need that can be had without links."""
    return ""


FAULTS = [
    _fault(
        "node-lost",
        "`kill -9` of the raylet of a trial's node",
        lose_node,
        _moments(says=_LOST),
        sweep="mixed",
        needs=_nothing,
    ),
    _fault(
        "gang-node-lost",
        "`kill -9` of the raylet of a node of a gang",
        functools.partial(lose_node, trial=_GANG, rank=1),
        _moments(_MID, _SAVE, says=_LOST),
        sweep="mixed",
        needs=_nothing,
    ),
    _fault("head-lost", "`kill -9` of the head", lose_head, _moments(_MID, _SAVE), needs=_nothing),
    _fault("cluster-driver", "`kill -9` of the driver of a job", kill_driver, _moments(), needs=_nothing),
    _fault(
        "blink",
        "a node cut off for 1 s, which nobody notices",
        functools.partial(cut_for, seconds=1.0),
        _moments(_MID, _SAVE),
    ),
    _fault("zombie", "a node cut off, given up, and back", make_zombie, _moments(_MID, _END, says=_LOST)),
    _fault("late-zombie", "a node cut off, and back after the sweep's end", make_late_zombie, _moments(_SAVE)),
    _fault(
        "writing-zombie",
        "a node cut off from all nodes, but not from the store",
        make_writing_zombie,
        _moments(_SAVE, says=_LOST),
    ),
    _fault(
        "frozen",
        "a node that stands still, and goes on after the sweep's end",
        freeze_node,
        _moments(_MID, _SAVE, says=_LOST),
    ),
    _fault("store-lost", "the store out of reach for 20 s", cut_store, _moments(_START, _MID, _SAVE)),
    _fault(
        "blink-slow",
        "a node cut off for 5 s, with Ray's own patience",
        functools.partial(cut_for, seconds=5.0),
        _moments(_MID),
        place=_on_a_slow_cluster,
    ),
    _fault(
        "node-lost-slow",
        "`kill -9` of a raylet, with Ray's own patience",
        lose_node,
        _moments(_MID, says=_LOST),
        sweep="mixed",
        needs=_nothing,
        place=_on_a_slow_cluster,
    ),
]
