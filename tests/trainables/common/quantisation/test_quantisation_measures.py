"""What is measured of quantised weights, other ways to few values, and the packed file."""

import heapq
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pharos.errors import InputError
from trainables.common.quantisation import baselines
from trainables.common.quantisation.fixing import Layout, make_fixable
from trainables.common.quantisation.measures import describe, distinct, entropy, huffman_lengths, signed_digits, sizes
from trainables.common.quantisation.models import ModelConfig, build_model
from trainables.common.quantisation.packing import main, pack, plain, unpack

COUNTS = st.lists(st.integers(1, 1000), min_size=1, max_size=40).map(np.array)


# Measures


@hypothesis.given(COUNTS)
def test_entropy_bounds_huffman_from_below_within_a_bit(counts):
    bits = entropy(counts)
    shares = np.repeat(counts / counts.sum(), counts)
    assert bits == pytest.approx(-np.log2(shares).mean(), abs=1e-9)
    assert 0 <= bits <= math.log2(len(counts)) + 1e-12
    assert (bits == 0) == (len(counts) == 1)
    lengths = huffman_lengths(counts)
    mean = (lengths * counts).sum() / counts.sum()
    if len(counts) > 1:
        assert bits - 1e-9 <= mean < bits + 1
        assert (2.0**-lengths).sum() == 1  # a complete prefix code
        heap = list(counts)
        heapq.heapify(heap)
        total = 0
        while len(heap) > 1:
            both = heapq.heappop(heap) + heapq.heappop(heap)
            total += both
            heapq.heappush(heap, both)
        assert (lengths * counts).sum() == total  # the least there is
    else:
        assert lengths.tolist() == [1]


@hypothesis.given(COUNTS.filter(lambda counts: len(counts) > 1))
def test_merging_two_values_never_raises_the_entropy(counts):
    assert entropy(np.array([counts[0] + counts[1], *counts[2:]])) <= entropy(counts) + 1e-12


def test_signed_digits_are_those_of_the_shortest_sum():
    values = [0, 1, -0.5, 3, 0.75, 7, 0.875, 5 / 16, 11 / 64, 2.0**-20 + 1]
    assert signed_digits(np.array(values)).tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 3, 2]


def test_measures_with_and_without_zeros():
    weights = np.array([0.0, -0.0, 0.0, 0.0, 0.5, 0.5, -0.75, 1 / 3], np.float32)
    found = describe(weights)
    values, counts = distinct(weights)
    assert values.tolist() == pytest.approx([-0.75, 0, 1 / 3, 0.5])
    assert counts.tolist() == [1, 4, 1, 2]
    assert (found["unique"], found["unique_nonzero"], found["sparsity"]) == (4, 3, 0.5)
    assert (found["entropy"], found["entropy_nonzero"]) == (1.75, 1.5)
    assert found["huffman_bits"] == 1.75
    thirds = int(signed_digits(np.array([np.float32(1 / 3)]))[0])
    assert found["mean_terms"] == (2 * 1 + 2 + thirds) / 8
    assert found["bf16_misfits"] == 1  # a third
    size = sizes(weights, others=10)
    assert size == {"fp32_bytes": 72, "entropy_bytes": 56 + 1.75, "huffman_bytes": 56 + 1.75, "fixed_bytes": 56 + 2}


# Baselines


def weights_of(count=3000):
    return (0.05 * np.random.default_rng(0).standard_t(4, count)).astype(np.float32)


def squared(values, weights):
    return float(((values - weights).astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("count", [2, 7, 40])
def test_k_means_is_a_fixed_point_and_better_than_a_uniform_grid(count):
    weights = weights_of()
    values = baselines.kmeans(weights, count)
    levels, _ = distinct(values)
    assert len(levels) <= count
    for level in levels:
        assert weights[values == level].mean() == pytest.approx(float(level), abs=1e-6)
    assert np.array_equal(baselines.nearest(weights, levels.astype(np.float64)), values)
    assert squared(values, weights) < squared(baselines.uniform(weights, count), weights)


def test_the_notes_reference_of_k_means_and_uniform_grids():
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, deviation, 4000) for deviation in (0.12, 0.06, 0.04, 0.03, 0.02, 0.01)]
    weights = np.concatenate(parts).astype(np.float32)
    for values, count, bits, error in (
        (baselines.kmeans(weights, 50), 50, 5.31, 0.0029),
        (baselines.kmeans(weights, 56), 56, 5.55, 0.0028),
        (baselines.uniform(weights, 50), 44, 3.42, 0.0054),
        (baselines.uniform(weights, 56), 49, 3.58, 0.0048),
    ):
        found = describe(values)
        assert found["unique"] == count
        assert found["entropy"] == pytest.approx(bits, abs=0.005)
        assert math.sqrt(squared(values, weights) / len(weights)) == pytest.approx(error, abs=0.00005)


def test_integers_have_2_to_the_bits_less_one_values_at_most():
    weights = weights_of(20_000)
    for bits in (4, 8):
        values, _ = distinct(baselines.integers(weights, bits))
        most = 2 ** (bits - 1) - 1
        assert len(values) <= 2 * most + 1
        steps = values / (np.abs(weights).max() / most)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert not baselines.integers(np.zeros(3, np.float32), 4).any()


@pytest.mark.parametrize(("bits", "count"), [(3, 7), (4, 15), (5, 31)])
def test_apot_has_its_levels_and_the_clipping_with_the_least_error(bits, count):
    weights = weights_of()
    values = baselines.apot(weights, bits)
    levels, _ = distinct(values)
    assert len(levels) <= count
    assert len(baselines.APOT_LEVELS[bits]) * 2 - 1 == count
    ratios = np.abs(levels) / np.abs(levels).max()
    known = np.array(baselines.APOT_LEVELS[bits])
    assert all(np.abs(known / known.max() - ratio).min() < 1e-6 or ratio < 1 for ratio in ratios)
    both = np.unique(np.concatenate([-known, known])) * float(np.abs(weights).max())
    assert squared(values, weights) <= squared(baselines.nearest(weights, both), weights)


@pytest.mark.parametrize("distance", ["relative", "euclidean"])
def test_one_shot_has_as_many_values_as_it_may_have_or_a_few_less(distance):
    weights = weights_of()
    found, _ = distinct(baselines.one_shot(weights[:800], 20, 2.0**-7, distance))
    assert 16 <= len(found) <= 20


def test_levels_by_tensor_are_many_in_the_whole_network():
    network = make_fixable(build_model(ModelConfig("cnn_s", 8), 10, (1, 8, 8)), include_bn=True)
    layout = Layout.of(network)
    ways = baselines.methods(layout, 20, 2.0**-7)
    weights = layout.vector(network.state_dict())
    values = {name: way(weights) for name, way in ways.items()}
    assert all(len(value) == len(weights) for value in values.values())
    counts = {name: len(distinct(value)[0]) for name, value in values.items()}
    assert max(counts[name] for name in ("kmeans", "uniform", "wfn_oneshot", "wfn_euclid")) <= 20
    assert counts["int8_tensor"] > counts["int4_tensor"] > 20
    assert counts["apot3_tensor"] > 7 >= counts["apot3"]


# The packed file


def bits_of(tensor):
    return tensor.contiguous().numpy().tobytes()


@pytest.mark.parametrize("count", [1, 2, 200])
@pytest.mark.parametrize("size", [1, 2047, 2048, 2049, 10_000])
def test_what_was_packed_comes_back_bit_for_bit(count, size):
    rng = np.random.default_rng(size)
    book = rng.normal(0, 1, count).astype(np.float32)
    if count == 200:
        book[:3] = [0.0, -0.0, np.nan]
    # Values whose counts fall geometrically have long codes.
    drawn = torch.from_numpy(book[np.minimum(rng.geometric(0.3, size) - 1, count - 1)])
    state = {"b": torch.arange(3), "w": drawn, "u": drawn[: size // 2].reshape(1, -1).flip(1)}
    data = pack(state, ["w", "u"])
    back = unpack(data)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].shape == value.shape
        assert back[name].dtype == value.dtype
        assert bits_of(back[name]) == bits_of(value)


def test_it_is_as_small_as_its_codes_and_blocks():
    rng = np.random.default_rng(0)
    weights = torch.from_numpy((rng.integers(-8, 8, 200_000) ** 3 / 64.0).astype(np.float32))
    data = pack({"w": weights}, ["w"])
    bound = sizes(weights.numpy(), 0)
    blocks = 4 * math.ceil(200_000 / 2048)
    assert bound["huffman_bytes"] <= len(data) <= bound["huffman_bytes"] + blocks + 300
    assert len(data) < 800_000 / 7


def test_a_file_that_is_cut_off_or_another_s_is_refused():
    data = pack({"w": torch.ones(5000), "x": torch.zeros(3)}, ["w"])
    for bad in (b"", data[:7], data[:40], data[:-1], b"X" + data[1:], data[:16] + b"!" + data[17:]):
        with pytest.raises(InputError, match="not a packed network"):
            unpack(bad)


def fixed_network():
    network = make_fixable(build_model(ModelConfig("cnn_s", 4), 10, (1, 8, 8)), include_bn=True)
    layout = Layout.of(network)
    values = baselines.uniform(layout.vector(network.state_dict()), 30)
    return layout.fixed(network.state_dict(), values, np.ones(layout.size, bool)), layout, values


def test_a_network_that_is_not_all_fixed_is_refused():
    state, layout, values = fixed_network()
    free = layout.fixed(state, values, np.arange(layout.size) != 3)
    with pytest.raises(InputError, match="1 weights are not fixed"):
        plain(free)
    with pytest.raises(InputError, match="0 weights are not fixed"):
        plain({"w": torch.ones(3)})


def test_the_command_packs_an_export_and_its_unpacked_file_is_a_network_s_weights(tmp_path, monkeypatch, capsys):
    state, _, _ = fixed_network()
    export, packed, unpacked = (
        tmp_path / name for name in ("network.safetensors", "network.packed", "plain.safetensors")
    )
    save_file({name: value.contiguous() for name, value in state.items()}, export)

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["packing", *map(str, arguments)])
        return main(), capsys.readouterr()

    code, said = command("pack", export, packed)
    assert code == 0
    assert f"{packed.stat().st_size:,} bytes" in said.out
    assert command("unpack", packed, unpacked)[0] == 0
    back = load_file(unpacked)
    for name, value in plain(state)[0].items():
        assert bits_of(back[name]) == bits_of(value)
    build_model(ModelConfig("cnn_s", 4, str(unpacked)), 10, (1, 8, 8))
    code, said = command("unpack", export, tmp_path / "other")
    assert code == 2
    assert "not a packed network" in said.err
