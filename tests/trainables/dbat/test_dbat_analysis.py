"""Alignment of layers, dissection, concepts, pictures: section 7 of the notes on DBAT, invariants 11 and 12."""

from __future__ import annotations

import pytest
import torch

from trainables.common.materials.scenes import MATSCALE_PERIODS, matscale
from trainables.common.segmentation import IGNORED
from trainables.dbat.analysis import (
    EXCEEDED,
    Alignment,
    alignment,
    dissected,
    spearman,
    thresholds,
)
from trainables.dbat.data import concepts
from trainables.dbat.pictures import class_colours, draw_alignment, draw_attention, draw_detectors


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layers_are_alike_up_to_rotation_and_scale():
    x = normal(20, 7)
    turn = torch.linalg.qr(normal(7, 7, seed=1))[0]
    assert alignment(x, x) == pytest.approx(1)
    assert alignment(x, 3.5 * x @ turn) == pytest.approx(1)
    assert alignment(x, x + 100) == pytest.approx(1)


def test_independent_features_are_not_alike():
    found = [alignment(normal(64, 30, seed=k), normal(64, 50, seed=k + 10)) for k in range(5)]
    assert all(abs(value) < 0.1 for value in found)
    # The estimate is unbiased: it does not grow with the features, as the plain one does.
    assert abs(sum(found) / 5) < 0.03


def test_hsic_is_averaged_over_batches_before_the_quotient():
    one, two = normal(6, 3), normal(6, 3, seed=1)
    both = Alignment()
    both.add({"a": one, "b": one @ torch.diag(torch.tensor([1.0, 2, 3], dtype=torch.float64))})
    both.add({"a": two, "b": -two})
    names, values = both.result()
    assert names == ["a", "b"]
    torch.testing.assert_close(values.diagonal(), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(values, values.T)
    assert 0.5 < values[0, 1] < 1


def test_fewer_than_four_samples_are_refused():
    with pytest.raises(ValueError, match="at least 4 samples"):
        alignment(normal(3, 2), normal(3, 2))


def test_units_exceed_their_thresholds_as_often_as_they_should():
    activations = normal(10, 3, 20, 21)
    active = activations > thresholds(activations)[:, None, None]
    rate = active.double().mean(dim=(0, 2, 3))
    assert ((rate - EXCEEDED).abs() <= 1 / 4200).all()


def test_a_unit_that_is_a_concept_detects_it_and_a_random_one_does_not():
    mask = torch.zeros(5, 1, 40, 40, dtype=torch.bool)
    mask[:, 0, 3:5, 7:11] = True  # eight of 1600 places: the share that a unit is active at
    other = torch.rand(5, 2, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    activations = torch.cat([mask.double() + 0.01 * normal(5, 1, 40, 40), normal(5, 1, 40, 40, seed=1)], 1)
    found = dissected(activations, {"spot": mask, "noise": other})
    assert found.groups == ["spot", "noise", "noise"]
    assert float(found.iou[0, 0]) == 1
    assert (found.iou[1] < 0.02).all()
    assert found.selectivity[0, 0] == 1
    assert found.selectivity[1, 0] < 0.05
    assert found.detectors() == {"spot": 0.5, "noise": 0.0}
    assert found.best_iou()["spot"] == pytest.approx(0.5, abs=0.01)


def test_a_unit_that_selects_a_large_concept_is_a_detector_whatever_its_iou():
    half = torch.zeros(4, 1, 20, 20, dtype=torch.bool)
    half[:, :, :10] = True
    inside = half.double() * (1 + normal(4, 1, 20, 20).abs())
    found = dissected(torch.cat([inside, normal(4, 1, 20, 20, seed=1)], 1), {"half": half})
    assert found.iou[0, 0] <= EXCEEDED / 0.5 + 1e-6
    assert found.selectivity[0, 0] == 1
    assert found.selectivity[1, 0] < 1
    assert found.detectors()["half"] >= 0.5


def test_concepts_of_scenes_are_what_they_are_made_of():
    scenes = matscale(12, 32, 0)
    found = concepts(scenes, range(12), 6, is_matscale=True)
    assert {name: masks.shape[1] for name, masks in found.items()} == {
        "material": 6,
        "fine": 3,
        "coarse": 2,
        "colour": 3,
        "distance": 3,
    }
    for masks in found.values():
        assert (masks.sum(dim=1) == 1).all()
    fine, coarse = MATSCALE_PERIODS[scenes.truth.long()].unbind(-1)
    assert torch.equal(found["fine"][:, 1], fine == 4.5)
    assert torch.equal(found["coarse"][:, 1], coarse == 24)
    assert torch.equal(found["distance"][:, 2].flatten(1).all(dim=1), scenes.zoom >= 1.25)
    blue = found["colour"][:, 2]
    assert scenes.images[:, 2][blue].float().mean() > scenes.images[:, 0][blue].float().mean() + 20
    assert "fine" not in concepts(scenes, range(2), 6, is_matscale=False)


def test_ranks_correlate():
    x = torch.tensor([0.1, 5.0, -2.0, 3.0])
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, torch.tensor([2.0, 4.0, 3.0, 1.0])) == pytest.approx(0.2)


def test_pictures_show_what_they_are_given():
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    labels = torch.full((2, 16, 16), IGNORED, dtype=torch.uint8)
    labels[:, :8] = 1
    masks = torch.zeros(2, 4, 4, 4)
    masks[:, 2] = 1
    picture = draw_attention(images, labels, labels.clamp_max(2), masks, 3)
    assert picture.shape[0] == 3
    assert 0 <= picture.min() < picture.max() <= 1
    column = [picture[:, 20:100, 102 * k : 102 * k + 96] for k in range(7)]
    torch.testing.assert_close(column[1][:, 0, 5], class_colours(3)[1])
    assert column[5].mean() > 0.4
    assert column[4].max() == 0
    assert draw_attention(images, labels, labels.clamp_max(2), None, 3).shape[2] == 3 * 102
    table = draw_alignment(["map 1", "merged"], torch.tensor([[1.0, -0.2], [-0.2, 1.0]]))
    assert table.min() >= 0
    full, half = (draw_detectors({"colour": share, "fine": 0.0}) for share in (1.0, 0.5))
    dark = [(picture[0] < 0.2).sum() for picture in (full, half)]
    assert dark[0] > 1.5 * dark[1]


def test_classes_have_colours_of_their_own():
    colours = class_colours(27)
    assert ((colours >= 0) & (colours <= 1)).all()
    assert torch.pdist(colours).min() > 0.04
