"""A trial's growing files: written on its node, and in the store soon, in their order, and whole as far as they go."""

import contextlib
import logging
import random
import secrets
import threading
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bucket import OPTIONS, FaultyProxy
from pharos import background
from pharos.errors import StorageError
from pharos.spool import Spool, node_folder
from pharos.storage import Storage

NAMES = ["log", "metrics.jsonl"]


def later(condition, seconds=5.0):
    """Waits until something is so; says whether it came to be."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("spool-")]


def new_home():
    """A trial's folder in a store; what others hold in memory is forgotten."""
    MemoryFileSystem.store.clear()
    return Storage(f"memory://{secrets.token_hex(8)}/sweep/trials/00000", patience=0)


@pytest.fixture
def home():
    return new_home()


@pytest.fixture
def open_spool(tmp_path, monkeypatch):
    """Opens spools, by default of the node `a`; none of their threads outlives the test."""
    monkeypatch.setattr(background, "pauses", lambda: iter(lambda: 0.01, None))
    spools = []

    def open_spool(home, node="a", seconds=60.0, names=NAMES):
        spools.append(Spool(home, node_folder(home, str(tmp_path / node)), names, seconds))
        return spools[-1]

    yield open_spool
    for spool in spools:
        if spool._outbox is not None:
            spool._outbox.close()
    assert later(lambda: not threads())


def append(spool, name, *lines):
    for line in lines:
        spool.folder.append_line(name, line)


def held(storage):
    """The files of a folder."""
    return {name: storage.read_bytes(name) for name in storage.sizes()}


def test_on_a_disk_the_files_lie_where_they_belong_and_nothing_is_mirrored(tmp_path, open_spool):
    home = Storage(str(tmp_path / "home"))
    home.write_bytes("metrics.jsonl", b"1\n")
    spool = open_spool(home)
    assert spool.folder.root == home.root
    append(spool, "metrics.jsonl", "2")
    assert not threads()
    spool.mirror()
    spool.replace("metrics.jsonl", b"3\n")
    spool.close(5)
    spool.forget()
    assert held(home) == {"metrics.jsonl": b"3\n"}
    assert not (tmp_path / "a").exists()


def test_each_folder_has_its_own_place_on_a_node(tmp_path):
    homes = [Storage(f"memory://{sweep}/trials/{trial}") for sweep in "ab" for trial in ("00000", "00001")]
    places = [node_folder(home, str(tmp_path)).root for home in homes]
    assert len(set(places)) == 4
    assert all(Path(place).is_relative_to(tmp_path) for place in places)
    assert [node_folder(home, str(tmp_path)).root for home in homes] == places
    assert [Path(place).name[:6] for place in places] == ["00000-", "00001-"] * 2


def test_what_grew_is_mirrored_and_what_did_not_is_not_sent_again(home, open_spool, monkeypatch):
    spool, sent, write = open_spool(home), [], Storage.write_bytes
    monkeypatch.setattr(Storage, "write_bytes", lambda *arguments: sent.append(arguments[1:]) or write(*arguments))
    spool.mirror()
    assert sent == []  # what does not exist is not made
    append(spool, "log", "one")
    spool.mirror()
    append(spool, "metrics.jsonl", "1")
    append(spool, "log", "two")
    spool.mirror()
    spool.mirror()
    assert sent == [("log", b"one\n"), ("log", b"one\ntwo\n"), ("metrics.jsonl", b"1\n")]
    assert held(home) == {"log": b"one\ntwo\n", "metrics.jsonl": b"1\n"}


def test_it_is_mirrored_every_so_many_seconds(home, open_spool):
    spool = open_spool(home, seconds=0.05)
    for index in range(3):
        append(spool, "log", str(index))
        assert later(lambda: home.read_lines("log")[-1:] == [str(index)])  # noqa: B023 - it is waited for here
    assert [thread.daemon for thread in threads()] == [True]


def test_an_attempt_on_another_node_goes_on_from_what_the_store_has(home, open_spool):
    first = open_spool(home)
    append(first, "metrics.jsonl", "1", "2")
    first.mirror()
    append(first, "metrics.jsonl", "3")  # and the node is gone
    second = open_spool(home, "b")
    assert held(second.folder) == {"metrics.jsonl": b"1\n2\n"}
    append(second, "metrics.jsonl", "3'")
    second.mirror()
    assert home.read_bytes("metrics.jsonl") == b"1\n2\n3'\n"


@pytest.mark.parametrize(
    ("store", "here", "after"),
    [
        (b"1\n", b"1\n2\n", b"1\n2\n"),  # it was killed before that was mirrored
        (None, b"1\n", b"1\n"),
        (b"1\n2\n", b"1\n", b"1\n2\n"),  # an attempt elsewhere went on
        (b"1\n3\n", b"1\n2\n", b"1\n3\n"),
        (b"1\n3\n", b"1\n2\n4\n", b"1\n3\n"),
        (b"1\n", None, b"1\n"),
        (None, None, None),
    ],
)
def test_an_attempt_on_the_same_node_keeps_what_only_goes_on_from_the_store_s(home, open_spool, store, here, after):
    before = open_spool(home)
    if here is not None:
        before.folder.write_bytes("log", here)
    if store is not None:
        home.write_bytes("log", store)
    spool = open_spool(home)
    assert held(spool.folder).get("log") == after
    append(spool, "log", "5")
    spool.mirror()
    assert home.read_bytes("log") == (after or b"") + b"5\n"


def test_what_an_attempt_on_the_same_node_kept_is_mirrored_before_it_grows(home, open_spool):
    append(open_spool(home), "log", "one")
    open_spool(home).mirror()
    assert held(home) == {"log": b"one\n"}


def test_files_that_are_not_its_own_are_left_alone(home, open_spool):
    home.write_bytes("log.1", b"another worker's\n")
    spool = open_spool(home)
    append(spool, "wandb", "x")
    append(spool, "log.1", "x")
    append(spool, "log", "mine")
    spool.close(5)
    assert held(home) == {"log.1": b"another worker's\n", "log": b"mine\n"}
    assert held(spool.folder) == {"wandb": b"x\n", "log.1": b"x\n"}


def test_what_cannot_be_read_from_the_store_is_an_error_and_not_an_empty_file(home, open_spool, monkeypatch):
    def refuse(storage, path):
        raise StorageError("no answer", is_final=False)

    monkeypatch.setattr(Storage, "read_bytes", refuse)
    with pytest.raises(StorageError, match="no answer"):
        open_spool(home)
    assert not threads()


@pytest.mark.parametrize("data", [b"1\n", b"3\n4\n", b"", b"1\n2\n3\n"])
def test_a_file_that_is_written_anew_is_mirrored_whatever_its_length(home, open_spool, data):
    home.write_bytes("metrics.jsonl", b"1\n2\n")
    spool = open_spool(home)
    spool.replace("metrics.jsonl", data)
    spool.mirror()
    assert home.read_bytes("metrics.jsonl") == data
    append(spool, "metrics.jsonl", "5")
    spool.mirror()
    assert home.read_bytes("metrics.jsonl") == data + b"5\n"


def test_a_file_that_is_gone_here_stops_nothing(home, open_spool):
    home.write_bytes("metrics.jsonl", b"tor")  # cut off: its trial begins anew
    spool = open_spool(home)
    spool.folder.remove("metrics.jsonl")
    append(spool, "log", "one")
    spool.mirror()
    assert home.read_bytes("log") == b"one\n"
    append(spool, "metrics.jsonl", "12")  # as long as what was cut off
    spool.mirror()
    assert home.read_bytes("metrics.jsonl") == b"12\n"


class Slow:
    """Holds up the first write of a file to the store until it is told to go on."""

    def __init__(self, monkeypatch, home):
        self.began, self.goes = threading.Event(), threading.Event()
        self.arrived = []
        write = Storage.write_bytes

        def write_bytes(storage, path, data):
            if storage.root == home.root:
                if not self.began.is_set():
                    self.began.set()
                    assert self.goes.wait(10)
                self.arrived.append((path, data))
            write(storage, path, data)

        monkeypatch.setattr(Storage, "write_bytes", write_bytes)


def test_an_older_copy_never_arrives_after_a_newer_one(home, open_spool, monkeypatch):
    """The line's own thread mirrors, and so does the saver's before a checkpoint counts."""
    slow, spool = Slow(monkeypatch, home), open_spool(home)
    append(spool, "metrics.jsonl", "1")
    older = threading.Thread(target=spool.mirror)
    older.start()
    assert slow.began.wait(5)
    append(spool, "metrics.jsonl", "2")
    newer = threading.Thread(target=spool.mirror)
    newer.start()
    newer.join(0.1)
    assert newer.is_alive()
    slow.goes.set()
    older.join(5)
    newer.join(5)
    assert slow.arrived == [("metrics.jsonl", b"1\n"), ("metrics.jsonl", b"1\n2\n")]


@pytest.mark.parametrize("data", [b"7\n8\n", b"7\n", b"7\n8\n9\n"])
def test_what_is_written_anew_while_the_old_is_on_its_way_follows_it(home, open_spool, monkeypatch, data):
    slow, spool = Slow(monkeypatch, home), open_spool(home)
    append(spool, "metrics.jsonl", "1", "2")
    older = threading.Thread(target=spool.mirror)
    older.start()
    assert slow.began.wait(5)
    anew = threading.Thread(target=lambda: spool.replace("metrics.jsonl", data))
    anew.start()
    anew.join(0.1)
    slow.goes.set()
    older.join(5)
    anew.join(5)
    spool.mirror()
    assert home.read_bytes("metrics.jsonl") == data


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), writers=st.integers(1, 3), fails=st.booleans())
def test_whoever_mirrors_the_store_only_ever_has_more(tmp_path_factory, seed, writers, fails):
    home, chance = new_home(), random.Random(seed)
    spool = Spool(home, node_folder(home, str(tmp_path_factory.mktemp("node"))), ["log"], 0.003)
    lengths, done, write = [], threading.Event(), Storage.write_bytes

    def write_bytes(storage, path, data):
        if storage.root == home.root:
            if fails and chance.random() < 0.3:
                raise StorageError("come back later", is_final=False)
            time.sleep(chance.random() / 500)
            write(storage, path, data)
            lengths.append(len(data))
        else:
            write(storage, path, data)

    def mirror():
        while not done.is_set():
            with contextlib.suppress(StorageError):
                spool.mirror()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "pauses", lambda: iter(lambda: 0.001, None))
        patch.setattr(Storage, "write_bytes", write_bytes)
        mirrors = [threading.Thread(target=mirror) for _ in range(writers)]
        for thread in mirrors:
            thread.start()
        for index in range(60):
            append(spool, "log", f"line {index}")
        done.set()
        for thread in mirrors:
            thread.join(5)
        spool.close(10)
    assert lengths == sorted(lengths)
    assert home.read_lines("log") == [f"line {index}" for index in range(60)]


def test_once_all_is_mirrored_the_node_forgets_it(home, open_spool, tmp_path):
    spool = open_spool(home)
    append(spool, "log", "one")
    append(spool, "metrics.jsonl", "1")
    with spool.folder.locked(0.0):
        spool.close(5)
        assert held(home) == {"log": b"one\n", "metrics.jsonl": b"1\n"}
        assert later(lambda: not threads())
        assert [path.name for path in Path(spool.folder.root).iterdir()] == [".lock"]
        spool.forget()
    assert not Path(spool.folder.root).exists()
    assert list((tmp_path / "a" / "spool").iterdir()) == []


@pytest.mark.parametrize("is_final", [False, True])
def test_what_could_not_be_mirrored_stays_and_is_named(home, open_spool, monkeypatch, caplog, is_final):
    write = Storage.write_bytes

    def refuse(storage, path, data):
        if storage.root == home.root:
            raise StorageError("s3://lab: no, sorry", is_final=is_final)
        write(storage, path, data)

    spool = open_spool(home)
    append(spool, "log", "one")
    monkeypatch.setattr(Storage, "write_bytes", refuse)
    started = time.monotonic()
    spool.close(0.2)
    assert time.monotonic() - started < 2
    assert held(spool.folder) == {"log": b"one\n"}
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "s3://lab: no, sorry" in record.message
    assert record.message.endswith(f"; what is not there lies in {spool.folder.root}")
    assert later(lambda: not threads())
    spool.forget()
    assert held(spool.folder) == {"log": b"one\n"}
    assert held(home) == {}


def test_a_store_that_comes_back_in_time_gets_all_of_it(home, open_spool, monkeypatch):
    write, back = Storage.write_bytes, threading.Event()

    def away(storage, path, data):
        if storage.root == home.root and not back.is_set():
            raise StorageError("come back later", is_final=False)
        write(storage, path, data)

    spool = open_spool(home)
    append(spool, "log", "one")
    monkeypatch.setattr(Storage, "write_bytes", away)
    threading.Timer(0.2, back.set).start()
    spool.close(10)
    assert held(home) == {"log": b"one\n"}
    assert held(spool.folder) == {}


def test_a_timer_that_is_due_while_it_closes_loses_nothing(open_spool, caplog):
    for index in range(30):
        home = new_home()
        spool = open_spool(home, node=f"n{index}", seconds=0.0005)
        append(spool, "log", "one")
        spool.close(5)
        assert held(home) == {"log": b"one\n"}
        assert held(spool.folder) == {}
    assert later(lambda: not threads())
    assert not caplog.records


def test_a_folder_with_something_else_in_it_is_not_forgotten(home, open_spool):
    spool = open_spool(home)
    spool.folder.write_bytes("checkpoints/00000001/manifest.json", b"rescued")
    append(spool, "log", "one")
    spool.close(5)
    spool.forget()
    assert held(spool.folder) == {"checkpoints/00000001/manifest.json": b"rescued"}


def test_in_a_bucket_with_faults_of_every_kind_all_of_it_arrives(server, url, direct, open_spool):
    with FaultyProxy(server.url, rate=0.3, seed=4, stall_seconds=0.05) as proxy:
        home = Storage(url, {"endpoint_url": proxy.url, **OPTIONS}, patience=20)
        spool = open_spool(home, seconds=0.02)
        for index in range(40):
            append(spool, "log", f"line {index}")
            append(spool, "metrics.jsonl", str(index))
            time.sleep(0.005)
        spool.close(20)
        assert proxy.counts.total() > 2
        proxy.rate = 0.0
    assert direct.read_lines("log") == [f"line {index}" for index in range(40)]
    assert direct.read_lines("metrics.jsonl") == [str(index) for index in range(40)]
    assert held(spool.folder) == {}
    assert set(direct.sizes()) == {"log", "metrics.jsonl"}


def test_a_file_that_is_added_later_goes_to_the_store_too_and_leaves_nothing_here(open_spool, home):
    spool = open_spool(home)
    spool.add("pictures/a.png", b"first")
    spool.add("pictures/a.png", b"other")
    spool.close(5)
    assert held(home) == {"pictures/a.png": b"other"}
    spool.forget()
    assert not Path(spool.folder.root).exists()
