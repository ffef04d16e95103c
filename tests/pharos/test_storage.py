"""Storage: files are whole or absent, and what is impossible is said in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pharos.errors import InputError, PharosError
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


@pytest.mark.parametrize("url", ["s3://bucket/sweeps", "memory://sweeps", "nonsense://x", "http://host/sweeps"])
def test_what_is_no_local_folder_is_refused_in_one_line(url):
    with pytest.raises(InputError, match=r"storage\.url=") as error:
        Storage(url)
    assert one_line(error)
    assert url in str(error.value)


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
