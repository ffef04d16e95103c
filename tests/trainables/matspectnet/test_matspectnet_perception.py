"""Invariants 7 and 8 of the reference notes: shapes of spectra, the look-up and the properties."""

import pytest
import torch

from pharos.errors import InputError
from trainables.common.materials.spectra_files import Samples
from trainables.matspectnet.perception import PROPERTIES, Perception, nearest, properties, shape


def samples(count: int = 40, **given: torch.Tensor) -> Samples:
    torch.manual_seed(0)
    spectra = torch.rand(count, 31)
    gloss, roughness = 0.1 * torch.rand(count), torch.rand(count)
    return Samples("made", [str(k) for k in range(count)], spectra, gloss, roughness, given)


@pytest.mark.parametrize("kind", ["pairwise", "lag1"])
def test_shapes_have_465_numbers_that_a_constant_does_not_change(kind: str) -> None:
    torch.manual_seed(0)
    spectra = torch.rand(5, 31)
    assert shape(spectra, kind).shape == (5, 465)
    torch.testing.assert_close(shape(spectra + 0.3, kind), shape(spectra, kind))
    torch.testing.assert_close(shape(-2 * spectra, kind), 2 * shape(spectra, kind))
    assert not shape(torch.full((1, 31), 0.4), kind).any()


def test_pairwise_has_every_pair_once() -> None:
    torch.manual_seed(0)
    spectrum = torch.rand(31)
    expected = [abs(float(spectrum[i] - spectrum[j])) for i in range(31) for j in range(i + 1, 31)]
    assert shape(spectrum[None])[0].tolist() == pytest.approx(expected)


def test_lag1_repeats_the_k_th_step_k_times() -> None:
    torch.manual_seed(0)
    spectrum = torch.rand(31)
    steps = (spectrum[:-1] - spectrum[1:]).abs()
    expected = steps.repeat_interleave(torch.arange(1, 31))
    assert torch.equal(shape(spectrum[None], "lag1")[0].sort().values, expected.sort().values)


def test_sam_does_not_see_brightness() -> None:
    spectra = torch.rand(4, 31)
    torch.testing.assert_close(shape(3 * spectra, "sam"), shape(spectra, "sam"))
    assert torch.equal(shape(spectra, "raw"), spectra)


@pytest.mark.parametrize("kind", ["pairwise", "lag1", "raw", "sam"])
def test_the_nearest_is_that_of_brute_force_and_a_sample_finds_itself(kind: str) -> None:
    torch.manual_seed(1)
    known, queries = shape(torch.rand(60, 31), kind), shape(torch.rand(200, 31), kind)
    brute = (queries[:, None] - known).norm(dim=2).argmin(dim=1)
    assert torch.equal(nearest(queries, known), brute)
    assert nearest(known, known).tolist() == list(range(60))


def test_properties_are_weighted_means_of_the_spectra() -> None:
    table = properties(samples())
    assert table.shape == (40, 8)
    bands = torch.arange(400, 701, 10.0)
    found = samples()
    for name, (centre, width), spectra in (
        ("visible", (560, 40), found.spectra + found.specularity[:, None]),
        ("melanopic", (490, 35), found.spectra + found.specularity[:, None]),
        ("red", (625, 15), found.spectra),
        ("green", (545, 20), found.spectra),
        ("blue", (445, 10), found.spectra),
    ):
        weights = torch.exp(-((bands - centre) ** 2) / (2 * width**2))
        expected = (spectra * weights).sum(dim=1) / weights.sum()
        torch.testing.assert_close(table[:, PROPERTIES.index(name)], expected)
    torch.testing.assert_close(table[:, 2], table[:, 1] / table[:, 0])
    assert torch.equal(table[:, 6], found.specularity)
    assert torch.equal(table[:, 7], found.roughness)


def test_properties_that_come_with_the_samples_are_taken() -> None:
    given = torch.arange(40.0)
    assert torch.equal(properties(samples(visible=given + 1))[:, 0], given + 1)


def test_each_pixel_gets_the_properties_of_its_sample_and_no_gradient() -> None:
    known = samples()
    module = Perception(known, standardise=False)
    chosen = torch.tensor([[3, 7, 1], [0, 39, 7]])
    image = known.spectra[chosen].permute(2, 0, 1)[None].requires_grad_()
    out = module(image + 0.05)
    assert not out.requires_grad
    torch.testing.assert_close(out[0].permute(1, 2, 0), properties(known)[chosen])
    assert not list(module.parameters())
    assert not module.state_dict()


def test_standardised_properties_have_mean_0_and_deviation_1_and_a_constant_one_is_0() -> None:
    flat = Samples("made", [], torch.rand(50, 31), torch.zeros(50), torch.zeros(50))
    values = Perception(flat).values
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(dim=0)[:6], torch.ones(6))
    assert not values[:, 6:].any()


def test_a_table_with_a_hole_is_refused() -> None:
    known = samples(visible=torch.full((40,), torch.nan))
    with pytest.raises(InputError, match="not finite"):
        Perception(known)
