"""Generated scenes: metamers are exact, colour says nothing, scales say all; what the reference notes computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pharos.errors import InputError
from trainables.common.materials.data import MaterialsDataConfig, generated, open_materials, reflectances
from trainables.common.materials.scenes import (
    METASCENE_CLASSES,
    METASCENE_PERIODS,
    chosen_reflectances,
    matscale,
    metamers,
    metascene,
    sparse,
)
from trainables.common.materials.spectra import (
    BANDS,
    REFLECTANCES,
    WAVELENGTHS,
    angle,
    camera,
    planck,
    response,
    seen,
)
from trainables.common.materials.spectra_files import read_samples
from trainables.common.materials.textures import band_noise, filtered, inside, voronoi
from trainables.common.segmentation import IGNORED

BASE = np.stack([REFLECTANCES[name] for name in METASCENE_CLASSES])


@pytest.mark.parametrize("kelvin", [2856, 6500, 10000])
@pytest.mark.parametrize("optics", [{}, {"shift": 8.0, "width": 1.1}])
def test_metamers_have_one_colour_and_possible_spectra(kelvin, optics):
    matrix = response(camera(**optics), planck(kelvin))
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    pairs = metamers(BASE, matrix)
    np.testing.assert_allclose(pairs[::2] @ matrix.T, pairs[1::2] @ matrix.T, atol=1e-15)
    assert pairs.min() > 0.02
    assert pairs.max() < 0.7


def test_metamers_are_as_far_apart_as_the_notes_say():
    """The table of section 2.5: angles in degrees, RMS differences, and what another camera and light make of them."""
    pairs = metamers(BASE, response(camera(), planck(6500)))
    angles = [np.degrees(angle(pairs[k], pairs[k + 1])) for k in range(0, 8, 2)]
    assert angles == pytest.approx([30.9, 15.4, 15.7, 17.1], abs=0.06)
    gaps = [np.sqrt(np.mean((pairs[k] - pairs[k + 1]) ** 2)) for k in range(0, 8, 2)]
    assert gaps == pytest.approx([0.054, 0.121, 0.030, 0.054], abs=6e-4)
    split = (pairs[1::2] - pairs[::2]) @ response(camera(shift=8), planck(3000)).T
    expected = [(0.012, -0.006, 0.009), (0.047, -0.015, 0.019), (-0.004, 0.001, -0.006), (-0.013, 0.003, -0.006)]
    np.testing.assert_allclose(split, expected, atol=1.1e-3)


def test_the_projector_keeps_what_is_seen_and_nothing_else():
    matrix = response(camera(), planck(5000))
    projector = seen(matrix)
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-12)
    np.testing.assert_allclose(matrix @ projector, matrix, atol=1e-12)
    assert np.linalg.matrix_rank(projector) == 3


def test_planck_peaks_where_wien_says():
    for kelvin in (4500.0, 6000.0):
        assert abs(WAVELENGTHS[planck(kelvin).argmax()] - 2.897771955e6 / kelvin) <= 5


def test_spectra_of_a_metascene_are_what_its_camera_saw():
    scenes = metascene(4, 32, 3, sensitivity=camera(), kelvins=(4000, 10000), is_noisy=False, keeps_spectra=True)
    rgb = torch.einsum("ncb,nbhw->nchw", scenes.response, scenes.spectra)
    assert (rgb.clamp(0, 1) - scenes.images / 255).abs().max() < 0.5 / 255 + 1e-5
    assert scenes.spectra.shape[1] == BANDS
    assert scenes.spectra.min() > 0


def test_without_textures_pairs_have_the_same_colours():
    """Both of a pair, drawn from the same deviations and shading: their colours have one distribution."""
    scenes = metascene(300, 16, 0, sensitivity=camera(), kelvins=(5000, 6500), labelled=1, is_textured=False)
    pixels, truth = scenes.images.movedim(1, -1)[:, ::4, ::4].float() / 255, scenes.truth[:, ::4, ::4]
    means = torch.stack([pixels[truth == k].mean(dim=0) for k in range(8)])
    spread = torch.stack([pixels[truth == k].std(dim=0) for k in range(8)])
    assert ((means[::2] - means[1::2]).abs() < 0.25 * spread[::2]).all()
    # Neighbouring pairs differ by far more than that.
    assert (means[0] - means[2]).abs().max() > 3 * spread[0].max()


def test_noise_has_unit_variance_and_its_period():
    noise = band_noise(torch.tensor([4.0, 16.0]), 128, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.square().mean(dim=(1, 2)), torch.ones(2))
    power = torch.fft.rfft2(noise).abs().square()
    frequency = (torch.fft.fftfreq(128)[:, None] ** 2 + torch.fft.rfftfreq(128)[None] ** 2).sqrt()
    octaves = (power * frequency.clamp_min(1e-9).log2()).sum(dim=(1, 2)) / power.sum(dim=(1, 2))
    torch.testing.assert_close(2**-octaves, torch.tensor([4.0, 16.0]), rtol=0.12, atol=0)


def test_scenes_follow_from_their_seed():
    one, again, other = (matscale(3, 32, seed) for seed in (5, 5, 6))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.images, other.images)


def test_sparse_labels_lie_inside_of_surfaces_and_every_image_has_some():
    cells = voronoi(50, 5, 24, torch.Generator().manual_seed(1))
    truth = cells.to(torch.uint8)
    labels = sparse(truth, cells, 0.0, torch.Generator().manual_seed(2))
    known = labels != IGNORED
    assert torch.equal(labels[known], truth[known])
    assert not (known & ~inside(cells)).any()
    for image in labels:
        assert len(image[image != IGNORED].unique()) <= 1
    shares = [
        (sparse(truth, cells, share, torch.Generator().manual_seed(2)) != IGNORED).float().mean()
        for share in (0, 0.5, 1)
    ]
    assert shares[0] < shares[1] < shares[2]
    assert torch.equal(sparse(truth, cells, 1.0, torch.Generator().manual_seed(2)) != IGNORED, inside(cells))


def test_inside_erodes_one_pixel():
    cells = torch.zeros(1, 5, 6, dtype=torch.int64)
    cells[:, :, 3:] = 1
    assert inside(cells)[0, 2].tolist() == [True, True, False, False, True, True]


def features(images, bands):
    """Local energies of bands and their squares, as the notes' linear discriminant has them."""
    grey = images.float().mean(dim=1) / 255
    grey = grey / torch.nn.functional.avg_pool2d(grey[:, None], 15, 1, 7, count_include_pad=False)[:, 0]
    columns = []
    for period in bands:
        band = filtered(grey, torch.full((len(grey),), period))
        scale = (grey - grey.mean(dim=(1, 2), keepdim=True)).std(dim=(1, 2), keepdim=True)
        columns.append(torch.nn.functional.avg_pool2d((band * scale).square()[:, None], 13, 1, 6)[:, 0].sqrt())
    values = torch.stack(columns, -1)
    pairs = torch.einsum("...i,...j->...ij", values, values).flatten(-2)
    return torch.cat([values, pairs], -1)


def discriminant(train, test):
    """Accuracy of a linear discriminant: classes of equal covariance."""
    (x, y), (u, v) = ((a.flatten(0, -2).double(), b.flatten()) for a, b in (train, test))
    mean, spread = x.mean(dim=0), x.std(dim=0)
    x, u = (x - mean) / spread, (u - mean) / spread
    centres = torch.stack([x[y == k].mean(dim=0) for k in range(int(y.max()) + 1)])
    rest = x - centres[y.long()]
    weights = torch.linalg.solve(rest.T @ rest / len(x) + 1e-4 * torch.eye(x.shape[1]), centres.T)
    scores = u @ weights - (centres.T * weights).sum(dim=0) / 2
    return float((scores.argmax(dim=1) == v).double().mean())


def test_colour_says_nothing_and_no_single_octave_says_as_much_as_all():
    """Section 2.6: chance by colour; all octaves beat the best of three bands by more than a tenth, at Z = 1."""
    train, test = matscale(110, 64, 0, labelled=1), matscale(50, 64, 1, labelled=1)
    step = (slice(None), slice(2, None, 6), slice(2, None, 6))
    truth = [scenes.truth[step] for scenes in (train, test)]

    def accuracy(of):
        return discriminant(*((of(scenes)[step], y) for scenes, y in zip((train, test), truth, strict=True)))

    colour = accuracy(lambda scenes: scenes.images.movedim(1, -1).float())
    assert abs(colour - 1 / 6) < 0.03
    bands = {"fine": (2.5, 3.5, 5.0), "middle": (5.0, 7.0, 10.0), "coarse": (14.0, 20.0, 28.0)}
    single = {name: accuracy(lambda s, b=band: features(s.images, b)) for name, band in bands.items()}
    everything = accuracy(lambda s: features(s.images, (2.5, 3.5, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0)))
    assert everything > max(single.values()) + 0.1


def test_periods_of_pairs_differ():
    assert (METASCENE_PERIODS[::2] != METASCENE_PERIODS[1::2]).any(dim=1).all()


def test_splits_differ_and_tests_are_dense():
    config = MaterialsDataConfig(size=32, crop=32, train_images=4, validation_images=4, test_images=4)
    found = open_materials(config)
    assert not torch.equal(found.validation.images, found.test.images)
    assert (found.test.labels != IGNORED).all()
    assert (found.train.labels == IGNORED).any()
    assert found.labelled == 4
    assert len(found.classes) == 6


def test_hidden_spectra_belong_to_the_images_of_a_split():
    config = MaterialsDataConfig(source="metascene", size=32, crop=32, train_images=2)
    plain, deep = generated(config, "train"), generated(config, "train", keeps_spectra=True)
    assert torch.equal(plain.images, deep.images)
    assert plain.spectra is None


def test_a_table_of_measured_spectra_takes_the_materials_places(tmp_path):
    generator = np.random.default_rng(0)
    nm = np.arange(390, 711, 5)
    curves = 0.2 + 0.15 * np.cumsum(generator.normal(0, 0.15, (60, len(nm))), axis=1).clip(-1, 3)
    curves = (curves + generator.uniform(0, 0.3, (60, 1))).clip(0.03, 0.9)
    rows = [nm, *curves]
    file = tmp_path / "table.csv"
    file.write_text("\n".join(",".join(f"{v:.5f}" for v in row) for row in rows))
    table = read_samples(str(file)).spectra.double().numpy()
    assert table.shape == (60, BANDS)
    np.testing.assert_allclose(table[:, 0], curves[:, 2], atol=1e-5)
    chosen = reflectances(MaterialsDataConfig(source="metascene", spectra=str(file)))
    np.testing.assert_array_equal(chosen, chosen_reflectances(table))
    matrix = response(camera(), planck(6500))
    pairs = metamers(chosen, matrix)
    np.testing.assert_allclose(pairs[::2] @ matrix.T, pairs[1::2] @ matrix.T, atol=1e-14)
    assert pairs.min() > 0
    assert pairs.max() < 1


def test_too_few_spectra_for_four_pairs_are_refused(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("400 700\n0.1 0.2\n0.3 0.4")
    with pytest.raises(InputError, match="of 2 spectra"):
        reflectances(MaterialsDataConfig(source="metascene", spectra=str(file)))
