"""A trained model leaves a sweep as plain safetensors, whatever wrote its checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pharos.backends.local import run_sweep
from pharos.checkpoint import Checkpoints, Part, seal
from pharos.console import Console
from pharos.errors import InputError
from pharos.export import export_weights
from pharos.saver import Saver
from pharos.single import find_trial
from pharos.storage import Storage
from pharos.sweep import start
from pharos.trial import trial_id


@pytest.fixture
def found(toy):
    """A finished sweep's best trial: its folder, the plan, its values."""
    settings = ["backend=local", "tracking=none", "scheduler=none", "sampler=random", "scale=tiny", "trials=3"]
    sweep = start("toy", [*settings, f"storage.url={toy.url}"], Console())
    run_sweep(sweep)
    best = sweep.close()["best"]["trial"]
    folder, plan, record = find_trial(sweep.name, None, [f"storage.url={toy.url}"])
    assert trial_id(record.number) == best
    return folder.sub("trials", best), plan, record.params


def test_the_best_trial_s_weights_are_plain_safetensors(found, tmp_path):
    source, plan, params = found
    model = export_weights(source, plan, params, str(tmp_path / "best"))
    weights = load_file(tmp_path / "best" / "net.safetensors")
    saved = Checkpoints(source.sub("checkpoints")).newest()
    assert set(weights) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    for name, value in weights.items():
        assert torch.equal(value, saved.tensor(f"learners/net/weights/{name}"))
    assert json.loads((tmp_path / "best" / "model.json").read_text()) == model
    assert model["config"]["lr"] == params["recipe.lr"]
    assert model["metrics"] == saved.state["metrics"]


def test_weights_that_workers_hold_pieces_of_are_put_together(found, tmp_path):
    _, plan, params = found
    whole = torch.arange(12.0).reshape(3, 4)
    pieces = [Part("learners/net/weights/w", whole.flatten()[a:b], (3, 4), a) for a, b in ((0, 7), (7, 12))]
    folder = Storage(str(tmp_path / "sharded" / "checkpoints" / "00000009"))
    checkpoints = Checkpoints(Storage(str(tmp_path / "sharded" / "checkpoints")))
    Saver(checkpoints).save(9, {"learners": ["net"], "metrics": {}}, pieces[:1])
    manifest = folder.read_json("manifest.json")
    del manifest["sha256"]
    # The second worker's file, as it would have been written beside the first.
    Saver(Checkpoints(Storage(str(tmp_path / "second")))).save(9, {}, pieces[1:])
    data = Storage(str(tmp_path / "second" / "00000009")).read_bytes("rank-00000-000.safetensors")
    folder.write_bytes("rank-00001-000.safetensors", data)
    manifest["tensors"]["learners/net/weights/w"]["pieces"].append(["rank-00001-000.safetensors", 7, 5])
    folder.write_bytes("manifest.json", seal(manifest))
    export_weights(Storage(str(tmp_path / "sharded")), plan, params, str(tmp_path / "out"))
    assert torch.equal(load_file(tmp_path / "out" / "net.safetensors")["w"], whole)


def test_what_is_there_is_not_overwritten(found, tmp_path):
    export_weights(*found, str(tmp_path / "best"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    with pytest.raises(InputError, match="holds a model already"):
        export_weights(*found, str(tmp_path / "best"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()} == before


def test_a_trial_without_a_checkpoint_is_said_in_one_line_and_nothing_is_written(found, tmp_path):
    _, plan, params = found
    with pytest.raises(InputError, match="has no checkpoint"):
        export_weights(Storage(str(tmp_path / "none")), plan, params, str(tmp_path / "best"))
    assert not (tmp_path / "best").exists()


def test_a_folder_that_cannot_be_written_is_refused(found):
    with pytest.raises(InputError, match="cannot write"):
        export_weights(*found, "/proc/best")


def test_paths_stay_relative_to_where_the_command_is_typed(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_weights(*found, "here")
    assert Path("here/model.json").is_file()
