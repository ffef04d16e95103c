"""Two attempts at a trial in a store, one of which was given up and goes on all the same."""

import pytest

from pharos.claim import Claim
from pharos.errors import StorageError
from pharos.spool import Spool, node_folder
from pharos.storage import Storage


@pytest.fixture
def home(tmp_path):
    return Storage(f"memory://{tmp_path.name}/sweep/trials/00000", patience=0)


def spool(home, folder, *rows):
    spool = Spool(home, node_folder(home, str(folder)), ["metrics.jsonl"], 60.0, Claim(home))
    for row in rows:
        spool.folder.append_line("metrics.jsonl", row)
    return spool


def test_an_attempt_that_was_given_up_writes_nothing_over_the_one_that_goes_on(home, tmp_path):
    old = spool(home, tmp_path / "a", "1")
    old.mirror()
    new = spool(home, tmp_path / "b", "2", "3")
    new.mirror()
    old.folder.append_line("metrics.jsonl", "2")
    with pytest.raises(StorageError, match=r"taken over by an attempt on .*; this one stops") as raised:
        old.mirror()
    assert raised.value.is_final
    old.close(1.0)
    new.folder.append_line("metrics.jsonl", "4")
    new.close(1.0)
    assert home.read_bytes("metrics.jsonl") == b"1\n2\n3\n4\n"


def test_nor_over_the_one_that_has_ended(home, tmp_path):
    old = spool(home, tmp_path / "a", "1")
    spool(home, tmp_path / "b", "1", "2").close(1.0)
    with pytest.raises(StorageError, match="taken over"):
        old.mirror()
    old.close(1.0)
    assert home.read_bytes("metrics.jsonl") == b"1\n2\n"
    assert list((tmp_path / "a").rglob("metrics.jsonl"))  # what it has is kept


def test_nor_where_somebody_has_removed_the_trial(home, tmp_path):
    old = spool(home, tmp_path / "a", "1")
    home.remove()
    with pytest.raises(StorageError, match="taken over by somebody who removed it"):
        old.mirror()
    old.close(1.0)
    assert not home.exists("metrics.jsonl")
