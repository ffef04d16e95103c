"""The clustering: the published numbers, the dense algorithm as an oracle, and what must hold of any call.

Numbers: section 7 of the reference notes on WFN (arXiv 2210.13554).
"""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from trainables.common.quantisation.clustering import MAX_ORDER, Clustering, Group, candidates, cluster, grid
from trainables.common.quantisation.measures import describe, distinct

GAMMA_0 = 2.0**-7
PAPER10 = (0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0)


def reference_weights():
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, deviation, 4000) for deviation in (0.12, 0.06, 0.04, 0.03, 0.02, 0.01)]
    return np.concatenate(parts).astype(np.float32)


def in_rounds(weights, delta):
    for index, share in enumerate(PAPER10):
        found = cluster(weights, share, delta * (len(PAPER10) - index))
        weights = found.values
    return found


# Candidates


@pytest.mark.parametrize(
    ("delta", "count"), [(0.0075, 324), (0.01, 243), (0.015, 162), (0.05, 49), (0.075, 33), (0.1, 25)]
)
def test_grids_have_the_notes_sizes_and_touching_bands(delta, count):
    points = grid(1.0, GAMMA_0, delta)
    assert len(points) == count
    assert points[0] == GAMMA_0
    np.testing.assert_allclose(points[1:] * (1 - delta), points[:-1] * (1 + delta), rtol=1e-12)
    assert points[-1] < 1 <= points[-1] * (1 + delta) / (1 - delta)


@pytest.mark.parametrize(
    ("delta", "sizes"),
    [
        (0.0075, (17, 125, 393, 561, 621, 649)),
        (0.01, (17, 119, 337, 441, 479, 487)),
        (0.015, (17, 107, 265, 311, 325, 325)),
        (0.05, (17, 81, 99, 99, 99, 99)),
        (0.1, (17, 51, 51, 51, 51, 51)),
    ],
)
def test_candidate_sets_have_the_notes_sizes(delta, sizes):
    points = grid(1.0, GAMMA_0, delta)
    assert tuple(len(candidates(points, GAMMA_0, delta, order)) for order in range(6)) == sizes
    powers = 2.0 ** np.arange(-7, 1)
    assert np.array_equal(candidates(points, GAMMA_0, delta, 0), [*-powers[::-1], 0, *powers])


@pytest.mark.parametrize("delta", [0.01, 0.05])
@pytest.mark.parametrize("order", range(6))
def test_candidates_are_symmetric_sums_of_few_powers_of_two(delta, order):
    found = candidates(grid(1.0, GAMMA_0, delta), GAMMA_0, delta, order)
    assert np.array_equal(found, -found[::-1])
    assert 0 in found
    assert np.array_equal(found.astype(np.float32), found)
    # A sum of o + 1 signed powers no smaller than the lowest is a multiple of it with no more digits than that.
    lowest = 2.0 ** (math.log2(GAMMA_0) - order - 1)
    assert np.array_equal(np.round(found / lowest), found / lowest)
    digits = [bin(int(abs(value) / lowest) ^ 3 * int(abs(value) / lowest)).count("1") for value in found]
    assert max(digits) <= order + 1


def test_candidates_cover_every_magnitude():
    x = np.geomspace(GAMMA_0, 1, 20_000)
    worst = {}
    for delta, order in ((0.01, 4), (0.05, 4), (0.01, 0)):
        found = candidates(grid(1.0, GAMMA_0, delta), GAMMA_0, delta, order)
        worst[delta, order] = (np.abs(x[:, None] - found).min(axis=1) / x).max()
    assert worst[0.01, 4] == pytest.approx(1.89 * 0.01, rel=0.01)
    assert worst[0.05, 4] == pytest.approx(1.54 * 0.05, rel=0.01)
    assert worst[0.01, 0] == pytest.approx(1 / 3, rel=0.01)


# The reference experiment


def test_one_shot_has_the_notes_numbers():
    weights = reference_weights()
    found = cluster(weights, 1.0, 0.01)
    measured = describe(found.values)
    assert measured["unique"] == 268
    assert measured["entropy"] == pytest.approx(6.62, abs=0.005)
    assert found.by_order() == {0: 5817, 1: 1703, 2: 2064, 3: 9183, 4: 4820, MAX_ORDER + 1: 413}
    assert np.mean(np.abs(weights) < GAMMA_0) == pytest.approx(0.228, abs=0.001)


@pytest.mark.parametrize(
    ("delta", "moved"), [(0.0075, 0.0073), (0.01, 0.0098), (0.015, 0.0148), (0.03, 0.0297), (0.1, 0.0999)]
)
def test_the_mean_relative_change_is_close_to_what_is_allowed(delta, moved):
    weights = reference_weights()
    found = cluster(weights, 1.0, delta)
    large = np.abs(weights) >= GAMMA_0
    change = np.abs(found.values - weights)[large] / np.abs(weights[large])
    assert change.mean() == pytest.approx(moved, abs=0.00005)
    assert change.mean() <= delta


@pytest.mark.parametrize(("delta", "count", "bits"), [(0.0075, 70, 4.65), (0.01, 56, 4.31), (0.015, 41, 4.00)])
def test_the_schedule_has_the_notes_numbers(delta, count, bits):
    weights = reference_weights()
    found = in_rounds(weights, delta)
    measured = describe(found.values)
    assert measured["unique"] == count
    assert measured["entropy"] == pytest.approx(bits, abs=0.005)
    if delta == 0.01:
        assert found.by_order() == {0: 13310, 1: 10616, 2: 63, 3: 3, MAX_ORDER + 1: 8}
        assert measured["mean_terms"] == pytest.approx(1.18, abs=0.005)
        assert measured["huffman_bits"] == pytest.approx(4.342, abs=0.0005)
        assert np.sqrt(np.mean((found.values - weights) ** 2)) == pytest.approx(0.0051, abs=0.0001)


def test_no_round_moves_or_releases_what_one_before_has_fixed():
    weights, fixed = reference_weights(), np.zeros(24_000, bool)
    for index, share in enumerate(PAPER10):
        found = cluster(weights, share, 0.01 * (10 - index))
        assert found.mask[fixed].all()
        assert np.array_equal(found.values[fixed], weights[fixed])
        assert found.mask.sum() == int(24_000 * share)
        weights, fixed = found.values, found.mask


# The dense algorithm, as the notes write it


def dense(weights, share, delta, *, gamma_0=GAMMA_0, max_order=MAX_ORDER, distance="relative"):
    w = weights.astype(np.float64)
    free, out, order, allowed, groups = np.ones(len(w), bool), w.copy(), 0, delta, []
    target = max(1, int(len(w) * share))
    while (left := target - (~free).sum()) > 0:
        places = np.flatnonzero(free)
        x = w[places]
        centres = candidates(grid(np.abs(x).max(), gamma_0, delta), gamma_0, delta, min(order, max_order))
        wanted = np.bincount(np.abs(x[:, None] - centres).argmin(axis=1), minlength=len(centres))
        c = centres[wanted.argmax()]
        with np.errstate(all="ignore"):
            d = np.abs(x - c) / (np.abs(x) if distance == "relative" else 1)
        d[np.isnan(d)] = 1
        if c == 0:
            d[np.abs(x) < gamma_0] = 0
        nearest = np.argsort(d, kind="stable")
        zeros = (d == 0).sum()
        counts = np.arange(1, len(d) + 1)
        allowed_to = np.cumsum(d[nearest]) <= allowed * (counts - (zeros if zeros >= 2 else 0))
        n = min(counts[allowed_to].max(initial=0), left)
        if n == 0:
            order += 1
            if order > max_order:
                order, allowed = MAX_ORDER + 1, 2 * allowed
            continue
        members = places[nearest[:n]]
        out[members], free[members] = c, False
        groups.append((c, n, allowed))
        allowed = delta
    return out.astype(np.float32), ~free, groups


@pytest.mark.parametrize("delta", [0.0075, 0.02, 0.1, 0.4])
@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("distance", ["relative", "euclidean"])
def test_the_fast_one_picks_what_the_dense_one_picks(delta, share, kind, distance):
    rng = np.random.default_rng(1)
    weights = reference_weights()[::60]
    if kind == "heavy":
        weights = (0.05 * rng.standard_t(2, 300)).astype(np.float32)
    delta = delta if distance == "relative" else delta / 10
    values, mask, groups = dense(weights, share, delta, distance=distance)
    found = cluster(weights, share, delta, distance=distance)
    assert [(group.centre, group.size, group.allowed) for group in found.groups] == groups
    if groups[-1][0] != 0:  # which of the weights below gamma_0 are left is open: all are at a distance of 0
        assert np.array_equal(found.values, values)
        assert np.array_equal(found.mask, mask)


@pytest.mark.parametrize("delta", [0.0075, 0.02, 0.1])
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_it_does_with_many_equal_weights_and_many_that_are_at_candidates(delta, share):
    weights = np.round(reference_weights()[::31] * 256) / np.float32(256)
    groups = dense(weights, share, delta)[2]
    assert [(group.centre, group.size, group.allowed) for group in cluster(weights, share, delta).groups] == groups


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.lists(
        st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, 0.5, -0.5, 0.25, GAMMA_0, -GAMMA_0, 1e-30])),
        min_size=1,
        max_size=60,
    ),
    st.floats(0.01, 1.0),
    st.sampled_from([0.002, 0.01, 0.1, 0.6]),
)
def test_any_weights_are_fixed_as_many_as_asked_for_and_in_the_codebook(values, share, delta):
    weights = np.array(values, np.float32)
    found = cluster(weights, share, delta)
    check(found, weights, share)
    assert np.array_equal(found.values[~found.mask], weights[~found.mask])
    oracle = dense(weights, share, delta)[2]
    assert [(group.centre, group.size) for group in found.groups] == [(c, n) for c, n, _ in oracle]


def check(found: Clustering, weights, share):
    assert found.mask.sum() == max(1, int(len(weights) * share))
    centres = {np.float32(group.centre) for group in found.groups}
    assert set(found.values[found.mask].tolist()) <= {float(centre) for centre in centres}
    assert sum(group.size for group in found.groups) == found.mask.sum()
    assert all(group.mean_distance <= group.allowed * (1 + 1e-9) for group in found.groups if group.centre)


def test_groups_keep_their_bound_and_zero_takes_what_is_below_gamma_0():
    weights = reference_weights()
    found = cluster(weights, 1.0, 0.01)
    check(found, weights, 1.0)
    assert {group.allowed for group in found.groups if group.order <= MAX_ORDER} == {0.01}
    zeros = np.abs(weights) < GAMMA_0
    nonzero_first = [group for group in found.groups if group.centre == 0]
    assert len(nonzero_first) == 1
    assert (found.values[zeros] == 0).mean() > 0.95  # others were taken by the centre at gamma_0 before
    assert not (found.values[~zeros] == 0).any()


def test_weights_that_are_all_small_become_one_zero():
    found = cluster(np.linspace(-0.007, 0.007, 50, dtype=np.float32), 1.0, 0.01)
    assert describe(found.values) == describe(np.zeros(50, np.float32))
    assert found.groups == (Group(0.0, 50, 0, 0.01, 0.0),)


def test_weights_equal_to_one_power_of_two_stay():
    for value in (GAMMA_0, 0.25, -1.0):
        weights = np.full(20, value, np.float32)
        found = cluster(weights, 1.0, 0.01)
        assert np.array_equal(found.values, weights)
        assert len(found.groups) == 1


@pytest.mark.parametrize("power", [-3, 5])
def test_it_is_equivariant_under_scaling_by_powers_of_two(power):
    weights = reference_weights()[::5]
    scaled = cluster(weights * np.float32(2.0**power), 1.0, 0.02, gamma_0=GAMMA_0 * 2.0**power)
    plain = cluster(weights, 1.0, 0.02)
    assert np.array_equal(scaled.values, plain.values * np.float32(2.0**power))


def test_clustering_again_leaves_nearly_all_unchanged():
    once = cluster(reference_weights()[::5], 1.0, 0.01).values
    twice = cluster(once, 1.0, 0.01).values
    assert (once == twice).mean() >= 0.999


def test_order_0_has_zero_and_powers_of_two_alone():
    values, _ = distinct(cluster(reference_weights(), 1.0, 0.01, max_order=0).values)
    exponents = np.log2(np.abs(values[values != 0]))
    assert np.array_equal(exponents, np.round(exponents))


def test_kept_weights_stay_and_count():
    weights = reference_weights()[::10]
    first = cluster(weights, 0.5, 0.1)
    second = cluster(first.values, 0.8, 0.05, kept=first.mask)
    assert second.mask.sum() == int(len(weights) * 0.8)
    assert second.mask[first.mask].all()
    assert np.array_equal(second.values[first.mask], first.values[first.mask])
    last = cluster(second.values, 1.0, 0.05, kept=second.mask)
    assert last.mask.all()
    assert np.array_equal(last.values[second.mask], second.values[second.mask])


def test_the_result_does_not_depend_on_the_order_of_the_weights():
    weights = reference_weights()[::10]
    order = np.random.default_rng(0).permutation(len(weights))
    assert np.array_equal(cluster(weights[order], 0.7, 0.02).values, cluster(weights, 0.7, 0.02).values[order])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        cluster(np.array([0.1, bad], np.float32), 1.0, 0.01)
