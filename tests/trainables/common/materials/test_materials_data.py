"""Real layouts, tiles, losses and metrics: section 7 of the reference notes on DBAT, invariants 8 to 10 and 13."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from pharos.errors import InputError
from pharos.run import Epoch, Run
from trainables.common.materials.data import MaterialsDataConfig, open_materials, resized_like, shown
from trainables.common.materials.evaluation import confusion_over, labelled_counts, scores
from trainables.common.materials.files import LMD_CLASSES, Photographs, chosen_masks, drawn, merged
from trainables.common.materials.inference import predict_folder
from trainables.common.materials.losses import focal_sums, mean_over_pixels
from trainables.common.materials.scenes import matscale
from trainables.common.materials.tiling import axis_of, tiled
from trainables.common.segmentation import IGNORED, confusion, mean_accuracy, mean_iou, pixel_accuracy

# 8: tiles


@pytest.mark.parametrize(("height", "width"), [(512, 512), (513, 700), (1024, 1300)])
def test_tiles_of_an_identity_give_the_image_back(height, width):
    image = torch.randn(2, height, width)
    torch.testing.assert_close(tiled(lambda x: x, image, 512, 3), image)


@pytest.mark.parametrize(
    ("length", "count", "stride"),
    [(512, 1, 512), (640, 2, 128), (683, 2, 171), (768, 2, 256), (1024, 2, 512), (1300, 3, 394)],
)
def test_tiles_lie_as_the_notes_computed(length, count, stride):
    axis = axis_of(length, 512)
    assert (axis.count, axis.stride) == (count, stride)
    covered = axis.stride * (axis.count - 1) + 512
    assert covered == length + axis.before + axis.after
    assert 0 <= axis.before - axis.after <= 1


def test_overlapping_logits_are_averaged():
    starts = iter([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)])
    out = tiled(lambda x: next(starts), torch.zeros(3, 4, 6), 4, 1)
    assert out[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


# 9: the loss


def pixels(seed=0, k=5, side=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, k, side, side, generator=generator, dtype=torch.float64)
    labels = torch.randint(k, (2, side, side), generator=generator).to(torch.uint8)
    labels[0, :2] = IGNORED
    return logits, labels


def test_without_gamma_the_focal_loss_is_cross_entropy():
    logits, labels = pixels()
    sums = focal_sums(logits, labels, 0.0)
    expected = functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED)
    torch.testing.assert_close(sums.sum() / labelled_counts(labels).sum(), expected)
    mean = mean_over_pixels(sums, float(labelled_counts(labels).double().mean()))
    torch.testing.assert_close(mean, expected)


def test_the_sigmoid_kind_is_every_class_against_the_rest():
    logits, labels = pixels()
    known = labels != IGNORED
    wanted = functional.one_hot(labels.long().clamp_max(4), 5).movedim(-1, 1).double()
    bce = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)
    expected = (bce * known).flatten(1).sum(dim=1).float()
    torch.testing.assert_close(focal_sums(logits, labels, 0.0, "sigmoid"), expected, rtol=1e-4, atol=1e-4)


def test_the_loss_falls_with_gamma():
    logits, labels = pixels()
    losses = [float(focal_sums(logits, labels, gamma).sum()) for gamma in (0.0, 1.0, 3.0, 5.0)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


def test_its_gradient_is_that_of_the_formula():
    logits, labels = pixels()
    logits = logits.float().requires_grad_()
    focal_sums(logits, labels, 3.0).sum().backward()
    with torch.no_grad():
        p = logits.softmax(dim=1)
        truth = functional.one_hot(labels.long().clamp_max(4), 5).movedim(-1, 1).float()
        right = (p * truth).sum(dim=1, keepdim=True)
        slope = 3 * (1 - right) ** 2 * right.log() - (1 - right) ** 3 / right
        expected = slope * right * (truth - p) * (labels != IGNORED)[:, None]
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_batch_without_labels_costs_nothing(kind):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = mean_over_pixels(focal_sums(logits, torch.full((2, 4, 4), IGNORED), 3.0, kind), 0.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


def test_certainty_does_not_make_the_loss_infinite():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    loss = focal_sums(logits, torch.ones(1, 1, 1), 3.0)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(-math.log(1e-7), rel=1e-3)
    assert logits.grad.isfinite().all()


# 10: metrics


def test_a_perfect_prediction_and_a_constant_one():
    truth = torch.tensor([0, 0, 0, 1, 1, 2, IGNORED])
    perfect = confusion(truth.clamp_max(2), truth, 3)
    assert [pixel_accuracy(perfect), mean_accuracy(perfect), mean_iou(perfect)] == [1, 1, 1]
    constant = confusion(torch.zeros_like(truth), truth, 3)
    assert pixel_accuracy(constant) == 0.5
    assert mean_accuracy(constant) == pytest.approx(1 / 3)
    assert constant.sum() == 6


def test_iou_is_below_accuracy_whatever_the_classes_are_called():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(5, (2, 400), generator=generator)
    order = torch.randperm(5, generator=generator)
    matrix, renamed = confusion(predicted, truth, 5), confusion(order[predicted], order[truth], 5)
    assert mean_iou(matrix) <= mean_accuracy(matrix)
    for metric in (pixel_accuracy, mean_accuracy, mean_iou):
        assert metric(matrix) == pytest.approx(metric(renamed))


def test_a_class_that_is_absent_is_left_out_and_counted():
    matrix = confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), 3)
    assert scores(matrix, "val/") == {
        "val/pixel_acc": 1.0,
        "val/mean_acc": 1.0,
        "val/miou": 1.0,
        "val/absent_classes": 1.0,
    }


def test_confusion_adds_up_over_batches_and_tiles():
    scenes = matscale(5, 32, 0)

    def predict(images):
        return torch.stack([images[:, 0], images[:, 1], images[:, 2]] * 2, dim=1)

    whole = confusion(predict(scenes.images.float()).argmax(dim=1), scenes.labels, 6)
    for side, batch in [(32, 2), (32, 8), (16, 3)]:
        found = confusion_over(predict, scenes, classes=6, side=side, batch=batch, device=torch.device("cpu"))
        assert torch.equal(found, whole)
    assert whole.sum() == labelled_counts(scenes.labels).sum()


# 13: labels


def test_the_first_mask_wins_and_a_refined_one_replaces_the_plain():
    names = ["a_wood_mask.png", "a_metal_mask.png", "a_wood_refinedmask.png", "a_fabric_mask.png"]
    assert chosen_masks(names) == ["a_fabric_mask.png", "a_metal_mask.png", "a_wood_refinedmask.png"]
    left, middle = np.array([[9, 9, 0, 0]]), np.array([[0, 1, 1, 0]])
    labels = merged([("metal", left), ("wood", middle)], (1, 4))
    assert labels.tolist() == [[7, 7, 15, IGNORED]]


def test_triangles_are_drawn_in_their_order():
    square = {"vertices": "0,0,1,0,1,1,0,1", "triangles": "0,1,2,0,2,3"}
    small = {"vertices": "0.5,0.5,1,0.5,1,1,0.5,1", "triangles": "0,1,2,0,2,3"}
    labels = drawn([(0, square), (3, small)], (8, 8))
    assert labels[1, 1] == 0
    assert labels[6, 6] == 3
    assert (drawn([(3, small)], (8, 8))[:3] == IGNORED).all()


def save(array, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


@pytest.fixture
def lmd(tmp_path):
    generator = np.random.default_rng(0)
    root = tmp_path / "lmd"
    for k in range(10):
        save(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8), root / f"images/COCO_train_{k:04d}.jpg")
        mask = np.zeros((40, 60), np.uint8)
        mask[:, : 10 + k] = 255
        save(mask, root / f"masks/COCO_train_{k:04d}_1_wood_mask.png")
        save(mask[:, ::-1].copy(), root / f"masks/COCO_train_{k:04d}_2_fabric_mask.png")
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_lmd_is_read_from_a_folder_and_from_an_archive(lmd, packed, tmp_path):
    root = shutil.make_archive(str(tmp_path / "packed"), "zip", lmd.parent, lmd.name) if packed else lmd
    config = MaterialsDataConfig(source="lmd", root=str(root), size=64, crop=32)
    found = open_materials(config)
    assert found.classes == LMD_CLASSES
    assert [len(part) for part in (found.train, found.validation, found.test)] == [7, 1, 2]
    names = [sample.name for part in (found.train, found.validation, found.test) for sample in part.samples]
    assert len(set(names)) == 10
    image, labels = found.train.read_many([0])[0]
    assert image.shape == (3, 64, 96)
    assert set(labels.unique().tolist()) == {3, 15, IGNORED}
    # Tested at the size of the file.
    image, labels = found.test.read_whole(0)
    assert image.shape == (3, 64, 96)
    assert labels.shape == (40, 60)
    k = int(found.test.samples[0].name[-8:-4])
    assert int((labels == 15).sum()) == 40 * (10 + k)


def test_lists_beside_the_data_say_which_split(lmd):
    for split, numbers in {"train": (3, 1), "validate": (0,), "test": (2,)}.items():
        file = lmd / f"splits/{split}_2.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(f"COCO_train_{k:04d}.jpg" for k in numbers))
    found = open_materials(MaterialsDataConfig(source="lmd", root=str(lmd), split=2))
    assert [sample.name for sample in found.train.samples] == ["COCO_train_0003.jpg", "COCO_train_0001.jpg"]
    other = open_materials(MaterialsDataConfig(source="lmd", root=str(lmd), split=1))
    assert len(other.train) == 7
    (lmd / "splits/test_2.txt").write_text("nothing.jpg")
    with pytest.raises(InputError, match=r"no labelled image nothing\.jpg"):
        open_materials(MaterialsDataConfig(source="lmd", root=str(lmd), split=2))


def test_exact_resizing_shrinks_and_compares_at_that_size(lmd):
    found = open_materials(MaterialsDataConfig(source="lmd", root=str(lmd), size=20, crop=16, resize="exact"))
    assert found.test.read_whole(0)[0].shape == (3, 20, 30)
    assert found.test.read_whole(0)[1].shape == (40, 60)
    found = open_materials(
        MaterialsDataConfig(source="lmd", root=str(lmd), size=20, crop=16, resize="exact", test_at="resized")
    )
    assert found.test.read_whole(0)[1].shape == (20, 30)


def test_logits_take_the_nearest_pixel_at_another_size():
    logits = torch.arange(4.0).view(1, 1, 2, 2)
    assert resized_like(logits, torch.zeros(4, 4))[0, 0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


def test_a_test_at_native_size_counts_native_pixels(lmd):
    found = open_materials(MaterialsDataConfig(source="lmd", root=str(lmd), size=64, crop=32))

    def predict(images):
        return functional.one_hot(torch.full((len(images), 32, 32), 15), 16).movedim(-1, 1).float()

    matrix = confusion_over(predict, found.test, classes=16, side=32, batch=4, device=torch.device("cpu"))
    labels = torch.cat([found.test.read_whole(k)[1] for k in range(2)])
    assert matrix.sum() == (labels != IGNORED).sum()
    assert matrix[15, 15] == (labels == 15).sum()


def write(root, name, rows):
    (root / name).write_text(json.dumps([{"pk": key, "fields": fields} for key, fields in rows.items()]))


def test_opensurfaces_is_read(tmp_path):
    names = {1: "Wood", 2: "Fabric", 3: "Water", 4: "Metal"}
    write(
        tmp_path,
        "shapes.shapesubstance.json",
        {key: {"name": name, "fail": key == 4} for key, name in names.items()},
    )
    write(
        tmp_path,
        "photos.photo.json",
        {k: {"scene_category_correct": k != 9, "special": k == 8} for k in range(10)},
    )
    square = {"vertices": "0,0,1,0,1,1,0,1", "triangles": "0,1,2,0,2,3", "num_vertices": 4}
    corner = {"vertices": "0,0,0.5,0,0.5,0.5", "triangles": "0,1,2", "num_vertices": 3}
    good = {"high_quality": True, "special": False}
    shapes = {}
    for k in range(10):
        shapes[3 * k] = corner | good | {"photo": k, "substance": 1}
        shapes[3 * k + 1] = square | good | {"photo": k, "substance": 2}
        shapes[3 * k + 2] = square | good | {"photo": k, "substance": 3}
        save(np.zeros((20, 30, 3), np.uint8), tmp_path / f"photos/{k}.jpg")
    write(tmp_path, "shapes.materialshape.json", shapes)
    found = open_materials(MaterialsDataConfig(source="opensurfaces", root=str(tmp_path), size=32, crop=32))
    assert found.classes == ("Fabric", "Wood")
    assert sum(len(part) for part in (found.train, found.validation, found.test)) == 8
    labels = found.test.read_whole(0)[1]
    # The small one is drawn over the large one; the excluded water is nowhere.
    assert set(labels.unique().tolist()) == {0, 1}
    assert labels[1, 10] == 1
    assert labels[-1, -1] == 0


def test_a_folder_of_codes_is_read_and_wrong_codes_are_refused(tmp_path):
    for k in range(10):
        save(np.full((16, 16, 3), k, np.uint8), tmp_path / f"images/{k}.png")
        save(np.full((16, 16), k % 3, np.uint8), tmp_path / f"labels/{k}.png")
    config = MaterialsDataConfig(source="folder", root=str(tmp_path), size=16, crop=16, classes=3)
    image, labels = open_materials(config).train.read_many([0])[0]
    assert labels.unique().tolist() == [int(image[0, 0, 0]) % 3]
    found = open_materials(MaterialsDataConfig(source="folder", root=str(tmp_path), size=16, crop=16, classes=2))
    with pytest.raises(InputError, match="label 2; "):
        found.train.read_many(range(len(found.train)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "lmd"}, "needs data.root"),
        ({"source": "lmd", "root": "/nowhere"}, "no such folder"),
        ({"crop": 64, "size": 32}, "must be at most"),
        ({"source": "sea"}, "must be one of"),
        ({"labelled_images": 5, "train_images": 4, "size": 32, "crop": 32}, "there are 4 training images"),
    ],
)
def test_impossible_data_is_refused_in_a_line(changes, said):
    with pytest.raises(InputError, match=said) as caught:
        open_materials(MaterialsDataConfig(**changes))
    assert "\n" not in str(caught.value)


def test_masks_without_an_image_or_of_an_unknown_material_are_refused(lmd):
    file = lmd / "masks/other_wood_mask.png"
    save(np.zeros((4, 4), np.uint8), file)
    with pytest.raises(InputError, match="no image has a name"):
        open_materials(MaterialsDataConfig(source="lmd", root=str(lmd)))
    file.rename(lmd / "masks/COCO_train_0001_1_gold_mask.png")
    with pytest.raises(InputError, match="gold is none of LMD's materials"):
        open_materials(MaterialsDataConfig(source="lmd", root=str(lmd)))


def epoch_of(run, batch):
    epoch = Epoch(run, "train", 0)
    return epoch, next(epoch.batches(torch.arange(20), batch))


def test_a_batch_is_cut_and_changed_together_with_its_labels():
    scenes = matscale(20, 32, 0, labelled=1)
    coded = torch.arange(32 * 32).view(32, 32) % 251
    scenes.images[:] = coded
    scenes.labels[:] = coded
    epoch, indices = epoch_of(Run(seed=0), 16)
    x, y = shown(scenes, indices, 16, epoch, turns=True, flips=True)
    assert x.shape == (16, 3, 16, 16)
    assert torch.equal((x[:, 1] * 255).round().to(torch.uint8), y)
    # Different ways in one batch, and images that are not only shifted.
    steps = {int(image[0, 1].int() - image[0, 0].int()) % 251 for image in y}
    assert len(steps) >= 3
    assert (shown(scenes, indices, 32, epoch)[1] == coded).all()


def test_jitter_changes_colours_and_not_labels():
    scenes = matscale(20, 32, 0)
    epoch, indices = epoch_of(Run(seed=0), 4)
    plain, labels = shown(scenes, indices, 32, epoch)
    jittered, same = shown(scenes, indices, 32, epoch, jitter=True)
    assert torch.equal(labels, same)
    assert 0.005 < (plain - jittered).abs().mean() < 0.2
    assert jittered.min() >= 0
    assert jittered.max() <= 1


def test_predictions_of_files_have_the_files_sizes(tmp_path):
    picture = np.zeros((20, 50, 3), np.uint8)
    picture[:, 25:, 1] = 255
    save(picture, tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    predict_folder(
        lambda x: x[:, :2],
        tmp_path / "in",
        tmp_path / "out",
        classes=("wood", "metal"),
        side=32,
        batch=2,
        device=torch.device("cpu"),
    )
    codes = np.asarray(Image.open(tmp_path / "out/a.png"))
    assert codes.shape == (20, 50)
    assert (codes[:, :23] == 0).all()
    assert (codes[:, 27:] == 1).all()
    assert json.loads((tmp_path / "out/classes.json").read_text()) == {"0": "wood", "1": "metal"}
    with pytest.raises(InputError, match="no image in it"):
        predict_folder(
            lambda x: x, tmp_path / "out/none", tmp_path, classes=(), side=32, batch=2, device=torch.device("cpu")
        )


def test_photographs_are_read_in_their_order(lmd):
    found = open_materials(MaterialsDataConfig(source="lmd", root=str(lmd), size=40, crop=32))
    assert isinstance(found.train, Photographs)
    many = found.train.read_many([2, 0, 1])
    for place, index in enumerate([2, 0, 1]):
        assert torch.equal(many[place][0], found.train.read(index)[0])
