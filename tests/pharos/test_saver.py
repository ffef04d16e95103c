"""Saving while training goes on: what is written is what was handed over, and it counts when all of it is there."""

import itertools
import json
import logging
import math
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch._C._distributed_c10d import HashStore

from benchmarks.bucket import Fault
from pharos import checkpoint as checkpoint_module
from pharos import saver as saver_module
from pharos.background import Background
from pharos.checkpoint import Checkpoints, Part, is_manifest
from pharos.errors import PharosError, StorageError
from pharos.retention import Keep, Retention
from pharos.saver import Saver
from pharos.storage import Storage
from pharos.world import World

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]
W, V = "learners/net/weights/w", "learners/net/weights/v"


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch):
    monkeypatch.setattr(saver_module, "pauses", lambda: itertools.repeat(0.005))


def new_storage():
    """An empty one; what others hold in memory is forgotten."""
    MemoryFileSystem.store.clear()
    return Storage(f"memory://{secrets.token_hex(8)}/checkpoints")


@pytest.fixture
def storage():
    return new_storage()


@pytest.fixture
def checkpoints(storage):
    return Checkpoints(storage)


def later(condition, seconds=5.0):
    """Waits until something is so; says whether it came to be."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


class Wire:
    """All changes of storages, as a test steers them.

    Attributes:
        before: Called with the path of each file that is about to be written or removed; it may raise or wait.
        written: The paths of what was written, in order.
    """

    def __init__(self, monkeypatch):
        self.before = lambda path: None
        self.written = []
        self.write, self.remove = Storage.write_bytes, Storage.remove_files

        def write_bytes(storage, path, data):
            self.before(path)
            self.write(storage, path, data)
            self.written.append(path)

        def remove_files(storage, paths):
            for path in paths:
                self.before(path)
                self.remove(storage, [path])

        monkeypatch.setattr(Storage, "write_bytes", write_bytes)
        monkeypatch.setattr(Storage, "remove_files", remove_files)

    def fail(self, error, where=""):
        """Everything that is written below such a path fails from now on."""

        def before(path):
            if where in path:
                raise error

        self.before = before


@pytest.fixture
def wire(monkeypatch):
    return Wire(monkeypatch)


class Gate:
    """Holds up what passes it until it is opened; also once the test has ended."""

    def __init__(self, where=""):
        self.reached, self.opened, self.where = threading.Event(), threading.Event(), where

    def __call__(self, path):
        if self.where in path:
            self.reached.set()
            assert self.opened.wait(20)


@pytest.fixture
def gate(wire):
    wire.before = gate = Gate()
    yield gate
    gate.opened.set()


UNAVAILABLE = StorageError("s3://lab/x: come back later", is_final=False)
REFUSED = StorageError("s3://lab/x: access denied", is_final=True)


def part(tensor, name=W):
    return Part.whole(name, tensor)


# What is written


@st.composite
def learners(draw):
    """Tensors by name, the pieces of each that each worker holds, and the most that one file takes."""
    workers = draw(st.integers(1, 3))
    tensors, parts = {}, [[] for _ in range(workers)]
    for index in range(draw(st.integers(0, 4))):
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
        dtype = draw(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        tensor = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
        name = f"learners/net/weights/{index}"
        tensors[name] = tensor
        flat, count = tensor.reshape(-1), tensor.numel()
        cuts = sorted(draw(st.lists(st.integers(0, count), min_size=workers - 1, max_size=workers - 1)))
        for rank, (start, end) in enumerate(itertools.pairwise([0, *cuts, count])):
            if end > start or (not count and rank == 0):
                parts[rank].append(Part(name, flat[start:end], shape, start))
    return tensors, parts, draw(st.sampled_from([8, 9, 16, 24, 31, 64, 1000]))


def together(size, work):
    """What each of so many workers, threads of this process, returns or raises, by rank."""
    board = HashStore()
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(work, World(rank, size, board=board)) for rank in range(size)]
        return [future.exception() or future.result() for future in futures]


@settings(max_examples=50)
@given(case=learners())
@example(case=({"learners/net/weights/0": torch.arange(8)}, [[part(torch.arange(8), "learners/net/weights/0")]], 8))
def test_tensors_of_any_size_are_split_into_files_of_a_limited_size_and_come_back(case):
    tensors, parts, limit = case
    checkpoints = Checkpoints(new_storage())
    state = {"more": torch.arange(5, dtype=torch.float64), "step": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver_module, "FILE_BYTES", limit)
        assert together(len(parts), lambda world: Saver(checkpoints, world).save(3, state, parts[world.rank])) == (
            [None] * len(parts)
        )
    checkpoint = checkpoints.newest()
    assert checkpoint.step == 3
    for name, tensor in tensors.items():
        restored = checkpoint.tensor(name)
        assert (restored.dtype, restored.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(restored, tensor)
    assert torch.equal(checkpoint.state["more"], state["more"])
    folder = checkpoints.storage.sub("00000003")
    files = [load(folder.read_bytes(name)) for name in folder.list() if name.endswith(".safetensors")]
    sizes = [sum(tensor.nbytes for tensor in file.values()) for file in files]
    assert all(size <= limit for size in sizes)
    assert all(file for file in files)  # no file is empty
    assert sum(sizes) == sum(tensor.nbytes for tensor in (*tensors.values(), state["more"]))


def test_a_tensor_larger_than_a_file_lies_in_several_and_small_ones_share_one(checkpoints, storage, monkeypatch):
    monkeypatch.setattr(saver_module, "FILE_BYTES", 64)
    small = [part(torch.full((3,), float(index)), f"small/{index}") for index in range(5)]
    Saver(checkpoints, attempt="a").save(1, None, [*small, part(torch.arange(50.0))])
    names = [name for name in storage.list("00000001") if name.startswith("rank-")]
    assert names == [f"rank-00000-{index:03d}-a.safetensors" for index in range(5)]
    assert [sorted(load(storage.read_bytes(f"00000001/{name}"))) for name in names] == [
        [f"small/{index}" for index in range(5)],
        *[[W]] * 4,
    ]
    pieces = storage.read_json("00000001/manifest-a.json")["tensors"][W]["pieces"]
    assert pieces == [[names[1], 0, 16], [names[2], 16, 16], [names[3], 32, 16], [names[4], 48, 2]]
    assert torch.equal(checkpoints.newest().tensor(W), torch.arange(50.0))


def test_a_run_of_elements_over_several_files_comes_back(checkpoints, monkeypatch):
    monkeypatch.setattr(saver_module, "FILE_BYTES", 16)
    Saver(checkpoints).save(1, None, [part(torch.arange(13.0))])
    checkpoint = checkpoints.newest()
    for start, end in itertools.combinations(range(14), 2):
        assert torch.equal(checkpoint.elements(W, start, end - start), torch.arange(13.0)[start:end])


def test_parts_that_are_turned_or_views_are_saved_as_they_read(checkpoints):
    base = torch.arange(12.0).reshape(3, 4)
    weights = torch.nn.Parameter(base.clone())
    Saver(checkpoints).save(1, None, [part(base.t()), part(base[:, 1], V), part(weights, "p")])
    checkpoint = checkpoints.newest()
    assert torch.equal(checkpoint.tensor(W), base.t())
    assert torch.equal(checkpoint.tensor(V), base[:, 1])
    assert torch.equal(checkpoint.tensor("p"), base)


# Training goes on meanwhile


def test_training_waits_for_the_copy_alone(checkpoints, gate):
    saver = Saver(checkpoints)
    started = time.monotonic()
    saver.begin(1, {"x": torch.ones(3)}, [part(torch.ones(1000))])
    assert time.monotonic() - started < 5
    assert gate.reached.wait(5)
    assert saver.is_busy
    assert not saver.wait(0.05)
    assert not saver.failure
    gate.opened.set()
    assert saver.wait(5)
    assert not saver.is_busy
    assert checkpoints.newest().step == 1


def test_what_changes_after_the_copy_does_not_change_what_is_saved(checkpoints, gate):
    saver = Saver(checkpoints)
    weights, half, flags = torch.arange(6.0), torch.ones(3, dtype=torch.bfloat16), torch.tensor([True, False])
    nested = {"list": [1, 2], "tensor": torch.zeros(2)}
    saver.begin(1, nested, [part(weights), part(half, V), part(flags, "flags")])
    weights.mul_(-1)
    half.zero_()
    flags.logical_not_()
    nested["tensor"].add_(1)
    nested["list"].append(3)
    nested["new"] = 1
    assert gate.reached.wait(5)
    weights.zero_()  # also once writing has begun
    gate.opened.set()
    assert saver.wait(5)
    checkpoint = checkpoints.newest()
    assert torch.equal(checkpoint.tensor(W), torch.arange(6.0))
    assert torch.equal(checkpoint.tensor(V), torch.ones(3, dtype=torch.bfloat16))
    assert torch.equal(checkpoint.tensor("flags"), torch.tensor([True, False]))
    assert checkpoint.state.keys() == {"list", "tensor"}
    assert checkpoint.state["list"] == [1, 2]
    assert torch.equal(checkpoint.state["tensor"], torch.zeros(2))


def test_at_most_one_is_in_flight_and_a_second_does_not_spoil_it(checkpoints, gate, monkeypatch):
    monkeypatch.setattr(saver_module, "FILE_BYTES", 8)
    saver = Saver(checkpoints)
    saver.begin(1, None, [part(torch.zeros(40))])
    assert gate.reached.wait(5)
    with pytest.raises(AssertionError):
        saver.begin(2, None, [part(torch.ones(40))])
    gate.opened.set()
    assert saver.wait(5)
    assert checkpoints.steps() == [1]
    assert torch.equal(checkpoints.newest().tensor(W), torch.zeros(40))


def test_the_copies_of_one_are_used_again_for_the_next(checkpoints, monkeypatch):
    places = []

    def spy(tensors):
        places.append({name: tensor.untyped_storage().data_ptr() for name, tensor in tensors.items()})
        return save(tensors)

    monkeypatch.setattr(saver_module, "save", spy)
    saver, weights = Saver(checkpoints), torch.zeros(1000)
    for step in (1, 2, 3):
        weights += 1
        saver.save(step, None, [part(weights), part(weights[:10], V)])
        assert torch.equal(checkpoints.newest().tensor(W), torch.full((1000,), float(step)))
        assert torch.equal(checkpoints.newest().tensor(V), torch.full((10,), float(step)))
    assert places[0] == places[1] == places[2]
    assert weights.untyped_storage().data_ptr() not in places[0].values()


def test_the_next_may_have_another_shape_or_type_or_other_tensors(checkpoints):
    saver = Saver(checkpoints)
    for step, tensors in enumerate(
        [
            {W: torch.arange(6.0)},
            {W: torch.arange(4.0).reshape(2, 2), V: torch.ones(1)},
            {W: torch.arange(4).reshape(4, 1)},
            {V: torch.zeros(0, 3)},
            {W: torch.arange(4.0, dtype=torch.float64).reshape(4)},
        ],
        start=1,
    ):
        saver.save(step, None, [part(tensor, name) for name, tensor in tensors.items()])
        checkpoint = checkpoints.newest()
        assert set(checkpoint.names("learners/")) == {name.removeprefix("learners/") for name in tensors}
        for name, tensor in tensors.items():
            assert checkpoint.tensor(name).dtype == tensor.dtype
            assert torch.equal(checkpoint.tensor(name), tensor)


def test_what_is_handed_over_is_let_go_of_when_it_is_written(checkpoints):
    saver = Saver(checkpoints, background=Background("one"))
    saver.save(1, {"big": torch.zeros(1000)}, [part(torch.zeros(10))])
    assert saver.wait(0)
    again = Saver(checkpoints, background=saver._background)  # the next trial's
    again.save(2, None)
    assert checkpoints.steps() == [1, 2]


def test_one_line_that_is_still_taken_holds_up_the_next_saver_and_is_said(checkpoints, gate):
    line = Background("one")
    before = Saver(checkpoints, background=line)
    before.begin(1, None)
    assert gate.reached.wait(5)
    after = Saver(checkpoints, background=line, patience=0.1)
    assert after.is_busy
    assert later(lambda: after.failure)
    assert after.failure.endswith("no answer (nothing written for 0 s)")
    gate.opened.set()
    assert after.wait(5)
    assert not after.failure
    after.save(2, None)
    assert checkpoints.steps() == [1, 2]


# What comes last counts


def test_files_go_in_parallel_the_rest_follows_in_its_order(checkpoints, wire, monkeypatch):
    monkeypatch.setattr(saver_module, "FILE_BYTES", 40)
    four, seen = threading.Barrier(4), []

    def before(path):
        if "rank-" in path or "state" in path:
            four.wait(5)  # so many at a time

    wire.before = before
    saver = Saver(checkpoints, attempt="a", before_commit=lambda: seen.append(list(wire.written)))
    saver.save(1, {"s": 1}, [part(torch.arange(70.0))])
    names = [f"00000001/rank-00000-{index:03d}-a.safetensors" for index in range(7)]
    assert sorted(wire.written[:8]) == [*names, "00000001/state-a.json"]
    assert wire.written[8:] == ["00000001/manifest-a.json"]
    assert seen == [wire.written[:8]]  # when all lay there, and before it counted


def test_what_must_be_there_before_a_checkpoint_counts_is_tried_until_it_is(checkpoints):
    fates = [UNAVAILABLE, UNAVAILABLE, None]

    def before_commit():
        assert not checkpoints.steps()
        fate = fates.pop(0)
        if fate:
            raise fate

    Saver(checkpoints, before_commit=before_commit).save(1, None)
    assert fates == []
    assert checkpoints.steps() == [1]


def test_what_can_never_be_there_before_a_checkpoint_counts_fails_it(checkpoints):
    def before_commit():
        raise REFUSED

    with pytest.raises(PharosError, match=r"^s3://lab/x: access denied$"):
        Saver(checkpoints, before_commit=before_commit).save(1, None)
    assert checkpoints.steps() == []


@pytest.mark.parametrize(
    "error", [UNAVAILABLE, REFUSED, PharosError("cannot remove"), PermissionError(13, "Permission denied")]
)
def test_what_need_not_be_kept_and_cannot_be_removed_does_not_fail_the_save(checkpoints, wire, caplog, error):
    saver = Saver(checkpoints, keep=Keep(last=1, best=0))
    saver.save(1, None)
    remove = Storage.remove_files

    def refuse(storage, paths):
        raise error

    Storage.remove_files = refuse  # `wire` restores it
    saver.save(2, {"s": 2})
    assert checkpoints.newest().state == {"s": 2}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    Storage.remove_files = remove
    saver.save(3, None)
    assert checkpoints.steps() == [3]  # what was too much went now


def test_a_store_that_fails_now_and_then_holds_nothing_up(checkpoints, wire):
    fates = iter([UNAVAILABLE, UNAVAILABLE, None] * 50)

    def before(path):
        fate = next(fates)
        if fate is not None:
            raise fate

    wire.before = before
    Saver(checkpoints).save(1, {"s": 1}, [part(torch.arange(5.0))])
    wire.before = lambda path: None
    assert torch.equal(checkpoints.newest().tensor(W), torch.arange(5.0))


# Failing


def test_without_progress_saving_has_failed_after_the_patience_with_the_reason(checkpoints, wire):
    wire.fail(UNAVAILABLE)
    saver = Saver(checkpoints, patience=0.3)
    started = time.monotonic()
    saver.begin(1, None)
    assert not saver.failure
    assert later(lambda: saver.failure)
    assert 0.3 <= time.monotonic() - started < 1
    assert saver.failure == "s3://lab/x: come back later (nothing written for 0 s)"
    saver.abandon()
    assert saver.wait(2)
    assert saver.failure
    assert checkpoints.files() == {}


def test_a_store_that_does_not_answer_has_failed_after_the_patience(checkpoints, storage, gate):
    saver = Saver(checkpoints, patience=0.2)
    saver.begin(1, None)
    assert later(lambda: saver.failure)
    assert saver.failure == f"{storage.root}: no answer (nothing written for 0 s)"
    gate.opened.set()
    assert saver.wait(5)


def test_before_there_is_anything_to_save_it_has_not_failed(checkpoints):
    saver = Saver(checkpoints, patience=0.0)
    time.sleep(0.02)
    assert not saver.failure
    saver.save(1, None)
    time.sleep(0.02)
    assert not saver.failure


def test_a_slow_store_that_gets_on_has_not_failed(checkpoints, wire, monkeypatch):
    monkeypatch.setattr(saver_module, "FILE_BYTES", 8)
    monkeypatch.setattr(saver_module, "in_parallel", lambda jobs: [job() for job in jobs])
    wire.before = lambda path: time.sleep(0.1)
    saver = Saver(checkpoints, patience=0.4)
    saver.save(1, None, [part(torch.arange(14.0))])  # nine files
    assert checkpoints.steps() == [1]


def test_a_refusal_fails_at_once(checkpoints, wire):
    wire.fail(REFUSED)
    saver = Saver(checkpoints, patience=300)
    started = time.monotonic()
    with pytest.raises(PharosError, match=r"^s3://lab/x: access denied$"):
        saver.save(1, {"s": 1}, [part(torch.arange(5.0))])
    assert time.monotonic() - started < 2
    assert saver.wait(2)
    assert saver.failure == "s3://lab/x: access denied"


def test_a_fault_of_ours_fails_at_once_in_one_line(checkpoints, storage, monkeypatch):
    def broken(tensors):
        raise RuntimeError("no such thing\nreally")

    monkeypatch.setattr(saver_module, "save", broken)
    with pytest.raises(PharosError, match=rf"^{storage.root}: no such thing$"):
        Saver(checkpoints, patience=300).save(1, None, [part(torch.ones(1))])
    assert checkpoints.steps() == []


@pytest.mark.parametrize("where", ["rank-", "state", "manifest"])
def test_what_is_abandoned_ends_and_does_not_count(checkpoints, wire, where):
    wire.fail(UNAVAILABLE, where)
    saver = Saver(checkpoints, patience=300)
    saver.begin(1, None, [part(torch.ones(3))])
    assert not saver.wait(0.1)
    saver.abandon()
    assert saver.wait(2)
    assert checkpoints.steps() == []


def test_after_a_failure_another_saver_saves_elsewhere(checkpoints, gate):
    """As a trial does that has lost its store: while the old line hangs, its last state goes to the node's disk."""
    gate.where = "-a."
    saver = Saver(checkpoints, attempt="a", patience=0.05)
    saver.begin(1, {"s": 1})
    assert later(lambda: saver.failure)
    saver.abandon()
    elsewhere = Checkpoints(Storage(f"memory://{secrets.token_hex(8)}"))
    Saver(elsewhere, attempt="rescue").save(1, {"s": 1})
    assert elsewhere.newest().state == {"s": 1}
    gate.opened.set()
    assert saver.wait(5)


# Several workers


def halves(tensor):
    """What two workers hold of it."""
    flat, middle = tensor.reshape(-1), tensor.numel() // 2
    return [Part(W, flat[:middle], tuple(tensor.shape)), Part(W, flat[middle:], tuple(tensor.shape), middle)]


def savers(checkpoints, size, **options):
    board = HashStore()
    return [Saver(checkpoints, World(rank, size, board=board), attempt="a", **options) for rank in range(size)]


def test_rank_0_waits_for_a_slow_worker_for_as_long_as_that_gets_on(checkpoints, wire, monkeypatch):
    monkeypatch.setattr(saver_module, "FILE_BYTES", 16)
    wire.before = lambda path: time.sleep(0.2 if "rank-00001" in path else 0)
    first, second = savers(checkpoints, 2, patience=0.6)
    one, two = halves(torch.arange(160.0))  # 20 files of the second's, four at a time: a second in all
    first.begin(1, {"s": 1}, [one])
    second.begin(1, None, [two])
    waited = time.monotonic()
    while not first.wait(0.02):
        assert not first.failure
    assert time.monotonic() - waited > 0.9
    assert torch.equal(checkpoints.newest().tensor(W), torch.arange(160.0))


def test_rank_0_says_what_a_worker_fails_of(checkpoints, wire):
    wire.fail(StorageError("the bucket is on fire", is_final=False), "rank-00001")
    first, second = savers(checkpoints, 2, patience=0.5)
    one, two = halves(torch.arange(6.0))
    first.begin(1, {"s": 1}, [one])
    second.begin(1, None, [two])
    assert later(lambda: first.failure)
    assert "worker 1: the bucket is on fire" in first.failure
    for saver in (first, second):
        saver.abandon()
    assert first.wait(10)
    assert second.wait(10)
    assert checkpoints.steps() == []


def test_a_checkpoint_counts_when_the_last_worker_has_written(checkpoints, storage, wire, gate):
    gate.where = "rank-00001"
    first, second = savers(checkpoints, 2)
    one, two = halves(torch.arange(6.0))
    first.begin(1, {"s": 1}, [one])
    second.begin(1, None, [two])
    assert gate.reached.wait(5)
    assert later(lambda: len(wire.written) == 2)
    assert not first.wait(0.1)
    assert checkpoints.steps() == []
    gate.opened.set()
    assert first.wait(5)
    assert second.wait(5)
    assert wire.written[-1] == "00000001/manifest-a.json"
    assert torch.equal(checkpoints.newest().tensor(W), torch.arange(6.0))


def test_workers_save_one_after_the_other_and_what_they_told_is_not_told_again(checkpoints):
    both = savers(checkpoints, 2)
    for step in (1, 2, 3):
        tensor = torch.arange(6.0) * step
        for saver, own in zip(both, halves(tensor), strict=True):
            saver.begin(step, {"s": step}, [own])
        assert all(saver.wait(5) for saver in both)
        assert not any(saver.failure for saver in both)
        assert torch.equal(checkpoints.newest().tensor(W), tensor)
        assert checkpoints.newest().state == {"s": step}


@pytest.mark.parametrize("error", [REFUSED, PharosError("cannot write: No space left on device")])
def test_what_one_worker_cannot_write_fails_rank_0_with_its_reason(checkpoints, wire, error):
    wire.fail(error, "rank-00001")
    first, second = savers(checkpoints, 2, patience=300)
    one, two = halves(torch.arange(6.0))
    first.begin(1, {"s": 1}, [one])
    second.begin(1, None, [two])
    assert first.wait(5)
    assert second.wait(5)
    assert second.failure == str(error)
    assert first.failure == f"worker 1: {error}"
    assert checkpoints.steps() == []


def test_a_worker_that_is_stuck_fails_itself_with_the_reason_and_rank_0_too(checkpoints, wire):
    wire.fail(UNAVAILABLE, "rank-00001")
    first, second = savers(checkpoints, 2, patience=0.2)
    one, two = halves(torch.arange(6.0))
    first.begin(1, {"s": 1}, [one])
    second.begin(1, None, [two])
    assert later(lambda: first.failure and second.failure)
    assert second.failure == "s3://lab/x: come back later (nothing written for 0 s)"
    for saver in (first, second):
        saver.abandon()
        assert saver.wait(2)
    assert checkpoints.steps() == []


def test_rank_0_that_is_abandoned_waits_for_nobody(checkpoints):
    first, _ = savers(checkpoints, 2)
    first.begin(1, None)
    assert not first.wait(0.1)
    first.abandon()
    assert first.wait(2)
    assert first.failure == "worker 1 has not written its part"
    assert checkpoints.steps() == []


def test_a_note_of_another_step_or_attempt_is_not_taken_for_this_one(checkpoints):
    board = HashStore()
    stale = [Saver(checkpoints, World(1, 2, board=board), attempt=attempt) for attempt in ("a", "b")]
    stale[0].save(1, None, [part(torch.ones(1))])
    stale[1].save(2, None, [part(torch.ones(1))])
    first = Saver(checkpoints, World(0, 2, board=board), attempt="b")
    first.begin(1, None)
    assert not first.wait(0.1)
    first.abandon()
    assert first.wait(2)
    assert checkpoints.steps() == []


def test_a_worker_that_cannot_tell_anybody_says_so_and_its_line_goes_on(checkpoints):
    class Gone:
        def set(self, key, note):
            raise RuntimeError("Connection reset by peer")

    line = Background("one")
    saver = Saver(checkpoints, World(1, 2, board=Gone()), background=line)
    saver.begin(1, None, [part(torch.ones(1))])
    assert saver.wait(5)
    assert saver.failure.endswith(": Connection reset by peer")
    Saver(checkpoints, background=line).save(2, {"s": 2})
    assert checkpoints.newest().state == {"s": 2}


# Killed


class Killed(BaseException):
    """The process dies here."""


def weights_of(step, attempt=""):
    return torch.arange(9.0) * 10 + step + (ord(attempt[0]) if attempt else 0)


def hand_over(saver, step, attempt=""):
    state = {"step": step, "attempt": attempt, "copy": weights_of(step, attempt)}
    parts = [part(weights_of(step, attempt)), part(weights_of(step, attempt) * 2, V)]
    saver.save(step, state, parts, value=-float(step))


def assert_whole(checkpoint):
    """All of it is one attempt's."""
    step, attempt = checkpoint.state["step"], checkpoint.state["attempt"]
    assert checkpoint.step == step
    for tensor in (checkpoint.state["copy"], checkpoint.tensor(W), checkpoint.tensor(V) / 2):
        assert torch.equal(tensor, weights_of(step, attempt))


@pytest.fixture
def in_order(monkeypatch):
    """Files of a few bytes, one after the other."""
    monkeypatch.setattr(saver_module, "FILE_BYTES", 40)
    for module in (saver_module, checkpoint_module):
        monkeypatch.setattr(module, "in_parallel", lambda jobs: [job() for job in jobs])


class Inline:
    """A background that is none."""

    def __init__(self):
        self.idle = threading.Event()
        self.idle.set()

    def start(self, job):
        job()


@pytest.mark.parametrize("keep", [Keep(), Keep(last=1, best=0), Keep(last=2, best=0), Keep(last=1, best=2, mode="max")])
def test_a_kill_between_any_two_changes_leaves_the_checkpoint_before_or_the_new_one_whole(in_order, wire, keep):
    """The process dies before its n-th write or removal in the third save, for all n."""
    outcomes = []
    for changes in itertools.count():
        checkpoints = Checkpoints(new_storage())
        wire.before = lambda path: None
        saver = Saver(checkpoints, attempt="a", keep=keep, background=Inline())
        hand_over(saver, 1, "a")
        hand_over(saver, 2, "a")
        left = [True] * changes

        def before(path, left=left):
            if not left:
                raise Killed
            left.pop()

        wire.before = before
        try:
            hand_over(saver, 3, "a")
            killed = False
        except Killed:
            killed = True
        wire.before = lambda path: None
        found = Checkpoints(checkpoints.storage)
        newest = found.newest()
        assert_whole(newest)
        assert newest.step == found.steps()[-1]
        outcomes.append(newest.step)
        before_sweep = {step: set(files) for step, files in found.files().items()}
        found.remove_stale()
        assert found.newest().step == newest.step
        for step, files in found.files().items():
            assert files.keys() <= before_sweep[step]
            (name,) = filter(is_manifest, files)
            assert set(found.storage.read_json(f"{step:08d}/{name}")["files"]) | {name} == set(files)
        hand_over(Saver(found, attempt="b", keep=keep), newest.step + 1, "b")  # the next attempt goes on
        assert_whole(found.newest())
        assert found.newest().step == newest.step + 1
        if not killed:
            break
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == 2
    assert outcomes[-1] == 3
    assert len(outcomes) > 5


@pytest.mark.parametrize("lost", ["rank-00000-000", "rank-00000-001", "state", "manifest"])
def test_a_node_that_is_cut_off_from_its_bucket_while_it_saves_leaves_the_checkpoint_before(
    proxy, url, direct, in_order, lost
):
    home = Storage(url, {"endpoint_url": proxy.url}, patience=0)
    saver = Saver(Checkpoints(home), attempt="a", patience=300)
    hand_over(saver, 1, "a")

    def before(method, path):
        proxy.down |= method == "PUT" and f"00000002/{lost}" in path

    proxy.before = before
    saver.begin(2, {"step": 2, "attempt": "a"}, [part(torch.arange(20.0))])
    assert later(lambda: proxy.down)
    found = Checkpoints(direct)
    assert found.newest().step == 1
    assert_whole(found.newest())
    found.remove_stale()
    assert list(found.files()) == [1]
    saver.abandon()
    assert saver.wait(5)


def test_in_a_bucket_with_faults_of_every_kind_every_checkpoint_arrives(proxy, url, direct, monkeypatch):
    monkeypatch.setattr(saver_module, "FILE_BYTES", 40)
    proxy.rate, proxy.stall_seconds = 0.2, 0.05
    saver = Saver(Checkpoints(Storage(url, {"endpoint_url": proxy.url})), attempt="a", patience=20)
    for step in range(1, 6):
        hand_over(saver, step, "a")
        assert_whole(Checkpoints(direct).newest())
        assert Checkpoints(direct).newest().step == step
    proxy.rate = 0.0
    hand_over(saver, 6, "a")
    assert Checkpoints(direct).steps() == [5, 6]
    assert set(proxy.counts) <= set(Fault)
    assert proxy.counts  # one request in five is hit by chance; how many are is no promise of ours


# Several attempts


FILES = st.sampled_from(["rank-00000-000-a.safetensors", "rank-00000-001-b.safetensors", "state-c.json", "x"])


@settings(max_examples=40)
@given(
    committed=st.lists(st.integers(1, 4), unique=True, max_size=3),
    junk=st.lists(st.tuples(st.integers(1, 6), FILES), max_size=8),
    held=st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["pbt", "promotion"])), max_size=3),
)
def test_what_was_never_committed_is_swept_away_and_nothing_else(committed, junk, held):
    checkpoints = Checkpoints(new_storage())
    saver = Saver(checkpoints, keep=Keep(last=9), attempt="whole")
    for step in sorted(committed):
        hand_over(saver, step)
    expected = checkpoints.files()
    for step, name in junk:
        checkpoints.storage.write_bytes(f"{step:08d}/{name}", b"junk")
    for step, who in held:
        checkpoints.hold(step, who)
        expected.setdefault(step, {})[f"held-{who}"] = 0
    checkpoints.remove_stale()
    assert checkpoints.files() == expected
    for step in committed:
        assert_whole(checkpoints.at(step, "manifest-whole.json"))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b"{}", b'{"step": 2}'])
def test_a_checkpoint_whose_manifest_is_damaged_is_left_to_be_looked_at(checkpoints, storage, damage, caplog):
    saver = Saver(checkpoints)
    for step in (1, 2):
        hand_over(saver, step)
    storage.write_bytes("00000002/manifest.json", damage)
    files = checkpoints.files()
    checkpoints.remove_stale()
    assert checkpoints.files() == files
    assert checkpoints.newest().step == 1
    assert storage.path("00000002") in caplog.text


class Player:
    """A thread that does one operation on a storage at a time, when it is told to."""

    def __init__(self, work):
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self.has_ended, self.error = False, None
        thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        thread.player = self
        thread.start()
        assert self._paused.acquire(timeout=10)

    def _run(self, work):
        self.pause()
        try:
            work()
        except BaseException as error:
            self.error = error
        self.has_ended = True
        self._paused.release()

    def pause(self):
        self._paused.release()
        assert self._go.acquire(timeout=10)

    def move(self):
        """Lets it do one operation; says whether it did."""
        if self.has_ended:
            return False
        self._go.release()
        assert self._paused.acquire(timeout=10)
        return True


@pytest.fixture
def turns(in_order, monkeypatch):
    """Lets each storage operation of a player wait for its turn."""
    for name in ("write_bytes", "remove_files", "read_bytes", "sizes"):
        operate = getattr(Storage, name)

        def in_turn(*arguments, operate=operate):
            player = getattr(threading.current_thread(), "player", None)
            if player is not None:
                player.pause()
            return operate(*arguments)

        monkeypatch.setattr(Storage, name, in_turn)


def play(players, schedule, check):
    """Gives the players their turns, and then lets them end, the last one of the schedule at last."""
    for index in schedule:
        if players[index].move():
            check()
    last = schedule[-1] if schedule else 0
    for player in (players[1 - last], players[last]):
        while player.move():
            check()
        if player.error is not None:
            raise player.error


SCHEDULES = st.lists(st.integers(0, 1), max_size=40)


@settings(max_examples=30)
@given(schedule=SCHEDULES)
def test_two_attempts_that_write_the_same_step_always_leave_one_whole(turns, schedule):
    checkpoints = Checkpoints(new_storage())
    hand_over(Saver(checkpoints, attempt="0", background=Inline()), 1, "0")

    def attempt(word):
        saver = Saver(Checkpoints(checkpoints.storage), attempt=word, background=Inline())
        return Player(lambda: hand_over(saver, 2, word))

    play([attempt("a"), attempt("b")], schedule, lambda: assert_whole(Checkpoints(checkpoints.storage).newest()))
    newest = Checkpoints(checkpoints.storage).newest()
    assert newest.step == 2
    assert_whole(newest)


@pytest.mark.parametrize("has_saved", [True, False])
@settings(max_examples=30)
@given(schedule=SCHEDULES)
@example(schedule=[0, *[1] * 60])
@example(schedule=[0, 0, 0, *[1] * 60])
def test_an_attempt_that_was_thought_dead_spoils_nothing_of_the_next_one(turns, has_saved, schedule):
    """The next attempt sweeps, goes on from what it finds and saves twice, while the old one ends its own save."""
    checkpoints = Checkpoints(new_storage())
    old = Saver(Checkpoints(checkpoints.storage), attempt="a", background=Inline())
    hand_over(old if has_saved else Saver(checkpoints, attempt="0", background=Inline()), 1, "a")

    def go_on():
        found = Checkpoints(checkpoints.storage)
        found.remove_stale()
        start = found.newest().step
        saver = Saver(found, attempt="b", background=Inline())
        for step in (start + 1, start + 2):
            hand_over(saver, step, "b")

    def check():
        newest = Checkpoints(checkpoints.storage).newest()
        assert newest is not None, "no checkpoint is left"
        assert_whole(newest)

    play([Player(lambda: hand_over(old, 2, "a")), Player(go_on)], schedule, check)


def test_no_file_of_one_attempt_has_the_name_of_another_s(checkpoints, storage, wire):
    for word in ("a", "b"):
        hand_over(Saver(checkpoints, attempt=word), 1, word)
    names = wire.written
    assert len(names) == len(set(names))


# What stays


def test_what_need_not_be_kept_goes_with_the_next_save(checkpoints):
    saver = Saver(checkpoints, keep=Keep(last=2, best=1, every=10, mode="min"))
    for step, value in ((5, 3.0), (9, 0.5), (11, 2.0), (15, math.nan), (19, 1.0), (23, 4.0), (25, 5.0)):
        saver.save(step, None, value=value)
    assert checkpoints.steps() == [9, 11, 23, 25]


def test_the_objective_lies_in_the_manifest_for_the_next_attempt_to_know(checkpoints, storage):
    for step, value in ((1, 1.0), (2, 3.0), (3, 2.0), (4, None)):
        Saver(checkpoints, keep=Keep(last=1, best=1)).save(step, None, value=value)  # each time a new attempt
    assert checkpoints.steps() == [1, 4]
    assert json.loads(storage.read_bytes("00000001/manifest.json"))["value"] == 1.0


def test_removing_is_asked_once_and_does_not_wait_for_a_store(checkpoints, monkeypatch):
    patiences = []
    apply = Retention.apply
    monkeypatch.setattr(
        Retention,
        "apply",
        lambda self, *arguments: patiences.append(self._checkpoints.storage.patience) or apply(self, *arguments),
    )
    Saver(checkpoints).save(1, None)
    assert patiences == [0]
