"""Baselines at their documented sizes, augmentation, metrics, inference in tiles, batch norm of several workers."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pharos.errors import InputError
from pharos.run import Epoch, Run
from trainables.common.batchnorm import BatchNorm2d
from trainables.common.histology.augmentation import augmented, restained, transformed
from trainables.common.histology.data import HistologyDataConfig, generated
from trainables.common.histology.evaluation import Viewer, similarity
from trainables.common.histology.inference import predict_folder, predict_image
from trainables.common.histology.metrics import linear_cka, scores
from trainables.common.histology.networks import NestedUNet, UNet, baseline
from trainables.common.histology.pictures import borders, draw_segmentation, overlay
from trainables.common.segmentation import class_dice, class_iou, confusion, mean_iou


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("classes", "width", "depth", "settings", "expected"),
    [
        (2, 64, 4, {}, 31_043_586),
        (5, 64, 4, {}, 31_043_781),
        (2, 64, 4, {"how": "bilinear"}, 28_954_626),
        (2, 64, 4, {"how": "bilinear", "kernel": 5}, 79_158_274),
        (2, 64, 4, {"how": "bilinear", "kernel": 7}, 154_463_746),
        (2, 16, 4, {"how": "bilinear"}, 1_813_506),
        (2, 8, 4, {"how": "bilinear"}, 454_658),
        (5, 16, 2, {"how": "bilinear"}, 110_069),
        (2, 16, 2, {"how": "bilinear"}, 110_018),
        (5, 8, 2, {"how": "bilinear"}, 27_901),
    ],
)
def test_sizes_of_unets(classes: int, width: int, depth: int, settings: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        assert count(UNet(classes, width, depth, **settings)) == expected


@pytest.mark.parametrize("name", ["unet", "unet_bilinear", "unete", "unetpp"])
def test_baselines_give_logits_of_each_head_at_full_resolution(name: str) -> None:
    network = baseline(name, 3, 4, 2)
    heads = network(torch.randn(2, 3, 16, 24))
    assert [tuple(head.shape) for head in heads] == [(2, 3, 16, 24)] * (
        2 if name.split("_", maxsplit=1)[0] != "unet" else 1
    )
    nodes = network.top_nodes(torch.randn(2, 3, 16, 24))  # type: ignore[operator]
    assert [tuple(node.shape) for node in nodes] == [(2, 4, 16, 24)] * len(heads)
    sum(head.sum() for head in heads).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_unete_and_unetpp_differ_in_what_a_node_is_given() -> None:
    """The deepest UNet's top node: in UNet++ it hears of the shallower ones, in UNet^e it does not."""
    for dense in (False, True):
        network = NestedUNet(2, 4, 2, dense=dense).eval()
        network.requires_grad_(False)
        network.nodes["0_1"].requires_grad_(True)
        reached = network.top_nodes(torch.randn(1, 3, 8, 8))[1].requires_grad
        assert reached is dense


# Metrics


def test_scores_are_those_of_sets() -> None:
    truth, predicted = torch.randint(0, 4, (2, 3, 8, 8))
    truth[truth == 3] = 2  # class 3 is predicted, but never true
    truth[0, 0] = 255
    counted = truth != 255
    matrix = confusion(predicted, truth, 6)
    assert matrix.sum() == counted.sum()
    iou, dice = class_iou(matrix), class_dice(matrix)
    for k in range(4):
        ours, theirs = (predicted == k) & counted, truth == k
        assert float(iou[k]) == pytest.approx(float((ours & theirs).sum() / (ours | theirs).sum()))
        assert float(dice[k]) == pytest.approx(float(2 * iou[k] / (1 + iou[k])))
    assert torch.isnan(iou[4:]).all()
    assert mean_iou(matrix) == pytest.approx(float(iou[:4].mean()))
    found = scores(matrix, tuple("abcdef"))
    assert "iou/d" in found
    assert "iou/e" not in found
    assert "foreground_iou" not in found
    two = scores(confusion(predicted.clamp_max(1), truth.clamp_max(1).where(counted, 255), 2))
    assert two["foreground_iou"] == pytest.approx(
        2 * two["miou"]
        - float(class_iou(confusion(predicted.clamp_max(1), truth.clamp_max(1).where(counted, 255), 2))[0])
    )


def test_cka_knows_no_rotation_and_no_scale() -> None:
    x = torch.randn(200, 6)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    assert linear_cka(x, x) == pytest.approx(1.0)
    assert linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1.0)
    assert linear_cka(x, torch.randn(200, 6)) < 0.1
    maps = torch.randn(4, 6, 16, 16)
    assert similarity([maps, maps.flip(1)]) == pytest.approx(1.0)
    assert similarity([maps, torch.randn(4, 3, 8, 8), torch.randn(4, 6, 16, 16)]) < 0.1


# Augmentation


def drawn(kind: str, images: Tensor, masks: Tensor, crop: int = 0) -> tuple[Tensor, Tensor]:
    epoch = Epoch(Run(seed=1), "epoch", 0)
    list(epoch.batches(images, len(images)))
    return augmented(images, masks, kind, epoch, crop)


def marked(count: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """Images whose channels say which pixel of the mask is where."""
    masks = torch.randint(0, 200, (count, side, side), dtype=torch.uint8)
    return (masks.float() / 255)[:, None].expand(-1, 3, -1, -1).contiguous(), masks


@pytest.mark.parametrize("kind", ["none", "flips", "flips+rot90"])
@pytest.mark.parametrize("crop", [0, 5])
def test_images_and_masks_are_moved_alike(kind: str, crop: int) -> None:
    images, masks = marked(32)
    moved, with_them = drawn(kind, images, masks, crop)
    assert moved.shape == (32, 3, crop or 8, crop or 8)
    torch.testing.assert_close((moved[:, 0] * 255).round().to(torch.uint8), with_them)
    if kind == "none" and not crop:
        assert torch.equal(with_them, masks)
    elif not crop:
        variants = {
            tuple(m.flatten().tolist())
            for m in (
                *(masks[0].rot90(k) for k in range(4)),
                *(masks[0].flip(0).rot90(k) for k in range(4)),
            )
        }
        assert tuple(with_them[0].flatten().tolist()) in variants
        assert not torch.equal(with_them, masks)


def test_a_quarter_turn_of_a_picture_is_exact_and_of_the_same_sense_as_the_stage_s() -> None:
    images, masks = marked(2)
    ones = torch.ones(2)
    turned, with_them = transformed(images, masks, ones, torch.full((2,), math.pi / 2))
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(with_them, masks.rot90(1, (1, 2)))


def test_magnified_pictures_show_less_and_reduced_ones_have_ignored_borders() -> None:
    images, masks = marked(1, 8)
    _, larger = transformed(images, masks, torch.full((1,), 2.0), torch.zeros(1))
    assert torch.equal(larger[0], masks[0, 2:6, 2:6].repeat_interleave(2, 0).repeat_interleave(2, 1))
    _, smaller = transformed(images, masks, torch.full((1,), 0.5), torch.zeros(1))
    assert (smaller[0, :2] == 255).all()
    assert (smaller[0, 2:6, 2:6] != 255).all()
    _, affine = drawn("flips+affine", *marked(16, 16))
    assert 0 < float((affine == 255).float().mean()) < 0.6


def test_restaining_multiplies_concentrations() -> None:
    images = torch.rand(2, 3, 4, 4) * 0.8 + 0.1
    same = restained(images, torch.ones(2, 2), torch.zeros(2, 2))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    h = torch.tensor([0.650, 0.704, 0.286]).view(1, 3, 1, 1)
    pure = torch.exp(-0.5 * h).expand(2, 3, 4, 4)
    stronger = restained(pure, torch.tensor([[1.2, 1.0], [0.8, 1.0]]), torch.zeros(2, 2))
    torch.testing.assert_close(stronger[0], torch.exp(-0.6 * h[0]).expand(3, 4, 4))
    torch.testing.assert_close(stronger[1], torch.exp(-0.4 * h[0]).expand(3, 4, 4))


# Evaluation


def test_a_viewer_counts_every_pixel_once_in_every_way() -> None:
    tiles = generated(HistologyDataConfig(source="nuclei", size=16, test_images=5), "test")
    viewer = Viewer(Run(seed=0), [0.5] * 3, [0.2] * 3, batch_size=2)
    matrices = viewer.confusions(lambda x: torch.stack([x[:, 0] > 0, x[:, 0] < 0]).long(), tiles, 2)
    assert matrices.shape == (2, 2, 2)
    assert matrices.sum(dim=(1, 2)).tolist() == [5 * 256] * 2
    assert matrices[0, 0, 0] + matrices[1, 0, 0] == (tiles.masks == 0).sum()
    within = torch.zeros(16, 16, dtype=torch.bool)
    within[4:8] = True
    assert float(viewer.confusions(lambda x: x[None, :, 0].long() * 0, tiles, 2, within).sum()) == 5 * 64


# Inference


def local(x: Tensor) -> Tensor:
    """Probabilities that depend on their own pixel alone: tiles must not show."""
    p = x.mean(dim=1).sigmoid()
    return torch.stack([p, 1 - p], dim=1)


@pytest.mark.parametrize("size", [(37, 53), (16, 16), (9, 70), (5, 5)])
def test_tiles_of_any_image_say_what_the_whole_would(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size)
    found = predict_image(local, image, side=14, multiple=8)
    torch.testing.assert_close(found, local(image[None])[0])


def test_tiles_fade_into_each_other() -> None:
    """Two tiles that disagree altogether: no jump is larger than a step of the ramp."""
    calls: list[int] = []

    def disagreeing(x: Tensor) -> Tensor:
        value = torch.arange(len(calls), len(calls) + len(x)) % 2
        calls.extend(range(len(x)))
        p = value.float().view(-1, 1, 1).expand(-1, *x.shape[2:])
        return torch.stack([p, 1 - p], dim=1)

    found = predict_image(disagreeing, torch.zeros(3, 16, 24), side=16, multiple=8)[0]
    assert found[:, 0].eq(0).all()
    assert found[:, -1].eq(1).all()
    assert float(found.diff(dim=1).max()) < 0.3


def test_a_folder_becomes_labels_and_overlays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    output.mkdir()
    pixels = np.full((21, 34, 3), 200, dtype=np.uint8)
    pixels[:, 17:] = 20
    Image.fromarray(pixels).save(images / "a.png")
    Image.fromarray(pixels[:8, :8]).convert("L").save(images / "b.tif")
    about = {"classes": ["background", "nucleus"], "mean": [0.5] * 3, "std": [0.2] * 3, "mpp": 1.0}
    predict_folder(local, tmp_path, output, about, side=16, multiple=8, device=torch.device("cpu"))
    assert sorted(path.name for path in output.iterdir()) == ["a.png", "a_overlay.png", "b.png", "b_overlay.png"]
    labels = np.asarray(Image.open(output / "a.png"))
    assert (labels == (pixels[..., 0] < 100)).all()
    shown = np.asarray(Image.open(output / "a_overlay.png"))
    assert shown.shape == pixels.shape
    assert (shown[5, 3] == pixels[5, 3]).all()  # background stays as it is
    assert (shown[5, 30] != pixels[5, 30]).any()
    assert "2/2 b.tif: background 100%, nucleus 0%" in capsys.readouterr().err


def test_bad_folders_and_images_are_named(tmp_path: Path) -> None:
    about = {"classes": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.2] * 3}
    settings: dict[str, Any] = {"side": 8, "multiple": 8, "device": torch.device("cpu")}
    with pytest.raises(InputError, match="has no image to predict"):
        predict_folder(local, tmp_path, tmp_path, about, **settings)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken.png: not an image that can be read"):
        predict_folder(local, tmp_path, tmp_path, about, **settings)


def test_pictures_show_borders_and_classes() -> None:
    labels = torch.zeros(6, 6, dtype=torch.uint8)
    labels[2:4, 2:4] = 1
    assert int(borders(labels).sum()) == 7
    image = torch.full((3, 6, 6), 0.5)
    clear = overlay(image, labels, clear=[0])
    assert torch.equal(clear[:, 5, 5], image[:, 5, 5])
    sheet = draw_segmentation(image[None], labels[None], labels[None], zoom=2)
    assert sheet.shape == (3, 12, 2 * (3 * 6 + 2 * 4))
    assert 0 <= float(sheet.min()) <= float(sheet.max()) <= 1


# Batch norm


def _half(rank: int, store: str, pipe: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    pipe.send(_normalise(slice(0, 3) if rank == 0 else slice(3, 8)))
    dist.destroy_process_group()


def _normalise(part: slice) -> list[Any]:
    torch.manual_seed(0)
    x = (50 + 2 * torch.randn(8, 3, 4, 4))[part].requires_grad_(True)
    norm = BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    out = norm(x)
    (out * torch.arange(out[0].numel()).view(3, 4, 4).sin()).square().sum().backward()
    assert x.grad is not None
    values = [out, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    return [value.detach().tolist() for value in values if value is not None]


def test_batch_norm_of_two_uneven_workers_is_that_of_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    workers = [
        context.Process(target=_half, args=(rank, str(tmp_path / "store"), pipe[1])) for rank, pipe in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    halves = [[torch.tensor(value) for value in pipe[0].recv()] for pipe in pipes]
    for worker in workers:
        worker.join()
    whole = [torch.tensor(value) for value in _normalise(slice(0, 8))]
    for k in (0, 1):  # outputs and their gradients
        torch.testing.assert_close(torch.cat([half[k] for half in halves]), whole[k], rtol=1e-3, atol=1e-4)
    for k in (2, 3):  # gradients of the weights add up
        torch.testing.assert_close(halves[0][k] + halves[1][k], whole[k], rtol=1e-3, atol=1e-3)
    for k in (4, 5):  # running statistics
        torch.testing.assert_close(halves[0][k], whole[k], rtol=1e-4, atol=1e-4)
        assert torch.equal(halves[0][k], halves[1][k])
