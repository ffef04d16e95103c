"""What a fault is, and the sweep that it is done to.

    fault = Fault("trial-killed", "`kill -9` of a trial's process", "ray", kill_trial, (Moment("in mid-epoch"), ...))
    fault.act(scene, "in mid-epoch")    starts the sweep, strikes it, and resumes it where that is the point
    fault.act(scene, None)              the same sweep, undisturbed

An act drives real processes: it starts them with `scene.start`, waits for a moment with `scene.caught`, does its deed
and says so with `scene.struck`, and waits with `scene.finish`. Whoever says nothing has missed. What comes of it is
judged by `benchmarks.faults.verdict`, from the sweep's folder and the account of the witness.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.faults.witness import INSIDE, Line, Witness

ROOT = Path(__file__).resolve().parents[2]
# One dimension is searched, as a grid: trials of the same values are found again in the undisturbed sweep.
SWEEP = (
    "scale=tiny",
    "recipe.epochs=12",
    "recipe.student_epochs=2",
    "recipe.optim.schedule=constant",
    "recipe.critic_optim.lr=2e-4",
    "recipe.w_adv=1",
    "recipe.w_2d=10",
    "recipe.w_90=3",
    "recipe.label_flip=0.1",
    "recipe.flip=naive",
    "recipe.gan_loss=lsgan",
    "recipe.optim.lr=choice(1e-4, 2e-4, 4e-4)",
    "sampler=grid",
    "scheduler=none",
    "tracking=none",
    "trials=3",
    "checkpoint_seconds=0",
)
"""Settings of a tiny sweep of tipsy: three trials of 14 epochs, a checkpoint after each if none is being written."""
LOCAL = (*SWEEP, "backend=local")
"""The same in the driver's own process, for faults in which Ray plays no role."""
ON_RAY = (*SWEEP, "backend=tune", "resources.concurrency=2", "resources.cluster_cpus=2")
"""The same on a Ray of its own, two trials at a time."""
_PR_SET_CHILD_SUBREAPER = 36
T = TypeVar("T")


class MissedError(Exception):
    """The strike did not hit: what it was meant for was not there, or not any more."""


class HungError(Exception):
    """The time of a case is over."""


@dataclass(frozen=True)
class Moment:
    """When a fault is struck, and what is to come of it.

    Attributes:
        name: As the table says it.
        outcomes: How many trials end how; None: as in the undisturbed sweep.
        says: What must be found (a regular expression) in what the user reads; "" asks for nothing.
        completes: Whether the sweep is to; else its last driver must give a reason in one line, which `says` fits.
        restarts: Whether trials may go on from an earlier checkpoint than their last, as that one was spoiled.
    """

    name: str
    outcomes: Mapping[str, int] | None = None
    says: str = ""
    completes: bool = True
    restarts: bool = False


Act = Callable[["Scene", str | None], None]
SceneMaker = Callable[[Path, float], "Scene"]
"""Makes a scene from its folder and its time limit."""
Place = Callable[[], contextlib.AbstractContextManager[SceneMaker]]


@contextlib.contextmanager
def on_this_machine() -> Iterator[SceneMaker]:
    """Where most cases are played: each scene starts what it needs."""
    yield Scene


@dataclass(frozen=True)
class Fault:
    """One way to break a sweep.

    Attributes:
        name: For `--only`.
        title: In the table.
        sweep: Names the sweep that it strikes. Faults of one such name strike the same one, which is run undisturbed
            once, by the act of the first of them.
        act: What is done; see above.
        moments: When.
        needs: Says why it cannot be done here; "" if it can.
        seconds: The time limit of a case, beside eight times what the undisturbed sweep takes here: some resume it.
        place: Where it is played: entered before the first and left after the last of the faults in a row that have it.
    """

    name: str
    title: str
    sweep: str
    act: Act
    moments: tuple[Moment, ...]
    needs: Callable[[], str] = lambda: ""
    seconds: float = 60.0
    place: Place = on_this_machine


@dataclass
class Driver:
    """One run of `platform/sweep.py`, and what it said."""

    process: subprocess.Popen[bytes]
    log: Path
    output: Path

    @property
    def said(self) -> str:
        """All that a user reads of it: the log, and what it prints at the end."""
        return self.log.read_text(errors="replace") + self.output.read_text(errors="replace")


@dataclass
class Scene:
    """A sweep that is to be struck, in a folder of its own.

    Attributes:
        home: The folder.
        seconds: After so many the case has hung.
        url: Where the sweep is stored.
        options: Of its file system, for the verdict to read it.
        prefix: What comes before the command of a driver, such as `ip netns exec head`.
        environment: Of drivers, beside this process's own and the witness's.
    """

    home: Path
    seconds: float
    url: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.url = self.url or str(self.home / "sweeps")
        self.witness = Witness(self.home)
        self.drivers: list[Driver] = []
        self.strikes: list[tuple[float, str]] = []
        self.objections: list[str] = []
        self._at_the_end: list[Callable[[], object]] = []
        self.began_at = time.monotonic()
        self.deadline = self.began_at + self.seconds

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the scene is played; after it nothing of it is left."""
        return nothing_left()

    # What an act does

    def start(self, *settings: str, resume: bool = False) -> Driver:
        """Starts a driver of a new sweep of tipsy with these settings, or of the present one.

        Returns:
            The driver, at work; what it says goes to files.
        """
        count = len(self.drivers)
        # From the sweep's own folder where it is a folder: a machine that has lost the driver knows its name by that.
        what = ["--resume", f"{self.url}/{self.name}"] if resume else ["--family", "tipsy", f"storage.url={self.url}"]
        command = [*self.prefix, sys.executable, str(ROOT / "platform/sweep.py"), *what, *settings]
        log, output = self.home / f"driver-{count}.log", self.home / f"driver-{count}.out"
        with log.open("wb") as errors, output.open("wb") as out:
            process = subprocess.Popen(
                command, env=self.full_environment, stdout=out, stderr=errors, stdin=subprocess.DEVNULL
            )
        self.drivers.append(Driver(process, log, output))
        return self.drivers[-1]

    @property
    def full_environment(self) -> dict[str, str]:
        """Of the processes of the sweep: drivers, and the nodes of a cluster, whose workers are to be watched too."""
        path = os.pathsep.join(map(str, (INSIDE, ROOT / "platform", ROOT)))
        ours = {"PYTHONPATH": path, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return {**os.environ, **ours, **self.witness.environment, **self.environment}

    @property
    def name(self) -> str:
        """The sweep's.

        Raises:
            MissedError: There is none yet.
        """
        from pharos.storage import Storage

        names = [name for name in Storage(self.url, self.options).list() if not name.startswith(".")]
        if len(names) != 1:
            raise MissedError(f"there is not one sweep in {self.url}, but {len(names)}")
        return names[0]

    def caught(self, trap: str) -> Line:
        """Waits until a process is held in a trap.

        Raises:
            MissedError: The driver ended first.
            HungError: Nobody got there in time.
        """
        return self.until(lambda: self.witness.trapped(trap))

    def until(self, look: Callable[[], T | None], pause: float = 0.02) -> T:
        """Waits until there is something to see, while the driver is at work.

        Raises:
            MissedError: The driver ended first.
            HungError: There was nothing in time.
        """
        while True:
            has_ended = self.drivers[-1].process.poll() is not None
            found = look()
            if found is not None:
                return found
            if has_ended:
                raise MissedError("the sweep was over before")
            self.check()
            time.sleep(pause)

    def kill(self, pid: int, what: str) -> None:
        """Kills a process that is there, at once.

        Raises:
            MissedError: It is not.
        """
        if not alive(pid):
            raise MissedError(f"{what} (process {pid}) was gone before")
        os.kill(pid, signal.SIGKILL)
        self.struck(f"kill -9 of {what}")

    def struck(self, what: str) -> None:
        """Says that a strike hit, just now."""
        self.strikes.append((time.monotonic(), what))

    def broke(self, what: str) -> None:
        """Says what an act itself saw that breaks the promise."""
        self.objections.append(what)

    def on_end(self, act: Callable[[], object]) -> None:
        """Does something when the case has been judged and its processes are gone."""
        self._at_the_end.append(act)

    def close(self) -> None:
        """Undoes what the act did to the machine, the last first."""
        while self._at_the_end:
            self._at_the_end.pop()()

    def finish(self) -> int:
        """Waits for the last driver to end; its exit status.

        Raises:
            HungError: It does not in time.
        """
        process = self.drivers[-1].process
        while process.poll() is None:
            self.check()
            time.sleep(0.02)
        return process.returncode

    def check(self) -> None:
        """Complains when the time is over.

        Raises:
            HungError: It is.
        """
        if time.monotonic() > self.deadline:
            raise HungError(f"not done after {self.seconds:g} s")


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """All processes that descend from one, children first."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = []
    queue = [pid]
    while queue:
        queue = [child for each in queue for child in children.get(each, [])]
        found += queue
    return found


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Ends what was started within the block and is still there after it, and only that.

    Orphans become children of this process, so that none is lost sight of.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(descendants(os.getpid()))
    try:
        yield
    finally:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            left = [pid for pid in descendants(os.getpid()) if pid not in before and alive(pid)]
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
