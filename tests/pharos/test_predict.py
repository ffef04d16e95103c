"""A trained model predicts a folder of files, with the weights of its checkpoint."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pharos.backends.local import run_sweep
from pharos.console import Console
from pharos.errors import InputError
from pharos.export import export_weights
from pharos.predict import closing, predict_folder
from pharos.recipe import Recipe
from pharos.single import find_trial
from pharos.storage import Storage
from pharos.sweep import start
from pharos.trial import trial_id


@pytest.fixture
def found(toy):
    """A finished sweep's best trial: its folder, the plan, its values."""
    settings = ["backend=local", "tracking=none", "scheduler=none", "sampler=random", "scale=tiny", "trials=1"]
    sweep = start("toy", [*settings, f"storage.url={toy.url}"], Console())
    run_sweep(sweep)
    sweep.close()
    folder, plan, record = find_trial(sweep.name, None, [f"storage.url={toy.url}"])
    return folder.sub("trials", trial_id(record.number)), plan, record.params


@pytest.fixture
def numbers(tmp_path):
    folder = tmp_path / "numbers"
    folder.mkdir()
    for name, value in {"a": 0.25, "b": -0.5}.items():
        (folder / name).write_text(str(value))
    return folder


def test_files_are_predicted_with_the_trained_weights(found, numbers, tmp_path):
    result = predict_folder(*found, str(numbers), str(tmp_path / "out"))
    assert result["files"] == ["a", "b"]
    assert "2 files" in closing(result)
    export_weights(*found, str(tmp_path / "weights"))
    weights = load_file(tmp_path / "weights" / "net.safetensors")
    module = nn.Sequential(nn.Linear(1, len(weights["0.bias"])), nn.Tanh(), nn.Identity(), nn.Linear(4, 1))
    module.load_state_dict(weights)
    for name, value in (("a", 0.25), ("b", -0.5)):
        assert float((tmp_path / "out" / name).read_text()) == float(module(torch.tensor([[value]])).detach())


def test_a_wrong_request_is_one_line_and_writes_nothing(found, numbers, tmp_path):
    source, plan, params = found
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is no folder"):
        predict_folder(source, plan, params, str(tmp_path / "nowhere"), str(out))
    with pytest.raises(InputError, match="has no checkpoint"):
        predict_folder(Storage(str(tmp_path / "none")), plan, params, str(numbers), str(out))
    assert not out.exists()
    with pytest.raises(InputError, match="holds something already"):
        predict_folder(source, plan, params, str(numbers), str(numbers))


def test_a_family_without_predictions_says_so(found, numbers, tmp_path, toy, monkeypatch):
    from pharos.families import load_recipe

    monkeypatch.setattr(type(load_recipe("toy")), "predict", Recipe.predict)
    with pytest.raises(InputError, match="toy makes no predictions"):
        predict_folder(*found, str(numbers), str(tmp_path / "out"))
