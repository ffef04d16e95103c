"""The dashboard shows a sweep's study while it is written, and changes nothing of it."""

import hashlib
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pharos import dashboard
from pharos import summary as summary_module
from pharos import sweep as sweep_module
from pharos.backends import finish_sweep
from pharos.console import Console
from pharos.dashboard import JournalCopy, serving
from pharos.errors import InputError
from pharos.mirror import StudyMirror
from pharos.storage import Storage
from pharos.trial import Ending, Outcome


class Quiet(Console):
    def note(self, text):
        pass


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(summary_module, "_revision", lambda: "abc")
    monkeypatch.setattr(dashboard, "_LOCAL_SECONDS", 0.05)
    monkeypatch.setattr(dashboard, "_STORE_SECONDS", 0.05)


def start(toy, *settings):
    common = ["backend=local", "tracking=none", f"storage.url={toy.url}", "sampler=random", "scale=tiny", "trials=3"]
    return sweep_module.start("toy", [*common, *settings], Quiet())


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url, path, method="GET", body=None):
    base = url.partition("/dashboard/")[0]
    request = urllib.request.Request(base + path, body, {"Content-Type": "application/json"}, method=method)
    with _opener.open(request, timeout=20) as answer:
        return answer.read()


def trials(url):
    """The states of the trials that the dashboard has for the study that its URL names, in their order."""
    (summary,) = json.loads(ask(url, "/api/studies"))["study_summaries"]
    assert url.endswith(f"/dashboard/studies/{summary['study_id']}")
    detail = json.loads(ask(url, f"/api/studies/{summary['study_id']}"))
    return [trial["state"] for trial in detail["trials"]]


def wait_until(happened, seconds=20):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def serve(sweep, lines=None, port=0):
    note = (lambda text: None) if lines is None else lines.append
    return serving(sweep.storage, sweep.name, sweep.settings.study.storage, port, note)


def digest(sweep):
    return hashlib.sha256(Path(sweep.storage.path("study.journal")).read_bytes()).hexdigest()


CHANGES = [
    ("DELETE", "/api/studies/{study}", b"{}"),
    ("PUT", "/api/studies/{study}/note", b'{"body": "mine", "version": 1}'),
    ("PUT", "/api/studies/{study}/0/note", b'{"body": "mine", "version": 1}'),
    ("POST", "/api/studies", b'{"study_name": "mine", "directions": ["minimize"]}'),
    ("POST", "/api/trials/0/tell", b'{"state": "Fail"}'),
]


@pytest.mark.parametrize("where", ["journal", "database"])
def test_an_ended_sweep_is_shown_and_nothing_of_it_can_be_changed(toy, tmp_path, where):
    database = [] if where == "journal" else [f"study.storage=sqlite:///{tmp_path}/study.db"]
    sweep = start(toy, "scheduler=none", *database)
    finish_sweep(sweep)
    before = digest(sweep) if where == "journal" else None
    with serve(sweep) as url:
        assert trials(url) == ["Complete"] * 3
        assert b"<html" in ask(url, "/dashboard").lower()
        for method, path, body in CHANGES:
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(url, path.format(study=url.rpartition("/")[2]), method, body)
            assert refused.value.code == 405
            assert "for looking" in json.loads(refused.value.read())["reason"]
        assert trials(url) == ["Complete"] * 3
    if before:
        assert digest(sweep) == before
    with pytest.raises(urllib.error.URLError):
        ask(url, "/api/studies")


def test_what_happens_shows_while_the_driver_writes_and_the_driver_is_not_held_up(toy):
    sweep = start(toy, "scheduler=none")
    sweep.open(slots=1)
    spec = sweep.next_trial()
    with serve(sweep) as url:
        assert trials(url)[0] == "Running"
        sweep.on_end(spec.number, Ending(Outcome.COMPLETE, fidelity=2, metrics={"error": 0.5}, seconds=1.0))
        wait_until(lambda: trials(url)[0] == "Complete")
        assert sweep.next_trial().number == 1
        wait_until(lambda: trials(url)[1] == "Running")
        before = digest(sweep)
        trials(url)
        assert digest(sweep) == before
        assert not list(Path(sweep.storage.root).glob("study.journal.*"))  # no lock of Optuna's either
    sweep.close()


def test_a_space_that_changed_shows_its_newest_study(toy):
    sweep = start(toy, "scheduler=none")
    finish_sweep(sweep)
    again = sweep_module.reopen(
        sweep.name, [f"storage.url={toy.url}", "trials=+1", "recipe.lr=interval(0.01, 0.2)"], Quiet(), extend=True
    )
    finish_sweep(again)
    with serve(again) as url:
        names = {
            each["study_id"]: each["study_name"] for each in json.loads(ask(url, "/api/studies"))["study_summaries"]
        }
        assert names[int(url.rpartition("/")[2])] == "sweep/2"
        assert len(names) == 2


# The copy


def test_a_copy_has_whole_lines_alone(tmp_path):
    home = Storage(str(tmp_path))
    journal = tmp_path / "study.journal"
    journal.write_bytes(b"one\ntw")
    copy = JournalCopy(home, tmp_path / "copy")
    assert copy.path.read_bytes() == b"one\n"
    assert copy.refresh() == 0
    with journal.open("ab") as file:
        file.write(b"o\nthree\n")
    assert copy.refresh() == len(b"two\nthree\n")
    assert copy.path.read_bytes() == journal.read_bytes()


def test_a_copy_follows_a_study_in_a_bucket_and_fetches_nothing_twice(home, proxy, tmp_path):
    journal = tmp_path / "study.journal"
    journal.write_bytes(b"one\n")
    mirror = StudyMirror(home, journal, 10.0)
    mirror.push()
    copy = JournalCopy(home, tmp_path / "copy")
    for number in range(60):  # more than are left apart
        with journal.open("ab") as file:
            file.write(f"line {number}\n".encode())
        mirror.push()
        if number % 7 == 0:
            copy.refresh()
    copy.refresh()
    assert copy.path.read_bytes() == journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b"last\n")
    mirror.push()
    for news in (5, 0):
        proxy.requests.clear()
        assert copy.refresh() == news
        fetched = [path for method, path in proxy.requests if method == "GET" and ".journal" in path]
        assert len(fetched) == bool(news)
    mirror.close()


def test_one_that_cannot_follow_shows_what_there_was_and_says_so_once(toy):
    sweep = start(toy)
    finish_sweep(sweep)
    lines = []
    with serve(sweep, lines) as url:
        journal = Path(sweep.storage.path("study.journal"))
        journal.rename(journal.with_name("away"))
        wait_until(lambda: lines)
        time.sleep(0.3)
        assert len(trials(url)) == 3
        assert len(lines) == 1
        assert "shown is what was there before" in lines[0]
        journal.with_name("away").rename(journal)


# What may be asked for


def test_a_folder_without_a_study_is_refused(toy):
    sweep = start(toy)
    sweep.close()
    Path(sweep.storage.path("study.journal")).unlink()
    with pytest.raises(InputError, match="no such study"), serve(sweep):
        pass


def test_a_journal_with_nothing_in_it_is_refused(toy):
    sweep = start(toy)
    sweep.close()
    Path(sweep.storage.path("study.journal")).write_bytes(b"")
    with pytest.raises(InputError, match="has no trial yet"), serve(sweep):
        pass


def test_a_port_that_is_taken_or_none_is_refused_in_one_line(toy):
    sweep = start(toy)
    sweep.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"--port {port}: Address already in use; take another"),
            serve(sweep, port=port),
        ):
            pass
    with pytest.raises(InputError, match="--port 99999: 0 to 65535"), serve(sweep, port=99999):
        pass


def test_without_optunas_dashboard_it_says_what_to_install(toy, monkeypatch):
    sweep = start(toy)
    sweep.close()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pharos-sweeps\[dashboard\]"), serve(sweep):
        pass
