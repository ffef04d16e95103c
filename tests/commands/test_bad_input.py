"""A wrong request ends in one line that says what is wrong and what would be right, with nothing left behind."""

from __future__ import annotations

import errno
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem

from benchmarks.bucket import aws_environment
from pharos.command import run_command
from pharos.families import ROOT


def run(command: str, *arguments: str) -> int:
    """Runs a script of `platform/` in this process, as its own `__main__` would; returns the exit status."""
    spec = importlib.util.spec_from_file_location(f"command_{command}", ROOT / "platform" / f"{command}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = sys.argv
    sys.argv = [command, *arguments]
    try:
        with pytest.raises(SystemExit) as raised:
            run_command(module.main)
    finally:
        sys.argv = before
    return int(raised.value.code or 0)


SWEEP = {
    "unknown family": (["--family", "tipsi"], ["tipsi", "tipsy"]),
    "mistyped setting": (["--family", "tipsy", "trails=8"], ["trails", "trials"]),
    "mistyped recipe value": (["--family", "tipsy", "recipe.optim.lrr=1"], ["recipe.optim.lrr", "recipe.optim.lr"]),
    "a secret of the environment": (["--family", "tipsy", "tracking.project=${oc.env:HOME}"], ["oc.env"]),
    "a word": (["--family", "tipsy", "fast"], ["fast", "name=value"]),
    "an addition": (["--family", "tipsy", "+speed=1"], ["+speed=1", "name=value"]),
    "wrong type": (["--family", "tipsy", "trials=many"], ["trials", "many", "Integer"]),
    "wrong type in the recipe": (["--family", "tipsy", "recipe.epochs=long"], ["recipe.epochs", "long", "Integer"]),
    "too small": (["--family", "tipsy", "trials=0"], ["trials=0", "at least 1"]),
    "unknown option": (["--family", "tipsy", "scheduler=ashes"], ["ashes", "asha"]),
    "unknown choice": (["--family", "tipsy", "backend=slurm"], ["backend=slurm", "tune", "local"]),
    "unknown scale": (["--family", "tipsy", "scale=smal"], ["smal", "small"]),
    "unknown space": (["--family", "tipsy", "space=defualt"], ["defualt", "default"]),
    "recipe's own rule": (["--family", "tipsy", "recipe.gan_loss=wgan"], ["wgan", "bce_smooth", "lsgan"]),
    "malformed expression": (["--family", "tipsy", "recipe.w_90=interval(0"], ["recipe.w_90", "interval(0, 1)"]),
    "empty range": (["--family", "tipsy", "recipe.w_90=interval(3, 1)"], ["recipe.w_90", "smaller to a larger"]),
    "log of zero": (["--family", "tipsy", "recipe.w_2d=tag(log, interval(0, 1))"], ["recipe.w_2d", "log"]),
    "a range of a setting": (["--family", "tipsy", "trials=range(1, 5)"], ["trials", "recipe"]),
    "first trial outside": (
        ["--family", "tipsy", "recipe.w_2d=interval(20, 50)"],
        ["recipe.w_2d=10", "[20, 50]", "[]"],
    ),
    "a webhook's URL": (
        ["--family", "tipsy", "notify.webhook=https://hooks.example/T0/hunter22"],
        ["notify.webhook", "secret", "PHAROS_WEBHOOK"],
    ),
    "a webhook without its URL": (
        ["--family", "tipsy", "tracking=none", "notify.webhook=true"],
        ["notify.webhook=true", "PHAROS_WEBHOOK"],
    ),
    "nobody to tell": (["--family", "tipsy", "notify.on=[end]"], ["notify.webhook=true"]),
    "trials added to nothing": (["--family", "tipsy", "trials=+8"], ["trials=+8", "--extend"]),
    "missing data": (["--family", "tipsy", "data.source=asf_amc", "data.root=nowhere"], ["nowhere", "no such folder"]),
    "data without a folder": (["--family", "tipsy", "data.source=bvh"], ["bvh", "root"]),
    "unknown data": (["--family", "tipsy", "data.source=kinect"], ["kinect", "articulated17"]),
    "an unknown protocol": (
        ["--family", "tipsy", "storage.url=ftpx://lab"],
        ["ftpx://lab", "Protocol not known: ftpx"],
    ),
    "a missing package": (["--family", "tipsy", "storage.url=gs://lab/sweeps"], ["gs://lab", "pip install", "gcsfs"]),
    "a login in a URL": (["--family", "tipsy", "storage.url='s3://id:hunter22@lab/a'"], ["s3://…", "the environment"]),
    "a secret": (["--family", "tipsy", "storage.options={secret: hunter22}"], ["storage.options.secret", "a profile"]),
    "a database's": (["--family", "tipsy", "study.storage='mysql://me:hunter22@db/a'"], ["me:***@db", "PHAROS_STUDY_"]),
    "a sweep nowhere": (["--resume", "ftpx://lab/tipsy-2026-01-01-0000"], ["ftpx://lab", "Protocol not known: ftpx"]),
    "no such sweep": (["--resume", "tipsy-2026-01-01-0000"], ["tipsy-2026-01-01-0000", "storage.url"]),
    "nothing to extend": (["--extend", "tipsy-2026-01-01-0000", "trials=+5"], ["tipsy-2026-01-01-0000"]),
}


@pytest.mark.parametrize(("arguments", "says"), SWEEP.values(), ids=SWEEP.keys())
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    arguments: list[str],
    says: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PHAROS_WEBHOOK", raising=False)
    assert run("sweep", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for words in says:
        assert words in err
    assert "hunter22" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_key", [True, False])
def test_a_bucket_that_cannot_be_written_is_one_line_that_says_where_to_look(
    with_key: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pharos.storage._CHECK_SECONDS", 0.5)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in aws_environment("http://127.0.0.1:1").items() if with_key else ():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # those of other tests have credentials
    assert run("sweep", "--family", "tipsy", "tracking=none", "storage.url=s3://lab/sweeps") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: storage.url=s3://lab/sweeps: cannot write s3://lab/sweeps/")
    assert err.count("\n") == 1
    assert ("check the endpoint" if with_key else "no credentials; set AWS_PROFILE or") in err
    assert "testing-secret" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_storage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("a file, where a folder would have to be")
    assert run("sweep", "--family", "tipsy", f"storage.url={blocker}/sweeps") == 2
    err = capsys.readouterr().err
    assert str(blocker) in err
    assert err.count("\n") == 1
    assert blocker.read_text().startswith("a file")


def test_a_broken_data_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data_3d_h36m.npz").write_bytes(b"not an archive")
    settings = ["data.source=human36m", f"data.root={tmp_path}", "data.allow_pickle=true"]
    assert run("sweep", "--family", "tipsy", f"storage.url={tmp_path}/sweeps", *settings) == 2
    err = capsys.readouterr().err
    assert "data_3d_h36m.npz" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sweeps").exists()


def test_pickled_data_is_not_read_unless_asked_for_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data_3d_h36m.npz", positions_3d=np.array({"S1": {}}, dtype=object))
    settings = ["data.source=human36m", f"data.root={tmp_path}"]
    assert run("sweep", "--family", "tipsy", f"storage.url={tmp_path}/sweeps", *settings) == 2
    assert "allow_pickle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--family", "tipsi"], "tipsy"),
        (["--from", "tipsy-2026-01-01-0000"], "tipsy-2026-01-01-0000"),
        (["--resume", "tipsy-run-2026-01-01-0000"], "tipsy-run-2026-01-01-0000"),
    ],
)
def test_train_complains_in_one_line_too(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", *arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], ["nowhere", "nothing of that name"]),
        (["nowhere", "trials=3"], ["nowhere"]),
    ],
)
def test_the_dashboard_complains_in_one_line_too(
    arguments: list[str],
    says: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("dashboard", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(words in err for words in says)


def test_an_absent_backend_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pharos.backends.tune", raising=False)
    assert run("sweep", "--family", "tipsy", "scale=tiny", "tracking=none", f"storage.url={tmp_path}/sweeps") == 2
    err = capsys.readouterr().err
    assert "pip install" in err
    assert "backend=local" in err
    assert list((tmp_path / "sweeps").iterdir()) == []


def test_a_sweep_of_which_nothing_was_completed_says_so_in_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["scale=tiny", "trials=1", "backend=local", "tracking=none", "recipe.optim.lr=1e30"]
    assert run("sweep", "--family", "tipsy", f"storage.url={tmp_path}", *settings) == 1
    out, err = capsys.readouterr()
    assert "no trial was completed" in out
    assert "diverged" in err
    assert "loss/generators became" in err


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "study.journal")

    monkeypatch.setattr("optuna.storages.journal.JournalFileBackend.append_logs", full)
    settings = ["scale=tiny", "trials=1", "backend=local", "tracking=none"]
    assert run("sweep", "--family", "tipsy", f"storage.url={tmp_path}", *settings) == 1
    err = capsys.readouterr().err
    assert err == "error: study.journal: No space left on device\n"
