"""The clustering round of PWFN: the numbers of the document's section 7, and a dense implementation to agree with."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.pwfn.clustering import Assignment, Rules, candidates, cluster, share
from trainables.pwfn.sigma import initial_sigma

PAPER = Rules()
FRACTIONS = [0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 1.0]


@pytest.fixture(scope="module")
def blocks() -> list[Tensor]:
    """The reference vector of invariant 13, block by block."""
    draw = np.random.default_rng(0)
    return [torch.from_numpy(draw.normal(0, std, 4000)).float() for std in (0.12, 0.06, 0.04, 0.03, 0.02, 0.01)]


@pytest.fixture(scope="module")
def mu(blocks: list[Tensor]) -> Tensor:
    return torch.cat(blocks)


@pytest.fixture(scope="module")
def sigma(blocks: list[Tensor]) -> Tensor:
    return torch.cat([initial_sigma(block, 0.0025, 0.05) for block in blocks])


def entropy(values: Tensor) -> float:
    counts = values.unique(return_counts=True)[1].double()
    return float(-(counts / counts.sum() * (counts / counts.sum()).log2()).sum())


def dense(mu: Tensor, sigma: Tensor, count: int, delta: float, rules: Rules) -> tuple[Tensor, Tensor]:
    """The box of section 4.4 with the matrix of all distances: each weight's centre and tolerance; NaN: none."""
    x, s = mu.double().numpy(), sigma.double().clamp_min(2.0**-20).numpy()
    value, when = np.full(len(x), math.nan), np.full(len(x), math.nan)
    left, powl, counter, tolerance = count, 1, 1, delta
    while left:
        free = np.isnan(value)
        largest = np.abs(x[free]).max()
        powers = {0.0, *(2.0**k for k in range(-rules.b, math.ceil(math.log2(largest))))}
        sums = {sum(terms) for terms in itertools.combinations_with_replacement(powers, powl)}
        centres = np.array(sorted({sign * c for c in sums if c <= largest for sign in (-1, 1)}))
        while left:
            distance = np.abs(x[:, None] - centres[None]) / s[:, None]
            if rules.zero_fix:
                distance[np.ix_(np.abs(x) < 2.0**-rules.b, centres == 0)] = 0
            distance[~np.isnan(value)] = math.inf
            reached = (distance <= tolerance).sum(axis=0)
            best = reached.argmax()
            if not reached[best]:
                break
            closest = np.argsort(distance[:, best], kind="stable")[: min(reached[best], left)]
            value[closest], when[closest] = centres[best], tolerance
            left -= len(closest)
            centres = np.delete(centres, best)
            if not len(centres):
                break
        if powl < rules.max_powl and counter % 2:
            powl += 1
        else:
            tolerance *= rules.inc
        counter += 1
    return torch.from_numpy(value).float(), torch.from_numpy(when).float()


def fixed_everywhere(mu: Tensor, sigma: Tensor, delta: float = 1.0, rules: Rules = PAPER) -> Assignment:
    return cluster(mu, sigma, len(mu), delta, rules)


# 8


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(0.5, [13, 45, 85, 115]), (0.99, [15, 57, 127, 197]), (1.5, [17, 73, 173, 283]), (3.0, [19, 91, 245, 455])],
)
def test_candidates_are_as_many_as_published_symmetric_nested_and_no_larger_than_the_largest_weight(
    largest: float, sizes: list[int]
) -> None:
    sets = [candidates(largest, powl, 7) for powl in (1, 2, 3, 4)]
    assert [len(units) for units in sets] == sizes
    for units, more in itertools.pairwise(sets):
        assert set(units) < set(more)
    for units in sets:
        assert np.array_equal(units, -units[::-1])
        assert units[-1] <= largest * 2**7


def test_a_largest_weight_that_is_a_power_of_two_takes_two_terms() -> None:
    assert candidates(0.5, 1, 7)[-1] == 32
    assert candidates(0.5, 2, 7)[-1] == 64


@pytest.mark.parametrize("largest", [2.0**-7, 1e-5, 0.0])
def test_below_the_smallest_power_zero_is_the_only_centre(largest: float) -> None:
    assert candidates(largest, 4, 7).tolist() == [0]


# 9


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.7, 1.0])
def test_as_many_are_assigned_as_asked_for_each_within_its_tolerance(
    mu: Tensor, sigma: Tensor, fraction: float
) -> None:
    found = cluster(mu, sigma, share(fraction, len(mu)), 1.0, PAPER)
    is_fixed = found.is_fixed
    assert is_fixed.sum() == math.ceil(round(fraction * len(mu), 6)) == sum(group.count for group in found.groups)
    distance = (mu.double() - found.centres).abs() / sigma.double().clamp_min(2.0**-20)
    is_small = (mu.abs() < 2.0**-7) & (found.centres == 0)
    assert ((distance <= found.tolerances) | is_small)[is_fixed].all()
    assert (found.centres[~is_fixed] == 0).all()
    assert (found.tolerances[is_fixed] > 0).all()
    units = found.centres * 2**7
    assert torch.equal(units, units.round())


def test_a_share_is_that_of_the_decimal_and_not_of_its_floating_point_neighbour() -> None:
    assert share(0.7, 10) == 7  # 0.7 * 10 > 7 in floating point
    assert share(0.975, 1000) == 975
    assert share(0.2, 24001) == 4801
    assert share(1.0, 7) == 7


# 10


def test_with_one_sigma_for_all_positions_do_not_matter(mu: Tensor) -> None:
    order = torch.randperm(len(mu), generator=torch.Generator().manual_seed(0))
    sigma = torch.full_like(mu, 0.0025)
    assert torch.equal(
        fixed_everywhere(mu[order], sigma).centres.sort().values, fixed_everywhere(mu, sigma).centres.sort().values
    )
    assert torch.equal(fixed_everywhere(mu[order], sigma).centres, fixed_everywhere(mu, sigma).centres[order])


def test_weights_on_powers_of_two_do_not_move_when_sigma_vanishes() -> None:
    mu = torch.tensor([0.25, -0.125, 2.0**-7, 0.0, 0.25, -(2.0**-6), 0.3])
    found = fixed_everywhere(mu, torch.zeros_like(mu))
    assert torch.equal(found.centres[:-1], mu[:-1])
    assert found.centres[-1] != 0


def test_with_an_unlimited_tolerance_one_centre_takes_everything(mu: Tensor, sigma: Tensor) -> None:
    found = fixed_everywhere(mu, sigma, delta=1e12)
    assert len(found.groups) == 1
    assert entropy(found.centres) == 0


# 11


def test_the_same_value_goes_where_its_sigma_lets_it() -> None:
    mu = torch.full((8,), 0.0735)
    sigma = torch.tensor([0.001] * 4 + [0.02] * 4)
    found = fixed_everywhere(mu, sigma)
    assert found.centres.tolist() == [0.0703125] * 4 + [0.0625] * 4
    assert [(group.powl, group.tolerance, group.count) for group in found.groups] == [(1, 1.0, 4), (3, 4.0, 4)]
    assert fixed_everywhere(mu, torch.full((8,), 0.001)).centres.tolist() == [0.0703125] * 8


# 12


@pytest.mark.parametrize("fraction", [0.3, 1.0])
@pytest.mark.parametrize("rules", [PAPER, Rules(b=5, max_powl=2, inc=1.3, zero_fix=False)], ids=["paper", "others"])
def test_it_agrees_with_all_distances_bit_for_bit(mu: Tensor, sigma: Tensor, fraction: float, rules: Rules) -> None:
    thin = slice(None, None, 6)  # of all blocks
    mu, sigma = mu[thin], sigma[thin]
    count = share(fraction, len(mu))
    found = cluster(mu, sigma, count, 1.0, rules)
    centres, tolerances = dense(mu, sigma, count, 1.0, rules)
    assert torch.equal(found.is_fixed, ~centres.isnan())
    assert torch.equal(found.centres, centres.nan_to_num())
    assert torch.equal(found.tolerances, tolerances.nan_to_num())


def test_too_many_centres_for_tables_are_found_without_them_alike(
    mu: Tensor, sigma: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_table = fixed_everywhere(mu, sigma)
    monkeypatch.setattr("trainables.pwfn.clustering._TABLE", 0)
    assert torch.equal(fixed_everywhere(mu, sigma).group, with_table.group)


# 13


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("sigma_0", (88, 4.45, 0.00306, 0.86)),
        ("3 sigma_0", (57, 4.03, 0.00417, 0.98)),
        ("0.0001", (91, 4.49, 0.00296, 0.27)),
        ("0.0025", (82, 4.43, 0.00315, 0.99)),
        ("0.01", (37, 3.52, 0.00549, 1.00)),
    ],
)
def test_the_reference_experiment_gives_the_document_s_table(
    mu: Tensor, sigma: Tensor, which: str, expected: tuple[int, float, float, float]
) -> None:
    values, bits, moved, soon = expected
    chosen = {"sigma_0": sigma, "3 sigma_0": 3 * sigma}
    found = fixed_everywhere(mu, chosen[which] if which in chosen else torch.full_like(mu, float(which)))
    assert len(found.centres.unique()) == values
    assert entropy(found.centres) == pytest.approx(bits, abs=0.005)
    assert float((found.centres - mu).square().mean().sqrt()) == pytest.approx(moved, abs=5e-6)
    assert float((found.tolerances <= 2).float().mean()) == pytest.approx(soon, abs=0.005)


def test_the_relaxations_of_the_reference_experiment_assign_as_many_as_the_document_s(
    mu: Tensor, sigma: Tensor
) -> None:
    done: dict[tuple[int, float], int] = {}
    total = 0
    for group in fixed_everywhere(mu, sigma).groups:
        total += group.count
        done[group.powl, group.tolerance] = total
    assert list(done.values()) == [7818, 11982, 19018, 20709, 22976, 23211, 23827, 23966, 24000]
    assert list(done) == [(1, 1), (2, 1), (2, 2), (3, 2), (3, 4), (4, 4), (4, 8), (4, 16), (4, 32)]
