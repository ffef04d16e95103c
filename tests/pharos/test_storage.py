"""Storage: files are whole or absent, and what is impossible is said in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pharos.errors import InputError, PharosError, StorageError
from pharos.storage import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "home"))


def one_line(error):
    return "\n" not in str(error.value)


def test_a_written_file_reads_back_and_its_folders_are_made(storage):
    storage.write_bytes("a/b/file", b"\x00\xff")
    storage.write_json("a/value.json", {"x": [1, None]})
    assert storage.read_bytes("a/b/file") == b"\x00\xff"
    assert storage.sub("a").read_json("value.json") == {"x": [1, None]}
    assert storage.list("a") == ["b", "value.json"]


def test_a_file_url_is_the_folder_itself(tmp_path):
    Storage(f"file://{tmp_path}/home").write_bytes("x", b"1")
    assert (tmp_path / "home" / "x").read_bytes() == b"1"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_temporary(storage, monkeypatch, step):
    storage.write_bytes("file", b"old")

    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), refuse)
    with pytest.raises(PharosError, match="No space left on device") as error:
        storage.write_bytes("file", b"new")
    assert one_line(error)
    assert storage.read_bytes("file") == b"old"
    assert os.listdir(storage.root) == ["file"]  # noqa: PTH208 - hidden names count too


def test_a_process_killed_before_the_rename_leaves_the_old_content_and_nothing_listed(storage, monkeypatch):
    storage.write_bytes("file", b"old")

    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(Killed):
        storage.write_bytes("file", b"new")
    with pytest.raises(Killed):
        storage.write_bytes("other", b"new")
    assert storage.read_bytes("file") == b"old"
    assert storage.list() == ["file"]
    assert not storage.exists("other")


def test_writing_below_a_regular_file_is_refused_in_one_line(storage):
    storage.write_bytes("file", b"")
    for write in (lambda: storage.write_bytes("file/x", b""), lambda: storage.append_line("file/x", "")):
        with pytest.raises(PharosError, match="cannot write") as error:
            write()
        assert one_line(error)


def test_lines_come_back_without_a_torn_last_one(storage):
    assert storage.read_lines("log") == []
    storage.append_line("log", "one")
    storage.append_line("log", "zwei ü")
    with Path(storage.path("log")).open("ab") as file:
        file.write("tor\u00fc".encode()[:-1])  # cut in the middle of a character
    assert storage.read_lines("log") == ["one", "zwei ü"]


def test_missing_folders_list_nothing_and_removing_them_is_no_error(storage):
    assert list(storage.list("nowhere")) == []
    storage.remove("nowhere")
    storage.write_bytes("a/b", b"")
    storage.remove("a")
    assert not storage.exists("a")


def test_a_writable_folder_passes_and_is_not_made(storage):
    storage.check_writable()
    assert not storage.exists()
    assert os.listdir(Path(storage.root).parent) == []  # noqa: PTH208


def test_a_folder_below_a_regular_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"storage\.url=.*cannot write to .*Not a directory") as error:
        Storage(str(tmp_path / "file" / "sweeps")).check_writable()
    assert one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_refused_probe_is_one_line_and_leaves_nothing(storage, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match="Permission denied") as error:
        storage.check_writable()
    assert one_line(error)
    assert not storage.exists()


def test_a_folder_that_may_not_even_be_looked_into_is_refused_in_one_line(storage, monkeypatch):
    stat = os.stat

    def closed(path, *args, **kwargs):
        if str(path).startswith(storage.root):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(InputError, match="Permission denied") as error:
        storage.check_writable()
    assert one_line(error)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense://x", "Protocol not known: nonsense"),
        ("ftpx://lab/sweeps", "Protocol not known: ftpx"),
        ("gs://lab/sweeps", "pip install -c constraints.txt gcsfs"),
        ("az://lab/sweeps", "pip install -c constraints.txt adlfs"),
        ("s3://lab/sweeps", "pip install -c constraints.txt 'pharos-sweeps[s3]'"),
    ],
)
def test_what_no_package_here_can_reach_is_refused_in_one_line(url, says, monkeypatch):
    for package in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)
    with pytest.raises(InputError) as error:
        Storage(url)
    assert one_line(error)
    assert str(error.value).startswith(f"{url}: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://id:hunter22@lab/sweeps",
        "s3://hunter22@lab/sweeps",
        "ftp://me:hunter22@host/sweeps",
        "file://me:hunter22@host/x",
        "simplecache::s3://id:hunter22@lab/sweeps",
    ],
)
def test_a_url_with_a_secret_is_refused_in_one_line_that_does_not_show_it(url):
    with pytest.raises(InputError, match="credentials come from the environment") as error:
        Storage(url)
    assert one_line(error)
    assert "hunter22" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("key", {"key": "hunter22"}),
        ("secret", {"secret": "hunter22"}),
        ("aws_session_token", {"client_kwargs": {"aws_session_token": "hunter22"}}),
        ("connection_string", {"connection_string": "hunter22"}),
        ("sas_token", {"sas_token": "hunter22"}),
        ("password", {"password": "hunter22"}),
        ("endpoint_url", {"endpoint_url": "http://id:hunter22@minio:9000"}),
    ],
)
def test_an_option_with_a_secret_is_refused_in_one_line_that_does_not_show_it(name, options):
    with pytest.raises(InputError, match=rf"^storage\.options\.{name}: credentials come from the env") as error:
        Storage("s3://lab/sweeps", options)
    assert one_line(error)
    assert "hunter22" not in str(error.value)


@pytest.fixture
def remote():
    storage = Storage("memory://lab/home", patience=0.5)
    yield storage
    storage.fs.store.clear()
    storage.fs.pseudo_dirs[:] = [""]


@pytest.fixture(params=["disk", "store"])
def either(request):
    return request.getfixturevalue("storage" if request.param == "disk" else "remote")


def test_files_and_folders_are_the_same_on_a_disk_and_in_a_store(either):
    assert not either.exists()
    assert (list(either.list()), either.sizes()) == ([], {})
    either.write_bytes("a/b/file", b"\x00\xff")
    either.write_bytes("a/b/file", b"\x00\xff\x00")
    either.write_json("a/value.json", {"x": [1, None]})
    either.write_bytes("top", b"one\ntwo\ntorn")
    either.write_bytes("a/.hidden", b"half of something")
    assert either.read_bytes("a/b/file") == b"\x00\xff\x00"
    assert either.sub("a").read_json("value.json") == {"x": [1, None]}
    assert either.read_lines("top") == ["one", "two"]
    assert either.list() == ["a", "top"]
    assert either.list("a") == ["b", "value.json"]
    length = len(either.read_bytes("a/value.json"))
    assert either.sizes() == {"a/b/file": 3, "a/value.json": length, "top": 12}
    assert either.sizes("a") == either.sub("a").sizes() == {"b/file": 3, "value.json": length}
    assert [either.exists(path) for path in ("a", "a/b/file", "top", "b")] == [True, True, True, False]
    either.remove("a/b")
    either.remove("nowhere")
    assert either.list("a") == ["value.json"]
    either.remove()
    assert not either.exists()
    assert either.sizes() == {}


def test_what_is_not_there_is_no_file_on_a_disk_and_in_a_store(either):
    either.write_bytes("a", b"")
    with pytest.raises(FileNotFoundError):
        either.read_bytes("b")
    assert either.read_lines("b") == []
    assert list(either.list("b")) == []
    assert either.sizes("b") == {}


def test_a_folder_knows_its_name_and_those_around_it(either):
    assert either.name == "home"
    assert either.path("a", "b") == f"{either.root}/a/b"
    inner = either.sub("a", "b")
    assert (inner.root, inner.name, inner.is_local) == (f"{either.root}/a/b", "b", either.is_local)
    assert (inner.parent().root, inner.parent().parent().root) == (f"{either.root}/a", either.root)
    assert Storage(either.root).root == either.root
    inner.write_bytes("x", b"1")
    assert inner.parent().parent().read_bytes("a/b/x") == b"1"


def test_another_patience_is_another_storage_of_the_same_folder(remote):
    other = remote.patient(7)
    assert (other.patience, other.sub("a").patience, remote.patience) == (7, 7, 0.5)
    other.write_bytes("x", b"1")
    assert remote.read_bytes("x") == b"1"


def failing(monkeypatch, method, errors):
    """Makes a method of the store raise these, one a call, before it works; counts the calls."""
    works, calls = getattr(MemoryFileSystem, method), []

    def act(self, *what, **how):
        calls.append(what)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return works(self, *what, **how)

    monkeypatch.setattr(MemoryFileSystem, method, act)
    return calls


METHODS = [
    ("pipe_file", "cannot write memory:///lab/home/x", lambda storage: storage.write_bytes("x", b"new")),
    ("cat_file", "cannot read memory:///lab/home/x", lambda storage: storage.read_bytes("x")),
    ("ls", "cannot list memory:///lab/home", lambda storage: storage.list()),
    ("find", "cannot list memory:///lab/home", lambda storage: storage.sizes()),
    ("exists", "cannot look for memory:///lab/home/x", lambda storage: storage.exists("x")),
    ("rm", "cannot remove memory:///lab/home/x", lambda storage: storage.remove("x")),
]


@pytest.mark.parametrize(("method", "what", "act"), METHODS, ids=[method for method, _, _ in METHODS])
def test_what_a_store_does_not_do_at_once_it_is_asked_for_again(remote, monkeypatch, method, what, act):
    remote.write_bytes("x", b"old")
    expected = act(remote.patient(0))
    remote.write_bytes("x", b"old")
    calls = failing(monkeypatch, method, [ConnectionResetError("reset")])
    assert act(remote) == expected
    assert len(calls) >= 2


@pytest.mark.parametrize(("method", "what", "act"), METHODS, ids=[method for method, _, _ in METHODS])
def test_a_store_that_does_not_answer_in_time_is_one_line_that_may_pass(remote, monkeypatch, method, what, act):
    remote.write_bytes("x", b"old")
    calls = failing(monkeypatch, method, [ConnectionResetError("reset")] * 99)
    with pytest.raises(StorageError, match=rf"^{re.escape(what)}: reset \(\d attempts in 0\.5 s\)$") as error:
        act(remote)
    assert not error.value.is_final
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(StorageError, match=rf"^{re.escape(what)}: reset$"):
        act(remote.patient(0))
    assert len(calls) == 1


@pytest.mark.parametrize(("method", "what", "act"), METHODS, ids=[method for method, _, _ in METHODS])
def test_a_store_that_refuses_is_not_asked_again(remote, monkeypatch, method, what, act):
    remote.write_bytes("x", b"old")
    calls = failing(monkeypatch, method, [PermissionError(13, "Forbidden")] * 99)
    with pytest.raises(StorageError, match=rf"^{re.escape(what)}: Forbidden$") as error:
        act(remote)
    assert error.value.is_final
    assert len(calls) == 1


def test_a_store_that_takes_a_probe_passes_and_keeps_nothing_of_it(remote):
    remote.check_writable()
    assert remote.fs.find("/") == []


@pytest.mark.parametrize(
    ("error", "hint"),
    [(PermissionError(13, "Forbidden"), False), (ConnectionRefusedError(111, "Connection refused"), True)],
)
def test_a_store_that_takes_no_probe_is_refused_in_one_line(remote, monkeypatch, error, hint):
    failing(monkeypatch, "pipe_file", [error] * 99)
    with pytest.raises(InputError, match=rf"^storage\.url=memory:///lab/home: .*{error.strerror}") as refused:
        remote.check_writable()
    assert one_line(refused)
    assert ("check the endpoint" in str(refused.value)) == hint


def test_a_locked_folder_is_refused_until_it_is_given_back(storage):
    lock = storage.lock()
    with pytest.raises(InputError, match="another process") as error:
        Storage(storage.root).lock()
    assert one_line(error)
    storage.unlock(lock)
    storage.unlock(Storage(storage.root).lock())


def test_a_lock_ends_with_its_process(storage):
    hold = f"from pharos.storage import Storage; Storage({storage.root!r}).lock(); print('held', flush=True); input()"
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root / "platform")},
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError):
            storage.lock()
        holder.kill()
        storage.unlock(storage.lock(wait_seconds=10))
