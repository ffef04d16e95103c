"""Images: the same splits everywhere, readers of files, and what a pickle must not do."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pharos.errors import InputError
from trainables.common.quantisation.glyphs import CLASSES, make_glyphs
from trainables.common.quantisation.images import (
    Augmentation,
    ImageDataConfig,
    draw_augmentation,
    open_images,
    shifted,
)

CPU = torch.device("cpu")


def test_the_digits_are_divided_as_the_notes_say_and_the_same_every_time():
    images = open_images(ImageDataConfig(source="digits"))
    assert [len(split) for split in (images.train, images.val, images.test)] == [1078, 359, 360]
    assert (images.shape, images.classes) == ((1, 8, 8), 10)
    for split in (images.train, images.val, images.test):
        counts = np.bincount(split.labels)
        assert counts.max() - counts.min() <= 0.05 * len(split)
    x, _ = images.train.take(images.train.index, CPU)
    assert abs(float(x.mean())) < 1e-5
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    again, other = (open_images(ImageDataConfig(source="digits", seed=seed)) for seed in (0, 1))
    assert torch.equal(again.train.labels, images.train.labels)
    assert not torch.equal(other.train.labels, images.train.labels)
    limited = open_images(ImageDataConfig(source="digits", limit=50))
    assert [len(split) for split in (limited.train, limited.val, limited.test)] == [50, 50, 50]


def test_glyphs_are_the_same_wherever_they_are_made():
    images, labels = make_glyphs(3, "val", 40)
    assert images.shape == (40, 3, 32, 32)
    assert images.dtype == np.uint8
    fewer, _ = make_glyphs(3, "val", 7)
    assert np.array_equal(fewer, images[:7])
    assert not np.array_equal(make_glyphs(3, "train", 7)[0], fewer)
    assert not np.array_equal(make_glyphs(4, "val", 7)[0], fewer)
    assert len(CLASSES) == 10
    assert set(labels) <= set(range(10))


def test_glyphs_have_shapes_of_another_colour_than_their_background():
    images, _ = make_glyphs(0, "train", 60)
    as_float = images.astype(np.float64) / 255
    corner = as_float[:, :, :3, :3].mean(axis=(2, 3))
    middle = as_float[:, :, 13:19, 13:19].mean(axis=(2, 3))
    assert (np.abs(corner - 0.5) < 0.4).all()
    # Most shapes cover the middle; their colours are at least 0.35 from the mean background.
    assert np.median(np.linalg.norm(middle - corner, axis=1)) > 0.25


def test_shifts_move_zeros_in_and_mirroring_turns_half_of_them():
    images = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(200, 1, 1, 1)
    draws = draw_augmentation(200, torch.Generator().manual_seed(0))
    moved = shifted(images, draws, Augmentation(shift=1, mirror=True))
    kinds = {tuple(image.flatten().tolist()) for image in moved}
    assert len(kinds) == 18  # 3 x 3 places, as they are and mirrored
    assert tuple(range(1, 17)) in kinds
    middle = torch.tensor([[0.5, 0.5, 0.9]])
    assert torch.equal(shifted(images[:1], middle, Augmentation(1, True)), images[:1])
    assert torch.equal(shifted(images[:1], torch.tensor([[0.5, 0.5, 0.1]]), Augmentation(1, True)), images[:1].flip(3))


# Files


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('it was run')",)


def write_cifar(folder, count=20, protocol=2):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": [index % 10 for index in range(count)], b"batch_label": b"one"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


def test_cifar_is_read_and_validation_is_held_out(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    images = open_images(ImageDataConfig(source="cifar10", root=str(tmp_path)))
    assert [len(split) for split in (images.train, images.val, images.test)] == [90, 10, 20]
    assert images.shape == (3, 32, 32)
    x, y = images.test.take(torch.tensor([3]), CPU)
    rng = np.random.default_rng(0)
    written = [rng.integers(0, 256, (20, 3072), dtype=np.uint8) for _ in range(6)][-1]
    red = torch.tensor(written[3, :1024].reshape(32, 32) / 255.0, dtype=torch.float32)
    torch.testing.assert_close(x[0, 0], (red - 0.4914) / 0.2023)
    assert y.tolist() == [3]


def test_a_pickle_that_wants_more_than_arrays_is_refused_and_not_run(tmp_path):
    folder = write_cifar(tmp_path / "data")
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Harm(), b"labels": []}))
    with pytest.raises(InputError, match="which is not array data"):
        open_images(ImageDataConfig(source="cifar10", root=str(folder)))
    (folder / "data_batch_2").write_bytes(b"cut")
    with pytest.raises(InputError, match="not one of CIFAR-10's python batches"):
        open_images(ImageDataConfig(source="cifar10", root=str(folder)))
    (folder / "data_batch_2").unlink()
    with pytest.raises(InputError, match="data_batch_2 is not there"):
        open_images(ImageDataConfig(source="cifar10", root=str(folder)))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_an_npz_is_read_in_either_layout(tmp_path, layout):
    x = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    stored = x if layout == "NCHW" else x.transpose(0, 2, 3, 1)
    np.savez(
        tmp_path / "images.npz", x_train=stored, y_train=np.arange(30) % 3, x_test=stored[:5], y_test=np.arange(5) % 3
    )
    images = open_images(ImageDataConfig(source="npz", root=str(tmp_path / "images.npz"), layout=layout))
    assert [len(split) for split in (images.train, images.val, images.test)] == [27, 3, 5]
    assert (images.shape, images.classes) == ((3, 8, 8), 3)
    found, _ = images.test.take(torch.arange(5), CPU)
    mean, deviation = images.test._statistics
    pixels = (found * deviation[:, None, None] + mean[:, None, None]) * 255
    torch.testing.assert_close(pixels, torch.from_numpy(x[:5]).float(), atol=1e-3, rtol=0)


def test_an_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "images.npz", x_train=np.array([Harm()], dtype=object), y_train=np.zeros(1))
    with pytest.raises(InputError, match="not an npz of images"):
        open_images(ImageDataConfig(source="npz", root=str(tmp_path / "images.npz")))


def write_folder(root, splits):
    for split, count in splits.items():
        for place, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((20, 30, 3), 40 * place + index, np.uint8)
                pixels[:, :15] = 200
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")


def test_a_folder_s_val_is_the_test_split_unless_there_is_one(tmp_path):
    write_folder(tmp_path / "two", {"train": 10, "val": 3})
    config = ImageDataConfig(source="image_folder", root=str(tmp_path / "two"), resize=10, size=8)
    images = open_images(config)
    assert [len(split) for split in (images.train, images.val, images.test)] == [18, 2, 6]
    assert (images.shape, images.classes) == ((3, 8, 8), 2)
    assert images.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    x, _ = images.test.take(torch.tensor([0, 5]), CPU)
    assert x.shape == (2, 3, 8, 8)
    # The crop is the middle, its left half bright; mirrored, the right half is.
    assert (x[0, 0, :, 0] > x[0, 0, :, -1]).all()
    mirrored, _ = images.test.take(torch.tensor([0]), CPU, torch.tensor([[0.5, 0.5, 0.2]]))
    assert torch.equal(mirrored[0], x[0].flip(2))
    write_folder(tmp_path / "three", {"train": 4, "val": 3, "test": 2})
    three = open_images(
        ImageDataConfig(source="image_folder", root=str(tmp_path / "three"), resize=10, size=8, limit=3)
    )
    assert [len(split) for split in (three.train, three.val, three.test)] == [3, 3, 3]


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="needs it; built in are"):
        open_images(ImageDataConfig(source="image_folder"))
    with pytest.raises(InputError, match="no folders train/CLASS"):
        open_images(ImageDataConfig(source="image_folder", root=str(tmp_path)))
    write_folder(tmp_path, {"train": 2})
    with pytest.raises(InputError, match="no folder val"):
        open_images(ImageDataConfig(source="image_folder", root=str(tmp_path)))
    write_folder(tmp_path / "bad", {"train": 2, "val": 1})
    (tmp_path / "bad/val/cat/0.png").write_text("no image")
    images = open_images(ImageDataConfig(source="image_folder", root=str(tmp_path / "bad"), resize=10, size=8))
    with pytest.raises(InputError, match="no image that can be read"):
        images.test.take(torch.tensor([0]), CPU)
