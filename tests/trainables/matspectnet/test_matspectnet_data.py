"""Invariants 13 and 14 of the reference notes, and what the two domains are."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pharos.run import Epoch, Run
from trainables.common.materials.scenes import METASCENE_CLASSES, Scenes, metamers
from trainables.common.materials.spectra import REFLECTANCES, camera, planck, response
from trainables.matspectnet.data import (
    MatSpectNetDataConfig,
    Normalised,
    generated_samples,
    open_domains,
    paired_batch,
    standard_scales,
    true_scenes,
)
from trainables.matspectnet.perception import PROPERTIES, properties
from trainables.matspectnet.spectral_set import SpectralSet

SMALL = {
    "size": 32,
    "crop": 32,
    "validation_images": 40,
    "test_images": 2,
    "spectral_images": 6,
    "spectral_validation": 2,
}
BASE = np.stack([REFLECTANCES[name] for name in METASCENE_CLASSES])


def pixels(scenes: Scenes, *, of_spectra: bool) -> Tensor:
    values = scenes.spectra if of_spectra else scenes.images.float() / 255
    assert values is not None
    return values.movedim(1, -1).flatten(0, 2).double()


def quadratic(x: Tensor) -> Tensor:
    first, second = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([torch.ones_like(x[:, :1]), x, x[:, first] * x[:, second]], dim=1)


def ridge(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.solve(x.T @ x + 1e-6 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


@pytest.fixture(scope="module")
def control() -> tuple[Scenes, Scenes]:
    """Scenes without textures: nothing but spectra tells the two of a pair apart."""
    config = MatSpectNetDataConfig(**SMALL, textured=False, train_images=60, labelled=1.0)
    return true_scenes(config, "train"), true_scenes(config, "validation")


def test_no_colour_tells_a_pair_apart_and_spectra_do(control: tuple[Scenes, Scenes]) -> None:
    train, test = control
    found = {}
    for of_spectra in (False, True):
        a, b = (pixels(scenes, of_spectra=of_spectra) for scenes in control)
        if not of_spectra:
            a, b = quadratic(a), quadratic(b)
        else:
            # Shading is common to all bands.
            a, b = (torch.cat([x / x.mean(dim=1, keepdim=True), torch.ones_like(x[:, :1])], dim=1) for x in (a, b))
        targets = torch.nn.functional.one_hot(train.truth.flatten().long(), 8).double()
        predicted = (b @ ridge(a, targets)).argmax(dim=1)
        truth = test.truth.flatten().long()
        inside = predicted // 2 == truth // 2  # of the right pair
        found[of_spectra] = (predicted == truth)[inside].double().mean()
    # Surfaces, not pixels, are drawn by themselves: about 6 to each of 40 images.
    error = 0.5 / (40 * 6) ** 0.5
    assert found[False] <= 0.5 + 3 * error
    assert found[True] > 0.98


def test_no_recovery_from_colour_beats_half_the_distance_of_the_pairs(control: tuple[Scenes, Scenes]) -> None:
    train, test = control
    a, b = (quadratic(pixels(scenes, of_spectra=False)) for scenes in control)
    recovered = b @ ridge(a, pixels(train, of_spectra=True))
    squares = (recovered - pixels(test, of_spectra=True)).square().mean(dim=1).view(len(test), -1).mean(dim=1)
    assert test.response is not None
    halves = []
    for matrix, truth in zip(test.response.double().numpy(), test.truth, strict=True):
        known = metamers(BASE, matrix)
        pair = ((known[::2] - known[1::2]) / 2) ** 2
        halves.append(float(pair.mean(axis=1)[truth.long().numpy() // 2].mean()))
    floor = sum(halves) / len(halves)
    assert 0.02**2 < floor < 0.06**2
    assert float(squares.mean()) >= floor - 3 * float(squares.std() / len(squares) ** 0.5)


def from_camera(scenes: SpectralSet) -> float:
    """How far the first scene is from what the built-in camera sees of it, in the light in which it is nearest."""
    _, spectra, clean = scenes.whole(0, 64)
    matrices = [response(camera(), planck(kelvin)) for kelvin in np.geomspace(2000, 12000, 400)]
    seen = torch.einsum("kcb,bhw->kchw", torch.from_numpy(np.stack(matrices)).float(), spectra[0])
    return float((seen - clean).abs().mean(dim=(1, 2, 3)).min())


def test_channels_are_scaled_by_the_training_images(domains) -> None:
    train = domains.materials.train
    of_images, of_spectra = standard_scales(domains)
    images = torch.stack([train.read_whole(k)[0] for k in range(len(train))]).float() / 255
    spectra = torch.cat([domains.spectral.whole(k, 64)[1] for k in range(len(domains.spectral))])
    for scale, values in ((of_images, images), (of_spectra, spectra)):
        scaled = scale(values).movedim(1, 0).flatten(1)
        torch.testing.assert_close(scaled.mean(dim=1), torch.zeros(values.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(scaled.std(dim=1), torch.ones(values.shape[1]), rtol=1e-4, atol=0)


@pytest.fixture(scope="module")
def domains() -> object:
    return open_domains(MatSpectNetDataConfig(**{**SMALL, "train_images": 9, "validation_images": 2}, normalise="none"))


def test_the_two_domains_are_of_different_cameras_and_lights(domains) -> None:
    assert len(domains.spectral) == 6
    assert len(domains.materials.train) == 9
    assert domains.hidden is not None
    x, spectra, clean = domains.spectral.whole(0, 64)
    assert spectra.shape == (1, 31, 32, 32)
    # The image is the scene's own, with noise and in bytes.
    assert 0 < float((x - clean).abs().mean()) < 0.01
    # In some light, the camera of the spectral set sees its scenes as they are; in none, those of the other set.
    assert from_camera(domains.spectral) < 1e-4
    assert from_camera(domains.hidden) > 1e-3


def test_partners_are_unrelated_and_the_same_for_any_number_of_workers(domains) -> None:
    epochs = []
    for rank, workers in ((0, 1), (0, 2), (1, 2)):
        run = Run(seed=0)
        run.world.rank, run.world.size = rank, workers
        epoch = Epoch(run, "translate", 0)
        epoch._batch = 4
        epochs.append(epoch)
    chosen = torch.tensor([8, 0, 3, 5])
    whole = paired_batch(domains, chosen, 24, epochs[0])
    assert [part.shape[1:] for part in whole] == [(3, 24, 24), (31, 24, 24), (3, 24, 24), (3, 24, 24)]
    for rank in range(2):
        for ours, all_of_it in zip(paired_batch(domains, chosen[rank::2], 24, epochs[1 + rank]), whole, strict=True):
            assert torch.equal(ours, all_of_it[rank::2])


class One:
    """A single image."""

    def __init__(self, image: Tensor):
        self.image = image

    def __len__(self) -> int:
        return 1

    def read_whole(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image, torch.zeros(2, 2, dtype=torch.uint8)

    def read_many(self, indices) -> list[tuple[Tensor, Tensor]]:
        return [self.read_whole(index) for index in indices]


def test_images_fill_the_range_of_a_byte_or_stay_as_they_are() -> None:
    image = torch.randint(40, 90, (3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stretched, _ = Normalised(One(image), "minmax").read_whole(0)
    assert (int(stretched.min()), int(stretched.max())) == (0, 255)
    again = Normalised(One(image), "minmax").read_many([0])[0][0]
    assert torch.equal(stretched, again)
    assert torch.equal(Normalised(One(image), "none").read_whole(0)[0], image)


def test_generated_samples_are_like_the_collection_s() -> None:
    samples = generated_samples(0)
    table = dict(zip(PROPERTIES, properties(samples).T, strict=True))
    assert samples.spectra.shape == (1294, 31)
    assert float(samples.spectra.min()) >= 0
    assert float(samples.spectra.max()) < 1
    # Percentiles 5, 50 and 95 of the collection's specularity: 0, 0.0024, 0.052.
    low, middle, high = table["specularity"].quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    assert low < 0.0005
    assert middle == pytest.approx(0.0024, rel=0.2)
    assert high == pytest.approx(0.052, rel=0.25)
    # The collection's mean is 0.894, and its extremes 0.09 and 4.3.
    ratio = table["melanopic/visible"]
    assert float(ratio.mean()) == pytest.approx(0.894, rel=0.05)
    assert 0.09 < float(ratio.quantile(0.01)) < float(ratio.quantile(0.99)) < 4.3
    assert torch.equal(generated_samples(0).spectra, samples.spectra)
    assert not torch.equal(generated_samples(1).spectra, samples.spectra)
