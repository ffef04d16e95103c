"""A study's journal in a store: whole lines, never lost once they were pushed, and one driver at a time."""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bucket import OPTIONS
from pharos import background, mirror
from pharos.background import Outbox
from pharos.errors import InputError, StorageError
from pharos.mirror import StudyMirror, fetch_journal, ours
from pharos.storage import Storage, StorageConfig


def new_home():
    """A sweep's folder in a store; what others hold in memory is forgotten."""
    MemoryFileSystem.store.clear()
    return Storage(f"memory://{secrets.token_hex(8)}/sweep", patience=0)


@pytest.fixture
def home():
    return new_home()


class Machine:
    """A machine that drivers run on, with a disk of its own."""

    def __init__(self, folder):
        self.journal = folder / "study.journal"
        self.name = f"machine-{folder.name}"
        self.notes = []
        folder.mkdir(parents=True, exist_ok=True)

    def drive(self, home, seconds=0.04, rdb=False):
        """A driver that starts here."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mirror, "_boot", lambda: self.name)
            patch.setattr(mirror.socket, "gethostname", lambda: self.name)
            driver = StudyMirror(home, None if rdb else self.journal, seconds, self.notes.append)
        if not rdb:
            self.journal.touch()
        return driver

    def write(self, text):
        with self.journal.open("ab") as file:
            file.write(text.encode())

    @property
    def text(self):
        return self.journal.read_text()


@pytest.fixture
def machines(tmp_path):
    return (Machine(tmp_path / f"{number}") for number in itertools.count())


@pytest.fixture
def here(machines):
    return next(machines)


def segments(home):
    """What lies in the store as segments, by name."""
    return {name: home.read_bytes(f"study/{name}").decode() for name in home.list("study")}


def pointer(home):
    return home.read_json("study.json")


def change_pointer(home, **changes):
    home.write_json("study.json", {**pointer(home), **changes})


def fetched(home, tmp_path):
    fetch_journal(home, tmp_path / "fetched")
    return (tmp_path / "fetched").read_text()


def line(index):
    return f'{{"op": {index}}}\n'


# Segments


def test_each_push_adds_what_is_new_and_changes_nothing_that_was_there(home, here, tmp_path):
    driver, before = here.drive(home), {}
    for index in range(5):
        here.write(line(index) * (index + 1))
        driver.push()
        present = segments(home)
        assert before.items() <= present.items()
        assert len(present) == index + 1
        assert fetched(home, tmp_path) == here.text
        before = present
    assert [present[each["name"]] for each in pointer(home)["segments"]] == [
        line(index) * (index + 1) for index in range(5)
    ]


def test_a_push_without_anything_new_is_a_beat(home, here):
    driver = here.drive(home)
    here.write(line(0))
    driver.push()
    before, files = pointer(home), segments(home)
    for _ in range(3):
        driver.push()
    assert segments(home) == files
    assert pointer(home) == {**before, "beat": before["beat"] + 3}


def test_a_torn_last_line_is_not_pushed_before_it_is_whole(home, here, tmp_path):
    driver = here.drive(home)
    here.write('{"op"')
    driver.push()
    assert segments(home) == {}
    here.write(": 0}\n" + line(1) + '{"op": "zwei \u00fc"')
    driver.push()
    assert fetched(home, tmp_path) == '{"op": 0}\n{"op": 1}\n'
    here.write("}\n")
    driver.push()
    assert fetched(home, tmp_path) == here.text


def test_segments_that_have_become_many_are_put_together_and_go_some_beats_later(home, here, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_MANY", 4)
    driver = here.drive(home)
    for index in range(4):
        here.write(line(index))
        driver.push()
    old = segments(home)
    assert len(old) == 4
    driver.push()
    assert segments(home) == old  # not without need
    here.write(line(4))
    driver.push()
    [one] = pointer(home)["segments"]
    assert segments(home) == {**old, one["name"]: here.text}  # a reader may still want them
    for _ in range(mirror._LINGER):
        assert old.keys() <= segments(home).keys()
        driver.push()
        assert fetched(home, tmp_path) == here.text
    assert segments(home) == {one["name"]: here.text}
    for index in range(5, 30):
        here.write(line(index))
        driver.push()
        assert len(pointer(home)["segments"]) <= 4
        assert len(segments(home)) <= 4 + 4 + 1
        assert fetched(home, tmp_path) == here.text


def test_a_study_in_a_database_has_a_heartbeat_and_no_segments(home, here):
    driver = here.drive(home, rdb=True)
    driver.push()
    assert not here.journal.exists()
    assert set(home.sizes()) == {"study.json"}
    assert pointer(home)["segments"] == []
    driver.close()
    here.drive(home, rdb=True)


def test_a_pointer_says_who_drives_and_no_secret(home, here):
    here.drive(home, seconds=10.0)
    found = pointer(home)
    assert (found["host"], found["pid"], found["every"], found["is_open"]) == (here.name, os.getpid(), 10.0, True)
    assert set(found) == {"driver", "host", "boot", "pid", "every", "beat", "is_open", "segments"}


# A driver that starts elsewhere


def test_a_machine_that_has_nothing_gets_the_same_bytes(home, machines):
    first, second = next(machines), next(machines)
    driver = first.drive(home)
    for index in range(7):
        first.write(line(index) + "zwei \u00fc\n")
        driver.push()
    driver.close()
    again = second.drive(home)
    assert second.journal.read_bytes() == first.journal.read_bytes()
    assert second.notes == []
    second.write(line(8))
    again.push()
    again.close()
    third = next(machines)
    third.drive(home)
    assert third.text == second.text


def test_a_journal_here_that_only_goes_on_from_the_store_s_stays(home, here, tmp_path):
    """The driver was killed before its last push."""
    here.drive(home).push()
    here.write(line(0))
    here.drive(home).push()
    here.write(line(1) + '{"torn')
    journal = here.text
    driver = here.drive(home)
    assert here.text == journal
    assert all("did not say that it ended" in note for note in here.notes)  # nothing of another journal
    driver.push()
    assert fetched(home, tmp_path) == line(0) + line(1)


@pytest.mark.parametrize("here_too", [line(5), line(5) + line(6) + line(7), ""])
def test_a_journal_here_that_the_store_s_does_not_begin_like_is_kept_aside(home, machines, here_too):
    first, second = next(machines), next(machines)
    driver = first.drive(home)
    first.write(line(0))
    driver.push()
    driver.close()
    other = second.drive(home)
    second.write(line(1) + line(2))
    other.push()
    other.close()
    first.write(here_too)
    before = first.text
    first.drive(home)
    assert first.text == line(0) + line(1) + line(2)
    [aside] = [path for path in first.journal.parent.iterdir() if path != first.journal]
    assert aside.read_text() == before
    assert first.notes == [
        f"another driver has gone on with this sweep; what this machine had of its study is kept as {aside}"
    ]


def test_a_sweep_that_is_new_to_the_store_takes_what_is_here(home, here, tmp_path):
    here.write(line(0))
    here.drive(home).push()
    assert fetched(home, tmp_path) == line(0)


def test_what_a_killed_driver_left_half_done_goes_when_the_next_begins(home, machines):
    first, second = next(machines), next(machines)
    driver = first.drive(home)
    first.write(line(0))
    driver.push()
    known = segments(home)
    home.write_bytes("study/000009-00000000.journal", b"never listed\n")
    second.drive(home)
    assert segments(home) == known


DAMAGES = {
    "missing": lambda home, path: home.remove(path),
    "truncated": lambda home, path: home.write_bytes(path, home.read_bytes(path)[:-1]),
    "changed": lambda home, path: home.write_bytes(path, b"X" + home.read_bytes(path)[1:]),
    "empty": lambda home, path: home.write_bytes(path, b""),
}


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_segment_that_is_damaged_or_missing_is_named_in_one_line(home, machines, tmp_path, damage, which):
    first, second = next(machines), next(machines)
    driver = first.drive(home)
    for index in range(3):
        first.write(line(index))
        driver.push()
    driver.close()
    name = pointer(home)["segments"][which]["name"]
    DAMAGES[damage](home, f"study/{name}")
    before = home.sizes()
    for act in (lambda: second.drive(home), lambda: fetched(home, tmp_path)):
        with pytest.raises(InputError, match=r"put a copy of it back$") as error:
            act()
        assert str(error.value).startswith(f"{home.path('study', name)}: ")
        assert "\n" not in str(error.value)
    assert home.sizes() == before  # a copy can still be put back
    assert not second.journal.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '"x"', "{}", '{"segments": 3}', '{"segments": [{"name": 1}]}', '{"beat": 1}']
)
def test_a_pointer_that_is_damaged_is_named_in_one_line(home, here, tmp_path, text):
    home.write_bytes("study.json", text.encode())
    for act in (lambda: here.drive(home), lambda: fetched(home, tmp_path)):
        with pytest.raises(InputError, match=r"/study\.json: damaged; put a copy of it back$") as error:
            act()
        assert "\n" not in str(error.value)
    assert home.read_bytes("study.json") == text.encode()


def test_without_a_study_there_is_nothing_to_fetch(home, tmp_path):
    with pytest.raises(InputError, match=r"/study\.json: no such study; name a sweep's folder$"):
        fetched(home, tmp_path)


# Killed, and cut off


class Killed(BaseException):
    """The process dies here."""


class Wire:
    """All changes of the store; the n-th may be the last, or get lost."""

    def __init__(self, patch, home):
        self.home, self.before, self.after = home, lambda: None, lambda: None
        for name in ("write_bytes", "remove", "remove_files"):

            def change(storage, *arguments, change=getattr(Storage, name)):  # noqa: B008 - each its own
                if storage.root != self.home.root:
                    return change(storage, *arguments)
                self.before()
                change(storage, *arguments)
                return self.after()

            patch.setattr(Storage, name, change)


WRITES = st.lists(st.sampled_from(["push", "push", "push", "line", "line", "lines", "torn"]), min_size=1, max_size=25)


def act_out(machine, driver, actions, pushed=lambda: None):
    """A driver that writes its journal and pushes."""
    for index, action in enumerate(actions):
        if action == "push":
            driver.push()
            pushed()
        else:
            machine.write({"line": line(index), "lines": line(index) * 3, "torn": '{"to'}[action])
            if action == "torn":
                machine.write(f'rn": {index}}}\n' if index % 2 else "")


@settings(max_examples=80)
@given(
    actions=WRITES,
    more=WRITES,
    changes=st.integers(0, 40),
    lands=st.booleans(),
    many=st.integers(1, 3),
    linger=st.integers(0, 3),
)
def test_after_a_kill_at_any_moment_the_next_machine_has_all_that_was_pushed(  # noqa: PLR0917
    tmp_path_factory, actions, more, changes, lands, many, linger
):
    home, folder = new_home(), tmp_path_factory.mktemp("machines")
    first, second, third = (Machine(folder / name) for name in "123")
    left, safe = iter(range(changes)), ""

    def kill():
        if next(left, None) is None:
            raise Killed

    def pushed():
        nonlocal safe
        safe = first.text[: first.text.rfind("\n") + 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "_MANY", many)
        patch.setattr(mirror, "_LINGER", linger)
        wire = Wire(patch, home)
        setattr(wire, "after" if lands else "before", kill)
        with contextlib.suppress(Killed):
            act_out(first, first.drive(home, seconds=0.001), actions, pushed)
        wire.before = wire.after = lambda: None
        driver = second.drive(home, seconds=0.001)
        restored = second.text if second.journal.exists() else ""
        assert (first.text if first.journal.exists() else "").startswith(restored)
        assert restored.startswith(safe)
        assert restored == "" or restored.endswith("\n")
        assert set(segments(home)) == {each["name"] for each in pointer(home)["segments"]}
        act_out(second, driver, more)
        driver.close()
        third.drive(home, seconds=0.001)
        assert third.text == second.text[: second.text.rfind("\n") + 1]


@settings(max_examples=40)
@given(actions=WRITES, seed=st.integers(0, 10**6), rate=st.sampled_from([0.1, 0.5]), many=st.integers(1, 3))
def test_a_push_that_fails_now_and_then_is_tried_again_and_loses_nothing(tmp_path_factory, actions, seed, rate, many):
    home, folder, chance = new_home(), tmp_path_factory.mktemp("machines"), random.Random(seed)
    first, second = (Machine(folder / name) for name in "12")

    def fail():
        if chance.random() < rate:
            raise StorageError("come back later", is_final=False)

    class Patient:
        def __init__(self, driver):
            self.driver = driver

        def push(self):
            while True:
                with contextlib.suppress(StorageError):
                    return self.driver.push()

    def check():
        fetch_journal(home, folder / "fetched")
        assert (folder / "fetched").read_text() == first.text[: first.text.rfind("\n") + 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "_MANY", many)
        wire = Wire(patch, home)
        driver = first.drive(home)
        wire.before = wire.after = fail
        act_out(first, Patient(driver), actions, check)
        wire.before = wire.after = lambda: None
        driver.close()
        second.drive(home)
        assert second.text == first.text[: first.text.rfind("\n") + 1]


def test_in_a_bucket_with_faults_of_every_kind_the_whole_journal_arrives(proxy, url, direct, here, tmp_path):
    proxy.rate, proxy.stall_seconds = 0.25, 0.05
    home = Storage(url, {"endpoint_url": proxy.url, **OPTIONS}, patience=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "_MANY", 4)
        patch.setattr(background, "pauses", lambda: itertools.repeat(0.005))
        driver = here.drive(home)
        outbox = Outbox("study-of-a-test", home.root)
        outbox.every(0.05, "study", driver.push)
        for index in range(8):
            here.write(line(index))
            outbox.put("study", driver.push)
            time.sleep(0.03)
        outbox.put("close", driver.close)
        outbox.flush(20)
        outbox.close()
    assert proxy.counts.total() > 2
    assert fetched(direct, tmp_path) == here.text
    assert pointer(direct)["is_open"] is False


# One driver at a time


def test_a_driver_that_lives_elsewhere_is_left_alone(home, machines):
    first, second = next(machines), next(machines)
    driver = first.drive(home, seconds=0.2)
    first.write(line(0))
    driver.push()
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            driver.push()

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(
        InputError, match=rf"the driver on {first.name}, process {os.getpid()}, is working on it"
    ) as error:
        second.drive(home)
    ended.set()
    heart.join()
    assert str(error.value).endswith("; wait for it or stop it first")
    assert second.notes == [
        f"the driver on {first.name}, process {os.getpid()}, did not say that it ended; waiting 0 s for a sign of life"
    ]
    driver.push()  # nothing was taken from it
    assert not second.journal.exists()


def test_a_driver_that_has_fallen_silent_is_replaced_after_two_and_a_half_of_its_own_intervals(home, machines):
    first, second = next(machines), next(machines)
    driver = first.drive(home, seconds=0.2)
    first.write(line(0))
    driver.push()
    started = time.monotonic()
    second.drive(home, seconds=60)
    assert 0.5 <= time.monotonic() - started < 10
    assert second.text == line(0)
    assert pointer(home)["host"] == second.name


def test_a_driver_that_beats_late_is_still_alive(home, machines):
    first, second = next(machines), next(machines)
    driver = first.drive(home, seconds=0.4)
    threading.Timer(0.8, driver.push).start()  # two intervals: the store was slow
    with pytest.raises(InputError, match="is working on it"):
        second.drive(home)


def test_a_driver_that_has_ended_is_followed_at_once(home, machines):
    first, second = next(machines), next(machines)
    first.drive(home, seconds=60).close()
    started = time.monotonic()
    second.drive(home)
    assert time.monotonic() - started < 1
    assert second.notes == []


def test_a_driver_that_ends_while_another_waits_is_followed_at_once(home, machines):
    first, second = next(machines), next(machines)
    driver = first.drive(home, seconds=4)
    first.write(line(0))
    threading.Timer(0.2, driver.close).start()
    started = time.monotonic()
    second.drive(home)
    assert 0.2 <= time.monotonic() - started < 2.5
    assert second.text == line(0)


def test_a_sweep_that_is_removed_while_another_waits_for_its_driver_is_said_in_one_line(home, machines):
    first, second = next(machines), next(machines)
    first.drive(home, seconds=0.4)
    threading.Timer(0.2, home.remove).start()
    with pytest.raises(InputError, match="has removed it") as error:
        second.drive(home)
    assert "\n" not in str(error.value)
    assert home.sizes() == {}


DRIVE = """\
import sys
from pathlib import Path
from pharos.mirror import StudyMirror
from pharos.storage import Storage
url, journal = sys.argv[1:]
driver = StudyMirror(Storage(url), Path(journal), 60.0)
Path(journal).write_text('{"op": 0}\\n')
driver.push()
print("pushed", flush=True)
input()
"""


def test_a_driver_of_this_machine_that_was_killed_is_followed_at_once(server, url, direct, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVE, url, str(tmp_path / "theirs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root / "platform")},
    )
    with process:
        assert process.stdout.readline() == b"pushed\n"
        assert pointer(direct)["pid"] == process.pid
        assert not mirror._is_dead(mirror._read_pointer(direct))
        process.kill()
        process.wait()
    started = time.monotonic()
    StudyMirror(direct, tmp_path / "ours", 60.0)
    assert time.monotonic() - started < 3
    assert (tmp_path / "ours").read_text() == line(0)


def test_of_a_driver_elsewhere_with_a_number_that_nobody_has_here_nothing_is_known(home, here):
    here.drive(home, seconds=0.2)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    change_pointer(home, pid=process.pid, boot="another boot")
    assert not mirror._is_dead(mirror._read_pointer(home))
    change_pointer(home, boot="")
    assert not mirror._is_dead(mirror._read_pointer(home))
    change_pointer(home, boot=mirror._boot())
    assert mirror._is_dead(mirror._read_pointer(home))
    change_pointer(home, pid=os.getpid())
    assert not mirror._is_dead(mirror._read_pointer(home))


def test_a_driver_that_was_thought_dead_stops_and_spoils_nothing(home, machines, tmp_path):
    first, second = next(machines), next(machines)
    old = first.drive(home)
    first.write(line(0))
    old.push()
    new = second.drive(home)
    second.write(line(1))
    new.push()
    first.write(line(2))
    everything = {name: home.read_bytes(name) for name in home.sizes()}
    for act in (old.push, old.close, old.push):
        with pytest.raises(StorageError, match=r"was taken over by a driver on .*; this one stops$") as error:
            act()
        assert error.value.is_final
        assert second.name in str(error.value)
        assert "\n" not in str(error.value)
    assert {name: home.read_bytes(name) for name in home.sizes()} == everything
    new.push()
    assert fetched(home, tmp_path) == line(0) + line(1)


def test_a_driver_whose_sweep_was_removed_stops(home, here):
    driver = here.drive(home)
    home.remove()
    with pytest.raises(StorageError, match="was taken over by somebody who removed it; this one stops") as error:
        driver.push()
    assert error.value.is_final
    assert home.sizes() == {}


def test_a_store_that_does_not_answer_is_no_other_driver(home, here, monkeypatch):
    driver, read = here.drive(home), Storage.read_bytes

    def refuse(storage, path):
        raise StorageError("no answer", is_final=False)

    monkeypatch.setattr(Storage, "read_bytes", refuse)
    with pytest.raises(StorageError, match="no answer") as error:
        driver.push()
    assert not error.value.is_final
    monkeypatch.setattr(Storage, "read_bytes", read)
    driver.push()


def test_of_two_that_start_together_one_goes_on(home, machines):
    """Nobody was there before, or he has ended: neither waits."""
    both = [next(machines), next(machines)]
    drivers = [machine.drive(home, rdb=True) for machine in both[:1]]
    change_pointer(home, is_open=False)
    drivers.append(both[1].drive(home, rdb=True))
    outcomes = []
    for driver in drivers:
        try:
            driver.push()
            outcomes.append("goes on")
        except StorageError as error:
            outcomes.append("stops" if error.is_final else "fails")
    assert outcomes == ["stops", "goes on"]


# Those who only read


def test_a_reader_whose_segments_are_put_together_meanwhile_reads_the_one(home, here, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_MANY", 3)
    driver, read, busy = here.drive(home), Storage.read_bytes, [2]
    for index in range(3):
        here.write(line(index))
        driver.push()

    def read_bytes(storage, path):
        if path.startswith("study/") and busy[0]:
            busy[0] -= 1
            for _ in range(9):  # as much as a driver may do while a reader reads one file
                monkeypatch.setattr(Storage, "read_bytes", read)
                here.write(line(9))
                driver.push()
                monkeypatch.setattr(Storage, "read_bytes", read_bytes)
        return read(storage, path)

    monkeypatch.setattr(Storage, "read_bytes", read_bytes)
    assert fetched(home, tmp_path) == here.text
    assert busy == [0]


def test_a_reader_sees_whole_lines_from_the_beginning_at_any_time(home, here, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_MANY", 3)
    driver, ended, found = here.drive(home), threading.Event(), []

    def look():
        while not ended.is_set():
            found.append(fetched(home, tmp_path))

    reader = threading.Thread(target=look)
    here.write(line(0))
    driver.push()
    reader.start()
    for index in range(1, 60):
        here.write(line(index) + '{"to')
        driver.push()
        here.write('rn": 1}\n')
        time.sleep(0.004)
    ended.set()
    reader.join()
    assert len(found) > 10
    assert all(here.text.startswith(text) and text.endswith("\n") for text in found)
    assert found == sorted(found, key=len)


# What keeps drivers out for a while


@pytest.mark.parametrize("kind", ["store", "disk"])
def test_who_has_a_sweep_for_a_block_keeps_others_out_of_it_for_so_long(home, machines, tmp_path, kind):
    home = home if kind == "store" else Storage(str(tmp_path / "sweep"))
    config = StorageConfig(mirror_seconds=60.0)
    for _ in range(2):  # also after a block that failed
        with contextlib.suppress(ValueError), ours(home, config):
            if kind == "store":
                assert pointer(home)["is_open"]
                assert not mirror._is_dead(mirror._read_pointer(home))
            else:
                with pytest.raises(InputError, match="is working on it"):
                    home.lock()
            raise ValueError
    if kind == "store":
        assert not pointer(home)["is_open"]
        next(machines).drive(home)


def test_who_has_a_sweep_for_a_block_leaves_its_journal_as_it_is(home, machines):
    first, second = next(machines), next(machines)
    driver = first.drive(home)
    for index in range(3):
        first.write(line(index))
        driver.push()
    driver.close()
    files = segments(home)
    with ours(home, StorageConfig()):
        assert segments(home) == files
    assert segments(home) == files
    second.drive(home)
    assert second.text == first.text


def test_a_pointer_comes_back_as_it_was_written(home, here):
    driver = here.drive(home)
    here.write(line(0))
    driver.push()
    assert mirror._read_pointer(home) == driver._pointer
    assert json.loads(json.dumps(dataclasses.asdict(driver._pointer))) == pointer(home)
