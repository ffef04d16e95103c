"""`platform/report.py` as people type it, in this process."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from pharos.console import Console
from pharos.errors import InputError, PharosError
from pharos.families import ROOT
from pharos.storage import Storage
from pharos.sweep import start


@pytest.fixture(scope="module")
def report() -> Any:
    """The script's `main`."""
    specification = importlib.util.spec_from_file_location("report_script", ROOT / "platform" / "report.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


@pytest.fixture
def sweep(toy: Any) -> Storage:
    """A sweep of two trials, trained in this process."""
    from pharos.backends.local import run_sweep

    sweep = start("toy", ["trials=2", "backend=local", "tracking=none", f"storage.url={toy.url}"], Console())
    run_sweep(sweep)
    sweep.close()
    return sweep.storage


def test_it_prints_the_summary_and_where_the_report_is(report, sweep, capsys):
    assert report([sweep.root]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"report: {sweep.path('report', 'index.html')}"
    assert "best (0000" in out
    assert sweep.read_bytes("report/index.html").startswith(b"<!DOCTYPE html>")


def test_a_name_below_storage_url_is_found_and_the_output_goes_where_it_is_asked_to(report, sweep, toy, tmp_path):
    assert report([sweep.name, f"storage.url={toy.url}", "--output", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").stat().st_size > 1e6
    assert not sweep.exists("report")


def test_json_is_all_that_is_printed_and_nothing_is_written(report, sweep, capsys):
    assert report([sweep.root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sweep"] == sweep.name
    assert report([sweep.root, sweep.root, "--json"]) == 0
    assert [each["sweep"] for each in json.loads(capsys.readouterr().out)] == [sweep.name] * 2
    assert not sweep.exists("report")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["storage.url=x"], "name a sweep"),
        (["a", "--remove"], "--remove goes with --storage"),
        (["a", "b", "--storage"], "--storage shows one sweep's files"),
        (["a", "--json", "--png"], "--json writes no report; leave --png out"),
        (["a", "--storage", "--output", "x"], "--storage writes no report; leave --output out"),
    ],
)
def test_what_means_nothing_together_is_refused(report, arguments, message):
    with pytest.raises(InputError, match=message):
        report(arguments)


def test_a_folder_that_takes_nothing_is_one_line(report, sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PharosError, match=r"cannot write .*file/index\.html") as caught:
        report([sweep.root, "--output", str(tmp_path / "file")])
    assert "\n" not in str(caught.value)
