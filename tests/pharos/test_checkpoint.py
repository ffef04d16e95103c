"""Checkpoints: what goes in comes out, a checkpoint is whole or does not count, and nothing is unpickled."""

import hashlib
import json
import logging
import math
import pickle
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import nn
from torch._C._distributed_c10d import HashStore

from pharos.checkpoint import Checkpoints, Part, is_hold, seal
from pharos.errors import PharosError
from pharos.saver import Saver
from pharos.storage import Storage
from pharos.world import World

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
FILES = ("state.json", "rank-00000-000.safetensors", "manifest.json")


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "checkpoints"))


@pytest.fixture
def checkpoints(storage):
    return Checkpoints(storage)


def save(checkpoints, step, state, parts=(), world=None, *, attempt="", **about):
    """Saves one checkpoint, with a saver of its own."""
    Saver(checkpoints, world, attempt=attempt).save(step, state, parts, **about)


def state_of(step):
    return {"step": step, "weights": torch.full((3,), float(step)), "betas": (0.9, 0.99)}


def newest(checkpoints):
    """The step and the state of the newest."""
    checkpoint = checkpoints.newest()
    return checkpoint.step, checkpoint.state


def same(a, b):
    """Equality of nested states: types, keys and their order, dtypes, shapes, bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        pairs = list(zip(a.items(), b.items(), strict=False))
        return len(a) == len(b) and all(same(x, y) and same(v, w) for (x, v), (y, w) in pairs)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


TENSORS = st.builds(
    lambda shape, dtype, seed: torch.randint(
        0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 9),
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=4)
KEYS = st.sampled_from(["a", "b", "a/b", "/", "", "0", "$tensor", "$tuple", "$pairs"]) | st.integers(-2, 2)
STATES = st.recursive(
    TENSORS | SCALARS,
    lambda inner: (
        st.dictionaries(KEYS, inner, max_size=3) | st.lists(inner, max_size=3) | st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=10,
)


@settings(max_examples=60)
@given(state=STATES)
def test_any_nested_state_comes_back_as_it_was(tmp_path_factory, state):
    checkpoints = Checkpoints(Storage(str(tmp_path_factory.mktemp("any"))))
    save(checkpoints, 3, state)
    step, restored = newest(checkpoints)
    assert step == 3
    assert same(restored, state), (restored, state)


@pytest.mark.parametrize(
    "keys", [{1: 0, "1": 1}, {"a/b": 0, "a": {"b": 1}}, {"a": [0], "a/0": 1}, {True: 0, "True": 1}]
)
def test_tensors_under_keys_that_look_alike_stay_apart(checkpoints, keys):
    def with_tensors(value):
        if isinstance(value, dict):
            return {key: with_tensors(item) for key, item in value.items()}
        return [with_tensors(item) for item in value] if isinstance(value, list) else torch.tensor([value])

    state = with_tensors(keys)
    save(checkpoints, 1, state)
    assert same(checkpoints.newest().state, state)


def test_optimiser_moments_come_back_and_fit_the_optimiser(checkpoints):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save(checkpoints, 1, optimizer.state_dict())
    restored = checkpoints.newest().state
    assert same(restored["state"], optimizer.state_dict()["state"])
    torch.optim.Adam(module.parameters()).load_state_dict(restored)


def test_tied_weights_and_views_are_saved_by_value(checkpoints):
    embedding = nn.Embedding(4, 3)
    head = nn.Linear(3, 4, bias=False)
    head.weight = embedding.weight
    tied = nn.ModuleDict({"embedding": embedding, "head": head}).state_dict()
    base = torch.arange(6.0)
    save(checkpoints, 1, {"tied": dict(tied), "view": base[::2], "turned": base.view(2, 3).t(), "base": base})
    restored = checkpoints.newest().state
    assert same(restored["tied"], dict(tied))
    assert torch.equal(restored["view"], base[::2])
    assert torch.equal(restored["turned"], base.view(2, 3).t())


def test_a_saved_state_does_not_follow_later_changes(checkpoints):
    weights = torch.zeros(2)
    save(checkpoints, 1, {"weights": weights})
    weights += 1
    assert torch.equal(checkpoints.newest().state["weights"], torch.zeros(2))


@pytest.mark.parametrize(
    "foreign", [object(), {1, 2}, b"bytes", {"a": [nn.Linear(1, 1)]}, {(1, 2): 0}, 1 + 2j, [lambda: None]]
)
def test_foreign_objects_are_refused_and_the_checkpoint_before_stays(checkpoints, storage, foreign):
    saver = Saver(checkpoints)
    saver.save(1, state_of(1))
    with pytest.raises(TypeError, match="a checkpoint cannot hold"):
        saver.save(2, {"x": foreign})
    assert checkpoints.newest().step == 1
    assert storage.list() == ["00000001"]
    saver.save(3, state_of(3))  # nothing of the refused one holds it up
    assert checkpoints.newest().step == 3


def test_the_message_says_where_the_foreign_object_lies(checkpoints):
    with pytest.raises(TypeError, match=r"best/1.*set"):
        save(checkpoints, 1, {"best": [0, set()]})


def test_there_is_none_at_first(checkpoints):
    assert checkpoints.newest() is None
    assert checkpoints.newest_path() is None


def test_the_two_newest_are_kept(checkpoints, storage):
    for step in (1, 2, 10, 100):
        save(checkpoints, step, state_of(step))
    assert storage.list() == ["00000010", "00000100"]
    assert same(newest(checkpoints), (100, state_of(100)))
    assert checkpoints.newest_path() == storage.path("00000100")
    assert checkpoints.steps() == [10, 100]


def test_leftovers_of_a_later_step_never_push_out_the_valid_ones(checkpoints, storage):
    for step in (7, 8, 9):
        save(checkpoints, step, state_of(step))
    for folder in ("00000008", "00000009"):
        Path(storage.path(folder, "state.json")).write_text("{}")
    assert Checkpoints(storage).newest() is None
    for step in (3, 4):  # the trial starts again from nothing
        save(checkpoints, step, state_of(step))
        assert same(newest(Checkpoints(storage)), (step, state_of(step)))
    Path(storage.path("00000004", "state.json")).write_text("{}")
    assert same(newest(checkpoints), (3, state_of(3)))


def test_two_attempts_at_a_step_lie_side_by_side_and_write_no_file_twice(checkpoints, storage, monkeypatch):
    written, write = [], Storage.write_bytes
    monkeypatch.setattr(
        Storage, "write_bytes", lambda self, path, data: written.append(path) or write(self, path, data)
    )
    save(checkpoints, 1, state_of(1), attempt="a")
    save(checkpoints, 1, state_of(5), attempt="b")
    assert len(written) == len(set(written)) == 6
    assert same(newest(checkpoints), (1, state_of(1))) or same(newest(checkpoints), (1, state_of(5)))
    checkpoints.remove_stale()
    assert len(storage.list("00000001")) == 6
    # Either is used when the other is damaged.
    for name, other in (("a", 5), ("b", 1)):
        path = f"00000001/state-{name}.json"
        data = storage.read_bytes(path)
        storage.write_bytes(path, b"damaged")
        assert same(newest(checkpoints), (1, state_of(other)))
        storage.write_bytes(path, data)


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def deaths(monkeypatch):
    """What the threads died of that write."""
    found = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda death: found.put(death.exc_type))
    return found


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_kill_before_any_write_leaves_the_checkpoint_before(checkpoints, storage, monkeypatch, deaths, before):
    save(checkpoints, 1, state_of(1))
    write, calls = Storage.write_bytes, []

    def dying(self, path, data):
        calls.append(path)
        if len(calls) > before:
            raise Killed
        write(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", dying)
        save(checkpoints, 2, state_of(2), attempt="killed")
    assert deaths.get(timeout=10) is Killed
    assert same(newest(Checkpoints(storage)), (1, state_of(1)))
    assert checkpoints.newest_path() == storage.path("00000001")
    save(checkpoints, 2, state_of(2), attempt="next")
    assert same(newest(checkpoints), (2, state_of(2)))


def test_what_a_kill_left_goes_when_the_next_attempt_begins(checkpoints, storage, monkeypatch, deaths):
    save(checkpoints, 1, state_of(1), attempt="a")
    whole = storage.list("00000001")
    write = Storage.write_bytes

    def dying(self, path, data):
        if "manifest" in path:
            raise Killed
        write(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", dying)
        for step in (1, 2):
            save(checkpoints, step, state_of(step), attempt="killed")
    assert [deaths.get(timeout=10) for _ in range(2)] == [Killed, Killed]
    assert storage.list("00000002") == ["rank-00000-000-killed.safetensors", "state-killed.json"]
    assert storage.list("00000001") == sorted([*whole, "rank-00000-000-killed.safetensors", "state-killed.json"])
    checkpoints.remove_stale()
    assert storage.list() == ["00000001"]
    assert storage.list("00000001") == whole
    assert same(newest(checkpoints), (1, state_of(1)))


def test_the_manifest_is_written_last_and_is_the_third_file(checkpoints, monkeypatch):
    written = []
    monkeypatch.setattr(Storage, "write_bytes", lambda self, path, data: written.append(path))
    save(checkpoints, 1, state_of(1))
    assert sorted(Path(path).name for path in written[:2]) == sorted(FILES[:2])  # side by side
    assert [Path(path).name for path in written[2:]] == [FILES[2]]


def test_without_its_manifest_a_checkpoint_does_not_exist(checkpoints, storage, caplog):
    for step in (1, 2):
        save(checkpoints, step, state_of(step))
    storage.remove("00000002/manifest.json")
    assert same(newest(checkpoints), (1, state_of(1)))
    assert checkpoints.newest_path() == storage.path("00000001")
    assert not caplog.records  # nothing is wrong: it was never committed


@pytest.mark.parametrize("name", FILES[:2])
def test_any_flipped_byte_is_noticed_and_logged_with_its_path(checkpoints, storage, caplog, name):
    for step in (1, 2):
        save(checkpoints, step, state_of(step))
    path = Path(storage.path("00000002", name))
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        caplog.clear()
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert same(newest(checkpoints), (1, state_of(1)))
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert storage.path("00000002") in caplog.text
        assert name in caplog.text


def test_a_flipped_byte_of_the_manifest_never_gives_a_wrong_state(checkpoints, storage, caplog):
    for step in (1, 2):
        save(checkpoints, step, state_of(step))
    path = Path(storage.path("00000002", "manifest.json"))
    whole = path.read_bytes()
    rejected = 0
    for position in range(len(whole)):
        for bit in (1, 0x80):
            caplog.clear()
            path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
            step, state = newest(checkpoints)
            assert same(state, state_of(step))
            assert bool(caplog.records) == (step == 1)
            rejected += step == 1
    assert rejected == 2 * len(whole)  # all of them: every byte is under the manifest's own checksum


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_gives_the_checkpoint_before(checkpoints, storage, caplog, name):
    for step in (1, 2):
        save(checkpoints, step, state_of(step))
    path = Path(storage.path("00000002", name))
    whole = path.read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        assert same(newest(checkpoints), (1, state_of(1)))
        assert storage.path("00000002") in caplog.text


def test_when_all_are_damaged_there_is_none(checkpoints, storage):
    for step in (1, 2):
        save(checkpoints, step, state_of(step))
        Path(storage.path(f"{step:08d}", "state.json")).write_text("[]")
    assert checkpoints.newest() is None


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(checkpoints, monkeypatch):
    save(checkpoints, 1, state_of(1))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PharosError, match="No space left on device") as error:
        save(checkpoints, 2, state_of(2))
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert checkpoints.newest().step == 1


def test_the_files_are_safetensors_and_json_and_loading_never_unpickles(checkpoints, storage, monkeypatch):
    save(checkpoints, 1, {"module": nn.Linear(2, 1).state_dict(), "pairs": {0: (1, torch.ones(1))}})

    def forbidden(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, forbidden)
    assert storage.list("00000001") == sorted(FILES)
    assert len(load(storage.read_bytes("00000001/rank-00000-000.safetensors"))) == 3
    json.loads(storage.read_bytes("00000001/state.json"))
    manifest = storage.read_json("00000001/manifest.json")
    assert manifest["step"] == 1
    assert manifest["files"]["state.json"]["bytes"] == len(storage.read_bytes("00000001/state.json"))
    assert checkpoints.newest().step == 1


def together(size, work):
    """What each of so many workers, threads of this process, returns or raises, by rank."""
    board = HashStore()
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(work, World(rank, size, board=board)) for rank in range(size)]
        return [future.exception() or future.result() for future in futures]


def pieces_of(tensor, cuts):
    """A tensor's elements cut at these places, one piece a worker; a worker without any elements holds nothing."""
    flat, ends = tensor.reshape(-1), [*cuts, tensor.numel()]
    starts = [0, *cuts]
    return [
        [Part("learners/net/weights/w", flat[start:end], tuple(tensor.shape), start)] if end > start else []
        for start, end in zip(starts, ends, strict=True)
    ]


def save_pieces(checkpoints, step, parts, state=None, attempt=""):
    """Saves with as many workers as there are lists of parts; what each of them raised."""

    def save_own(world):
        save(checkpoints, step, state, parts[world.rank], world, attempt=attempt)

    return together(len(parts), save_own)


@st.composite
def split_tensors(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    count = math.prod(shape)
    workers = draw(st.integers(1, 4))
    cuts = sorted(draw(st.lists(st.integers(0, count), min_size=workers - 1, max_size=workers - 1)))
    start = draw(st.integers(0, count))
    seed, dtype = draw(st.integers(0, 9)), draw(st.sampled_from([torch.float32, torch.float16, torch.int64]))
    values = torch.randint(0, 1000, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return values, cuts, start, draw(st.integers(0, count - start))


@settings(max_examples=60)
@given(case=split_tensors())
def test_what_several_workers_hold_of_a_tensor_comes_back_whole_or_in_any_run(tmp_path_factory, case):
    tensor, cuts, start, count = case
    checkpoints = Checkpoints(Storage(str(tmp_path_factory.mktemp("split"))))
    parts = pieces_of(tensor, cuts)
    assert save_pieces(checkpoints, 1, parts) == [None] * len(parts)
    assert checkpoints.newest_path() == checkpoints.storage.path("00000001")
    checkpoint = checkpoints.newest()
    assert checkpoint.world_size == len(parts)
    assert checkpoint.names("learners/net/") == ["weights/w"]
    assert checkpoint.shape("learners/net/weights/w") == tuple(tensor.shape)
    assert same(checkpoint.tensors("learners/net/"), {"weights/w": tensor})
    assert same(checkpoint.elements("learners/net/weights/w", start, count), tensor.reshape(-1)[start : start + count])


def test_rank_0_gives_the_state_and_each_worker_what_it_alone_holds(checkpoints, storage):
    own = [torch.full((2,), float(rank)) for rank in range(3)]

    def save_own(world):
        part = Part.whole(f"learners/net/weights/{world.rank}", own[world.rank])
        state = {"rank": world.rank, "t": own[world.rank]}
        save(checkpoints, 4, state, [part], world, engine={"name": "torch"}, value=world.rank + 0.5)

    assert together(3, save_own) == [None] * 3
    checkpoint = checkpoints.newest()
    assert same(checkpoint.state, {"rank": 0, "t": own[0]})
    assert same(checkpoint.tensors("learners/net/weights/"), {str(rank): own[rank] for rank in range(3)})
    ranks = [f"rank-{rank:05d}-000.safetensors" for rank in range(3)]
    assert storage.list("00000004") == sorted(["state.json", "manifest.json", *ranks])
    manifest = storage.read_json("00000004/manifest.json")
    assert (manifest["world_size"], manifest["engine"]) == (3, {"name": "torch"})
    assert (manifest["state"], manifest["value"]) == ("state.json", 0.5)


def test_what_one_worker_has_verified_another_reads_by_its_step(checkpoints):
    for step in (1, 2):
        save_pieces(checkpoints, step, pieces_of(torch.arange(6.0) * step, [2]), state_of(step))
    again = checkpoints.at(1, "manifest.json")
    assert same((again.step, again.state, again.world_size), (1, state_of(1), 2))
    assert same(again.tensor("learners/net/weights/w"), torch.arange(6.0))


def damage_missing(path):
    path.unlink()


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_changed(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("damage", [damage_missing, damage_truncated, damage_changed])
def test_a_worker_s_file_that_is_damaged_gives_the_checkpoint_before(checkpoints, storage, caplog, damage, rank):
    tensor = torch.arange(6.0)
    for step in (1, 2):
        save_pieces(checkpoints, step, pieces_of(tensor * step, [2, 4]), state_of(step))
    name = f"rank-{rank:05d}-000.safetensors"
    damage(Path(storage.path("00000002", name)))
    assert same(newest(checkpoints), (1, state_of(1)))
    assert same(checkpoints.newest().tensor("learners/net/weights/w"), tensor)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert storage.path("00000002") in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_a_worker_that_cannot_write_is_named_by_rank_0_and_there_is_no_manifest(
    checkpoints, storage, monkeypatch, refused
):
    parts = pieces_of(torch.arange(6.0), [2, 4])
    save_pieces(checkpoints, 1, parts, state_of(1))
    write = Storage.write_bytes

    def full(self, path, data):
        if f"rank-{refused:05d}" in path:
            raise PharosError(f"cannot write {path}: No space left on device")
        write(self, path, data)

    monkeypatch.setattr(Storage, "write_bytes", full)
    answers = save_pieces(checkpoints, 2, parts, state_of(2))
    monkeypatch.undo()
    reason = f"cannot write 00000002/rank-{refused:05d}-000.safetensors: No space left on device"
    said = [answer and (type(answer), str(answer)) for answer in answers]
    expected = [None] * 3  # the others have written their own parts
    expected[refused] = (PharosError, reason)
    expected[0] = (PharosError, f"worker {refused}: {reason}" if refused else reason)
    assert said == expected
    assert not storage.exists("00000002/manifest.json")
    assert same(newest(checkpoints), (1, state_of(1)))
    assert checkpoints.newest_path() == storage.path("00000001")


def test_pieces_that_do_not_make_up_the_whole_are_one_line_when_they_are_read(checkpoints):
    first, _, third = pieces_of(torch.arange(6.0), [2, 4])
    save_pieces(checkpoints, 1, [first, third])
    checkpoint = checkpoints.newest()
    name = "learners/net/weights/w"
    for read in (lambda: checkpoint.tensor(name), lambda: checkpoint.elements(name, 1, 2)):
        with pytest.raises(PharosError, match="the pieces of learners/net/weights/w do not make up the whole") as error:
            read()
        assert "\n" not in str(error.value)
    assert same(checkpoint.elements(name, 0, 2), torch.arange(2.0))
    assert same(checkpoint.elements(name, 4, 2), torch.arange(4.0, 6.0))


def test_nothing_is_committed_before_rank_0_has_written_the_manifest(checkpoints, storage, monkeypatch, caplog, deaths):
    parts = pieces_of(torch.arange(6.0), [2, 4])
    save_pieces(checkpoints, 1, parts, state_of(1))
    write, written = Storage.write_bytes, []

    def dying(self, path, data):
        if path.endswith("manifest.json"):
            written.append(self.list("00000002"))
            raise Killed
        write(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", dying)
        save_pieces(checkpoints, 2, parts, state_of(2))
    assert deaths.get(timeout=10) is Killed
    # All other files lay there by then, and rank 0 alone writes the manifest.
    assert written == [[*(f"rank-{rank:05d}-000.safetensors" for rank in range(3)), "state.json"]]
    assert same(newest(checkpoints), (1, state_of(1)))
    assert checkpoints.newest_path() == storage.path("00000001")
    assert not caplog.records


def test_a_smaller_group_takes_the_place_of_a_larger_one_whose_files_are_damaged(checkpoints, storage):
    tensor = torch.arange(6.0)
    save_pieces(checkpoints, 1, pieces_of(tensor, [2, 4]), attempt="large")
    storage.write_bytes("00000001/rank-00001-000-large.safetensors", b"damaged")
    assert checkpoints.newest() is None
    save_pieces(checkpoints, 1, pieces_of(tensor + 1, [3]), attempt="small")
    assert checkpoints.newest().world_size == 2
    assert same(checkpoints.newest().tensor("learners/net/weights/w"), tensor + 1)


def test_a_learner_s_tensor_may_be_empty_or_tied(checkpoints):
    shared = torch.arange(3.0)
    parts = [Part.whole("learners/a/weights/empty", torch.zeros(0, 2))]
    parts += [Part.whole(f"learners/a/weights/{name}", shared) for name in ("x", "y")]
    save(checkpoints, 1, None, parts)
    assert same(
        checkpoints.newest().tensors("learners/a/weights/"), {"empty": torch.zeros(0, 2), "x": shared, "y": shared}
    )


# A copy for another trial


@pytest.fixture
def other(tmp_path):
    """The checkpoints of the trial that is to start from those of the first."""
    return Checkpoints(Storage(str(tmp_path / "other")))


def held(checkpoints):
    """The steps that somebody holds."""
    return [step for step, files in checkpoints.files().items() if any(map(is_hold, files))]


def test_a_copy_of_the_newest_is_the_whole_of_it_and_holds_nothing_afterwards(checkpoints, storage, other):
    for step in (1, 2):
        save(checkpoints, step, state_of(step), attempt="theirs", value=step + 0.5)
    before = checkpoints.files()
    assert checkpoints.copy_newest(other, "00007")
    assert same(newest(other), (2, state_of(2)))
    assert other.files() == {2: before[2]}
    assert other.value(2) == 2.5
    assert checkpoints.files() == before
    other.remove_stale()
    assert other.files() == {2: before[2]}
    save(other, 3, state_of(3))  # it goes on from there, and the first is as it was
    assert same(newest(other), (3, state_of(3)))
    assert checkpoints.files() == before


def test_without_a_checkpoint_there_is_no_copy(checkpoints, storage, other):
    assert not checkpoints.copy_newest(other, "00007")
    storage.write_bytes("00000001/state.json", b"{}")  # never committed
    assert not checkpoints.copy_newest(other, "00007")
    assert other.files() == {}
    assert held(checkpoints) == []


def test_a_damaged_checkpoint_is_not_copied_but_the_one_before(checkpoints, storage, other, caplog):
    for step in (1, 2):
        save(checkpoints, step, state_of(step))
    storage.write_bytes("00000002/state.json", b"damaged")
    assert checkpoints.copy_newest(other, "00007")
    assert same(newest(other), (1, state_of(1)))
    assert "00000002 is damaged" in caplog.text


def test_what_several_workers_have_saved_is_copied_whole(checkpoints, other):
    tensor = torch.arange(7.0)
    assert save_pieces(checkpoints, 3, pieces_of(tensor, [2, 2]), state_of(3)) == [None] * 3
    assert checkpoints.copy_newest(other, "00007")
    copy = other.newest()
    assert (copy.world_size, copy.step) == (3, 3)
    assert same(copy.tensors("learners/net/"), {"weights/w": tensor})


def test_while_it_is_copied_the_trial_may_go_on_and_thin_out_its_checkpoints(checkpoints, other, monkeypatch):
    save(checkpoints, 1, state_of(1))
    write, busy = Storage.write_bytes, []

    def meanwhile(self, path, data):
        if self.root.startswith(other.storage.root) and not busy:
            busy.append(path)
            for step in (2, 3, 4):
                save(checkpoints, step, state_of(step))
        write(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", meanwhile)
        assert checkpoints.copy_newest(other, "00007")
    assert busy
    assert same(newest(other), (1, state_of(1)))
    assert checkpoints.steps() == [1, 3, 4]
    save(checkpoints, 5, state_of(5))
    assert checkpoints.steps() == [4, 5]  # nobody holds it any more


def test_one_that_was_going_when_it_was_held_gives_the_next(checkpoints, other, monkeypatch):
    save(checkpoints, 1, state_of(1))
    hold, goes = Checkpoints.hold, []

    def too_late(self, step, who):
        if not goes:
            goes.append(step)
            save(checkpoints, 2, state_of(2))
            self.remove(step, self.files()[step])
        hold(self, step, who)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "hold", too_late)
        assert checkpoints.copy_newest(other, "00007")
    assert goes == [1]
    assert same(newest(other), (2, state_of(2)))
    assert held(checkpoints) == []


def test_a_kill_at_any_write_of_a_copy_leaves_the_whole_or_nothing_and_the_next_one_makes_it(
    checkpoints, other, monkeypatch
):
    save(checkpoints, 1, state_of(1))
    whole, write, remove = checkpoints.files(), Storage.write_bytes, Storage.remove
    calls, left = [], set()
    for kill_at in range(100):
        calls.clear()

        def dying(act, *arguments, kill_at=kill_at):
            calls.append(act)
            if len(calls) == kill_at + 1:
                raise Killed
            act(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write_bytes", lambda self, path, data: dying(write, self, path, data))
            patch.setattr(Storage, "remove", lambda self, path: dying(remove, self, path))
            try:
                checkpoints.copy_newest(other, "00007")
            except Killed:
                pass
            else:
                break
        found = other.newest()
        assert found is None or same(found.state, state_of(1))
        left.add((found is not None, bool(held(checkpoints))))
        # As the next attempt does.
        other.remove_stale()
        assert other.files() == ({} if found is None else whole)
        checkpoints.release_all("00007")
        if found is None:
            assert checkpoints.copy_newest(other, "00007")
        assert same(newest(other), (1, state_of(1)))
        assert (other.files(), checkpoints.files()) == (whole, whole)
        other.remove(1, other.files()[1])
    assert len(calls) == kill_at == len(FILES) + 2
    assert left == {(False, False), (False, True), (True, True)}
    checkpoints.hold(1, "00008")
    checkpoints.release_all("00007")
    assert held(checkpoints) == [1]  # another's stays


@pytest.mark.parametrize("name", ["../00000001/state.json", "/etc/hostname", "..", ""])
def test_a_manifest_that_names_what_lies_elsewhere_is_damaged(checkpoints, storage, other, caplog, name):
    for step in (1, 2):
        save(checkpoints, step, state_of(step))
    data = storage.read_bytes("00000001/state.json")
    manifest = json.loads(storage.read_bytes("00000002/manifest.json"))
    del manifest["sha256"]
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    storage.write_bytes("00000002/manifest.json", seal(manifest))
    assert newest(checkpoints)[0] == 1
    assert "no file of its folder" in caplog.text
    assert checkpoints.copy_newest(other, "00007")
    assert list(other.files()) == [1]


@pytest.mark.parametrize("put", [b"", pickle.dumps({"w": 1}), b"\xff" * 8, json.dumps({}).encode()])
@pytest.mark.parametrize("has_state", [True, False])
def test_a_file_without_tensors_gives_the_checkpoint_before_though_its_checksum_fits(
    checkpoints, storage, caplog, put, has_state
):
    for step in (1, 2):
        part = Part.whole("learners/net/weights/w", torch.full((3,), float(step)))
        save(checkpoints, step, state_of(step) if has_state else {"step": step}, [part])
    shard = FILES[1]
    storage.write_bytes(f"00000002/{shard}", put)
    manifest = json.loads(storage.read_bytes("00000002/manifest.json"))
    del manifest["sha256"]
    manifest["files"][shard] = {"bytes": len(put), "sha256": hashlib.sha256(put).hexdigest()}
    storage.write_bytes("00000002/manifest.json", seal(manifest))
    assert newest(checkpoints)[0] == 1
    assert f"{shard} holds no tensors" in caplog.text
