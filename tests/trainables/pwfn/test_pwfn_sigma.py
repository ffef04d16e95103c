"""Sigmas of PWFN: where they start and what raises them (the document's section 7, invariants 1, 2 and 6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainables.pwfn.sigma import LEAST, initial_sigma, relative_gap, sigma_penalty

S = 0.05


def random(count: int = 1000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


# 1


def test_the_gap_vanishes_on_powers_of_two_and_is_an_eighth_at_four_thirds() -> None:
    powers = 2.0 ** torch.arange(-29, 10)
    assert (relative_gap(powers) == 0).all()
    assert (relative_gap(powers * 4 / 3) - 1 / 8).abs().max() < 1e-7


def test_the_gap_knows_neither_sign_nor_octave() -> None:
    w = random()
    gap = relative_gap(w)
    assert torch.equal(relative_gap(-w), gap)
    assert torch.equal(relative_gap(2 * w), gap)
    assert 0 <= gap.min() <= gap.max() <= 1 / 8
    up, down = (w.sign() * 2.0 ** f(w.abs().double().log2()) for f in (torch.ceil, torch.floor))
    torch.testing.assert_close(gap, ((w - up) / w).abs() * ((w - down) / w).abs())


def test_sigma_starts_within_its_bounds() -> None:
    for scale in (1e-9, 0.0025, 0.04, 10.0):
        sigma = initial_sigma(random(), scale, S)
        assert sigma.dtype == torch.float32
        assert LEAST <= sigma.min() <= sigma.max() <= S


def test_powers_of_two_start_without_freedom() -> None:
    assert (initial_sigma(2.0 ** torch.arange(-12, 12), 0.0025, S) == LEAST).all()
    assert (initial_sigma(torch.zeros(3, 4), 0.0025, S) == LEAST).all()


def test_zeros_and_next_to_nothing_poison_no_tensor() -> None:
    w = random()
    with_zeros = torch.cat([w, torch.zeros(50), torch.full((50,), 1e-39), torch.tensor([-0.0, 1e-12])])
    sigma = initial_sigma(with_zeros, 0.0025, S)
    assert sigma.isfinite().all()
    assert (sigma[1000:] == LEAST).all()
    assert (sigma[:1000] > LEAST).sum() > 990
    assert initial_sigma(torch.empty(0), 0.0025, S).shape == (0,)


# 2


def test_a_million_uniform_mantissas_give_the_document_s_quantiles() -> None:
    w = 1 + torch.rand(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(relative_gap(w).quantile(0.75)) == pytest.approx(0.1153, abs=5e-4)
    sigma = initial_sigma(w, 0.0025, S)
    assert float(sigma.median()) == pytest.approx(0.00191, abs=1e-5)
    assert float(sigma.max()) == pytest.approx(0.00271, abs=1e-5)


# 6


def test_the_penalty_s_gradient_is_the_push_of_the_authors_code() -> None:
    sigma = torch.tensor([-0.01, 0.0, 0.01, 0.049, 0.05, 0.2], requires_grad=True)
    noise = random(6)
    sigma_penalty(sigma, noise, S, "linear").backward()
    assert torch.equal(sigma.grad, -(S - sigma).relu() * noise.abs())
    assert (sigma.grad[-2:] == 0).all()
    sigma.grad = None
    sigma_penalty(sigma, noise, S, "constant").backward()
    assert sigma.grad.tolist() == [-1, -1, -1, -1, 0, 0]


def test_it_drives_sigma_to_the_cut_off_at_the_document_s_rate() -> None:
    sigma = torch.zeros(500, requires_grad=True)
    rate, momentum, strength, steps = 0.01, 0.9, 2.0**-7, 2000
    optimiser = torch.optim.SGD([sigma], rate, momentum)
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(steps):
        optimiser.zero_grad()
        (strength * sigma_penalty(sigma, torch.randn(500, generator=generator), S, "linear")).backward()
        optimiser.step()
        means.append(float(sigma.detach().mean()))
    assert means == sorted(means)
    assert sigma.max() < S
    expected = S * (1 - torch.tensor(-steps * rate / (1 - momentum) * strength * 0.798).exp())
    assert means[-1] == pytest.approx(float(expected), rel=0.01)
