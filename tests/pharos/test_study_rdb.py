"""A study in a lab's database: a real PostgreSQL with a password, and SQLite."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from pharos import sweep as sweep_module
from pharos.backends.local import run_sweep
from pharos.console import Console
from pharos.errors import InputError, PharosError
from pharos.folders import read_plan
from pharos.study import read_study
from pharos.summary import summarise_folder
from pharos.sweep import Sweep
from pharos.trial import Outcome, Report

PASSWORD = "not-to-be-seen-4711"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database whose owner needs a password."""
    home = tmp_path_factory.mktemp("postgres")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("XDG_RUNTIME_DIR", str(home))
        import pgserver

        server = pgserver.get_server(home / "data", cleanup_mode="stop")
        server.psql(f"create role lab login password '{PASSWORD}'; create database sweeps owner lab;")
        access = home / "data" / "pg_hba.conf"
        access.write_text("local all lab scram-sha-256\n" + access.read_text())
        server.psql("select pg_reload_conf();")
        folder = server.get_uri().rpartition("host=")[2]
        yield f"postgresql://lab@/sweeps?host={folder}"
        server.cleanup()


@pytest.fixture(params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    monkeypatch.setenv("PHAROS_STUDY_PASSWORD", PASSWORD)
    return str(request.getfixturevalue("postgres"))


class Listener(Console):
    def note(self, text: str) -> None:
        pass


def start(toy: Any, database: str, *overrides: str) -> Sweep:
    common = ["backend=local", "tracking=none", "sampler=random", "scale=tiny", "trials=4", "scheduler=none"]
    return sweep_module.start(
        "toy", [*common, f"storage.url={toy.url}", f"study.storage={database}", *overrides], Listener()
    )


def test_a_sweep_keeps_its_study_there_and_is_finished_and_extended_from_there(toy: Any, database: str) -> None:
    class Killed(BaseException):
        pass

    sweep = start(toy, database)

    def die(record: Any, report: Report) -> None:
        if record.number == 2:
            raise Killed

    sweep.listener.reported = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run_sweep(sweep)
    sweep.study._folder.unlock(sweep.study._lock)  # as the system does with a process that is gone
    assert not sweep.storage.exists("study.journal")
    records, _, _ = read_study(sweep.storage, sweep.name, database)
    assert [record.outcome for record in records.values()] == [Outcome.COMPLETE, Outcome.COMPLETE, Outcome.RUNNING]

    resumed = sweep_module.reopen(sweep.name, [f"storage.url={toy.url}"], Listener())
    run_sweep(resumed)
    assert resumed.close()["trials"] == {"complete": 4}
    assert {n: (r.params, r.values) for n, r in resumed.study.records.items() if n < 2} == {
        n: (r.params, r.values) for n, r in records.items() if n < 2
    }
    extended = sweep_module.reopen(sweep.name, [f"storage.url={toy.url}", "trials=+1"], Listener(), extend=True)
    run_sweep(extended)
    summary = extended.close()
    assert summary["trials"] == {"complete": 5}

    folder, plan = read_plan(sweep.name, [f"storage.url={toy.url}"])
    assert summarise_folder(folder, plan)["trials"] == {"complete": 5}


def test_several_sweeps_share_a_database_and_one_that_is_refused_leaves_nothing_in_it(toy: Any, database: str) -> None:
    sweeps = [start(toy, database, "trials=1") for _ in range(2)]
    for sweep in sweeps:
        run_sweep(sweep)
        assert sweep.close()["trials"] == {"complete": 1}
    refused = start(toy, database)
    refused.discard()
    storage = sweeps[0].study._storage
    names = optuna.get_all_study_names(storage)
    assert {sweep.name for sweep in sweeps} <= set(names)
    assert refused.name not in names
    assert not refused.storage.exists()


def test_the_password_is_in_no_file(toy: Any, database: str) -> None:
    sweep = start(toy, database, "trials=1")
    run_sweep(sweep)
    sweep.close()
    for path in Path(toy.url).rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


def test_a_wrong_password_is_one_line_that_does_not_show_it(
    toy: Any, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHAROS_STUDY_PASSWORD", "wrong-and-secret")
    with pytest.raises(InputError, match=r"study\.storage=postgresql.*password authentication failed") as error:
        start(toy, postgres)
    assert "\n" not in str(error.value)
    assert "wrong-and-secret" not in str(error.value)
    assert not list(Path(toy.url).iterdir())


def test_a_password_in_the_url_is_refused_without_showing_it(toy: Any) -> None:
    for url in ("postgresql://lab:open-secret@host/sweeps", "postgresql://lab@host/sweeps?password=open-secret"):
        with pytest.raises(InputError, match="it comes from the environment") as error:
            start(toy, url)
        assert "open-secret" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_database_that_is_not_there_is_one_line(toy: Any) -> None:
    with pytest.raises(InputError, match=r"study\.storage=postgresql.*cannot be opened") as error:
        start(toy, "postgresql://lab@127.0.0.1:1/sweeps")
    assert "\n" not in str(error.value)


def test_a_database_that_goes_away_ends_the_sweep_in_one_line_and_later_it_goes_on(toy: Any, tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    sweep = start(toy, f"sqlite:///{database}", "trials=3")
    sweep.listener.ended = lambda record: database.write_bytes(b"no longer a database" * 1000)  # type: ignore[method-assign]
    content: list[bytes] = []
    sweep.listener.started = lambda record: content.append(database.read_bytes())  # type: ignore[method-assign]
    with pytest.raises(PharosError, match=r"the study's database does not answer: .*; --resume goes on") as error:
        run_sweep(sweep)
    assert "\n" not in str(error.value)
    sweep.study._folder.unlock(sweep.study._lock)
    database.write_bytes(content[0])

    resumed = sweep_module.reopen(sweep.name, [f"storage.url={toy.url}"], Listener())
    run_sweep(resumed)
    assert resumed.close()["trials"] == {"complete": 3}
