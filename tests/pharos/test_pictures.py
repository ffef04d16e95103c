import io

import pytest
import torch
from PIL import Image

from pharos import pictures
from pharos.execute import execute
from pharos.pictures import NAMES, Pictures, png, read_pictures
from pharos.spool import Spool
from pharos.storage import Storage


@pytest.fixture
def trial(tmp_path):
    return Storage(str(tmp_path / "trial"))


@pytest.fixture
def kept(trial):
    return Pictures(Spool(trial, trial, []))


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return torch.tensor(list(image.convert("RGB").get_flattened_data())).reshape(image.height, image.width, 3)


def test_a_png_has_the_pixels_of_its_picture():
    image = torch.rand(3, 5, 7)
    assert torch.equal(pixels(png(image)), image.mul(255).round().movedim(0, -1).long())


def test_what_is_no_colour_becomes_one():
    image = torch.tensor([torch.nan, torch.inf, -torch.inf]).reshape(3, 1, 1)
    assert pixels(png(image)).tolist() == [[[0, 255, 0]]]


def test_a_large_picture_is_thinned_out():
    assert pixels(png(torch.zeros(3, 8, 2049))).shape == (3, 683, 3)


def test_the_last_picture_of_a_name_stays(trial, kept):
    for shade in (0.0, 0.5, 1.0):
        kept.keep("val/a pose", torch.full((3, 2, 2), shade))
    assert pixels(read_pictures(trial)["val/a pose"]).unique().tolist() == [0]  # the others came too soon
    kept.close()
    assert list(trial.sizes()) == ["pictures/val%2Fa pose.png"]
    assert pixels(read_pictures(trial)["val/a pose"]).unique().tolist() == [255]


def test_what_cannot_be_kept_is_said_and_the_trial_goes_on(trial, kept, caplog):
    kept.keep("grey", torch.zeros(1, 4, 4))
    kept.keep("x" * 300, torch.zeros(3, 4, 4))
    for index in range(NAMES + 1):
        kept.keep(f"name {index}", torch.zeros(3, 4, 4))
    kept.close()
    assert sorted(read_pictures(trial)) == sorted(f"name {index}" for index in range(NAMES))
    assert len(caplog.records) == 3


def test_a_folder_that_takes_nothing_costs_the_picture_alone(trial, kept, caplog):
    trial.parent().write_bytes("trial", b"a file")
    kept.keep("sample", torch.zeros(3, 4, 4))
    assert "picture sample: not kept" in caplog.text


def test_a_recipe_s_pictures_lie_in_its_trial(toy, trial, monkeypatch):
    monkeypatch.setattr(pictures, "_SECONDS", 3600.0)
    toy.in_epoch = lambda run, epoch, config: run.log_image("fit", torch.full((3, 2, 2), epoch.index / 3))
    execute(toy.spec(trial.root), lambda report: None)
    assert pixels(read_pictures(trial)["fit"]).unique().tolist() == [255]
