"""Invariants 9 and 10 of the reference notes: errors of recovery, the objective, adversarial losses and the pool."""

import pytest
import torch
from torch import Tensor

from pharos.run import Epoch, Run
from trainables.matspectnet.adversarial import (
    Discriminators,
    ImagePool,
    PatchDiscriminator,
    PixelDiscriminator,
    accuracy,
    discriminator_adversarial,
    generator_adversarial,
)
from trainables.matspectnet.losses import (
    TranslationWeights,
    mrae,
    psnr,
    rmse,
    spectral_angle,
    translation_objective,
)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_errors_of_recovery_are_what_they_say() -> None:
    torch.manual_seed(0)
    h = 0.1 + torch.rand(2, 31, 5, 5)
    assert float(mrae(h, h)) == 0
    assert float(mrae(1.1 * h, h)) == pytest.approx(0.1, rel=1e-5)
    assert float(rmse(h + 0.2, h)) == pytest.approx(0.2, rel=1e-5)
    assert float(psnr(h + 0.1, h)) == pytest.approx(20, rel=1e-5)
    assert float(psnr(h, h)) == 100
    assert float(spectral_angle(3 * h, h)) == pytest.approx(0, abs=1e-6)
    a, b = torch.zeros(2, 1, 31, 1, 1)
    a[:, 0], b[:, 1] = 1, 1
    assert float(spectral_angle(a, b)) == pytest.approx(torch.pi / 2)


def test_a_dark_pixel_does_not_blow_up_the_relative_error() -> None:
    assert float(mrae(torch.tensor([0.01]), torch.tensor([0.0]))) == pytest.approx(10)


def test_the_objective_weighs_its_terms_as_the_notes_do() -> None:
    torch.manual_seed(0)
    h, clean, other = torch.rand(1, 31, 4, 4) + 0.1, torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    found = {
        "spectra": 1.2 * h,
        "seen": clean + 0.1,
        "other_seen": other + 0.2,
        "synthetic": clean - 0.3,
        "cycle": 1.4 * h,
    }
    loss, terms = translation_objective(found, h, clean, other, TranslationWeights(2.0, 3.0, 0.5))
    expected = {"hsi": 0.2, "physics_spectral": 0.01, "physics_material": 0.04, "rgb": 0.3, "cycle": 0.4}
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(2 * (0.2 + 0.04) + 3 * (0.3 + 0.01 + 0.5 * 0.4), rel=1e-4)
    alone, terms = translation_objective({"spectra": 1.2 * h}, h, clean, other, TranslationWeights(2.0, 3.0, 0.5))
    assert set(terms) == {"hsi"}
    assert float(alone) == pytest.approx(0.4, rel=1e-4)


def test_discriminators_have_the_sizes_of_the_notes() -> None:
    assert count(PatchDiscriminator(31)) == 2_794_305
    assert count(PatchDiscriminator(3)) == 2_765_633


def test_a_patch_is_70_pixels_wide() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(3, width=4)
    # Instance norm sees everything; what is left without it is the receptive field.
    plain = torch.nn.Sequential(*(layer for layer in net if not isinstance(layer, torch.nn.InstanceNorm2d)))
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    out = plain(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    assert x.grad is not None
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_a_pixel_s_score_depends_on_no_neighbour_but_through_the_statistics() -> None:
    torch.manual_seed(0)
    net = PixelDiscriminator(8, width=4)
    x = torch.rand(2, 8, 5, 5)
    order = torch.randperm(25)
    mixed = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(net(mixed).flatten(2), net(x).flatten(2)[..., order])


def test_undecided_scores_cost_a_quarter_for_each_kind() -> None:
    half = {"hsi": torch.full((2, 1, 3, 3), 0.5), "rgb": torch.full((2, 1, 4, 4), 0.5)}
    assert float(generator_adversarial(half)) == pytest.approx(2 * 0.25)
    assert float(discriminator_adversarial(half, half)) == pytest.approx(2 * 0.25)
    good, bad = {"hsi": torch.ones(1, 1, 2, 2)}, {"hsi": torch.zeros(1, 1, 2, 2)}
    assert float(discriminator_adversarial(good, bad)) == 0
    assert float(generator_adversarial(bad)) == 1
    assert float(accuracy(good, bad)) == 1
    assert float(accuracy(bad, bad)) == 0.5


def test_discriminators_judge_each_kind_with_their_own() -> None:
    torch.manual_seed(0)
    nets = Discriminators({"a": PixelDiscriminator(2, 4), "b": PixelDiscriminator(3, 4)})
    images = {"a": torch.rand(1, 2, 4, 4), "b": torch.rand(1, 3, 4, 4)}
    scores = nets(images)
    torch.testing.assert_close(scores["a"], nets["a"](images["a"]))
    torch.testing.assert_close(scores["b"], nets["b"](images["b"]))


def pools(size: int, batch: int, workers: int) -> list[ImagePool]:
    """One pool a worker, on epochs of the same trial."""
    made = []
    for rank in range(workers):
        run = Run(seed=0)
        run.world.rank, run.world.size = rank, workers
        epoch = Epoch(run, "loop", 0)
        epoch._batch = batch
        made.append(ImagePool(size, batch, epoch))
    return made


def fakes(step: int, batch: int) -> Tensor:
    return torch.arange(batch).float()[:, None] + 100 * step


def test_the_pool_returns_the_fresh_until_it_is_full_and_then_older_ones_for_half() -> None:
    (pool,) = pools(size=8, batch=4, workers=1)
    older = []
    for step in range(60):
        fresh = fakes(step, 4).requires_grad_()
        shown = pool.exchange({"hsi": fresh})["hsi"]
        assert not shown.requires_grad
        assert torch.equal(shown % 100, fakes(0, 4)), "a fake left its place in the batch"
        if step < 2:
            assert torch.equal(shown, fresh)
        else:
            older.append(float((shown != fresh).float().mean()))
    assert 0.35 < sum(older) / len(older) < 0.65


def test_the_pool_exchanges_all_kinds_of_a_sample_together() -> None:
    (pool,) = pools(size=4, batch=4, workers=1)
    for step in range(6):
        shown = pool.exchange({"hsi": fakes(step, 4), "rgb": fakes(step, 4) + 0.5})
        assert torch.equal(shown["hsi"] + 0.5, shown["rgb"])


def test_two_workers_share_a_pool_as_one_has_it() -> None:
    (alone,), together = pools(8, 4, 1), pools(8, 4, 2)
    for step in range(20):
        whole = alone.exchange({"hsi": fakes(step, 4)})["hsi"]
        for rank, pool in enumerate(together):
            assert torch.equal(pool.exchange({"hsi": fakes(step, 4)[rank::2]})["hsi"], whole[rank::2])
