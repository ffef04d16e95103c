"""A Ray cluster of several machines on this one: each node in namespaces of its own, on one bridge, and an S3 server.

    with Cluster() as cluster:
        job = cluster.submit("--family", "tipsy", "storage.url=s3://lab/sweeps")
        cluster.workers[0].kill("raylet")

A node has a network namespace (its own address, and a link that can be cut), a host's name, a home folder and a Ray
folder of its own; processes have the numbers that this machine gives them. The head holds no trial. The S3 server is a
machine of its own, too, and tells of each request and whose it was.

That takes Linux, root and iproute2. Elsewhere the nodes share this machine's network, each with an address of its own
on loopback; `Cluster.why_no_links` says why then, and what needs a link is not to be had.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "lab"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""What Ray says of a job that is over."""
FAST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A node that does not answer for two seconds is dead; with Ray's own figures that takes a quarter of a minute."""

_PORT, _DASHBOARD, _S3 = 6379, 8265, 9000
_START_SECONDS = 120.0
_END_SECONDS = 10.0
_MARK = "PHAROS_NODE"
_NOT_HANDED_ON = ("AWS_", "RAY_", "PYTHONPATH")


class ClusterError(Exception):
    """Something of the cluster did not start, or is not there, in one line."""


@dataclass(frozen=True)
class Plan:
    """Who is where, in a cluster of this number.

    Attributes:
        number: 1 to 250; clusters of different numbers may run side by side.
        has_links: Whether machines have network namespaces of their own.
    """

    number: int
    has_links: bool

    def address(self, index: int) -> str:
        """Of a machine; 1 is the head, 2 the store, from 10 on the workers, and 254 this machine."""
        return f"10.213.{self.number}.{index}" if self.has_links else f"127.{self.number}.0.{index}"

    def namespace(self, name: str) -> str:
        return f"pharos{self.number}-{name}"

    @property
    def bridge(self) -> str:
        return f"pharos{self.number}"

    def link(self, index: int) -> str:
        """This machine's end of a machine's link; the kernel takes 15 characters."""
        return f"pharos{self.number}.{index}"

    @property
    def home(self) -> Path:
        """Short: the path of a socket has 107 characters at most."""
        return Path(tempfile.gettempdir()) / f"pharos-faults-{self.number}"


def why_no_links() -> str:
    """What keeps this machine from having network namespaces; empty if nothing does."""
    for tool in ("ip", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"there is no {tool} here"
    if os.geteuid():
        return "network namespaces take root"
    probe = f"pharos-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"ip netns add: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return ""


class Machine:
    """A machine with processes of its own, and a link to the others.

    Args:
        cluster: What it belongs to.
        name: Its host's name.
        index: The last number of its address.
    """

    def __init__(self, cluster: Cluster, name: str, index: int):
        self.cluster = cluster
        self.name = name
        self.index = index
        self.address = cluster.plan.address(index)
        self.folder = cluster.home / name
        self.folder.mkdir(mode=0o700)
        self._mark = f"{cluster.plan.number}-{name}-{secrets.token_hex(3)}"
        self._first: subprocess.Popen[str] | None = None
        if cluster.plan.has_links:
            self._plug_in()

    def run(self, command: Sequence[str], variables: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
        """Starts what it runs; its other processes end with that one."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_HANDED_ON)},
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            _MARK: self._mark,
            **variables,
        }
        around = ["setpriv", "--pdeathsig", "KILL"]
        if self.cluster.plan.has_links:
            around += ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
            around += ["sh", "-c", f'hostname {self.name}; exec "$@"', "sh"]
        self._first = self.cluster.spawn([*around, *command], env=environment, **options)
        return self._first

    @property
    def namespace(self) -> str:
        return self.cluster.plan.namespace(self.name)

    @property
    def is_running(self) -> bool:
        return self._first is not None and self._first.poll() is None

    def processes(self) -> list[int]:
        """What runs there."""
        if self.cluster.plan.has_links:
            return _in_namespace(self.namespace)
        return _marked(self._mark)

    def find(self, pattern: str) -> list[int]:
        """The processes whose command lines match."""
        found = []
        for number in self.processes():
            with contextlib.suppress(OSError):  # it has just ended
                line = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if re.search(pattern, line):
                    found.append(number)
        return found

    def kill(self, pattern: str) -> list[int]:
        """`kill -9` of the processes that match.

        Raises:
            ClusterError: There is none.
        """
        numbers = self.find(pattern)
        if not numbers:
            raise ClusterError(f"{self.name}: no process is like {pattern}")
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return numbers

    def cut(self, *others: Machine) -> None:
        """Takes its link away; or, given others, what leads to those."""
        if not others:
            _ip("link", "set", self.cluster.plan.link(self.index), "down")
        for other in others:
            _ip("-n", self.namespace, "route", "add", "blackhole", f"{other.address}/32")
            _ip("-n", other.namespace, "route", "add", "blackhole", f"{self.address}/32")

    def mend(self, *others: Machine) -> None:
        """Undoes `cut`."""
        if not others:
            _ip("link", "set", self.cluster.plan.link(self.index), "up")
        for other in others:
            _ip("-n", self.namespace, "route", "delete", "blackhole", f"{other.address}/32")
            _ip("-n", other.namespace, "route", "delete", "blackhole", f"{self.address}/32")

    def freeze(self) -> None:
        """Lets all its processes stand still, as those of a machine that is suspended."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets them go on."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGCONT)

    def end(self) -> None:
        """Ends all its processes at once, as when its power goes, and takes it off the bridge."""
        deadline = time.monotonic() + _END_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.05)
        if self._first is not None:
            self._first.wait()
        if self.cluster.plan.has_links:
            subprocess.run(["ip", "netns", "delete", self.namespace], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _plug_in(self) -> None:
        plan = self.cluster.plan
        _ip("netns", "add", self.namespace)
        _ip("link", "add", plan.link(self.index), "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", plan.link(self.index), "master", plan.bridge, "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for each in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", each, "up")


class Node(Machine):
    """A machine that Ray runs on."""

    def start(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        """Starts Ray there, and comes back when it has joined.

        Raises:
            ClusterError: It does not start.
        """
        plan = self.cluster.plan
        line = ["ray", "start", f"--node-ip-address={self.address}", *arguments, "--num-gpus=0"]
        line += ["--object-store-memory=80000000", "--disable-usage-stats", f"--temp-dir={self.folder / 'ray'}"]
        if plan.has_links:
            # Without --block, as Ray's own launchers have it: what a dead raylet leaves behind has to end by itself.
            line = ["sh", "-c", '"$@" && exec sleep infinity', "sh", *line]
        else:
            line += ["--block", f"--dashboard-agent-listen-port={52365 + plan.number}"]
        log = self.folder / "start.log"
        with log.open("w") as file:
            self.run(line, {**self.cluster.ray_variables, **variables}, stdout=file, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _START_SECONDS
        while "Ray runtime started" not in (said := log.read_text()):
            if not self.is_running or time.monotonic() > deadline:
                raise ClusterError(f"{self.name}: ray start failed: {' '.join(said.split())[-400:]}")
            time.sleep(0.2)


@dataclass(frozen=True)
class Request:
    """A request to the S3 server.

    Attributes:
        at: When it came, by `time.time`.
        client: The address that it came from.
        method: PUT, GET, ….
        path: The object's or the list's path, its bucket included.
    """

    at: float
    client: str
    method: str
    path: str


class Store(Machine):
    """A machine with an S3 server; what it stores is in its memory."""

    def start(self) -> None:
        """Starts the server.

        Raises:
            ClusterError: It does not start.
        """
        self.requests: list[Request] = []
        self._process = self.run(
            [sys.executable, str(Path(__file__).with_name("store.py")), self.address, str(_S3), BUCKET],
            {},
            stdout=subprocess.PIPE,
            stderr=(self.folder / "store.log").open("w"),
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise ClusterError(f"the S3 server did not start: {(self.folder / 'store.log').read_text()[-400:]}")
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}:{_S3}",
            "AWS_ACCESS_KEY_ID": "testing-key",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.requests.append(Request(**json.loads(line)))


class Job:
    """A submitted sweep.

    Args:
        cluster: Where.
        name: Its submission's.
        head: The head that it was submitted to.
    """

    def __init__(self, cluster: Cluster, name: str, head: Node):
        self.name = name
        self.head = head
        self._cluster = cluster
        self.submitted_at = time.time()

    @property
    def log_file(self) -> Path:
        """Where Ray writes what the driver says."""
        return self.head.folder / f"ray/session_latest/logs/job-driver-{self.name}.log"

    @property
    def log(self) -> str:
        """What the driver has said up to now."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_file.read_text()
        return ""

    @property
    def exit_status(self) -> int | None:
        """Of its driver; None while it runs, and 255 when its head is gone."""
        if not self.head.find("gcs_server"):
            return 255
        with contextlib.suppress(OSError):
            found = self._cluster.ask(f"api/jobs/{self.name}")
            if found["status"] in ENDED:
                return (
                    int(found["driver_exit_code"] or 0)
                    if found["status"] != "FAILED"
                    else found["driver_exit_code"] or 1
                )
        return None

    @property
    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, as Ray says; empty if it does not answer."""
        with contextlib.suppress(OSError):
            return str(self._cluster.ask(f"api/jobs/{self.name}")["status"])
        return ""

    @property
    def sweep(self) -> str:
        """The name of its sweep; empty before it has said it."""
        found = re.search(r"sweep ([a-z0-9_]+-\d{4}-\d\d-\d\d-[0-9a-f]{4})", self.log)
        return found.group(1) if found else ""

    @property
    def driver(self) -> list[int]:
        """The driver's process."""
        return self.head.find(r"^\S*python\S* platform/sweep\.py")

    def wait(self, seconds: float) -> str:
        """Waits for its end; returns its status, whatever that is after so long."""
        deadline = time.monotonic() + seconds
        while (status := self.status) not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
        return status

    def wait_for(self, pattern: str, seconds: float) -> bool:
        """Waits until its log says something; whether it did."""
        deadline = time.monotonic() + seconds
        while not (said := re.search(pattern, self.log)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return bool(said)

    def stop(self) -> None:
        """`ray job stop`, which does not wait."""
        self._cluster.ray("job", "stop", "--no-wait", self.name)

    def end(self) -> None:
        """Kills its driver if it is still there, and waits until Ray knows."""
        for process in self.driver if self.exit_status is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.wait(_END_SECONDS if self.exit_status is None else 0)


class Cluster:
    """A head, workers and a store; see the module.

    Args:
        number: Of the cluster; see `Plan`. None: the first that nobody has. What a killed run of the same number has
            left is taken away first.
        workers: How many there are at first.
        cpus: Cores that each of them says it has.
        system: Ray's system configuration; `{}` leaves Ray's own figures.
        say: Hears what happens.
    """

    def __init__(
        self,
        number: int | None = None,
        workers: int = 2,
        cpus: int = 2,
        system: Mapping[str, Any] = FAST,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.why_no_links = why_no_links()
        self._number = number
        self.workers: list[Node] = []
        self.cpus = cpus
        self._count = workers
        self._system = dict(system)
        self._say = say
        self._machines: list[Machine] = []
        self._heads = self._nodes = self._jobs = 0  # how many there were
        # A process that is to end with its parent ends with the thread that started it: one for all, till the end.
        self._spawner = ThreadPoolExecutor(1)
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self._take()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all that it has started, and takes its network away."""
        for machine in reversed(self._machines):
            machine.end()
        self._machines = []
        if self._lock >= 0:
            self._sweep_up()
            os.close(self._lock)
            self._lock = -1
        self._spawner.shutdown()

    @property
    def ray_variables(self) -> dict[str, str]:
        """What Ray needs in its environment on every node, and wherever jobs are submitted."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.home / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # Ray's own is 15: whatever else this machine does would starve the trials
        }

    def add_workers(self, count: int = 1) -> None:
        """So many more nodes; comes back when they have joined."""
        nodes = [self._new_worker() for _ in range(count)]
        join = [f"--address={self.head.address}:{_PORT}", f"--num-cpus={self.cpus}"]
        with ThreadPoolExecutor(max(1, count)) as pool:
            list(pool.map(lambda node: node.start(join, {}), nodes))
        self.workers += nodes
        self._say(f"{', '.join(node.name for node in nodes)} joined, {self.cpus} cores each")

    def replace(self, node: Node) -> None:
        """Counts a worker no more, whatever it still does; another one joins."""
        self.workers.remove(node)
        self.add_workers()

    def nodes_but(self, node: Node) -> list[Node]:
        """The head and the workers that count, without one."""
        return [each for each in (self.head, *self.workers) if each is not node]

    def put_in_order(self) -> None:
        """All links up, workers that do not count any more ended, and as many as there were at first."""
        for machine in [*self._machines]:
            if machine not in (self.store, self.head, *self.workers):
                self._machines.remove(machine)
                machine.end()
        if self.plan.has_links:
            for machine in self._machines:
                machine.mend()
        if not self.head.find("gcs_server"):
            self.workers = []
            self.start_head()
        if len(self.workers) < self._count:
            self.add_workers(self._count - len(self.workers))

    def start_head(self) -> None:
        """A new head, in the place of the one before, which is ended; its workers do not join it by themselves."""
        if self._heads:
            self._machines.remove(self.head)
            self.head.end()
        self._heads += 1
        self.head: Node = Node(self, "head" if self._heads == 1 else f"head{self._heads}", self._heads)
        self._machines.append(self.head)
        options = [f"--port={_PORT}", f"--dashboard-port={_DASHBOARD}", f"--dashboard-host={self.head.address}"]
        options += ["--num-cpus=0", f"--system-config={json.dumps(self._system)}"]
        # The credentials are the head's alone: the driver hands them on.
        variables = {**self.store.variables, "RAY_JOB_STOP_WAIT_TIME_S": "120"}
        self.head.start(["--head", *options], variables)
        self._say(f"the head has started, {self.head.address}")

    def submit(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Job:
        """`ray job submit` of a sweep, in the checkout.

        Args:
            arguments: Of platform/sweep.py.
            variables: For the environment of its driver and of its trials.
        """
        self._jobs += 1
        name = f"sweep-{self._jobs}"
        line = ["--no-wait", "--submission-id", name, "--working-dir", str(ROOT)]
        if variables:
            line += ["--runtime-env-json", json.dumps({"env_vars": dict(variables)})]
        self.ray("job", "submit", *line, "--", "python", "platform/sweep.py", *arguments)
        return Job(self, name, self.head)

    def ray(self, *arguments: str) -> str:
        """A command of Ray's, typed on this machine; what it prints.

        Raises:
            ClusterError: It fails.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_HANDED_ON)}
        environment |= {**self.ray_variables, "RAY_API_SERVER_ADDRESS": self._dashboard}
        done = subprocess.run(
            ["ray", *arguments], capture_output=True, text=True, check=False, timeout=120, env=environment
        )
        if done.returncode:
            raise ClusterError(f"ray {' '.join(arguments[:2])}: {(done.stderr or done.stdout).strip()[-600:]}")
        return done.stdout

    def ask(self, path: str) -> Any:
        """What the dashboard says at a path.

        Raises:
            OSError: It does not answer.
        """
        token = (self.home / "token").read_text().strip()
        request = urllib.request.Request(f"{self._dashboard}/{path}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def name_of(self, address: str) -> str:
        """The machine of an address; those that are gone are known by their address alone."""
        return next((each.name for each in self._machines if each.address == address), address)

    def node_of(self, process: int) -> Node:
        """The worker that a process runs on.

        Raises:
            ClusterError: There is none.
        """
        for node in self.workers:
            if process in node.processes():
                return node
        raise ClusterError(f"process {process} runs on no worker")

    def spawn(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Starts a process that ends with this one."""

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(command, text=True, start_new_session=True, cwd=self.home, **options)

        return self._spawner.submit(start).result()

    @property
    def _dashboard(self) -> str:
        return f"http://{self.head.address}:{_DASHBOARD}"

    def _take(self) -> None:
        """Makes a number ours.

        Raises:
            ClusterError: Another process has it.
        """
        for number in [self._number] if self._number else range(1, 251):
            self.plan = Plan(number, not self.why_no_links)
            self.home = self.plan.home
            lock = os.open(self.home.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._lock = lock
            break
        else:
            raise ClusterError(f"cluster {self.plan.number} runs already; take another number")
        self._sweep_up()
        self.home.mkdir(mode=0o700)
        if self.plan.has_links:
            _ip("link", "add", self.plan.bridge, "type", "bridge")
            _ip("address", "add", f"{self.plan.address(254)}/24", "dev", self.plan.bridge)
            _ip("link", "set", self.plan.bridge, "up")
        (self.home / "token").touch(mode=0o600)
        (self.home / "token").write_text(secrets.token_hex(32))

    def _start(self) -> None:
        self.store = Store(self, "s3", 200)
        self._machines.append(self.store)
        self.store.start()
        self.start_head()
        self.add_workers(self._count)

    def _new_worker(self) -> Node:
        self._nodes += 1
        node = Node(self, f"worker{self._nodes}", 9 + self._nodes)
        self._machines.append(node)
        return node

    def _sweep_up(self) -> None:
        """Takes away what is there of this number: of a killed run, or of this one at its end."""
        prefix = self.plan.namespace("")
        names = [name for name in _namespaces() if name.startswith(prefix)] if self.plan.has_links else []
        left = [number for name in names for number in _in_namespace(name)]
        for number in left if self.plan.has_links else _marked(f"{self.plan.number}-"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
        if self.plan.has_links:
            subprocess.run(["ip", "link", "delete", self.plan.bridge], capture_output=True, check=False)
        shutil.rmtree(self.home, ignore_errors=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _namespaces() -> Iterator[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        yield line.split()[0]


def _in_namespace(name: str) -> list[int]:
    """The processes of a network namespace."""
    try:
        inode = Path("/run/netns", name).stat().st_ino
    except FileNotFoundError:
        return []
    return [number for number in _all_processes() if _namespace_of(number) == inode]


def _namespace_of(number: int) -> int:
    try:
        return Path(f"/proc/{number}/ns/net").stat().st_ino
    except OSError:  # it has ended
        return 0


def _marked(mark: str) -> list[int]:
    """The processes with a mark that begins so in their environment, and their children: some write over theirs."""
    found: list[int] = []
    parents: dict[int, int] = {}
    for number in _all_processes():
        with contextlib.suppress(OSError):
            parents[number] = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
            if f"\0{_MARK}={mark}".encode() in b"\0" + Path(f"/proc/{number}/environ").read_bytes():
                found.append(number)
    for parent in found:  # which grows
        found += [number for number, its in parents.items() if its == parent and number not in found]
    return found


def _all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
