"""A storage in a bucket: the same as on a disk, patient with what may pass, and plain about what does not."""

import fcntl
import itertools
import os
import random
import secrets
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.bucket import OPTIONS, Fault, FaultyProxy
from pharos import retry
from pharos.errors import InputError, StorageError
from pharos.storage import Storage


@pytest.fixture(params=["s3", "memory", "local"])
def storage(request, tmp_path):
    """A folder that does not exist yet."""
    if request.param == "s3":
        return request.getfixturevalue("home")
    return Storage(f"memory://{secrets.token_hex(8)}/home" if request.param == "memory" else str(tmp_path / "home"))


def one_line(error):
    return "\n" not in str(error.value)


def test_a_written_file_reads_back(storage):
    storage.write_bytes("a/b/file", b"\x00\xff")
    storage.write_bytes("a/empty", b"")
    storage.write_json("a/value.json", {"x": [1, None]})
    assert storage.read_bytes("a/b/file") == b"\x00\xff"
    assert storage.read_bytes("a/empty") == b""
    assert storage.sub("a").read_json("value.json") == {"x": [1, None]}
    storage.write_bytes("a/b/file", b"anew")
    assert storage.read_bytes("a/b/file") == b"anew"


def test_a_large_file_reads_back(storage):
    data = random.Random(1).randbytes(2_000_000)
    storage.write_bytes("large", data)
    assert storage.read_bytes("large") == data
    assert storage.sizes() == {"large": 2_000_000}


def test_the_whole_lines_of_a_file_come_back(storage):
    assert storage.read_lines("log") == []
    storage.write_bytes("log", "one\nzwei ü\ntor".encode())
    assert storage.read_lines("log") == ["one", "zwei ü"]


def test_a_missing_file_is_a_missing_file(storage):
    storage.write_bytes("there", b"")
    for path in ("missing", "a/missing", "the"):
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(path)
        assert not storage.exists(path)
    assert storage.exists("there")


def test_a_folder_exists_when_something_is_in_it(storage):
    assert not storage.exists()
    storage.write_bytes("a/b/file", b"")
    assert storage.exists()
    assert storage.exists("a")
    assert storage.sub("a", "b").exists()
    assert not storage.exists("a/bee")


def test_names_in_a_folder_are_sorted_and_leave_out_what_is_temporary(storage):
    assert storage.list() == []
    assert storage.list("nowhere") == []
    for path in ("b/x", "a/b/c/y", "a/z", "file", "a/.temporary", ".probe.tmp"):
        storage.write_bytes(path, b"")
    assert storage.list() == ["a", "b", "file"]
    assert storage.list("a") == ["b", "z"]
    assert storage.sub("a", "b").list() == ["c"]


def test_sizes_are_of_all_files_below_a_folder_and_of_no_other(storage):
    assert storage.sizes() == {}
    assert storage.sizes("nowhere") == {}
    for path, size in (("a/x", 1), ("a/b/y", 2), ("ab/z", 3), ("a.txt", 4), ("top", 0), ("a/.temporary", 5)):
        storage.write_bytes(path, b"." * size)
    assert storage.sizes("a") == {"x": 1, "b/y": 2}
    assert storage.sizes() == {"a/x": 1, "a/b/y": 2, "ab/z": 3, "a.txt": 4, "top": 0}


def test_what_is_written_is_listed_at_once(storage):
    """Nothing remembers a listing: another process may have written."""
    for index in range(3):
        storage.write_bytes(f"a/{index}", b"")
        assert storage.list("a") == [str(each) for each in range(index + 1)]
        assert len(storage.sizes()) == index + 1
        assert storage.exists(f"a/{index}")
    storage.remove("a/0")
    assert storage.list("a") == ["1", "2"]
    assert not storage.exists("a/0")


def test_a_file_goes_alone_and_a_folder_with_all_that_is_in_it(storage):
    for path in ("a/x", "a/xy", "a/x.d/z", "b/c/y", "b/z", "bc"):
        storage.write_bytes(path, b"")
    storage.remove("a/x")
    assert set(storage.sizes()) == {"a/xy", "a/x.d/z", "b/c/y", "b/z", "bc"}
    storage.remove("b")
    assert set(storage.sizes()) == {"a/xy", "a/x.d/z", "bc"}
    storage.sub("a").remove()
    assert set(storage.sizes()) == {"bc"}


def test_what_is_removed_need_not_exist(storage):
    storage.remove("nowhere")
    storage.write_bytes("a/x", b"")
    storage.remove("a/missing")
    assert storage.list("a") == ["x"]


def test_several_files_go_at_once_and_need_not_exist(storage):
    for name in "abcd":
        storage.write_bytes(f"f/{name}", b"")
    storage.remove_files([])
    storage.remove_files(["f/missing"])
    storage.remove_files(["f/a", "f/gone", "f/c", "f/z"])
    assert storage.list("f") == ["b", "d"]
    storage.remove_files(["f/b", "f/d"])
    assert not storage.exists("f")


def test_folders_know_their_place(storage):
    sub = storage.sub("a", "b")
    assert sub.root == storage.path("a", "b") == f"{storage.root}/a/b"
    assert sub.name == "b"
    assert sub.parent().root == storage.sub("a").root
    assert storage.sub("a").parent().root == storage.root
    assert storage.name in ("home", "sweeps")
    sub.parent().write_bytes("b/x", b"1")
    assert sub.read_bytes("x") == b"1"


def test_a_storage_is_opened_again_by_its_root(storage, proxy):
    storage.write_bytes("x", b"1")
    again = Storage(storage.root, {"endpoint_url": proxy.url} if storage.root.startswith("s3") else {})
    assert again.root == storage.root
    assert again.read_bytes("x") == b"1"
    assert again.sub("a").root == storage.sub("a").root


@pytest.mark.parametrize("url", ["s3://lab", "s3://lab/", "s3://lab/a/b", "s3://lab/a/b/"])
def test_the_root_of_a_bucket_is_its_url(aws, url):
    assert Storage(url).root == url.rstrip("/")
    assert Storage(url).sub("x").root == url.rstrip("/") + "/x"


def test_another_patience_is_of_the_copy_alone(home):
    assert home.patience == 0
    assert home.patient(7).patience == 7
    assert home.patient(7).sub("a").patience == 7
    assert home.patience == 0


def test_nothing_can_be_appended_or_locked_in_a_store(home):
    for act in (lambda: home.append_line("log", "x"), home.lock):
        with pytest.raises(AssertionError):
            act()


def test_a_read_is_one_request_and_so_is_a_write(home, proxy):
    home.write_bytes("a/x", b"1")
    assert home.read_bytes("a/x") == b"1"
    assert [method for method, _ in proxy.requests] == ["PUT", "GET"]


def test_a_writable_bucket_passes_and_nothing_is_left(home, direct):
    home.check_writable()
    assert direct.fs.find(direct.root) == []


def refusal_of(storage):
    with pytest.raises(InputError, match=r"^storage\.url=") as error:
        storage.check_writable()
    assert one_line(error)
    assert storage.root in str(error.value)
    return str(error.value)


def test_a_bucket_that_is_not_there_is_said_at_once(proxy):
    started = time.monotonic()
    storage = Storage("s3://nobody-made-it/sweeps", {"endpoint_url": proxy.url, **OPTIONS}, patience=300)
    assert refusal_of(storage).endswith(": there is no such bucket")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (403, "AccessDenied", "access denied; check the credentials of this machine and the bucket's policy"),
        (403, "InvalidAccessKeyId", "the access key is unknown there; check the credentials and the endpoint"),
        (403, "SignatureDoesNotMatch", "the secret key does not fit; check the credentials"),
    ],
)
def test_a_bucket_that_refuses_is_said_at_once(answers, status, code, text):
    answers.say(status, code)
    started = time.monotonic()
    assert refusal_of(Storage("s3://lab/sweeps", {"endpoint_url": answers.url, **OPTIONS}, 300)).endswith(f": {text}")
    assert time.monotonic() - started < 2


def test_a_wrong_endpoint_is_said_soon_and_with_what_to_check(aws, monkeypatch):
    monkeypatch.setattr("pharos.storage._CHECK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    storage = Storage("s3://lab/sweeps", {"endpoint_url": f"http://127.0.0.1:{port}", **OPTIONS}, patience=300)
    text = refusal_of(storage)
    assert "Could not connect to the endpoint" in text
    assert text.endswith("; check the endpoint (AWS_ENDPOINT_URL, storage.options) and the network")


def test_without_credentials_it_is_said_what_to_set(answers, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    config = {"config_kwargs": {"connect_timeout": 1, "read_timeout": 0.8}}  # no client that has found some before
    assert "no credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID" in refusal_of(
        Storage("s3://lab/sweeps", {"endpoint_url": answers.url, **config})
    )


def test_the_endpoint_and_credentials_come_from_the_environment(server, url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    Storage(url).write_bytes("x", b"1")
    assert Storage(url, {"endpoint_url": server.url}).read_bytes("x") == b"1"


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:my-secret@bucket/x",
        "s3://my-secret@bucket/x",
        "s3://AKIA:my/secret/my-secret@bucket/x",
        "http://me:my-secret@host:9000/x",
        "simplecache::s3://AKIA:my-secret@bucket/x",
        "file://me:my-secret@host/x",
    ],
)
def test_a_url_with_a_password_is_refused_without_showing_it(url):
    with pytest.raises(InputError, match="credentials come from the environment") as error:
        Storage(url)
    assert "secret" not in str(error.value)
    assert one_line(error)


@pytest.mark.parametrize("url", ["s3://bucket/me@home/x", "s3://bucket/x@y", "s3://bucket/a:b@c"])
def test_a_key_may_have_what_logins_have(aws, url):
    assert Storage(url).root == url


@pytest.mark.parametrize(
    "options",
    [
        {"key": "my-secret"},
        {"secret": "my-secret"},
        {"token": "my-secret"},
        {"client_kwargs": {"aws_secret_access_key": "my-secret"}},
        {"client_kwargs": {"deeper": {"aws_session_token": "my-secret"}}},
        {"account_key": "my-secret"},
        {"connection_string": "my-secret"},
        {"sas_token": "my-secret"},
        {"Password": "my-secret"},
        {"credentials": {"file": "my-secret"}},
        {"endpoint_url": "http://me:my-secret@host:9000"},
        {"client_kwargs": {"proxies": {"http": "http://me:my-secret@proxy:3128"}}},
    ],
)
def test_an_option_that_is_a_secret_is_refused_without_showing_it(aws, options):
    with pytest.raises(InputError, match=r"^storage\.options\.\w+: credentials come from the environment") as error:
        Storage("s3://bucket/x", options)
    assert "my-secret" not in str(error.value)


def test_options_that_are_no_secrets_are_taken(aws):
    Storage("s3://lab/x", {"endpoint_url": "http://host:9000", "anon": False, "client_kwargs": {"region_name": "x"}})


@pytest.mark.parametrize("url", ["nonsense://x", "gs://lab/x", "abfs://lab/x"])
def test_a_store_that_cannot_be_reached_from_here_is_one_line(url):
    with pytest.raises(InputError) as error:
        Storage(url)
    assert one_line(error)
    assert url in str(error.value)


def test_an_option_that_the_file_system_does_not_know_is_one_line(aws, monkeypatch):
    with pytest.raises(InputError, match="bucket") as error:
        Storage("s3://bucket/x", {"config_kwargs": {}, "max_concurrency": 0})
    assert one_line(error)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_fails_now_and_then_everything_written_reads_back(server, url, direct, monkeypatch, seed):
    monkeypatch.setattr(retry, "pauses", lambda: itertools.repeat(0.005))
    with FaultyProxy(server.url, rate=0.3, seed=seed, stall_seconds=0.05) as proxy:
        home = Storage(url, {"endpoint_url": proxy.url, **OPTIONS}, patience=30)
        expected = {}
        chance = random.Random(seed)
        for index in range(10):
            name = f"{index % 4}/{chance.choice('abcde')}"
            if chance.random() < 0.2:
                home.remove(name)
                expected.pop(name, None)
            else:
                expected[name] = chance.randbytes(chance.choice([0, 1, 1000, 300_000]))
                home.write_bytes(name, expected[name])
            assert home.exists(name) == (name in expected)
        assert home.sizes() == {name: len(data) for name, data in expected.items()}
        assert home.list() == sorted({name.partition("/")[0] for name in expected})
        assert {name: home.read_bytes(name) for name in expected} == expected
        with pytest.raises(FileNotFoundError):
            home.read_bytes("missing")
        home.remove_files(list(expected)[:3])
        assert proxy.counts.total() > 5
        assert len(proxy.counts) > 3
    assert {name: direct.read_bytes(name) for name in direct.sizes()} == dict(list(expected.items())[3:])


def test_many_threads_write_and_read_at_once_whatever_fails(proxy, url, monkeypatch):
    monkeypatch.setattr(retry, "pauses", lambda: itertools.repeat(0.005))
    proxy.rate, proxy.stall_seconds = 0.2, 0.05
    home = Storage(url, {"endpoint_url": proxy.url, **OPTIONS}, patience=30)
    wrong = []

    def work(number):
        for index in range(3):
            data = random.Random(f"{number} {index}").randbytes(50_000)
            home.write_bytes(f"{number}/{index}", data)
            if home.read_bytes(f"{number}/{index}") != data:
                wrong.append((number, index))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.rate = 0.0
    assert not wrong
    assert len(home.sizes()) == 24


def test_an_overwritten_file_is_the_old_or_the_new_one_whatever_breaks(proxy, home, direct):
    old, new = b"o" * 400_000, b"n" * 400_000
    for fault, lands in itertools.product(Fault, [False, True]):
        direct.write_bytes("x", old)
        proxy.before, proxy.lands = (lambda method, path, fault=fault: fault), lands
        with pytest.raises(StorageError) as error:
            home.write_bytes("x", new)
        assert not error.value.is_final
        assert direct.read_bytes("x") in (old, new)


ACTS = {
    "write": lambda home: home.write_bytes("x", b"1" * 100_000),
    "read": lambda home: home.read_bytes("x"),
    "look": lambda home: home.exists("x"),
    "list": lambda home: home.list(),
    "measure": lambda home: home.sizes(),
    "remove": lambda home: home.remove("x"),
}


def test_a_store_that_stalls_is_given_up_after_the_patience_and_one_more_request(proxy, url, direct):
    direct.write_bytes("x", b"1")
    config = {"config_kwargs": {"connect_timeout": 1, "read_timeout": 0.3}}
    home = Storage(url, {"endpoint_url": proxy.url, **config}, patience=0.7)
    home.read_bytes("x")
    proxy.stalled = True

    def time_of(act):
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"^cannot \w+.* s3://.*( \(\d attempts in 0\.7 s\))?$") as error:
            act(home)
        assert not error.value.is_final
        assert one_line(error)
        return time.monotonic() - started

    with ThreadPoolExecutor(len(ACTS)) as pool:
        took = dict(zip(ACTS, pool.map(time_of, ACTS.values()), strict=True))
    proxy.stalled = False
    # The patience, and one more request, which the HTTP client may send twice; and what a busy machine adds.
    assert all(seconds < 0.7 + 2 * 0.3 + 5 for seconds in took.values()), took


def test_a_store_that_is_down_is_given_up_after_the_patience(proxy, url):
    home = Storage(url, {"endpoint_url": proxy.url, **OPTIONS}, patience=0.3)
    proxy.down = True

    def time_of(act):
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"Could not connect.*( \(\d+ attempts in 0\.3 s\))?$"):
            act(home)
        return time.monotonic() - started

    with ThreadPoolExecutor(len(ACTS)) as pool:
        took = list(pool.map(time_of, ACTS.values()))
    assert all(seconds < 0.3 + 5 for seconds in took), took


def test_a_store_that_comes_back_within_the_patience_is_as_if_it_had_never_been_away(proxy, url):
    home = Storage(url, {"endpoint_url": proxy.url, **OPTIONS}, patience=10)
    proxy.down = True
    threading.Timer(0.5, lambda: setattr(proxy, "down", False)).start()
    home.write_bytes("x", b"1")
    assert home.read_bytes("x") == b"1"


def test_one_that_sends_and_hears_nothing_has_an_end_too(aws, monkeypatch):
    """The server takes the connection and never says that it may go on: no timeout of the client's counts then."""
    monkeypatch.setattr("pharos.storage._SLOWEST", 2**23)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = {"config_kwargs": {"connect_timeout": 1, "read_timeout": 0.3}}
        home = Storage("s3://lab/x", {"endpoint_url": endpoint, **config}, patience=0)
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"^cannot write s3://lab/x/y: ") as error:
            home.write_bytes("y", b"1" * 2**20)
        assert time.monotonic() - started < 10
        assert not error.value.is_final


def test_several_threads_do_not_wait_for_one_that_hangs(proxy, url):
    proxy.before = lambda method, path: Fault.STALL if path.endswith("slow") else None
    proxy.stall_seconds = 4
    home = Storage(url, {"endpoint_url": proxy.url, "config_kwargs": {"read_timeout": 10}}, patience=0)
    home.write_bytes("warm", b"")

    def hang():
        with pytest.raises(StorageError):
            home.write_bytes("slow", b"1")

    thread = threading.Thread(target=hang)
    thread.start()
    for index in range(5):
        home.write_bytes(str(index), b"1")
    assert thread.is_alive()
    thread.join()


PATHS = st.lists(st.sampled_from(["a", "b", "ab", "c.d"]), min_size=1, max_size=3).map("/".join)
STEPS = st.lists(st.tuples(st.sampled_from(["write", "write", "remove"]), PATHS, st.binary(max_size=3)), max_size=8)


@settings(max_examples=30)
@given(steps=STEPS)
def test_a_store_without_folders_is_the_files_that_were_written(steps):
    storage = Storage(f"memory://{secrets.token_hex(8)}", patience=0)
    files = {}
    for act, path, data in steps:
        is_below_a_file = any(path.startswith(f"{name}/") for name in files)
        is_folder = any(name.startswith(f"{path}/") for name in files)
        if act == "remove":
            storage.remove(path)
            files = {name: each for name, each in files.items() if name != path and not name.startswith(f"{path}/")}
        elif not is_below_a_file and not is_folder:
            storage.write_bytes(path, data)
            files[path] = data
        assert storage.sizes() == {name: len(each) for name, each in files.items()}
        assert storage.list() == sorted({name.partition("/")[0] for name in files})
        assert {name: storage.read_bytes(name) for name in files} == files


def test_a_lock_file_that_was_made_anew_is_not_taken_twice(tmp_path, monkeypatch):
    """Between opening the lock file and locking it, its holder removes the folder and another process makes it anew."""
    folder = Storage(str(tmp_path / "home"))
    first = folder.lock()
    flock, others = fcntl.flock, []

    def late(descriptor, how):
        if not others:
            monkeypatch.setattr(fcntl, "flock", flock)
            folder.remove()
            folder.unlock(first)
            others.append(Storage(folder.root).lock())
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match=rf"another process \({os.getpid()}\) is working on it"):
        folder.lock()
    folder.unlock(others[0])
    folder.unlock(folder.lock())


def test_a_lock_whose_folder_was_removed_meanwhile_is_taken_where_it_belongs(tmp_path, monkeypatch):
    folder = Storage(str(tmp_path / "home"))
    flock = fcntl.flock

    def late(descriptor, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        folder.remove()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = folder.lock()
    with pytest.raises(InputError, match="another process"):
        Storage(folder.root).lock()
    folder.unlock(lock)


@pytest.mark.parametrize("moment", ["made", "seen"])
def test_a_folder_that_is_removed_while_another_process_locks_it_is_made_anew(tmp_path, monkeypatch, moment):
    folder = Storage(str(tmp_path / "home"))
    folder.unlock(folder.lock())
    owner, name = {"made": (os, "open"), "seen": (Path, "is_dir")}[moment]
    call = getattr(owner, name)

    def late(path, *arguments):
        monkeypatch.setattr(owner, name, call)
        folder.remove()
        return call(path, *arguments)

    monkeypatch.setattr(owner, name, late)
    folder.unlock(folder.lock())
    assert getattr(owner, name) is call
    assert folder.exists(".lock")


@pytest.mark.parametrize("kind", ["file", "lost link"])
def test_what_is_no_folder_cannot_be_locked(tmp_path, kind):
    if kind == "file":
        (tmp_path / "home").write_text("")
    else:
        (tmp_path / "home").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        Storage(str(tmp_path / "home")).lock()


def test_many_that_lock_and_remove_a_folder_never_have_it_together(tmp_path):
    inside, wrong = [], []

    def work():
        for _ in range(25):
            folder = Storage(str(tmp_path / "home"))
            with folder.locked(10.0):
                inside.append(threading.get_ident())
                if len(inside) > 1:
                    wrong.append(list(inside))
                time.sleep(0.0005)
                inside.remove(threading.get_ident())
                shutil.rmtree(folder.root, ignore_errors=True)  # as a spool goes, with those who wait looking on

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_local_lock_waits_for_as_long_as_it_is_told(tmp_path):
    folder = Storage(str(tmp_path / "home"))
    lock = folder.lock()
    started = time.monotonic()
    with pytest.raises(InputError, match="another process"):
        folder.lock(wait_seconds=0.2)
    assert 0.2 <= time.monotonic() - started < 1
    threading.Timer(0.1, lambda: folder.unlock(lock)).start()
    folder.unlock(folder.lock(wait_seconds=5))
