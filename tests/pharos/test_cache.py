"""Remote data on a node: filled once, never half, never beyond the limit, never while somebody uses it."""

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pharos import cache as cache_module
from pharos.cache import NodeCache, configure, local_copy
from pharos.errors import InputError, PharosError, StorageError
from pharos.families import ROOT
from pharos.storage import StorageConfig


class Bucket(DirFileSystem):
    """A remote file system: a folder of the test's, behind a protocol of its own, that counts and may fail."""

    protocol = "bucket"
    cachable = False
    home = ""
    downloads: list = []  # noqa: RUF012 - one for the test, set by the fixture
    faults: list = []  # noqa: RUF012
    opened: list = []  # noqa: RUF012

    def __init__(self, **options):
        self.opened.append(options)
        super().__init__(path=self.home, fs=LocalFileSystem(), **options)

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("bucket://")

    def find(self, path, detail=False, **options):
        found = {f"{path}/{name}".removesuffix("/"): i for name, i in self._below(path).items()}
        if not found and not Path(self.home, path).exists():
            raise FileNotFoundError(2, "No such file or directory", path)
        return found

    def _below(self, path):
        root = Path(self.home, path)
        files = [root] if root.is_file() else [file for file in root.rglob("*") if file.is_file()]
        return {
            "" if file == root else str(file.relative_to(root)): {
                "size": file.stat().st_size,
                "ETag": str(file.stat().st_mtime_ns),
            }
            for file in files
        }

    def get_file(self, source, target, **options):
        self.downloads.append(source)
        fault = self.faults.pop(0) if self.faults else None
        if callable(fault):
            fault(source, target)
        elif fault:
            raise fault
        else:
            Path(target).write_bytes(Path(self.home, source).read_bytes())


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    home = tmp_path / "remote"
    monkeypatch.setattr(Bucket, "home", str(home))
    monkeypatch.setattr(Bucket, "downloads", [])
    monkeypatch.setattr(Bucket, "faults", [])
    monkeypatch.setattr(Bucket, "opened", [])
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    for name, size in (("h36m/train.npz", 300), ("h36m/deep/test.npz", 100), ("cmu/a.amc", 350), ("one.npz", 50)):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(os.urandom(size))
    return home


@pytest.fixture
def cache(tmp_path):
    return NodeCache(tmp_path / "cache", 1000, StorageConfig(patience=30))


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


def size_of(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and "data" in f.parts)


def test_a_folder_and_a_file_come_as_they_are(bucket, cache):
    assert contents(cache.fetch("bucket://h36m")) == contents(bucket / "h36m")
    assert cache.fetch("bucket://one.npz").read_bytes() == (bucket / "one.npz").read_bytes()
    assert cache.fetch("bucket://one.npz").name == "one.npz"


def test_a_local_path_is_its_own_copy(bucket, cache, tmp_path):
    assert cache.fetch(str(bucket / "h36m")) == bucket / "h36m"
    assert cache.fetch(f"file://{bucket}/h36m") == bucket / "h36m"
    assert not (tmp_path / "cache").exists()


def test_what_is_there_is_not_copied_again_and_what_changed_is(bucket, cache, tmp_path):
    first = cache.fetch("bucket://h36m")
    assert cache.fetch("bucket://h36m") == first
    assert NodeCache(tmp_path / "cache", 1000).fetch("bucket://h36m") == first
    assert len(Bucket.downloads) == 2
    (bucket / "h36m/train.npz").write_bytes(b"x" * 300)
    assert contents(cache.fetch("bucket://h36m")) == contents(bucket / "h36m")


def test_many_trials_of_a_node_fill_it_once(bucket, tmp_path):
    found, barrier = [], threading.Barrier(6)

    def trial():
        barrier.wait()
        found.append(NodeCache(tmp_path / "cache", 1000).fetch("bucket://h36m"))

    threads = [threading.Thread(target=trial) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 6
    assert sorted(Bucket.downloads) == ["h36m/deep/test.npz", "h36m/train.npz"]


def truncated(source, target):
    Path(target).write_bytes(b"half")


@pytest.mark.parametrize("fault", [ConnectionResetError("reset"), TimeoutError("slow"), truncated])
def test_a_store_that_fails_now_and_then_is_asked_again(bucket, cache, fault):
    Bucket.faults[:] = [fault, fault, None, fault]
    assert contents(cache.fetch("bucket://h36m")) == contents(bucket / "h36m")
    assert len(Bucket.downloads) == 5


def test_a_store_that_fails_for_good_is_said_in_one_line_and_nothing_half_is_left(bucket, cache, tmp_path):
    Bucket.faults[:] = [None, *[truncated] * 99]
    says = r"^bucket://h36m: .*npz: 4 bytes arrived of \d+ \((\d) attempts in 1 s\)$"
    with pytest.raises(StorageError, match=says) as error:
        NodeCache(tmp_path / "cache", 1000, StorageConfig(patience=1)).fetch("bucket://h36m")
    assert not error.value.is_final
    attempts = int(re.match(says, str(error.value))[1])
    assert attempts == len(Bucket.downloads) - 1 > 2
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    Bucket.faults[:] = []
    assert contents(cache.fetch("bucket://h36m")) == contents(bucket / "h36m")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("bucket://nope", "^bucket://nope: nothing there$"),
        ("nosuch://h36m", "^nosuch://h36m: .*nosuch"),
    ],
)
def test_what_is_not_there_is_said_at_once(bucket, cache, url, says):
    with pytest.raises(InputError, match=says):
        cache.fetch(url)


def test_what_may_not_be_read_is_not_asked_for_again(bucket, cache):
    Bucket.faults[:] = [PermissionError(13, "Forbidden")] * 9
    with pytest.raises(InputError, match=r"^bucket://h36m: .*npz: Forbidden$"):
        cache.fetch("bucket://h36m")
    assert len(Bucket.downloads) == 1


def test_data_that_are_replaced_while_they_are_copied_are_refused(bucket, cache):
    def replaced(source, target):
        Path(target).write_bytes((bucket / source).read_bytes())
        os.utime(bucket / "h36m/train.npz", ns=(1, 1))

    Bucket.faults[:] = [replaced]
    with pytest.raises(PharosError, match="changed while it was copied"):
        cache.fetch("bucket://h36m")


def test_a_damaged_entry_is_filled_again_also_while_another_process_uses_it(bucket, cache, tmp_path):
    folder = cache.fetch("bucket://h36m")
    (folder / "train.npz").write_bytes(b"short")
    assert contents(NodeCache(tmp_path / "cache", 1000).fetch("bucket://h36m")) == contents(bucket / "h36m")
    assert contents(cache.fetch("bucket://h36m")) == contents(bucket / "h36m")


def test_a_process_that_died_while_it_filled_leaves_nothing_that_counts(bucket, cache, tmp_path):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import test_cache as t, fsspec, pathlib\n"
        "t.Bucket.home = sys.argv[2]; fsspec.register_implementation('bucket', t.Bucket)\n"
        "def die(source, target): pathlib.Path(target).write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
        "t.Bucket.faults[:] = [None, die]\n"
        "t.NodeCache(sys.argv[3], 1000).fetch('bucket://h36m')"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(bucket), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".part"]
    assert contents(cache.fetch("bucket://cmu")) == contents(bucket / "cmu")  # whoever comes next tidies up
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".part"]
    assert contents(cache.fetch("bucket://h36m")) == contents(bucket / "h36m")


def test_the_least_recently_used_goes_first_and_what_is_used_stays(bucket, tmp_path):
    folder = tmp_path / "cache"
    for age, name in enumerate(("one.npz", "cmu")):
        used = NodeCache(folder, 1000)
        used.fetch(f"bucket://{name}")
        for descriptor in used._used.values():
            os.close(descriptor)  # as when its process ends
        for entry in folder.glob("*/entry.json"):
            if json.loads(entry.read_text())["url"].endswith(name):
                os.utime(entry, (age, age))
    reader = NodeCache(folder, 500)
    reader.fetch("bucket://h36m")  # 400 bytes: both others have to go
    assert size_of(folder) == 400
    with pytest.raises(PharosError, match=r"other trials use what is there: raise storage\.cache_gb"):
        NodeCache(folder, 500).fetch("bucket://cmu")
    with pytest.raises(PharosError, match=r"at most .*: raise storage\.cache_gb"):
        NodeCache(folder, 300).fetch("bucket://cmu")
    assert contents(reader.fetch("bucket://h36m")) == contents(bucket / "h36m")


@given(
    asked=st.lists(st.sampled_from(["h36m", "cmu", "one.npz", "h36m/deep"]), max_size=12), limit=st.integers(400, 900)
)
def test_the_limit_holds_whatever_is_asked_for(bucket, tmp_path_factory, asked, limit):
    folder = tmp_path_factory.mktemp("cache")
    for name in asked:
        cache = NodeCache(folder, limit)
        copy = cache.fetch(f"bucket://{name}")
        source = bucket / name
        assert copy.read_bytes() == source.read_bytes() if source.is_file() else contents(copy) == contents(source)
        assert size_of(folder) <= limit
        for descriptor in cache._used.values():
            os.close(descriptor)


def test_the_options_of_the_store_are_for_urls_of_its_kind_alone(bucket, tmp_path):
    options = {"endpoint_url": "http://minio:9000"}
    for url, takes in (("bucket://lab/sweeps", True), ("s3://lab/sweeps", False), ("sweeps", False)):
        Bucket.opened.clear()
        NodeCache(tmp_path / "cache", 1000, StorageConfig(url=url, options=options)).fetch("bucket://one.npz")
        assert Bucket.opened
        assert {each.get("endpoint_url") for each in Bucket.opened} == {"http://minio:9000" if takes else None}


def test_a_process_keeps_its_copies_where_its_storage_says(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_node", None)
    configure(StorageConfig(cache=str(tmp_path / "node"), cache_gb=4e-7))
    copy = local_copy("bucket://h36m")
    assert copy.is_relative_to(tmp_path / "node" / "data")
    assert contents(copy) == contents(bucket / "h36m")
    configure(StorageConfig(cache=str(tmp_path / "node"), cache_gb=4e-7, patience=1))
    assert local_copy("bucket://h36m") == copy
    assert len(Bucket.downloads) == 2
    with pytest.raises(PharosError, match=r"raise storage\.cache_gb"):
        local_copy("bucket://cmu")  # the other one is in use and takes all there is
    configure(StorageConfig(cache=str(tmp_path / "other")))
    assert local_copy("bucket://cmu").is_relative_to(tmp_path / "other" / "data")


@pytest.fixture(scope="module")
def s3():
    """A server that speaks S3, on this machine; found through the environment, as a bucket of the lab's is."""
    import boto3
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-no-file-holds")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield boto3.client("s3")
    server.stop()
    patch.undo()


def test_data_of_a_real_bucket_are_copied_once_and_again_when_they_change(s3, cache, tmp_path):
    s3.create_bucket(Bucket="lab")
    data = {f"poses/part-{index}.npz": os.urandom(100 + index) for index in range(3)}
    for key, body in data.items():
        s3.put_object(Bucket="lab", Key=key, Body=body)
    copy = cache.fetch("s3://lab/poses")
    assert contents(copy) == {key.removeprefix("poses/"): body for key, body in data.items()}
    assert NodeCache(tmp_path / "cache", 1000).fetch("s3://lab/poses") == copy
    s3.put_object(Bucket="lab", Key="poses/part-0.npz", Body=b"y" * 100)
    assert (cache.fetch("s3://lab/poses") / "part-0.npz").read_bytes() == b"y" * 100
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or b"a-secret" not in path.read_bytes()


@pytest.mark.parametrize("url", ["s3://lab/nothing-here", "s3://no-such-bucket/poses"])
def test_what_a_bucket_does_not_have_is_said_in_one_line(s3, cache, url):
    with pytest.raises(InputError, match=f"^{url}: ") as caught:
        cache.fetch(url)
    assert "\n" not in str(caught.value)
    assert "a-secret" not in str(caught.value)


def test_who_gives_up_waiting_leaves_the_filling_of_another_alone(bucket, cache, tmp_path, monkeypatch):
    def give_up(descriptor, how):
        if how == fcntl.LOCK_EX:  # as when a signal ends a process that waits for the one that fills
            raise KeyboardInterrupt

    def fill(source, target):
        with monkeypatch.context() as patch:
            patch.setattr("pharos.cache.fcntl.flock", give_up)
            with pytest.raises(KeyboardInterrupt):
                NodeCache(tmp_path / "cache", 1000).fetch("bucket://h36m")
        Path(target).write_bytes((bucket / source).read_bytes())

    Bucket.faults[:] = [fill]
    assert contents(cache.fetch("bucket://h36m")) == contents(bucket / "h36m")


def test_what_is_made_is_made_once_and_anew_when_it_is_another(tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        (folder / "a.txt").write_text("made")

    cache = NodeCache(tmp_path, 1000)
    first = cache.make(["trees", 1], 10, build)
    assert (first / "a.txt").read_text() == "made"
    assert NodeCache(tmp_path, 1000).make(["trees", 1], 10, build) == first
    assert cache.make(["trees", 2], 10, build) != first
    assert len(built) == 2


def test_what_could_not_be_made_whole_is_not_there(tmp_path):
    def fail(folder):
        (folder / "a.txt").write_text("half")
        raise InputError("no such jet")

    cache = NodeCache(tmp_path, 1000)
    with pytest.raises(InputError, match="no such jet"):
        cache.make("trees", 10, fail)
    assert not list(tmp_path.rglob("a.txt"))
    assert (cache.make("trees", 10, lambda folder: (folder / "b").touch()) / "b").exists()
