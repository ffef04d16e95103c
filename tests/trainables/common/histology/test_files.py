"""Real data sets: every layout, made small; splits by patient; patches; other magnifications; bad files in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pharos.errors import InputError
from trainables.common.histology.data import (
    HistologyDataConfig,
    Tiles,
    at,
    circle,
    divide,
    open_tissue,
    padded,
    starts,
)
from trainables.common.histology.files import Sample, open_collection, polygons
from trainables.common.segmentation import IGNORED

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def image(height: int = 40, width: int = 50) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(high: int, height: int = 40, width: int = 50) -> np.ndarray:
    codes = RNG.integers(0, high, (height, width), dtype=np.uint8)
    codes.flat[0] = high - 1
    return codes


def opened(source: str, root: Path, **settings: object) -> HistologyDataConfig:
    return HistologyDataConfig(source=source, root=str(root), size=32, **settings)  # type: ignore[arg-type]


def patients_of(tiles: Tiles) -> set[str]:
    return set(tiles.patients)


def test_folders_of_images_and_masks_with_names_and_splits(tmp_path: Path) -> None:
    for k in range(6):
        save(tmp_path / "images" / f"p{k // 2}_{k}.{'tif' if k % 2 else 'png'}", image())
        save(tmp_path / "masks" / f"p{k // 2}_{k}.png", mask(3))
    (tmp_path / "meta.json").write_text(json.dumps({"class_names": ["a", "b", "c"], "mpp": 0.25}))
    tissue = open_tissue(opened("folder", tmp_path, patient=r"(p\d)_"))
    assert tissue.classes == ("a", "b", "c")
    assert tissue.train.mpp.unique().tolist() == [0.25]
    splits = [{name[:2] for name in part.names} for part in (tissue.train, tissue.validation, tissue.test)]
    assert sorted(name for names in splits for name in names) == ["p0", "p1", "p2"]
    assert tissue.train.images.shape[1:] == (3, 32, 32)
    assert len(tissue.train) == 2 * 4  # 40 x 50 pixels are four patches of 32

    (tmp_path / "splits.json").write_text(
        json.dumps({"train": ["p0_0", "p0_1", "p1_2"], "validation": ["p1_3"], "test": ["p2_4", "p2_5"]})
    )
    tissue = open_tissue(opened("folder", tmp_path))
    assert set(tissue.test.names) == {"p2_4", "p2_5"}
    assert set(tissue.validation.names) == {"p1_3"}


def test_patches_are_the_image_and_the_mask_at_the_same_place(tmp_path: Path) -> None:
    pictures, masks = [image() for _ in range(3)], [mask(2) for _ in range(3)]
    for k in range(3):
        save(tmp_path / "images" / f"{k}.png", pictures[k])
        save(tmp_path / "masks" / f"{k}.png", 255 * masks[k])  # 0/255 is two classes
    tissue = open_tissue(opened("folder", tmp_path))
    assert len(tissue.classes) == 2
    for tiles in (tissue.train, tissue.validation, tissue.test):
        k = int(tiles.names[0])
        assert (tiles.images[3].numpy() == pictures[k][8:, 18:].transpose(2, 0, 1)).all()
        assert (tiles.masks[3].numpy() == masks[k][8:, 18:]).all()
    closer = open_tissue(opened("folder", tmp_path, stride=4))
    assert len(closer.train) == 3 * 6
    assert len(closer.test) == len(tissue.test)


def test_bcss_groups_its_codes_and_keeps_magnification_and_patients(tmp_path: Path) -> None:
    for k, patient in enumerate(["TCGA-A1-A0SK", "TCGA-A1-A0SK", "TCGA-OL-A5D6", "TCGA-E2-A1B5"]):
        name = f"{patient}-DX1_xmin{k}_ymin0_MPP-0.2500"
        save(tmp_path / "images" / f"{name}.png", image())
        codes = np.zeros((40, 50), dtype=np.uint8)
        codes[0, :22] = np.arange(22)
        save(tmp_path / "masks" / f"{name}.png", codes)
    collection = open_collection("bcss", tmp_path)
    labels = collection.read_mask(collection.samples[0], (40, 50))
    assert labels[0, :22].tolist() == [IGNORED, 1, 2, 3, 4, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    tissue = open_tissue(opened("bcss", tmp_path, held_out=["TCGA-OL"]))
    assert patients_of(tissue.test) == {"TCGA-OL-A5D6"}
    assert not patients_of(tissue.train) & patients_of(tissue.validation)
    assert tissue.train.mpp.unique().tolist() == [0.25]
    # Half the magnification: 20 x 25 pixels, mirrored up to a patch.
    coarse = open_tissue(opened("bcss", tmp_path, held_out=["TCGA-OL"], mpp=0.5))
    assert len(coarse.test) == 1
    assert coarse.test.mpp.tolist() == [0.5]
    assert (coarse.test.masks[0, 20:] == IGNORED).all()


def test_crag_and_glas_have_their_own_splits(tmp_path: Path) -> None:
    for folder, count in (("train", 3), ("valid", 1)):
        for k in range(count):
            save(tmp_path / "crag" / folder / "Images" / f"{folder}_{k}.png", image())
            save(tmp_path / "crag" / folder / "Annotation" / f"{folder}_{k}.png", mask(4))
    tissue = open_tissue(opened("crag", tmp_path / "crag"))
    assert set(tissue.test.names) == {"valid_0"}
    # The first instance is a gland as any other.
    assert float(tissue.frequencies[1]) == pytest.approx(0.75, abs=0.05)

    for name in ("train_1", "train_2", "train_3", "testA_1", "testB_1"):
        save(tmp_path / "glas" / f"{name}.bmp", image())
        save(tmp_path / "glas" / f"{name}_anno.bmp", mask(3))
    rows = ["name, patient ID, grade (GlaS)", "train_1, 7, benign", "train_2, 7, benign", "train_3, 9, malignant"]
    (tmp_path / "glas" / "Grade.csv").write_text("\n".join(rows))
    tissue = open_tissue(opened("glas", tmp_path / "glas"))
    assert set(tissue.test.names) == {"testA_1", "testB_1"}
    assert {frozenset(t.names) for t in (tissue.train, tissue.validation)} == {
        frozenset({"train_1", "train_2"}),
        frozenset({"train_3"}),
    }
    assert float(tissue.train.mpp[0]) == pytest.approx(0.62)


def test_monuseg_outlines_are_filled(tmp_path: Path) -> None:
    corners = [(2, 3), (12, 3), (12, 9), (2, 9)]
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
    text = f"<Annotations><Annotation><Regions><Region Id='1'><Vertices>{vertices}</Vertices></Region></Regions>"
    for k, folder in enumerate(["Tissue Images", "Tissue Images", "MoNuSegTestData"]):
        save(tmp_path / folder / f"TCGA-18-549{k}-01Z.tif", image())
        (tmp_path / f"TCGA-18-549{k}-01Z.xml").write_text(text + "</Annotation></Annotations>")
    filled = polygons(tmp_path / "TCGA-18-5490-01Z.xml", (40, 50))
    assert filled.sum() == 11 * 7
    assert filled[3:10, 2:13].all()
    tissue = open_tissue(opened("monuseg", tmp_path))
    assert patients_of(tissue.test) == {"TCGA-18-5492"}
    assert float(tissue.train.mpp[0]) == pytest.approx(0.25)
    (tmp_path / "TCGA-18-5490-01Z.xml").write_text("<Annotations>")
    with pytest.raises(InputError, match=r"TCGA-18-5490-01Z.xml: not an annotation"):
        open_tissue(opened("monuseg", tmp_path))


def test_instance_maps_of_sixteen_bits_are_foreground(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / "images" / f"{k}.png", image())
        instances = np.zeros((40, 50), dtype=np.uint16)
        instances[:10] = 300 + k
        save(tmp_path / "instances" / f"{k}.png", instances)
    tissue = open_tissue(opened("instances", tmp_path))
    assert (tissue.train.masks[0][:10] == 1).all()
    assert (tissue.train.masks[0][10:] == 0).all()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "masks" / "1.png").unlink(), "1.png: has no mask in"),
        (lambda root: (root / "images" / "1.png").write_bytes(b"nothing"), "1.png: not an image that can be read"),
        (lambda root: save(root / "masks" / "1.png", mask(2, 8, 9)), "1.png: 8 x 9 pixels, its image has 40 x 50"),
        (lambda root: save(root / "masks" / "1.png", mask(9)), "1.png: has label 8, but there are 3 classes"),
        (lambda root: (root / "meta.json").write_text("{"), "meta.json: not JSON"),
    ],
    ids=["mask", "image", "size", "label", "meta"],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, spoil: object, says: str) -> None:
    for k in range(3):
        save(tmp_path / "images" / f"{k}.png", image())
        save(tmp_path / "masks" / f"{k}.png", mask(3))
    (tmp_path / "meta.json").write_text(json.dumps({"num_classes": 3}))
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=says) as error:
        open_tissue(opened("folder", tmp_path))
    assert "\n" not in str(error.value)


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs data.root"):
        HistologyDataConfig(source="bcss")
    with pytest.raises(InputError, match="there is no such folder"):
        open_tissue(opened("crag", tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no image with a mask as data.source=crag has them"):
        open_tissue(opened("crag", tmp_path))
    with pytest.raises(InputError, match=r"recipe.data.crop=48 must be at most data.size=32"):
        opened("crag", tmp_path, crop=48)
    with pytest.raises(InputError, match="not a regular expression"):
        opened("folder", tmp_path, patient="(")
    save(tmp_path / "images" / "1.png", image())
    save(tmp_path / "instances" / "1.png", mask(2))
    with pytest.raises(InputError, match=r"no image is left for train; 1 patients"):
        open_tissue(opened("instances", tmp_path, validation_share=0.0))
    for name in ("2.png", "3.png"):
        save(tmp_path / "images" / name, image())
        save(tmp_path / "instances" / name, mask(2))
    with pytest.raises(InputError, match="µm per pixel are unknown"):
        open_tissue(opened("instances", tmp_path, mpp=0.5))


def test_no_patient_is_in_two_splits_and_all_images_are_in_one(tmp_path: Path) -> None:
    samples = [Sample(tmp_path / f"{k}.png", tmp_path, patient=f"p{k % 7}") for k in range(40)]
    parts = divide(samples, HistologyDataConfig(seed=3))
    patients = [{sample.patient for sample in part} for part in parts.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 7
    assert sum(map(len, parts.values())) == 40
    assert {name: set(p) for name, p in zip(parts, patients, strict=True)} != {
        name: {s.patient for s in part} for name, part in divide(samples, HistologyDataConfig(seed=4)).items()
    }


def test_windows_cover_a_length_and_its_end() -> None:
    assert starts(100, 32, 32) == [0, 32, 64, 68]
    assert starts(32, 32, 16) == [0]
    assert starts(20, 32, 16) == [0]


def test_real_images_at_another_magnification_and_orientation(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / "images" / f"{k}.png", image(32, 32))
        save(tmp_path / "instances" / f"{k}.png", mask(2, 32, 32))
    config = opened("instances", tmp_path)
    test = open_tissue(config).test
    same = at(test, config, "test", scale=1.0, phi=0.0)
    assert torch.equal(same.images, test.images)
    turned = at(test, config, "test", scale=1.0, phi=90.0)
    assert torch.equal(turned.masks, test.masks.rot90(1, (1, 2)))
    small = at(test, config, "test", scale=0.71, phi=0.0)
    assert small.images.shape[2:] == (32, 32)  # 23 pixels, up to a multiple of 16
    assert (small.masks[:, 23:] == IGNORED).all()
    tilted = at(test, config, "test", scale=1.0, phi=45.0)
    assert (tilted.masks[:, 0, 0] == IGNORED).all()
    assert (tilted.masks[:, circle(32)] != IGNORED).all()


def test_padding_mirrors_images_and_ignores_masks() -> None:
    images, masks = torch.arange(12.0).reshape(1, 1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.uint8)
    more, ignored = padded(images, masks, 5, 0)
    assert more[0, 0, :, 0].tolist() == [0, 4, 8, 8, 4, 0, 0, 4]
    assert (ignored[0, 3:] == IGNORED).all()
