"""All checks of a sweep that is to be started, one after the other, each with an end of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pharos.config import make_plan
from pharos.doctor import engine, machine, shown, store
from pharos.doctor.child import Child
from pharos.doctor.corners import corners
from pharos.doctor.estimate import duration, epoch_seconds, least_seconds, sweep_seconds
from pharos.doctor.sheet import Finding, Sheet, Status, fail, ok, warn
from pharos.doctor.tryout import position, ready, saved_bytes, spec_of, try_here
from pharos.errors import PharosError
from pharos.memory import PEAK_MEMORY
from pharos.plan import Plan
from pharos.space import Params
from pharos.trial import Ending, Outcome

TRY_SECONDS = 45.0
"""After which a corner is stopped where it is."""
ALL_SECONDS = 70.0
"""After which no further corner is begun."""
_START_SECONDS = 60.0  # of a process, before it tries anything
_KILL_SECONDS = 20.0  # more, after which its process is killed
_TIMED_SECONDS = 6.0  # for more epochs and batches of the defaults, whose time is wanted
_SIDE_BY_SIDE = 4  # at most so many processes here
_CLOCK_SECONDS = 2.0
_CUDA_GB = 0.6  # of a process that has a CUDA context


@dataclasses.dataclass
class _Tried:
    """A corner that was tried: how it ended, the bytes that it saved, or why there is nothing."""

    params: Params
    ending: Ending | None = None
    saved: int = 0
    trouble: str = ""

    @property
    def memory(self) -> float:
        """Its peak, in units of 2**30 bytes; NaN if it is not known."""
        return self.ending.metrics.get(PEAK_MEMORY, math.nan) if self.ending else math.nan

    def finding(self) -> Finding:
        """What is said of it."""
        where = ", ".join(f"{name.removeprefix('recipe.')}={value}" for name, value in self.params.items())
        if self.ending is None:
            return fail(f"{self.trouble}; at {where}", params=self.params)
        facts = {"params": self.params, "outcome": str(self.ending.outcome), "peak_memory_gb": self.memory}
        loops = len(self.ending.probe.get("loops", []))
        if self.ending.outcome == Outcome.COMPLETE:
            return ok(f"{loops} {'loop' if loops == 1 else 'loops'} visited, peak {self.memory:.2f} GiB", **facts)
        if self.ending.outcome == Outcome.CANCELLED:
            return warn(f"{self.ending.reason}: stopped {position(self.ending)}; up to there it works", **facts)
        reason = (self.ending.reason.strip().splitlines() or [""])[-1]
        return fail(f"{self.ending.outcome} {position(self.ending)}: {reason}; at {where}", **facts)


class Examination:
    """What is known of a sweep before it starts.

    Args:
        sheet: Takes what is found.
        price: Of an hour of a device (GPU, else CPU core); None: nobody asks.
    """

    def __init__(self, sheet: Sheet, price: float | None = None):
        self._sheet = sheet
        self._price = price
        self._child = Child()
        self._lock = threading.Lock()

    def run(self, family: str, overrides: Sequence[str]) -> None:
        """Makes all checks."""
        with contextlib.ExitStack() as ends:
            ends.callback(self._child.close)
            plans: list[Plan] = []
            self._sheet.check("configuration", lambda: _configuration(family, overrides, plans))
            self._sheet.check("versions", _versions)
            if not plans:
                return
            plan = plans[0]
            settings = plan.settings
            try:
                url = ends.enter_context(self._scratch(plan))
            except PharosError as error:
                url, refusal = "", fail(str(error))
                stored = self._sheet.check("storage", lambda: refusal)
            else:
                stored = self._sheet.check("storage", lambda: self._storage(plan, url))
            if settings.study.storage:
                self._sheet.check("study", lambda: self._study(plan))
            self._sheet.check("tracking", lambda: self._tracking(plan))
            cluster = self._sheet.check(
                "nodes", lambda: self._nodes(plan, url if stored.status != Status.FAIL else None)
            ).facts
            if settings.engine.name == "deepspeed":
                self._sheet.check("deepspeed", lambda: engine.look(settings))
            has_gangs = any(shape.workers > 1 for shape in settings.resources.all_shapes)
            if has_gangs or not cluster.get("is_here", True):
                if stored.status == Status.FAIL:
                    self._sheet.add("trials", fail("not tried: workers save to storage.url, see above"), 0.0)
                    return
                tried = self._try_on_workers(plan, url)
            else:
                with tempfile.TemporaryDirectory(prefix="pharos-doctor-") as folder:
                    tried = self._try_here(plan, folder, cluster)
            self._sheet.check("memory", lambda: _memory(plan, tried, cluster))
            self._sheet.check("checkpoints", lambda: _space(plan, tried, stored.facts.get("free")))
            self._sheet.check("time and cost", lambda: _time(plan, tried, cluster, self._price))

    @contextlib.contextmanager
    def _scratch(self, plan: Plan) -> Iterator[str]:
        """A folder's URL in the storage; whatever comes to lie in it is removed."""
        config = plan.settings.storage
        url = store.scratch(config)
        try:
            yield url
        finally:
            with contextlib.suppress(PharosError):
                self._child.call(store.remove, config.options, url, seconds=10.0)

    def _storage(self, plan: Plan, url: str) -> Finding:
        config = plan.settings.storage
        try:
            found = self._child.call(store.round_trip, config.options, url, seconds=store.SECONDS)
        except PharosError as error:
            hint = "check the folder, the credentials, the endpoint (AWS_ENDPOINT_URL) and the network"
            return fail(f"storage.url={config.url}: {error}; {hint}")
        free = f", {found['free'] / 1e9:.0f} GB free" if found["free"] is not None else ""
        speeds = f"{found['write_mb_s']:.0f} MB/s to write, {found['read_mb_s']:.0f} MB/s to read"
        return ok(f"{config.url}: written, read, listed, removed; {speeds}{free}", **found)

    def _study(self, plan: Plan) -> Finding:
        kind = self._child.call(store.open_study, plan.settings, seconds=20.0)
        return ok(f"study.storage: {kind} answers")

    def _tracking(self, plan: Plan) -> Finding:
        return self._child.call(shown.look, plan.settings.tracking, seconds=shown.SECONDS)

    def _nodes(self, plan: Plan, url: str | None) -> Finding:
        settings = plan.settings
        here = machine.about(settings.storage.cache)
        alone = {"slots": 1, "nodes": [here], "is_here": True}
        if settings.backend == "local":
            return ok(f"backend=local: one trial after the other on {here['host']}, without Ray", **alone)
        if importlib.util.find_spec("ray") is None:
            return fail("backend=tune needs Ray: pip install -c constraints.txt 'pharos-sweeps[tune]'", **alone)
        from pharos.doctor import nodes

        try:
            found = self._child.call(nodes.look, settings, url, seconds=nodes.SECONDS)
        except PharosError as error:
            self._child.close()  # and with it the Ray that it may have started
            return fail(f"Ray: {error}", **alone)
        settings.resources.gpus_per_worker = found["gpus_per_worker"]
        return _compare(here, found)

    def _try_on_workers(self, plan: Plan, url: str) -> dict[str, _Tried]:
        """Tries the corners one after the other on the cluster's workers."""
        from pharos.doctor import nodes

        def act(number: int, params: Params, seconds: float) -> _Tried:
            spec = spec_of(plan, params, url, number, is_local=False, seconds=seconds)
            limit = TRY_SECONDS + _KILL_SECONDS
            ending = self._child.call(nodes.try_on_workers, spec, plan.settings, seconds=limit)
            return _Tried(params, ending, self._child.call(saved_bytes, spec, seconds=_KILL_SECONDS))

        tried: dict[str, _Tried] = {}
        wanted = corners(plan.space, plan.defaults)
        deadline = time.monotonic() + ALL_SECONDS
        for number, (name, params) in enumerate(wanted.items()):
            if number and time.monotonic() > deadline:
                break
            attempt = functools.partial(act, number, params, 0.0 if number else _TIMED_SECONDS)
            tried[name] = self._take(name, params, attempt)
        self._leave_out([name for name in wanted if name not in tried])
        return tried

    def _try_here(self, plan: Plan, folder: str, cluster: Mapping[str, Any]) -> dict[str, _Tried]:
        """Tries the corners in processes of this machine, as many side by side as a sweep has trials here."""
        count = 1 if plan.settings.resources.gpus_per_worker else min(cluster.get("slots", 1), _SIDE_BY_SIDE)
        children = [Child() for _ in range(count)]
        wanted = corners(plan.space, plan.defaults)
        deadline = time.monotonic() + ALL_SECONDS
        tried: dict[str, _Tried] = {}

        def attempt(child: Child, name: str, params: Params, number: int, seconds: float) -> None:
            def act() -> _Tried:
                spec = spec_of(plan, params, folder, number, is_local=True, seconds=seconds)
                child.call(ready, seconds=_START_SECONDS)
                ending, saved = child.call(try_here, spec, TRY_SECONDS, seconds=TRY_SECONDS + _KILL_SECONDS)
                return _Tried(params, ending, saved)

            tried[name] = self._take(name, params, act)

        def work(child: Child, number: int) -> None:
            # The defaults run in all of them at once: what a trial takes beside others is what is wanted.
            first, params = next(iter(wanted.items()))
            name = f"{first}, process {number + 1}" if number else first
            attempt(child, name, params, len(wanted) + number, _TIMED_SECONDS)
            while time.monotonic() < deadline:
                with self._lock:
                    if not left:
                        return
                    name, params = left.pop(0)
                attempt(child, name, params, list(wanted).index(name), 0.0)

        left = list(wanted.items())[1:]
        try:
            with ThreadPoolExecutor(count) as pool:
                for future in [pool.submit(work, child, number) for number, child in enumerate(children)]:
                    future.result()
        finally:
            for child in children:
                child.close()
        self._leave_out([name for name, _ in left])
        return tried

    def _take(self, name: str, params: Params, act: Callable[[], _Tried]) -> _Tried:
        """Tries a corner and says what came of it."""
        began_at = time.monotonic()
        try:
            found = act()
        except PharosError as error:
            found = _Tried(params, trouble=str(error))
        finding = found.finding()
        named = dataclasses.replace(finding, text=f"{name}: {finding.text}", facts=finding.facts | {"corner": name})
        with self._lock:
            self._sheet.add("trial", named, time.monotonic() - began_at)
        return found

    def _leave_out(self, names: list[str]) -> None:
        if names:
            text = f"not tried, as {ALL_SECONDS:g} s were over: {'; '.join(names)}"
            self._sheet.add("trial", warn(text), 0.0)


def _configuration(family: str, overrides: Sequence[str], plans: list[Plan]) -> Finding:
    plan = make_plan(family, overrides)
    plans.append(plan)
    settings = plan.settings
    epochs = plan.recipe.fidelity(plan.build_config())
    first = plan.first_trials
    what = "the recipe's own values first" if first and plan.is_paper_trial(first[0]) else f"first {first[:1]}"
    return ok(
        f"{family}, scale={settings.scale}, space={settings.space}: {len(plan.space)} dimensions, "
        f"{settings.trials} trials of up to {epochs} epochs, {what}",
        dimensions=len(plan.space),
        epochs=epochs,
        first_trials=first,
    )


def _versions() -> Finding:
    here = machine.about("~")
    has = ", ".join(
        f"{name} {here['packages'][name] or 'not there'}" for name in ("torch", "ray", "optuna", "deepspeed")
    )
    text = f"Python {here['python']}, {has}"
    off = machine.off_constraints(here["packages"])
    if off:
        return warn(f"{text}; not what constraints.txt has: {', '.join(off)}", packages=here["packages"])
    return ok(text, packages=here["packages"])


def _compare(here: dict[str, Any], cluster: dict[str, Any]) -> Finding:
    """All nodes alike, or which differs in what from the machine that the sweep is started on."""
    nodes = cluster["nodes"]
    wrong, odd = [], []
    for node in nodes:
        who = node.get("host", node["ip"])
        if "error" in node:
            wrong.append(f"{who} did not answer: {node['error']}")
            continue
        for key in ("python", "code"):
            if node[key] != here[key]:
                wrong.append(f"{who} has {key} {node[key]}, not {here[key]} as here")
        for name, version in here["packages"].items():
            if node["packages"].get(name) != version:
                wrong.append(f"{who} has {name} {node['packages'].get(name) or 'not at all'}, here it is {version}")
        if node["storage"]:
            wrong.append(f"{who} cannot use storage.url: {node['storage']}")
        if abs(node["clock"]) > _CLOCK_SECONDS:
            odd.append(f"{who}'s clock is {node['clock']:+.1f} s off")
        if node["cache_free_gb"] < 2:
            odd.append(f"{who} has {node['cache_free_gb']:.1f} GB free for storage.cache")
    models = {gpu["name"] for node in nodes for gpu in node.get("gpus", [])}
    if len(models) > 1:
        odd.append(f"GPUs differ: {', '.join(sorted(models))}")
    has = f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}" + (" (this machine)" if cluster["is_here"] else "")
    has += f", {cluster['slots']} trials at a time"
    if wrong or odd:
        return (fail if wrong else warn)(f"{has}; {'; '.join(wrong + odd)}", **cluster)
    kind = f", {', '.join(models)}" if models else ""
    return ok(f"{has}{kind}; the same versions and code everywhere, clocks agree, storage in reach", **cluster)


def _memory(plan: Plan, tried: Mapping[str, _Tried], cluster: Mapping[str, Any]) -> Finding:
    """Whether as many trials as are started side by side fit."""
    peaks = [each.memory for each in tried.values() if math.isfinite(each.memory)]
    if not peaks:
        return fail("not known: no trial came so far as to report")
    resources = plan.settings.resources
    nodes = [node for node in cluster.get("nodes", []) if "error" not in node]
    slots = cluster.get("slots", 1)
    peak = max(peaks)
    if resources.gpus_per_worker:
        peak += _CUDA_GB
        sizes = [gpu["memory_gb"] for node in nodes for gpu in node["gpus"]]
        if not sizes:
            return warn(f"peak {peak:.2f} GiB a worker; the size of the GPUs is not known")
        wanted, room, what = max(1, round(1 / resources.gpus_per_worker)), int(min(sizes) / peak), "a GPU"
        has = f"{min(sizes):.0f} GiB"
    else:
        smallest = min(nodes, key=lambda node: float(node["memory_gb"]))
        wanted = math.ceil(slots * resources.workers / len(nodes))
        room, what, has = int(smallest["memory_gb"] / peak), smallest["host"], f"{smallest['memory_gb']:.1f} GiB free"
    text = f"peak {peak:.2f} GiB a worker; {what} has {has}, room for {room}; the settings put {wanted} there"
    facts = {"peak_memory_gb": peak, "fit": room, "wanted": wanted}
    if room >= wanted:
        return ok(text, **facts)
    fewer = f"resources.concurrency={max(1, room * len(nodes) // resources.workers)}"
    return (fail if not room else warn)(f"{text}: take {fewer}, a smaller recipe or more memory", **facts)


def _space(plan: Plan, tried: Mapping[str, _Tried], free: float | None) -> Finding:
    """Whether the checkpoints that stay will fit the storage."""
    largest = max((each.saved for each in tried.values()), default=0)
    if not largest:
        return warn("not known: no trial was saved")
    config, trials = plan.settings.storage, plan.settings.trials
    stay = config.keep_last + config.keep_best
    if config.keep_every:
        stay += plan.recipe.fidelity(plan.build_config()) // config.keep_every
    kept = trials if config.keep_trials is None else min(trials, config.keep_trials)
    needed = largest * stay * kept
    text = f"{largest / 1e6:.3g} MB each, up to {stay} of each of {kept} trials: {needed / 1e9:.3g} GB"
    facts = {"checkpoint_bytes": largest, "needed_bytes": needed}
    if free is None:
        return ok(text, **facts)
    text += f" of {free / 1e9:.0f} GB free"
    if needed > free:
        return fail(f"{text}: they do not fit; take storage.keep_trials=N, or another storage.url", **facts)
    return (warn if needed > free / 2 else ok)(text, **facts)


def _time(plan: Plan, tried: Mapping[str, _Tried], cluster: Mapping[str, Any], price: float | None) -> Finding:
    """How long trials and the sweep will take: an estimate."""
    timed = [
        each.ending
        for name, each in tried.items()
        if name.startswith("the defaults") and each.ending and each.ending.outcome == Outcome.COMPLETE
    ]
    if not timed:
        return warn("no estimate: the defaults did not get through")
    settings = plan.settings
    found = [epoch_seconds(ending.probe["loops"]) for ending in timed]
    epochs = [statistics.fmean(each) for each in zip(*found, strict=True)]
    start = statistics.fmean(ending.probe["outside"] for ending in timed)
    slots, trials = max(1, min(cluster.get("slots", 1), settings.trials)), settings.trials
    low, high = (
        sweep_seconds(trial, trials, slots, start)
        for trial in (least_seconds(epochs, settings.scheduler, trials), sum(epochs))
    )
    steps = [step for ending in timed for loop in ending.probe["loops"] for e in loop["seen"] for step in e["steps"]]
    batches = max(e["batches"] for loop in timed[0].probe["loops"] for e in loop["seen"])
    hours = [seconds * slots * settings.devices / 3600 for seconds in (low, high)]
    device = "GPU" if settings.resources.gpus_per_worker else "CPU"
    step, trial = statistics.median(steps) if steps else 0.0, sum(epochs)
    facts = {
        "seconds_per_step": step,
        "steps_per_epoch": batches,
        "trial_seconds": trial,
        "sweep_seconds": [low, high],
        f"{device.lower()}_hours": hours,
    }
    stops = "" if low == high else f" ({settings.scheduler.name} stops some early)"
    text = (
        f"an estimate: {step:.3g} s a step, up to {batches} steps an epoch, {duration(trial)} a whole trial; {trials} "
        f"trials, {slots} at a time: {duration(low)} to {duration(high)}{stops}, {hours[0]:.2g} to {hours[1]:.2g} "
        f"{device} hours"
    )
    if price is not None:
        facts["cost"] = [price * each for each in hours]
        text += f", {price * hours[0]:.2f} to {price * hours[1]:.2f} at {price:g} an hour"
    return ok(text, **facts)
